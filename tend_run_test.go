package resilience

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// endedReads is a store whose reads of what is not settled take their time, and fail under a context that has ended.
type endedReads struct{ *MemoryStore }

func (s endedReads) Unsettled(ctx context.Context, cursor string, limit int) ([]Record, string, error) {
	if sleep(ctx, time.Second, nil); ctx.Err() != nil {
		return nil, "", ctx.Err()
	}
	return s.MemoryStore.Unsettled(ctx, cursor, limit)
}

// The end of Run says nothing about the store: one whose look at it is cut off leaves what health has known.
func TestHealthKeys_TheEndOfRunIsNoFailureOfTheStore(t *testing.T) {
	for name, over := range map[string]time.Duration{"before it begins": 0, "at its second look": tendEvery + 1500*time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStack(t, Config{Idempotency: IdempotencyConfig{Store: endedReads{NewMemoryStore(0)}}})
				ctx, cancel := context.WithTimeout(t.Context(), over)
				defer cancel()
				require.NoError(t, s.Run(ctx))
				require.Equal(t, over, time.Since(s.epoch))
				for _, c := range s.Health().Check(t.Context()).Checks {
					if c.Name == "keys" && c.Measure == "store" {
						require.Equal(t, "ok", c.State)
					}
				}
				require.Zero(t, s.Stats().Idempotency.StoreErrors)
				closeStack(t, s)
			})
		})
	}
}
