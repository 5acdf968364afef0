package resilience

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/retell-resilience/resilience/internal/slots"
)

// How a call of a [Bulkhead] gets its slot, waits for one, or is sent away, and how the slot comes back.

func tierOf(p Priority) slots.Tier {
	switch p {
	case PriorityCritical:
		return slots.Critical
	case PriorityBulk:
		return slots.Bulk
	default:
		return slots.Normal
	}
}

// roadless are the trips of work that came by Acquire, of which only the priority is known. Nothing looks at their clocks.
var roadless = [3]trip{
	slots.Critical: {call: Call{Priority: PriorityCritical}},
	slots.Normal:   {call: Call{Priority: PriorityNormal}},
	slots.Bulk:     {call: Call{Priority: PriorityBulk}},
}

// tally counts how the calls of one tier fared. granted is counted when the call has the slot in hand, outside the lock,
// so that it never goes down; the rest is guarded by the lock.
type tally struct {
	granted                        atomic.Uint64
	rejected, displaced, cancelled uint64
}

// waitingCall is a call in the book. Whoever takes it out of the book decides its fate, under the lock: the call
// itself, or somebody else, who then sends a word. It serves one call after another, because what it is made of costs
// more than the rest of a short wait; number tells them apart for who found it in the book and comes back for it.
type waitingCall struct {
	trip    *trip
	queued  bool
	number  uint64        // of the wait, guarded by the lock; 0: there is a slot for it
	decided chan struct{} // has room for the word
	granted bool
	err     error // why it was sent away
}

type waiter = slots.Waiter[waitingCall]

// shed is why a call ended without a slot: the words of Event.Cause.
type shed = string

const (
	admitted      shed = ""
	shedFull      shed = "full"
	shedDisplaced shed = "displaced"
	shedMaxWait   shed = "max-wait"
	shedOpen      shed = "open"
	shedClosed    shed = "closed"
	shedTimeout   shed = "timeout"
	shedCanceled  shed = "canceled"
)

var (
	errQueueFull = fmt.Errorf("%w: no slot and no place to wait", ErrFull)
	errDisplaced = fmt.Errorf("%w: a critical call took the place", ErrFull)
	errMaxWait   = fmt.Errorf("%w: no slot within the longest wait", ErrFull)
)

// pass is the door. Whatever happens below, a panic and Goexit included, the slot comes back exactly once.
func (b *Bulkhead) pass(ctx context.Context, t *trip, req *http.Request, next leg) (*http.Response, error) {
	tier := tierOf(t.call.Priority)
	if err := b.enter(ctx, t, tier); err != nil {
		return nil, err
	}
	returned := false
	defer func() {
		if !returned {
			b.giveBack(tier)
		}
	}()
	resp, err := next.travel(ctx, t, req)
	returned = true
	b.settle(t, tier, tailOf(resp, err), err)
	return resp, err
}

// settle gives the slot back when the exchange has ended: now, or with its tail. A tail behind an error is work that
// outlived its caller.
func (b *Bulkhead) settle(t *trip, tier slots.Tier, rest *tail, err error) {
	switch {
	case rest == nil:
		b.giveBack(tier)
	case err == nil:
		rest.after(func() { b.giveBack(tier) })
	default:
		b.abandon(t.call.Operation, tier, rest)
	}
}

func (b *Bulkhead) abandon(operation string, tier slots.Tier, rest *tail) {
	count := func(n int) {
		b.mu.Lock()
		b.abandoned += n
		b.mu.Unlock()
	}
	left := time.Now()
	count(+1)
	b.events.emit(Event{Kind: EventSlotAbandoned, Operation: operation})
	rest.after(func() {
		count(-1)
		b.events.emit(Event{Kind: EventSlotReturned, Operation: operation, Duration: time.Since(left)})
		b.giveBack(tier)
	})
}

// enter returns when the call has a slot, or an error instead of one.
func (b *Bulkhead) enter(ctx context.Context, t *trip, tier slots.Tier) error {
	err := b.comeIn(ctx, t, tier)
	if err == nil {
		b.tallies[tier].granted.Add(1)
	}
	return err
}

// comeIn finds a slot free, and nobody waiting for it, most of the time. Only otherwise the circuit is asked whether
// waiting makes sense, and then not under the lock: if it opened meanwhile it is asked again, since those who waited were
// sent home without this call.
func (b *Bulkhead) comeIn(ctx context.Context, t *trip, tier slots.Tier) error {
	var w *waiter
	for asked := uint64(neverAsked); ; {
		share := b.shareNow()
		if why := b.ended(ctx); why != admitted {
			return b.turnAway(ctx, b.waiterOf(w, t, tier), why, nil)
		}
		b.mu.Lock()
		if b.take(tier, share) {
			b.mu.Unlock()
			return nil
		}
		w = b.waiterOf(w, t, tier)
		if b.refusal == nil || asked == b.openings {
			why, maxWait := b.enqueue(w, share), b.maxWait
			b.mu.Unlock()
			return b.stay(ctx, w, why, maxWait)
		}
		asked = b.openings
		b.mu.Unlock()
		if err := b.refusal(t.call); err != nil {
			return b.turnAway(ctx, w, shedOpen, err)
		}
	}
}

const neverAsked = math.MaxUint64 // and so not since any opening

// stay is for a call that has a place to wait, or why it has none.
func (b *Bulkhead) stay(ctx context.Context, w *waiter, why shed, maxWait time.Duration) error {
	if why != admitted {
		return w.Value.reason(ctx, why)
	}
	err := b.sit(ctx, w, maxWait)
	if err == nil {
		b.reuse(w)
	}
	return err
}

func (b *Bulkhead) waiterOf(w *waiter, t *trip, tier slots.Tier) *waiter {
	if w != nil {
		return w
	}
	w, _ = b.spare.Get().(*waiter)
	if w == nil {
		w = &waiter{Value: waitingCall{decided: make(chan struct{}, 1)}}
	}
	w.Value.trip, w.Tier, w.Since = t, tier, b.now()
	return w
}

// reuse keeps a waiter that has its slot for another call. If the word was not read, it is there: it is sent under the lock.
func (b *Bulkhead) reuse(w *waiter) {
	select {
	case <-w.Value.decided:
	default:
	}
	w.Value.trip, w.Value.queued, w.Value.granted = nil, false, false
	b.spare.Put(w)
}

// now is the time since the bulkhead was made.
func (b *Bulkhead) now() time.Duration { return time.Since(b.epoch) }

// take serves those who wait first: share may have grown since anybody looked.
func (b *Bulkhead) take(tier slots.Tier, share float64) bool {
	if b.book.Waiting() > 0 && b.book.InUse() < b.book.Limit(share) {
		b.dispatch(share)
	}
	return b.book.Take(tier, share)
}

func (b *Bulkhead) giveBack(tier slots.Tier) {
	share := b.shareNow()
	b.mu.Lock()
	b.book.GiveBack(tier)
	b.dispatch(share)
	b.mu.Unlock()
}

// dispatch gives the free slots to those who wait. After it nobody waits, or no slot is free.
func (b *Bulkhead) dispatch(share float64) {
	if b.book.Waiting() == 0 {
		return
	}
	now := b.now()
	for w := b.book.Next(now, share); w != nil; w = b.book.Next(now, share) {
		w.Value.granted, w.Value.number = true, 0
		w.Value.decided <- struct{}{}
	}
	b.watchShare(share)
}

// enqueue gives w a place to wait, or says why not.
func (b *Bulkhead) enqueue(w *waiter, share float64) shed {
	if !b.book.HasPlace(w.Tier) {
		victim := b.book.Victim(w.Tier)
		if victim == nil {
			b.count(w, shedFull)
			return shedFull
		}
		b.sendAway(victim, shedDisplaced, victim.Value.trip.refuse("bulkhead", errDisplaced))
	}
	b.waits++
	w.Value.queued, w.Value.number = true, b.waits
	b.book.Join(w)
	b.watchShare(share)
	return admitted
}

// sit is the wait itself.
func (b *Bulkhead) sit(ctx context.Context, w *waiter, maxWait time.Duration) error {
	defer w.Value.trip.waited()
	var bound <-chan time.Time
	if maxWait > 0 {
		timer := time.NewTimer(maxWait)
		defer timer.Stop()
		bound = timer.C
	}
	late := admitted
	select {
	case <-w.Value.decided:
	case <-bound:
		late = shedMaxWait
	case <-ctx.Done():
	case <-b.closing:
	}
	if why := or(b.ended(ctx), late); why != admitted {
		if err := b.leave(ctx, w, why); err != nil {
			return err
		}
	}
	if w.Value.trip.tooLate(ctx) {
		return b.leave(ctx, w, shedTimeout)
	}
	return w.Value.err
}

// leave ends the wait of w for a reason of its own. A slot that was granted at the same instant is handed on, except
// that one which came with the end of MaxWait is welcome. A call that was sent away already stays so.
func (b *Bulkhead) leave(ctx context.Context, w *waiter, why shed) error {
	share := b.shareNow()
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.book.Leave(w):
		b.watchShare(share)
	case w.Value.granted && why != shedMaxWait:
		b.book.GiveBack(w.Tier)
		b.dispatch(share)
	default:
		return w.Value.err
	}
	b.count(w, why)
	return w.Value.reason(ctx, why)
}

// ended says why nobody may come in or go on waiting.
func (b *Bulkhead) ended(ctx context.Context) shed {
	if ctx.Err() != nil {
		if byTime(ctx) {
			return shedTimeout
		}
		return shedCanceled
	}
	select { // every call comes by here, and isClosed is a call more
	case <-b.closing:
		return shedClosed
	default:
		return admitted
	}
}

// reason is the error for a call that ends without a slot.
func (c *waitingCall) reason(ctx context.Context, why shed) error {
	switch why {
	case shedTimeout, shedCanceled:
		return c.trip.gone(ctx, "bulkhead")
	case shedClosed:
		return c.trip.refuse("bulkhead", ErrClosed)
	case shedMaxWait:
		return c.trip.refuse("bulkhead", errMaxWait)
	default:
		return c.trip.refuse("bulkhead", errQueueFull)
	}
}

// turnAway ends a call that was never queued; err, if there is one, is the circuit's.
func (b *Bulkhead) turnAway(ctx context.Context, w *waiter, why shed, err error) error {
	b.mu.Lock()
	b.count(w, why)
	b.mu.Unlock()
	if err != nil {
		return err
	}
	return w.Value.reason(ctx, why)
}

// sendHome is called when the circuit has opened: those who wait and are refused now need not wait any longer.
func (b *Bulkhead) sendHome() {
	b.mu.Lock()
	b.openings++
	all := make([]found, 0, b.book.Waiting())
	for w := range b.book.All {
		all = append(all, found{w, w.Value.number, w.Value.trip})
	}
	b.mu.Unlock()
	for _, f := range all {
		if err := b.refusal(f.trip.call); err != nil {
			b.mu.Lock()
			if f.waiter.Value.number == f.number {
				b.sendAway(f.waiter, shedOpen, err)
			}
			b.mu.Unlock()
		}
	}
}

// found is a wait that was seen in the book. By the time the lock is held again the waiter may be another call's.
type found struct {
	waiter *waiter
	number uint64
	trip   *trip
}

// sendAway ends the wait of w, if it still waits.
func (b *Bulkhead) sendAway(w *waiter, why shed, err error) {
	if !b.book.Leave(w) {
		return
	}
	if b.book.Waiting() == 0 {
		b.watchShare(1)
	}
	w.Value.err = err
	b.count(w, why)
	w.Value.decided <- struct{}{}
}

// count books a call that ended without a slot.
func (b *Bulkhead) count(w *waiter, why shed) {
	now, tally := time.Now(), &b.tallies[w.Tier]
	switch why {
	case shedDisplaced:
		tally.displaced++
	case shedTimeout, shedCanceled:
		tally.cancelled++
	default:
		tally.rejected++
	}
	if why == shedFull || why == shedDisplaced || why == shedMaxWait || why == shedTimeout && w.Value.queued {
		b.sheds.Add(now)
	}
	b.events.emit(Event{
		Kind: EventSlotRejected, Operation: w.Value.trip.call.Operation, Cause: why, Duration: now.Sub(b.epoch) - w.Since,
	})
}

func (b *Bulkhead) shareNow() float64 {
	if b.share == nil {
		return 1
	}
	return b.share()
}

const recheckEvery = 100 * time.Millisecond

// watchShare keeps a timer while somebody waits at less than the whole share: it grows by time alone, and perhaps nobody
// gives a slot back and notices.
func (b *Bulkhead) watchShare(share float64) {
	wanted := b.book.Waiting() > 0 && share < 1
	switch {
	case wanted == b.armed:
	case !wanted:
		b.recheck.Stop()
	case b.recheck == nil:
		b.recheck = time.AfterFunc(recheckEvery, b.lookAgain)
	default:
		b.recheck.Reset(recheckEvery)
	}
	b.armed = wanted
}

func (b *Bulkhead) lookAgain() {
	share := b.shareNow()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.armed = false
	b.dispatch(share)
}
