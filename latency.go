package resilience

import (
	"math"
	"math/bits"
	"sync/atomic"
	"time"
)

// Latency describes how long calls of one class took since the stack was made, from the caller's side.
type Latency struct {
	Count         uint64
	Mean          time.Duration
	P50, P90, P99 time.Duration // upper bounds of fixed buckets: at most a quarter too high
	Max           time.Duration
}

// latencies is one histogram for each class. The buckets are fixed: four to each power of two, from a microsecond up.
type latencies [ClassLongPoll + 1]histogram

const buckets = 4 * 36

type histogram struct {
	counts [buckets]atomic.Uint64
	sum    atomic.Int64
	max    atomic.Int64
}

func (l *latencies) observe(c Class, d time.Duration) {
	h := &l[min(c, ClassLongPoll)]
	h.counts[bucketOf(d)].Add(1)
	h.sum.Add(int64(d))
	for {
		old := h.max.Load()
		if int64(d) <= old || h.max.CompareAndSwap(old, int64(d)) {
			return
		}
	}
}

// bucketOf takes the position of the highest bit and the two bits below it.
func bucketOf(d time.Duration) int {
	us := uint64(max(0, d) / time.Microsecond)
	if us < 4 {
		return int(us)
	}
	exp := bits.Len64(us) - 1
	return min(4*(exp-1)+int(us>>(exp-2)&3), buckets-1)
}

// upper is the first duration beyond a bucket.
func upper(bucket int) time.Duration {
	if bucket < 4 {
		return time.Duration(bucket+1) * time.Microsecond
	}
	exp, part := bucket/4+1, bucket%4
	return time.Duration(4+part+1) << (exp - 2) * time.Microsecond
}

func (l *latencies) snapshot() map[string]Latency {
	out := map[string]Latency{}
	for c := range l {
		if s := l[c].snapshot(); s.Count > 0 {
			out[Class(c).String()] = s
		}
	}
	return out
}

func (h *histogram) snapshot() Latency {
	var counts [buckets]uint64
	var total uint64
	for i := range h.counts {
		counts[i] = h.counts[i].Load()
		total += counts[i]
	}
	if total == 0 {
		return Latency{}
	}
	longest := time.Duration(h.max.Load())
	at := func(q float64) time.Duration {
		rank, seen := uint64(math.Ceil(q*float64(total))), uint64(0)
		for i, n := range counts {
			if seen += n; seen >= rank {
				return min(upper(i), longest)
			}
		}
		return longest
	}
	return Latency{
		Count: total, Mean: time.Duration(uint64(h.sum.Load()) / total), //nolint:gosec // durations are not negative
		P50: at(0.5), P90: at(0.9), P99: at(0.99), Max: longest,
	}
}
