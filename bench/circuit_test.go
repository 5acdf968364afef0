package bench

import (
	"context"
	"testing"
	"time"

	"github.com/cep21/circuit/v3"
	"github.com/cep21/circuit/v3/closers/hystrix"
)

// cep21/circuit has no parts either: a circuit is breaker, slots without a queue, and timeout in one.
func newCep21(limited bool) *circuit.Circuit {
	rules := hystrix.Factory{
		ConfigureOpener: hystrix.ConfigureOpener{RequestVolumeThreshold: 10},
		ConfigureCloser: hystrix.ConfigureCloser{SleepWindow: time.Hour},
	}
	config := rules.Configure("bench")
	config.Execution.MaxConcurrentRequests, config.Execution.Timeout = -1, -1
	if limited {
		config.Execution.MaxConcurrentRequests, config.Execution.Timeout = slotCount, limit
	}
	return circuit.NewCircuitFromConfig("bench", config)
}

func throughCep21(library string, limited bool, fn func(context.Context) (int, error), from func(*testing.B) context.Context) piece {
	return loop(library, func(b *testing.B) func() error {
		c, ctx := newCep21(limited), from(b)
		return func() error {
			return c.Execute(ctx, func(ctx context.Context) error {
				_, err := fn(ctx)
				return err
			}, nil)
		}
	})
}

func openCep21(b *testing.B) func() error {
	b.Helper()
	c, ctx := newCep21(false), context.Background()
	for range 30 {
		_ = c.Execute(ctx, func(context.Context) error { return errDown }, nil)
	}
	return func() error { return c.Execute(ctx, func(context.Context) error { return nil }, nil) }
}
