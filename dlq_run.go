package resilience

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// run redrives letters as they fall due, until ctx ends or the queue is closed. It then waits for the redrives that it
// started, whose context is ctx. Nothing runs while nothing is due.
func (d *DLQ) run(ctx context.Context) {
	var redrives sync.WaitGroup
	defer redrives.Wait()
	paused := false
	for ctx.Err() == nil {
		changed := d.watch()
		step := d.next(time.Now())
		if step.ready {
			if step.pause = d.mustPause(&paused); step.pause == 0 {
				if ls, _ := d.take(ctx); ls != nil {
					d.spendRate()
					redrives.Go(func() { d.redrive(ls) })
				}
				continue
			}
		}
		if step.closed {
			return
		}
		sleep(ctx, step.wait(), changed)
	}
}

// runStep is what the runner does next: redrive, or sleep until one of the times that are set.
type runStep struct {
	closed, ready      bool
	due, expiry, pause time.Duration // from now; 0: not set
	rewrite            time.Duration
}

func (s runStep) wait() (least time.Duration) {
	for _, d := range []time.Duration{s.due, s.expiry, s.pause, s.rewrite} {
		if d > 0 && (least == 0 || d < least) {
			least = d
		}
	}
	return least
}

// next looks at what is due. It parks what has expired, for that does not wait for a pause to end.
func (d *DLQ) next(now time.Time) (s runStep) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return runStep{closed: true}
	}
	d.sweep(now)
	if expiry := d.box.nextExpiry(); !expiry.IsZero() {
		s.expiry = max(d.box.until(expiry, now), 1)
	}
	if d.journal != nil && !d.journal.retryAt.IsZero() {
		s.rewrite = max(d.journal.retryAt.Sub(now), 1)
	}
	due := d.box.nextDue()
	if due.IsZero() || len(d.running) >= d.cfg.Concurrency {
		return s // the next change comes first
	}
	s.due = max(d.box.until(due, now), d.nextSend.Sub(now), 0)
	s.ready = s.due == 0
	return s
}

// mustPause asks the stack whether redriving makes sense now, and reports when it stops making sense.
func (d *DLQ) mustPause(paused *bool) time.Duration {
	if d.paused == nil {
		return 0
	}
	no, wait := d.paused()
	if no && !*paused {
		d.events.emit(Event{Kind: EventRedrivePaused, Cause: "open", Duration: wait})
	}
	*paused = no
	switch {
	case !no:
		return 0
	case wait <= 0:
		return time.Second
	}
	return wait
}

func (d *DLQ) spendRate() {
	if d.cfg.Rate < 0 {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.nextSend = time.Now().Add(time.Duration(min(float64(time.Second)/d.cfg.Rate, 1<<62))) // more is no duration
}

// watch returns a channel that is closed at the next change.
func (d *DLQ) watch() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.changed == nil {
		d.changed = make(chan struct{})
	}
	return d.changed
}

// wake tells those who watch that something changed; the lock is held.
func (d *DLQ) wake() {
	if d.changed != nil {
		close(d.changed)
		d.changed = nil
	}
}

// close ends redriving and waits for the redrives under way and for callbacks, until ctx ends: then it takes the context
// of what still runs away, and says how many there were. Letters stay, for List and Export; none is lost by closing. What
// is not in the store yet is brought there; the error says how much is not.
func (d *DLQ) close(ctx context.Context) error {
	d.mu.Lock()
	d.closed = true
	for len(d.blocked) > 0 {
		d.callNext()
	}
	d.wake()
	d.mu.Unlock()
	for {
		changed := d.watch()
		n := d.underWay()
		if n == 0 {
			return errors.Join(d.writeRest(ctx), d.events.drain(ctx))
		}
		select {
		case <-changed:
		case <-ctx.Done():
			d.abandon()
			return errors.Join(fmt.Errorf("dlq: %d redrives had not ended: %w", n, context.Cause(ctx)), d.writeRest(ctx))
		}
	}
}

// writeRest waits for the store to have everything, and says how much it has not.
func (d *DLQ) writeRest(ctx context.Context) error {
	if left, err := d.journal.drain(ctx); left > 0 {
		return fmt.Errorf("dlq: changes of %d letters are not in the store: %w", left, errors.Join(ErrStore, err))
	}
	return nil
}

func (d *DLQ) underWay() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.running)
}

func (d *DLQ) abandon() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, cancel := range d.running {
		cancel(ErrClosed)
	}
}

// DLQStats is a [DLQ] in numbers. At every moment Admitted = Acked + Deleted + Dropped + Letters.
type DLQStats struct {
	Letters    int // all there are, the sum of the next five
	Waiting    int
	InDoubt    int // waiting to be looked up
	Leased     int // being redriven, or in the hands of a call with the same key
	Parked     int
	Superseded int

	Bytes     int64         // as counted against MaxBytes
	OldestAge time.Duration // since the first try of the oldest letter neither parked nor superseded; 0: there is none
	NextDue   time.Time     // of the next redrive; zero: none waits
	Blocked   int           // callers who wait for room
	Running   int           // redrives under way
	Unwritten int           // letters whose last change, or removal, is not in the store yet

	DLQCounters
	Delivery DeliveryStats
}

// DLQCounters count since the queue was made.
type DLQCounters struct {
	Admitted uint64 // letters that came in, by import and from the store as well
	Loaded   uint64 // of these, from the store when the queue was made
	Acked    uint64 // letters whose write has happened
	Deleted  uint64 // by Delete
	Dropped  uint64 // by OverflowDropOldest

	Merged   uint64 // failures that joined the letter of their key
	Refused  uint64 // letters that did not fit, did not get into the store, or came after Close: their writes stayed with the callers
	Spilled  uint64 // letters that Spill took
	Redriven uint64 // times a letter was taken up, look-ups and refusals included
	Failed   uint64 // attempts spent
	Paused   uint64 // redrives put off without spending an attempt

	GivenUp   uint64 // times a letter was parked
	Expired   uint64 // of these, because its time was over
	Overtaken uint64 // letters superseded

	StoreFailures uint64 // writes that the store did not take
}

// Stats returns the numbers at this moment. It changes nothing.
func (d *DLQ) Stats() DLQStats {
	if d == nil {
		return DLQStats{}
	}
	now := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.box.states
	s := DLQStats{
		Letters: d.box.len(), Waiting: n[LetterWaiting], InDoubt: n[LetterInDoubt], Leased: n[LetterLeased],
		Parked: n[LetterParked], Superseded: n[LetterSuperseded],
		Bytes: d.box.bytes, NextDue: d.box.nextDue(), Blocked: len(d.blocked), Running: len(d.running),
		DLQCounters: d.counters, Delivery: d.events.stats(),
	}
	if d.journal != nil {
		s.Unwritten = len(d.journal.entries)
	}
	if oldest, ok := d.box.active.Peek(); ok {
		s.OldestAge = max(0, now.Sub(oldest.letter.First))
	}
	return s
}

// overdue is for how long the next redrive has been due; 0: none is.
func (s DLQStats) overdue(now time.Time) time.Duration {
	if s.NextDue.IsZero() {
		return 0
	}
	return max(0, now.Sub(s.NextDue))
}
