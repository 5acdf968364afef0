package resilience

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// The operator's word on the call whose answer is kept takes nothing of it away: not with its id, and not without one.
func TestResolve_TheAnswerOfTheSameCallIsKept(t *testing.T) {
	for _, id := range []string{"call_1", ""} {
		r := Record{
			State: KeyDisputed, CallID: "call_1", CallIDs: []string{"call_1", "call_2"}, Status: 201,
			Header: http.Header{"Location": {"/1"}}, Body: []byte(`{"call_id":"call_1"}`),
		}
		next, err := transition(r, keyEvent{kind: eventResolve, verdict: Resolution{State: KeyConfirmed, CallID: id, Reason: "heard it"}})
		require.NoError(t, err)
		require.Equal(t, []any{"call_1", 201, r.Header, r.Body}, []any{next.CallID, next.Status, next.Header, next.Body})
	}
}

// Unsettled is for operators: what is only claimed, or being sent, is no business of theirs.
func TestUnsettled_LeavesOutWhatIsUnderWay(t *testing.T) {
	store := NewMemoryStore(0)
	for id, state := range map[string]KeyState{"a": KeyClaimed, "b": KeyInDoubt, "c": KeySending, "d": KeyDisputed} {
		_, swapped, err := store.CompareAndSwap(t.Context(), 0, Record{ID: id, State: state, Owner: "dead"})
		require.NoError(t, err)
		require.True(t, swapped)
	}
	list, err := newIdem(t, IdempotencyConfig{Store: store}).Unsettled(t.Context(), 0)
	require.NoError(t, err)
	require.Len(t, list, 2)
	require.Equal(t, []string{"b", "d"}, []string{list[0].ID, list[1].ID})
}

// unlisted is a store that cannot list.
type unlisted struct {
	*MemoryStore
	fails bool
}

func (s *unlisted) Unsettled(ctx context.Context, cursor string, limit int) ([]Record, string, error) {
	if s.fails {
		return nil, "", errors.New("list")
	}
	return s.MemoryStore.Unsettled(ctx, cursor, limit)
}

// A store that cannot be asked has settled no key.
func TestDoubts_AreNotForgottenWhenTheStoreCannotBeAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &unlisted{MemoryStore: NewMemoryStore(0)}
		i := newIdem(t, IdempotencyConfig{Store: store})
		doubtful(t, i)
		time.Sleep(1) // it is older than the look that follows
		store.fails = true
		i.tend(t.Context())
		inDoubt, _, _, storeBad := i.doubts.summary(time.Now())
		require.True(t, storeBad)
		require.Equal(t, 1, inDoubt)
	})
}

// A plan of look-ups that is used up ends in one more, when absence may be assumed, and says when that is.
func TestT9_TheLastLookUpIsPlanned(t *testing.T) {
	i := newIdem(t, IdempotencyConfig{Reconcile: &finder{}, AssumeAbsentAfter: 48 * time.Hour})
	now := time.Now()
	rec := Record{State: KeyInDoubt, Sent: now, Lease: now.Add(time.Minute), Lookups: 100}
	require.Equal(t, rec.Lease.Add(48*time.Hour), i.plan(rec, nil, now).next)
}

// A key whose plan was used up by a process that assumed nothing is looked up once more by one that does.
func TestT9_AbsenceIsAssumedWhereThePlanWasUsedUpBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIdem(t, IdempotencyConfig{Reconcile: &finder{}, AssumeAbsentAfter: time.Hour})
		_, _, err := i.store.CompareAndSwap(t.Context(), 0, Record{
			ID: "k", State: KeyInDoubt, Lookups: 30, Sent: time.Now(), Lease: time.Now().Add(time.Minute), Doubts: 1,
		})
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go i.run(ctx)
		time.Sleep(61*time.Minute - 1)
		rec, _ := i.load(t.Context(), "k")
		require.Equal(t, KeyInDoubt, rec.State)
		require.Zero(t, i.Stats().Lookups)
		time.Sleep(2)
		synctest.Wait()
		rec, _ = i.load(t.Context(), "k")
		require.Equal(t, KeyNotApplied, rec.State)
		require.EqualValues(t, 1, i.Stats().Lookups)
	})
}

// Where nobody can look, absence is assumed when it is time, and no look-up is waited for.
func TestT9_AbsenceWithoutAReconcilerIsAssumedOnTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIdem(t, IdempotencyConfig{AssumeAbsentAfter: time.Hour})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		doubtful(t, i)
		rec := lookUp(t, i, "k")
		go i.run(ctx)
		time.Sleep(time.Until(rec.Lease.Add(time.Hour)) - 1)
		require.Equal(t, KeyInDoubt, stateOf(t, i, "k"))
		time.Sleep(2)
		synctest.Wait()
		require.Equal(t, KeyNotApplied, stateOf(t, i, "k"))
	})
}

// A refusal has taken the letter away that the call had taken over. Who leaves before it is told must not hear that a letter
// owns the write: there is none.
func TestOneOwner_NobodyIsToldOfALetterThatIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Retry: RetryConfig{Off: true}, Idempotency: IdempotencyConfig{Store: slowRelease{NewMemoryStore(0)}}})
		w := &dlqWorld{answer: dlqError(errDLQRefused)}
		rt := s.Wrap(w)
		_, err := dlqCall(t.Context(), rt, http.MethodPost, "k")
		require.ErrorIs(t, err, ErrParked)
		w.set(dlqStatus(http.StatusNotFound))
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		_, err = dlqCall(ctx, rt, http.MethodPost, "k")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.NotErrorIs(t, err, ErrParked)
		require.True(t, NotSent(err))
		require.Zero(t, s.DLQ.Len())
		closeStack(t, s)
	})
}
