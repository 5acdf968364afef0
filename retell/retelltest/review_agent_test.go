package retelltest_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience/retell/retelltest"
)

// Who names the agent of a phone call by agent_id, a common mistake, gets the agent of the number and no error.
func TestWhichAgentSpeaks(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	for _, c := range []struct{ path, body, agent string }{
		{"/v2/create-phone-call", dialBody(""), "agent_test"},
		{"/v2/create-phone-call", dialBody(`,"agent_id":"agent_b"`), "agent_test"},
		{"/v2/create-phone-call", dialBody(`,"override_agent_id":"agent_b"`), "agent_b"},
		{"/v2/create-web-call", `{"agent_id":"agent_b"}`, "agent_b"},
		{"/v2/register-phone-call", `{"agent_id":"agent_b"}`, "agent_b"},
		{"/create-sms-chat", dialBody(""), "agent_test"},
		{"/create-sms-chat", dialBody(`,"agent_id":"agent_b"`), "agent_test"},
		{"/create-sms-chat", dialBody(`,"override_agent_id":"agent_b"`), "agent_b"},
		{"/create-chat", `{"agent_id":"agent_b"}`, "agent_b"},
	} {
		_, made := send(t, srv, "POST", c.path, c.body)
		require.Equal(t, c.agent, made["agent_id"], "%s %s", c.path, c.body)
	}
}
