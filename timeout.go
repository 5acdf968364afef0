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
// thrown away, and it shows in Stats().Lingering until it returns.
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
func (l *Timeout) budget(t *trip, req *http.Request, next leg) (*http.Response, error) {
	total := l.BudgetOf(t.call)
	if total < 0 {
		return next.travel(t, req)
	}
	ctx, clock := withClock(req.Context(), total, errBudget)
	handedOn := false
	defer func() {
		if !handedOn { // a panic passes through
			clock.end()
		}
	}()
	resp, err := next.travel(t, req.WithContext(ctx))
	clock.stop()
	handedOn = true
	afterExchange(resp, err, clock.end)
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

// grace is how long a transport has to return after its context ended. One that honours its context needs none of it,
// and only its return can prove that nothing was sent.
const grace = 2 * time.Millisecond

// attempt runs the rest of the road on a goroutine of its own, so that a transport that ignores its context cannot hold
// the caller.
func (l *Timeout) attempt(t *trip, req *http.Request, next leg) (*http.Response, error) {
	if ctx := req.Context(); ctx.Err() != nil {
		return nil, t.gone(ctx, "timeout")
	}
	limit, name := l.LimitOf(t.call)
	w := &work{layer: l, trip: t, limitName: name, done: make(chan struct{})}
	ctx, clock := withClock(req.Context(), limit, limitReached(name))
	w.clock = clock
	if l.cfg.Connect > 0 {
		ctx = context.WithValue(ctx, dialWatchKey{}, dialWatch(w))
	}
	go capture(func() (*http.Response, error) { return next.travel(t, req.WithContext(ctx)) }, w.finish)

	if !w.wait(ctx) {
		if linger := w.abandon(req.Context(), ctx); linger != nil {
			return nil, linger
		}
	}
	clock.stop()
	r := w.result
	if r.err != nil {
		defer clock.end() // after explain, which asks whether the context had ended
		return nil, w.explain(req.Context(), ctx, r.err)
	}
	afterExchange(r.resp, nil, clock.end)
	return r.deliver()
}

// limitReached is the cause with which an attempt's context ends.
type limitReached string

func (n limitReached) Error() string { return ErrTimeout.Error() + ": " + string(n) }
func (n limitReached) Unwrap() error { return ErrTimeout }

// work is one attempt on its goroutine.
type work struct {
	layer     *Timeout
	trip      *trip
	limitName string
	clock     *clock
	done      chan struct{}
	result    result // set before done is closed

	mu      sync.Mutex
	dial    *time.Timer
	linger  *lingering // set when the caller has been answered without a result
	settled bool       // connected, or the attempt is over
}

// wait returns true when the attempt ended, false when its time is up and it has not.
func (w *work) wait(ctx context.Context) bool {
	select {
	case <-w.done:
		return true
	case <-ctx.Done():
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-w.done:
		return true
	case <-timer.C:
		return false
	}
}

// finish is called on the attempt's goroutine, whatever way it ended.
func (w *work) finish(r result) {
	w.connected()
	w.mu.Lock()
	w.result = r
	linger := w.linger
	close(w.done)
	w.mu.Unlock()
	if linger == nil {
		return
	}
	w.layer.lingering.Add(-1)
	w.layer.late.Add(1)
	w.layer.events.emit(Event{Kind: EventAttemptLate, Operation: w.trip.call.Operation, Cause: r.cause()})
	linger.late = r
	linger.tail.end()
	w.clock.end()
}

// abandon leaves the attempt behind; nil: it came back after all. What holds something for the attempt is told at its end.
func (w *work) abandon(caller, ctx context.Context) *lingering {
	w.mu.Lock()
	defer w.mu.Unlock()
	select {
	case <-w.done:
		return nil
	default:
	}
	w.linger = &lingering{err: w.explain(caller, ctx, nil)}
	w.layer.lingering.Add(1)
	return w.linger
}

// explain says why the attempt's context ended, if it did; err is the transport's error, nil when it has not returned.
func (w *work) explain(caller, ctx context.Context, err error) error {
	if ctx.Err() == nil || isRefusal(err) {
		return err
	}
	var e *Error
	if caller.Err() != nil {
		e = w.trip.gone(caller, "timeout")
		e.verdict = undecided
	} else {
		e = w.trip.fail("timeout", ErrTimeout)
		var limit limitReached
		errors.As(context.Cause(ctx), &limit)
		e.Limit = string(limit)
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
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dial != nil || w.settled {
		return
	}
	w.dial = time.AfterFunc(w.layer.cfg.Connect, func() {
		w.mu.Lock()
		over := w.settled
		w.mu.Unlock()
		if !over {
			w.clock.fire(limitReached("connect"))
		}
	})
}

// connected stops the connect limit.
func (w *work) connected() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.settled = true
	if w.dial != nil {
		w.dial.Stop()
	}
}

// clock ends a context at a deadline, unless it is stopped before.
type clock struct {
	cancel context.CancelCauseFunc
	timer  *time.Timer
}

// withClock is context.WithTimeoutCause with a clock that can be stopped without ending the context. limit < 0: never.
func withClock(parent context.Context, limit time.Duration, cause error) (context.Context, *clock) {
	inner, cancel := context.WithCancelCause(parent)
	c := &clock{cancel: cancel}
	if limit < 0 {
		return inner, c
	}
	deadline := time.Now().Add(limit)
	if earlier, ok := parent.Deadline(); ok && earlier.Before(deadline) {
		deadline = earlier
	}
	c.timer = time.AfterFunc(limit, func() { cancel(cause) })
	return &clockContext{Context: inner, deadline: deadline}, c
}

func (c *clock) fire(cause error) { c.cancel(cause) }

func (c *clock) stop() {
	if c.timer != nil {
		c.timer.Stop()
	}
}

func (c *clock) end() {
	c.stop()
	c.cancel(nil)
}

// clockContext shows the deadline of a clock.
type clockContext struct {
	context.Context
	deadline time.Time
}

func (c *clockContext) Deadline() (time.Time, bool) { return c.deadline, true }

// Err says DeadlineExceeded where time ended the context, as a context with a timeout does.
func (c *clockContext) Err() error {
	err := c.Context.Err()
	if err != nil && errors.Is(context.Cause(c.Context), ErrTimeout) {
		return context.DeadlineExceeded
	}
	return err
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
