package waitq_test

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience/internal/waitq"
)

func values(q *waitq.Queue[int]) []int {
	var vs []int
	for p := range q.All {
		vs = append(vs, p.Value)
	}
	return vs
}

func TestEmpty(t *testing.T) {
	var q waitq.Queue[int]
	require.Zero(t, q.Len())
	require.Nil(t, q.Oldest())
	require.Nil(t, q.Youngest())
	require.False(t, q.Remove(new(waitq.Place[int])))
}

func TestLeaveFromAnywhere(t *testing.T) {
	for _, gone := range []int{0, 1, 2, 3} {
		var q waitq.Queue[int]
		places := make([]waitq.Place[int], 4)
		for i := range places {
			places[i].Value = i
			q.Push(&places[i])
		}
		require.True(t, q.Remove(&places[gone]))
		require.False(t, q.Remove(&places[gone]), "it has left already")
		want := slices.Delete([]int{0, 1, 2, 3}, gone, gone+1)
		require.Equal(t, want, values(&q))
		require.Equal(t, want[0], q.Oldest().Value)
		require.Equal(t, want[2], q.Youngest().Value)
	}
}

func TestAPlaceIsInOneQueue(t *testing.T) {
	var a, b waitq.Queue[int]
	var p waitq.Place[int]
	a.Push(&p)
	a.Push(&p)
	b.Push(&p)
	require.Equal(t, 1, a.Len())
	require.Zero(t, b.Len())
	require.False(t, b.Remove(&p), "it is in another queue")
	require.True(t, a.Remove(&p))
	b.Push(&p)
	require.Equal(t, 1, b.Len())
}

func TestAllStops(t *testing.T) {
	var q waitq.Queue[int]
	for i := range 3 {
		q.Push(&waitq.Place[int]{Value: i})
	}
	seen := 0
	for range q.All {
		seen++
		break
	}
	require.Equal(t, 1, seen)
}

// A slice that does the same shows that random pushes and removals keep order, ends and length.
func TestAgainstASlice(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var q waitq.Queue[int]
	var model []*waitq.Place[int]
	for i := range 5000 {
		if len(model) == 0 || rng.IntN(2) == 0 {
			p := &waitq.Place[int]{Value: i}
			q.Push(p)
			model = append(model, p)
		} else {
			at := rng.IntN(len(model))
			require.True(t, q.Remove(model[at]))
			model = slices.Delete(model, at, at+1)
		}
		require.Equal(t, len(model), q.Len())
		if len(model) > 0 {
			require.Same(t, model[0], q.Oldest())
			require.Same(t, model[len(model)-1], q.Youngest())
		}
	}
	var want []int
	for _, p := range model {
		want = append(want, p.Value)
	}
	require.Equal(t, want, values(&q))
}
