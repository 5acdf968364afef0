package resilience

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/retell-resilience/resilience/internal/body"
)

// entry is what a stack adds to the way in; the zero entry serves a layer used alone.
type entry struct {
	stack    *Stack
	describe func(*http.Request) Call
	maxBody  int64
	budget   func(*Call) time.Duration // nil: none
}

func (e entry) epoch() time.Time {
	if e.stack != nil {
		return e.stack.epoch
	}
	return time.Now()
}

// enter makes the trip for a request that comes from outside and sends it down l. It reads the request body once, and
// never changes the caller's request.
func enter(req *http.Request, l leg, e entry) (*http.Response, error) {
	ctx := req.Context()
	outer := tripOf(ctx)
	if e.maxBody == 0 {
		e.maxBody = defaultMaxRequestBytes
	}
	if outer != nil && e.stack == nil {
		if s := passing(ctx, req); s != nil {
			return s.pass(ctx, outer, req, l, e.maxBody)
		}
	}
	t := &trip{stack: e.stack, outer: outer, road: l}
	t.clock.epoch = e.epoch()
	if err := t.describe(ctx, req, e.describe); err != nil {
		closeBody(req)
		return nil, err
	}
	ctx, stop := watchCancel(ctx, req)
	over := stop // when the exchange is over, which for a stream is later
	defer func() { over() }()
	call := t.begin(ctx)
	ended := false
	defer func() {
		if !ended { // a refusal, or a panic that passes through
			call.end(finished)
		}
	}()
	inner, err := t.receive(call, req, e)
	defer t.payload.Release()
	if err != nil {
		return nil, err
	}
	resp, err := l.travel(call, t, inner)
	ended = true
	if req.Body != nil {
		call.unlimit() // see awaitBody
	}
	if t.finish(resp, err, stop) {
		over = func() {}
	}
	if resp != nil {
		resp.Request = req
	}
	return resp, err
}

// receive takes from a request what the trip keeps, its body and the key in its header, and returns the request that goes down.
func (t *trip) receive(call *callContext, req *http.Request, e entry) (inner *http.Request, err error) {
	if err := t.takeBody(call, req, e); err != nil {
		return nil, err
	}
	inner = req
	if hasKeyHeader(req.Header) {
		inner = withoutKeyHeaders(req)
		if key, ok := headerKey(req.Header); ok && !t.named {
			t.key, t.named = key, true
		}
	}
	if err := t.checkKey(); err != nil {
		return nil, err
	}
	return inner, t.checkLength(req.ContentLength)
}

// takeBody reads the body of a request. One that may have to be waited for, a pipe or what another server answers, holds its
// caller no longer than their time lasts; the wait is part of the budget.
func (t *trip) takeBody(call *callContext, req *http.Request, e entry) error {
	if req.Body == nil || req.Body == http.NoBody || req.GetBody != nil { // what can be had again is in memory
		t.payload = body.Read(req.Body, req.ContentLength, e.maxBody)
		return nil
	}
	return t.awaitBody(call, req, e)
}

func (t *trip) awaitBody(call *callContext, req *http.Request, e entry) error {
	if e.budget != nil {
		if total := e.budget(&t.call); total >= 0 {
			call.limit(t.now(), total)
		}
	}
	defer t.waited()
	var payload *body.Payload
	source, read := &closedOnce{ReadCloser: req.Body}, make(chan result, 1)
	go capture(func() (*http.Response, error) {
		payload = body.Read(source, req.ContentLength, e.maxBody)
		return nil, nil //nolint:nilnil // only how it ended counts
	}, func(r result) { read <- r })
	select {
	case r := <-read:
		_, err := r.deliver()
		t.payload = payload
		return err
	case <-call.Done():
		go func() { _ = source.Close() }() // which ends most reads
		return t.gone(call, "stack")
	}
}

// closedOnce is a body that is closed by whoever comes first: its reader, or a caller whose time is up.
type closedOnce struct {
	io.ReadCloser
	once sync.Once
}

func (c *closedOnce) Close() (err error) {
	c.once.Do(func() { err = c.ReadCloser.Close() })
	return err
}

// begin makes the call's context out of the caller's.
func (t *trip) begin(caller context.Context) *callContext {
	t.ctx.caller, t.ctx.trip = caller, t
	return &t.ctx
}

// finish ends the call's context when the exchange is over. later: it goes on as a stream, and stop runs at its end.
func (t *trip) finish(resp *http.Response, err error, stop func()) (later bool) {
	if tl := tailOf(resp, err); tl != nil && err == nil {
		tl.after(func() {
			t.ctx.end(finished)
			stop()
		})
		return true
	}
	t.ctx.end(finished)
	return false
}

func closeBody(req *http.Request) {
	if req.Body != nil {
		_ = req.Body.Close() // nobody could do anything about it
	}
}

// describe resolves the call of a trip. A describe function that panics refuses the call rather than guess its effect.
func (t *trip) describe(ctx context.Context, req *http.Request, describe func(*http.Request) Call) (err error) {
	if req.URL == nil { // net/http's transport says so, too; the layers below read it
		return t.refuse("stack", errors.New("the request has no URL"))
	}
	if describe != nil {
		defer func() {
			if v := recover(); v != nil {
				err = &Error{Layer: "stack", Err: fmt.Errorf("describe panicked: %T", v), verdict: refused}
			}
		}()
		t.call = describe(req)
	}
	t.resolve(overridesOf(ctx), methodOf(req), effectOf(req.Method))
	return nil
}

// resolve puts what the caller said over what the call was described as, and fills in what neither said.
func (t *trip) resolve(o *overrides, method string, unset Effect) {
	if o != nil {
		t.call = t.call.merge(o.call)
		t.key, t.named, t.letter, t.said = o.key, o.named, o.letter, o
	}
	t.call.resolve(method, unset)
}

// detached is a copy of the request that stays as it is when the caller is gone and uses theirs again. It has no body: that
// is the trip's payload.
func detached(ctx context.Context, req *http.Request) *http.Request {
	out := req.Clone(ctx)
	out.Body, out.GetBody = nil, nil
	out.Cancel = nil //nolint:staticcheck // http.Client still sets it, see watchCancel
	return out
}

func methodOf(req *http.Request) string {
	if req.Method == "" {
		return http.MethodGet
	}
	return req.Method
}

// credentialHeaders say who asks: no letter holds them, and no answer is kept for another one's.
var credentialHeaders = [...]string{"Authorization", "Cookie", "Proxy-Authorization", "X-Api-Key"}

// net/http's transport sends a POST again by itself when one of these is set, so they must never go down. A key that a
// caller put there is taken as the key of the call.
var keyHeaders = [...]string{"Idempotency-Key", "X-Idempotency-Key"}

func headerKey(h http.Header) (string, bool) {
	for _, name := range keyHeaders {
		if values := h[name]; len(values) > 0 {
			return values[0], true
		}
	}
	return "", false
}

// withoutKeyHeaders is a copy of req.
func withoutKeyHeaders(req *http.Request) *http.Request {
	out := *req
	out.Header = req.Header.Clone()
	for _, name := range keyHeaders {
		out.Header.Del(name)
	}
	return &out
}

// hasKeyHeader also sees one without a value, by which a program asks net/http for repeats without sending the header.
func hasKeyHeader(h http.Header) bool {
	for _, name := range keyHeaders {
		if _, ok := h[name]; ok {
			return true
		}
	}
	return false
}

// checkLength refuses a body that is not as long as the caller announced, as net/http's transport does: it may be half of a
// file, and what is sent is announced anew, so that nobody below would notice.
func (t *trip) checkLength(announced int64) error {
	b, whole := t.payload.Bytes()
	if announced <= 0 || !whole || int64(len(b)) == announced {
		return nil
	}
	return t.refuse("stack", fmt.Errorf("ContentLength is %d, and the body has %d bytes", announced, len(b)))
}

func (t *trip) checkKey() error {
	if !t.named {
		return nil
	}
	why := ""
	switch {
	case t.key == "":
		why = "it is empty"
	case len(t.key) > 255:
		why = fmt.Sprintf("it has %d bytes, 1 to 255 are allowed", len(t.key))
	default:
		for _, r := range t.key {
			if r < 0x20 || r == 0x7f {
				why = "it has control characters"
			}
		}
	}
	if why == "" {
		return nil
	}
	return t.refuse("idempotency", fmt.Errorf("%w: %s", ErrBadKey, why))
}
