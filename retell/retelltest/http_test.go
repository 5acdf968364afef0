package retelltest_test

import (
	"context"
	"encoding/json"
	"errors"
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

	"github.com/retell-resilience/resilience/retell/retelltest"
)

// dialHTTP dials over real HTTP on a connection of its own and returns the status and the error of the whole exchange.
func dialHTTP(ctx context.Context, t *testing.T, url string) (int, error) {
	t.Helper()
	tr := &http.Transport{DisableKeepAlives: true}
	defer tr.CloseIdleConnections()
	resp, err := tr.RoundTrip(newRequest(ctx, t, "POST", url+"/v2/create-phone-call", dialBody("")))
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.ReadAll(resp.Body)
	return resp.StatusCode, err
}

func TestFaultsOverHTTP(t *testing.T) {
	slow := retelltest.SlowBody(time.Microsecond)
	for name, c := range map[string]struct {
		fault  retelltest.Fault
		status int
		fails  bool
		rings  int
	}{
		"none":                {status: 201, rings: 1},
		"refused":             {fault: retelltest.Refuse(), fails: true},
		"reset before effect": {fault: retelltest.ResetBeforeEffect(), fails: true},
		"lost answer":         {fault: retelltest.LostAnswer(), fails: true, rings: 1},
		"truncated":           {fault: retelltest.TruncateBody(10), status: 201, fails: true, rings: 1},
		"slow":                {fault: slow, status: 201, rings: 1},
		"500":                 {fault: retelltest.Status(500), status: 500},
		"429":                 {fault: retelltest.Throttle(time.Second), status: 429},
	} {
		t.Run(name, func(t *testing.T) {
			srv := retelltest.NewServer()
			defer srv.Close()
			srv.Inject(retelltest.Any, c.fault)
			status, err := dialHTTP(t.Context(), t, srv.URL())
			require.Equal(t, c.status, status)
			require.Equal(t, c.fails, err != nil, "%v", err)
			require.Equal(t, c.rings, srv.Rings(to))
		})
	}
}

func TestHangsOverHTTP(t *testing.T) {
	for name, c := range map[string]struct {
		fault   retelltest.Fault
		release bool
		rings   int
	}{
		"before, client gives up": {retelltest.HangBeforeEffect(), false, 0},
		"before, released":        {retelltest.HangBeforeEffect(), true, 1},
		"after, client gives up":  {retelltest.HangAfterEffect(), false, 1},
		"after, released":         {retelltest.HangAfterEffect(), true, 1},
	} {
		t.Run(name, func(t *testing.T) {
			srv := retelltest.NewServer()
			defer srv.Close()
			srv.Inject(retelltest.Any, c.fault)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			url := srv.URL()
			go func() {
				for srv.Hanging() == 0 {
					runtime.Gosched()
				}
				if c.release {
					srv.Release()
				} else {
					cancel()
				}
			}()
			status, err := dialHTTP(ctx, t, url)
			if c.release {
				require.NoError(t, err)
				require.Equal(t, 201, status)
			} else {
				require.ErrorIs(t, err, context.Canceled)
			}
			srv.Close() // awaits the handler
			require.Equal(t, c.rings, srv.Rings(to))
			require.Zero(t, srv.Hanging())
		})
	}
}

func TestStopListeningIsARealRefusal(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	url := srv.URL()
	srv.StopListening()
	_, err := dialHTTP(t.Context(), t, url)
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
	require.NoError(t, srv.StartListening())
	require.Equal(t, url, srv.URL())
	status, err := dialHTTP(t.Context(), t, url)
	require.NoError(t, err)
	require.Equal(t, 201, status)
	require.Equal(t, 1, srv.Rings(to))
}

func TestPeekNeedsNoKeyAndIsNotCounted(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	dial(t, srv, "")
	srv.Outage(true)
	for path, want := range map[string]string{"rings": `{"` + to + `":1}`, "requests": `{"create-phone-call":1}`} {
		w := httptest.NewRecorder()
		srv.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/_/"+path, nil))
		require.Equal(t, want, w.Body.String())
	}
	w := httptest.NewRecorder()
	srv.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/_/x", nil))
	require.Equal(t, 404, w.Code)
}

func TestHandlerWithoutHijackAborts(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	srv.Inject(retelltest.Any, retelltest.LostAnswer())
	require.PanicsWithValue(t, http.ErrAbortHandler, func() {
		srv.Handler().ServeHTTP(httptest.NewRecorder(), newRequest(t.Context(), t, "POST", "/v2/create-phone-call", dialBody("")))
	})
	require.Equal(t, 1, srv.Rings(to))
}

func TestNothingIsLeftAfterClose(t *testing.T) {
	before := runtime.NumGoroutine()
	srv := retelltest.NewServer(retelltest.WithConcurrency(-1), retelltest.WithCallLife(time.Hour, time.Hour))
	srv.Rate(retelltest.Any, 0.2, retelltest.LostAnswer())
	srv.Rate(retelltest.Any, 0.2, retelltest.HangBeforeEffect())
	url := srv.URL()
	var all sync.WaitGroup
	var failed atomic.Int32
	for range 100 {
		all.Go(func() {
			if _, err := dialHTTP(t.Context(), t, url); err != nil {
				failed.Add(1)
			}
		})
	}
	for srv.Requests(retelltest.Any) < 100 {
		runtime.Gosched()
	}
	srv.Close()
	all.Wait()
	require.NotZero(t, failed.Load())
	_, err := dialHTTP(t.Context(), t, url)
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
	_, err = srv.Listen("127.0.0.1:0")
	require.Error(t, err)
	// Connections end by themselves soon after their handlers.
	for deadline := time.Now().Add(time.Minute); runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<20)
			t.Fatalf("goroutines are left:\n%s", stacks[:runtime.Stack(stacks, true)])
		}
	}
}

func TestListenSaysWhatIsWrong(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	_, err := srv.Listen("nonsense")
	require.Error(t, err)
	url, err := srv.Listen("127.0.0.1:0")
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(url, "http://127.0.0.1:"))
}

// pipes is a listener without sockets.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, errors.New("closed")
	}
}
func (p *pipes) Close() error   { close(p.done); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

func TestHandlerOverPipesInABubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := retelltest.NewServer()
		defer srv.Close()
		p := &pipes{make(chan net.Conn), make(chan struct{})}
		h := &http.Server{Handler: srv.Handler(), ReadHeaderTimeout: time.Hour}
		go func() { _ = h.Serve(p) }()
		defer h.Close()
		tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
			mine, theirs := net.Pipe()
			p.conns <- theirs
			return mine, nil
		}}
		defer tr.CloseIdleConnections()
		srv.Inject("create-phone-call", retelltest.HangAfterEffect())
		client := &http.Client{Transport: tr, Timeout: 30 * time.Second}
		start := time.Now()
		_, err := client.Do(newRequest(t.Context(), t, "POST", base+"/v2/create-phone-call", dialBody(""))) //nolint:bodyclose // no response
		require.Error(t, err)
		require.Equal(t, 30*time.Second, time.Since(start))
		require.Equal(t, 1, srv.Rings(to))
		resp, err := client.Do(newRequest(t.Context(), t, "GET", base+"/get-concurrency", ""))
		require.NoError(t, err)
		defer resp.Body.Close()
		var now map[string]any
		require.NoError(t, json.NewDecoder(resp.Body).Decode(&now))
		require.EqualValues(t, 1, now["current_concurrency"])
	})
}

// A program that starts while Retell is down asks for the address then.
func TestStopListeningHoldsForAnAddressThatIsAskedForLater(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	srv.StopListening()
	url := srv.URL()
	_, err := dialHTTP(t.Context(), t, url)
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
	require.Zero(t, srv.Rings(to))
	require.NoError(t, srv.StartListening())
	require.Equal(t, url, srv.URL())
	status, err := dialHTTP(t.Context(), t, url)
	require.NoError(t, err)
	require.Equal(t, 201, status)
}

// overPipes mounts the server and returns a client for it. Call it in a bubble; end is to be called in there too.
func overPipes(srv *retelltest.Server) (client *http.Client, end func()) {
	p := &pipes{make(chan net.Conn), make(chan struct{})}
	h := &http.Server{Handler: srv.Handler(), ReadHeaderTimeout: time.Hour}
	go func() { _ = h.Serve(p) }()
	tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		mine, theirs := net.Pipe()
		p.conns <- theirs
		return mine, nil
	}}
	return &http.Client{Transport: tr}, func() { tr.CloseIdleConnections(); _ = h.Close() }
}

func TestHeadersAndLengthOverHTTP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := retelltest.NewServer()
		defer srv.Close()
		client, end := overPipes(srv)
		defer end()
		srv.Inject(retelltest.Any, retelltest.Throttle(7*time.Second))
		resp, err := client.Do(newRequest(t.Context(), t, "POST", base+"/v2/create-phone-call", dialBody("")))
		require.NoError(t, err)
		raw, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Equal(t, "7", resp.Header.Get("Retry-After"))
		require.Equal(t, "application/json; charset=utf-8", resp.Header.Get("Content-Type"))
		require.EqualValues(t, len(raw), resp.ContentLength)

		srv.Inject(retelltest.Any, retelltest.TruncateBody(10))
		resp, err = client.Do(newRequest(t.Context(), t, "POST", base+"/v2/create-phone-call", dialBody("")))
		require.NoError(t, err)
		raw, err = io.ReadAll(resp.Body)
		require.ErrorIs(t, err, io.ErrUnexpectedEOF)
		require.NoError(t, resp.Body.Close())
		require.Len(t, raw, 10)
		require.Greater(t, resp.ContentLength, int64(10), "the length is that of the whole")

		status, _ := send(t, srv, "DELETE", "/delete-phone-number/"+from, "")
		require.Equal(t, 204, status)
		resp, err = client.Do(newRequest(t.Context(), t, "DELETE", base+"/delete-agent/agent_test", ""))
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Equal(t, 204, resp.StatusCode)
		require.NotContains(t, resp.Header, "Content-Length", "RFC 9110 forbids it")
	})
}

func TestASlowBodyOverHTTP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := retelltest.NewServer()
		defer srv.Close()
		client, end := overPipes(srv)
		defer end()
		for _, closed := range []bool{false, true} {
			srv.Inject(retelltest.Any, retelltest.SlowBody(time.Second))
			start := time.Now()
			resp, err := client.Do(newRequest(t.Context(), t, "GET", base+"/get-concurrency", ""))
			require.NoError(t, err)
			require.Zero(t, time.Since(start), "the head comes at once")
			chunk := make([]byte, 1<<10)
			for n := range 3 {
				read, err := resp.Body.Read(chunk)
				require.NoError(t, err)
				require.Equal(t, 16, read)
				require.Equal(t, time.Duration(n+1)*time.Second, time.Since(start))
			}
			if closed {
				srv.Close()
			}
			_, err = io.ReadAll(resp.Body)
			require.Equal(t, closed, err != nil, "%v", err)
			require.NoError(t, resp.Body.Close())
		}
	})
}

func TestAHandlerThatIsMountedElsewhereIsClosedToo(t *testing.T) {
	srv := retelltest.NewServer()
	srv.Inject(retelltest.Any, retelltest.Refuse())
	dialIn := func() {
		srv.Handler().ServeHTTP(httptest.NewRecorder(), newRequest(t.Context(), t, "POST", "/v2/create-phone-call", dialBody("")))
	}
	require.PanicsWithValue(t, http.ErrAbortHandler, dialIn)
	require.Equal(t, 1, srv.Refusals("create-phone-call"))
	srv.Close()
	require.PanicsWithValue(t, http.ErrAbortHandler, dialIn)
	require.Zero(t, srv.Rings(to))
	require.Panics(t, func() { srv.URL() })
}

func TestListeningAgain(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	require.NoError(t, srv.StartListening(), "there is no address yet, and so nothing to do")
	url := srv.URL()
	require.Contains(t, url, "http://127.0.0.1:")
	require.NoError(t, srv.StartListening(), "it listens")
	srv.StopListening()
	other, err := new(net.ListenConfig).Listen(t.Context(), "tcp", url[len("http://"):])
	require.NoError(t, err)
	require.Error(t, srv.StartListening(), "somebody else is there")
	resp, err := srv.Client().Do(newRequest(t.Context(), t, "GET", base+"/get-concurrency", ""))
	if err == nil {
		_ = resp.Body.Close()
	}
	require.Error(t, err, "and so it is down still")
	require.NoError(t, other.Close())
	require.NoError(t, srv.StartListening())
	status, err := dialHTTP(t.Context(), t, url)
	require.NoError(t, err)
	require.Equal(t, 201, status)
}
