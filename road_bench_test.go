package resilience

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// answerer answers at once, in memory.
var answerer = RoundTripFunc(func(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		_ = req.Body.Close()
	}
	return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("{}")), ContentLength: 2, Request: req}, nil
})

// roads are the two ways to make an attempt: on a goroutine of its own, and on the caller's.
func roads(b *testing.B, cfg Config, run func(b *testing.B, s *Stack)) {
	for name, cooperative := range map[string]bool{"own goroutine": false, "cooperative": true} {
		cfg.Timeout.Cooperative = cooperative
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			run(b, newStack(b, cfg))
		})
	}
}

func doLoop(b *testing.B, s *Stack, call Call) {
	ctx := context.Background()
	for b.Loop() {
		if _, err := Do(ctx, s, call, func(context.Context) (int, error) { return 1, nil }); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRoad_DoRead(b *testing.B) {
	roads(b, Config{}, func(b *testing.B, s *Stack) { doLoop(b, s, Call{Operation: "get", Effect: EffectRead}) })
}

func BenchmarkRoad_DoThreeLayers(b *testing.B) {
	cfg := Config{}
	cfg.Fallback.Off, cfg.Idempotency.Off, cfg.DLQ.Off, cfg.Retry.Off = true, true, true, true
	roads(b, cfg, func(b *testing.B, s *Stack) { doLoop(b, s, Call{Operation: "get", Effect: EffectRead}) })
}

func BenchmarkRoad_DoOnce(b *testing.B) {
	roads(b, Config{}, func(b *testing.B, s *Stack) { doLoop(b, s, Call{Operation: "dial"}) })
}

func BenchmarkRoad_HTTPClient(b *testing.B) {
	b.Run("bare", func(b *testing.B) { httpLoop(b, answerer) })
	roads(b, Config{}, func(b *testing.B, s *Stack) { httpLoop(b, s.Wrap(answerer)) })
}

func httpLoop(b *testing.B, rt http.RoundTripper) {
	c := &http.Client{Transport: rt}
	req, _ := http.NewRequest(http.MethodGet, "http://api.test/x", nil)
	b.ReportAllocs()
	for b.Loop() {
		resp, err := c.Do(req)
		if err != nil {
			b.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
	}
}

// Claim and record on the memory store, with many keys in it already.
func BenchmarkKeys_ClaimAndRecord(b *testing.B) {
	for _, stored := range []int{1_000, 100_000, 10_000_000} {
		b.Run(fmt.Sprint(stored), func(b *testing.B) {
			if stored > 1_000_000 && testing.Short() {
				b.Skip("needs some gigabytes")
			}
			store := NewMemoryStore(1 << 40)
			i := newIdem(b, IdempotencyConfig{Store: store})
			ctx := context.Background()
			for n := range stored {
				rec := Record{ID: i.ID(fmt.Sprint("old", n)), State: KeyConfirmed, Expires: store.Now().Add(maxDuration / 4)}
				if _, ok, err := store.CompareAndSwap(ctx, 0, rec); !ok || err != nil {
					b.Fatal(err)
				}
			}
			n := 0
			b.ReportAllocs()
			b.ResetTimer()
			for b.Loop() {
				n++
				claimAndRecord(b, i, fmt.Sprint("new", n))
			}
		})
	}
}

func claimAndRecord(b *testing.B, i *Idempotency, key string) {
	ctx, id := context.Background(), i.ID(key)
	rec, err := i.apply(ctx, id, keyEvent{kind: eventClaim, token: "t", claim: claimRequest{fingerprint: "f", lease: i.store.Now()}})
	if err == nil {
		rec, err = i.advance(ctx, rec, keyEvent{kind: eventIntend, token: "t"})
	}
	if err == nil {
		_, err = i.advance(ctx, rec, keyEvent{kind: eventAnswer, token: "t", keep: i.cfg.TTL, answer: answerReceipt{kind: answerDone, epoch: rec.Epoch}})
	}
	if err != nil {
		b.Fatal(err)
	}
}

// What a finished key of a phone call takes, and how long a step of a sweep through millions lasts.
func BenchmarkKeys_FinishedAndSwept(b *testing.B) {
	for _, stored := range []int{1_000_000, 10_000_000} {
		b.Run(fmt.Sprint(stored), func(b *testing.B) {
			if testing.Short() {
				b.Skip("needs some gigabytes")
			}
			for b.Loop() {
				sweepPause(b, stored)
			}
		})
	}
}

func sweepPause(b *testing.B, stored int) {
	store := NewMemoryStore(2 * stored)
	i := newIdem(b, IdempotencyConfig{Store: store})
	ctx, expires := context.Background(), store.Now().Add(2*time.Minute)
	rec := Record{
		State: KeyConfirmed, Operation: "create-phone-call", Fingerprint: "f1:" + strings.Repeat("0", 64), Owner: i.owner,
		Epoch: 1, Sends: 1, Doubts: 1, Claimed: store.Now(), Sent: store.Now(), Settled: store.Now(), Expires: expires,
		CallID: "call_0123456789abcdef", Status: 201, Evidence: "answer",
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for n := range stored {
		rec.ID = i.ID(fmt.Sprint(n))
		if _, ok, err := store.CompareAndSwap(ctx, 0, rec); !ok || err != nil {
			b.Fatal(err)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(stored), "B/key")

	store.codec.start = store.codec.start.Add(-time.Hour) // all of them have expired
	// One step holds a shard no longer than it lasts, so its length bounds what a caller waits for the sweep. The longest one
	// of many contains whatever else the machine did meanwhile.
	var steps []time.Duration
	for total := 0; total < stored; {
		start := time.Now()
		n, err := store.Sweep(ctx, sweepStep, nil)
		steps = append(steps, time.Since(start))
		if total += n; n == 0 || err != nil {
			b.Fatalf("%d of %d swept: %v", total, stored, err)
		}
	}
	slices.Sort(steps)
	b.ReportMetric(float64(steps[len(steps)/2]), "ns-median-step")
	b.ReportMetric(float64(steps[len(steps)*9999/10000]), "ns-p99.99-step")
	b.ReportMetric(float64(steps[len(steps)-1]), "ns-longest-step")
}
