package resilience

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/stretchr/testify/require"
)

// Percentiles by class, each with its own number.
func TestLatency_PercentilesOfEachClass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Bulkhead: BulkheadConfig{Off: true}})
		rt := s.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			d, err := time.ParseDuration(req.Header.Get("Takes"))
			if err != nil {
				return nil, err
			}
			return slow(d)(req)
		}))
		call := func(c Class, takes time.Duration) {
			req, err := http.NewRequestWithContext(WithCall(t.Context(), Call{Class: c}), http.MethodGet, "http://api.test/"+takes.String(), nil)
			require.NoError(t, err)
			req.Header.Set("Takes", takes.String())
			_, err = rt.RoundTrip(req) //nolint:bodyclose // in memory
			require.NoError(t, err)
		}
		for i := range 100 { // 80 quick ones, 15 slow ones, 5 very slow ones
			takes := 10 * time.Millisecond
			if i >= 80 {
				takes = 100 * time.Millisecond
			}
			if i >= 95 {
				takes = 2 * time.Second
			}
			call(ClassUnset, takes)
		}
		call(ClassUpload, 40*time.Second)
		call(ClassLongPoll, 200*time.Second)
		l := s.Stats().Latency
		within := func(want, got time.Duration) {
			t.Helper()
			require.GreaterOrEqual(t, got, want)
			require.LessOrEqual(t, got, want*5/4)
		}
		all := Latency{}
		for _, class := range []string{"unset", "request"} {
			if c, ok := l[class]; ok {
				all = c
			}
		}
		require.EqualValues(t, 100, all.Count)
		within(10*time.Millisecond, all.P50)
		within(100*time.Millisecond, all.P90)
		within(2*time.Second, all.P99)
		require.Equal(t, 2*time.Second, all.Max)
		require.Equal(t, 40*time.Second, l["upload"].P50)
		require.Equal(t, 200*time.Second, l["long-poll"].P50)
		require.Len(t, l, 3)
		closeStack(t, s)
	})
}

// What the documentation says of the bounds.
func TestLatency_BoundsAreAtMostAQuarterTooHigh(t *testing.T) {
	var l latencies
	for range 9 {
		l.observe(ClassRequest, 4096*time.Microsecond)
	}
	l.observe(ClassRequest, time.Hour)
	s := l.snapshot()["request"]
	require.Equal(t, 5120*time.Microsecond, s.P50)
}

// B43: a listener that panics, exits or blocks does not stop the others.
func TestB43_AListenerStopsNoOtherListener(t *testing.T) {
	for name, bad := range map[string]func(){
		"panic":  func() { panic("listener") },
		"goexit": runtime.Goexit,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var before, after heard
				s := newStack(t, Config{
					Breaker: BreakerConfig{MinCalls: 1, OnEvent: func(e Event) { before.listen(e); bad() }},
					OnEvent: func(e Event) {
						if e.Layer == "breaker" {
							after.listen(e)
						}
					},
				})
				report(t, s.Breaker, "F")
				time.Sleep(30 * time.Second)
				report(t, s.Breaker, "S")
				synctest.Wait()
				want := []EventKind{EventCircuitOpen, EventCircuitHalfOpen, EventCircuitClose}
				require.Equal(t, want, before.kinds())
				require.Equal(t, want, after.kinds())
				require.EqualValues(t, 3, s.Breaker.events.stats().Panics)
				closeStack(t, s)
			})
		})
	}
}

// T01: a call that has ended is let go: no timer keeps it until its limit.
func TestT01_NoTimerKeepsACallThatHasEnded(t *testing.T) {
	type big struct{ _ [1 << 16]byte }
	type bigKey struct{}
	looking := RoundTripFunc(func(req *http.Request) (*http.Response, error) {
		select {
		case <-req.Context().Done():
			return nil, req.Context().Err()
		default:
			return reply(200, ""), nil
		}
	})
	derived := RoundTripFunc(func(req *http.Request) (*http.Response, error) {
		ctx, cancel := context.WithTimeout(req.Context(), time.Minute)
		defer cancel()
		return looking(req.WithContext(ctx))
	})
	for name, next := range map[string]http.RoundTripper{
		"asked": slow(0), "waited for": looking, "derived from": derived, "dialed": traced(0, 0),
	} {
		for _, cooperative := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " ", cooperative), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := newStack(t, Config{Timeout: TimeoutConfig{Cooperative: cooperative}, Fallback: FallbackConfig{Off: true}})
					rt := s.Wrap(next)
					var gone []weak.Pointer[big]
					for range 20 {
						b := new(big)
						gone = append(gone, weak.Make(b))
						ctx, cancel := context.WithCancel(context.WithValue(context.Background(), bigKey{}, b))
						_, err := fetch(ctx, t, rt)
						require.NoError(t, err)
						cancel()
					}
					synctest.Wait()
					runtime.GC()
					runtime.GC() // the first may still hold what was let go while it ran
					left := 0
					for _, w := range gone {
						if w.Value() != nil {
							left++
						}
					}
					require.LessOrEqual(t, left, 1, "one may stand in a register")
					closeStack(t, s)
				})
			})
		}
	}
}

// T15: the longest durations there are, everywhere, late in the life of a stack.
func TestT15_TheLongestDurationsEverywhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, d := range []time.Duration{maxDuration, maxDuration - 1, 25 * 24 * time.Hour} {
			s := newStack(t, Config{
				Timeout:  TimeoutConfig{Connect: d, Request: d, Upload: d, LongPoll: d, Total: d},
				Retry:    RetryConfig{Base: d, Cap: d, MaxRetryAfter: d},
				Bulkhead: BulkheadConfig{Critical: -1, Normal: 1, Bulk: -1, MaxWait: d, AgeAfter: d},
				Breaker:  BreakerConfig{OpenFor: d, MaxOpenFor: d, TrialLimit: d, Ramp: d, SlowCall: d, Window: d},
				Fallback: FallbackConfig{Fresh: d, Stale: d, MaxAge: d},
			})
			time.Sleep(time.Hour)
			rt := s.Wrap(traced(time.Second, time.Second))
			for _, ctx := range []context.Context{
				t.Context(), WithCall(t.Context(), Call{Limit: d}), WithCall(t.Context(), Call{Budget: d}), WithBudget(t.Context(), d),
			} {
				var wg sync.WaitGroup
				for i := range 3 {
					wg.Go(func() {
						req, _ := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprint("http://api.test/", i), nil)
						_, err := rt.RoundTrip(req) //nolint:bodyclose // in memory
						require.NoError(t, err)
					})
				}
				start := time.Now()
				wg.Wait()
				require.Equal(t, 6*time.Second, time.Since(start))
				_, err := dial(ctx, t, rt, fmt.Sprint("k", ctx == t.Context(), d, time.Now()), dialBody)
				require.NoError(t, err)
			}
			closeStack(t, s)
		}
	})
}

// B15: what never reached the wire is in no count: cached answers, shared ones, a full bulkhead, a shut gate.
func TestB15_NothingThatStayedHereIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{
			Fallback: FallbackConfig{ServeFresh: true},
			Bulkhead: BulkheadConfig{Critical: -1, Normal: 1, Bulk: -1, Queue: -1},
			Retry:    RetryConfig{Max: -1},
		})
		answer := func() *http.Response { return reply(200, "agent") }
		rt := s.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			time.Sleep(time.Second)
			return answer(), nil
		}))
		counts := func() [3]uint64 {
			b := s.Breaker.Stats()
			return [3]uint64{b.Successes, b.Failures, b.Ignored}
		}
		var wg sync.WaitGroup
		for range 50 { // one asks, the others share
			wg.Go(func() { _, err := fetch(t.Context(), t, rt); require.NoError(t, err) })
		}
		wg.Wait()
		require.Equal(t, [3]uint64{1, 0, 0}, counts())
		for range 200 {
			_, err := fetch(t.Context(), t, rt)
			require.NoError(t, err)
		}
		require.Equal(t, [3]uint64{1, 0, 0}, counts())

		wg.Go(func() { _, err := dial(t.Context(), t, rt, "a", dialBody); require.NoError(t, err) })
		synctest.Wait()
		for i := range 9 {
			_, err := dial(t.Context(), t, rt, fmt.Sprint("b", i), dialBody)
			require.ErrorIs(t, err, ErrFull)
		}
		wg.Wait()
		require.Equal(t, [3]uint64{2, 0, 0}, counts())

		answer = func() *http.Response { return reply(429, "", "Retry-After", "60") }
		_, err := dial(t.Context(), t, rt, "c", dialBody)
		require.NoError(t, err)
		require.Equal(t, [3]uint64{2, 0, 1}, counts())
		for i := range 9 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			_, err := dial(ctx, t, rt, fmt.Sprint("d", i), dialBody)
			cancel()
			require.ErrorIs(t, err, ErrThrottled)
		}
		require.Equal(t, [3]uint64{2, 0, 1}, counts())
		require.Equal(t, BreakerCounts{Successes: 2}, s.Breaker.Stats().Window)
		closeStack(t, s)
	})
}

// Q18, T06: on the whole road, work that ignores its limit keeps its slot, and shows, whatever kind of work it is.
func TestQ18_T06_DeafWorkOnTheWholeRoad(t *testing.T) {
	for name, effect := range map[string]Effect{"read": EffectRead, "idempotent": EffectIdempotent, "once": EffectOnce} {
		for _, how := range []string{"http", "do"} {
			t.Run(name+" "+how, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := newStack(t, Config{
						Bulkhead: BulkheadConfig{Critical: -1, Normal: 2, Bulk: -1}, Retry: RetryConfig{Max: -1}, Breaker: BreakerConfig{MinCalls: 100},
						Timeout: TimeoutConfig{Request: 50 * time.Millisecond, Total: 10 * time.Second},
					})
					var running, worst atomic.Int64
					work := func() {
						worst.Store(max(worst.Load(), running.Add(1)))
						time.Sleep(300 * time.Millisecond)
						running.Add(-1)
					}
					rt := s.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) { work(); return reply(200, ""), nil }))
					var wg sync.WaitGroup
					for i := range 12 {
						wg.Go(func() {
							ctx := WithCall(t.Context(), Call{Operation: "op", Effect: effect, Resource: fmt.Sprint(i)})
							var err error
							if how == "http" {
								req, _ := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprint("http://api.test/", i), nil)
								_, err = rt.RoundTrip(req) //nolint:bodyclose // there is none
							} else {
								_, err = Do(ctx, s, Call{Operation: "op", Effect: effect, Params: i}, func(context.Context) (int, error) { work(); return 1, nil })
							}
							require.ErrorIs(t, err, ErrTimeout)
							require.Equal(t, effect == EffectOnce, InDoubt(err))
						})
					}
					time.Sleep(60 * time.Millisecond)
					synctest.Wait()
					require.Equal(t, 2, s.Stats().Bulkhead.Abandoned)
					require.Equal(t, 2, s.Stats().Bulkhead.InUse)
					require.Equal(t, 2, s.Stats().Timeout.Lingering)
					wg.Wait()
					time.Sleep(time.Second)
					synctest.Wait()
					require.EqualValues(t, 2, worst.Load())
					require.Zero(t, s.Stats().Bulkhead.Abandoned)
					require.Zero(t, s.Stats().Bulkhead.InUse)
					require.EqualValues(t, 12, s.Stats().Timeout.Late)
					closeStack(t, s)
				})
			})
		}
	}
}

// Q28: what was spent in the queue is taken off what the attempt may take.
func TestQ28_QueueTimeIsTakenOffTheBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Bulkhead: BulkheadConfig{Critical: -1, Normal: 1, Bulk: -1}, Timeout: TimeoutConfig{Total: 8 * time.Second, Request: 8 * time.Second}})
		release, err := s.Bulkhead.Acquire(t.Context(), PriorityNormal)
		require.NoError(t, err)
		time.AfterFunc(5*time.Second, release)
		start := time.Now()
		_, err = fetch(t.Context(), t, s.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			deadline, ok := req.Context().Deadline()
			require.True(t, ok)
			require.Equal(t, 3*time.Second, time.Until(deadline))
			return slow(time.Minute)(req)
		})))
		require.ErrorIs(t, err, ErrTimeout)
		require.Equal(t, 8*time.Second, time.Since(start))
		require.Equal(t, 5*time.Second, s.Stats().Bulkhead.Normal.WaitMax)
		closeStack(t, s)
	})
}

// Whoever waits at the gate of an operation holds no slot.
func TestRetry_TheGateIsWaitedForWithoutASlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Bulkhead: BulkheadConfig{Critical: -1, Normal: 1, Bulk: -1, Queue: -1}})
		rt, sends := script(status(429, "Retry-After", "10"), status(200))
		first := make(chan error)
		go func() {
			_, err := dial(WithCall(context.Background(), Call{Operation: "ring"}), t, s.Wrap(rt), "k", dialBody)
			first <- err
		}()
		synctest.Wait()
		require.Equal(t, 1, *sends)
		require.Zero(t, s.Bulkhead.Stats().InUse)
		require.Equal(t, 1, s.Stats().Retry.Gates)
		start := time.Now()
		_, err := fetch(WithCall(t.Context(), Call{Operation: "other"}), t, s.Wrap(slow(0)))
		require.NoError(t, err)
		require.Zero(t, time.Since(start))
		require.NoError(t, <-first)
		require.Equal(t, 10*time.Second, time.Since(start))
		closeStack(t, s)
	})
}

// X02: one claim for three attempts, and one record.
func TestX02_ThreeAttemptsAreOneKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var changes []string
		s := newStack(t, Config{Retry: RetryConfig{Base: time.Millisecond}, DLQ: DLQConfig{Off: true}, Idempotency: IdempotencyConfig{OnEvent: func(e Event) {
			if e.Kind == EventKeyChanged {
				changes = append(changes, e.From+" "+e.To)
			}
		}}})
		rt, sends := script(failing2(MarkNotSent(io.EOF)), failing2(MarkNotSent(io.EOF)), status(201))
		_, err := dial(t.Context(), t, s.Wrap(rt), "k", dialBody)
		require.NoError(t, err)
		synctest.Wait()
		require.Equal(t, 3, *sends)
		claims := 0
		for _, c := range changes {
			if c == "free claimed" {
				claims++
			}
		}
		require.Equal(t, 1, claims, changes)
		require.EqualValues(t, 2, s.Breaker.Stats().Failures)
		require.EqualValues(t, 1, s.Breaker.Stats().Successes)
		closeStack(t, s)
	})
}

// B46: after Close every call gets ErrClosed, the state is readable, and Close twice is fine.
func TestB46_AfterClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Breaker: BreakerConfig{MinCalls: 1}})
		report(t, s.Breaker, "F")
		closeStack(t, s)
		closeStack(t, s)
		require.Equal(t, BreakerOpen, s.Breaker.State())
		require.Equal(t, 30*time.Second, s.Stats().Breaker.RetryAfter)
		_, err := fetch(t.Context(), t, s.Wrap(slow(0)))
		require.ErrorIs(t, err, ErrClosed)
		require.True(t, NotSent(err))
		_, err = Do(t.Context(), s, Call{}, func(context.Context) (int, error) { return 0, errors.New("it ran") })
		require.ErrorIs(t, err, ErrClosed)
		require.Zero(t, s.Stats().Breaker.Rejected)
	})
}

func TestRetry_AnAnswerThatIsFineIsNotAskedForAgain(t *testing.T) {
	for _, code := range []int{200, 204, 304} {
		rt, n := script(status(code, "X-Should-Retry", "true"))
		_, err := fetch(t.Context(), t, newRe(t, RetryConfig{}).Wrap(rt))
		require.NoError(t, err)
		require.Equal(t, 1, *n)
	}
}

// Each fault by its own name: "Retry.Ratio" is the beginning of "Retry.RatioPerSecond".
func TestRetry_AFaultyRatioIsNamed(t *testing.T) {
	for _, ratio := range []float64{1.01, -0.5} {
		_, err := NewRetry(RetryConfig{Ratio: ratio})
		require.ErrorContains(t, err, "Retry.Ratio:")
	}
	for _, perSecond := range []float64{-0.5, -2} {
		_, err := NewRetry(RetryConfig{RatioPerSecond: perSecond})
		require.ErrorContains(t, err, "Retry.RatioPerSecond:")
	}
}

func TestTimeout_NilHasNoLimits(t *testing.T) {
	var l *Timeout
	limit, name := l.LimitOf(Call{})
	require.Equal(t, time.Duration(-1), limit)
	require.Empty(t, name)
	require.Equal(t, time.Duration(-1), l.BudgetOf(Call{}))
	limit, name = l.LimitOf(Call{Limit: time.Second})
	require.Equal(t, time.Second, limit)
	require.Equal(t, "limit", name)
	require.Equal(t, time.Minute, l.BudgetOf(Call{Budget: time.Minute}))
	require.Zero(t, l.Stats())
}
