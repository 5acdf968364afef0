package bench

import (
	"context"
	"runtime"
	"sync"
	"testing"

	resiliency "github.com/eapache/go-resiliency/semaphore"
	"github.com/failsafe-go/failsafe-go"
	"github.com/failsafe-go/failsafe-go/bulkhead"
	"github.com/retell-resilience/resilience"
	pool "github.com/slok/goresilience/bulkhead"
	"golang.org/x/sync/semaphore"
)

// A slots is one library's way to take a slot and to give it back.
type slots struct {
	library string
	make    func(b *testing.B, n int) func(ctx context.Context, hold func()) error
}

// All of them wait for a slot, bounded by the context where they can. Ours shares the slots out by priority; the others
// have one queue.
func everySlots() []slots {
	return []slots{
		{"xsync-semaphore", func(_ *testing.B, n int) func(context.Context, func()) error {
			s := semaphore.NewWeighted(int64(n))
			return func(ctx context.Context, hold func()) error {
				if err := s.Acquire(ctx, 1); err != nil {
					return err
				}
				hold()
				s.Release(1)
				return nil
			}
		}},
		{"failsafe-bare", func(_ *testing.B, n int) func(context.Context, func()) error {
			s := bulkhead.New[int](uint(n)) //nolint:gosec // a small number
			return func(ctx context.Context, hold func()) error {
				if err := s.AcquirePermit(ctx); err != nil {
					return err
				}
				hold()
				s.ReleasePermit()
				return nil
			}
		}},
		{"failsafe", func(_ *testing.B, n int) func(context.Context, func()) error {
			executor := failsafe.With[int](bulkhead.NewBuilder[int](uint(n)).WithMaxWaitTime(budget).Build()) //nolint:gosec // as above
			return func(_ context.Context, hold func()) error {
				_, err := executor.Get(func() (int, error) { hold(); return 1, nil })
				return err
			}
		}},
		{"go-resiliency", func(_ *testing.B, n int) func(context.Context, func()) error {
			s := resiliency.New(n, budget)
			return func(_ context.Context, hold func()) error {
				if err := s.Acquire(); err != nil {
					return err
				}
				hold()
				s.Release()
				return nil
			}
		}},
		{"goresilience", func(b *testing.B, n int) func(context.Context, func()) error {
			stop := make(chan struct{})
			b.Cleanup(func() { close(stop) })
			runner := pool.New(pool.Config{Workers: n, MaxWaitTime: budget, StopC: stop})
			return func(ctx context.Context, hold func()) error {
				return runner.Run(ctx, func(context.Context) error { hold(); return nil })
			}
		}},
		{"ours-acquire", func(b *testing.B, n int) func(context.Context, func()) error {
			s, err := resilience.NewBulkhead(resilience.BulkheadConfig{Total: n, Queue: 1000})
			if err != nil {
				b.Fatal(err)
			}
			return func(ctx context.Context, hold func()) error {
				release, err := s.Acquire(ctx, resilience.PriorityCritical)
				if err != nil {
					return err
				}
				hold()
				release()
				return nil
			}
		}},
	}
}

// A slot is free. Acquire of ours makes a release that may be called twice, which costs an allocation; what the layer adds
// to a Do is ours-road.
func BenchmarkBulkheadFree(b *testing.B) {
	pieces := []piece{loop("mutex", func(*testing.B) func() error {
		var mu sync.Mutex
		return func() error {
			mu.Lock()
			mu.Unlock() //nolint:staticcheck // the floor
			return nil
		}
	})}
	for _, s := range everySlots() {
		pieces = append(pieces, loop(s.library, func(b *testing.B) func() error {
			with, ctx := s.make(b, slotCount), caller(b)
			return func() error { return with(ctx, func() {}) }
		}))
	}
	run(b, append(pieces, onRoad("ours-road", withBulkhead)))
}

// Sixteen goroutines and more want two slots. Whoever holds one lets others run, so that they find it taken; without that
// two cores hardly ever meet. That costs all of them the same.
func BenchmarkBulkheadContended(b *testing.B) {
	contend := func(library string, make func(b *testing.B) func(context.Context) error) piece {
		return piece{library, func(b *testing.B) {
			once, ctx := make(b), caller(b)
			b.SetParallelism(max(1, 16/runtime.GOMAXPROCS(0)))
			spent := startCPU(b)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := once(ctx); err != nil {
						b.Error(err)
						return
					}
				}
			})
			spent()
		}}
	}
	var pieces []piece
	for _, s := range everySlots() {
		pieces = append(pieces, contend(s.library, func(b *testing.B) func(context.Context) error {
			with := s.make(b, 2)
			return func(ctx context.Context) error { return with(ctx, runtime.Gosched) }
		}))
	}
	run(b, pieces)
}
