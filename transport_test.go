package resilience

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

type closer struct {
	http.RoundTripper
	closed int
}

func (c *closer) CloseIdleConnections() { c.closed++ }

func TestDoor_CloseIdleConnectionsReachesTheTransport(t *testing.T) {
	c := &closer{RoundTripper: answering(200)}
	rt := Chain(newTestBreaker(t, BreakerConfig{}), newTestBulkhead(t, BulkheadConfig{})).Wrap(c)
	(&http.Client{Transport: rt}).CloseIdleConnections()
	require.Equal(t, 1, c.closed)
	(&http.Client{Transport: newTestBreaker(t, BreakerConfig{}).Wrap(answering(200))}).CloseIdleConnections() // has none
}

func TestNewTransport_SpeaksHTTP1(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Proto", r.Proto)
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	tr := NewTransport()
	defer tr.CloseIdleConnections()
	require.Equal(t, 30*time.Second, tr.IdleConnTimeout)
	tr.TLSClientConfig = server.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	tr.TLSClientConfig.NextProtos = nil
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, server.URL, nil)
	require.NoError(t, err)
	resp, err := tr.RoundTrip(req)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, "HTTP/1.1", resp.Header.Get("X-Proto"))
}

// A user's trace hears each thing once, however many wires are on the road.
func TestTransport_AUsersTraceHearsOnce(t *testing.T) {
	s := newRawServer(t, func(_ int64, w io.Writer) bool { answered201(w); return true })
	heard := map[string]int{}
	var mu sync.Mutex
	hear := func(what string) { mu.Lock(); defer mu.Unlock(); heard[what]++ }
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		GetConn: func(string) { hear("get") }, GotConn: func(httptrace.GotConnInfo) { hear("got") },
		ConnectStart: func(string, string) { hear("connect") },
	})
	stack, tr := newStack(t, Config{}), NewTransport()
	defer tr.CloseIdleConnections()
	foreign := LayerFunc(func(next http.RoundTripper) http.RoundTripper { return RoundTripFunc(next.RoundTrip) })
	b, err := NewBreaker(BreakerConfig{})
	require.NoError(t, err)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url(), nil)
	require.NoError(t, err)
	resp, err := stack.Wrap(Chain(foreign, b).Wrap(tr)).RoundTrip(req)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, map[string]int{"get": 1, "got": 1, "connect": 1}, heard)
	closeStack(t, stack)
}

// These tests run net/http's own transport over real connections, since what they hold is what it does behind our back.

// rawServer answers requests by hand, so that it can drop a connection at any moment.
type rawServer struct {
	t        *testing.T
	l        net.Listener
	requests atomic.Int64
	wg       sync.WaitGroup
}

// newRawServer calls serve for each request, with how many there were; false drops the connection.
func newRawServer(t *testing.T, serve func(n int64, w io.Writer) bool) *rawServer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := &rawServer{t: t, l: l}
	s.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.wg.Go(func() { s.handle(c, serve) })
		}
	})
	t.Cleanup(func() { _ = l.Close(); s.wg.Wait() })
	return s
}

func (s *rawServer) handle(c net.Conn, serve func(int64, io.Writer) bool) {
	defer c.Close() //nolint:errcheck // it is only a test
	in := bufio.NewReader(c)
	for {
		req, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, req.Body)
		if !serve(s.requests.Add(1), c) {
			return
		}
	}
}

func (s *rawServer) url() string { return "http://" + s.l.Addr().String() }

// net/http's transport honours its context but for one thing: before it returns an error it waits for a Read of the request
// body that is under way. A body that is in memory is read at once; one too large for that may hang, and hold nobody.
func TestTransport_ABodyThatHangsHoldsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := NewTransport()
		server, client := net.Pipe()
		tr.DialContext = func(context.Context, string, string) (net.Conn, error) { return client, nil }
		go func() { _, _ = io.Copy(io.Discard, server) }()
		l := newTime(t, TimeoutConfig{Upload: time.Second, MaxRequestBytes: 16})
		proceed := make(chan struct{})
		body := io.MultiReader(strings.NewReader(strings.Repeat("x", 64)), readerFunc(func([]byte) (int, error) { <-proceed; return 0, io.EOF }))
		req, err := http.NewRequestWithContext(WithCall(t.Context(), Call{Class: ClassUpload}), http.MethodPost, "http://api.test/", body)
		require.NoError(t, err)
		began := time.Now()
		_, err = l.Wrap(tr).RoundTrip(req)
		require.ErrorIs(t, err, ErrTimeout)
		require.LessOrEqual(t, time.Since(began), time.Second+grace)
		close(proceed)
		_ = server.Close()
		tr.CloseIdleConnections()
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func answered201(w io.Writer) {
	_, _ = io.WriteString(w, "HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}")
}

func post(t *testing.T, rt http.RoundTripper, url, key string) (*http.Response, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/v2/create-phone-call", strings.NewReader(dialBody))
	require.NoError(t, err)
	req.Header.Set("Idempotency-Key", key) // which makes net/http send it again by itself, if it comes that far
	resp, err := (&http.Client{Transport: rt}).Do(req)
	if resp != nil {
		_, _ = io.Copy(io.Discard, resp.Body)
		require.NoError(t, resp.Body.Close())
	}
	return resp, err
}

func TestTransport_NobodySendsALostPostAgain(t *testing.T) {
	drop := func(n int64, w io.Writer) bool {
		if n > 1 {
			return false // read, and gone without an answer, on a connection that was used before
		}
		answered201(w)
		return true
	}
	plain := newRawServer(t, drop)
	tr := NewTransport()
	defer tr.CloseIdleConnections()
	_, err := post(t, tr, plain.url(), "a")
	require.NoError(t, err)
	_, err = post(t, tr, plain.url(), "b")
	require.Error(t, err)
	require.Greater(t, plain.requests.Load(), int64(2), "net/http sends it again: if it no longer does, this test shows nothing")

	guarded := newRawServer(t, drop)
	s := newStack(t, Config{DLQ: DLQConfig{Off: true}})
	rt := s.Wrap(nil)
	_, err = post(t, rt, guarded.url(), "a")
	require.NoError(t, err)
	_, err = post(t, rt, guarded.url(), "b")
	require.ErrorIs(t, err, ErrInDoubt)
	require.EqualValues(t, 2, guarded.requests.Load())
	closeStack(t, s)
}

func TestTransport_ARefusedConnectionIsProven(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	url := "http://" + l.Addr().String()
	require.NoError(t, l.Close())
	s := newStack(t, Config{DLQ: DLQConfig{Off: true}, Retry: RetryConfig{Base: 1, Cap: 1}})
	_, err = post(t, s.Wrap(nil), url, "k")
	require.True(t, NotSent(err), err)
	require.Equal(t, KeyNotApplied, stateOf(t, s.Idempotency, "k"))
	require.EqualValues(t, 3, s.Stats().Retry.Attempts)
	closeStack(t, s)
}

func TestTransport_AFailedHandshakeIsProven(t *testing.T) {
	srv := httptest.NewTLSServer(http.NotFoundHandler()) // whose certificate nobody trusts
	defer srv.Close()
	srv.Config.ErrorLog = nil
	s := newStack(t, Config{DLQ: DLQConfig{Off: true}, Retry: RetryConfig{Max: -1}})
	_, err := post(t, s.Wrap(nil), srv.URL, "k")
	require.True(t, NotSent(err), err)
	closeStack(t, s)
}

func TestTransport_ARedirectIsNotFollowedForWhatMustHappenOnce(t *testing.T) {
	var followed atomic.Int64
	mux := http.NewServeMux()
	mux.HandleFunc("/v2/create-phone-call", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
	})
	mux.HandleFunc("/elsewhere", func(http.ResponseWriter, *http.Request) { followed.Add(1) })
	srv := httptest.NewServer(mux)
	defer srv.Close()
	s := newStack(t, Config{DLQ: DLQConfig{Off: true}})
	_, err := post(t, s.Wrap(nil), srv.URL, "k")
	require.ErrorIs(t, err, ErrInDoubt)
	var e *Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, http.StatusTemporaryRedirect, e.StatusCode)
	require.Zero(t, followed.Load())
	closeStack(t, s)
}

func TestTransport_ALostHTTP2StreamStaysInDoubt(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	srv.EnableHTTP2 = true
	srv.StartTLS()
	defer srv.Close()
	s := newStack(t, Config{DLQ: DLQConfig{Off: true}})
	_, err := post(t, s.Wrap(srv.Client().Transport), srv.URL, "k")
	require.ErrorIs(t, err, ErrInDoubt)
	require.False(t, NotSent(err))
	srv.Client().CloseIdleConnections()
	closeStack(t, s)
}

func TestTransport_CloseIdleConnectionsReachesTheTransport(t *testing.T) {
	srv := newRawServer(t, func(_ int64, w io.Writer) bool { answered201(w); return true })
	s := newStack(t, Config{})
	rt := s.Wrap(nil)
	_, err := post(t, rt, srv.url(), "k")
	require.NoError(t, err)
	(&http.Client{Transport: rt}).CloseIdleConnections()
	require.NoError(t, s.Close(context.Background()))
}
