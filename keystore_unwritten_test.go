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

// What the store would not take is remembered for each key, until the store has it or knows better.
func TestUnwritten_IsRememberedForEachKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &flakyStore{MemoryStore: NewMemoryStore(0), fail: KeyConfirmed}
		i, p := newIdem(t, IdempotencyConfig{Store: store}), &phone{}
		for _, key := range []string{"a", "b"} {
			_, err := dial(t.Context(), t, i.Wrap(p), key, dialBody)
			require.NoError(t, err)
		}
		require.Equal(t, 2, i.Stats().Unwritten)
		store.set(KeyFree)
		for _, key := range []string{"a", "b"} {
			require.Equal(t, KeyConfirmed, stateOf(t, i, key))
			resp, err := dial(t.Context(), t, i.Wrap(p), key, dialBody)
			require.NoError(t, err)
			require.True(t, Replayed(resp))
		}
		require.Equal(t, 2, p.sends)
		i.tend(t.Context())
		require.Zero(t, i.Stats().Unwritten)
	})
}

// A refusal that the store would not take goes with the next step of its key.
func TestUnwritten_GoesWithTheNextStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &faultyStore{KeyStore: NewMemoryStore(0)}
		i := newIdem(t, IdempotencyConfig{Store: store})
		p := &phone{before: func(*http.Request, int) (*http.Response, error) {
			store.noCAS.Store(true)
			return reply(400, ""), nil
		}}
		rt := i.Wrap(p)
		_, err := dial(t.Context(), t, rt, "k", dialBody)
		require.NoError(t, err)
		require.Equal(t, 1, i.Stats().Unwritten)
		require.Equal(t, KeyClaimed, stateOf(t, i, "k"))
		store.noCAS.Store(false)
		p.before = nil
		time.Sleep(time.Hour) // nobody runs: the lease frees it
		_, err = dial(t.Context(), t, rt, "k", dialBody)
		require.NoError(t, err)
		require.Zero(t, i.Stats().Unwritten)
		require.Equal(t, KeyConfirmed, stateOf(t, i, "k"))
	})
}

// What this process remembers does not hide what the store knows since.
func TestUnwritten_TheStoreMayKnowBetter(t *testing.T) {
	store := &flakyStore{MemoryStore: NewMemoryStore(0), fail: KeyInDoubt}
	i := newIdem(t, IdempotencyConfig{Store: store})
	_, err := dial(t.Context(), t, i.Wrap(&phone{answer: lostAnswer}), "k", dialBody)
	require.ErrorIs(t, err, ErrInDoubt)
	require.Equal(t, KeyInDoubt, stateOf(t, i, "k"))
	rec, err := store.Load(t.Context(), i.ID("k"))
	require.NoError(t, err)
	require.Equal(t, KeySending, rec.State)
	rec.State, rec.CallID, rec.Expires = KeyConfirmed, "call_1", store.Now().Add(time.Hour) // by a webhook, elsewhere
	_, swapped, err := store.CompareAndSwap(t.Context(), rec.Version, rec)
	require.NoError(t, err)
	require.True(t, swapped)
	require.Equal(t, KeyConfirmed, stateOf(t, i, "k"))
}

func TestIdempotency_ASuccessThatCouldNotBeReadIsRemembered(t *testing.T) {
	i := newIdem(t, IdempotencyConfig{Reconcile: &idReader{}, ServerKeys: ServerKeysTrust})
	p := &phone{answer: func(*http.Request, int) (*http.Response, error) { return reply(201, "<html>"), nil }}
	_, err := dial(t.Context(), t, i.Wrap(p), "k", dialBody)
	require.ErrorIs(t, err, ErrInDoubt)
	p.answer = lostAnswer
	_, err = dial(t.Context(), t, i.Wrap(p), "k", dialBody)
	require.ErrorIs(t, err, ErrInDoubt)
	require.Equal(t, 2, p.sends)
	require.True(t, lookUp(t, i, "k").Accepted)
}
