package resilience

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestHealthTheFirstOfTheWorstIsNamed(t *testing.T) {
	r := newReport([]CheckResult{{Name: "a", Status: Healthy}, {Name: "b", Status: Degraded}, {Name: "c", Status: Degraded}})
	require.Equal(t, "b", r.worst().Name)
}

func TestHealthAReportIsTheReaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told Report
		h := healthOf(t, HealthConfig{OnChange: func(_, now Report) { told = now }})
		watchOne(h, CheckResult{Name: "dlq", Status: Degraded})
		r := h.Check(t.Context())
		clear(r.Checks)
		synctest.Wait()
		require.Equal(t, Degraded, told.Find("dlq").Status)
	})
}

func TestHealthRefreshAsksAllAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := func(context.Context) []CheckResult {
			time.Sleep(time.Second)
			return []CheckResult{{Status: Healthy}}
		}
		h := healthOf(t, HealthConfig{Checks: []HealthCheck{{Name: "a", Run: slow}, {Name: "b", Run: slow}}})
		start := time.Now()
		h.refresh(t.Context())
		require.Equal(t, time.Second, time.Since(start))
	})
}

func TestHealthAProbeThatHangsIsAChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []Status
		h := healthOf(t, HealthConfig{
			Probe:    func(ctx context.Context) error { <-ctx.Done(); return context.Cause(ctx) },
			OnChange: func(_, now Report) { told = append(told, now.Status) },
		})
		h.Check(t.Context())
		synctest.Wait()
		require.Equal(t, []Status{Unhealthy}, told)
	})
}

func TestHealthAnOldAnswerOfAClosedProbeIsNotShown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := healthOf(t, HealthConfig{Probe: codes(nil)})
		require.Equal(t, Healthy, h.Check(t.Context()).Status)
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		for range 20 {
			require.NoError(t, h.drain(gone), "the probe has returned")
		}
		require.Equal(t, Healthy, h.Check(t.Context()).Status, "it counts still")
		time.Sleep(10 * time.Second)
		require.Equal(t, "closed", h.Check(t.Context()).Find("api").State)
		require.Equal(t, Unknown, h.Check(t.Context()).Status)
	})
}

// The second question of all hangs, and comes sooner than a probe may take.
func TestHealthOneAnswerIsEnoughNotToWaitForTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		h := healthOf(t, HealthConfig{ProbeEvery: time.Second, Probe: func(ctx context.Context) error {
			if asked++; asked > 1 {
				<-ctx.Done()
			}
			return nil
		}})
		require.Equal(t, 200, ask(h, "GET", "").Code)
		time.Sleep(time.Second)
		start := time.Now()
		require.Equal(t, 200, ask(h, "GET", "").Code)
		require.Equal(t, handlerPatience, time.Since(start))
		time.Sleep(2 * time.Second)
	})
}

func TestHealthAWrongMethodGetsNothingElse(t *testing.T) {
	h := healthOf(t, HealthConfig{})
	for _, handler := range []http.Handler{h, h.Live(), h.Ready()} {
		rec := ask(handler, "POST", "")
		require.Equal(t, "method not allowed\n", rec.Body.String())
		require.Empty(t, rec.Header().Get("Cache-Control"))
	}
}

func TestHealthDocumentOfOddReadings(t *testing.T) {
	row := func(c CheckResult) map[string]any {
		t.Helper()
		c.Name = "db"
		body, err := json.Marshal(newReport([]CheckResult{c}))
		require.NoError(t, err)
		var doc struct{ Checks map[string][]map[string]any }
		require.NoError(t, json.Unmarshal(body, &doc))
		return doc.Checks["db"][0]
	}
	require.Equal(t, "open", row(CheckResult{State: "open"})["observedValue"])
	require.NotContains(t, row(CheckResult{}), "observedValue")
	require.NotContains(t, row(CheckResult{State: "open", Value: math.NaN(), Unit: "ms"}), "observedValue", "the state is not in ms")
	require.NotContains(t, row(CheckResult{Limit: math.NaN()}), "limit")

	whole := func(c CheckResult) healthDoc { return newHealthDoc(newReport([]CheckResult{c})) }
	require.Equal(t, []string{"nothing is known yet"}, whole(CheckResult{Name: "db"}).Notes)
	require.Empty(t, whole(CheckResult{Name: "db", Status: Healthy, Message: "fine"}).Notes)
	require.Empty(t, whole(CheckResult{Name: "db", Status: Healthy, Message: "fine"}).Output, "the draft wants none beside a pass")
	require.Equal(t, "db: full", whole(CheckResult{Name: "db", Status: Degraded, State: "ok", Message: "full"}).Output)
}

func TestHealthPrefersHTMLToAQualityThatIsNone(t *testing.T) {
	for accept, want := range map[string]bool{
		"application/json;q=NaN, text/html": true, "application/json;q=NaN, text/html;q=0": false, "text/html;q=1e999": false,
	} {
		require.Equal(t, want, prefersHTML(http.Header{"Accept": {accept}}), accept)
	}
}

func TestHealthRulesThatNoNumberCanMeet(t *testing.T) {
	for _, odd := range []float64{math.NaN(), math.Inf(1), math.Inf(-1), -2} {
		_, err := NewHealth(HealthConfig{Rules: map[string]HealthRule{"dlq": {DegradedFrom: odd}}})
		require.ErrorContains(t, err, `Health.Rules["dlq"].DegradedFrom`)
		_, err = NewHealth(HealthConfig{Rules: map[string]HealthRule{"dlq": {UnhealthyFrom: odd}}})
		require.ErrorContains(t, err, `Health.Rules["dlq"].UnhealthyFrom`)
	}
	_, err := NewHealth(HealthConfig{Rules: map[string]HealthRule{"dlq": {DegradedFrom: 5, UnhealthyFrom: 5}}})
	require.NoError(t, err)
	_, err = NewHealth(HealthConfig{Rules: map[string]HealthRule{"dlq": {DegradedFrom: 5, UnhealthyFrom: 4}}})
	require.Error(t, err)
}

func TestHealthRulesJudgeOnlyWhatWasRead(t *testing.T) {
	from5 := HealthRule{DegradedFrom: 5}
	for name, c := range map[string]struct {
		rule HealthRule
		read CheckResult
		want Status
		why  string
	}{
		"a number":            {from5, CheckResult{Status: Healthy, Value: 5, Unit: "s"}, Degraded, "by a rule: 5 s or more"},
		"nobody has seen it":  {from5, CheckResult{Status: Unknown, Value: 9, Unit: "s", Message: "old"}, Unknown, "old"},
		"no unit, no number":  {from5, CheckResult{Status: Healthy, Value: 9}, Healthy, ""},
		"it says what it is":  {from5, CheckResult{Status: Healthy, Value: 9, Unit: "s", State: "closed"}, Healthy, ""},
		"unhealthy stays":     {from5, CheckResult{Status: Unhealthy, Value: 9, Unit: "s", Message: "dead"}, Unhealthy, "dead"},
		"unhealthy below":     {from5, CheckResult{Status: Unhealthy, Value: 1, Unit: "s", Message: "dead"}, Unhealthy, "dead"},
		"muted":               {HealthRule{Mute: true}, CheckResult{Status: Healthy}, Unknown, "muted by a rule"},
		"muted trouble":       {HealthRule{Mute: true}, CheckResult{Status: Degraded}, Unknown, "muted by a rule, otherwise degraded"},
		"a state as it was":   {HealthRule{States: map[string]Status{"open": Degraded}}, CheckResult{Status: Degraded, State: "open", Message: "refuses"}, Degraded, "refuses"},
		"a state of its own":  {HealthRule{States: map[string]Status{"open": Unhealthy}}, CheckResult{Status: Degraded, State: "open", Message: "refuses"}, Unhealthy, "by a rule for this state"},
		"a status beyond all": {HealthRule{}, CheckResult{Status: 200, Message: "odd"}, Unhealthy, "odd"},
	} {
		got := c.rule.judge(c.read)
		require.Equal(t, c.want, got.Status, name)
		require.Equal(t, c.why, got.Message, name)
	}
	h := healthOf(t, HealthConfig{})
	watchOne(h, CheckResult{Name: "dlq", Status: 200})
	require.Equal(t, Unhealthy, h.Check(t.Context()).Find("dlq").Seen)
}

func TestHealthBoundsOfTheRules(t *testing.T) {
	_, why := circuitStatus("open", false, false)
	require.NotContains(t, why, "manual")
	for n, want := range map[int]Status{100: Healthy, 101: Degraded} {
		status, _ := unwrittenStatus(n)
		require.Equal(t, want, status)
	}
	for _, bound := range []int{0, -1} {
		status, _ := abandonedStatus(5, bound)
		require.Equal(t, Healthy, status, "there is no bound")
		status, _ = abandonedStatus(0, bound)
		require.Equal(t, Healthy, status)
		status, _ = letterStatus(0, -1, 0, bound)
		require.Equal(t, Healthy, status)
	}
	_, why = judgeCode(http.StatusServiceUnavailable)
	require.Contains(t, why, "the other side answers")
	_, why = judgeCode(http.StatusTeapot)
	require.NotContains(t, why, "the other side answers")
}

func TestHealthOfAQueueWithoutBounds(t *testing.T) {
	s := newStack(t, Config{DLQ: DLQConfig{MaxLetters: -1, MaxBytes: -1}})
	require.NoError(t, s.DLQ.Add(Letter{Operation: "op"}))
	c := s.Health().Check(t.Context()).Find("dlq")
	require.Equal(t, Healthy, c.Status)
	require.Zero(t, c.Limit)
	closeStack(t, s)
}

// What is said of a queue that is too full in two ways is the number of letters.
func TestHealthOfAQueueThatIsFullTwice(t *testing.T) {
	s := newStack(t, Config{DLQ: DLQConfig{MaxBytes: 20 << 10}, Health: HealthConfig{WarnLetters: 1}})
	for s.DLQ.Add(Letter{Operation: "op"}) == nil {
		continue
	}
	require.Contains(t, s.Health().Check(t.Context()).Find("dlq").Message, "letters, more than 1")
	closeStack(t, s)
}

func TestHealthARateOfNothingIsKnown(t *testing.T) {
	s := newStack(t, Config{Breaker: BreakerConfig{MinCalls: 1}})
	done, err := s.Breaker.Allow()
	require.NoError(t, err)
	done(OutcomeSuccess)
	seen := false
	for _, c := range s.Health().Check(t.Context()).Checks {
		if c.Name == "circuit" && c.Measure == "failure rate" {
			seen = true
			require.Equal(t, Healthy, c.Status)
			require.Equal(t, "%", c.Unit)
			require.Zero(t, c.Value)
		}
		if c.Name == "keys" && c.Measure == "in doubt" {
			require.Empty(t, c.Message, "there is none that could be looked up")
		}
	}
	require.True(t, seen)
	closeStack(t, s)
}

func TestHealthOfAStackWithoutLayers(t *testing.T) {
	s := newStack(t, Config{
		Fallback: FallbackConfig{Off: true}, Idempotency: IdempotencyConfig{Off: true}, DLQ: DLQConfig{Off: true},
		Timeout: TimeoutConfig{Off: true}, Retry: RetryConfig{Off: true}, Bulkhead: BulkheadConfig{Off: true},
		Breaker: BreakerConfig{Off: true},
	})
	r := s.Health().Check(t.Context())
	require.Len(t, r.Checks, 1)
	require.Equal(t, "api", r.Checks[0].Name)
	closeStack(t, s)
}

func TestHealthTheFirstReadingCountsAtOnceHoweverBad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, first := range []Status{Healthy, Degraded, Unhealthy} {
			h, now := steadied(t, time.Minute, time.Minute)
			now(first)
			r := h.Check(t.Context())
			require.Equal(t, first, r.Status)
			require.Zero(t, r.Find("db").SeenSince)
			require.Equal(t, "why", r.Find("db").Message, "nothing waits")
		}
	})
}

// What was bad is the reading that keeps the word, also while another has trouble that counts less.
func TestHealthTheReadingThatWasBadKeepsWhatCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, now := steadied(t, 0, time.Minute)
		now(Healthy, Unhealthy, Healthy)
		h.Check(t.Context())
		time.Sleep(time.Second)
		now(Healthy, Healthy, Degraded)
		for range 2 {
			r := h.Check(t.Context())
			var of []Status
			for _, c := range r.Checks[1:] {
				of = append(of, c.Status)
			}
			require.Equal(t, []Status{Healthy, Unhealthy, Degraded}, of)
			require.Zero(t, r.Checks[3].SeenSince, "the lesser trouble counts as what it is")
		}
	})
}

// The same where the readings differ in what they measure.
func TestHealthTheMeasureThatWasBadKeepsWhatCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := healthOf(t, HealthConfig{
			Checks: []HealthCheck{{Name: "db"}}, Rules: map[string]HealthRule{"db": {BetterAfter: time.Minute}},
		})
		statuses := []Status{Healthy, Unhealthy, Healthy}
		h.watch("db", func(context.Context) (list []CheckResult) {
			for i, measure := range []string{"rows", "lag", "disk"} {
				list = append(list, CheckResult{Measure: measure, Status: statuses[i]})
			}
			return list
		})
		h.Check(t.Context())
		statuses[1] = Healthy
		r := h.Check(t.Context())
		require.Equal(t, Healthy, r.Checks[1].Status)
		require.Equal(t, Unhealthy, r.Checks[2].Status)
		require.Equal(t, Healthy, r.Checks[3].Status)
	})
}

func TestHealthAnOlderLookMovesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSteady(map[string]HealthRule{"db": {WorseAfter: time.Second, BetterAfter: time.Second}})
		look := func(turn uint64, seen Status) Status {
			c := CheckResult{Status: seen}
			s.apply(map[string][]*CheckResult{"db": {&c}}, turn, true)
			return c.Status
		}
		require.Equal(t, Healthy, look(1, Healthy))
		require.Equal(t, Healthy, look(3, Degraded))
		time.Sleep(time.Second)
		look(2, Healthy) // which began before the trouble
		require.Equal(t, Degraded, look(4, Degraded))
	})
}

func TestHealthWhenSomethingThatWaitsWillCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSteady(map[string]HealthRule{
			"a": {WorseAfter: 30 * time.Second}, "b": {WorseAfter: 10 * time.Second, BetterAfter: time.Minute}, "c": {Mute: true},
		})
		require.Len(t, s.rules, 2)
		require.Zero(t, s.due())
		look := func(turn uint64, seen Status) {
			a, b := CheckResult{Status: seen}, CheckResult{Status: seen}
			s.apply(map[string][]*CheckResult{"a": {&a}, "b": {&b}}, turn, true)
		}
		look(1, Healthy)
		require.Zero(t, s.due(), "nothing waits")
		look(2, Degraded)
		for range 20 { // in whatever order a map is gone through
			require.Equal(t, 10*time.Second, s.due())
		}
		time.Sleep(11 * time.Second)
		for range 20 {
			require.Equal(t, 19*time.Second, s.due(), "the one whose time is over waits for a look")
		}
		look(3, Degraded)
		require.Equal(t, 19*time.Second, s.due())
		look(4, Healthy)
		require.Equal(t, time.Minute, s.due())
	})
}

func TestHealthAnAnswerInOurErrorComesFirst(t *testing.T) {
	code, _ := answerIn(errors.Join(&Error{StatusCode: 503}, theirStatus(401)))
	require.Equal(t, 503, code)
	code, _ = answerIn(errors.Join(&Error{}, theirStatus(401)))
	require.Equal(t, 401, code)
}

type theirStatus int

func (s theirStatus) HTTPStatus() int { return int(s) }
func (s theirStatus) Error() string   { return "answered" }

// The words of the documentation say these numbers; code and other tests go by the names.
func TestHealthTheNumbersAreTheDocumentedOnes(t *testing.T) {
	require.Equal(t, 15*time.Minute, refusalCounts)
	require.Equal(t, 15*time.Minute, longInDoubt)
	require.Equal(t, 30*time.Second, longWait)
	require.Equal(t, time.Minute, longOverdue)
	require.Equal(t, 500*time.Millisecond, handlerPatience)
	require.Equal(t, 20, maxCircuitsShown)
	p := probesOf([]HealthCheck{{
		Name: "db", Every: time.Second, Timeout: 5 * time.Second, Run: func(context.Context) []CheckResult { return nil },
	}})[0]
	require.Equal(t, 3*time.Second+5*time.Second, p.keep, "three times Every, and Timeout")
}

func TestHealthPageAllowsNothingFromElsewhere(t *testing.T) {
	header := ask(healthOf(t, HealthConfig{}), "GET", "text/html").Header()
	for _, part := range []string{
		"default-src 'none'", "connect-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'",
	} {
		require.Contains(t, header.Get("Content-Security-Policy"), part)
	}
	require.Equal(t, "no-referrer", header.Get("Referrer-Policy"))
	require.Equal(t, "nosniff", header.Get("X-Content-Type-Options"))
}
