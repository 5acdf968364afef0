package resilience

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience/internal/body"
)

// net/http's transport repeats a GET by itself, whatever the caller thinks of its effect: one that must happen once is not
// sent again, with a body or without, and nothing is proven about the first time.
func TestWire_AGETThatMustHappenOnceIsNotRepeatedByTheTransport(t *testing.T) {
	for _, content := range []string{"", "x"} {
		send := func(rt http.RoundTripper, url string) error {
			req, err := http.NewRequestWithContext(WithCall(t.Context(), Call{Effect: EffectOnce}), http.MethodGet, url, nil)
			require.NoError(t, err)
			if content != "" {
				req.Body, req.ContentLength = io.NopCloser(strings.NewReader(content)), 1
				req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(content)), nil }
			}
			resp, err := rt.RoundTrip(req)
			if err == nil {
				_, _ = io.Copy(io.Discard, resp.Body)
				require.NoError(t, resp.Body.Close())
			}
			return err
		}
		for _, guarded := range []bool{false, true} {
			server := newRawServer(t, func(n int64, w io.Writer) bool {
				if n > 1 {
					return false // read, and gone without an answer
				}
				answered201(w)
				return true
			})
			tr := NewTransport()
			rt := http.RoundTripper(tr)
			if guarded {
				rt = newTestBreaker(t, BreakerConfig{}).Wrap(tr)
			}
			require.NoError(t, send(rt, server.url()))
			err := send(rt, server.url())
			require.Error(t, err)
			require.Equal(t, guarded, server.requests.Load() == 2, "without us it is repeated")
			require.False(t, NotSent(err))
			tr.CloseIdleConnections()
		}
	}
}

// brokenConn takes nothing more once it is broken.
type brokenConn struct {
	net.Conn
	broken atomic.Bool
}

func (c *brokenConn) Write(p []byte) (int, error) {
	if c.broken.Load() {
		return 0, errors.New("broken")
	}
	return c.Conn.Write(p)
}

// A transport that asks for the body again has written nothing if it is net/http's over HTTP/1.1; of another's reasons
// nothing is known.
func TestWire_WhoAsksForTheBodyAgain(t *testing.T) {
	server := newRawServer(t, func(_ int64, w io.Writer) bool { answered201(w); return true })
	tr := NewTransport()
	defer tr.CloseIdleConnections()
	var conn *brokenConn
	tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, addr)
		conn = &brokenConn{Conn: c}
		return conn, err
	}
	rt := newTestBreaker(t, BreakerConfig{}).Wrap(tr)
	_, err := post(t, rt, server.url(), "a")
	require.NoError(t, err)
	conn.broken.Store(true)
	_, err = post(t, rt, server.url(), "b")
	require.ErrorIs(t, err, errResend)
	require.True(t, NotSent(err))
	require.EqualValues(t, 1, server.requests.Load())

	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, server.url(), strings.NewReader("x"))
	require.NoError(t, err)
	resp, err := rt.RoundTrip(req)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	conn.broken.Store(true)
	req.Body, _ = req.GetBody()
	resp, err = rt.RoundTrip(req)
	require.NoError(t, err, "what may happen twice the transport may repeat")
	require.NoError(t, resp.Body.Close())

	_, err = post(t, newTestBreaker(t, BreakerConfig{}).Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
		httptrace.ContextClientTrace(req.Context()).GotConn(httptrace.GotConnInfo{})
		_, err := req.GetBody()
		return nil, err
	})), server.url(), "c")
	require.ErrorIs(t, err, errResend)
	require.False(t, NotSent(err))
}

// A body that can be sent once is sent once: without it a request does not go out.
func TestWire_ASpentBodyIsNotLeftOut(t *testing.T) {
	sent := 0
	w := newWire(RoundTripFunc(func(*http.Request) (*http.Response, error) { sent++; return ok(""), nil }), 0)
	tr := newTrip()
	tr.payload = body.Read(io.NopCloser(strings.NewReader("too long")), -1, 4)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://server.test/", nil)
	require.NoError(t, err)
	_, err = w.travel(t.Context(), tr, req)
	require.NoError(t, err)
	_, err = w.travel(t.Context(), tr, req)
	require.ErrorIs(t, err, body.ErrSpent)
	require.True(t, isRefusal(err))
	require.Equal(t, 1, sent)
}

// A transport that does not close the body it was given, which a fake need not, leaves none open: not after an answer, not
// after an error, not after a stream, and not where another piece put that body there.
func TestWire_ALongBodyIsClosedWhenTheExchangeIsOver(t *testing.T) {
	for name, next := range map[string]RoundTripFunc{
		"answer": func(*http.Request) (*http.Response, error) { return ok(""), nil },
		"error":  func(*http.Request) (*http.Response, error) { return nil, io.EOF },
		"stream": func(*http.Request) (*http.Response, error) {
			resp := ok("data: 1\n\n")
			resp.Header = http.Header{"Content-Type": {"text/event-stream"}}
			return resp, nil
		},
	} {
		for _, between := range []bool{false, true} {
			b := &countedBody{readerFunc: strings.NewReader("too long").Read}
			l := newTime(t, TimeoutConfig{MaxRequestBytes: 4})
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://server.test/", b)
			require.NoError(t, err)
			rt := l.Wrap(next)
			if between {
				inner := rt
				req.Body = http.NoBody
				rt = newTestBreaker(t, BreakerConfig{}).Wrap(RoundTripFunc(func(out *http.Request) (*http.Response, error) {
					again := out.Clone(out.Context())
					again.Body = b
					return inner.RoundTrip(again)
				}))
			}
			resp, err := rt.RoundTrip(req)
			require.Equal(t, name == "error", err != nil)
			if name == "stream" {
				require.Zero(t, b.closed.Load(), "the upload may go on")
				require.NoError(t, resp.Body.Close())
			}
			require.EqualValues(t, 1, b.closed.Load(), "%s, between %v", name, between)
		}
	}
}
