package resilience

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// After a restart with a store that is still there and letters that were exported, nothing rings twice.
func TestStack_ARestartWithItsStoreAndLettersRingsNobodyTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := NewMemoryStore(0) // stands for a durable one
		p := &phone{answer: lostAnswer}
		first := newStack(t, Config{Idempotency: IdempotencyConfig{Store: store}})
		rt := first.Wrap(p)
		_, err := dial(t.Context(), t, rt, "doubt", dialBody)
		require.ErrorIs(t, err, ErrParked)
		p.answer, p.before = nil, func(*http.Request, int) (*http.Response, error) { return nil, MarkNotSent(io.EOF) }
		_, err = dial(t.Context(), t, rt, "waiting", dialBody)
		require.ErrorIs(t, err, ErrParked)
		require.NoError(t, first.Close(context.Background()))
		var saved bytes.Buffer
		require.NoError(t, first.DLQ.Export(&saved))

		p.before = nil
		second := newStack(t, Config{Idempotency: IdempotencyConfig{Store: store}})
		rt = second.Wrap(p)
		require.NoError(t, second.DLQ.Import(&saved))
		require.Equal(t, 2, second.DLQ.Len())
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Hour)
		defer cancel()
		require.NoError(t, second.Run(ctx))
		require.Equal(t, 2, p.rang(), "the one that waited was sent, the one in doubt was not")
		require.Equal(t, KeyConfirmed, stateOf(t, second.Idempotency, "waiting"))
		require.Equal(t, KeyInDoubt, stateOf(t, second.Idempotency, "doubt"))
		_, err = dial(t.Context(), t, rt, "doubt", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		closeStack(t, second)
	})
}

// Nor does the caller's own second try, before anybody has looked.
func TestStack_ARestartWithoutItsStoreRefusesTheCallThatWasInDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &phone{answer: lostAnswer}
		first := newStack(t, Config{})
		_, err := dial(t.Context(), t, first.Wrap(p), "doubt", dialBody)
		require.ErrorIs(t, err, ErrParked)
		require.NoError(t, first.Close(context.Background()))
		var saved bytes.Buffer
		require.NoError(t, first.DLQ.Export(&saved))

		p.answer = nil
		second := newStack(t, Config{})
		rt := second.Wrap(p)
		require.NoError(t, second.DLQ.Import(&saved))
		for range 3 {
			_, err = dial(t.Context(), t, rt, "doubt", dialBody)
			require.ErrorIs(t, err, ErrInDoubt)
			require.False(t, NotSent(err))
			require.Equal(t, 1, second.DLQ.Stats().InDoubt)
		}
		require.Equal(t, 1, p.rang())
		closeStack(t, second)
	})
}

// A letter that is on its way while the letters are exported may arrive: whoever imports it must not send it again.
func TestStack_ALetterOnItsWayIsExportedAsInDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &phone{before: func(*http.Request, int) (*http.Response, error) { return nil, MarkNotSent(io.EOF) }}
		s := newStack(t, Config{})
		_, err := dial(t.Context(), t, s.Wrap(p), "k", dialBody)
		require.ErrorIs(t, err, ErrParked)
		p.before, p.answer = nil, func(*http.Request, int) (*http.Response, error) {
			time.Sleep(10 * time.Second)
			return reply(201, "{}"), nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		time.Sleep(5 * time.Second)
		var saved bytes.Buffer
		require.NoError(t, s.DLQ.Export(&saved))
		second := newStack(t, Config{})
		require.NoError(t, second.DLQ.Import(&saved))
		require.Equal(t, 1, second.DLQ.Stats().InDoubt)
		time.Sleep(time.Minute)
		cancel()
		require.NoError(t, <-done)
		require.Equal(t, 1, p.rang())
		closeStack(t, s)
		closeStack(t, second)
	})
}

// A store that forgot proves nothing: what was in doubt before the restart is never sent after it.
func TestStack_ARestartWithoutItsStoreSendsNothingThatWasInDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &phone{answer: lostAnswer}
		first := newStack(t, Config{})
		_, err := dial(t.Context(), t, first.Wrap(p), "doubt", dialBody)
		require.ErrorIs(t, err, ErrParked)
		require.NoError(t, first.Close(context.Background()))
		var saved bytes.Buffer
		require.NoError(t, first.DLQ.Export(&saved))

		p.answer = nil
		second := newStack(t, Config{})
		second.Wrap(p)
		require.NoError(t, second.DLQ.Import(&saved))
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Hour)
		defer cancel()
		require.NoError(t, second.Run(ctx))
		require.Equal(t, 1, p.rang())
		closeStack(t, second)
	})
}
