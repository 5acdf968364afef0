// Package waitq is a first-in first-out queue whose members may leave from anywhere.
//
// Somebody who waits gives up as often as not: the caller hangs up, a deadline passes. So leaving costs the same from
// the middle as from the front, and the queue allocates nothing: the links lie in the member's own [Place].
package waitq

// Place is one member's place in at most one [Queue] at a time. The zero value is in no queue.
type Place[T any] struct {
	Value T

	queue        *Queue[T] // nil: in no queue
	older, newer *Place[T]
}

// Queue holds places in the order of their arrival. The zero value is empty. It is not safe for concurrent use: its
// owner has a lock already, for what the waiting is about.
type Queue[T any] struct {
	oldest, youngest *Place[T]
	length           int
}

// Len is the number of places taken.
func (q *Queue[T]) Len() int { return q.length }

// Oldest returns the place whose turn it is; nil: nobody waits.
func (q *Queue[T]) Oldest() *Place[T] { return q.oldest }

// Youngest returns the place that was taken last; nil: nobody waits.
func (q *Queue[T]) Youngest() *Place[T] { return q.youngest }

// Push puts p behind all others. A place that is in a queue stays where it is.
func (q *Queue[T]) Push(p *Place[T]) {
	if p.queue != nil {
		return
	}
	p.queue, p.older = q, q.youngest
	if q.youngest == nil {
		q.oldest = p
	} else {
		q.youngest.newer = p
	}
	q.youngest = p
	q.length++
}

// Remove takes p out, wherever it is, and reports whether it was in q.
func (q *Queue[T]) Remove(p *Place[T]) bool {
	if p.queue != q {
		return false
	}
	if p.older == nil {
		q.oldest = p.newer
	} else {
		p.older.newer = p.newer
	}
	if p.newer == nil {
		q.youngest = p.older
	} else {
		p.newer.older = p.older
	}
	p.queue, p.older, p.newer = nil, nil, nil
	q.length--
	return true
}

// All yields the members, the oldest first. The queue must not change meanwhile.
func (q *Queue[T]) All(yield func(*Place[T]) bool) {
	for p := q.oldest; p != nil; p = p.newer {
		if !yield(p) {
			return
		}
	}
}
