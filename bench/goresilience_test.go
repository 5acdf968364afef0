package bench

import (
	"context"
	"testing"
	"time"

	"github.com/slok/goresilience"
	"github.com/slok/goresilience/bulkhead"
	"github.com/slok/goresilience/circuitbreaker"
	"github.com/slok/goresilience/retry"
	"github.com/slok/goresilience/timeout"
)

// goresilience chains what it calls runners. Its bulkhead is a pool of workers for each chain, and its timeout starts a
// goroutine for each call.
func runnerBreaker() goresilience.Middleware {
	return circuitbreaker.NewMiddleware(circuitbreaker.Config{MinimumRequestToOpen: 10, WaitDurationInOpenState: time.Hour})
}

func runnerBulkhead(b *testing.B) goresilience.Middleware {
	b.Helper()
	stop := make(chan struct{})
	b.Cleanup(func() { close(stop) })
	return bulkhead.NewMiddleware(bulkhead.Config{Workers: slotCount, MaxWaitTime: budget, StopC: stop})
}

func runnerTimeout() goresilience.Middleware {
	return timeout.NewMiddleware(timeout.Config{Timeout: limit})
}

func runnerRetry() goresilience.Middleware {
	return retry.NewMiddleware(retry.Config{Times: retries, WaitBase: 500 * time.Millisecond})
}

// throughRunners is a call that does nothing, through a chain of runners, the first the outermost.
func throughRunners(library string, chain func(b *testing.B) []goresilience.Middleware) piece {
	return loop(library, func(b *testing.B) func() error {
		runner, ctx := goresilience.RunnerChain(chain(b)...), context.Background()
		return func() error { return runner.Run(ctx, func(context.Context) error { return nil }) }
	})
}

func runnersThree(b *testing.B) []goresilience.Middleware {
	return []goresilience.Middleware{runnerBulkhead(b), runnerBreaker(), runnerTimeout()}
}

func runnersFour(b *testing.B) []goresilience.Middleware {
	return append([]goresilience.Middleware{runnerRetry()}, runnersThree(b)...)
}

func openRunner(b *testing.B) func() error {
	b.Helper()
	runner, ctx := goresilience.RunnerChain(runnerBreaker()), context.Background()
	for range 20 {
		_ = runner.Run(ctx, func(context.Context) error { return errDown })
	}
	return func() error { return runner.Run(ctx, func(context.Context) error { return nil }) }
}
