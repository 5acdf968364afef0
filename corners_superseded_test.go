package resilience

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A letter that is superseded while its redrive waits for a slot puts the old state back.
func TestCorner_ALetterSupersededWhileItsRedriveWaitsForASlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down := true
		state := ""
		s := newStack(t, Config{Retry: RetryConfig{Off: true}, Bulkhead: BulkheadConfig{Critical: 1, Normal: -1, Bulk: -1, Total: 1}})
		rt := s.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			if down {
				return nil, MarkNotSent(io.EOF)
			}
			b, _ := io.ReadAll(req.Body)
			state = string(b)
			return reply(200, "{}"), nil
		}))
		put := func(key, body string, p Priority) error {
			ctx := WithCall(WithIdempotencyKey(t.Context(), key), Call{Resource: "agent/1", Priority: p})
			req, _ := http.NewRequestWithContext(ctx, http.MethodPut, "http://h/agent/1", strings.NewReader(body))
			_, err := rt.RoundTrip(req)
			return err
		}
		require.ErrorIs(t, put("1", "old", 0), ErrParked)
		down = false
		release, err := s.Bulkhead.Acquire(t.Context(), PriorityCritical)
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		time.Sleep(3 * time.Second)
		require.Equal(t, 1, s.DLQ.Stats().Leased)
		newer := make(chan error)
		go func() { newer <- put("2", "new", PriorityCritical) }()
		time.Sleep(time.Second)
		release()
		require.NoError(t, <-newer)
		time.Sleep(time.Hour)
		cancel()
		<-done
		closeStack(t, s)
		t.Log(s.Stats().DLQ.Overtaken)
		require.Equal(t, "new", state)
	})
}
