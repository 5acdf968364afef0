// Package window counts what completed during the last few seconds, in memory and time that do not grow with traffic.
package window

import "time"

// Buckets is how many steps a window moves in. One that has just left takes a tenth of the window with it.
const Buckets = 10

// Counts is what completed within a window. Four thousand million are more than any does.
type Counts struct {
	Successes uint32
	Failures  uint32
	Slow      uint32 // of both
}

// Total is how many completed.
func (c Counts) Total() uint64 { return uint64(c.Successes) + uint64(c.Failures) }

func (c *Counts) add(o Counts) {
	c.Successes += o.Successes
	c.Failures += o.Failures
	c.Slow += o.Slow
}

func (c *Counts) subtract(o Counts) {
	c.Successes -= o.Successes
	c.Failures -= o.Failures
	c.Slow -= o.Slow
}

// Window is a ring of buckets. Instants are durations since a moment that the user chooses, on a clock that does not go
// back. It is not safe for concurrent use.
type Window struct {
	step    time.Duration
	newest  int64 // number of the newest bucket, counted from the beginning of time
	total   Counts
	buckets [Buckets]Counts
}

// New makes a window of the given length, which must be at least Buckets nanoseconds.
func New(length time.Duration) Window { return Window{step: length / Buckets} }

// Add counts one result at now.
func (w *Window) Add(now time.Duration, failed, slow bool) {
	w.roll(now)
	var one Counts
	if failed {
		one.Failures = 1
	} else {
		one.Successes = 1
	}
	if slow {
		one.Slow = 1
	}
	w.buckets[w.newest%Buckets].add(one)
	w.total.add(one)
}

// Counts returns what completed within the window that ends at now. It does not move the window.
func (w *Window) Counts(now time.Duration) Counts {
	moved := *w
	moved.roll(now)
	return moved.total
}

// Current returns what the window held when the last result came.
func (w *Window) Current() Counts { return w.total }

// Clear forgets everything.
func (w *Window) Clear() { w.total, w.buckets = Counts{}, [Buckets]Counts{} }

// roll moves the window on to the bucket of now, emptying those that leave. An instant of the past belongs to the newest
// bucket: results are credited when they come.
func (w *Window) roll(now time.Duration) {
	current := int64(now / w.step)
	if current-w.newest >= Buckets {
		w.Clear()
		w.newest = current
		return
	}
	for w.newest < current {
		w.newest++
		leaving := &w.buckets[w.newest%Buckets]
		w.total.subtract(*leaving)
		*leaving = Counts{}
	}
}
