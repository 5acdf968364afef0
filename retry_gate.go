package resilience

import (
	"sync"
	"sync/atomic"
	"time"
)

// gates holds one gate for each operation that was throttled lately.
type gates struct {
	open     atomic.Bool   // true while the list is not empty: the common case needs no lock
	closings atomic.Uint64 // how often any gate was closed; a result speaks only about the gate it passed
	mu       sync.Mutex
	list     map[string]*gate
}

// gate spaces the attempts of one operation out. It is removed when the space has shrunk to nothing.
type gate struct {
	shut    time.Time     // the server lets nobody start before
	next    time.Time     // the earliest start that is free
	last    time.Time     // start of the last one who passed
	gap     time.Duration // between two starts
	closed  uint64        // the closing that made it so
	waiting int
}

const (
	minGap   = 50 * time.Millisecond
	maxGap   = 5 * time.Second
	maxGates = 1024 // operations are a small set; this bounds a program that makes them up
)

// closeFor lets nobody start before now+after, and doubles the space between starts.
func (g *gates) closeFor(operation string, after time.Duration, now time.Time, admitted uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	it := g.list[operation]
	if it == nil {
		if len(g.list) >= maxGates && !g.forget(now) {
			return
		}
		it = &gate{gap: minGap / 2}
		g.list[operation] = it
		g.open.Store(true)
	}
	if admitted >= it.closed { // not one more answer of a crowd that left before
		it.gap = min(2*it.gap, maxGap)
		it.closed = g.closings.Add(1)
	}
	it.shut = later(it.shut, now.Add(after))
}

// reserve takes the next free start and returns how long it is until then. One that is further off than most is not taken:
// whoever cannot wait for it must not push it away from the others.
func (g *gates) reserve(operation string, now time.Time, most time.Duration) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	it := g.list[operation]
	if it == nil {
		return 0
	}
	start := it.free(now)
	wait := start.Sub(now)
	switch {
	case wait <= 0:
		it.last, it.next = start, start.Add(it.gap)
	case wait <= most:
		it.next = start.Add(it.gap)
		it.waiting++
	}
	return wait
}

// free is the earliest start that is free.
func (it *gate) free(now time.Time) time.Time { return later(later(now, it.next), it.shut) }

// wait is how long it is until the next free start, which is not taken. ok is false where there is no gate.
func (g *gates) wait(operation string, now time.Time) (left time.Duration, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	it := g.list[operation]
	if it == nil {
		return 0, false
	}
	return it.free(now).Sub(now), true
}

// leave ends a wait. again: the gate has been closed for longer meanwhile. What those who hung up had taken is free when
// nobody waits any more.
func (g *gates) leave(operation string, now time.Time, passes bool) (again bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	it := g.list[operation]
	if it == nil {
		return false
	}
	it.waiting = max(0, it.waiting-1)
	again = passes && now.Before(it.shut)
	if passes && !again {
		it.last = now
	}
	if it.waiting == 0 {
		it.next = it.last.Add(it.gap)
	}
	return again
}

// forget makes room by taking away the gates that would let everybody through.
func (g *gates) forget(now time.Time) bool {
	for operation, it := range g.list {
		if it.waiting == 0 && !now.Before(it.free(time.Time{}).Add(maxGap)) {
			delete(g.list, operation)
		}
	}
	return len(g.list) < maxGates
}

// relax halves the space after an answer that was no 429.
func (g *gates) relax(operation string, admitted uint64) {
	if !g.open.Load() {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	it := g.list[operation]
	if it == nil || admitted < it.closed {
		return
	}
	if it.gap /= 2; it.gap < minGap/8 {
		delete(g.list, operation)
		g.open.Store(len(g.list) > 0)
	}
}
