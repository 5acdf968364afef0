package window

import (
	"math/rand/v2"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
)

// naive keeps every result and counts those of the last Buckets buckets when asked.
type naive struct {
	step    time.Duration
	results []result
}

type result struct {
	at           time.Duration
	failed, slow bool
}

func (n *naive) counts(now time.Duration) Counts {
	var c Counts
	for _, r := range n.results {
		if int64(now/n.step)-int64(r.at/n.step) >= Buckets {
			continue
		}
		if r.failed {
			c.Failures++
		} else {
			c.Successes++
		}
		if r.slow {
			c.Slow++
		}
	}
	return c
}

func TestWindow_IsLikeOneThatKeepsEveryResult(t *testing.T) {
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 1))
		length := time.Duration(10 + random.IntN(5000))
		w, model := New(length), &naive{step: length / Buckets}
		now := time.Duration(0)
		for range 300 {
			now += time.Duration(random.ExpFloat64() * float64(length) / float64(1+random.IntN(40)))
			r := result{now, random.IntN(2) == 0, random.IntN(3) == 0}
			if random.IntN(3) > 0 {
				w.Add(r.at, r.failed, r.slow)
				model.results = append(model.results, r)
				require.Equal(t, model.counts(now), w.Current(), "seed %d", seed)
			}
			require.Equal(t, model.counts(now), w.Counts(now), "seed %d", seed)
		}
	}
}

func TestWindow_ReadingDoesNotMoveIt(t *testing.T) {
	w := New(10 * time.Second)
	w.Add(0, true, false)
	require.Zero(t, w.Counts(time.Hour))
	require.Equal(t, Counts{Failures: 1}, w.Counts(time.Second))
}

func TestWindow_AnInstantOfThePastIsCreditedNow(t *testing.T) {
	w := New(10 * time.Second)
	w.Add(5*time.Second, false, false)
	w.Add(4*time.Second, true, true)
	require.Equal(t, Counts{Successes: 1, Failures: 1, Slow: 1}, w.Counts(14*time.Second))
	require.Zero(t, w.Counts(15*time.Second))
}

func TestWindow_ClearForgets(t *testing.T) {
	w := New(10 * time.Second)
	w.Add(time.Second, true, true)
	w.Clear()
	require.Zero(t, w.Current())
	require.Zero(t, w.Counts(11*time.Second))
}

func TestB18_WindowMemoryDoesNotGrow(t *testing.T) {
	w := New(10 * time.Second)
	allocated := testing.AllocsPerRun(1000, func() { w.Add(time.Second, true, false) })
	require.Zero(t, allocated)
	require.LessOrEqual(t, unsafe.Sizeof(w), uintptr(512))
}

func BenchmarkAdd(b *testing.B) {
	w := New(10 * time.Second)
	for range 100_000 {
		w.Add(0, true, false)
	}
	now := time.Duration(0)
	for b.Loop() {
		now += time.Microsecond
		w.Add(now, true, false)
	}
}
