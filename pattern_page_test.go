package resilience

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// The pattern page that this library grew from, point by point, through the whole stack with its defaults.

func TestPatternPage_CircuitBreakerWithItsEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var kinds []EventKind
		s := newStack(t, Config{Retry: RetryConfig{Off: true}, Fallback: FallbackConfig{Off: true}, Breaker: BreakerConfig{OnEvent: func(e Event) {
			mu.Lock()
			defer mu.Unlock()
			kinds = append(kinds, e.Kind)
		}}})
		down := true
		rt := s.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			if down {
				return reply(503, ""), nil
			}
			return reply(200, ""), nil
		}))
		for n := range 10 { // 50 % of at least 10
			require.Equal(t, BreakerClosed, s.Breaker.State(), n)
			_, err := fetch(t.Context(), t, rt)
			require.NoError(t, err)
		}
		require.Equal(t, "open", s.Breaker.State().String(), "the quick circuit check")
		_, err := fetch(t.Context(), t, rt)
		require.ErrorIs(t, err, ErrOpen)
		down = false
		time.Sleep(30*time.Second - 1)
		_, err = fetch(t.Context(), t, rt)
		require.ErrorIs(t, err, ErrOpen)
		time.Sleep(1)
		_, err = fetch(t.Context(), t, rt)
		require.NoError(t, err)
		require.Equal(t, "closed", s.Breaker.State().String())
		synctest.Wait()
		mu.Lock()
		require.Equal(t, []EventKind{EventCircuitOpen, EventCircuitHalfOpen, EventCircuitClose}, kinds)
		mu.Unlock()
		closeStack(t, s)
	})
}

func TestPatternPage_IdempotencyKeysDerivedOrRandomKeptFor24Hours(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, err := DeriveKey("create-phone-call", map[string]any{"to": "a", "from": "b"}, "4711")
		require.NoError(t, err)
		same, err := DeriveKey("create-phone-call", map[string]any{"from": "b", "to": "a"}, "4711")
		require.NoError(t, err)
		require.Equal(t, one, same)
		s := newStack(t, Config{})
		p := &phone{}
		rt := s.Wrap(p)
		for range 3 {
			_, err = dial(t.Context(), t, rt, one, dialBody)
			require.NoError(t, err)
			time.Sleep(7 * time.Hour)
		}
		require.Equal(t, 1, p.rang())
		time.Sleep(3 * time.Hour)
		_, err = dial(t.Context(), t, rt, one, dialBody)
		require.NoError(t, err)
		require.Equal(t, 2, p.rang(), "after 24 h it is a new one")
		for range 2 { // a random key for each call that names none
			_, err = dial(t.Context(), t, rt, "", dialBody)
			require.NoError(t, err)
		}
		require.Equal(t, 4, p.rang())
		closeStack(t, s)
	})
}

func TestPatternPage_ThreeQueues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Fallback: FallbackConfig{Off: true}})
		st := s.Bulkhead.Stats()
		require.Equal(t, []int{10, 5, 2, 17}, []int{st.Critical.Guaranteed, st.Normal.Guaranteed, st.Bulk.Guaranteed, st.Total})
		rt := s.Wrap(slow(time.Second))
		var wg sync.WaitGroup
		for _, p := range []Priority{PriorityBulk, PriorityNormal, PriorityCritical} {
			for range 20 {
				wg.Go(func() { _, _ = fetch(WithPriority(t.Context(), p), t, rt) })
			}
			synctest.Wait() // the less urgent came first, and have taken every slot
		}
		time.Sleep(1500 * time.Millisecond) // the first slots have turned over
		st = s.Bulkhead.Stats()
		require.Equal(t, 17, st.InUse)
		require.GreaterOrEqual(t, st.Critical.InUse, 10)
		wg.Wait()
		closeStack(t, s)
	})
}

func TestPatternPage_FourTimeouts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Retry: RetryConfig{Off: true}, Fallback: FallbackConfig{Off: true}})
		rt := s.Wrap(slow(time.Hour))
		for class, want := range map[Class]time.Duration{ClassRequest: 30 * time.Second, ClassUpload: 120 * time.Second, ClassLongPoll: 300 * time.Second} {
			start := time.Now()
			_, err := fetch(WithCall(t.Context(), Call{Class: class}), t, rt)
			require.ErrorIs(t, err, ErrTimeout)
			require.Equal(t, want, time.Since(start))
		}
		start := time.Now()
		_, err := fetch(t.Context(), t, s.Wrap(traced(time.Hour, 0)))
		var e *Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, "connect", e.Limit)
		require.Equal(t, 5*time.Second, time.Since(start))
		closeStack(t, s)
	})
}

func TestPatternPage_FallbackFreshStaleVeryStaleMarked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Retry: RetryConfig{Off: true}})
		down := false
		rt := s.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			if down {
				return nil, io.EOF
			}
			return reply(200, "good"), nil
		}))
		resp, err := fetch(t.Context(), t, rt)
		require.NoError(t, err)
		_, _, fallback := Served(resp)
		require.False(t, fallback)
		down = true
		for _, c := range []struct {
			wait time.Duration
			want Staleness
		}{{59 * time.Second, Fresh}, {time.Second, Stale}, {9 * time.Minute, VeryStale}} {
			time.Sleep(c.wait)
			resp, err := fetch(t.Context(), t, rt)
			require.NoError(t, err)
			_, staleness, fallback := Served(resp)
			require.True(t, fallback)
			require.Equal(t, c.want, staleness)
			require.Equal(t, "good", bodyText(t, resp))
		}
		time.Sleep(24 * time.Hour)
		_, err = fetch(t.Context(), t, rt)
		require.Error(t, err)
		closeStack(t, s)
	})
}

func TestPatternPage_DeadLettersGivenUpAfterFiveAttemptsWithAnAlert(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		alerts := make(chan Letter, 10)
		s := newStack(t, Config{
			Retry: RetryConfig{Off: true}, Breaker: BreakerConfig{Off: true}, DLQ: DLQConfig{OnParked: func(l Letter) { alerts <- l }},
		})
		down := errors.New("connection refused")
		rt, sends := script(failing2(MarkNotSent(down)))
		_, err := dial(t.Context(), t, s.Wrap(rt), "k", dialBody)
		require.ErrorIs(t, err, ErrParked)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		require.NoError(t, s.Run(ctx))
		require.Equal(t, 1+5, *sends)
		require.Len(t, alerts, 1)
		l := <-alerts
		require.Equal(t, 5, l.Attempts)
		require.Equal(t, "POST", l.Operation)
		require.Equal(t, dialBody, string(l.Body))
		require.NotEmpty(t, l.ID)
		require.NotEmpty(t, l.Cause)
		require.False(t, l.Last.IsZero())
		closeStack(t, s)
	})
}

func TestPatternPage_HealthHealthyDegradedUnhealthy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var api error
		s := newStack(t, Config{Health: HealthConfig{Probe: func(context.Context) error { return api }}})
		check := func() string {
			time.Sleep(11 * time.Second) // the probe's answer has grown old
			return s.Health().Check(t.Context()).Status.String()
		}
		require.Equal(t, "healthy", check())
		s.Breaker.ForceOpen()
		require.Equal(t, "degraded", check())
		s.Breaker.Reset()
		require.Equal(t, "healthy", check())
		add := func(n int) {
			for range n {
				require.NoError(t, s.DLQ.Add(Letter{Operation: "x", Next: time.Now().Add(time.Hour)}))
			}
		}
		add(100)
		require.Equal(t, "healthy", check())
		add(1)
		require.Equal(t, "degraded", check())
		api = io.EOF
		require.Equal(t, "unhealthy", check())
		closeStack(t, s)
	})
}
