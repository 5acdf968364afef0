package resilience

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience/internal/body"
)

type cutBody struct{ reads int }

func (c *cutBody) Read(p []byte) (int, error) {
	if c.reads++; c.reads == 1 {
		return copy(p, `{"id":`), nil
	}
	return 0, fmt.Errorf("decrypting: %w", io.EOF)
}

func (*cutBody) Close() error { return nil }

// Only io.EOF itself is the end of a body. One that is wrapped says that something broke.
func TestWire_AWrappedEOFIsNoEnd(t *testing.T) {
	l := newTime(t, TimeoutConfig{})
	_, err := fetch(t.Context(), t, l.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: 200, Header: http.Header{}, ContentLength: -1, Body: &cutBody{}}, nil
	})))
	require.ErrorContains(t, err, "cut short")
}

// After RoundTrip has returned the request is its caller's again, though the work may go on: neither a flight nor an
// attempt that was left behind may look at it. The race detector tells.
func TestWire_TheRequestIsTheCallersAgain(t *testing.T) {
	for name, wrap := range map[string]func(t *testing.T, rt http.RoundTripper) http.RoundTripper{
		"flight": func(t *testing.T, rt http.RoundTripper) http.RoundTripper {
			return newIdem(t, IdempotencyConfig{}).Wrap(rt)
		},
		"attempt left behind": func(t *testing.T, rt http.RoundTripper) http.RoundTripper {
			return newTime(t, TimeoutConfig{Request: time.Second}).Wrap(rt)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				seen := make(chan string, 1)
				rt := wrap(t, RoundTripFunc(func(req *http.Request) (*http.Response, error) {
					time.Sleep(time.Minute) // whatever its context says
					seen <- req.Header.Get("X-Tag") + req.URL.Path
					return reply(200, "late"), nil
				}))
				ctx, cancel := context.WithTimeout(WithIdempotencyKey(t.Context(), "k"), 2*time.Second)
				defer cancel()
				req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://api.test/a", nil)
				require.NoError(t, err)
				req.Header.Set("X-Tag", "mine")
				_, err = rt.RoundTrip(req) //nolint:bodyclose // there is none
				require.Error(t, err)
				req.Header.Set("X-Tag", "another's")
				req.URL.Path = "/b"
				require.Equal(t, "mine/a", <-seen)
			})
		})
	}
}

func TestWire_TheLargestBoundsOfBodies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Timeout: TimeoutConfig{MaxRequestBytes: math.MaxInt64, MaxResponseBytes: math.MaxInt64}})
		var got string
		rt := s.Wrap(RoundTripFunc(func(r *http.Request) (*http.Response, error) {
			b, _ := io.ReadAll(r.Body)
			got = string(b)
			return reply(200, `{"a":1}`), nil
		}))
		resp, err := postCall(t.Context(), rt, dialBody)
		require.NoError(t, err)
		b, _ := io.ReadAll(resp.Body)
		t.Logf("request %q response %q", got, b)
		require.Equal(t, dialBody, got)
		require.Equal(t, `{"a":1}`, string(b))
		closeStack(t, s)
	})
}

func TestWire_NoBodyOfUnknownLengthIsNone(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	t.Cleanup(srv.Close)
	for _, rt := range []http.RoundTripper{http.DefaultTransport, newStack(t, Config{}).Wrap(nil)} {
		req, _ := http.NewRequest("POST", srv.URL, http.NoBody)
		req.ContentLength = -1
		_, err := rt.RoundTrip(req)
		require.NoError(t, err)
	}
}

// A body that is too large to keep goes out as the caller announced it: many servers take no upload without a length.
func TestWire_ALargeBodyKeepsItsAnnouncedLength(t *testing.T) {
	for announced, want := range map[int64]int64{16: 16, 0: -1, -1: -1} {
		synctest.Test(t, func(t *testing.T) {
			s := newStack(t, Config{Timeout: TimeoutConfig{MaxRequestBytes: 4}})
			rt := s.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
				require.Equal(t, want, req.ContentLength)
				text, err := io.ReadAll(req.Body)
				require.NoError(t, err)
				require.Len(t, text, 16)
				return reply(200, "{}"), nil
			}))
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://api.test/x", strings.NewReader("sixteen letters!"))
			require.NoError(t, err)
			req.ContentLength = announced
			_, err = rt.RoundTrip(req)
			require.NoError(t, err)
			closeStack(t, s)
		})
	}
}

// A body that is shorter or longer than announced is not sent as if it were whole.
func TestWire_ABodyOfAnotherLengthThanAnnouncedIsRefused(t *testing.T) {
	for _, announced := range []int64{100, 5} {
		for _, body := range []io.ReadCloser{nil, io.NopCloser(strings.NewReader("ten letter"))} {
			synctest.Test(t, func(t *testing.T) {
				s := newStack(t, Config{})
				rt := s.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) { return reply(200, "{}"), nil }))
				req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://api.test/x", body)
				require.NoError(t, err)
				req.ContentLength = announced
				_, err = rt.RoundTrip(req)
				require.Error(t, err, "net/http's transport says so, too")
				require.True(t, NotSent(err))
				closeStack(t, s)
			})
		}
	}
}

// A trailer that net/http would send is sent.
func TestWire_TheTrailerOfARequestGoesOut(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		_, _ = io.Copy(io.Discard, req.Body)
		w.Header().Set("Saw", req.Trailer.Get("Digest"))
	}))
	defer server.Close()
	s := newStack(t, Config{})
	for _, method := range []string{http.MethodPut, http.MethodPost} {
		req, err := http.NewRequestWithContext(t.Context(), method, server.URL, io.MultiReader(strings.NewReader("text")))
		require.NoError(t, err)
		req.Trailer = http.Header{"Digest": {"abc"}}
		resp, err := s.Wrap(nil).RoundTrip(req)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Equal(t, "abc", resp.Header.Get("Saw"))
	}
	closeStack(t, s)
}

// The body of a request that is too large to keep is not closed while its answer streams: a server may answer while it reads.
func TestWire_AnUploadGoesOnWhileItsAnswerStreams(t *testing.T) {
	onEitherGoroutine(t, func(t *testing.T, cooperative bool) {
		s := newStack(t, Config{Timeout: TimeoutConfig{MaxRequestBytes: 4, Cooperative: cooperative}})
		rt := s.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			events, answer := io.Pipe()
			go func() {
				text, err := io.ReadAll(req.Body)
				_ = req.Body.Close()
				_, _ = fmt.Fprint(answer, "data: ", len(text), err)
				_ = answer.Close()
			}()
			resp := reply(200, "", "Content-Type", "text/event-stream")
			resp.Body = events
			return resp, nil
		}))
		upload, more := io.Pipe()
		go func() {
			_, _ = io.WriteString(more, "first")
			time.Sleep(time.Second)
			_, _ = io.WriteString(more, "second")
			_ = more.Close()
		}()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://api.test/x", upload)
		require.NoError(t, err)
		resp, err := rt.RoundTrip(req)
		require.NoError(t, err)
		text, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.Equal(t, "data: 11 <nil>", string(text))
		_, err = upload.Read(nil)
		require.ErrorIs(t, err, io.ErrClosedPipe, "it is closed in the end")
		closeStack(t, s)
	})
}

// A body that does not come holds its caller no longer than their time lasts.
func TestWire_ABodyThatDoesNotComeHoldsNobody(t *testing.T) {
	for name, c := range map[string]struct {
		client http.Client
		limit  func(context.Context) (context.Context, context.CancelFunc)
		why    error
	}{
		"budget": {why: ErrTimeout, limit: func(ctx context.Context) (context.Context, context.CancelFunc) {
			return WithBudget(ctx, time.Second), func() {}
		}},
		"deadline": {why: context.DeadlineExceeded, limit: func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, time.Second)
		}},
		"cancel": {why: context.Canceled, limit: func(ctx context.Context) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(ctx)
			time.AfterFunc(time.Second, cancel)
			return ctx, cancel
		}},
		"client": {why: context.DeadlineExceeded, client: http.Client{Timeout: time.Second}, limit: context.WithCancel},
	} {
		for _, method := range []string{http.MethodPost, http.MethodPut} {
			t.Run(name+" "+method, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := newStack(t, Config{})
					c.client.Transport = s.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) { return reply(200, "{}"), nil }))
					ctx, cancel := c.limit(t.Context())
					defer cancel()
					body, _ := io.Pipe()
					req, err := http.NewRequestWithContext(ctx, method, "http://api.test/x", body)
					require.NoError(t, err)
					began := time.Now()
					_, err = c.client.Do(req)
					require.ErrorIs(t, err, c.why)
					if name != "client" { // which erases it, if it is late
						require.True(t, NotSent(err))
					}
					require.LessOrEqual(t, time.Since(began), time.Second)
					synctest.Wait()
					_, err = body.Read(nil)
					require.ErrorIs(t, err, io.ErrClosedPipe)
					closeStack(t, s)
				})
			})
		}
	}
}

// The time that a body took is part of the budget, which is over when the answer is there.
func TestWire_ABodyThatComesSlowlyTakesFromTheBudget(t *testing.T) {
	for name, wrap := range map[string]func(*testing.T, http.RoundTripper) http.RoundTripper{
		"stack": func(t *testing.T, next http.RoundTripper) http.RoundTripper {
			s := newStack(t, Config{})
			t.Cleanup(func() { closeStack(t, s) })
			return s.Wrap(next)
		},
		"budget alone": func(t *testing.T, next http.RoundTripper) http.RoundTripper {
			return newTime(t, TimeoutConfig{}).Budget().Wrap(next)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, err := uploadSlowly(t, wrap(t, slow(time.Hour)))
				require.ErrorIs(t, err, context.DeadlineExceeded)

				events, more := io.Pipe()
				resp, err := uploadSlowly(t, wrap(t, RoundTripFunc(func(req *http.Request) (*http.Response, error) {
					context.AfterFunc(req.Context(), func() { _ = more.CloseWithError(context.Cause(req.Context())) })
					resp := reply(200, "", "Content-Type", "text/event-stream")
					resp.Body = events
					return resp, nil
				})))
				require.NoError(t, err)
				time.AfterFunc(time.Minute, func() { _, _ = io.WriteString(more, "data: late"); _ = more.Close() })
				text, err := io.ReadAll(resp.Body)
				require.NoError(t, err)
				require.Equal(t, "data: late", string(text))
			})
		})
	}
}

// uploadSlowly sends a body that takes two seconds to come, with a budget of three.
func uploadSlowly(t *testing.T, rt http.RoundTripper) (*http.Response, error) {
	t.Helper()
	body, w := io.Pipe()
	time.AfterFunc(2*time.Second, func() { _, _ = io.WriteString(w, "text"); _ = w.Close() })
	req, err := http.NewRequestWithContext(WithBudget(t.Context(), 3*time.Second), http.MethodPut, "http://api.test/x", body)
	require.NoError(t, err)
	began := time.Now()
	resp, err := rt.RoundTrip(req)
	require.Equal(t, err != nil, time.Since(began) == 3*time.Second)
	return resp, err
}

// A body whose Read panics or exits ends its caller's goroutine the same way, and nothing is sent.
func TestWire_ABodyThatPanicsIsTheCallers(t *testing.T) {
	for name, read := range map[string]func(){"panic": func() { panic("broken body") }, "goexit": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStack(t, Config{})
				rt := s.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
					t.Error("it was sent")
					return reply(200, "{}"), nil
				}))
				body := &endingBody{read: read}
				req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://api.test/x", body)
				require.NoError(t, err)
				var r result
				over := make(chan struct{})
				go capture(func() (*http.Response, error) { return rt.RoundTrip(req) }, func(end result) { r = end; close(over) })
				<-over
				require.Equal(t, name, r.cause())
				require.True(t, body.closed)
				closeStack(t, s)
			})
		})
	}
}

type endingBody struct {
	read   func()
	closed bool
}

func (b *endingBody) Read([]byte) (int, error) { b.read(); return 0, io.EOF }

func (b *endingBody) Close() error { b.closed = true; return nil }

// A transport that breaks its contract, and a function of the user's, may return an answer with their error.
func TestWire_AnAnswerBesideAnErrorIsClosed(t *testing.T) {
	for name, wrap := range map[string]func(next http.RoundTripper) http.RoundTripper{
		"transport": func(next http.RoundTripper) http.RoundTripper {
			return newTime(t, TimeoutConfig{}).Attempt().Wrap(next)
		},
		"fallback": func(next http.RoundTripper) http.RoundTripper {
			f, err := NewFallback(FallbackConfig{Func: func(req *http.Request, _ error) (*http.Response, error) { return next.RoundTrip(req) }})
			require.NoError(t, err)
			return f.Wrap(failingWith(io.EOF))
		},
	} {
		t.Run(name, func(t *testing.T) {
			body := &endingBody{read: func() {}}
			_, err := fetch(t.Context(), t, wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
				resp := reply(200, "")
				resp.Body = body
				return resp, io.ErrUnexpectedEOF
			})))
			require.Error(t, err)
			require.True(t, body.closed)
		})
	}
}

// countedBody counts how often it is closed.
type countedBody struct {
	readerFunc
	closed  atomic.Int64
	onClose func() // nil: nothing
}

func (b *countedBody) Close() error {
	if b.closed.Add(1) == 1 && b.onClose != nil {
		b.onClose()
	}
	return nil
}

// However the reading of a body ends, the body is closed once: also one that is said to be in memory, and one that came
// back from a transport between two layers.
func TestEnter_ABodyWhoseReadDoesNotReturnIsClosedOnce(t *testing.T) {
	for name, end := range map[string]func(){"panic": func() { panic("read") }, "goexit": runtime.Goexit} {
		for _, where := range []string{"piped", "in memory", "behind a transport"} {
			t.Run(name+" "+where, func(t *testing.T) {
				b := &countedBody{readerFunc: func([]byte) (int, error) { end(); return 0, io.EOF }}
				req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://server.test/", b)
				require.NoError(t, err)
				rt := newTestBreaker(t, BreakerConfig{}).Wrap(answering(200))
				switch where {
				case "in memory":
					req.GetBody = func() (io.ReadCloser, error) { return http.NoBody, nil }
				case "behind a transport":
					inner := rt
					rt = newTestBreaker(t, BreakerConfig{}).Wrap(RoundTripFunc(func(out *http.Request) (*http.Response, error) {
						again := out.Clone(out.Context())
						again.Body = b
						return inner.RoundTrip(again)
					}))
					req.Body = http.NoBody
				}
				done := make(chan struct{})
				go func() {
					defer close(done)
					defer func() { _ = recover() }()
					_, _ = rt.RoundTrip(req)
					t.Error("it returned")
				}()
				<-done
				require.EqualValues(t, 1, b.closed.Load())
			})
		}
	}
}

// A body that does not come in time is closed once: to end its reading, and not again by the one who reads.
func TestEnter_ABodyThatComesTooLateIsClosedOnce(t *testing.T) {
	for name, end := range map[string]error{"end": io.EOF, "failure": io.ErrUnexpectedEOF} {
		for _, ends := range []bool{true, false} { // with Close
			synctest.Test(t, func(t *testing.T) {
				closed := make(chan struct{})
				b := &countedBody{}
				b.readerFunc = func([]byte) (int, error) {
					if ends {
						<-closed
					} else {
						time.Sleep(time.Hour)
					}
					return 0, end
				}
				b.onClose = func() { close(closed) }
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				req, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://server.test/", b)
				require.NoError(t, err)
				sent := false
				_, err = newTestBreaker(t, BreakerConfig{}).Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
					sent = true
					return ok(""), nil
				})).RoundTrip(req)
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.True(t, NotSent(err), name)
				time.Sleep(2 * time.Hour)
				require.False(t, sent)
				require.EqualValues(t, 1, b.closed.Load(), name)
			})
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

// A body that breaks off while it is read up front reaches the wire as one that breaks off, once, and never as a shorter one.
func TestBody_OneThatBreaksOffIsNeverSentAsAWholeOne(t *testing.T) {
	broken := errors.New("broken")
	s := newStack(t, Config{})
	sent := 0
	rt := s.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
		sent++
		defer req.Body.Close()
		got, err := io.ReadAll(req.Body)
		require.Equal(t, "begin", string(got))
		if err != nil {
			return nil, err
		}
		return &http.Response{StatusCode: 200, Body: http.NoBody, Request: req}, nil
	}))
	for _, method := range []string{"POST", "PUT"} {
		req, err := http.NewRequestWithContext(t.Context(), method, "http://retell.test/x",
			io.MultiReader(strings.NewReader("begin"), iotest.ErrReader(broken)))
		require.NoError(t, err)
		_, err = rt.RoundTrip(req) //nolint:bodyclose // there is none
		require.ErrorIs(t, err, broken)
	}
	require.Equal(t, 2, sent)
	closeStack(t, s)
}
