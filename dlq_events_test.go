package resilience

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// What happens to a letter is told, with the hash of its key that the events of keys show.
func TestDLQ_WhatHappensToALetterIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h letterEvents
		s := newStack(t, Config{OnEvent: h.listen, Retry: RetryConfig{Off: true}})
		rt := s.Wrap(&dlqWorld{answer: dlqError(errDLQRefused)})
		for range 2 {
			_, err := dlqCall(t.Context(), rt, http.MethodPut, "k")
			require.ErrorIs(t, err, ErrParked)
		}
		require.NoError(t, s.DLQ.Add(Letter{Operation: "op", Key: "k"}))
		l := dlqOnly(t, s.DLQ)
		require.NoError(t, s.DLQ.Requeue(l.ID))
		closeStack(t, s)
		require.Equal(t, []string{"transport", "merged", "merged", "requeued"}, h.of(t, s.DLQ, EventLetterAdded))
		for _, e := range h.events {
			if e.LetterID != "" {
				require.Equal(t, s.Idempotency.ID("k")[:10], e.KeyHash)
			}
		}
	})
}

// A letter that goes elsewhere, or nowhere, is told, too.
func TestDLQ_WhatDoesNotGetInIsTold(t *testing.T) {
	var h letterEvents
	d := mustDLQ(t, DLQConfig{OnEvent: h.listen, MaxLetters: 1, Overflow: OverflowSpill, Spill: func(Letter) error { return nil }})
	dlqFill(t, d, 2)
	require.Equal(t, []string{"spilled"}, h.of(t, d, EventLetterDropped))
	synctest.Test(t, func(t *testing.T) {
		var h letterEvents
		p := newShelf().open()
		p.set(failing)
		d := mustDLQ(t, DLQConfig{OnEvent: h.listen, Store: p})
		require.ErrorIs(t, d.Add(Letter{Operation: "op"}), ErrLettersFull)
		require.Equal(t, []string{"store"}, h.of(t, d, EventLetterRefused))
	})
}

// However a redrive ends: its result names the letter and why it did not work, it is counted once, and so is the attempt
// that it spent.
func TestDLQ_EveryRedriveIsToldAndCounted(t *testing.T) {
	missing := errors.New("no credentials just now")
	for name, c := range map[string]struct {
		answer  func(int, *http.Request) (*http.Response, error)
		letter  Letter
		cfg     DLQConfig
		verdict keyVerdict
		want    RedriveStatus
		why     error
		event   string
	}{
		"done":   {answer: dlqStatus(200), want: RedriveDone, event: "done"},
		"failed": {answer: dlqError(errDLQRefused), want: RedriveFailed, why: errDLQRefused, event: "transport"},
		"in doubt": {
			answer: dlqError(os.ErrClosed), letter: Letter{Method: http.MethodPost}, want: RedriveInDoubt, why: os.ErrClosed, event: "transport",
		},
		"poison":           {answer: dlqStatus(422), want: RedriveParked, event: "poison"},
		"disputed":         {answer: dlqError(ErrDisputed), want: RedriveParked, why: ErrDisputed, event: "disputed"},
		"the last attempt": {answer: dlqStatus(503), letter: Letter{Attempts: 4}, want: RedriveParked, event: "status"},
		"paused":           {answer: dlqStatus(429), want: RedrivePaused, event: "throttled"},
		"not authorized": {
			cfg:  DLQConfig{Authorize: func(context.Context, Letter, *http.Request) error { return missing }},
			want: RedrivePaused, why: missing, event: "authorize",
		},
		"nothing to send":      {letter: Letter{Operation: "unknown"}, want: RedriveParked, event: "unknown-operation"},
		"looked up: done":      {letter: Letter{InDoubt: true}, verdict: keyDone, want: RedriveDone, event: "settled"},
		"looked up: unknown":   {letter: Letter{InDoubt: true}, verdict: keyUnknown, want: RedriveInDoubt, why: ErrInDoubt, event: "in-doubt"},
		"looked up: not done":  {answer: dlqStatus(200), letter: Letter{InDoubt: true}, verdict: keyNotApplied, want: RedriveDone, event: "done"},
		"looked up: but spent": {letter: Letter{InDoubt: true, Attempts: 5}, verdict: keyNotApplied, want: RedriveParked, event: "attempts"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var h letterEvents
				c.cfg.OnEvent = h.listen
				d := mustDLQ(t, c.cfg)
				_ = d.Wrap(&dlqWorld{answer: c.answer})
				d.reconcile = func(context.Context, string) keyNews { return newsNow(c.verdict) }
				c.letter.ID, c.letter.Key, c.letter.Next = "id", "k", time.Now()
				if c.letter.Operation == "" {
					c.letter.Method, c.letter.URL = or(c.letter.Method, http.MethodPut), "http://h/"
				}
				require.NoError(t, d.Add(c.letter))
				r := d.Redrive(t.Context())
				require.Equal(t, c.want, r.Status)
				require.Equal(t, "id", r.LetterID)
				require.Equal(t, c.want != RedriveDone, r.Err != nil && r.Err.Error() != "")
				require.False(t, c.verdict == keyNotApplied && InDoubt(r.Err), "it is known that it has not happened")
				if c.why != nil {
					require.ErrorIs(t, r.Err, c.why)
				}
				require.Equal(t, []string{c.event}, h.of(t, d, EventLetterRedriven))
				s := d.Stats()
				require.EqualValues(t, 1, s.Redriven)
				if l, ok := d.Get("id"); ok {
					require.Equal(t, 1, l.Redrives)
					require.EqualValues(t, l.Attempts-c.letter.Attempts, s.Failed, "attempts spent")
					require.Equal(t, c.want == RedrivePaused, s.Paused == 1)
					require.True(t, l.Parked || r.Next.Equal(l.Next))
				}
				dlqConserved(t, d)
			})
		})
	}
}

// A redrive whose letter was settled meanwhile is counted, too.
func TestDLQ_ALookUpThatComesTooLateIsCounted(t *testing.T) {
	d := mustDLQ(t, DLQConfig{})
	_ = d.Wrap(&dlqWorld{answer: dlqStatus(500)})
	require.NoError(t, d.Add(Letter{ID: "id", Operation: "op", Key: "k", InDoubt: true, Next: time.Now()}))
	d.reconcile = func(context.Context, string) keyNews {
		d.settle("k", newsNow(keyDone))
		return keyNews{}
	}
	require.Equal(t, RedriveResult{Status: RedriveDone, LetterID: "id"}, d.Redrive(t.Context()))
	require.EqualValues(t, 1, d.Stats().Redriven)
	dlqConserved(t, d)
}

type manyErrors []error

func (manyErrors) Error() string { return "calling +15550100 failed" }

func (m manyErrors) Unwrap() []error { return m }

// The words of a letter come from us or from the operating system, never from the other side.
func TestDLQ_TheWordsOfALetterSayWhatHappened(t *testing.T) {
	foreign := errors.New("no route to +15550100")
	for name, c := range map[string]struct {
		answer        func(int, *http.Request) (*http.Response, error)
		cause, detail string
		status        int
	}{
		"errno":       {dlqError(MarkNotSent(fmt.Errorf("dial +15550100: %w", syscall.ECONNREFUSED))), "transport", "connection refused", 0},
		"ours":        {dlqError(fmt.Errorf("+15550100: %w", ErrOpen)), "open", ErrOpen.Error(), 0},
		"foreign":     {dlqError(fmt.Errorf("dial: %w", foreign)), "transport", "*errors.errorString", 0},
		"joined":      {dlqError(errors.Join(fmt.Errorf("dial: %w", foreign), os.ErrClosed)), "transport", "*errors.errorString", 0},
		"of nothing":  {dlqError(manyErrors{}), "transport", "resilience.manyErrors", 0},
		"with status": {dlqError(&Error{StatusCode: 502, Err: foreign}), "transport", "*errors.errorString", 502},
		"status":      {dlqStatus(503), "status", "status 503", 503},
	} {
		t.Run(name, func(t *testing.T) {
			d := mustDLQ(t, DLQConfig{})
			_, err := dlqCall(t.Context(), d.Wrap(&dlqWorld{answer: c.answer}), http.MethodPut, "k")
			require.ErrorIs(t, err, ErrParked)
			l := dlqOnly(t, d)
			require.Equal(t, []any{c.cause, c.detail, c.status}, []any{l.Cause, l.Detail, l.StatusCode})
			require.Equal(t, []any{c.cause, c.detail, c.status}, []any{l.History[0].Cause, l.History[0].Detail, l.History[0].StatusCode})
		})
	}
}

// A panic is told, by its type alone.
func TestDLQ_APanicOfARedriveIsTold(t *testing.T) {
	var h letterEvents
	d := mustDLQ(t, DLQConfig{OnEvent: h.listen})
	d.Handle("op", func(context.Context, Letter) error { panic("calling +15550100") })
	require.NoError(t, d.Add(Letter{Operation: "op", Next: time.Now()}))
	require.Equal(t, RedriveFailed, d.Redrive(t.Context()).Status)
	l := dlqOnly(t, d)
	require.Equal(t, []string{"panic", "panic: string"}, []string{l.Cause, l.Detail})
	require.Equal(t, []string{"panic"}, h.of(t, d, EventPanic))
}
