package bench

import (
	"sync"
	"testing"
	"time"

	resiliency "github.com/eapache/go-resiliency/breaker"
	"github.com/failsafe-go/failsafe-go"
	"github.com/failsafe-go/failsafe-go/circuitbreaker"
	"github.com/retell-resilience/resilience"
	"github.com/slok/goresilience"
	"github.com/sony/gobreaker/v2"
)

func newBreaker(b *testing.B) *resilience.Breaker {
	b.Helper()
	breaker, err := resilience.NewBreaker(resilience.BreakerConfig{MinCalls: 1})
	if err != nil {
		b.Fatal(err)
	}
	return breaker
}

// A closed circuit lets a call through and counts it. Ours has two prices: that of Allow and its done, and what the layer
// adds to a Do, which is what a user of the stack pays; a whole Do pays for its trip besides, see BenchmarkLayers. The rolling failure rate that ours
// and failsafe-go keep is more than the count of consecutive failures of the other two.
func BenchmarkBreakerClosed(b *testing.B) {
	run(b, []piece{
		loop("mutex", func(*testing.B) func() error {
			var mu sync.Mutex
			return func() error {
				mu.Lock()
				mu.Unlock() //nolint:staticcheck // the floor: nothing is done inside
				return nil
			}
		}),
		loop("gobreaker", func(*testing.B) func() error {
			cb := gobreaker.NewCircuitBreaker[int](gobreaker.Settings{})
			return func() error {
				_, err := cb.Execute(func() (int, error) { return 1, nil })
				return err
			}
		}),
		loop("gobreaker-two-step", func(*testing.B) func() error {
			cb := gobreaker.NewTwoStepCircuitBreaker[int](gobreaker.Settings{})
			return func() error {
				done, err := cb.Allow()
				if err == nil {
					done(nil)
				}
				return err
			}
		}),
		loop("failsafe-bare", func(*testing.B) func() error {
			cb := failsafeBreaker()
			return func() error {
				if !cb.TryAcquirePermit() {
					return circuitbreaker.ErrOpen
				}
				cb.RecordSuccess()
				return nil
			}
		}),
		loop("failsafe", func(*testing.B) func() error {
			executor := failsafe.With[int](failsafeBreaker())
			return func() error {
				_, err := executor.Get(func() (int, error) { return 1, nil })
				return err
			}
		}),
		loop("go-resiliency", func(*testing.B) func() error {
			cb := resiliency.New(10, 1, limit)
			return func() error { return cb.Run(func() error { return nil }) }
		}),
		loop("hystrix", func(*testing.B) func() error { return hystrixCall(newCircuit(), nil) }),
		throughRunners("goresilience", func(*testing.B) []goresilience.Middleware { return []goresilience.Middleware{runnerBreaker()} }),
		throughCep21("cep21", false, work, background),
		loop("ours-allow", func(b *testing.B) func() error {
			breaker := newBreaker(b)
			return func() error {
				done, err := breaker.Allow()
				if err == nil {
					done(resilience.OutcomeSuccess)
				}
				return err
			}
		}),
		onRoad("ours-road", withBreaker),
	})
}

func failsafeBreaker() circuitbreaker.CircuitBreaker[int] {
	return circuitbreaker.NewBuilder[int]().WithFailureRateThreshold(0.5, 10, 10*time.Second).WithDelay(time.Hour).Build()
}

// An open circuit refuses. Ours says for how long in its error, the others hand out a constant. Each was opened by
// failures, not by hand.
func BenchmarkBreakerOpen(b *testing.B) {
	atOnce := gobreaker.Settings{Timeout: time.Hour, ReadyToTrip: func(gobreaker.Counts) bool { return true }}
	run(b, []piece{
		refusal("gobreaker", func(*testing.B) func() error {
			cb := gobreaker.NewCircuitBreaker[int](atOnce)
			once := func(err error) error {
				_, err = cb.Execute(func() (int, error) { return 1, err })
				return err
			}
			_ = once(errDown)
			return func() error { return once(nil) }
		}),
		refusal("gobreaker-two-step", func(*testing.B) func() error {
			cb := gobreaker.NewTwoStepCircuitBreaker[int](atOnce)
			done, _ := cb.Allow()
			done(errDown)
			return func() error {
				_, err := cb.Allow()
				return err
			}
		}),
		refusal("failsafe", func(*testing.B) func() error {
			executor := failsafe.With[int](failsafeBreaker())
			once := func(err error) error {
				_, err = executor.Get(func() (int, error) { return 1, err })
				return err
			}
			for range 20 {
				_ = once(errDown)
			}
			return func() error { return once(nil) }
		}),
		refusal("go-resiliency", func(*testing.B) func() error {
			cb := resiliency.New(1, 1, time.Hour)
			_ = cb.Run(func() error { return errDown })
			return func() error { return cb.Run(func() error { return nil }) }
		}),
		refusal("hystrix", hystrixOpen),
		refusal("goresilience", openRunner),
		refusal("cep21", openCep21),
		refusal("ours-allow", func(b *testing.B) func() error {
			breaker := openBreaker(b, newBreaker(b))
			return func() error {
				_, err := breaker.Allow()
				return err
			}
		}),
		refusal("ours-do", func(b *testing.B) func() error {
			stack, ctx := stackOf(b, withBreaker), caller(b)
			openBreaker(b, stack.Breaker)
			return func() error {
				_, err := resilience.Do(ctx, stack, read, work)
				return err
			}
		}),
	})
}

func openBreaker(b *testing.B, breaker *resilience.Breaker) *resilience.Breaker {
	b.Helper()
	for range 20 {
		if done, err := breaker.Allow(); err == nil {
			done(resilience.OutcomeFailure)
		}
	}
	if breaker.State() != resilience.BreakerOpen {
		b.Fatal("the circuit did not open")
	}
	return breaker
}
