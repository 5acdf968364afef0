package resilience

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestWire_HTTP2ProvesNothing(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	srv.EnableHTTP2 = true
	srv.StartTLS()
	defer srv.Close()
	for proto, proven := range map[string]bool{"h2": false, "": true} {
		conn, err := tls.Dial("tcp", srv.Listener.Addr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: strings.Fields(proto)}) //nolint:gosec // a test
		require.NoError(t, err)
		require.Equal(t, proto, conn.ConnectionState().NegotiatedProtocol)
		s := &sighting{wire: &wire{base: &http.Transport{}}}
		require.Equal(t, proven, s.speaksHTTP1(httptrace.GotConnInfo{Conn: conn}), proto)
		_ = conn.Close()
	}
}

func TestWire_AConnectionThatTookNothingProvesNothingSent(t *testing.T) {
	conn, other := net.Pipe()
	defer conn.Close()
	defer other.Close()
	s := &sighting{wire: &wire{base: &http.Transport{}}, once: true}
	h := &hooks{sighting: s}
	h.getConn("")
	h.gotConn(httptrace.GotConnInfo{Conn: conn, Reused: true})
	require.False(t, s.nothingSent())
	h.getConn("") // back for another, and none is had
	require.True(t, s.nothingSent())
}

func TestWire_LeavingAfterADoubtfulStatusProvesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, code := range []int{408, 409, 425} {
			r, err := NewRetry(RetryConfig{Base: 5 * time.Second})
			require.NoError(t, err)
			rt := r.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) { return reply(code, "", "Retry-After", "5"), nil }))
			ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, errors.New("x"))
			time.AfterFunc(time.Second, cancel)
			req, _ := http.NewRequestWithContext(ctx, "PUT", "http://api.test/x", strings.NewReader("{}"))
			_, err = rt.RoundTrip(req)
			require.Error(t, err)
			require.False(t, NotSent(err), "after %d: %v", code, err)
		}
	})
}

// net/http sends a GET again by itself when a connection that was used before breaks. That the dial for the second send
// fails proves nothing about the first, which the server may have read.
func TestWire_AFailedDialProvesNothingAboutAnEarlierSend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := NewTransport()
		dials := 0
		tr.DialContext = func(context.Context, string, string) (net.Conn, error) {
			if dials++; dials > 1 {
				return nil, syscall.ECONNREFUSED
			}
			client, server := net.Pipe()
			go func() {
				in := bufio.NewReader(server)
				for n := range 2 {
					req, err := http.ReadRequest(in)
					if err != nil {
						t.Error(err)
						return
					}
					_, _ = io.Copy(io.Discard, req.Body)
					if n == 0 {
						_, _ = io.WriteString(server, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
					}
				}
				_ = server.Close() // it has read the second one
			}()
			return client, nil
		}
		s := newStack(t, Config{Retry: RetryConfig{Off: true}, Fallback: FallbackConfig{Off: true}})
		rt := s.Wrap(tr)
		_, err := fetch(t.Context(), t, rt)
		require.NoError(t, err)
		_, err = fetch(t.Context(), t, rt)
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
		require.Equal(t, 2, dials, "if net/http no longer sends it again, this shows nothing")
		require.False(t, NotSent(err))
		tr.CloseIdleConnections()
		closeStack(t, s)
	})
}

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
