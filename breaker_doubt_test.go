package resilience

import (
	"fmt"
	"io"
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

func TestBreaker_ATooLargeAnswerInDoubtCountsByItsStatus(t *testing.T) {
	for code, want := range map[int]Outcome{503: OutcomeFailure, 429: OutcomeIgnored, 201: OutcomeSuccess} {
		b := newTestBreaker(t, BreakerConfig{})
		i := newIdem(t, IdempotencyConfig{})
		l := newTime(t, TimeoutConfig{MaxResponseBytes: 4})
		rt := Chain(i.Claim(), b, i.Intent(), l.Attempt()).Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			return reply(code, "much too large"), nil
		}))
		_, err := dial(t.Context(), t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrTooLarge)
		requireTotals(t, b, want)
	}
}

// The hint that a call was accepted is for a success whose body could not be read, and the caller is told the status.
func TestIdempotency_ATooLargeAnswerIsAcceptedOnlyByItsStatus(t *testing.T) {
	for _, code := range []int{201, 503} {
		i := newIdem(t, IdempotencyConfig{})
		l := newTime(t, TimeoutConfig{MaxResponseBytes: 4})
		rt := Chain(i, l.Attempt()).Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			return reply(code, "much too large"), nil
		}))
		_, err := dial(t.Context(), t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrTooLarge)
		require.ErrorIs(t, err, ErrInDoubt)
		rec, lookupErr := i.Lookup(t.Context(), "k")
		require.NoError(t, lookupErr)
		require.Equal(t, code == 201, rec.Accepted, code)
		var e *Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, code, e.StatusCode)
	}
}

// A write that is answered 503 is in doubt, and yet it is the status that opened the circuit.
func TestB19_ARefusalNamesTheStatusOfWritesToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var events heard
		s := newStack(t, Config{DLQ: DLQConfig{Off: true}, Breaker: BreakerConfig{OnEvent: events.listen}})
		rt := s.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) { return reply(503, ""), nil }))
		for i := range 10 {
			_, err := dial(t.Context(), t, rt, fmt.Sprint("k", i), dialBody)
			require.ErrorIs(t, err, ErrInDoubt)
		}
		_, err := dial(t.Context(), t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrOpen)
		require.ErrorContains(t, err, "last failure: status 503")
		synctest.Wait()
		require.Equal(t, "status", events.all[0].Cause)
		require.Equal(t, 503, events.all[0].StatusCode)
		closeStack(t, s)
	})
}

// A success that was cut short is a failure of the server, also where it leaves the call in doubt.
func TestBreaker_ACutAnswerInDoubtIsAFailure(t *testing.T) {
	b := newTestBreaker(t, BreakerConfig{})
	i, l := newIdem(t, IdempotencyConfig{}), newTime(t, TimeoutConfig{})
	rt := Chain(i.Claim(), b, i.Intent(), l.Attempt()).Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: 201, Header: http.Header{}, Body: io.NopCloser(errorReader{io.ErrUnexpectedEOF}), ContentLength: 99}, nil
	}))
	_, err := dial(t.Context(), t, rt, "k", dialBody)
	require.ErrorIs(t, err, ErrInDoubt)
	requireTotals(t, b, OutcomeFailure)
}

// A 503 with too large a body.
func TestBreaker_ATooLarge503IsAFailure(t *testing.T) {
	for _, code := range []int{503, 429, 200} {
		b, err := NewBreaker(BreakerConfig{})
		require.NoError(t, err)
		l := newTime(t, TimeoutConfig{MaxResponseBytes: 4})
		rt := Chain(b, l.Attempt()).Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			return reply(code, "much too large"), nil
		}))
		_, err = fetch(t.Context(), t, rt)
		require.ErrorIs(t, err, ErrTooLarge)
		s := b.Stats()
		switch code {
		case 503:
			require.EqualValues(t, 1, s.Failures)
		case 429:
			require.EqualValues(t, 1, s.Ignored)
		}
	}
}
