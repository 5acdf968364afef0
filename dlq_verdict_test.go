package resilience

import (
	"context"
	"errors"
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A write that may be repeated is in doubt when somebody below says so.
func TestDLQ_AnErrorThatSaysInDoubtPutsItsLetterInDoubt(t *testing.T) {
	d := mustDLQ(t, DLQConfig{})
	rt := d.Wrap(&dlqWorld{answer: dlqError(&Error{Layer: "inner", Err: ErrInDoubt})})
	_, err := dlqCall(t.Context(), rt, http.MethodPut, "k")
	require.ErrorIs(t, err, ErrParked)
	require.True(t, dlqOnly(t, d).InDoubt)
}

func TestDLQ_NoErrorPutsALetterOffForMoreThanADay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := mustDLQ(t, DLQConfig{MaxAge: -1})
		rt := d.Wrap(&dlqWorld{answer: dlqError(&Error{Layer: "inner", RetryAfter: 1000 * time.Hour, Err: ErrThrottled})})
		_, err := dlqCall(t.Context(), rt, http.MethodPut, "k")
		require.ErrorIs(t, err, ErrParked)
		require.Equal(t, maxLetterDelay, time.Until(dlqOnly(t, d).Next))
	})
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

// Whoever ends a redrive before anything was sent spends none of the letter's attempts, whichever layer says so.
func TestDLQ_ARedriveThatIsCalledOffBeforeItWasSentSpendsNoAttempt(t *testing.T) {
	for name, err := range map[string]error{
		"the transport": MarkNotSent(context.Canceled),
		"a layer":       &Error{Layer: "bulkhead", Err: context.Canceled, verdict: refused},
	} {
		t.Run(name, func(t *testing.T) {
			d := mustDLQ(t, DLQConfig{})
			ctx, cancel := context.WithCancel(t.Context())
			_ = d.Wrap(&dlqWorld{answer: func(int, *http.Request) (*http.Response, error) { cancel(); return nil, err }})
			require.NoError(t, d.Add(Letter{Method: http.MethodPut, URL: "http://h/", Next: time.Now()}))
			require.Equal(t, RedriveReturned, d.Redrive(ctx).Status)
			require.Zero(t, dlqOnly(t, d).Attempts)
		})
	}
}
