// Package slots keeps the book of a bulkhead: which tier holds how many slots, who waits, and whose turn it is. It knows
// nothing of calls, contexts or locks; its owner brings the lock.
package slots

import (
	"math"
	"time"

	"github.com/retell-resilience/resilience/internal/waitq"
)

// Tier is one of three shares.
type Tier int

// The tiers, the most urgent first.
const (
	Critical Tier = iota
	Normal
	Bulk
)

// Bounds are the numbers the book goes by.
type Bounds struct {
	Guaranteed [3]int        // slots by tier
	Total      int           // slots over all tiers, at least 1
	Places     int           // to wait in each tier
	AgeAfter   time.Duration // a wait that long goes before urgency; 0: none does
}

// Waiter is one who may wait in a [Book], once.
type Waiter[T any] struct {
	Value T
	Tier  Tier
	Since time.Duration // the moment of arrival, on the owner's clock

	place waitq.Place[*Waiter[T]]
}

// Book is the state. Set the bounds before use.
type Book[T any] struct {
	bounds  Bounds
	tiers   [3]tier[T]
	inUse   int
	waiting int
	passed  bool // an aged waiter was passed over for a guarantee: the next slot goes by age
}

type tier[T any] struct {
	inUse int
	queue waitq.Queue[*Waiter[T]]
	waits Waits
}

// Waits sums up the waits that ended with a slot.
type Waits struct {
	Count uint64
	Total time.Duration
	Max   time.Duration
}

// Numbers is what the book says of one tier.
type Numbers struct {
	Guaranteed, InUse, Waiting int
	Waits                      Waits
}

// Bounds returns the bounds in force.
func (b *Book[T]) Bounds() Bounds { return b.bounds }

// SetBounds puts others in force. Slots in use and places taken stay so, also beyond the new bounds.
func (b *Book[T]) SetBounds(bounds Bounds) { b.bounds = bounds }

// InUse is the number of slots held.
func (b *Book[T]) InUse() int { return b.inUse }

// Waiting is the number of places taken.
func (b *Book[T]) Waiting() int { return b.waiting }

// Numbers returns those of one tier.
func (b *Book[T]) Numbers(t Tier) Numbers {
	own := &b.tiers[t]
	return Numbers{
		Guaranteed: b.bounds.Guaranteed[t], InUse: own.inUse, Waiting: own.queue.Len(), Waits: own.waits,
	}
}

// Limit is how many slots may be in use at this share of the total. One always may: what is let through shows whether
// the share can grow.
func (b *Book[T]) Limit(share float64) int {
	if share < 1 {
		return max(1, int(math.Ceil(share*float64(b.bounds.Total))))
	}
	return b.bounds.Total
}

// Take gives t a slot if one is free and nobody waits for it.
func (b *Book[T]) Take(t Tier, share float64) bool {
	if b.waiting > 0 || b.inUse >= b.Limit(share) {
		return false
	}
	b.occupy(t)
	return true
}

func (b *Book[T]) occupy(t Tier) {
	b.tiers[t].inUse++
	b.inUse++
}

// GiveBack ends the use of a slot. Ask Next whose it is now.
func (b *Book[T]) GiveBack(t Tier) {
	b.tiers[t].inUse--
	b.inUse--
}

// HasPlace reports whether there is a place for one more to wait.
func (b *Book[T]) HasPlace(t Tier) bool {
	taken := b.tiers[t].queue.Len()
	if t == Bulk {
		// What critical ones took over from bulk ones is not there for new bulk ones, or the two together would push
		// the queue up without end.
		taken += max(0, b.tiers[Critical].queue.Len()-b.bounds.Places)
	}
	return taken < b.bounds.Places
}

// Victim is who loses the place to one of tier t that finds none: the youngest bulk waiter, to a critical one; nil:
// nobody does.
func (b *Book[T]) Victim(t Tier) *Waiter[T] {
	if t != Critical {
		return nil
	}
	if p := b.tiers[Bulk].queue.Youngest(); p != nil {
		return p.Value
	}
	return nil
}

// Join puts w behind those of its tier.
func (b *Book[T]) Join(w *Waiter[T]) {
	w.place.Value = w
	b.tiers[w.Tier].queue.Push(&w.place)
	b.waiting++
}

// Leave takes w out from wherever it stands, and reports whether it was waiting still.
func (b *Book[T]) Leave(w *Waiter[T]) bool {
	if !b.tiers[w.Tier].queue.Remove(&w.place) {
		return false
	}
	b.waiting--
	return true
}

// Next gives a free slot to the waiter whose turn it is, and returns it; nil: no slot is free, or nobody waits.
func (b *Book[T]) Next(now time.Duration, share float64) *Waiter[T] {
	if b.waiting == 0 || b.inUse >= b.Limit(share) {
		return nil
	}
	w := b.turn(now)
	b.Leave(w)
	b.occupy(w.Tier)
	waits, waited := &b.tiers[w.Tier].waits, now-w.Since
	waits.Count++
	waits.Total += waited
	waits.Max = max(waits.Max, waited)
	return w
}

// turn says whose turn it is: guarantee, then age, then urgency. An aged one that was passed over for a guarantee is
// next, so that neither waits for a crowd of the other kind. The oldest of a tier stands at the head of its queue, so
// this costs the same however many wait.
func (b *Book[T]) turn(now time.Duration) *Waiter[T] {
	if only := b.only(); only != nil {
		b.passed = false
		return only
	}
	first, aged := b.first(now, false)
	owed, _ := b.first(now, true)
	if owed == nil || owed == first || aged && b.passed {
		b.passed = false
		return first
	}
	b.passed = aged
	return owed
}

// only is the head of the one tier that has waiters; nil: several have.
func (b *Book[T]) only() *Waiter[T] {
	for t := range b.tiers {
		if q := &b.tiers[t].queue; q.Len() == b.waiting {
			return q.Oldest().Value
		}
	}
	return nil
}

// first picks the oldest aged waiter, else the most urgent, of all tiers or of those below their guarantee. It also
// reports whether the one it picked is aged.
func (b *Book[T]) first(now time.Duration, owed bool) (best *Waiter[T], aged bool) {
	for t := range b.tiers {
		head := b.tiers[t].queue.Oldest()
		if head == nil || owed && b.tiers[t].inUse >= b.bounds.Guaranteed[t] {
			continue
		}
		w := head.Value
		old := b.bounds.AgeAfter > 0 && now-w.Since >= b.bounds.AgeAfter
		if best == nil || old && w.Since < best.Since { // one that is not aged came later
			best, aged = w, old
		}
	}
	return best, aged
}

// OldestWait is how long the one who waits longest has waited.
func (b *Book[T]) OldestWait(now time.Duration) time.Duration {
	longest := time.Duration(0)
	for t := range b.tiers {
		if head := b.tiers[t].queue.Oldest(); head != nil {
			longest = max(longest, now-head.Value.Since)
		}
	}
	return longest
}

// All yields everybody who waits, the most urgent first. Nobody may come or go meanwhile.
func (b *Book[T]) All(yield func(*Waiter[T]) bool) {
	for t := range b.tiers {
		for p := range b.tiers[t].queue.All {
			if !yield(p.Value) {
				return
			}
		}
	}
}
