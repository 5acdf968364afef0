package resilience

import (
	"context"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// outageReads is a crowd that reads at the same time.
type outageReads struct {
	t     *testing.T
	rt    http.RoundTripper
	many  int
	limit time.Duration // nobody waits longer
}

// all reads once each, and returns how many were served in which class; StalenessUnset: from the other side.
func (r outageReads) all(check func(age time.Duration, s Staleness, err error)) map[Staleness]int {
	var mu sync.Mutex
	var wg sync.WaitGroup
	counts := map[Staleness]int{}
	for range r.many {
		wg.Go(func() {
			start := time.Now()
			resp, err := fetch(WithBudget(context.Background(), r.limit), r.t, r.rt)
			took := time.Since(start)
			mu.Lock()
			defer mu.Unlock()
			require.LessOrEqual(r.t, took, r.limit+grace)
			if err != nil {
				check(0, StalenessUnset, err)
				return
			}
			age, s, _ := Served(resp)
			counts[s]++
			check(age, s, nil)
		})
	}
	wg.Wait()
	return counts
}

// A thousand readers at once, again and again, from a healthy server through an outage until nothing is kept any more.
func TestF06_AThousandReadersInAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down atomic.Bool
		var asked atomic.Int64
		s := newStack(t, Config{Retry: RetryConfig{Max: -1}})
		rt := s.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			asked.Add(1)
			if down.Load() {
				<-req.Context().Done() // the worst kind: it hangs
				return nil, context.Cause(req.Context())
			}
			time.Sleep(100 * time.Millisecond)
			return reply(200, "agent"), nil
		}))
		readers := outageReads{t, rt, 1000, 10 * time.Second}
		noError := func(_ time.Duration, _ Staleness, err error) { require.NoError(t, err) }
		require.Equal(t, map[Staleness]int{StalenessUnset: 1000}, readers.all(noError))
		require.EqualValues(t, 1, asked.Load(), "they share one call")
		kept := time.Now()

		down.Store(true)
		for range 9 { // to open the circuit: ten different reads, since readers of the same share one
			_, _ = fetch(WithBudget(WithCall(t.Context(), Call{Operation: "other"}), time.Second), t, rt)
			time.Sleep(500 * time.Millisecond)
		}
		require.Equal(t, BreakerClosed, s.Breaker.State(), "nine are not enough")
		for _, at := range []struct {
			age  time.Duration
			want Staleness
		}{
			{30 * time.Second, Fresh}, {60 * time.Second, Stale}, {5 * time.Minute, Stale}, {9 * time.Minute, Stale},
			{11 * time.Minute, VeryStale}, {time.Hour, VeryStale}, {23 * time.Hour, VeryStale},
		} {
			for s.Breaker.State() != BreakerOpen && at.want == Fresh { // something else opens it before
				_, _ = fetch(WithBudget(WithCall(t.Context(), Call{Operation: "other"}), 100*time.Millisecond), t, rt)
			}
			time.Sleep(time.Until(kept.Add(at.age)))
			before := asked.Load()
			counts := readers.all(func(age time.Duration, _ Staleness, err error) {
				require.NoError(t, err)
				require.GreaterOrEqual(t, age, at.age)
				require.LessOrEqual(t, age, at.age+readers.limit)
			})
			require.Equal(t, map[Staleness]int{at.want: 1000}, counts, at.age)
			require.LessOrEqual(t, asked.Load()-before, int64(1), "a window has one trial, whoever asks")
		}

		time.Sleep(time.Until(kept.Add(24 * time.Hour)))
		before := asked.Load()
		counts := readers.all(func(_ time.Duration, _ Staleness, err error) { require.Error(t, err, "gone") })
		require.Empty(t, counts)
		require.LessOrEqual(t, asked.Load()-before, int64(1))

		down.Store(false)
		time.Sleep(6 * time.Minute)
		require.Equal(t, map[Staleness]int{StalenessUnset: 1000}, readers.all(noError))
		require.Equal(t, BreakerClosed, s.Breaker.State())
		require.Equal(t, map[Staleness]int{StalenessUnset: 1000}, readers.all(noError))
		closeStack(t, s)
	})
}

// A thousand readers of different things: they share nothing but the circuit.
func TestB27_OneTrialForAThousandDifferentReaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		s := newStack(t, Config{Retry: RetryConfig{Max: -1}, Bulkhead: BulkheadConfig{Queue: 2000}, Breaker: BreakerConfig{MaxOpenFor: 30 * time.Second}})
		rt := s.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			asked.Add(1)
			time.Sleep(10 * time.Millisecond)
			return reply(503, ""), nil
		}))
		read := func(i int) error {
			_, err := fetch(WithCall(context.Background(), Call{Operation: string(rune('a' + i))}), t, rt)
			return err
		}
		for i := range 20 {
			_ = read(i)
		}
		require.Equal(t, BreakerOpen, s.Breaker.State())
		require.EqualValues(t, 10, asked.Load())
		for range 20 {
			time.Sleep(30 * time.Second)
			before := asked.Load()
			var refused atomic.Int64
			var wg sync.WaitGroup
			for i := range 1000 {
				wg.Go(func() {
					start := time.Now()
					if err := read(i); err != nil {
						require.ErrorIs(t, err, ErrOpen)
						require.True(t, NotSent(err))
						refused.Add(1)
					}
					require.LessOrEqual(t, time.Since(start), 10*time.Millisecond)
				})
			}
			wg.Wait()
			require.EqualValues(t, 1, asked.Load()-before)
			require.EqualValues(t, 999, refused.Load())
		}
		require.Zero(t, s.Stats().Bulkhead.InUse)
		closeStack(t, s)
	})
}

// A probe that hangs for ever holds no reader of the health page longer than ProbeTimeout, and is started once.
func TestH09_AHangingProbeHoldsNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var probes atomic.Int64
		release := make(chan struct{})
		s := newStack(t, Config{Health: HealthConfig{ProbeTimeout: 2 * time.Second, Probe: func(context.Context) error {
			probes.Add(1)
			<-release // deaf, too
			return nil
		}}})
		var wg sync.WaitGroup
		for i := range 1000 {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * time.Millisecond)
				start := time.Now()
				w := httptest.NewRecorder()
				s.Health().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/health", nil))
				require.LessOrEqual(t, time.Since(start), 2*time.Second)
				require.Equal(t, http.StatusServiceUnavailable, w.Code)
			})
		}
		wg.Wait()
		require.EqualValues(t, 1, probes.Load())
		time.Sleep(time.Hour)
		for _, h := range []http.Handler{s.Health(), s.Health().Ready(), s.Health().Live()} {
			start := time.Now()
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/health", nil))
			require.Zero(t, time.Since(start), "its time has long been up")
		}
		require.EqualValues(t, 1, probes.Load(), "one that has not returned is not started again")
		close(release)
		synctest.Wait()
		require.Equal(t, Healthy, s.Health().Check(t.Context()).Status)
		require.EqualValues(t, 2, probes.Load())
		closeStack(t, s)
	})
}
