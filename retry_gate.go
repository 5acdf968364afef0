package resilience

import (
	"sync"
	"sync/atomic"
	"time"
)

// gates holds one gate for each operation that was throttled lately.
type gates struct {
	open atomic.Bool // true while the list is not empty: the common case needs no lock
	mu   sync.Mutex
	list map[string]*gate
}

// gate spaces the attempts of one operation out. It is removed when the space has shrunk to nothing.
type gate struct {
	next time.Time     // the earliest start that is free
	gap  time.Duration // between two starts
}

const (
	minGap   = 50 * time.Millisecond
	maxGap   = 5 * time.Second
	maxGates = 1024 // operations are a small set; this bounds a program that makes them up
)

// closeFor lets nobody start before now+after, and doubles the space between starts.
func (g *gates) closeFor(operation string, after time.Duration, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	it := g.list[operation]
	if it == nil {
		if len(g.list) >= maxGates {
			return
		}
		it = &gate{gap: minGap / 2}
		g.list[operation] = it
		g.open.Store(true)
	}
	it.gap = min(2*it.gap, maxGap)
	if until := now.Add(after); it.next.Before(until) {
		it.next = until
	}
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
	start := it.next
	if start.Before(now) {
		start = now
	}
	wait := start.Sub(now)
	if wait <= 0 || wait <= most {
		it.next = start.Add(it.gap)
	}
	return wait
}

// relax halves the space after an answer that was no 429.
func (g *gates) relax(operation string) {
	if !g.open.Load() {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	it := g.list[operation]
	if it == nil {
		return
	}
	if it.gap /= 2; it.gap < minGap/8 {
		delete(g.list, operation)
		g.open.Store(len(g.list) > 0)
	}
}
