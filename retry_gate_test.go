package resilience

import (
	"context"
	"io"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// R1: answers of calls that started before the gate closed open it.
func TestRetry_LateAnswersDoNotOpenTheGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRe(t, RetryConfig{Max: -1})
		var mu sync.Mutex
		n := 0
		rt := r.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			mu.Lock()
			n++
			i := n
			mu.Unlock()
			if i == 1 {
				time.Sleep(time.Second)
				return reply(429, "", "Retry-After", "30"), nil
			}
			time.Sleep(2 * time.Second)
			return reply(200, ""), nil
		}))
		ctx := WithCall(t.Context(), Call{Operation: "list"})
		var wg sync.WaitGroup
		for range 6 {
			wg.Go(func() { _, _ = fetch(ctx, t, rt) })
		}
		wg.Wait() // at 2 s: a 429 at 1 s that asked for 30 s, five answers 200 to what was sent before it
		start := time.Now()
		_, err := fetch(ctx, t, rt)
		require.NoError(t, err)
		require.GreaterOrEqual(t, time.Since(start), 29*time.Second, "the server said 30 s")
	})
}

// R2: those who wait at the gate go on although it has closed for longer meanwhile.
func TestRetry_AGateThatClosesAgainHoldsThoseWhoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRe(t, RetryConfig{Max: 5})
		start := time.Now()
		var mu sync.Mutex
		var at []time.Duration
		rt := r.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			mu.Lock()
			defer mu.Unlock()
			now := time.Since(start)
			at = append(at, now)
			switch {
			case now < time.Second:
				return reply(429, "", "Retry-After", "1"), nil
			case now < 30*time.Second:
				return reply(429, "", "Retry-After", "30"), nil
			}
			return reply(200, ""), nil
		}))
		ctx := WithCall(t.Context(), Call{Operation: "list"})
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() { _, _ = fetch(ctx, t, rt) })
		}
		wg.Wait()
		early := 0
		for _, a := range at {
			if a > time.Second && a < 31*time.Second {
				early++
			}
		}
		require.Zero(t, early, "at 1 s the server asked for 30 s: %v", at)
	})
}

// R3: one burst of refusals counts as many.
func TestRetry_OneBurstOf429IsOneSignal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRe(t, RetryConfig{Ratio: -1})
		start := time.Now()
		rt := r.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			if time.Since(start) < time.Second {
				time.Sleep(100 * time.Millisecond)
				return reply(429, "", "Retry-After", "1"), nil
			}
			return reply(200, ""), nil
		}))
		ctx := WithCall(t.Context(), Call{Operation: "list"})
		var wg sync.WaitGroup
		for range 17 {
			wg.Go(func() { _, _ = fetch(ctx, t, rt) })
		}
		wg.Wait()
		require.Less(t, time.Since(start), 10*time.Second)
	})
}

// R4: those who hang up at the gate leave their turns behind.
func TestRetry_WhoHangsUpAtTheGateGivesTheTurnBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRe(t, RetryConfig{Max: -1})
		rt, _ := script(status(429, "Retry-After", "1"), status(200))
		road := r.Wrap(rt)
		ctx := WithCall(t.Context(), Call{Operation: "list"})
		_, err := fetch(ctx, t, road)
		require.NoError(t, err)
		leaving, cancel := context.WithCancel(ctx)
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() { _, _ = fetch(leaving, t, road) })
		}
		synctest.Wait()
		cancel()
		wg.Wait()
		start := time.Now()
		_, err = fetch(ctx, t, road)
		require.NoError(t, err)
		require.LessOrEqual(t, time.Since(start), 2*time.Second, "nobody else waits")
	})
}

// R5: a retry that the gate prevents is neither counted nor paid for.
func TestRetry_ARetryThatTheGatePreventsIsNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRe(t, RetryConfig{})
		rt, n := script(status(429, "Retry-After", "30"))
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		left := r.Stats().BudgetLeft
		resp, err := fetch(ctx, t, r.Wrap(rt))
		require.NoError(t, err)
		require.Equal(t, 429, resp.StatusCode)
		require.Equal(t, 1, *n)
		s := r.Stats()
		require.GreaterOrEqual(t, s.BudgetLeft, left)
		require.Zero(t, s.Retries)
	})
}

// R6: a streamed 429 that is given back after all has been closed.
func TestRetry_AStreamed429IsReadable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRe(t, RetryConfig{})
		pr, pw := io.Pipe()
		go func() { _, _ = pw.Write([]byte("data: slow down")); _ = pw.Close() }()
		rt := RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			resp := reply(429, "", "Retry-After", "30", "Content-Type", "text/event-stream")
			resp.Body = pr
			return resp, nil
		})
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		resp, err := fetch(ctx, t, r.Wrap(rt))
		require.NoError(t, err)
		b, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.Equal(t, "data: slow down", string(b))
	})
}

// R7: gates of operations that never come again fill the list.
func TestRetry_OldGatesMakeRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRe(t, RetryConfig{Max: -1})
		rt, _ := script(status(429, "Retry-After", "1"))
		road := r.Wrap(rt)
		for i := range maxGates {
			_, _ = fetch(WithCall(t.Context(), Call{Operation: strconv.Itoa(i)}), t, road)
		}
		time.Sleep(24 * time.Hour)
		ctx := WithCall(t.Context(), Call{Operation: "list"})
		_, _ = fetch(ctx, t, road)
		start := time.Now()
		_, _ = fetch(ctx, t, road)
		require.GreaterOrEqual(t, time.Since(start), time.Second)
	})
}

func TestRetry_TheGateWidensWithEachRefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRe(t, RetryConfig{Max: -1})
		var n atomic.Int32
		road := r.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			if n.Add(1) <= 3 {
				return reply(429, "", "Retry-After", "1"), nil
			}
			return reply(200, ""), nil
		}))
		for range 3 {
			_, _ = fetch(t.Context(), t, road)
		}
		start := time.Now()
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() { _, _ = fetch(t.Context(), t, road) })
		}
		wg.Wait()
		require.Equal(t, time.Second+4*minGap, time.Since(start))
	})
}

func TestRetry_TheAnswerThatClosedTheGateIsTheCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt, n := script(status(429, "Retry-After", "30"))
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		resp, err := fetch(ctx, t, newRe(t, RetryConfig{}).Wrap(rt))
		require.NoError(t, err)
		require.Equal(t, 429, resp.StatusCode)
		require.Equal(t, 1, *n)
	})
}
