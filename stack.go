package resilience

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Config is the whole stack. The zero Config is the documented default of every layer; each layer can be left out with
// its Off: it is nil in the Stack then. Its config is checked all the same.
type Config struct {
	// Describe says what a request is. nil: by HTTP method. It runs for every request, on the caller's goroutine; one
	// that panics refuses the call.
	Describe    func(*http.Request) Call
	Fallback    FallbackConfig
	Idempotency IdempotencyConfig
	DLQ         DLQConfig
	Timeout     TimeoutConfig
	Retry       RetryConfig
	Bulkhead    BulkheadConfig
	Breaker     BreakerConfig
	Health      HealthConfig
	// OnEvent hears all layers, those of one layer in order. It may be called from several goroutines at once. One that
	// blocks or panics harms nobody; the oldest events are dropped and counted when it falls behind.
	OnEvent func(Event)
}

// Stack is all layers together. The order has its home here; see the package documentation for the picture.
//
// It is safe for concurrent use. Its layers may be used directly, to read their state or to steer them; one that was left
// out is nil, which is safe too.
type Stack struct {
	Fallback    *Fallback
	Idempotency *Idempotency
	DLQ         *DLQ
	Timeout     *Timeout
	Retry       *Retry
	Bulkhead    *Bulkhead
	Breaker     *Breaker

	entry   entry // by which requests come in
	health  *Health
	work    leg           // the road of Do
	workReq *http.Request // what every call of it looks like; never changed
	epoch   time.Time
	closing chan struct{}
	calls   callCount
	running atomic.Bool
	latency latencies
	account account

	mu   sync.Mutex
	own  []*http.Transport // made for Wrap(nil)
	once sync.Once
}

// New makes a stack. Its error names every field of the config that is wrong, of all layers at once. New starts nothing:
// background work (redriving letters, settling keys in doubt, probing, sweeping) is done by Run.
func New(cfg Config) (*Stack, error) {
	s := &Stack{workReq: workRequest(), epoch: time.Now(), closing: make(chan struct{})}
	s.calls.empty = make(chan struct{})
	var errs [8]error
	s.Fallback, errs[0] = NewFallback(cfg.Fallback)
	s.Idempotency, errs[1] = NewIdempotency(cfg.Idempotency)
	s.DLQ, errs[2] = NewDLQ(cfg.DLQ)
	s.Timeout, errs[3] = NewTimeout(cfg.Timeout)
	s.Retry, errs[4] = NewRetry(cfg.Retry)
	s.Bulkhead, errs[5] = NewBulkhead(cfg.Bulkhead)
	s.Breaker, errs[6] = NewBreaker(cfg.Breaker)
	s.health, errs[7] = NewHealth(cfg.Health)
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	s.wire(cfg)
	return s, nil
}

// road lists the doors from the outside in. This is the order.
func (s *Stack) road() []stretch {
	return []stretch{
		{"budget", s.Timeout.Budget(), s.Timeout != nil},
		{"fallback", s.Fallback, s.Fallback != nil},
		{"claim", s.Idempotency.Claim(), s.Idempotency != nil},
		{"dlq", s.DLQ, s.DLQ != nil},
		{"retry", s.Retry, s.Retry != nil},
		{"bulkhead", s.Bulkhead, s.Bulkhead != nil},
		{"breaker", s.Breaker, s.Breaker != nil},
		{"intent", s.Idempotency.Intent(), s.Idempotency != nil},
		{"attempt", s.Timeout.Attempt(), s.Timeout != nil},
	}
}

type stretch struct {
	name string
	door Layer
	on   bool
}

// String names the doors that a request passes, from the outside in.
func (s *Stack) String() string {
	var names []string
	for _, st := range s.road() {
		if st.on {
			names = append(names, st.name)
		}
	}
	return strings.Join(append(names, "transport"), " → ")
}

func (s *Stack) lay(end leg) leg {
	var doors []Layer
	for _, st := range s.road() {
		if st.on {
			doors = append(doors, st.door)
		}
		if st.name == "dlq" { // below it every answer is one that the other side gave just now
			doors = append(doors, &s.account)
		}
	}
	return legOf(Chain(doors...).Wrap(end))
}

// Wrap puts the stack around a transport; what it returns belongs into http.Client.Transport. nil is a transport of its
// own that speaks HTTP/1.1, over which it can be proven that nothing was written. All that is wrapped by one stack shares
// its circuit, slots, keys, letters and cached answers. A letter is redriven through the base that its call went through;
// one that came from DLQConfig.Store, by Import or by Add, through the base that was wrapped first. A base that adds
// credentials by itself must serve one tenant only: the cache tells tenants apart by the headers that it sees.
//
// An http.Client.Timeout is a deadline that the caller brings: Error.Limit is "caller", and the budget ends with it where it
// would be longer. Such a call is answered a moment before, since http.Client takes the type away from later errors.
func (s *Stack) Wrap(base http.RoundTripper) http.RoundTripper {
	if base == nil {
		tr := NewTransport()
		s.mu.Lock()
		s.own = append(s.own, tr)
		s.mu.Unlock()
		base = tr
	}
	end := legOf(base)
	if w, ok := end.(*wire); ok {
		end = newWire(w.base, s.maxResponse())
	}
	tr := &stackTransport{stack: s, base: end, top: timed{s.lay(end), s}}
	s.DLQ.addRoad(tr.top)
	return tr
}

func (s *Stack) maxResponse() int64 {
	if s.Timeout == nil {
		return 0
	}
	return s.Timeout.cfg.MaxResponseBytes
}

// stackTransport is the way in for requests.
type stackTransport struct {
	stack     *Stack
	top, base leg
}

func (tr *stackTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	s := tr.stack
	if s.inside(req.Context()) {
		// A request that is made while a call of this stack is served is part of that call: it needs no second slot.
		return enter(req, tr.base, entry{stack: s, describe: s.entry.describe})
	}
	return s.admit(req, tr.top)
}

// CloseIdleConnections closes those of the transport below.
func (tr *stackTransport) CloseIdleConnections() { closeIdle(tr.base) }

// inside reports whether ctx belongs to a call that is on this stack's road already.
func (s *Stack) inside(ctx context.Context) bool {
	for t := tripOf(ctx); t != nil; t = t.outer {
		if t.stack == s {
			return true
		}
	}
	return false
}

func (s *Stack) admit(req *http.Request, top leg) (*http.Response, error) {
	if !s.calls.begin() {
		closeBody(req)
		return nil, &Error{Layer: "stack", Err: ErrClosed, verdict: refused}
	}
	defer s.calls.end()
	return enter(req, top, s.entry)
}

// timed measures what a caller waits, by operation class.
type timed struct {
	leg
	stack *Stack
}

func (l timed) travel(ctx context.Context, t *trip, req *http.Request) (*http.Response, error) {
	began := t.now()
	resp, err := l.leg.travel(ctx, t, req)
	l.stack.latency.observe(t.call.Class, t.lately()-began)
	return resp, err
}

// wire connects the layers, which do not know each other.
func (s *Stack) wire(cfg Config) {
	for _, e := range s.sinks() {
		e.listen(cfg.OnEvent)
		e.recorder = s.health.note
	}
	if s.Bulkhead != nil {
		s.Bulkhead.closing = s.closing
		if s.Breaker != nil {
			s.Bulkhead.refusal = s.Breaker.refusal
			s.Bulkhead.share = s.Breaker.share
			s.Breaker.opened = s.Bulkhead.sendHome
		}
	}
	if s.Retry != nil {
		s.Retry.closing = s.closing
	}
	if s.Fallback != nil {
		s.Fallback.closing = s.closing
	}
	s.wireKeys()
	s.wireHealth()
	s.work = timed{s.lay(workLeg{}), s}
	s.entry = entry{stack: s, describe: cfg.Describe}
	if s.Timeout != nil {
		s.entry.maxBody, s.entry.budget = s.Timeout.cfg.MaxRequestBytes, s.Timeout.budgetOf
	}
}

// wireKeys ties letters and keys together: a letter pins its key, and the outcome of a key settles its letter.
func (s *Stack) wireKeys() {
	if s.DLQ != nil {
		s.DLQ.reenter, s.DLQ.closing = s.admit, s.closing
		if s.Breaker != nil {
			s.DLQ.paused = s.redrivePause
		}
	}
	if s.Idempotency == nil {
		return
	}
	s.Idempotency.closing = s.closing
	if s.Timeout != nil {
		s.Idempotency.limitOf = func(c Call) time.Duration {
			limit, _ := s.Timeout.LimitOf(c)
			return limit
		}
	}
	s.Idempotency.onSettle = func(id string, r Record) {
		if r.Resource != "" {
			s.Fallback.Invalidate(r.Resource) // the caller may have left before it happened
		}
		s.DLQ.settle(id, s.newsOf(r))
	}
	if s.DLQ == nil {
		return
	}
	s.DLQ.box.keyID = s.Idempotency.ID
	s.Idempotency.pinned = s.DLQ.holds
	s.Idempotency.recall = s.DLQ.recall
	s.DLQ.keyClock = s.Idempotency.store.Now
	s.DLQ.reconcile = func(ctx context.Context, key string) keyNews {
		rec := s.Idempotency.standing(ctx, key)
		if s.Idempotency.mayResend(rec) {
			return keyNews{keyNotApplied, s.Idempotency.store.Now()} // by the user's choice it may be sent again
		}
		return s.newsOf(rec)
	}
}

// newsOf is what the record of a key says to the letter of the key.
func (s *Stack) newsOf(r Record) keyNews {
	switch r.State {
	case KeyConfirmed:
		return keyNews{verdict: keyDone}
	case KeyNotApplied:
		return keyNews{keyNotApplied, s.Idempotency.absentAsOf(r)}
	}
	return keyNews{} // also a free key: a store that has forgotten proves nothing
}

// redrivePause says whether the circuit that letters would meet is open. With circuits by operation only the letter
// itself can tell, and a refusal costs it no attempt.
func (s *Stack) redrivePause() (bool, time.Duration) {
	err := s.Breaker.refusal(Call{Priority: PriorityBulk})
	var e *Error
	if err == nil || !errors.As(err, &e) {
		return false, 0
	}
	return true, e.RetryAfter
}

func (s *Stack) sinks() []*events {
	all := []*events{s.health.events}
	if s.Fallback != nil {
		all = append(all, s.Fallback.events)
	}
	if s.Idempotency != nil {
		all = append(all, s.Idempotency.events)
	}
	if s.DLQ != nil {
		all = append(all, s.DLQ.events)
	}
	if s.Timeout != nil {
		all = append(all, s.Timeout.events)
	}
	if s.Retry != nil {
		all = append(all, s.Retry.events)
	}
	if s.Bulkhead != nil {
		all = append(all, s.Bulkhead.events)
	}
	if s.Breaker != nil {
		all = append(all, s.Breaker.events)
	}
	return all
}

// Health is the one view of all layers; it is never nil.
func (s *Stack) Health() *Health { return s.health }

// Stats is a snapshot of all layers. Each layer's part is consistent in itself.
type Stats struct {
	Fallback    FallbackStats
	Idempotency IdempotencyStats
	DLQ         DLQStats
	Timeout     TimeoutStats
	Retry       RetryStats
	Bulkhead    BulkheadStats
	Breaker     BreakerStats
	// Latency is what callers waited, by the name of the class ("request", "upload", "long-poll"): everything included,
	// whatever the outcome. A class without calls is not there.
	Latency map[string]Latency
	// Calls is the number of callers on the road now.
	Calls int
	// Running: [Stack.Run] is at work.
	Running bool
}

// Stats may be called at any time.
func (s *Stack) Stats() Stats {
	return Stats{
		Fallback: s.Fallback.Stats(), Idempotency: s.Idempotency.Stats(), DLQ: s.DLQ.Stats(), Timeout: s.Timeout.Stats(),
		Retry: s.Retry.Stats(), Bulkhead: s.Bulkhead.Stats(), Breaker: s.Breaker.Stats(),
		Latency: s.latency.snapshot(), Calls: s.calls.underWay(), Running: s.running.Load(),
	}
}
