// Package boltstore keeps idempotency keys and dead letters in one bbolt file: a durable [resilience.KeyStore], and with
// [Store.Letters] a [resilience.LetterStore], for a service that runs as one process and must neither ring twice nor forget
// to ring after a restart.
//
// # What it promises
//
// A write that was acknowledged survives the process, SIGKILL and a loss of power included: it is synced before
// CompareAndSwap returns true. Writes are atomic and linearizable. The file belongs to one process at a time, by a lock on
// it, so that after a crash the next process knows at once that whoever held a key is gone: it need not wait for leases.
//
// # How it writes
//
// A commit is one sync, whoever it is for. While one is under way, writers queue; the next commit takes all of them. So a
// single writer never waits for company, and many share a sync. There is no goroutine and no timer in it: the writer
// whose turn it is commits for all. A context that ends while its write is queued withdraws it; once a commit has begun
// it is waited for, since only its end tells whether the key is held.
//
// After a commit that failed in the middle, the file is looked at again. If nothing of it can have arrived (the disk is
// full, the usual case) the store goes on, and takes writes again when there is room. Otherwise nobody can know what the
// disk holds: all calls fail from then on, until the store is opened anew.
//
// # What it stores
//
// The buckets are records, by id; the ids of what is not settled; the finished ones by expiry; and letters, by id. So neither looking
// after keys in doubt nor sweeping reads what is of no concern. A record is a version byte, fields with a number and a
// length each, and a checksum over it and its id. A record of a version or with a field that is not known
// is an error that wraps [ErrNewer], never a record without it. Times come back in UTC, exact to the nanosecond.
//
// Answers of calls and requests of letters, with what they say about people, are in the file; it is created with mode 0600.
// Keys are only in letters, which cannot do without.
package boltstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/retell-resilience/resilience"
	"github.com/retell-resilience/resilience/internal/codec"
)

var (
	// ErrLocked is returned by [Open] when another store, as a rule in another process, has the file open.
	ErrLocked = errors.New("the key store's file is in use")
	// ErrCorrupt means that the file is damaged or is not a key store. Nothing was changed in it. Do not go on with a
	// new file as if nothing had been sent: keys in doubt are in the old one.
	ErrCorrupt = codec.ErrDamaged
	// ErrNewer means that the file or a record was written by a version of this package that knows more than this one.
	ErrNewer = codec.ErrNewer
)

// Options of [Open]. The zero value is the documented default.
type Options struct {
	// MaxKeys bounds the records; a new one past it is refused with resilience.ErrStoreFull. Default:
	// resilience.DefaultMaxKeys; -1: unlimited. A file that holds more already is opened, and takes no new ones.
	MaxKeys int
	// LockTimeout is how long Open waits for another process to close the file. Default 1 s; -1: not at all.
	LockTimeout time.Duration
	// Mode of a file that Open creates. Default 0600.
	Mode fs.FileMode
	// SkipCheck opens the file without reading all of it. Damage then shows when a record is read, and damage to the
	// tree of pages can end the process. It is for files so large that the check takes too long; see the README.
	SkipCheck bool
}

func (o Options) withDefaults() (Options, error) {
	var faults []error
	if o.MaxKeys < -1 {
		faults = append(faults, fmt.Errorf("MaxKeys: must be -1, 0 or more, got %d", o.MaxKeys))
	}
	if o.LockTimeout < 0 && o.LockTimeout != -1 {
		faults = append(faults, fmt.Errorf("LockTimeout: must be -1, 0 or more, got %v", o.LockTimeout))
	}
	if o.Mode&^fs.ModePerm != 0 || (o.Mode != 0 && o.Mode&0o600 != 0o600) {
		faults = append(faults, fmt.Errorf("Mode: must let the owner read and write, and be permissions only, got %v", o.Mode)) //nolint:staticcheck // it begins with the name of a field
	}
	if o.MaxKeys == 0 {
		o.MaxKeys = resilience.DefaultMaxKeys
	}
	if o.LockTimeout == 0 { // which bbolt takes for patience without end
		o.LockTimeout = time.Second
	}
	if o.Mode == 0 {
		o.Mode = 0o600
	}
	return o, errors.Join(faults...)
}

const (
	// maxID bounds ids; the library's own have 26 bytes.
	maxID = 1024
	// maxBody bounds bodies. One that bbolt could not hold would end the commit that it is in, and with it the store.
	maxBody = 1 << 30
)

var (
	bucketMeta      = []byte("meta")
	bucketRecords   = []byte("records")   // id: record
	bucketUnsettled = []byte("unsettled") // id: nothing
	bucketExpires   = []byte("expires")   // expiry and id of a finished record: nothing

	keyFormat = []byte("format") // one byte: how the buckets are laid out
	keyCounts = []byte("counts") // how many records and how many of them unsettled, 8 bytes each
)

const format = 1

// Store is a key store in a file. It is safe for concurrent use.
type Store struct {
	db     *bbolt.DB
	opts   Options
	opened time.Time

	turn   chan struct{} // whoever puts something in commits
	mu     sync.Mutex
	queue  []*work
	closed bool
	broken error // why nothing works any more

	keys, unsettled, commits, writes, largest atomic.Int64
}

var _ resilience.KeyStore = (*Store)(nil)

// Close ends the store and gives the file back. It waits for the commit under way; writes that are queued behind it end
// with an error that wraps resilience.ErrClosed, and so does every later call. Closing twice is no error.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	waiting := s.queue
	s.queue = nil
	s.mu.Unlock()
	for _, w := range waiting {
		w.finish(errClosed)
	}
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	if err := s.failed(); errors.Is(err, ErrCorrupt) {
		return err // it came out of the middle of bbolt, which may hold its own locks still
	}
	return s.db.Close()
}

var errClosed = fmt.Errorf("key store: %w", resilience.ErrClosed)

func (s *Store) failed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.broken
}

func (s *Store) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = fmt.Errorf("%w; the store must be opened anew", err)
}

// view reads.
func (s *Store) view(ctx context.Context, read func(tx *bbolt.Tx) error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	s.mu.Lock()
	closed, broken := s.closed, s.broken
	s.mu.Unlock()
	switch {
	case closed:
		return errClosed
	case broken != nil:
		return broken
	}
	began := false
	err := guard(func() error {
		return s.db.View(func(tx *bbolt.Tx) error {
			began = true
			return read(tx)
		})
	})
	switch {
	case errors.Is(err, berrors.ErrDatabaseNotOpen):
		return errClosed
	case !began && errors.Is(err, ErrCorrupt): // bbolt lets go of its locks only from there on: the next call would hang
		s.fail(err)
	}
	return err
}

// Load implements [resilience.KeyStore].
func (s *Store) Load(ctx context.Context, id string) (rec resilience.Record, err error) {
	err = s.view(ctx, func(tx *bbolt.Tx) (err error) {
		rec, err = load(tx.Bucket(bucketRecords), id)
		return err
	})
	return rec, err
}

func load(records *bbolt.Bucket, id string) (resilience.Record, error) {
	value := records.Get([]byte(id))
	if value == nil {
		return resilience.Record{}, nil
	}
	return codec.DecodeRecord(id, value)
}

// Unsettled implements [resilience.KeyStore]. It reads the records that it returns, and no others.
func (s *Store) Unsettled(ctx context.Context, cursor string, limit int) (page []resilience.Record, next string, err error) {
	err = s.view(ctx, func(tx *bbolt.Tx) error {
		records := tx.Bucket(bucketRecords)
		c := tx.Bucket(bucketUnsettled).Cursor()
		k, _ := c.Seek([]byte(cursor))
		if k != nil && string(k) == cursor {
			k, _ = c.Next()
		}
		for ; k != nil; k, _ = c.Next() {
			if limit > 0 && len(page) == limit {
				next = page[limit-1].ID
				return nil
			}
			rec, err := load(records, string(k))
			if err == nil && rec.Version == 0 {
				err = fmt.Errorf("%w: an unsettled key has no record", ErrCorrupt)
			}
			if err != nil {
				return err
			}
			page = append(page, rec)
		}
		return nil
	})
	if err != nil {
		return nil, "", err
	}
	return page, next, nil
}

// sweepChunk bounds what one commit removes, so that writers do not wait long behind it.
const sweepChunk = 64

// Sweep implements [resilience.KeyStore], in commits of at most 64 removals that writers share. It reads what has expired
// and nothing else. pinned is called without any lock. What is pinned is asked for in each sweep again.
func (s *Store) Sweep(ctx context.Context, limit int, pinned func(id string) bool) (removed int, err error) {
	now := s.Now()
	var at []byte
	for removed < limit {
		due, err := s.due(ctx, now, at)
		if err != nil {
			return removed, err
		}
		if len(due) == 0 {
			break
		}
		at = due[len(due)-1]
		var victims [][]byte
		for _, k := range due {
			if len(victims) < limit-removed && (pinned == nil || !pinned(string(k[expiryLen:]))) {
				victims = append(victims, k)
			}
		}
		n, err := s.removeExpired(ctx, victims)
		removed += n
		if err != nil {
			return removed, err
		}
	}
	return removed, nil
}

// due returns the next keys of the expiry bucket, after the one at which the last chunk ended.
func (s *Store) due(ctx context.Context, now time.Time, at []byte) (keys [][]byte, err error) {
	end := expiryKey(now, "")
	err = s.view(ctx, func(tx *bbolt.Tx) error {
		c := tx.Bucket(bucketExpires).Cursor()
		k, _ := c.Seek(at)
		if k != nil && bytes.Equal(k, at) {
			k, _ = c.Next()
		}
		for ; k != nil && len(keys) < sweepChunk && bytes.Compare(k[:expiryLen], end) <= 0; k, _ = c.Next() {
			keys = append(keys, bytes.Clone(k))
		}
		return nil
	})
	return keys, err
}

// removeExpired removes those that still expire then: one that was claimed anew stands there no longer.
func (s *Store) removeExpired(ctx context.Context, keys [][]byte) (removed int, err error) {
	if len(keys) == 0 {
		return 0, nil
	}
	err = s.do(ctx, 0, func(b *batch) error {
		for _, k := range keys {
			if b.expires.Get(k) == nil {
				continue
			}
			id := k[expiryLen:]
			if err := errors.Join(b.expires.Delete(k), b.records.Delete(id)); err != nil {
				return err
			}
			b.keys--
			removed++
		}
		b.changed = removed > 0
		return nil
	})
	if err != nil {
		return 0, err
	}
	return removed, nil
}

// expiryLen is how long the time in a key of the expiry bucket is.
const expiryLen = 12

// expiryKey sorts by time, then by id.
func expiryKey(at time.Time, id string) []byte {
	k := make([]byte, expiryLen, expiryLen+len(id))
	binary.BigEndian.PutUint64(k, uint64(at.Unix())^1<<63)     //nolint:gosec // so that the sign sorts
	binary.BigEndian.PutUint32(k[8:], uint32(at.Nanosecond())) //nolint:gosec // 0 to 999999999
	return append(k, id...)
}

func finished(rec resilience.Record) bool {
	return rec.State == resilience.KeyConfirmed || rec.State == resilience.KeyNotApplied
}

// Now implements [resilience.KeyStore]: the wall clock as it was when the store was opened, and the time since. A clock
// that is set while the process runs moves no lease and no expiry; one that is set between two runs does.
func (s *Store) Now() time.Time { return s.opened.Add(time.Since(s.opened)).Round(0) }

// Capabilities implements [resilience.KeyStore].
func (s *Store) Capabilities() resilience.Capabilities {
	return resilience.Capabilities{Durable: true, Linearizable: true}
}

// Stats is a snapshot; Commits and Writes run from Open.
type Stats struct {
	// Keys is how many records there are, Unsettled how many of them are claimed, being sent, in doubt or disputed.
	Keys, Unsettled int64
	// Commits counts syncs of the file, Writes the calls that changed something: their ratio is how many share one.
	// LargestCommit is the most that did.
	Commits, Writes, LargestCommit int64
	// Queued are the writes that wait for a commit now.
	Queued int
	// FileBytes is the size of the file, which never shrinks; FreeBytes of it will be used again.
	FileBytes, FreeBytes int64
	// Broken says why the store refuses everything: a commit failed and left what is on the disk unknown. nil: it works.
	Broken error
}

// Stats may be called at any time, also after Close.
func (s *Store) Stats() Stats {
	st := Stats{
		Keys: s.keys.Load(), Unsettled: s.unsettled.Load(),
		Commits: s.commits.Load(), Writes: s.writes.Load(), LargestCommit: s.largest.Load(),
	}
	s.mu.Lock()
	st.Queued, st.Broken = len(s.queue), s.broken
	s.mu.Unlock()
	_ = s.view(context.Background(), func(tx *bbolt.Tx) error { // closed: the sizes are zero
		info, err := os.Stat(s.db.Path())
		if err != nil {
			return err
		}
		st.FileBytes = info.Size() // of which pages from tx.Size() on were never used
		free := s.db.Stats()
		st.FreeBytes = int64(free.FreePageN+free.PendingPageN)*int64(s.db.Info().PageSize) + info.Size() - tx.Size()
		return nil
	})
	return st
}
