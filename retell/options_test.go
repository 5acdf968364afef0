package retell_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/retell-resilience/resilience"
	"github.com/retell-resilience/resilience/retell"
	"github.com/retell-resilience/resilience/retell/retelltest"
	"github.com/stretchr/testify/require"
)

func TestBaseURLWithAQuestionMark(t *testing.T) {
	_, err := retell.New("key_test", retell.WithBaseURL("https://api.retellai.com?"))
	require.Error(t, err)
}

func TestClientPrintsNoKey(t *testing.T) {
	c, err := retell.New("key_very_secret")
	require.NoError(t, err)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		require.NotContains(t, fmt.Sprintf(verb, c), "key_very_secret", verb)
	}
}

// What a config leaves out is Retell's, behind a proxy with a path as well.
func TestAConfigIsCompletedBehindAPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := retelltest.NewServer()
		defer srv.Close()
		rt := resilience.RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			inner := req.Clone(req.Context())
			inner.URL.Path = strings.TrimPrefix(req.URL.Path, "/retell")
			return srv.Transport().RoundTrip(inner)
		})
		c, err := retell.New("key_test", retell.WithBaseURL("https://proxy.example.com/retell"), retell.WithTransport(rt), retell.WithConfig(resilience.Config{}))
		require.NoError(t, err)
		srv.Inject("create-phone-call", retelltest.Refuse(), retelltest.Refuse(), retelltest.Refuse())
		_, err = c.Calls.CreatePhoneCall(t.Context(), reminder, retell.IdempotencyKey("call:1"))
		require.ErrorIs(t, err, resilience.ErrParked)
		letters := c.Stack().DLQ.List(resilience.LetterFilter{})
		require.Equal(t, "create-phone-call", letters[0].Operation)

		srv.Inject("create-chat", retelltest.Refuse(), retelltest.Refuse(), retelltest.Refuse())
		_, err = c.Chats.CreateChat(t.Context(), retell.CreateChatParams{AgentID: "agent_test"}, retell.IdempotencyKey("chat:1"))
		require.True(t, resilience.NotSent(err), err)
		require.Len(t, c.Stack().DLQ.List(resilience.LetterFilter{}), 1, "a chat is of no use later")

		_, err = c.Calls.CreatePhoneCall(t.Context(), reminder, retell.IdempotencyKey("call:2"))
		require.NoError(t, err)
		require.Equal(t, c.Stack().Idempotency.ID("call:2"), srv.Calls()[0].Metadata["rk_key"])
		require.NoError(t, c.Close(t.Context()))
	})
}
