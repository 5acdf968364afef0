package resilience

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestWire_KnowsUnderWhichKeysATraceIsLookedFor(t *testing.T) {
	w := newWire(nil, 0)
	trace := &httptrace.ClientTrace{ConnectStart: func(string, string) {}}
	ctx := httptrace.WithClientTrace(t.Context(), trace)
	require.Same(t, trace, ctx.Value(w.traceKey))
	require.NotNil(t, w.netKey)
	require.NotNil(t, ctx.Value(w.netKey))
	require.NotEqual(t, w.traceKey, w.netKey)

	other := keyWatch{Context: ctx} // package net may come to look for something else first
	other.Value(dialWatchKey{})
	require.Nil(t, other.key)
	other.Value(w.netKey)
	other.Value(w.traceKey)
	require.Equal(t, w.netKey, other.key)
}

// dialVia returns a transport with a dialer of its own, which may hang until the test is over.
func dialVia(t *testing.T, dial func(ctx context.Context, hang func() error) (net.Conn, error)) *http.Transport {
	over := make(chan struct{})
	t.Cleanup(func() { close(over) })
	hang := func() error { <-over; return errors.New("over") }
	tr := NewTransport()
	tr.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, hang) }
	return tr
}

// dialNet dials with package net, and comes no further than the socket: there it does something else.
func dialNet(ctx context.Context, instead func() error) (net.Conn, error) {
	d := &net.Dialer{Control: func(string, string, syscall.RawConn) error { return instead() }}
	return d.DialContext(ctx, "tcp", "127.0.0.1:9")
}

var errNoSocket = errors.New("no socket for you")

func noSocket() error { return errNoSocket }

// Package net says that it connects, whoever put a trace of their own where, and everybody hears it once.
func TestT11_ConnectLimitHearsPackageNet(t *testing.T) {
	type road struct {
		rt  http.RoundTripper
		ctx context.Context
	}
	for name, pave := range map[string]func(t *testing.T, theirs *httptrace.ClientTrace) road{
		"the caller's trace": func(t *testing.T, theirs *httptrace.ClientTrace) road {
			return road{dialVia(t, dialNet), httptrace.WithClientTrace(t.Context(), theirs)}
		},
		"a transport's trace": func(t *testing.T, theirs *httptrace.ClientTrace) road {
			tr := dialVia(t, dialNet)
			return road{RoundTripFunc(func(req *http.Request) (*http.Response, error) {
				return tr.RoundTrip(req.WithContext(httptrace.WithClientTrace(req.Context(), theirs)))
			}), t.Context()}
		},
		"a dialer's trace": func(t *testing.T, theirs *httptrace.ClientTrace) road {
			return road{dialVia(t, func(ctx context.Context, hang func() error) (net.Conn, error) {
				return dialNet(httptrace.WithClientTrace(ctx, theirs), hang)
			}), t.Context()}
		},
		"nobody's trace, over a transport that dialed before it asked": func(t *testing.T, theirs *httptrace.ClientTrace) road {
			theirs.ConnectStart("", "")
			tr := dialVia(t, dialNet)
			return road{RoundTripFunc(func(req *http.Request) (*http.Response, error) {
				_, err := dialNet(req.Context(), noSocket)
				require.ErrorIs(t, err, errNoSocket)
				return tr.RoundTrip(req)
			}), t.Context()}
		},
		"nobody's trace, and a lookup that hangs": func(t *testing.T, theirs *httptrace.ClientTrace) road {
			theirs.ConnectStart("", "")
			return road{RoundTripFunc(func(req *http.Request) (*http.Response, error) {
				trace := httptrace.ContextClientTrace(req.Context())
				trace.GetConn("api.test:80")
				trace.DNSStart(httptrace.DNSStartInfo{Host: "api.test"})
				return slow(time.Hour)(req)
			}), t.Context()}
		},
		"nobody's trace": func(t *testing.T, theirs *httptrace.ClientTrace) road {
			theirs.ConnectStart("", "")
			return road{dialVia(t, dialNet), t.Context()}
		},
		"nobody's trace, and the key of package net is not known": func(t *testing.T, theirs *httptrace.ClientTrace) road {
			theirs.ConnectStart("", "")
			w := newWire(dialVia(t, dialNet), 1)
			w.netKey = nil
			return road{w, t.Context()}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var heard atomic.Int64
				r := pave(t, &httptrace.ClientTrace{ConnectStart: func(string, string) { heard.Add(1) }})
				to := newTime(t, TimeoutConfig{Connect: time.Second})
				_, err := fetch(r.ctx, t, to.Wrap(r.rt)) //nolint:bodyclose // there is none
				var e *Error
				require.ErrorAs(t, err, &e)
				require.Equal(t, "connect", e.Limit)
				require.True(t, NotSent(err))
				require.EqualValues(t, 1, heard.Load())
			})
		})
	}
}

// A transport that uses package net, and says by no hook when it has connected, has no connect limit.
func TestT11_NoConnectLimitWhereNobodySaysThatItIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		to := newTime(t, TimeoutConfig{Connect: time.Second})
		resp, err := fetch(t.Context(), t, to.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			_, err := dialNet(req.Context(), noSocket)
			require.ErrorIs(t, err, errNoSocket)
			return slow(2 * time.Second)(req)
		})))
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
	})
}

// What package net alone needs is not made before it asks: over a connection that is there it never does.
func TestWire_ARequestThatDialsNotPaysForNoDialer(t *testing.T) {
	w, out := newWire(NewTransport(), 0), context.WithValue(t.Context(), dialWatchKey{}, dialWatch(new(attemptContext)))
	require.LessOrEqual(t, testing.AllocsPerRun(100, func() {
		httptrace.ContextClientTrace(&sighting{Context: out, wire: w})
	}), 7.0, "the sighting, its hooks, and one for each of them")
}

// hookCount counts the hooks that fire before an answer is there.
type hookCount struct {
	mu sync.Mutex
	m  map[string]int
}

func (h *hookCount) add(s string) { h.mu.Lock(); defer h.mu.Unlock(); h.m[s]++ }
func (h *hookCount) trace() *httptrace.ClientTrace {
	return &httptrace.ClientTrace{
		GetConn: func(string) { h.add("GetConn") }, GotConn: func(httptrace.GotConnInfo) { h.add("GotConn") },
		GotFirstResponseByte: func() { h.add("First") },
		DNSStart:             func(httptrace.DNSStartInfo) { h.add("DNSStart") }, DNSDone: func(httptrace.DNSDoneInfo) { h.add("DNSDone") },
		ConnectStart: func(string, string) { h.add("ConnectStart") }, ConnectDone: func(string, string, error) { h.add("ConnectDone") },
		TLSHandshakeStart: func() { h.add("TLSStart") }, TLSHandshakeDone: func(tls.ConnectionState, error) { h.add("TLSDone") },
	}
}

// Everybody's hooks fire as often as over the bare transport, whatever road leads there.
func TestWire_HooksFireAsWithoutUs(t *testing.T) {
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }))
	t.Cleanup(srv.Close)
	base := func() *http.Transport {
		tr, ok := srv.Client().Transport.(*http.Transport)
		require.True(t, ok)
		return tr.Clone()
	}
	theirs := func(h *hookCount, next http.RoundTripper) http.RoundTripper {
		return RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			return next.RoundTrip(req.WithContext(httptrace.WithClientTrace(req.Context(), h.trace())))
		})
	}
	stack := func() *Stack { s := newStack(t, Config{}); t.Cleanup(func() { closeStack(t, s) }); return s }
	for name, pave := range map[string]func(h *hookCount, tr http.RoundTripper) http.RoundTripper{
		"stack":            func(_ *hookCount, tr http.RoundTripper) http.RoundTripper { return stack().Wrap(tr) },
		"stack over stack": func(_ *hookCount, tr http.RoundTripper) http.RoundTripper { return stack().Wrap(stack().Wrap(tr)) },
		"stack, theirs":    func(h *hookCount, tr http.RoundTripper) http.RoundTripper { return stack().Wrap(theirs(h, tr)) },
		"theirs, stack":    func(h *hookCount, tr http.RoundTripper) http.RoundTripper { return theirs(h, stack().Wrap(tr)) },
		"stack, theirs, stack": func(h *hookCount, tr http.RoundTripper) http.RoundTripper {
			return stack().Wrap(theirs(h, stack().Wrap(tr)))
		},
		"two stacks, theirs": func(h *hookCount, tr http.RoundTripper) http.RoundTripper {
			return stack().Wrap(stack().Wrap(theirs(h, tr)))
		},
		"stack, theirs, attempt": func(h *hookCount, tr http.RoundTripper) http.RoundTripper {
			return stack().Wrap(theirs(h, newTime(t, TimeoutConfig{}).Attempt().Wrap(tr)))
		},
		"attempt": func(_ *hookCount, tr http.RoundTripper) http.RoundTripper {
			return newTime(t, TimeoutConfig{}).Attempt().Wrap(tr)
		},
		"no connect limit": func(_ *hookCount, tr http.RoundTripper) http.RoundTripper {
			return newTime(t, TimeoutConfig{Connect: -1}).Attempt().Wrap(tr)
		},
		"breaker": func(_ *hookCount, tr http.RoundTripper) http.RoundTripper {
			b, err := NewBreaker(BreakerConfig{})
			require.NoError(t, err)
			return b.Wrap(tr)
		},
	} {
		t.Run(name, func(t *testing.T) {
			run := func(rt http.RoundTripper, caller *hookCount) {
				for range 2 {
					ctx := t.Context()
					if caller != nil {
						ctx = httptrace.WithClientTrace(ctx, caller.trace())
					}
					req, err := http.NewRequestWithContext(ctx, http.MethodGet, srv.URL, nil)
					require.NoError(t, err)
					resp, err := rt.RoundTrip(req)
					require.NoError(t, err)
					_, err = io.Copy(io.Discard, resp.Body)
					require.NoError(t, err)
					require.NoError(t, resp.Body.Close())
				}
			}
			want := &hookCount{m: map[string]int{}}
			trp := base()
			run(trp, want)
			for _, withCaller := range []bool{true, false} {
				caller, mid := &hookCount{m: map[string]int{}}, &hookCount{m: map[string]int{}}
				tr := base()
				if !withCaller {
					caller = nil
				}
				run(pave(mid, tr), caller)
				if withCaller {
					require.Equal(t, fmt.Sprint(want.m), fmt.Sprint(caller.m))
				}
				if len(mid.m) > 0 {
					require.Equal(t, fmt.Sprint(want.m), fmt.Sprint(mid.m))
				}
				tr.CloseIdleConnections()
			}
		})
	}
}
