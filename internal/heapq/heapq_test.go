package heapq

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

type item struct {
	key int64
	seq int
	at  int
}

func newQueue() *Queue[*item] {
	return New(func(x *item) int64 { return x.key }, func(a, b *item) bool { return a.seq < b.seq }, func(x *item) *int { return &x.at })
}

func TestItemsComeOutInOrderWhateverHappensToThem(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		q := newQueue()
		var in []*item
		seq := 0
		for range 200 {
			switch n := rng.IntN(4); {
			case n < 2 || len(in) == 0:
				x := &item{key: rng.Int64N(50), seq: seq}
				seq++
				q.Push(x)
				in = append(in, x)
			case n == 2:
				x := in[rng.IntN(len(in))]
				x.key = rng.Int64N(50)
				q.Push(x)
			default:
				i := rng.IntN(len(in))
				in[i].key = rng.Int64N(50) // it may have changed since
				require.True(t, q.Remove(in[i]))
				require.False(t, q.Remove(in[i]))
				require.False(t, q.Has(in[i]))
				in = slices.Delete(in, i, i+1)
			}
			require.Equal(t, len(in), q.Len())
		}
		last := &item{key: -1}
		for range in {
			x, ok := pop(q)
			require.True(t, ok)
			require.True(t, last.key < x.key || last.key == x.key && last.seq < x.seq)
			last = x
		}
		_, ok := pop(q)
		require.False(t, ok)
	}
}

func TestMemoryComesBackAfterABurst(t *testing.T) {
	q := newQueue()
	for i := range 100_000 {
		q.Push(&item{key: int64(i)})
	}
	for range 99_990 {
		pop(q)
	}
	require.Less(t, cap(q.items), 2048)
	require.Equal(t, 10, q.Len())
	x, _ := q.Peek()
	require.EqualValues(t, 99_990, x.key)
}

func pop[T any](q *Queue[T]) (x T, ok bool) {
	if x, ok = q.Peek(); ok {
		q.Remove(x)
	}
	return x, ok
}
