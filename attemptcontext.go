package resilience

import (
	"context"
	"errors"
	"sync"
	"time"
)

// attemptContext is the context of one attempt: the caller's, with the attempt's own limits and what is left of the
// budget. Most work never looks at its context, so what that costs, a timer above all, is spent only when it does.
type attemptContext struct {
	layer  *Timeout
	trip   *trip
	parent context.Context // the caller's, without a budget, which this has in its limit
	wake   chan struct{}   // told when time is up; nil: nobody waits but the work itself

	mu      sync.Mutex
	limit   time.Duration // an instant of the trip's clock; 0: none, or no more
	cause   error         // why it ended; nil: it has not
	clock   *time.Timer
	looked  *lookedAt // nil: nobody has
	kind    limitKind // of the limit
	byTime  bool      // it ended because time did
	settled bool      // connected, or the attempt is over
}

// lookedAt is what a context needs only for those who look at it.
type lookedAt struct {
	context.Context
	cancel context.CancelCauseFunc
	dial   *time.Timer
}

// limitReached is the cause with which an attempt's context ends.
type limitReached limitKind

func (n limitReached) Error() string { return ErrTimeout.Error() + ": " + limitKind(n).String() }
func (n limitReached) Unwrap() error { return ErrTimeout }

// start sets the limit to the first of the attempt's own and the budget, unless the caller has left or the budget is used
// up.
func (c *attemptContext) start(caller context.Context) bool {
	c.parent = caller
	if caller.Err() != nil {
		return false
	}
	limit, kind := c.layer.limitOf(&c.trip.call)
	now := c.trip.lately()
	if limit >= 0 {
		c.limit, c.kind = saturate(now, limit), kind
	}
	if call, _ := caller.Value(callContextKey{}).(*callContext); call != nil {
		budget, spent := call.budget(now)
		if spent {
			c.parent = call // which knows why, also where caller is detached from it
			return false
		}
		if caller == context.Context(call) {
			c.parent = call.withoutBudget()
		}
		if budget != 0 && (c.limit == 0 || budget < c.limit) {
			c.limit, c.kind = budget, limitBudget
		}
	}
	if c.wake != nil {
		c.arm(now)
	}
	return true
}

// arm starts the clock; the lock is held, or nobody else knows the context yet.
func (c *attemptContext) arm(now time.Duration) {
	if c.clock == nil && c.cause == nil && c.limit != 0 {
		c.clock = time.AfterFunc(c.limit-now, c.expire)
	}
}

func (c *attemptContext) expire() {
	if c.kind == limitBudget {
		c.timeUp(errBudget)
		return
	}
	c.timeUp(limitReached(c.kind))
}

func (c *attemptContext) timeUp(cause error) {
	c.end(cause)
	if c.wake != nil {
		c.wake <- struct{}{} // the work, its clock and its dial's clock wake once each, and there is room for all
	}
}

// end ends the context; the first cause counts.
func (c *attemptContext) end(cause error) {
	c.mu.Lock()
	if c.cause == nil {
		c.cause = cause
		c.byTime = errors.Is(cause, ErrTimeout) || errors.Is(c.parent.Err(), context.DeadlineExceeded)
	}
	looked := c.looked
	c.mu.Unlock()
	if looked != nil {
		looked.cancel(cause)
	}
}

// ended is why the context has ended, nil if it has not. Where no clock runs it looks at the time.
func (c *attemptContext) ended() error {
	c.mu.Lock()
	cause, limit, watched := c.cause, c.limit, c.clock != nil || c.limit == 0
	c.mu.Unlock()
	switch {
	case cause != nil:
		return cause
	case c.parent.Err() != nil:
		c.end(context.Cause(c.parent))
	case !watched && c.trip.now() >= limit:
		c.expire()
	default:
		return nil
	}
	return c.ended()
}

// Deadline implements context.Context.
func (c *attemptContext) Deadline() (time.Time, bool) {
	c.mu.Lock()
	limit := c.limit
	c.mu.Unlock()
	theirs, ok := c.parent.Deadline()
	if limit == 0 {
		return theirs, ok
	}
	if ours := c.trip.clock.at(limit); !ok || ours.Before(theirs) {
		return ours, true
	}
	return theirs, true
}

// Done implements context.Context.
func (c *attemptContext) Done() <-chan struct{} { return c.context().Done() }

// Err implements context.Context: DeadlineExceeded where time ended it.
func (c *attemptContext) Err() error {
	if c.ended() == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byTime {
		return context.DeadlineExceeded
	}
	return context.Canceled
}

// Value implements context.Context.
func (c *attemptContext) Value(key any) any {
	switch key.(type) {
	case dialWatchKey:
		return dialWatch(c)
	case tripKey:
		return c.trip
	case callContextKey:
		return nil
	}
	return c.context().Value(key)
}

// context is what a context must be that others derive from, and what starts the clock.
func (c *attemptContext) context() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.looked == nil {
		c.looked = new(lookedAt)
		c.looked.Context, c.looked.cancel = context.WithCancelCause(c.parent)
		if c.cause != nil {
			c.looked.cancel(c.cause)
		}
		c.arm(c.trip.now())
	}
	return c.looked
}

// close is for the end of an attempt that nothing is left of.
func (c *attemptContext) close() {
	c.mu.Lock()
	if c.cause == nil {
		c.cause = context.Canceled
	}
	looked := c.looked
	c.stopClocks()
	c.mu.Unlock()
	if looked != nil {
		looked.cancel(context.Canceled)
	}
}

// unlimit is for the end of an attempt that something is left of, which may last: a stream, or work that does not return.
func (c *attemptContext) unlimit() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopClocks()
}

func (c *attemptContext) stopClocks() {
	c.limit = 0
	if c.clock != nil {
		c.clock.Stop()
	}
	c.stopDial()
}

// dialing starts the connect limit with the first sign of a new connection; see [sighting].
func (c *attemptContext) dialing() {
	if c.layer.cfg.Connect <= 0 {
		return
	}
	c.context()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.looked.dial != nil || c.settled {
		return
	}
	c.looked.dial = time.AfterFunc(c.layer.cfg.Connect, func() {
		c.mu.Lock()
		over := c.settled
		c.settled = true
		c.mu.Unlock()
		if !over {
			c.timeUp(limitReached(limitConnect))
		}
	})
}

// connected stops the connect limit.
func (c *attemptContext) connected() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopDial()
}

func (c *attemptContext) stopDial() {
	c.settled = true
	if c.looked != nil && c.looked.dial != nil {
		c.looked.dial.Stop()
	}
}
