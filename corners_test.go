package resilience

import (
	"bufio"
	"context"
	"errors"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func cornerPost(ctx context.Context, rt http.RoundTripper, body string) (*http.Response, error) {
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	req, _ := http.NewRequestWithContext(ctx, http.MethodPost, "http://api.test/v2/create-phone-call", r)
	return rt.RoundTrip(req)
}

// S42
func TestCorner_UnnamedKeyToldInDoubtIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{})
		p := &phone{answer: func(*http.Request, int) (*http.Response, error) {
			time.Sleep(10 * time.Second)
			return reply(201, `{"call_id":"c"}`), nil
		}}
		rt := s.Wrap(p)
		_, err := cornerPost(WithBudget(t.Context(), 5*time.Second), rt, dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		var e *Error
		require.ErrorAs(t, err, &e)
		key := e.Key
		require.NotEmpty(t, key)
		time.Sleep(10 * time.Second) // the answer has come
		synctest.Wait()
		rec, _ := s.Idempotency.Lookup(t.Context(), key)
		t.Log(rec.State, time.Until(rec.Expires))
		_, err = cornerPost(WithIdempotencyKey(t.Context(), key), rt, dialBody)
		t.Log(err)
		require.Equal(t, 1, p.rang())
		closeStack(t, s)
	})
}

// S13
func TestCorner_GateRunsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Fallback: FallbackConfig{Off: true}})
		var n atomic.Int64
		rt := s.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			if n.Add(1) == 1 {
				return reply(429, "", "Retry-After", "30"), nil
			}
			return reply(200, "{}"), nil
		}))
		ok := 0
		for i := range 30000 { // 5 minutes at 100/s
			req, _ := http.NewRequestWithContext(WithBudget(t.Context(), 2*time.Second), http.MethodGet, "http://api.test/x", nil)
			if i > 0 && i%10 == 0 {
				synctest.Wait()
			}
			resp, err := rt.RoundTrip(req)
			if err == nil && resp.StatusCode == 200 {
				ok++
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Log("served", ok, "sent", n.Load(), s.Retry.Stats())
		require.Greater(t, ok, 10000)
		closeStack(t, s)
	})
}

// S25: the documented net/http idiom
func cornerDyingServer(t *testing.T) (url string, seen *atomic.Int64) {
	seen = &atomic.Int64{}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				r := bufio.NewReader(c)
				for i := 0; ; i++ {
					req, err := http.ReadRequest(r)
					if err != nil {
						return
					}
					io.Copy(io.Discard, req.Body)
					if req.Method == http.MethodPost {
						seen.Add(1)
						return // rang, answer lost
					}
					io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
				}
			}()
		}
	}()
	return "http://" + l.Addr().String(), seen
}

func TestCorner_EmptyIdempotencyHeader(t *testing.T) {
	for _, body := range []string{dialBody, ""} {
		t.Run("body="+body, func(t *testing.T) {
			url, seen := cornerDyingServer(t)
			s := newStack(t, Config{Fallback: FallbackConfig{Off: true}, DLQ: DLQConfig{Off: true}})
			c := &http.Client{Transport: s.Wrap(nil)}
			for range 3 {
				resp, err := c.Get(url)
				require.NoError(t, err)
				io.Copy(io.Discard, resp.Body)
			}
			var r io.Reader
			if body != "" {
				r = strings.NewReader(body)
			}
			req, _ := http.NewRequestWithContext(WithIdempotencyKey(t.Context(), "k"), http.MethodPost, url, r)
			req.Header["X-Idempotency-Key"] = nil
			_, err := c.Do(req)
			t.Log(err, "notsent", NotSent(err), "indoubt", InDoubt(err))
			require.Equal(t, int64(1), seen.Load())
			closeStack(t, s)
		})
	}
}

type cornerHeaderMark struct{}

func (cornerHeaderMark) Mark(r *http.Request, key string) error {
	r.Header.Set("Idempotency-Key", key)
	return nil
}
func (cornerHeaderMark) Find(context.Context, Record) (Evidence, error) { return Evidence{}, nil }

func TestCorner_MarkSetsHeader(t *testing.T) {
	url, seen := cornerDyingServer(t)
	s := newStack(t, Config{Fallback: FallbackConfig{Off: true}, DLQ: DLQConfig{Off: true}, Idempotency: IdempotencyConfig{Reconcile: cornerHeaderMark{}}})
	c := &http.Client{Transport: s.Wrap(nil)}
	resp, err := c.Get(url)
	require.NoError(t, err)
	io.Copy(io.Discard, resp.Body)
	req, _ := http.NewRequestWithContext(WithIdempotencyKey(t.Context(), "k"), http.MethodPost, url, strings.NewReader(dialBody))
	_, err = c.Do(req)
	t.Log(err, "notsent", NotSent(err), "indoubt", InDoubt(err))
	require.Equal(t, int64(1), seen.Load())
	closeStack(t, s)
}

// S4
func cornerSSE(t *testing.T) *httptest.Server {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for range 3 {
			io.WriteString(w, "data: x\n\n")
			w.(http.Flusher).Flush()
			time.Sleep(50 * time.Millisecond)
		}
		if r.URL.Path == "/hang" {
			<-r.Context().Done()
		}
	}))
	t.Cleanup(srv.Close)
	return srv
}

func TestCorner_StreamThroughClientTimeout(t *testing.T) {
	srv := cornerSSE(t)
	for _, m := range []string{"GET", "PUT", "POST"} {
		t.Run(m, func(t *testing.T) {
			s := newStack(t, Config{})
			c := &http.Client{Transport: s.Wrap(nil), Timeout: 10 * time.Second}
			req, _ := http.NewRequest(m, srv.URL, nil)
			resp, err := c.Do(req)
			require.NoError(t, err)
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			require.NoError(t, err)
			require.Equal(t, 3, strings.Count(string(b), "data"))
			require.Zero(t, s.Bulkhead.Stats().InUse)
			closeStack(t, s)
		})
	}
}

func TestCorner_StreamCallerCancels(t *testing.T) {
	for _, m := range []string{"GET", "PUT", "POST"} {
		t.Run(m, func(t *testing.T) {
			srv := cornerSSE(t)
			s := newStack(t, Config{})
			c := &http.Client{Transport: s.Wrap(nil)}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			req, _ := http.NewRequestWithContext(ctx, m, srv.URL+"/hang", nil)
			resp, err := c.Do(req)
			require.NoError(t, err)
			time.AfterFunc(300*time.Millisecond, cancel)
			done := make(chan error, 1)
			go func() { _, err := io.ReadAll(resp.Body); done <- err }()
			select {
			case err := <-done:
				require.Error(t, err)
			case <-time.After(3 * time.Second):
				resp.Body.Close()
				<-done
				t.Fatal("Read hangs though the caller cancelled")
			}
			resp.Body.Close()
			closeStack(t, s)
		})
	}
}

// S64
func TestCorner_StreamNobodyTakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{})
		var closed atomic.Bool
		rt := s.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			time.Sleep(5 * time.Second)
			r := reply(200, "data: x\n\n", "Content-Type", "text/event-stream")
			r.Body = cornerCloser{r.Body, &closed}
			return r, nil
		}))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := cornerPost(WithIdempotencyKey(ctx, "k"), rt, dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		time.Sleep(time.Hour)
		synctest.Wait()
		require.Zero(t, s.Bulkhead.Stats().InUse, "slot held for ever")
		require.True(t, closed.Load())
		closeStack(t, s)
	})
}

type cornerCloser struct {
	io.ReadCloser
	c *atomic.Bool
}

func (c cornerCloser) Close() error { c.c.Store(true); return c.ReadCloser.Close() }

// lingering read whose late answer is a stream / not closed
func TestCorner_LateStreamOfARead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Retry: RetryConfig{Off: true}, Fallback: FallbackConfig{Off: true}})
		var closed atomic.Bool
		rt := s.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			time.Sleep(5 * time.Second)
			r := reply(200, "data: x\n\n", "Content-Type", "text/event-stream")
			r.Body = cornerCloser{r.Body, &closed}
			return r, nil
		}))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		req, _ := http.NewRequestWithContext(ctx, "GET", "http://api.test/x", nil)
		_, err := rt.RoundTrip(req)
		require.Error(t, err)
		time.Sleep(time.Hour)
		synctest.Wait()
		require.True(t, closed.Load())
		closeStack(t, s)
	})
}

// S19
func TestCorner_101(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, _, _ := w.(http.Hijacker).Hijack()
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
		io.Copy(c, c)
		c.Close()
	}))
	t.Cleanup(srv.Close)
	s := newStack(t, Config{})
	req, _ := http.NewRequest("GET", srv.URL, nil)
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "x")
	resp, err := s.Wrap(nil).RoundTrip(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	_, ok := resp.Body.(io.ReadWriteCloser)
	require.True(t, ok, "%T", resp.Body)
}

// S6: foreign retry between the doors
func TestCorner_ForeignRetryBetweenDoors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, err := NewIdempotency(IdempotencyConfig{})
		require.NoError(t, err)
		p := &phone{answer: lostAnswer}
		again := LayerFunc(func(next http.RoundTripper) http.RoundTripper {
			return RoundTripFunc(func(r *http.Request) (*http.Response, error) {
				for n := 0; ; n++ {
					resp, err := next.RoundTrip(r)
					if err == nil || n == 2 {
						return resp, err
					}
				}
			})
		})
		_, err = cornerPost(WithIdempotencyKey(t.Context(), "k"), Chain(i.Claim(), again, i.Intent()).Wrap(p), dialBody)
		t.Log(err)
		require.Equal(t, 1, p.rang())
	})
}

// A foreign layer that sends twice at once, to take the quicker answer, gets one of the two refused: the call is sent once.
func TestCorner_ForeignHedgeBetweenDoors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, err := NewIdempotency(IdempotencyConfig{})
		require.NoError(t, err)
		p := &phone{answer: func(*http.Request, int) (*http.Response, error) {
			time.Sleep(time.Second)
			return reply(201, `{"call_id":"call_1"}`), nil
		}}
		refusals := make(chan error, 2)
		hedge := LayerFunc(func(next http.RoundTripper) http.RoundTripper {
			return RoundTripFunc(func(r *http.Request) (*http.Response, error) {
				answers := make(chan *http.Response, 2)
				for range 2 {
					go func() {
						resp, err := next.RoundTrip(r) //nolint:bodyclose // the caller does
						if err != nil {
							refusals <- err
							return
						}
						answers <- resp
					}()
				}
				return <-answers, nil
			})
		})
		resp, err := cornerPost(WithIdempotencyKey(t.Context(), "k"), Chain(i.Claim(), hedge, i.Intent()).Wrap(p), dialBody)
		require.NoError(t, err)
		require.Equal(t, 201, resp.StatusCode)
		require.Equal(t, 1, p.rang())
		err = <-refusals
		require.True(t, NotSent(err), "%v", err)
		require.Equal(t, KeyConfirmed, stateOf(t, i, "k"))
	})
}

// S12
func TestCorner_FalseNotSentAfter408(t *testing.T) {
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

// S5
func TestCorner_MaxInt64Bodies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Timeout: TimeoutConfig{MaxRequestBytes: math.MaxInt64, MaxResponseBytes: math.MaxInt64}})
		var got string
		rt := s.Wrap(RoundTripFunc(func(r *http.Request) (*http.Response, error) {
			b, _ := io.ReadAll(r.Body)
			got = string(b)
			return reply(200, `{"a":1}`), nil
		}))
		resp, err := cornerPost(t.Context(), rt, dialBody)
		require.NoError(t, err)
		b, _ := io.ReadAll(resp.Body)
		t.Logf("request %q response %q", got, b)
		require.Equal(t, dialBody, got)
		require.Equal(t, `{"a":1}`, string(b))
		closeStack(t, s)
	})
}

func TestCorner_NoBodyMinusOne(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	t.Cleanup(srv.Close)
	for _, rt := range []http.RoundTripper{http.DefaultTransport, newStack(t, Config{}).Wrap(nil)} {
		req, _ := http.NewRequest("POST", srv.URL, http.NoBody)
		req.ContentLength = -1
		_, err := rt.RoundTrip(req)
		require.NoError(t, err)
	}
}

// S49
type cornerStore struct {
	KeyStore
	noCAS, noLoad atomic.Bool
	lostAck       func(Record) bool
}

func (s *cornerStore) Load(ctx context.Context, id string) (Record, error) {
	if s.noLoad.Load() {
		return Record{}, errors.New("load")
	}
	return s.KeyStore.Load(ctx, id)
}

func (s *cornerStore) CompareAndSwap(ctx context.Context, old uint64, r Record) (uint64, bool, error) {
	if s.noCAS.Load() {
		return 0, false, errors.New("cas")
	}
	v, ok, err := s.KeyStore.CompareAndSwap(ctx, old, r)
	if s.lostAck != nil && s.lostAck(r) {
		return 0, false, errors.New("ack lost")
	}
	return v, ok, err
}

type cornerFind struct{ n atomic.Int64 }

func (*cornerFind) Mark(*http.Request, string) error { return nil }
func (f *cornerFind) Find(context.Context, Record) (Evidence, error) {
	f.n.Add(1)
	return Evidence{}, nil
}
func (*cornerFind) HonorsKey(string) time.Duration { return 55 * time.Minute }

func TestCorner_LookupHotLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := &cornerStore{KeyStore: NewMemoryStore(0)}
		f := &cornerFind{}
		s := newStack(t, Config{DLQ: DLQConfig{Off: true}, Idempotency: IdempotencyConfig{Store: st, Reconcile: f}})
		_, err := cornerPost(WithIdempotencyKey(t.Context(), "k"), s.Wrap(&phone{answer: lostAnswer}), dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		st.noCAS.Store(true)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		require.NoError(t, s.Run(ctx))
		t.Log("lookups in 10 s:", f.n.Load())
		require.Less(t, f.n.Load(), int64(20))
		closeStack(t, s)
	})
}

// S54
func TestCorner_RefusedResendIsNotNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &cornerFind{}
		s := newStack(t, Config{DLQ: DLQConfig{Off: true}, Idempotency: IdempotencyConfig{Reconcile: f, ServerKeys: ServerKeysTrust}})
		rt := s.Wrap(&phone{answer: lostAnswer})
		_, err := cornerPost(WithIdempotencyKey(t.Context(), "k"), rt, dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		s.Breaker.ForceOpen()
		_, err = cornerPost(WithIdempotencyKey(t.Context(), "k"), rt, dialBody)
		t.Log(err, NotSent(err), InDoubt(err))
		require.False(t, NotSent(err))
		closeStack(t, s)
	})
}

// lost ack of intent
func TestCorner_LostAckOfIntent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lose := true
		st := &cornerStore{KeyStore: NewMemoryStore(0)}
		st.lostAck = func(r Record) bool { l := lose && r.State == KeySending; lose = lose && !l; return l }
		s := newStack(t, Config{DLQ: DLQConfig{Off: true}, Idempotency: IdempotencyConfig{Store: st}})
		p := &phone{}
		rt := s.Wrap(p)
		_, err := cornerPost(WithIdempotencyKey(t.Context(), "k"), rt, dialBody)
		require.ErrorIs(t, err, ErrStore)
		require.True(t, NotSent(err))
		require.Zero(t, p.sends)
		rec, _ := s.Idempotency.Lookup(t.Context(), "k")
		t.Log(rec.State)
		time.Sleep(10 * time.Minute)
		_, err = cornerPost(WithIdempotencyKey(t.Context(), "k"), rt, dialBody)
		require.NoError(t, err, "nothing was ever sent")
		closeStack(t, s)
	})
}

// late answer with a failing store
func TestCorner_LateAnswerStoreDownLookupSaysFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := &cornerStore{KeyStore: NewMemoryStore(0)}
		s := newStack(t, Config{DLQ: DLQConfig{Off: true}, Idempotency: IdempotencyConfig{Store: st}})
		rt := s.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			time.Sleep(2 * time.Minute)
			return reply(201, `{"call_id":"c"}`), nil
		}))
		_, err := cornerPost(WithIdempotencyKey(t.Context(), "k"), rt, dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		st.noLoad.Store(true)
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		rec, err := s.Idempotency.Lookup(t.Context(), "k")
		t.Log(rec.State, rec.ID, err)
		require.False(t, err == nil && rec.State == KeyFree)
		closeStack(t, s)
	})
}

// own claim released by own Run
func TestCorner_OwnLeaseReleasedByOwnRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{DLQ: DLQConfig{Off: true}, Bulkhead: BulkheadConfig{Total: 1}})
		p := &phone{}
		rt := s.Wrap(p)
		ctx, cancel := context.WithCancel(t.Context())
		go s.Run(ctx)
		release, err := s.Bulkhead.Acquire(t.Context(), PriorityNormal)
		require.NoError(t, err)
		time.AfterFunc(2*time.Minute, release)
		_, err = cornerPost(WithIdempotencyKey(WithBudget(t.Context(), -1), "k"), rt, dialBody)
		cancel()
		require.NoError(t, err)
		closeStack(t, s)
	})
}
