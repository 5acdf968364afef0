package boltstore

import (
	"cmp"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/retell-resilience/resilience/internal/codec"
)

// Open opens the key store in the file at path, and creates it if there is none; its folder must exist. It reads the
// whole file and refuses one that is damaged ([ErrCorrupt]), written by a newer version ([ErrNewer]) or open elsewhere
// ([ErrLocked]). An empty file counts as damaged: Open never leaves one behind.
func Open(path string, opts Options) (*Store, error) {
	s, err := openStore(path, opts)
	if err != nil {
		return nil, fmt.Errorf("key store %s: %w", path, err)
	}
	return s, nil
}

func openStore(path string, opts Options) (*Store, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		if err := create(path, opts); err != nil {
			return nil, fmt.Errorf("creating the file: %w", err)
		}
	} else if err != nil {
		return nil, err
	}
	if err := inspect(path, opts); err != nil {
		return nil, err
	}
	db, err := openFile(path, opts, false)
	if err != nil {
		return nil, err
	}
	s := &Store{db: db, opts: opts, opened: time.Now(), turn: make(chan struct{}, 1)}
	if err := guard(func() error { return db.View(s.count) }); err != nil {
		_ = db.Close()
		return nil, err
	}
	return s, nil
}

func (s *Store) count(tx *bbolt.Tx) error {
	if err := checkFormat(tx); err != nil { // once more, since somebody else may have had the file in between
		return err
	}
	keys, open, err := readCounts(tx.Bucket(bucketMeta))
	s.keys.Store(keys)
	s.unsettled.Store(open)
	return err
}

// openFile opens with bbolt, says what is wrong, and lets go of the file whatever happens.
func openFile(path string, opts Options, readOnly bool) (db *bbolt.DB, err error) {
	var file *os.File
	err = guard(func() (err error) {
		db, err = bbolt.Open(path, opts.Mode, &bbolt.Options{
			Timeout: opts.LockTimeout, ReadOnly: readOnly, FreelistType: bbolt.FreelistMapType,
			// The list of free pages grows with the file; without it the price of a commit does not.
			NoFreelistSync: true,
			OpenFile: func(name string, flag int, mode fs.FileMode) (*os.File, error) {
				f, err := os.OpenFile(name, flag, mode) //nolint:gosec // the user's path
				file = f
				return f, err
			},
		})
		return err
	})
	switch {
	case err == nil:
		return db, nil
	case errors.Is(err, berrors.ErrTimeout):
		return nil, ErrLocked
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrChecksum), errors.Is(err, berrors.ErrVersionMismatch),
		strings.Contains(err.Error(), "file size too small"):
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	case errors.Is(err, ErrCorrupt) && file != nil:
		_ = file.Close() // bbolt was left in the middle
	}
	return nil, err
}

// create makes the file under another name and gives it its own when it is complete and on the disk: a process that dies
// meanwhile leaves no half of a store behind, and of two that do it at once one wins.
func create(path string, opts Options) error {
	temp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".new-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(temp.Name()) }()
	if err := errors.Join(temp.Chmod(opts.Mode), temp.Close()); err != nil {
		return err
	}
	db, err := openFile(temp.Name(), opts, false)
	if err != nil {
		return err
	}
	if err := errors.Join(db.Update(layOut), db.Close()); err != nil {
		return err
	}
	if err := os.Link(temp.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func layOut(tx *bbolt.Tx) error {
	for _, name := range [][]byte{bucketRecords, bucketUnsettled, bucketExpires} {
		if _, err := tx.CreateBucket(name); err != nil {
			return err
		}
	}
	meta, err := tx.CreateBucket(bucketMeta)
	if err != nil {
		return err
	}
	return errors.Join(meta.Put(keyFormat, []byte{format}), meta.Put(keyCounts, counts(0, 0)))
}

// syncDir makes the name of a new file as durable as the file.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil // a folder cannot be synced there
	}
	d, err := os.Open(dir) //nolint:gosec // the user's path
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// inspect reads the file before anything is written to it: what bbolt does with a damaged tree when it opens one for
// writing cannot be caught.
func inspect(path string, opts Options) error {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return fmt.Errorf("%w: it is not a file", ErrCorrupt)
	case info.Size() == 0:
		return fmt.Errorf("%w: it is empty", ErrCorrupt)
	}
	db, err := openFile(path, opts, true) // which also keeps others from writing
	if err != nil {
		return err
	}
	file, err := os.Open(path) //nolint:gosec // the user's path
	if err != nil {
		return errors.Join(err, db.Close())
	}
	defer func() { _ = file.Close() }()
	defer func() { _ = db.Close() }()
	return guard(func() error {
		return db.View(func(tx *bbolt.Tx) error {
			if info, err := os.Stat(path); err != nil || info.Size() < tx.Size() {
				return errors.Join(fmt.Errorf("%w: it was cut off", ErrCorrupt), err)
			}
			if opts.SkipCheck {
				return checkFormat(tx)
			}
			if number, err := checkPages(file, db.Info().PageSize); err != nil || number != uint64(tx.ID()) { //nolint:gosec // not negative
				return cmp.Or(err, damaged("it is not what it was a moment ago"))
			}
			if err := checkFormat(tx); err != nil {
				return err
			}
			return cmp.Or(check(tx), checkLetters(tx))
		})
	})
}

func checkFormat(tx *bbolt.Tx) error {
	meta := tx.Bucket(bucketMeta)
	if meta == nil {
		return fmt.Errorf("%w: it is not a key store", ErrCorrupt)
	}
	switch f := meta.Get(keyFormat); {
	case len(f) != 1 || f[0] == 0:
		return fmt.Errorf("%w: it is not a key store", ErrCorrupt)
	case f[0] > format:
		return fmt.Errorf("%w: format %d", ErrNewer, f[0])
	}
	for _, name := range [][]byte{bucketRecords, bucketUnsettled, bucketExpires} {
		if tx.Bucket(name) == nil {
			return fmt.Errorf("%w: the bucket %q is missing", ErrCorrupt, name)
		}
	}
	return nil
}

// check reads every record and compares the two lists with what the records say.
func check(tx *bbolt.Tx) error {
	keys, open, err := readCounts(tx.Bucket(bucketMeta))
	if err != nil {
		return err
	}
	seed := maphash.MakeSeed()
	var unsettled, expires tally
	var records int64
	newest := uint64(0)
	err = tx.Bucket(bucketRecords).ForEach(func(k, v []byte) error {
		rec, err := codec.DecodeRecord(string(k), v)
		if err != nil {
			return err
		}
		records++
		newest = max(newest, rec.Version)
		if !finished(rec) {
			unsettled.add(seed, k)
		} else {
			expires.add(seed, expiryKey(rec.Expires, rec.ID))
		}
		return nil
	})
	if err != nil {
		return err
	}
	var listed, listedExpires tally
	err = errors.Join(
		tx.Bucket(bucketUnsettled).ForEach(func(k, _ []byte) error { listed.add(seed, k); return nil }),
		tx.Bucket(bucketExpires).ForEach(func(k, _ []byte) error { listedExpires.add(seed, k); return nil }),
	)
	switch {
	case err != nil:
		return err
	case records != keys || unsettled.n != open:
		return fmt.Errorf("%w: there are %d records, %d of them unsettled, where %d and %d should be", ErrCorrupt, records, unsettled.n, keys, open)
	case listed != unsettled:
		return fmt.Errorf("%w: the list of unsettled keys does not fit the records", ErrCorrupt)
	case listedExpires != expires:
		return fmt.Errorf("%w: the list of finished keys does not fit the records", ErrCorrupt)
	case newest > tx.Bucket(bucketRecords).Sequence():
		return fmt.Errorf("%w: a record is newer than the last write", ErrCorrupt)
	}
	return nil
}

// tally stands for a set of keys, in whatever order they came.
type tally struct {
	n   int64
	sum uint64
}

func (t *tally) add(seed maphash.Seed, k []byte) {
	t.n++
	t.sum += maphash.Bytes(seed, k)
}
