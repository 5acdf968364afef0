package resilience

import (
	"context"
	"errors"
	"hash/maphash"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// KeyStore keeps one [Record] for each idempotency key. The promises of [Idempotency] are as good as its store: a
// durable store keeps them over a restart, a shared one between processes. An implementation must pass the suite in
// package storetest. All methods must be safe for concurrent use.
type KeyStore interface {
	// Load returns the record with this id. A key without a record is no error: the zero Record comes back, with
	// Version 0.
	Load(ctx context.Context, id string) (Record, error)

	// CompareAndSwap writes rec if the stored version is still old (0: there is no record), in one atomic step,
	// linearizable for each id, and durable before it returns true where the store is durable. A record with State
	// KeyFree is removed instead. It returns the new version (0 after a removal); swapped is false, with no error, when
	// somebody else was faster. It returns ErrStoreFull for a new record when the store holds as many as it may; the
	// caller then sweeps and asks again. A store never gives a record up by itself to make room.
	CompareAndSwap(ctx context.Context, old uint64, rec Record) (version uint64, swapped bool, err error)

	// Unsettled lists the records in the states KeyClaimed, KeySending, KeyInDoubt and KeyDisputed, ordered by id, at
	// most limit of them, with ids after the cursor ("" to begin). next is "" at the end.
	Unsettled(ctx context.Context, cursor string, limit int) (records []Record, next string, err error)

	// Sweep removes at most limit finished records whose Expires has passed, except those for which pinned returns true,
	// and returns how many it removed. It must not hold up other calls noticeably.
	Sweep(ctx context.Context, limit int, pinned func(id string) bool) (removed int, err error)

	// Now is the clock by which leases and retention are judged: the store's own where several machines share it.
	Now() time.Time

	Capabilities() Capabilities
}

// Capabilities says what a [KeyStore] promises.
type Capabilities struct {
	Durable      bool // survives the process, SIGKILL included
	Shared       bool // several processes use it at the same time
	Linearizable bool // a write that was acknowledged is seen by every later read
}

// MemoryStore is the [KeyStore] that a program gets which names none: it keeps the promises within one process lifetime
// and no longer.
type MemoryStore struct {
	seed   maphash.Seed
	max    int64
	size   atomic.Int64
	shards [64]memoryShard
	cursor atomic.Uint32 // the shard that is swept next
}

type memoryShard struct {
	mu        sync.Mutex
	records   map[string]*Record
	unsettled map[string]struct{}
	finished  []expiring // in the order in which they were finished, which is nearly the order in which they expire
	version   uint64
}

type expiring struct {
	id      string
	version uint64
	at      time.Time
}

// DefaultMaxKeys is how many records a [MemoryStore] holds unless told otherwise.
const DefaultMaxKeys = 1_000_000

// NewMemoryStore makes a store for at most maxKeys records; 0 or less: [DefaultMaxKeys].
func NewMemoryStore(maxKeys int) *MemoryStore {
	if maxKeys <= 0 {
		maxKeys = DefaultMaxKeys
	}
	s := &MemoryStore{seed: maphash.MakeSeed(), max: int64(maxKeys)}
	for i := range s.shards {
		s.shards[i].records = map[string]*Record{}
		s.shards[i].unsettled = map[string]struct{}{}
	}
	return s
}

func (s *MemoryStore) shard(id string) *memoryShard {
	return &s.shards[maphash.String(s.seed, id)%uint64(len(s.shards))]
}

// Load implements [KeyStore].
func (s *MemoryStore) Load(_ context.Context, id string) (Record, error) {
	sh := s.shard(id)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if r := sh.records[id]; r != nil {
		return *r, nil
	}
	return Record{}, nil
}

// CompareAndSwap implements [KeyStore].
func (s *MemoryStore) CompareAndSwap(_ context.Context, old uint64, rec Record) (uint64, bool, error) {
	if rec.ID == "" {
		return 0, false, errors.New("record without an id")
	}
	version, swapped, full := s.swap(s.shard(rec.ID), old, rec)
	if full {
		return 0, false, ErrStoreFull
	}
	return version, swapped, nil
}

func (s *MemoryStore) swap(sh *memoryShard, old uint64, rec Record) (version uint64, swapped, full bool) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	current := sh.records[rec.ID]
	if (current == nil) != (old == 0) || (current != nil && current.Version != old) {
		return 0, false, false
	}
	if rec.State == KeyFree {
		s.remove(sh, rec.ID)
		return 0, true, false
	}
	if current == nil {
		if s.size.Add(1) > s.max {
			s.size.Add(-1)
			return 0, false, true
		}
	}
	sh.version++
	rec.Version = sh.version
	sh.records[rec.ID] = &rec
	if rec.finished() {
		delete(sh.unsettled, rec.ID)
		sh.finished = append(sh.finished, expiring{rec.ID, rec.Version, rec.Expires})
	} else {
		sh.unsettled[rec.ID] = struct{}{}
	}
	return rec.Version, true, false
}

func (s *MemoryStore) remove(sh *memoryShard, id string) {
	if _, ok := sh.records[id]; ok {
		s.size.Add(-1)
	}
	delete(sh.records, id)
	delete(sh.unsettled, id)
}

// Unsettled implements [KeyStore].
func (s *MemoryStore) Unsettled(_ context.Context, cursor string, limit int) ([]Record, string, error) {
	var found []Record
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		for id := range sh.unsettled {
			if id > cursor {
				found = append(found, *sh.records[id])
			}
		}
		sh.mu.Unlock()
	}
	sort.Slice(found, func(i, j int) bool { return strings.Compare(found[i].ID, found[j].ID) < 0 })
	if limit > 0 && len(found) > limit {
		return found[:limit], found[limit-1].ID, nil
	}
	return found, "", nil
}

// Sweep implements [KeyStore]. It holds one shard at a time, and that only for a few records.
func (s *MemoryStore) Sweep(_ context.Context, limit int, pinned func(id string) bool) (int, error) {
	removed, now := 0, s.Now()
	for range s.shards {
		sh := &s.shards[s.cursor.Add(1)%uint32(len(s.shards))]
		for removed < limit {
			n, more := s.sweepSome(sh, now, min(limit-removed, 64), pinned)
			removed += n
			if !more {
				break
			}
		}
	}
	return removed, nil
}

// sweepSome looks at no more than n records of a shard; more says that some at the front may still be due.
func (s *MemoryStore) sweepSome(sh *memoryShard, now time.Time, n int, pinned func(string) bool) (removed int, more bool) {
	sh.mu.Lock()
	due := 0
	for due < len(sh.finished) && due < n && !now.Before(sh.finished[due].at) {
		due++
	}
	front := append([]expiring(nil), sh.finished[:due]...)
	sh.finished = sh.finished[due:]
	sh.mu.Unlock()
	keep := make(map[string]bool, len(front))
	for _, f := range front {
		keep[f.id] = pinned(f.id) // somebody else's code: not under the lock
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for _, f := range front {
		r := sh.records[f.id]
		switch {
		case r == nil || r.Version != f.version: // it moved on and stands in the list again, if it is finished
		case keep[f.id] || now.Before(r.Expires):
			sh.finished = append(sh.finished, expiring{f.id, f.version, now.Add(time.Minute)})
		default:
			s.remove(sh, f.id)
			removed++
		}
	}
	return removed, due == n
}

// Now implements [KeyStore] with the monotonic clock of the process.
func (s *MemoryStore) Now() time.Time { return time.Now() }

// Capabilities implements [KeyStore].
func (s *MemoryStore) Capabilities() Capabilities { return Capabilities{Linearizable: true} }

// Len returns the number of records.
func (s *MemoryStore) Len() int { return int(s.size.Load()) }
