// Package circuit is one circuit breaker: gobreaker's state machine behind a gate.
//
// gobreaker decides what follows what: closed, open, half-open, how many trials, whether they passed. The gate decides
// when it is asked, and supplies what it lacks: a window of completed calls that says when to trip, open periods that grow
// and end on time, reads that move nothing, a limit for trials that do not return, and hands on the switch.
//
// While the circuit is closed the machine would say yes to everybody, so it is asked only when the window says that it
// is time to trip. Everything that happens in half-open goes through it.
package circuit

import (
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"

	"github.com/retell-resilience/resilience/internal/waitq"
	"github.com/retell-resilience/resilience/internal/window"
)

// State of a circuit.
type State uint8

// The states.
const (
	Closed State = iota
	HalfOpen
	Open
)

var states = map[gobreaker.State]State{
	gobreaker.StateClosed: Closed, gobreaker.StateHalfOpen: HalfOpen, gobreaker.StateOpen: Open,
}

// Outcome of a call. The zero value is a failure: an outcome that nobody set proves nothing.
type Outcome uint8

// The outcomes.
const (
	Failure Outcome = iota
	Success
	Ignored
)

// Result is how a call ended.
type Result struct {
	Outcome Outcome
	Cause   string // of a failure, one word
	Status  int    // of a failure, 0: no answer
}

// Config of the gates of one breaker. All fields are set, none is checked here.
type Config struct {
	Epoch       time.Time // when their clocks begin
	FailureRate float64
	MinCalls    uint64
	Window      time.Duration
	OpenFor     time.Duration
	MaxOpenFor  time.Duration
	Trials      int
	TrialLimit  time.Duration
	Ramp        time.Duration // 0: none
	SlowCall    time.Duration // 0: no call is slow
	SlowRate    float64
	MetricsOnly bool

	// Changed hears of changes, in order, under the gate's lock: it must only take note.
	Changed func(Change)
	// Opened is called after the circuit opened and the lock was released, by whoever noticed.
	Opened func()
	// Refusal makes the error that an open circuit refuses with. It runs once for each time the circuit opens.
	Refusal func(key string, last Result) error
}

// Kind of a change.
type Kind uint8

// The kinds. Moved is from one state to another; Reset was done by hand, from any state; Exceeded means that the circuit
// would have opened, were it not there for the metrics only.
const (
	Moved Kind = iota
	Reset
	Exceeded
)

// Change is what Config.Changed hears.
type Change struct {
	Kind     Kind
	Key      string
	From, To State
	Last     Result // what tipped it
	Counts   window.Counts
	For      time.Duration // how long it stays open; 0: for good, or it is not about opening
}

// Ticket is an admission. Leave it once, or make it one that counts once.
type Ticket struct {
	mark       mark
	generation uint64
	since      time.Duration // set for trials, and where slow calls matter
	trial      uint64        // 0: not a trial
}

// trial is one that has not returned.
type trial struct {
	id    uint64
	since time.Duration
	done  func(error)
}

// shut is why and until when an open circuit refuses, so that refusing needs no lock.
type shut struct {
	until time.Duration // since epoch; < 0: until somebody does something by hand
	err   error
}

// Totals count since the beginning.
type Totals struct {
	Completed
	Changes
}

// Completed is how calls ended.
type Completed struct{ Successes, Failures, Ignored uint64 }

// Changes is how often a state was entered.
type Changes struct{ Opened, HalfOpened, Closed uint64 }

// Gate is one circuit. It is safe for concurrent use. What every call touches stands together at the beginning: with ten
// thousand circuits, fetching a gate from memory is most of what it costs.
type Gate struct {
	cfg        *Config
	shut       atomic.Pointer[shut] // nil unless open
	mu         sync.Mutex
	state      State
	forced     bool   // by hand, until the next Reset
	noticed    bool   // it opened under this lock
	exceeded   bool   // metrics only: it was above the threshold at the last result
	generation uint64 // grows with each change; results of another generation do not count
	completed  Completed
	place      waitq.Place[*Gate] // in its set
	window     window.Window

	key      string
	changes  Changes
	rejected atomic.Uint64
	rampFrom atomic.Int64 // when it closed, since epoch; 0: no ramp
	marks    marks
	machine  *gobreaker.TwoStepCircuitBreaker[struct{}]
	spare    *gobreaker.TwoStepCircuitBreaker[struct{}] // set in half-open: one that is open already
	at       time.Duration                              // instant of the change under way
	last     Result                                     // failure
	trip     window.Counts

	openedAt, openUntil time.Duration
	base, next          time.Duration // length of the open period that follows, before and after jitter
	refusal             error

	trials  []trial // oldest first
	trialID uint64
}

// New makes a closed gate.
func New(cfg *Config, key string) *Gate {
	g := &Gate{cfg: cfg, key: key, window: window.New(cfg.Window)}
	g.calm()
	return g
}

func (g *Gate) now() time.Duration { return time.Since(g.cfg.Epoch) }

// calm makes everything but the totals as in a new gate.
func (g *Gate) calm() {
	g.machine = g.newMachine()
	g.state, g.forced, g.exceeded = Closed, false, false
	g.base, g.next = g.cfg.OpenFor, g.cfg.OpenFor
	g.trials, g.spare, g.last = nil, nil, Result{}
	g.window.Clear()
	g.rampFrom.Store(0)
	g.shut.Store(nil)
}

var (
	errFailed  = errors.New("failed")
	errIgnored = errors.New("ignored")
)

// newMachine makes a closed machine. Its own open period is as short as it can be: the gate holds the real one, and asks
// the machine only when that is over.
func (g *Gate) newMachine() *gobreaker.TwoStepCircuitBreaker[struct{}] {
	var m *gobreaker.TwoStepCircuitBreaker[struct{}]
	m = gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		MaxRequests: uint32(g.cfg.Trials), //nolint:gosec // checked to be small
		Timeout:     1,
		// Only results that the window found to be too many reach a closed machine.
		ReadyToTrip: func(gobreaker.Counts) bool { return true },
		IsExcluded:  func(err error) bool { return err == errIgnored }, //nolint:errorlint // our own, bare
		OnStateChange: func(_ string, _, to gobreaker.State) {
			if m == g.machine {
				g.moved(states[to])
			}
		},
	})
	return m
}

func tripMachine(m *gobreaker.TwoStepCircuitBreaker[struct{}]) {
	if done, err := m.Allow(); err == nil {
		done(errFailed)
	}
}

// Enter asks to pass. An error says why not, and wait when to ask again; 0: not known.
func (g *Gate) Enter() (t Ticket, wait time.Duration, err error) {
	g.mu.Lock()
	defer g.unlock()
	if g.state == Closed {
		t.generation = g.generation
		if g.cfg.SlowCall > 0 {
			t.since = g.now()
		}
		return t, 0, nil
	}
	now := g.now()
	if g.state == HalfOpen {
		g.giveUp(now)
	}
	if g.state == Open && (g.forced || now < g.openUntil) {
		g.rejected.Add(1)
		return t, max(0, g.shut.Load().until-now), g.refusal
	}
	return g.try(now)
}

// Refuse is what Enter has to say while the circuit is open, without the lock; nil: ask Enter. It is apart, because one
// function for both makes either the refusal or the closed circuit a tenth slower.
func (g *Gate) Refuse() (wait time.Duration, err error) {
	s := g.shut.Load()
	if s == nil {
		return 0, nil
	}
	if s.until >= 0 {
		if wait = s.until - g.now(); wait <= 0 {
			return 0, nil
		}
	}
	g.rejected.Add(1)
	return wait, s.err
}

// try asks the machine for a trial. It moves from open to half-open by being asked.
func (g *Gate) try(now time.Duration) (Ticket, time.Duration, error) {
	g.at = now
	done, err := g.machine.Allow()
	if err != nil {
		g.rejected.Add(1)
		return Ticket{}, 0, g.refusal
	}
	g.trialID++
	g.trials = append(g.trials, trial{g.trialID, now, done})
	return Ticket{generation: g.generation, since: now, trial: g.trialID}, 0, nil
}

// Leave reports how an admitted call ended, now.
func (g *Gate) Leave(t Ticket, r Result) { g.LeaveAt(t, r, time.Time{}) }

// LeaveAt is Leave for who knows what time it is; zero: they do not. For trials the gate looks itself, since there the
// order in which they end matters.
func (g *Gate) LeaveAt(t Ticket, r Result, at time.Time) {
	if !t.mark.set() {
		return
	}
	g.mu.Lock()
	defer g.unlock()
	var now time.Duration
	if at.IsZero() || t.trial != 0 {
		now = g.now()
	} else {
		now = at.Sub(g.cfg.Epoch)
	}
	if t.trial != 0 {
		g.giveUp(now)
	}
	slow := g.cfg.SlowCall > 0 && now-t.since > g.cfg.SlowCall
	g.count(r.Outcome)
	switch {
	case t.generation != g.generation || g.forced:
		// It was admitted in another state than the one it would speak about.
	case t.trial != 0:
		g.endTrial(t.trial, now, r, slow)
	case r.Outcome != Ignored:
		g.record(now, r, slow)
	}
}

func (g *Gate) count(o Outcome) {
	switch o {
	case Success:
		g.completed.Successes++
	case Ignored:
		g.completed.Ignored++
	default:
		g.completed.Failures++
	}
}

// record counts a call that was admitted while the circuit was closed, and trips when that makes too many.
func (g *Gate) record(now time.Duration, r Result, slow bool) {
	failed := r.Outcome != Success
	if failed {
		g.last = r
	}
	g.window.Add(now, failed, slow)
	counts := g.window.Current()
	over := g.tooMany(counts)
	switch {
	case g.cfg.MetricsOnly:
		if over && !g.exceeded {
			g.tell(Change{Kind: Exceeded, Last: g.why(counts), Counts: counts})
		}
		g.exceeded = over
	case over:
		g.at, g.trip, g.last = now, counts, g.why(counts)
		tripMachine(g.machine)
	}
}

func (g *Gate) tooMany(c window.Counts) bool {
	return c.Total() >= g.cfg.MinCalls && (g.failing(c) || g.slowing(c))
}

func (g *Gate) failing(c window.Counts) bool { return share(c.Failures, c) >= g.cfg.FailureRate }

func (g *Gate) slowing(c window.Counts) bool {
	return g.cfg.SlowCall > 0 && share(c.Slow, c) >= g.cfg.SlowRate
}

func share(n uint32, of window.Counts) float64 { return float64(n) / float64(of.Total()) }

// why is the last failure, or slowness where that alone was too much.
func (g *Gate) why(c window.Counts) Result {
	if g.failing(c) {
		return g.last
	}
	return Result{Cause: "slow"}
}

// endTrial tells the machine how a trial ended. A slow one has not passed.
func (g *Gate) endTrial(id uint64, now time.Duration, r Result, slow bool) {
	for i, t := range g.trials {
		if t.id != id {
			continue
		}
		g.trials = append(g.trials[:i], g.trials[i+1:]...)
		g.at = now
		t.done(g.verdict(r, slow))
		return
	}
}

func (g *Gate) verdict(r Result, slow bool) error {
	switch {
	case r.Outcome == Ignored:
		return errIgnored
	case r.Outcome == Success && !slow:
		return nil
	case r.Outcome == Success:
		r = Result{Cause: "slow"}
	}
	g.last = r
	return errFailed
}

// giveUp opens the circuit again if a trial has not returned within its limit. That happened at the limit, however late
// somebody looks. The machine knows no such limit, so one that is open already takes over; with the old one goes
// whatever its trials may still report.
func (g *Gate) giveUp(now time.Duration) {
	limit, overdue := g.overdue(now)
	if !overdue {
		return
	}
	g.at, g.last = limit, Result{Cause: "abandoned"}
	g.machine, g.spare = g.spare, nil
	g.moved(Open)
}

func (g *Gate) overdue(now time.Duration) (limit time.Duration, overdue bool) {
	if g.state != HalfOpen || len(g.trials) == 0 {
		return 0, false
	}
	limit = saturate(g.trials[0].since, g.cfg.TrialLimit)
	return limit, now >= limit
}

// moved follows the machine.
func (g *Gate) moved(to State) {
	from := g.state
	g.state = to
	g.generation++
	g.trials = nil
	change := Change{From: from, To: to}
	switch to {
	case Open:
		if from == HalfOpen {
			g.trip = window.Counts{}
		}
		g.open()
		change.Last, change.Counts, change.For = g.last, g.trip, g.openUntil-g.openedAt
	case HalfOpen:
		g.shut.Store(nil)
		g.changes.HalfOpened++
		g.grow()
		g.spare = g.newMachine()
		tripMachine(g.spare)
	case Closed:
		g.close()
	}
	g.tell(change)
}

func (g *Gate) open() {
	g.changes.Opened++
	g.openedAt, g.openUntil = g.at, saturate(g.at, g.next)
	g.refusal = g.cfg.Refusal(g.key, g.last)
	g.shut.Store(&shut{until: g.openUntil, err: g.refusal})
	g.noticed = true
}

func (g *Gate) close() {
	g.changes.Closed++
	g.spare = nil
	g.window.Clear()
	g.base, g.next = g.cfg.OpenFor, g.cfg.OpenFor
	if g.cfg.Ramp > 0 {
		g.rampFrom.Store(int64(max(g.at, 1)))
	}
}

// grow decides how long the circuit stays open if its trials fail: twice as long as last time, less up to a quarter, so
// that many processes do not try again at the same instant.
func (g *Gate) grow() {
	g.base = min(saturate(g.base, g.base), g.cfg.MaxOpenFor)
	g.next = max(g.base-rand.N(g.base/4+1), g.cfg.OpenFor) //nolint:gosec // spreading, not secrecy
}

// saturate adds two durations that are not negative.
func saturate(a, b time.Duration) time.Duration {
	if sum := a + b; sum >= 0 {
		return sum
	}
	return 1<<63 - 1
}

func (g *Gate) tell(c Change) {
	c.Key = g.key
	g.cfg.Changed(c)
}

// unlock lets Opened know, without the lock, if the circuit opened under it and still is.
func (g *Gate) unlock() {
	opened := g.noticed && g.state == Open
	g.noticed = false
	g.mu.Unlock()
	if opened {
		g.cfg.Opened()
	}
}
