package resilience

import (
	"context"
	"fmt"
	"time"
)

// wireHealth has every layer that is there report what it knows anyway.
func (s *Stack) wireHealth() {
	h := s.health
	if s.Fallback != nil {
		h.watch("fallback", s.checkFallback)
	}
	if s.Idempotency != nil {
		h.watch("keys", s.checkKeys)
	}
	if s.DLQ != nil {
		h.watch("dlq", s.checkLetters)
	}
	if s.Timeout != nil {
		h.watch("timeout", s.checkTimeouts)
	}
	if s.Retry != nil {
		h.watch("retry", s.checkRetries)
	}
	if s.Bulkhead != nil {
		h.watch("bulkhead", s.checkSlots)
	}
	if s.Breaker != nil {
		h.watch("circuit", s.checkCircuit)
	}
	if s.Idempotency != nil || s.DLQ != nil {
		h.watch("run", s.checkRun)
	}
	if len(h.watchers) > 0 { // alone they say nothing about health
		h.watch("account", func(context.Context) []CheckResult { return s.account.readings() })
		h.watch("latency", s.checkLatency)
	}
}

func reading(measure string, value float64, unit string) CheckResult {
	return CheckResult{Measure: measure, Status: Healthy, State: "ok", Value: value, Unit: unit, Time: time.Now()}
}

func (c CheckResult) judged(status Status, why string) CheckResult {
	c.Status, c.Message = status, why
	return c
}

func (s *Stack) checkFallback(context.Context) []CheckResult {
	return []CheckResult{reading("answers", float64(s.Fallback.Stats().Entries), "answers")}
}

func (s *Stack) checkTimeouts(context.Context) []CheckResult {
	st := s.Timeout.Stats()
	fired := st.Connect + st.Request + st.Upload + st.LongPoll + st.Call + st.Budget
	return []CheckResult{reading("limit", float64(fired), "timeouts"), reading("lingering", float64(st.Lingering), "calls")}
}

func (s *Stack) checkRetries(context.Context) []CheckResult {
	st := s.Retry.Stats()
	return []CheckResult{reading("budget", float64(st.Retries), "retries"), reading("throttled", float64(st.Gates), "operations")}
}

func (s *Stack) checkKeys(context.Context) []CheckResult {
	i := s.Idempotency
	inDoubt, disputed, oldest, storeDown := i.doubts.summary(i.store.Now())
	doubts := reading("in doubt", float64(inDoubt), "keys")
	if inDoubt > 0 {
		doubts.Message = "being looked up"
	}
	return []CheckResult{
		doubts,
		reading("oldest", max(0, oldest).Seconds(), "s").judged(doubtAgeStatus(oldest)),
		reading("disputed", float64(disputed), "keys").judged(disputedStatus(disputed)),
		storeReading(storeDown),
		reading("flights", float64(i.Stats().Flights), "calls"),
	}
}

func (s *Stack) checkLetters(context.Context) []CheckResult {
	st := s.DLQ.Stats()
	letters := reading("letters", float64(st.Letters), "letters")
	room := max(0, s.DLQ.cfg.MaxLetters)
	letters.Limit = float64(room)
	letters.Status, letters.Message = letterStatus(st.Letters, s.health.warnLetters, st.Parked, room)
	if most := s.DLQ.cfg.MaxBytes; letters.Status == Healthy && most > 0 && st.Bytes >= most-most/5 {
		letters = letters.judged(Degraded, fmt.Sprintf("nearly full: %d of %d bytes", st.Bytes, most))
	}
	return []CheckResult{
		letters, reading("parked", float64(st.Parked), "letters"), reading("in doubt", float64(st.InDoubt), "letters"),
		reading("oldest", st.OldestAge.Seconds(), "s"),
		reading("unwritten", float64(st.Unwritten), "letters").judged(unwrittenStatus(st.Unwritten)),
	}
}

func (s *Stack) checkSlots(context.Context) []CheckResult {
	st := s.Bulkhead.Stats()
	var out []CheckResult
	for _, tier := range []struct {
		name string
		TierStats
	}{{"critical", st.Critical}, {"normal", st.Normal}, {"bulk", st.Bulk}} {
		slots := reading("slots", float64(tier.InUse), "slots")
		slots.Instance, slots.Limit = tier.name, float64(tier.Guaranteed)
		queue := reading("queue", float64(tier.Waiting), "calls")
		queue.Instance, queue.Limit = tier.name, float64(st.Queue)
		out = append(out, slots, queue.judged(queueStatus(tier.Waiting, st.Queue)))
	}
	abandoned := reading("abandoned", float64(st.Abandoned), "calls").judged(abandonedStatus(st.Abandoned, st.Total))
	abandoned.Limit = float64(st.Total)
	return append(out,
		reading("shed", float64(st.RecentSheds), "calls").judged(shedStatus(st.RecentSheds)), abandoned,
		reading("wait", st.OldestWait.Seconds(), "s").judged(slotWaitStatus(st.OldestWait)))
}

// maxCircuitsShown bounds what is said of circuits that a key names, when everything is down.
const maxCircuitsShown = 20

func (s *Stack) checkCircuit(context.Context) []CheckResult {
	cfg, st := &s.Breaker.config, s.Breaker.Stats()
	rate := reading("failure rate", 100*st.FailureRate, "%")
	if st.FailureRate < 0 {
		rate = CheckResult{Measure: "failure rate", State: "unknown", Message: "too few calls to know", Time: rate.Time}
	}
	rate.Limit = 100 * cfg.FailureRate
	named := s.Breaker.notClosed(maxCircuitsShown)
	results := append(make([]CheckResult, 0, 2+len(named)), circuitReading("", st, cfg.MetricsOnly), rate)
	for _, key := range named {
		results = append(results, circuitReading(key, s.Breaker.Circuit(key).Stats(), cfg.MetricsOnly))
	}
	return results
}

func circuitReading(key string, st BreakerStats, metricsOnly bool) CheckResult {
	r := CheckResult{Measure: "state", Instance: key, State: st.State.String(), RetryAfter: st.RetryAfter, Time: time.Now()}
	r.Status, r.Message = circuitStatus(st.State.String(), st.Forced, metricsOnly)
	return r
}

// checkRun tells of background work that nobody has started, which is the first thing to forget.
func (s *Stack) checkRun(context.Context) []CheckResult {
	r := CheckResult{Measure: "state", State: "running", Status: Healthy, Time: time.Now()}
	switch {
	case s.running.Load():
	case s.calls.closed():
		r.State, r.Status, r.Message = "closed", Unknown, "the stack is closed"
	default:
		r.State = "not running"
		r.Status, r.Message = idleStatus(s.DLQ.Stats().overdue(r.Time))
	}
	return []CheckResult{r}
}

// checkLatency reports what callers waited since the process began.
func (s *Stack) checkLatency(context.Context) []CheckResult {
	all := s.latency.snapshot()
	var out []CheckResult
	for c := range Class(len(s.latency)) {
		l, ok := all[c.String()]
		if !ok {
			continue
		}
		ms := func(measure string, d time.Duration) CheckResult {
			return reading(measure, float64(d)/float64(time.Millisecond), "ms")
		}
		for _, r := range []CheckResult{ms("p50", l.P50), ms("p90", l.P90), ms("p99", l.P99), reading("calls", float64(l.Count), "calls")} {
			r.Instance = c.String()
			out = append(out, r)
		}
	}
	if len(out) == 0 {
		return []CheckResult{reading("calls", 0, "calls").judged(Unknown, "no call has ended yet")}
	}
	return out
}
