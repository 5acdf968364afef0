package resilience

import (
	"context"
	"errors"
	"net/http"
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
	// returns. An *[http.Transport] keeps it and is always treated so; what runs inside of it on the caller's goroutine must
	// keep it as well: a Proxy function, hooks of a trace, transports given to RegisterProtocol. Request bodies longer
	// than MaxRequestBytes are sent from a goroutine of their own in any case. Default: no promise.
	Cooperative bool
	// OnEvent hears this layer alone: EventTimeout when a limit fired, EventAttemptLate when an attempt ended after it.
	OnEvent func(Event)
	// Off leaves the layer out: [NewTimeout] returns nil, which limits nothing.
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

	fired     [limitKinds]atomic.Uint64
	late      atomic.Uint64
	lingering atomic.Int64
}

// NewTimeout checks the config; its error names every field that is wrong. With Off it returns nil.
func NewTimeout(cfg TimeoutConfig) (*Timeout, error) {
	if err := cfg.validate(); err != nil || cfg.Off {
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
		d.entry.maxBody, d.entry.budget = l.cfg.MaxRequestBytes, l.budgetOf
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
			d.before(newWire(w.base, l.cfg.MaxResponseBytes))
		}
		return d
	})
}

// LimitOf returns how long one attempt of the call may take, and the name of that limit as it appears in Error.Limit.
// Negative: there is no limit.
func (l *Timeout) LimitOf(c Call) (limit time.Duration, name string) {
	if l == nil && c.Limit == 0 {
		return -1, ""
	}
	limit, kind := l.limitOf(&c)
	return limit, kind.String()
}

func (l *Timeout) limitOf(c *Call) (time.Duration, limitKind) {
	switch {
	case c.Limit != 0:
		return c.Limit, limitCall
	case c.Class == ClassUpload:
		return l.cfg.Upload, limitUpload
	case c.Class == ClassLongPoll:
		return l.cfg.LongPoll, limitLongPoll
	}
	return l.cfg.Request, limitRequest
}

// BudgetOf returns how long the caller of c waits at most; negative: there is no bound.
func (l *Timeout) BudgetOf(c Call) time.Duration {
	if l == nil && c.Budget == 0 {
		return -1
	}
	return l.budgetOf(&c)
}

func (l *Timeout) budgetOf(c *Call) time.Duration {
	switch {
	case c.Budget != 0:
		return c.Budget
	case l.cfg.Total != 0:
		return l.cfg.Total
	}
	limit, _ := l.limitOf(c)
	if limit < 0 || limit > maxDuration/2 {
		return -1
	}
	return 2 * limit
}

// budget ends the context of a call when its time is up. The clock stops when the answer is there, so that a stream is
// not cut off.
func (l *Timeout) budget(ctx context.Context, t *trip, req *http.Request, next leg) (*http.Response, error) {
	total := l.budgetOf(&t.call)
	if total < 0 {
		return next.travel(ctx, t, req)
	}
	call, ours := ctx.(*callContext)
	if !ours { // somebody else's layer put a context of its own between
		call = &callContext{caller: ctx, trip: t}
	}
	outer := call.limit(t.lately(), total)
	resp, err := next.travel(call, t, req)
	call.restore(outer)
	if !ours {
		afterExchange(resp, err, func() { call.end(finished) })
	}
	return resp, err
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

// attemptHere runs the rest of the road on the caller's goroutine. A panic or Goexit passes through. A body that is not in
// memory is another matter: net/http's transport waits for its Read, whatever the context says.
func (l *Timeout) attemptHere(caller context.Context, t *trip, req *http.Request, next leg) (*http.Response, error) {
	if _, whole := t.payload.Bytes(); !whole {
		return l.attempt(caller, t, req, next)
	}
	ctx := &t.first
	if !t.attempted.CompareAndSwap(false, true) {
		ctx = new(attemptContext)
	}
	ctx.layer, ctx.trip = l, t
	if !ctx.start(caller) {
		return nil, t.gone(ctx.parent, "timeout")
	}
	lasts := false // as a stream
	defer func() {
		if lasts {
			ctx.unlimit()
		} else {
			ctx.close()
		}
	}()
	resp, err := next.travel(ctx, t, req)
	if err != nil {
		return nil, l.explain(ctx, caller, err)
	}
	if tl := tailOf(resp, nil); tl != nil {
		lasts = true
		tl.after(func() { ctx.end(context.Canceled) })
	}
	return resp, nil
}

// attempt runs the rest of the road on a goroutine of its own, so that a transport that ignores its context cannot hold
// the caller.
func (l *Timeout) attempt(caller context.Context, t *trip, req *http.Request, next leg) (*http.Response, error) {
	w := &work{attemptContext: attemptContext{layer: l, trip: t, wake: make(chan struct{}, 3)}}
	if !w.start(caller) {
		return nil, t.gone(w.parent, "timeout")
	}
	if t.run == nil {
		req = detached(w, req)
	}
	t.payload.Hold() // the caller may have left before the wire asks for it
	go w.run(req, next)
	if !w.wait() {
		t.waited()
		if linger := w.abandon(caller); linger != nil {
			w.unlimit()
			return nil, linger
		}
	}
	r := w.result
	if r.err != nil {
		err := l.explain(&w.attemptContext, caller, r.err)
		w.close()
		return nil, err
	}
	if tl := tailOf(r.resp, nil); tl != nil {
		w.unlimit()
		tl.after(func() { w.end(context.Canceled) })
	} else {
		w.close()
	}
	return r.deliver()
}

// explain says why the attempt's context ended, if it did; err is the transport's error, nil when it has not returned.
func (l *Timeout) explain(ctx *attemptContext, caller context.Context, err error) error {
	cause := ctx.ended()
	if cause == nil || isRefusal(err) {
		return err
	}
	var e *Error
	var limit limitReached
	kind, fired := limitBudget, true
	switch t := ctx.trip; {
	case errors.As(cause, &limit):
		e, kind = t.fail("timeout", ErrTimeout), limitKind(limit)
	case errors.Is(cause, errBudget):
		e = t.fail("timeout", errBudget)
	default:
		e = t.gone(caller, "timeout")
		e.verdict = undecided
		fired = errors.Is(e.Err, ErrTimeout)
	}
	if NotSent(err) {
		e.Err = MarkNotSent(e.Err)
	}
	if fired {
		e.Limit = kind.String()
		l.fired[kind].Add(1)
		l.events.emit(Event{Kind: EventTimeout, Operation: ctx.trip.call.Operation, Cause: e.Limit})
	}
	return e
}

// work is one attempt on its own goroutine.
type work struct {
	attemptContext

	done   bool       // this and the next are guarded by the context's lock
	linger *lingering // set when the caller has been answered without the result
	result result     // the attempt's own until it is done
}

// run is capture without what that allocates, and with little on the stack: a new goroutine has room for two kilobytes, and
// moving to more takes longer than all the rest.
func (w *work) run(req *http.Request, next leg) {
	w.result.exited = true
	defer w.finish()
	resp, err := next.travel(w, w.trip, req)
	w.result = result{resp: resp, err: err}
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

// finish is deferred on the attempt's goroutine, and told whatever way that ended.
func (w *work) finish() {
	if v := recover(); v != nil {
		w.result = result{panicked: true, value: v}
	}
	w.trip.payload.Release()
	w.mu.Lock()
	w.stopDial()
	w.done = true
	linger := w.linger
	w.mu.Unlock()
	if linger != nil {
		w.finishLate(linger)
		return
	}
	w.wake <- struct{}{}
}

// finishLate is the end of an attempt that was left behind.
func (w *work) finishLate(l *lingering) {
	w.layer.lingering.Add(-1)
	w.layer.late.Add(1)
	w.layer.events.emit(Event{Kind: EventAttemptLate, Operation: w.trip.call.Operation, Cause: w.result.cause()})
	l.late = w.result
	l.tail.end()
	discard(w.result.resp)
}

// abandon leaves the attempt behind; nil: it came back after all. What holds something for the attempt is told at its end.
func (w *work) abandon(caller context.Context) *lingering {
	why := w.layer.explain(&w.attemptContext, caller, nil)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.done {
		return nil
	}
	w.linger = &lingering{err: why}
	w.layer.lingering.Add(1)
	return w.linger
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
