package resilience

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// What a status tells about the server does not depend on what the call does: the inner door of the keys makes an error of
// it, and the circuit still hears of the status.
func TestBreaker_AStatusCountsThoughTheCallIsInDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h heard
		b := newTestBreaker(t, BreakerConfig{MinCalls: 1, OnEvent: h.listen})
		rt := Chain(b, newIdem(t, IdempotencyConfig{})).Wrap(answering(503))
		_, err := dial(t.Context(), t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		synctest.Wait()
		require.Equal(t, "status", h.all[0].Cause)
		require.Equal(t, 503, h.all[0].StatusCode)
	})
}

// A refused re-send that was throttled decides nothing, as any 429.
func TestBreaker_A429ToAResendIsIgnored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIdem(t, IdempotencyConfig{Reconcile: &idReader{}, ServerKeys: ServerKeysTrust})
		b := newTestBreaker(t, BreakerConfig{MinCalls: 1})
		p := &phone{answer: lostAnswer}
		rt := Chain(i.Claim(), b, i.Intent()).Wrap(p)
		_, err := dial(t.Context(), t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		time.Sleep(time.Minute)
		require.Equal(t, BreakerHalfOpen, b.State())
		p.answer, p.before = nil, func(*http.Request, int) (*http.Response, error) { return reply(429, ""), nil }
		_, err = dial(t.Context(), t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		require.Equal(t, BreakerHalfOpen, b.State(), "a 429 decides nothing")
		require.EqualValues(t, 1, b.Stats().Ignored)
	})
}
