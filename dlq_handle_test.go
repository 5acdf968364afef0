package resilience

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// What a function of DLQ.Handle does through the stack with the context it gets is the letter's own call.

// sendCall is one piece of work under the key of ctx.
func sendCall(ctx context.Context, s *Stack, fn func(context.Context) (string, error)) (string, error) {
	return Do(ctx, s, Call{Operation: "send", Effect: EffectOnce, Params: "x"}, fn)
}

func TestDLQ_WhoJoinsTheWorkOfAHandleFunctionIsToldWhoseItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Retry: RetryConfig{Off: true}})
		failing := func(context.Context) (string, error) {
			time.Sleep(time.Second)
			return "", MarkNotSent(errDLQRefused)
		}
		s.DLQ.Handle("send", func(ctx context.Context, l Letter) error {
			_, err := sendCall(WithIdempotencyKey(ctx, l.Key), s, failing) // naming the letter's key again changes nothing
			return err
		})
		ctx := WithIdempotencyKey(t.Context(), "k")
		_, err := sendCall(ctx, s, failing)
		require.ErrorIs(t, err, ErrParked)
		time.Sleep(2 * time.Second)

		result := make(chan RedriveResult)
		go func() { result <- s.DLQ.Redrive(t.Context()) }()
		synctest.Wait()
		_, err = sendCall(ctx, s, failing)
		r := <-result
		l := dlqOnly(t, s.DLQ)
		closeStack(t, s)
		require.Equal(t, RedriveFailed, r.Status)
		require.Equal(t, LetterWaiting, l.State(), "the queue will do it")
		require.ErrorIs(t, err, ErrParked)
		require.False(t, NotSent(err), "the caller must not do it under another key")
		var e *Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, l.ID, e.LetterID)
	})
}

func TestDLQ_AHandleFunctionThatMeetsACallItsLetterTurnedAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{
			Retry:       RetryConfig{Off: true},
			Idempotency: IdempotencyConfig{Store: slowWrites{NewMemoryStore(0)}},
		})
		var down atomic.Bool
		down.Store(true)
		runs := 0
		work := func(context.Context) (string, error) {
			if down.Load() {
				return "", MarkNotSent(errDLQRefused)
			}
			runs++
			return "done", nil
		}
		s.DLQ.Handle("send", func(ctx context.Context, _ Letter) error {
			time.Sleep(100 * time.Millisecond)
			_, err := sendCall(ctx, s, work)
			return err
		})
		ctx := WithIdempotencyKey(t.Context(), "k")
		_, err := sendCall(ctx, s, work)
		require.ErrorIs(t, err, ErrParked)
		down.Store(false)
		time.Sleep(2 * time.Second)

		result := make(chan RedriveResult)
		go func() { result <- s.DLQ.Redrive(t.Context()) }()
		time.Sleep(95 * time.Millisecond)
		_, err = sendCall(ctx, s, work) // claims the key first, and meets the letter's lease
		r := <-result
		require.ErrorIs(t, err, ErrParked)
		require.Equal(t, RedrivePaused, r.Status, "nothing was done, and nothing is in doubt")
		l := dlqOnly(t, s.DLQ)
		require.False(t, l.InDoubt)
		require.Zero(t, l.Attempts)
		time.Sleep(5 * time.Second)
		require.Equal(t, RedriveDone, s.DLQ.Redrive(t.Context()).Status)
		closeStack(t, s)
		require.Equal(t, 1, runs)
	})
}

func TestDLQ_AnotherKeyInAHandleFunctionIsACallOfItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Retry: RetryConfig{Off: true}})
		failing := func(context.Context) (string, error) { return "", MarkNotSent(errDLQRefused) }
		var inner error
		s.DLQ.Handle("send", func(ctx context.Context, _ Letter) error {
			_, inner = sendCall(WithIdempotencyKey(ctx, "another"), s, failing)
			return nil
		})
		_, err := sendCall(WithIdempotencyKey(t.Context(), "k"), s, failing)
		require.ErrorIs(t, err, ErrParked)
		time.Sleep(2 * time.Second)
		require.Equal(t, RedriveDone, s.DLQ.Redrive(t.Context()).Status)
		l := dlqOnly(t, s.DLQ)
		closeStack(t, s)
		require.ErrorIs(t, inner, ErrParked, "its failure is kept like any other")
		require.Equal(t, "another", l.Key)
	})
}

// Work of a function given to Handle does not begin after its letter's expiry.
func TestDLQ_AHandledRedriveIsNotSentAfterItsExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Retry: RetryConfig{Off: true}, Bulkhead: BulkheadConfig{Critical: 1, Normal: -1, Bulk: -1, Total: 1}})
		call := Call{Operation: "op", Effect: EffectOnce, Budget: time.Hour, Limit: time.Minute, Params: 1}
		down := true
		var ran []time.Time
		do := func(ctx context.Context) error {
			_, err := Do(ctx, s, call, func(context.Context) (int, error) {
				if down {
					return 0, MarkNotSent(io.EOF)
				}
				ran = append(ran, time.Now())
				return 1, nil
			})
			return err
		}
		s.DLQ.Handle("op", func(ctx context.Context, _ Letter) error { return do(ctx) })
		expiry := time.Now().Add(30 * time.Second)
		require.ErrorIs(t, do(WithExpiry(WithIdempotencyKey(t.Context(), "k"), expiry)), ErrParked)
		down = false
		release, err := s.Bulkhead.Acquire(t.Context(), PriorityCritical)
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		time.Sleep(time.Minute) // the redrive waits for a slot
		release()
		time.Sleep(10 * time.Second)
		cancel()
		<-done
		closeStack(t, s)
		require.Empty(t, ran, "expired at %v", expiry)
	})
}

func TestDLQ_AHandlerMayCallThroughTheSameDoor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, w, rt := dlqParked(t, DLQConfig{})
		d.Handle("op", func(ctx context.Context, l Letter) error {
			req, _ := http.NewRequestWithContext(ctx, http.MethodPost, l.URL, nil)
			_, err := rt.RoundTrip(req)
			return err
		})
		time.Sleep(time.Second)
		require.Equal(t, RedriveFailed, d.Redrive(t.Context()).Status)
		w.set(dlqStatus(201))
		time.Sleep(10 * time.Second)
		require.Equal(t, RedriveDone, d.Redrive(t.Context()).Status)
		require.Equal(t, "k", w.calls()[2].key)
		dlqConserved(t, d)
	})
}

func TestDLQ_AFunctionIsTakenAwayByNil(t *testing.T) {
	d := mustDLQ(t, DLQConfig{})
	d.Handle("op", func(context.Context, Letter) error { return nil })
	d.Handle("op", nil)
	require.NoError(t, d.Add(Letter{Operation: "op", Next: time.Now()}))
	require.Equal(t, RedriveParked, d.Redrive(t.Context()).Status)
	require.Equal(t, "unknown-operation", dlqOnly(t, d).Cause)
}

// What a look-up has found out is known to whoever does the work then.
func TestDLQ_ALetterIsNotInDoubtAnyMoreForItsFunction(t *testing.T) {
	d := mustDLQ(t, DLQConfig{})
	d.reconcile = func(context.Context, string) keyNews { return newsNow(keyNotApplied) }
	doubt := true
	d.Handle("op", func(_ context.Context, l Letter) error { doubt = l.InDoubt; return nil })
	require.NoError(t, d.Add(Letter{Operation: "op", InDoubt: true, Next: time.Now()}))
	require.Equal(t, RedriveDone, d.Redrive(t.Context()).Status)
	require.False(t, doubt)
}

// Work that was interrupted may have been done all the same.
func TestDLQ_InterruptedWorkInDoubtIsNotReturnedAsItWas(t *testing.T) {
	for effect, want := range map[Effect]RedriveStatus{EffectOnce: RedriveInDoubt, EffectIdempotent: RedriveReturned} {
		d := mustDLQ(t, DLQConfig{})
		ctx, cancel := context.WithCancel(t.Context())
		d.Handle("op", func(ctx context.Context, _ Letter) error { cancel(); return ctx.Err() })
		require.NoError(t, d.Add(Letter{Operation: "op", Call: Call{Effect: effect}, Next: time.Now()}))
		require.Equal(t, want, d.Redrive(ctx).Status)
		require.Equal(t, effect == EffectOnce, dlqOnly(t, d).InDoubt)
	}
}

// A write of another key that work made is not this letter's being turned away.
func TestDLQ_WorkWhoseOwnCallWasParkedMayHaveBeenDone(t *testing.T) {
	d := mustDLQ(t, DLQConfig{})
	d.Handle("op", func(context.Context, Letter) error { return &Error{Layer: "dlq", Err: ErrParked} })
	require.NoError(t, d.Add(Letter{Operation: "op", Call: Call{Effect: EffectOnce}, Next: time.Now()}))
	require.Equal(t, RedriveInDoubt, d.Redrive(t.Context()).Status)
}

// What a function says about its letter counts, also when its context has ended meanwhile.
func TestDLQ_WhatAFunctionSaysCountsAfterItsContextEnded(t *testing.T) {
	for name, c := range map[string]struct {
		effect Effect
		err    func(Letter) error
		want   RedriveStatus
		reason string
	}{
		"nothing":                         {EffectIdempotent, func(Letter) error { return io.EOF }, RedriveReturned, ""},
		"it never will":                   {EffectIdempotent, func(Letter) error { return ErrPoison }, RedriveParked, "poison"},
		"it may have":                     {EffectIdempotent, func(Letter) error { return ErrInDoubt }, RedriveInDoubt, ""},
		"disputed":                        {EffectOnce, func(Letter) error { return ErrDisputed }, RedriveParked, "disputed"},
		"its own letter has it":           {EffectOnce, func(l Letter) error { return &Error{LetterID: l.ID, Err: ErrParked} }, RedrivePaused, ""},
		"its own letter has it, in doubt": {EffectOnce, func(l Letter) error { return &Error{LetterID: l.ID, Err: errors.Join(ErrParked, ErrInDoubt)} }, RedriveInDoubt, ""},
		"another letter has it":           {EffectIdempotent, func(Letter) error { return &Error{LetterID: "other", Err: ErrParked} }, RedriveReturned, ""},
	} {
		t.Run(name, func(t *testing.T) {
			d := mustDLQ(t, DLQConfig{})
			ctx, cancel := context.WithCancel(t.Context())
			d.Handle("op", func(_ context.Context, l Letter) error { cancel(); return c.err(l) })
			require.NoError(t, d.Add(Letter{Operation: "op", Call: Call{Effect: c.effect}, Next: time.Now()}))
			require.Equal(t, c.want, d.Redrive(ctx).Status)
			l := dlqOnly(t, d)
			require.Equal(t, c.reason, l.ParkedReason)
			require.Equal(t, c.want == RedriveInDoubt || c.reason == "disputed", l.InDoubt)
		})
	}
}

// The letter of work that is not HTTP names no request: without its function there is nothing to send.
func TestOneOwner_TheLetterOfWorkIsNoRequest(t *testing.T) {
	s := newStack(t, Config{Retry: RetryConfig{Off: true}})
	s.DLQ.Handle("op", func(context.Context, Letter) error { return nil })
	_, err := Do(WithIdempotencyKey(t.Context(), "k"), s, Call{Operation: "op", Effect: EffectIdempotent, Params: "p"},
		func(context.Context) (int, error) { return 0, errDLQRefused })
	require.ErrorIs(t, err, ErrParked)
	l := dlqOnly(t, s.DLQ)
	require.Equal(t, []any{"", "", "", `"p"`}, []any{l.Method, l.URL, l.Host, string(l.Body)})
	require.Empty(t, l.Header)
	closeStack(t, s)
}
