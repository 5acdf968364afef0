package resilience

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"
)

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

// The replay has the answer's type; a re-send whose answer is lost takes nothing back of a success that could not be read.
func TestReplay_HasTheTypeOfTheAnswer(t *testing.T) {
	i := newIdem(t, IdempotencyConfig{})
	rt := i.Wrap(&phone{answer: func(*http.Request, int) (*http.Response, error) {
		return reply(202, "<a/>", "Content-Type", "text/xml", "Set-Cookie", "secret"), nil
	}})
	for range 2 {
		resp, err := dial(t.Context(), t, rt, "k", dialBody)
		require.NoError(t, err)
		require.Equal(t, 202, resp.StatusCode)
		require.Equal(t, "text/xml", resp.Header.Get("Content-Type"))
	}
	require.Empty(t, lookUp(t, i, "k").Header.Get("Set-Cookie"))
}

// What is known to have happened is a success for who asks again, whatever its own answer was.
func TestEvidence_AFailureThatTookEffectIsReplayedAsASuccess(t *testing.T) {
	for name, settle := range map[string]func(*testing.T, *Idempotency){
		"found": func(t *testing.T, i *Idempotency) { notice(t, i, Found{ID: "call_1"}) },
		"resolved": func(t *testing.T, i *Idempotency) {
			v := Resolution{State: KeyConfirmed, CallID: "call_1", Reason: "in the dashboard"}
			require.NoError(t, i.Resolve(t.Context(), "k", v))
		},
		"found twice, resolved": func(t *testing.T, i *Idempotency) {
			notice(t, i, Found{ID: "call_1"}, Found{ID: "call_2"})
			v := Resolution{State: KeyConfirmed, CallID: "call_1", Reason: "the other was hung up"}
			require.NoError(t, i.Resolve(t.Context(), "k", v))
		},
	} {
		t.Run(name, func(t *testing.T) {
			i := newIdem(t, IdempotencyConfig{})
			rt := doubtful(t, i)
			settle(t, i)
			resp, err := dial(t.Context(), t, rt, "k", dialBody)
			require.NoError(t, err)
			require.Equal(t, 200, resp.StatusCode)
			rec, _ := i.Lookup(t.Context(), "k")
			require.Equal(t, "call_1", rec.CallID)
			require.Equal(t, 200, rec.Status)
		})
	}
}

// An operator who says which of several calls counts does not get the answer of another one replayed.
func TestResolve_TheAnswerOfAnotherCallIsNotReplayed(t *testing.T) {
	i := newIdem(t, IdempotencyConfig{Reconcile: &retold{}})
	rt := i.Wrap(&phone{})
	_, err := dial(t.Context(), t, rt, "k", dialBody)
	require.NoError(t, err)
	notice(t, i, Found{ID: "call_2"})
	require.Equal(t, KeyDisputed, stateOf(t, i, "k"))
	require.NoError(t, i.Resolve(t.Context(), "k", Resolution{State: KeyConfirmed, CallID: "call_2", Reason: "the first rang nowhere"}))
	rec, _ := i.Lookup(t.Context(), "k")
	require.Equal(t, "call_2", rec.CallID)
	resp, err := dial(t.Context(), t, rt, "k", dialBody)
	require.NoError(t, err)
	require.Equal(t, `{"call_id":"call_2"}`, bodyText(t, resp))
}

// retold is a reconciler that reads ids and can say what an answer with one looks like.
type retold struct{ idReader }

func (*retold) Answer(_, id string) []byte { return []byte(`{"call_id":"` + id + `"}`) }
