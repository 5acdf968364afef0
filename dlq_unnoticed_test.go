package resilience

import (
	"bytes"
	"context"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// What these hold was right, and nothing else would have noticed if it had not been.

func TestDLQ_WorkOnItsWayIsExportedAsInDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := mustDLQ(t, DLQConfig{})
		release := make(chan struct{})
		d.Handle("op", func(context.Context, Letter) error { <-release; return nil })
		require.NoError(t, d.Add(Letter{Operation: "op", Call: Call{Effect: EffectOnce}, Next: time.Now()}))
		go d.Redrive(context.Background())
		synctest.Wait()
		file := dlqExport(t, d)
		close(release)
		synctest.Wait()
		into := mustDLQ(t, DLQConfig{})
		require.NoError(t, into.Import(bytes.NewReader(file)))
		require.True(t, dlqOnly(t, into).InDoubt)
	})
}

func TestDLQ_NothingIsTriedUnderAContextThatHasEnded(t *testing.T) {
	d := mustDLQ(t, DLQConfig{})
	w := &dlqWorld{answer: dlqStatus(200)}
	_ = d.Wrap(w)
	ran := 0
	d.Handle("op", func(context.Context, Letter) error { ran++; return nil })
	require.NoError(t, d.Add(Letter{Operation: "op", Next: time.Now()}))
	require.NoError(t, d.Add(Letter{Method: "PUT", URL: "http://h/", Next: time.Now()}))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 2 {
		require.Equal(t, RedriveReturned, d.Redrive(ctx).Status)
	}
	require.Zero(t, ran)
	require.Empty(t, w.calls())
	require.Equal(t, 2, d.Stats().Waiting)
}

func TestDLQ_ALetterSupersededWhileItIsAuthorizedIsNotSent(t *testing.T) {
	var rt http.RoundTripper
	d := mustDLQ(t, DLQConfig{Authorize: func(ctx context.Context, _ Letter, _ *http.Request) error {
		_, err := dlqCall(WithCall(context.Background(), Call{Resource: "r"}), rt, http.MethodPut, "newer")
		return err
	}})
	w := &dlqWorld{answer: dlqStatus(200)}
	rt = d.Wrap(w)
	require.NoError(t, d.Add(Letter{Method: "PUT", URL: "http://h/", Call: Call{Resource: "r"}, Next: time.Now()}))
	time.Sleep(time.Millisecond)
	require.Equal(t, RedriveReturned, d.Redrive(t.Context()).Status)
	require.Len(t, w.calls(), 1)
	require.Equal(t, LetterSuperseded, dlqOnly(t, d).State())
}

func TestDLQ_NewsThatComeDuringALookUp(t *testing.T) {
	add := func(t *testing.T, during keyNews, l Letter) (*DLQ, *dlqWorld) {
		d := mustDLQ(t, DLQConfig{Attempts: 2})
		w := &dlqWorld{answer: dlqStatus(200)}
		_ = d.Wrap(w)
		d.reconcile = func(_ context.Context, key string) keyNews {
			d.settle(key, during)
			return keyNews{}
		}
		l.Method, l.URL, l.Key, l.InDoubt, l.Next = "POST", "http://h/", "k", true, time.Now()
		require.NoError(t, d.Add(l))
		return d, w
	}
	t.Run("it happened", func(t *testing.T) {
		d, w := add(t, keyNews{verdict: keyDone}, Letter{})
		require.Equal(t, RedriveDone, d.Redrive(t.Context()).Status)
		require.Equal(t, RedriveEmpty, d.Redrive(t.Context()).Status)
		require.Zero(t, d.Len())
		require.True(t, d.Stats().NextDue.IsZero())
		require.Empty(t, w.calls())
		dlqConserved(t, d)
	})
	t.Run("it did not", func(t *testing.T) {
		d, w := add(t, keyNews{verdict: keyNotApplied}, Letter{})
		require.Equal(t, RedriveDone, d.Redrive(t.Context()).Status)
		require.Len(t, w.calls(), 1)
	})
	t.Run("it did not, and was tried enough", func(t *testing.T) {
		d, w := add(t, keyNews{verdict: keyNotApplied}, Letter{Attempts: 2})
		require.Equal(t, RedriveParked, d.Redrive(t.Context()).Status)
		require.Empty(t, w.calls())
	})
}

func TestDLQ_WhatWasTriedEnoughIsNotSentAfterItsDoubt(t *testing.T) {
	for attempts, want := range map[int]RedriveStatus{-1: RedriveDone, 3: RedriveDone, 2: RedriveParked} {
		d := mustDLQ(t, DLQConfig{Attempts: attempts})
		w := &dlqWorld{answer: dlqStatus(200)}
		_ = d.Wrap(w)
		d.reconcile = func(context.Context, string) keyNews { return keyNews{verdict: keyNotApplied} }
		require.NoError(t, d.Add(Letter{Method: "POST", URL: "http://h/", InDoubt: true, Attempts: 2, Next: time.Now()}))
		require.Equal(t, want, d.Redrive(t.Context()).Status)
		if want == RedriveParked {
			l := dlqOnly(t, d)
			require.Equal(t, []any{"attempts", false}, []any{l.ParkedReason, l.InDoubt})
		}
	}
}

// A letter that a program added has its operation in one place only.
func TestDLQ_ARedriveHasTheOperationOfItsLetter(t *testing.T) {
	d := mustDLQ(t, DLQConfig{})
	operation := ""
	_ = d.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
		operation = tripOf(req.Context()).call.Operation
		return reply(200, "{}"), nil
	}))
	require.NoError(t, d.Add(Letter{Operation: "create-phone-call", Method: "POST", URL: "http://h/", Next: time.Now()}))
	require.Equal(t, RedriveDone, d.Redrive(t.Context()).Status)
	require.Equal(t, "create-phone-call", operation)
}

func TestDLQ_ARedactedLetterIsNotSentHoweverItCame(t *testing.T) {
	d := mustDLQ(t, DLQConfig{})
	w := &dlqWorld{answer: dlqStatus(200)}
	_ = d.Wrap(w)
	require.NoError(t, d.Add(Letter{Method: "PUT", URL: "http://h/", Redacted: true, Next: time.Now()}))
	require.Equal(t, RedriveParked, d.Redrive(t.Context()).Status)
	require.Equal(t, "redacted", dlqOnly(t, d).ParkedReason)
	require.Empty(t, w.calls())
}

// Redrive may be called from within another call, whose trip is none of the letter's: taken for part of that call, the work
// would go past its key.
func TestDLQ_ARedriveFromWithinACallTravelsOnItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Retry: RetryConfig{Off: true}})
		down := true
		work := func(ctx context.Context) error {
			_, err := Do(ctx, s, Call{Operation: "dial", Effect: EffectOnce}, func(context.Context) (int, error) {
				if down {
					return 0, MarkNotSent(context.Canceled)
				}
				return 1, nil
			})
			return err
		}
		s.DLQ.Handle("dial", func(ctx context.Context, _ Letter) error { return work(ctx) })
		require.ErrorIs(t, work(WithIdempotencyKey(t.Context(), "k")), ErrParked)
		down = false
		time.Sleep(time.Minute)
		var status RedriveStatus
		_, err := Do(t.Context(), s, Call{Operation: "other"}, func(ctx context.Context) (int, error) {
			status = s.DLQ.Redrive(ctx).Status
			return 0, nil
		})
		require.NoError(t, err)
		require.Equal(t, RedriveDone, status)
		require.Equal(t, KeyConfirmed, stateOf(t, s.Idempotency, "k"))
		closeStack(t, s)
	})
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
