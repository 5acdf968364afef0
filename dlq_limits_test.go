package resilience

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Room that comes between a vain try and the place in line is not missed.
func TestDLQ_RoomThatComesBeforeThePlaceInLineIsNotMissed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := mustDLQ(t, DLQConfig{MaxLetters: 1, Overflow: OverflowBlock})
		require.NoError(t, d.Add(Letter{ID: "1", Operation: "op"}))
		turn := d.queueUp(false, 1)
		require.NoError(t, d.Delete("1", "")) // the one in line is called
		<-turn
		require.NoError(t, d.Add(Letter{ID: "2", Operation: "op"})) // somebody else is faster
		_, err := d.admitNow(&Letter{ID: "3", Operation: "op", Key: "3"}, nil, false)
		require.ErrorIs(t, err, errNoRoom)
		require.NoError(t, d.Delete("2", "")) // nobody is in line
		turn = d.queueUp(true, 1)
		select {
		case <-turn:
		case <-time.After(time.Hour):
			t.Fatal("waits for room in an empty queue")
		}
	})
}

// dlqFill puts n letters in, the first the oldest.
func dlqFill(t testing.TB, d *DLQ, n int) {
	t.Helper()
	for i := range n {
		first := time.Now().Add(time.Duration(i-n) * time.Second)
		require.NoError(t, d.Add(Letter{
			ID: fmt.Sprint("fill-", i), Key: fmt.Sprint("fill-", i), Method: "PUT", URL: "http://h/",
			First: first, Next: time.Now().Add(time.Hour), InDoubt: i == 0,
		}))
	}
}

func TestD10_AFullQueueGivesTheWriteBack(t *testing.T) {
	var refusals atomic.Int32
	d := mustDLQ(t, DLQConfig{MaxLetters: 3, OnEvent: func(e Event) {
		if e.Kind == EventLetterRefused {
			refusals.Add(1)
		}
	}})
	dlqFill(t, d, 3)
	require.ErrorIs(t, d.Add(Letter{Operation: "x"}), ErrLettersFull)
	require.NoError(t, d.Add(Letter{Operation: "x", Key: "fill-1"}), "a letter of a key that is there needs no room")

	reset := errors.New("reset")
	w := &dlqWorld{answer: dlqError(reset)}
	rt := d.Wrap(w)
	for _, tc := range []struct {
		err            error
		notSent, doubt bool
	}{{reset, false, false}, {errDLQRefused, true, false}, {&Error{Err: ErrInDoubt}, false, true}} {
		w.set(dlqError(tc.err))
		resp, err := dlqCall(t.Context(), rt, http.MethodPost, "k")
		require.Nil(t, resp)
		require.ErrorIs(t, err, ErrLettersFull)
		require.ErrorIs(t, err, tc.err)
		require.NotErrorIs(t, err, ErrParked)
		require.Equal(t, tc.notSent, NotSent(err), "the verdict is the cause's")
		require.Equal(t, tc.doubt, InDoubt(err))
		var e *Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, []any{"dlq", "k", ""}, []any{e.Layer, e.Key, e.LetterID})
	}
	w.set(dlqStatus(503))
	resp, err := dlqCall(t.Context(), rt, http.MethodPut, "k")
	require.NoError(t, err)
	require.Equal(t, 503, resp.StatusCode, "a settled outcome is a response")
	require.EqualValues(t, 5, d.Stats().Refused)
	require.NoError(t, d.events.drain(t.Context()))
	require.EqualValues(t, 5, refusals.Load())
	dlqConserved(t, d)
}

func TestD10_BytesAreBoundedToo(t *testing.T) {
	d := mustDLQ(t, DLQConfig{MaxBytes: 10 << 10})
	for d.Add(Letter{Operation: "x"}) == nil {
		require.LessOrEqual(t, d.Stats().Bytes, int64(10<<10))
	}
	require.Equal(t, 4, d.Len())
	require.ErrorIs(t, d.Add(Letter{Operation: "x", Body: make([]byte, 11<<10)}), ErrLettersFull)
}

// letterMemory is what each of n phone calls takes as a letter, and what is counted for it.
func letterMemory(t testing.TB, n, failures, headers int) (took, counted float64) {
	t.Helper()
	d := mustDLQ(t, DLQConfig{MaxLetters: -1, MaxBytes: -1})
	before := heapInUse()
	for i := range n {
		l := callLetter(i)
		for h := range headers {
			l.Header[fmt.Sprint("X-Header-", h)] = []string{fmt.Sprint("value ", i), "another"}
		}
		for range failures {
			l.note(LetterAttempt{Time: l.First, Cause: "status", Detail: fmt.Sprintf("status %d", 503), StatusCode: 503})
		}
		require.NoError(t, d.Add(l))
	}
	took = float64(heapInUse()-before) / float64(n)
	return took, float64(d.Stats().Bytes) / float64(n)
}

// MaxBytes is a promise about memory: what is counted is not less than what is taken.
func TestD10_WhatIsCountedIsWhatItTakes(t *testing.T) {
	for _, failures := range []int{1, maxLetterHistory} {
		for _, headers := range []int{0, 10, 30} {
			took, counted := letterMemory(t, 5_000, failures, headers)
			t.Logf("%d failures, %d more headers: %.0f bytes, %.0f counted", failures, headers, took, counted)
			require.Less(t, took, counted)
			require.Greater(t, took, counted/2)
		}
	}
}

func TestD10_DropOldestNeverDropsWhatIsInDoubt(t *testing.T) {
	var mu sync.Mutex
	var dropped []string
	d := mustDLQ(t, DLQConfig{MaxLetters: 3, Overflow: OverflowDropOldest, OnDrop: func(l Letter) {
		mu.Lock()
		defer mu.Unlock()
		dropped = append(dropped, l.ID)
	}})
	dlqFill(t, d, 3)
	require.NoError(t, d.Add(Letter{ID: "new-1", Operation: "x", InDoubt: true}))
	require.NoError(t, d.Add(Letter{ID: "new-2", Operation: "x", InDoubt: true}))
	require.ErrorIs(t, d.Add(Letter{Operation: "x"}), ErrLettersFull, "only letters in doubt are left")
	require.NoError(t, d.events.drain(t.Context()))
	mu.Lock()
	defer mu.Unlock()
	require.Equal(t, []string{"fill-1", "fill-2"}, dropped)
	require.EqualValues(t, 2, d.Stats().Dropped)
	dlqConserved(t, d)
}

func TestD10_DropOldestDropsNothingInVain(t *testing.T) {
	d := mustDLQ(t, DLQConfig{MaxBytes: 12 << 10, Overflow: OverflowDropOldest, OnDrop: func(Letter) {}})
	dlqFill(t, d, 4) // the first is in doubt
	require.ErrorIs(t, d.Add(Letter{Operation: "x", Body: make([]byte, 9<<10)}), ErrLettersFull)
	require.Equal(t, 4, d.Len())
	require.NoError(t, d.Add(Letter{Operation: "x", Body: make([]byte, 5<<10)}))
	dlqConserved(t, d)
}

func TestD10_SpillTakesWhatDoesNotFit(t *testing.T) {
	var got []Letter
	sink := func(l Letter) error { got = append(got, l); return nil }
	d := mustDLQ(t, DLQConfig{MaxLetters: 1, Overflow: OverflowSpill, Spill: func(l Letter) error { return sink(l) }})
	dlqFill(t, d, 1)
	rt := d.Wrap(&dlqWorld{answer: dlqStatus(503)})
	_, err := dlqCall(t.Context(), rt, http.MethodPut, "k")
	require.ErrorIs(t, err, ErrParked)
	require.Len(t, got, 1)
	require.Equal(t, "k", got[0].Key)
	var e *Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, got[0].ID, e.LetterID)
	for _, bad := range []func(Letter) error{
		func(Letter) error { return errors.New("disk full") }, func(Letter) error { panic("x") },
	} {
		sink = bad
		resp, err := dlqCall(t.Context(), rt, http.MethodPut, "k")
		require.NoError(t, err)
		require.Equal(t, 503, resp.StatusCode)
	}
	s := d.Stats()
	require.Equal(t, []uint64{1, 2}, []uint64{s.Spilled, s.Refused})
	dlqConserved(t, d)
}

func TestD10_BlockWaitsForRoomInLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := mustDLQ(t, DLQConfig{MaxLetters: 2, Overflow: OverflowBlock})
		dlqFill(t, d, 2)
		require.ErrorIs(t, d.Add(Letter{Operation: "x"}), ErrLettersFull, "Add never waits")
		rt := d.Wrap(&dlqWorld{answer: dlqError(errDLQRefused)})
		errs := make(map[string]error)
		var mu sync.Mutex
		call := func(ctx context.Context, key string) {
			_, err := dlqCall(ctx, rt, http.MethodPut, key)
			mu.Lock()
			defer mu.Unlock()
			errs[key] = err
		}
		ctx, cancel := context.WithCancel(t.Context())
		go call(ctx, "impatient")
		synctest.Wait()
		for _, key := range []string{"a", "b", "c"} {
			go call(t.Context(), key)
			synctest.Wait()
		}
		require.Equal(t, 4, d.Stats().Blocked)
		cancel()
		synctest.Wait()
		require.ErrorIs(t, errs["impatient"], ErrLettersFull)
		require.True(t, NotSent(errs["impatient"]))
		require.NoError(t, d.Delete("fill-0", ""))
		synctest.Wait()
		require.ErrorIs(t, errs["a"], ErrParked)
		require.NoError(t, errs["b"])
		require.NoError(t, d.Delete("fill-1", ""))
		synctest.Wait()
		require.ErrorIs(t, errs["b"], ErrParked)
		require.NoError(t, d.close(t.Context()))
		synctest.Wait()
		require.ErrorIs(t, errs["c"], ErrLettersFull)
		require.Zero(t, d.Stats().Blocked)
		dlqConserved(t, d)
	})
}

func TestD10_WhoeverLeavesTheLineAtTheirTurnPassesItOn(t *testing.T) {
	d := mustDLQ(t, DLQConfig{MaxLetters: 1, Overflow: OverflowBlock})
	dlqFill(t, d, 1)
	first, second := d.queueUp(false, 1), d.queueUp(false, 1)
	require.NoError(t, d.Delete("fill-0", ""))
	<-first // its turn has come, and at that moment its context ends
	d.leaveLine(first)
	select {
	case <-second:
	default:
		t.Fatal("there is room, and nobody knows")
	}
}

func TestD12_RedrivesHaveARateAndABound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := mustDLQ(t, DLQConfig{Rate: 2, Concurrency: 3, MaxAge: -1})
		var now, most atomic.Int32
		w := &dlqWorld{}
		w.set(func(n int, req *http.Request) (*http.Response, error) {
			most.Store(max(most.Load(), now.Add(1)))
			defer now.Add(-1)
			time.Sleep(10 * time.Second)
			return dlqStatus(200)(n, req)
		})
		_ = d.Wrap(w)
		stop := dlqRun(t, d)
		for i := range 30 {
			require.NoError(t, d.Add(Letter{Key: fmt.Sprint("k", i), Method: "PUT", URL: "http://h/", Next: time.Now()}))
		}
		time.Sleep(10 * time.Minute)
		stop()
		require.EqualValues(t, 3, most.Load())
		calls := w.calls()
		require.Len(t, calls, 30)
		for i, c := range calls {
			require.Equal(t, fmt.Sprint("k", i), c.key, "the oldest first")
			require.Equal(t, PriorityBulk, c.priority)
			if i > 0 {
				require.GreaterOrEqual(t, c.at.Sub(calls[i-1].at), 500*time.Millisecond)
			}
		}
	})
}

func TestD12_AnOpenCircuitPausesRedriving(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var events []Event
		d := mustDLQ(t, DLQConfig{MaxAge: -1, OnEvent: func(e Event) {
			if e.Kind == EventRedrivePaused {
				events = append(events, e)
			}
		}})
		var open atomic.Bool
		open.Store(true)
		d.paused = func() (bool, time.Duration) { return open.Load(), 30 * time.Second }
		w := &dlqWorld{answer: dlqStatus(200)}
		_ = d.Wrap(w)
		stop := dlqRun(t, d)
		time.Sleep(time.Hour)
		require.NoError(t, d.Add(Letter{Method: "PUT", URL: "http://h/", Next: time.Now()}))
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		require.Empty(t, w.calls())
		require.Zero(t, dlqOnly(t, d).Attempts)
		require.Len(t, events, 1, "said once, and not before there was something to redrive")
		require.Equal(t, "open", events[0].Cause)
		open.Store(false)
		time.Sleep(31 * time.Second)
		require.Zero(t, d.Len())
		stop()
	})
}

func TestD13_TooOldIsParkedAndReported(t *testing.T) {
	for name, tc := range map[string]struct {
		maxAge time.Duration
		expiry time.Duration
		until  time.Duration
	}{
		"MaxAge":     {0, 0, time.Hour},
		"WithExpiry": {0, 10 * time.Minute, 10 * time.Minute},
		"both":       {time.Minute, 10 * time.Minute, time.Minute},
		"no MaxAge":  {-1, 3 * time.Hour, 3 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var parkedAt atomic.Int64
				began := time.Now()
				d := mustDLQ(t, DLQConfig{MaxAge: tc.maxAge, Attempts: -1, OnParked: func(l Letter) {
					require.Equal(t, "expired", l.ParkedReason)
					parkedAt.Add(int64(time.Since(began)))
				}})
				d.paused = func() (bool, time.Duration) { return true, 24 * time.Hour } // a pause delays no expiry
				w := &dlqWorld{answer: dlqError(errDLQRefused)}
				ctx := t.Context()
				if tc.expiry > 0 {
					ctx = WithExpiry(ctx, began.Add(tc.expiry))
				}
				_, err := dlqCall(ctx, d.Wrap(w), http.MethodPost, "k")
				require.ErrorIs(t, err, ErrParked)
				stop := dlqRun(t, d)
				time.Sleep(5 * time.Hour)
				require.Equal(t, tc.until, time.Duration(parkedAt.Load()))
				require.Len(t, w.calls(), 1)
				require.True(t, d.holds("k"), "its key stays pinned")
				require.EqualValues(t, 1, d.Stats().Expired)

				d.paused = nil
				err = d.Requeue(dlqOnly(t, d).ID)
				if tc.expiry > 0 {
					require.Error(t, err, "WithExpiry stays")
				} else {
					require.NoError(t, err)
					require.Equal(t, tc.until, time.Until(dlqOnly(t, d).Expires), "MaxAge begins anew")
				}
				stop()
			})
		})
	}
}

func TestD13_AnOperationMayHaveAMaxAgeOfItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ages := map[string]time.Duration{"update": 24 * time.Hour, "for-ever": -1, "default": 0}
		d := mustDLQ(t, DLQConfig{MaxAges: ages, MaxAge: time.Minute})
		ages["update"] = 1 // the queue has its own
		w := &dlqWorld{answer: dlqStatus(503)}
		rt := d.Wrap(w)
		want := map[string]time.Duration{"update": 24 * time.Hour, "for-ever": 0, "default": time.Minute, "other": time.Minute}
		for op := range want {
			_, err := dlqCall(WithCall(t.Context(), Call{Operation: op}), rt, http.MethodPut, op)
			require.ErrorIs(t, err, ErrParked)
			require.NoError(t, d.Add(Letter{Operation: op, Key: "added-" + op}))
		}
		requireAges := func() {
			t.Helper()
			for _, l := range d.List(LetterFilter{}) {
				require.Equal(t, want[l.Operation] == 0, l.Expires.IsZero(), l.Operation)
				if !l.Expires.IsZero() {
					require.Equal(t, want[l.Operation], time.Until(l.Expires), l.Operation)
				}
			}
		}
		require.Equal(t, 8, d.Len())
		requireAges()
		time.Sleep(30 * time.Second)
		for _, l := range d.List(LetterFilter{}) {
			require.NoError(t, d.Requeue(l.ID))
		}
		requireAges()
	})
	_, err := NewDLQ(DLQConfig{MaxAges: map[string]time.Duration{"op": -2, "fine": -1}})
	require.ErrorContains(t, err, `DLQ.MaxAges["op"]:`)
	require.NotContains(t, err.Error(), "fine")
}

func TestD13_AgeIsCheckedAgainAtTheMomentOfSending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := mustDLQ(t, DLQConfig{Authorize: func(context.Context, Letter, *http.Request) error {
			time.Sleep(2 * time.Hour)
			return nil
		}})
		w := &dlqWorld{answer: dlqStatus(200)}
		_ = d.Wrap(w)
		require.NoError(t, d.Add(Letter{Method: "PUT", URL: "http://h/", Next: time.Now()}))
		r := d.Redrive(t.Context())
		require.Equal(t, RedriveParked, r.Status)
		require.Empty(t, w.calls())
		require.Equal(t, "expired", dlqOnly(t, d).ParkedReason)
	})
}

// After a start there may be more letters than MaxLetters. None of them goes for one that does not fit even then.
func TestDLQStore_NothingIsDroppedInVain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		d := mustDLQ(t, DLQConfig{Store: s.open()})
		for _, id := range []string{"1", "2", "3"} {
			require.NoError(t, d.Add(Letter{ID: id, Operation: "op", InDoubt: true}))
		}
		require.NoError(t, d.Add(Letter{ID: "4", Operation: "op"}))
		d = mustDLQ(t, DLQConfig{Store: s.open(), MaxLetters: 2, Overflow: OverflowDropOldest, OnDrop: func(Letter) {}})
		require.ErrorIs(t, d.Add(Letter{Operation: "op"}), ErrLettersFull)
		require.Equal(t, 4, d.Len())
		require.Zero(t, d.Stats().Dropped)
	})
}

// The smallest rate is no redrive any more but the first, and not one without a limit.
func TestDLQ_TheSmallestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := mustDLQ(t, DLQConfig{Rate: math.SmallestNonzeroFloat64, MaxAge: -1})
		d.Handle("op", func(context.Context, Letter) error { return nil })
		for range 3 {
			require.NoError(t, d.Add(Letter{Operation: "op", Next: time.Now()}))
		}
		stop := dlqRun(t, d)
		time.Sleep(365 * 24 * time.Hour)
		stop()
		require.Equal(t, 2, d.Len())
	})
}

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
