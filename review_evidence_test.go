package resilience

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"
)

// failedAnswer answers a call that took effect with a status that says nothing about it.
func failedAnswer(*http.Request, int) (*http.Response, error) {
	return reply(500, `{"error":"oops"}`), nil
}

// doubtful is a key in doubt for a 500.
func doubtful(t *testing.T, i *Idempotency) (rt http.RoundTripper) {
	t.Helper()
	rt = i.Wrap(&phone{answer: failedAnswer})
	_, err := dial(t.Context(), t, rt, "k", dialBody)
	require.ErrorIs(t, err, ErrInDoubt)
	rec, _ := i.Lookup(t.Context(), "k")
	require.Equal(t, 500, rec.Status)
	require.Equal(t, "status", rec.Cause)
	return rt
}

func notice(t *testing.T, i *Idempotency, calls ...Found) {
	t.Helper()
	require.NoError(t, i.Observe(t.Context(), Evidence{ID: i.ID("k"), Calls: calls, Source: "webhook"}))
}

// What has no id is nothing that was found, wherever it stands in the list.
func TestEvidence_TheFirstThingWithAnIDCounts(t *testing.T) {
	i := newIdem(t, IdempotencyConfig{})
	rt := doubtful(t, i)
	notice(t, i)
	notice(t, i, Found{}, Found{Body: []byte(`{"call_id":"?"}`)})
	require.Equal(t, KeyInDoubt, stateOf(t, i, "k"), "evidence of nothing proves nothing")
	notice(t, i, Found{Body: []byte(`{"call_id":"?"}`)}, Found{ID: "call_1", Body: []byte(`{"call_id":"call_1"}`)}, Found{ID: "call_1"})
	rec, _ := i.Lookup(t.Context(), "k")
	require.Equal(t, KeyConfirmed, rec.State, "the same call twice is one")
	require.Equal(t, "call_1", rec.CallID)
	resp, err := dial(t.Context(), t, rt, "k", dialBody)
	require.NoError(t, err)
	require.Equal(t, `{"call_id":"call_1"}`, bodyText(t, resp))
}
