package resilience

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestIdempotency_AnUnwrittenAnswerOutlastsTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &phone{}
		store := &answerRefusingStore{MemoryStore: NewMemoryStore(0)}
		store.failing.Store(2) // the answer, and the first time that Run repeats it
		i := newIdem(t, IdempotencyConfig{Store: store})
		rt := i.Wrap(p)
		_, err := dial(t.Context(), t, rt, "k", dialBody)
		require.NoError(t, err)
		time.Sleep(time.Hour) // the store is down for longer than the lease
		i.tend(t.Context())
		i.tend(t.Context())
		require.Equal(t, KeyConfirmed, stateOf(t, i, "k"), "its answer is known")
		again, err := dial(t.Context(), t, rt, "k", dialBody)
		require.NoError(t, err)
		require.True(t, Replayed(again))
	})
}

// The store takes no answer, and then says nothing at all.
func TestIdempotency_AnUnwrittenAnswerIsReplayedThoughTheStoreCannotBeRead(t *testing.T) {
	st := &faultyStore{KeyStore: NewMemoryStore(0)}
	i := newIdem(t, IdempotencyConfig{Store: st})
	rt := i.Wrap(&phone{answer: func(*http.Request, int) (*http.Response, error) {
		st.noCAS.Store(true)
		return reply(201, `{"call_id":"c"}`), nil
	}})
	_, err := dial(t.Context(), t, rt, "k", dialBody)
	require.NoError(t, err)
	st.noLoad.Store(true)
	resp, err := dial(t.Context(), t, rt, "k", dialBody)
	require.NoError(t, err, "this process answers from memory")
	require.True(t, Replayed(resp))
}

func TestIdempotency_AnIntentWhoseWriteWasReportedLostSendsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lose := true
		st := &faultyStore{KeyStore: NewMemoryStore(0)}
		st.lostAck = func(r Record) bool { l := lose && r.State == KeySending; lose = lose && !l; return l }
		s := newStack(t, Config{DLQ: DLQConfig{Off: true}, Idempotency: IdempotencyConfig{Store: st}})
		p := &phone{}
		rt := s.Wrap(p)
		_, err := postCall(WithIdempotencyKey(t.Context(), "k"), rt, dialBody)
		require.ErrorIs(t, err, ErrStore)
		require.True(t, NotSent(err))
		require.Zero(t, p.sends)
		time.Sleep(10 * time.Minute)
		_, err = postCall(WithIdempotencyKey(t.Context(), "k"), rt, dialBody)
		require.NoError(t, err, "nothing was ever sent")
		closeStack(t, s)
	})
}

func TestIdempotency_AKeyIsNotFreeBecauseTheStoreCannotBeRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := &faultyStore{KeyStore: NewMemoryStore(0)}
		s := newStack(t, Config{DLQ: DLQConfig{Off: true}, Idempotency: IdempotencyConfig{Store: st}})
		rt := s.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			time.Sleep(2 * time.Minute)
			return reply(201, `{"call_id":"c"}`), nil
		}))
		_, err := postCall(WithIdempotencyKey(t.Context(), "k"), rt, dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		st.noLoad.Store(true)
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		rec, err := s.Idempotency.Lookup(t.Context(), "k")
		require.False(t, err == nil && rec.State == KeyFree)
		closeStack(t, s)
	})
}
