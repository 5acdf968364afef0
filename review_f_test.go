package resilience

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// stackSim is one history of a whole stack: processes that come and go over one key store and one store of letters, callers
// who do everything that callers do, and another side that does everything that another side may do. What really rang is
// known here, and only here.
type stackSim struct {
	t    *testing.T
	rng  *rand.Rand // of the steps
	from time.Time

	mu    sync.Mutex
	dice  *rand.Rand // of what happens at the same time
	calm  bool       // nothing fails any more
	truth map[string]*truth
	next  int
	lies  bool // somebody settled a key by hand

	keys    *MemoryStore
	shared  bool // two processes live at a time
	moved   bool // letters went from one queue to another
	shelves []*shelf
	all     []*simProcess
	p       *simProcess // whose turn it is
	callers sync.WaitGroup
	log     []string
}

// truth is what really became of the request for one call: by the body's id.
type truth struct {
	rings   int // took effect
	sends   int // reached the transport
	pending int // accepted, and may still take effect
	owner   string
}

// simProcess is one life.
type simProcess struct {
	place  int
	stack  *Stack
	rt     http.RoundTripper
	http   *http.Client
	keys   *simKeys
	shelf  *shelfStore
	events map[string][]Event // by layer
	done   map[string]bool    // letters that left the queue, and it was told
	dead   bool               // killed: nothing that it does reaches the world
	closed bool
	ended  time.Time // when Close began
	stop   func()
	calls  int
}

func (w *stackSim) roll(n int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.dice.IntN(n)
}

func (w *stackSim) isCalm() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.calm
}

func (w *stackSim) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.log = append(w.log, fmt.Sprintf("%8.3f ", time.Since(w.from).Seconds())+fmt.Sprintf(format, args...))
}

func (w *stackSim) fail(format string, args ...any) {
	w.note("VIOLATION "+format, args...)
	w.t.Errorf(format, args...)
}

// simKeys is a durable key store with faults, as one process has it open.
type simKeys struct {
	*MemoryStore
	w    *stackSim
	mu   sync.Mutex
	dead bool
	bad  int // percent
}

func (k *simKeys) kill() { k.mu.Lock(); k.dead = true; k.mu.Unlock() }

var errSimStore = errors.New("store: no")

// fault says whether the effect happens, and the error.
func (k *simKeys) fault(ctx context.Context) (before, after error) {
	if k.w.roll(100) < 30 {
		select {
		case <-time.After(time.Duration(k.w.roll(60)) * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err(), nil
		}
	}
	k.mu.Lock()
	dead, bad := k.dead, k.bad
	k.mu.Unlock()
	if dead {
		return errSimStore, nil
	}
	if k.w.isCalm() || k.w.roll(100) >= bad {
		return nil, nil
	}
	switch k.w.roll(5) {
	case 0:
		return nil, errSimStore
	case 1:
		panic("driver")
	case 2:
		select {
		case <-time.After(time.Duration(k.w.roll(5000)) * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err(), nil
		}
		return nil, nil
	}
	return errSimStore, nil
}

func (k *simKeys) Load(ctx context.Context, id string) (Record, error) {
	before, after := k.fault(ctx)
	if err := errors.Join(before, after); err != nil {
		return Record{}, err
	}
	return k.MemoryStore.Load(ctx, id)
}

func (k *simKeys) CompareAndSwap(ctx context.Context, old uint64, r Record) (uint64, bool, error) {
	before, after := k.fault(ctx)
	if before != nil {
		return 0, false, before
	}
	k.mu.Lock()
	if k.dead {
		k.mu.Unlock()
		return 0, false, errSimStore
	}
	v, ok, err := k.MemoryStore.CompareAndSwap(ctx, old, r)
	k.mu.Unlock()
	if after != nil {
		return 0, false, after
	}
	return v, ok, err
}

func (k *simKeys) Unsettled(ctx context.Context, c string, n int) ([]Record, string, error) {
	if before, after := k.fault(ctx); before != nil || after != nil {
		return nil, "", errSimStore
	}
	return k.MemoryStore.Unsettled(ctx, c, n)
}

func (k *simKeys) Capabilities() Capabilities {
	c := k.MemoryStore.Capabilities()
	c.Durable, c.Shared, c.Linearizable = true, k.w.shared, true
	return c
}

// simFinder looks lost calls up, with a lag, and sometimes badly.
type simFinder struct{ w *stackSim }

func (f simFinder) Mark(req *http.Request, _ string) error {
	req.Header.Set("X-Marker", RecordID(req.Context()))
	return nil
}

func (f simFinder) CallID(_ string, b []byte) (string, bool) {
	_, id, ok := strings.Cut(string(b), `"call_id":"`)
	id, _, _ = strings.Cut(id, `"`)
	return id, ok
}

func (f simFinder) Find(ctx context.Context, r Record) (Evidence, error) {
	f.w.mu.Lock()
	die, calm := f.w.dice.IntN(10), f.w.calm
	t := f.w.truth[r.ID]
	rings := 0
	if t != nil {
		rings = t.rings
	}
	f.w.mu.Unlock()
	if !calm {
		switch die {
		case 0:
			return Evidence{}, errors.New("down")
		case 1:
			panic("finder")
		case 2:
			<-ctx.Done()
			return Evidence{}, ctx.Err()
		case 3, 4:
			return Evidence{ID: r.ID}, nil // not yet
		}
	}
	return f.w.evidence(r.ID, rings), nil
}

func (w *stackSim) evidence(id string, rings int) Evidence {
	ev := Evidence{ID: id, Source: "sim"}
	for n := range rings {
		ev.Calls = append(ev.Calls, Found{ID: simCallID(id, n+1)})
	}
	return ev
}

func simCallID(id string, n int) string { return fmt.Sprintf("call-%s-%d", id[:10], n) }

// answer is the other side.
func (w *stackSim) answer(p *simProcess, req *http.Request) (*http.Response, error) {
	w.mu.Lock()
	dead := p.dead
	w.mu.Unlock()
	if dead { // its network is gone with it
		return nil, errors.New("dead")
	}
	var text []byte
	if req.Body != nil {
		text, _ = io.ReadAll(req.Body)
		_ = req.Body.Close()
	}
	id := req.Header.Get("X-Marker")
	if w.isCalm() {
		return w.ring(id, string(text), 201), nil
	}
	w.send(id)
	time.Sleep(time.Duration(w.roll(200)) * time.Millisecond)
	switch w.roll(26) {
	case 0:
		return nil, MarkNotSent(errors.New("refused"))
	case 1:
		return nil, errors.New("reset before")
	case 2:
		w.ring(id, string(text), 201)
		return nil, io.EOF
	case 3:
		panic("before")
	case 4:
		w.ring(id, string(text), 201)
		panic("after")
	case 5:
		runtime.Goexit()
	case 6:
		w.ring(id, string(text), 201)
		runtime.Goexit()
	case 7:
		return reply(429, "", "Retry-After", strconv.Itoa(w.roll(20))), nil
	case 8:
		return reply(429, ""), nil
	case 9:
		return reply([]int{500, 502, 503}[w.roll(3)], ""), nil
	case 10:
		w.ring(id, string(text), 201)
		return reply([]int{500, 502, 408, 409, 302}[w.roll(5)], ""), nil
	case 11:
		<-req.Context().Done()
		return nil, req.Context().Err()
	case 12:
		w.ring(id, string(text), 201)
		<-req.Context().Done()
		return nil, context.Cause(req.Context())
	case 13: // whatever its context says
		time.Sleep(time.Duration(w.roll(400)) * time.Second)
		if w.roll(2) == 0 {
			return w.ring(id, string(text), 201), nil
		}
		return nil, errors.New("at last")
	case 14: // accepted, and executed later
		w.later(id, string(text), time.Duration(w.roll(60))*time.Second)
		return nil, io.ErrUnexpectedEOF
	case 15:
		return reply([]int{400, 401, 402, 403, 404, 422}[w.roll(6)], "{}"), nil
	case 16:
		resp := w.ring(id, string(text), 201)
		resp.Body = io.NopCloser(io.MultiReader(strings.NewReader(`{"ca`), simBroken{}))
		resp.ContentLength = -1
		return resp, nil
	case 17:
		w.ring(id, string(text), 201)
		return reply(201, "<html>"), nil
	case 18:
		time.Sleep(time.Duration(w.roll(20)) * time.Second)
	case 19: // the body hangs
		resp := w.ring(id, string(text), 201)
		resp.Body = simHanging{req.Context()}
		resp.ContentLength = -1
		return resp, nil
	}
	resp := w.ring(id, string(text), 201)
	if w.roll(20) == 0 {
		all, _ := io.ReadAll(resp.Body)
		resp.Header.Set("Content-Type", "text/event-stream")
		resp.ContentLength, resp.Body = -1, &simStream{Reader: bytes.NewReader(all), ctx: req.Context(), wait: time.Duration(w.roll(3000)) * time.Millisecond}
	}
	return resp, nil
}

type simStream struct {
	io.Reader
	ctx  context.Context
	wait time.Duration
}

func (s *simStream) Read(b []byte) (int, error) {
	select {
	case <-s.ctx.Done():
		return 0, s.ctx.Err()
	case <-time.After(s.wait):
	}
	return s.Reader.Read(b)
}
func (s *simStream) Close() error { return nil }

type simBroken struct{}

func (simBroken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

type simHanging struct{ ctx context.Context }

func (h simHanging) Read([]byte) (int, error) { <-h.ctx.Done(); return 0, h.ctx.Err() }
func (h simHanging) Close() error             { return nil }

func (w *stackSim) of(id string) *truth {
	t := w.truth[id]
	if t == nil {
		t = &truth{}
		w.truth[id] = t
	}
	return t
}

func (w *stackSim) send(id string) {
	if id == "" {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.of(id).sends++
}

func (w *stackSim) ring(id, text string, code int) *http.Response {
	if id == "" {
		return reply(200, `{"call_id":"x"}`)
	}
	w.mu.Lock()
	t := w.of(id)
	t.rings++
	n := t.rings
	if t.owner == "" {
		t.owner = text
	}
	other := t.owner != text
	w.mu.Unlock()
	w.note("RING %s %s", id[:10], text)
	if n > 1 {
		w.fail("%s (%s) rang %d times", id[:10], text, n)
	}
	if other {
		w.fail("%s rang for another request: %s", id[:10], text)
	}
	return reply(code, fmt.Sprintf(`{"call_id":%q,"echo":%q}`, simCallID(id, n), text), "Content-Type", "application/json")
}

func (w *stackSim) later(id, text string, d time.Duration) {
	if id == "" {
		return
	}
	w.mu.Lock()
	w.of(id).pending++
	w.mu.Unlock()
	time.AfterFunc(d, func() {
		w.ring(id, text, 201)
		w.mu.Lock()
		w.of(id).pending--
		w.mu.Unlock()
	})
}

func (w *stackSim) start(place int) {
	p := &simProcess{place: place, events: map[string][]Event{}, done: map[string]bool{}}
	p.keys = &simKeys{MemoryStore: w.keys, w: w, bad: []int{0, 0, 3, 10}[w.rng.IntN(4)]}
	p.shelf = w.shelves[place].open()
	p.shelf.set(func(ctx context.Context, _, _ string, effect func()) error {
		time.Sleep(time.Duration(w.roll(30)) * time.Millisecond)
		if !w.isCalm() && w.roll(100) < p.keys.bad {
			switch w.roll(3) {
			case 0:
				return errShelf
			case 1:
				effect()
				return errShelf
			case 2:
				<-ctx.Done()
				return ctx.Err()
			}
		}
		effect()
		return nil
	})
	cfg := Config{
		Idempotency: IdempotencyConfig{Store: p.keys, Reconcile: simFinder{w}},
		DLQ: DLQConfig{
			Store: p.shelf, MaxLetters: []int{0, 3, 20}[w.rng.IntN(3)], KeepUnnamed: w.rng.IntN(2) == 0,
			Overflow: []Overflow{OverflowRejectNew, OverflowBlock, OverflowDropOldest}[w.rng.IntN(3)], OnDrop: func(Letter) {},
		},
		Retry:    RetryConfig{Max: []int{0, 5, -1}[w.rng.IntN(3)], Ratio: []float64{0, -1}[w.rng.IntN(2)]},
		Bulkhead: simBounds(w.rng),
		Breaker:  BreakerConfig{OpenFor: time.Duration(1+w.rng.IntN(20)) * time.Second, Trials: 1 + w.rng.IntN(3), MinCalls: 3 + w.rng.IntN(10)},
		Timeout:  TimeoutConfig{Cooperative: false},
		Health: HealthConfig{Probe: func(ctx context.Context) error {
			switch w.roll(8) {
			case 0:
				panic("probe")
			case 1:
				<-ctx.Done()
				return ctx.Err()
			case 2:
				time.Sleep(time.Duration(w.roll(30)) * time.Second)
			case 3:
				return errors.New("no")
			case 4:
				runtime.Goexit()
			}
			return nil
		}},
		OnEvent: func(e Event) {
			w.mu.Lock()
			defer w.mu.Unlock()
			p.events[e.Layer] = append(p.events[e.Layer], e)
			switch e.Kind {
			case EventLetterDone, EventLetterDeleted, EventLetterDropped:
				p.done[e.LetterID] = true
			}
		},
	}
	if w.rng.IntN(3) == 0 {
		cfg.Breaker.Key = func(c Call) string { return c.Operation }
	}
	if w.rng.IntN(3) == 0 {
		cfg.Timeout.Request, cfg.Timeout.Total = 3*time.Second, -1
	}
	stack, err := New(cfg)
	require.NoError(w.t, err)
	p.stack = stack
	p.rt = stack.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) { return w.answer(p, req) }))
	p.http = &http.Client{Transport: p.rt, Timeout: 7 * time.Second}
	w.all[place], w.p = p, p
	w.run(p)
	w.note("START")
}

func (w *stackSim) run(p *simProcess) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = p.stack.Run(ctx) }()
	p.stop = func() { cancel(); <-ended }
}

func simBounds(rng *rand.Rand) BulkheadConfig {
	c := BulkheadConfig{Queue: []int{0, -1, 3}[rng.IntN(3)], Total: []int{0, 1, 4}[rng.IntN(3)]}
	if rng.IntN(3) == 0 {
		c.MaxWait = time.Duration(rng.IntN(5000)+1) * time.Millisecond
	}
	return c
}

// simCall is one caller and what is asked of the library.
type simCall struct {
	n      int
	kind   string
	key    string // "": not named
	unique bool   // nobody else uses the key
	text   string
	done   bool // by Do
}

var errSimCause = errors.New("the caller hung up")

func (w *stackSim) call() {
	p := w.p
	w.next++
	c := simCall{n: w.next, kind: []string{"once", "once", "once", "put", "get"}[w.rng.IntN(5)], text: fmt.Sprintf(`{"n":%d}`, w.next)}
	switch w.rng.IntN(4) {
	case 0: // unnamed
	case 1, 2:
		c.key, c.unique = fmt.Sprint(c.kind, "-own-", c.n), true
	case 3:
		i := w.rng.IntN(8)
		c.key, c.text = fmt.Sprint(c.kind, "-shared-", i), fmt.Sprintf(`{"shared":%d}`, i)
		if w.rng.IntN(10) == 0 {
			c.text = fmt.Sprintf(`{"other":%d}`, c.n)
		}
	}
	call := Call{Operation: fmt.Sprint(c.kind, w.rng.IntN(2)), Priority: Priority(w.rng.IntN(4)), Resource: []string{"", "r1", "r2"}[w.rng.IntN(3)]}
	method := map[string]string{"once": "POST", "put": "PUT", "get": "GET"}[c.kind]
	limit := maxDuration
	ctx, cancel := context.WithCancelCause(context.Background())
	if w.rng.IntN(2) == 0 {
		limit = time.Duration(1+w.rng.IntN(20000)) * time.Millisecond
		var stop func()
		ctx, stop = context.WithTimeout(ctx, limit)
		defer func() { w.callers.Go(func() { <-ctx.Done(); stop() }) }()
	}
	if w.rng.IntN(3) == 0 {
		call.Budget = time.Duration(1+w.rng.IntN(30000)) * time.Millisecond
	}
	if w.rng.IntN(5) == 0 {
		call.Limit = time.Duration(1+w.rng.IntN(10000)) * time.Millisecond
	}
	if w.rng.IntN(8) == 0 {
		ctx = WithExpiry(ctx, time.Now().Add(time.Duration(w.rng.IntN(600))*time.Second))
	}
	ctx = WithCall(ctx, call)
	if c.key != "" {
		ctx = WithIdempotencyKey(ctx, c.key)
	}
	if w.rng.IntN(4) == 0 {
		at := time.Duration(w.rng.IntN(15000)) * time.Millisecond
		limit = min(limit, at)
		w.callers.Go(func() { time.Sleep(at); cancel(errSimCause) })
	} else {
		w.callers.Go(func() { time.Sleep(30 * time.Minute); cancel(nil) })
	}
	budget := call.Budget
	if total := p.stack.Timeout.cfg.Total; budget == 0 {
		attempt := or(call.Limit, p.stack.Timeout.cfg.Request)
		if budget = 2 * attempt; total != 0 {
			budget = total
		}
	}
	if budget > 0 {
		limit = min(limit, budget)
	}
	viaClient := w.rng.IntN(6) == 0
	if viaClient {
		limit = min(limit, 7*time.Second)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://retell.test/"+call.Operation, strings.NewReader(c.text))
	require.NoError(w.t, err)
	if method == "GET" {
		req.Body, req.GetBody, req.ContentLength = nil, nil, 0
		req.URL.RawQuery = fmt.Sprint("q=", w.rng.IntN(3))
	}
	p.calls++
	w.callers.Go(func() { w.one(p, c, req, limit, viaClient) })
}

func (w *stackSim) one(p *simProcess, c simCall, req *http.Request, limit time.Duration, viaClient bool) {
	began := time.Now()
	w.note("call %d %s key=%q %s limit=%s", c.n, c.kind, c.key, c.text, limit)
	var resp *http.Response
	var err error
	returned, took := false, time.Duration(0)
	defer func() {
		v := recover()
		if v != nil && fmt.Sprint(v) != "before" && fmt.Sprint(v) != "after" {
			w.fail("call %d: panic %v", c.n, v)
		}
		if !returned {
			w.note("call %d ended by panic or Goexit: %v", c.n, v)
		}
		if !returned {
			took = time.Since(began)
		}
		w.checkTime(p, c, took, limit, err)
	}()
	if viaClient {
		resp, err = p.http.Do(req)
	} else {
		resp, err = p.rt.RoundTrip(req)
	}
	returned, took = true, time.Since(began)
	var text []byte
	if resp != nil {
		var cut error
		if text, cut = io.ReadAll(resp.Body); cut != nil {
			text = []byte(strconv.Quote(c.text)) // a stream that the caller's end has cut
		}
		_ = resp.Body.Close()
		w.note("call %d: %d replayed=%v %s", c.n, resp.StatusCode, Replayed(resp), text)
	} else {
		w.note("call %d: notsent=%v indoubt=%v %v", c.n, NotSent(err), InDoubt(err), err)
	}
	w.verdict(p, c, resp, string(text), err)
}

// do is a caller of Do.
func (w *stackSim) do() {
	p := w.p
	w.next++
	c := simCall{n: w.next, kind: "once", text: fmt.Sprintf(`{"n":%d}`, w.next), done: true}
	ctx, cancel := context.WithTimeoutCause(context.Background(), time.Duration(1+w.rng.IntN(20000))*time.Millisecond, errSimCause)
	deadline, _ := ctx.Deadline()
	limit := time.Until(deadline)
	marker := fmt.Sprintf("do-unnamed-%d", c.n)
	switch w.rng.IntN(3) {
	case 0:
		c.key, c.unique = fmt.Sprint("do-own-", c.n), true
	case 1:
		i := w.rng.IntN(4)
		c.key, c.text = fmt.Sprint("do-shared-", i), fmt.Sprintf(`{"do":%d}`, i)
	}
	if c.key != "" {
		ctx = WithIdempotencyKey(ctx, c.key)
		marker = p.stack.Idempotency.ID(c.key)
	}
	nested := w.rng.IntN(4) == 0
	w.callers.Go(func() { time.Sleep(limit); cancel() })
	w.callers.Go(func() {
		began := time.Now()
		w.note("do %d key=%q limit=%s", c.n, c.key, limit)
		returned, took := false, time.Duration(0)
		var err error
		defer func() {
			_ = recover()
			if !returned {
				took = time.Since(began)
			}
			w.checkTime(p, c, took, limit, err)
		}()
		var v json.RawMessage
		v, err = Do(ctx, p.stack, Call{Operation: "do", Params: json.RawMessage(c.text)}, func(ctx context.Context) (json.RawMessage, error) {
			if nested {
				r, _ := http.NewRequestWithContext(ctx, "GET", "http://retell.test/get", nil)
				if resp, err := p.rt.RoundTrip(r); err == nil {
					_ = resp.Body.Close()
				}
			}
			r, _ := http.NewRequestWithContext(ctx, "POST", "http://retell.test/do", strings.NewReader(c.text))
			r.Header.Set("X-Marker", marker)
			resp, err := w.answer(p, r)
			if err != nil {
				return nil, err
			}
			b, err := io.ReadAll(resp.Body)
			if err == nil && resp.StatusCode/100 != 2 {
				err = fmt.Errorf("status %d", resp.StatusCode)
			}
			return b, err
		})
		returned, took = true, time.Since(began)
		w.note("do %d: notsent=%v indoubt=%v %v %s", c.n, NotSent(err), InDoubt(err), err, v)
		var resp *http.Response
		if err == nil {
			resp = reply(201, "")
		}
		w.verdict(p, c, resp, "", err)
	})
}

const simGrace = 1100 * time.Millisecond // the letter's store may take so long

func (w *stackSim) checkTime(p *simProcess, c simCall, took, limit time.Duration, err error) {
	if took-limit > simGrace {
		w.fail("call %d (%s) waited %s, limit %s: %v", c.n, c.kind, took, limit, err)
	}
}

func (w *stackSim) verdict(p *simProcess, c simCall, resp *http.Response, text string, err error) {
	if (resp == nil) == (err == nil) {
		w.fail("call %d: both or neither", c.n)
	}
	if NotSent(err) && InDoubt(err) {
		w.fail("call %d: not sent and in doubt: %v", c.n, err)
	}
	w.mu.Lock()
	dead := p.dead
	id := ""
	var t truth
	if c.kind == "once" {
		if c.key != "" {
			id = p.stack.Idempotency.ID(c.key)
		}
		for k, v := range w.truth {
			if k == id || c.key == "" && v.owner == c.text {
				t = *v
			}
		}
	}
	w.mu.Unlock()
	if dead || c.kind == "get" {
		return
	}
	var e *Error
	errors.As(err, &e)
	if errors.Is(err, ErrInDoubt) && (e == nil || e.Key == "") {
		w.fail("call %d: in doubt without a key: %v", c.n, err)
	}
	if errors.Is(err, ErrParked) {
		if NotSent(err) {
			w.fail("call %d: NotSent over ErrParked", c.n)
		}
		if e.LetterID == "" {
			w.fail("call %d: parked without a letter: %v", c.n, err)
		} else if _, there := p.stack.DLQ.Get(e.LetterID); !there {
			synctest.Wait()
			w.mu.Lock()
			told := p.done[e.LetterID]
			w.mu.Unlock()
			if !told {
				w.fail("call %d: the letter %s is not there", c.n, e.LetterID)
			}
		}
	} else if c.unique {
		for _, l := range p.stack.DLQ.List(LetterFilter{}) {
			if l.Key == c.key {
				w.fail("call %d: two owners: the caller was told %v %v, and there is %+v", c.n, resp, err, l.String())
			}
		}
	}
	if c.kind != "once" {
		return
	}
	own := c.unique || c.key == ""
	switch {
	case err == nil && resp.StatusCode/100 == 2:
		if c.key != "" && t.rings != 1 {
			w.fail("call %d: success, and it rang %d times", c.n, t.rings)
		}
		if !strings.Contains(text, strconv.Quote(c.text)) && !Replayed(resp) && !c.done {
			w.fail("call %d: somebody else's answer: %s", c.n, text)
		}
	case err == nil:
		if own && t.rings+t.pending > 0 {
			w.fail("call %d: refused with %d, and it rang", c.n, resp.StatusCode)
		}
	case NotSent(err):
		if own && t.rings+t.pending > 0 {
			w.fail("call %d: not sent, and it rang: %v", c.n, err)
		}
	case own && t.rings+t.pending > 0 && !errors.Is(err, ErrInDoubt) && !errors.Is(err, ErrParked): // a redrive may have been quick
		w.fail("call %d: it rang, and the caller does not know: %v", c.n, err)
	}
}

func (w *stackSim) step() {
	w.p = w.all[w.rng.IntN(len(w.all))]
	p := w.p
	switch w.rng.IntN(30) {
	case 0:
		p.stack.Breaker.ForceOpen()
	case 1:
		p.stack.Breaker.ForceClose()
	case 2, 3:
		p.stack.Breaker.Reset()
	case 4:
		if err := p.stack.Bulkhead.Resize(simBounds(w.rng)); err != nil {
			w.fail("resize: %v", err)
		}
	case 5:
		w.hand(w.pickKey())
	case 6:
		w.observe(w.pickKey())
	case 7:
		if all := p.stack.DLQ.List(LetterFilter{}); len(all) > 0 {
			id := all[w.rng.IntN(len(all))].ID
			w.note("requeue")
			_ = p.stack.DLQ.Requeue(id)
		}
	case 8:
		w.callers.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Duration(w.roll(30)+1)*time.Second)
			defer cancel()
			p.stack.DLQ.Redrive(ctx)
		})
	case 9:
		_ = p.stack.DLQ.Export(io.Discard)
	case 10:
		w.health(p)
	case 11:
		p.stop()
		w.callers.Go(func() { time.Sleep(time.Second) })
		w.run(p)
	case 12:
		w.check(p)
	case 13:
		if w.rng.IntN(4) == 0 {
			w.restart()
		}
	case 14:
		if w.rng.IntN(3) == 0 { // letters of one go to the other, or come back to where they were
			var file bytes.Buffer
			_ = p.stack.DLQ.Export(&file)
			to := w.all[w.rng.IntN(len(w.all))]
			w.moved = true
			w.callers.Go(func() { w.note("import %v", to.stack.DLQ.Import(&file)) })
		}
	case 15, 16, 17:
		w.do()
	default:
		w.call()
	}
	if w.rng.IntN(3) == 0 {
		time.Sleep(time.Duration(w.rng.IntN(2500)) * time.Millisecond)
	}
	if w.rng.IntN(60) == 0 {
		time.Sleep(time.Duration(w.rng.IntN(120)) * time.Second)
	}
}

func (w *stackSim) pickKey() string {
	if w.rng.IntN(2) == 0 {
		return fmt.Sprint("once-shared-", w.rng.IntN(8))
	}
	return fmt.Sprint("once-own-", 1+w.rng.IntN(max(w.next, 1)))
}

// hand is an operator who knows the truth.
func (w *stackSim) hand(key string) {
	p := w.p
	w.callers.Go(func() {
		id := p.stack.Idempotency.ID(key)
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		rec, err := p.stack.Idempotency.Lookup(ctx, key)
		if err != nil || rec.State != KeyInDoubt || time.Since(rec.Sent) < 10*time.Minute {
			return
		}
		w.mu.Lock()
		t := *w.of(id)
		w.mu.Unlock()
		if t.pending > 0 {
			return
		}
		v := Resolution{State: KeyNotApplied, Reason: "sim"}
		if t.rings > 0 {
			v.State, v.CallID = KeyConfirmed, simCallID(id, 1)
		}
		w.note("resolve %s %v", key, v.State)
		_ = p.stack.Idempotency.Resolve(ctx, key, v)
	})
}

func (w *stackSim) observe(key string) {
	p := w.p
	w.callers.Go(func() {
		id := p.stack.Idempotency.ID(key)
		w.mu.Lock()
		rings := w.of(id).rings
		w.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if rings > 0 {
			w.note("observe %s", key)
			_ = p.stack.Idempotency.Observe(ctx, w.evidence(id, rings))
		}
	})
}

func (w *stackSim) health(p *simProcess) {
	w.callers.Go(func() {
		began := time.Now()
		rec := httptest.NewRecorder()
		p.stack.Health().ServeHTTP(rec, httptest.NewRequest("GET", "/", nil))
		if took := time.Since(began); took > 2*time.Second {
			w.fail("health took %s", took)
		}
		if !json.Valid(rec.Body.Bytes()) || rec.Code != 200 && rec.Code != 503 {
			w.fail("health: %d %s", rec.Code, rec.Body)
		}
		p.stack.Stats()
	})
}

// check is what holds at every moment.
func (w *stackSim) check(p *simProcess) {
	st := p.stack.Stats()
	if d := st.DLQ; d.Admitted != d.Acked+d.Deleted+d.Dropped+uint64(d.Letters) { //nolint:gosec // not negative
		w.fail("letters: %+v", d)
	}
	b := st.Bulkhead
	if b.InUse != b.Critical.InUse+b.Normal.InUse+b.Bulk.InUse || b.InUse < b.Abandoned {
		w.fail("slots: %+v", b)
	}
}

// restart ends the process, well or badly, and starts the next one over the same stores.
func (w *stackSim) restart() {
	p := w.p
	if w.rng.IntN(2) == 0 {
		w.note("CRASH")
		synctest.Wait()
		w.mu.Lock()
		p.dead = true
		w.mu.Unlock()
		p.keys.kill()
		p.shelf.kill()
		w.callers.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
			defer cancel()
			_ = p.stack.Close(ctx)
		})
	} else {
		w.close(p, time.Duration(w.rng.IntN(60))*time.Second)
		p.keys.kill() // what is left of it is the ghost of a process
		p.shelf.kill()
		w.mu.Lock()
		p.dead = true
		w.mu.Unlock()
	}
	w.start(p.place)
}

func (w *stackSim) close(p *simProcess, patience time.Duration) {
	w.note("CLOSE %s", patience)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	began := time.Now()
	err := p.stack.Close(ctx)
	w.note("closed: %v", err)
	if took := time.Since(began); took > patience+simGrace {
		w.fail("Close took %s of %s", took, patience)
	}
}

// end lets everything come to rest and looks at what is left.
func (w *stackSim) end() {
	w.mu.Lock()
	w.calm = true
	w.mu.Unlock()
	for _, p := range w.all {
		p.stack.Breaker.Reset()
	}
	w.callers.Wait()
	time.Sleep(20 * time.Minute) // the slowest transport has returned
	synctest.Wait()
	for _, p := range w.all {
		p.stop()
	}
	for _, p := range w.all {
		w.endOf(p)
	}
}

func (w *stackSim) endOf(p *simProcess) {
	st := p.stack.Stats()
	w.check(p)
	if st.Calls != 0 || st.Idempotency.Flights != 0 || st.Bulkhead.InUse != 0 || st.Bulkhead.Waiting != 0 || st.Bulkhead.Abandoned != 0 ||
		st.Timeout.Lingering != 0 || st.DLQ.Running != 0 || st.DLQ.Blocked != 0 || st.DLQ.Leased != 0 {
		w.fail("left: %+v", st)
	}
	granted := st.Bulkhead.Critical.Granted + st.Bulkhead.Normal.Granted + st.Bulkhead.Bulk.Granted
	refused := granted - st.Breaker.Successes - st.Breaker.Failures - st.Breaker.Ignored
	if p.stack.Breaker.config.Key == nil && (int64(refused) < 0 || refused > st.Breaker.Rejected) { //nolint:gosec // small
		w.fail("slots %d, completed %d %d %d, rejected %d", granted, st.Breaker.Successes, st.Breaker.Failures, st.Breaker.Ignored, st.Breaker.Rejected)
	}
	if st.Retry.Attempts > st.Retry.Calls+st.Retry.Retries || st.Retry.Attempts < granted {
		w.fail("retry: %+v, granted %d", st.Retry, granted)
	}
	w.keysTellTheTruth(p)
	require.NoError(w.t, p.stack.Close(context.Background()))
	time.Sleep(time.Minute) // a probe may be under way
	w.eventsAreLegal(p)
}

func (w *stackSim) keysTellTheTruth(p *simProcess) {
	w.mu.Lock()
	ids := map[string]truth{}
	for id, t := range w.truth {
		ids[id] = *t
	}
	w.mu.Unlock()
	for id, t := range ids {
		rec, err := p.stack.Idempotency.load(context.Background(), id)
		if err != nil {
			w.fail("load: %v", err)
		}
		switch rec.State {
		case KeyConfirmed:
			if t.rings != 1 {
				w.fail("%s is confirmed and rang %d times", id[:10], t.rings)
			}
		case KeyNotApplied:
			if t.rings != 0 {
				w.fail("%s is %v, and it rang", id[:10], rec.State)
			}
		case KeyClaimed, KeySending:
			w.fail("%s is still %v: %+v", id[:10], rec.State, rec)
		case KeyFree, KeyInDoubt:
		case KeyDisputed:
			w.fail("%s is disputed: %+v", id[:10], rec)
		}
	}
	for _, l := range p.stack.DLQ.List(LetterFilter{}) {
		if l.effect() == EffectOnce && ids[p.stack.Idempotency.ID(l.Key)].rings > 0 && !l.Superseded {
			rec, _ := p.stack.Idempotency.Lookup(context.Background(), l.Key)
			if rec.State == KeyConfirmed && !w.shared && !w.moved {
				w.fail("a letter of a call that is known to have happened: %+v", l.String())
			}
		}
	}
}

func (w *stackSim) eventsAreLegal(p *simProcess) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for layer, list := range p.events {
		var last time.Time
		for _, e := range list {
			if e.Time.Before(last) {
				w.t.Errorf("%s: events out of order: %+v", layer, e)
			}
			last = e.Time
		}
	}
	state := map[string]string{}
	for _, e := range p.events["breaker"] {
		if e.From == e.To && e.Kind != EventCircuitReset && e.Kind != EventCircuitExceeded {
			w.t.Errorf("circuit: %+v", e)
		}
		at := e.Operation
		if was, ok := state[at]; p.stack.Breaker.config.Key == nil && ok && was != e.From {
			w.t.Errorf("circuit %q was %s: %+v", at, was, e)
		}
		state[at] = e.To
	}
	health := "unknown"
	for _, e := range p.events["health"] {
		if e.Kind == EventHealthChanged {
			if e.From != health || e.To == health {
				w.t.Errorf("health was %s: %+v", health, e)
			}
			health = e.To
		}
	}
}

func stackSimSeeds(t *testing.T) (from, to uint64) {
	if n, err := strconv.ParseUint(os.Getenv("SIM_SEED"), 10, 64); err == nil {
		return n, n + 1
	}
	if n, err := strconv.ParseUint(os.Getenv("SIM_SEEDS"), 10, 64); err == nil && n > 0 {
		first, _ := strconv.ParseUint(os.Getenv("SIM_FROM"), 10, 64)
		return first, first + n
	}
	if testing.Short() {
		return 0, 5
	}
	return 0, 20
}

func TestSim_AWholeStackKeepsItsPromises(t *testing.T) {
	from, to := stackSimSeeds(t)
	for seed := from; seed < to; seed++ {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			var w *stackSim
			defer func() {
				if dir := os.Getenv("SIM_LOG"); t.Failed() && dir != "" {
					_ = os.WriteFile(filepath.Join(dir, fmt.Sprint("sim-", seed, ".log")), []byte(strings.Join(w.log, "\n")), 0o600)
				}
			}()
			synctest.Test(t, func(t *testing.T) {
				w = &stackSim{
					t: t, rng: rand.New(rand.NewPCG(seed, 1)), dice: rand.New(rand.NewPCG(seed, 2)), from: time.Now(),
					truth: map[string]*truth{}, keys: NewMemoryStore(0),
				}
				w.shared = w.rng.IntN(3) == 0
				for place := range 1 + w.rng.IntN(2) {
					if place == 0 || w.shared {
						w.shelves, w.all = append(w.shelves, newShelf()), append(w.all, nil)
						w.start(place)
					}
				}
				for range 50 + w.rng.IntN(250) {
					w.step()
				}
				w.end()
			})
		})
	}
}
