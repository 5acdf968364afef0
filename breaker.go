package resilience

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/retell-resilience/resilience/internal/circuit"
	"github.com/retell-resilience/resilience/internal/window"
)

// Breaker stops calls to a server that does not answer properly, and finds out with a few trials when it does again.
//
// It promises that a call it refuses was not sent ([ErrOpen], with [NotSent] true and Error.RetryAfter); that every call
// it admits counts once, when it completes, and only if the circuit has not changed state meanwhile; that nothing which
// happened on this side (a refusal of another layer, a caller who hung up) speaks against the server; and that reading
// it changes nothing.
//
// What counts: a failure is a transport error, an attempt that reached its limit, a status of 500 or more, a body cut
// short, a panic. Ignored is a call whose caller cancelled it or whose caller's own deadline passed, a refusal by a layer
// below, and a 429, which has its own signal. Everything else is a success: also a 404 is an answer of a living server.
// A streamed answer counts when its headers arrive. In a [Stack], a call that must happen once goes on when its caller has
// left: it is a failure as soon as nobody has the time to wait for it any more, and what comes of it later counts no more.
//
// All methods are safe for concurrent use, and on a nil Breaker, which admits everything.
type Breaker struct {
	*breakerParts
	key string
	all bool // what is done by hand goes to every circuit
}

// breakerParts is what a breaker and the handles on its circuits share.
type breakerParts struct {
	shared *circuit.Gate
	keyed  *circuit.Set // nil: one circuit for all
	config BreakerConfig
	events *events

	opened func() // called without locks right after a circuit opened; set before use
}

// BreakerConfig sets up a [Breaker]. The zero value is the documented default.
type BreakerConfig struct {
	// FailureRate of the completed calls in the window at which the circuit opens: above 0, up to 1. 0: 0.5. It is
	// compared after every completed call; reaching it is enough.
	FailureRate float64
	// MinCalls is how many calls must have completed within the window before a rate is known. 0: 10.
	MinCalls int
	// Window is how far back completed calls count; it moves in tenths of itself. A call that takes longer than the
	// window counts all the same, when it completes. 0: 10 s. At least 1 ms.
	Window time.Duration
	// OpenFor is how long the circuit stays open before it lets trials through. 0: 30 s. As long as trials fail, it is
	// doubled, less a random part of up to a quarter (never below OpenFor), and is back at its start after a close.
	OpenFor time.Duration
	// MaxOpenFor bounds that growth. 0: 5 min, or OpenFor if that is longer. Equal to OpenFor: no growth.
	MaxOpenFor time.Duration
	// Trials is how many calls a half-open circuit lets through. All must succeed to close it; the first that fails, or
	// is slow, opens it again. One that is ignored gives its place back. Others are refused meanwhile. 0: 1. At most 1000.
	Trials int
	// TrialLimit is when a trial that has not returned is given up: the circuit opens again, and its late result does not
	// count. It is a safety net for calls without a limit of their own: an attempt that has one ends its trial itself. 0:
	// 5 min, the longest default limit of an attempt, so that no trial is given up that could still succeed; set it to
	// at least the longest limit that you give to an attempt.
	TrialLimit time.Duration
	// Ramp is how long a circuit that has just closed takes to ask for its usual load: BreakerStats.Share grows from 0.1
	// to 1, and a [Stack] gives out that share of its slots. A breaker used alone only reports it, and so does a circuit
	// that Key made: slots are shared by all operations, and one that comes back does not narrow them for the others. 0:
	// 5 s; -1: full load at once, as after Reset and ForceClose.
	Ramp time.Duration
	// SlowCall makes calls that took longer than this count as slow, whether they failed or not. 0 or -1: no call is slow.
	SlowCall time.Duration
	// SlowRate of the completed calls at which the circuit opens: above 0, up to 1. 0: 0.5. It needs SlowCall.
	SlowRate float64
	// MetricsOnly counts and reports ([EventCircuitExceeded], once per excess) but never opens by itself.
	MetricsOnly bool
	// Key gives calls with different keys circuits of their own, for example by Call.Operation; "" is the shared one. It
	// must be quick, must give few different keys, and none of them with personal data: they appear in events. It is
	// called without locks; if it panics, the call goes to the shared circuit. nil: one circuit for all calls. With it,
	// State and Stats of the breaker itself are about the shared circuit, which may have no calls at all: ask
	// [Breaker.Circuit] for one key, and BreakerStats.OpenCircuits for how many are not closed.
	Key func(Call) string
	// MaxKeys bounds the circuits that Key makes. The one unused for longest is forgotten first; of the sixteen unused for
	// longest, one that is closed and not held by hand before the others. 0: 1000; -1: no bound.
	MaxKeys int
	// OnEvent hears of changes, in order, on a goroutine of its own; it may call the breaker. nil: nobody listens.
	OnEvent func(Event)
	// Off leaves the layer out: [NewBreaker] returns nil, which admits everything.
	Off bool
}

// NewBreaker makes a breaker with closed circuits, or returns all faults of the config in one error.
func NewBreaker(c BreakerConfig) (*Breaker, error) {
	if err := c.check(); err != nil || c.Off {
		return nil, err
	}
	p := &breakerParts{config: c.resolve(), events: newEvents("breaker", c.OnEvent)}
	gates := p.gateConfig()
	p.shared = circuit.New(gates, "")
	if c.Key != nil {
		p.keyed = circuit.NewSet(gates, max(p.config.MaxKeys, 0))
	}
	return &Breaker{breakerParts: p, all: true}, nil
}

const (
	minBreakerWindow = time.Millisecond
	maxTrials        = 1000 // they are kept in a list
)

func (c BreakerConfig) check() error {
	f := faults{prefix: "Breaker"}
	f.rate("FailureRate", c.FailureRate)
	f.rate("SlowRate", c.SlowRate)
	if c.SlowRate > 0 && c.SlowCall <= 0 {
		f.add("SlowRate", "0 unless SlowCall is set", c.SlowRate)
	}
	if c.MinCalls < 0 {
		f.add("MinCalls", "positive or 0 for the default", c.MinCalls)
	}
	if c.Window < 0 || c.Window > 0 && c.Window < minBreakerWindow {
		f.add("Window", fmt.Sprintf("at least %v or 0 for the default", minBreakerWindow), c.Window)
	}
	f.positive("OpenFor", c.OpenFor)
	f.positive("MaxOpenFor", c.MaxOpenFor)
	if openFor := or(c.OpenFor, defaultOpenFor); c.MaxOpenFor > 0 && c.MaxOpenFor < openFor {
		f.add("MaxOpenFor", fmt.Sprintf("at least OpenFor, which is %v", openFor), c.MaxOpenFor)
	}
	if c.Trials < 0 || c.Trials > maxTrials {
		f.add("Trials", fmt.Sprintf("1 to %d or 0 for the default", maxTrials), c.Trials)
	}
	f.positive("TrialLimit", c.TrialLimit)
	f.duration("Ramp", c.Ramp)
	f.duration("SlowCall", c.SlowCall)
	f.count("MaxKeys", int64(c.MaxKeys))
	return f.err()
}

const (
	defaultOpenFor    = 30 * time.Second
	defaultMaxOpenFor = 5 * time.Minute
)

func (c BreakerConfig) resolve() BreakerConfig {
	c.FailureRate = or(c.FailureRate, 0.5)
	c.MinCalls = or(c.MinCalls, 10)
	c.Window = or(c.Window, 10*time.Second)
	c.OpenFor = or(c.OpenFor, defaultOpenFor)
	c.MaxOpenFor = or(c.MaxOpenFor, max(defaultMaxOpenFor, c.OpenFor))
	c.Trials = or(c.Trials, 1)
	c.TrialLimit = or(c.TrialLimit, 5*time.Minute)
	c.Ramp = max(or(c.Ramp, 5*time.Second), 0)
	c.SlowCall = max(c.SlowCall, 0)
	c.SlowRate = or(c.SlowRate, 0.5)
	c.MaxKeys = or(c.MaxKeys, 1000)
	return c
}

func (p *breakerParts) gateConfig() *circuit.Config {
	c := p.config
	return &circuit.Config{
		Epoch:       time.Now(),
		FailureRate: c.FailureRate, MinCalls: uint64(c.MinCalls), Window: c.Window, //nolint:gosec // checked
		OpenFor: c.OpenFor, MaxOpenFor: c.MaxOpenFor,
		Trials: c.Trials, TrialLimit: c.TrialLimit, Ramp: c.Ramp,
		SlowCall: c.SlowCall, SlowRate: c.SlowRate, MetricsOnly: c.MetricsOnly,
		Changed: p.report,
		Opened: func() {
			if p.opened != nil {
				p.opened()
			}
		},
		Refusal: refusalOf,
	}
}

// refusalOf says why the circuit opened. It is made when it opens, so that refusing costs little.
func refusalOf(_ string, last circuit.Result) error {
	switch {
	case last.Status != 0:
		return fmt.Errorf("%w: last failure: status %d", ErrOpen, last.Status)
	case last.Cause == "forced": // no failure, and no trial will end it
		return fmt.Errorf("%w: by ForceOpen", ErrOpen)
	case last.Cause != "":
		return fmt.Errorf("%w: last failure: %s", ErrOpen, last.Cause)
	}
	return ErrOpen
}

// Wrap puts the breaker around next. A refusal is an [*Error] that is [ErrOpen]; anything else is next's answer, unchanged.
func (b *Breaker) Wrap(next http.RoundTripper) http.RoundTripper {
	if b == nil {
		return next
	}
	return newDoor(next, b.pass)
}

func (b *Breaker) pass(ctx context.Context, t *trip, req *http.Request, next leg) (*http.Response, error) {
	gate := b.gate(b.keyOf(&t.call))
	if wait, err := gate.Refuse(); err != nil {
		return nil, refusedAt(t.call.Operation, wait, err)
	}
	ticket, wait, err := gate.Enter()
	if err != nil {
		return nil, refusedAt(t.call.Operation, wait, err)
	}
	if t.flight == nil {
		return observe(ctx, t, req, next, func(r circuit.Result) { gate.LeaveAt(ticket, r, t.clock.at(t.lately())) })
	}
	return observeFlight(ctx, t, req, next, gate, gate.Once(ticket))
}

// observeFlight is observe for a flight, which counts as a failure when its callers have all given up by time, and then
// no more.
func observeFlight(ctx context.Context, t *trip, req *http.Request, next leg, gate *circuit.Gate, ticket circuit.Ticket) (*http.Response, error) {
	done := func(r circuit.Result) { gate.Leave(ticket, r) }
	t.flight.onGivenUp(func() { done(givenUp) })
	return observe(ctx, t, req, next, done)
}

// givenUp is the result of a flight that nobody waits for any more because it took too long.
var givenUp = circuit.Result{Outcome: circuit.Failure, Cause: "timeout"}

func refusedAt(operation string, wait time.Duration, err error) *Error {
	return &Error{Layer: "breaker", Operation: operation, RetryAfter: wait, Err: err, verdict: refused}
}

// Outcome is how a call admitted by [Breaker.Allow] ended. The zero value is a failure, so that in
//
//	var outcome resilience.Outcome
//	defer func() { done(outcome) }()
//
// a panic counts as one.
type Outcome uint8

// The outcomes. A value outside of them counts as a failure.
const (
	OutcomeFailure Outcome = iota // the server did not do its part
	OutcomeSuccess                // it did
	OutcomeIgnored                // the call says nothing about the server; a trial gives its place back
)

// String returns "failure", "success" or "ignored".
func (o Outcome) String() string { return nameOf(int(o), "failure", "success", "ignored") }

// Allow asks for one call that is not HTTP, on the shared circuit or, on a handle of [Breaker.Circuit], on that one. If
// it is admitted, call done when it has ended; only the first time counts. A done that is never called costs nothing in a
// closed circuit, and is given up after TrialLimit in a half-open one. A refusal is an [*Error] that is [ErrOpen].
func (b *Breaker) Allow() (done func(Outcome), err error) {
	if b == nil {
		return func(Outcome) {}, nil
	}
	gate := b.gate(b.key)
	if wait, err := gate.Refuse(); err != nil {
		return nil, refusedAt(b.key, wait, err)
	}
	ticket, wait, err := gate.Enter()
	if err != nil {
		return nil, refusedAt(b.key, wait, err)
	}
	ticket = gate.Once(ticket)
	return func(o Outcome) {
		gate.Leave(ticket, circuit.Result{Outcome: circuit.Outcome(o), Cause: "reported"})
	}, nil
}

// BreakerState is the state of a circuit.
type BreakerState uint8

// The states. The zero value is closed.
const (
	BreakerClosed BreakerState = iota
	BreakerHalfOpen
	BreakerOpen
)

// String returns "closed", "half-open" or "open".
func (s BreakerState) String() string { return nameOf(int(s), "closed", "half-open", "open") }

// State of the shared circuit, or of the one that a handle is for. Reading it moves nothing: when an open period is
// over, it reads half-open, though the circuit has not moved until a trial comes; and when a trial is overdue, open.
func (b *Breaker) State() BreakerState {
	if b == nil {
		return BreakerClosed
	}
	return BreakerState(b.peek(b.key).State())
}

// ForceOpen refuses every call until ForceClose or Reset. On the breaker itself it goes to all circuits, those that are
// made later included; on a handle of [Breaker.Circuit] to that one. Calls under way go on and do not count.
func (b *Breaker) ForceOpen() { b.byHand((*circuit.Gate).ForceOpen) }

// ForceClose admits every call, and lets none count, until ForceOpen or Reset. It goes to the same circuits as ForceOpen.
func (b *Breaker) ForceClose() { b.byHand((*circuit.Gate).ForceClose) }

// Reset closes the circuit and forgets what was counted in the window, whatever the state; calls under way do not count.
// It ends ForceOpen and ForceClose, and goes to the same circuits as they.
func (b *Breaker) Reset() { b.byHand((*circuit.Gate).Reset) }

func (b *Breaker) byHand(do func(*circuit.Gate)) {
	switch {
	case b == nil:
	case b.all && b.keyed != nil:
		do(b.shared)
		b.keyed.Each(do)
	default:
		do(b.gate(b.key))
	}
}

// Circuit returns a handle on the circuit of one key, "" for the shared one. The handle is cheap, stays good when the
// circuit is forgotten and made again, and holds nothing. Without BreakerConfig.Key there is only the shared circuit.
func (b *Breaker) Circuit(key string) *Breaker {
	if b == nil || b.keyed == nil {
		return b
	}
	return &Breaker{breakerParts: b.breakerParts, key: key}
}

// gate is the circuit of a key, "" for the shared one.
func (b *Breaker) gate(key string) *circuit.Gate {
	if key == "" {
		return b.shared
	}
	return b.keyed.Get(key)
}

// peek is gate for those who only look: it makes no circuit, and does not count as use of one.
func (b *Breaker) peek(key string) *circuit.Gate {
	if key == "" {
		return b.shared
	}
	return b.keyed.Peek(key)
}

// keyOf names the circuit for a call. A handle has one for all calls.
func (b *Breaker) keyOf(c *Call) string {
	if !b.all || b.keyed == nil {
		return b.key
	}
	return b.safeKey(c)
}

func (b *Breaker) safeKey(c *Call) (key string) {
	defer func() {
		if recover() != nil {
			b.events.emit(Event{Kind: EventPanic, Operation: c.Operation, Cause: "key"})
			key = ""
		}
	}()
	return b.config.Key(*c)
}

// refusal is the error that the call would be refused with if it came now; nil: it would be admitted.
func (b *Breaker) refusal(c Call) error {
	if wait, err := b.peek(b.keyOf(&c)).Refusing(); err != nil {
		return refusedAt(c.Operation, wait, err)
	}
	return nil
}

// share is BreakerStats.Share of the shared circuit.
func (b *Breaker) share() float64 { return b.shared.Share() }

// BreakerCounts is what completed within the window.
type BreakerCounts struct {
	Successes, Failures int
	Slow                int // of both, see BreakerConfig.SlowCall
}

// BreakerStats is one circuit at one instant. The totals count since the circuit was made, and never go back.
type BreakerStats struct {
	State  BreakerState
	Forced bool // by ForceOpen or ForceClose

	Window      BreakerCounts // now; while open, what is left of it
	LastTrip    BreakerCounts // when the circuit opened last; zero if a failed trial did that
	FailureRate float64       // of Window; -1: not known, since fewer than MinCalls completed
	SlowRate    float64       // likewise

	Successes, Failures, Ignored uint64 // completed calls, late results included
	Rejected                     uint64
	Opened, HalfOpened, Closed   uint64 // changes of state

	OpenSince  time.Time     // zero unless open
	RetryAfter time.Duration // until a trial is due; 0 unless open, and while forced
	Share      float64       // of the usual load that the circuit wants, see BreakerConfig.Ramp

	Circuits     int // made by Key and not forgotten; this and the next are 0 on a handle
	OpenCircuits int // of those, not closed
}

// Stats reads the shared circuit, or the one that a handle is for. Counting the open ones looks at each circuit.
func (b *Breaker) Stats() BreakerStats {
	if b == nil {
		return BreakerStats{FailureRate: -1, SlowRate: -1, Share: 1}
	}
	v := b.peek(b.key).View()
	s := BreakerStats{
		State: BreakerState(v.State), Forced: v.Forced,
		Window: countsOf(v.Window), LastTrip: countsOf(v.Trip), FailureRate: -1, SlowRate: -1,
		Successes: v.Totals.Successes, Failures: v.Totals.Failures, Ignored: v.Totals.Ignored,
		Rejected: v.Rejected, Opened: v.Totals.Opened, HalfOpened: v.Totals.HalfOpened, Closed: v.Totals.Closed,
		OpenSince: v.OpenSince, RetryAfter: v.Wait, Share: v.Share,
	}
	if total := v.Window.Total(); total >= uint64(b.config.MinCalls) { //nolint:gosec // checked
		s.FailureRate = float64(v.Window.Failures) / float64(total)
		s.SlowRate = float64(v.Window.Slow) / float64(total)
	}
	if b.all && b.keyed != nil {
		s.Circuits, s.OpenCircuits = b.keyed.Len(), len(b.keyed.Troubled())
	}
	return s
}

// notClosed names circuits that Key made and that are not closed, at most so many, in order.
func (b *Breaker) notClosed(most int) []string {
	if b.keyed == nil {
		return nil
	}
	keys := b.keyed.Troubled()
	slices.Sort(keys)
	return keys[:min(len(keys), most)]
}

func countsOf(c window.Counts) BreakerCounts {
	return BreakerCounts{int(c.Successes), int(c.Failures), int(c.Slow)}
}

// report makes an event of a change. It runs under the lock of the circuit, which keeps the events in order.
func (p *breakerParts) report(c circuit.Change) {
	p.events.emit(Event{
		Kind: eventKindOf(c), Operation: c.Key,
		From: BreakerState(c.From).String(), To: BreakerState(c.To).String(),
		Cause: c.Last.Cause, StatusCode: c.Last.Status, Count: int(c.Counts.Failures), Duration: c.For,
	})
}

func eventKindOf(c circuit.Change) EventKind {
	switch {
	case c.Kind == circuit.Reset:
		return EventCircuitReset
	case c.Kind == circuit.Exceeded:
		return EventCircuitExceeded
	case c.To == circuit.Open:
		return EventCircuitOpen
	case c.To == circuit.HalfOpen:
		return EventCircuitHalfOpen
	}
	return EventCircuitClose
}
