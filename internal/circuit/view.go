package circuit

import (
	"time"

	"github.com/retell-resilience/resilience/internal/window"
)

// View is what a gate looks like at one instant.
type View struct {
	State     State
	Forced    bool
	Refusing  bool          // whoever came now would be refused
	Wait      time.Duration // until a trial is due; 0: not known, or not refusing
	Refusal   error         // what they would be refused with
	OpenSince time.Time     // zero unless open
	Window    window.Counts
	Trip      window.Counts // what the window held when it opened last
	Totals    Totals
	Rejected  uint64  // since the beginning
	Share     float64 // see Gate.Share
}

// View reads the gate and moves nothing. What time alone has changed since the last call is seen as it is, though the
// gate has not moved: an open period that is over reads as half-open, a trial that is overdue as open again.
func (g *Gate) View() View {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.now()
	v := View{
		Forced: g.forced, Window: g.window.Counts(now), Trip: g.trip, Totals: Totals{g.completed, g.changes}, Rejected: g.rejected.Load(), Share: g.shareAt(now),
	}
	state, since, until := g.stateAt(now)
	switch v.State = state; state {
	case Open:
		v.Refusing, v.Refusal, v.OpenSince = true, g.refusal, g.cfg.Epoch.Add(since)
		if !g.forced {
			v.Wait = until - now
		}
	case HalfOpen:
		v.Refusing, v.Refusal = g.full(now), g.refusal
	case Closed:
	}
	return v
}

// Refusing is the part of View that is asked for often.
func (g *Gate) Refusing() (wait time.Duration, err error) {
	g.mu.Lock()
	closed := g.state == Closed
	g.mu.Unlock()
	if closed {
		return 0, nil
	}
	if v := g.View(); v.Refusing {
		return v.Wait, v.Refusal
	}
	return 0, nil
}

// State reads the state as View does.
func (g *Gate) State() State {
	g.mu.Lock()
	defer g.mu.Unlock()
	state, _, _ := g.stateAt(g.now())
	return state
}

func (g *Gate) stateAt(now time.Duration) (s State, since, until time.Duration) {
	s, since, until = g.state, g.openedAt, g.openUntil
	if limit, overdue := g.overdue(now); overdue {
		s, since, until = Open, limit, saturate(limit, g.next)
	}
	if s == Open && !g.forced && now >= until {
		s = HalfOpen
	}
	return s, since, until
}

// full reports whether all trials of a half-open circuit are taken.
func (g *Gate) full(now time.Duration) bool {
	if _, overdue := g.overdue(now); overdue || g.state != HalfOpen {
		return false // it becomes half-open, with all its trials, when somebody comes
	}
	c := g.machine.Counts()
	return c.Requests-c.TotalExclusions >= uint32(g.cfg.Trials) //nolint:gosec // checked to be small
}

// Share is how much of the usual load a circuit that has just closed should get: it grows from a tenth to 1 during the
// ramp.
func (g *Gate) Share() float64 {
	if g.rampFrom.Load() == 0 {
		return 1
	}
	return g.shareAt(g.now())
}

func (g *Gate) shareAt(now time.Duration) float64 {
	from := time.Duration(g.rampFrom.Load())
	if from == 0 || now-from >= g.cfg.Ramp {
		return 1
	}
	return max(0.1, float64(now-from)/float64(g.cfg.Ramp))
}
