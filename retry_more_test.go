package resilience

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

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
