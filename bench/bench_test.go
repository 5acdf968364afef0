package bench

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/failsafe-go/failsafe-go"
	"github.com/failsafe-go/failsafe-go/bulkhead"
	"github.com/failsafe-go/failsafe-go/circuitbreaker"
	"github.com/failsafe-go/failsafe-go/fallback"
	"github.com/failsafe-go/failsafe-go/retrypolicy"
	"github.com/failsafe-go/failsafe-go/timeout"
	"github.com/retell-resilience/resilience"
	"github.com/sony/gobreaker/v2"
	"golang.org/x/sync/semaphore"
)

// What every library is told: so many slots, so long a limit, so many retries.
const (
	slotCount = 17 // the default of ours
	limit     = 30 * time.Second
	budget    = 60 * time.Second
	retries   = 2
)

var errDown = errors.New("down")

// A piece is one library's way to do what its group is about.
type piece struct {
	library string
	bench   func(b *testing.B)
}

func run(b *testing.B, pieces []piece) {
	b.Helper()
	for _, p := range pieces {
		b.Run(p.library, func(b *testing.B) {
			b.ReportAllocs()
			p.bench(b)
		})
	}
}

// loop is a piece that does the same again and again and must succeed.
func loop(library string, make func(b *testing.B) func() error) piece {
	return piece{library, func(b *testing.B) {
		once, spent := make(b), startCPU(b)
		for b.Loop() {
			if err := once(); err != nil {
				b.Fatal(err)
			}
		}
		spent()
	}}
}

// startCPU reports what this process spent on the processor, system calls and garbage collection included. On a machine
// that does other things too it says more than the clock.
func startCPU(b *testing.B) func() {
	b.Helper()
	before := cpuTime(b)
	return func() { b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N), "cpu-ns/op") }
}

// refusal is a piece that must be refused each time.
func refusal(library string, make func(b *testing.B) func() error) piece {
	return piece{library, func(b *testing.B) {
		once, spent := make(b), startCPU(b)
		for b.Loop() {
			if err := once(); err == nil {
				b.Fatal("an open circuit let a call through")
			}
		}
		spent()
	}}
}

// The work: none, so that what is measured is the library.
func work(context.Context) (int, error) { return 1, nil }

// watchedWork looks at the end of its context, as net/http does. Libraries that make a context only when somebody looks
// gain nothing here.
func watchedWork(ctx context.Context) (int, error) {
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	default:
		return 1, nil
	}
}

// caller is a context that can be cancelled, as that of every server's request.
func caller(b *testing.B) context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	b.Cleanup(cancel)
	return ctx
}

// The layers of ours by name, for stacks with some of them.
const (
	withFallback = 1 << iota
	withIdempotency
	withDLQ
	withTimeout
	withRetry
	withBulkhead
	withBreaker
	withAll = 1<<iota - 1

	// inPlace is no layer: the work promises to honour its context, so that it runs where its caller is, as with the peers.
	inPlace = 1 << iota
)

func stackOf(b *testing.B, layers int) *resilience.Stack {
	b.Helper()
	off := func(layer int) bool { return layers&layer == 0 }
	var cfg resilience.Config
	cfg.Fallback.Off = off(withFallback)
	cfg.Idempotency.Off = off(withIdempotency)
	cfg.DLQ.Off = off(withDLQ)
	cfg.Timeout.Off = off(withTimeout)
	cfg.Retry.Off = off(withRetry)
	cfg.Bulkhead.Off = off(withBulkhead)
	cfg.Breaker.Off = off(withBreaker)
	cfg.Timeout.Cooperative = !off(inPlace)
	if !cfg.Idempotency.Off {
		cfg.Idempotency.Store = resilience.NewMemoryStore(1 << 30) // a long run makes more keys than the default holds
	}
	stack, err := resilience.New(cfg)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := stack.Close(context.Background()); err != nil {
			b.Error(err)
		}
	})
	return stack
}

var read = resilience.Call{Operation: "get", Effect: resilience.EffectRead}

// do is ours: Do through a stack that has some of the layers.
func do(library string, layers int) piece { return doWork(library, layers, read, work, background) }

func background(*testing.B) context.Context { return context.Background() }

func doWork(library string, layers int, call resilience.Call, fn func(context.Context) (int, error), from func(*testing.B) context.Context) piece {
	return loop(library, func(b *testing.B) func() error {
		stack, ctx := stackOf(b, layers), from(b)
		return func() error {
			_, err := resilience.Do(ctx, stack, call, fn)
			return err
		}
	})
}

// onRoad is what one layer adds to a Do. The layer costs less than the Do varies from one moment to the next, so blocks with
// it and without it alternate, and the median of their differences counts. Collecting garbage falls out of a median, so
// this is for layers that make none, as the allocations show.
func onRoad(library string, layer int) piece {
	return piece{library, func(b *testing.B) {
		const block = 500
		call := func(stack *resilience.Stack) func() {
			ctx := context.Background()
			return func() {
				for range block {
					if _, err := resilience.Do(ctx, stack, read, work); err != nil {
						b.Fatal(err)
					}
				}
			}
		}
		with, without := call(stackOf(b, layer)), call(stackOf(b, 0))
		allocs, bytes := memory(with, block)
		allocs0, bytes0 := memory(without, block)
		var clock, cpu []float64
		timed := func(fn func()) (time.Duration, time.Duration) {
			began, spent := time.Now(), cpuTime(b)
			fn()
			return time.Since(began), cpuTime(b) - spent
		}
		for n := 0; b.Loop(); n++ {
			first, second, sign := without, with, 1.0
			if n%2 == 1 {
				first, second, sign = with, without, -1.0
			}
			clock1, cpu1 := timed(first)
			clock2, cpu2 := timed(second)
			clock = append(clock, sign*float64(clock2-clock1)/block)
			cpu = append(cpu, sign*float64(cpu2-cpu1)/block)
		}
		slices.Sort(clock)
		slices.Sort(cpu)
		b.ReportMetric(clock[len(clock)/2], "ns/op")
		b.ReportMetric(cpu[len(cpu)/2], "cpu-ns/op")
		b.ReportMetric(allocs-allocs0, "allocs/op")
		b.ReportMetric(bytes-bytes0, "B/op")
	}}
}

// memory counts what one of n calls allocates, in whole objects and bytes, as the testing package does.
func memory(fn func(), n uint64) (allocs, bytes float64) {
	fn() // what is made once
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	fn()
	runtime.ReadMemStats(&after)
	return float64((after.Mallocs - before.Mallocs) / n), float64((after.TotalAlloc - before.TotalAlloc) / n)
}

// byHand is what one writes without a library of layers: gobreaker, a semaphore, a deadline, a loop.
type byHand struct {
	slots   *semaphore.Weighted
	breaker *gobreaker.CircuitBreaker[int]
}

func newByHand() *byHand {
	return &byHand{slots: semaphore.NewWeighted(slotCount), breaker: gobreaker.NewCircuitBreaker[int](gobreaker.Settings{})}
}

func (h *byHand) once(ctx context.Context, fn func(context.Context) (int, error)) (int, error) {
	if err := h.slots.Acquire(ctx, 1); err != nil {
		return 0, err
	}
	defer h.slots.Release(1)
	return h.breaker.Execute(func() (int, error) {
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		return fn(ctx)
	})
}

// again is once with retries, all of them within a budget.
func (h *byHand) again(ctx context.Context, fn func(context.Context) (int, error)) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, budget)
	defer cancel()
	for n := 0; ; n++ {
		v, err := h.once(ctx, fn)
		if err == nil || n == retries {
			return v, err
		}
		if err := pause(ctx, n); err != nil {
			return v, err
		}
	}
}

func pause(ctx context.Context, n int) error {
	timer := time.NewTimer(500 * time.Millisecond << n)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// The policies of failsafe-go, with the same bounds as the others; an executor is made once and used again.
func failsafeThree[R any]() []failsafe.Policy[R] {
	return []failsafe.Policy[R]{
		bulkhead.NewBuilder[R](slotCount).WithMaxWaitTime(budget).Build(),
		circuitbreaker.NewBuilder[R]().WithFailureRateThreshold(0.5, 10, 10*time.Second).Build(),
		timeout.New[R](limit),
	}
}

func failsafeFour() []failsafe.Policy[int] {
	retry := retrypolicy.NewBuilder[int]().WithMaxRetries(retries).WithBackoff(500*time.Millisecond, 8*time.Second).Build()
	return append([]failsafe.Policy[int]{retry}, failsafeThree[int]()...)
}

func failsafeFive() []failsafe.Policy[int] {
	return append([]failsafe.Policy[int]{fallback.NewWithResult(0)}, failsafeFour()...)
}

// throughFailsafe uses the executor as it is, which is cheaper than what a caller with a context must write; see
// throughFailsafeWatched.
func throughFailsafe(library string, policies func() []failsafe.Policy[int]) piece {
	return loop(library, func(*testing.B) func() error {
		executor := failsafe.With(policies()...)
		return func() error {
			_, err := executor.GetWithExecution(func(e failsafe.Execution[int]) (int, error) { return work(e.Context()) })
			return err
		}
	})
}

func throughFailsafeWatched(library string, policies func() []failsafe.Policy[int]) piece {
	return loop(library, func(b *testing.B) func() error {
		executor, ctx := failsafe.With(policies()...), caller(b)
		return func() error {
			_, err := executor.WithContext(ctx).GetWithExecution(func(e failsafe.Execution[int]) (int, error) { return watchedWork(e.Context()) })
			return err
		}
	})
}
