package resilience

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// TimeoutConfig sets how long things may take. In each duration 0 is the default and -1 means no limit.
type TimeoutConfig struct {
	// Connect bounds dialing and the TLS handshake of one attempt, nothing else. Default 5 s. It needs a transport that
	// fires httptrace hooks, as net/http's does.
	Connect time.Duration
	// Request bounds one attempt of [ClassRequest], from asking for a connection to the last byte of the answer.
	// Default 30 s.
	Request time.Duration
	// Upload is the same for [ClassUpload]. Default 120 s.
	Upload time.Duration
	// LongPoll is the same for [ClassLongPoll]. Default 300 s.
	LongPoll time.Duration
	// Total is the budget of a call whose [Call] has none: what its caller waits at most, queueing, backing off and all
	// attempts included. Default: twice the limit of one attempt. An attempt limit that is set must not be longer.
	Total time.Duration
	// MaxResponseBytes bounds a response body, which is read into memory. Default 32 MiB; -1: no bound. A longer body is
	// an error that is ErrTooLarge. Streams (text/event-stream, status 101) pass through and are not bounded.
	MaxResponseBytes int64
	// MaxRequestBytes bounds a request body that is kept for further attempts. Default 8 MiB; -1: no bound. A longer
	// body is sent at most once.
	MaxRequestBytes int64
	// Cooperative is a promise: everything that attempts are made through (a fake, a transport around another, the
	// functions of [Do]) returns soon after its context has ended. Attempts then run on the caller's goroutine instead of
	// one of their own, which spares the price of a goroutine; work that breaks the promise holds its caller until it
	// returns. An *[http.Transport] keeps it by itself and is always treated so. Default: no promise.
	Cooperative bool
	// OnEvent hears this layer alone: EventTimeout when a limit fired, EventAttemptLate when an attempt ended after it.
	OnEvent func(Event)
	// Off leaves the layer out of a [Stack].
	Off bool
}

func (c TimeoutConfig) withDefaults() TimeoutConfig {
	request, upload, longPoll := 30*time.Second, 120*time.Second, 300*time.Second
	if c.Total > 0 { // a default longer than a budget that was set is cut to it
		request, upload, longPoll = min(request, c.Total), min(upload, c.Total), min(longPoll, c.Total)
	}
	c.Connect = or(c.Connect, 5*time.Second)
	c.Request = or(c.Request, request)
	c.Upload = or(c.Upload, upload)
	c.LongPoll = or(c.LongPoll, longPoll)
	c.MaxResponseBytes = or(c.MaxResponseBytes, defaultMaxResponseBytes)
	c.MaxRequestBytes = or(c.MaxRequestBytes, defaultMaxRequestBytes)
	return c
}

func (c TimeoutConfig) validate() error {
	f := faults{prefix: "Timeout"}
	f.duration("Connect", c.Connect)
	f.duration("Total", c.Total)
	limits := []struct {
		field string
		limit time.Duration
	}{{"Request", c.Request}, {"Upload", c.Upload}, {"LongPoll", c.LongPoll}}
	for _, l := range limits {
		f.duration(l.field, l.limit)
		if c.Total > 0 && (l.limit > c.Total || l.limit == -1) {
			f.add(l.field, "no longer than Total ("+c.Total.String()+")", l.limit)
		}
	}
	f.count("MaxResponseBytes", c.MaxResponseBytes)
	f.count("MaxRequestBytes", c.MaxRequestBytes)
	return f.err()
}

// Timeout is the hierarchy of time limits. It has two doors: the budget of the whole call belongs outside of everything
// that waits, the limits of one attempt just above the transport. It is safe for concurrent use; a nil Timeout sets no
// limits.
//
// An attempt whose transport ignores its context is left behind at the limit: its caller is answered, its result is
// thrown away, and it shows in Stats().Lingering until it returns. For that it runs on a goroutine of its own, unless its
// transport is known to honour contexts; see TimeoutConfig.Cooperative.
type Timeout struct {
	cfg    TimeoutConfig
	events *events

	fired     [limitCount]atomic.Uint64
	late      atomic.Uint64
	lingering atomic.Int64
}

// NewTimeout checks the config; its error names every field that is wrong.
func NewTimeout(cfg TimeoutConfig) (*Timeout, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	return &Timeout{cfg: cfg.withDefaults(), events: newEvents("timeout", cfg.OnEvent)}, nil
}

// Wrap puts both doors around next.
func (l *Timeout) Wrap(next http.RoundTripper) http.RoundTripper {
	return Chain(l.Budget(), l.Attempt()).Wrap(next)
}

// Budget is the outer door: from here on the call's context ends when its budget is used up, with an [*Error] that is
// [ErrTimeout] and has the Limit "budget".
func (l *Timeout) Budget() Layer {
	return LayerFunc(func(next http.RoundTripper) http.RoundTripper {
		if l == nil {
			return next
		}
		d := newDoor(next, l.budget)
		d.entry.maxBody = l.cfg.MaxRequestBytes
		return d
	})
}

// Attempt is the inner door: each request through it is one attempt. It ends at the limit of its class, or at the
// connect limit, with an [*Error] that is [ErrTimeout] and names the limit. NotSent is true for it when the transport
// proved that no connection was had.
func (l *Timeout) Attempt() Layer {
	return LayerFunc(func(next http.RoundTripper) http.RoundTripper {
		if l == nil {
			return next
		}
		d := newDoor(next, l.attempt)
		if l.cooperates(d.next) {
			d.pass = l.attemptHere
		}
		d.entry.maxBody = l.cfg.MaxRequestBytes
		if w, ok := d.next.(*wire); ok && w.maxBytes == 0 {
			d.next = &wire{base: w.base, maxBytes: l.cfg.MaxResponseBytes}
		}
		return d
	})
}

// LimitOf returns how long one attempt of the call may take, and the name of that limit as it appears in Error.Limit.
// -1 means no limit.
func (l *Timeout) LimitOf(c Call) (limit time.Duration, name string) {
	switch {
	case c.Limit != 0:
		return c.Limit, "limit"
	case l == nil:
		return -1, ""
	case c.Class == ClassUpload:
		return l.cfg.Upload, "upload"
	case c.Class == ClassLongPoll:
		return l.cfg.LongPoll, "long-poll"
	}
	return l.cfg.Request, "request"
}

// BudgetOf returns how long the caller of c waits at most; -1 means no bound.
func (l *Timeout) BudgetOf(c Call) time.Duration {
	switch {
	case c.Budget != 0:
		return c.Budget
	case l == nil:
		return -1
	case l.cfg.Total != 0:
		return l.cfg.Total
	}
	limit, _ := l.LimitOf(c)
	if limit < 0 || limit > maxDuration/2 {
		return -1
	}
	return 2 * limit
}

const maxDuration time.Duration = 1<<63 - 1

// budget ends the context of a call when its time is up. The clock stops when the answer is there, so that a stream is
// not cut off.
func (l *Timeout) budget(ctx context.Context, t *trip, req *http.Request, next leg) (*http.Response, error) {
	total := l.BudgetOf(t.call)
	if total < 0 {
		return next.travel(ctx, t, req)
	}
	call, ours := ctx.(*callContext)
	if !ours { // somebody else's layer put a context of its own between
		call = &callContext{caller: ctx, trip: t}
	}
	now := t.started
	if now.IsZero() {
		now = time.Now()
	}
	call.limit(now, total)
	resp, err := next.travel(call, t, req)
	call.unlimit()
	return resp, err
}

// limits that are counted
const (
	limitConnect = iota
	limitRequest
	limitUpload
	limitLongPoll
	limitCall
	limitBudget
	limitCount
)

func limitIndex(name string) int {
	switch name {
	case "connect":
		return limitConnect
	case "upload":
		return limitUpload
	case "long-poll":
		return limitLongPoll
	case "limit":
		return limitCall
	case "budget":
		return limitBudget
	}
	return limitRequest
}

// cooperates reports whether what comes next returns when its context ends.
func (l *Timeout) cooperates(next leg) bool {
	if l.cfg.Cooperative {
		return true
	}
	w, ok := next.(*wire)
	if !ok {
		return false
	}
	_, ok = w.base.(*http.Transport)
	return ok
}

// attemptHere runs the rest of the road on the caller's goroutine. A panic or Goexit passes through.
func (l *Timeout) attemptHere(caller context.Context, t *trip, req *http.Request, next leg) (*http.Response, error) {
	w := &work{layer: l, trip: t, parent: caller}
	if !w.start(caller) {
		return nil, t.gone(caller, "timeout")
	}
	lasts := false // as a stream
	defer func() {
		w.stop()
		if !lasts {
			w.end(context.Canceled)
		}
	}()
	resp, err := next.travel(w, t, req)
	if err != nil {
		return nil, w.explain(caller, err)
	}
	if tl := tailOf(resp, nil); tl != nil {
		lasts = true
		tl.after(func() { w.end(context.Canceled) })
	}
	return resp, nil
}

// attempt runs the rest of the road on a goroutine of its own, so that a transport that ignores its context cannot hold
// the caller.
func (l *Timeout) attempt(caller context.Context, t *trip, req *http.Request, next leg) (*http.Response, error) {
	w := &work{layer: l, trip: t, parent: caller, wake: make(chan struct{}, 3)}
	if !w.start(caller) {
		return nil, t.gone(caller, "timeout")
	}
	if t.run == nil {
		req = detached(w, req)
	}
	go w.run(req, next)
	if !w.wait() {
		if linger := w.abandon(caller); linger != nil {
			w.stopClock()
			return nil, linger
		}
	}
	w.stopClock()
	r := w.result
	if r.err != nil {
		err := w.explain(caller, r.err)
		w.end(context.Canceled)
		return nil, err
	}
	if tl := tailOf(r.resp, nil); tl != nil {
		tl.after(func() { w.end(context.Canceled) })
	} else {
		w.end(context.Canceled)
	}
	return r.deliver()
}

// limitReached is the cause with which an attempt's context ends.
type limitReached string

func (n limitReached) Error() string { return ErrTimeout.Error() + ": " + string(n) }
func (n limitReached) Unwrap() error { return ErrTimeout }

// work is one attempt, and the context that it runs under. Most work never looks at its context, so what a context costs
// is spent only when it does.
type work struct {
	layer  *Timeout
	trip   *trip
	parent context.Context // the caller's, without a budget, which this clock has in it
	clock  *time.Timer     // nil: no limit
	limit  time.Time       // zero: none
	name   string          // of the limit that the clock has; "budget" for that
	wake   chan struct{}   // the work has ended, or a clock has fired; nil on the caller's goroutine

	mu      sync.Mutex
	inner   context.Context // nil: nobody has looked
	cancel  context.CancelCauseFunc
	cause   error // why the context ended; nil: it has not
	done    bool
	result  result // once done
	dial    *time.Timer
	settled bool       // connected, or the attempt is over
	linger  *lingering // set when the caller has been answered without a result
}

// start sets the clock to the first of the attempt's limit and the budget, unless the caller has left or the budget is
// used up.
func (w *work) start(caller context.Context) bool {
	if caller.Err() != nil {
		return false
	}
	limit, name := w.layer.LimitOf(w.trip.call)
	now := time.Now()
	if limit >= 0 {
		w.limit, w.name = now.Add(limit), name
	}
	if c, ours := caller.(*callContext); ours {
		if c.spent(now) {
			return false
		}
		w.parent = c.withoutBudget()
		if budget := c.budget(); !budget.IsZero() && (w.limit.IsZero() || budget.Before(w.limit)) {
			w.limit, w.name = budget, "budget"
		}
	}
	if !w.limit.IsZero() {
		w.clock = time.AfterFunc(w.limit.Sub(now), w.expire)
	}
	return true
}

// run is capture without what that allocates.
func (w *work) run(req *http.Request, next leg) {
	r := result{exited: true}
	defer func() {
		if v := recover(); v != nil {
			r = result{panicked: true, value: v}
		}
		w.finish(r)
	}()
	resp, err := next.travel(w, w.trip, req)
	r = result{resp: resp, err: err}
}

// Deadline implements context.Context.
func (w *work) Deadline() (time.Time, bool) {
	theirs, ok := w.parent.Deadline()
	if w.limit.IsZero() || ok && theirs.Before(w.limit) {
		return theirs, ok
	}
	return w.limit, true
}

// Done implements context.Context.
func (w *work) Done() <-chan struct{} { return w.context().Done() }

// Err implements context.Context: DeadlineExceeded where time ended it.
func (w *work) Err() error {
	w.mu.Lock()
	cause := w.cause
	w.mu.Unlock()
	switch {
	case cause == nil:
		return w.parent.Err()
	case errors.Is(cause, context.DeadlineExceeded) || errors.Is(cause, ErrTimeout):
		return context.DeadlineExceeded
	}
	return context.Canceled
}

// Value implements context.Context.
func (w *work) Value(key any) any {
	switch key.(type) {
	case dialWatchKey:
		return dialWatch(w)
	case tripKey:
		return w.trip
	case callContextKey:
		return nil
	}
	return w.context().Value(key)
}

// context is what a context must be that others derive from.
func (w *work) context() context.Context {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.inner == nil {
		w.inner, w.cancel = context.WithCancelCause(w.parent)
		if w.cause != nil {
			w.cancel(w.cause)
		}
	}
	return w.inner
}

// end ends the context; the first cause counts.
func (w *work) end(cause error) {
	w.mu.Lock()
	if w.cause == nil {
		w.cause = cause
	}
	cancel := w.cancel
	w.mu.Unlock()
	if cancel != nil {
		cancel(cause)
	}
}

// expire is the clock's.
func (w *work) expire() {
	if w.name == "budget" {
		w.timeUp(errBudget)
		return
	}
	w.timeUp(limitReached(w.name))
}

func (w *work) timeUp(cause error) {
	w.end(cause)
	if w.wake != nil {
		w.wake <- struct{}{} // the work, its clock and its dial's clock wake once each, and there is room for all
	}
}

// stop stops the clocks of work that ran on its caller's goroutine.
func (w *work) stop() {
	w.stopClock()
	w.connected()
}

func (w *work) stopClock() {
	if w.clock != nil {
		w.clock.Stop()
	}
}

// grace is how long a transport has to return after its context ended. One that honours its context needs none of it,
// and only its return can prove that nothing was sent.
const grace = 2 * time.Millisecond

// wait returns true when the work has ended, false when its time is up and it has not.
func (w *work) wait() bool {
	if left := w.parent.Done(); left == nil {
		<-w.wake
	} else {
		select {
		case <-w.wake:
		case <-left:
			w.end(context.Cause(w.parent))
		}
	}
	if w.over() {
		return true
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	for {
		select {
		case <-w.wake:
			if w.over() {
				return true
			}
		case <-timer.C:
			return false
		}
	}
}

func (w *work) over() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.done
}

// finish is called on the attempt's goroutine, whatever way it ended.
func (w *work) finish(r result) {
	w.mu.Lock()
	w.stopDial()
	w.done, w.result = true, r
	linger := w.linger
	w.mu.Unlock()
	if linger == nil {
		w.wake <- struct{}{}
		return
	}
	w.layer.lingering.Add(-1)
	w.layer.late.Add(1)
	w.layer.events.emit(Event{Kind: EventAttemptLate, Operation: w.trip.call.Operation, Cause: r.cause()})
	linger.late = r
	linger.tail.end()
	if r.resp != nil && r.resp.Body != nil {
		_ = r.resp.Body.Close() // nobody waits for it
	}
}

// abandon leaves the attempt behind; nil: it came back after all. What holds something for the attempt is told at its end.
func (w *work) abandon(caller context.Context) *lingering {
	why := w.explain(caller, nil)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.done {
		return nil
	}
	w.linger = &lingering{err: why}
	w.layer.lingering.Add(1)
	return w.linger
}

// explain says why the attempt's context ended, if it did; err is the transport's error, nil when it has not returned.
func (w *work) explain(caller context.Context, err error) error {
	w.mu.Lock()
	cause := w.cause
	w.mu.Unlock()
	if cause == nil || isRefusal(err) {
		return err
	}
	var e *Error
	var limit limitReached
	switch {
	case errors.As(cause, &limit):
		e = w.trip.fail("timeout", ErrTimeout)
		e.Limit = string(limit)
	case errors.Is(cause, errBudget):
		e = w.trip.fail("timeout", errBudget)
		e.Limit = "budget"
	default:
		e = w.trip.gone(caller, "timeout")
		e.verdict = undecided
	}
	if NotSent(err) {
		e.Err = MarkNotSent(e.Err)
	}
	if errors.Is(e.Err, ErrTimeout) {
		w.layer.fired[limitIndex(e.Limit)].Add(1)
		w.layer.events.emit(Event{Kind: EventTimeout, Operation: w.trip.call.Operation, Cause: e.Limit})
	}
	return e
}

// dialing starts the connect limit with the first sign of a new connection; see [sighting].
func (w *work) dialing() {
	if w.layer.cfg.Connect <= 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dial != nil || w.settled {
		return
	}
	w.dial = time.AfterFunc(w.layer.cfg.Connect, func() {
		w.mu.Lock()
		over := w.settled
		w.settled = true
		w.mu.Unlock()
		if !over {
			w.timeUp(limitReached("connect"))
		}
	})
}

// connected stops the connect limit.
func (w *work) connected() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopDial()
}

func (w *work) stopDial() {
	w.settled = true
	if w.dial != nil {
		w.dial.Stop()
	}
}

// TimeoutStats is a snapshot of the limits' work since the start.
type TimeoutStats struct {
	// How often each limit fired. Call is Call.Limit; the budget counts here when it ended an attempt.
	Connect, Request, Upload, LongPoll, Call, Budget uint64
	// Late counts attempts that ended after their caller was answered.
	Late uint64
	// Lingering is how many such attempts have not ended yet.
	Lingering int
	Delivery  DeliveryStats
}

// Stats may be called at any time.
func (l *Timeout) Stats() TimeoutStats {
	if l == nil {
		return TimeoutStats{}
	}
	return TimeoutStats{
		Connect: l.fired[limitConnect].Load(), Request: l.fired[limitRequest].Load(), Upload: l.fired[limitUpload].Load(),
		LongPoll: l.fired[limitLongPoll].Load(), Call: l.fired[limitCall].Load(), Budget: l.fired[limitBudget].Load(),
		Late: l.late.Load(), Lingering: int(l.lingering.Load()), Delivery: l.events.stats(),
	}
}
