package resilience

import (
	"context"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

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

// The word for a failure, in the event and in the refusal that follows.
func TestBreaker_TheCauseOfAFailure(t *testing.T) {
	for want, next := range map[string]http.RoundTripper{
		"timeout":   failingWith(context.DeadlineExceeded),
		"transport": failingWith(io.EOF),
		"truncated": RoundTripFunc(func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(errorReader{io.ErrUnexpectedEOF}), ContentLength: 99}, nil
		}),
		"status 500": answering(500),
	} {
		synctest.Test(t, func(t *testing.T) {
			var h heard
			b := newTestBreaker(t, BreakerConfig{MinCalls: 1, OnEvent: h.listen})
			if want == "truncated" {
				next = newTime(t, TimeoutConfig{}).Attempt().Wrap(next)
			}
			_, _ = through(t.Context(), b, next)
			synctest.Wait()
			require.Equal(t, strings.TrimSuffix(want, " 500"), h.all[0].Cause)
			require.Equal(t, want == "status 500", h.all[0].StatusCode == 500)
			_, err := through(t.Context(), b, next)
			require.ErrorContains(t, err, "last failure: "+want)
		})
	}
}

// A failed trial is the last failure, and a slow one is slow.
func TestBreaker_AFailedTrialSaysWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h heard
		b := newTestBreaker(t, BreakerConfig{MinCalls: 1, SlowCall: time.Second, OnEvent: h.listen})
		_, err := through(t.Context(), b, answering(500))
		require.NoError(t, err)
		time.Sleep(b.Stats().RetryAfter)
		_, err = through(t.Context(), b, answering(502))
		require.NoError(t, err)
		_, err = through(t.Context(), b, answering(200))
		require.ErrorContains(t, err, "status 502")
		time.Sleep(b.Stats().RetryAfter)
		done := admits(t, b)
		time.Sleep(2 * time.Second)
		done(OutcomeSuccess)
		_, err = through(t.Context(), b, answering(200))
		require.ErrorContains(t, err, "slow")
		synctest.Wait()
		require.Equal(t, 502, h.all[2].StatusCode)
		require.Equal(t, "slow", h.all[4].Cause)
	})
}

// A trial that has returned is overdue no more, and of those that have not the oldest counts.
func TestBreaker_OnlyTrialsUnderWayAreOverdue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openedBreaker(t, BreakerConfig{Trials: 2, TrialLimit: time.Second})
		time.Sleep(30 * time.Second)
		report(t, b, "S")
		time.Sleep(900 * time.Millisecond)
		second := admits(t, b)
		time.Sleep(200 * time.Millisecond)
		second(OutcomeSuccess)
		require.Equal(t, BreakerClosed, b.State())

		b = openedBreaker(t, BreakerConfig{Trials: 2, TrialLimit: time.Second})
		time.Sleep(30 * time.Second)
		admits(t, b) // hangs
		time.Sleep(500 * time.Millisecond)
		report(t, b, "S")
		time.Sleep(500 * time.Millisecond)
		require.Equal(t, BreakerOpen, b.State())
	})
}

func TestBreaker_ChangesAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openedBreaker(t, BreakerConfig{})
		changes := func() [3]uint64 {
			s := b.Stats()
			return [3]uint64{s.Opened, s.HalfOpened, s.Closed}
		}
		require.Equal(t, [3]uint64{1, 0, 0}, changes())
		time.Sleep(30 * time.Second)
		report(t, b, "S")
		require.Equal(t, [3]uint64{1, 1, 1}, changes())
		time.Sleep(time.Hour)
		b.ForceOpen()
		require.Equal(t, [3]uint64{2, 1, 1}, changes())
		require.Equal(t, time.Now(), b.Stats().OpenSince, "by hand as well")
		require.Zero(t, b.Stats().RetryAfter)
		b.ForceClose()
		require.Equal(t, [3]uint64{2, 1, 2}, changes())
	})
}

// Reset forgets what was counted, a ramp and a growing wait.
func TestBreaker_ResetForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestBreaker(t, BreakerConfig{MinCalls: 2})
		report(t, b, "F")
		b.Reset()
		require.Zero(t, b.Stats().Window)
		report(t, b, "F")
		require.Equal(t, BreakerClosed, b.State())
		report(t, b, "F")
		time.Sleep(30 * time.Second)
		report(t, b, "S")
		require.InDelta(t, 0.1, b.share(), 1e-9)
		b.Reset()
		require.InDelta(t, 1, b.share(), 0)
		require.InDelta(t, 1, b.Stats().Share, 0)
	})
}

// After a ramp, and before the first one, the share is whole for good.
func TestBreaker_TheShareStaysWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestBreaker(t, BreakerConfig{MinCalls: 1})
		require.InDelta(t, 1, b.Stats().Share, 0)
		report(t, b, "F")
		time.Sleep(30 * time.Second)
		report(t, b, "S")
		time.Sleep(time.Hour)
		require.InDelta(t, 1, b.Stats().Share, 0)
		require.InDelta(t, 1, b.share(), 0)
	})
}

func TestBreaker_MetricsOnlyTellsOfTheFirstExcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h heard
		b := newTestBreaker(t, BreakerConfig{MinCalls: 1, MetricsOnly: true, OnEvent: h.listen})
		report(t, b, "F")
		b.Reset()
		report(t, b, "F")
		synctest.Wait()
		require.Equal(t, []EventKind{EventCircuitExceeded, EventCircuitReset, EventCircuitExceeded}, h.kinds())
	})
}

// Slowness is a rate of its own, and known from as many calls on as the other.
func TestBreaker_TheSlowRateIsShown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestBreaker(t, BreakerConfig{MinCalls: 4, SlowCall: time.Second})
		slow := admits(t, b)
		time.Sleep(2 * time.Second)
		slow(OutcomeSuccess)
		report(t, b, "SS")
		require.InDelta(t, -1, b.Stats().SlowRate, 0)
		report(t, b, "S")
		require.InDelta(t, 0.25, b.Stats().SlowRate, 0)
		require.InDelta(t, 0, b.Stats().FailureRate, 0)
	})
}

func TestBreaker_WhatIsStillAllowed(t *testing.T) {
	_, err := NewBreaker(BreakerConfig{Window: time.Millisecond, Trials: 1000, FailureRate: 1, SlowRate: 1, SlowCall: 1, MaxOpenFor: 30 * time.Second})
	require.NoError(t, err)
	_, err = NewBreaker(BreakerConfig{SlowRate: 1.01, SlowCall: 1})
	require.ErrorContains(t, err, "Breaker.SlowRate:")
}

// By hand it goes to the shared circuit and to each that Key made, and each tells of itself, and of itself only.
func TestBreaker_EventsNameTheirCircuit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h heard
		b := newTestBreaker(t, BreakerConfig{MinCalls: 1, Key: byOperation, OnEvent: h.listen})
		require.NoError(t, ring(t, b, "calls", 200))
		b.ForceOpen()
		require.Equal(t, BreakerOpen, b.Circuit("").State())
		require.Equal(t, BreakerOpen, b.Circuit("calls").State())
		b.Circuit("calls").ForceClose()
		synctest.Wait()
		var got []string
		for _, e := range h.all {
			got = append(got, string(e.Kind)+" "+e.Operation)
		}
		require.Equal(t, []string{"circuit.open ", "circuit.open calls", "circuit.close calls"}, got)
	})
}

// A handle is about one circuit, whatever Key says of the call.
func TestBreaker_AHandleHasOneCircuitForAllCalls(t *testing.T) {
	b := newTestBreaker(t, BreakerConfig{MinCalls: 1, Key: byOperation})
	require.NoError(t, ring(t, b.Circuit("mine"), "calls", 500))
	require.Equal(t, BreakerOpen, b.Circuit("mine").State())
	require.Equal(t, BreakerClosed, b.Circuit("calls").State())
	require.Error(t, b.Circuit("mine").refusal(Call{Operation: "calls"}))
	s := b.Circuit("mine").Stats()
	require.Zero(t, s.Circuits)
	require.Zero(t, s.OpenCircuits)
	require.Equal(t, 1, b.Stats().Circuits)
	for _, key := range []string{"c", "b", "a"} {
		b.Circuit(key).ForceOpen()
	}
	require.Equal(t, []string{"a", "b", "c"}, b.notClosed(3), "in order")
}

func TestBreaker_HowManyKeys(t *testing.T) {
	made := func(c BreakerConfig, n int) int {
		c.Key = byOperation
		b := newTestBreaker(t, c)
		for i := range n {
			_, err := b.Circuit(strconv.Itoa(i)).Allow()
			require.NoError(t, err)
		}
		return b.Stats().Circuits
	}
	require.Equal(t, 1000, made(BreakerConfig{}, 1100))
	require.Equal(t, 1, made(BreakerConfig{MaxKeys: 1}, 3))
	require.Equal(t, 1100, made(BreakerConfig{MaxKeys: -1}, 1100))
}

// Of the sixteen unused for longest a closed one goes; behind them nobody looks.
func TestBreaker_SixteenAreSpared(t *testing.T) {
	for _, open := range []int{15, 16} {
		b := newTestBreaker(t, BreakerConfig{Key: byOperation, MaxKeys: open + 1})
		for i := range open {
			b.Circuit(strconv.Itoa(i)).ForceOpen()
		}
		report(t, b.Circuit("closed"), "S")
		report(t, b.Circuit("new"), "S")
		require.Equal(t, open+1, b.Stats().Circuits)
		require.Equal(t, open == 15, b.Circuit("0").State() == BreakerOpen, open)
		require.Equal(t, open == 15, b.Circuit("closed").Stats().Successes == 0, open)
	}
}

func TestBreaker_LastTripIsEmptyAfterAFailedTrial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, err := NewBreaker(BreakerConfig{MinCalls: 1, OpenFor: time.Second})
		require.NoError(t, err)
		for _, want := range []BreakerCounts{{Failures: 1}, {}} {
			time.Sleep(b.Stats().RetryAfter)
			done, err := b.Allow()
			require.NoError(t, err)
			done(OutcomeFailure)
			require.Equal(t, want, b.Stats().LastTrip)
		}
	})
}

func TestBreaker_OneHeldByHandIsSpared(t *testing.T) {
	b, err := NewBreaker(BreakerConfig{Key: func(c Call) string { return c.Operation }, MaxKeys: 3})
	require.NoError(t, err)
	b.Circuit("held").ForceClose()
	for i := range 10 {
		_, err := b.Circuit(strconv.Itoa(i)).Allow()
		require.NoError(t, err)
	}
	require.True(t, b.Circuit("held").Stats().Forced)
}
