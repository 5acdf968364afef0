// Package ordered is a list that keeps its items in order and can be gone through from any place in it, page by page.
package ordered

import (
	"slices"
	"sort"
)

// run is how many items lie together: few enough to shift them, and enough to have few runs.
const run = 256

// List holds items in the order of compare, no two of which are equal under it. Finding a place takes O(log n); putting an
// item there or taking one out shifts at most one run of items, and now and then the runs. Items that come at the end or
// go from the beginning, as those of a queue do, shift nothing. It is not safe for concurrent use.
type List[T any] struct {
	compare func(a, b T) int
	runs    [][]T // none is empty
	n       int
}

// New makes a list. What compare reads of an item must not change while the item is in the list.
func New[T any](compare func(a, b T) int) *List[T] { return &List[T]{compare: compare} }

// Len is the number of items.
func (l *List[T]) Len() int { return l.n }

// Insert puts x where it belongs. It must not be there already.
func (l *List[T]) Insert(x T) {
	l.n++
	i := l.runOf(x)
	if i == len(l.runs) { // behind everything: the usual case
		i--
		if i < 0 || len(l.runs[i]) >= run {
			l.runs = append(l.runs, append(make([]T, 0, run), x))
			return
		}
	}
	at, _ := slices.BinarySearchFunc(l.runs[i], x, l.compare)
	l.runs[i] = slices.Insert(l.runs[i], at, x)
	if len(l.runs[i]) > run {
		l.split(i)
	}
}

// runOf is the first run that does not end before x.
func (l *List[T]) runOf(x T) int {
	last := len(l.runs) - 1
	if last >= 0 && l.compare(l.runs[last][len(l.runs[last])-1], x) < 0 {
		return len(l.runs)
	}
	return sort.Search(last+1, func(i int) bool { return l.compare(l.runs[i][len(l.runs[i])-1], x) >= 0 })
}

func (l *List[T]) split(i int) {
	whole := l.runs[i]
	upper := append(make([]T, 0, run), whole[run/2:]...)
	l.runs[i] = append(make([]T, 0, run), whole[:run/2]...)
	l.runs = slices.Insert(l.runs, i+1, upper)
}

// Remove takes out the item that is equal to x, and reports whether there was one.
func (l *List[T]) Remove(x T) bool {
	i := l.runOf(x)
	if i == len(l.runs) {
		return false
	}
	at, found := slices.BinarySearchFunc(l.runs[i], x, l.compare)
	if !found {
		return false
	}
	l.n--
	l.runs[i] = without(l.runs[i], at)
	l.join(i)
	return true
}

// without takes the item at a place out. The first one goes without shifting the others: in a queue it is the one that goes.
func without[T any](r []T, at int) []T {
	if at > 0 {
		return slices.Delete(r, at, at+1)
	}
	clear(r[:1])
	return r[1:]
}

// join keeps runs from getting ever shorter: two neighbours that fill at most half of one become one.
func (l *List[T]) join(i int) {
	if len(l.runs[i]) == 0 {
		l.runs = slices.Delete(l.runs, i, i+1)
	}
	for _, i := range [...]int{i, i - 1} {
		if i >= 0 && i+1 < len(l.runs) && len(l.runs[i])+len(l.runs[i+1]) <= run/2 {
			l.runs[i] = append(l.runs[i], l.runs[i+1]...)
			l.runs = slices.Delete(l.runs, i+1, i+2)
		}
	}
}

// From returns up to n items, beginning with the first for which past is true. Past must be false for all items up to some
// place, and true for all behind it.
func (l *List[T]) From(past func(T) bool, n int) []T {
	i := sort.Search(len(l.runs), func(i int) bool { return past(l.runs[i][len(l.runs[i])-1]) })
	if i == len(l.runs) {
		return nil
	}
	at := sort.Search(len(l.runs[i]), func(at int) bool { return past(l.runs[i][at]) })
	page := make([]T, 0, min(n, l.n))
	for ; i < len(l.runs) && len(page) < n; i, at = i+1, 0 {
		rest := l.runs[i][at:]
		page = append(page, rest[:min(len(rest), n-len(page))]...)
	}
	return page
}
