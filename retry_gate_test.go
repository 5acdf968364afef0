package resilience

import (
	"context"
	"fmt"
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

func TestRetry_AGateOpensAgainUnderLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Fallback: FallbackConfig{Off: true}})
		var n atomic.Int64
		rt := s.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			if n.Add(1) == 1 {
				return reply(429, "", "Retry-After", "30"), nil
			}
			return reply(200, "{}"), nil
		}))
		ok := 0
		for i := range 30000 { // 5 minutes at 100/s
			req, _ := http.NewRequestWithContext(WithBudget(t.Context(), 2*time.Second), http.MethodGet, "http://api.test/x", nil)
			if i > 0 && i%10 == 0 {
				synctest.Wait()
			}
			resp, err := rt.RoundTrip(req)
			if err == nil && resp.StatusCode == 200 {
				ok++
			}
			time.Sleep(10 * time.Millisecond)
		}
		require.Greater(t, ok, 10000)
		closeStack(t, s)
	})
}

// Answers of calls that started before the gate closed open it.
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

// Those who wait at the gate go on although it has closed for longer meanwhile.
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

// One burst of refusals counts as many.
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

// Those who hang up at the gate leave their turns behind.
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

// A retry that the gate prevents is neither counted nor paid for.
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

// A streamed 429 that is given back after all has been closed.
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

// Gates of operations that never come again fill the list.
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

// A gate that is open for everybody costs nobody anything: the list is empty again, and so is the flag that says so.
func TestRetry_AGateGoesAwayWithGoodAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRe(t, RetryConfig{Max: -1})
		codes := []int{429}
		rt := r.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			if len(codes) > 0 {
				code := codes[0]
				codes = codes[1:]
				return reply(code, ""), nil
			}
			return reply(200, ""), nil
		}))
		_, _ = fetch(t.Context(), t, rt)
		require.Equal(t, 1, r.Stats().Gates)
		require.True(t, r.gates.open.Load())
		for range 10 {
			_, err := fetch(t.Context(), t, rt)
			require.NoError(t, err)
		}
		require.Zero(t, r.Stats().Gates)
		require.False(t, r.gates.open.Load())
	})
}

// The last one who hung up at the gate leaves no reservation behind.
func TestRetry_TheGateForgetsThoseWhoHungUp(t *testing.T) {
	now := time.Now()
	g := gates{list: map[string]*gate{}}
	g.closeFor("op", time.Second, now, 0)
	for n := range 4 {
		require.Equal(t, time.Second+time.Duration(n)*minGap, g.reserve("op", now, time.Hour), n)
	}
	require.False(t, g.leave("op", now.Add(time.Second), true), "one passes")
	left, ok := g.wait("op", now.Add(time.Second))
	require.True(t, ok)
	require.Equal(t, 4*minGap, left, "behind those who wait")
	for range 3 {
		require.False(t, g.leave("op", now.Add(time.Second+minGap/2), false))
	}
	require.Equal(t, minGap/2, g.reserve("op", now.Add(time.Second+minGap/2), time.Hour), "the gap after the one who passed, and nothing for the others")
	require.Zero(t, g.reserve("op", now.Add(time.Minute), time.Hour))
	require.Equal(t, minGap, g.reserve("op", now.Add(time.Minute), time.Hour))
	g.closeFor("op", time.Hour, now.Add(time.Minute), 0)
	require.True(t, g.leave("op", now.Add(2*time.Minute), true), "closed for longer meanwhile")
}

// Only those wait who have to: who passes at once is not counted, and one who hangs up is one.
func TestRetry_TheGateCountsThoseWhoWait(t *testing.T) {
	now := time.Unix(0, 0)
	g := gates{list: map[string]*gate{}}
	g.closeFor("op", 0, now, 0)
	require.Zero(t, g.reserve("op", now, time.Hour), "passes")
	require.Equal(t, minGap, g.reserve("op", now, time.Hour))
	require.Equal(t, 2*minGap, g.reserve("op", now, time.Hour))
	require.False(t, g.leave("op", now, false), "hangs up")
	require.Equal(t, 3*minGap, g.reserve("op", now, time.Hour), "one waits still, whose turn is not given away")
	require.False(t, g.leave("op", now, false))
	require.False(t, g.leave("op", now, false))
	require.Equal(t, minGap, g.reserve("op", now, time.Hour), "nobody does: what they had taken is free")
	require.False(t, g.leave("unknown", now, true))
}

func TestRetry_AProgramThatMakesOperationsUp(t *testing.T) {
	now := time.Now()
	g := gates{list: map[string]*gate{}}
	for n := range maxGates + 10 {
		g.closeFor(fmt.Sprint(n), time.Second, now, 0)
	}
	require.Len(t, g.list, maxGates)
	require.Equal(t, time.Second, g.reserve("0", now, time.Hour))
	g.closeFor("new", time.Second, now.Add(maxGap), 0)
	require.Len(t, g.list, maxGates, "not yet")
	g.closeFor("new", time.Second, now.Add(time.Second+2*maxGap), 0)
	require.Len(t, g.list, 2, "the one who waits, and the new one")
}

// Who is told at the gate that it has closed for too long gets the answer that sent them there.
func TestRetry_TheAnswerIsTheCallersWhenTheGateClosesForLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		n := 0
		rt := newRe(t, RetryConfig{}).Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			mu.Lock()
			n++
			first := n == 1
			mu.Unlock()
			if first {
				time.Sleep(time.Millisecond) // both have passed
				return reply(429, "slower", "Retry-After", "1"), nil
			}
			time.Sleep(500 * time.Millisecond)
			return reply(429, "", "Retry-After", "50"), nil
		}))
		ctx, cancel := context.WithTimeout(WithCall(t.Context(), Call{Operation: "op"}), 5*time.Second)
		defer cancel()
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				resp, err := fetch(ctx, t, rt)
				require.NoError(t, err)
				require.Equal(t, 429, resp.StatusCode)
			})
		}
		wg.Wait()
		require.Equal(t, 2, n)
	})
}

// Of two answers that ask to wait the longer wait holds, whichever comes first.
func TestRetry_AShorterWaitDoesNotOpenTheGateEarlier(t *testing.T) {
	now := time.Now()
	g := gates{list: map[string]*gate{}}
	g.closeFor("op", time.Minute, now, 0)
	g.closeFor("op", time.Second, now, 1)
	left, ok := g.wait("op", now)
	require.True(t, ok)
	require.Equal(t, time.Minute, left)
}

// A stack that closes renews no answer: nobody would wait for it.
func TestFallback_AStackThatClosesRenewsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _, rt := newShop(t, FallbackConfig{Refresh: true})
		_, err := rt.RoundTrip(readOf(t.Context(), t, callURL))
		require.NoError(t, err)
		time.Sleep(5 * time.Minute)
		closing := make(chan struct{})
		close(closing)
		f.closing = closing
		resp, err := rt.RoundTrip(readOf(t.Context(), t, callURL))
		require.NoError(t, err)
		_, s, served := Served(resp)
		require.True(t, served)
		require.Equal(t, Stale, s)
		synctest.Wait()
		require.Zero(t, f.Stats().Refreshes)
	})
}
