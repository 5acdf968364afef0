package resilience

import (
	"context"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// The failure of a write that has a letter needs no room: its caller does not wait in line for any.
func TestD10_AFailureThatJoinsItsLetterWaitsForNoRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := mustDLQ(t, DLQConfig{MaxLetters: 2, Overflow: OverflowBlock})
		w, first := heldBack(dlqError(errDLQRefused))
		rt := d.Wrap(w)
		late := calling(t.Context(), rt, http.MethodPut, "k")
		_, err := dlqCall(t.Context(), rt, http.MethodPut, "k")
		require.ErrorIs(t, err, ErrParked)
		dlqFill(t, d, 1)
		ctx, cancel := context.WithCancel(t.Context())
		blocked := calling(ctx, rt, http.MethodPut, "other")
		require.Equal(t, 1, d.Stats().Blocked)
		first <- func() (*http.Response, error) { return nil, errDLQRefused }
		synctest.Wait()
		require.Equal(t, 1, d.Stats().Blocked, "the second failure of k has joined the first")
		require.ErrorIs(t, (<-late).err, ErrParked)
		require.EqualValues(t, 1, d.Stats().Merged)
		cancel()
		<-blocked
	})
}

// A small letter does not overtake a large one that waits for room, and all that fit get in when room comes.
func TestD10_TheLineIsKeptByLettersOfAnySize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := mustDLQ(t, DLQConfig{MaxBytes: 64 << 10, Overflow: OverflowBlock})
		require.NoError(t, d.Add(Letter{ID: "most of it", Operation: "op", Body: make([]byte, 50<<10)}))
		rt := d.Wrap(&dlqWorld{answer: dlqError(errDLQRefused)})
		in := make(chan string, 3)
		for _, c := range []struct {
			name string
			size int
		}{{"large", 20 << 10}, {"small", 1}, {"smaller", 0}} {
			go func() {
				req := httptest.NewRequest(http.MethodPut, "http://h/", strings.NewReader(strings.Repeat("x", c.size)))
				_, err := rt.RoundTrip(req.WithContext(WithIdempotencyKey(t.Context(), c.name)))
				require.ErrorIs(t, err, ErrParked)
				in <- c.name
			}()
			synctest.Wait()
		}
		require.Equal(t, 3, d.Stats().Blocked, "nobody overtakes")
		require.NoError(t, d.Delete("most of it", ""))
		synctest.Wait()
		require.Len(t, in, 3)
		require.Zero(t, d.Stats().Blocked)
		dlqConserved(t, d)
	})
}

// A letter larger than the whole queue never fits, so nobody waits for that.
func TestD10_WhatNeverFitsDoesNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := mustDLQ(t, DLQConfig{MaxBytes: 4 << 10, Overflow: OverflowBlock})
		rt := d.Wrap(&dlqWorld{answer: dlqError(errDLQRefused)})
		req := httptest.NewRequest(http.MethodPut, "http://h/", strings.NewReader(strings.Repeat("x", 5<<10)))
		_, err := rt.RoundTrip(req.WithContext(WithIdempotencyKey(t.Context(), "k")))
		require.ErrorIs(t, err, ErrLettersFull)
		require.NotErrorIs(t, err, ErrParked)
	})
}

// Room is made by the oldest letter that nobody is at.
func TestD10_DropOldestNeverDropsWhatIsOnItsWay(t *testing.T) {
	var dropped []string
	d := mustDLQ(t, DLQConfig{
		MaxLetters: 2, MaxAge: -1, Overflow: OverflowDropOldest, OnDrop: func(l Letter) { dropped = append(dropped, l.ID) },
	})
	now := time.Now()
	d.Handle("op", func(context.Context, Letter) error {
		require.NoError(t, d.Add(Letter{ID: "new", Operation: "op", First: now}))
		return nil
	})
	require.NoError(t, d.Add(Letter{ID: "oldest", Operation: "op", First: now.Add(-2 * time.Hour), Next: now}))
	require.NoError(t, d.Add(Letter{ID: "old", Operation: "op", First: now.Add(-time.Minute)}))
	r := d.Redrive(t.Context())
	require.Equal(t, []any{"oldest", RedriveDone}, []any{r.LetterID, r.Status})
	require.NoError(t, d.events.drain(t.Context()))
	require.Equal(t, []string{"old"}, dropped)
	dlqConserved(t, d)
}

// Whoever puts a superseded letter in has it kept, not sent.
func TestD13_ASupersededLetterStaysSo(t *testing.T) {
	d := mustDLQ(t, DLQConfig{})
	require.NoError(t, d.Add(Letter{Operation: "op", Superseded: true, Next: time.Now()}))
	require.Equal(t, RedriveEmpty, d.Redrive(t.Context()).Status)
	require.Equal(t, LetterSuperseded, dlqOnly(t, d).State())
}

// What Add is not told it says itself, and what it is given it does not change.
func TestDLQ_WhatAddMakesOfALetter(t *testing.T) {
	d := mustDLQ(t, DLQConfig{})
	require.NoError(t, d.Add(Letter{Operation: "op", Detail: "why", StatusCode: 7, Leased: true}))
	l := dlqOnly(t, d)
	require.Equal(t, []any{"caller", LetterWaiting}, []any{l.Cause, l.State()})
	require.Equal(t, []LetterAttempt{{Time: l.Last, Cause: "caller", Detail: "why", StatusCode: 7}}, l.History)
	require.NoError(t, d.Delete(l.ID, ""))

	var given []LetterAttempt
	for i := range 12 {
		given = append(given, LetterAttempt{StatusCode: i})
	}
	mine := slices.Clone(given)
	require.NoError(t, d.Add(Letter{Operation: "op", History: mine}))
	require.Equal(t, given, mine)
	require.Equal(t, append(given[:1:1], given[4:]...), dlqOnly(t, d).History, "the first and the last eight")
	for _, bad := range []Call{{Effect: EffectOnce + 1}, {Priority: PriorityBulk + 1}, {Class: ClassLongPoll + 1}} {
		require.Error(t, d.Add(Letter{Operation: "op", Call: bad}))
	}
	require.NoError(t, d.Add(Letter{Operation: "op", Call: Call{Effect: EffectOnce, Priority: PriorityBulk, Class: ClassLongPoll}}))
}

// Whatever of a letter may be long counts against MaxBytes.
func TestD10_EveryLongTextOfALetterIsCounted(t *testing.T) {
	long := strings.Repeat("x", 1<<10)
	for name, l := range map[string]Letter{
		"id": {ID: long}, "operation": {Operation: long}, "key": {Key: long}, "method": {Method: long}, "url": {URL: long},
		"host": {Host: long}, "body": {Body: []byte(long)}, "call": {Call: Call{Operation: long}},
		"resource": {Call: Call{Resource: long}}, "header": {Header: http.Header{"X": {long}}}, "name": {Header: http.Header{long: {""}}},
	} {
		require.GreaterOrEqual(t, l.size(), (&Letter{}).size()+1<<10, name)
	}
}

// A time that no file can hold is no bound, and keeps nobody from exporting.
func TestD16_AnExpiryInTheFarFutureIsNone(t *testing.T) {
	d := mustDLQ(t, DLQConfig{MaxAge: -1})
	ctx := WithExpiry(t.Context(), time.Date(12000, 1, 1, 0, 0, 0, 0, time.UTC))
	_, err := dlqCall(ctx, d.Wrap(&dlqWorld{answer: dlqError(errDLQRefused)}), http.MethodPut, "k")
	require.ErrorIs(t, err, ErrParked)
	l := dlqOnly(t, d)
	require.True(t, l.Expires.IsZero() && l.NotAfter.IsZero())
	d = mustDLQ(t, DLQConfig{})
	require.NoError(t, d.Add(Letter{Operation: "op", First: time.Date(9999, 12, 31, 23, 59, 0, 0, time.UTC)}))
	require.True(t, dlqOnly(t, d).Expires.IsZero())
	require.NotEmpty(t, dlqExport(t, d))
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

// The other side's wish to be left alone holds for the letter that a call took over, too.
func TestD05_ACallThatTookALetterOverIsToldHowLongToWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, w, rt := dlqParked(t, DLQConfig{})
		w.set(dlqStatus(503, "Retry-After", "600"))
		_, err := dlqCall(WithCall(t.Context(), Call{Operation: "op", Effect: EffectIdempotent}), rt, http.MethodPost, "k")
		require.ErrorIs(t, err, ErrParked)
		require.Equal(t, 10*time.Minute, time.Until(dlqOnly(t, d).Next))
	})
}

// Who stops the runner gets it back when its redrives have ended, and not before; a closed queue ends it as well.
func TestD06_TheRunnerEndsAfterItsRedrives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, w, _ := dlqParked(t, DLQConfig{})
		w.set(func(n int, req *http.Request) (*http.Response, error) {
			time.Sleep(time.Hour)
			return dlqStatus(200)(n, req)
		})
		stop := dlqRun(t, d)
		time.Sleep(time.Minute)
		require.Equal(t, 1, d.Stats().Running)
		stop()
		require.Zero(t, d.Stats().Running)
		done := make(chan struct{})
		go func() { defer close(done); d.run(t.Context()) }()
		synctest.Wait()
		require.NoError(t, d.close(t.Context()))
		<-done
	})
}

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

// A bound that is not set is none, whatever the policy for the other one.
func TestD10_OneBoundAlone(t *testing.T) {
	for name, bounds := range map[string]DLQConfig{
		"letters": {MaxLetters: 1, MaxBytes: -1}, "bytes": {MaxLetters: -1, MaxBytes: 4 << 10},
	} {
		t.Run(name, func(t *testing.T) {
			dropping := bounds
			dropping.Overflow, dropping.OnDrop = OverflowDropOldest, func(Letter) {}
			d := mustDLQ(t, dropping)
			for _, id := range []string{"oldest", "old", "new"} {
				require.NoError(t, d.Add(Letter{ID: id, Operation: "op"}))
			}
			require.Equal(t, "new", dlqOnly(t, d).ID)
			require.EqualValues(t, 2, d.Stats().Dropped)
			synctest.Test(t, func(t *testing.T) {
				blocking := bounds
				blocking.Overflow = OverflowBlock
				d := mustDLQ(t, blocking)
				dlqFill(t, d, 1)
				done := calling(t.Context(), d.Wrap(&dlqWorld{answer: dlqError(errDLQRefused)}), http.MethodPut, "k")
				require.Equal(t, 1, d.Stats().Blocked)
				require.NoError(t, d.Delete("fill-0", ""))
				require.ErrorIs(t, (<-done).err, ErrParked)
			})
		})
	}
}

// Without a bound on attempts the failures of callers count, and the delay grows with them.
func TestD05_FailuresOfCallersCountWithoutABound(t *testing.T) {
	d, _, rt := dlqParked(t, DLQConfig{Attempts: -1})
	for range 7 {
		_, err := dlqCall(WithCall(t.Context(), Call{Operation: "op"}), rt, http.MethodPost, "k")
		require.ErrorIs(t, err, ErrParked)
	}
	require.Equal(t, 7, dlqOnly(t, d).Attempts)
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

// fullDisk takes so many bytes.
type fullDisk int

func (f *fullDisk) Write(p []byte) (int, error) {
	n := min(len(p), int(*f))
	*f -= fullDisk(n)
	if n < len(p) {
		return n, errShelf
	}
	return n, nil
}

// An export that did not get onto the disk whole is none, at whichever byte that was.
func TestD16_AnExportThatDoesNotFitOntoTheDiskIsAnError(t *testing.T) {
	d := mustDLQ(t, DLQConfig{})
	for range 3 {
		require.NoError(t, d.Add(Letter{Operation: "op", Body: make([]byte, 5<<10)}))
	}
	whole := len(export(t, d))
	for room := 0; room < whole; room += 1 + min(1000, whole-room-2) {
		disk := fullDisk(room)
		require.ErrorIs(t, d.Export(&disk), errShelf, "%d of %d bytes", room, whole)
		if room == whole-1 {
			return
		}
	}
	t.Fatal("the last byte was never tried")
}
