package resilience

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// Event is one thing that happened on the road, for logs and metrics. It holds no personal data: operation names come
// from the program, keys appear as a hash, causes are words from a closed set.
type Event struct {
	Kind      EventKind
	Time      time.Time
	Layer     string
	Operation string
	// KeyHash is a short hash of the idempotency key, the same for the same key: in a [Stack], the first ten characters of
	// [Idempotency.ID]. Empty when the event is not about a key.
	KeyHash string
	// LetterID names the dead letter that the event is about.
	LetterID string
	// From and To are states, in events about a change.
	From, To string
	// StatusCode of the answer that the event is about; 0: none.
	StatusCode int
	// Attempt counts from 1 where the event is about one attempt.
	Attempt int
	// Duration is how long the thing took or waited, or how long it will last.
	Duration time.Duration
	// Cause is why, as one word: "timeout", "canceled", "status", "transport", "panic", "full", "open", "closed" and so on.
	Cause string
	// Count is a number that belongs to the kind: callbacks dropped, letters waiting.
	Count int
}

// keyHash is what events show of a key: enough to tell keys apart, and found again by whoever knows the key.
func keyHash(id string) string { return id[:min(10, len(id))] }

// EventKind names what happened. The set is closed: metrics may use it as a label.
type EventKind string

// The kinds of events, each "layer.what".
const (
	EventCircuitOpen     EventKind = "circuit.open"      // calls are refused from now on, for Duration
	EventCircuitHalfOpen EventKind = "circuit.half_open" // trials find out whether the other side is back
	EventCircuitClose    EventKind = "circuit.close"     // the trials succeeded
	EventCircuitReset    EventKind = "circuit.reset"     // closed by hand
	EventCircuitExceeded EventKind = "circuit.exceeded"  // metrics only: it would have opened

	EventSlotRejected  EventKind = "slot.rejected"  // a call got no slot; Cause says why
	EventSlotAbandoned EventKind = "slot.abandoned" // the caller is gone, the work is not
	EventSlotReturned  EventKind = "slot.returned"  // abandoned work has ended at last

	EventTimeout      EventKind = "timeout.fired"   // Cause is the limit
	EventAttemptLate  EventKind = "timeout.late"    // an attempt ended after its caller was answered
	EventRetry        EventKind = "retry.scheduled" // another attempt follows after Duration
	EventRetryRefused EventKind = "retry.refused"   // for lack of retry budget
	EventThrottled    EventKind = "retry.throttled" // the API answered 429: the operation slows down

	EventFallbackServed EventKind = "fallback.served"    // a caller got a kept answer; Cause says why
	EventFallbackFailed EventKind = "fallback.failed"    // a read failed, and there was no substitute
	EventRefresh        EventKind = "fallback.refreshed" // renewing in the background has ended; Cause says why it failed

	EventKeyChanged  EventKind = "key.changed"      // a key went From one state To another
	EventKeyReplayed EventKind = "key.replayed"     // a caller got the answer of an earlier call
	EventKeyJoined   EventKind = "key.joined"       // a caller waits for a call that is under way
	EventKeyReused   EventKind = "key.reused"       // refused: the key belongs to another request
	EventKeyDisputed EventKind = "key.disputed"     // one key, two results
	EventLookup      EventKind = "key.lookup"       // a key in doubt was looked up
	EventStoreFailed EventKind = "key.store_failed" // the store of the keys did not do what it should

	EventLetterAdded    EventKind = "letter.added"          // the queue owns a write now
	EventLetterRefused  EventKind = "letter.refused"        // there was no room, the caller keeps the write
	EventLetterDropped  EventKind = "letter.dropped"        // gone, to make room or into DLQConfig.Spill; Cause says which
	EventLetterRedriven EventKind = "letter.redriven"       // a try or a look-up; Cause says how it went
	EventLetterDone     EventKind = "letter.done"           // its write has happened
	EventLetterParked   EventKind = "letter.parked"         // given up: a person has to look
	EventLetterDeleted  EventKind = "letter.deleted"        // by hand; Cause is the reason given
	EventRedrivePaused  EventKind = "letter.redrive_paused" // nothing can be sent now
	// EventLetterUnwritten: the store of the letters did not take a change of a letter, or its removal; it is tried again.
	EventLetterUnwritten EventKind = "letter.unwritten"

	EventHealthChanged EventKind = "health.changed" // From one status To another
	EventEventsDropped EventKind = "events.dropped" // Count events, because listeners were slow
	EventPanic         EventKind = "panic"          // a callback of the user's panicked; Cause names it
)

// maxQueuedEvents bounds the events that wait for slow listeners; the oldest are dropped and counted.
const maxQueuedEvents = 1024

// events delivers what one layer has to say, in order, on a goroutine that lives only while there is something to
// deliver. Nothing waits for a listener. The zero value is ready; it costs nothing while nobody listens.
type events struct {
	layer     string
	listeners []func(Event) // set before use
	recorder  func(Event)   // ours: quick, and called at once; nil: none

	now  delivery // under way; the delivering goroutine's
	told int      // listeners that have it

	mu      sync.Mutex
	queue   []delivery
	running bool
	idle    chan struct{} // closed when the queue has run dry; nil: nobody waits for it
	dropped int           // since the last report
	total   DeliveryStats
}

// delivery is an event, or a callback that must not be dropped.
type delivery struct {
	event    Event
	callback func()
}

// DeliveryStats counts what became of events and callbacks.
type DeliveryStats struct {
	Dropped uint64 // events not delivered because listeners were too slow
	Panics  uint64 // listeners and callbacks that panicked or called Goexit
}

func newEvents(layer string, listener func(Event)) *events {
	e := &events{layer: layer}
	e.listen(listener)
	return e
}

// listen adds a listener. It must be called before the layer is used.
func (e *events) listen(listener func(Event)) {
	if listener != nil {
		e.listeners = append(e.listeners, listener)
	}
}

// emit queues an event; it may be called with locks held.
func (e *events) emit(ev Event) {
	if len(e.listeners) == 0 && e.recorder == nil {
		return
	}
	ev.Layer, ev.Time = e.layer, time.Now()
	if e.recorder != nil {
		e.recorder(ev)
	}
	if len(e.listeners) > 0 {
		e.push(delivery{event: ev})
	}
}

// call queues a callback; it may be called with locks held. Callbacks are never dropped: their number is bounded by what
// they report.
func (e *events) call(f func()) { e.push(delivery{callback: f}) }

func (e *events) push(d delivery) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if d.callback == nil && len(e.queue) >= maxQueuedEvents {
		e.dropOldest()
	}
	e.queue = append(e.queue, d)
	if !e.running {
		e.running = true
		go e.deliver()
	}
}

func (e *events) dropOldest() {
	for i, d := range e.queue {
		if d.callback == nil {
			e.queue = append(e.queue[:i], e.queue[i+1:]...)
			e.dropped++
			e.total.Dropped++
			return
		}
	}
}

// deliver empties the queue. A listener that calls Goexit takes this goroutine with it; another one goes on behind it.
func (e *events) deliver() {
	ended := false
	defer func() {
		if !ended {
			e.misbehaved()
			go e.deliver()
		}
	}()
	for e.next() {
		for e.told < len(e.listeners) || e.now.callback != nil {
			e.tell()
		}
	}
	ended = true
}

// next takes one delivery off the queue; false: there is none, and nobody delivers any more.
func (e *events) next() bool {
	if e.told < len(e.listeners) && e.now.event.Kind != "" {
		return true // the rest of the one whose listener called Goexit
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.dropped > 0:
		e.now = delivery{event: Event{Kind: EventEventsDropped, Layer: e.layer, Time: time.Now(), Count: e.dropped}}
		e.dropped = 0
	case len(e.queue) > 0:
		e.now = e.queue[0]
		e.queue = e.queue[1:]
	default:
		e.running, e.queue, e.now = false, nil, delivery{}
		if e.idle != nil {
			close(e.idle)
			e.idle = nil
		}
		return false
	}
	e.told = 0
	if e.now.callback != nil {
		e.told = len(e.listeners)
	}
	return true
}

// tell calls one listener, or the callback. What it is about to do is noted before, so that it is not done twice.
func (e *events) tell() {
	defer func() {
		if v := recover(); v != nil {
			e.misbehaved()
		}
	}()
	if callback := e.now.callback; callback != nil {
		e.now.callback = nil
		callback()
		return
	}
	e.told++
	e.listeners[e.told-1](e.now.event)
}

func (e *events) misbehaved() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.total.Panics++
}

// drain waits until everything queued so far is delivered, or ctx ends.
func (e *events) drain(ctx context.Context) error {
	e.mu.Lock()
	if !e.running {
		e.mu.Unlock()
		return nil
	}
	if e.idle == nil {
		e.idle = make(chan struct{})
	}
	idle := e.idle
	e.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s: not all events had been delivered: %w", e.layer, context.Cause(ctx))
	}
}

func (e *events) stats() DeliveryStats {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.total
}
