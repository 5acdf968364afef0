package resilience

import (
	"context"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/semaphore"
)

func benchBulkhead(b *testing.B, c BulkheadConfig) *Bulkhead {
	b.Helper()
	bh, err := NewBulkhead(c)
	require.NoError(b, err)
	b.ReportAllocs()
	return bh
}

// instant is a leg that answers at once, so that what is measured is the layer above it.
type instant struct{ resp *http.Response }

func (l instant) RoundTrip(*http.Request) (*http.Response, error) { return l.resp, nil }
func (l instant) travel(context.Context, *trip, *http.Request) (*http.Response, error) {
	return l.resp, nil
}

func newInstant() instant {
	return instant{&http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader(""))}}
}

func BenchmarkBulkheadFree(b *testing.B) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	b.Run("road", func(b *testing.B) {
		bh := benchBulkhead(b, BulkheadConfig{})
		d := bh.Wrap(newInstant()).(leg) //nolint:forcetypeassert // Wrap makes one
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://retell.test/", http.NoBody)
		t := &trip{call: Call{Priority: PriorityCritical}}
		for b.Loop() {
			_, _ = d.travel(context.Background(), t, req)
		}
	})
	b.Run("acquire", func(b *testing.B) {
		bh := benchBulkhead(b, BulkheadConfig{})
		for b.Loop() {
			release, _ := bh.Acquire(ctx, PriorityCritical)
			release()
		}
	})
	b.Run("semaphore", func(b *testing.B) {
		s := semaphore.NewWeighted(17)
		b.ReportAllocs()
		for b.Loop() {
			_ = s.Acquire(ctx, 1)
			s.Release(1)
		}
	})
}

// One slot, and always eight who want it.
func BenchmarkBulkheadContended(b *testing.B) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	b.Run("road", func(b *testing.B) {
		bh := benchBulkhead(b, BulkheadConfig{Total: 1})
		d := bh.Wrap(newInstant()).(leg) //nolint:forcetypeassert // Wrap makes one
		b.SetParallelism(4)
		b.RunParallel(func(pb *testing.PB) {
			req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://retell.test/", http.NoBody)
			t := &trip{call: Call{Priority: PriorityCritical}}
			for pb.Next() {
				_, _ = d.travel(context.Background(), t, req)
			}
		})
	})
	b.Run("acquire", func(b *testing.B) {
		bh := benchBulkhead(b, BulkheadConfig{Total: 1})
		b.SetParallelism(4)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				release, err := bh.Acquire(ctx, PriorityCritical)
				if err == nil {
					release()
				}
			}
		})
	})
	b.Run("semaphore", func(b *testing.B) {
		s := semaphore.NewWeighted(1)
		b.ReportAllocs()
		b.SetParallelism(4)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if s.Acquire(ctx, 1) == nil {
					s.Release(1)
				}
			}
		})
	})
}

// A slot changes hands while others stand in line: what one more waiter and one grant cost must not depend on how many.
func BenchmarkBulkheadGrant(b *testing.B) {
	for _, standing := range []int{0, 10_000} {
		name := "alone"
		if standing > 0 {
			name = "behind_10000"
		}
		b.Run(name, func(b *testing.B) {
			bh := benchBulkhead(b, BulkheadConfig{Total: 1, Queue: standing + 10, AgeAfter: -1})
			ctx, cancel := context.WithCancel(context.Background())
			release, err := bh.Acquire(ctx, PriorityBulk)
			require.NoError(b, err)
			for range standing {
				go func() { _, _ = bh.Acquire(ctx, PriorityBulk) }()
			}
			for bh.Stats().Waiting < standing {
				runtime.Gosched()
			}
			for b.Loop() {
				w := bh.waiterOf(nil, &trip{}, tierOf(PriorityCritical))
				bh.mu.Lock()
				_ = bh.enqueue(w, 1)
				bh.mu.Unlock()
				release()
				<-w.Value.decided
				release = func() { bh.giveBack(w.Tier) }
			}
			cancel()
			release()
		})
	}
}

// What it costs each of 10,000 waiters that all their callers hang up.
func BenchmarkBulkheadCancel(b *testing.B) {
	for _, waiters := range []int{100, 10_000} {
		b.Run(map[int]string{100: "100", 10_000: "10000"}[waiters], func(b *testing.B) {
			bh := benchBulkhead(b, BulkheadConfig{Total: 1, Queue: waiters})
			release, err := bh.Acquire(context.Background(), PriorityBulk)
			require.NoError(b, err)
			defer release()
			t, ctx := &trip{}, context.Background()
			for b.Loop() {
				ws := make([]waiter, waiters)
				for i := range ws {
					ws[i] = waiter{Value: waitingCall{trip: t}, Tier: tierOf(PriorityBulk)}
					_ = bh.enqueue(&ws[i], 1)
				}
				for i := range ws {
					_ = bh.leave(ctx, &ws[i], shedMaxWait)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*waiters), "ns/waiter")
		})
	}
}
