package resilience

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func newTestBreaker(t *testing.T, c BreakerConfig) *Breaker {
	t.Helper()
	b, err := NewBreaker(c)
	require.NoError(t, err)
	return b
}

// report lets one call through for each letter: S succeeds, F fails, I is ignored.
func report(t *testing.T, b *Breaker, outcomes string) {
	t.Helper()
	for _, o := range outcomes {
		done, err := b.Allow()
		require.NoError(t, err)
		done(map[rune]Outcome{'S': OutcomeSuccess, 'F': OutcomeFailure, 'I': OutcomeIgnored}[o])
	}
}

func admits(t *testing.T, b *Breaker) func(Outcome) {
	t.Helper()
	done, err := b.Allow()
	require.NoError(t, err)
	return done
}

// refusedBy asks for a call, which must be refused, and returns how long to wait.
func refusedBy(t *testing.T, b *Breaker) time.Duration {
	t.Helper()
	done, err := b.Allow()
	require.ErrorIs(t, err, ErrOpen)
	require.True(t, NotSent(err))
	require.Nil(t, done)
	var e *Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, "breaker", e.Layer)
	return e.RetryAfter
}

func answering(status int) RoundTripFunc {
	return func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: status, Body: http.NoBody, Header: http.Header{}}, nil
	}
}

func failingWith(err error) RoundTripFunc {
	return func(*http.Request) (*http.Response, error) { return nil, err }
}

// through sends one request through the breaker to next.
func through(ctx context.Context, b *Breaker, next http.RoundTripper) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://server.test/", nil)
	if err != nil {
		return nil, err
	}
	return b.Wrap(next).RoundTrip(req)
}

// heard collects events.
type heard struct {
	mu  sync.Mutex
	all []Event
}

func (h *heard) listen(e Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all = append(h.all, e)
}

func (h *heard) kinds() []EventKind {
	h.mu.Lock()
	defer h.mu.Unlock()
	var kinds []EventKind
	for _, e := range h.all {
		kinds = append(kinds, e.Kind)
	}
	return kinds
}

// openedBreaker makes a breaker whose circuit has just opened after one failure.
func openedBreaker(t *testing.T, c BreakerConfig) *Breaker {
	t.Helper()
	c.MinCalls = 1
	b := newTestBreaker(t, c)
	report(t, b, "F")
	require.Equal(t, BreakerOpen, b.State())
	return b
}

func TestB01_AnAnswerPassesUnchanged(t *testing.T) {
	b := newTestBreaker(t, BreakerConfig{})
	resp, err := through(t.Context(), b, answering(http.StatusAccepted))
	require.NoError(t, err)
	require.Equal(t, http.StatusAccepted, resp.StatusCode)
	require.Equal(t, "closed", b.State().String())
}

func TestB02_OpensAfterExactlyTheTenthFailure(t *testing.T) {
	b := newTestBreaker(t, BreakerConfig{})
	report(t, b, "FFFFFFFFF")
	require.Equal(t, BreakerClosed, b.State())
	report(t, b, "F")
	require.Equal(t, BreakerOpen, b.State())
}

func TestB03_TripsAtTheThreshold(t *testing.T) {
	b := newTestBreaker(t, BreakerConfig{})
	report(t, b, "SSSSSFFFF")
	require.Equal(t, BreakerClosed, b.State())
	report(t, b, "F")
	require.Equal(t, BreakerOpen, b.State())

	all := newTestBreaker(t, BreakerConfig{FailureRate: 1})
	report(t, all, "FFFFFFFFFF")
	require.Equal(t, BreakerOpen, all.State(), "a threshold of 100 % can be reached")

	below := newTestBreaker(t, BreakerConfig{FailureRate: 0.3})
	report(t, below, "SSSSSSSFF")
	require.Equal(t, BreakerClosed, below.State())
	report(t, below, "F")
	require.Equal(t, BreakerOpen, below.State(), "3 of 10 is 30 %")
}

func TestB04_ASuccessCanCompleteTheMinimum(t *testing.T) {
	b := newTestBreaker(t, BreakerConfig{MinCalls: 5})
	report(t, b, "FFFS")
	require.Equal(t, BreakerClosed, b.State())
	report(t, b, "S")
	require.Equal(t, BreakerOpen, b.State())
}

func TestB05_TheRateIsUnknownBelowTheMinimum(t *testing.T) {
	b := newTestBreaker(t, BreakerConfig{})
	report(t, b, "FSSSSSSSS")
	require.InDelta(t, -1, b.Stats().FailureRate, 0)
	report(t, b, "S")
	require.InDelta(t, 0.1, b.Stats().FailureRate, 1e-9)
}

func TestB08_TheWindowEndsAtItsBoundary(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestBreaker(t, BreakerConfig{})
		report(t, b, "SF")
		time.Sleep(10*time.Second - 1)
		require.Equal(t, BreakerCounts{Successes: 1, Failures: 1}, b.Stats().Window)
		time.Sleep(1)
		require.Zero(t, b.Stats().Window)
		time.Sleep(time.Millisecond)
		require.Zero(t, b.Stats().Window)
	})
}

func TestB08_TheWindowSlidesBySeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestBreaker(t, BreakerConfig{})
		for range 10 {
			report(t, b, "S")
			time.Sleep(time.Second)
		}
		require.Equal(t, 9, b.Stats().Window.Successes)
		time.Sleep(time.Second)
		require.Equal(t, 8, b.Stats().Window.Successes)
	})
}

func TestB08_TheRateFollowsTheWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestBreaker(t, BreakerConfig{MinCalls: 1, MetricsOnly: true})
		type row struct {
			n    int
			rate float64
		}
		var got []row
		for _, pair := range []string{"FS", "FS", "SS", "SS", "SS", ""} {
			report(t, b, pair)
			time.Sleep(2 * time.Second)
			s := b.Stats()
			got = append(got, row{s.Window.Successes + s.Window.Failures, math.Round(s.FailureRate*1000) / 1000})
		}
		require.Equal(t, []row{{2, .5}, {4, .5}, {6, .333}, {8, .25}, {8, .125}, {6, 0}}, got)
	})
}

func TestB09_AnIdleHourForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestBreaker(t, BreakerConfig{MinCalls: 100})
		for range 50 {
			report(t, b, "F")
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(time.Hour)
		report(t, b, "F")
		require.Equal(t, BreakerCounts{Failures: 1}, b.Stats().Window)
		require.Equal(t, BreakerClosed, b.State())
	})
}

func TestB10_SlowCallsOpenTheCircuit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var events heard
		b := newTestBreaker(t, BreakerConfig{SlowCall: 4 * time.Second, MinCalls: 5, Window: time.Minute, OnEvent: events.listen})
		for _, took := range []time.Duration{5 * time.Second, 5 * time.Second, 100 * time.Millisecond, 100 * time.Millisecond} {
			done := admits(t, b)
			time.Sleep(took)
			done(OutcomeSuccess)
		}
		require.Equal(t, BreakerClosed, b.State())
		done := admits(t, b)
		time.Sleep(5 * time.Second)
		done(OutcomeSuccess)
		require.Equal(t, BreakerOpen, b.State())
		require.Equal(t, BreakerCounts{Successes: 5, Slow: 3}, b.Stats().LastTrip)
		_, err := b.Allow()
		require.ErrorContains(t, err, "slow")
		synctest.Wait()
		require.Equal(t, "slow", events.all[0].Cause)
	})
}

func TestB10_ExactlyTheLimitIsNotSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestBreaker(t, BreakerConfig{SlowCall: 4 * time.Second, MinCalls: 1})
		done := admits(t, b)
		time.Sleep(4 * time.Second)
		done(OutcomeSuccess)
		require.Zero(t, b.Stats().Window.Slow)
		done = admits(t, b)
		time.Sleep(4*time.Second + 1)
		done(OutcomeSuccess)
		require.Equal(t, 1, b.Stats().LastTrip.Slow)
	})
}

func TestB11_A503CountsAndIsReturned(t *testing.T) {
	b := newTestBreaker(t, BreakerConfig{})
	resp, err := through(t.Context(), b, answering(http.StatusServiceUnavailable))
	require.NoError(t, err)
	require.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
	require.Equal(t, BreakerCounts{Failures: 1}, b.Stats().Window)
}

// cutShort is a body that ends in an error.
type cutShort struct{ io.Reader }

func (cutShort) Close() error { return nil }

func TestB12_WhatAnAnswerSaysAboutTheServer(t *testing.T) {
	cut := RoundTripFunc(func(*http.Request) (*http.Response, error) {
		body := cutShort{io.MultiReader(strings.NewReader("half"), errorReader{io.ErrUnexpectedEOF})}
		return &http.Response{StatusCode: http.StatusOK, Body: body, ContentLength: 10}, nil
	})
	stream := RoundTripFunc(func(*http.Request) (*http.Response, error) {
		header := http.Header{"Content-Type": {"text/event-stream"}}
		return &http.Response{StatusCode: http.StatusOK, Body: cutShort{errorReader{io.ErrUnexpectedEOF}}, Header: header, ContentLength: -1}, nil
	})
	tests := map[string]struct {
		next http.RoundTripper
		want Outcome
	}{
		"200":                  {answering(http.StatusOK), OutcomeSuccess},
		"301":                  {answering(http.StatusMovedPermanently), OutcomeSuccess},
		"404":                  {answering(http.StatusNotFound), OutcomeSuccess},
		"408":                  {answering(http.StatusRequestTimeout), OutcomeSuccess},
		"429":                  {answering(http.StatusTooManyRequests), OutcomeIgnored},
		"500":                  {answering(http.StatusInternalServerError), OutcomeFailure},
		"599":                  {answering(599), OutcomeFailure},
		"transport":            {failingWith(io.ErrUnexpectedEOF), OutcomeFailure},
		"dial, provably":       {failingWith(MarkNotSent(errors.New("no route"))), OutcomeFailure},
		"neither":              {RoundTripFunc(func(*http.Request) (*http.Response, error) { return nil, nil }), OutcomeFailure}, //nolint:nilnil // on purpose
		"cut short":            {cut, OutcomeFailure},
		"a stream, at headers": {stream, OutcomeSuccess},
		"too large":            {failingWith(&Error{Layer: "timeout", Err: ErrTooLarge}), OutcomeSuccess},
		"attempt limit":        {failingWith(&Error{Layer: "timeout", Limit: "request", Err: ErrTimeout}), OutcomeFailure},
		"lingering attempt":    {failingWith(&lingering{err: ErrTimeout}), OutcomeFailure},
		"foreign cancellation": {failingWith(context.Canceled), OutcomeFailure},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			b := newTestBreaker(t, BreakerConfig{})
			resp, err := through(t.Context(), b, tt.next)
			if err == nil {
				require.NoError(t, resp.Body.Close())
			}
			requireTotals(t, b, tt.want)
		})
	}
}

type errorReader struct{ err error }

func (r errorReader) Read([]byte) (int, error) { return 0, r.err }

// requireTotals checks that exactly one call was counted, with this outcome, in the window too unless it is ignored.
func requireTotals(t *testing.T, b *Breaker, want Outcome) {
	t.Helper()
	s := b.Stats()
	require.Equal(t, map[Outcome]uint64{want: 1}, nonZero(map[Outcome]uint64{
		OutcomeSuccess: s.Successes, OutcomeFailure: s.Failures, OutcomeIgnored: s.Ignored,
	}))
	inWindow := map[Outcome]BreakerCounts{OutcomeSuccess: {Successes: 1}, OutcomeFailure: {Failures: 1}, OutcomeIgnored: {}}
	require.Equal(t, inWindow[want], s.Window)
}

func nonZero(m map[Outcome]uint64) map[Outcome]uint64 {
	for k, v := range m {
		if v == 0 {
			delete(m, k)
		}
	}
	return m
}

// obeying waits for the end of the request's context and fails with its cause, as net/http does.
var obeying = RoundTripFunc(func(req *http.Request) (*http.Response, error) {
	<-req.Context().Done()
	return nil, context.Cause(req.Context())
})

func TestB13_CallerCancelIsNotAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestBreaker(t, BreakerConfig{MinCalls: 1})
		hungUp := errors.New("the user closed the tab")
		for range 12 {
			ctx, cancel := context.WithCancelCause(t.Context())
			time.AfterFunc(time.Second, func() { cancel(hungUp) })
			_, err := through(ctx, b, obeying)
			require.ErrorIs(t, err, hungUp)
		}
		require.Equal(t, BreakerClosed, b.State())
		require.Zero(t, b.Stats().Window)
		require.EqualValues(t, 12, b.Stats().Ignored)
	})
}

func TestB13_TheCallersOwnDeadlineIsNotAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestBreaker(t, BreakerConfig{MinCalls: 1})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := through(ctx, b, obeying)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		requireTotals(t, b, OutcomeIgnored)
	})
}

func TestB13_TheTimeoutOfAnHTTPClientIsTheCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestBreaker(t, BreakerConfig{MinCalls: 1})
		client := &http.Client{Transport: b.Wrap(obeying), Timeout: time.Second}
		resp, err := client.Get("http://server.test/") //nolint:noctx // the client's timeout is the point
		if err == nil {
			require.NoError(t, resp.Body.Close())
		}
		require.Error(t, err)
		requireTotals(t, b, OutcomeIgnored)
	})
}

func TestB13_OurBudgetIsAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestBreaker(t, BreakerConfig{})
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, errBudget)
		defer cancel()
		_, err := through(ctx, b, obeying)
		require.ErrorIs(t, err, ErrTimeout)
		requireTotals(t, b, OutcomeFailure)
	})
}

func TestB13_AFlightGivenUpByTimeCountsOnce(t *testing.T) {
	// The flight reports like this when its last caller gives up; its own end must not count again.
	b := newTestBreaker(t, BreakerConfig{})
	gate := b.gate(b.key)
	ticket, _, err := gate.Enter()
	require.NoError(t, err)
	tr := &trip{call: Call{Operation: "ring"}, flight: &flight{}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://server.test/", nil)
	require.NoError(t, err)
	ticket = gate.Once(ticket)
	next := legOf(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
		gate.Leave(ticket, givenUp)
		return answering(http.StatusOK)(req)
	}))
	_, err = observeFlight(t.Context(), tr, req, next, gate, ticket)
	require.NoError(t, err)
	requireTotals(t, b, OutcomeFailure)
}

func TestB14_PanicCountsAndGoesOn(t *testing.T) {
	b := newTestBreaker(t, BreakerConfig{})
	value := errors.New("the very same value")
	require.PanicsWithValue(t, value, func() {
		_, _ = through(t.Context(), b, RoundTripFunc(func(*http.Request) (*http.Response, error) { panic(value) }))
	})
	requireTotals(t, b, OutcomeFailure)
	_, err := through(t.Context(), b, answering(http.StatusOK))
	require.NoError(t, err)
}

// exitInside runs one call whose transport calls runtime.Goexit.
func exitInside(ctx context.Context, b *Breaker) {
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = through(ctx, b, RoundTripFunc(func(*http.Request) (*http.Response, error) {
			runtime.Goexit()
			return nil, nil //nolint:nilnil // not reached
		}))
	})
	wg.Wait()
}

func TestB14_GoexitCounts(t *testing.T) {
	b := newTestBreaker(t, BreakerConfig{})
	exitInside(t.Context(), b)
	requireTotals(t, b, OutcomeFailure)
}

func TestB15_RefusalsOfOurOwnLayersDoNotCount(t *testing.T) {
	for _, sentinel := range []error{ErrFull, ErrOpen, ErrStore, ErrClosed, ErrInFlight} {
		b := newTestBreaker(t, BreakerConfig{})
		refusal := (&trip{}).refuse("below", sentinel)
		_, err := through(t.Context(), b, failingWith(fmt.Errorf("wrapped: %w", refusal)))
		require.ErrorIs(t, err, sentinel)
		requireTotals(t, b, OutcomeIgnored)
	}
}

func TestB15_ItsOwnRefusalsDoNotCount(t *testing.T) {
	b := openedBreaker(t, BreakerConfig{})
	before := b.Stats()
	for range 9 {
		refusedBy(t, b)
	}
	after := b.Stats()
	require.Equal(t, before.Window, after.Window)
	require.Equal(t, before.Failures, after.Failures)
	require.EqualValues(t, 9, after.Rejected)
}

func TestB18_RecordingAllocatesNothing(t *testing.T) {
	b := newTestBreaker(t, BreakerConfig{MetricsOnly: true})
	tr := &trip{call: Call{Operation: "op"}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://server.test/", nil)
	require.NoError(t, err)
	next := emptyLeg{&http.Response{StatusCode: http.StatusInternalServerError}}
	for range 100_000 {
		_, _ = b.pass(context.Background(), tr, req, next) //nolint:bodyclose // there is none
	}
	require.Zero(t, testing.AllocsPerRun(100, func() { _, _ = b.pass(context.Background(), tr, req, next) })) //nolint:bodyclose // there is none
}

func TestB18_ACallLongerThanTheWindowCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestBreaker(t, BreakerConfig{MinCalls: 30})
		var pending []func(Outcome)
		for range 30 {
			pending = append(pending, admits(t, b))
		}
		time.Sleep(12 * time.Second)
		for _, done := range pending {
			done(OutcomeFailure)
		}
		require.Equal(t, BreakerOpen, b.State())
	})
}

func TestB19_ARefusalSaysWhyAndForHowLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestBreaker(t, BreakerConfig{MinCalls: 1, OpenFor: time.Second})
		_, err := through(t.Context(), b, answering(http.StatusBadGateway))
		require.NoError(t, err)
		for _, left := range []time.Duration{time.Second, 500 * time.Millisecond} {
			ctx := WithCall(t.Context(), Call{Operation: "list"})
			_, err = through(ctx, b, RoundTripFunc(func(*http.Request) (*http.Response, error) {
				t.Error("sent through an open circuit")
				return nil, io.EOF
			}))
			var e *Error
			require.ErrorAs(t, err, &e)
			require.Equal(t, left, e.RetryAfter)
			require.Equal(t, "breaker: list: circuit open: last failure: status 502", e.Error())
			require.ErrorIs(t, err, ErrOpen)
			require.True(t, NotSent(err))
			require.False(t, InDoubt(err))
			require.Equal(t, left, b.Stats().RetryAfter)
			time.Sleep(500 * time.Millisecond)
		}
		b.ForceOpen()
		require.Zero(t, refusedBy(t, b))
	})
}

type closeCounter struct {
	io.Reader
	closed int
}

func (c *closeCounter) Close() error { c.closed++; return nil }

func TestB19_ARefusalClosesTheBody(t *testing.T) {
	b := openedBreaker(t, BreakerConfig{})
	body := &closeCounter{Reader: strings.NewReader("x")}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://server.test/", body)
	require.NoError(t, err)
	_, err = b.Wrap(answering(http.StatusOK)).RoundTrip(req)
	require.ErrorIs(t, err, ErrOpen)
	require.Equal(t, 1, body.closed)
}

func TestB20_ConcurrentFailuresOpenOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var events heard
		var told atomic.Int32
		b := newTestBreaker(t, BreakerConfig{OnEvent: events.listen})
		b.opened = func() { told.Add(1) }
		var pending []func(Outcome)
		for range 25 {
			pending = append(pending, admits(t, b))
		}
		for _, done := range pending {
			go done(OutcomeFailure)
		}
		synctest.Wait()
		require.Equal(t, []EventKind{EventCircuitOpen}, events.kinds())
		require.EqualValues(t, 1, told.Load())
		open := events.all[0]
		require.Equal(t, "closed", open.From)
		require.Equal(t, "open", open.To)
		require.Equal(t, 10, open.Count)
		require.Equal(t, 30*time.Second, open.Duration)
		require.Equal(t, "reported", open.Cause)
	})
}

func TestB21_ALateFailureDoesNotProlong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var events heard
		b := newTestBreaker(t, BreakerConfig{MinCalls: 1, OpenFor: 5 * time.Second, OnEvent: events.listen})
		older := make(chan error)
		go func() {
			_, err := through(t.Context(), b, RoundTripFunc(func(*http.Request) (*http.Response, error) {
				time.Sleep(3 * time.Second)
				return nil, io.ErrUnexpectedEOF
			}))
			older <- err
		}()
		synctest.Wait()
		report(t, b, "F")
		require.ErrorIs(t, <-older, io.ErrUnexpectedEOF)
		require.Equal(t, 2*time.Second, refusedBy(t, b))
		synctest.Wait()
		require.Equal(t, []EventKind{EventCircuitOpen}, events.kinds())
		require.EqualValues(t, 2, b.Stats().Failures, "it is in the totals all the same")
	})
}

func TestB22_ALateSuccessDoesNotClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestBreaker(t, BreakerConfig{MinCalls: 1})
		older := admits(t, b)
		report(t, b, "F")
		time.Sleep(31 * time.Second) // the period is over, but nobody has come yet
		older(OutcomeSuccess)
		require.Equal(t, BreakerHalfOpen, b.State())
		require.Zero(t, b.Stats().Closed)
		require.Zero(t, b.Stats().HalfOpened)
	})
}

func TestB23_ATrialIsAdmittedAtExactlyTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openedBreaker(t, BreakerConfig{OpenFor: 5 * time.Second})
		time.Sleep(3 * time.Second)
		refusedBy(t, b)
		time.Sleep(2*time.Second - 1)
		require.Equal(t, time.Duration(1), refusedBy(t, b))
		require.EqualValues(t, 2, b.Stats().Rejected)
		time.Sleep(1)
		admits(t, b)
		require.Equal(t, BreakerHalfOpen, b.State())
		require.EqualValues(t, 1, b.Stats().HalfOpened)
	})
}

func TestB24_WaitsGrowAndStartAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 20 { // for the jitter
			b := openedBreaker(t, BreakerConfig{OpenFor: time.Second, MaxOpenFor: 8 * time.Second})
			for _, full := range []time.Duration{2 * time.Second, 4 * time.Second, 8 * time.Second, 8 * time.Second} {
				time.Sleep(b.Stats().RetryAfter)
				report(t, b, "F")
				wait := refusedBy(t, b)
				require.LessOrEqual(t, wait, full)
				require.GreaterOrEqual(t, wait, full*3/4)
			}
			time.Sleep(b.Stats().RetryAfter)
			report(t, b, "S")
			require.Equal(t, BreakerClosed, b.State())
			report(t, b, "F")
			require.Equal(t, time.Second, refusedBy(t, b))
		}
	})
}

func TestB24_WithoutGrowthTheWaitIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openedBreaker(t, BreakerConfig{OpenFor: time.Second, MaxOpenFor: time.Second})
		for range 3 {
			time.Sleep(time.Second)
			report(t, b, "F")
			require.Equal(t, time.Second, refusedBy(t, b))
		}
	})
}

func TestB25_TheLongestWaitDoesNotOverflow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestBreaker(t, BreakerConfig{MinCalls: 1, OpenFor: math.MaxInt64, TrialLimit: math.MaxInt64})
		time.Sleep(time.Hour)
		report(t, b, "F")
		require.Equal(t, time.Duration(math.MaxInt64)-time.Hour, refusedBy(t, b))
		require.Equal(t, BreakerOpen, b.State())
	})
}

// The wall clock cannot be set here. What makes it not matter is that every instant is a monotonic difference to an epoch
// that has a monotonic reading; the wall part of that epoch may be anything. More of B26 is in internal/circuit.
func TestB26_TheClockOfCircuitsIsMonotonic(t *testing.T) {
	b, err := NewBreaker(BreakerConfig{})
	require.NoError(t, err)
	require.Contains(t, b.gateConfig().Epoch.String(), " m=")
}

func TestB27_OneTrialTheOthersAreRefusedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openedBreaker(t, BreakerConfig{})
		time.Sleep(30 * time.Second)
		var ran, refused atomic.Int32
		var wg sync.WaitGroup
		start := time.Now()
		for range 20 {
			wg.Go(func() {
				_, err := through(t.Context(), b, RoundTripFunc(func(req *http.Request) (*http.Response, error) {
					ran.Add(1)
					time.Sleep(time.Second)
					return answering(http.StatusOK)(req)
				}))
				if err != nil {
					refused.Add(1)
					require.ErrorIs(t, err, ErrOpen)
					require.Equal(t, start, time.Now())
				}
			})
		}
		wg.Wait()
		require.EqualValues(t, 1, ran.Load())
		require.EqualValues(t, 19, refused.Load())
		require.Equal(t, BreakerClosed, b.State())
	})
}

func TestB28_PermitsAreExactAndComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openedBreaker(t, BreakerConfig{Trials: 4})
		for range 2 {
			time.Sleep(b.Stats().RetryAfter)
			var trials []func(Outcome)
			for range 4 {
				trials = append(trials, admits(t, b))
			}
			require.Zero(t, refusedBy(t, b))
			refusedBy(t, b)
			trials[2](OutcomeIgnored)
			again := admits(t, b)
			refusedBy(t, b)
			again(OutcomeFailure)
			require.Equal(t, BreakerOpen, b.State())
		}
	})
}

func TestB29_AllTrialsMustPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openedBreaker(t, BreakerConfig{Trials: 4})
		time.Sleep(30 * time.Second)
		report(t, b, "SSS")
		require.Equal(t, BreakerHalfOpen, b.State())
		report(t, b, "S")
		require.Equal(t, BreakerClosed, b.State())
		require.Zero(t, b.Stats().Window)

		report(t, b, "F")
		time.Sleep(30 * time.Second)
		report(t, b, "SSSF")
		require.Equal(t, BreakerOpen, b.State())
	})
}

func TestB29_ASlowTrialHasNotPassed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openedBreaker(t, BreakerConfig{SlowCall: 4 * time.Second})
		time.Sleep(30 * time.Second)
		done := admits(t, b)
		time.Sleep(5 * time.Second)
		done(OutcomeSuccess)
		require.Equal(t, BreakerOpen, b.State())
	})
}

func TestB30_OneFailedTrialOpensAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestBreaker(t, BreakerConfig{OpenFor: 5 * time.Second, MaxOpenFor: 5 * time.Second})
		report(t, b, "FFFFFFFFFF")
		time.Sleep(7 * time.Second)
		report(t, b, "F")
		require.Equal(t, BreakerOpen, b.State())
		require.Equal(t, 5*time.Second, refusedBy(t, b))
	})
}

func TestB31_IgnoredTrialsKeepHalfOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openedBreaker(t, BreakerConfig{Trials: 4})
		time.Sleep(30 * time.Second)
		report(t, b, "IIII")
		require.Equal(t, BreakerHalfOpen, b.State())
		report(t, b, "SSIS")
		require.Equal(t, BreakerHalfOpen, b.State())
		report(t, b, "S")
		require.Equal(t, BreakerClosed, b.State())
	})
}

func TestB32_ATrialCancelledByItsCallerDecidesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openedBreaker(t, BreakerConfig{})
		time.Sleep(30 * time.Second)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		_, err := through(ctx, b, obeying)
		require.ErrorIs(t, err, context.Canceled)
		require.Equal(t, BreakerHalfOpen, b.State())
		_, err = through(t.Context(), b, answering(http.StatusOK))
		require.NoError(t, err)
		require.Equal(t, BreakerClosed, b.State())
	})
}

func TestB33_ATrialThatPanicsOrExitsOpensAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openedBreaker(t, BreakerConfig{})
		time.Sleep(30 * time.Second)
		require.Panics(t, func() {
			_, _ = through(t.Context(), b, RoundTripFunc(func(*http.Request) (*http.Response, error) { panic("trial") }))
		})
		require.Equal(t, BreakerOpen, b.State())

		time.Sleep(b.Stats().RetryAfter)
		exitInside(t.Context(), b)
		require.Equal(t, BreakerOpen, b.State())

		time.Sleep(b.Stats().RetryAfter)
		report(t, b, "S")
		require.Equal(t, BreakerClosed, b.State())
	})
}

func TestB34_ATrialThatHangsIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var events heard
		var told atomic.Int32
		b := openedBreaker(t, BreakerConfig{
			OpenFor: 10 * time.Second, MaxOpenFor: 10 * time.Second, TrialLimit: time.Second, OnEvent: events.listen,
		})
		b.opened = func() { told.Add(1) }
		time.Sleep(10 * time.Second)
		hanging := admits(t, b)
		time.Sleep(time.Second - 1)
		require.Equal(t, BreakerHalfOpen, b.State())
		time.Sleep(time.Second + 1)
		require.Equal(t, BreakerOpen, b.State(), "seen by a read, before anybody moved it")
		require.EqualValues(t, 1, b.Stats().Opened)
		require.Equal(t, 9*time.Second, b.Stats().RetryAfter, "it opened at the limit, not when somebody looked")
		require.Zero(t, told.Load())
		require.Equal(t, 9*time.Second, refusedBy(t, b))
		require.EqualValues(t, 1, told.Load())

		time.Sleep(9 * time.Second)
		next := admits(t, b)
		hanging(OutcomeSuccess)
		require.Equal(t, BreakerHalfOpen, b.State(), "a late result changes nothing")
		next(OutcomeSuccess)
		require.Equal(t, BreakerClosed, b.State())
		hanging(OutcomeFailure)
		synctest.Wait()
		require.Equal(t, []EventKind{
			EventCircuitOpen, EventCircuitHalfOpen, EventCircuitOpen, EventCircuitHalfOpen, EventCircuitClose,
		}, events.kinds())
		require.Equal(t, "abandoned", events.all[2].Cause)
	})
}

func TestB34_NobodyLooksUntilThatPeriodIsOverToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var events heard
		b := openedBreaker(t, BreakerConfig{Trials: 2, TrialLimit: time.Second, OnEvent: events.listen})
		time.Sleep(30 * time.Second)
		report(t, b, "S")
		hanging := admits(t, b)
		time.Sleep(time.Hour)
		require.Equal(t, BreakerHalfOpen, b.State())
		require.NoError(t, b.refusal(Call{}))
		report(t, b, "S")
		require.Equal(t, BreakerHalfOpen, b.State(), "the success before the hanging trial is of another period")
		hanging(OutcomeSuccess)
		require.Equal(t, BreakerHalfOpen, b.State())
		report(t, b, "S")
		require.Equal(t, BreakerClosed, b.State())
		synctest.Wait()
		require.Equal(t, []EventKind{
			EventCircuitOpen, EventCircuitHalfOpen, EventCircuitOpen, EventCircuitHalfOpen, EventCircuitClose,
		}, events.kinds())
	})
}

func TestB34_AResultAtTheLimitIsTooLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openedBreaker(t, BreakerConfig{TrialLimit: time.Second})
		time.Sleep(30 * time.Second)
		trial := admits(t, b)
		time.Sleep(time.Second)
		trial(OutcomeSuccess)
		require.Equal(t, BreakerOpen, b.State())
	})
}

func TestB35_ASuccessFromBeforeTheOpeningIsNoTrial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestBreaker(t, BreakerConfig{MinCalls: 1})
		older := admits(t, b)
		report(t, b, "F")
		time.Sleep(30 * time.Second)
		trial := admits(t, b)
		older(OutcomeSuccess)
		require.Equal(t, BreakerHalfOpen, b.State())
		refusedBy(t, b)
		trial(OutcomeSuccess)
		require.Equal(t, BreakerClosed, b.State())
	})
}

func TestB38_A404AsTrialClosesA429DecidesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openedBreaker(t, BreakerConfig{})
		time.Sleep(30 * time.Second)
		_, err := through(t.Context(), b, answering(http.StatusTooManyRequests))
		require.NoError(t, err)
		require.Equal(t, BreakerHalfOpen, b.State())
		_, err = through(t.Context(), b, answering(http.StatusNotFound))
		require.NoError(t, err)
		require.Equal(t, BreakerClosed, b.State())
	})
}

func TestB39_AClosedCircuitStartsFromNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newTestBreaker(t, BreakerConfig{Window: time.Hour})
		report(t, b, "FFFFFFFFFF")
		time.Sleep(30 * time.Second)
		report(t, b, "S")
		report(t, b, "F")
		require.Equal(t, BreakerClosed, b.State())
		require.Equal(t, BreakerCounts{Failures: 1}, b.Stats().Window)
	})
}

func TestB40_ResetFromAnyState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		prepare := map[string]func(b *Breaker){
			"closed":      func(*Breaker) {},
			"open":        func(b *Breaker) { report(t, b, "FF") },
			"half-open":   func(b *Breaker) { report(t, b, "FF"); time.Sleep(30 * time.Second); admits(t, b) },
			"forced":      func(b *Breaker) { b.ForceOpen() },
			"forced shut": func(b *Breaker) { b.ForceClose() },
		}
		for name, reach := range prepare {
			var events heard
			b := newTestBreaker(t, BreakerConfig{MinCalls: 2, OnEvent: events.listen})
			older := admits(t, b)
			reach(b)
			synctest.Wait()
			before := len(events.kinds())
			b.Reset()
			synctest.Wait()
			require.Equal(t, []EventKind{EventCircuitReset}, events.kinds()[before:], name)
			require.Equal(t, BreakerClosed, b.State(), name)
			require.Zero(t, b.Stats().Window, name)
			older(OutcomeFailure)
			require.Zero(t, b.Stats().Window, "%s: a call from before counts no more", name)
			report(t, b, "FF")
			require.Equal(t, 30*time.Second, refusedBy(t, b), name)
		}
	})
}

func TestB41_ForcedOpenStaysOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var events heard
		var told atomic.Int32
		b := newTestBreaker(t, BreakerConfig{MinCalls: 1, OpenFor: 5 * time.Second, OnEvent: events.listen})
		b.opened = func() { told.Add(1) }
		b.ForceOpen()
		since := b.Stats().OpenSince
		refusedBy(t, b)
		_, err := through(t.Context(), b, answering(200))
		require.EqualError(t, err, "breaker: GET: circuit open: by ForceOpen", "nothing failed")
		time.Sleep(6 * time.Second)
		b.ForceOpen()
		refusedBy(t, b)
		require.Equal(t, since, b.Stats().OpenSince)
		require.EqualValues(t, 3, b.Stats().Rejected)
		require.True(t, b.Stats().Forced)
		require.EqualValues(t, 1, told.Load())
		b.ForceClose()
		report(t, b, "FFF")
		require.Equal(t, BreakerClosed, b.State())
		synctest.Wait()
		require.Equal(t, []EventKind{EventCircuitOpen, EventCircuitClose}, events.kinds())
		require.Equal(t, "forced", events.all[0].Cause)
	})
}

func TestB41_ForcedOpenWhileOpenByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openedBreaker(t, BreakerConfig{})
		b.ForceOpen()
		time.Sleep(time.Hour)
		refusedBy(t, b)
		require.Equal(t, BreakerOpen, b.State())
	})
}

func TestB42_OffAdmitsEverything(t *testing.T) {
	b := newTestBreaker(t, BreakerConfig{Off: true})
	require.Nil(t, b)
	next := answering(http.StatusOK)
	require.NotNil(t, b.Wrap(next))
	_, err := Chain(b).Wrap(next).RoundTrip(&http.Request{})
	require.NoError(t, err)
	report(t, b, "FFFFFFFFFFFFFFF")
	b.ForceOpen()
	b.ForceClose()
	b.Reset()
	require.Equal(t, BreakerClosed, b.State())
	require.Equal(t, BreakerStats{FailureRate: -1, SlowRate: -1, Share: 1}, b.Stats())
	require.Nil(t, b.Circuit("x"))
}

func TestB42_ForcedClosedRecordsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var events heard
		b := newTestBreaker(t, BreakerConfig{MinCalls: 5, OnEvent: events.listen})
		report(t, b, "FFFF")
		b.ForceClose()
		report(t, b, "FFFFFFFFFFFF")
		require.Equal(t, BreakerClosed, b.State())
		require.Zero(t, b.Stats().Window)
		synctest.Wait()
		require.Empty(t, events.kinds())
		b.Reset()
		report(t, b, "FFFF")
		require.Equal(t, BreakerClosed, b.State(), "counting from zero")
		report(t, b, "F")
		require.Equal(t, BreakerOpen, b.State())
	})
}

func TestB42_MetricsOnlyTellsOncePerExcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var events heard
		b := newTestBreaker(t, BreakerConfig{MinCalls: 2, MetricsOnly: true, OnEvent: events.listen})
		report(t, b, "FFFF")
		synctest.Wait()
		require.Equal(t, []EventKind{EventCircuitExceeded}, events.kinds())
		report(t, b, "SSSSS") // below again
		report(t, b, "FF")
		synctest.Wait()
		require.Equal(t, []EventKind{EventCircuitExceeded, EventCircuitExceeded}, events.kinds())
		require.Equal(t, BreakerClosed, b.State())
	})
}

func TestB43_AListenerHarmsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var heardEvents heard
		var b *Breaker
		block := make(chan struct{})
		b = newTestBreaker(t, BreakerConfig{MinCalls: 1, OnEvent: func(e Event) {
			heardEvents.listen(e)
			_ = b.State()
			if done, err := b.Allow(); err == nil {
				done(OutcomeIgnored)
			}
			b.Stats()
			switch e.Kind {
			case EventCircuitOpen:
				<-block
			case EventCircuitHalfOpen:
				panic("listener")
			}
		}})
		report(t, b, "F")
		time.Sleep(30 * time.Second)
		report(t, b, "S")
		require.Equal(t, BreakerClosed, b.State(), "nobody waited for the listener")
		close(block)
		synctest.Wait()
		require.Equal(t, []EventKind{EventCircuitOpen, EventCircuitHalfOpen, EventCircuitClose}, heardEvents.kinds())
	})
}

func TestB45_AllFaultsAtOnce(t *testing.T) {
	_, err := NewBreaker(BreakerConfig{
		FailureRate: math.NaN(), MinCalls: -1, Window: 5, OpenFor: -1, MaxOpenFor: -1, Trials: -1, TrialLimit: -1,
		Ramp: -2, SlowCall: -2, SlowRate: 1.01, MaxKeys: -2,
	})
	for _, field := range []string{
		"FailureRate", "MinCalls", "Window", "OpenFor", "MaxOpenFor", "Trials", "TrialLimit", "Ramp", "SlowCall", "SlowRate", "MaxKeys",
	} {
		require.ErrorContains(t, err, "Breaker."+field+":")
	}
	faulty := map[string]BreakerConfig{
		"FailureRate": {FailureRate: -0.1},
		"SlowRate":    {SlowRate: 0.5},
		"MaxOpenFor":  {MaxOpenFor: time.Second},
		"Trials":      {Trials: 1001},
		"Window":      {Window: -1},
	}
	for field, c := range faulty {
		_, err := NewBreaker(c)
		require.ErrorContains(t, err, "Breaker."+field+":")
	}
}

func TestB45_ZeroIsTheDefault(t *testing.T) {
	b := newTestBreaker(t, BreakerConfig{OpenFor: time.Hour})
	require.Equal(t, time.Hour, b.config.MaxOpenFor, "a default never contradicts what was set")
	_, err := NewBreaker(BreakerConfig{Ramp: -1, SlowCall: -1, MaxKeys: -1})
	require.NoError(t, err)
}

func TestB46_ManyBreakersLeaveNothingBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // the bubble does not end while a goroutine is left
		for range 100 {
			b := openedBreaker(t, BreakerConfig{OnEvent: func(Event) {}, Key: func(c Call) string { return c.Operation }})
			_, _ = through(t.Context(), b, answering(http.StatusOK))
			time.Sleep(30 * time.Second)
			admits(t, b) // and never done
		}
	})
}

func TestB47_DoneTwiceCountsOnce(t *testing.T) {
	b := newTestBreaker(t, BreakerConfig{MinCalls: 100})
	for range 200 { // more than share one word of marks
		done := admits(t, b)
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() { done(OutcomeSuccess) })
		}
		wg.Wait()
		done(OutcomeFailure)
	}
	require.EqualValues(t, 200, b.Stats().Successes)
	require.Zero(t, b.Stats().Failures)
}

func TestB47_ADoneNeverCalledIsReclaimed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openedBreaker(t, BreakerConfig{OpenFor: time.Second, MaxOpenFor: time.Second, TrialLimit: time.Minute})
		time.Sleep(time.Second)
		admits(t, b)
		time.Sleep(time.Minute + time.Second)
		report(t, b, "S")
		require.Equal(t, BreakerClosed, b.State())
	})
}

func TestB47_AllowCostsOneAllocation(t *testing.T) {
	b := newTestBreaker(t, BreakerConfig{})
	require.LessOrEqual(t, testing.AllocsPerRun(1000, func() {
		done, _ := b.Allow()
		done(OutcomeSuccess)
	}), 1.0)
	b.ForceOpen()
	require.LessOrEqual(t, testing.AllocsPerRun(1000, func() { _, _ = b.Allow() }), 1.0)
}

func TestB47_TheZeroOutcomeIsAFailure(t *testing.T) {
	b := newTestBreaker(t, BreakerConfig{})
	var forgotten Outcome
	admits(t, b)(forgotten)
	admits(t, b)(Outcome(77))
	require.Equal(t, BreakerCounts{Failures: 2}, b.Stats().Window)
}

func TestB48_Stress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const callers, calls, permits = 1000, 1000, 3
		var events heard
		b := newTestBreaker(t, BreakerConfig{Trials: permits, OpenFor: time.Millisecond, Window: time.Millisecond * 10, OnEvent: events.listen})
		var done, refused atomic.Uint64
		var wg sync.WaitGroup
		for i := range callers {
			wg.Go(func() {
				random := rand.New(rand.NewPCG(uint64(i), 1)) //nolint:gosec // a test
				for range calls {
					stressOnce(b, random, &done, &refused)
				}
			})
		}
		wg.Wait()
		synctest.Wait()
		s := b.Stats()
		require.Equal(t, done.Load(), s.Successes+s.Failures+s.Ignored)
		require.Equal(t, refused.Load(), s.Rejected)
		require.EqualValues(t, callers*calls, s.Successes+s.Failures+s.Ignored+s.Rejected)
		require.NotZero(t, s.Opened)
		requireLegalPath(t, events.all)
	})
}

func stressOnce(b *Breaker, random *rand.Rand, done, refused *atomic.Uint64) {
	report, err := b.Allow()
	if err != nil {
		refused.Add(1)
		time.Sleep(time.Duration(random.IntN(1000)) * time.Microsecond)
		return
	}
	if random.IntN(4) == 0 {
		time.Sleep(time.Duration(random.IntN(3000)) * time.Microsecond)
	}
	report(Outcome(random.IntN(3))) //nolint:gosec // small
	done.Add(1)
}

// requireLegalPath checks that each change starts where the one before it ended, and is one that a circuit can make.
func requireLegalPath(t *testing.T, events []Event) {
	t.Helper()
	legal := map[string]bool{"closed open": true, "open half-open": true, "half-open open": true, "half-open closed": true}
	at := "closed"
	for _, e := range events {
		if e.Kind == EventEventsDropped {
			return
		}
		require.Equal(t, at, e.From)
		require.True(t, legal[e.From+" "+e.To], "%s to %s", e.From, e.To)
		at = e.To
	}
}

func TestB48_NeverMoreTrialsThanPermits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openedBreaker(t, BreakerConfig{Trials: 3})
		for range 50 {
			time.Sleep(b.Stats().RetryAfter)
			var running, most atomic.Int32
			var wg sync.WaitGroup
			for range 100 {
				wg.Go(func() {
					done, err := b.Allow()
					if err != nil {
						return
					}
					most.Store(max(most.Load(), running.Add(1)))
					time.Sleep(time.Millisecond)
					running.Add(-1)
					done(OutcomeFailure)
				})
			}
			wg.Wait()
			require.LessOrEqual(t, most.Load(), int32(3))
			require.Equal(t, BreakerOpen, b.State())
		}
	})
}

func TestBreaker_ReadsMoveNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var events heard
		b := openedBreaker(t, BreakerConfig{OnEvent: events.listen, Key: func(c Call) string { return c.Operation }})
		time.Sleep(31 * time.Second)
		for range 10 {
			require.Equal(t, BreakerHalfOpen, b.State())
			require.Equal(t, BreakerHalfOpen, b.Stats().State)
			require.NoError(t, b.refusal(Call{}))
			require.NoError(t, b.refusal(Call{Operation: "other"}))
			require.Equal(t, BreakerClosed, b.Circuit("other").State())
			b.Circuit("other").Stats()
		}
		synctest.Wait()
		require.Equal(t, []EventKind{EventCircuitOpen}, events.kinds())
		require.Zero(t, b.Stats().HalfOpened)
		require.Zero(t, b.Stats().Circuits)
		admits(t, b)
	})
}

func TestBreaker_RefusalAsksWithoutTouching(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openedBreaker(t, BreakerConfig{})
		err := b.refusal(Call{Operation: "ring"})
		require.ErrorIs(t, err, ErrOpen)
		require.True(t, NotSent(err))
		require.Zero(t, b.Stats().Rejected)
		time.Sleep(30 * time.Second)
		require.NoError(t, b.refusal(Call{}))
		done := admits(t, b)
		require.ErrorIs(t, b.refusal(Call{}), ErrOpen, "all trials are taken")
		done(OutcomeIgnored)
		require.NoError(t, b.refusal(Call{}))
	})
}

func TestBreaker_OpenedIsToldWithoutLocks(t *testing.T) {
	b := newTestBreaker(t, BreakerConfig{MinCalls: 1})
	var seen BreakerState
	b.opened = func() {
		seen = b.State() // would hang under the lock
		require.Error(t, b.refusal(Call{}))
	}
	report(t, b, "F")
	require.Equal(t, BreakerOpen, seen)
}

func TestBreaker_TheShareGrowsAfterAClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openedBreaker(t, BreakerConfig{Ramp: 10 * time.Second})
		require.InDelta(t, 1, b.share(), 0)
		time.Sleep(30 * time.Second)
		report(t, b, "S")
		require.InDelta(t, 0.1, b.share(), 1e-9)
		time.Sleep(4 * time.Second)
		require.InDelta(t, 0.4, b.share(), 1e-9)
		require.InDelta(t, 0.4, b.Stats().Share, 1e-9)
		time.Sleep(6 * time.Second)
		require.InDelta(t, 1, b.share(), 0)

		none := openedBreaker(t, BreakerConfig{Ramp: -1})
		time.Sleep(30 * time.Second)
		report(t, none, "S")
		require.InDelta(t, 1, none.share(), 0)
	})
}

func byOperation(c Call) string { return c.Operation }

func ring(t *testing.T, b *Breaker, operation string, status int) error {
	t.Helper()
	_, err := through(WithCall(t.Context(), Call{Operation: operation}), b, answering(status))
	return err
}

func TestBreaker_EachKeyHasItsCircuit(t *testing.T) {
	b := newTestBreaker(t, BreakerConfig{MinCalls: 1, Key: byOperation})
	require.NoError(t, ring(t, b, "calls", http.StatusInternalServerError))
	require.ErrorIs(t, ring(t, b, "calls", http.StatusOK), ErrOpen)
	require.NoError(t, ring(t, b, "agents", http.StatusOK))
	require.Equal(t, BreakerOpen, b.Circuit("calls").State())
	require.Equal(t, BreakerClosed, b.Circuit("agents").State())
	require.Equal(t, BreakerClosed, b.State())
	require.Error(t, b.refusal(Call{Operation: "calls"}))
	require.NoError(t, b.refusal(Call{Operation: "agents"}))
	s := b.Stats()
	require.Equal(t, 2, s.Circuits)
	require.Equal(t, 1, s.OpenCircuits)

	b.Circuit("calls").Reset()
	require.NoError(t, ring(t, b, "calls", http.StatusOK))
	report(t, b.Circuit(""), "F")
	require.Equal(t, BreakerOpen, b.State(), "the empty key is the shared circuit")
}

func TestBreaker_ForcedByHandGoesToEveryCircuit(t *testing.T) {
	b := newTestBreaker(t, BreakerConfig{Key: byOperation})
	require.NoError(t, ring(t, b, "calls", http.StatusOK))
	b.ForceOpen()
	require.ErrorIs(t, ring(t, b, "calls", http.StatusOK), ErrOpen)
	require.Equal(t, BreakerOpen, b.Circuit("new").State())
	require.Error(t, b.refusal(Call{Operation: "new"}))
	require.ErrorIs(t, ring(t, b, "new", http.StatusOK), ErrOpen)
	b.Circuit("new").Reset()
	require.NoError(t, ring(t, b, "new", http.StatusOK))
	require.ErrorIs(t, ring(t, b, "calls", http.StatusOK), ErrOpen)
	b.Reset()
	require.NoError(t, ring(t, b, "calls", http.StatusOK))
	require.NoError(t, ring(t, b, "newer", http.StatusOK))
}

func TestBreaker_KeysAreBoundedAndTheIdleGoFirst(t *testing.T) {
	b := newTestBreaker(t, BreakerConfig{MinCalls: 1, MaxKeys: 3, Key: byOperation})
	require.NoError(t, ring(t, b, "open", http.StatusInternalServerError))
	require.NoError(t, ring(t, b, "old", http.StatusOK))
	require.NoError(t, ring(t, b, "fresh", http.StatusOK))
	require.NoError(t, ring(t, b, "new", http.StatusOK))
	require.Equal(t, 3, b.Stats().Circuits)
	require.Equal(t, BreakerOpen, b.Circuit("open").State(), "an open circuit is not forgotten for a closed one")
	require.Zero(t, b.Circuit("old").Stats().Successes)
	require.EqualValues(t, 1, b.Circuit("fresh").Stats().Successes)

	for i := range 100 {
		require.NoError(t, ring(t, b, "broken "+strconv.Itoa(i), http.StatusInternalServerError))
	}
	require.Equal(t, 3, b.Stats().Circuits, "also when none of them is closed")
}

func TestBreaker_WithoutKeyThereIsOneCircuit(t *testing.T) {
	b := newTestBreaker(t, BreakerConfig{})
	require.Same(t, b, b.Circuit("anything"))
}

func TestBreaker_AKeyFunctionThatPanicsUsesTheSharedCircuit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var events heard
		b := newTestBreaker(t, BreakerConfig{Key: func(Call) string { panic("key") }, OnEvent: events.listen})
		require.NoError(t, ring(t, b, "calls", http.StatusOK))
		require.EqualValues(t, 1, b.Stats().Successes)
		synctest.Wait()
		require.Equal(t, []EventKind{EventPanic}, events.kinds())
	})
}

func TestBreaker_TwoWrapsShareOneCircuit(t *testing.T) {
	b := newTestBreaker(t, BreakerConfig{MinCalls: 2})
	require.NoError(t, ring(t, b, "a", http.StatusInternalServerError))
	require.NoError(t, ring(t, b, "b", http.StatusInternalServerError))
	require.ErrorIs(t, ring(t, b, "c", http.StatusOK), ErrOpen)
}

func TestBreaker_NamesAreStable(t *testing.T) {
	require.Equal(t, "closed half-open open", fmt.Sprint(BreakerClosed, " ", BreakerHalfOpen, " ", BreakerOpen))
	require.Equal(t, "failure success ignored", fmt.Sprint(OutcomeFailure, " ", OutcomeSuccess, " ", OutcomeIgnored))
}

// B15: what never reached the wire is in no count: cached answers, shared ones, a full bulkhead, a shut gate.
func TestB15_NothingThatStayedHereIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{
			Fallback: FallbackConfig{ServeFresh: true},
			Bulkhead: BulkheadConfig{Critical: -1, Normal: 1, Bulk: -1, Queue: -1},
			Retry:    RetryConfig{Max: -1},
		})
		answer := func() *http.Response { return reply(200, "agent") }
		rt := s.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			time.Sleep(time.Second)
			return answer(), nil
		}))
		counts := func() [3]uint64 {
			b := s.Breaker.Stats()
			return [3]uint64{b.Successes, b.Failures, b.Ignored}
		}
		var wg sync.WaitGroup
		for range 50 { // one asks, the others share
			wg.Go(func() { _, err := fetch(t.Context(), t, rt); require.NoError(t, err) })
		}
		wg.Wait()
		require.Equal(t, [3]uint64{1, 0, 0}, counts())
		for range 200 {
			_, err := fetch(t.Context(), t, rt)
			require.NoError(t, err)
		}
		require.Equal(t, [3]uint64{1, 0, 0}, counts())

		wg.Go(func() { _, err := dial(t.Context(), t, rt, "a", dialBody); require.NoError(t, err) })
		synctest.Wait()
		for i := range 9 {
			_, err := dial(t.Context(), t, rt, fmt.Sprint("b", i), dialBody)
			require.ErrorIs(t, err, ErrFull)
		}
		wg.Wait()
		require.Equal(t, [3]uint64{2, 0, 0}, counts())

		answer = func() *http.Response { return reply(429, "", "Retry-After", "60") }
		_, err := dial(t.Context(), t, rt, "c", dialBody)
		require.NoError(t, err)
		require.Equal(t, [3]uint64{2, 0, 1}, counts())
		for i := range 9 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			_, err := dial(ctx, t, rt, fmt.Sprint("d", i), dialBody)
			cancel()
			require.ErrorIs(t, err, ErrThrottled)
		}
		require.Equal(t, [3]uint64{2, 0, 1}, counts())
		require.Equal(t, BreakerCounts{Successes: 2}, s.Breaker.Stats().Window)
		closeStack(t, s)
	})
}

// ForceOpen when the open period is over, but nobody has tried yet.
func TestBreaker_ForceOpenSendsThoseHomeWhoWaitForATrial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := New(Config{
			Bulkhead: BulkheadConfig{Total: 1},
			Breaker:  BreakerConfig{MinCalls: 1, OpenFor: time.Second},
		})
		require.NoError(t, err)
		release, err := s.Bulkhead.Acquire(t.Context(), PriorityNormal)
		require.NoError(t, err)
		done, err := s.Breaker.Allow()
		require.NoError(t, err)
		done(OutcomeFailure)
		time.Sleep(time.Second)
		require.Equal(t, BreakerHalfOpen, s.Breaker.State())
		var waiting error
		returned := make(chan struct{})
		go func() {
			defer close(returned)
			_, waiting = fetch(t.Context(), t, s.Wrap(slow(0)))
		}()
		synctest.Wait()
		require.Equal(t, 1, s.Bulkhead.Stats().Waiting)
		s.Breaker.ForceOpen()
		synctest.Wait()
		still := s.Bulkhead.Stats().Waiting
		release()
		<-returned
		require.ErrorIs(t, waiting, ErrOpen)
		require.Zero(t, still, "sent home at once")
	})
}

func TestB24_GrowthIsSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		seen := map[time.Duration]bool{}
		for range 20 {
			b, err := NewBreaker(BreakerConfig{MinCalls: 1, OpenFor: time.Second})
			require.NoError(t, err)
			for range 2 {
				time.Sleep(b.Stats().RetryAfter)
				done, err := b.Allow()
				require.NoError(t, err)
				done(OutcomeFailure)
			}
			wait := b.Stats().RetryAfter
			require.LessOrEqual(t, wait, 2*time.Second)
			require.GreaterOrEqual(t, wait, 1500*time.Millisecond)
			seen[wait] = true
		}
		require.Greater(t, len(seen), 10)
	})
}
