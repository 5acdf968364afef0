package resilience

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/retell-resilience/resilience/internal/retryafter"
)

// RetryConfig says how often and how soon a failed attempt is made again.
type RetryConfig struct {
	// Max is the number of retries after the first attempt. Default 2; -1: none.
	Max int
	// Base is the longest wait before the first retry; it doubles with each further one, up to Cap, and the wait is
	// drawn evenly between zero and that (full jitter). Defaults 500 ms and 8 s.
	Base, Cap time.Duration
	// MaxRetryAfter caps what a server may ask for with Retry-After (RFC 9110 section 10.2.3, seconds or a date) or
	// retry-after-ms. Default 60 s; -1: the headers are ignored.
	MaxRetryAfter time.Duration
	// Ratio and RatioPerSecond are the retry budget: the share of calls that may be retried, and a number of retries a
	// second on top. Defaults 0.2 and 10; -1 for Ratio: no retry budget; -1 for RatioPerSecond: nothing on top.
	Ratio, RatioPerSecond float64
	// OnEvent hears this layer alone: EventRetry, EventRetryRefused, EventThrottled.
	OnEvent func(Event)
	// Off leaves the layer out: [NewRetry] returns nil, which repeats nothing.
	Off bool
}

func (c RetryConfig) withDefaults() RetryConfig {
	c.Max = or(c.Max, 2)
	c.Base = or(c.Base, 500*time.Millisecond)
	c.Cap = max(or(c.Cap, 8*time.Second), c.Base)
	c.MaxRetryAfter = or(c.MaxRetryAfter, 60*time.Second)
	c.Ratio = or(c.Ratio, 0.2)
	c.RatioPerSecond = or(c.RatioPerSecond, 10)
	return c
}

func (c RetryConfig) validate() error {
	f := faults{prefix: "Retry"}
	f.count("Max", int64(c.Max))
	f.positive("Base", c.Base)
	f.positive("Cap", c.Cap)
	if c.Cap > 0 && c.Base > c.Cap {
		f.add("Base", "no longer than Cap ("+c.Cap.String()+")", c.Base)
	}
	f.duration("MaxRetryAfter", c.MaxRetryAfter)
	if c.Ratio != -1 && !(c.Ratio >= 0 && c.Ratio <= 1) {
		f.add("Ratio", "between 0 and 1, 0 for the default or -1 for no retry budget", c.Ratio)
	}
	if c.RatioPerSecond != -1 && !(c.RatioPerSecond >= 0) || math.IsInf(c.RatioPerSecond, 0) {
		f.add("RatioPerSecond", "finite and positive, 0 for the default or -1 for none", c.RatioPerSecond)
	}
	return f.err()
}

// ErrThrottled: the API answers 429 to this operation, and its gate would not let this call through within the caller's
// budget. Nothing was sent by this attempt. Error.RetryAfter says when the gate opens.
var ErrThrottled = errors.New("throttled")

// Retry makes an attempt again where that cannot do harm: reads and idempotent writes after a transport failure, a
// timeout, 408, 425, 429 and 5xx other than 501 (409 for idempotent writes); an effect-once call only after a 429, and
// after an error of the network that is [NotSent]. It never repeats our own refusals, never starts an attempt that the
// budget leaves no time for, and never sleeps past it: when it gives up, the caller gets the last answer or error as it is.
//
// A 429 slows all callers of that operation down together: they pass a gate, one after the other, that opens again
// gradually as answers other than 429 come back.
//
// It is safe for concurrent use. A nil Retry never repeats anything.
type Retry struct {
	cfg     RetryConfig
	events  *events
	budget  retryBudget
	gates   gates
	closing <-chan struct{} // nil: never

	calls, attempts, retries, refusedByBudget, throttled, gaveUp atomic.Uint64
}

// NewRetry checks the config; its error names every field that is wrong. With Off it returns nil.
func NewRetry(cfg RetryConfig) (*Retry, error) {
	if err := cfg.validate(); err != nil || cfg.Off {
		return nil, err
	}
	cfg = cfg.withDefaults()
	r := &Retry{cfg: cfg, events: newEvents("retry", cfg.OnEvent), gates: gates{list: map[string]*gate{}}}
	r.budget.start(cfg.Ratio, cfg.RatioPerSecond)
	return r, nil
}

// Wrap puts the layer around next.
func (r *Retry) Wrap(next http.RoundTripper) http.RoundTripper {
	if r == nil {
		return next
	}
	return newDoor(next, r.pass)
}

func (r *Retry) pass(ctx context.Context, t *trip, req *http.Request, next leg) (*http.Response, error) {
	r.calls.Add(1)
	r.budget.deposit()
	arrived := false // an earlier attempt may have had its effect
	var resp *http.Response
	var err error
	for n := 1; ; n++ {
		admitted, refusal := r.waitAtGate(t, ctx)
		if refusal != nil {
			if n > 1 && errors.Is(refusal, ErrThrottled) {
				return resp, withoutProof(err, arrived) // the answer that closed the gate says it best
			}
			return nil, withoutProof(refusal, arrived)
		}
		r.attempts.Add(1)
		resp, err = next.travel(ctx, t, req)
		v := r.judge(t, resp, err)
		if v.throttled {
			r.throttle(t, v.after, n, admitted)
		} else if err == nil {
			r.gates.relax(t.call.Operation, admitted)
		}
		if !v.again {
			return resp, withoutProof(err, arrived)
		}
		var wait time.Duration
		if wait, err = r.mayRetry(t, ctx, v, n, err); wait < 0 {
			return resp, withoutProof(err, arrived)
		}
		arrived = arrived || mayHaveChanged(resp, err)
		discard(resp) // the next answer takes its place
		if refusal := r.sleep(t, ctx, wait); refusal != nil {
			return nil, withoutProof(refusal, arrived)
		}
	}
}

// withoutProof takes the proof out of a refusal when an earlier attempt may have arrived.
func withoutProof(err error, arrived bool) error {
	if !arrived || !NotSent(err) {
		return err
	}
	return &Error{Layer: "retry", Err: err, verdict: unproven}
}

// judgment is what one attempt's outcome means for the next.
type judgment struct {
	again     bool
	throttled bool
	after     time.Duration // what the server asked for; -1: nothing
}

func (r *Retry) judge(t *trip, resp *http.Response, err error) judgment {
	v := judgment{after: -1}
	_, whole := t.payload.Bytes()
	once := t.call.Effect == EffectOnce
	if err != nil {
		switch {
		case !whole || isRefusal(err) || errors.Is(err, ErrTooLarge) || InDoubt(err):
		case NotSent(err):
			v.again = unreadRefusal(err) == 0 // which says no, and so would the next
		default:
			v.again = !once
		}
		return v
	}
	if resp.StatusCode >= 400 {
		v.after = r.retryAfter(resp.Header, time.Now())
	}
	v.throttled = resp.StatusCode == http.StatusTooManyRequests
	v.again = whole && retryable(t.call.Effect, resp)
	return v
}

func retryable(effect Effect, resp *http.Response) bool {
	if effect == EffectOnce {
		return resp.StatusCode == http.StatusTooManyRequests
	}
	if resp.StatusCode < 400 {
		return false
	}
	switch resp.Header.Get("X-Should-Retry") {
	case "true":
		return true
	case "false":
		return false
	}
	switch resp.StatusCode {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		return true
	case http.StatusConflict:
		return effect == EffectIdempotent
	case http.StatusNotImplemented:
		return false
	}
	return resp.StatusCode >= 500
}

// retryAfter reads what the server asked for; -1: nothing usable.
func (r *Retry) retryAfter(h http.Header, now time.Time) time.Duration {
	if r.cfg.MaxRetryAfter < 0 {
		return -1
	}
	after, ok := retryafter.Parse(h, now)
	if !ok {
		return -1
	}
	return min(after, r.cfg.MaxRetryAfter)
}

// mayRetry decides on the next attempt and draws the wait before it; -1: no further attempt. A throttled call waits at
// the gate instead.
func (r *Retry) mayRetry(t *trip, ctx context.Context, v judgment, n int, err error) (time.Duration, error) {
	if n > r.cfg.Max || ctx.Err() != nil {
		return -1, err
	}
	wait := r.backoff(n)
	if v.after >= 0 {
		wait = v.after
	}
	atGate := false // there is none where too many operations are throttled
	if v.throttled {
		if opens, ok := r.gates.wait(t.call.Operation, time.Now()); ok {
			wait, atGate = opens, true
		}
	}
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < saturate(wait, useful) {
		r.gaveUp.Add(1)
		return -1, err
	}
	if !r.budget.withdraw() {
		r.refusedByBudget.Add(1)
		r.events.emit(Event{Kind: EventRetryRefused, Operation: t.call.Operation, Attempt: n})
		if err != nil {
			err = &Error{Layer: "retry", Operation: t.call.Operation, Err: errors.Join(ErrRetryBudget, err)}
		}
		return -1, err
	}
	r.retries.Add(1)
	r.events.emit(Event{Kind: EventRetry, Operation: t.call.Operation, Attempt: n + 1, Duration: wait})
	if atGate {
		wait = 0 // it is waited for there
	}
	return wait, err
}

func (r *Retry) backoff(n int) time.Duration {
	return time.Duration(rand.Int64N(int64(doubled(r.cfg.Base, r.cfg.Cap, n-1)) + 1)) //nolint:gosec // jitter needs no secret
}

// sleep waits without a slot.
func (r *Retry) sleep(t *trip, ctx context.Context, d time.Duration) error {
	if d <= 0 {
		if ctx.Err() != nil {
			return t.gone(ctx, "retry")
		}
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	defer t.waited()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return t.gone(ctx, "retry")
	case <-r.closing:
		return t.refuse("retry", ErrClosed)
	}
}

// throttle closes the gate of the operation for everybody.
func (r *Retry) throttle(t *trip, after time.Duration, n int, admitted uint64) {
	r.throttled.Add(1)
	if after < 0 {
		after = r.backoff(n)
	}
	r.gates.closeFor(t.call.Operation, after, time.Now(), admitted)
	r.events.emit(Event{Kind: EventThrottled, Operation: t.call.Operation, Attempt: n, Duration: after})
}

// waitAtGate returns when the gate of the operation, where there is one, lets an attempt begin.
func (r *Retry) waitAtGate(t *trip, ctx context.Context) (admitted uint64, refusal error) {
	for {
		admitted = r.gates.closings.Load()
		if !r.gates.open.Load() {
			return admitted, nil
		}
		most := maxDuration
		if deadline, ok := ctx.Deadline(); ok {
			most = time.Until(deadline) - useful
		}
		wait := r.gates.reserve(t.call.Operation, time.Now(), most)
		if wait <= 0 {
			return admitted, nil
		}
		if wait > most {
			e := t.refuse("retry", ErrThrottled)
			e.RetryAfter = wait
			return admitted, e
		}
		refusal = r.sleep(t, ctx, wait)
		admitted = r.gates.closings.Load()
		if again := r.gates.leave(t.call.Operation, time.Now(), refusal == nil); refusal != nil || !again {
			return admitted, refusal
		}
	}
}

// RetryStats is a snapshot; the counters run from the start.
type RetryStats struct {
	Calls, Attempts, Retries uint64
	// RefusedByBudget counts retries that the retry budget refused, GaveUp those that the caller's budget left no time for.
	RefusedByBudget, GaveUp uint64
	// Throttled counts answers with status 429; Gates is the number of operations that are slowed down now.
	Throttled uint64
	Gates     int
	// BudgetLeft is how many retries the retry budget allows now; -1: it has no limit.
	BudgetLeft float64
	Delivery   DeliveryStats
}

// Stats may be called at any time.
func (r *Retry) Stats() RetryStats {
	if r == nil {
		return RetryStats{}
	}
	r.gates.mu.Lock()
	gates := len(r.gates.list)
	r.gates.mu.Unlock()
	return RetryStats{
		Calls: r.calls.Load(), Attempts: r.attempts.Load(), Retries: r.retries.Load(),
		RefusedByBudget: r.refusedByBudget.Load(), GaveUp: r.gaveUp.Load(), Throttled: r.throttled.Load(),
		Gates: gates, BudgetLeft: r.budget.left(), Delivery: r.events.stats(),
	}
}
