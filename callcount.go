package resilience

import (
	"context"
	"sync"
	"sync/atomic"
)

// callCount counts calls that are under way, and lets none begin once it is closed. Any number may wait until all have ended.
type callCount struct {
	state atomic.Int64  // the number of calls; closedBit is added at close
	empty chan struct{} // closed when the last call has ended after close
	done  sync.Once
}

const closedBit = 1 << 62

func (c *callCount) begin() bool { return c.beginUpTo(closedBit - 1) }

// beginUpTo is begin where no more than most calls may be under way.
func (c *callCount) beginUpTo(most int64) bool {
	if c.state.Add(1) > most {
		c.end()
		return false
	}
	return true
}

func (c *callCount) end() {
	if c.state.Add(-1) == closedBit {
		c.done.Do(func() { close(c.empty) })
	}
}

func (c *callCount) closed() bool { return c.state.Load() >= closedBit }

// close may be called again.
func (c *callCount) close() {
	for {
		n := c.state.Load()
		if n >= closedBit {
			return
		}
		if c.state.CompareAndSwap(n, n+closedBit) {
			if n == 0 {
				c.done.Do(func() { close(c.empty) })
			}
			return
		}
	}
}

// underWay is how many calls there are now.
func (c *callCount) underWay() int { return int(c.state.Load() &^ closedBit) }

// wait returns how many calls were left when ctx ended; 0: all have ended, which takes no time where they had before.
func (c *callCount) wait(ctx context.Context) (left int) {
	select {
	case <-c.empty:
	case <-ctx.Done():
	}
	if isClosed(c.empty) { // also at the moment at which ctx ended, or before
		return 0
	}
	return c.underWay()
}
