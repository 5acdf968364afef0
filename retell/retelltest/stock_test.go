package retelltest_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience/retell/retelltest"
)

func TestContactsAreOnePerNumber(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	_, made := send(t, srv, "POST", "/create-contact", `{"phone_number":"`+to+`"}`)
	askAll(t, srv, []asked{
		{"POST", "/create-contact", `{"phone_number":"` + to + `"}`, 400},
		{"POST", "/create-contact", `{"phone_number":"+15550002222"}`, 201},
		{"POST", "/create-contact", `{}`, 201},
		{"POST", "/create-contact", `{}`, 201},
		{"POST", "/create-app", `{"phone_number":"` + to + `"}`, 201},
		{"GET", "/get-contact-by-phone/+15550003333", "", 404},
	})
	status, found := send(t, srv, "GET", "/get-contact-by-phone/"+to, "")
	require.Equal(t, 200, status)
	require.Equal(t, made, found)
}

func TestWhatIsMadeAndChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := retelltest.NewServer()
		defer srv.Close()
		_, agent := send(t, srv, "POST", "/create-agent", `{"agent_name":"a"}`)
		require.EqualValues(t, 0, agent["version"])
		require.Equal(t, false, agent["is_published"])
		require.EqualValues(t, time.Now().UnixMilli(), agent["last_modification_timestamp"])
		time.Sleep(time.Second)
		_, changed := send(t, srv, "PATCH", "/update-agent/"+agent["agent_id"].(string), `{"agent_id":"another","agent_name":"b"}`)
		require.Equal(t, agent["agent_id"], changed["agent_id"])
		require.EqualValues(t, time.Now().UnixMilli(), changed["last_modification_timestamp"])
		_, kb := send(t, srv, "POST", "/create-knowledge-base", `{"knowledge_base_name":"n"}`)
		require.Equal(t, "complete", kb["status"])
		_, contact := send(t, srv, "POST", "/create-contact", `{}`)
		require.NotContains(t, contact, "version")
	})
}

func TestPhoneNumbersComeAsTheyWereAskedFor(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	_, bought := send(t, srv, "POST", "/create-phone-number", `{"area_code":555,"nickname":"n"}`)
	require.Regexp(t, `^\+1555\d{7}$`, bought["phone_number"])
	require.Equal(t, "n", bought["nickname"])
	require.Equal(t, "retell-twilio", bought["phone_number_type"])
	_, bought = send(t, srv, "POST", "/create-phone-number", `{"area_code":556}`)
	require.Regexp(t, `^\+1556\d{7}$`, bought["phone_number"])
	_, brought := send(t, srv, "POST", "/import-phone-number", `{"phone_number":"+15550004444"}`)
	require.Equal(t, "custom", brought["phone_number_type"])
}

func TestPagesOfAListWithPagingInTheQuery(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	send(t, srv, "POST", "/create-phone-number", `{}`)
	for query, want := range map[string]struct {
		items int
		more  bool
	}{"": {2, false}, "?limit=2": {2, false}, "?limit=1": {1, true}, "?limit=1&skip=1": {1, false}, "?skip=0": {2, false}} {
		status, page := send(t, srv, "GET", "/v2/list-phone-numbers"+query, "")
		require.Equal(t, 200, status)
		require.Len(t, page["items"], want.items, query)
		require.Equal(t, want.more, page["has_more"], query)
	}
	askAll(t, srv, []asked{
		{"POST", "/v3/list-calls", `{"limit":1000}`, 200},
		{"POST", "/v3/list-calls", `{"limit":1001}`, 400},
		{"POST", "/v3/list-calls", `{"limit":{}}`, 400},
		{"POST", "/v3/list-calls", `{"limit":1.5}`, 400},
		{"POST", "/v3/list-calls", `{"skip":"x"}`, 400},
		{"POST", "/v3/list-calls", `{"skip":-1}`, 400},
	})
}

func TestAMissingConversationFlow(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	_, flow := send(t, srv, "POST", "/create-conversation-flow", "{}")
	askAll(t, srv, []asked{
		{"GET", "/get-conversation-flow/none", "", 404},
		{"PATCH", "/update-conversation-flow/none", "{}", 422},
		{"PATCH", "/update-conversation-flow/" + flow["conversation_flow_id"].(string), "{}", 200},
	})
}
