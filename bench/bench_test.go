package bench

import (
	"context"
	"errors"
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
		once := make(b)
		for b.Loop() {
			if err := once(); err != nil {
				b.Fatal(err)
			}
		}
	}}
}

// refusal is a piece that must be refused each time.
func refusal(library string, make func(b *testing.B) func() error) piece {
	return piece{library, func(b *testing.B) {
		once := make(b)
		for b.Loop() {
			if err := once(); err == nil {
				b.Fatal("an open circuit let a call through")
			}
		}
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

// byHand is what one writes without a library of layers: gobreaker, a semaphore, a deadline, a loop.
type byHand struct {
	slots   *semaphore.Weighted
	breaker *gobreaker.CircuitBreaker[int]
	retries int
	budget  time.Duration
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
