package resilience

import (
	"context"
	"math"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/retell-resilience/resilience/internal/recent"
	"github.com/retell-resilience/resilience/internal/slots"
)

// A Bulkhead bounds how many calls are on the wire at once and shares the slots out by priority, so that a thousand
// letters to send do not stand between a person and a phone call. Nobody waits for a slot while one is idle:
//
// While nobody waits and fewer than Total slots are in use, whoever comes gets one; a tier that needs fewer than its
// guarantee lends the rest to the others. Otherwise calls wait, first come first served within their tier, and a slot
// that comes free goes first to a tier that holds less than its guarantee, then to the call that has waited longest if
// that is at least AgeAfter, then to the most urgent tier. An aged call that is passed over for a guarantee comes before
// guarantees at the next slot, so that nobody starves, and no crowd of aged calls keeps a lent slot from coming back.
//
// A slot is held until the exchange has really ended: for a stream, until the end of its body or Close; for a transport
// that outlives the attempt limit, until it returns. So Total bounds what the other side sees, whatever callers do.
//
// A Bulkhead is safe for concurrent use, and a nil one admits everything.
type Bulkhead struct {
	events *events

	// Wired by the stack before use; nil when the layer is used alone. None is called under the lock.
	refusal func(Call) error // asked before a call waits: an error ends it instead; of Acquire it sees only the priority
	share   func() float64   // of Total that may be used now, between 0 and 1
	closing <-chan struct{}  // closed: nobody waits any more, nobody comes in

	epoch time.Time

	mu        sync.Mutex
	openings  uint64 // how often sendHome was called: a newcomer who asked before must ask again
	book      slots.Book[waitingCall]
	maxWait   time.Duration // 0: no bound
	tallies   [3]tally
	abandoned int
	sheds     recent.Counter
	waits     uint64      // how many calls have had a place to wait
	recheck   *time.Timer // looks at share again while somebody waits for it to grow
	armed     bool

	spare sync.Pool // waiters that nobody refers to any more
}

// BulkheadConfig says how many slots there are, and who waits how long for one.
type BulkheadConfig struct {
	// Critical, Normal and Bulk are the slots that each tier is guaranteed. 0: 10, 5 and 2; -1: no guarantee, the tier
	// lives on what the others do not use.
	Critical, Normal, Bulk int
	// Total bounds the slots in use over all tiers. 0: the sum of the guarantees. Below the sum the total wins, and the
	// more urgent tiers reach their guarantees first. Above it, the rest belongs to nobody and goes by urgency.
	Total int
	// Queue bounds the calls that wait in each tier; one more is rejected with [ErrFull]. A critical one then takes the
	// place of the youngest bulk one that waits, if any does. 0: 100; -1: no queue, a call without a slot is rejected.
	Queue int
	// MaxWait bounds the wait for a slot; past it the call is rejected with [ErrFull]. 0 and -1: no bound of its own,
	// the call's budget or the deadline of its context bounds the wait.
	MaxWait time.Duration
	// AgeAfter is the wait after which a call goes before younger ones of more urgent tiers; where one of those is below
	// its guarantee, the two take turns. 0: 5 s; -1: never.
	AgeAfter time.Duration
	// OnEvent hears the events of this layer: slot.rejected, slot.abandoned, slot.returned. It never holds up a call.
	// The Cause of a rejection is "full", "displaced", "max-wait", "open", "closed", or, for a call whose context ended
	// first, "timeout" or "canceled"; its Duration is the time waited.
	OnEvent func(Event)
	// Off leaves the layer out: [NewBulkhead] returns nil, which admits everything.
	Off bool
}

// NewBulkhead makes a bulkhead, nil with Off. The error names every field that is out of range.
func NewBulkhead(c BulkheadConfig) (*Bulkhead, error) {
	bounds, err := c.bounds()
	if err != nil || c.Off {
		return nil, err
	}
	b := &Bulkhead{events: newEvents("bulkhead", c.OnEvent), epoch: time.Now(), sheds: recent.New(time.Now())}
	b.set(bounds, c.MaxWait)
	return b, nil
}

// Wrap puts the bulkhead in front of next. A call that gets no slot ends with an error that is [NotSent]: [ErrFull],
// [ErrClosed], the refusal of an open circuit, or the reason why its context ended.
func (b *Bulkhead) Wrap(next http.RoundTripper) http.RoundTripper {
	if b == nil {
		return next
	}
	return newDoor(next, b.pass)
}

// Acquire takes a slot for work that is not HTTP, waiting for it as Wrap does and ending in the same errors. The caller
// gives the slot back with release, once the work has really ended; calling it again does nothing. With an error there
// is no slot, and release is nil.
func (b *Bulkhead) Acquire(ctx context.Context, p Priority) (release func(), err error) {
	if b == nil {
		return func() {}, nil
	}
	tier := tierOf(p)
	if err := b.enter(ctx, &roadless[tier], tier); err != nil {
		return nil, err
	}
	var released atomic.Bool
	return func() {
		if released.CompareAndSwap(false, true) {
			b.giveBack(tier)
		}
	}, nil
}

// Resize puts other bounds in place of the present ones, all of them: a zero field means the default, not "as before".
// Slots in use stay so: after a smaller Total no slot is given out until enough have come back. Those who wait stay,
// under the MaxWait they came with, and get at once what a larger Total has for them. OnEvent and Off are not looked at.
// The error names every field that is out of range; nothing has changed then.
func (b *Bulkhead) Resize(c BulkheadConfig) error {
	bounds, err := c.bounds()
	if err != nil || b == nil {
		return err
	}
	share := b.shareNow()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.set(bounds, c.MaxWait)
	b.dispatch(share)
	return nil
}

// BulkheadStats is what a bulkhead looks like at one moment, with what it counted since it was made.
type BulkheadStats struct {
	Critical, Normal, Bulk TierStats

	Total       int           // slots over all tiers
	Effective   int           // how many of them may be used now: fewer than Total for a while after a circuit closed
	InUse       int           // slots held; above Effective only while a smaller one is being drained
	Waiting     int           // calls that wait for a slot
	Queue       int           // places to wait in each tier
	Abandoned   int           // slots held by work that outlived its caller
	Saturated   bool          // somebody waits because there is no slot
	OldestWait  time.Duration // how long the one who waits longest has waited
	RecentSheds int           // calls lost for lack of a slot in the last ten seconds
}

// TierStats is one tier of a bulkhead. Every call that ever came is counted once: Granted, Rejected, Displaced,
// Cancelled, or it is still Waiting.
type TierStats struct {
	Guaranteed, InUse, Waiting int

	Granted   uint64 // got a slot
	Rejected  uint64 // sent away: full, waited too long, circuit open, closed
	Displaced uint64 // lost the place in the queue to a critical call
	Cancelled uint64 // left before there was a slot: cancelled, or out of time

	Waited    uint64        // slots given to calls that had to wait
	WaitTotal time.Duration // how long those waited, together
	WaitMax   time.Duration // the longest of these waits
}

// Stats returns the numbers of one moment. It moves nothing.
func (b *Bulkhead) Stats() BulkheadStats {
	if b == nil {
		return BulkheadStats{}
	}
	share, now := b.shareNow(), time.Now()
	since := now.Sub(b.epoch)
	b.mu.Lock()
	defer b.mu.Unlock()
	return BulkheadStats{
		Critical: b.tierStats(slots.Critical), Normal: b.tierStats(slots.Normal), Bulk: b.tierStats(slots.Bulk),
		Total: b.book.Bounds().Total, Effective: b.book.Limit(share), InUse: b.book.InUse(),
		Waiting: b.book.Waiting(), Queue: b.book.Bounds().Places, Saturated: b.book.Waiting() > 0,
		OldestWait: b.book.OldestWait(since), Abandoned: b.abandoned, RecentSheds: b.sheds.Sum(now),
	}
}

func (b *Bulkhead) tierStats(t slots.Tier) TierStats {
	n, c := b.book.Numbers(t), &b.tallies[t]
	return TierStats{
		Guaranteed: n.Guaranteed, InUse: n.InUse, Waiting: n.Waiting,
		Granted: c.granted.Load(), Rejected: c.rejected, Displaced: c.displaced, Cancelled: c.cancelled,
		Waited: n.Waits.Count, WaitTotal: n.Waits.Total, WaitMax: n.Waits.Max,
	}
}

func (c BulkheadConfig) bounds() (slots.Bounds, error) {
	f := faults{prefix: "Bulkhead"}
	f.count("Critical", int64(c.Critical))
	f.count("Normal", int64(c.Normal))
	f.count("Bulk", int64(c.Bulk))
	f.count("Queue", int64(c.Queue))
	f.duration("MaxWait", c.MaxWait)
	f.duration("AgeAfter", c.AgeAfter)
	bounds := slots.Bounds{
		Guaranteed: [3]int{max(0, or(c.Critical, 10)), max(0, or(c.Normal, 5)), max(0, or(c.Bulk, 2))},
		Total:      c.Total,
		Places:     max(0, or(c.Queue, 100)),
		AgeAfter:   max(0, or(c.AgeAfter, 5*time.Second)),
	}
	if c.Total == 0 {
		for _, n := range bounds.Guaranteed {
			bounds.Total += min(n, math.MaxInt-bounds.Total)
		}
	}
	switch {
	case c.Total < 0:
		f.add("Total", "positive or 0 for the sum of the guarantees", c.Total)
	case bounds.Total == 0:
		f.add("Total", "positive where no tier has a guarantee", c.Total)
	}
	return bounds, f.err()
}

func (b *Bulkhead) set(bounds slots.Bounds, maxWait time.Duration) {
	b.book.SetBounds(bounds)
	b.maxWait = max(0, maxWait)
}
