package resilience

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func slowEvents(t *testing.T) *httptest.Server {
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

func TestWire_StreamThroughClientTimeout(t *testing.T) {
	srv := slowEvents(t)
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

func TestWire_StreamCallerCancels(t *testing.T) {
	for _, m := range []string{"GET", "PUT", "POST"} {
		t.Run(m, func(t *testing.T) {
			srv := slowEvents(t)
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

func TestWire_AStreamThatNobodyTakesIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{})
		var closed atomic.Bool
		rt := s.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			time.Sleep(5 * time.Second)
			r := reply(200, "data: x\n\n", "Content-Type", "text/event-stream")
			r.Body = flaggedBody{r.Body, &closed}
			return r, nil
		}))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := postCall(WithIdempotencyKey(ctx, "k"), rt, dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		time.Sleep(time.Hour)
		synctest.Wait()
		require.Zero(t, s.Bulkhead.Stats().InUse, "slot held for ever")
		require.True(t, closed.Load())
		closeStack(t, s)
	})
}

type flaggedBody struct {
	io.ReadCloser
	c *atomic.Bool
}

func (c flaggedBody) Close() error { c.c.Store(true); return c.ReadCloser.Close() }

// A read that was given up is answered with a stream in the end.
func TestWire_AStreamThatComesTooLateIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Retry: RetryConfig{Off: true}, Fallback: FallbackConfig{Off: true}})
		var closed atomic.Bool
		rt := s.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			time.Sleep(5 * time.Second)
			r := reply(200, "data: x\n\n", "Content-Type", "text/event-stream")
			r.Body = flaggedBody{r.Body, &closed}
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

func TestWire_SwitchingProtocols(t *testing.T) {
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

// An answer without a body is over when it is there, though a stream was announced: there is nothing to close, and a slot
// must not wait for that.
func TestWire_AnnouncedStreamWithoutABodyIsOver(t *testing.T) {
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

func TestStack_AStreamOutlivesRoundTripUnderAClientTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{})
		rt := s.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			pr, pw := io.Pipe()
			go func() {
				for range 3 {
					_, _ = io.WriteString(pw, "data: x\n\n")
					time.Sleep(time.Second)
				}
				_ = pw.Close()
			}()
			context.AfterFunc(req.Context(), func() { _ = pw.CloseWithError(context.Cause(req.Context())) })
			resp := reply(200, "", "Content-Type", "text/event-stream")
			resp.Body, resp.ContentLength = pr, -1
			return resp, nil
		}))
		resp, err := (&http.Client{Transport: rt, Timeout: time.Minute}).Get("http://api.test/stream")
		require.NoError(t, err)
		require.Equal(t, 1, s.Stats().Bulkhead.InUse, "a stream holds its slot")
		b, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.Len(t, b, 3*len("data: x\n\n"))
		require.NoError(t, resp.Body.Close())
		require.Zero(t, s.Stats().Bulkhead.InUse)
		time.Sleep(2 * time.Second)
		closeStack(t, s)
	})
}
