package resilience

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

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

// An operation for which there is no room for a gate waits as it was told, for itself.
func TestRetry_WithoutAGateRetryAfterIsObeyed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRe(t, RetryConfig{})
		for i := range maxGates {
			r.gates.closeFor(fmt.Sprint("operation ", i), time.Minute, time.Now(), 0)
		}
		began := time.Now()
		var starts []time.Duration
		rt := r.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			starts = append(starts, time.Since(began))
			return reply(429, "", "Retry-After", "5"), nil
		}))
		_, err := fetch(WithCall(t.Context(), Call{Operation: "one too many"}), t, rt)
		require.NoError(t, err)
		require.Equal(t, []time.Duration{0, 5 * time.Second, 10 * time.Second}, starts)
	})
}

// An answer that is too large is so the next time, too.
func TestRetry_ATooLargeAnswerIsNotAskedForAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Timeout: TimeoutConfig{MaxResponseBytes: 4}})
		sent := 0
		_, err := fetch(t.Context(), t, s.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			sent++
			return reply(200, "much too large"), nil
		})))
		require.ErrorIs(t, err, ErrTooLarge)
		require.Equal(t, 1, sent)
		closeStack(t, s)
	})
}

func TestRetry_CountsWhatItDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRe(t, RetryConfig{Ratio: -1})
		rt, _ := script(status(503), status(429, "Retry-After", "3"), status(200))
		began := time.Now()
		resp, err := fetch(t.Context(), t, r.Wrap(rt))
		require.NoError(t, err)
		require.Equal(t, 200, resp.StatusCode)
		require.LessOrEqual(t, time.Since(began), 3*time.Second+500*time.Millisecond, "waited for once, at the gate")
		st := r.Stats()
		require.Equal(t, []uint64{1, 3, 2, 1, 0}, []uint64{st.Calls, st.Attempts, st.Retries, st.Throttled, st.GaveUp})
		require.EqualValues(t, -1, st.BudgetLeft)

		rt, _ = script(status(503, "Retry-After", "30"))
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		resp, err = fetch(ctx, t, newRe(t, RetryConfig{}).Wrap(rt))
		require.NoError(t, err)
		require.Equal(t, 503, resp.StatusCode)

		r = newRe(t, RetryConfig{})
		rt, _ = script(status(503, "Retry-After", "30"))
		_, _ = fetch(ctx, t, r.Wrap(rt))
		require.EqualValues(t, 1, r.Stats().GaveUp)
	})
}

// A 429 that says nothing of time is waited for as any failure is.
func TestRetry_A429WithoutATimeBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		for range 20 {
			rt, _ := script(status(429), status(200))
			_, err := fetch(t.Context(), t, newRe(t, RetryConfig{}).Wrap(rt))
			require.NoError(t, err)
		}
		require.Greater(t, time.Since(began), time.Second, "evenly between 0 and half a second, twenty times")
	})
}

func TestRetry_ConfigNamesTheseFaults(t *testing.T) {
	for _, c := range []RetryConfig{{Base: 10 * time.Second, Cap: time.Second}} {
		_, err := NewRetry(c)
		require.ErrorContains(t, err, "Retry.Base")
	}
	for _, ratio := range []float64{-0.5, 1.01, math.NaN(), math.Inf(1)} {
		_, err := NewRetry(RetryConfig{Ratio: ratio})
		require.ErrorContains(t, err, "Retry.Ratio", ratio)
	}
}

func newRe(t testing.TB, cfg RetryConfig) *Retry {
	t.Helper()
	r, err := NewRetry(cfg)
	require.NoError(t, err)
	return r
}

// script answers one after the other, the last for ever.
func script(answers ...func() (*http.Response, error)) (RoundTripFunc, *int) {
	n := new(int)
	return func(req *http.Request) (*http.Response, error) {
		if req.Body != nil {
			_, _ = io.Copy(io.Discard, req.Body)
			_ = req.Body.Close()
		}
		a := answers[min(*n, len(answers)-1)]
		*n++
		return a()
	}, n
}

func status(code int, headers ...string) func() (*http.Response, error) {
	return func() (*http.Response, error) { return reply(code, http.StatusText(code), headers...), nil }
}

func failing2(err error) func() (*http.Response, error) {
	return func() (*http.Response, error) { return nil, err }
}

func TestX05_WhatIsRepeated(t *testing.T) {
	reset := errors.New("connection reset by peer")
	for name, c := range map[string]struct {
		effect Effect
		first  func() (*http.Response, error)
		sends  int
	}{
		"read reset":            {EffectRead, failing2(reset), 2},
		"read 503":              {EffectRead, status(503), 2},
		"read 429":              {EffectRead, status(429), 2},
		"read 408":              {EffectRead, status(408), 2},
		"read 409":              {EffectRead, status(409), 1},
		"read 404":              {EffectRead, status(404), 1},
		"read 501":              {EffectRead, status(501), 1},
		"read should-retry":     {EffectRead, status(404, "X-Should-Retry", "true"), 2},
		"read should-not-retry": {EffectRead, status(503, "X-Should-Retry", "false"), 1},
		"idempotent reset":      {EffectIdempotent, failing2(reset), 2},
		"once reset":            {EffectOnce, failing2(reset), 1},
		"once 503":              {EffectOnce, status(503), 1},
		"once 408":              {EffectOnce, status(408), 1},
		"once should-retry":     {EffectOnce, status(500, "X-Should-Retry", "true"), 1},
		"once 429":              {EffectOnce, status(429), 2},
		"once not sent":         {EffectOnce, failing2(MarkNotSent(reset)), 2},
		"own refusal":           {EffectRead, failing2(&Error{Err: ErrOpen, verdict: refused}), 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rt, n := script(c.first, status(200))
				_, _ = dial(WithCall(t.Context(), Call{Effect: c.effect}), t, newRe(t, RetryConfig{}).Wrap(rt), "", dialBody)
				require.Equal(t, c.sends, *n)
			})
		})
	}
}

// I18: a 409 "in progress" is retried for idempotent writes.
func TestI18_ConflictIsRetriedForIdempotentWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt, n := script(status(409), status(200))
		resp, err := dial(WithCall(t.Context(), Call{Effect: EffectIdempotent}), t, newRe(t, RetryConfig{}).Wrap(rt), "", dialBody)
		require.NoError(t, err)
		require.Equal(t, 200, resp.StatusCode)
		require.Equal(t, 2, *n)
	})
}

func TestRetry_TheLastAnswerIsTheCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt, n := script(status(503), status(503), status(502))
		resp, err := fetch(t.Context(), t, newRe(t, RetryConfig{}).Wrap(rt))
		require.NoError(t, err)
		require.Equal(t, 502, resp.StatusCode)
		require.Equal(t, http.StatusText(502), bodyText(t, resp))
		require.Equal(t, 3, *n)
	})
}

func TestRetry_TheBodyIsSentAgainWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var bodies []string
		rt := newRe(t, RetryConfig{}).Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			b, _ := io.ReadAll(req.Body)
			bodies = append(bodies, string(b))
			return reply(503, ""), nil
		}))
		_, _ = dial(WithCall(t.Context(), Call{Effect: EffectIdempotent}), t, rt, "", dialBody)
		require.Equal(t, []string{dialBody, dialBody, dialBody}, bodies)
	})
}

func TestRetry_ABodyTooLargeToKeepIsSentOnce(t *testing.T) {
	l := newTime(t, TimeoutConfig{MaxRequestBytes: 4})
	rt, n := script(status(503))
	resp, err := dial(WithCall(t.Context(), Call{Effect: EffectIdempotent}), t, Chain(l.Budget(), newRe(t, RetryConfig{})).Wrap(rt), "", dialBody)
	require.NoError(t, err)
	require.Equal(t, 503, resp.StatusCode)
	require.Equal(t, 1, *n)
}

func TestRetry_RetryAfterInAllForms(t *testing.T) {
	for name, c := range map[string]struct {
		headers []string
		want    time.Duration
	}{
		"seconds":  {[]string{"Retry-After", "7"}, 7 * time.Second},
		"fraction": {[]string{"Retry-After", "1.5"}, 1500 * time.Millisecond},
		"ms":       {[]string{"Retry-After-Ms", "250", "Retry-After", "9"}, 250 * time.Millisecond},
		"capped":   {[]string{"Retry-After", "3600"}, 60 * time.Second},
		"huge":     {[]string{"Retry-After", "1e300"}, 60 * time.Second},
		"past":     {[]string{"Retry-After", "Sat, 02 Jan 1999 15:04:05 GMT"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rt, _ := script(status(503, c.headers...), status(200))
				start := time.Now()
				_, err := fetch(t.Context(), t, newRe(t, RetryConfig{}).Wrap(rt))
				require.NoError(t, err)
				require.Equal(t, c.want, time.Since(start))
			})
		})
	}
	t.Run("date", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			at := time.Now().Add(12 * time.Second).UTC().Format(http.TimeFormat)
			rt, _ := script(status(503, "Retry-After", at), status(200))
			start := time.Now()
			_, err := fetch(t.Context(), t, newRe(t, RetryConfig{}).Wrap(rt))
			require.NoError(t, err)
			require.Equal(t, 12*time.Second, time.Since(start))
		})
	})
}

func TestRetry_NeverSleepsPastTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt, n := script(status(503, "Retry-After", "5"))
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		start := time.Now()
		resp, err := fetch(ctx, t, newRe(t, RetryConfig{}).Wrap(rt))
		require.NoError(t, err)
		require.Equal(t, 503, resp.StatusCode)
		require.Zero(t, time.Since(start))
		require.Equal(t, 1, *n)
	})
}

func TestRetry_CallerWhoBacksOffLeavesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt, _ := script(failing2(io.EOF))
		cause := errors.New("gone")
		ctx, cancel := context.WithCancelCause(t.Context())
		r := newRe(t, RetryConfig{Base: time.Hour, Cap: time.Hour})
		time.AfterFunc(time.Millisecond, func() { cancel(cause) })
		_, err := fetch(ctx, t, r.Wrap(rt))
		require.ErrorIs(t, err, cause)
		require.False(t, NotSent(err), "the first attempt may have arrived")
	})
}

func TestRetry_RefusalAfterAnAttemptThatMayHaveArrivedProvesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt, _ := script(failing2(io.EOF), failing2(&Error{Layer: "breaker", Err: ErrOpen, verdict: refused}))
		_, err := fetch(t.Context(), t, newRe(t, RetryConfig{}).Wrap(rt))
		require.ErrorIs(t, err, ErrOpen)
		require.False(t, NotSent(err))
		rt, _ = script(failing2(MarkNotSent(io.EOF)), failing2(&Error{Layer: "breaker", Err: ErrOpen, verdict: refused}))
		_, err = fetch(t.Context(), t, newRe(t, RetryConfig{}).Wrap(rt))
		require.ErrorIs(t, err, ErrOpen)
		require.True(t, NotSent(err))
	})
}

func TestRetry_BudgetOfRetriesIsVisible(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRe(t, RetryConfig{Ratio: 0.1, RatioPerSecond: -1, Base: time.Nanosecond})
		rt, n := script(failing2(io.EOF))
		var last error
		for range 100 {
			_, last = fetch(t.Context(), t, r.Wrap(rt))
		}
		require.ErrorIs(t, last, ErrRetryBudget)
		require.ErrorIs(t, last, io.EOF)
		require.LessOrEqual(t, *n, 100+11)
		require.Positive(t, r.Stats().RefusedByBudget)
	})
}

func TestRetry_ThrottledOperationSlowsAllCallersDownTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRe(t, RetryConfig{Max: 5})
		start := time.Now()
		var mu sync.Mutex
		var starts []time.Duration
		rt := r.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			mu.Lock()
			defer mu.Unlock()
			at := time.Since(start)
			starts = append(starts, at)
			if at < 2*time.Second {
				return reply(429, "", "Retry-After", "2"), nil
			}
			return reply(200, ""), nil
		}))
		_, err := fetch(WithCall(t.Context(), Call{Operation: "list"}), t, r.Wrap(rt))
		require.NoError(t, err)
		require.Equal(t, 2*time.Second, time.Since(start))
		start = time.Now().Add(-3 * time.Second) // well again, but the gate opens gradually
		var wg sync.WaitGroup
		starts = nil
		for range 5 {
			wg.Go(func() { _, _ = fetch(WithCall(t.Context(), Call{Operation: "list"}), t, rt) })
		}
		wg.Wait()
		require.Len(t, starts, 5)
		for i := 1; i < 5; i++ {
			require.GreaterOrEqual(t, starts[i], starts[i-1])
		}
		require.Positive(t, starts[4]-starts[0], "they start one after the other")
		for range 10 {
			_, _ = fetch(WithCall(t.Context(), Call{Operation: "list"}), t, rt)
		}
		require.Zero(t, r.Stats().Gates, "the gate is gone when all is well")
		before := time.Now()
		_, err = fetch(WithCall(t.Context(), Call{Operation: "other"}), t, rt)
		require.NoError(t, err)
		require.Zero(t, time.Since(before), "other operations are not slowed down")
	})
}

func TestRetry_GateThatOpensTooLateRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRe(t, RetryConfig{Max: -1})
		rt, _ := script(status(429, "Retry-After", "30"), status(200))
		_, err := fetch(t.Context(), t, r.Wrap(rt))
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = fetch(ctx, t, r.Wrap(rt))
		require.ErrorIs(t, err, ErrThrottled)
		require.True(t, NotSent(err))
		var e *Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, 30*time.Second, e.RetryAfter)
	})
}

func TestRetry_ConfigNamesEveryFault(t *testing.T) {
	_, err := NewRetry(RetryConfig{Max: -2, Base: -1, Cap: -1, MaxRetryAfter: -5, Ratio: 2, RatioPerSecond: -3})
	for _, field := range []string{"Max", "Base", "Cap", "MaxRetryAfter", "Ratio", "RatioPerSecond"} {
		require.ErrorContains(t, err, "Retry."+field)
	}
}

func TestRetry_ClosingSendsThoseWhoBackOffHome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		closing := make(chan struct{})
		r := newRe(t, RetryConfig{Base: time.Hour, Cap: time.Hour})
		r.closing = closing
		rt, _ := script(failing2(MarkNotSent(io.EOF)))
		time.AfterFunc(time.Millisecond, func() { close(closing) })
		_, err := dial(t.Context(), t, r.Wrap(rt), "", dialBody)
		require.ErrorIs(t, err, ErrClosed)
		require.True(t, NotSent(err))
	})
}

func TestI17_OneKeyForAllAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIdem(t, IdempotencyConfig{Reconcile: &finder{}})
		var markers []string
		rt := Chain(i.Claim(), newRe(t, RetryConfig{}), i.Intent()).Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			markers = append(markers, req.Header.Get("X-Marker"))
			if len(markers) < 3 {
				return nil, MarkNotSent(io.EOF)
			}
			return reply(201, "{}"), nil
		}))
		_, err := dial(t.Context(), t, rt, "", dialBody)
		require.NoError(t, err)
		require.Len(t, markers, 3)
		require.Equal(t, markers[0], markers[2])
		require.NotEmpty(t, strings.Trim(markers[0], "/"))
		first := markers[0]
		_, err = dial(t.Context(), t, rt, "", dialBody)
		require.NoError(t, err)
		require.NotEqual(t, first, markers[3], "a new call has a new key")
	})
}

// What goes in and out of the budget is what a plain counter says, also after it was full.
func TestRetry_TheBudgetIsABucket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 1)) //nolint:gosec // repeatable on purpose
		for range 50 {
			perSecond := float64(rng.IntN(3))
			var b retryBudget
			b.start(0.25, perSecond)
			tokens, filled, capacity := min(max(perSecond, 1), 10), time.Now(), max(10*perSecond, 10)
			for range 400 {
				switch n := rng.IntN(10); {
				case n == 0:
					time.Sleep(time.Duration(rng.IntN(3)) * 250 * time.Millisecond)
				case n < 3:
					tokens = min(tokens+perSecond*time.Since(filled).Seconds(), capacity)
					filled = time.Now()
					require.Equal(t, tokens >= 1, b.withdraw())
					if tokens >= 1 {
						tokens--
					}
				default:
					tokens = min(tokens+0.25, capacity)
					b.deposit()
				}
				require.InDelta(t, min(tokens+perSecond*time.Since(filled).Seconds(), capacity), b.left(), 1e-9)
			}
			for range 50 {
				b.deposit()
			}
			require.LessOrEqual(t, b.left(), capacity)
		}
	})
}

func TestRetry_NoRetryThatLeavesTooLittleTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for left, sends := range map[time.Duration]int{useful - 1: 1, useful: 2} {
			rt, n := script(status(503, "Retry-After", "1"), status(200))
			ctx, cancel := context.WithTimeout(t.Context(), time.Second+left)
			_, err := fetch(ctx, t, newRe(t, RetryConfig{}).Wrap(rt))
			cancel()
			require.NoError(t, err)
			require.Equal(t, sends, *n, "%v left", left)
		}
		require.Equal(t, 10*time.Millisecond, useful)
	})
}

func TestRetry_BackoffIsDrawnAndDoubles(t *testing.T) {
	r := newRe(t, RetryConfig{Base: time.Second, Cap: 8 * time.Second})
	for n, most := range map[int]time.Duration{1: time.Second, 2: 2 * time.Second, 3: 4 * time.Second, 4: 8 * time.Second, 5: 8 * time.Second, 99: 8 * time.Second} {
		low, high := most, time.Duration(0)
		for range 1000 {
			d := r.backoff(n)
			low, high = min(low, d), max(high, d)
		}
		require.LessOrEqual(t, high, most, n)
		require.Greater(t, high, most*9/10, n)
		require.Less(t, low, most/10, n)
	}
}

func TestRetry_Defaults(t *testing.T) {
	require.Equal(t, RetryConfig{
		Max: 2, Base: 500 * time.Millisecond, Cap: 8 * time.Second, MaxRetryAfter: time.Minute, Ratio: 0.2, RatioPerSecond: 10,
	}, RetryConfig{}.withDefaults())
}

func TestRetry_Events(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var kinds []EventKind
		r := newRe(t, RetryConfig{Ratio: 0.01, RatioPerSecond: -1, OnEvent: func(e Event) { kinds = append(kinds, e.Kind) }})
		rt, _ := script(status(503), status(429), status(503))
		_, _ = fetch(t.Context(), t, r.Wrap(rt)) // one retry, then a 429, and no budget for more
		synctest.Wait()
		require.Equal(t, []EventKind{EventRetry, EventThrottled, EventRetryRefused}, kinds)
	})
}
