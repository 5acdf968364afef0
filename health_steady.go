package resilience

import (
	"fmt"
	"sync"
	"time"
)

// steady is what the rules with WorseAfter or BetterAfter remember. It holds one small record for each such rule, however
// many instances come and go, and looks at the time only when somebody reads.
type steady struct {
	mu    sync.Mutex
	turn  uint64 // of the newest look
	rules map[string]*steadyRule
}

// steadyRule is what counts of the readings of one rule, and since when something else is seen. Two thresholds, each with
// a time of its own, because readings that go back and forth between degraded and unhealthy are degraded all the while.
type steadyRule struct {
	worseAfter, betterAfter time.Duration

	known               bool // something was seen
	degraded, unhealthy threshold
	measure, instance   string // of the reading that was the worst one when that counted
}

// threshold says whether a status is reached, as far as that counts, and since when the opposite is seen; zero: it is not.
type threshold struct {
	reached bool
	since   time.Time
}

func newSteady(rules map[string]HealthRule) *steady {
	s := &steady{rules: map[string]*steadyRule{}}
	for key, r := range rules {
		if r.WorseAfter > 0 || r.BetterAfter > 0 {
			s.rules[key] = &steadyRule{worseAfter: r.WorseAfter, betterAfter: r.BetterAfter}
		}
	}
	return s
}

// apply lets what counts take the place of what is seen. Only the newest look moves anything, and only if its reader had
// the patience to see everything.
func (s *steady) apply(readings map[string][]*CheckResult, turn uint64, patient bool) {
	if len(readings) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	newest := patient && turn > s.turn
	if newest {
		s.turn = turn
	}
	now := time.Now()
	for key, of := range readings {
		rule, worst := s.rules[key], worstReading(of)
		if newest {
			rule.look(worst, now)
		}
		if rule.known {
			rule.show(of, worst, now)
		}
	}
}

func worstReading(of []*CheckResult) *CheckResult {
	worst := of[0]
	for _, c := range of {
		if c.Status > worst.Status {
			worst = c
		}
	}
	return worst
}

func (r *steadyRule) look(worst *CheckResult, now time.Time) {
	seen := worst.Status
	if !r.known && seen != Unknown { // nothing was seen before that could stand against it
		r.known = true
		r.degraded.reached, r.unhealthy.reached = seen >= Degraded, seen >= Unhealthy
	}
	r.degraded.look(seen, seen >= Degraded, r, now)
	r.unhealthy.look(seen, seen >= Unhealthy, r, now)
	if seen >= r.counts() {
		r.measure, r.instance = worst.Measure, worst.Instance
	}
}

// look takes note of what is seen. Unknown is no evidence that something worse is over: it lets that time run on. But
// where something worse counts already, unknown is not it.
func (t *threshold) look(seen Status, reached bool, r *steadyRule, now time.Time) {
	if reached == t.reached {
		if seen != Unknown {
			t.since = time.Time{}
		}
		return
	}
	if t.since.IsZero() {
		t.since = now
	}
	if now.Sub(t.since) >= r.after(reached) {
		*t = threshold{reached: reached}
	}
}

func (r *steadyRule) after(worse bool) time.Duration {
	if worse {
		return r.worseAfter
	}
	return r.betterAfter
}

func (r *steadyRule) counts() Status {
	switch {
	case r.unhealthy.reached:
		return Unhealthy
	case r.degraded.reached:
		return Degraded
	}
	return Healthy
}

// show caps readings that are worse than what counts. Where all are better, the one that was bad keeps what counts; if it
// is not there any more, the main one does. That nothing is known is never shown as healthy.
func (r *steadyRule) show(of []*CheckResult, worst *CheckResult, now time.Time) {
	counts := r.counts()
	if counts > Healthy && worst.Status < counts {
		was := of[0]
		for _, c := range of {
			if c.Measure == r.measure && c.Instance == r.instance {
				was = c
			}
		}
		r.hold(was, counts, worst.Status+1, now)
		return
	}
	for _, c := range of {
		if c.Status > counts {
			r.hold(c, counts, c.Status, now)
		}
	}
}

// hold shows a reading as what counts, and beside that what is seen, since the time of the threshold towards it.
func (r *steadyRule) hold(c *CheckResult, counts, threshold Status, now time.Time) {
	since := r.degraded.since
	if threshold == Unhealthy {
		since = r.unhealthy.since
	}
	since = or(since, now) // an impatient reader may be the first to see it
	why := fmt.Sprintf("%s for %s, which counts after %s",
		c.Status, now.Sub(since).Round(time.Second), r.after(c.Status > counts))
	if c.Message != "" {
		why += ": " + c.Message
	}
	c.Seen, c.SeenSince = c.Status, since
	c.Status, c.Message = counts, why
}

// due returns after how long something that is seen will count; 0: nothing waits.
func (s *steady) due() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	var next time.Duration
	for _, r := range s.rules {
		for _, t := range []threshold{r.degraded, r.unhealthy} {
			if t.since.IsZero() {
				continue
			}
			if in := r.after(!t.reached) - time.Since(t.since); in > 0 && (next == 0 || in < next) {
				next = in
			}
		}
	}
	return next
}
