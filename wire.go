package resilience

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync"
	"sync/atomic"

	"github.com/retell-resilience/resilience/internal/body"
)

// A wire is the end of the road: it hands a request to a transport, watches whether it was written, and reads the answer
// whole, so that an exchange is over when RoundTrip returns.
type wire struct {
	base     http.RoundTripper
	maxBytes int64 // of a response body; 0: the default
	traceKey any   // under which a transport looks for a trace in its context
	netKey   any   // under which package net looks for the hooks of that trace that tell of dialing; nil: not known
}

func newWire(base http.RoundTripper, maxBytes int64) *wire {
	w := &wire{base: base, maxBytes: maxBytes}
	w.traceKey, w.netKey = traceKeys()
	return w
}

// traceKeys finds out the keys by having a trace looked for, since nobody exports them. The dialer gives up at once: there
// is no such network.
func traceKeys() (trace, dialing any) {
	held := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{ConnectStart: func(string, string) {}})
	inTransport, inDialer := keyWatch{Context: held}, keyWatch{Context: held}
	httptrace.ContextClientTrace(&inTransport)
	if conn, err := new(net.Dialer).DialContext(&inDialer, "none", ""); err == nil {
		_ = conn.Close()
	}
	return inTransport.key, inDialer.key
}

// keyWatch notes the first key it is asked for that its context holds something under. It does not hand that out, so that
// nothing comes of asking.
type keyWatch struct {
	context.Context
	key any
}

func (w *keyWatch) Value(key any) any {
	if w.key == nil && w.Context.Value(key) != nil {
		w.key = key
	}
	return nil
}

const (
	defaultMaxRequestBytes  = 8 << 20
	defaultMaxResponseBytes = 32 << 20
)

// errResend is what a transport gets that wants to send the body of an effect-once request a second time.
var errResend = errors.New("an effect-once request is not sent a second time")

func (w *wire) RoundTrip(req *http.Request) (*http.Response, error) { return enter(req, w, entry{}) }

// CloseIdleConnections closes those of the transport.
func (w *wire) CloseIdleConnections() { closeIdle(w.base) }

func (w *wire) travel(ctx context.Context, t *trip, req *http.Request) (resp *http.Response, err error) {
	defer t.now()
	seen := &sighting{Context: ctx, wire: w, once: t.call.Effect == EffectOnce}
	seen.out = *req.WithContext(seen) // together, in one allocation
	out, payload := &seen.out, t.payload
	out.Cancel = nil //nolint:staticcheck // http.Client still sets it, see watchCancel
	if t.marked != nil {
		t.marked.apply(out)
		payload = t.marked.payload
	}
	seen.repeats = replayable(req.Method) || hasKeyHeader(out.Header)
	payload.Hold() // the caller may have left by the time RoundTrip returns
	defer func() {
		if tl := tailOf(resp, err); tl != nil {
			tl.after(payload.Release) // the upload may go on while its answer streams
			return
		}
		payload.Release()
	}()
	if err := seen.load(out, payload); err != nil {
		return nil, t.refuse("stack", err)
	}
	resp, err = w.base.RoundTrip(out)
	switch {
	case err == nil && resp == nil:
		return nil, errors.New("the transport returned neither a response nor an error")
	case err != nil:
		discard(resp) // exactly one of response and error
		if seen.nothingSent() {
			err = MarkNotSent(err)
		}
		return nil, err
	}
	return w.read(t, resp)
}

// load gives an outgoing clone its body, fresh for each attempt.
func (s *sighting) load(out *http.Request, payload *body.Payload) error {
	out.Body, out.GetBody = nil, nil
	if payload == nil {
		out.ContentLength = 0
		if s.once && s.repeats {
			// Without a body the transport would send it again by itself; it probes this one, finds it empty, and asks
			// GetBody before any second send.
			out.Body, out.GetBody, out.ContentLength = io.NopCloser(http.NoBody), s.getBody, 0
		}
		return nil
	}
	reader, again, size, err := payload.Open()
	if err != nil {
		return err
	}
	if len(out.Trailer) > 0 && out.ContentLength <= 0 {
		size = -1 // whoever gave no length wants the trailer sent, which HTTP/1.1 does only after a body without one
	}
	out.Body, out.GetBody, out.ContentLength = reader, again, size
	if s.once {
		out.GetBody = s.getBody
	}
	return nil
}

// read takes the whole body into memory. Streams pass through; their exchange ends when their body does.
func (w *wire) read(t *trip, resp *http.Response) (*http.Response, error) {
	if body.InMemory(resp) {
		return resp, nil
	}
	empty := resp.Body == nil || resp.Body == http.NoBody // of HEAD, or of a fake: nothing that anybody need close
	if !empty && (resp.StatusCode == http.StatusSwitchingProtocols || body.IsStream(resp)) {
		resp.Body = newStream(resp.Body)
		return resp, nil
	}
	limit := w.maxBytes
	if limit == 0 {
		limit = defaultMaxResponseBytes
	}
	err := body.Hold(resp, limit)
	switch {
	case errors.Is(err, body.ErrTooLarge):
		return nil, &Error{
			Layer: "timeout", Operation: t.call.Operation, StatusCode: resp.StatusCode,
			Err: fmt.Errorf("%w: more than %d bytes", ErrTooLarge, limit),
		}
	case err != nil:
		return nil, &truncatedError{status: resp.StatusCode, err: err}
	}
	return resp, nil
}

// truncatedError is a response whose body could not be read to its end.
type truncatedError struct {
	status int
	err    error
}

func (e *truncatedError) Error() string {
	return fmt.Sprintf("status %d, body cut short: %v", e.status, e.err)
}
func (e *truncatedError) Unwrap() error { return e.err }

// sighting is what the trace hooks saw of one attempt. The hooks run on the transport's goroutines, some after RoundTrip
// has returned. It is the context that the request goes out with, so that the hooks are made only for a transport that
// asks for them.
type sighting struct {
	context.Context
	wire    *wire
	out     http.Request
	once    bool
	repeats bool        // net/http's transport repeats it by itself after a connection broke, see isReplayable there
	passed  atomic.Bool // a body that can be sent once was handed on to a layer below

	hooks atomic.Pointer[hooks] // nil: nobody has asked

	asked    atomic.Bool // a connection was asked for
	got      atomic.Bool // one was given
	provable atomic.Bool // it is one over which a second GetBody means that nothing was written
	resend   atomic.Bool // the transport asked for the body again
}

// hooks tell a sighting what happens.
type hooks struct {
	*sighting
	trace   httptrace.ClientTrace // what a transport gets; nobody changes it from then on
	dial    dialWatch             // nil: nobody limits connecting
	dialers sync.Once
	watched atomic.Pointer[context.Context] // with the hooks as package net wants them; nil: it has not asked
}

// dialWatch is told when connecting begins and when it is over; see Timeout.
type dialWatch interface {
	dialing()
	connected()
}

type dialWatchKey struct{}

// Value implements context.Context.
func (s *sighting) Value(key any) any {
	if _, ours := key.(sightingKey); ours {
		return s
	}
	h := s.hooks.Load()
	switch {
	case key == s.wire.traceKey:
		return &s.watch().trace
	case h == nil: // package net, too, gets no hooks: a transport that fires none would never tell that it has connected
		return s.Context.Value(key)
	case key == s.wire.netKey:
		h.dialers.Do(h.watchDialers)
	}
	if ctx := h.watched.Load(); ctx != nil {
		return (*ctx).Value(key)
	}
	return s.Context.Value(key)
}

// AfterFunc hands a follower on to the context that this one hides; see [callContext.AfterFunc].
func (s *sighting) AfterFunc(f func()) (stop func() bool) {
	if c, ok := s.Context.(*callContext); ok {
		return c.AfterFunc(f)
	}
	return context.AfterFunc(s.Context, f)
}

// watch returns the hooks that a transport looks for.
func (s *sighting) watch() *hooks {
	if h := s.hooks.Load(); h != nil {
		return h
	}
	if h := newHooks(s); s.hooks.CompareAndSwap(nil, h) {
		return h
	}
	return s.hooks.Load() // two have asked at once
}

// newHooks makes all the hooks that a transport may look for, and those of dialing, because a trace that somebody puts
// around this one hides it from package net.
func newHooks(s *sighting) *hooks {
	h := &hooks{sighting: s}
	h.dial, _ = s.Context.Value(dialWatchKey{}).(dialWatch)
	h.trace.GetConn, h.trace.GotConn = h.getConn, h.gotConn
	if h.dial != nil {
		h.trace.DNSStart = func(httptrace.DNSStartInfo) { h.dial.dialing() }
		h.trace.ConnectStart = func(string, string) { h.dial.dialing() }
		h.trace.TLSHandshakeStart = func() { h.dial.dialing() } // the first sign of a connection that a dialer of the user's makes
	}
	if s.wire.netKey == nil || httptrace.ContextClientTrace(s.Context) != nil { // hooks of somebody else's become part of the trace
		h.dialers.Do(h.watchDialers)
	}
	return h
}

// watchDialers waits for package net to ask, since most requests go out over a connection that is there already.
func (h *hooks) watchDialers() {
	ctx := httptrace.WithClientTrace(h.Context, &h.trace)
	h.watched.Store(&ctx)
}

type sightingKey struct{}

// passing is what a wire of ours knows of req, if that is the one it sent out and a layer below it meets again behind a
// foreign transport, rather than another that somebody makes while serving that; else nil.
func passing(ctx context.Context, req *http.Request) *sighting {
	s, ok := ctx.Value(sightingKey{}).(*sighting)
	if ok && s.out.Method == req.Method && (s.out.URL == req.URL || s.out.URL.String() == req.URL.String()) {
		return s
	}
	return nil
}

// pass takes a request on behind a foreign transport.
func (s *sighting) pass(ctx context.Context, t *trip, req *http.Request, l leg, maxBody int64) (*http.Response, error) {
	t.waited() // nobody knows for what the transport between took its time
	t, err := s.behind(t, req, maxBody)
	if err != nil {
		return nil, err
	}
	defer t.payload.Release()
	return l.travel(ctx, t, req)
}

// behind is the trip of a call behind a foreign transport, which may have given the request another body. Whoever calls
// this releases the body.
func (s *sighting) behind(t *trip, req *http.Request, limit int64) (*trip, error) {
	_, whole := t.payload.Bytes()
	same := req.Body == s.out.Body
	if whole && same {
		t.payload.Hold()
		return t, nil
	}
	if same && s.passed.Swap(true) {
		return nil, t.fail("stack", body.ErrSpent) // which proves nothing about the first send
	}
	own := t.copy()
	own.outer, own.flight, own.marked = t, t.flight, nil // it is marked already
	own.payload = body.Read(req.Body, req.ContentLength, limit)
	return own, nil
}

func (h *hooks) getConn(string) {
	h.asked.Store(true)
	if h.provable.Load() && !h.repeats {
		h.got.Store(false) // it is back for another connection because the first took nothing
	}
}

func (h *hooks) gotConn(info httptrace.GotConnInfo) {
	h.got.Store(true)
	h.provable.Store(h.speaksHTTP1(info))
	if h.dial != nil {
		h.dial.connected()
	}
}

func (s *sighting) speaksHTTP1(info httptrace.GotConnInfo) bool {
	tr, ok := s.wire.base.(*http.Transport)
	if !ok {
		return false
	}
	if c, ok := info.Conn.(*tls.Conn); ok {
		return c.ConnectionState().NegotiatedProtocol != "h2"
	}
	return tr.Protocols == nil || !tr.Protocols.UnencryptedHTTP2()
}

func (s *sighting) getBody() (io.ReadCloser, error) {
	s.resend.Store(true)
	return nil, errResend
}

// nothingSent is asked after RoundTrip has returned an error.
func (s *sighting) nothingSent() bool {
	if s.asked.Load() && !s.got.Load() {
		return true
	}
	return s.resend.Load() && s.provable.Load() && !s.repeats
}

// replayable mirrors the methods that net/http's transport repeats by itself after a connection broke.
func replayable(method string) bool {
	switch method {
	case "", http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return true
	}
	return false
}
