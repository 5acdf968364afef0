package resilience

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/stretchr/testify/require"
)

// simCall is one caller and what is asked of the library.
type simCall struct {
	n      int
	kind   string
	key    string // "": not named
	unique bool   // nobody else uses the key
	text   string
	done   bool // by Do
}

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
	w.notef("call %d %s key=%q %s limit=%s", c.n, c.kind, c.key, c.text, limit)
	var resp *http.Response
	var err error
	returned, took := false, time.Duration(0)
	defer func() {
		v := recover()
		if v != nil && fmt.Sprint(v) != "before" && fmt.Sprint(v) != "after" {
			w.failf("call %d: panic %v", c.n, v)
		}
		if !returned {
			w.notef("call %d ended by panic or Goexit: %v", c.n, v)
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
		w.notef("call %d: %d replayed=%v %s", c.n, resp.StatusCode, Replayed(resp), text)
	} else {
		w.notef("call %d: notsent=%v indoubt=%v %v", c.n, NotSent(err), InDoubt(err), err)
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
		w.notef("do %d key=%q limit=%s", c.n, c.key, limit)
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
		w.notef("do %d: notsent=%v indoubt=%v %v %s", c.n, NotSent(err), InDoubt(err), err, v)
		var resp *http.Response
		if err == nil {
			resp = reply(201, "")
		}
		w.verdict(p, c, resp, "", err)
	})
}

func (w *stackSim) checkTime(p *simProcess, c simCall, took, limit time.Duration, err error) {
	if took-limit > simGrace {
		w.failf("call %d (%s) waited %s, limit %s: %v", c.n, c.kind, took, limit, err)
	}
}

// verdict checks what the caller was told against what really happened.
func (w *stackSim) verdict(p *simProcess, c simCall, resp *http.Response, text string, err error) {
	if (resp == nil) == (err == nil) {
		w.failf("call %d: both or neither", c.n)
	}
	if NotSent(err) && InDoubt(err) {
		w.failf("call %d: not sent and in doubt: %v", c.n, err)
	}
	t, dead := w.truthOf(p, c)
	if dead || c.kind == "get" {
		return
	}
	w.oneOwner(p, c, resp, err)
	if c.kind == "once" {
		w.oneRing(c, t, resp, text, err)
	}
}

// truthOf is what really became of a call, and whether the process it was made in is dead.
func (w *stackSim) truthOf(p *simProcess, c simCall) (t truth, dead bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if c.kind != "once" {
		return truth{}, p.dead
	}
	id := ""
	if c.key != "" {
		id = p.stack.Idempotency.ID(c.key)
	}
	for k, v := range w.truth {
		if k == id || c.key == "" && v.owner == c.text {
			t = *v
		}
	}
	return t, p.dead
}

// oneOwner: a failed write belongs to the caller or to the queue.
func (w *stackSim) oneOwner(p *simProcess, c simCall, resp *http.Response, err error) {
	var e *Error
	errors.As(err, &e)
	if errors.Is(err, ErrInDoubt) && (e == nil || e.Key == "") {
		w.failf("call %d: in doubt without a key: %v", c.n, err)
	}
	switch {
	case errors.Is(err, ErrParked):
		w.parked(p, c, e, err)
	case c.unique:
		for _, l := range p.stack.DLQ.List(LetterFilter{}) {
			if l.Key == c.key {
				w.failf("call %d: two owners: the caller was told %v %v, and there is %+v", c.n, resp, err, l.String())
			}
		}
	}
}

// parked: there is a letter, or it has gone and that was told.
func (w *stackSim) parked(p *simProcess, c simCall, e *Error, err error) {
	if NotSent(err) {
		w.failf("call %d: NotSent over ErrParked", c.n)
	}
	if e.LetterID == "" {
		w.failf("call %d: parked without a letter: %v", c.n, err)
		return
	}
	if _, there := p.stack.DLQ.Get(e.LetterID); there {
		return
	}
	time.Sleep(1) // until the events are delivered
	w.mu.Lock()
	told := p.done[e.LetterID]
	w.mu.Unlock()
	if !told {
		w.failf("call %d: the letter %s is not there", c.n, e.LetterID)
	}
}

// oneRing: what a caller of an effect-once call is told agrees with whether it rang.
func (w *stackSim) oneRing(c simCall, t truth, resp *http.Response, text string, err error) {
	own, rang := c.unique || c.key == "", t.rings+t.pending > 0
	switch {
	case err == nil && resp.StatusCode/100 == 2:
		if c.key != "" && t.rings != 1 {
			w.failf("call %d: success, and it rang %d times", c.n, t.rings)
		}
		if !strings.Contains(text, strconv.Quote(c.text)) && !Replayed(resp) && !c.done {
			w.failf("call %d: somebody else's answer: %s", c.n, text)
		}
	case !own || !rang:
	case err == nil:
		w.failf("call %d: refused with %d, and it rang", c.n, resp.StatusCode)
	case NotSent(err):
		w.failf("call %d: not sent, and it rang: %v", c.n, err)
	case !errors.Is(err, ErrInDoubt) && !errors.Is(err, ErrParked): // a redrive may have been quick
		w.failf("call %d: it rang, and the caller does not know: %v", c.n, err)
	}
}
