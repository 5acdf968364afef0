package resilience

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// The life of a [Stack]: what runs in the background, which calls are under way, and how it all ends.

// Run does the background work until ctx ends or the stack is closed, and returns nil then: it redrives letters, looks
// keys in doubt up, refreshes the health probe and sweeps what has expired. Start it once, on a goroutine of your own; a
// second Run at the same time is an error. Without Run calls work, but letters and keys in doubt wait; health says so as "run".
func (s *Stack) Run(ctx context.Context) error {
	if !s.running.CompareAndSwap(false, true) {
		return errors.New("resilience: this stack's Run is running already")
	}
	defer s.running.Store(false)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var work sync.WaitGroup
	work.Go(func() {
		select {
		case <-s.closing:
			cancel(ErrClosed)
		case <-ctx.Done():
		}
	})
	if s.Idempotency != nil {
		work.Go(func() { s.Idempotency.run(ctx) })
	}
	if s.DLQ != nil {
		work.Go(func() { s.DLQ.run(ctx) })
	}
	work.Go(func() { s.tend(ctx) })
	work.Wait()
	return nil
}

// tend keeps the probe fresh and the cache small.
func (s *Stack) tend(ctx context.Context) {
	for ctx.Err() == nil { // or a Run that is over before it began asks the other side
		wait := s.health.refresh(ctx)
		s.Fallback.sweep()
		if wait <= 0 || wait > time.Minute {
			wait = time.Minute
		}
		sleep(ctx, wait, nil)
	}
}

// Close ends the stack: new calls, waiters and callers who back off get ErrClosed at once, Run returns, and calls that
// are on the wire are awaited. When ctx ends before they do, effect-once ones among them are recorded as in doubt and all
// are counted in the error. A probe under way is called off, and none begins. Events so far are delivered before it returns, if
// ctx lasts: a callback that calls Close must give it a ctx that ends, or it waits for itself. List, Export, Lookup, Resolve, Stats
// and State go on working. A second Close waits again.
func (s *Stack) Close(ctx context.Context) error {
	s.once.Do(func() {
		s.calls.close()
		close(s.closing)
	})
	var errs []error
	if left := s.calls.wait(ctx); left > 0 {
		errs = append(errs, fmt.Errorf("%d callers were still waiting: %w", left, context.Cause(ctx)))
	}
	if s.Idempotency != nil {
		errs = append(errs, s.Idempotency.shutdown(ctx))
	}
	if s.DLQ != nil {
		errs = append(errs, s.DLQ.close(ctx))
	}
	if s.Fallback != nil {
		errs = append(errs, s.Fallback.drain(ctx))
	}
	errs = append(errs, s.health.drain(ctx))
	for _, e := range s.sinks() {
		errs = append(errs, e.drain(ctx))
	}
	s.mu.Lock()
	own := s.own
	s.mu.Unlock()
	for _, tr := range own {
		tr.CloseIdleConnections()
	}
	return errors.Join(errs...)
}
