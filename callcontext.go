package resilience

import (
	"context"
	"errors"
	"sync"
	"time"
)

// callContext is the context of a call on the road: the caller's, with a deadline that the budget sets. It costs a timer
// only when somebody waits for its end, which on the happy path nobody does. The trip contains it.
type callContext struct {
	caller context.Context
	trip   *trip

	mu       sync.Mutex
	deadline time.Time // the budget's; zero: none
	err      error     // not nil: it has ended
	cause    error
	awaited  *awaited // nil: nobody waits for its end
}

// awaited is what a context needs only for those who wait.
type awaited struct {
	done   chan struct{}
	timer  *time.Timer
	detach func() bool
}

type callContextKey struct{}

// Deadline is the earlier one of the caller's and the budget's.
func (c *callContext) Deadline() (time.Time, bool) {
	c.mu.Lock()
	budget := c.deadline
	c.mu.Unlock()
	theirs, ok := c.caller.Deadline()
	if budget.IsZero() || ok && theirs.Before(budget) {
		return theirs, ok
	}
	return budget, true
}

// Value finds the trip and the call's context itself; for the rest it asks the caller's context.
func (c *callContext) Value(key any) any {
	switch key.(type) {
	case tripKey:
		return c.trip
	case callContextKey:
		return c
	}
	return c.caller.Value(key)
}

// Done is where it begins to cost something.
func (c *callContext) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.awaited == nil {
		c.awaited = &awaited{done: make(chan struct{})}
		if c.err != nil {
			close(c.awaited.done)
			return c.awaited.done
		}
		if c.caller.Done() != nil {
			c.awaited.detach = context.AfterFunc(c.caller, c.callerEnded)
		}
		c.arm()
	}
	return c.awaited.done
}

// arm starts the timer for those who wait; the lock is held.
func (c *callContext) arm() {
	if c.awaited == nil || c.err != nil || c.deadline.IsZero() {
		return
	}
	c.awaited.timer = time.AfterFunc(time.Until(c.deadline), func() { c.end(context.DeadlineExceeded, errBudget) })
}

func (c *callContext) callerEnded() { c.end(c.caller.Err(), context.Cause(c.caller)) }

// Err works the caller's end out when asked. The budget's needs a look at the clock, which costs as much as a door: it is
// taken where somebody waits, and before an attempt, see budget.
func (c *callContext) Err() error {
	c.mu.Lock()
	err := c.err
	c.mu.Unlock()
	if err != nil {
		return err
	}
	if err := c.caller.Err(); err != nil {
		c.end(err, context.Cause(c.caller))
		return err
	}
	return nil
}

// budget is when the budget is used up, zero if there is none. One that is spent at this time ends the context.
func (c *callContext) budget(now time.Time) (deadline time.Time, spent bool) {
	c.mu.Lock()
	deadline = c.deadline
	c.mu.Unlock()
	spent = !deadline.IsZero() && !now.Before(deadline)
	if spent {
		c.end(context.DeadlineExceeded, errBudget)
	}
	return deadline, spent
}

// limit sets the deadline of the budget, unless there is an earlier one.
func (c *callContext) limit(now time.Time, d time.Duration) {
	deadline := now.Add(d)
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.deadline.IsZero() && c.deadline.Before(deadline) {
		return
	}
	c.deadline = deadline
	c.awaited.stop()
	c.arm()
}

// unlimit stops the clock of the budget: the answer is there.
func (c *callContext) unlimit() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = time.Time{}
	c.awaited.stop()
}

func (a *awaited) stop() {
	if a != nil && a.timer != nil {
		a.timer.Stop()
	}
}

// end is the first to come's word.
func (c *callContext) end(err, cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err, c.cause = err, cause
	if c.awaited == nil {
		return
	}
	close(c.awaited.done)
	c.awaited.stop()
	if c.awaited.detach != nil {
		c.awaited.detach()
	}
}

// withoutBudget is the same call's context for what has the budget in a clock of its own.
func (c *callContext) withoutBudget() context.Context {
	return (*callerView)(c)
}

// callerView is a call's context without its budget, for what has a clock of its own.
type callerView callContext

func (v *callerView) Deadline() (time.Time, bool) { return v.caller.Deadline() }
func (v *callerView) Done() <-chan struct{}       { return v.caller.Done() }
func (v *callerView) Err() error                  { return v.caller.Err() }

func (v *callerView) Value(key any) any {
	switch key.(type) {
	case tripKey:
		return v.trip
	case callContextKey:
		return nil
	}
	return v.caller.Value(key)
}

// causeOf is context.Cause for contexts that may be a call's.
func causeOf(ctx context.Context) error {
	err := ctx.Err()
	if err == nil {
		return nil
	}
	if c, ok := ctx.Value(callContextKey{}).(*callContext); ok && c.Err() != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.cause
	}
	return context.Cause(ctx)
}

// outOfBudget reports whether ctx ended because the budget of the call was used up.
func outOfBudget(ctx context.Context) bool { return errors.Is(causeOf(ctx), errBudget) }
