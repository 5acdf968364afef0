package resilience

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Who asks without a condition is not given the 304 of somebody who has the answer already.
func TestCorner_A304IsForWhoAskedWithACondition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, err := NewFallback(FallbackConfig{})
		require.NoError(t, err)
		var asked atomic.Int64
		rt := f.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			asked.Add(1)
			time.Sleep(time.Second)
			if req.Header.Get("If-None-Match") != "" {
				return reply(304, ""), nil
			}
			return reply(200, "whole"), nil
		}))
		read := func(status int, condition string) {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://api.test/get-agent/a", nil)
			require.NoError(t, err)
			if condition != "" {
				req.Header.Set("If-None-Match", condition)
			}
			resp, err := rt.RoundTrip(req)
			require.NoError(t, err)
			require.Equal(t, status, resp.StatusCode)
		}
		var all sync.WaitGroup
		all.Go(func() { read(304, `"1"`) })
		time.Sleep(time.Millisecond)
		all.Go(func() { read(304, `"1"`) })
		all.Go(func() { read(200, "") })
		all.Wait()
		require.EqualValues(t, 2, asked.Load(), "who asks the same still shares a call")
	})
}

// A read that shares the call of another is not over because the other had less time.
func TestCorner_AFollowerDoesNotRunOutOfTheLeadersTime(t *testing.T) {
	for name, c := range map[string]struct {
		takes  time.Duration
		leader func(context.Context) (context.Context, context.CancelFunc)
		crowd  func(t *testing.T, s *Stack, rt http.RoundTripper)
		why    error
	}{
		"its budget ends an attempt": {
			takes: 10 * time.Second,
			leader: func(ctx context.Context) (context.Context, context.CancelFunc) {
				return WithBudget(ctx, time.Second), func() {}
			},
			why: ErrTimeout,
		},
		"it has no time left for an attempt": {
			takes: 995 * time.Millisecond,
			leader: func(ctx context.Context) (context.Context, context.CancelFunc) {
				return context.WithTimeout(ctx, 999*time.Millisecond)
			},
			crowd: func(t *testing.T, _ *Stack, rt http.RoundTripper) { // has the one slot
				req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://api.test/other", nil)
				require.NoError(t, err)
				go func() { _, _ = rt.RoundTrip(req) }()
			},
			why: context.DeadlineExceeded,
		},
		"it cannot wait for the gate": {
			leader: func(ctx context.Context) (context.Context, context.CancelFunc) {
				return WithBudget(ctx, 3*time.Second), func() {}
			},
			crowd: func(_ *testing.T, s *Stack, _ http.RoundTripper) {
				s.Retry.gates.closeFor("GET", 2*time.Second, time.Now(), 0)
				s.Retry.gates.reserve("GET", time.Now().Add(2*time.Second), 0)
				time.AfterFunc(time.Second, func() { s.Retry.gates.closeFor("GET", 20*time.Second, time.Now(), 1) })
			},
			why: ErrThrottled,
		},
	} {
		t.Run(name, func(t *testing.T) {
			onEitherGoroutine(t, func(t *testing.T, cooperative bool) {
				s := newStack(t, Config{Timeout: TimeoutConfig{Cooperative: cooperative}, Bulkhead: BulkheadConfig{Total: 1}})
				rt := s.Wrap(slow(c.takes))
				if c.crowd != nil {
					c.crowd(t, s, rt)
					time.Sleep(time.Millisecond)
				}
				var leader sync.WaitGroup
				leader.Go(func() {
					ctx, cancel := c.leader(t.Context())
					defer cancel()
					_, err := fetch(ctx, t, rt)
					require.ErrorIs(t, err, c.why)
				})
				time.Sleep(time.Millisecond)
				resp, err := fetch(WithBudget(t.Context(), 50*time.Second), t, rt)
				require.NoError(t, err)
				require.Equal(t, 200, resp.StatusCode)
				leader.Wait()
				closeStack(t, s)
			})
		})
	}
}

// An answer without a body is over when it is there, though a stream was announced: there is nothing to close, and a slot
// must not wait for that.
func TestCorner_AnnouncedStreamWithoutABodyIsOver(t *testing.T) {
	for name, none := range map[string]io.ReadCloser{"nil": nil, "NoBody": http.NoBody} {
		for _, method := range []string{http.MethodHead, http.MethodPost} {
			t.Run(name+" "+method, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := newStack(t, Config{})
					rt := s.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
						return &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"text/event-stream"}}, Body: none}, nil
					}))
					req, err := http.NewRequestWithContext(t.Context(), method, "http://api.test/x", nil)
					require.NoError(t, err)
					resp, err := (&http.Client{Transport: rt}).Do(req)
					require.NoError(t, err)
					require.Zero(t, s.Stats().Bulkhead.InUse)
					require.NotPanics(t, func() { _ = resp.Body.Close() })
					closeStack(t, s)
				})
			})
		}
	}
}

// A body that is too large to keep goes out as the caller announced it: many servers take no upload without a length.
func TestCorner_ALargeBodyKeepsItsAnnouncedLength(t *testing.T) {
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
func TestCorner_ABodyOfAnotherLengthThanAnnouncedIsRefused(t *testing.T) {
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
func TestCorner_TheTrailerOfARequestGoesOut(t *testing.T) {
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
func TestCorner_AnUploadGoesOnWhileItsAnswerStreams(t *testing.T) {
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

// An operation for which there is no room for a gate waits as it was told, for itself.
func TestCorner_WithoutAGateRetryAfterIsObeyed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRe(t, RetryConfig{})
		for i := range maxGates {
			r.gates.closeFor(fmt.Sprint("operation ", i), time.Minute, time.Now(), 0)
		}
		began := time.Now()
		var starts []time.Duration
		rt := r.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			starts = append(starts, time.Since(began))
			return reply(429, "", "Retry-After", "5"), nil
		}))
		_, err := fetch(WithCall(t.Context(), Call{Operation: "one too many"}), t, rt)
		require.NoError(t, err)
		require.Equal(t, []time.Duration{0, 5 * time.Second, 10 * time.Second}, starts)
	})
}

// headerReconciler puts the key into a header, and makes the header where there is none.
type headerReconciler struct{}

func (headerReconciler) Mark(req *http.Request, key string) error {
	if req.Header == nil {
		req.Header = http.Header{}
	}
	req.Header.Set("X-Key", key)
	return nil
}

func (headerReconciler) Find(context.Context, Record) (Evidence, error) { return Evidence{}, nil }

// A request may come without any header, and Mark may set the first.
func TestCorner_MarkSetsTheFirstHeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Idempotency: IdempotencyConfig{Reconcile: headerReconciler{}}})
		rt := s.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			return reply(200, req.Header.Get("X-Key")), nil
		}))
		req, err := http.NewRequestWithContext(WithIdempotencyKey(t.Context(), "k"), http.MethodPost, "http://api.test/x", nil)
		require.NoError(t, err)
		req.Header = nil
		resp, err := rt.RoundTrip(req)
		require.NoError(t, err)
		text, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.Equal(t, "k", string(text))
		closeStack(t, s)
	})
}

// A request to another host behind the same address is another request.
func TestCorner_AKeyIsReusedForAnotherHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{})
		rt := s.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) { return reply(200, req.Host), nil }))
		send := func(host string) error {
			req, err := http.NewRequestWithContext(WithIdempotencyKey(t.Context(), "k"), http.MethodPost, "http://gateway.test/x", nil)
			require.NoError(t, err)
			req.Host = host
			_, err = rt.RoundTrip(req)
			return err
		}
		require.NoError(t, send("a.test"))
		require.NoError(t, send("a.test"))
		require.ErrorIs(t, send("b.test"), ErrKeyReused)
		require.ErrorIs(t, send(""), ErrKeyReused)
		closeStack(t, s)
	})
}

// A piece of the user's between two layers may change the body of a request, and may hand on one that is too large to keep.
func TestCorner_APieceOfTheUsersHandsItsOwnBodyOn(t *testing.T) {
	upper := LayerFunc(func(next http.RoundTripper) http.RoundTripper {
		return RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			text, err := io.ReadAll(req.Body)
			if err != nil {
				return nil, err
			}
			_ = req.Body.Close()
			out := req.Clone(req.Context())
			out.Body = io.NopCloser(strings.NewReader(strings.ToUpper(string(text))))
			return next.RoundTrip(out)
		})
	})
	asItIs := LayerFunc(func(next http.RoundTripper) http.RoundTripper { return RoundTripFunc(next.RoundTrip) })
	twice := LayerFunc(func(next http.RoundTripper) http.RoundTripper {
		return RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			_, _ = next.RoundTrip(req)
			return next.RoundTrip(req)
		})
	})
	for name, c := range map[string]struct {
		piece Layer
		limit int64
		want  []string
		fails bool
	}{
		"changed":                {piece: upper, limit: 100, want: []string{"TEXT"}},
		"changed, large":         {piece: upper, limit: 2, want: []string{"TEXT"}},
		"as it is":               {piece: asItIs, limit: 100, want: []string{"text"}},
		"as it is, large":        {piece: asItIs, limit: 2, want: []string{"text"}},
		"as it is, twice":        {piece: twice, limit: 100, want: []string{"text", "text"}},
		"as it is, large, twice": {piece: twice, limit: 2, want: []string{"text"}, fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				to := newTime(t, TimeoutConfig{MaxRequestBytes: c.limit})
				var got []string
				rt := Chain(to.Budget(), c.piece, to.Attempt()).Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
					text, err := io.ReadAll(req.Body)
					require.NoError(t, err)
					got = append(got, string(text))
					return reply(200, "{}"), nil
				}))
				req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://api.test/x", strings.NewReader("text"))
				require.NoError(t, err)
				_, err = rt.RoundTrip(req)
				require.Equal(t, c.fails, err != nil, "%v", err)
				require.False(t, NotSent(err), "it was sent once")
				require.Equal(t, c.want, got)
			})
		})
	}
}

// What such a piece changes belongs to the same flight: its key is in doubt when the answer is lost, and it is not sent again.
func TestCorner_APieceOfTheUsersBetweenTheDoorsOfAKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIdem(t, IdempotencyConfig{})
		piece := LayerFunc(func(next http.RoundTripper) http.RoundTripper {
			return RoundTripFunc(func(req *http.Request) (*http.Response, error) {
				_ = req.Body.Close()
				out := req.Clone(req.Context())
				out.Body = io.NopCloser(strings.NewReader("changed"))
				return next.RoundTrip(out)
			})
		})
		p := &phone{answer: lostAnswer}
		rt := Chain(i.Claim(), piece, i.Intent()).Wrap(p)
		for range 2 {
			_, err := dial(t.Context(), t, rt, "k", dialBody)
			require.ErrorIs(t, err, ErrInDoubt)
		}
		require.Equal(t, map[string]int{"changed": 1}, p.rings)
	})
}

// A body that does not come holds its caller no longer than their time lasts.
func TestCorner_ABodyThatDoesNotComeHoldsNobody(t *testing.T) {
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
func TestCorner_ABodyThatComesSlowlyTakesFromTheBudget(t *testing.T) {
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
func TestCorner_ABodyThatPanicsIsTheCallers(t *testing.T) {
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
func (b *endingBody) Close() error             { b.closed = true; return nil }

// net/http sends a GET again by itself when a connection that was used before breaks. That the dial for the second send
// fails proves nothing about the first, which the server may have read.
func TestCorner_AFailedDialProvesNothingAboutAnEarlierSend(t *testing.T) {
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

// A transport that breaks its contract, and a function of the user's, may return an answer with their error.
func TestCorner_AnAnswerBesideAnErrorIsClosed(t *testing.T) {
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

// An answer that is too large is so the next time, too.
func TestCorner_ATooLargeAnswerIsNotAskedForAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Timeout: TimeoutConfig{MaxResponseBytes: 4}})
		sent := 0
		_, err := fetch(t.Context(), t, s.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			sent++
			return reply(200, "much too large"), nil
		})))
		require.ErrorIs(t, err, ErrTooLarge)
		require.Equal(t, 1, sent)
		closeStack(t, s)
	})
}
