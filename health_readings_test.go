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

// A queue that is full by bytes.
func TestHealth_AQueueFullByBytesIsDegraded(t *testing.T) {
	s := newStack(t, Config{DLQ: DLQConfig{MaxBytes: 20 << 10}})
	var err error
	for err == nil {
		err = s.DLQ.Add(Letter{Operation: "op"})
	}
	require.ErrorIs(t, err, ErrLettersFull)
	c := s.Health().Check(t.Context()).Find("dlq")
	closeStack(t, s)
	require.Equal(t, Degraded, c.Status, "the next failed write goes back to its caller")
}

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

// Each circuit that is not closed has a reading of its own, so that an operator knows where to look.
func TestHealth_NamesTheCircuitsThatAreNotClosed(t *testing.T) {
	s := newStack(t, Config{Breaker: BreakerConfig{MinCalls: 1, Key: byOperation}})
	defer closeStack(t, s)
	for n := range 30 {
		s.Breaker.Circuit(fmt.Sprintf("op-%02d", n)).ForceOpen()
	}
	require.Error(t, s.Breaker.refusal(Call{Operation: "op-03"}))
	var named []string
	for _, c := range s.Health().Check(t.Context()).Checks {
		if c.Name == "circuit" && c.Measure == "state" && c.Instance != "" {
			require.Equal(t, Degraded, c.Status)
			require.Equal(t, "open", c.State)
			named = append(named, c.Instance)
		}
	}
	require.Len(t, named, maxCircuitsShown)
	require.Equal(t, "op-00", named[0])
	require.Equal(t, Degraded, s.Health().Check(t.Context()).Status)
}

func TestHealth_NumbersOfTheLayers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{
			Bulkhead: BulkheadConfig{Critical: 3, Normal: 2, Bulk: 1, Queue: 7}, DLQ: DLQConfig{MaxLetters: 50, MaxBytes: 10_000},
			Breaker: BreakerConfig{FailureRate: 0.4, MinCalls: 4}, Timeout: TimeoutConfig{Request: time.Second}, Retry: RetryConfig{Max: -1},
		})
		rt := s.Wrap(slow(time.Hour))
		find := func(name, measure, instance string) CheckResult {
			for _, c := range s.Health().Check(t.Context()).Checks {
				if c.Name == name && c.Measure == measure && c.Instance == instance {
					return c
				}
			}
			t.Fatal(name, measure, instance)
			return CheckResult{}
		}
		for range 3 {
			_, _ = fetch(t.Context(), t, rt)
		}
		_, _ = fetch(WithBudget(t.Context(), 100*time.Millisecond), t, rt)
		require.EqualValues(t, 4, find("timeout", "limit", "").Value)
		require.EqualValues(t, 100, find("circuit", "failure rate", "").Value)
		require.EqualValues(t, 40, find("circuit", "failure rate", "").Limit)
		require.EqualValues(t, 3, find("bulkhead", "slots", "critical").Limit)
		require.EqualValues(t, 2, find("bulkhead", "slots", "normal").Limit)
		require.EqualValues(t, 1, find("bulkhead", "slots", "bulk").Limit)
		require.EqualValues(t, 7, find("bulkhead", "queue", "bulk").Limit)
		require.EqualValues(t, 6, find("bulkhead", "abandoned", "").Limit)
		require.EqualValues(t, 50, find("dlq", "letters", "").Limit)
		for n := range 4 { // a letter counts 2 KiB and more: the fourth fills four fifths
			require.Equal(t, Healthy, find("dlq", "letters", "").Status, n)
			require.NoError(t, s.DLQ.Add(Letter{Operation: "o", Method: "PUT", URL: "http://h/", Body: make([]byte, 100)}))
		}
		require.Equal(t, Degraded, find("dlq", "letters", "").Status)
		require.Zero(t, find("keys", "oldest", "").Value)
		s.Breaker.Reset()
		_, err := dial(t.Context(), t, s.Wrap(&phone{answer: lostAnswer}), "", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		require.Equal(t, "being looked up", find("keys", "in doubt", "").Message)
		time.Sleep(longInDoubt)
		require.Equal(t, Healthy, find("keys", "oldest", "").Status)
		require.EqualValues(t, 900, find("keys", "oldest", "").Value)
		time.Sleep(1)
		require.Equal(t, Degraded, find("keys", "oldest", "").Status)
		closeStack(t, s)
	})
}

// endedReads is a store whose reads of what is not settled take their time, and fail under a context that has ended.
type endedReads struct{ *MemoryStore }

func (s endedReads) Unsettled(ctx context.Context, cursor string, limit int) ([]Record, string, error) {
	if sleep(ctx, time.Second, nil); ctx.Err() != nil {
		return nil, "", ctx.Err()
	}
	return s.MemoryStore.Unsettled(ctx, cursor, limit)
}

// The end of Run says nothing about the store: one whose look at it is cut off leaves what health has known.
func TestHealth_TheEndOfRunIsNoFailureOfTheStore(t *testing.T) {
	for name, over := range map[string]time.Duration{"before it begins": 0, "at its second look": tendEvery + 1500*time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStack(t, Config{Idempotency: IdempotencyConfig{Store: endedReads{NewMemoryStore(0)}}})
				ctx, cancel := context.WithTimeout(t.Context(), over)
				defer cancel()
				require.NoError(t, s.Run(ctx))
				require.Equal(t, over, time.Since(s.epoch))
				for _, c := range s.Health().Check(t.Context()).Checks {
					if c.Name == "keys" && c.Measure == "store" {
						require.Equal(t, "ok", c.State)
					}
				}
				require.Zero(t, s.Stats().Idempotency.StoreErrors)
				closeStack(t, s)
			})
		})
	}
}
