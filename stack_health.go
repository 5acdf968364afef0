package resilience

import (
	"context"
	"time"
)

// wireHealth has every layer that is there report what it knows anyway.
func (s *Stack) wireHealth(cfg Config) {
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
		h.watch("circuit", func(context.Context) []CheckResult { return s.checkCircuit(cfg.Breaker.MetricsOnly) })
	}
}

func reading(measure string, value float64, unit string) CheckResult {
	return CheckResult{Measure: measure, Status: Healthy, State: "ok", Value: value, Unit: unit, Time: time.Now()}
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
	in := reading("in doubt", float64(inDoubt), "keys")
	in.Status, in.Message = keyStatus(inDoubt, disputed, oldest, storeDown)
	return []CheckResult{in, reading("disputed", float64(disputed), "keys"), reading("flights", float64(i.Stats().Flights), "calls")}
}

func (s *Stack) checkLetters(context.Context) []CheckResult {
	st := s.DLQ.Stats()
	letters := reading("letters", float64(st.Letters), "letters")
	room := max(0, s.DLQ.cfg.MaxLetters)
	letters.Limit = float64(room)
	letters.Status, letters.Message = letterStatus(st.Letters, s.health.warnLetters, st.Parked, room)
	return []CheckResult{
		letters, reading("parked", float64(st.Parked), "letters"), reading("in doubt", float64(st.InDoubt), "letters"),
		reading("oldest", st.OldestAge.Seconds(), "s"),
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
		queue.Status, queue.Message = queueStatus(tier.Waiting, st.Queue, st.RecentSheds > 0)
		out = append(out, slots, queue)
	}
	abandoned := reading("abandoned", float64(st.Abandoned), "calls")
	abandoned.Status, abandoned.Message = abandonedStatus(st.Abandoned, st.Total)
	return append(out, abandoned)
}

func (s *Stack) checkCircuit(metricsOnly bool) []CheckResult {
	st := s.Breaker.Stats()
	state := CheckResult{Measure: "state", State: st.State.String(), RetryAfter: st.RetryAfter, Time: time.Now()}
	state.Status, state.Message = circuitStatus(st.State.String(), st.Forced, metricsOnly)
	if st.OpenCircuits > 0 && state.Status < Degraded {
		state.Status, state.Message = Degraded, "the circuit of an operation is not closed"
	}
	rate := reading("failure rate", max(0, 100*st.FailureRate), "%")
	rate.State = st.State.String()
	return []CheckResult{state, rate}
}
