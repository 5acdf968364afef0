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

// A read looks at the clock when it comes and when the answer is there. Whatever makes it wait in between must not be taken
// for no time at all: not by the limit of its attempt, not by the age of its answer, not by what is said of its latency.

func untilDone(req *http.Request) (*http.Response, error) {
	<-req.Context().Done()
	return nil, req.Context().Err()
}

func textAnswer(status int, header http.Header) *http.Response {
	if header == nil {
		header = http.Header{}
	}
	return &http.Response{StatusCode: status, Header: header, Body: io.NopCloser(strings.NewReader("x")), ContentLength: 1}
}

// limitFires sends a read whose attempt hangs, and returns when that was cut off by the limit of requests.
func limitFires(t *testing.T, rt http.RoundTripper, began time.Time) time.Duration {
	t.Helper()
	_, err := rt.RoundTrip(readOf(t.Context(), t, callURL))
	var e *Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, "request", e.Limit)
	return time.Since(began)
}

// patient makes a stack that neither retries nor gives up for want of budget before an attempt does. It is a second old.
func patient(t *testing.T, change func(*Config)) *Stack {
	t.Helper()
	cfg := Config{Retry: RetryConfig{Max: -1}, Timeout: TimeoutConfig{Total: time.Hour, Request: 30 * time.Second, Cooperative: true}}
	change(&cfg)
	s := newStack(t, cfg)
	time.Sleep(time.Second)
	return s
}

func TestClock_ALimitBeginsAfterTheWaitForASlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := patient(t, func(c *Config) { c.Bulkhead.Total, c.Bulkhead.Critical = 1, -1 })
		release, err := s.Bulkhead.Acquire(t.Context(), PriorityNormal)
		require.NoError(t, err)
		began := time.Now()
		time.AfterFunc(10*time.Second, release)
		require.Equal(t, 40*time.Second, limitFires(t, s.Wrap(RoundTripFunc(untilDone)), began))
		require.Equal(t, 40*time.Second, s.Stats().Latency["request"].Max)
		closeStack(t, s)
	})
}

func TestClock_ALimitBeginsAfterTheWaitForARetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := patient(t, func(c *Config) { c.Retry.Max = 1 })
		attempts := 0
		rt := s.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			if attempts++; attempts == 1 {
				return textAnswer(http.StatusServiceUnavailable, http.Header{"Retry-After": {"20"}}), nil
			}
			return untilDone(req)
		}))
		require.Equal(t, 50*time.Second, limitFires(t, rt, time.Now()))
		closeStack(t, s)
	})
}

func TestClock_ALimitBeginsAfterTheWaitForALeaderWhoLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := patient(t, func(*Config) {})
		rt := s.Wrap(RoundTripFunc(untilDone))
		began := time.Now()
		leader, leave := context.WithTimeout(t.Context(), 10*time.Second)
		defer leave()
		go func() {
			_, err := rt.RoundTrip(readOf(leader, t, callURL))
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
		}()
		synctest.Wait()
		require.Equal(t, 40*time.Second, limitFires(t, rt, began))
		closeStack(t, s)
	})
}

func TestClock_AnAnswerIsAsOldAsItIs(t *testing.T) {
	for name, c := range map[string]struct {
		cooperative bool
		fails       func(*http.Request) (*http.Response, error)
		takes       time.Duration
	}{
		"after a refusal": {true, func(*http.Request) (*http.Response, error) { return nil, errors.New("down") }, 0},
		"after a long failure": {true, func(*http.Request) (*http.Response, error) {
			time.Sleep(20 * time.Second)
			return nil, errors.New("down")
		}, 20 * time.Second},
		"after a limit":             {true, untilDone, 30 * time.Second},
		"after an attempt was left": {false, func(*http.Request) (*http.Response, error) { time.Sleep(time.Minute); return nil, errors.New("late") }, 30*time.Second + grace},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := patient(t, func(cfg *Config) { cfg.Timeout.Cooperative = c.cooperative })
				up := true
				rt := s.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
					if up {
						time.Sleep(7 * time.Second)
						return textAnswer(http.StatusOK, nil), nil
					}
					return c.fails(req)
				}))
				_, err := rt.RoundTrip(readOf(t.Context(), t, callURL))
				require.NoError(t, err)
				require.Equal(t, 7*time.Second, s.Stats().Latency["request"].Max)
				up = false
				time.Sleep(40 * time.Second)
				resp, err := rt.RoundTrip(readOf(t.Context(), t, callURL))
				require.NoError(t, err)
				age, _, ok := Served(resp)
				require.True(t, ok)
				require.Equal(t, 40*time.Second+c.takes, age, "it came 7 s after the first read began")
				require.Equal(t, max(7*time.Second, c.takes), s.Stats().Latency["request"].Max)
				time.Sleep(time.Minute) // for what was left behind
				closeStack(t, s)
			})
		})
	}
}

func TestClock_WhatASubstituteTakesIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := patient(t, func(c *Config) {
			c.Fallback.Func = func(*http.Request, error) (*http.Response, error) {
				time.Sleep(5 * time.Second)
				return textAnswer(http.StatusOK, nil), nil
			}
		})
		rt := s.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) { return nil, errors.New("down") }))
		_, err := rt.RoundTrip(readOf(t.Context(), t, callURL))
		require.NoError(t, err)
		require.Equal(t, 5*time.Second, s.Stats().Latency["request"].Max)
		closeStack(t, s)
	})
}

// Slow calls are those whose answer took long, whether it was one or a panic.
func TestClock_ThePanicOfSlowWorkComesWhenItComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := patient(t, func(c *Config) {
			c.Fallback.Off = true
			c.Breaker = BreakerConfig{MinCalls: 2, FailureRate: 1, Window: 10 * time.Second, SlowCall: 5 * time.Second}
		})
		for range 2 {
			require.Panics(t, func() {
				_, _ = Do(t.Context(), s, Call{Operation: "x", Effect: EffectRead}, func(context.Context) (int, error) {
					time.Sleep(8 * time.Second)
					panic("x")
				})
			})
		}
		require.Equal(t, BreakerOpen, s.Breaker.State(), "both failed within ten seconds")
		require.Equal(t, 30*time.Second, s.Breaker.Stats().RetryAfter, "open from when the second failed")
		closeStack(t, s)
	})
}

func TestClock_ALayerAloneLooksEachTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, err := NewTimeout(TimeoutConfig{Total: time.Hour, Request: 30 * time.Second, Cooperative: true})
		require.NoError(t, err)
		f, err := NewFallback(FallbackConfig{})
		require.NoError(t, err)
		foreign := LayerFunc(func(next http.RoundTripper) http.RoundTripper {
			return RoundTripFunc(func(req *http.Request) (*http.Response, error) {
				time.Sleep(10 * time.Second)
				return next.RoundTrip(req)
			})
		})
		rt := Chain(f, foreign, l.Budget(), foreign, l.Attempt()).Wrap(RoundTripFunc(untilDone))
		require.Equal(t, 50*time.Second, limitFires(t, rt, time.Now()))
	})
}

type slowKeys struct{ KeyStore }

func (s slowKeys) Load(ctx context.Context, id string) (Record, error) {
	time.Sleep(10 * time.Second)
	return s.KeyStore.Load(ctx, id)
}

func TestClock_AWriteLooksEachTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := patient(t, func(c *Config) { c.Idempotency.Store = slowKeys{NewMemoryStore(0)}; c.DLQ.Off = true })
		req, err := http.NewRequestWithContext(WithIdempotencyKey(t.Context(), "k"), http.MethodPut, callURL, nil)
		require.NoError(t, err)
		began := time.Now()
		_, err = s.Wrap(RoundTripFunc(untilDone)).RoundTrip(req)
		var e *Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, "request", e.Limit)
		require.Equal(t, 40*time.Second, time.Since(began))
		closeStack(t, s)
	})
}

// follow sends a read with this budget while another for the same answer hangs, 50 s after there was one.
func follow(t *testing.T, s *Stack, budget time.Duration) (*http.Response, error) {
	t.Helper()
	up := true
	rt := s.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
		if up {
			return textAnswer(http.StatusOK, nil), nil
		}
		return untilDone(req)
	}))
	_, err := rt.RoundTrip(readOf(t.Context(), t, callURL))
	require.NoError(t, err)
	up = false
	time.Sleep(50 * time.Second)
	leader, leave := context.WithCancel(t.Context())
	defer synctest.Wait()
	defer leave()
	go func() { _, _ = rt.RoundTrip(readOf(leader, t, callURL)) }()
	synctest.Wait()
	began := time.Now()
	resp, err := rt.RoundTrip(readOf(WithBudget(t.Context(), budget), t, callURL))
	require.Equal(t, budget, time.Since(began))
	require.Equal(t, budget, s.Stats().Latency["request"].Max, "the leader has not come back yet")
	return resp, err
}

// A follower whose budget ends while it waits for a leader is served a kept answer; its age must include the wait.
func TestClock_AFollowerWhoseBudgetEndsIsToldTheAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := patient(t, func(c *Config) {
			c.Fallback = FallbackConfig{Fresh: time.Minute, Stale: 2 * time.Minute, MaxAge: 3 * time.Minute}
			c.Timeout.Request = time.Hour
		})
		resp, err := follow(t, s, 90*time.Second)
		require.NoError(t, err)
		age, staleness, ok := Served(resp)
		require.True(t, ok)
		require.Equal(t, 140*time.Second, age)
		require.Equal(t, VeryStale, staleness)
		closeStack(t, s)
	})
}

// And nothing older than MaxAge is served.
func TestClock_AFollowerWhoseBudgetEndsIsServedNothingGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := patient(t, func(c *Config) {
			c.Fallback = FallbackConfig{Fresh: time.Second, Stale: time.Second, MaxAge: time.Minute}
			c.Timeout.Request = time.Hour
		})
		_, err := follow(t, s, 30*time.Minute)
		require.ErrorIs(t, err, ErrTimeout)
		closeStack(t, s)
	})
}

// A foreign transport below a stack may wait and then call a layer of ours.
func TestClock_ALayerBehindAForeignTransportThatWaits(t *testing.T) {
	for name, cooperative := range map[string]bool{"cooperative": true, "goroutine": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, err := NewTimeout(TimeoutConfig{Total: time.Hour, Request: 30 * time.Second, Cooperative: cooperative})
				require.NoError(t, err)
				s := patient(t, func(c *Config) { c.Timeout.Request, c.Timeout.Cooperative = time.Hour, false })
				inner := l.Attempt().Wrap(RoundTripFunc(untilDone))
				rt := s.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
					time.Sleep(20 * time.Second) // a rate limiter, a token that is fetched
					return inner.RoundTrip(req)
				}))
				require.Equal(t, 50*time.Second, limitFires(t, rt, time.Now()))
				closeStack(t, s)
			})
		})
	}
}

func TestClock_ABudgetBehindAForeignTransportThatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, err := NewTimeout(TimeoutConfig{Total: 30 * time.Second, Cooperative: true})
		require.NoError(t, err)
		s := patient(t, func(c *Config) { c.Timeout.Request, c.Timeout.Cooperative = time.Hour, false })
		inner := l.Budget().Wrap(RoundTripFunc(untilDone))
		rt := s.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			time.Sleep(40 * time.Second)
			return inner.RoundTrip(req)
		}))
		began := time.Now()
		_, err = rt.RoundTrip(readOf(t.Context(), t, callURL))
		require.Error(t, err)
		require.Equal(t, 70*time.Second, time.Since(began))
		closeStack(t, s)
	})
}

func TestClock_AFallbackBehindAForeignTransportThatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, err := NewFallback(FallbackConfig{Fresh: 30 * time.Second, Stale: 30 * time.Second, MaxAge: 35 * time.Second, ServeFresh: true})
		require.NoError(t, err)
		s := patient(t, func(c *Config) { c.Timeout.Request, c.Fallback.Off = time.Hour, true })
		calls := 0
		inner := f.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) { calls++; return textAnswer(http.StatusOK, nil), nil }))
		rt := s.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			time.Sleep(40 * time.Second)
			return inner.RoundTrip(req)
		}))
		for range 2 {
			_, err := rt.RoundTrip(readOf(t.Context(), t, callURL))
			require.NoError(t, err)
		}
		require.Equal(t, 2, calls, "the first answer was 40 s old when the second read came here, and MaxAge is 35 s")
		closeStack(t, s)
	})
}

// A foreign hedger below the stack over an attempt of ours.
func TestClock_AHedgeOverAnAttemptOfOurs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, err := NewTimeout(TimeoutConfig{Total: time.Hour, Request: 30 * time.Second, Cooperative: true})
		require.NoError(t, err)
		s := patient(t, func(c *Config) { c.Timeout.Request, c.Timeout.Cooperative = time.Hour, false })
		inner := l.Attempt().Wrap(RoundTripFunc(untilDone))
		rt := s.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			go func() { _, _ = inner.RoundTrip(req) }()
			time.Sleep(20 * time.Second)
			return inner.RoundTrip(req)
		}))
		require.Equal(t, 50*time.Second, limitFires(t, rt, time.Now()))
		closeStack(t, s)
	})
}

// The deadline that a transport is shown, behind a foreign transport that waits.
func TestClock_TheDeadlineBehindAForeignTransportThatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, err := NewTimeout(TimeoutConfig{Total: time.Hour, Request: 30 * time.Second})
		require.NoError(t, err)
		s := patient(t, func(c *Config) { c.Timeout.Request, c.Timeout.Cooperative = time.Hour, false })
		inner := l.Attempt().Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			at, ok := req.Context().Deadline()
			require.True(t, ok)
			require.Equal(t, 30*time.Second, time.Until(at))
			return textAnswer(200, nil), nil
		}))
		rt := s.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			time.Sleep(20 * time.Second)
			return inner.RoundTrip(req)
		}))
		_, err = rt.RoundTrip(readOf(t.Context(), t, callURL))
		require.NoError(t, err)
		closeStack(t, s)
	})
}

// A read that waited for a leader as the stack closes has waited, too.
func TestClock_TheLatencyOfAFollowerAsTheStackCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := patient(t, func(c *Config) { c.Timeout.Request = time.Hour })
		rt := s.Wrap(RoundTripFunc(untilDone))
		leader, leave := context.WithCancel(t.Context())
		go func() { _, _ = rt.RoundTrip(readOf(leader, t, callURL)) }()
		synctest.Wait()
		over := make(chan struct{})
		go func() { _, _ = rt.RoundTrip(readOf(t.Context(), t, callURL)); close(over) }()
		synctest.Wait()
		time.Sleep(10 * time.Second)
		go func() { _ = s.Close(t.Context()) }()
		<-over
		require.Equal(t, 10*time.Second, s.Stats().Latency["request"].Max)
		leave()
		synctest.Wait()
	})
}

// A foreign layer between ours may take its time on the way back as well.
func TestClock_ALayerAloneSeesWhatAForeignOneTakesOnTheWayBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, err := NewBreaker(BreakerConfig{MinCalls: 1, SlowCall: 5 * time.Second, SlowRate: 1})
		require.NoError(t, err)
		foreign := LayerFunc(func(next http.RoundTripper) http.RoundTripper {
			return RoundTripFunc(func(req *http.Request) (*http.Response, error) {
				defer time.Sleep(10 * time.Second)
				return next.RoundTrip(req)
			})
		})
		rt := Chain(b, foreign, newTime(t, TimeoutConfig{Cooperative: true}).Attempt()).Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			time.Sleep(time.Second)
			return textAnswer(http.StatusOK, nil), nil
		}))
		_, err = rt.RoundTrip(readOf(t.Context(), t, callURL))
		require.NoError(t, err)
		require.Equal(t, BreakerOpen, b.State(), "the call took eleven seconds")
	})
}
