package retelltest_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
	"github.com/retell-resilience/resilience/retell/retelltest"
)

// A client that gives up while the server dawdles: the effect comes, once, if the fault does not prevent it.
func TestGivingUpDuringADelay(t *testing.T) {
	for name, c := range map[string]struct {
		fault  retelltest.Fault
		closed bool
		rings  int
	}{
		"nothing more":        {retelltest.Fault{}, false, 1},
		"lost answer":         {retelltest.LostAnswer(), false, 1},
		"hang after effect":   {retelltest.HangAfterEffect(), false, 1},
		"late effect":         {retelltest.LateEffect(time.Minute, retelltest.Status(500)), false, 1},
		"reset before effect": {retelltest.ResetBeforeEffect(), false, 0},
		"status":              {retelltest.Status(500), false, 0},
		"hang before effect":  {retelltest.HangBeforeEffect(), false, 0},
		"server closed":       {retelltest.Fault{}, true, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			srv := retelltest.NewServer()
			defer srv.Close()
			srv.Inject("create-phone-call", retelltest.Delayed(10*time.Second, c.fault))
			if c.closed {
				time.AfterFunc(time.Second, srv.Close)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			req, err := http.NewRequestWithContext(ctx, "POST", "http://retell.test/v2/create-phone-call",
				strings.NewReader(`{"from_number":"+15550001000","to_number":"+15550001111"}`))
			require.NoError(t, err)
			req.Header.Set("Authorization", "Bearer key_x")
			_, err = srv.Transport().RoundTrip(req) //nolint:bodyclose // there is none
			require.Error(t, err, name)
			require.Zero(t, srv.Rings("+15550001111"), name)
			time.Sleep(5*time.Second - time.Nanosecond)
			require.Zero(t, srv.Rings("+15550001111"), name)
			time.Sleep(2 * time.Nanosecond)
			if c.fault.Late == 0 {
				require.Equal(t, c.rings, srv.Rings("+15550001111"), name)
			}
			time.Sleep(time.Hour)
			require.Equal(t, c.rings, srv.Rings("+15550001111"), name)
		})
	}
}

// outcome is what a client got, and what the server knows.
type outcome struct {
	status int
	body   string
	err    error
	took   time.Duration
	rings  int // at the moment of the answer
	later  int // an hour after
}

// try dials once in a bubble, with five seconds of patience.
func try(t *testing.T, fault retelltest.Fault, during func(*retelltest.Server)) (out outcome) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		srv := retelltest.NewServer()
		defer srv.Close()
		srv.Inject("create-phone-call", fault)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if during != nil {
			go during(srv)
		}
		start := time.Now()
		resp, err := srv.Transport().RoundTrip(newRequest(ctx, t, "POST", base+"/v2/create-phone-call", dialBody("")))
		out.err = err
		if err == nil {
			out.status = resp.StatusCode
			var raw []byte
			raw, out.err = io.ReadAll(resp.Body)
			out.body = string(raw)
			require.NoError(t, resp.Body.Close())
		}
		out.took, out.rings = time.Since(start), srv.Rings(to)
		time.Sleep(time.Hour)
		synctest.Wait()
		out.later = srv.Rings(to)
		require.Zero(t, srv.Injected("create-phone-call"))
	})
	return out
}

func release(d time.Duration) func(*retelltest.Server) {
	return func(srv *retelltest.Server) {
		time.Sleep(d)
		srv.Release()
	}
}

func TestFaults(t *testing.T) {
	slow := retelltest.SlowBody(time.Millisecond)
	slow.Chunk = 1000
	for name, c := range map[string]struct {
		fault   retelltest.Fault
		during  func(*retelltest.Server)
		status  int
		body    string // contained
		err     error
		notSent bool
		took    time.Duration
		rings   int
		later   int
	}{
		"none":    {status: 201, body: `"call_id"`, rings: 1, later: 1},
		"refused": {fault: retelltest.Refuse(), err: syscall.ECONNREFUSED, notSent: true},
		"hang connecting": {
			fault: retelltest.HangConnecting(), err: context.DeadlineExceeded, notSent: true, took: 5 * time.Second,
		},
		"connected late": {
			fault: retelltest.HangConnecting(), during: release(time.Second), status: 201, took: time.Second, rings: 1, later: 1,
		},
		"reset before effect": {fault: retelltest.ResetBeforeEffect(), err: syscall.ECONNRESET},
		"lost answer":         {fault: retelltest.LostAnswer(), err: syscall.ECONNRESET, rings: 1, later: 1},
		"hang before effect": {
			fault: retelltest.HangBeforeEffect(), err: context.DeadlineExceeded, took: 5 * time.Second,
		},
		"hang before effect, released": {
			fault: retelltest.HangBeforeEffect(), during: release(time.Second), status: 201, took: time.Second, rings: 1, later: 1,
		},
		"hang after effect": {
			fault: retelltest.HangAfterEffect(), err: context.DeadlineExceeded, took: 5 * time.Second, rings: 1, later: 1,
		},
		"hang, server closed": {
			fault: retelltest.HangBeforeEffect(), during: func(srv *retelltest.Server) { time.Sleep(time.Second); srv.Close() },
			err: syscall.ECONNRESET, took: time.Second,
		},
		"slow body": {fault: slow, status: 201, body: `"call_id"`, took: time.Millisecond, rings: 1, later: 1},
		"slow body, client gives up": {
			fault: retelltest.SlowBody(time.Second), status: 201, err: context.DeadlineExceeded, took: 5 * time.Second, rings: 1, later: 1,
		},
		"truncated body":       {fault: retelltest.TruncateBody(10), status: 201, body: `{"agent_id`, err: io.ErrUnexpectedEOF, rings: 1, later: 1},
		"truncated at the end": {fault: retelltest.TruncateBody(1 << 20), status: 201, err: io.ErrUnexpectedEOF, rings: 1, later: 1},
		"500":                  {fault: retelltest.Status(500), status: 500, body: `{"message":"Internal Server Error","status":"error"}`},
		"500 after effect":     {fault: retelltest.StatusAfterEffect(500), status: 500, rings: 1, later: 1},
		"own body":             {fault: retelltest.Fault{Skip: true, Status: 502, Body: "<html>"}, status: 502, body: "<html>"},
		"skip":                 {fault: retelltest.Fault{Skip: true}, status: 500, body: `"error"`},
		"late effect":          {fault: retelltest.LateEffect(time.Minute, retelltest.Status(500)), status: 500, later: 1},
		"late effect of a hang": {
			fault: retelltest.LateEffect(time.Minute, retelltest.HangBeforeEffect()),
			err:   context.DeadlineExceeded, took: 5 * time.Second, later: 1,
		},
		"delayed": {
			fault: retelltest.Delayed(time.Second, retelltest.Fault{}), status: 201, took: time.Second, rings: 1, later: 1,
		},
		"delayed beyond the client's patience": {
			fault: retelltest.Delayed(time.Minute, retelltest.Fault{}), err: context.DeadlineExceeded, took: 5 * time.Second, later: 1,
		},
		"delayed, then nothing": {
			fault: retelltest.Delayed(time.Minute, retelltest.Status(500)), err: context.DeadlineExceeded, took: 5 * time.Second,
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := try(t, c.fault, c.during)
			require.Equal(t, c.status, got.status)
			require.Contains(t, got.body, c.body)
			require.ErrorIs(t, got.err, c.err)
			require.Equal(t, c.notSent, resilience.NotSent(got.err))
			require.Equal(t, c.took, got.took)
			require.Equal(t, c.rings, got.rings, "rings when the client heard")
			require.Equal(t, c.later, got.later, "rings in the end")
		})
	}
}

func TestThrottleSaysWhenToComeBack(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	srv.Inject(retelltest.Any, retelltest.Throttle(1500*time.Millisecond), retelltest.Throttle(0),
		retelltest.Status(503, "Retry-After", "7", "X-Should-Retry", "false"))
	for _, want := range []struct {
		status int
		after  string
	}{{429, "2"}, {429, ""}, {503, "7"}, {200, ""}} {
		resp, err := srv.Client().Do(newRequest(t.Context(), t, "GET", base+"/get-concurrency", ""))
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Equal(t, want.status, resp.StatusCode)
		require.Equal(t, want.after, resp.Header.Get("Retry-After"))
	}
}

func TestScriptsComeBeforeRatesAndTheirOwnBeforeAny(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	srv.Rate("get-concurrency", 1, retelltest.Status(504))
	srv.Inject(retelltest.Any, retelltest.Status(503))
	srv.Inject("get-concurrency", retelltest.Status(501), retelltest.Status(502))
	var got []int
	for range 4 {
		status, _ := send(t, srv, "GET", "/get-concurrency", "")
		got = append(got, status)
	}
	require.Equal(t, []int{501, 502, 503, 504}, got)
	srv.ClearFaults()
	status, _ := send(t, srv, "GET", "/get-concurrency", "")
	require.Equal(t, 200, status)
}

func TestRatesComeFromTheSeed(t *testing.T) {
	run := func(seed int64) (all string) {
		srv := retelltest.NewServer(retelltest.WithSeed(seed))
		defer srv.Close()
		srv.Rate("get-concurrency", 0.3, retelltest.Status(500))
		srv.Rate(retelltest.Any, 0.2, retelltest.Status(429))
		for range 1000 {
			status, _ := send(t, srv, "GET", "/get-concurrency", "")
			all += map[int]string{200: ".", 500: "5", 429: "4"}[status]
		}
		return all
	}
	first := run(7)
	require.Equal(t, first, run(7))
	require.NotEqual(t, first, run(8))
	require.InDelta(t, 300, strings.Count(first, "5"), 50)
	require.InDelta(t, 200, strings.Count(first, "4"), 50)
}

func TestOutage(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	srv.Inject(retelltest.Any, retelltest.Status(500))
	srv.Outage(true)
	for range 3 {
		status, _ := send(t, srv, "POST", "/v2/create-phone-call", dialBody(""))
		require.Equal(t, 503, status)
	}
	srv.Outage(false)
	status, _ := send(t, srv, "POST", "/v2/create-phone-call", dialBody(""))
	require.Equal(t, 500, status, "injected faults waited")
	dial(t, srv, "")
	require.Equal(t, 1, srv.Rings(to))
}

func TestReceivedTellsTheTruth(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	srv.Inject("create-phone-call", retelltest.Refuse(), retelltest.LostAnswer(), retelltest.Status(500))
	for range 3 {
		resp, err := srv.Client().Do(newRequest(t.Context(), t, "POST", base+"/v2/create-phone-call", dialBody("")))
		if err == nil {
			require.NoError(t, resp.Body.Close())
		}
	}
	dial(t, srv, "")
	log := srv.Received()
	require.Len(t, log, 3, "a refused request was never read")
	require.Equal(t, "lost answer", log[0].Fault)
	require.True(t, log[0].Effect)
	require.Zero(t, log[0].Status)
	require.Equal(t, "status 500", log[1].Fault)
	require.False(t, log[1].Effect)
	require.Equal(t, 500, log[1].Status)
	require.Equal(t, 201, log[2].Status)
	require.Equal(t, dialBody(""), string(log[2].Body))
	require.Equal(t, "Bearer key_abc", log[2].Header.Get("Authorization"))
	require.Equal(t, "/v2/create-phone-call", log[2].Path)
	require.Equal(t, 1, srv.Refusals("create-phone-call"))
	require.Equal(t, 3, srv.Requests(retelltest.Any))
	require.Equal(t, 2, srv.Effects("create-phone-call"))
}

func TestTraceHooks(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	srv.Inject("create-phone-call", retelltest.Refuse(), retelltest.ResetBeforeEffect())
	for _, want := range []string{"get", "get got wrote", "get got wrote first"} {
		var seen []string
		see := func(what string) { seen = append(seen, what) }
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
			GetConn:              func(string) { see("get") },
			GotConn:              func(i httptrace.GotConnInfo) { require.NotNil(t, i.Conn.RemoteAddr()); see("got") },
			WroteRequest:         func(httptrace.WroteRequestInfo) { see("wrote") },
			GotFirstResponseByte: func() { see("first") },
		})
		resp, err := srv.Client().Do(newRequest(ctx, t, "POST", base+"/v2/create-phone-call", dialBody("")))
		if err == nil {
			require.NoError(t, resp.Body.Close())
		}
		require.Equal(t, want, strings.Join(seen, " "))
	}
}

// body is a request body that notices being closed.
type body struct {
	io.Reader
	mu     sync.Mutex
	closed int
	gone   chan struct{}
}

func (b *body) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed++; b.closed == 1 && b.gone != nil {
		close(b.gone)
	}
	return nil
}

// stuck blocks until its body is closed.
type stuck struct{ gone chan struct{} }

func (s stuck) Read([]byte) (int, error) { <-s.gone; return 0, errors.New("closed") }

func TestRoundTripperContract(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := retelltest.NewServer()
		defer srv.Close()
		srv.Inject(retelltest.Any, retelltest.Refuse(), retelltest.LostAnswer(), retelltest.Status(500), retelltest.Fault{})
		for range 4 {
			b := &body{Reader: strings.NewReader(dialBody(""))}
			req := newRequest(t.Context(), t, "POST", base+"/v2/create-phone-call", "")
			req.Body = b
			before := req.Header.Clone()
			resp, err := srv.Transport().RoundTrip(req)
			require.NotEqual(t, err == nil, resp == nil)
			require.Equal(t, 1, b.closed)
			require.Equal(t, before, req.Header)
			require.Same(t, b, req.Body)
		}

		cause := errors.New("cause")
		gone, cancel := context.WithCancelCause(t.Context())
		cancel(cause)
		_, err := srv.Transport().RoundTrip(newRequest(gone, t, "POST", base+"/v2/create-phone-call", ""))
		require.ErrorIs(t, err, cause)
		require.True(t, resilience.NotSent(err))

		ctx, cancel := context.WithCancelCause(t.Context())
		b := &body{gone: make(chan struct{})}
		b.Reader = stuck{b.gone}
		req := newRequest(ctx, t, "POST", base+"/v2/create-phone-call", "")
		req.Body = b
		time.AfterFunc(time.Second, func() { cancel(cause) })
		_, err = srv.Transport().RoundTrip(req)
		require.ErrorIs(t, err, cause, "a body that is stuck does not hold the request")
		require.False(t, resilience.NotSent(err))
		require.Equal(t, 2, srv.Requests("create-phone-call")-1)
	})
}

func TestHTTPClientTimeoutEndsAHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := retelltest.NewServer()
		defer srv.Close()
		srv.Inject(retelltest.Any, retelltest.HangAfterEffect())
		client := srv.Client()
		client.Timeout = time.Second
		start := time.Now()
		_, err := client.Do(newRequest(t.Context(), t, "POST", base+"/v2/create-phone-call", dialBody(""))) //nolint:bodyclose // no response
		require.Error(t, err)
		require.Equal(t, time.Second, time.Since(start))
		require.Equal(t, 1, srv.Rings(to))
		require.Zero(t, srv.Hanging())
	})
}

func TestRequestCancelEndsAHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := retelltest.NewServer()
		defer srv.Close()
		srv.Inject(retelltest.Any, retelltest.HangBeforeEffect())
		cancel := make(chan struct{})
		time.AfterFunc(time.Second, func() { close(cancel) })
		req := newRequest(t.Context(), t, "POST", base+"/v2/create-phone-call", dialBody(""))
		req.Cancel = cancel //nolint:staticcheck // http.Client sets it for foreign transports
		start := time.Now()
		_, err := srv.Transport().RoundTrip(req) //nolint:bodyclose // no response
		require.Error(t, err)
		require.False(t, resilience.NotSent(err))
		require.Equal(t, time.Second, time.Since(start))

		_, err = srv.Transport().RoundTrip(req) //nolint:bodyclose // no response
		require.True(t, resilience.NotSent(err))
		require.Zero(t, srv.Rings(to))
	})
}

func TestClosedOrDownServerRefuses(t *testing.T) {
	srv := retelltest.NewServer()
	call := func() error {
		resp, err := srv.Client().Do(newRequest(t.Context(), t, "GET", base+"/get-concurrency", ""))
		if err == nil {
			_ = resp.Body.Close()
		}
		return err
	}
	srv.StopListening()
	require.True(t, resilience.NotSent(call()))
	require.Equal(t, 1, srv.Refusals("get-concurrency"))
	require.NoError(t, srv.StartListening())
	require.NoError(t, call())
	srv.Close()
	srv.Close()
	require.True(t, resilience.NotSent(call()))
	require.Error(t, srv.StartListening())
}

func TestManyAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 2000
		srv := retelltest.NewServer(retelltest.WithConcurrency(-1))
		defer srv.Close()
		srv.OnWebhook(func([]byte, string) { srv.Requests(retelltest.Any) })
		srv.Rate("create-phone-call", 0.2, retelltest.LostAnswer())
		srv.Rate("create-phone-call", 0.2, retelltest.HangAfterEffect())
		srv.Rate("create-phone-call", 0.1, retelltest.LateEffect(time.Second, retelltest.Status(500)))
		var all sync.WaitGroup
		for i := range n {
			all.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				req := newRequest(ctx, t, "POST", base+"/v2/create-phone-call", dialBody(""))
				if resp, err := srv.Transport().RoundTrip(req); err == nil {
					_ = resp.Body.Close()
				}
				if i%200 == 0 {
					if calls := srv.Calls(); len(calls) > 0 { // the first may take effect late
						_ = srv.Hangup(calls[0].ID, "")
					}
					srv.Received()
				}
			})
		}
		time.Sleep(time.Second)
		synctest.Wait()
		require.NotZero(t, srv.Hanging())
		all.Wait()
		require.Equal(t, n, srv.Rings(to), "each was carried out, whatever the client heard")
		require.Len(t, srv.Calls(), n)
		seen := make(map[string]bool)
		for _, c := range srv.Calls() {
			seen[c.ID] = true
		}
		require.Len(t, seen, n)
	})
}

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
	odd := []string{"Retry-After"}
	for _, misuse := range []func(){
		func() { srv.Rate("x", 0.5, retelltest.Refuse()) }, func() { srv.Injected("x") },
		func() { srv.Rate(retelltest.Any, -0.1, retelltest.Refuse()) }, func() { retelltest.Status(503, odd...) },
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

func TestAStatusWithoutABodyHasNone(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	for _, code := range []int{204, 304} {
		srv.Inject(retelltest.Any, retelltest.Status(code))
		resp, err := srv.Client().Do(newRequest(t.Context(), t, "GET", base+"/get-concurrency", ""))
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Equal(t, code, resp.StatusCode)
		require.Zero(t, resp.ContentLength)
		require.Empty(t, resp.Header)
	}
}
