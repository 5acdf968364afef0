package retelltest_test

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience/retell/retelltest"
)

func TestReleaseIsForThoseThatHangNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := retelltest.NewServer()
		defer srv.Close()
		srv.Inject("create-phone-call", retelltest.HangBeforeEffect(), retelltest.HangBeforeEffect())
		for n := range 2 {
			go dial(t, srv, "")
			synctest.Wait()
			require.Equal(t, 1, srv.Hanging())
			require.Equal(t, n, srv.Rings(to))
			srv.Release()
			synctest.Wait()
			require.Zero(t, srv.Hanging())
			require.Equal(t, n+1, srv.Rings(to))
		}
	})
}

func TestFaultsHaveNames(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	srv.Inject(retelltest.Any, retelltest.Throttle(0), retelltest.Delayed(time.Nanosecond, retelltest.Fault{}),
		retelltest.Delayed(time.Nanosecond, retelltest.Status(500)), retelltest.LateEffect(time.Hour, retelltest.LostAnswer()))
	for range 3 {
		send(t, srv, "GET", "/get-concurrency", "")
	}
	_, err := srv.Transport().RoundTrip(newRequest(t.Context(), t, "GET", base+"/get-concurrency", "")) //nolint:bodyclose // no response
	require.Error(t, err)
	srv.Outage(true)
	send(t, srv, "GET", "/get-concurrency", "")
	var names []string
	for _, r := range srv.Received() {
		names = append(names, r.Fault)
	}
	require.Equal(t, []string{"throttle", "delayed", "delayed, status 500", "late effect, lost answer", "outage"}, names)
}

func TestMisuseOfFaultsPanics(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	for _, misuse := range []func(){
		func() { srv.Rate("x", 0.5, retelltest.Refuse()) }, func() { srv.Injected("x") },
		func() { srv.Rate(retelltest.Any, -0.1, retelltest.Refuse()) }, func() { retelltest.Status(503, "Retry-After") },
	} {
		require.Panics(t, misuse)
	}
	srv.Rate(retelltest.Any, 0, retelltest.Refuse())
	status, _ := send(t, srv, "GET", "/get-concurrency", "")
	require.Equal(t, 200, status, "a share of none strikes nobody")
	names := retelltest.Operations()
	require.True(t, slices.IsSorted(names))
	require.Subset(t, names, []string{"list-calls", "list-agents", "create-agent"})
}

func TestAnAnswerOfAFault(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	srv.Inject(retelltest.Any, retelltest.Status(599), retelltest.Fault{Status: 502, Body: "<html>"})
	_, body := send(t, srv, "GET", "/get-concurrency", "")
	require.Equal(t, map[string]any{"status": "error", "message": "fault"}, body)
	resp, err := srv.Client().Do(newRequest(t.Context(), t, "GET", base+"/get-concurrency", ""))
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Empty(t, resp.Header.Get("Content-Type"), "a page of a proxy is no JSON")
}

// Who gets an answer may change its headers, and changes those of no other answer.
func TestAnAnswersHeadersAreItsOwn(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	srv.Rate(retelltest.Any, 1, retelltest.Throttle(7*time.Second))
	for range 2 {
		resp, err := srv.Client().Do(newRequest(t.Context(), t, "GET", base+"/get-concurrency", ""))
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Equal(t, "7", resp.Header.Get("Retry-After"))
		resp.Header["Retry-After"][0] = "changed"
	}
}
