package bench

import (
	"context"
	"errors"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/afex/hystrix-go/hystrix"
)

// hystrix keeps its circuits by name, and two goroutines for each, for good.
var circuits atomic.Int64

func newCircuit() string {
	name := strconv.FormatInt(circuits.Add(1), 10)
	hystrix.ConfigureCommand(name, hystrix.CommandConfig{
		Timeout: int(limit.Milliseconds()), MaxConcurrentRequests: 10_000, RequestVolumeThreshold: 10, SleepWindow: int(time.Hour.Milliseconds()),
	})
	if _, _, err := hystrix.GetCircuit(name); err != nil { // makes it
		panic(err)
	}
	return name
}

// hystrixCall is hystrix-go's only way: breaker, slots and timeout in one, on two goroutines, with answers by closure.
func hystrixCall(name string, result error) func() error {
	ctx := context.Background()
	return func() error {
		for {
			err := hystrix.DoC(ctx, name, func(context.Context) error { return result }, nil)
			if !errors.Is(err, hystrix.ErrMaxConcurrency) { // its slots come back after the call has returned
				return err
			}
			runtime.Gosched()
		}
	}
}

func hystrixOpen(b *testing.B) func() error {
	b.Helper()
	name := newCircuit()
	fail := hystrixCall(name, errDown)
	circuit, _, err := hystrix.GetCircuit(name)
	if err != nil {
		b.Fatal(err)
	}
	for n := 0; !circuit.IsOpen(); n++ { // its counters are filled by a goroutine
		if n == 10_000 {
			b.Fatal("the circuit did not open")
		}
		_ = fail()
	}
	return hystrixCall(name, nil)
}
