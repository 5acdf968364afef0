package resilience

import (
	"bytes"
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

const correctedBody = `{"from_number":"+15550009999","to_number":"+15550003333"}`

// Another request under the key of a waiting letter is refused, whether it would work or not; the letter's own is sent.
func TestCorner_AnotherRequestUnderTheKeyOfALetter(t *testing.T) {
	for name, c := range map[string]struct{ first, method, path, body string }{
		"another body":   {http.MethodPost, http.MethodPost, "/a", correctedBody},
		"another path":   {http.MethodPut, http.MethodPut, "/b", dialBody},
		"another method": {http.MethodPut, http.MethodPatch, "/a", dialBody},
	} {
		for _, down := range []bool{true, false} {
			t.Run(fmt.Sprint(name, " down ", down), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { anotherUnderTheKey(t, c.first, c.method, c.path, c.body, down) })
			})
		}
	}
}

func anotherUnderTheKey(t *testing.T, first, method, path, body string, down bool) {
	broken := true
	s := newStack(t, Config{Retry: RetryConfig{Off: true}})
	var sent []string
	rt := s.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
		if broken {
			return nil, MarkNotSent(io.EOF)
		}
		b, err := io.ReadAll(req.Body)
		sent = append(sent, req.Method+" "+req.URL.Path+" "+string(b))
		return reply(200, "{}"), err
	}))
	send := func(method, path, body string) error {
		req, err := http.NewRequestWithContext(WithIdempotencyKey(t.Context(), "k"), method, "http://h"+path, strings.NewReader(body))
		require.NoError(t, err)
		_, err = rt.RoundTrip(req)
		return err
	}
	require.ErrorIs(t, send(first, "/a", dialBody), ErrParked)
	broken = down
	err := send(method, path, body)
	require.ErrorIs(t, err, ErrKeyReused)
	require.True(t, NotSent(err))
	require.Empty(t, sent)
	broken = false
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	require.NoError(t, s.Run(ctx))
	closeStack(t, s)
	require.Equal(t, []string{first + " /a " + dialBody}, sent)
}

// Two writes of one key that are under way together, and differ.
func TestCorner_TwoWritesOfOneKeyUnderWayTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down := true
		sent := map[string]int{}
		s := newStack(t, Config{Retry: RetryConfig{Off: true}})
		rt := s.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			if down {
				time.Sleep(time.Second)
				return nil, MarkNotSent(io.EOF)
			}
			b, _ := io.ReadAll(req.Body)
			sent[string(b)]++
			return reply(200, "{}"), nil
		}))
		put := func(body string) error {
			req, _ := http.NewRequestWithContext(WithIdempotencyKey(t.Context(), "k"), http.MethodPut, "http://h/agent/1", strings.NewReader(body))
			_, err := rt.RoundTrip(req)
			return err
		}
		errs := map[string]chan error{"a": make(chan error), "b": make(chan error)}
		for body := range errs {
			go func() { errs[body] <- put(body) }()
		}
		a, b := <-errs["a"], <-errs["b"]
		down = false
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		require.NoError(t, s.Run(ctx))
		closeStack(t, s)
		for body, err := range map[string]error{"a": a, "b": b} {
			t.Log(body, err)
			if sent[body] == 0 {
				require.NotErrorIs(t, err, ErrParked)
				require.ErrorIs(t, err, ErrKeyReused)
			}
		}
		require.Len(t, sent, 1)
	})
}

// An import says that a letter is in doubt while its redrive waits for a slot.
func TestCorner_ADoubtThatComesWhileARedriveWaitsForASlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := doubtOf(t)
		p := &phone{before: func(*http.Request, int) (*http.Response, error) { return nil, MarkNotSent(io.EOF) }}
		s := newStack(t, Config{Retry: RetryConfig{Off: true}, Bulkhead: BulkheadConfig{Critical: 1, Normal: -1, Bulk: -1, Total: 1}})
		_, err := dial(t.Context(), t, s.Wrap(p), "k", dialBody)
		require.ErrorIs(t, err, ErrParked)
		p.before = nil
		release, err := s.Bulkhead.Acquire(t.Context(), PriorityCritical)
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		time.Sleep(10 * time.Second)
		require.Equal(t, 1, s.DLQ.Stats().Leased)
		require.NoError(t, s.DLQ.Import(bytes.NewReader(file)))
		require.True(t, s.DLQ.List(LetterFilter{})[0].InDoubt)
		release()
		time.Sleep(time.Hour)
		cancel()
		<-done
		closeStack(t, s)
		require.Zero(t, p.rang(), "it was known to be in doubt before anything was sent")
	})
}

// agent is an object that is overwritten as a whole, behind a stack. What it is made "old" by fails after ten seconds.
type agent struct {
	*Stack
	t     *testing.T
	rt    http.RoundTripper
	state string
	well  atomic.Bool // nothing fails any more
}

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

func (a *agent) put(key, body string) error {
	ctx := WithCall(WithIdempotencyKey(a.t.Context(), key), Call{Resource: "agent/1"})
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://h/agent/1", strings.NewReader(body))
	require.NoError(a.t, err)
	_, err = a.rt.RoundTrip(req)
	return err
}

// writes is of how many resources there are writes under way.
func (a *agent) writes() int {
	a.DLQ.mu.Lock()
	defer a.DLQ.mu.Unlock()
	return len(a.DLQ.writes)
}

func (a *agent) requireNewAfterAnHour() {
	a.well.Store(true)
	ctx, cancel := context.WithTimeout(a.t.Context(), time.Hour)
	defer cancel()
	require.NoError(a.t, a.Run(ctx))
	closeStack(a.t, a.Stack)
	require.Equal(a.t, "new", a.state)
}

// A write that fails after a newer one has worked is not sent again.
func TestCorner_AWriteOvertakenBeforeItFailedIsNotSent(t *testing.T) {
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
func TestCorner_ALetterOvertakenWhileACallHasItIsNotSent(t *testing.T) {
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

// One letter that the store never takes does not keep the others from being tried again.
func TestCorner_ALetterTheStoreNeverTakesDoesNotStarveTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sh := newShelf()
		store := sh.open()
		failOnce := true
		store.set(func(_ context.Context, op, id string, effect func()) error {
			if id == "good" && op == "remove" && failOnce {
				failOnce = false
				return errShelf
			}
			if strings.HasPrefix(id, "bad") {
				return errShelf
			}
			effect()
			return nil
		})
		d := mustDLQ(t, DLQConfig{Store: store})
		stop := dlqRun(t, d)
		require.NoError(t, d.Add(Letter{ID: "good", Operation: "op", Key: "k"}))
		require.Error(t, d.Delete("good", "x"))
		for i := range 600 { // ten minutes
			_ = d.Add(Letter{ID: fmt.Sprint("bad", i), Operation: "op"})
			time.Sleep(time.Second)
		}
		t.Log(sh.ids(), d.Stats().StoreFailures)
		n := len(sh.ids())
		stop()
		store.set(nil)
		_ = d.close(t.Context())
		require.Zero(t, n, "nothing tried the removal again in ten minutes")
	})
}

// What is exported can be imported, whatever was added and however it is redacted.
func TestCorner_WhatIsExportedCanBeImported(t *testing.T) {
	for name, l := range map[string]Letter{
		"long history":      {History: make([]LetterAttempt, 12)},
		"negative attempts": {Attempts: -1},
		"unknown effect":    {Call: Call{Effect: 9}},
		"bad method":        {Method: "\xff"},
		"first zero next":   {},
	} {
		t.Run(name, func(t *testing.T) {
			d := mustDLQ(t, DLQConfig{})
			l.Operation = "op"
			if err := d.Add(l); err != nil {
				return // said so
			}
			require.NoError(t, d.Add(Letter{Operation: "innocent"}))
			file := dlqExport(t, d)
			require.NoError(t, mustDLQ(t, DLQConfig{}).Import(bytes.NewReader(file)))
		})
	}
	for name, redact := range map[string]func(*Letter){
		"key away":       func(l *Letter) { l.Key = "" },
		"key the same":   func(l *Letter) { l.Key = "redacted" },
		"operation away": func(l *Letter) { l.Operation = "" },
		"all away":       func(l *Letter) { *l = Letter{} },
	} {
		t.Run("redact "+name, func(t *testing.T) {
			d := mustDLQ(t, DLQConfig{Redact: redact})
			require.NoError(t, d.Add(Letter{Operation: "a", Key: "call +15550001111"}))
			require.NoError(t, d.Add(Letter{Operation: "b", Key: "call +15550002222"}))
			var file bytes.Buffer
			if err := d.Export(&file); err != nil {
				return // said so
			}
			require.NoError(t, mustDLQ(t, DLQConfig{}).Import(&file))
		})
	}
}

// An import says so when a letter of it finds no room on arrival.
func TestCorner_AnImportThatFindsNoRoomWhenItArrivesSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		other := mustDLQ(t, DLQConfig{})
		require.NoError(t, other.Add(Letter{ID: "slow", Operation: "op", Key: "slow"}))
		file := dlqExport(t, other)
		store := newShelf().open()
		store.set(func(_ context.Context, _, id string, effect func()) error {
			if id == "slow" {
				time.Sleep(2 * time.Second)
			}
			effect()
			return nil
		})
		d := mustDLQ(t, DLQConfig{Store: store, MaxLetters: 2, Overflow: OverflowDropOldest, OnDrop: func(Letter) {}})
		done := make(chan error)
		go func() { done <- d.Import(bytes.NewReader(file)) }()
		synctest.Wait()
		for _, id := range []string{"1", "2"} {
			require.NoError(t, d.Add(Letter{ID: id, Operation: "op", InDoubt: true}))
		}
		err := <-done
		_, here := d.Get("slow")
		t.Log(err, here, d.Stats().DLQCounters)
		require.NoError(t, d.close(t.Context()))
		require.True(t, err != nil || here, "lost without a word")
	})
}

// Room that comes between a vain try and the place in line is not missed.
func TestCorner_RoomThatComesBeforeThePlaceInLineIsNotMissed(t *testing.T) {
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

// Close says what is not in the store also where a redrive hangs.
func TestCorner_CloseSaysWhatIsNotInTheStoreThoughARedriveHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sh := newShelf()
		store := sh.open()
		d := mustDLQ(t, DLQConfig{Store: store})
		release := make(chan struct{})
		d.Handle("hangs", func(context.Context, Letter) error { <-release; return nil })
		require.NoError(t, d.Add(Letter{ID: "hangs", Operation: "hangs", Next: time.Now()}))
		require.NoError(t, d.Add(Letter{ID: "other", Operation: "op"}))
		go d.Redrive(context.Background())
		synctest.Wait()
		store.set(failing)
		require.Error(t, d.Delete("other", ""))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := d.close(ctx)
		t.Log(err)
		close(release)
		require.ErrorIs(t, err, ErrStore)
	})
}

// A file with two letters whose keys are one here is refused.
func TestCorner_TwoLettersOfOneKeyInAFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		alone := mustDLQ(t, DLQConfig{})
		require.NoError(t, alone.Add(Letter{Method: "POST", URL: "http://h/", Key: "k", InDoubt: true}))
		require.NoError(t, alone.Add(Letter{Method: "POST", URL: "http://h/", Key: "k "}))
		p := &phone{}
		s := newStack(t, Config{})
		s.Wrap(p)
		err := s.DLQ.Import(bytes.NewReader(dlqExport(t, alone)))
		t.Log(err, s.DLQ.Len())
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		require.NoError(t, s.Run(ctx))
		closeStack(t, s)
		require.Zero(t, p.rang(), "the key is in doubt")
	})
}

// Of two in a store neither is sent while the one is in doubt.
func TestCorner_TwoLettersOfOneKeyInAStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sh := newShelf()
		alone := mustDLQ(t, DLQConfig{Store: sh.open()})
		require.NoError(t, alone.Add(Letter{ID: "a", Method: "POST", URL: "http://h/", Key: "k", InDoubt: true}))
		require.NoError(t, alone.Add(Letter{ID: "b", Method: "POST", URL: "http://h/", Key: "k "}))
		require.NoError(t, alone.close(t.Context()))
		p := &phone{}
		s := newStack(t, Config{DLQ: DLQConfig{Store: sh.open()}})
		s.Wrap(p)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		require.NoError(t, s.Run(ctx))
		closeStack(t, s)
		require.Zero(t, p.rang(), "the key is in doubt")
	})
}

func TestCorner_ANilQueueExportsNothing(t *testing.T) {
	var d *DLQ
	var file bytes.Buffer
	require.NoError(t, d.Export(&file))
	into := mustDLQ(t, DLQConfig{})
	require.NoError(t, into.Import(&file))
	require.Zero(t, into.Len())
}

// Work of a function given to Handle does not begin after its letter's expiry.
func TestCorner_AHandledRedriveIsNotSentAfterItsExpiry(t *testing.T) {
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

// A letter that is superseded while its redrive waits for a slot is not sent.
func TestCorner_ALetterSupersededWhileItsRedriveWaitsForASlot(t *testing.T) {
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
		t.Log(s.Stats().DLQ.Overtaken)
		require.Equal(t, "new", state)
	})
}

// One that is superseded while its redrive is on the wire has not failed: it is not given up, and nobody is told so.
func TestCorner_ALetterSupersededOnTheWireIsNotGivenUp(t *testing.T) {
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
func TestCorner_NothingIsLeftOfTheWritesOfAResource(t *testing.T) {
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
func TestCorner_ARedriveDoesNotGoOutBesideANewerWrite(t *testing.T) {
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
