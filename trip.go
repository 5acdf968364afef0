package resilience

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"sync/atomic"
	"time"

	"github.com/retell-resilience/resilience/internal/body"
)

// trip is what the layers share about one call while it is on the road. The first layer that sees a request makes it, the
// context carries it on, so layers find it again behind a transport that is not ours. What describes the call does not
// change after [enter]; a flight travels on a copy.
type trip struct {
	call    Call
	said    *overrides // what the caller said through the context; nil: nothing
	key     string     // idempotency key: named by the caller, or made by the claim; "" for reads
	payload *body.Payload

	stack  *Stack  // the stack whose road this is; nil for layers used alone
	outer  *trip   // the trip inside which this one was started, for nested use
	flight *flight // set below the claim, for a call that must happen once
	marked *marked // what goes out instead of the request, for a call that carries its key

	run func(context.Context) (*http.Response, error) // the work of a Do; nil for HTTP

	clock clock

	ctx callContext

	road   leg    // where the trip entered: a redrive of its letter goes the same way
	letter string // id of the letter that this trip redrives

	first     attemptContext // of the first attempt, which most calls leave it at
	attempted atomic.Bool    // first is taken
	named     bool           // the caller named the key
}

// fresh reports whether a cached or shared answer would not do.
func (t *trip) fresh() bool { return t.said != nil && t.said.fresh }

// expiry is when no redrive makes sense any more; zero: no such time.
func (t *trip) expiry() time.Time {
	if t.said == nil {
		return time.Time{}
	}
	return t.said.expiry
}

// value is what the context of the call has under a key.
func (t *trip) value(key any) any {
	switch {
	case t.flight != nil:
		return t.flight.ctx.Value(key)
	case t.ctx.caller != nil:
		return t.ctx.Value(key)
	}
	return nil
}

// copy is a trip of its own for a flight.
func (t *trip) copy() *trip {
	c := &trip{
		call: t.call, key: t.key, named: t.named, said: t.said, payload: t.payload,
		stack: t.stack, outer: t.outer, marked: t.marked, run: t.run, road: t.road, letter: t.letter,
	}
	c.clock.epoch = t.clock.epoch
	return c
}

// deserted reports whether everybody who waited for the call has left; its flight goes on for the record alone.
func (t *trip) deserted() bool { return t.flight != nil && t.flight.deserted() }

// handOver is what a queue does before it takes the write of a call: see [flight]. ok is false when nobody is left to be
// told. done must be called with the id of the letter, or "" when none was made.
func (t *trip) handOver(ctx context.Context) (inner context.Context, done func(letter string), ok bool) {
	if t.flight == nil {
		return ctx, func(string) {}, true
	}
	return t.flight.handOver(ctx)
}

// owned notes which letter owns the write of the call; "": none.
func (t *trip) owned(letter string) {
	if t.flight != nil {
		t.flight.owned(letter)
	}
}

// marked is a request as the reconciler marked it. Letters and fingerprints keep to the original.
type marked struct {
	url     *url.URL    // nil: unchanged
	header  http.Header // what Mark set; an empty list takes the header away
	payload *body.Payload
}

// markedAs is what Mark changed in a request.
func markedAs(before, after *http.Request, payload *body.Payload) *marked {
	m := &marked{payload: payload}
	if after.URL != nil && after.URL.String() != before.URL.String() {
		m.url = after.URL
	}
	for name, values := range after.Header {
		if !slices.Equal(values, before.Header[name]) {
			m.set(name, values)
		}
	}
	for name := range before.Header {
		if _, kept := after.Header[name]; !kept {
			m.set(name, nil)
		}
	}
	return m
}

func (m *marked) set(name string, values []string) {
	if m.header == nil {
		m.header = http.Header{}
	}
	m.header[name] = values
}

// apply makes the same changes in what goes out, whose header may have been changed on the way.
func (m *marked) apply(out *http.Request) {
	if m.url != nil {
		out.URL = m.url
	}
	if m.header == nil {
		return
	}
	out.Header = out.Header.Clone()
	for name, values := range m.header {
		if len(values) == 0 {
			delete(out.Header, name)
			continue
		}
		out.Header[name] = values
	}
}

type tripKey struct{}

func tripOf(ctx context.Context) *trip {
	t, _ := ctx.Value(tripKey{}).(*trip)
	return t
}

// leg is one stretch of the road: a layer around the next one, or the wire at its end. The context that counts is the one
// handed along; the request is the caller's own, to be read and not changed, and its body is the trip's payload.
type leg interface {
	http.RoundTripper
	travel(ctx context.Context, t *trip, req *http.Request) (*http.Response, error)
}

// door is what Wrap of every layer returns: the layer's own function in front of the next leg.
type door struct {
	next  leg
	reads leg // next for reads, which go past the doors that mind writes only
	pass  func(ctx context.Context, t *trip, req *http.Request, next leg) (*http.Response, error)
	entry entry // for requests that come from outside

	writesOnly bool
}

func newDoor(next http.RoundTripper, pass func(context.Context, *trip, *http.Request, leg) (*http.Response, error)) *door {
	d := &door{pass: pass}
	d.before(legOf(next))
	return d
}

// newWriteDoor is a door that lets reads pass as they are.
func newWriteDoor(next http.RoundTripper, pass func(context.Context, *trip, *http.Request, leg) (*http.Response, error)) *door {
	d := newDoor(next, pass)
	d.writesOnly = true
	return d
}

// before puts the door in front of a leg.
func (d *door) before(next leg) {
	d.next, d.reads = next, next
	if n, ok := next.(*door); ok && n.writesOnly {
		d.reads = n.reads
	}
}

func (d *door) travel(ctx context.Context, t *trip, req *http.Request) (*http.Response, error) {
	switch {
	case t.call.Effect != EffectRead:
		return d.pass(ctx, t, req, d.next)
	case d.writesOnly:
		return d.reads.travel(ctx, t, req)
	}
	return d.pass(ctx, t, req, d.reads)
}

func (d *door) RoundTrip(req *http.Request) (*http.Response, error) {
	return enter(req, d, d.entry)
}

// CloseIdleConnections lets http.Client.CloseIdleConnections reach the transport.
func (d *door) CloseIdleConnections() { closeIdle(d.next) }

func closeIdle(rt http.RoundTripper) {
	if c, ok := rt.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// legOf makes a leg of any transport; nil is a fresh HTTP/1.1 transport, over which "nothing was written" can be proven.
func legOf(next http.RoundTripper) leg {
	if l, ok := next.(leg); ok {
		return l
	}
	if next == nil {
		next = NewTransport()
	}
	return newWire(next, 0)
}

// NewTransport makes the transport that Wrap(nil) uses, for programs that want to change something in it: HTTP/1.1, over
// which "nothing was written" can be proven, proxies from the environment, idle connections kept for 30 s.
func NewTransport() *http.Transport {
	tr := http.DefaultTransport.(*http.Transport).Clone() //nolint:forcetypeassert // documented to be one
	tr.Protocols = new(http.Protocols)
	tr.Protocols.SetHTTP1(true)
	tr.ForceAttemptHTTP2 = false
	tr.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	tr.IdleConnTimeout = 30 * time.Second
	tr.MaxIdleConnsPerHost = 32
	return tr
}

// entry is what a stack adds to the way in; the zero entry serves a layer used alone.
type entry struct {
	stack    *Stack
	describe func(*http.Request) Call
	maxBody  int64
	letter   string // set by a redrive
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
	if outer != nil && e.stack == nil && passing(ctx, req) {
		outer.waited() // nobody knows for what the transport between took its time
		return l.travel(ctx, outer, req)
	}
	t := &trip{stack: e.stack, outer: outer, road: l, letter: e.letter}
	t.clock.epoch = e.epoch()
	if req.URL == nil { // net/http's transport says so, too; the layers below read it
		closeBody(req)
		return nil, t.refuse("stack", errors.New("the request has no URL"))
	}
	if err := t.describe(ctx, req, e.describe); err != nil {
		closeBody(req)
		return nil, err
	}
	if e.maxBody == 0 {
		e.maxBody = defaultMaxRequestBytes
	}
	t.payload = body.Read(req.Body, req.ContentLength, e.maxBody)
	defer t.payload.Release()

	ctx, stop := watchCancel(ctx, req)
	over := stop // when the exchange is over, which for a stream is later
	defer func() { over() }()
	inner := req
	if hasKeyHeader(req.Header) {
		inner = withoutKeyHeaders(req)
		if key, ok := headerKey(req.Header); ok && !t.named {
			t.key, t.named = key, true
		}
	}
	if err := t.checkKey(); err != nil {
		return nil, err
	}
	ended := false
	defer func() {
		if !ended { // a panic passes through
			t.ctx.end(finished)
		}
	}()
	resp, err := l.travel(t.begin(ctx), t, inner)
	ended = true
	if t.finish(resp, err, stop) {
		over = func() {}
	}
	if resp != nil {
		resp.Request = req
	}
	return resp, err
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
		t.key, t.named, t.said = o.key, o.named, o
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

// refuse is the error of a layer that ends a call before it was sent.
func (t *trip) refuse(layer string, err error) *Error {
	return &Error{Layer: layer, Operation: t.call.Operation, Err: err, verdict: refused}
}

// fail is the error of a layer that ends a call of which nothing is proven.
func (t *trip) fail(layer string, err error) *Error {
	return &Error{Layer: layer, Operation: t.call.Operation, Err: err}
}

// errBudget is the cause with which a call's context ends when its budget is used up.
var errBudget = fmt.Errorf("%w: budget", ErrTimeout)

// errCanceled is the cause with which a call's context ends when Request.Cancel was closed.
var errCanceled = fmt.Errorf("request canceled: %w", context.Canceled)

// gone is the error for a call whose context ended while a layer made it wait: the budget's, or the caller's own cause.
func (t *trip) gone(ctx context.Context, layer string) *Error {
	cause := causeOf(ctx)
	e := t.refuse(layer, cause)
	switch {
	case errors.Is(cause, errBudget):
		e.Limit = "budget"
	case errors.Is(cause, ErrClosed):
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		e.Limit = "caller"
	}
	if !errors.Is(cause, ctx.Err()) && !errors.Is(cause, errBudget) && !errors.Is(cause, ErrClosed) {
		e.Err = errors.Join(cause, ctx.Err())
	}
	return e
}

// byTime reports whether ctx ended because time ran out, ours or the caller's, rather than because somebody cancelled.
func byTime(ctx context.Context) bool {
	return outOfBudget(ctx) || errors.Is(ctx.Err(), context.DeadlineExceeded)
}

// watchCancel makes Request.Cancel end the context. http.Client with a Timeout sets both: a deadline on the context, and
// Cancel, which it closes at the deadline. Whatever comes back after that has its type erased, so the context here ends
// a little earlier: by 5 % of the time left, at most 50 ms.
func watchCancel(ctx context.Context, req *http.Request) (context.Context, func()) {
	canceled := req.Cancel //nolint:staticcheck // http.Client still sets it
	if canceled == nil {
		return ctx, func() {}
	}
	cancelTimer := func() {}
	if deadline, ok := ctx.Deadline(); ok {
		ctx, cancelTimer = context.WithDeadline(ctx, deadline.Add(-min(50*time.Millisecond, time.Until(deadline)/20)))
	}
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		select {
		case <-canceled:
			cancel(errCanceled)
		case <-done:
		}
	}()
	return ctx, func() {
		close(done)
		cancel(nil)
		cancelTimer()
	}
}
