package resilience

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// HealthConfig configures [NewHealth]. The zero value is the documented default.
type HealthConfig struct {
	// Probe asks the other side whether it is there, with a read that changes nothing. nil: nobody asks, and "api" is
	// reported as unknown. It is run at most once at a time, never under a caller's context, and not again while an old
	// run has not returned. The text of its error is never shown, since it may hold a URL: only its class is ("timeout",
	// "refused", "status 503"). Log it there if you need it.
	Probe func(context.Context) error
	// ProbeEvery is how long an answer of the probe counts. A read that finds an older one asks again. 0: 10 s.
	ProbeEvery time.Duration
	// ProbeTimeout bounds one run of the probe, and so how long a read waits. A probe that takes longer has failed, also
	// where it ignores its context. 0: 2 s.
	ProbeTimeout time.Duration
	// Checks are questions of the user's own. Names must differ from each other and from those of the layers.
	Checks []HealthCheck
	// Rules change how readings are judged. A key names a component, "dlq", and so all of its readings, or one of them,
	// "dlq:letters"; the closer one counts alone. A name that nothing has is an error. [HealthRule] lists the readings.
	//
	//	Rules: map[string]resilience.HealthRule{
	//		"circuit:state": {States: map[string]resilience.Status{"open": resilience.Unhealthy}},
	//		"dlq:letters":   {DegradedFrom: 1000, UnhealthyFrom: 9000},
	//		"keys:oldest":   {DegradedFrom: 3600},
	//		"retry":         {Mute: true},
	//	}
	Rules map[string]HealthRule
	// WarnLetters is how many dead letters may wait before that counts as degraded: more than so many. 0: 100; -1: any
	// number may wait.
	WarnLetters int
	// OnChange is told when the aggregate changes, with the report before and the report that changed it; the first one
	// follows the zero Report, which is Unknown. A change is noticed by the reads, and by Stack.Run where there are none.
	OnChange func(old, new Report)
	// OnEvent listens to [EventHealthChanged].
	OnEvent func(Event)
	// ShowDetails says whether a request may see more than the one word of the aggregate. nil: everybody may.
	ShowDetails func(*http.Request) bool
}

// HealthCheck is a question to something outside this process: a database, the room that is left in a workspace. Unlike the
// probe it never makes a reader wait: a read is shown the last answer with its age, and starts the next run if that is due.
// Until the first answer, the component is unknown.
type HealthCheck struct {
	// Name of the component. Needed.
	Name string
	// Run asks. It is run at most once at a time, never under a caller's context, and not again while an old run has not
	// returned. What it returns is shown as it is, under Name, so it must hold no personal data. nil: the check is left out.
	// One that panics, ends its goroutine or takes longer than Timeout is unhealthy.
	Run func(context.Context) []CheckResult
	// Every is how long an answer counts before a read asks again. A healthy one that is older than three times that, and
	// Timeout, is shown as unknown. 0: 10 s.
	Every time.Duration
	// Timeout bounds one run. 0: 2 s.
	Timeout time.Duration
	// Optional says that a run without an answer is unknown, not unhealthy: for what is good to know and nothing depends on.
	Optional bool
}

// Health looks at all layers and at the other side and says, in one word and in detail, how things are. Reading it moves
// nothing: no trial permit is used, no letter touched; at most it asks the other side through HealthConfig.Probe, at most
// once per ProbeEvery however many read. Use [NewHealth]. All methods are safe for concurrent use and on a nil Health,
// which knows nothing.
//
// The rules: the worst component wins; unknown is reported but does not win. A failed probe is unhealthy; an open circuit
// or too many letters are degraded: calls that need the other side fail, the process is well. There is no smoothing: one
// failed probe is unhealthy and the next good one is not. Something that was seen too long ago is never shown as healthy.
// HealthConfig.Rules changes the rules, that there is no smoothing included: see HealthRule.WorseAfter.
type Health struct {
	probe       *healthProbe
	warnLetters int
	showDetails func(*http.Request) bool
	onChange    func(old, new Report)
	events      *events
	watchers    []healthWatcher // set before use
	checks      []*healthProbe
	rules       map[string]HealthRule
	steady      *steady
	recent      healthEvents

	turn     atomic.Uint64 // orders the readings, so that a slow old one does not undo a newer one
	mu       sync.Mutex
	last     Report
	lastTurn uint64
}

// NewHealth makes a Health. Every fault of the config is reported at once.
func NewHealth(cfg HealthConfig) (*Health, error) {
	f := &faults{prefix: "Health"}
	f.positive("ProbeEvery", cfg.ProbeEvery)
	f.positive("ProbeTimeout", cfg.ProbeTimeout)
	f.count("WarnLetters", int64(cfg.WarnLetters))
	checkHealthChecks(f, cfg.Checks)
	checkHealthRules(f, cfg)
	if err := f.err(); err != nil {
		return nil, err
	}
	every := or(cfg.ProbeEvery, 10*time.Second)
	return &Health{
		probe: &healthProbe{
			name: "api", measure: "responseTime", ask: askProbe(cfg.Probe),
			every: every, timeout: or(cfg.ProbeTimeout, 2*time.Second), keep: every, silent: Unhealthy,
		},
		checks:      probesOf(cfg.Checks),
		rules:       cloneRules(cfg.Rules),
		steady:      newSteady(cfg.Rules),
		warnLetters: or(cfg.WarnLetters, 100),
		showDetails: cfg.ShowDetails,
		onChange:    cfg.OnChange,
		events:      newEvents("health", cfg.OnEvent),
	}, nil
}

// drain calls off what is being asked and waits for its end, or that of ctx.
func (h *Health) drain(ctx context.Context) error {
	err := h.probe.drain(ctx)
	for _, p := range h.checks {
		err = errors.Join(err, p.drain(ctx))
	}
	return err
}

func checkHealthChecks(f *faults, checks []HealthCheck) {
	taken := map[string]bool{}
	for i, c := range checks {
		field := fmt.Sprintf("Checks[%d].", i)
		if _, ours := layerReadings[c.Name]; ours || c.Name == "" || taken[c.Name] || strings.Contains(c.Name, ":") {
			f.add(field+"Name", "a name of its own without a colon", strconv.Quote(c.Name))
		}
		taken[c.Name] = true
		f.positive(field+"Every", c.Every)
		f.positive(field+"Timeout", c.Timeout)
	}
}

func probesOf(checks []HealthCheck) []*healthProbe {
	var list []*healthProbe
	for _, c := range checks {
		if c.Run == nil {
			continue
		}
		p := &healthProbe{name: c.Name, ask: c.Run, every: or(c.Every, 10*time.Second), timeout: or(c.Timeout, 2*time.Second), silent: Unhealthy}
		p.keep = 3*p.every + p.timeout
		if c.Optional {
			p.silent = Unknown
		}
		list = append(list, p)
	}
	return list
}

// Status says how something is. A higher one is worse; the zero value says that nothing is known.
type Status uint8

// The statuses, from unknown to worst.
const (
	Unknown   Status = iota // not looked at, or too long ago
	Healthy                 // works
	Degraded                // works in part, or will not for long
	Unhealthy               // does not work
)

// String returns "unknown", "healthy", "degraded" or "unhealthy".
func (s Status) String() string {
	return nameOf(int(s), "unknown", "healthy", "degraded", "unhealthy")
}

// CheckResult is one reading of one component. It holds no personal data.
type CheckResult struct {
	// Name of the component: "api", "circuit", "bulkhead", "dlq", "keys", "account" and so on.
	Name string
	// Measure says what of the component was read: "state", "slots", "queue". A component may have several readings.
	Measure string
	// Instance tells several of one kind apart: the tier, the class, the key of a circuit (at most 20 that are not closed are
	// shown). Empty: there is only one, or it is the circuit that all calls without a key of their own share.
	Instance string
	// Status is what counts.
	Status Status
	// Seen is what is seen now. It differs from Status where a rule makes what is seen wait before it counts; then
	// SeenSince, which is zero otherwise, says since when it is seen.
	Seen      Status
	SeenSince time.Time
	// State is the component's own word, for example "open". Empty: it has none.
	State string
	// Value is the number that was read, counted in Unit. It means something only where Unit is set.
	Value float64
	Unit  string
	// Limit is what Value may grow to. 0: it has no bound.
	Limit float64
	// Message says why, in words for people.
	Message string
	// Time when it was observed, and how old that was when the report was made.
	Time time.Time
	Age  time.Duration
	// Duration is how long the reading took.
	Duration time.Duration
	// RetryAfter is when asking again makes sense, for example when the circuit will try. 0: not known.
	RetryAfter time.Duration
}

// Report is what one look at everything found. Marshalled as JSON it is the document that [Health.ServeHTTP] serves,
// without the events.
type Report struct {
	// Status is the worst of Checks, where unknown does not count; Unknown if there is nothing else.
	Status Status
	// Time when the report was made.
	Time time.Time
	// FreshFor is how long the answer of the probe will still count. 0: the next read asks again, or there is no probe.
	FreshFor time.Duration
	// Checks holds "api" first, then the layers in the order of [Config], what [Stack.Run] does, the account, the latency, and
	// HealthConfig.Checks.
	Checks []CheckResult
}

// Find returns the first reading of a component, which is its main one: the state of the circuit, the number of letters.
// An unknown name gives the zero CheckResult, whose Status is Unknown.
func (r Report) Find(name string) CheckResult {
	for _, c := range r.Checks {
		if c.Name == name {
			return c
		}
	}
	return CheckResult{}
}

// worst returns the reading that decides.
func (r Report) worst() CheckResult {
	var worst CheckResult
	for _, c := range r.Checks {
		if c.Status > worst.Status {
			worst = c
		}
	}
	return worst
}

// Check looks at everything. It never fails: what goes wrong is inside the report. It waits only for the probe, where the
// last answer is older than ProbeEvery, and then no longer than ProbeTimeout and not beyond the end of ctx; a caller who
// leaves early gets a report without a fresh answer, which is not taken for a change.
func (h *Health) Check(ctx context.Context) Report {
	if h == nil {
		return Report{Time: time.Now()}
	}
	run, waited := h.probe.await(ctx)
	turn := h.turn.Add(1)
	checks, freshFor := h.probe.result(run, time.Now())
	for _, w := range h.watchers {
		checks = append(checks, w.read(ctx)...)
	}
	for _, p := range h.checks {
		results, _ := p.result(p.current(), time.Now())
		checks = append(checks, results...)
	}
	h.judge(checks, turn, waited)
	report := newReport(checks)
	report.FreshFor = freshFor
	if waited {
		h.publish(turn, report)
	}
	return report
}

func newReport(checks []CheckResult) Report {
	r := Report{Time: time.Now(), Checks: checks}
	for i := range checks {
		c := &checks[i]
		c.Status = min(c.Status, Unhealthy)
		if c.Time.IsZero() {
			c.Time = r.Time
		}
		c.Age = max(0, r.Time.Sub(c.Time))
		r.Status = worseStatus(r.Status, c.Status)
	}
	return r
}

// worseStatus is the whole rule of aggregation: the statuses are numbered so that the worst is the largest and unknown, the
// smallest, never wins.
func worseStatus(a, b Status) Status { return max(a, b) }

// publish remembers the report and tells of a change, unless a newer one was there first.
func (h *Health) publish(turn uint64, r Report) {
	r.Checks = slices.Clone(r.Checks) // the caller owns the other one
	h.mu.Lock()
	defer h.mu.Unlock()
	if turn <= h.lastTurn {
		return
	}
	old := h.last
	h.last, h.lastTurn = r, turn
	if old.Status == r.Status {
		return
	}
	h.events.emit(Event{
		Kind: EventHealthChanged, From: old.Status.String(), To: r.Status.String(), Cause: r.worst().Name,
	})
	if h.onChange != nil {
		h.events.call(func() { h.onChange(old, r) })
	}
}

// refresh looks at everything so that a change is noticed, and the probe's answer kept fresh, while nobody reads. It
// returns after how long to call it again.
func (h *Health) refresh(ctx context.Context) time.Duration {
	for _, p := range h.checks { // all are asked at once, and awaited here, where nobody reads
		p.current()
	}
	next := time.Duration(math.MaxInt64)
	for _, p := range h.checks {
		run, _ := p.await(ctx)
		next = min(next, or(p.freshFor(run, time.Now()), p.every))
	}
	r := h.Check(ctx)
	return min(next, or(r.FreshFor, h.probe.every), or(h.steady.due(), math.MaxInt64))
}

// healthWatcher is a passive check: it reads what a layer knows anyway.
type healthWatcher struct {
	name string
	look func(context.Context) []CheckResult
}

// watch adds a passive check; call it before the Health is used. health_rules.go lists what each should report. It must
// be cheap, must neither block nor run a user's code (KeyStore.Now apart), and must not keep or change what it returned. The first reading is
// the component's main one.
func (h *Health) watch(name string, look func(context.Context) []CheckResult) {
	h.watchers = append(h.watchers, healthWatcher{name: name, look: look})
}

// read takes the readings; one that panics is unhealthy by itself and takes nobody with it.
func (w healthWatcher) read(ctx context.Context) (results []CheckResult) {
	started := time.Now()
	defer func() {
		if recover() != nil {
			results = []CheckResult{{Status: Unhealthy, State: "panic", Message: "the check itself failed"}}
		}
		took := time.Since(started)
		for i := range results {
			results[i].Name = or(results[i].Name, w.name)
			results[i].Duration = or(results[i].Duration, took)
		}
	}()
	if w.look != nil {
		results = slices.Clone(w.look(ctx))
	}
	if len(results) == 0 {
		results = []CheckResult{{Message: "no reading"}}
	}
	return results
}

// note keeps an event for the status page. It is a listener: h.note may be given to the events of every layer.
func (h *Health) note(e Event) { h.recent.add(e) }

// healthEvents keeps the last events. The zero value is ready.
type healthEvents struct {
	mu    sync.Mutex
	list  [50]Event
	count int // ever added
}

func (r *healthEvents) add(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list[r.count%len(r.list)] = e
	r.count++
}

// newestFirst returns a copy.
func (r *healthEvents) newestFirst() []Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := min(r.count, len(r.list))
	out := make([]Event, n)
	for i := range out {
		out[i] = r.list[(r.count-1-i)%len(r.list)]
	}
	return out
}
