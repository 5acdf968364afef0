package resilience

import (
	"context"
	"net/http"
	"strconv"
	"testing"

	"github.com/sony/gobreaker/v2"
)

// emptyLeg answers without doing anything, so that a benchmark measures the layer in front of it.
type emptyLeg struct{ resp *http.Response }

func (l emptyLeg) RoundTrip(*http.Request) (*http.Response, error) { return l.resp, nil }
func (l emptyLeg) travel(context.Context, *trip, *http.Request) (*http.Response, error) {
	return l.resp, nil
}

// benchRoad is what the breaker sees inside a stack: a trip that was made by an outer layer.
func benchRoad(b *testing.B, status int) (*trip, *http.Request, leg) {
	b.Helper()
	req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, "http://localhost/", nil)
	if err != nil {
		b.Fatal(err)
	}
	t := &trip{call: Call{Operation: "op"}}
	t.resolve(nil, req.Method, EffectRead)
	return t, req, emptyLeg{&http.Response{StatusCode: status}}
}

func benchBreaker(b *testing.B, c BreakerConfig) *Breaker {
	b.Helper()
	breaker, err := NewBreaker(c)
	if err != nil {
		b.Fatal(err)
	}
	return breaker
}

func BenchmarkBreakerClosed(b *testing.B) {
	b.Run("gobreaker", func(b *testing.B) {
		cb := gobreaker.NewCircuitBreaker[any](gobreaker.Settings{})
		b.ReportAllocs()
		for b.Loop() {
			_, _ = cb.Execute(func() (any, error) { return nil, nil }) //nolint:nilnil // nothing to return
		}
	})
	b.Run("ours", func(b *testing.B) {
		breaker := benchBreaker(b, BreakerConfig{})
		t, req, next := benchRoad(b, http.StatusOK)
		b.ReportAllocs()
		for b.Loop() {
			_, _ = breaker.pass(context.Background(), t, req, next) //nolint:bodyclose // there is none
		}
	})
	b.Run("ours-slow-calls", func(b *testing.B) {
		breaker := benchBreaker(b, BreakerConfig{SlowCall: 1e9})
		t, req, next := benchRoad(b, http.StatusOK)
		b.ReportAllocs()
		for b.Loop() {
			_, _ = breaker.pass(context.Background(), t, req, next) //nolint:bodyclose // there is none
		}
	})
	b.Run("ours-parallel", func(b *testing.B) {
		breaker := benchBreaker(b, BreakerConfig{})
		t, req, next := benchRoad(b, http.StatusOK)
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				_, _ = breaker.pass(context.Background(), t, req, next) //nolint:bodyclose // there is none
			}
		})
	})
}

func BenchmarkBreakerOpen(b *testing.B) {
	b.Run("gobreaker", func(b *testing.B) {
		cb := gobreaker.NewCircuitBreaker[any](gobreaker.Settings{ReadyToTrip: func(gobreaker.Counts) bool { return true }})
		_, _ = cb.Execute(func() (any, error) { return nil, ErrTimeout })
		b.ReportAllocs()
		for b.Loop() {
			_, _ = cb.Execute(func() (any, error) { return nil, nil }) //nolint:nilnil // as above
		}
	})
	b.Run("ours", func(b *testing.B) {
		breaker := benchBreaker(b, BreakerConfig{MinCalls: 1})
		t, req, next := benchRoad(b, http.StatusInternalServerError)
		b.ReportAllocs()
		for b.Loop() {
			_, _ = breaker.pass(context.Background(), t, req, next) //nolint:bodyclose // there is none
		}
	})
}

func BenchmarkBreakerAllow(b *testing.B) {
	b.Run("gobreaker-two-step", func(b *testing.B) {
		cb := gobreaker.NewTwoStepCircuitBreaker[any](gobreaker.Settings{})
		b.ReportAllocs()
		for b.Loop() {
			done, _ := cb.Allow()
			done(nil)
		}
	})
	b.Run("ours", func(b *testing.B) {
		breaker := benchBreaker(b, BreakerConfig{})
		b.ReportAllocs()
		for b.Loop() {
			done, _ := breaker.Allow()
			done(OutcomeSuccess)
		}
	})
}

// One call costs the same beside one circuit and beside ten thousand, also where the set keeps them in order of use.
func BenchmarkBreakerCircuits(b *testing.B) {
	for _, bound := range []struct {
		name    string
		maxKeys int
	}{{"unbounded", -1}, {"bounded", 10_000}} {
		for _, n := range []int{1, 10_000} {
			b.Run(bound.name+"/"+strconv.Itoa(n), func(b *testing.B) {
				breaker := benchBreaker(b, BreakerConfig{Key: func(c Call) string { return c.Operation }, MaxKeys: bound.maxKeys})
				t, req, next := benchRoad(b, http.StatusOK)
				operations := make([]string, n)
				call := func(i int) {
					t.call.Operation = operations[i]
					_, _ = breaker.pass(context.Background(), t, req, next) //nolint:bodyclose // there is none
				}
				for i := range operations {
					operations[i] = "operation " + strconv.Itoa(i)
					call(i)
				}
				i := 0
				b.ReportAllocs()
				for b.Loop() {
					i = (i + 7919) % n
					call(i)
				}
			})
		}
	}
}

// A result costs the same in an empty window and in one that holds a hundred thousand.
func BenchmarkBreakerB18Results(b *testing.B) {
	for _, n := range []int{0, 100_000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			breaker := benchBreaker(b, BreakerConfig{MetricsOnly: true})
			t, req, next := benchRoad(b, http.StatusInternalServerError)
			for range n {
				_, _ = breaker.pass(context.Background(), t, req, next) //nolint:bodyclose // there is none
			}
			b.ReportAllocs()
			for b.Loop() {
				_, _ = breaker.pass(context.Background(), t, req, next) //nolint:bodyclose // there is none
			}
		})
	}
}
