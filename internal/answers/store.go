package answers

import (
	"container/list"
	"strings"
	"sync"
	"time"
)

// Store keeps answers. It is safe for concurrent use, and holds its lock for a few map accesses at most. Times are
// handed in; they should carry a monotonic reading, so that a clock that is set changes nothing.
type Store struct {
	maxBytes int64         // < 0: no bound
	maxAge   time.Duration // < 0: no bound

	mu      sync.Mutex
	entries map[Key]*entry
	recent  list.List // of *entry, the one that was used longest ago first
	order   list.List // of *entry, the one that was put longest ago first
	root    node
	moment  uint64 // counts invalidations
	reads   int    // under way
	stats   Stats
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

// entry is an answer in the store, and its places there.
type entry struct {
	key    Key
	answer *Answer
	at     time.Time
	size   int64
	node   *node

	inRecent, inOrder, inNode *list.Element

	refresh refresh
}

// New returns an empty store. An answer is gone when it is maxAge old. A negative bound is none.
func New(maxBytes int64, maxAge time.Duration) *Store {
	return &Store{maxBytes: maxBytes, maxAge: maxAge, entries: make(map[Key]*entry)}
}

// Read is a read under way. Its answer is kept only if its resource was not invalidated meanwhile.
type Read struct {
	node  *node
	since uint64
	last  *Answer // what was kept as it began; nil: nothing
}

// Begin says that a read of a resource (empty: of none in particular) is about to start. End must follow.
func (s *Store) Begin(k Key, resource string) Read {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.begin(k, resource)
}

// begin, like all that has a small letter here, is for who holds the lock.
func (s *Store) begin(k Key, resource string) Read {
	r := Read{since: s.moment}
	if e := s.entries[k]; e != nil {
		r.last = e.answer
		if e.node.resource == resource {
			r.node = e.node // most often: nothing to look for
		}
	}
	if r.node == nil {
		r.node = s.root.at(resource)
	}
	r.node.reads++
	s.reads++
	return r
}

// End says that a read is over, however it ended.
func (s *Store) End(r Read) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end(r)
}

func (s *Store) end(r Read) {
	s.reads--
	r.node.reads--
	r.node.prune()
}

// Current reports whether nothing has invalidated the resource of a read since it began.
func (s *Store) Current(r Read) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !r.overtaken()
}

func (r Read) overtaken() bool { return r.node.overtaken(r.since) }

// Put keeps the answer to a read that has not ended. An answer that is larger than the store, or that a write has
// overtaken, is not kept.
func (s *Store) Put(r Read, k Key, a *Answer, now time.Time) (kept bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire(now, 2) // more than is put, so that what has expired always leaves, without a read or a sweep
	if r.overtaken() {
		s.stats.Invalidated++
		return false
	}
	size := a.Size()
	if s.maxBytes >= 0 && size > s.maxBytes {
		return false
	}
	e := s.entries[k]
	if e != nil && (e.node != r.node) {
		s.remove(e)
		e = nil
	}
	if e == nil {
		e = &entry{key: k, node: r.node}
		e.inRecent, e.inOrder, e.inNode = s.recent.PushBack(e), s.order.PushBack(e), e.node.entries.PushBack(e)
		s.entries[k] = e
		s.stats.Entries++
	} else { // its place is new, and what is known of failures is old
		s.recent.MoveToBack(e.inRecent)
		s.order.MoveToBack(e.inOrder)
		e.refresh = refresh{underWay: e.refresh.underWay}
	}
	s.stats.Bytes += size - e.size
	e.answer, e.at, e.size = a, now.Add(-a.age), size
	for s.maxBytes >= 0 && s.stats.Bytes > s.maxBytes { // which ends before this one, the last in line
		s.remove(s.recent.Front().Value.(*entry)) //nolint:forcetypeassert // it holds nothing else
		s.stats.Evicted++
	}
	s.stats.Stored++
	return true
}

// Get returns the answer for a key and its age, which is never negative, and makes it the most recently used.
func (s *Store) Get(k Key, now time.Time) (a *Answer, age time.Duration, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[k]
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
func (s *Store) Drop(k Key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.entries[k]; e != nil {
		s.remove(e)
		s.stats.Invalidated++
	}
}

// Invalidate drops the answers about a resource, about everything below it, and about the collections above it, which
// list it; reads of them that are under way will not be kept. The empty resource is everything.
func (s *Store) Invalidate(resource string) {
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

func (s *Store) dropBelow(n *node) {
	for _, child := range n.children {
		s.dropBelow(child)
	}
	s.dropEntries(n)
	n.prune()
}

func (s *Store) dropEntries(n *node) {
	for n.entries.Len() > 0 {
		s.unlink(n.entries.Front().Value.(*entry)) //nolint:forcetypeassert // it holds nothing else
		s.stats.Invalidated++
	}
}

// sweepBatch bounds how long a sweep keeps the lock.
const sweepBatch = 256

// Sweep drops what has expired.
func (s *Store) Sweep(now time.Time) {
	for s.sweepSome(now) == sweepBatch {
	}
}

func (s *Store) sweepSome(now time.Time) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.expire(now, sweepBatch)
}

// expire drops up to limit answers, those first that were put longest ago. An answer that was old already when it came
// may have to wait for its turn; Get does not serve it.
func (s *Store) expire(now time.Time, limit int) (n int) {
	for ; n < limit && s.order.Len() > 0; n++ {
		e := s.order.Front().Value.(*entry) //nolint:forcetypeassert // it holds nothing else
		if !s.gone(e, now) {
			break
		}
		s.remove(e)
		s.stats.Expired++
	}
	return n
}

// Reads is how many reads are under way.
func (s *Store) Reads() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reads
}

// Stats returns the counts.
func (s *Store) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats
}

func (s *Store) gone(e *entry, now time.Time) bool { return s.maxAge >= 0 && e.age(now) >= s.maxAge }

func (e *entry) age(now time.Time) time.Duration { return max(0, now.Sub(e.at)) }

func (s *Store) remove(e *entry) {
	s.unlink(e)
	e.node.prune()
}

func (s *Store) unlink(e *entry) {
	delete(s.entries, e.key)
	s.recent.Remove(e.inRecent)
	s.order.Remove(e.inOrder)
	e.node.entries.Remove(e.inNode)
	s.stats.Entries--
	s.stats.Bytes -= e.size
}
