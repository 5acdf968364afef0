package resilience

import (
	"testing"

	"github.com/stretchr/testify/require"
)

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
