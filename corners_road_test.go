package resilience

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Corners of the road: limits, slots, circuits and proofs, each found broken or unguarded once.

// B1: a 503 with too large a body.
func TestCorner_ATooLarge503IsAFailure(t *testing.T) {
	for _, code := range []int{503, 429, 200} {
		b, err := NewBreaker(BreakerConfig{})
		require.NoError(t, err)
		l := newTime(t, TimeoutConfig{MaxResponseBytes: 4})
		rt := Chain(b, l.Attempt()).Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			return reply(code, "much too large"), nil
		}))
		_, err = fetch(t.Context(), t, rt)
		require.ErrorIs(t, err, ErrTooLarge)
		s := b.Stats()
		t.Log(code, s.Successes, s.Failures, s.Ignored)
		switch code {
		case 503:
			require.EqualValues(t, 1, s.Failures)
		case 429:
			require.EqualValues(t, 1, s.Ignored)
		}
	}
}

// T1: two budgets.
func TestCorner_AnInnerBudgetLeavesTheOuterOne(t *testing.T) {
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

// T2: no attempt starts that cannot finish.
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

func TestCorner_CloseOfAnIdleStackNeedsNoTime(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 50 {
		s, err := New(Config{})
		require.NoError(t, err)
		require.NoError(t, s.Close(ctx))
	}
}

// B4: ForceOpen when the open period is over, but nobody has tried yet.
func TestCorner_ForceOpenSendsThoseHomeWhoWaitForATrial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := New(Config{
			Bulkhead: BulkheadConfig{Total: 1},
			Breaker:  BreakerConfig{MinCalls: 1, OpenFor: time.Second},
		})
		require.NoError(t, err)
		release, err := s.Bulkhead.Acquire(t.Context(), PriorityNormal)
		require.NoError(t, err)
		done, err := s.Breaker.Allow()
		require.NoError(t, err)
		done(OutcomeFailure)
		time.Sleep(time.Second)
		require.Equal(t, BreakerHalfOpen, s.Breaker.State())
		var waiting error
		returned := make(chan struct{})
		go func() {
			defer close(returned)
			_, waiting = fetch(t.Context(), t, s.Wrap(slow(0)))
		}()
		synctest.Wait()
		require.Equal(t, 1, s.Bulkhead.Stats().Waiting)
		s.Breaker.ForceOpen()
		synctest.Wait()
		still := s.Bulkhead.Stats().Waiting
		release()
		<-returned
		require.ErrorIs(t, waiting, ErrOpen)
		require.Zero(t, still, "sent home at once")
	})
}

// T3: a spent budget behind a layer that detaches the context.
func TestCorner_ASpentBudgetIsNamedBehindADetachedContext(t *testing.T) {
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

// T4: panic below a budget behind a foreign layer.
func TestCorner_ABudgetBehindAForeignLayerEndsWithAPanic(t *testing.T) {
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

func TestCorner_ResizeBelowWaitersAndBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, err := NewBulkhead(BulkheadConfig{Total: 2})
		require.NoError(t, err)
		r1, _ := b.Acquire(t.Context(), PriorityBulk)
		r2, _ := b.Acquire(t.Context(), PriorityBulk)
		got := make(chan func(), 10)
		for range 10 {
			go func() {
				if r, err := b.Acquire(t.Context(), PriorityNormal); err == nil {
					got <- r
				}
			}()
		}
		synctest.Wait()
		require.NoError(t, b.Resize(BulkheadConfig{Total: 1, Queue: -1}))
		r1()
		synctest.Wait()
		require.Empty(t, got)
		r2()
		synctest.Wait()
		require.Len(t, got, 1)
		require.NoError(t, b.Resize(BulkheadConfig{Total: 20}))
		synctest.Wait()
		require.Len(t, got, 10)
		for range 10 {
			(<-got)()
		}
		require.Zero(t, b.Stats().InUse)
	})
}

// A caller whose own deadline passes while the attempt limit is due at the same instant.
func TestCorner_CallersDeadlineAtTheBudget(t *testing.T) {
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

func TestBulkhead_ASlotThatComesWithTheEndOfMaxWaitIsWelcome(t *testing.T) {
	b, err := NewBulkhead(BulkheadConfig{Total: 1})
	require.NoError(t, err)
	release, err := b.Acquire(t.Context(), PriorityNormal)
	require.NoError(t, err)
	tier := tierOf(PriorityNormal)
	w := b.waiterOf(nil, &roadless[tier], tier)
	b.mu.Lock()
	require.Equal(t, admitted, b.enqueue(w, 1))
	b.mu.Unlock()
	release()
	require.NoError(t, b.leave(t.Context(), w, shedMaxWait))
	require.Equal(t, 1, b.Stats().InUse)
	b.giveBack(tier)
	require.Zero(t, b.Stats().InUse)
}

func TestBulkhead_WhoCameTooLateIsNoShed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, err := NewBulkhead(BulkheadConfig{})
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		time.Sleep(2 * time.Second)
		_, err = b.Acquire(ctx, PriorityNormal)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Zero(t, b.Stats().RecentSheds)
	})
}

func TestX06_CloseSendsThoseWhoBackOffHome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := New(Config{Retry: RetryConfig{Base: time.Hour, Cap: time.Hour}})
		require.NoError(t, err)
		rt := s.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) { return nil, io.EOF }))
		time.AfterFunc(time.Millisecond, func() { _ = s.Close(context.Background()) })
		start := time.Now()
		_, err = fetch(WithBudget(t.Context(), 24*time.Hour), t, rt)
		require.ErrorIs(t, err, ErrClosed)
		require.Equal(t, time.Millisecond, time.Since(start))
	})
}

func TestWire_HTTP2ProvesNothing(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	srv.EnableHTTP2 = true
	srv.StartTLS()
	defer srv.Close()
	for proto, proven := range map[string]bool{"h2": false, "": true} {
		conn, err := tls.Dial("tcp", srv.Listener.Addr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: strings.Fields(proto)}) //nolint:gosec // a test
		require.NoError(t, err)
		require.Equal(t, proto, conn.ConnectionState().NegotiatedProtocol)
		s := &sighting{wire: &wire{base: &http.Transport{}}}
		require.Equal(t, proven, s.speaksHTTP1(httptrace.GotConnInfo{Conn: conn}), proto)
		_ = conn.Close()
	}
}

func TestWire_AConnectionThatTookNothingProvesNothingSent(t *testing.T) {
	conn, other := net.Pipe()
	defer conn.Close()
	defer other.Close()
	s := &sighting{wire: &wire{base: &http.Transport{}}, once: true}
	h := &hooks{sighting: s}
	h.getConn("")
	h.gotConn(httptrace.GotConnInfo{Conn: conn, Reused: true})
	require.False(t, s.nothingSent())
	h.getConn("") // back for another, and none is had
	require.True(t, s.nothingSent())
}

func TestB24_GrowthIsSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		seen := map[time.Duration]bool{}
		for range 20 {
			b, err := NewBreaker(BreakerConfig{MinCalls: 1, OpenFor: time.Second})
			require.NoError(t, err)
			for range 2 {
				time.Sleep(b.Stats().RetryAfter)
				done, err := b.Allow()
				require.NoError(t, err)
				done(OutcomeFailure)
			}
			wait := b.Stats().RetryAfter
			require.LessOrEqual(t, wait, 2*time.Second)
			require.GreaterOrEqual(t, wait, 1500*time.Millisecond)
			seen[wait] = true
		}
		require.Greater(t, len(seen), 10)
	})
}

func TestBreaker_LastTripIsEmptyAfterAFailedTrial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, err := NewBreaker(BreakerConfig{MinCalls: 1, OpenFor: time.Second})
		require.NoError(t, err)
		for _, want := range []BreakerCounts{{Failures: 1}, {}} {
			time.Sleep(b.Stats().RetryAfter)
			done, err := b.Allow()
			require.NoError(t, err)
			done(OutcomeFailure)
			require.Equal(t, want, b.Stats().LastTrip)
		}
	})
}

func TestBreaker_OneHeldByHandIsSpared(t *testing.T) {
	b, err := NewBreaker(BreakerConfig{Key: func(c Call) string { return c.Operation }, MaxKeys: 3})
	require.NoError(t, err)
	b.Circuit("held").ForceClose()
	for i := range 10 {
		_, err := b.Circuit(strconv.Itoa(i)).Allow()
		require.NoError(t, err)
	}
	require.True(t, b.Circuit("held").Stats().Forced)
}
