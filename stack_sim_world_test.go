package resilience

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"
)

// simKeys is a durable key store with faults, as one process has it open.
type simKeys struct {
	*MemoryStore
	w    *stackSim
	mu   sync.Mutex
	dead bool
	bad  int // percent
}

func (k *simKeys) kill() { k.mu.Lock(); k.dead = true; k.mu.Unlock() }

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

type simHanging struct{ ctx context.Context }

func (h simHanging) Read([]byte) (int, error) { <-h.ctx.Done(); return 0, h.ctx.Err() }

func (h simHanging) Close() error { return nil }

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
	w.notef("RING %s %s", id[:10], text)
	if n > 1 {
		w.failf("%s (%s) rang %d times", id[:10], text, n)
	}
	if other {
		w.failf("%s rang for another request: %s", id[:10], text)
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
