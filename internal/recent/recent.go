// Package recent counts what happened in the last ten seconds, at a cost that does not grow with what is counted.
package recent

import "time"

// Counter counts by the second. Make it with [New]; it is not safe for concurrent use.
type Counter struct {
	origin  time.Time
	seconds [10]second
}

type second struct {
	at    int64 // since origin; an older one is not counted any more
	count int
}

// New returns a counter that has counted nothing. It is asked about times from now on.
func New(now time.Time) Counter { return Counter{origin: now} }

func (c *Counter) since(now time.Time) int64 { return int64(now.Sub(c.origin) / time.Second) }

// Add counts one more.
func (c *Counter) Add(now time.Time) {
	at := c.since(now)
	s := &c.seconds[at%int64(len(c.seconds))]
	if s.at != at {
		*s = second{at: at}
	}
	s.count++
}

// Sum is how many were counted in the current second and the nine before. It changes nothing.
func (c *Counter) Sum(now time.Time) int {
	total, at := 0, c.since(now)
	for _, s := range c.seconds {
		if at-s.at < int64(len(c.seconds)) {
			total += s.count
		}
	}
	return total
}
