package resilience

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/retell-resilience/resilience/internal/retryafter"
	"github.com/stretchr/testify/require"
)

// dlqRun runs the redriver until the test has ended with it.
func dlqRun(t *testing.T, d *DLQ) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); d.run(ctx) }()
	return func() { cancel(); <-done }
}

// dlqParked makes a queue with one letter of a write that can be repeated.
func dlqParked(t *testing.T, cfg DLQConfig) (*DLQ, *dlqWorld, http.RoundTripper) {
	t.Helper()
	d := mustDLQ(t, cfg)
	w := &dlqWorld{answer: dlqError(errDLQRefused)}
	rt := d.Wrap(w)
	_, err := dlqCall(WithCall(t.Context(), Call{Operation: "op"}), rt, http.MethodPost, "k")
	require.ErrorIs(t, err, ErrParked)
	return d, w, rt
}

func TestD02_NothingIsTriedBeforeItsDueTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 300
		d := mustDLQ(t, DLQConfig{Rate: -1, Concurrency: 50, MaxAge: -1})
		w := &dlqWorld{answer: dlqStatus(503)}
		rt := d.Wrap(w)
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() { _, _ = dlqCall(t.Context(), rt, http.MethodPut, fmt.Sprint("k", i)) })
		}
		wg.Wait()
		require.Equal(t, n, d.Len())
		require.Equal(t, RedriveNotDue, d.Redrive(t.Context()).Status)
		stop := dlqRun(t, d)
		began := time.Now()
		time.Sleep(time.Hour)
		stop()
		sent := map[string][]time.Duration{}
		for _, c := range w.calls()[n:] {
			sent[c.key] = append(sent[c.key], c.at.Sub(began))
		}
		require.Len(t, sent, n)
		longest := time.Duration(0)
		for _, at := range sent {
			require.Len(t, at, 5)
			last := time.Duration(0)
			for i, when := range at {
				require.LessOrEqual(t, when-last, time.Second<<i)
				longest = max(longest, when-last)
				last = when
			}
		}
		require.Greater(t, longest, 8*time.Second, "it does back off")
		require.Equal(t, n, d.Stats().Parked)
		dlqConserved(t, d)
	})
}

// Times that no duration reaches are times all the same.
func TestD02_TimesFarAway(t *testing.T) {
	past, future := time.Date(1, 1, 1, 0, 0, 0, 1, time.UTC), time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		letter Letter
		want   RedriveStatus
		state  LetterState
	}{
		"due for long":        {Letter{First: past, Next: past}, RedriveDone, LetterAny},
		"due in long":         {Letter{Next: future}, RedriveNotDue, LetterWaiting},
		"over for long":       {Letter{Next: past, Expires: past}, RedriveEmpty, LetterParked},
		"over in long":        {Letter{Next: past, Expires: future}, RedriveDone, LetterAny},
		"first tried in long": {Letter{First: future, Next: past}, RedriveDone, LetterAny},
	} {
		t.Run(name, func(t *testing.T) {
			d := mustDLQ(t, DLQConfig{MaxAge: -1})
			d.Handle("op", func(context.Context, Letter) error { return nil })
			c.letter.Operation = "op"
			require.NoError(t, d.Add(c.letter))
			require.Equal(t, c.want, d.Redrive(t.Context()).Status)
			for _, l := range d.List(LetterFilter{}) {
				require.Equal(t, c.state, l.State())
			}
		})
	}
}

func TestD02_BackoffIsBounded(t *testing.T) {
	d := mustDLQ(t, DLQConfig{})
	for n := range 200 {
		for range 50 {
			delay := d.backoff(n)
			require.Positive(t, delay)
			require.LessOrEqual(t, delay, 5*time.Minute)
		}
	}
}

func TestD03_ParkedAfterFiveAttemptsAndReportedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var reported atomic.Int32
		var events []Event
		d := mustDLQ(t, DLQConfig{
			MaxAge:   -1,
			OnParked: func(l Letter) { reported.Add(1); require.Equal(t, "attempts", l.ParkedReason) },
			OnEvent: func(e Event) {
				if e.Kind == EventLetterParked {
					events = append(events, e)
				}
			},
		})
		w := &dlqWorld{answer: dlqStatus(500)}
		_, err := dlqCall(t.Context(), d.Wrap(w), http.MethodPut, "k")
		require.ErrorIs(t, err, ErrParked)
		stop := dlqRun(t, d)
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		require.Len(t, w.calls(), 1+5)
		require.EqualValues(t, 1, reported.Load())
		require.Len(t, events, 1)
		require.Equal(t, "attempts", events[0].Cause)
		l := dlqOnly(t, d)
		require.Equal(t, []any{true, 5, LetterParked}, []any{l.Parked, l.Attempts, l.State()})
		require.Equal(t, []Letter{l}, d.List(LetterFilter{State: LetterParked}))
		require.Empty(t, d.List(LetterFilter{State: LetterWaiting}))

		require.NoError(t, d.Requeue(l.ID)) // and it begins anew
		require.Zero(t, dlqOnly(t, d).Attempts)
		time.Sleep(24 * time.Hour)
		require.Len(t, w.calls(), 1+5+5)
		require.EqualValues(t, 2, reported.Load())

		w.set(dlqStatus(200))
		require.Equal(t, 1, d.RequeueAll())
		synctest.Wait()
		require.Zero(t, d.Len())
		dlqConserved(t, d)
		stop()
	})
}

func TestD03_ParkedLettersAreDeletedById(t *testing.T) {
	var reasons []string
	d, _, _ := dlqParked(t, DLQConfig{OnEvent: func(e Event) {
		if e.Kind == EventLetterDeleted {
			reasons = append(reasons, e.Cause)
		}
	}})
	require.ErrorIs(t, d.Delete("other", ""), ErrNoLetter)
	require.ErrorIs(t, d.Requeue("other"), ErrNoLetter)
	require.NoError(t, d.Delete(dlqOnly(t, d).ID, "not needed"))
	require.Zero(t, d.Len())
	require.False(t, d.holds("k"))
	require.NoError(t, d.events.drain(t.Context()))
	require.Equal(t, []string{"not needed"}, reasons)
	dlqConserved(t, d)
}

// What each outcome of a redrive means.
func TestD05_OutcomesOfARedrive(t *testing.T) {
	refusedBy := func(err error, after time.Duration) error {
		return &Error{Layer: "test", Err: err, RetryAfter: after, verdict: refused}
	}
	for name, tc := range map[string]struct {
		answer   func(int, *http.Request) (*http.Response, error)
		once     bool
		status   RedriveStatus
		attempts int
		reason   string
		atLeast  time.Duration
	}{
		"ok":                    {answer: dlqStatus(200), status: RedriveDone},
		"400":                   {answer: dlqStatus(400), status: RedriveParked, attempts: 1, reason: "poison"},
		"422":                   {answer: dlqStatus(422), status: RedriveParked, attempts: 1, reason: "poison"},
		"404":                   {answer: dlqStatus(404), status: RedriveParked, attempts: 1, reason: "poison"},
		"304":                   {answer: dlqStatus(304), status: RedriveParked, attempts: 1, reason: "poison"},
		"key reused":            {answer: dlqError(refusedBy(ErrKeyReused, 0)), status: RedriveParked, attempts: 1, reason: "poison"},
		"disputed":              {answer: dlqError(&Error{Err: ErrDisputed}), status: RedriveParked, attempts: 1, reason: "disputed"},
		"500":                   {answer: dlqStatus(500), status: RedriveFailed, attempts: 1},
		"503, wait":             {answer: dlqStatus(503, "Retry-After", "100"), status: RedriveFailed, attempts: 1, atLeast: 100 * time.Second},
		"408":                   {answer: dlqStatus(408), status: RedriveFailed, attempts: 1},
		"409":                   {answer: dlqStatus(409), status: RedriveFailed, attempts: 1},
		"429":                   {answer: dlqStatus(429, "retry-after-ms", "90000"), status: RedrivePaused, atLeast: 90 * time.Second},
		"401":                   {answer: dlqStatus(401), status: RedrivePaused},
		"403":                   {answer: dlqStatus(403), status: RedrivePaused},
		"reset":                 {answer: dlqError(errors.New("reset")), status: RedriveFailed, attempts: 1},
		"panic":                 {answer: func(int, *http.Request) (*http.Response, error) { panic("x") }, status: RedriveFailed, attempts: 1},
		"goexit":                {answer: func(int, *http.Request) (*http.Response, error) { runtime.Goexit(); return nil, nil }, status: RedriveFailed, attempts: 1},
		"open":                  {answer: dlqError(refusedBy(ErrOpen, time.Minute)), status: RedrivePaused, atLeast: time.Minute},
		"full":                  {answer: dlqError(refusedBy(ErrFull, 0)), status: RedrivePaused},
		"in flight elsewhere":   {answer: dlqError(refusedBy(ErrInFlight, time.Minute)), status: RedrivePaused, atLeast: time.Minute},
		"once: refused":         {once: true, answer: dlqError(errDLQRefused), status: RedriveFailed, attempts: 1},
		"once: reset":           {once: true, answer: dlqError(errors.New("reset")), status: RedriveInDoubt, attempts: 1},
		"once: 500":             {once: true, answer: dlqStatus(500), status: RedriveInDoubt, attempts: 1},
		"once: 409":             {once: true, answer: dlqStatus(409), status: RedriveInDoubt, attempts: 1},
		"once: 302":             {once: true, answer: dlqStatus(302), status: RedriveInDoubt, attempts: 1},
		"once: 429":             {once: true, answer: dlqStatus(429), status: RedrivePaused},
		"once: panic":           {once: true, answer: func(int, *http.Request) (*http.Response, error) { panic("x") }, status: RedriveInDoubt, attempts: 1},
		"once: said to be so":   {once: true, answer: dlqError(&Error{Err: ErrInDoubt}), status: RedriveInDoubt, attempts: 1},
		"once: poison is no-op": {once: true, answer: dlqStatus(422), status: RedriveParked, attempts: 1, reason: "poison"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := mustDLQ(t, DLQConfig{})
				w := &dlqWorld{answer: tc.answer}
				_ = d.Wrap(w)
				method := http.MethodPut
				if tc.once {
					method = http.MethodPost
				}
				now := time.Now()
				require.NoError(t, d.Add(Letter{Method: method, URL: "http://h/", Key: "k", Body: []byte("x"), Next: now}))
				r := d.Redrive(t.Context())
				require.Equal(t, tc.status, r.Status, "%v", r.Err)
				require.Len(t, w.calls(), 1)
				dlqConserved(t, d)
				if tc.status == RedriveDone {
					require.NoError(t, r.Err)
					require.Zero(t, d.Len())
					return
				}
				require.Error(t, r.Err)
				l := dlqOnly(t, d)
				require.Equal(t, tc.attempts, l.Attempts)
				require.Equal(t, tc.reason, l.ParkedReason)
				require.Equal(t, tc.reason != "", l.Parked)
				require.Equal(t, tc.status == RedriveInDoubt || tc.reason == "disputed", l.InDoubt)
				require.GreaterOrEqual(t, l.Next.Sub(now), tc.atLeast)
				require.False(t, l.Leased)
			})
		})
	}
}

func TestD05_UnknownOperationsAndUndecodableLettersArePoison(t *testing.T) {
	d := mustDLQ(t, DLQConfig{})
	_ = d.Wrap(&dlqWorld{answer: dlqStatus(200)})
	d.Handle("decodes", func(_ context.Context, l Letter) error {
		var v struct{ N int }
		return json.Unmarshal(l.Body, &v)
	})
	d.Handle("says so", func(context.Context, Letter) error { return ErrPoison })
	d.Handle("gone", func(context.Context, Letter) error { return nil })
	d.Handle("gone", nil)
	now := time.Now()
	for _, l := range []Letter{
		{Operation: "toString"}, {Operation: "decodes", Body: []byte("{")}, {Operation: "says so"}, {Operation: "gone"},
		{Method: "PUT", URL: "http://h/%zz"}, {Method: "bad method", URL: "http://h/"},
	} {
		l.Next = now
		require.NoError(t, d.Add(l))
		r := d.Redrive(t.Context())
		require.Equal(t, RedriveParked, r.Status, "%+v", l)
		got, _ := d.Get(r.LetterID)
		require.Equal(t, []any{1, "poison"}, []any{got.Attempts, got.ParkedReason})
	}
	require.NoError(t, d.Add(Letter{Operation: "decodes", Body: []byte(`{"N":1}`), Next: now}))
	require.Equal(t, RedriveDone, d.Redrive(t.Context()).Status)
}

func TestD06_ALeasedLetterIsVisibleAndComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := mustDLQ(t, DLQConfig{})
		d.Handle("op", func(ctx context.Context, _ Letter) error { <-ctx.Done(); return ctx.Err() })
		require.NoError(t, d.Add(Letter{Operation: "op", Key: "k", Attempts: 3, Next: time.Now()}))
		ctx, cancel := context.WithCancel(t.Context())
		result := make(chan RedriveResult)
		go func() { result <- d.Redrive(ctx) }()
		synctest.Wait()
		l := dlqOnly(t, d)
		require.True(t, l.Leased)
		require.Equal(t, 1, d.Stats().Leased)
		require.ErrorIs(t, d.Delete(l.ID, ""), ErrLetterBusy)
		require.ErrorIs(t, d.Requeue(l.ID), ErrLetterBusy)
		require.Equal(t, RedriveEmpty, d.Redrive(t.Context()).Status)
		cancel()
		require.Equal(t, RedriveReturned, (<-result).Status)
		back := dlqOnly(t, d)
		require.False(t, back.Leased)
		require.Equal(t, 3, back.Attempts)
		require.True(t, back.Next.Equal(l.Next))

		d.Handle("op", func(context.Context, Letter) error { runtime.Goexit(); return nil })
		require.Equal(t, RedriveFailed, d.Redrive(t.Context()).Status)
		require.Equal(t, 4, dlqOnly(t, d).Attempts)
		dlqConserved(t, d)
	})
}

func TestD08_TwoRedriversNeverRunTheSameLetter(t *testing.T) {
	d := mustDLQ(t, DLQConfig{Attempts: -1, Base: 1, Cap: 1})
	var busy sync.Map
	w := &dlqWorld{}
	w.set(func(n int, req *http.Request) (*http.Response, error) {
		key := tripOf(req.Context()).key
		_, twice := busy.LoadOrStore(key, true)
		defer busy.Delete(key)
		if twice {
			t.Errorf("key %s runs twice", key)
		}
		return dlqStatus([]int{200, 500}[n%2])(n, req)
	})
	_ = d.Wrap(w)
	for range 200 {
		require.NoError(t, d.Add(Letter{Method: "PUT", URL: "http://h/", Next: time.Now()}))
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for d.Len() > 0 {
				d.Redrive(t.Context())
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 200, d.Stats().Acked)
	dlqConserved(t, d)
}

func TestD08_ARedriveIsTheSameRequestWithTheSameKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := mustDLQ(t, DLQConfig{Authorize: func(_ context.Context, l Letter, req *http.Request) error {
			req.Header.Set("Authorization", "current")
			return nil
		}})
		w := &dlqWorld{answer: dlqError(errDLQRefused)}
		ctx := WithCall(t.Context(), Call{Operation: "op", Priority: PriorityCritical})
		_, err := dlqCall(ctx, d.Wrap(w), http.MethodPost, "the-key", "Authorization", "old", "X-Other", "1")
		require.ErrorIs(t, err, ErrParked)
		id := dlqOnly(t, d).ID
		w.set(dlqStatus(201))
		time.Sleep(time.Second)
		require.Equal(t, RedriveDone, d.Redrive(t.Context()).Status)
		sent := w.calls()[1]
		require.Equal(t, "the-key", sent.key)
		require.Equal(t, id, sent.letter)
		require.Equal(t, PriorityBulk, sent.priority)
		require.Equal(t, `{"n":1}`, sent.body)
		require.Equal(t, "http://api.test/v2/things?x=1", sent.url)
		require.Equal(t, "current", sent.header.Get("Authorization"))
		require.Equal(t, "1", sent.header.Get("X-Other"))
	})
}

func TestD08_ACallMeetsARedriveUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, w, rt := dlqParked(t, DLQConfig{})
		release := make(chan struct{})
		w.set(func(n int, req *http.Request) (*http.Response, error) { <-release; return dlqStatus(201)(n, req) })
		time.Sleep(time.Second)
		result := make(chan RedriveResult)
		go func() { result <- d.Redrive(t.Context()) }()
		synctest.Wait()
		_, err := dlqCall(WithCall(t.Context(), Call{Operation: "op"}), rt, http.MethodPost, "k")
		require.ErrorIs(t, err, ErrParked)
		var e *Error
		require.ErrorAs(t, err, &e)
		require.NotEmpty(t, e.LetterID)
		close(release)
		require.Equal(t, RedriveDone, (<-result).Status)
		require.Len(t, w.calls(), 2)
	})
}

func TestDLQLettersGoByTheRoadThatMadeThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := mustDLQ(t, DLQConfig{})
		first, second := &dlqWorld{answer: dlqStatus(200)}, &dlqWorld{answer: dlqError(errDLQRefused)}
		_ = d.Wrap(first)
		_, err := dlqCall(t.Context(), d.Wrap(second), http.MethodPost, "k")
		require.ErrorIs(t, err, ErrParked)
		second.set(dlqStatus(200))
		time.Sleep(time.Second)
		require.Equal(t, RedriveDone, d.Redrive(t.Context()).Status)
		require.Len(t, second.calls(), 2)
		require.Empty(t, first.calls())
		require.NoError(t, d.Add(Letter{Method: "PUT", URL: "http://h/", Next: time.Now()}))
		require.Equal(t, RedriveDone, d.Redrive(t.Context()).Status)
		require.Len(t, first.calls(), 1)

		stack := &dlqWorld{answer: dlqStatus(200)}
		d.addRoad(legOf(stack))
		var ways []string
		d.reenter = func(req *http.Request, road leg) (*http.Response, error) {
			ways = append(ways, overridesOf(req.Context()).letter)
			return enter(req, road, entry{})
		}
		require.NoError(t, d.Add(Letter{ID: "a", Method: "PUT", URL: "http://h/", Next: time.Now()}))
		require.Equal(t, RedriveDone, d.Redrive(t.Context()).Status)
		require.Len(t, stack.calls(), 1)
		require.Equal(t, []string{"a"}, ways)
	})
}

func TestDLQWithoutARoadOrCredentialsRedriveWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var causes []string
		d := mustDLQ(t, DLQConfig{OnEvent: func(e Event) {
			if e.Kind == EventRedrivePaused {
				causes = append(causes, e.Cause)
			}
		}})
		require.NoError(t, d.Add(Letter{Method: "PUT", URL: "http://h/", NeedsAuth: true, Next: time.Now()}))
		require.Equal(t, RedrivePaused, d.Redrive(t.Context()).Status)
		w := &dlqWorld{answer: dlqStatus(200)}
		_ = d.Wrap(w)
		time.Sleep(time.Second)
		require.Equal(t, RedrivePaused, d.Redrive(t.Context()).Status)
		d.cfg.Authorize = func(context.Context, Letter, *http.Request) error { return errors.New("no token") }
		time.Sleep(time.Minute)
		require.Equal(t, RedrivePaused, d.Redrive(t.Context()).Status)
		d.cfg.Authorize = func(context.Context, Letter, *http.Request) error { panic("x") }
		time.Sleep(time.Minute)
		require.Equal(t, RedrivePaused, d.Redrive(t.Context()).Status)
		require.Empty(t, w.calls())
		l := dlqOnly(t, d)
		require.Zero(t, l.Attempts)
		require.Equal(t, 4, l.Redrives)
		synctest.Wait()
		require.Equal(t, []string{"no-road", "no-authorize", "authorize", "authorize"}, causes)
	})
}

func TestD14_LettersInDoubtAreLookedUpNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var verdict atomic.Int32
		var asked atomic.Int32
		var parked atomic.Int32
		d := mustDLQ(t, DLQConfig{OnParked: func(Letter) { parked.Add(1) }})
		d.reconcile = func(_ context.Context, key string) keyNews {
			require.Equal(t, "k", key)
			asked.Add(1)
			return keyNews{verdict: keyVerdict(verdict.Load())} // of our own sends: the doubt is about those
		}
		w := &dlqWorld{answer: dlqStatus(500)}
		rt := d.Wrap(w)
		stop := dlqRun(t, d)
		_, err := dlqCall(t.Context(), rt, http.MethodPost, "k")
		require.True(t, InDoubt(err))
		time.Sleep(30 * time.Minute)
		require.Len(t, w.calls(), 1)
		require.Greater(t, asked.Load(), int32(6))
		require.Less(t, asked.Load(), int32(40), "it backs off")
		l := dlqOnly(t, d)
		require.Zero(t, l.Attempts)
		require.Equal(t, LetterInDoubt, l.State())

		time.Sleep(31 * time.Minute) // MaxAge
		l = dlqOnly(t, d)
		require.Equal(t, []any{true, true, "expired"}, []any{l.Parked, l.InDoubt, l.ParkedReason})
		require.EqualValues(t, 1, parked.Load())

		require.NoError(t, d.Requeue(l.ID))
		require.True(t, dlqOnly(t, d).InDoubt)
		time.Sleep(time.Minute)
		require.Len(t, w.calls(), 1)
		verdict.Store(int32(keyNotApplied))
		w.set(dlqStatus(201))
		time.Sleep(10 * time.Minute)
		require.Len(t, w.calls(), 2)
		require.Zero(t, d.Len())
		dlqConserved(t, d)
		stop()
	})
}

func TestD14_WithoutALookUpDoubtLastsUntilEvidenceComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := mustDLQ(t, DLQConfig{MaxAge: -1})
		w := &dlqWorld{answer: dlqStatus(500)}
		rt := d.Wrap(w)
		stop := dlqRun(t, d)
		_, err := dlqCall(t.Context(), rt, http.MethodPost, "k")
		require.True(t, InDoubt(err))
		time.Sleep(48 * time.Hour)
		require.Equal(t, LetterInDoubt, dlqOnly(t, d).State())
		require.True(t, d.holds("k"))
		d.settle("other", keyNews{verdict: keyDone})
		d.settle("k", keyNews{verdict: keyUnknown})
		w.set(dlqError(&Error{Layer: "t", Err: ErrInDoubt}))
		d.settle("k", keyNews{verdict: keyNotApplied})
		time.Sleep(2 * time.Second)
		require.Len(t, w.calls(), 2)
		require.True(t, dlqOnly(t, d).InDoubt)
		d.settle("k", keyNews{verdict: keyDone})
		require.Zero(t, d.Len())
		require.False(t, d.holds("k"))
		dlqConserved(t, d)
		stop()
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

func TestDLQ_NoErrorPutsALetterOffForMoreThanADay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := mustDLQ(t, DLQConfig{MaxAge: -1})
		rt := d.Wrap(&dlqWorld{answer: dlqError(&Error{Layer: "inner", RetryAfter: 1000 * time.Hour, Err: ErrThrottled})})
		_, err := dlqCall(t.Context(), rt, http.MethodPut, "k")
		require.ErrorIs(t, err, ErrParked)
		require.Equal(t, retryafter.Longest, time.Until(dlqOnly(t, d).Next))
	})
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

// A redrive under a context that describes other calls goes as its letter says.
func TestLetter_IsRedrivenAsItSaysWhateverTheContextOfTheRedriveSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sent := 0
		s := newStack(t, Config{Idempotency: IdempotencyConfig{Off: true}})
		s.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			sent++
			return nil, io.EOF
		}))
		require.NoError(t, s.DLQ.Add(Letter{Key: "k", Method: http.MethodPost, URL: "http://h/calls", Next: time.Now()}))
		ctx := WithCall(t.Context(), Call{Effect: EffectRead, Resource: "list"})
		require.Equal(t, RedriveInDoubt, s.DLQ.Redrive(ctx).Status)
		closeStack(t, s)
		require.Equal(t, 1, sent, "it happens once at most, however often the context says it may")
	})
}

// The budget of whoever redrives is not the letter's, and neither is the one that its call had.
func TestLetter_IsRedrivenWithTheDefaultBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{})
		s.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			time.Sleep(10 * time.Second)
			return reply(201, "{}"), nil
		}))
		for _, method := range []string{http.MethodPost, http.MethodPut} {
			call := Call{Budget: time.Second}
			require.NoError(t, s.DLQ.Add(Letter{Key: method, Method: method, URL: "http://h/calls", Next: time.Now(), Call: call}))
			result := s.DLQ.Redrive(WithBudget(t.Context(), time.Second))
			time.Sleep(time.Minute)
			require.Equal(t, RedriveDone, result.Status)
		}
		closeStack(t, s)
	})
}

// A runner that sleeps for ever hears of a letter that comes to life again.
func TestD12_ALetterThatIsRevivedWakesTheRunner(t *testing.T) {
	for name, again := range map[string]func(t *testing.T, d *DLQ, rt http.RoundTripper) error{
		"by a call": func(t *testing.T, _ *DLQ, rt http.RoundTripper) error {
			_, err := dlqCall(WithCall(t.Context(), Call{Operation: "op"}), rt, http.MethodPost, "k")
			return err
		},
		"by Add": func(_ *testing.T, d *DLQ, _ http.RoundTripper) error {
			return d.Add(Letter{Operation: "op", Key: "k"})
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, w, rt := dlqParked(t, DLQConfig{})
				w.set(dlqStatus(422))
				stop := dlqRun(t, d)
				time.Sleep(time.Minute)
				require.Equal(t, LetterParked, dlqOnly(t, d).State())
				w.set(dlqError(errDLQRefused))
				_ = again(t, d, rt)
				w.set(dlqStatus(200))
				time.Sleep(time.Minute)
				require.Zero(t, d.Len())
				stop()
			})
		})
	}
}

// While redriving makes sense nobody is told that it pauses; while it does not, the runner asks when it is said to.
func TestD12_APauseLastsAsLongAsItIsSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h letterEvents
		d, w, _ := dlqParked(t, DLQConfig{OnEvent: h.listen})
		w.set(dlqStatus(200))
		var asked atomic.Int32
		var open atomic.Bool
		open.Store(true)
		d.paused = func() (bool, time.Duration) { asked.Add(1); return open.Load(), 10 * time.Minute }
		stop := dlqRun(t, d)
		time.Sleep(9 * time.Minute)
		require.EqualValues(t, 1, asked.Load())
		open.Store(false)
		time.Sleep(5 * time.Minute)
		require.Zero(t, d.Len())
		require.NoError(t, d.Add(Letter{Method: http.MethodPut, URL: "http://h/", Next: time.Now()}))
		time.Sleep(time.Minute)
		require.Zero(t, d.Len())
		stop()
		require.Equal(t, []string{"open"}, h.of(t, d, EventRedrivePaused))
	})
}

// A letter that its caller gave an expiry is requeued until that has passed, and keeps it.
func TestD13_RequeueingKeepsTheExpiryOfTheCaller(t *testing.T) {
	d := mustDLQ(t, DLQConfig{})
	end := time.Now().Add(time.Minute)
	require.NoError(t, d.Add(Letter{ID: "id", Operation: "op", NotAfter: end}))
	require.NoError(t, d.Requeue("id"))
	require.True(t, end.Equal(dlqOnly(t, d).Expires))
}

// RequeueAll counts what it has requeued, and no other.
func TestDLQ_RequeueAllCountsWhatItDid(t *testing.T) {
	d := mustDLQ(t, DLQConfig{})
	for _, l := range []Letter{{ID: "a"}, {ID: "b", Redacted: true}, {ID: "c"}} {
		l.Operation, l.Parked, l.ParkedReason = "op", true, "attempts"
		require.NoError(t, d.Add(l))
	}
	require.NoError(t, d.Add(Letter{Operation: "op", Parked: false}))
	require.Equal(t, 2, d.RequeueAll())
	require.Equal(t, 1, d.Stats().Parked)
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
