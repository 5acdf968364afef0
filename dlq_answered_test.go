package resilience

import (
	"context"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A call has done the write of a letter whose redrive waits for a slot. The letter is gone, and the redrive must not be sent
// for it: what it would write may have been changed since.
func TestDLQ_ARedriveWhoseLetterIsAnsweredWhileItWaitsIsNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Retry: RetryConfig{Off: true}, Bulkhead: BulkheadConfig{Critical: 1, Normal: -1, Bulk: -1, Total: 2, AgeAfter: -1}})
		var n atomic.Int64
		written := make(chan string, 10)
		rt := s.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			b, _ := io.ReadAll(req.Body)
			switch n.Add(1) {
			case 1:
				time.Sleep(time.Minute)
			case 2:
				return nil, io.ErrUnexpectedEOF
			default:
				time.Sleep(time.Second)
			}
			written <- string(b)
			return reply(200, "{}"), nil
		}))
		put := func(key, body string, p Priority) error {
			ctx := WithCall(WithIdempotencyKey(t.Context(), key), Call{Resource: "agent/1", Priority: p, Limit: time.Hour})
			req, _ := http.NewRequestWithContext(ctx, http.MethodPut, "http://h/agent/1", strings.NewReader(body))
			_, err := rt.RoundTrip(req)
			return err
		}
		slow, newer := make(chan error, 1), make(chan error, 1)
		go func() { slow <- put("1", "old", PriorityCritical) }()
		time.Sleep(time.Second)
		require.ErrorIs(t, put("1", "old", PriorityCritical), ErrParked)
		release, err := s.Bulkhead.Acquire(t.Context(), PriorityCritical)
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan error)
		go func() { ran <- s.Run(ctx) }()
		time.Sleep(10 * time.Second)
		require.Equal(t, 1, s.DLQ.Stats().Leased, "its redrive waits for a slot")
		go func() { newer <- put("2", "new", PriorityCritical) }()
		require.NoError(t, <-slow)
		require.NoError(t, <-newer)
		release()
		time.Sleep(time.Hour)
		cancel()
		<-ran
		closeStack(t, s)
		close(written)
		require.Equal(t, []string{"old", "new"}, slices.Collect(func(yield func(string) bool) {
			for w := range written {
				yield(w)
			}
		}))
		require.Zero(t, s.DLQ.Len())
		dlqConserved(t, s.DLQ)
	})
}

// The answer to one write says nothing about another one that came under the same key.
func TestDLQ_AnAnswerLeavesTheLetterOfAnotherWriteWithItsKey(t *testing.T) {
	for _, code := range []int{http.StatusOK, http.StatusUnprocessableEntity} {
		synctest.Test(t, func(t *testing.T) {
			s := newStack(t, Config{Retry: RetryConfig{Off: true}})
			w, first := heldBack(dlqError(errDLQRefused))
			rt := s.Wrap(w)
			put := func(body string) error {
				ctx := WithIdempotencyKey(context.Background(), "k")
				req, _ := http.NewRequestWithContext(ctx, http.MethodPut, "http://h/agent/1", strings.NewReader(body))
				_, err := rt.RoundTrip(req)
				return err
			}
			done := make(chan error, 1)
			go func() { done <- put("one") }()
			synctest.Wait()
			require.ErrorIs(t, put("two"), ErrParked)
			first <- answersWith(code)
			require.NoError(t, <-done)
			require.Equal(t, "two", string(dlqOnly(t, s.DLQ).Body))
			closeStack(t, s)
		})
	}
}
