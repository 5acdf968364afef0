package resilience

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// The page shows what happened on the road, though the program listens to nothing.
func TestStack_ThePageShowsEventsWithoutAListener(t *testing.T) {
	s := newStack(t, Config{})
	s.Breaker.ForceOpen()
	events := docOf(t, ask(s.Health(), "GET", ""))["events"].([]any)
	require.NotEmpty(t, events)
	require.Equal(t, "circuit.open", events[len(events)-1].(map[string]any)["kind"], "the oldest comes last")
}

func ask(h http.Handler, method, accept string) *httptest.ResponseRecorder {
	req := httptest.NewRequest(method, "/health", nil)
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, req)
	return rec
}

func docOf(t *testing.T, rec *httptest.ResponseRecorder) map[string]any {
	t.Helper()
	require.Equal(t, "application/health+json", rec.Header().Get("Content-Type"))
	var doc map[string]any
	require.NoError(t, json.Unmarshal(rec.Body.Bytes(), &doc))
	return doc
}

func TestH12_LivenessIgnoresTheOtherSide(t *testing.T) {
	for _, c := range []struct {
		status Status
		code   int
		word   string
	}{{Unknown, 200, "warn"}, {Healthy, 200, "pass"}, {Degraded, 200, "warn"}, {Unhealthy, 503, "fail"}} {
		h := healthOf(t, HealthConfig{})
		watchOne(h, CheckResult{Name: "circuit", Status: c.status})
		for _, handler := range []http.Handler{h, h.Ready()} {
			rec := ask(handler, "GET", "")
			require.Equal(t, c.code, rec.Code)
			require.Equal(t, c.word, docOf(t, rec)["status"])
			require.Equal(t, c.status.String(), docOf(t, rec)["health"])
		}
		require.Equal(t, 200, ask(h.Live(), "GET", "").Code)
		require.Equal(t, c.code, ask(h, "GET", "text/html").Code)
		require.NotContains(t, docOf(t, ask(h.Ready(), "GET", "")), "checks")
	}
	asked := false
	h := healthOf(t, HealthConfig{Probe: func(context.Context) error { asked = true; return errors.New("down") }})
	require.Equal(t, 200, ask(h.Live(), "GET", "").Code)
	require.False(t, asked)
	require.Equal(t, 503, ask(h.Ready(), "GET", "").Code)

	var none *Health
	for _, handler := range []http.Handler{none, none.Live(), none.Ready()} {
		require.Equal(t, 200, ask(handler, "GET", "").Code)
	}
}

// An orchestrator that gives a probe one second is answered in half of that, whatever the other side does.
func TestH09_NoRequestWaitsLongForAProbeThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var probes atomic.Int32
		var hangs atomic.Bool
		h := healthOf(t, HealthConfig{Probe: func(ctx context.Context) error {
			probes.Add(1)
			if !hangs.Load() {
				time.Sleep(100 * time.Millisecond)
				return nil
			}
			<-ctx.Done()
			return ctx.Err()
		}})
		watchOne(h, CheckResult{Name: "circuit", Status: Healthy})
		began := time.Now()
		read := func(at time.Duration) (code int, state string, took time.Duration) {
			time.Sleep(time.Until(began.Add(at)))
			asked := time.Now()
			code = ask(h.Ready(), "GET", "").Code
			took = time.Since(asked)
			var doc struct {
				Checks map[string][]struct{ State string }
			}
			require.NoError(t, json.Unmarshal(ask(h, "GET", "").Body.Bytes(), &doc))
			return code, doc.Checks["api:responseTime"][0].State, took
		}
		for _, c := range []struct {
			at    time.Duration
			hangs bool
			code  int
			state string
			took  time.Duration
		}{
			{0, false, 200, "ok", 100 * time.Millisecond},
			{15 * time.Second, true, 200, "stale", handlerPatience}, // what was good is not shown as good any more
			{20 * time.Second, true, 503, "timeout", 0},
			{30 * time.Second, true, 503, "timeout", handlerPatience}, // what was bad stands
			{45 * time.Second, false, 200, "ok", 100 * time.Millisecond},
		} {
			hangs.Store(c.hangs)
			code, state, took := read(c.at)
			require.Equal(t, c.code, code, c.at)
			require.Equal(t, c.state, state, c.at)
			require.Equal(t, c.took, took, c.at)
		}
		require.EqualValues(t, 4, probes.Load())
		hangs.Store(true)
		fresh := healthOf(t, HealthConfig{Probe: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }})
		asked := time.Now()
		require.Equal(t, 503, ask(fresh.Ready(), "GET", "").Code, "where nothing is known, who asks waits to be told")
		require.Equal(t, 2*time.Second, time.Since(asked))
	})
}

func TestHealthMethods(t *testing.T) {
	h := healthOf(t, HealthConfig{Probe: codes(nil)})
	for _, handler := range []http.Handler{h, h.Live(), h.Ready()} {
		head := ask(handler, "HEAD", "text/html")
		require.Equal(t, 200, head.Code)
		require.Empty(t, head.Body.String())
		require.NotEqual(t, "0", head.Header().Get("Content-Length"))
		require.Equal(t, "application/health+json", head.Header().Get("Content-Type"))
		for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS"} {
			rec := ask(handler, method, "")
			require.Equal(t, 405, rec.Code)
			require.Equal(t, "GET, HEAD", rec.Header().Get("Allow"))
		}
	}
}

func TestHealthDocument(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := healthOf(t, HealthConfig{Probe: func(context.Context) error { time.Sleep(12 * time.Millisecond); return nil }})
		watchOne(h, CheckResult{
			Name: "circuit", Measure: "state", Status: Degraded, State: "open", Message: "refuses", RetryAfter: 4 * time.Second,
		})
		h.watch("bulkhead", func(context.Context) []CheckResult {
			return []CheckResult{
				{Measure: "slots", Instance: "critical", Status: Healthy, Value: 0, Unit: "slots", Limit: 10, Message: "idle"},
				{Measure: "slots", Instance: "bulk", Value: math.NaN(), Unit: "slots", Limit: math.Inf(1), Message: "not seen"},
			}
		})
		h.Check(t.Context())
		time.Sleep(3500 * time.Millisecond)
		rec := ask(h, "GET", "*/*")
		require.Equal(t, "max-age=6", rec.Header().Get("Cache-Control"))
		require.Equal(t, "Accept", rec.Header().Get("Vary"))
		require.JSONEq(t, `{
			"status": "warn", "health": "degraded", "time": "2000-01-01T00:00:03.512Z", "output": "circuit: open: refuses",
			"checks": {
				"api:responseTime": [{"status": "pass", "health": "healthy", "state": "ok", "observedValue": 12, "observedUnit": "ms",
					"time": "2000-01-01T00:00:00.012Z", "ageSeconds": 3.5, "durationMs": 12}],
				"circuit:state": [{"status": "warn", "health": "degraded", "state": "open", "observedValue": "open", "output": "refuses",
					"time": "2000-01-01T00:00:03.512Z", "ageSeconds": 0, "durationMs": 0, "retryAfterSeconds": 4}],
				"bulkhead:slots": [
					{"componentId": "critical", "status": "pass", "health": "healthy", "observedValue": 0, "observedUnit": "slots",
						"limit": 10, "note": "idle", "time": "2000-01-01T00:00:03.512Z", "ageSeconds": 0, "durationMs": 0},
					{"componentId": "bulk", "health": "unknown", "output": "not seen",
						"time": "2000-01-01T00:00:03.512Z", "ageSeconds": 0, "durationMs": 0}]
			}}`, rec.Body.String())
		report, err := json.Marshal(h.Check(t.Context()))
		require.NoError(t, err)
		require.JSONEq(t, rec.Body.String(), string(report))
	})
}

func TestHealthShowsDetailsOnlyToWhomItMay(t *testing.T) {
	for name, show := range map[string]func(*http.Request) bool{
		"no": func(*http.Request) bool { return false }, "panic": func(*http.Request) bool { panic("no") },
	} {
		h := healthOf(t, HealthConfig{ShowDetails: show})
		watchOne(h, CheckResult{Name: "circuit", Status: Degraded, State: "open"})
		h.note(Event{Kind: EventCircuitOpen})
		rec := ask(h, "GET", "")
		require.JSONEq(t, `{"status":"warn","health":"degraded"}`, rec.Body.String(), name)
		require.Equal(t, "private, max-age=0", rec.Header().Get("Cache-Control"))
		require.NotContains(t, ask(h, "GET", "text/html").Body.String(), "circuit.open")
	}
	seen := healthOf(t, HealthConfig{ShowDetails: func(*http.Request) bool { return true }})
	require.Contains(t, docOf(t, ask(seen, "GET", "")), "checks")
}

func TestHealthKeepsTheLastEvents(t *testing.T) {
	h := healthOf(t, HealthConfig{})
	for i := range 70 {
		h.note(Event{Kind: EventRetry, Attempt: i + 1, Duration: time.Second})
	}
	events := docOf(t, ask(h, "GET", ""))["events"].([]any)
	require.Len(t, events, 50)
	require.EqualValues(t, 70, events[0].(map[string]any)["attempt"])
	require.EqualValues(t, 21, events[49].(map[string]any)["attempt"])
}

func TestHealthPageStandsAlone(t *testing.T) {
	h := healthOf(t, HealthConfig{})
	evil := `</script><script>alert(1)</script><!--`
	watchOne(h, CheckResult{Name: evil, Status: Healthy, Message: evil})
	rec := ask(h, "GET", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8")
	require.Equal(t, "text/html; charset=utf-8", rec.Header().Get("Content-Type"))
	require.Equal(t, "no-store", rec.Header().Get("Cache-Control"))
	page := rec.Body.String()
	require.NotContains(t, page, "alert(1)</script>")
	require.NotContains(t, page, "{{data}}")
	for _, foreign := range []string{"http://", "https://", "src=", "@import", "url(", "innerHTML", "style=", "onclick"} {
		require.NotContains(t, page, foreign)
	}

	policy := rec.Header().Get("Content-Security-Policy")
	require.NotContains(t, policy, "unsafe")
	for _, tag := range []string{"style", "script"} {
		require.Equal(t, 1, strings.Count(page, "<"+tag+">"))
		require.Contains(t, policy, tag+"-src '"+hashBetween("<"+tag+">", "</"+tag+">")+"'")
	}
	require.NotEqual(t, hashBetween("<style>", "</style>"), hashBetween("<script>", "</script>"))
}

func TestHealthPrefersHTML(t *testing.T) {
	for accept, want := range map[string]bool{
		"": false, "*/*": false, "text/*": false, "text/html": true, "TEXT/HTML;q=0.5, */*": true,
		"application/json, text/html": false, "application/json;q=0.5,text/html;level=1;q=0.9": true,
		"text/html;q=0": false, "text/html;q=x": false, "text/html;q=NaN": false, "application/health+json, text/html;q=0.9": false,
	} {
		require.Equal(t, want, prefersHTML(http.Header{"Accept": {accept}}), accept)
	}
}

func FuzzHealthDocument(f *testing.F) {
	f.Add("circuit", "state", "", byte(2), "open", 1.5, "x", "why", int64(5), int64(-1))
	f.Add(":", "a:b", "\xff", byte(250), "<&>", math.Inf(-1), "", "\x00", int64(math.MinInt64), int64(math.MaxInt64))
	f.Fuzz(func(t *testing.T, name, measure, instance string, status byte, state string, value float64, unit, message string, at, wait int64) {
		r := newReport([]CheckResult{{
			Name: name, Measure: measure, Instance: instance, Status: Status(status), State: state, Value: value, Unit: unit,
			Limit: value, Message: message, Time: time.Unix(at, 0), RetryAfter: time.Duration(wait),
		}})
		body, err := json.Marshal(r)
		require.NoError(t, err)
		var doc struct {
			Status string
			Checks map[string][]struct{ Health, Status string }
		}
		require.NoError(t, json.Unmarshal(body, &doc))
		require.Contains(t, []string{"pass", "warn", "fail"}, doc.Status)
		require.Equal(t, doc.Status == "fail", r.Status == Unhealthy)
		require.Equal(t, doc.Status == "pass", r.Status == Healthy)
		require.Len(t, doc.Checks, 1)
		for key, rows := range doc.Checks {
			require.LessOrEqual(t, strings.Count(key, ":"), 1)
			require.Len(t, rows, 1)
			require.Contains(t, []string{"", "pass", "warn", "fail"}, rows[0].Status)
		}
	})
}
