package answers

import (
	"container/list"
	"strings"
	"sync"
	"time"
)

// Store keeps answers, and knows the calls that are on their way to get some. ID tells apart calls for one key that must
// not wait for each other; L says who leads one. A Store is safe for concurrent use, and holds its lock for a few map
// accesses at most. Times are handed in; they should carry a monotonic reading, so that a clock that is set changes nothing.
type Store[ID comparable, L any] struct {
	maxBytes int64         // < 0: no bound
	maxAge   time.Duration // < 0: no bound

	mu      sync.Mutex
	entries map[string]*entry[ID, L] // by key
	recent  list.List                // of those with an answer, the one that was used longest ago first
	order   list.List                // of those with an answer, the one that was put longest ago first
	root    node
	moment  uint64 // counts invalidations
	calls   int    // on their way
	stats   Stats

	// Nearly every call ends without a follower. It is used again then, since nobody else has seen it.
	unseen sync.Pool
}

// Stats are the state of a store and what happened in it so far.
type Stats struct {
	Entries     int
	Bytes       int64
	Stored      uint64
	Evicted     uint64 // to make room
	Expired     uint64
	Invalidated uint64 // entries dropped, and answers refused, because a write had overtaken them
}

// entry is what there is for one key: an answer and its places in the store, calls on their way, or both. Without either it
// is not there.
type entry[ID comparable, L any] struct {
	key    string
	calls  int                 // on their way
	lead   *Call[ID, L]        // one of those that can be joined, which most often is the only one
	others map[ID]*Call[ID, L] // the others

	answer *Answer // nil: none, and nothing of the following
	at     time.Time
	size   int64
	node   *node

	inRecent, inOrder, inNode *list.Element

	refresh refresh
}

// New returns an empty store. An answer is gone when it is maxAge old. A negative bound is none.
func New[ID comparable, L any](maxBytes int64, maxAge time.Duration) *Store[ID, L] {
	return &Store[ID, L]{maxBytes: maxBytes, maxAge: maxAge, entries: make(map[string]*entry[ID, L])}
}

// find, like all that has a small letter here, is for who holds the lock.
func (s *Store[ID, L]) find(k Key) *entry[ID, L] {
	if e := s.entries[string(k)]; e != nil && e.answer != nil {
		return e
	}
	return nil
}

// put keeps the answer to a call that is on its way. One that is larger than the store, or that a write has overtaken, is
// not kept.
func (s *Store[ID, L]) put(call *Call[ID, L], a *Answer, now time.Time) {
	s.expire(now, 2) // more than is put, so that what has expired always leaves, without a read or a sweep
	if call.overtaken() {
		s.stats.Invalidated++
		return
	}
	e := call.entry
	size := a.Size() + int64(len(e.key))
	if s.maxBytes >= 0 && size > s.maxBytes {
		return
	}
	if e.answer != nil && e.node != call.node {
		s.remove(e)
	}
	if e.answer == nil {
		e.node = call.node
		e.inRecent, e.inOrder, e.inNode = s.recent.PushBack(e), s.order.PushBack(e), e.node.entries.PushBack(e)
		s.stats.Entries++
	} else { // its place is new, and what is known of failures is old
		s.recent.MoveToBack(e.inRecent)
		s.order.MoveToBack(e.inOrder)
		e.refresh = refresh{underWay: e.refresh.underWay}
	}
	s.stats.Bytes += size - e.size
	e.answer, e.at, e.size = a, now, size
	if a.age > 0 {
		e.at = now.Add(-a.age)
	}
	for s.maxBytes >= 0 && s.stats.Bytes > s.maxBytes { // which ends before this one, the last in line
		s.remove(first[ID, L](&s.recent))
		s.stats.Evicted++
	}
	s.stats.Stored++
}

func first[ID comparable, L any](entries *list.List) *entry[ID, L] {
	return entries.Front().Value.(*entry[ID, L]) //nolint:forcetypeassert // the lists hold nothing else
}

// Get returns the answer for a key and its age, which is never negative, and makes it the most recently used.
func (s *Store[ID, L]) Get(k Key, now time.Time) (a *Answer, age time.Duration, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.find(k)
	if e == nil {
		return nil, 0, false
	}
	if s.gone(e, now) {
		s.remove(e)
		s.stats.Expired++
		return nil, 0, false
	}
	s.recent.MoveToBack(e.inRecent)
	return e.answer, e.age(now), true
}

// Drop forgets the answer for one key.
func (s *Store[ID, L]) Drop(k Key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.find(k); e != nil {
		s.remove(e)
		s.stats.Invalidated++
	}
}

// Invalidate drops the answers about a resource, about everything below it, and about the collections above it, which
// list it; what calls on their way bring of them will not be kept. The empty resource is everything.
func (s *Store[ID, L]) Invalidate(resource string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.moment++
	n := &s.root
	for rest := strings.Trim(resource, "/"); rest != ""; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		if n != &s.root { // which holds what is about no resource in particular
			n.alone = s.moment
			s.dropEntries(n)
		}
		child := n.children[name]
		if child == nil {
			n.prune()
			return
		}
		n = child
	}
	n.below = s.moment
	s.dropBelow(n)
}

func (s *Store[ID, L]) dropBelow(n *node) {
	for _, child := range n.children {
		s.dropBelow(child)
	}
	s.dropEntries(n)
	n.prune()
}

func (s *Store[ID, L]) dropEntries(n *node) {
	for n.entries.Len() > 0 {
		s.unlink(first[ID, L](&n.entries))
		s.stats.Invalidated++
	}
}

// sweepBatch bounds how long a sweep keeps the lock.
const sweepBatch = 256

// Sweep drops what has expired.
func (s *Store[ID, L]) Sweep(now time.Time) {
	for s.sweepSome(now) == sweepBatch {
	}
}

func (s *Store[ID, L]) sweepSome(now time.Time) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.expire(now, sweepBatch)
}

// expire drops up to limit answers, those first that were put longest ago. An answer that was old already when it came
// may have to wait for its turn; Get does not serve it.
func (s *Store[ID, L]) expire(now time.Time, limit int) (n int) {
	for ; n < limit && s.order.Len() > 0; n++ {
		e := first[ID, L](&s.order)
		if !s.gone(e, now) {
			break
		}
		s.remove(e)
		s.stats.Expired++
	}
	return n
}

// Calls is how many calls are on their way.
func (s *Store[ID, L]) Calls() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls
}

// Stats returns the counts.
func (s *Store[ID, L]) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats
}

func (s *Store[ID, L]) gone(e *entry[ID, L], now time.Time) bool {
	return s.maxAge >= 0 && e.age(now) >= s.maxAge
}

func (e *entry[ID, L]) age(now time.Time) time.Duration { return max(0, now.Sub(e.at)) }

func (s *Store[ID, L]) remove(e *entry[ID, L]) {
	n := e.node
	s.unlink(e)
	n.prune()
}

// unlink takes the answer out of an entry.
func (s *Store[ID, L]) unlink(e *entry[ID, L]) {
	s.recent.Remove(e.inRecent)
	s.order.Remove(e.inOrder)
	e.node.entries.Remove(e.inNode)
	s.stats.Entries--
	s.stats.Bytes -= e.size
	*e = entry[ID, L]{key: e.key, calls: e.calls, lead: e.lead, others: e.others}
	s.prune(e)
}

// prune forgets an entry that holds nothing.
func (s *Store[ID, L]) prune(e *entry[ID, L]) {
	if e.answer == nil && e.calls == 0 {
		delete(s.entries, e.key)
	}
}
