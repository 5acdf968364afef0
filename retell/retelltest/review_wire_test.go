package retelltest_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience/retell/retelltest"
)

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
