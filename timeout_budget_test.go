package resilience

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A foreign layer that only adds a value to the context does not hide that the budget is spent.
func TestT08_ABudgetSpentBeyondAForeignContext(t *testing.T) {
	onEitherGoroutine(t, func(t *testing.T, cooperative bool) {
		l := newTime(t, TimeoutConfig{Total: 50 * time.Millisecond, Cooperative: cooperative})
		type tag struct{}
		slow := LayerFunc(func(next http.RoundTripper) http.RoundTripper {
			return RoundTripFunc(func(r *http.Request) (*http.Response, error) {
				time.Sleep(80 * time.Millisecond)
				return next.RoundTrip(r.WithContext(context.WithValue(r.Context(), tag{}, 1)))
			})
		})
		_, err := fetch(t.Context(), t, Chain(l.Budget(), slow, l.Attempt()).Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			t.Error("it was sent all the same")
			return nil, io.EOF
		})))
		require.ErrorIs(t, err, ErrTimeout)
		require.True(t, NotSent(err))
	})
}

// Err says what the caller's context says, also where that has a cause of its own.
func TestT04_ADeadlineWithACauseIsADeadline(t *testing.T) {
	onEitherGoroutine(t, func(t *testing.T, cooperative bool) {
		l := newTime(t, TimeoutConfig{Cooperative: cooperative})
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, errors.New("mine"))
		defer cancel()
		_, err := fetch(ctx, t, l.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			<-req.Context().Done()
			require.ErrorIs(t, req.Context().Err(), context.DeadlineExceeded)
			return nil, req.Context().Err()
		})))
		require.ErrorContains(t, err, "mine")
	})
}

// The context that a budget makes below a foreign one ends with the call, or it would hang on to a caller's that lasts.
func TestTimeout_TheBudgetsOwnContextEnds(t *testing.T) {
	l := newTime(t, TimeoutConfig{})
	type tag struct{}
	foreign := LayerFunc(func(next http.RoundTripper) http.RoundTripper {
		return RoundTripFunc(func(r *http.Request) (*http.Response, error) {
			return next.RoundTrip(r.WithContext(context.WithValue(context.WithoutCancel(r.Context()), tag{}, 1)))
		})
	})
	b, err := NewBreaker(BreakerConfig{})
	require.NoError(t, err)
	var below context.Context
	_, err = fetch(t.Context(), t, Chain(b, foreign, l.Budget()).Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
		below = req.Context()
		require.NoError(t, below.Err())
		return reply(200, ""), nil
	})))
	require.NoError(t, err)
	require.ErrorIs(t, below.Err(), context.Canceled)
}

// Two budgets.
func TestTimeout_AnInnerBudgetLeavesTheOuterOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		total := newTime(t, TimeoutConfig{Total: 3 * time.Second})
		try := newTime(t, TimeoutConfig{Request: time.Second})
		rt, n := script(status(503, "Retry-After", "30"), status(200))
		start := time.Now()
		resp, err := fetch(t.Context(), t, Chain(total.Budget(), newRe(t, RetryConfig{}), try).Wrap(rt))
		require.NoError(t, err)
		require.LessOrEqual(t, time.Since(start), 3*time.Second)
		require.Equal(t, 503, resp.StatusCode)
		require.Equal(t, 1, *n)
	})
}

// No attempt starts that cannot finish.
// A slot that comes in the last moment is handed on: what is sent then is in doubt, for a caller who is leaving.
func TestT09_NoAttemptStartsInTheLastMoment(t *testing.T) {
	for name, c := range map[string]struct {
		effect Effect
		own    time.Duration // the caller's time, where it ends before the budget
		left   time.Duration
		limit  string
	}{
		"read":                  {effect: EffectRead, left: useful - 1, limit: "budget"},
		"once":                  {effect: EffectOnce, left: useful - 1, limit: "budget"},
		"the caller's deadline": {effect: EffectRead, own: time.Second / 2, left: useful - 1, limit: "caller"},
		"the caller's, once":    {effect: EffectOnce, own: time.Second / 2, left: useful - 1, limit: "caller"},
		"just enough":           {effect: EffectRead, left: useful},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStack(t, Config{Bulkhead: BulkheadConfig{Total: 1}, Timeout: TimeoutConfig{Request: time.Second, Total: time.Second}})
				ctx, end := t.Context(), time.Second
				if c.own > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, c.own)
					defer cancel()
					end = c.own
				}
				release, err := s.Bulkhead.Acquire(t.Context(), PriorityNormal)
				require.NoError(t, err)
				time.AfterFunc(end-c.left, release)
				sent := 0
				rt := s.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
					sent++
					return reply(200, ""), nil
				}))
				req, err := http.NewRequestWithContext(WithCall(ctx, Call{Effect: c.effect}), http.MethodPost, "http://x/", strings.NewReader("{}"))
				require.NoError(t, err)
				_, err = rt.RoundTrip(req)
				require.Zero(t, s.Bulkhead.Stats().InUse, "nobody keeps the slot")
				closeStack(t, s)
				if c.limit == "" {
					require.NoError(t, err)
					require.Equal(t, 1, sent)
					return
				}
				require.Zero(t, sent)
				require.True(t, NotSent(err))
				require.ErrorIs(t, err, context.DeadlineExceeded)
				var e *Error
				require.ErrorAs(t, err, &e)
				require.Equal(t, c.limit, e.Limit)
			})
		})
	}
}

// Nor after a wait for somebody else's call.
func TestT09_NoAttemptStartsInTheLastMomentOfAJoinedRead(t *testing.T) {
	for name, sends := range map[time.Duration]int{useful - 1: 1, useful: 2} {
		t.Run(name.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStack(t, Config{Timeout: TimeoutConfig{Request: time.Second, Total: time.Second}})
				sent := 0
				rt := s.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
					if sent++; sent == 1 {
						<-req.Context().Done()
						return nil, req.Context().Err()
					}
					return reply(200, "{}"), nil
				}))
				get := func(ctx context.Context) error {
					req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://x/", nil)
					require.NoError(t, err)
					_, err = rt.RoundTrip(req)
					return err
				}
				leader, leave := context.WithCancel(t.Context())
				go func() { _ = get(leader) }()
				synctest.Wait()
				time.AfterFunc(time.Second-name, leave)
				err := get(t.Context())
				closeStack(t, s)
				require.Equal(t, sends, sent)
				require.Equal(t, sends == 2, err == nil)
			})
		})
	}
}

func TestT09_NoAttemptStartsInTheLastMomentAfterAnEarlierFlight(t *testing.T) {
	for left, limit := range map[time.Duration]string{useful - 1: "caller", useful: ""} {
		t.Run(left.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				i := newIdem(t, IdempotencyConfig{})
				release := make(chan struct{})
				held := 0
				between := LayerFunc(func(next http.RoundTripper) http.RoundTripper {
					return RoundTripFunc(func(req *http.Request) (*http.Response, error) {
						if held++; held == 1 {
							<-release // it is slow to hear of the end
							return nil, errors.New("gone")
						}
						return next.RoundTrip(req)
					})
				})
				p := &phone{}
				rt := Chain(i.Claim(), between, i.Intent()).Wrap(p)
				first, leave := context.WithCancel(t.Context())
				time.AfterFunc(time.Millisecond, leave)
				_, err := dial(first, t, rt, "k", dialBody)
				require.Error(t, err)
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				time.AfterFunc(time.Second-left, func() { close(release) })
				_, err = dial(ctx, t, rt, "k", dialBody)
				if limit == "" {
					require.NoError(t, err)
					return
				}
				require.True(t, NotSent(err))
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.Zero(t, p.rang())
				var e *Error
				require.ErrorAs(t, err, &e)
				require.Equal(t, limit, e.Limit)
			})
		})
	}
}

// A spent budget behind a layer that detaches the context.
func TestTimeout_ASpentBudgetIsNamedBehindADetachedContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newTime(t, TimeoutConfig{Total: time.Second, Request: time.Second})
		foreign := LayerFunc(func(next http.RoundTripper) http.RoundTripper {
			return RoundTripFunc(func(req *http.Request) (*http.Response, error) {
				time.Sleep(2 * time.Second)
				return next.RoundTrip(req.WithContext(context.WithoutCancel(req.Context())))
			})
		})
		_, err := fetch(t.Context(), t, Chain(l.Budget(), foreign, l.Attempt()).Wrap(slow(0)))
		var e *Error
		require.ErrorAs(t, err, &e)
		require.Error(t, e.Err)
		require.ErrorIs(t, err, ErrTimeout)
	})
}

// Panic below a budget behind a foreign layer.
func TestTimeout_ABudgetBehindAForeignLayerEndsWithAPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newTime(t, TimeoutConfig{Total: time.Hour})
		foreign := LayerFunc(func(next http.RoundTripper) http.RoundTripper {
			return RoundTripFunc(func(req *http.Request) (*http.Response, error) { return next.RoundTrip(req) })
		})
		var kept context.Context
		rt := Chain(newRe(t, RetryConfig{}), foreign, l.Budget()).Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			kept = req.Context()
			panic("x")
		}))
		func() {
			defer func() { _ = recover() }()
			_, _ = fetch(t.Context(), t, rt)
		}()
		require.Error(t, kept.Err())
	})
}

// A caller whose own deadline passes while the attempt limit is due at the same instant.
func TestTimeout_CallersDeadlineAtTheBudget(t *testing.T) {
	onEitherGoroutine(t, func(t *testing.T, coop bool) {
		l := newTime(t, TimeoutConfig{Cooperative: coop, Total: 2 * time.Second, Request: time.Second})
		ctx, cancel := context.WithTimeoutCause(t.Context(), 500*time.Millisecond, errors.New("mine"))
		defer cancel()
		_, err := fetch(ctx, t, l.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			<-req.Context().Done()
			return nil, context.Cause(req.Context())
		})))
		var e *Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, "caller", e.Limit)
		require.ErrorContains(t, err, "mine")
		require.NotErrorIs(t, err, ErrTimeout)
	})
}

func TestT05_WithoutAnAttemptLimitTheBudgetEndsTheAttempt(t *testing.T) {
	onEitherGoroutine(t, func(t *testing.T, cooperative bool) {
		l := newTime(t, TimeoutConfig{Cooperative: cooperative, Request: -1})
		start := time.Now()
		_, err := fetch(WithBudget(t.Context(), time.Second), t, l.Wrap(slow(time.Hour)))
		require.Equal(t, time.Second, time.Since(start))
		require.ErrorIs(t, err, ErrTimeout)
		var e *Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, "budget", e.Limit)
	})
}

func TestTimeout_ABudgetAloneCutsNoStreamOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newTime(t, TimeoutConfig{Total: time.Second})
		resp, err := fetch(t.Context(), t, l.Budget().Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			pr, pw := io.Pipe()
			go func() {
				select {
				case <-time.After(time.Minute):
					_, _ = io.WriteString(pw, "data")
					_ = pw.Close()
				case <-req.Context().Done():
					_ = pw.CloseWithError(context.Cause(req.Context()))
				}
			}()
			return &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"text/event-stream"}}, Body: pr}, nil
		})))
		require.NoError(t, err)
		b, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.Equal(t, "data", string(b))
		_ = resp.Body.Close()
	})
}

func TestTimeout_ABudgetThatNoLimitBoundsIsNone(t *testing.T) {
	l := newTime(t, TimeoutConfig{})
	for limit, want := range map[time.Duration]time.Duration{
		-1: -1, time.Second: 2 * time.Second, maxDuration / 2: maxDuration - 1, maxDuration/2 + 1: -1, maxDuration: -1,
	} {
		require.Equal(t, want, l.BudgetOf(Call{Limit: limit}), limit)
	}
}
