package resilience

import (
	"errors"
	"net/http"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/retell-resilience/resilience/internal/body"
)

// legFunc is the rest of the road, without the cost of one.
type legFunc func(*trip, *http.Request) (*http.Response, error)

func (f legFunc) travel(t *trip, req *http.Request) (*http.Response, error) { return f(t, req) }
func (f legFunc) RoundTrip(req *http.Request) (*http.Response, error)       { return enter(req, f, entry{}) }

// benchmarkRead measures what the layer itself costs: the trip is made, and what is below answers at once.
func benchmarkRead(b *testing.B, c FallbackConfig, below func(n uint64) (*http.Response, error)) {
	f, err := NewFallback(c)
	if err != nil {
		b.Fatal(err)
	}
	req, err := http.NewRequest(http.MethodGet, "https://api.retellai.com/v2/get-call/call_4711?b=2&a=1", nil)
	if err != nil {
		b.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer key_0123456789abcdef0123456789abcdef")
	req.Header.Set("Accept", "application/json")
	var calls atomic.Uint64
	next := legFunc(func(*trip, *http.Request) (*http.Response, error) { return below(calls.Add(1)) })
	pass := f.Wrap(next).(*door).pass
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		t := &trip{call: Call{Operation: "get-call", Effect: EffectRead, Resource: "call/call_4711"}, url: req.URL, method: req.Method}
		for pb.Next() {
			resp, err := pass(t, req, next)
			if err == nil && resp.StatusCode != http.StatusOK {
				b.Error(resp.StatusCode)
			}
		}
	})
}

func answerForBenchmark() *http.Response {
	return &http.Response{
		StatusCode: http.StatusOK, Body: body.NewHeld(make([]byte, 2048)), ContentLength: 2048,
		Header: http.Header{"Content-Type": {"application/json"}, "Date": {"x"}, "Server": {"x"}, "Etag": {"x"}, "Vary": {"Accept-Encoding"}},
	}
}

// BenchmarkFallbackServed is a read that failed and was answered from the cache.
func BenchmarkFallbackServed(b *testing.B) {
	down := errors.New("down")
	benchmarkRead(b, FallbackConfig{}, func(n uint64) (*http.Response, error) {
		if n == 1 {
			return answerForBenchmark(), nil
		}
		return nil, down
	})
}

// BenchmarkFallbackUnasked is a read that was answered from a fresh answer without asking.
func BenchmarkFallbackUnasked(b *testing.B) {
	benchmarkRead(b, FallbackConfig{ServeFresh: true, Fresh: time.Hour}, func(uint64) (*http.Response, error) { return answerForBenchmark(), nil })
}

// BenchmarkFallbackStored is a read that succeeded and whose answer was kept, the making of the answer included.
func BenchmarkFallbackStored(b *testing.B) {
	benchmarkRead(b, FallbackConfig{}, func(uint64) (*http.Response, error) { return answerForBenchmark(), nil })
}

// BenchmarkFallbackManyKept is a hit among a hundred thousand answers.
func BenchmarkFallbackManyKept(b *testing.B) {
	f, err := NewFallback(FallbackConfig{MaxBytes: -1})
	if err != nil {
		b.Fatal(err)
	}
	up := true
	next := legFunc(func(*trip, *http.Request) (*http.Response, error) {
		if up {
			return &http.Response{StatusCode: http.StatusOK, Body: body.NewHeld(nil), Header: http.Header{}}, nil
		}
		return nil, errors.New("down")
	})
	pass := f.Wrap(next).(*door).pass
	const kept = 100_000
	trips, reqs := make([]*trip, kept), make([]*http.Request, kept)
	for i := range kept {
		reqs[i], _ = http.NewRequest(http.MethodGet, "https://api.retellai.com/v2/get-call/"+strconv.Itoa(i), nil)
		trips[i] = &trip{call: Call{Operation: "get-call", Effect: EffectRead, Resource: "call/" + strconv.Itoa(i)}, url: reqs[i].URL}
		if _, err := pass(trips[i], reqs[i], next); err != nil {
			b.Fatal(err)
		}
	}
	up = false
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i = (i + 7919) % kept
		if _, err := pass(trips[i], reqs[i], next); err != nil {
			b.Fatal(err)
		}
	}
}
