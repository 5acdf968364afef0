package resilience

import (
	"context"
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Evidence ends a call whose flight waits for room for its letter: nobody needs the letter, and nobody waits for it.
func TestDLQ_EvidenceEndsTheWaitForRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Retry: RetryConfig{Max: -1}, DLQ: DLQConfig{MaxLetters: 1, Overflow: OverflowBlock}})
		p := &phone{before: func(*http.Request, int) (*http.Response, error) { return nil, MarkNotSent(io.EOF) }}
		rt := s.Wrap(p)
		_, err := dial(t.Context(), t, rt, "first", dialBody)
		require.ErrorIs(t, err, ErrParked)
		p.before, p.answer = nil, lostAnswer
		done := make(chan error, 1)
		go func() {
			_, err := dial(t.Context(), t, rt, "second", dialBody)
			done <- err
		}()
		synctest.Wait()
		require.Equal(t, 1, s.DLQ.Stats().Blocked)
		require.NoError(t, s.Idempotency.Observe(t.Context(), Evidence{ID: s.Idempotency.ID("second"), Calls: []Found{{ID: "call_1"}}}))
		require.NoError(t, <-done)
		time.Sleep(time.Hour)
		require.Zero(t, s.DLQ.Stats().Blocked)
		require.Zero(t, s.Idempotency.Stats().Flights)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.NoError(t, s.Close(ctx))
		_ = s.DLQ.Delete(s.DLQ.List(LetterFilter{})[0].ID, "") // so that the bubble can end
		_ = s.DLQ.close(t.Context())
	})
}

// An answer that is there is not lost to a caller who ends at the same instant.
func TestFlight_TheAnswerGoesBeforeTheEndOfItsCaller(t *testing.T) {
	i := newIdem(t, IdempotencyConfig{})
	ctx, cancel := context.WithCancel(t.Context())
	tr := &trip{call: Call{Operation: "o"}}
	f := newFlight(tr, ctx, "k", i.ID("k"), "f")
	cancel()
	f.publish(result{resp: reply(201, "{}")})
	for range 100 { // select picks either
		resp, err := i.await(f, tr, ctx, true)
		require.NoError(t, err)
		require.Equal(t, 201, resp.StatusCode)
	}
}
