package resilience

import (
	"context"
	"crypto/tls"
	"net/http"
	"time"
)

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
