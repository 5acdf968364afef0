package bench

import (
	"context"
	"testing"

	resiliencybreaker "github.com/eapache/go-resiliency/breaker"
	"github.com/eapache/go-resiliency/deadline"
	"github.com/eapache/go-resiliency/retrier"
	"github.com/eapache/go-resiliency/semaphore"
	"github.com/failsafe-go/failsafe-go"
	"github.com/failsafe-go/failsafe-go/timeout"
	"github.com/retell-resilience/resilience"
)

const withThree = withBreaker | withBulkhead | withTimeout

// What each layer of ours adds on the road. Do makes a trip for the call and encodes its answer as JSON, layers or none;
// so the price of one layer is its line less "none". No peer has such a price: they are compared by the other groups.
func BenchmarkLayers(b *testing.B) {
	run(b, []piece{
		do("none", 0),
		do("breaker", withBreaker),
		do("bulkhead", withBulkhead),
		do("timeout", withTimeout),
		do("timeout-in-place", withTimeout|inPlace),
		do("retry", withRetry),
		do("fallback", withFallback),
		do("idempotency", withIdempotency),
		do("dlq", withDLQ),
	})
}

// One limit around one call. Ours has two limits, for the call and for the attempt. Ours and go-resiliency's leave a
// function that ignores its limit to itself, on its goroutine; context.WithTimeout, failsafe-go's and ours where the
// function promised to be cooperative (-in-place) wait for it.
func BenchmarkTimeout(b *testing.B) {
	withTimeoutOf := func(fn func(context.Context) (int, error), from func(*testing.B) context.Context) func(b *testing.B) func() error {
		return func(b *testing.B) func() error {
			ctx := from(b)
			return func() error {
				ctx, cancel := context.WithTimeout(ctx, limit)
				defer cancel()
				_, err := fn(ctx)
				return err
			}
		}
	}
	only := func() []failsafe.Policy[int] { return []failsafe.Policy[int]{timeout.New[int](limit)} }
	run(b, []piece{
		loop("context", withTimeoutOf(work, background)),
		throughFailsafe("failsafe", only),
		loop("go-resiliency", func(*testing.B) func() error {
			d := deadline.New(limit)
			return func() error { return d.Run(func(<-chan struct{}) error { return nil }) }
		}),
		do("ours-do", withTimeout),
		do("ours-in-place", withTimeout|inPlace),
		loop("context-watched", withTimeoutOf(watchedWork, caller)),
		throughFailsafeWatched("failsafe-watched", only),
		doWork("ours-do-watched", withTimeout, read, watchedWork, caller),
		doWork("ours-in-place-watched", withTimeout|inPlace, read, watchedWork, caller),
	})
}

// Breaker, bulkhead and timeout. By hand and failsafe-go's run the function on the caller's goroutine, and so does ours
// where the function promised to be cooperative (-in-place). Without that promise ours runs it on one of its own, so that
// a function that ignores its context does not hold the caller, and so do the other two.
func BenchmarkBreakerBulkheadTimeout(b *testing.B) {
	hand := func(library string, fn func(context.Context) (int, error), from func(*testing.B) context.Context) piece {
		return loop(library, func(b *testing.B) func() error {
			h, ctx := newByHand(), from(b)
			return func() error {
				_, err := h.once(ctx, fn)
				return err
			}
		})
	}
	run(b, []piece{
		hand("by-hand", work, background),
		throughFailsafe("failsafe", failsafeThree[int]),
		loop("go-resiliency", func(*testing.B) func() error { return newResiliency().once }),
		loop("hystrix", func(*testing.B) func() error { return hystrixCall(newCircuit(), nil) }),
		do("ours-do", withThree),
		do("ours-in-place", withThree|inPlace),
		hand("by-hand-watched", watchedWork, caller),
		throughFailsafeWatched("failsafe-watched", failsafeThree[int]),
		doWork("ours-do-watched", withThree, read, watchedWork, caller),
		doWork("ours-in-place-watched", withThree|inPlace, read, watchedWork, caller),
	})
}

// The same and a retry that is not needed.
func BenchmarkFourWithRetry(b *testing.B) {
	run(b, []piece{
		handAgain("by-hand", work, background),
		throughFailsafe("failsafe", failsafeFour),
		loop("go-resiliency", func(*testing.B) func() error {
			r := newResiliency()
			again := retrier.New(retrier.ExponentialBackoff(retries, 500_000_000), nil)
			return func() error { return again.Run(r.once) }
		}),
		do("ours-do", withThree|withRetry),
		do("ours-in-place", withThree|withRetry|inPlace),
	})
}

func handAgain(library string, fn func(context.Context) (int, error), from func(*testing.B) context.Context) piece {
	return loop(library, func(b *testing.B) func() error {
		h, ctx := newByHand(), from(b)
		return func() error {
			_, err := h.again(ctx, fn)
			return err
		}
	})
}

// Everything that a library has. Ours is the stack as New makes it: single flight, cached answers, keys, letters, retry,
// bulkhead, breaker and both timeouts, for a read. failsafe-fullest is four policies and a fallback value; its cache
// policy would spare the call itself.
func BenchmarkWholeRoad(b *testing.B) {
	run(b, []piece{
		handAgain("by-hand", work, background),
		throughFailsafe("failsafe", failsafeFour),
		throughFailsafe("failsafe-fullest", failsafeFive),
		loop("hystrix", func(*testing.B) func() error { return hystrixCall(newCircuit(), nil) }),
		do("ours-do", withAll),
		do("ours-in-place", withAll|inPlace),
		handAgain("by-hand-watched", watchedWork, caller),
		throughFailsafeWatched("failsafe-watched", failsafeFour),
		doWork("ours-do-watched", withAll, read, watchedWork, caller),
		doWork("ours-in-place-watched", withAll|inPlace, read, watchedWork, caller),
	})
}

// A call that must happen once, with a key of its own: claimed, recorded as sent, recorded as answered. No peer has this;
// ours-read is there to show what the keys cost.
func BenchmarkEffectOnce(b *testing.B) {
	named := func(b *testing.B) func() error {
		stack, ctx, n := stackOf(b, withAll), context.Background(), 0
		return func() error {
			n++
			_, err := resilience.Do(resilience.WithIdempotencyKey(ctx, keyOf(n)), stack, resilience.Call{Operation: "dial"}, work)
			return err
		}
	}
	run(b, []piece{
		do("ours-read", withAll),
		doWork("ours-do-once", withAll, resilience.Call{Operation: "dial"}, work, background),
		loop("ours-do-once-named", named),
		post("http-bare", func(*testing.B) roundTripper { return answer }),
		post("http-failsafe", failsafeHTTP),
		post("http-ours", oursHTTP),
		post("http-ours-in-place", oursHTTPInPlace),
	})
}

type resiliencyStack struct {
	breaker *resiliencybreaker.Breaker
	slots   *semaphore.Semaphore
	limit   *deadline.Deadline
}

func newResiliency() resiliencyStack {
	return resiliencyStack{resiliencybreaker.New(10, 1, limit), semaphore.New(slotCount, budget), deadline.New(limit)}
}

func (r resiliencyStack) once() error {
	if err := r.slots.Acquire(); err != nil {
		return err
	}
	defer r.slots.Release()
	return r.breaker.Run(func() error { return r.limit.Run(func(<-chan struct{}) error { return nil }) })
}
