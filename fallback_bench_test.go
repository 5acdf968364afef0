package resilience

import (
	"context"
	"errors"
	"io"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience/internal/body"
)

// legFunc is the rest of the road, without the cost of one.
type legFunc func(*trip, *http.Request) (*http.Response, error)

func (f legFunc) travel(ctx context.Context, t *trip, req *http.Request) (*http.Response, error) {
	return f(t, req)
}
func (f legFunc) RoundTrip(req *http.Request) (*http.Response, error) { return enter(req, f, entry{}) }

// tripOfRead is as enter makes it.
func tripOfRead(operation, resource string) *trip {
	t := &trip{call: Call{Operation: operation, Effect: EffectRead, Resource: resource}}
	t.clock.epoch = time.Now()
	return t
}

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
	read := func(b *testing.B, t *trip) {
		resp, err := pass(context.Background(), t, req, next)
		if err == nil && resp.StatusCode != http.StatusOK {
			b.Error(resp.StatusCode)
		}
	}
	b.Run("one", func(b *testing.B) {
		b.ReportAllocs()
		t := tripOfRead("get-call", "call/call_4711")
		for b.Loop() {
			read(b, t)
		}
	})
	b.Run("all want the same", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			t := tripOfRead("get-call", "call/call_4711")
			for pb.Next() {
				read(b, t)
			}
		})
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
		trips[i] = tripOfRead("get-call", "call/"+strconv.Itoa(i))
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
	return req, tripOfRead("get-call", "call/call_4711")
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
	t := tripOfRead("lookup", "customer/17")
	t.payload, t.run = body.Of([]byte(`{"customer":17}`)), func(context.Context) (*http.Response, error) { return nil, nil }
	benchmarkReady(b, req, t, &http.Response{
		Status: "200 OK", StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Body: body.NewHeld([]byte(`{"name":"x"}`)), ContentLength: 12,
	})
}

// benchmarkStack measures a read through the whole stack that its cache answers: the way in and out included.
func benchmarkStack(b *testing.B, c FallbackConfig, then func(*Stack)) {
	s := newStack(b, Config{Fallback: c})
	rt := s.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) { return answerForBenchmark(), nil }))
	req, _ := getForBenchmark(b)
	if _, err := rt.RoundTrip(req); err != nil {
		b.Fatal(err)
	}
	then(s)
	b.ReportAllocs()
	for b.Loop() {
		resp, err := rt.RoundTrip(req)
		if err != nil || resp.Header.Get(markHeader) == "" {
			b.Fatal(err, "not from the cache")
		}
	}
	closeStack(b, s)
}

// BenchmarkFallbackStackServed is a read while the circuit is open.
func BenchmarkFallbackStackServed(b *testing.B) {
	benchmarkStack(b, FallbackConfig{}, func(s *Stack) { s.Breaker.ForceOpen() })
}

// BenchmarkFallbackStackUnasked is a read that is answered without asking.
func BenchmarkFallbackStackUnasked(b *testing.B) {
	benchmarkStack(b, FallbackConfig{ServeFresh: true, Fresh: time.Hour}, func(*Stack) {})
}

// BenchmarkFallbackMemory compares the memory that ten thousand answers of 1 KB really take with what MaxBytes counts for
// them, their keys, resources and places in the cache included.
func BenchmarkFallbackMemory(b *testing.B) {
	for name, kind := range map[string]keptKind{
		"2 headers": {headers: 2, length: 1024}, "12 headers": {headers: 12, length: 1024}, "length not said": {headers: 12, length: -1},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				used, counted := memoryOf(b, 10_000, kind)
				b.ReportMetric(used, "used-B/answer")
				b.ReportMetric(counted, "counted-B/answer")
			}
		})
	}
}

func TestFallbackMemoryIsWhatMaxBytesCounts(t *testing.T) {
	for _, kind := range []keptKind{{headers: 2, length: 1024}, {headers: 12, length: 1024}, {headers: 12, length: -1}} {
		used, counted := memoryOf(t, 10_000, kind)
		require.InEpsilon(t, used, counted, 0.2, kind)
		require.Less(t, used, 1.02*counted, "%+v: more than is counted", kind)
	}
}

type keptKind struct {
	headers int
	length  int64 // what the answer says its length is
}

// memoryOf stores n answers of 1 KB and returns what each takes, in the heap and by the count of MaxBytes.
func memoryOf(tb testing.TB, n int, kind keptKind) (used, counted float64) {
	tb.Helper()
	f, err := NewFallback(FallbackConfig{MaxBytes: -1})
	require.NoError(tb, err)
	text := strings.Repeat("x", 1024)
	next := legFunc(func(*trip, *http.Request) (*http.Response, error) {
		resp := &http.Response{
			Status: "200 OK", StatusCode: http.StatusOK, Header: http.Header{}, ContentLength: kind.length,
			Body: io.NopCloser(strings.NewReader(text)),
		}
		for i := range kind.headers { // texts of their own, as they are read from a connection
			resp.Header["X-Header-"+strconv.Itoa(i)] = []string{"value of header " + strconv.Itoa(i)}
		}
		return resp, body.Hold(resp, -1)
	})
	before := heapInUse()
	for i := range n {
		id := strconv.Itoa(i)
		req, err := http.NewRequest(http.MethodGet, "https://api.retellai.com/get-agent/agent_"+id, nil)
		require.NoError(tb, err)
		t := tripOfRead("get-agent", "agent/agent_"+id)
		_, err = f.read(context.Background(), t, req, next)
		require.NoError(tb, err)
	}
	used = float64(heapInUse()-before) / float64(n)
	stats := f.Stats()
	require.Equal(tb, n, stats.Entries)
	return used, float64(stats.Bytes) / float64(n)
}

func heapInUse() int64 {
	runtime.GC()
	runtime.GC() // what the first one found in pools
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc) //nolint:gosec // no heap is that large
}

// What a string takes counts, and of a long text that it was cut from nothing is kept.
func TestFallback_AStringOfWorkIsCounted(t *testing.T) {
	s := newStack(t, Config{Fallback: FallbackConfig{MaxBytes: 16 << 20}})
	defer closeStack(t, s)
	measure := func(size, keep, n int) (used, counted int64) {
		s.Fallback.Invalidate("")
		before := heapInUse()
		for i := range n {
			_, err := Do(t.Context(), s, Call{Operation: "op", Effect: EffectRead, Params: i}, func(context.Context) (string, error) {
				return strings.Repeat("x", size)[:keep], nil
			})
			require.NoError(t, err)
		}
		return heapInUse() - before, s.Stats().Fallback.Bytes
	}
	used, counted := measure(1<<20, 1<<20, 12)
	if used > counted*11/10 {
		t.Errorf("12 strings of 1 MB: %d KB used, %d KB counted", used>>10, counted>>10)
	}
	used, counted = measure(1<<20, 10, 100)
	if used > counted*11/10+(1<<20) {
		t.Errorf("100 strings of 10 bytes, cut from texts of 1 MB: %d KB used, %d KB counted, MaxBytes 16 MB", used>>10, counted>>10)
	}
	runtime.KeepAlive(s)
}
