// Package heapq is a priority queue whose items know their place, so that one can be taken out of the middle in O(log n).
package heapq

// fan is how many children a place has. With four, that lie together, a queue is half as deep as with two.
const fan = 4

// Queue holds items with the least first. It is not safe for concurrent use. An item can be in it once.
type Queue[T any] struct {
	items []entry[T]
	rank  func(T) int64
	first func(a, b T) bool
	place func(T) *int
}

// entry keeps the rank beside the item: nearly every comparison is done without a look at the item, which may be far away.
type entry[T any] struct {
	rank int64
	item T
}

// New makes a queue in the order of rank. Of two items of one rank, a is before b if first says so; it must not change
// while they are in the queue, and rank only until the next Push. place points to where an item keeps its position in this
// queue: 0 while it is not in it. An item that is in several queues needs one such field for each.
func New[T any](rank func(T) int64, first func(a, b T) bool, place func(T) *int) *Queue[T] {
	return &Queue[T]{rank: rank, first: first, place: place}
}

// Len is the number of items.
func (q *Queue[T]) Len() int { return len(q.items) }

// Has reports whether x is in the queue.
func (q *Queue[T]) Has(x T) bool { return *q.place(x) != 0 }

// Peek returns the least item; ok is false when there is none.
func (q *Queue[T]) Peek() (x T, ok bool) {
	if len(q.items) == 0 {
		return x, false
	}
	return q.items[0].item, true
}

// Push adds x. An x that is in the queue already is moved to where it belongs now.
func (q *Queue[T]) Push(x T) {
	e, i := entry[T]{q.rank(x), x}, *q.place(x)-1
	switch {
	case i < 0:
		q.items = append(q.items, e)
		q.settle(len(q.items)-1, e)
	case q.items[i].rank != e.rank:
		q.settle(i, e)
	}
}

// Remove takes x out, wherever it is. It reports whether x was there. x may have changed since it was pushed.
func (q *Queue[T]) Remove(x T) bool {
	i, last := *q.place(x)-1, len(q.items)-1
	if i < 0 {
		return false
	}
	moved := q.items[last]
	q.items[last] = entry[T]{}
	q.items = q.items[:last]
	*q.place(x) = 0
	if i != last {
		q.settle(i, moved)
	}
	q.shrink()
	return true
}

// shrink gives memory back after a burst.
func (q *Queue[T]) shrink() {
	if c := cap(q.items); c > 1024 && len(q.items) < c/4 {
		q.items = append(make([]entry[T], 0, c/2), q.items...)
	}
}

// settle puts e where it belongs, from the gap at i upwards or downwards.
func (q *Queue[T]) settle(i int, e entry[T]) {
	for i > 0 {
		parent := (i - 1) / fan
		if !q.before(e, q.items[parent]) {
			break
		}
		q.set(i, q.items[parent])
		i = parent
	}
	for {
		child, ok := q.leastChild(i)
		if !ok || !q.before(q.items[child], e) {
			break
		}
		q.set(i, q.items[child])
		i = child
	}
	q.set(i, e)
}

func (q *Queue[T]) leastChild(i int) (least int, ok bool) {
	least = fan*i + 1
	end := min(least+fan, len(q.items))
	for other := least + 1; other < end; other++ {
		if q.before(q.items[other], q.items[least]) {
			least = other
		}
	}
	return least, least < end
}

func (q *Queue[T]) before(a, b entry[T]) bool {
	return a.rank < b.rank || a.rank == b.rank && q.first(a.item, b.item)
}

func (q *Queue[T]) set(i int, e entry[T]) {
	q.items[i] = e
	*q.place(e.item) = i + 1
}
