package resilience

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/maphash"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/retell-resilience/resilience/internal/archive"
)

// KeyStore keeps one [Record] for each idempotency key. The promises of [Idempotency] are as good as its store: a
// durable store keeps them over a restart, a shared one between processes. An implementation must pass the suite in
// package storetest. All methods must be safe for concurrent use, and end when their context does. A write that must be
// made even if its caller has left gets a context of five seconds; a store that takes longer has failed ([ErrStore]).
type KeyStore interface {
	// Load returns the record with this id, which may be any string but the empty one. A key without a record is no
	// error: the zero Record comes back, with Version 0.
	Load(ctx context.Context, id string) (Record, error)

	// CompareAndSwap writes rec if the stored version is still old (0: there is no record), in one atomic step,
	// linearizable for each id, and durable before it returns true where the store is durable. A record with State
	// KeyFree is removed instead. It returns the new version (0 after a removal), which an id never had before, also not
	// before a removal; swapped is false, with version 0 and no error, when somebody else was faster. It returns
	// ErrStoreFull for a new record when the store holds as many as it may; the caller then sweeps and asks again. A
	// store never gives a record up by itself to make room.
	CompareAndSwap(ctx context.Context, old uint64, rec Record) (version uint64, swapped bool, err error)

	// Unsettled lists the records in the states KeyClaimed, KeySending, KeyInDoubt and KeyDisputed, ordered by id, at
	// most limit of them (0 or less: all), with ids after the cursor ("" to begin). next is "" at the end.
	Unsettled(ctx context.Context, cursor string, limit int) (records []Record, next string, err error)

	// Sweep removes at most limit finished records whose Expires has passed, except those for which pinned returns true
	// (nil: none), and returns how many it removed. It must not hold up other calls noticeably.
	Sweep(ctx context.Context, limit int, pinned func(id string) bool) (removed int, err error)

	// Now is the clock by which leases and retention are judged: the store's own where several machines share it. It is asked
	// several times in each call, and by health, so it must answer at once: a store across the network keeps how far its
	// clock is from this machine's, and finds that out anew now and then.
	Now() time.Time

	// Capabilities says what the store promises. It is asked often, and must always say the same.
	Capabilities() Capabilities
}

// Capabilities says what a [KeyStore] promises.
type Capabilities struct {
	Durable      bool // survives the process, SIGKILL included
	Shared       bool // several processes use it at the same time
	Linearizable bool // a write that was acknowledged is seen by every later read
}

// MemoryStore is the [KeyStore] that a program gets which names none: it keeps the promises within one process lifetime
// and no longer. Finished records are packed into bytes: some 300 of them for a phone call, indexes included, plus the answer.
type MemoryStore struct {
	seeds  [2]maphash.Seed
	codec  recordCodec
	max    int64
	size   atomic.Int64
	shards [64]memoryShard
	cursor atomic.Uint32 // the shard that is swept next
}

// memoryShard keeps a record in one of two places: packed when it is finished and stays for a while, as it is otherwise.
type memoryShard struct {
	mu        sync.Mutex
	open      map[string]*Record
	unsettled map[string]struct{} // of the open ones
	passing   []expiring          // finished and open: they go soon, in about this order
	packed    archive.Archive
	version   uint64
}

type expiring struct {
	id      string
	version uint64
	at      time.Time
}

// DefaultMaxKeys is how many records a [MemoryStore] holds unless told otherwise.
const DefaultMaxKeys = 1_000_000

// NewMemoryStore makes a store for at most maxKeys records; 0 or less: [DefaultMaxKeys]. It belongs to one [Idempotency] at
// a time: a second one takes the keys that the first has under way for those of a process that has died. Clients that
// should know each other's keys share a [Stack].
func NewMemoryStore(maxKeys int) *MemoryStore {
	if maxKeys <= 0 {
		maxKeys = DefaultMaxKeys
	}
	s := &MemoryStore{
		seeds: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}, codec: recordCodec{time.Now()}, max: int64(maxKeys),
	}
	for i := range s.shards {
		s.shards[i].open = map[string]*Record{}
		s.shards[i].unsettled = map[string]struct{}{}
	}
	return s
}

// shard returns where the record with an id lives, and the id's key in the archive there.
func (s *MemoryStore) shard(id string) (*memoryShard, archive.Key) {
	var k archive.Key
	h := maphash.String(s.seeds[0], id)
	binary.LittleEndian.PutUint64(k[:8], h)
	binary.LittleEndian.PutUint64(k[8:], maphash.String(s.seeds[1], id))
	return &s.shards[h%uint64(len(s.shards))], k
}

// Load implements [KeyStore].
func (s *MemoryStore) Load(_ context.Context, id string) (Record, error) {
	sh, k := s.shard(id)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return s.load(sh, k, id), nil
}

// load returns a record that shares nothing with the store; the zero Record if there is none.
func (s *MemoryStore) load(sh *memoryShard, k archive.Key, id string) Record {
	if r := sh.open[id]; r != nil {
		return r.clone()
	}
	if b := sh.packed.Get(k); b != nil {
		if r, err := s.codec.decode(b); err == nil && r.ID == id {
			return r
		}
	}
	return Record{}
}

func (r *Record) clone() Record {
	c := *r
	c.CallIDs, c.Header, c.Body = slices.Clone(r.CallIDs), r.Header.Clone(), slices.Clone(r.Body)
	return c
}

// CompareAndSwap implements [KeyStore].
func (s *MemoryStore) CompareAndSwap(_ context.Context, old uint64, rec Record) (uint64, bool, error) {
	if rec.ID == "" {
		return 0, false, errors.New("record without an id")
	}
	sh, k := s.shard(rec.ID)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	current := s.versionOf(sh, k, rec.ID)
	switch {
	case current != old:
		return 0, false, nil
	case rec.State == KeyFree:
		s.remove(sh, k, rec.ID)
		return 0, true, nil
	case current == 0 && s.size.Add(1) > s.max:
		s.size.Add(-1)
		return 0, false, ErrStoreFull
	}
	sh.version++
	rec.Version = sh.version
	s.put(sh, k, rec)
	return rec.Version, true, nil
}

// versionOf returns the version of the stored record, 0 if there is none.
func (s *MemoryStore) versionOf(sh *memoryShard, k archive.Key, id string) uint64 {
	if r := sh.open[id]; r != nil {
		return r.Version
	}
	if b := sh.packed.Get(k); b != nil {
		if kept, version, _ := s.codec.expiresOf(b); kept == id {
			return version
		}
	}
	return 0
}

// passesSoon is how long a finished record may have left to be not worth packing.
const passesSoon = time.Minute

func (s *MemoryStore) put(sh *memoryShard, k archive.Key, rec Record) {
	delete(sh.unsettled, rec.ID)
	if rec.finished() && rec.Expires.Sub(s.Now()) > passesSoon && s.mayPack(sh, k, rec.ID) {
		delete(sh.open, rec.ID)
		sh.packed.Put(k, s.codec.encode(nil, &rec))
		return
	}
	s.unpack(sh, k, rec.ID)
	own := rec.clone()
	sh.open[rec.ID] = &own
	if rec.finished() {
		sh.passing = append(sh.passing, expiring{rec.ID, rec.Version, rec.Expires})
		return
	}
	sh.unsettled[rec.ID] = struct{}{}
}

// mayPack is false for the one id in 2^128 whose key another packed record has.
func (s *MemoryStore) mayPack(sh *memoryShard, k archive.Key, id string) bool {
	b := sh.packed.Get(k)
	if b == nil {
		return true
	}
	kept, _, _ := s.codec.expiresOf(b)
	return kept == id
}

func (s *MemoryStore) unpack(sh *memoryShard, k archive.Key, id string) {
	if s.mayPack(sh, k, id) {
		sh.packed.Remove(k)
	}
}

func (s *MemoryStore) remove(sh *memoryShard, k archive.Key, id string) {
	if s.versionOf(sh, k, id) == 0 {
		return
	}
	s.size.Add(-1)
	s.unpack(sh, k, id)
	delete(sh.open, id)
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
				found = append(found, sh.open[id].clone())
			}
		}
		sh.mu.Unlock()
	}
	slices.SortFunc(found, func(a, b Record) int { return strings.Compare(a.ID, b.ID) })
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
		for more := true; more && removed < limit; {
			var n int
			n, more = s.sweepSome(sh, now, min(limit-removed, sweepStep), pinned)
			removed += n
		}
	}
	return removed, nil
}

// sweepStep is how many records one hold of a shard looks at.
const sweepStep = 16

// sweepSome removes some records of a shard that are due; more says that there may be others.
func (s *MemoryStore) sweepSome(sh *memoryShard, now time.Time, n int, pinned func(string) bool) (removed int, more bool) {
	sh.mu.Lock()
	due := s.due(sh, now, n)
	sh.mu.Unlock()
	keep := make([]bool, len(due))
	for i, d := range due {
		keep[i] = pinned != nil && pinned(d.id) // somebody else's code: not under the lock
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for i, d := range due {
		_, k := s.shard(d.id)
		switch {
		case s.versionOf(sh, k, d.id) != d.version: // it moved on, and is listed anew if it is finished
		case keep[i]:
			r := s.load(sh, k, d.id)
			s.unpack(sh, k, r.ID)
			sh.open[r.ID] = &r
			sh.passing = append(sh.passing, expiring{d.id, d.version, now.Add(time.Minute)})
		default:
			s.remove(sh, k, d.id)
			removed++
		}
	}
	return removed, len(due) == n
}

// due takes up to n records off the two lists whose time has come.
func (s *MemoryStore) due(sh *memoryShard, now time.Time, n int) []expiring {
	var due []expiring
	for len(due) < n && len(sh.passing) > 0 && !now.Before(sh.passing[0].at) {
		due = append(due, sh.passing[0])
		sh.passing = sh.passing[1:]
	}
	if len(due) == n {
		return due
	}
	sh.packed.Oldest(n-len(due), func(_ archive.Key, b []byte) bool {
		id, version, expires := s.codec.expiresOf(b)
		if now.Before(expires) {
			return false
		}
		due = append(due, expiring{id, version, expires})
		return true
	})
	return due
}

// Now implements [KeyStore] with the monotonic clock of the process.
func (s *MemoryStore) Now() time.Time { return time.Now() }

// Capabilities implements [KeyStore].
func (s *MemoryStore) Capabilities() Capabilities { return Capabilities{Linearizable: true} }

// Len returns the number of records.
func (s *MemoryStore) Len() int { return int(s.size.Load()) }
