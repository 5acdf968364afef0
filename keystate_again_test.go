package resilience

import (
	"context"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// muteStore makes a write and says that it failed, as a store does whose answer is lost.
type muteStore struct {
	*MemoryStore
	mute atomic.Int64 // so many writes from here on
}

func (s *muteStore) CompareAndSwap(ctx context.Context, old uint64, r Record) (uint64, bool, error) {
	version, swapped, err := s.MemoryStore.CompareAndSwap(ctx, old, r)
	if r.State == KeyInDoubt && s.mute.Add(-1) >= 0 {
		return 0, false, errBroken
	}
	return version, swapped, err
}

// A refusal that is recorded a second time, since the store did not say that it had taken it, speaks of its own send still,
// and not of the first one.
func TestKeyState_ARefusalCountsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &muteStore{MemoryStore: NewMemoryStore(0)}
		i := newIdem(t, IdempotencyConfig{Store: store, Reconcile: &idReader{}, ServerKeys: ServerKeysTrust})
		p := &phone{answer: lostAnswer}
		rt := i.Wrap(p)
		_, err := dial(t.Context(), t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		store.mute.Store(1)
		p.before = func(*http.Request, int) (*http.Response, error) { return nil, MarkNotSent(io.EOF) }
		_, err = dial(t.Context(), t, rt, "k", dialBody) // the second send is refused
		require.ErrorIs(t, err, ErrInDoubt)
		require.Equal(t, KeyInDoubt, stateOf(t, i, "k"))
		i.tend(t.Context())
		require.Zero(t, i.Stats().Unwritten)
		require.Equal(t, KeyInDoubt, stateOf(t, i, "k"), "of the first send nothing is known")
		time.Sleep(time.Hour) // the API's own key does not help any more
		p.before, p.answer = nil, nil
		_, err = dial(t.Context(), t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		require.Equal(t, 1, p.rang())
	})
}

func TestKeyState_ALateRefusalCountsOnce(t *testing.T) {
	e := keyEvent{kind: eventAnswer, token: "t", answer: answerReceipt{kind: answerRefused, epoch: 2}}
	for _, from := range []KeyState{KeySending, KeyInDoubt} {
		r := Record{ID: "k", State: from, Token: "t", Epoch: 2, Doubts: 2, Sends: 2}
		r, err := transition(r, e)
		require.NoError(t, err)
		require.Equal(t, KeyInDoubt, r.State)
		require.Equal(t, 1, r.Doubts)
		again, err := transition(r, e)
		require.ErrorIs(t, err, errConflict, "%v", from)
		require.Equal(t, KeyInDoubt, again.State)
		done := e
		done.answer.kind = answerDone
		late, err := transition(r, done)
		require.NoError(t, err, "evidence of an earlier send counts still")
		require.Equal(t, KeyConfirmed, late.State)
	}
}

// A claim that ends without a send leaves the key as it was: what is learned of an earlier send counts still.
func TestKeyState_ARefusedClaimForgetsNoEarlierSend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIdem(t, IdempotencyConfig{})
		p := &phone{answer: lostAnswer}
		_, err := dial(t.Context(), t, i.Wrap(p), "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		require.NoError(t, i.Resolve(t.Context(), "k", Resolution{State: KeyNotApplied, Reason: "asked"}))
		resolved, err := i.Lookup(t.Context(), "k")
		require.NoError(t, err)
		time.Sleep(time.Minute)
		full := LayerFunc(func(http.RoundTripper) http.RoundTripper {
			return RoundTripFunc(func(*http.Request) (*http.Response, error) { return nil, MarkNotSent(ErrFull) })
		})
		for range 2 {
			_, err = dial(t.Context(), t, Chain(i.Claim(), full, i.Intent()).Wrap(p), "k", dialBody)
			require.ErrorIs(t, err, ErrFull)
			rec, err := i.Lookup(t.Context(), "k")
			require.NoError(t, err)
			require.Equal(t, KeyNotApplied, rec.State)
			require.Equal(t, "operator", rec.Evidence)
			require.Equal(t, resolved.Settled, rec.Settled, "it was said then, and of what was sent before")
		}
		require.NoError(t, i.Observe(t.Context(), Evidence{ID: i.ID("k"), Calls: []Found{{ID: "call_1"}}}))
		require.Equal(t, KeyDisputed, stateOf(t, i, "k"), "the operator was wrong")
		_, err = dial(t.Context(), t, i.Wrap(p), "k", dialBody)
		require.ErrorIs(t, err, ErrDisputed)
		require.Equal(t, 1, p.rang())
	})
}

// What was said of earlier sends is not said of the next one.
func TestKeyState_ASendIsItsOwnEvidence(t *testing.T) {
	claimed := Record{ID: "k", State: KeyClaimed, Token: "t", Settled: modelStart, Evidence: "operator"}
	taken, err := transition(claimed, keyEvent{kind: eventClaim, token: "u", now: modelLate})
	require.NoError(t, err)
	require.Equal(t, modelStart, taken.Settled)
	require.Equal(t, "operator", taken.Evidence)
	sent, err := transition(taken, keyEvent{kind: eventIntend, token: "u", now: modelLate})
	require.NoError(t, err)
	require.Zero(t, sent.Settled)
	require.Empty(t, sent.Evidence)
}

// Where one process at a time uses the store, another owner is dead, and its lease counts for nothing.
func TestKeyState_ALeaseOfTheDead(t *testing.T) {
	for state, dead := range map[KeyState]error{KeyClaimed: nil, KeySending: ErrInDoubt} {
		r := Record{ID: "k", State: state, Token: "t", Owner: "other", Fingerprint: "f", Lease: modelLease}
		for _, exclusive := range []bool{true, false} {
			e := keyEvent{kind: eventClaim, token: "u", now: modelStart, claim: claimRequest{fingerprint: "f", owner: "me", exclusive: exclusive}}
			_, err := transition(r, e)
			if exclusive {
				require.ErrorIs(t, err, dead)
			} else {
				require.ErrorIs(t, err, ErrInFlight)
			}
			e.claim.owner = "other"
			_, err = transition(r, e)
			require.ErrorIs(t, err, ErrInFlight, "its own process lives")
		}
	}
}
