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

// Close sends those home who wait, also those who wait for room in the queue of letters.
func TestX06_CloseSendsThoseHomeWhoWaitForRoomForTheirLetter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Retry: RetryConfig{Max: -1}, DLQ: DLQConfig{MaxLetters: 1, Overflow: OverflowBlock}})
		p := &phone{before: func(*http.Request, int) (*http.Response, error) { return nil, MarkNotSent(io.EOF) }}
		rt := s.Wrap(p)
		_, err := dial(t.Context(), t, rt, "first", dialBody)
		require.ErrorIs(t, err, ErrParked)
		done := make(chan error, 1)
		go func() {
			_, err := dial(t.Context(), t, rt, "second", dialBody)
			done <- err
		}()
		synctest.Wait()
		require.Equal(t, 1, s.DLQ.Stats().Blocked)
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		require.NoError(t, s.Close(ctx))
		require.Zero(t, time.Since(began), "at once")
		require.ErrorIs(t, <-done, ErrLettersFull)
	})
}
