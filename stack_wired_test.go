package resilience

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Config.OnEvent hears every layer.
func TestStack_OneListenerHearsAllLayers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		heard := map[string]bool{}
		s := newStack(t, Config{
			Bulkhead: BulkheadConfig{Total: 1, Queue: -1}, Timeout: TimeoutConfig{Request: time.Second, Total: 10 * time.Second},
			Health: HealthConfig{Probe: func(context.Context) error { return nil }},
			OnEvent: func(e Event) {
				mu.Lock()
				heard[e.Layer] = true
				mu.Unlock()
			},
		})
		rt := s.Wrap(slow(time.Hour))
		s.Breaker.Reset()
		s.Health().Check(t.Context())
		go func() { _, _ = fetch(t.Context(), t, rt) }()
		synctest.Wait()
		_, _ = dial(t.Context(), t, rt, "full", dialBody) // no slot
		time.Sleep(time.Minute)
		_, _ = fetch(t.Context(), t, rt)
		closeStack(t, s)
		for _, layer := range []string{"fallback", "idempotency", "dlq", "timeout", "retry", "bulkhead", "breaker", "health"} {
			require.True(t, heard[layer], layer)
		}
	})
}

// An open circuit pauses redriving: no letter is taken up, and no attempt spent.
func TestStack_AnOpenCircuitPausesRedriving(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &phone{before: func(*http.Request, int) (*http.Response, error) { return nil, MarkNotSent(io.EOF) }}
		var paused []Event
		s := newStack(t, Config{Retry: RetryConfig{Max: -1}, DLQ: DLQConfig{MaxAge: -1, OnEvent: func(e Event) {
			if e.Kind == EventRedrivePaused {
				paused = append(paused, e)
			}
		}}})
		rt := s.Wrap(p)
		_, err := dial(t.Context(), t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrParked)
		p.before = nil
		s.Breaker.ForceOpen()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- s.Run(ctx) }()
		time.Sleep(time.Minute)
		require.Zero(t, s.DLQ.Stats().Redriven)
		require.Zero(t, s.DLQ.List(LetterFilter{})[0].Redrives)
		require.Len(t, paused, 1)
		require.Equal(t, "open", paused[0].Cause)
		s.Breaker.Reset()
		time.Sleep(2 * time.Minute)
		require.Zero(t, s.DLQ.Len())
		cancel()
		require.NoError(t, <-ended)
		// And it can be started again.
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.NoError(t, s.Run(ctx))
		closeStack(t, s)
	})
}

// A redrive is a call of the stack like any other: Close knows of it.
func TestStack_ARedriveIsACallOfTheStack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Retry: RetryConfig{Max: -1}})
		during := Stats{}
		p := &phone{}
		p.before = func(*http.Request, int) (*http.Response, error) { return nil, MarkNotSent(io.EOF) }
		rt := s.Wrap(p)
		_, err := dial(t.Context(), t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrParked)
		p.before = func(req *http.Request, _ int) (*http.Response, error) {
			during = s.Stats()
			inner := req.Clone(req.Context())
			inner.Body = nil
			_, err := fetch(inner.Context(), t, RoundTripFunc(func(r *http.Request) (*http.Response, error) { return reply(200, ""), nil }))
			return nil, err
		}
		time.Sleep(time.Minute)
		require.Equal(t, RedriveDone, s.DLQ.Redrive(t.Context()).Status)
		require.Equal(t, 1, during.Calls)
		closeStack(t, s)
		require.Zero(t, s.Stats().Calls)
		require.Equal(t, RedriveClosed, s.DLQ.Redrive(t.Context()).Status, "the queue is closed with the stack")
	})
}

// TimeoutConfig.MaxRequestBytes counts in a stack, too: a larger body is sent once at most.
func TestStack_TheBoundOfRequestBodiesIsTheConfigs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for limit, sends := range map[int64]int{10: 1, 1000: 3} {
			s := newStack(t, Config{Timeout: TimeoutConfig{MaxRequestBytes: limit}, DLQ: DLQConfig{Off: true}})
			n := 0
			rt := s.Wrap(RoundTripFunc(func(r *http.Request) (*http.Response, error) {
				n++
				_, _ = io.Copy(io.Discard, r.Body)
				return nil, MarkNotSent(io.EOF)
			}))
			req, _ := http.NewRequestWithContext(t.Context(), "PUT", "http://h/", io.NopCloser(bytes.NewReader(make([]byte, 100))))
			_, err := rt.RoundTrip(req)
			require.Error(t, err)
			require.Equal(t, sends, n, limit)
			closeStack(t, s)
		}
	})
}

// Run sweeps the cache.
func TestStack_RunSweepsTheCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Fallback: FallbackConfig{Fresh: time.Second, Stale: 2 * time.Second, MaxAge: 3 * time.Second}})
		_, err := fetch(t.Context(), t, s.Wrap(slow(0)))
		require.NoError(t, err)
		require.Equal(t, 1, s.Fallback.Stats().Entries)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute+time.Second)
		defer cancel()
		require.NoError(t, s.Run(ctx))
		require.Zero(t, s.Fallback.Stats().Bytes)
		closeStack(t, s)
	})
}

// A write that only a redrive got through is a write as any other: what was read before it is not served any more.
func TestF17_AWriteThatIsRedrivenInvalidates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{
			Describe: func(*http.Request) Call { return Call{Resource: "agent/7"} },
			Fallback: FallbackConfig{ServeFresh: true, Fresh: time.Hour, Stale: 2 * time.Hour},
		})
		reads, fails := 0, 3
		rt := s.Wrap(RoundTripFunc(func(r *http.Request) (*http.Response, error) {
			switch {
			case r.Method == http.MethodGet:
				reads++
			case fails > 0:
				fails--
				return reply(503, ""), nil
			}
			return reply(200, "x"), nil
		}))
		req, err := http.NewRequestWithContext(WithIdempotencyKey(t.Context(), "k"), http.MethodPut, "https://api.example.com/a", nil)
		require.NoError(t, err)
		_, err = rt.RoundTrip(req)
		require.ErrorIs(t, err, ErrParked)
		for range 2 {
			_, err = fetch(t.Context(), t, rt)
			require.NoError(t, err)
		}
		require.Equal(t, 1, reads, "the second was served")
		time.Sleep(time.Minute)
		require.Equal(t, RedriveDone, s.DLQ.Redrive(t.Context()).Status)
		_, err = fetch(t.Context(), t, rt)
		require.NoError(t, err)
		require.Equal(t, 2, reads, "it has changed")
		closeStack(t, s)
	})
}
