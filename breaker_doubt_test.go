package resilience

import (
	"fmt"
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

// A circuit that nobody has used has no history, whatever was done to all.
func TestBreaker_ACircuitNobodyUsedHasNoHistory(t *testing.T) {
	b := newTestBreaker(t, BreakerConfig{Key: byOperation})
	b.ForceOpen()
	unused := b.Circuit("unused")
	before := unused.Stats()
	_, err := unused.Allow() // makes it
	require.ErrorIs(t, err, ErrOpen)
	require.LessOrEqual(t, before.Opened, unused.Stats().Opened, "totals never go back")
}

// A slot that comes with the end of MaxWait is as useless in the last moment of the budget as any other.
func TestBulkhead_ASlotInTheLastMomentIsNotUsed(t *testing.T) {
	for range 200 {
		synctest.Test(t, func(t *testing.T) {
			c := oneSlot()
			c.MaxWait = time.Second
			b := newTestBulkhead(t, c)
			release, err := b.Acquire(t.Context(), PriorityNormal)
			require.NoError(t, err)
			time.AfterFunc(time.Second, release)
			sent := 0
			rt := Chain(newTime(t, TimeoutConfig{}).Budget(), b).Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
				sent++
				return answering(200)(req)
			}))
			_, err = fetch(WithBudget(t.Context(), time.Second+5*time.Millisecond), t, rt)
			require.Error(t, err)
			require.Zero(t, sent)
			synctest.Wait()
			requireIdle(t, b)
		})
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
