package resilience

import (
	"fmt"
	"sync"
	"time"
)

// The rules by which numbers become a status. They are plain functions of plain values, so that stack.go, which alone knows
// the layers, reads them off a layer and hands them in. Each returns the status and, where there is something to say, why.
//
// What each passive check reports, the main reading first (Name: Measure, Instance → what):
//
//	timeout      limit            → Healthy, State "ok"; Value of timeouts fired, Unit "timeouts"
//	fallback     answers          → Healthy; Value stored answers, Unit "answers"
//	keys         in doubt         → keyStatus; Value, Unit "keys"; also "disputed"
//	dlq          letters          → letterStatus; Value of all letters, Unit "letters", Limit MaxLetters; also "parked", "oldest"
//	retry        budget           → Healthy; Value retries, Unit "retries"
//	bulkhead     slots,   by tier → Healthy; Value in use, Unit "slots", Limit the tier's slots
//	             queue,   by tier → queueStatus; Value waiting, Unit "calls", Limit the queue bound
//	             abandoned        → abandonedStatus; Value, Unit "calls", Limit the total of slots
//	circuit      state, by key    → circuitStatus; State "closed", "half-open", "open"; RetryAfter the time to the next trial
//	             failure rate     → as the state; Value 0 to 100, Unit "%", Limit the threshold
//
// A layer that is left out is not watched. One that has nothing to judge says Healthy and State "ok".

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

// queueStatus judges the queue of one tier. room 0 or less: it has no bound. shedding: calls were turned away lately, see
// healthGrowth.
func queueStatus(waiting, room int, shedding bool) (Status, string) {
	switch {
	case shedding:
		return Degraded, "calls were turned away lately"
	case overFourFifths(waiting, room):
		return Degraded, fmt.Sprintf("nearly full: %d of %d wait", waiting, room)
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

// longInDoubt is when a key in doubt should long have been settled by looking it up.
const longInDoubt = 15 * time.Minute

// keyStatus judges the idempotency keys. Without a store no call can be claimed; a disputed key needs a person.
func keyStatus(inDoubt, disputed int, oldest time.Duration, storeDown bool) (Status, string) {
	switch {
	case storeDown:
		return Unhealthy, "the key store does not answer: no new call is let through"
	case disputed > 0:
		return Degraded, fmt.Sprintf("%d disputed: two results for one key, a person has to look", disputed)
	case inDoubt > 0 && oldest > longInDoubt:
		return Degraded, fmt.Sprintf("%d in doubt, the oldest for %s", inDoubt, oldest.Round(time.Minute))
	case inDoubt > 0:
		return Healthy, fmt.Sprintf("%d in doubt, being looked up", inDoubt)
	}
	return Healthy, ""
}

func atFourFifths(n, room int) bool   { return room > 0 && n >= room-room/5 }
func overFourFifths(n, room int) bool { return room > 0 && n > room-room/5 }

// healthGrowth tells from a counter that only grows whether it grew lately, as far as the reads can tell: growth found by a
// read counts for the minute that follows. Judging a counter itself would call a process degraded for good after one
// bad second. The zero value is ready, and safe for concurrent use.
type healthGrowth struct {
	mu    sync.Mutex
	total uint64
	at    time.Time
}

func (g *healthGrowth) lately(total uint64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	if total > g.total {
		g.total, g.at = total, now
	}
	return !g.at.IsZero() && now.Sub(g.at) < time.Minute
}
