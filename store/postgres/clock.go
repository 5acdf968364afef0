package pgstore

import (
	"context"
	"sync"
	"time"
)

// measureEvery is how often the distance to the server's clock is found out anew. Two quartz clocks part by a few
// milliseconds in that time at worst.
const measureEvery = time.Minute

// clock is the server's, as well as it is known here: what it said last, and the time that has passed since. It never goes
// back; when the server's is set back, it stands until that has caught up.
type clock struct {
	mu        sync.Mutex
	measured  time.Time // when that was, here
	server    time.Time // what it said then
	last      time.Time // what Now said last
	measuring bool
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := c.server.Add(time.Since(c.measured)); now.After(c.last) {
		c.last = now
	}
	return c.last
}

// set takes what the server said to a question of which nobody knows when, between asked and now, it was answered: in the
// middle, then.
func (c *clock) set(asked, said time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	took := time.Since(asked)
	c.measured, c.server = asked.Add(took/2), said.UTC()
}

// begin reports whether it is time to measure, and nobody does.
func (c *clock) begin() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.measuring || time.Since(c.measured) < measureEvery {
		return false
	}
	c.measuring = true
	return true
}

func (c *clock) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.measuring = false
}

// Now implements [resilience.KeyStore]: the server's clock. It asks nobody; how far that clock is from this machine's is found
// out when the store is opened, and once a minute by a call that goes to the server anyway.
func (s *Store) Now() time.Time { return s.clock.now() }

// measure finds out what the time is over there, now and then. A failure is for the call that follows to tell.
func (s *Store) measure(ctx context.Context) {
	if !s.clock.begin() {
		return
	}
	defer s.clock.end()
	_ = s.readClock(ctx)
}

func (s *Store) readClock(ctx context.Context) error {
	asked := time.Now()
	var said time.Time
	if err := s.db.QueryRowContext(ctx, `SELECT clock_timestamp()`).Scan(&said); err != nil {
		return failed(err)
	}
	s.clock.set(asked, said)
	return nil
}
