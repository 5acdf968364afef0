package resilience

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/stretchr/testify/require"
)

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

// net's own dialer tells of what it does under another key than net/http's, so a test with a fake would not do.
func TestT11_ConnectLimitOverNetHTTP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // connects, and never shakes hands
	require.NoError(t, err)
	defer l.Close()
	to := newTime(t, TimeoutConfig{Connect: 50 * time.Millisecond})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+l.Addr().String(), nil)
	require.NoError(t, err)
	_, err = to.Wrap(nil).RoundTrip(req)
	var e *Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, "connect", e.Limit)
	require.True(t, NotSent(err))
}

// A user's dialer tells nothing, but the handshake does.
func TestT11_ConnectLimitWithADialerOfTheUsers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := NewTransport()
		server, client := net.Pipe()
		tr.DialContext = func(context.Context, string, string) (net.Conn, error) { return client, nil }
		go func() { _, _ = io.Copy(io.Discard, server) }()
		to := newTime(t, TimeoutConfig{Connect: time.Second})
		_, err := fetch(t.Context(), t, to.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			req = req.Clone(req.Context())
			req.URL.Scheme = "https"
			return tr.RoundTrip(req)
		})))
		var e *Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, "connect", e.Limit)
		_ = server.Close()
		tr.CloseIdleConnections()
	})
}

// http.Client cancels a foreign transport through Request.Cancel, with an error of no type: it must not get that far.
func TestTimeout_CancelDoesNotGoDown(t *testing.T) {
	for name, rt := range map[string]func(http.RoundTripper) http.RoundTripper{
		"own goroutine": newTime(t, TimeoutConfig{}).Wrap, "in place": newTime(t, TimeoutConfig{Cooperative: true}).Wrap,
	} {
		c := &http.Client{Timeout: time.Hour, Transport: rt(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			require.Nil(t, req.Cancel, name) //nolint:staticcheck // http.Client still sets it
			return reply(200, ""), nil
		}))}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://api.test/", nil)
		require.NoError(t, err)
		resp, err := c.Do(req)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
	}
}

func TestTimeout_EveryFieldIsChecked(t *testing.T) {
	_, err := NewTimeout(TimeoutConfig{
		Connect: -2, Request: -2, Upload: -2, LongPoll: -2, Total: -2, MaxResponseBytes: -2, MaxRequestBytes: -2,
	})
	for _, field := range []string{"Connect", "Request", "Upload", "LongPoll", "Total", "MaxResponseBytes", "MaxRequestBytes"} {
		require.ErrorContains(t, err, "Timeout."+field+":")
	}
}

// Each door used alone, and of a layer that was left out.
func TestTimeout_TheDoorsAlone(t *testing.T) {
	var none *Timeout
	for name, layer := range map[string]Layer{"budget": none.Budget(), "attempt": none.Attempt()} {
		resp, err := fetch(t.Context(), t, layer.Wrap(answering(204)))
		require.NoError(t, err, name)
		require.Equal(t, 204, resp.StatusCode, name)
	}
	l := newTime(t, TimeoutConfig{MaxRequestBytes: 4})
	for name, layer := range map[string]Layer{"budget": l.Budget(), "attempt": l.Attempt()} {
		for content, kept := range map[string]bool{"1234": true, "12345": false} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://server.test/", strings.NewReader(content))
			require.NoError(t, err)
			_, err = layer.Wrap(RoundTripFunc(func(out *http.Request) (*http.Response, error) {
				require.Equal(t, kept, out.GetBody != nil, "%s %s", name, content)
				b, err := io.ReadAll(out.Body)
				require.NoError(t, err)
				require.Equal(t, content, string(b))
				return ok(""), nil
			})).RoundTrip(req)
			require.NoError(t, err)
		}
	}
}

func newTime(t testing.TB, cfg TimeoutConfig) *Timeout {
	t.Helper()
	l, err := NewTimeout(cfg)
	require.NoError(t, err)
	return l
}

// onEitherGoroutine runs a test for work that is left alone on its goroutine when it must be, and for work that promised not to
// need that. The promise changes what it costs, not what happens.
func onEitherGoroutine(t *testing.T, test func(t *testing.T, cooperative bool)) {
	t.Helper()
	for name, cooperative := range map[string]bool{"its own": false, "the caller's": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(t, cooperative) })
		})
	}
}

func fetch(ctx context.Context, t testing.TB, rt http.RoundTripper) (*http.Response, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://api.test/get-agent/a", nil)
	require.NoError(t, err)
	return rt.RoundTrip(req)
}

// slow answers after d, and honours its context.
func slow(d time.Duration) RoundTripFunc {
	return func(req *http.Request) (*http.Response, error) {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
			return reply(200, "late but there"), nil
		case <-req.Context().Done():
			return nil, context.Cause(req.Context())
		}
	}
}

// deaf answers after d whatever its context says.
func deaf(d time.Duration) RoundTripFunc {
	return func(*http.Request) (*http.Response, error) {
		time.Sleep(d)
		return reply(200, "deaf"), nil
	}
}

func TestT01_FinishesEarlyAndLeavesNoTimer(t *testing.T) {
	onEitherGoroutine(t, func(t *testing.T, cooperative bool) {
		rt := newTime(t, TimeoutConfig{Cooperative: cooperative}).Wrap(slow(0))
		start := time.Now()
		for range 100 {
			resp, err := fetch(t.Context(), t, rt)
			require.NoError(t, err)
			require.Equal(t, "late but there", bodyText(t, resp))
		}
		require.Zero(t, time.Since(start))
	})
}

func TestT02_TimeoutNamesItsLimit(t *testing.T) {
	onEitherGoroutine(t, func(t *testing.T, cooperative bool) {
		l := newTime(t, TimeoutConfig{Cooperative: cooperative, Request: 2 * time.Second})
		start := time.Now()
		_, err := fetch(t.Context(), t, l.Wrap(slow(4*time.Second)))
		require.Equal(t, 2*time.Second, time.Since(start))
		require.ErrorIs(t, err, ErrTimeout)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		var e *Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, "request", e.Limit)
		require.True(t, e.Timeout())
		require.False(t, NotSent(err))
		require.EqualValues(t, 1, l.Stats().Request)
	})
}

func TestT02_WorkSeesTheCause(t *testing.T) {
	onEitherGoroutine(t, func(t *testing.T, cooperative bool) {
		var cause error
		rt := newTime(t, TimeoutConfig{Cooperative: cooperative, Request: time.Second}).Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			<-req.Context().Done()
			cause = context.Cause(req.Context())
			require.ErrorIs(t, req.Context().Err(), context.DeadlineExceeded)
			return nil, cause
		}))
		_, err := fetch(t.Context(), t, rt)
		require.ErrorIs(t, err, ErrTimeout)
		require.ErrorIs(t, cause, ErrTimeout)
		require.ErrorContains(t, cause, "request")
	})
}

func TestT03_CallerCancelsWithTheirOwnCauseAndNoTimeoutIsCounted(t *testing.T) {
	onEitherGoroutine(t, func(t *testing.T, cooperative bool) {
		var events []Event
		l := newTime(t, TimeoutConfig{Cooperative: cooperative, OnEvent: func(e Event) { events = append(events, e) }})
		cause := errors.New("not needed any more")
		ctx, cancel := context.WithCancelCause(t.Context())
		go func() { time.Sleep(time.Second); cancel(cause) }()
		_, err := fetch(ctx, t, l.Wrap(slow(time.Minute)))
		require.ErrorIs(t, err, cause)
		require.ErrorIs(t, err, context.Canceled)
		require.NotErrorIs(t, err, ErrTimeout)
		synctest.Wait()
		require.Empty(t, events)
		require.Equal(t, TimeoutStats{}, l.Stats())
	})
}

func TestT04_CallersEarlierDeadlineIsTheirs(t *testing.T) {
	onEitherGoroutine(t, func(t *testing.T, cooperative bool) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		_, err := fetch(ctx, t, newTime(t, TimeoutConfig{Cooperative: cooperative}).Wrap(slow(time.Minute)))
		require.Equal(t, time.Second, time.Since(start))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.NotErrorIs(t, err, ErrTimeout)
		var e *Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, "caller", e.Limit)
	})
}

func TestT05_MinusOneIsNoLimitAndZeroTheDefault(t *testing.T) {
	onEitherGoroutine(t, func(t *testing.T, cooperative bool) {
		rt := newTime(t, TimeoutConfig{Cooperative: cooperative, Request: -1}).Wrap(slow(1000 * time.Hour))
		_, err := fetch(t.Context(), t, rt)
		require.NoError(t, err)
		start := time.Now()
		_, err = fetch(t.Context(), t, newTime(t, TimeoutConfig{Cooperative: cooperative}).Wrap(slow(time.Hour)))
		require.ErrorIs(t, err, ErrTimeout)
		require.Equal(t, 30*time.Second, time.Since(start))
	})
}

func TestTimeout_TheFourLimitsOfThePage(t *testing.T) {
	l := newTime(t, TimeoutConfig{})
	for class, want := range map[Class]time.Duration{
		ClassRequest: 30 * time.Second, ClassUpload: 120 * time.Second, ClassLongPoll: 300 * time.Second,
	} {
		limit, _ := l.LimitOf(Call{Class: class})
		require.Equal(t, want, limit)
		require.Equal(t, 2*want, l.BudgetOf(Call{Class: class}))
	}
	require.Equal(t, 5*time.Second, l.cfg.Connect)
}

func TestT06_WorkThatIgnoresItsContextIsLeftBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newTime(t, TimeoutConfig{Request: time.Second})
		start := time.Now()
		_, err := fetch(t.Context(), t, l.Wrap(deaf(time.Minute)))
		require.ErrorIs(t, err, ErrTimeout)
		require.Equal(t, time.Second+grace, time.Since(start))
		require.Equal(t, 1, l.Stats().Lingering)
		time.Sleep(2 * time.Minute)
		require.Zero(t, l.Stats().Lingering)
		require.EqualValues(t, 1, l.Stats().Late)
	})
}

func TestT07_LatePanicCrashesNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var late []Event
		l := newTime(t, TimeoutConfig{Request: time.Second, OnEvent: func(e Event) {
			if e.Kind == EventAttemptLate {
				late = append(late, e)
			}
		}})
		_, err := fetch(t.Context(), t, l.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			time.Sleep(time.Minute)
			panic("late")
		})))
		require.ErrorIs(t, err, ErrTimeout)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		require.Len(t, late, 1)
		require.Equal(t, "panic", late[0].Cause)
	})
}

func TestT07_LateAnswerSettlesTheKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIdem(t, IdempotencyConfig{})
		l := newTime(t, TimeoutConfig{Request: time.Second})
		rt := Chain(i.Claim(), i.Intent(), l.Attempt()).Wrap(deaf(time.Minute))
		_, err := dial(t.Context(), t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		require.ErrorIs(t, err, ErrTimeout)
		require.Equal(t, KeyInDoubt, stateOf(t, i, "k"))
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		require.Equal(t, KeyConfirmed, stateOf(t, i, "k"))
	})
}

func TestT08_BudgetEndsALongerAttempt(t *testing.T) {
	onEitherGoroutine(t, func(t *testing.T, cooperative bool) {
		l := newTime(t, TimeoutConfig{Cooperative: cooperative})
		ctx := WithCall(t.Context(), Call{Limit: 1200 * time.Millisecond, Budget: 300 * time.Millisecond})
		start := time.Now()
		_, err := fetch(ctx, t, l.Wrap(slow(time.Minute)))
		require.Equal(t, 300*time.Millisecond, time.Since(start))
		var e *Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, "budget", e.Limit)
		require.ErrorIs(t, err, ErrTimeout)
	})
}

func TestT08_AttemptLimitLongerThanTheBudgetIsAConfigError(t *testing.T) {
	_, err := NewTimeout(TimeoutConfig{Total: time.Second, Request: 2 * time.Second, Upload: -1, Connect: -2})
	require.ErrorContains(t, err, "Timeout.Request")
	require.ErrorContains(t, err, "Timeout.Upload")
	require.ErrorContains(t, err, "Timeout.Connect")
	l := newTime(t, TimeoutConfig{Total: time.Second})
	limit, _ := l.LimitOf(Call{})
	require.Equal(t, time.Second, limit, "a default is cut to the budget")
}

func TestT09_NoBackoffPastTheBudgetAndAttemptsGetTheRest(t *testing.T) {
	onEitherGoroutine(t, func(t *testing.T, cooperative bool) {
		l := newTime(t, TimeoutConfig{Cooperative: cooperative, Total: 30 * time.Second, Request: 10 * time.Second})
		r, err := NewRetry(RetryConfig{Max: 9, Base: time.Millisecond})
		require.NoError(t, err)
		var deadlines []time.Duration
		start := time.Now()
		_, err = fetch(t.Context(), t, Chain(l.Budget(), r, l.Attempt()).Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			d, ok := req.Context().Deadline()
			require.True(t, ok)
			deadlines = append(deadlines, time.Until(d))
			<-req.Context().Done()
			return nil, req.Context().Err()
		})))
		require.ErrorIs(t, err, ErrTimeout)
		require.LessOrEqual(t, time.Since(start), 30*time.Second)
		require.Equal(t, 10*time.Second, deadlines[0])
		require.Len(t, deadlines, 3)
		require.Less(t, deadlines[2], 10*time.Second)
	})
}

func TestT09_AFlightGetsItsOwnFullLimit(t *testing.T) {
	onEitherGoroutine(t, func(t *testing.T, cooperative bool) {
		l := newTime(t, TimeoutConfig{Cooperative: cooperative})
		i := newIdem(t, IdempotencyConfig{})
		rt := Chain(l.Budget(), i.Claim(), i.Intent(), l.Attempt()).Wrap(slow(100 * time.Second))
		ctx := WithCall(t.Context(), Call{Limit: 120 * time.Second, Budget: 60 * time.Second})
		start := time.Now()
		_, err := dial(ctx, t, rt, "k", dialBody)
		require.Equal(t, time.Minute, time.Since(start))
		require.ErrorIs(t, err, ErrInDoubt)
		require.ErrorIs(t, err, ErrTimeout)
		time.Sleep(time.Minute)
		require.Equal(t, KeyConfirmed, stateOf(t, i, "k"))
	})
}

// traced fires the hooks that net/http's transport fires.
func traced(connect, answer time.Duration) RoundTripFunc {
	return func(req *http.Request) (*http.Response, error) {
		trace := httptrace.ContextClientTrace(req.Context())
		trace.GetConn("api.test:443")
		trace.ConnectStart("tcp", "192.0.2.1:443")
		if _, err := slow(connect)(req); err != nil {
			return nil, err
		}
		conn, _ := net.Pipe()
		trace.GotConn(httptrace.GotConnInfo{Conn: conn})
		return slow(answer)(req)
	}
}

func TestT11_ConnectLimitCoversConnectingOnly(t *testing.T) {
	onEitherGoroutine(t, func(t *testing.T, cooperative bool) {
		l := newTime(t, TimeoutConfig{Cooperative: cooperative, Connect: 50 * time.Millisecond})
		_, err := fetch(t.Context(), t, l.Wrap(traced(0, 60*time.Millisecond)))
		require.NoError(t, err)
		start := time.Now()
		_, err = dial(t.Context(), t, l.Wrap(traced(time.Minute, 0)), "", dialBody)
		require.Equal(t, 50*time.Millisecond, time.Since(start))
		var e *Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, "connect", e.Limit)
		require.True(t, NotSent(err), "no connection was had")
		require.EqualValues(t, 1, l.Stats().Connect)
	})
}

func TestT13_OneTimeoutCancelsNobodyElse(t *testing.T) {
	onEitherGoroutine(t, func(t *testing.T, cooperative bool) {
		rt := newTime(t, TimeoutConfig{Cooperative: cooperative, Request: time.Second}).Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			return slow(map[bool]time.Duration{true: time.Minute, false: 1500 * time.Millisecond}[req.Header.Get("Slow") != ""])(req)
		}))
		done := make(chan error, 1)
		go func() {
			time.Sleep(600 * time.Millisecond)
			_, err := fetch(WithCall(context.Background(), Call{Limit: 2 * time.Second}), t, rt)
			done <- err
		}()
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://api.test/", nil)
		req.Header.Set("Slow", "1")
		_, err := rt.RoundTrip(req)
		require.ErrorIs(t, err, ErrTimeout)
		require.NoError(t, <-done)
	})
}

func TestT15_AbsurdDurationsWork(t *testing.T) {
	l := newTime(t, TimeoutConfig{Request: maxDuration, LongPoll: maxDuration - 1})
	_, err := fetch(t.Context(), t, l.Wrap(slow(0)))
	require.NoError(t, err)
}

func TestTimeout_ABodyIsReadWithinTheLimitAndWhole(t *testing.T) {
	onEitherGoroutine(t, func(t *testing.T, cooperative bool) {
		l := newTime(t, TimeoutConfig{Cooperative: cooperative, Request: time.Second, MaxResponseBytes: 8})
		hang := func(req *http.Request) (*http.Response, error) {
			pr, pw := io.Pipe()
			context.AfterFunc(req.Context(), func() { _ = pw.CloseWithError(req.Context().Err()) })
			go func() { _, _ = pw.Write([]byte("half")) }()
			return &http.Response{StatusCode: 200, Body: pr, Header: http.Header{}}, nil
		}
		_, err := fetch(t.Context(), t, l.Wrap(RoundTripFunc(hang)))
		require.ErrorIs(t, err, ErrTimeout)
		_, err = fetch(t.Context(), t, l.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) { return reply(200, "123456789"), nil })))
		require.ErrorIs(t, err, ErrTooLarge)
		resp, err := fetch(t.Context(), t, l.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) { return reply(200, "12345678"), nil })))
		require.NoError(t, err)
		require.Equal(t, "12345678", bodyText(t, resp))
	})
}

func TestTimeout_AStreamIsNotCutOff(t *testing.T) {
	onEitherGoroutine(t, func(t *testing.T, cooperative bool) {
		l := newTime(t, TimeoutConfig{Cooperative: cooperative, Request: time.Second, Total: time.Second})
		stream := func(req *http.Request) (*http.Response, error) {
			pr, pw := io.Pipe()
			go func() {
				for range 5 {
					time.Sleep(time.Second)
					if req.Context().Err() != nil {
						_ = pw.CloseWithError(req.Context().Err())
						return
					}
					_, _ = io.WriteString(pw, "data: x\n\n")
				}
				_ = pw.Close()
			}()
			return &http.Response{StatusCode: 200, Body: pr, Header: http.Header{"Content-Type": {"text/event-stream; charset=utf-8"}}}, nil
		}
		resp, err := fetch(t.Context(), t, l.Wrap(RoundTripFunc(stream)))
		require.NoError(t, err)
		require.Equal(t, 5, strings.Count(bodyText(t, resp), "data"))
		require.NoError(t, resp.Body.Close())
	})
}

func TestTimeout_PanicReachesTheCaller(t *testing.T) {
	onEitherGoroutine(t, func(t *testing.T, cooperative bool) {
		l := newTime(t, TimeoutConfig{Cooperative: cooperative})
		var ctx context.Context
		rt := l.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			ctx = req.Context()
			require.NoError(t, ctx.Err())
			panic("boom")
		}))
		require.PanicsWithValue(t, "boom", func() { _, _ = fetch(t.Context(), t, rt) })
		synctest.Wait()
		require.ErrorIs(t, ctx.Err(), context.Canceled, "what the attempt started has ended with it")
	})
}

func TestTimeout_GoexitEndsTheCaller(t *testing.T) {
	onEitherGoroutine(t, func(t *testing.T, cooperative bool) {
		l := newTime(t, TimeoutConfig{Cooperative: cooperative})
		returned, ended := false, make(chan struct{})
		go func() {
			defer close(ended)
			_, _ = fetch(t.Context(), t, l.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) { runtime.Goexit(); return nil, nil })))
			returned = true
		}()
		<-ended
		require.False(t, returned)
	})
}

// A transport that is known to honour its context, or promised to, is not given a goroutine; every other is.
func TestTimeout_TheGoroutineOfAnAttempt(t *testing.T) {
	here := func() string {
		buf := make([]byte, 64)
		fields := strings.Fields(string(buf[:runtime.Stack(buf, false)]))
		return fields[1]
	}
	for name, cooperative := range map[string]bool{"its own": false, "the caller's": true} {
		l := newTime(t, TimeoutConfig{Cooperative: cooperative})
		var at string
		_, err := fetch(t.Context(), t, l.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) { at = here(); return reply(200, ""), nil })))
		require.NoError(t, err)
		require.Equal(t, cooperative, at == here(), name)
	}
	tr := NewTransport()
	defer tr.CloseIdleConnections()
	var at string
	tr.Proxy = func(*http.Request) (*url.URL, error) { at = here(); return nil, errors.New("no way out") }
	_, err := fetch(t.Context(), t, newTime(t, TimeoutConfig{}).Wrap(tr))
	require.ErrorContains(t, err, "no way out")
	require.Equal(t, here(), at)
}

// Work that breaks its promise holds its caller, and what it then has to say counts: an answer is an answer, an error after
// the limit is the limit's.
func TestTimeout_APromiseBroken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newTime(t, TimeoutConfig{Request: time.Second, Cooperative: true})
		start := time.Now()
		resp, err := fetch(t.Context(), t, l.Wrap(deaf(time.Minute)))
		require.NoError(t, err)
		require.Equal(t, "deaf", bodyText(t, resp))
		require.Equal(t, time.Minute, time.Since(start))
		_, err = fetch(t.Context(), t, l.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			time.Sleep(time.Minute)
			return nil, io.EOF
		})))
		var e *Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, "request", e.Limit)
		require.EqualValues(t, 1, l.Stats().Request)
		require.Zero(t, l.Stats().Lingering)
	})
}

// A context that nobody waits for has no clock, and yet it ends in time.
func TestTimeout_AContextThatIsOnlyAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newTime(t, TimeoutConfig{Request: time.Second, Cooperative: true})
		_, err := fetch(t.Context(), t, l.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			require.NoError(t, req.Context().Err())
			time.Sleep(time.Second)
			require.ErrorIs(t, req.Context().Err(), context.DeadlineExceeded)
			require.ErrorIs(t, context.Cause(req.Context()), ErrTimeout)
			<-req.Context().Done()
			return nil, req.Context().Err()
		})))
		require.ErrorIs(t, err, ErrTimeout)
		require.EqualValues(t, 1, l.Stats().Request)
	})
}

func TestTimeout_HTTPClientTimeoutKeepsTheVerdict(t *testing.T) {
	onEitherGoroutine(t, func(t *testing.T, cooperative bool) {
		i := newIdem(t, IdempotencyConfig{})
		l := newTime(t, TimeoutConfig{Cooperative: cooperative})
		c := &http.Client{Timeout: 10 * time.Second, Transport: Chain(l.Budget(), i.Claim(), i.Intent(), l.Attempt()).Wrap(slow(time.Minute))}
		req, _ := http.NewRequestWithContext(WithIdempotencyKey(t.Context(), "k"), http.MethodPost, "http://api.test/x", strings.NewReader(dialBody))
		start := time.Now()
		_, err := c.Do(req) //nolint:bodyclose // there is none
		require.ErrorIs(t, err, ErrInDoubt)
		require.True(t, InDoubt(err))
		require.Equal(t, 10*time.Second-50*time.Millisecond, time.Since(start))
		time.Sleep(time.Hour)
		require.Equal(t, KeyInDoubt, stateOf(t, i, "k"), "its own limit of 30 s has passed")
	})
}
