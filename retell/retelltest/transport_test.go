package retelltest_test

import (
	"context"
	"io"
	"net/http/httptrace"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
	"github.com/retell-resilience/resilience/retell/retelltest"
)

func TestAConnectionThatHangsIsSeenAndCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, closed := range []bool{false, true} {
			srv := retelltest.NewServer()
			srv.Inject(retelltest.Any, retelltest.HangConnecting())
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			var seen []string
			ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
				GetConn:      func(string) { seen = append(seen, "get") },
				ConnectStart: func(string, string) { seen = append(seen, "connect") },
				GotConn:      func(httptrace.GotConnInfo) { seen = append(seen, "got") },
			})
			if closed {
				time.AfterFunc(time.Second, srv.Close)
			}
			_, err := srv.Transport().RoundTrip(newRequest(ctx, t, "POST", base+"/v2/create-phone-call", dialBody(""))) //nolint:bodyclose // no response
			cancel()
			require.True(t, resilience.NotSent(err))
			require.Equal(t, []string{"get", "connect"}, seen)
			require.Equal(t, 1, srv.Refusals("create-phone-call"))
			require.Zero(t, srv.Requests("create-phone-call"))
			srv.Close()
		}
	})
}

func TestAnAnswerInProcessHasItsLength(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	var seen []string
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		WroteHeaders: func() { seen = append(seen, "headers") },
		WroteRequest: func(httptrace.WroteRequestInfo) { seen = append(seen, "request") },
	})
	resp, err := srv.Transport().RoundTrip(newRequest(ctx, t, "GET", base+"/get-concurrency", ""))
	require.NoError(t, err)
	raw, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.EqualValues(t, len(raw), resp.ContentLength)
	require.Equal(t, strconv.Itoa(len(raw)), resp.Header.Get("Content-Length"))
	require.Equal(t, []string{"headers", "request"}, seen)
}

// Closing a body frees who waits for more of it.
func TestClosingASlowBodyEndsTheRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := retelltest.NewServer()
		defer srv.Close()
		srv.Inject(retelltest.Any, retelltest.SlowBody(time.Hour))
		resp, err := srv.Transport().RoundTrip(newRequest(t.Context(), t, "GET", base+"/get-concurrency", ""))
		require.NoError(t, err)
		start := time.Now()
		time.AfterFunc(time.Second, func() { _ = resp.Body.Close() })
		_, err = io.ReadAll(resp.Body)
		require.Error(t, err)
		require.Equal(t, time.Second, time.Since(start))
		_, err = resp.Body.Read(make([]byte, 1))
		require.Error(t, err)
		require.NoError(t, resp.Body.Close())
	})
}

// The end of the context after the request was read does not close its body a second time, nor late.
func TestTheBodyIsClosedWithTheRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := retelltest.NewServer()
		defer srv.Close()
		ctx, cancel := context.WithCancel(t.Context())
		b := &body{Reader: strings.NewReader(dialBody(""))}
		req := newRequest(ctx, t, "POST", base+"/v2/create-phone-call", "")
		req.Body = b
		resp, err := srv.Transport().RoundTrip(req)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Equal(t, 1, b.closed)
		cancel()
		synctest.Wait()
		require.Equal(t, 1, b.closed)
	})
}
