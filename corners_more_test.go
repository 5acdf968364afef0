package resilience

import (
	"context"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

type cornerShared struct{ KeyStore }

func (cornerShared) Capabilities() Capabilities {
	return Capabilities{Shared: true, Linearizable: true}
}

func TestCorner_LostClaimNowInDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := cornerShared{NewMemoryStore(0)}
		a, _ := NewIdempotency(IdempotencyConfig{Store: st})
		b, _ := NewIdempotency(IdempotencyConfig{Store: st})
		p := &phone{answer: lostAnswer}
		wait := LayerFunc(func(next http.RoundTripper) http.RoundTripper {
			return RoundTripFunc(func(r *http.Request) (*http.Response, error) {
				time.Sleep(time.Hour) // a queue, a suspended process
				return next.RoundTrip(r)
			})
		})
		done := make(chan error)
		go func() {
			_, err := cornerPost(WithIdempotencyKey(t.Context(), "k"), Chain(a.Claim(), wait, a.Intent()).Wrap(p), dialBody)
			done <- err
		}()
		time.Sleep(30 * time.Minute)
		_, err := cornerPost(WithIdempotencyKey(t.Context(), "k"), b.Wrap(p), dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		err = <-done
		t.Log(err)
		require.Equal(t, 1, p.rang())
		require.False(t, NotSent(err))
	})
}

// a foreign layer between the doors sets a header, the reconciler marks
func TestCorner_ForeignHeaderBetweenDoors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, _ := NewIdempotency(IdempotencyConfig{Reconcile: &cornerFind{}})
		auth := LayerFunc(func(next http.RoundTripper) http.RoundTripper {
			return RoundTripFunc(func(r *http.Request) (*http.Response, error) {
				r = r.Clone(r.Context())
				r.Header.Set("Authorization", "Bearer x")
				return next.RoundTrip(r)
			})
		})
		got := ""
		_, err := cornerPost(WithIdempotencyKey(t.Context(), "k"), Chain(i.Claim(), auth, i.Intent()).Wrap(RoundTripFunc(func(r *http.Request) (*http.Response, error) {
			got = r.Header.Get("Authorization")
			return reply(201, "{}"), nil
		})), dialBody)
		require.NoError(t, err)
		require.Equal(t, "Bearer x", got)
	})
}

// evidence says it happened, the answer is a 4xx
func TestCorner_EvidenceThenRefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, _ := NewIdempotency(IdempotencyConfig{})
		rt := i.Wrap(RoundTripFunc(func(r *http.Request) (*http.Response, error) {
			rec := i.ID("k")
			// as another process would have observed it
			_, _ = i.apply(context.Background(), rec, keyEvent{kind: eventEvidence, evidence: Evidence{ID: rec, Calls: []Found{{ID: "call_1"}}}, keep: time.Hour})
			return nil, MarkNotSent(http.ErrServerClosed)
		}))
		_, err := cornerPost(WithIdempotencyKey(t.Context(), "k"), rt, dialBody)
		t.Log(err)
		require.False(t, NotSent(err))
	})
}

func TestCorner_JoinerOutlivesLeaderLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{DLQ: DLQConfig{Off: true}, Bulkhead: BulkheadConfig{Total: 1}})
		p := &phone{}
		rt := s.Wrap(p)
		ctx, cancel := context.WithCancel(t.Context())
		go s.Run(ctx)
		release, err := s.Bulkhead.Acquire(t.Context(), PriorityNormal)
		require.NoError(t, err)
		time.AfterFunc(30*time.Second, release)
		k := WithIdempotencyKey(t.Context(), "k")
		go cornerPost(WithBudget(k, 2*time.Second), rt, dialBody)
		time.Sleep(time.Second)
		_, err = cornerPost(WithBudget(k, time.Minute), rt, dialBody)
		cancel()
		require.NoError(t, err)
		closeStack(t, s)
	})
}

type cornerSlow struct{ KeyStore }

func (s cornerSlow) CompareAndSwap(ctx context.Context, old uint64, r Record) (uint64, bool, error) {
	v, ok, err := s.KeyStore.CompareAndSwap(ctx, old, r)
	if r.State == KeyConfirmed {
		time.Sleep(2 * time.Second)
	}
	return v, ok, err
}

func TestCorner_UnnamedToldWhileRecording(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Idempotency: IdempotencyConfig{Store: cornerSlow{NewMemoryStore(0)}}})
		p := &phone{answer: func(*http.Request, int) (*http.Response, error) {
			time.Sleep(4 * time.Second)
			return reply(201, `{"call_id":"c"}`), nil
		}}
		rt := s.Wrap(p)
		_, err := cornerPost(WithBudget(t.Context(), 5*time.Second), rt, dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		var e *Error
		require.ErrorAs(t, err, &e)
		time.Sleep(10 * time.Second)
		_, err = cornerPost(WithIdempotencyKey(t.Context(), e.Key), rt, dialBody)
		require.NoError(t, err)
		require.Equal(t, 1, p.rang())
		closeStack(t, s)
	})
}

func TestCorner_LateAnswerOfAnUnnamedKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{})
		p := &phone{answer: func(*http.Request, int) (*http.Response, error) {
			time.Sleep(time.Minute) // deaf to its context, past the attempt's limit
			return reply(201, `{"call_id":"c"}`), nil
		}}
		rt := s.Wrap(p)
		_, err := cornerPost(t.Context(), rt, dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		var e *Error
		require.ErrorAs(t, err, &e)
		time.Sleep(2 * time.Minute)
		_, err = cornerPost(WithIdempotencyKey(t.Context(), e.Key), rt, dialBody)
		require.NoError(t, err)
		require.Equal(t, 1, p.rang())
		closeStack(t, s)
	})
}
