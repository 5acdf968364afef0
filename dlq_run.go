package resilience

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// run redrives letters as they fall due, until ctx ends or the queue is closed. It then waits for the redrives that it
// started, whose context is ctx. Nothing runs while nothing is due.
func (d *DLQ) run(ctx context.Context) error {
	if d == nil {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	var redrives sync.WaitGroup
	defer redrives.Wait()
	paused := false
	for ctx.Err() == nil {
		pause := d.mustPause(&paused)
		step := d.step(ctx, pause)
		switch {
		case step.closed:
			return nil
		case step.lease != nil:
			redrives.Go(func() { d.redrive(step.lease) })
			continue
		}
		sleep(ctx, step.wait, step.changed)
	}
	return context.Cause(ctx)
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
	if !no {
		return 0
	}
	if wait <= 0 {
		return time.Second
	}
	return wait
}

// runStep is what the runner does next: redrive a letter, or sleep until wait has passed (0: for ever) or something changed.
type runStep struct {
	lease   *lease
	closed  bool
	wait    time.Duration
	changed <-chan struct{}
}

func (d *DLQ) step(ctx context.Context, pause time.Duration) runStep {
	changed := d.watch()
	now := time.Now()
	hold := max(pause, d.rateDelay(now))
	if hold <= 0 && d.idleWorker() {
		ls, result := d.take(ctx)
		switch {
		case ls != nil:
			d.spendRate(now)
			return runStep{lease: ls}
		case result.Status == RedriveClosed:
			return runStep{closed: true}
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sweep(now) // expiry does not wait for a pause to end
	step := runStep{closed: d.closed, wait: hold, changed: changed}
	wakeAt := d.box.nextExpiry()
	if next := d.box.nextDue(); hold <= 0 && len(d.running) < d.cfg.Concurrency && sooner(next, wakeAt) {
		wakeAt = next
	}
	if until := wakeAt.Sub(now); !wakeAt.IsZero() && (step.wait <= 0 || until < step.wait) {
		step.wait = max(until, 1)
	}
	return step
}

func sooner(a, b time.Time) bool { return !a.IsZero() && (b.IsZero() || a.Before(b)) }

func (d *DLQ) idleWorker() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.running) < d.cfg.Concurrency
}

// rateDelay is how long the rate forbids the next redrive.
func (d *DLQ) rateDelay(now time.Time) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.nextSend.Sub(now)
}

func (d *DLQ) spendRate(now time.Time) {
	if d.cfg.Rate < 0 {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.nextSend = now.Add(time.Duration(float64(time.Second) / d.cfg.Rate))
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

// sleep waits for the time (0: for ever), the change or the end.
func sleep(ctx context.Context, wait time.Duration, changed <-chan struct{}) {
	var over <-chan time.Time
	if wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		over = timer.C
	}
	select {
	case <-ctx.Done():
	case <-over:
	case <-changed:
	}
}

// close ends redriving and waits for the redrives under way and for callbacks, until ctx ends: then it takes the context
// of what still runs away, and says how many there were. Letters stay, for List and Export; none is lost by closing.
func (d *DLQ) close(ctx context.Context) error {
	if d == nil {
		return nil
	}
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
			return d.events.drain(ctx)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			d.abandon()
			return fmt.Errorf("dlq: %d redrives had not ended: %w", n, context.Cause(ctx))
		}
	}
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

	letterCounters
	Delivery DeliveryStats
}

// letterCounters count since the queue was made. It is embedded, its fields are part of [DLQStats].
type letterCounters struct {
	Admitted uint64 // letters that came in, by import as well
	Acked    uint64 // letters whose write has happened
	Deleted  uint64 // by Delete
	Dropped  uint64 // by OverflowDropOldest

	Merged   uint64 // failures that joined the letter of their key
	Refused  uint64 // letters that did not fit, or came after Close: their writes stayed with the callers
	Spilled  uint64 // letters that Spill took
	Redriven uint64 // times a letter was taken up, look-ups and refusals included
	Failed   uint64 // attempts spent
	Paused   uint64 // redrives put off without spending an attempt

	GivenUp   uint64 // times a letter was parked
	Expired   uint64 // of these, because its time was over
	Overtaken uint64 // letters superseded
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
		letterCounters: d.counters, Delivery: d.events.stats(),
	}
	if oldest, ok := d.box.active.Peek(); ok {
		s.OldestAge = max(0, now.Sub(oldest.letter.First))
	}
	return s
}
