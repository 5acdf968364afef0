package resilience

import (
	"context"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A key that nobody named leaves nothing behind.
func TestIdempotency_AnUnnamedKeyIsNotKept(t *testing.T) {
	store := NewMemoryStore(0)
	i := newIdem(t, IdempotencyConfig{Store: store})
	rt := i.Wrap(&phone{})
	for range 10 {
		_, err := dial(t.Context(), t, rt, "", dialBody)
		require.NoError(t, err)
	}
	i.active.Wait()
	require.NoError(t, i.sweep(t.Context()))
	require.Zero(t, store.Len())
}

type slowSwaps struct{ KeyStore }

func (s slowSwaps) CompareAndSwap(ctx context.Context, old uint64, r Record) (uint64, bool, error) {
	v, ok, err := s.KeyStore.CompareAndSwap(ctx, old, r)
	if r.State == KeyConfirmed {
		time.Sleep(2 * time.Second)
	}
	return v, ok, err
}

func TestIdempotency_AnUnnamedKeyThatWasToldIsKeptThoughItIsBeingWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Idempotency: IdempotencyConfig{Store: slowSwaps{NewMemoryStore(0)}}})
		p := &phone{answer: func(*http.Request, int) (*http.Response, error) {
			time.Sleep(4 * time.Second)
			return reply(201, `{"call_id":"c"}`), nil
		}}
		rt := s.Wrap(p)
		_, err := postCall(WithBudget(t.Context(), 5*time.Second), rt, dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		var e *Error
		require.ErrorAs(t, err, &e)
		time.Sleep(10 * time.Second)
		_, err = postCall(WithIdempotencyKey(t.Context(), e.Key), rt, dialBody)
		require.NoError(t, err)
		require.Equal(t, 1, p.rang())
		closeStack(t, s)
	})
}

func TestIdempotency_ALateAnswerOfAnUnnamedKeyIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{})
		p := &phone{answer: func(*http.Request, int) (*http.Response, error) {
			time.Sleep(time.Minute) // deaf to its context, past the attempt's limit
			return reply(201, `{"call_id":"c"}`), nil
		}}
		rt := s.Wrap(p)
		_, err := postCall(t.Context(), rt, dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		var e *Error
		require.ErrorAs(t, err, &e)
		time.Sleep(2 * time.Minute)
		_, err = postCall(WithIdempotencyKey(t.Context(), e.Key), rt, dialBody)
		require.NoError(t, err)
		require.Equal(t, 1, p.rang())
		closeStack(t, s)
	})
}

func TestIdempotency_AnUnnamedKeyThatWasToldIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{})
		p := &phone{answer: func(*http.Request, int) (*http.Response, error) {
			time.Sleep(10 * time.Second)
			return reply(201, `{"call_id":"c"}`), nil
		}}
		rt := s.Wrap(p)
		_, err := postCall(WithBudget(t.Context(), 5*time.Second), rt, dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		var e *Error
		require.ErrorAs(t, err, &e)
		key := e.Key
		require.NotEmpty(t, key)
		time.Sleep(10 * time.Second) // the answer has come
		synctest.Wait()
		_, err = postCall(WithIdempotencyKey(t.Context(), key), rt, dialBody)
		require.NoError(t, err)
		require.Equal(t, 1, p.rang())
		closeStack(t, s)
	})
}
