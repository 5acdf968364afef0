package retell_test

import (
	"errors"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
	"github.com/retell-resilience/resilience/retell"
)

func TestClient_ACallThatWasResolvedIsAnswered(t *testing.T) {
	client, err := retell.New("key", retell.WithTransport(resilience.RoundTripFunc(func(*http.Request) (*http.Response, error) {
		return nil, errors.New("reset")
	})))
	require.NoError(t, err)
	defer client.Close(t.Context())
	p := retell.CreatePhoneCallParams{FromNumber: "+15550001111", ToNumber: "+15550002222"}
	_, err = client.Calls.CreatePhoneCall(t.Context(), p, retell.IdempotencyKey("k-12345"))
	require.ErrorIs(t, err, resilience.ErrInDoubt)
	require.NoError(t, client.Stack().Idempotency.Resolve(t.Context(), "k-12345", resilience.Resolution{
		State: resilience.KeyConfirmed, CallID: "call_7", Reason: "seen in the dashboard",
	}))
	call, err := client.Calls.CreatePhoneCall(t.Context(), p, retell.IdempotencyKey("k-12345"))
	t.Log(call, err)
	require.NoError(t, err)
	require.Equal(t, "call_7", call.CallID)
	require.True(t, call.Replayed)
}
