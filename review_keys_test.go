package resilience

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Past the commit nobody's leaving ends the flight, so that the store's patience must not be measured by who waits.
func TestIdempotency_AStoreThatHangsAtTheIntentHoldsNoSlotWhoeverLeft(t *testing.T) {
	for _, budget := range []time.Duration{time.Second, 4 * time.Second, storePatience} {
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
