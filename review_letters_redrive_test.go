package resilience

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// letterEvents keeps the events of a queue.
type letterEvents struct {
	mu     sync.Mutex
	events []Event
}

func (h *letterEvents) listen(e Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = append(h.events, e)
}

// of is what was heard so far of a kind, by cause.
func (h *letterEvents) of(t testing.TB, d *DLQ, kind EventKind) (causes []string) {
	t.Helper()
	require.NoError(t, d.events.drain(t.Context()))
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.events {
		if e.Kind == kind {
			causes = append(causes, e.Cause)
		}
	}
	return causes
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
		"looked up: done":      {letter: Letter{InDoubt: true}, verdict: keyDone, want: RedriveDone},
		"looked up: unknown":   {letter: Letter{InDoubt: true}, verdict: keyUnknown, want: RedriveInDoubt, why: ErrInDoubt, event: "in-doubt"},
		"looked up: not done":  {answer: dlqStatus(200), letter: Letter{InDoubt: true}, verdict: keyNotApplied, want: RedriveDone, event: "done"},
		"looked up: but spent": {letter: Letter{InDoubt: true, Attempts: 5}, verdict: keyNotApplied, want: RedriveParked},
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
				var events []string
				if c.event != "" {
					events = []string{c.event}
				}
				require.Equal(t, events, h.of(t, d, EventLetterRedriven))
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

// What was found out of a key changes a letter only where that is news for it.
func TestDLQ_NoNewsLeavesALetterAsItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := mustDLQ(t, DLQConfig{})
		require.NoError(t, d.Add(Letter{ID: "here", Operation: "op", Key: "k"}))
		waiting := dlqOnly(t, d)
		time.Sleep(time.Millisecond)
		d.settle("k", newsNow(keyNotApplied))
		require.Equal(t, waiting, dlqOnly(t, d), "it is not in doubt")
		require.NoError(t, d.Import(fileOf(t, Letter{ID: "there", Key: "k", InDoubt: true})))
		doubted := dlqOnly(t, d)
		require.False(t, doubted.DoubtSince.IsZero())
		time.Sleep(time.Millisecond)
		d.settle("k", newsNow(keyUnknown))
		require.Equal(t, doubted, dlqOnly(t, d), "that nothing is known takes nothing from what another process said")
	})
}

// Work that must happen once may have happened when its answer does not decode. Whoever requeues it has it looked up first.
func TestD05_OnceWorkWhoseAnswerDoesNotDecodeIsInDoubt(t *testing.T) {
	var v int
	for _, undecodable := range []error{json.Unmarshal([]byte("<html>"), &v), json.Unmarshal([]byte(`"text"`), &v)} {
		d := mustDLQ(t, DLQConfig{})
		did := 0
		d.Handle("op", func(context.Context, Letter) error { did++; return fmt.Errorf("answer: %w", undecodable) })
		require.NoError(t, d.Add(Letter{ID: "id", Operation: "op", Key: "k", Call: Call{Effect: EffectOnce}, Next: time.Now()}))
		require.Equal(t, RedriveParked, d.Redrive(t.Context()).Status)
		l := dlqOnly(t, d)
		require.Equal(t, []any{"poison", true}, []any{l.ParkedReason, l.InDoubt})
		require.NoError(t, d.Requeue("id"))
		require.Equal(t, RedriveInDoubt, d.Redrive(t.Context()).Status)
		require.Equal(t, 1, did)
	}
}

// Of two words of a function the one that keeps from doing it twice counts; that it can never succeed is the user's to say.
func TestD05_InDoubtWinsOverPoison(t *testing.T) {
	var v int
	undecodable := json.Unmarshal([]byte("<html>"), &v)
	for name, c := range map[string]struct {
		err     error
		effect  Effect
		want    RedriveStatus
		inDoubt bool
	}{
		"both":                      {errors.Join(ErrPoison, ErrInDoubt), EffectOnce, RedriveInDoubt, true},
		"poison":                    {ErrPoison, EffectOnce, RedriveParked, false},
		"poison, for what it reads": {errors.Join(ErrPoison, undecodable), EffectOnce, RedriveParked, false},
		"no key":                    {ErrBadKey, EffectOnce, RedriveParked, false},
		"may be repeated":           {undecodable, EffectIdempotent, RedriveParked, false},
		"nothing is known of it":    {undecodable, EffectUnset, RedriveParked, false},
	} {
		t.Run(name, func(t *testing.T) {
			d := mustDLQ(t, DLQConfig{})
			d.Handle("op", func(context.Context, Letter) error { return c.err })
			require.NoError(t, d.Add(Letter{Operation: "op", Call: Call{Effect: c.effect}, Next: time.Now()}))
			require.Equal(t, c.want, d.Redrive(t.Context()).Status)
			require.Equal(t, c.inDoubt, dlqOnly(t, d).InDoubt)
		})
	}
}

// A doubt that an import brings while a redrive is under way stays, also where that one is refused for good.
func TestD16_ADoubtOutlivesTheRefusalOfARedrive(t *testing.T) {
	d := mustDLQ(t, DLQConfig{})
	_ = d.Wrap(&dlqWorld{answer: func(n int, req *http.Request) (*http.Response, error) {
		require.NoError(t, d.Import(fileOf(t, Letter{ID: "there", Key: "k", InDoubt: true})))
		return dlqStatus(422)(n, req)
	}})
	require.NoError(t, d.Add(Letter{Method: http.MethodPost, URL: "http://h/", Key: "k", Next: time.Now()}))
	require.Equal(t, RedriveParked, d.Redrive(t.Context()).Status)
	require.True(t, dlqOnly(t, d).InDoubt)
}

type manyErrors []error

func (manyErrors) Error() string     { return "calling +15550100 failed" }
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

// Retry-After has two forms, and nobody keeps a letter away for longer than a day.
func TestD05_HowLongALetterIsAskedToWait(t *testing.T) {
	for name, c := range map[string]struct {
		header []string
		want   time.Duration
	}{
		"date":       {[]string{"Retry-After", "at 10 min"}, 10 * time.Minute},
		"past":       {[]string{"Retry-After", "at -10 min"}, 0},
		"no number":  {[]string{"Retry-After-Ms", "-5", "Retry-After", "600"}, 10 * time.Minute},
		"typo":       {[]string{"Retry-After", "1e300"}, 24 * time.Hour},
		"not at all": {[]string{"Retry-After", "NaN"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				for i, v := range c.header {
					var minutes int
					if n, _ := fmt.Sscanf(v, "at %d min", &minutes); n == 1 {
						c.header[i] = time.Now().Add(time.Duration(minutes) * time.Minute).UTC().Format(http.TimeFormat)
					}
				}
				d := mustDLQ(t, DLQConfig{MaxAge: -1, Base: 1, Cap: 1})
				_, err := dlqCall(t.Context(), d.Wrap(&dlqWorld{answer: dlqStatus(503, c.header...)}), http.MethodPut, "k")
				require.ErrorIs(t, err, ErrParked)
				require.InDelta(t, c.want, time.Until(dlqOnly(t, d).Next), float64(time.Second))
			})
		})
	}
}
