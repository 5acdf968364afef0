package resilience

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/retell-resilience/resilience/internal/waitq"
)

// callContext is the context of a call on the road: the caller's, with a deadline that the budget sets. It costs a timer
// only when somebody waits for its end, which on the happy path nobody does; until then it needs no lock either. The trip
// contains it.
type callContext struct {
	caller context.Context
	trip   *trip

	deadline atomic.Int64 // the budget's, an instant of the trip's clock; 0: none
	ending   atomic.Pointer[ending]
	awaited  atomic.Pointer[awaited] // nil: nobody waits for its end
	mu       sync.Mutex              // for what is awaited
}

// ending is why a context has ended.
type ending struct{ err, cause error }

// finished is the ending of a call whose caller has the answer.
var finished = &ending{context.Canceled, context.Canceled}

// awaited is what a context needs only for those who wait.
type awaited struct {
	done      chan struct{}
	closed    bool
	timer     *time.Timer
	detach    func() bool
	followers waitq.Queue[func()]
}

type callContextKey struct{}

// Deadline is the earlier one of the caller's and the budget's.
func (c *callContext) Deadline() (time.Time, bool) {
	theirs, ok := c.caller.Deadline()
	budget := c.deadline.Load()
	if budget == 0 {
		return theirs, ok
	}
	if ours := c.trip.clock.at(time.Duration(budget)); !ok || ours.Before(theirs) {
		return ours, true
	}
	return theirs, true
}

// budgetIsFirst reports whether the budget ends before the caller's own time.
func (c *callContext) budgetIsFirst() bool {
	budget := c.deadline.Load()
	theirs, ok := c.caller.Deadline()
	return budget != 0 && (!ok || c.trip.clock.at(time.Duration(budget)).Before(theirs))
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

// Done is where it begins to cost something. Whoever changes the deadline or ends the context does that first and looks
// for somebody who waits then; here it is the other way round, so that one of the two sees the other.
func (c *callContext) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := c.awaited.Load()
	if a != nil {
		return a.done
	}
	a = &awaited{done: make(chan struct{})}
	c.awaited.Store(a)
	if c.ending.Load() != nil {
		a.close()
		return a.done
	}
	if c.caller.Done() != nil {
		a.detach = context.AfterFunc(c.caller, c.callerEnded)
	}
	c.arm(a)
	return a.done
}

// AfterFunc is what package context looks for in a context that is not its own, to end those that derive from it: without
// it each of them costs a goroutine that waits. f must not block: it runs where the context is ended.
func (c *callContext) AfterFunc(f func()) (stop func() bool) {
	c.Done()
	c.mu.Lock()
	defer c.mu.Unlock()
	a := c.awaited.Load()
	if a.closed {
		go f()
		return func() bool { return false }
	}
	follower := &waitq.Place[func()]{Value: f}
	a.followers.Push(follower)
	return func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return a.followers.Remove(follower)
	}
}

// arm starts the timer for those who wait; the lock is held.
func (c *callContext) arm(a *awaited) {
	a.stop()
	if deadline := c.deadline.Load(); deadline != 0 && !a.closed {
		left := time.Duration(deadline) - c.trip.clock.look()
		a.timer = time.AfterFunc(left, func() { c.end(&ending{context.DeadlineExceeded, errBudget}) })
	}
}

func (c *callContext) callerEnded() { c.end(&ending{c.caller.Err(), context.Cause(c.caller)}) }

// Err works the caller's end out when asked. The budget's needs a look at the clock, which costs as much as two doors: it
// is taken where somebody waits, and before an attempt, see budget.
func (c *callContext) Err() error {
	if e := c.ending.Load(); e != nil {
		return e.err
	}
	if c.caller.Err() == nil {
		return nil
	}
	c.callerEnded()
	return c.ending.Load().err
}

// budget is when the budget is used up, 0 if there is none. One that is spent at this time ends the context.
func (c *callContext) budget(now time.Duration) (deadline time.Duration, spent bool) {
	deadline = time.Duration(c.deadline.Load())
	spent = deadline != 0 && now >= deadline
	if spent {
		c.end(&ending{context.DeadlineExceeded, errBudget})
	}
	return deadline, spent
}

// limit sets the deadline of the budget, unless there is an earlier one. It returns the one there was before, 0 for none.
func (c *callContext) limit(now, d time.Duration) (earlier int64) {
	deadline := int64(saturate(now, d))
	for {
		earlier = c.deadline.Load()
		if earlier != 0 && earlier < deadline {
			return earlier
		}
		if c.deadline.CompareAndSwap(earlier, deadline) {
			c.limited()
			return earlier
		}
	}
}

// unlimit stops the clock of the budget: the answer is there.
func (c *callContext) unlimit() { c.restore(0) }

// restore puts the deadline of an outer budget back.
func (c *callContext) restore(outer int64) {
	c.deadline.Store(outer)
	c.limited()
}

// limited lets those who wait know of another deadline.
func (c *callContext) limited() {
	if a := c.awaited.Load(); a != nil {
		c.mu.Lock()
		c.arm(a)
		c.mu.Unlock()
	}
}

// close wakes those who wait, once, and returns those who follow; the lock is held.
func (a *awaited) close() (followers []func()) {
	if a.closed {
		return nil
	}
	a.closed = true
	close(a.done)
	a.stop()
	if a.detach != nil {
		a.detach()
	}
	for p := a.followers.Oldest(); p != nil; p = a.followers.Oldest() {
		a.followers.Remove(p)
		followers = append(followers, p.Value)
	}
	return followers
}

func (a *awaited) stop() {
	if a.timer != nil {
		a.timer.Stop()
	}
}

// end is the first to come's word.
func (c *callContext) end(why *ending) {
	if !c.ending.CompareAndSwap(nil, why) {
		return
	}
	a := c.awaited.Load()
	if a == nil {
		return
	}
	c.mu.Lock()
	followers := a.close()
	c.mu.Unlock()
	for _, end := range followers {
		end()
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
		return c.ending.Load().cause
	}
	return context.Cause(ctx)
}

// outOfBudget reports whether ctx ended because the budget of the call was used up.
func outOfBudget(ctx context.Context) bool { return errors.Is(causeOf(ctx), errBudget) }
