package resilience

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
)

// Bodies that are too large to be held.
func TestIdempotency_LargeBodiesThatDiffer(t *testing.T) {
	s := newStack(t, Config{Timeout: TimeoutConfig{MaxRequestBytes: 1024}})
	p := &phone{}
	rt := s.Wrap(p)
	long := strings.Repeat("x", 10<<10)
	_, err := dial(t.Context(), t, rt, "k", long+"A")
	require.NoError(t, err)
	_, err = dial(t.Context(), t, rt, "k", long+"B")
	closeStack(t, s)
	require.ErrorIs(t, err, ErrKeyReused, "it is another request")
}

// dyingServer loses the connection when the first POST has come: net/http sends what it thinks may be repeated again by itself.
func dyingServer(t *testing.T) (url string, seen *atomic.Int64) {
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

func TestIdempotency_AnEmptyHeaderDoesNotMakeNetHTTPSendAgain(t *testing.T) {
	for _, body := range []string{dialBody, ""} {
		t.Run("body="+body, func(t *testing.T) {
			url, seen := dyingServer(t)
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
			require.ErrorIs(t, err, ErrInDoubt)
			require.Equal(t, int64(1), seen.Load())
			closeStack(t, s)
		})
	}
}

type headerMark struct{}

func (headerMark) Mark(r *http.Request, key string) error {
	r.Header.Set("Idempotency-Key", key)
	return nil
}

func (headerMark) Find(context.Context, Record) (Evidence, error) { return Evidence{}, nil }

func TestIdempotency_AHeaderThatMarkSetsDoesNotMakeNetHTTPSendAgain(t *testing.T) {
	url, seen := dyingServer(t)
	s := newStack(t, Config{Fallback: FallbackConfig{Off: true}, DLQ: DLQConfig{Off: true}, Idempotency: IdempotencyConfig{Reconcile: headerMark{}}})
	c := &http.Client{Transport: s.Wrap(nil)}
	resp, err := c.Get(url)
	require.NoError(t, err)
	io.Copy(io.Discard, resp.Body)
	req, _ := http.NewRequestWithContext(WithIdempotencyKey(t.Context(), "k"), http.MethodPost, url, strings.NewReader(dialBody))
	_, err = c.Do(req)
	require.ErrorIs(t, err, ErrInDoubt)
	require.Equal(t, int64(1), seen.Load())
	closeStack(t, s)
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
func TestIdempotency_MarkSetsTheFirstHeader(t *testing.T) {
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
func TestIdempotency_AKeyIsReusedForAnotherHost(t *testing.T) {
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

func TestEnter_WhatAKeyMayBe(t *testing.T) {
	i := newIdem(t, IdempotencyConfig{})
	for key, fine := range map[string]bool{
		strings.Repeat("k", 255): true, strings.Repeat("k", 256): false, "a b": true, "a\x7fb": false, "a\x1fb": false,
	} {
		_, err := dial(t.Context(), t, i.Wrap(&phone{}), key, dialBody)
		require.Equal(t, fine, err == nil, "%q: %v", key, err)
		if !fine {
			require.ErrorIs(t, err, ErrBadKey)
			require.True(t, NotSent(err))
		}
	}
}

// A key in a header is the key of the call unless the context names one, and goes no further. One without a value is
// no key, and goes no further either.
func TestEnter_AKeyInAHeader(t *testing.T) {
	for name, c := range map[string]struct {
		header []string
		named  string
		want   string
	}{
		"header":   {[]string{"h"}, "", "h"},
		"context":  {[]string{"h"}, "c", "c"},
		"no value": {nil, "", ""},
	} {
		i := newIdem(t, IdempotencyConfig{})
		ctx := t.Context()
		if c.named != "" {
			ctx = WithIdempotencyKey(ctx, c.named)
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://server.test/", strings.NewReader("x"))
		require.NoError(t, err)
		req.Header["Idempotency-Key"] = c.header
		_, err = i.Wrap(RoundTripFunc(func(out *http.Request) (*http.Response, error) {
			require.NotContains(t, out.Header, "Idempotency-Key", name)
			return nil, io.EOF
		})).RoundTrip(req)
		require.ErrorIs(t, err, ErrInDoubt, name)
		var e *Error
		require.ErrorAs(t, err, &e)
		if c.want != "" {
			require.Equal(t, c.want, e.Key, name)
		}
		require.NotEmpty(t, e.Key, name)
		require.Contains(t, req.Header, "Idempotency-Key", "the caller's request stays as it was")
	}
}

// markPanics is a reconciler whose Mark panics.
type markPanics struct{ finder }

func (*markPanics) Mark(*http.Request, string) error { panic("mark") }

// markReads is one that needs the body.
type markReads struct {
	finder
	saw []string
}

func (m *markReads) Mark(r *http.Request, _ string) error {
	text := "none"
	if r.Body != nil {
		b, _ := io.ReadAll(r.Body)
		text = fmt.Sprint(r.ContentLength, string(b))
		r.Body = io.NopCloser(strings.NewReader(string(b) + "+marked"))
		r.ContentLength = int64(len(b) + 7)
	}
	m.saw = append(m.saw, text)
	return nil
}

func TestIdempotency_MarkGetsTheBodyAndMayPanic(t *testing.T) {
	p := &phone{}
	_, err := dial(t.Context(), t, newIdem(t, IdempotencyConfig{Reconcile: &markPanics{}}).Wrap(p), "k", dialBody)
	require.ErrorContains(t, err, "panic")
	require.True(t, NotSent(err))
	require.Zero(t, p.sends)
	m := &markReads{}
	rt := newIdem(t, IdempotencyConfig{Reconcile: m}).Wrap(p)
	_, err = dial(t.Context(), t, rt, "k", dialBody)
	require.NoError(t, err)
	require.Equal(t, []string{fmt.Sprint(len(dialBody), dialBody)}, m.saw)
	require.Equal(t, 1, p.rings[dialBody+"+marked"])
	req, _ := http.NewRequestWithContext(WithIdempotencyKey(t.Context(), "empty"), http.MethodPost, "http://h/", nil)
	_, err = rt.RoundTrip(req)
	require.NoError(t, err)
	require.Equal(t, "none", m.saw[1])
}
