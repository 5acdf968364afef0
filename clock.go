package resilience

import (
	"context"
	"sync/atomic"
	"time"
)

// now looks at the clock.
func (t *trip) now() time.Duration { return t.clock.look() }

// lately is now for what may be a few steps of the road old. Nothing but waiting takes a read longer than that, so who makes
// a call wait must say so; see [trip.waited]. After a transport, ours or somebody else's, the wire looks. A write may also
// wait for its records.
func (t *trip) lately() time.Duration {
	if seen := t.clock.seen.Load(); seen > 0 && t.call.Effect == EffectRead {
		return time.Duration(seen)
	}
	return t.clock.look()
}

// waited says that time has passed since anybody looked.
func (t *trip) waited() { t.clock.seen.Store(0) }

// clock counts time from the beginning of a stack, or of a trip without one. It remembers when it was last looked at, since
// each look costs as much as two doors.
type clock struct {
	epoch time.Time
	seen  atomic.Int64 // the last look; 0: somebody has waited since
}

// look returns the time since epoch, which takes half as long as time.Now.
func (c *clock) look() time.Duration {
	since := time.Since(c.epoch)
	c.seen.Store(int64(since))
	return since
}

// at is the time of an instant.
func (c *clock) at(instant time.Duration) time.Time { return c.epoch.Add(instant) }

// useful is the least time that an attempt needs to make sense: with less left none is started, once the call has had to
// wait. It is far below the round trip to any API.
const useful = 10 * time.Millisecond

// later is the later one of two times.
func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// isClosed reports whether an end has come that a channel stands for; a nil channel: there is none.
func isClosed(end <-chan struct{}) bool {
	select {
	case <-end:
		return true
	default:
		return false
	}
}

// sleep waits for the time (0: for ever), for a sign on wake (nil: none comes) or for the end of ctx.
func sleep(ctx context.Context, wait time.Duration, wake <-chan struct{}) {
	var over <-chan time.Time
	if wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		over = timer.C
	}
	select {
	case <-ctx.Done():
	case <-over:
	case <-wake:
	}
}

const maxDuration time.Duration = 1<<63 - 1

// doubled is base doubled n times, at most ceiling.
func doubled(base, ceiling time.Duration, n int) time.Duration {
	if base < ceiling>>n {
		return base << n
	}
	return ceiling
}

// saturate adds two durations that are not negative.
func saturate(a, b time.Duration) time.Duration {
	if sum := a + b; sum >= 0 {
		return sum
	}
	return maxDuration
}
