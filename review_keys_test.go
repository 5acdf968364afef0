package resilience

import (
	"context"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

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

// Only a key that the caller named makes two idempotent writes one.
func TestDeduplicate_WritesWithoutAKeyAreAllMade(t *testing.T) {
	i := newIdem(t, IdempotencyConfig{})
	p := &phone{}
	rt := i.Wrap(p)
	ctx := WithCall(t.Context(), Call{Effect: EffectIdempotent})
	for _, text := range []string{dialBody, dialBody, `{}`} {
		resp, err := dial(ctx, t, rt, "", text)
		require.NoError(t, err)
		require.False(t, Replayed(resp))
	}
	require.Equal(t, 3, p.sends)
}

// Whoever gets past the stack's own gate just before it closes begins nothing after it.
func TestIdempotency_NoFlightBeginsAfterTheShutdown(t *testing.T) {
	i, p := newIdem(t, IdempotencyConfig{}), &phone{}
	rt := i.Wrap(p)
	require.NoError(t, i.shutdown(t.Context()))
	_, err := dial(t.Context(), t, rt, "k", dialBody)
	require.ErrorIs(t, err, ErrClosed)
	require.True(t, NotSent(err))
	require.Zero(t, p.sends)
	require.Equal(t, KeyFree, stateOf(t, i, "k"))
}

// An answer that is there is not lost to a caller who ends at the same instant.
func TestFlight_TheAnswerGoesBeforeTheEndOfItsCaller(t *testing.T) {
	i := newIdem(t, IdempotencyConfig{})
	ctx, cancel := context.WithCancel(t.Context())
	tr := &trip{call: Call{Operation: "o"}}
	f := newFlight(tr, ctx, "k", i.ID("k"), "f")
	cancel()
	f.publish(result{resp: reply(201, "{}")})
	for range 100 { // select picks either
		resp, err := i.await(f, tr, ctx, true)
		require.NoError(t, err)
		require.Equal(t, 201, resp.StatusCode)
	}
}

// What the store would not take is remembered for each key, until the store has it or knows better.
func TestUnwritten_IsRememberedForEachKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &flakyStore{MemoryStore: NewMemoryStore(0), fail: KeyConfirmed}
		i, p := newIdem(t, IdempotencyConfig{Store: store}), &phone{}
		for _, key := range []string{"a", "b"} {
			_, err := dial(t.Context(), t, i.Wrap(p), key, dialBody)
			require.NoError(t, err)
		}
		require.Equal(t, 2, i.Stats().Unwritten)
		store.set(KeyFree)
		for _, key := range []string{"a", "b"} {
			require.Equal(t, KeyConfirmed, stateOf(t, i, key))
			resp, err := dial(t.Context(), t, i.Wrap(p), key, dialBody)
			require.NoError(t, err)
			require.True(t, Replayed(resp))
		}
		require.Equal(t, 2, p.sends)
		i.tend(t.Context())
		require.Zero(t, i.Stats().Unwritten)
	})
}

// A refusal that the store would not take goes with the next step of its key.
func TestUnwritten_GoesWithTheNextStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &faultyStore{KeyStore: NewMemoryStore(0)}
		i := newIdem(t, IdempotencyConfig{Store: store})
		p := &phone{before: func(*http.Request, int) (*http.Response, error) {
			store.noCAS.Store(true)
			return reply(400, ""), nil
		}}
		rt := i.Wrap(p)
		_, err := dial(t.Context(), t, rt, "k", dialBody)
		require.NoError(t, err)
		require.Equal(t, 1, i.Stats().Unwritten)
		require.Equal(t, KeyClaimed, stateOf(t, i, "k"))
		store.noCAS.Store(false)
		p.before = nil
		time.Sleep(time.Hour) // nobody runs: the lease frees it
		_, err = dial(t.Context(), t, rt, "k", dialBody)
		require.NoError(t, err)
		require.Zero(t, i.Stats().Unwritten)
		require.Equal(t, KeyConfirmed, stateOf(t, i, "k"))
	})
}

// What this process remembers does not hide what the store knows since.
func TestUnwritten_TheStoreMayKnowBetter(t *testing.T) {
	store := &flakyStore{MemoryStore: NewMemoryStore(0), fail: KeyInDoubt}
	i := newIdem(t, IdempotencyConfig{Store: store})
	_, err := dial(t.Context(), t, i.Wrap(&phone{answer: lostAnswer}), "k", dialBody)
	require.ErrorIs(t, err, ErrInDoubt)
	require.Equal(t, KeyInDoubt, stateOf(t, i, "k"))
	rec, err := store.Load(t.Context(), i.ID("k"))
	require.NoError(t, err)
	require.Equal(t, KeySending, rec.State)
	rec.State, rec.CallID, rec.Expires = KeyConfirmed, "call_1", store.Now().Add(time.Hour) // by a webhook, elsewhere
	_, swapped, err := store.CompareAndSwap(t.Context(), rec.Version, rec)
	require.NoError(t, err)
	require.True(t, swapped)
	require.Equal(t, KeyConfirmed, stateOf(t, i, "k"))
}

// lostRace is a store in which somebody else is always faster, and which cannot be read after that.
type lostRace struct{ faultyStore }

func (s *lostRace) CompareAndSwap(context.Context, uint64, Record) (uint64, bool, error) {
	s.noLoad.Store(true)
	return 0, false, nil
}

func TestIdempotency_AStoreThatFailsAfterALostRaceSendsNothing(t *testing.T) {
	i, p := newIdem(t, IdempotencyConfig{Store: &lostRace{faultyStore{KeyStore: NewMemoryStore(0)}}}), &phone{}
	_, err := dial(t.Context(), t, i.Wrap(p), "k", dialBody)
	require.ErrorIs(t, err, ErrStore)
	require.True(t, NotSent(err))
	require.Zero(t, p.sends)
}
