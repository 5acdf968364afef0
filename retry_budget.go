package resilience

import (
	"sync"
	"sync/atomic"
	"time"
)

// retryBudget is a bucket of tokens: each call puts a share of one in, time puts some in, each retry takes one out.
type retryBudget struct {
	full      atomic.Bool // nothing more goes in: while nothing fails, calls share no lock
	mu        sync.Mutex
	unlimited bool
	ratio     float64
	perSecond float64
	capacity  float64
	tokens    float64
	filled    time.Time
}

func (b *retryBudget) start(ratio, perSecond float64) {
	b.unlimited, b.ratio, b.perSecond = ratio == -1, ratio, max(perSecond, 0)
	b.capacity = max(10*b.perSecond, 10)
	b.tokens, b.filled = min(max(b.perSecond, 1), b.capacity), time.Now()
}

func (b *retryBudget) deposit() {
	if b.unlimited || b.full.Load() {
		return
	}
	b.mu.Lock()
	b.put(b.ratio)
	b.mu.Unlock()
}

// put is for who holds the lock.
func (b *retryBudget) put(tokens float64) {
	b.tokens = min(b.tokens+tokens, b.capacity)
	if b.tokens == b.capacity {
		b.full.Store(true)
	}
}

func (b *retryBudget) withdraw() bool {
	if b.unlimited {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fill()
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	b.full.Store(false)
	return true
}

func (b *retryBudget) fill() {
	now := time.Now()
	b.put(b.perSecond * now.Sub(b.filled).Seconds())
	b.filled = now
}

func (b *retryBudget) left() float64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.unlimited {
		return -1
	}
	return min(b.tokens+b.perSecond*time.Since(b.filled).Seconds(), b.capacity)
}
