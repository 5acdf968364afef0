package resilience

import (
	"context"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A failed write belongs to its caller or to a letter, and the caller is told which, at whatever instant they leave.

// slowRelease takes a second to give a key back.
type slowRelease struct{ *MemoryStore }

func (s slowRelease) CompareAndSwap(ctx context.Context, old uint64, r Record) (uint64, bool, error) {
	if r.State == KeyFree || r.State == KeyNotApplied {
		time.Sleep(time.Second)
	}
	return s.MemoryStore.CompareAndSwap(ctx, old, r)
}

func TestOneOwner_ACallerWhoLeavesAfterALetterWasMadeIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Idempotency: IdempotencyConfig{Store: slowRelease{NewMemoryStore(0)}}})
		s.Breaker.ForceOpen()
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		_, err := dial(ctx, t, s.Wrap(&phone{}), "k", dialBody)
		require.Equal(t, 1, s.DLQ.Len())
		require.ErrorIs(t, err, ErrParked)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.False(t, NotSent(err), "the queue will send it")
		var e *Error
		require.ErrorAs(t, err, &e)
		require.NotEmpty(t, e.LetterID)
		time.Sleep(2 * time.Second)
		closeStack(t, s)
	})
}

func TestOneOwner_ACallerWhoLeavesWhileTheQueueDecidesLearnsTheDecision(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{DLQ: DLQConfig{MaxLetters: 1, Overflow: OverflowBlock}})
		s.Breaker.ForceOpen()
		rt := s.Wrap(&phone{})
		_, err := dial(t.Context(), t, rt, "first", dialBody)
		require.ErrorIs(t, err, ErrParked)
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		start := time.Now()
		_, err = dial(ctx, t, rt, "second", dialBody) // waits for room
		require.Equal(t, 500*time.Millisecond, time.Since(start))
		require.NotErrorIs(t, err, ErrParked)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		synctest.Wait()
		require.Equal(t, 1, s.DLQ.Len(), "it is the caller's")
		closeStack(t, s)
	})
}

func TestOneOwner_ACallerWhoTookALetterOverAndLeavesIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Bulkhead: BulkheadConfig{Critical: -1, Normal: 1, Bulk: -1}})
		s.Breaker.ForceOpen()
		p := &phone{answer: func(*http.Request, int) (*http.Response, error) {
			time.Sleep(10 * time.Second)
			return reply(201, "{}"), nil
		}}
		rt := s.Wrap(p)
		_, err := dial(t.Context(), t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrParked)
		s.Breaker.Reset()
		go dial(context.Background(), t, rt, "other", `{"to_number":"+15550002222"}`) //nolint:errcheck // it has the slot
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = dial(ctx, t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrParked, "the letter is still there, and will be sent")
		require.False(t, NotSent(err))
		require.Equal(t, 1, s.DLQ.Len())
		time.Sleep(time.Minute)
		closeStack(t, s)
	})
}

func TestOneOwner_ACallerWhoJoinsARedriveAndLeavesIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Bulkhead: BulkheadConfig{Critical: -1, Normal: 1, Bulk: -1}, DLQ: DLQConfig{Base: time.Millisecond}})
		s.Breaker.ForceOpen()
		p := &phone{answer: func(*http.Request, int) (*http.Response, error) {
			time.Sleep(10 * time.Second)
			return reply(201, "{}"), nil
		}}
		rt := s.Wrap(p)
		_, err := dial(t.Context(), t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrParked)
		s.Breaker.Reset()
		go dial(context.Background(), t, rt, "other", `{"to_number":"+15550002222"}`) //nolint:errcheck // it has the slot
		synctest.Wait()
		run, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(run) }()
		time.Sleep(time.Second) // the redrive waits for the slot
		require.Equal(t, 1, s.DLQ.Stats().Running)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = dial(ctx, t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrParked)
		require.False(t, NotSent(err))
		time.Sleep(time.Minute)
		require.Equal(t, 2, p.rang(), "each of the two once")
		stop()
		require.NoError(t, <-done)
		closeStack(t, s)
	})
}
