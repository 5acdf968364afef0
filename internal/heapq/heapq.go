// Package heapq is a priority queue whose items know their place, so that one can be taken out of the middle in O(log n).
package heapq

// Queue holds items with the least first. It is not safe for concurrent use. An item can be in it once; items that are
// equal under less come out in no promised order, so let less break ties.
type Queue[T any] struct {
	items []T
	less  func(a, b T) bool
	place func(T) *int
}

// New makes a queue. place points to where an item keeps its position in this queue: 0 while it is not in it. An item
// that is in several queues needs one such field for each.
func New[T any](less func(a, b T) bool, place func(T) *int) *Queue[T] {
	return &Queue[T]{less: less, place: place}
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
	return q.items[0], true
}

// Push adds x. An x that is in the queue already is moved to where it belongs now.
func (q *Queue[T]) Push(x T) {
	if q.Has(x) {
		q.fix(*q.place(x) - 1)
		return
	}
	q.items = append(q.items, x)
	q.set(len(q.items)-1, x)
	q.up(len(q.items) - 1)
}

// Remove takes x out, wherever it is. It reports whether x was there. x may have changed since it was pushed.
func (q *Queue[T]) Remove(x T) bool {
	at := *q.place(x)
	if at == 0 {
		return false
	}
	i, last := at-1, len(q.items)-1
	moved := q.items[last]
	var zero T
	q.items[last] = zero
	q.items = q.items[:last]
	*q.place(x) = 0
	if i != last {
		q.set(i, moved)
		q.fix(i)
	}
	q.shrink()
	return true
}

// Pop takes out the least item.
func (q *Queue[T]) Pop() (x T, ok bool) {
	if x, ok = q.Peek(); ok {
		q.Remove(x)
	}
	return x, ok
}

// shrink gives memory back after a burst.
func (q *Queue[T]) shrink() {
	if c := cap(q.items); c > 1024 && len(q.items) < c/4 {
		q.items = append(make([]T, 0, c/2), q.items...)
	}
}

func (q *Queue[T]) set(i int, x T) {
	q.items[i] = x
	*q.place(x) = i + 1
}

func (q *Queue[T]) fix(i int) {
	if !q.down(i) {
		q.up(i)
	}
}

func (q *Queue[T]) up(i int) {
	for i > 0 {
		parent := (i - 1) / 2
		if !q.less(q.items[i], q.items[parent]) {
			return
		}
		q.swap(i, parent)
		i = parent
	}
}

func (q *Queue[T]) down(i int) (moved bool) {
	for {
		least := 2*i + 1
		if least >= len(q.items) {
			return moved
		}
		if right := least + 1; right < len(q.items) && q.less(q.items[right], q.items[least]) {
			least = right
		}
		if !q.less(q.items[least], q.items[i]) {
			return moved
		}
		q.swap(i, least)
		i, moved = least, true
	}
}

func (q *Queue[T]) swap(i, j int) {
	a, b := q.items[i], q.items[j]
	q.set(i, b)
	q.set(j, a)
}
