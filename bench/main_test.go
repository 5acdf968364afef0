package bench

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	if os.Getenv(serverVariable) != "" {
		os.Exit(beServer())
	}
	code := m.Run()
	if left := goroutinesLeft(); code == 0 && len(left) > 0 {
		fmt.Fprintf(os.Stderr, "%d goroutines are left:\n\n%s\n", len(left), strings.Join(left, "\n\n"))
		code = 1
	}
	os.Exit(code)
}

// Each group works, every piece of it does what it says, and nothing goes on running afterwards.
func TestEveryGroupRunsAndLeavesNoGoroutine(t *testing.T) {
	was := flag.Lookup("test.benchtime").Value.String()
	if err := flag.Set("test.benchtime", "20x"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = flag.Set("test.benchtime", was) })
	groups := map[string]func(*testing.B){
		"BreakerClosed": BenchmarkBreakerClosed, "BreakerOpen": BenchmarkBreakerOpen,
		"BulkheadFree": BenchmarkBulkheadFree, "BulkheadContended": BenchmarkBulkheadContended,
		"Layers": BenchmarkLayers, "Timeout": BenchmarkTimeout, "BreakerBulkheadTimeout": BenchmarkBreakerBulkheadTimeout,
		"FourWithRetry": BenchmarkFourWithRetry, "WholeRoad": BenchmarkWholeRoad, "EffectOnce": BenchmarkEffectOnce,
		"HTTPMemory": BenchmarkHTTPMemory, "HTTPLoopback": BenchmarkHTTPLoopback,
	}
	for name, bench := range groups {
		t.Run(name, func(t *testing.T) {
			failed := false
			testing.Benchmark(func(b *testing.B) {
				bench(b)
				failed = failed || b.Failed()
			})
			if failed {
				t.Error("a piece failed")
			}
			if left := goroutinesLeft(); len(left) > 0 {
				t.Errorf("%d goroutines are left:\n\n%s", len(left), strings.Join(left, "\n\n"))
			}
		})
	}
}

// goroutinesLeft gives those that are ending two seconds to end.
func goroutinesLeft() []string {
	var left []string
	for range 200 {
		if left = strangers(); len(left) == 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return left
}

func strangers() []string {
	buf := make([]byte, 1<<20)
	buf = buf[:runtime.Stack(buf, true)]
	var left []string
	for _, stack := range strings.Split(string(buf), "\n\n") {
		if !known(stack) {
			left = append(left, stack)
		}
	}
	return left
}

// known are the goroutines of the test itself, the two that hystrix-go starts for each circuit and the one that goresilience
// starts for each breaker, which never end, and the one with which a breaker of go-resiliency sleeps as long as it is open.
func known(stack string) bool {
	for _, k := range []string{"bench.strangers(", "testing.(*T).Run(", "testing.(*M).", "hystrix.(*metricExchange).Monitor", "hystrix.(*poolMetrics).Monitor", "circuitbreaker.(*bucketWindow).windowSlider", "go-resiliency/breaker.(*Breaker).timer", "os/signal."} {
		if strings.Contains(stack, k) {
			return true
		}
	}
	return false
}
