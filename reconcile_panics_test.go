package resilience

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// dyingStore goes down with the write of a second send.
type dyingStore struct {
	*MemoryStore
	down atomic.Bool
}

func (s *dyingStore) CompareAndSwap(ctx context.Context, old uint64, r Record) (uint64, bool, error) {
	if r.State == KeySending && r.Sends > 1 {
		s.down.Store(true)
	}
	if s.down.Load() {
		return 0, false, errBroken
	}
	return s.MemoryStore.CompareAndSwap(ctx, old, r)
}

func (s *dyingStore) Load(ctx context.Context, id string) (Record, error) {
	if s.down.Load() {
		return Record{}, errBroken
	}
	return s.MemoryStore.Load(ctx, id)
}

// A store that dies as a re-send is about to be recorded proves nothing about the first send: the caller is in doubt still.
func TestI14_AStoreThatDiesBeforeAResendLeavesTheDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &dyingStore{MemoryStore: NewMemoryStore(0)}
		i := newIdem(t, IdempotencyConfig{Store: store, Reconcile: &idReader{}, ServerKeys: ServerKeysTrust})
		p := &phone{answer: lostAnswer}
		_, err := dial(t.Context(), t, i.Wrap(p), "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		_, err = dial(t.Context(), t, i.Wrap(p), "k", dialBody)
		require.ErrorIs(t, err, ErrStore)
		require.ErrorIs(t, err, ErrInDoubt)
		require.False(t, NotSent(err), "a new key would ring twice")
		require.Equal(t, 1, p.rang())
		store.down.Store(false)
		i.tend(t.Context())
		require.Equal(t, KeyInDoubt, stateOf(t, i, "k"))
	})
}

// panicker is a reconciler whose every word is a panic.
type panicker struct{ finder }

func (*panicker) CallID(string, []byte) (string, bool)           { panic("id") }
func (*panicker) Answer(string, string) []byte                   { panic("answer") }
func (*panicker) Finds(string) bool                              { panic("finds") }
func (*panicker) HonorsKey(string) time.Duration                 { panic("honors") }
func (*panicker) Find(context.Context, Record) (Evidence, error) { panic("find") }

// What a reconciler panics over stays unknown, and harms nobody: neither the caller, nor Run.
func TestReconciler_PanicsHarmNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIdem(t, IdempotencyConfig{Reconcile: &panicker{}, ServerKeys: ServerKeysTrust, AssumeAbsentAfter: 10 * time.Minute})
		runIdem(t, i)
		p := &phone{}
		_, err := dial(t.Context(), t, i.Wrap(p), "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		rec, err := i.Lookup(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, KeyInDoubt, rec.State, "at once, not when a lease is over")
		require.True(t, rec.Accepted)
		_, err = dial(t.Context(), t, i.Wrap(p), "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		rec.Lookups = minLookups
		require.Zero(t, i.absentAt(rec), "it cannot be looked for")
		require.NoError(t, i.Observe(t.Context(), Evidence{ID: rec.ID, Calls: []Found{{ID: "call_1"}}}))
		resp, err := dial(t.Context(), t, i.Wrap(p), "k", dialBody)
		require.NoError(t, err)
		require.True(t, Replayed(resp))
		require.Equal(t, 1, p.rang())
	})
}
