package resilience

import (
	"context"
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

func (f legFunc) travel(ctx context.Context, t *trip, req *http.Request) (*http.Response, error) {
	return f(t, req)
}
func (f legFunc) RoundTrip(req *http.Request) (*http.Response, error) { return enter(req, f, entry{}) }

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
			resp, err := pass(context.Background(), t, req, next)
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
		if _, err := pass(context.Background(), trips[i], reqs[i], next); err != nil {
			b.Fatal(err)
		}
	}
	up = false
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i = (i + 7919) % kept
		if _, err := pass(context.Background(), trips[i], reqs[i], next); err != nil {
			b.Fatal(err)
		}
	}
}

// benchmarkReady measures a read alone: the trip is made, and what is below has its answers ready.
func benchmarkReady(b *testing.B, req *http.Request, t *trip, ready ...*http.Response) {
	f, err := NewFallback(FallbackConfig{})
	if err != nil {
		b.Fatal(err)
	}
	n := 0
	next := legFunc(func(*trip, *http.Request) (*http.Response, error) {
		n++
		return ready[n%len(ready)], nil
	})
	if _, err := f.read(context.Background(), t, req, next); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := f.read(context.Background(), t, req, next); err != nil {
			b.Fatal(err)
		}
	}
}

func getForBenchmark(b *testing.B) (*http.Request, *trip) {
	req, err := http.NewRequest(http.MethodGet, "https://api.retellai.com/v2/get-call/call_4711?b=2&a=1", nil)
	if err != nil {
		b.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer key_0123456789abcdef0123456789abcdef")
	req.Header.Set("Accept", "application/json")
	return req, &trip{call: Call{Operation: "get-call", Effect: EffectRead, Resource: "call/call_4711"}, url: req.URL, method: req.Method}
}

// BenchmarkFallbackSame is a read whose answer is the one that is kept already: its age begins again.
func BenchmarkFallbackSame(b *testing.B) {
	req, t := getForBenchmark(b)
	benchmarkReady(b, req, t, answerForBenchmark())
}

// BenchmarkFallbackChanged is a read whose answer is another one each time.
func BenchmarkFallbackChanged(b *testing.B) {
	req, t := getForBenchmark(b)
	ready := make([]*http.Response, 4)
	for i := range ready {
		data := make([]byte, 2048)
		data[2000] = byte(i)
		ready[i] = answerForBenchmark()
		ready[i].Body = body.NewHeld(data)
	}
	benchmarkReady(b, req, t, ready...)
}

// BenchmarkFallbackWork is a read by Do whose answer is the one that is kept already.
func BenchmarkFallbackWork(b *testing.B) {
	req := workRequest()
	t := &trip{
		call: Call{Operation: "lookup", Effect: EffectRead, Resource: "customer/17"}, url: req.URL, method: req.Method,
		payload: body.Of([]byte(`{"customer":17}`)), run: func(context.Context) (*http.Response, error) { return nil, nil },
	}
	benchmarkReady(b, req, t, &http.Response{
		Status: "200 OK", StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Body: body.NewHeld([]byte(`{"name":"x"}`)), ContentLength: 12,
	})
}
