package resilience

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A circuit that opens sends everybody home who waits for a slot: writes to the queue, the others to their callers.
func TestStack_AnOpeningCircuitSendsWaitersHome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{
			Bulkhead: BulkheadConfig{Queue: 1000}, Retry: RetryConfig{Max: -1}, Fallback: FallbackConfig{Off: true},
		})
		var asked atomic.Int64
		rt := s.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			asked.Add(1)
			time.Sleep(5 * time.Second)
			return reply(503, ""), nil
		}))
		slots := s.Stats().Bulkhead.Total
		var wg sync.WaitGroup
		var early, late atomic.Int64
		start := time.Now()
		for i := range 300 {
			wg.Go(func() {
				ctx := WithPriority(context.Background(), []Priority{PriorityCritical, PriorityNormal, PriorityBulk}[i%3])
				var resp *http.Response
				var err error
				if i%2 == 0 {
					resp, err = fetch(ctx, t, rt)
				} else {
					resp, err = dial(ctx, t, rt, fmt.Sprint("k", i), nthNumber(i))
				}
				switch {
				case err == nil:
					require.Equal(t, 503, resp.StatusCode)
					late.Add(1)
				case InDoubt(err): // it was on the wire
					late.Add(1)
				default:
					require.Equal(t, 5*time.Second, time.Since(start), "at once, when the tenth failure opens it")
					require.ErrorIs(t, err, ErrOpen)
					require.Equal(t, i%2 == 0, NotSent(err))
					early.Add(1)
				}
			})
		}
		wg.Wait()
		// The slots of the first nine failures were free to take; those that came back when the circuit was open were not.
		require.LessOrEqual(t, asked.Load(), int64(slots+9))
		require.Equal(t, asked.Load(), late.Load())
		require.EqualValues(t, 300, late.Load()+early.Load())
		require.Zero(t, s.Stats().Bulkhead.InUse)
		closeStack(t, s)
	})
}

// After a close the load comes back by and by: as many calls at a time as the ramp wants.
func TestStack_LoadComesBackGradually(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down atomic.Bool
		down.Store(true)
		var now, most atomic.Int64
		s := newStack(t, Config{
			Retry: RetryConfig{Max: -1}, Fallback: FallbackConfig{Off: true},
			Bulkhead: BulkheadConfig{Critical: -1, Normal: 20, Bulk: -1, Queue: 5000}, Breaker: BreakerConfig{Ramp: 10 * time.Second},
		})
		rt := s.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			if down.Load() {
				return reply(503, ""), nil
			}
			n := now.Add(1)
			defer now.Add(-1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			time.Sleep(100 * time.Millisecond)
			return reply(200, ""), nil
		}))
		for range 10 {
			_, err := fetch(t.Context(), t, rt)
			require.NoError(t, err)
		}
		require.Equal(t, BreakerOpen, s.Breaker.State())
		down.Store(false)
		time.Sleep(30 * time.Second)
		_, err := fetch(t.Context(), t, rt) // the trial
		require.NoError(t, err)
		require.Equal(t, BreakerClosed, s.Breaker.State())
		closed := time.Now()

		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		for range 200 {
			wg.Go(func() {
				for ctx.Err() == nil {
					_, _ = fetch(ctx, t, rt)
				}
			})
		}
		var seen []int64
		for range 12 {
			most.Store(0)
			time.Sleep(time.Second)
			seen = append(seen, most.Load())
			share := min(1, float64(time.Since(closed))/float64(10*time.Second))
			require.LessOrEqual(t, float64(most.Load()), 20*share+2, "after %v", time.Since(closed))
		}
		require.IsNonDecreasing(t, seen)
		require.Less(t, seen[0], int64(10))
		require.EqualValues(t, 20, seen[11])
		require.Greater(t, seen[5], seen[1])
		cancel()
		wg.Wait()
		time.Sleep(time.Second) // the server answers those who have left
		closeStack(t, s)
	})
}
