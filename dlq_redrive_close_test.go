package resilience

import (
	"context"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Close begins with its call, not with the end of what it waits for: no letter is redriven any more, also not by who asks.
func TestD15_NoRedriveBeginsOnceCloseHasBegun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{})
		worked := 0
		s.DLQ.Handle("work", func(context.Context, Letter) error { worked++; return nil })
		rt := s.Wrap(&phone{answer: func(*http.Request, int) (*http.Response, error) {
			time.Sleep(10 * time.Second)
			return reply(201, "{}"), nil
		}})
		flying, closed := make(chan error, 1), make(chan error, 1)
		go func() { _, err := dial(t.Context(), t, rt, "a", dialBody); flying <- err }()
		synctest.Wait()
		require.NoError(t, s.DLQ.Add(Letter{Operation: "work", Next: time.Now()}))
		go func() { closed <- s.Close(context.Background()) }()
		synctest.Wait()
		r := s.DLQ.Redrive(t.Context())
		require.Equal(t, RedriveClosed, r.Status)
		require.ErrorIs(t, r.Err, ErrClosed)
		require.Zero(t, worked)
		require.NoError(t, <-flying)
		require.NoError(t, <-closed)
		require.Equal(t, 1, s.DLQ.Stats().Waiting)
	})
}
