package resilience

import (
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A refusal that comes when its key has been forgotten and used anew speaks of its own send, though that had the same epoch.
func TestInvariantI9_ARefusalFromBeforeAForgottenKeyProvesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIdem(t, IdempotencyConfig{})
		l, err := NewTimeout(TimeoutConfig{})
		require.NoError(t, err)
		p := &phone{
			before: func(_ *http.Request, n int) (*http.Response, error) {
				if n > 1 {
					return nil, nil
				}
				time.Sleep(time.Hour) // deaf to its limit
				return reply(400, ""), nil
			},
			answer: lostAnswer,
		}
		rt := Chain(i.Claim(), i.Intent(), l.Attempt()).Wrap(p)
		_, err = dial(t.Context(), t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		require.NoError(t, i.Resolve(t.Context(), "k", Resolution{State: KeyNotApplied, Reason: "nobody was called"}))
		require.NoError(t, i.Forget(t.Context(), "k"))
		_, err = dial(t.Context(), t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		require.Equal(t, 1, p.rang())
		time.Sleep(2 * time.Hour) // the first refusal arrives
		require.Equal(t, KeyInDoubt, stateOf(t, i, "k"))
		_, err = dial(t.Context(), t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		require.Equal(t, 1, p.rang())
	})
}

// turnedStore is a store whose clock somebody turns.
type turnedStore struct {
	*MemoryStore
	by atomic.Int64
}

func (s *turnedStore) Now() time.Time { return time.Now().Add(time.Duration(s.by.Load())) }

// I20: how old a send is cannot be said by a clock that went back past it, so a trusted key may be too old by now.
func TestI20_AClockThatWentBackMakesNoKeyYoung(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &turnedStore{MemoryStore: NewMemoryStore(0)}
		i := newIdem(t, IdempotencyConfig{Store: store, Reconcile: &idReader{}, ServerKeys: ServerKeysTrust})
		p := &phone{answer: lostAnswer}
		_, err := dial(t.Context(), t, i.Wrap(p), "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		time.Sleep(2 * time.Hour)
		store.by.Store(int64(-3 * time.Hour))
		_, err = dial(t.Context(), t, i.Wrap(p), "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		require.Equal(t, 1, p.rang())
	})
}
