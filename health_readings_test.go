package resilience

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// H13: more than 80 %, whatever the number of places.
func TestH13_MoreThanFourFifthsOfAnyQueue(t *testing.T) {
	for room := 1; room <= 60; room++ {
		for waiting := 0; waiting <= room; waiting++ {
			status, _ := queueStatus(waiting, room)
			require.Equal(t, 5*waiting > 4*room, status == Degraded, "%d of %d", waiting, room)
			letters, _ := letterStatus(waiting, -1, 0, room)
			require.Equal(t, 5*waiting >= 4*room, letters == Degraded, "%d of %d letters", waiting, room)
		}
	}
}

// B05: fewer calls than MinCalls are no failure rate of 0 %.
func TestB05_HealthDoesNotShowARateThatIsNotKnown(t *testing.T) {
	s := newStack(t, Config{})
	for _, c := range s.Health().Check(t.Context()).Checks {
		if c.Name == "circuit" && c.Measure == "failure rate" {
			require.Equal(t, Unknown, c.Status)
			require.Empty(t, c.Unit, "no number")
		}
	}
	closeStack(t, s)
}

func TestHealthHandlersSetTheirHeaders(t *testing.T) {
	s := newStack(t, Config{})
	h := s.Health()
	for name, c := range map[string]struct {
		handler http.Handler
		cache   string
	}{"live": {h.Live(), "no-store"}, "ready": {h.Ready(), "no-store"}, "report": {h, "max-age=0"}} {
		for _, method := range []string{"GET", "HEAD"} {
			rec := httptest.NewRecorder()
			c.handler.ServeHTTP(rec, httptest.NewRequest(method, "/", nil))
			require.Equal(t, 200, rec.Code, name)
			require.Equal(t, c.cache, rec.Header().Get("Cache-Control"), name)
			require.Equal(t, "nosniff", rec.Header().Get("X-Content-Type-Options"))
			require.Equal(t, "application/health+json", rec.Header().Get("Content-Type"))
			require.NotEmpty(t, rec.Header().Get("Content-Length"))
			if method == "HEAD" {
				require.Zero(t, rec.Body.Len())
				continue
			}
			require.Equal(t, fmt.Sprint(rec.Body.Len()), rec.Header().Get("Content-Length"))
			require.True(t, json.Valid(rec.Body.Bytes()))
		}
		for _, method := range []string{"POST", "OPTIONS", "DELETE", "get", ""} {
			req := httptest.NewRequest("GET", "/", nil)
			req.Method = method
			rec := httptest.NewRecorder()
			c.handler.ServeHTTP(rec, req)
			require.Equal(t, 405, rec.Code, "%s %q", name, method)
			require.Equal(t, "GET, HEAD", rec.Header().Get("Allow"))
		}
	}
	req := httptest.NewRequest("GET", "/", nil)
	req.Header.Set("Accept", "text/html")
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, req)
	require.Equal(t, "no-referrer", rec.Header().Get("Referrer-Policy"))
	require.Equal(t, "no-store", rec.Header().Get("Cache-Control"))
	require.Contains(t, rec.Body.String(), `"health":"unknown"`)
	closeStack(t, s)
}

func TestHealthProbesOfEveryKind(t *testing.T) {
	refused := &Error{Err: errors.New("x"), StatusCode: 500}
	for _, c := range []struct {
		err  error
		want Status
		word string
	}{
		{nil, Healthy, "ok"}, {refused, Unhealthy, "status 500"}, {&Error{StatusCode: 599, Err: io.EOF}, Unhealthy, "status 599"},
		{&Error{StatusCode: 499, Err: io.EOF}, Unhealthy, "status 499"},
		{&Error{StatusCode: 403, Err: io.EOF}, Unhealthy, "status 403"}, {&Error{StatusCode: 401, Err: io.EOF}, Unhealthy, "status 401"},
		{&Error{StatusCode: 402, Err: io.EOF}, Degraded, "status 402"}, {&Error{StatusCode: 429, Err: io.EOF}, Degraded, "status 429"},
		{&Error{Err: ErrOpen}, Unknown, "not probed"}, {&Error{Err: ErrFull}, Unknown, "not probed"}, {ErrClosed, Unknown, "not probed"},
		{io.EOF, Unhealthy, "reset"}, {context.DeadlineExceeded, Unhealthy, "timeout"},
	} {
		got := judgeProbe(c.err)
		require.Equal(t, c.want, got.Status, c.err)
		require.Equal(t, c.word, got.State)
	}
	_, why := judgeCode(500)
	_, client := judgeCode(404)
	require.NotEqual(t, why, client)
	_, keys := judgeCode(403)
	_, keys401 := judgeCode(401)
	require.Equal(t, keys401, keys)
}

// A probe that ends exactly with its time has not answered; one that ends a moment before has.
func TestHealthProbeAtTheEndOfItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for took, want := range map[time.Duration]Status{2*time.Second - 1: Healthy, 2 * time.Second: Unhealthy} {
			h, err := NewHealth(HealthConfig{Probe: func(context.Context) error { time.Sleep(took); return nil }})
			require.NoError(t, err)
			began := time.Now()
			report := h.Check(t.Context())
			require.Equal(t, want, report.Status, took)
			require.LessOrEqual(t, time.Since(began), 2*time.Second)
			time.Sleep(time.Second)
			require.Equal(t, want, h.Check(t.Context()).Status, took)
		}
	})
}

// Reports at the same time as everything else, with probes that do everything that a probe may do.
func TestHealthReportsWhileEverythingHappens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		n, running, most := 0, 0, 0
		odd := func(ctx context.Context) {
			mu.Lock()
			n++
			kind := n % 6
			running++
			most = max(most, running)
			mu.Unlock()
			defer func() { mu.Lock(); running--; mu.Unlock() }()
			switch kind {
			case 0:
				panic("probe")
			case 1:
				<-ctx.Done()
			case 2:
				time.Sleep(15 * time.Second)
			}
		}
		s := newStack(t, Config{Health: HealthConfig{
			Probe: func(ctx context.Context) error { odd(ctx); return ctx.Err() },
			Checks: []HealthCheck{{Name: "room", Optional: true, Run: func(context.Context) []CheckResult {
				return []CheckResult{{Value: math.NaN(), Unit: "x", Limit: math.Inf(1), Status: 77, Message: "\xff<script>", Time: time.Now().Add(time.Hour)}}
			}}},
			Rules: map[string]HealthRule{"api": {WorseAfter: 3 * time.Second, BetterAfter: 5 * time.Second}},
		}})
		ctx, cancel := context.WithCancel(t.Context())
		go func() { _ = s.Run(ctx) }()
		rt := s.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) { return reply(200, ""), nil }))
		var wg sync.WaitGroup
		for i := range 40 {
			wg.Go(func() {
				for range 50 {
					time.Sleep(time.Duration(i) * 37 * time.Millisecond)
					began := time.Now()
					rec := httptest.NewRecorder()
					[]http.Handler{s.Health(), s.Health().Ready(), s.Health().Live()}[i%3].ServeHTTP(rec, httptest.NewRequest("GET", "/", nil))
					require.True(t, json.Valid(rec.Body.Bytes()), rec.Body)
					require.LessOrEqual(t, time.Since(began), 2*time.Second)
					_, _ = dial(WithCall(t.Context(), Call{Effect: EffectRead}), t, rt, "", "")
					s.Breaker.ForceOpen()
					s.Breaker.Reset()
				}
			})
		}
		wg.Wait()
		require.Equal(t, 1, most, "H06: one at a time")
		cancel()
		closeStack(t, s)
		require.NotContains(t, strings.ToLower(fmt.Sprint(s.Health().Check(t.Context()))), "panic: probe")
		time.Sleep(time.Minute)
	})
}
