package resilience

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

var errHungStore = errors.New("hung")

// hungStore answers no write before its context ends.
type hungStore struct{ *MemoryStore }

func (s hungStore) CompareAndSwap(ctx context.Context, _ uint64, _ Record) (uint64, bool, error) {
	select {
	case <-ctx.Done():
	case <-time.After(time.Hour):
	}
	return 0, false, errHungStore
}

// Nobody waits longer than the smallest deadline: also not for a store that takes its time to remember an answer.
func TestIdempotency_AHungStoreHoldsNoIdempotentWrite(t *testing.T) {
	for patience, c := range map[time.Duration]struct {
		took   time.Duration
		faults uint64
	}{
		2 * time.Second: {2 * time.Second, 0}, // it is no fault of the store that they left
		time.Minute:     {storePatience, 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := newStack(t, Config{Idempotency: IdempotencyConfig{Store: hungStore{NewMemoryStore(0)}}})
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			began := time.Now()
			resp, err := dial(WithCall(ctx, Call{Effect: EffectIdempotent}), t, s.Wrap(&phone{}), "k", dialBody)
			require.NoError(t, err, "the answer is there")
			require.Equal(t, 201, resp.StatusCode)
			require.Equal(t, c.took, time.Since(began))
			require.Equal(t, c.faults, s.Stats().Idempotency.StoreErrors)
			closeStack(t, s)
		})
	}
}

// laterHungStore takes claims and intents, and hangs when an outcome is to be written, until the context ends.
type laterHungStore struct{ *MemoryStore }

func (s laterHungStore) CompareAndSwap(ctx context.Context, old uint64, r Record) (uint64, bool, error) {
	if r.State != KeyClaimed && r.State != KeySending {
		return hungStore(s).CompareAndSwap(ctx, old, r)
	}
	return s.MemoryStore.CompareAndSwap(ctx, old, r)
}

// The slot, the answer and Close do not depend on a store that hangs after the send.
func TestIdempotency_AHungStoreHoldsNeitherSlotNorAnswerNorClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Idempotency: IdempotencyConfig{Store: laterHungStore{NewMemoryStore(0)}}})
		resp, err := dial(WithBudget(t.Context(), 20*time.Second), t, s.Wrap(&phone{}), "k", dialBody)
		require.NoError(t, err, "I14: the answer is returned, and this process answers from memory")
		require.Equal(t, 201, resp.StatusCode)
		require.Zero(t, s.Stats().Bulkhead.InUse)
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		require.NoError(t, s.Close(ctx))
		require.LessOrEqual(t, time.Since(began), 3*time.Second)
	})
}

func TestX06_CloseEndsWithItsContextOverAHungStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Idempotency: IdempotencyConfig{Store: laterHungStore{NewMemoryStore(0)}}})
		go func() { _, _ = dial(t.Context(), t, s.Wrap(&phone{}), "k", dialBody) }()
		time.Sleep(time.Second)
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.Error(t, s.Close(ctx))
		require.LessOrEqual(t, time.Since(began), 2*time.Second)
		time.Sleep(2 * time.Hour)
	})
}

// intentHungStore hangs at the intent.
type intentHungStore struct{ *MemoryStore }

func (s intentHungStore) CompareAndSwap(ctx context.Context, old uint64, r Record) (uint64, bool, error) {
	if r.State == KeySending {
		return hungStore(s).CompareAndSwap(ctx, old, r)
	}
	return s.MemoryStore.CompareAndSwap(ctx, old, r)
}

func TestIdempotency_AStoreThatHangsAtTheIntentSendsNothingAndHoldsNoSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Idempotency: IdempotencyConfig{Store: intentHungStore{NewMemoryStore(0)}}})
		p := &phone{}
		_, err := dial(WithBudget(t.Context(), 20*time.Second), t, s.Wrap(p), "k", dialBody)
		require.Zero(t, p.sends)
		require.ErrorIs(t, err, ErrStore)
		require.True(t, NotSent(err))
		require.Zero(t, s.Stats().Bulkhead.InUse)
		closeStack(t, s)
	})
}

// hangsAtFree takes everything but a key that is given back.
type hangsAtFree struct{ *MemoryStore }

func (s hangsAtFree) CompareAndSwap(ctx context.Context, old uint64, r Record) (uint64, bool, error) {
	if r.State == KeyFree {
		return hungStore(s).CompareAndSwap(ctx, old, r)
	}
	return s.MemoryStore.CompareAndSwap(ctx, old, r)
}

func TestIdempotency_AStoreThatHangsAsAKeyIsGivenBackHoldsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{DLQ: DLQConfig{Off: true}, Idempotency: IdempotencyConfig{Store: hangsAtFree{NewMemoryStore(0)}}})
		s.Breaker.ForceOpen()
		began := time.Now()
		_, err := dial(t.Context(), t, s.Wrap(&phone{}), "", dialBody)
		require.ErrorIs(t, err, ErrOpen)
		require.True(t, NotSent(err))
		require.Equal(t, storePatience, time.Since(began))
		require.EqualValues(t, 1, s.Stats().Idempotency.StoreErrors)
		closeStack(t, s)
	})
}

// hangsAfter takes an outcome, at leisure, and hangs when it is to be kept for longer.
type hangsAfter struct {
	*MemoryStore
	outcomes atomic.Int64
}

func (s *hangsAfter) CompareAndSwap(ctx context.Context, old uint64, r Record) (uint64, bool, error) {
	if r.State == KeyConfirmed {
		if s.outcomes.Add(1) > 1 {
			return hungStore{s.MemoryStore}.CompareAndSwap(ctx, old, r)
		}
		time.Sleep(3 * time.Second) // the caller leaves meanwhile, and is told the key
	}
	return s.MemoryStore.CompareAndSwap(ctx, old, r)
}

func TestIdempotency_AStoreThatHangsAsAnOutcomeIsKeptForWhoLeftIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &hangsAfter{MemoryStore: NewMemoryStore(0)}
		s := newStack(t, Config{Idempotency: IdempotencyConfig{Store: store}})
		_, err := dial(WithBudget(t.Context(), time.Second), t, s.Wrap(&phone{}), "", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		time.Sleep(2*time.Second + storePatience)
		synctest.Wait()
		require.EqualValues(t, 2, store.outcomes.Load())
		require.EqualValues(t, 1, s.Stats().Idempotency.StoreErrors)
		closeStack(t, s)
	})
}

// Past the commit nobody's leaving ends the flight, so that the store's patience must not be measured by who waits.
func TestIdempotency_AStoreThatHangsAtTheIntentHoldsNoSlotWhoeverLeft(t *testing.T) {
	for _, budget := range []time.Duration{time.Second, 4 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			s := newStack(t, Config{Idempotency: IdempotencyConfig{Store: intentHungStore{NewMemoryStore(0)}}})
			p := &phone{}
			_, err := dial(WithBudget(t.Context(), budget), t, s.Wrap(p), "k", dialBody)
			require.ErrorIs(t, err, ErrTimeout)
			time.Sleep(storePatience)
			synctest.Wait()
			require.Zero(t, p.sends)
			require.Zero(t, s.Stats().Bulkhead.InUse)
			require.Zero(t, s.Stats().Idempotency.Flights)
			require.NoError(t, s.Close(context.Background()))
		})
	}
}
