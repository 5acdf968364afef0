package resilience

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The rules by which numbers become a status. They are plain functions of plain values, so that stack.go, which alone knows
// the layers, reads them off a layer and hands them in. Each returns the status and, where there is something to say, why.

// layerReadings names what [HealthRule] lists, so that a rule for a reading that does not exist is found.
var layerReadings = map[string][]string{
	"api":      {"responseTime"},
	"fallback": {"answers"},
	"keys":     {"in doubt", "oldest", "disputed", "store", "flights"},
	"dlq":      {"letters", "parked", "in doubt", "oldest", "unwritten"},
	"timeout":  {"limit", "lingering"},
	"retry":    {"budget", "throttled"},
	"bulkhead": {"slots", "queue", "shed", "abandoned", "wait"},
	"circuit":  {"state", "failure rate"},
	"run":      {"state"},
	"account":  {"key", "payment", "permission"},
	"latency":  {"p50", "p90", "p99", "calls"},
}

// HealthRule says how a reading is judged instead of the default. A rule cannot make something that was not seen healthy:
// an unknown reading stays unknown, or becomes worse by States. A default that has nothing to do with the rule stands: one
// for an open circuit leaves a half-open one degraded.
//
// What is read of each component, the main reading first, its Unit or States, and what is worse than healthy by default. A
// layer that is left out is not watched.
//
//	api       responseTime      ms; ok or a word for what is wrong with the probe's answer: unhealthy, 402 and 429 degraded
//	circuit   state             closed, half-open, open: the last two degraded; one reading for each circuit that is not closed
//	          failure rate      %; unknown where fewer than BreakerConfig.MinCalls have ended
//	dlq       letters           letters: more than HealthConfig.WarnLetters, or four fifths of what DLQConfig allows
//	          parked, in doubt  letters
//	          oldest            s, of a letter that waits
//	          unwritten         letters whose last change the store has not taken: more than 100
//	keys      in doubt          keys
//	          oldest            s, of a key in doubt: more than 15 minutes
//	          disputed          keys: any
//	          store             ok, down: unhealthy
//	          flights           calls under way
//	account   key               ok, status 401 (unhealthy), stale, unseen
//	          payment           ok, status 402 (degraded), stale, unseen
//	          permission        ok, status 403 (degraded), stale, unseen
//	bulkhead  slots, by tier    slots in use
//	          queue, by tier    calls that wait: more than four fifths of the places
//	          shed              calls turned away in the last ten seconds: any
//	          abandoned         calls without a caller: as many as there are slots
//	          wait              s, of the call that has waited longest for a slot: more than 30
//	fallback  answers           stored answers
//	timeout   limit, lingering  timeouts that fired; calls that go on after theirs
//	retry     budget, throttled retries; operations that wait after a 429
//	run       state             running, closed, not running: degraded once a letter is a minute overdue, unknown before that
//	latency   p50, p90, p99, calls, each by class: ms, calls, since the process began
//
// The account is judged by the answers to ordinary calls, probe or no probe: what came from the other side just now, nothing
// that was cached or replayed. 401 is unhealthy, since no call will work, and any success refutes it. 402 is degraded, and
// so is 403, which may be about one operation only: only a success of the same operation refutes those. After 15 minutes
// without either, nobody knows (State "stale"). A stack through which several accounts call shows the trouble of the last one:
// mute "account" there, or change it by its States.
type HealthRule struct {
	// Mute shows the reading as unknown, so that it never counts.
	Mute bool
	// DegradedFrom is the Value from which on a reading is degraded, in the reading's Unit. It replaces all reasons for which
	// the reading would be degraded otherwise. 0: those stand; -1: never. Only readings whose State is "ok" or empty are
	// judged by their Value; the others have said already what is wrong with them.
	DegradedFrom float64
	// UnhealthyFrom is the Value from which on such a reading is unhealthy. 0: no value is.
	UnhealthyFrom float64
	// States gives readings with a State a status, for example "open". It has the last word on how a reading is judged.
	States map[string]Status
	// WorseAfter is how long something worse must be seen before it counts, BetterAfter how long something better. Until
	// then CheckResult.Status stays what it was; Seen, SeenSince and the Message tell what is seen. All readings that the
	// rule is for are taken together: the worst of them is what is seen. 0: at once.
	//
	//   - The first reading counts at once.
	//   - Time is worked out when somebody reads, and while nobody does, what was seen last is taken to go on. So it makes
	//     no difference how often health is read.
	//   - Unknown proves nothing, and so does not end the time of something worse. In place of something bad that counts
	//     already it comes after BetterAfter, in place of healthy at once.
	//   - An answer of the probe is what is seen until the next one. A time shorter than HealthConfig.ProbeEvery (for a
	//     check, HealthCheck.Every) is over before anybody has asked again.
	//
	// For a readiness probe that takes an instance out after half a minute of failures, and back after a quarter of a minute without:
	//
	//	"api": {WorseAfter: 30 * time.Second, BetterAfter: 15 * time.Second}
	WorseAfter, BetterAfter time.Duration
}

func checkHealthRules(f *faults, cfg HealthConfig) {
	names := maps.Clone(layerReadings)
	for _, c := range cfg.Checks {
		if _, ours := names[c.Name]; !ours {
			names[c.Name] = nil // it may measure what it likes
		}
	}
	for _, key := range slices.Sorted(maps.Keys(cfg.Rules)) {
		rule, field := cfg.Rules[key], fmt.Sprintf("Rules[%q]", key)
		name, measure, one := strings.Cut(key, ":")
		measures, ok := names[name]
		if !ok || one && measures != nil && !slices.Contains(measures, measure) {
			f.add(field, "for a component or a reading that exists", strconv.Quote(key))
		}
		if v := rule.DegradedFrom; math.IsNaN(v) || math.IsInf(v, 0) || v < 0 && v != -1 {
			f.add(field+".DegradedFrom", "positive, 0 for the default or -1 for never", v)
		}
		if v := rule.UnhealthyFrom; math.IsNaN(v) || math.IsInf(v, 0) || v < 0 || v > 0 && v < rule.DegradedFrom {
			f.add(field+".UnhealthyFrom", "0 for never, or positive and not below DegradedFrom", v)
		}
		f.positive(field+".WorseAfter", rule.WorseAfter)
		f.positive(field+".BetterAfter", rule.BetterAfter)
		for _, state := range slices.Sorted(maps.Keys(rule.States)) {
			if s := rule.States[state]; s > Unhealthy {
				f.add(fmt.Sprintf("%s.States[%q]", field, state), "one of the statuses", s)
			}
		}
	}
}

func cloneRules(rules map[string]HealthRule) map[string]HealthRule {
	rules = maps.Clone(rules)
	for key, rule := range rules {
		rule.States = maps.Clone(rule.States)
		rules[key] = rule
	}
	return rules
}

// judge lets the rules have the last word on each reading: how bad it is, and when that counts.
func (h *Health) judge(checks []CheckResult, turn uint64, patient bool) {
	var waiting map[string][]*CheckResult // by rule: those that do not count at once
	for i := range checks {
		c := &checks[i]
		key, rule, ok := h.ruleOf(c)
		if ok {
			*c = rule.judge(*c)
		}
		c.Status = min(c.Status, Unhealthy)
		c.Seen, c.SeenSince = c.Status, time.Time{}
		if h.steady.rules[key] != nil {
			if waiting == nil {
				waiting = map[string][]*CheckResult{}
			}
			waiting[key] = append(waiting[key], c)
		}
	}
	h.steady.apply(waiting, turn, patient)
}

// ruleOf finds the rule for a reading: the one for it alone, else that for its component.
func (h *Health) ruleOf(c *CheckResult) (key string, rule HealthRule, ok bool) {
	if len(h.rules) == 0 {
		return "", HealthRule{}, false
	}
	key = c.Name + ":" + c.Measure
	if rule, ok = h.rules[key]; !ok {
		key = c.Name
		rule, ok = h.rules[key]
	}
	return key, rule, ok
}

func (r HealthRule) judge(c CheckResult) CheckResult {
	was := min(c.Status, Unhealthy)
	now, why := was, c.Message
	if was != Unknown && c.Unit != "" && (c.State == "" || c.State == "ok") {
		now, why = r.byValue(was, c)
	}
	if s, ok := r.States[c.State]; ok && s != now {
		now, why = s, "by a rule for this state"
	}
	switch {
	case r.Mute:
		c.Status, c.Message = Unknown, "muted by a rule"
		if was > Healthy {
			c.Message += ", otherwise " + was.String()
		}
	case was == Unknown && now == Healthy: // nobody has seen that
	default:
		c.Status, c.Message = now, why
	}
	return c
}

func (r HealthRule) byValue(was Status, c CheckResult) (Status, string) {
	number := strconv.FormatFloat
	switch {
	case r.UnhealthyFrom > 0 && c.Value >= r.UnhealthyFrom:
		return Unhealthy, fmt.Sprintf("by a rule: %s %s or more", number(r.UnhealthyFrom, 'f', -1, 64), c.Unit)
	case r.DegradedFrom == 0 || was == Unhealthy:
		return was, c.Message
	case r.DegradedFrom > 0 && c.Value >= r.DegradedFrom:
		return Degraded, fmt.Sprintf("by a rule: %s %s or more", number(r.DegradedFrom, 'f', -1, 64), c.Unit)
	case was == Degraded:
		return Healthy, "healthy by a rule"
	}
	return was, c.Message
}

// circuitStatus judges a circuit by its state. An open one is degraded, not unhealthy: the process does what it should.
func circuitStatus(state string, forced, metricsOnly bool) (Status, string) {
	switch {
	case forced && state == "open":
		return Degraded, "manual: held open, every call is refused"
	case forced:
		return Unknown, "manual: held closed, it protects nobody"
	case metricsOnly:
		return Unknown, "metrics only: it counts and never opens"
	}
	switch state {
	case "open":
		return Degraded, "calls are refused until a trial succeeds"
	case "half-open":
		return Degraded, "trial calls find out whether the other side is back"
	case "closed":
		return Healthy, ""
	}
	return Unknown, "state not known"
}

// letterStatus judges the letters in the queue, parked ones included. More than warn is degraded (below 0: never), and so
// is a queue four fifths full (room 0 or less: no bound), because a full one sends failed writes back to the callers.
// Parked letters are mentioned: they were reported when they were parked, and may stay for good reasons.
func letterStatus(letters, warn, parked, room int) (Status, string) {
	switch {
	case atFourFifths(letters, room):
		return Degraded, fmt.Sprintf("nearly full: %d of %d letters", letters, room)
	case warn >= 0 && letters > warn:
		return Degraded, fmt.Sprintf("%d letters, more than %d", letters, warn)
	case parked > 0:
		return Healthy, fmt.Sprintf("%d parked: redrive has given them up", parked)
	}
	return Healthy, ""
}

// unwrittenStatus judges changes of letters that are not in their store. A few are on their way; many mean that it takes none.
func unwrittenStatus(n int) (Status, string) {
	if n > 100 {
		return Degraded, "the store of letters does not keep up: what changed since would be lost with the process"
	}
	return Healthy, ""
}

// queueStatus judges the queue of one tier. room 0 or less: it has no bound.
func queueStatus(waiting, room int) (Status, string) {
	if overFourFifths(waiting, room) {
		return Degraded, fmt.Sprintf("nearly full: %d of %d wait", waiting, room)
	}
	return Healthy, ""
}

// shedStatus judges calls that were lost for lack of a slot in the last seconds.
func shedStatus(lately int) (Status, string) {
	if lately > 0 {
		return Degraded, "calls were turned away lately"
	}
	return Healthy, ""
}

// abandonedStatus judges work that goes on without anybody who waits for it and keeps its slot. Some is normal: a phone
// call in flight whose caller hung up. It is degraded once it holds every slot there is (slots 0 or less: no bound).
func abandonedStatus(abandoned, slots int) (Status, string) {
	switch {
	case slots > 0 && abandoned >= slots:
		return Degraded, "abandoned work holds every slot"
	case abandoned > 0:
		return Healthy, fmt.Sprintf("%d going on without a caller", abandoned)
	}
	return Healthy, ""
}

// longWait is when those who wait for a slot should long have had one: as long as a request may take, all told.
const longWait = 30 * time.Second

// slotWaitStatus judges the wait of the call that has waited longest for a slot.
func slotWaitStatus(oldest time.Duration) (Status, string) {
	if oldest > longWait {
		return Degraded, fmt.Sprintf("a call has waited %s for a slot", oldest.Round(time.Second))
	}
	return Healthy, ""
}

// longOverdue leaves time for whoever calls DLQ.Redrive instead of running the stack.
const longOverdue = time.Minute

// idleStatus judges background work that nobody does. overdue is for how long a letter could have been redriven; 0: there is none.
func idleStatus(overdue time.Duration) (Status, string) {
	if overdue > longOverdue {
		return Degraded, "letters are due and nobody redrives them: Stack.Run was not started, or has ended"
	}
	return Unknown, "Stack.Run was not started, or has ended: letters and keys in doubt will wait"
}

// longInDoubt is when a key in doubt should long have been settled by looking it up.
const longInDoubt = 15 * time.Minute

// doubtAgeStatus judges the age of the oldest key in doubt; 0: there is none.
func doubtAgeStatus(oldest time.Duration) (Status, string) {
	if oldest > longInDoubt {
		return Degraded, fmt.Sprintf("a key has been in doubt for %s", oldest.Round(time.Minute))
	}
	return Healthy, ""
}

// disputedStatus judges keys with two results: each one needs a person.
func disputedStatus(keys int) (Status, string) {
	if keys > 0 {
		return Degraded, fmt.Sprintf("%d disputed: two results for one key, a person has to look", keys)
	}
	return Healthy, ""
}

// storeReading judges the key store: without it no call can be claimed.
func storeReading(down bool) CheckResult {
	c := CheckResult{Measure: "store", Status: Healthy, State: "ok", Time: time.Now()}
	if down {
		c.Status, c.State, c.Message = Unhealthy, "down", "the key store does not answer: no new call is let through"
	}
	return c
}

func atFourFifths(n, room int) bool   { return room > 0 && n >= room-room/5 }
func overFourFifths(n, room int) bool { return room > 0 && n >= room-(room-1)/5 }
