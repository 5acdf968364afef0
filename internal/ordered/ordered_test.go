package ordered

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// Whatever goes in and out, in whatever order, the list is what a sorted slice would be.
func TestAListIsASortedSlice(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 30 {
		l := New(cmp.Compare[int])
		var model []int
		rising := rng.IntN(3) == 0
		for step := range 6000 {
			shrinking := step > 3000
			x := rng.IntN(5000)
			if rising && !shrinking {
				x = step
			}
			at, there := slices.BinarySearch(model, x)
			switch {
			case shrinking || rng.IntN(4) == 0:
				if shrinking && len(model) > 0 {
					at, there = rng.IntN(len(model)), true
					x = model[at]
				}
				require.Equal(t, there, l.Remove(x))
				if there {
					model = slices.Delete(model, at, at+1)
				}
			case !there:
				l.Insert(x)
				model = slices.Insert(model, at, x)
			}
			if step%100 == 0 {
				requireSame(t, model, l, rng)
			}
		}
		requireSame(t, model, l, rng)
	}
}

func requireSame(t *testing.T, model []int, l *List[int], rng *rand.Rand) {
	t.Helper()
	require.Equal(t, len(model), l.Len())
	after, n := rng.IntN(5000), rng.IntN(1000)
	at, found := slices.BinarySearch(model, after)
	if found {
		at++
	}
	want := model[at:min(len(model), at+n)]
	got := l.From(func(x int) bool { return x > after }, n)
	require.True(t, slices.Equal(want, got), "%v is not %v", got, want)
	got = l.From(func(int) bool { return true }, l.Len())
	require.True(t, slices.Equal(model, got))
	for i, r := range l.runs {
		require.NotEmpty(t, r)
		require.LessOrEqual(t, len(r), run)
		if i > 0 {
			require.Greater(t, len(l.runs[i-1])+len(r), run/2)
		}
	}
}

// Runs neither stay half empty where items come in order, nor get ever shorter where they leave in none.
func TestRunsAreFull(t *testing.T) {
	l := New(cmp.Compare[int])
	for i := range 100 * run {
		l.Insert(i)
	}
	require.Len(t, l.runs, 100)
	for i := range 100 * run {
		if i%100 != 0 {
			require.True(t, l.Remove(i))
		}
	}
	require.Equal(t, run, l.Len())
	require.LessOrEqual(t, len(l.runs), 4)
}

// A queue that is as long as ever takes no more memory than ever.
func TestAQueueDoesNotGrow(t *testing.T) {
	l := New(cmp.Compare[int])
	for i := range 1000 * run {
		l.Insert(i)
		if i >= 10*run {
			require.True(t, l.Remove(i-10*run))
		}
	}
	require.LessOrEqual(t, len(l.runs), 12)
	require.LessOrEqual(t, cap(l.runs), 64)
	for _, r := range l.runs {
		require.LessOrEqual(t, cap(r), 2*run)
	}
}
