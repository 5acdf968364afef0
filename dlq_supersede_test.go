package resilience

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func newAgent(t *testing.T) *agent {
	a := &agent{Stack: newStack(t, Config{Retry: RetryConfig{Off: true}}), t: t}
	a.rt = a.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
		b, err := io.ReadAll(req.Body)
		if string(b) == "old" && !a.well.Load() {
			time.Sleep(10 * time.Second)
			return nil, io.ErrUnexpectedEOF
		}
		a.state = string(b)
		return reply(200, "{}"), err
	}))
	return a
}

// A write that fails after a newer one has worked is not sent again.
func TestDLQ_AWriteOvertakenBeforeItFailedIsNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgent(t)
		failed := make(chan error)
		go func() { failed <- a.put("1", "old") }()
		time.Sleep(time.Second)
		require.NoError(t, a.put("2", "new"))
		require.ErrorIs(t, <-failed, ErrParked)
		a.requireNewAfterAnHour()
	})
}

// Nor is a letter that a call has taken over meanwhile.
func TestDLQ_ALetterOvertakenWhileACallHasItIsNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgent(t)
		require.ErrorIs(t, a.put("1", "old"), ErrParked)
		failed := make(chan error)
		go func() { failed <- a.put("1", "old") }()
		time.Sleep(time.Second)
		require.NoError(t, a.put("2", "new"))
		require.Equal(t, uint64(1), a.Stats().DLQ.Overtaken)
		require.ErrorIs(t, <-failed, ErrParked)
		a.requireNewAfterAnHour()
	})
}

// A letter that is superseded while its redrive waits for a slot is not sent.
func TestDLQ_ALetterSupersededWhileItsRedriveWaitsForASlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down := true
		state := ""
		s := newStack(t, Config{Retry: RetryConfig{Off: true}, Bulkhead: BulkheadConfig{Critical: 1, Normal: -1, Bulk: -1, Total: 1}})
		rt := s.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			if down {
				return nil, MarkNotSent(io.EOF)
			}
			b, _ := io.ReadAll(req.Body)
			state = string(b)
			return reply(200, "{}"), nil
		}))
		put := func(key, body string, p Priority) error {
			ctx := WithCall(WithIdempotencyKey(t.Context(), key), Call{Resource: "agent/1", Priority: p})
			req, _ := http.NewRequestWithContext(ctx, http.MethodPut, "http://h/agent/1", strings.NewReader(body))
			_, err := rt.RoundTrip(req)
			return err
		}
		require.ErrorIs(t, put("1", "old", 0), ErrParked)
		down = false
		release, err := s.Bulkhead.Acquire(t.Context(), PriorityCritical)
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		time.Sleep(3 * time.Second)
		require.Equal(t, 1, s.DLQ.Stats().Leased)
		newer := make(chan error)
		go func() { newer <- put("2", "new", PriorityCritical) }()
		time.Sleep(time.Second)
		release()
		require.NoError(t, <-newer)
		time.Sleep(time.Hour)
		cancel()
		<-done
		closeStack(t, s)
		require.Equal(t, "new", state)
	})
}

// One that is superseded while its redrive is on the wire has not failed: it is not given up, and nobody is told so.
func TestDLQ_ALetterSupersededOnTheWireIsNotGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgent(t)
		a.DLQ.cfg.Attempts = 1
		a.DLQ.cfg.OnParked = func(l Letter) { t.Error("it was given up", l.ParkedReason) }
		require.ErrorIs(t, a.put("1", "old"), ErrParked)
		time.Sleep(5 * time.Second)
		result := make(chan RedriveResult)
		go func() { result <- a.DLQ.Redrive(t.Context()) }()
		time.Sleep(time.Second)
		require.NoError(t, a.put("2", "new"))
		require.Equal(t, RedriveReturned, (<-result).Status)
		l := dlqOnly(t, a.DLQ)
		require.True(t, l.Superseded)
		require.Zero(t, l.Attempts)
		time.Sleep(time.Minute) // the transport is slow to hear of it
		a.requireNewAfterAnHour()
	})
}

// What is noted of the writes of a resource is gone with the last of them, whatever ends it.
func TestDLQ_NothingIsLeftOfTheWritesOfAResource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgent(t)
		var all sync.WaitGroup
		all.Go(func() { require.ErrorIs(t, a.put("1", "old"), ErrParked) })
		time.Sleep(time.Second)
		require.NoError(t, a.put("2", "new"))
		require.Equal(t, 1, a.writes(), "the first is still under way")
		all.Wait()
		require.Zero(t, a.writes())
		a.requireNewAfterAnHour()
	})
}

// While a newer write is under way nobody knows whether an older letter still counts: its redrive does not go out, though
// it has a slot, and comes again. A newer letter's redrive is such a write.
func TestDLQ_ARedriveDoesNotGoOutBesideANewerWrite(t *testing.T) {
	for _, works := range []bool{true, false} {
		for _, byRedrive := range []bool{false, true} {
			t.Run(fmt.Sprint("works ", works, ", by redrive ", byRedrive), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { besideANewerWrite(t, works, byRedrive) })
			})
		}
	}
}

func besideANewerWrite(t *testing.T, works, byRedrive bool) {
	w := &writesOut{mode: "down"}
	s := newStack(t, Config{Retry: RetryConfig{Off: true}})
	rt := s.Wrap(w)
	put := func(body string) error {
		ctx := WithCall(WithIdempotencyKey(t.Context(), body), Call{Resource: "agent/1"})
		req, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://h/agent/1", strings.NewReader(body))
		require.NoError(t, err)
		_, err = rt.RoundTrip(req)
		return err
	}
	require.ErrorIs(t, put("old"), ErrParked)
	time.Sleep(time.Second)
	if byRedrive { // the newer one's comes first
		require.ErrorIs(t, put("new"), ErrParked)
		time.Sleep(5 * time.Second)
		s.DLQ.mu.Lock()
		s.DLQ.box.change(s.DLQ.box.ofKey("old"), func(l *Letter) { l.Next = time.Now().Add(time.Second) })
		s.DLQ.mu.Unlock()
	}
	w.set(map[bool]string{true: "works", false: "fails"}[works])
	done := make(chan struct{})
	go func() {
		defer close(done)
		if byRedrive {
			s.DLQ.Redrive(t.Context())
			return
		}
		_ = put("new")
	}()
	time.Sleep(5 * time.Second)
	r := s.DLQ.Redrive(t.Context())
	require.Equal(t, RedrivePaused, r.Status)
	require.ErrorIs(t, r.Err, errOvertaken)
	require.Empty(t, w.all())
	<-done
	w.set("works")
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	require.NoError(t, s.Run(ctx))
	closeStack(t, s)
	if works {
		require.Equal(t, []string{"new"}, w.all())
		return
	}
	require.Equal(t, "new", w.all()[len(w.all())-1], "the older one goes first, or not at all")
}

// writesOut takes writes; the one that is "new" takes ten seconds.
type writesOut struct {
	mu   sync.Mutex
	mode string // "down", "works", or "fails": the new one does
	sent []string
}

func (w *writesOut) RoundTrip(req *http.Request) (*http.Response, error) {
	b, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	mode := w.mode
	w.mu.Unlock()
	if mode != "down" && string(b) == "new" {
		time.Sleep(10 * time.Second)
	}
	if mode == "down" || mode == "fails" && string(b) == "new" {
		return nil, MarkNotSent(io.EOF)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sent = append(w.sent, string(b))
	return reply(200, "{}"), nil
}

func (w *writesOut) set(mode string) { w.mu.Lock(); w.mode = mode; w.mu.Unlock() }

func (w *writesOut) all() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.sent)
}

// What is asked at the last moment: a call that has taken a letter over is a newer write itself.
func TestDLQ_WhatRecallsALetter(t *testing.T) {
	d := mustDLQ(t, DLQConfig{})
	began := time.Now()
	require.NoError(t, d.Add(Letter{ID: "a", Method: "PUT", URL: "http://h/", First: began, Call: Call{Resource: "r"}}))
	ask := func(redrive, call error) {
		t.Helper()
		require.Equal(t, redrive, d.recall("a", true))
		require.Equal(t, call, d.recall("a", false))
	}
	require.NoError(t, d.recall("gone", true))
	ask(nil, nil)
	d.begin("r", "", began)
	ask(nil, nil)
	d.begin("r", "", began.Add(time.Second))
	ask(errOvertaken, nil)
	d.end("r")
	d.end("r")
	ask(nil, nil)
	change := func(edit func(*Letter)) { d.mu.Lock(); d.box.change(d.box.ofID("a"), edit); d.mu.Unlock() }
	change(func(l *Letter) { l.Superseded = true })
	ask(errSuperseded, nil)
	change(func(l *Letter) { l.InDoubt = true })
	ask(ErrInDoubt, ErrInDoubt)
}

// A letter that is on its way into the store is superseded like any other.
func TestDLQStore_ALetterOnItsWayIsSuperseded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		p := s.open()
		d := mustDLQ(t, DLQConfig{Store: p})
		p.set(func(_ context.Context, _, _ string, effect func()) error {
			time.Sleep(time.Second)
			effect()
			return nil
		})
		w := &dlqWorld{answer: dlqError(errDLQRefused)}
		rt := d.Wrap(w)
		ctx := WithCall(t.Context(), Call{Resource: "agent/1"})
		older := make(chan error, 1)
		go func() {
			_, err := dlqCall(ctx, rt, http.MethodPut, "old")
			older <- err
		}()
		time.Sleep(time.Second / 2)
		w.set(dlqStatus(200))
		_, err := dlqCall(ctx, rt, http.MethodPut, "new")
		require.NoError(t, err)
		require.ErrorIs(t, <-older, ErrParked)
		require.Equal(t, LetterSuperseded, dlqOnly(t, d).State())
		onDisk(t, d)
		require.True(t, s.get(s.ids()[0]).Superseded)
		require.NoError(t, d.Delete(dlqOnly(t, d).ID, ""))
		require.Empty(t, d.box.byResource)
	})
}

// A letter that comes too late, or is superseded on its way into the store, is reported as such when it is there, and not at
// all where it does not get there: then its caller has the write.
func TestDLQStore_ALetterIsSupersededWhenItIsThere(t *testing.T) {
	for name, c := range map[string]struct {
		fails, writes time.Duration // how long the call and the store take
		err           error         // of the store
		events        []EventKind
	}{
		"too late":               {fails: 10 * time.Second, events: []EventKind{EventLetterAdded, EventLetterParked}},
		"on its way":             {writes: 3 * time.Second, events: []EventKind{EventLetterAdded, EventLetterParked}},
		"too late, not stored":   {fails: 10 * time.Second, err: errShelf, events: []EventKind{EventLetterUnwritten, EventLetterRefused}},
		"on its way, not stored": {writes: 3 * time.Second, err: errShelf, events: []EventKind{EventLetterUnwritten, EventLetterRefused}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var events []EventKind
				p := newShelf().open()
				p.set(func(_ context.Context, op, _ string, effect func()) error {
					if op != "put" {
						return nil
					}
					time.Sleep(c.writes)
					if c.err == nil {
						effect()
					}
					return c.err
				})
				d := mustDLQ(t, DLQConfig{Store: p, OnEvent: func(e Event) { events = append(events, e.Kind) }})
				w := &dlqWorld{}
				w.set(func(n int, _ *http.Request) (*http.Response, error) {
					if n == 1 {
						time.Sleep(c.fails)
						return nil, errDLQRefused
					}
					return dlqStatus(200)(n, nil)
				})
				rt := d.Wrap(w)
				late := make(chan error)
				go func() { late <- dlqChange(t, rt, http.MethodPut, "older", "{}") }()
				time.Sleep(time.Second)
				require.NoError(t, dlqChange(t, rt, http.MethodPut, "newer", "{}"))
				if err := <-late; c.err == nil {
					require.ErrorIs(t, err, ErrParked)
					require.True(t, dlqOnly(t, d).Superseded)
				} else {
					require.ErrorIs(t, err, ErrLettersFull)
				}
				synctest.Wait()
				require.Equal(t, c.events, events)
				require.Equal(t, uint64(len(d.List(LetterFilter{}))), d.Stats().Overtaken)
				dlqConserved(t, d)
				require.NoError(t, d.close(t.Context()))
			})
		})
	}
}

func TestD13_ALaterWriteSupersedesAWaitingLetter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var parked atomic.Int32
		d := mustDLQ(t, DLQConfig{OnParked: func(Letter) { parked.Add(1) }})
		w := &dlqWorld{answer: dlqStatus(503)}
		rt := d.Wrap(w)
		resource := func(r string) context.Context { return WithCall(t.Context(), Call{Resource: r}) }
		for _, key := range []string{"a", "b"} {
			_, err := dlqCall(resource("thing/1"), rt, http.MethodPut, key)
			require.ErrorIs(t, err, ErrParked)
		}
		_, err := dlqCall(resource("thing/2"), rt, http.MethodPut, "c")
		require.ErrorIs(t, err, ErrParked)
		w.set(dlqStatus(404))
		time.Sleep(time.Millisecond)
		_, err = dlqCall(resource("thing/1"), rt, http.MethodPut, "")
		require.NoError(t, err)
		require.Zero(t, d.Stats().Superseded, "a refusal supersedes nothing")
		w.set(dlqStatus(200))
		_, err = dlqCall(resource("thing/1"), rt, http.MethodPut, "")
		require.NoError(t, err)
		require.Equal(t, 2, d.Stats().Superseded)
		require.Len(t, d.List(LetterFilter{Resource: "thing/1", State: LetterSuperseded}), 2)
		stop := dlqRun(t, d)
		time.Sleep(3 * time.Hour)
		stop()
		keys := []string{}
		for _, c := range w.calls()[5:] {
			keys = append(keys, c.key)
		}
		require.Equal(t, []string{"c"}, keys)
		require.Zero(t, d.RequeueAll())
		require.Zero(t, parked.Load())
		require.Empty(t, d.box.byResource["thing/1"])

		require.NoError(t, d.Requeue(d.List(LetterFilter{})[0].ID), "an operator may")
		dlqConserved(t, d)
	})
}

func TestD13_ARedriveSupersedesOnlyWhatIsOlder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := mustDLQ(t, DLQConfig{})
		_ = d.Wrap(&dlqWorld{answer: dlqStatus(200)})
		now := time.Now()
		for i, next := range []time.Duration{time.Minute, 0, time.Minute} {
			require.NoError(t, d.Add(Letter{
				ID: fmt.Sprint(i), Method: "PUT", URL: "http://h/", Call: Call{Resource: "r"},
				First: now.Add(time.Duration(i-3) * time.Second), Next: now.Add(next),
			}))
		}
		require.Equal(t, RedriveDone, d.Redrive(t.Context()).Status)
		older, _ := d.Get("0")
		newer, _ := d.Get("2")
		require.Equal(t, LetterSuperseded, older.State())
		require.Equal(t, LetterWaiting, newer.State())
	})
}

// dlqChange makes one write of a resource.
func dlqChange(t testing.TB, rt http.RoundTripper, method, key, body string) error {
	t.Helper()
	ctx := WithCall(WithIdempotencyKey(t.Context(), key), Call{Resource: "agent/1", Effect: EffectIdempotent})
	req, err := http.NewRequestWithContext(ctx, method, "http://h/agent/1", strings.NewReader(body))
	require.NoError(t, err)
	_, err = rt.RoundTrip(req)
	return err
}

var partialWrites = map[string]struct {
	older, newer string // method and body
	waits        bool   // the older one is still to be sent
}{
	"other members":           {`PATCH {"voice_id":"a"}`, `PATCH {"prompt":"b"}`, true},
	"names within names":      {`PATCH {"voice":"a"}`, `PATCH {"voice_id":"b","a\nvoice":1}`, true},
	"the same member":         {`PATCH {"voice_id":"a"}`, `PATCH { "voice_id" : "b" }`, false},
	"null is a change":        {`PATCH {"voice_id":"a"}`, `PATCH {"voice_id":null}`, false},
	"more members":            {`PATCH {"voice_id":"a"}`, `PATCH {"prompt":"b","voice_id":"b"}`, false},
	"some of its members":     {`PATCH {"voice_id":"a","prompt":"a"}`, `PATCH {"prompt":"b"}`, false},
	"all of it":               {`PATCH {"voice_id":"a"}`, `PUT {"prompt":"b"}`, false},
	"gone":                    {`PATCH {"voice_id":"a"}`, `DELETE `, false},
	"parts after all of it":   {`PUT {"voice_id":"a"}`, `PATCH {"prompt":"b"}`, false},
	"no members":              {`PATCH {"voice_id":"a"}`, `PATCH {}`, false},
	"an older one of nothing": {`PATCH null`, `PATCH {"prompt":"b"}`, false},
	"a list":                  {`PATCH {"voice_id":"a"}`, `PATCH [{"op":"add","path":"/prompt"}]`, false},
}

// A change of some members of a thing does not undo one of others, nor has it done that: the older one is still sent. Whatever
// may undo it, or may have done it, supersedes it.
func TestD13_APartialWriteIsSupersededByWhatMeetsIt(t *testing.T) {
	for name, c := range partialWrites {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := mustDLQ(t, DLQConfig{})
				w := &dlqWorld{answer: dlqStatus(503)}
				rt := d.Wrap(w)
				method, body, _ := strings.Cut(c.older, " ")
				require.ErrorIs(t, dlqChange(t, rt, method, "older", body), ErrParked)
				time.Sleep(time.Second)
				w.set(dlqStatus(200))
				method, body, _ = strings.Cut(c.newer, " ")
				require.NoError(t, dlqChange(t, rt, method, "newer", body))
				requireOlder(t, d, w, c.waits)
			})
		})
	}
}

// requireOlder checks that the older write is sent, or is a superseded letter.
func requireOlder(t *testing.T, d *DLQ, w *dlqWorld, sent bool) {
	t.Helper()
	stop := dlqRun(t, d)
	time.Sleep(time.Hour)
	stop()
	last := w.calls()[len(w.calls())-1]
	require.Equal(t, sent, last.letter != "" && last.key == "older")
	if !sent {
		require.Equal(t, LetterSuperseded, dlqOnly(t, d).State())
	}
	require.Equal(t, map[bool]uint64{true: 0, false: 1}[sent], d.Stats().Overtaken)
	require.Empty(t, d.box.byResource)
	require.Empty(t, d.writes)
	dlqConserved(t, d)
}

// The same where the older one fails only after the newer one has worked, under its own key or under that of its letter.
func TestD13_APartialWriteThatFailsLateIsSupersededByWhatMeetsIt(t *testing.T) {
	for name, c := range partialWrites {
		for _, again := range []bool{false, true} {
			t.Run(fmt.Sprint(name, ", again ", again), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { partialFailsLate(t, c.older, c.newer, again, c.waits) })
			})
		}
	}
}

func partialFailsLate(t *testing.T, older, newer string, again, waits bool) {
	d := mustDLQ(t, DLQConfig{})
	w := &dlqWorld{answer: dlqStatus(503)}
	rt := d.Wrap(w)
	method, body, _ := strings.Cut(older, " ")
	if again {
		require.ErrorIs(t, dlqChange(t, rt, method, "older", body), ErrParked)
	}
	w.set(func(int, *http.Request) (*http.Response, error) {
		time.Sleep(10 * time.Second)
		return dlqStatus(503)(0, nil)
	})
	late := make(chan error)
	go func() { late <- dlqChange(t, rt, method, "older", body) }()
	time.Sleep(time.Second)
	w.set(dlqStatus(200))
	method, body, _ = strings.Cut(newer, " ")
	require.NoError(t, dlqChange(t, rt, method, "newer", body))
	require.NoError(t, dlqChange(t, rt, http.MethodPatch, "another", `{"language":"en"}`)) // it meets nothing but whole writes
	require.ErrorIs(t, <-late, ErrParked)
	require.Equal(t, !waits, dlqOnly(t, d).Superseded)
	requireOlder(t, d, w, waits)
}

// What a redrive, or a look-up, brings about supersedes as a call does.
func TestD13_ALetterOfPartsSupersedesWhatItMeets(t *testing.T) {
	for _, found := range []bool{false, true} {
		t.Run(fmt.Sprint("found ", found), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := mustDLQ(t, DLQConfig{})
				_ = d.Wrap(&dlqWorld{answer: dlqStatus(200)})
				now := time.Now()
				for i, body := range []string{`{"a":1}`, `{"b":1}`, `{"c":1,"b":1}`, `{"b":2}`, `{"b":3}`} {
					next := now.Add(time.Minute)
					if i == 3 && !found {
						next = now
					}
					require.NoError(t, d.Add(Letter{
						ID: fmt.Sprint(i), Key: fmt.Sprint(i), Method: http.MethodPatch, URL: "http://h/", Body: []byte(body),
						Call: Call{Resource: "r"}, First: now.Add(time.Duration(i-9) * time.Second), Next: next,
					}))
				}
				if found {
					d.settle("3", keyNews{verdict: keyDone})
				} else {
					require.Equal(t, RedriveDone, d.Redrive(context.Background()).Status)
				}
				for id, state := range map[string]LetterState{"0": LetterWaiting, "1": LetterSuperseded, "2": LetterSuperseded, "4": LetterWaiting} {
					l, ok := d.Get(id)
					require.True(t, ok)
					require.Equal(t, state, l.State(), id)
				}
			})
		})
	}
}

// Of the writes that worked the newest counts, in whatever order they ended.
func TestD13_TheNewestWriteThatWorkedCounts(t *testing.T) {
	for _, method := range []string{http.MethodPatch, http.MethodPut} {
		for _, first := range []time.Duration{time.Millisecond, 5 * time.Second} {
			t.Run(fmt.Sprint(method, first), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					takes := map[string]time.Duration{"1": first, "2": 10 * time.Second, "3": time.Millisecond}
					d := mustDLQ(t, DLQConfig{})
					w := &dlqWorld{}
					w.set(func(n int, _ *http.Request) (*http.Response, error) {
						key := w.calls()[n-1].key
						time.Sleep(takes[key])
						return dlqStatus(map[bool]int{true: 503, false: 200}[key == "2"])(n, nil)
					})
					rt := d.Wrap(w)
					ends := make(chan error, 3)
					for _, key := range []string{"1", "2", "3"} {
						go func() { ends <- dlqChange(t, rt, method, key, `{"voice_id":"`+key+`"}`) }()
						time.Sleep(time.Second)
					}
					require.NoError(t, <-ends)
					require.NoError(t, <-ends)
					require.ErrorIs(t, <-ends, ErrParked)
					require.Equal(t, LetterSuperseded, dlqOnly(t, d).State())
				})
			})
		}
	}
}

func TestPartsOf_AreTheSameHoweverTheyAreWritten(t *testing.T) {
	want := partsOf("r", http.MethodPatch, []byte(`{"a":1,"b":2,"c":3,"d":4,"e":5}`))
	require.NotEmpty(t, want)
	for range 20 {
		require.Equal(t, want, partsOf("r", http.MethodPatch, []byte(`{"e":9, "d":9, "\u0063":9,"b":9,"a":9}`)))
	}
	require.Empty(t, partsOf("", http.MethodPatch, []byte(`{"a":1}`)), "nobody asks")
}

// Two calls with one key fail one after the other, and between them a newer write of other members has worked.
func TestD13_APartialWriteThatFailsTwiceWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := mustDLQ(t, DLQConfig{})
		w := &dlqWorld{}
		w.set(func(n int, _ *http.Request) (*http.Response, error) {
			time.Sleep([]time.Duration{2 * time.Second, 10 * time.Second, 0, 0, 0}[n-1])
			return dlqStatus([]int{503, 503, 200, 200, 200}[n-1])(n, nil)
		})
		rt := d.Wrap(w)
		ends := make(chan error, 2)
		for range 2 {
			go func() { ends <- dlqChange(t, rt, http.MethodPatch, "older", `{"voice_id":"a"}`) }()
			time.Sleep(time.Millisecond)
		}
		require.ErrorIs(t, <-ends, ErrParked)
		require.NoError(t, dlqChange(t, rt, http.MethodPatch, "newer", `{"prompt":"b"}`))
		require.ErrorIs(t, <-ends, ErrParked)
		require.Equal(t, uint64(1), d.Stats().Merged)
		requireOlder(t, d, w, true)
	})
}

// A newer write holds back the letter that it meets while it is under way, and no other.
func TestD13_APartialWriteIsHeldBackByWhatMeetsIt(t *testing.T) {
	for name, c := range partialWrites {
		d := mustDLQ(t, DLQConfig{})
		began := time.Now()
		method, body, _ := strings.Cut(c.older, " ")
		require.NoError(t, d.Add(Letter{
			ID: "older", Method: method, URL: "http://h/", Body: []byte(body), First: began, Call: Call{Resource: "agent/1"},
		}))
		method, body, _ = strings.Cut(c.newer, " ")
		d.begin("agent/1", partsOf("agent/1", method, []byte(body)), began.Add(time.Second))
		require.Equal(t, !c.waits, d.recall("older", true) != nil, name)
		d.end("agent/1")
		require.NoError(t, d.recall("older", true))
	}
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

// Two calls with one key fail one after the other, and between them a newer write of the same resource has worked.
func TestLetter_StaysSupersededWhenAnOlderCallWithItsKeyFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := mustDLQ(t, DLQConfig{})
		fail := map[string]chan struct{}{"first": make(chan struct{}), "second": make(chan struct{})}
		rt := d.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			if wait := fail[req.Header.Get("Call")]; wait != nil {
				<-wait
				return nil, io.EOF
			}
			return reply(200, "{}"), nil
		}))
		put := func(key, call, body string) error {
			ctx := WithCall(WithIdempotencyKey(t.Context(), key), Call{Resource: "agent/1"})
			req, _ := http.NewRequestWithContext(ctx, http.MethodPut, "http://h/agent/1", strings.NewReader(body))
			req.Header.Set("Call", call)
			_, err := rt.RoundTrip(req)
			return err
		}
		ends := make(chan error, 2)
		for _, call := range []string{"first", "second"} {
			go func() { ends <- put("old", call, "old") }()
		}
		time.Sleep(time.Second)
		close(fail["first"])
		require.ErrorIs(t, <-ends, ErrParked)
		require.NoError(t, put("new", "", "new"))
		require.Equal(t, 1, d.Stats().Superseded)
		close(fail["second"])
		require.ErrorIs(t, <-ends, ErrParked)
		require.Equal(t, 1, d.Stats().Superseded, "the older write would undo the newer one")
	})
}

// A write that is found to have worked is as good a reason to leave an older one as one that was seen to work.
func TestLetter_IsSupersededByANewerOneThatIsFoundToHaveWorked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		state, mode := "", "refuse"
		s := newStack(t, Config{Retry: RetryConfig{Off: true}})
		rt := s.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			b, _ := io.ReadAll(req.Body)
			switch mode {
			case "refuse":
				return nil, MarkNotSent(io.EOF)
			case "lose":
				state = string(b)
				return nil, io.EOF
			}
			state = string(b)
			return reply(200, "{}"), nil
		}))
		patch := func(key, body string) error {
			ctx := WithCall(WithIdempotencyKey(t.Context(), key), Call{Resource: "agent/1"})
			req, _ := http.NewRequestWithContext(ctx, http.MethodPatch, "http://h/agent/1", strings.NewReader(body))
			_, err := rt.RoundTrip(req)
			return err
		}
		require.ErrorIs(t, patch("1", "old"), ErrParked)
		time.Sleep(time.Second)
		mode = "lose"
		require.ErrorIs(t, patch("2", "new"), ErrInDoubt)
		mode = "work"
		require.NoError(t, s.Idempotency.Resolve(t.Context(), "2", Resolution{State: KeyConfirmed, Reason: "seen"}))
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		require.NoError(t, s.Run(ctx))
		closeStack(t, s)
		require.Equal(t, "new", state)
	})
}

// Whoever puts a superseded letter in has it kept, not sent.
func TestD13_ASupersededLetterStaysSo(t *testing.T) {
	d := mustDLQ(t, DLQConfig{})
	require.NoError(t, d.Add(Letter{Operation: "op", Superseded: true, Next: time.Now()}))
	require.Equal(t, RedriveEmpty, d.Redrive(t.Context()).Status)
	require.Equal(t, LetterSuperseded, dlqOnly(t, d).State())
}
