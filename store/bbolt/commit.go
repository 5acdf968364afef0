package boltstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"runtime/debug"
	"slices"
	"strings"

	"go.etcd.io/bbolt"

	"github.com/retell-resilience/resilience"
	"github.com/retell-resilience/resilience/internal/codec"
)

// What one commit takes at most, so that nobody waits long for the writes of others.
const (
	maxBatch      = 512
	maxBatchBytes = 8 << 20
)

// work is something to be done in the next commit. Its run must leave the batch as it is when it returns what concerns it
// alone through its own variables; an error from run fails the whole batch.
type work struct {
	run  func(b *batch) error
	size int
	done chan struct{}
	err  error
}

func (w *work) finish(err error) {
	w.err = err
	close(w.done)
}

// batch is one transaction.
type batch struct {
	tx                          *bbolt.Tx
	records, unsettled, expires *bbolt.Bucket
	keys, open                  int64 // how many records there are, and how many are unsettled
	maxKeys                     int
	changed                     bool
}

// CompareAndSwap implements [resilience.KeyStore]. Ids have 1 to 1024 bytes. When it returns true the write is on the
// disk. After an error other than one of a context, of resilience.ErrStoreFull and of resilience.ErrClosed the write
// may have been made.
func (s *Store) CompareAndSwap(ctx context.Context, old uint64, rec resilience.Record) (version uint64, swapped bool, err error) {
	if n := len(rec.ID); n == 0 || n > maxID {
		return 0, false, fmt.Errorf("Record.ID: must have 1 to %d bytes, got %d", maxID, n)
	}
	if len(rec.Body) > maxBody {
		return 0, false, fmt.Errorf("Record.Body: must have at most %d bytes, got %d", maxBody, len(rec.Body))
	}
	// Who comes too late need not wait for a commit to hear it.
	if current, err := s.Load(ctx, rec.ID); err != nil || current.Version != old {
		return 0, false, err
	}
	var own error
	err = s.do(ctx, len(rec.Body), func(b *batch) error {
		var failure error
		version, swapped, own, failure = b.swap(old, rec)
		return failure
	})
	if err = errors.Join(err, own); err != nil {
		return 0, false, err
	}
	return version, swapped, nil
}

// swap is CompareAndSwap in a transaction. own is an error of this write alone, which then changed nothing.
func (b *batch) swap(old uint64, rec resilience.Record) (version uint64, swapped bool, own, failure error) {
	current, own := load(b.records, rec.ID)
	switch {
	case own != nil || current.Version != old:
		return 0, false, own, nil
	case rec.State == resilience.KeyFree:
		return 0, true, nil, b.remove(current)
	case old == 0 && b.maxKeys >= 0 && b.keys >= int64(b.maxKeys):
		return 0, false, resilience.ErrStoreFull, nil
	}
	version, failure = b.put(current, rec)
	return version, true, nil, failure
}

func (b *batch) remove(current resilience.Record) error {
	if current.Version == 0 {
		return nil
	}
	b.changed = true
	b.keys--
	return errors.Join(b.unlist(current), b.records.Delete([]byte(current.ID)))
}

func (b *batch) put(current, rec resilience.Record) (version uint64, err error) {
	b.changed = true
	if version, err = b.records.NextSequence(); err != nil { // it never comes again, whatever is removed
		return 0, err
	}
	rec.Version = version
	id := []byte(rec.ID)
	if current.Version == 0 {
		b.keys++
	} else if err = b.unlist(current); err != nil {
		return 0, err
	}
	if err = b.records.Put(id, codec.EncodeRecord(rec)); err != nil {
		return 0, err
	}
	if !finished(rec) {
		b.open++
		return version, b.unsettled.Put(id, nil)
	}
	return version, b.expires.Put(expiryKey(rec.Expires, rec.ID), nil)
}

// unlist takes a record out of the two lists.
func (b *batch) unlist(current resilience.Record) error {
	if !finished(current) {
		b.open--
		return b.unsettled.Delete([]byte(current.ID))
	}
	return b.expires.Delete(expiryKey(current.Expires, current.ID))
}

// do has something done in a commit, and returns when that is on the disk.
func (s *Store) do(ctx context.Context, size int, run func(b *batch) error) error {
	w := &work{run: run, size: size, done: make(chan struct{})}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return errClosed
	}
	s.queue = append(s.queue, w)
	s.mu.Unlock()
	select {
	case <-w.done:
	case s.turn <- struct{}{}:
		s.commitUntil(ctx, w)
		<-s.turn
	case <-ctx.Done():
		if s.withdraw(w) {
			return context.Cause(ctx)
		}
		<-w.done
	}
	return w.err
}

func (s *Store) withdraw(w *work) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(s.queue, w)
	if i >= 0 {
		s.queue = slices.Delete(s.queue, i, i+1)
	}
	return i >= 0
}

// commitUntil commits what is queued until w is done, or ctx has ended before it was begun. The turn is the caller's.
func (s *Store) commitUntil(ctx context.Context, w *work) {
	for {
		select {
		case <-w.done:
			return
		default:
		}
		if ctx.Err() != nil && s.withdraw(w) {
			w.err = context.Cause(ctx)
			return
		}
		s.commit(s.next())
	}
}

// next takes what goes into one commit.
func (s *Store) next() []*work {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, size := 0, 0
	for n < len(s.queue) && n < maxBatch && (n == 0 || size+s.queue[n].size <= maxBatchBytes) {
		size += s.queue[n].size
		n++
	}
	list := slices.Clone(s.queue[:n])
	s.queue = slices.Delete(s.queue, 0, n)
	return list
}

var errUnchanged = errors.New("nothing to write")

func (s *Store) commit(list []*work) {
	err := s.failed()
	if err == nil {
		err = s.transact(list)
	}
	for _, w := range list {
		w.finish(err)
	}
}

// transact does the work in one transaction. A batch that changes nothing costs no sync.
func (s *Store) transact(list []*work) error {
	var b *batch
	var id int
	writes := int64(0)
	err := guard(func() error {
		return s.db.Update(func(tx *bbolt.Tx) (err error) {
			id = tx.ID()
			if b, err = s.begin(tx); err != nil {
				return err
			}
			all := false
			for _, w := range list {
				b.changed = false
				if err := w.run(b); err != nil {
					return err
				}
				if b.changed {
					writes++
				}
				all = all || b.changed
			}
			if !all {
				return errUnchanged
			}
			return tx.Bucket(bucketMeta).Put(keyCounts, counts(b.keys, b.open))
		})
	})
	switch {
	case errors.Is(err, errUnchanged):
		return nil
	case err != nil:
		return s.commitFailed(id, err)
	}
	s.keys.Store(b.keys)
	s.unsettled.Store(b.open)
	s.commits.Add(1)
	s.writes.Add(writes)
	s.largest.Store(max(s.largest.Load(), writes))
	return nil
}

func (s *Store) begin(tx *bbolt.Tx) (*batch, error) {
	keys, open, err := readCounts(tx.Bucket(bucketMeta))
	b := &batch{
		tx: tx, records: tx.Bucket(bucketRecords), unsettled: tx.Bucket(bucketUnsettled), expires: tx.Bucket(bucketExpires),
		keys: keys, open: open, maxKeys: s.opts.MaxKeys,
	}
	return b, err
}

func counts(keys, open int64) []byte {
	b := binary.BigEndian.AppendUint64(nil, uint64(keys)) //nolint:gosec // never negative
	return binary.BigEndian.AppendUint64(b, uint64(open)) //nolint:gosec // never negative
}

func readCounts(meta *bbolt.Bucket) (keys, open int64, err error) {
	b := meta.Get(keyCounts)
	if len(b) != 16 {
		return 0, 0, fmt.Errorf("%w: the counts are missing", ErrCorrupt)
	}
	return int64(binary.BigEndian.Uint64(b)), int64(binary.BigEndian.Uint64(b[8:])), nil //nolint:gosec // as written
}

// commitFailed finds out whether the file is as it was before. If that is not certain, the store ends here: bbolt goes by
// what it remembers, and a page that it takes for free may be in use.
func (s *Store) commitFailed(id int, err error) error {
	err = fmt.Errorf("key store: commit: %w", err)
	if untouched(err) && s.lastCommit() < id {
		return err
	}
	s.fail(err)
	return err
}

// untouched reports whether a commit failed before it could refer to what it wrote: a file that could not grow or a page
// that could not be written, as on a full disk. A failed sync is none of these.
func untouched(err error) bool {
	var path *fs.PathError
	return (errors.As(err, &path) && path.Op == "write") || strings.Contains(err.Error(), "file resize error")
}

// lastCommit is the number of the last transaction that the file knows; it is too high to be true if that cannot be read.
func (s *Store) lastCommit() int {
	last := int(^uint(0) >> 1)
	_ = guard(func() error {
		return s.db.View(func(tx *bbolt.Tx) error {
			last = tx.ID()
			return nil
		})
	})
	return last
}

// guard turns a panic into an error: bbolt panics over pages that make no sense, and a page that cannot be read is a fault.
func guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("%w: %v", ErrCorrupt, v)
		}
	}()
	return f()
}
