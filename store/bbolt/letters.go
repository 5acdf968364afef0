package boltstore

import (
	"bytes"
	"context"
	"fmt"

	"go.etcd.io/bbolt"

	"github.com/retell-resilience/resilience"
	"github.com/retell-resilience/resilience/internal/codec"
)

// bucketLetters holds dead letters by id. It is made with the first one.
var bucketLetters = []byte("letters")

// Letters is the part of the file that keeps dead letters; it goes into resilience.DLQConfig.Store, of one queue at a
// time. Letters share commits, and so syncs, with keys: a letter costs its caller what a key costs. Ids have 1 to 1024
// bytes. MaxKeys does not bound them, DLQConfig does. What letters hold (bodies, with what they say about people) is in
// the file in clear, unless DLQConfig.Seal seals it.
//
// After an error other than one of a context or resilience.ErrClosed a write may have been made.
func (s *Store) Letters() resilience.LetterStore { return letters{s} }

type letters struct{ store *Store }

// Put implements [resilience.LetterStore]: when it returns nil the letter is on the disk.
func (l letters) Put(ctx context.Context, letter resilience.Letter) error {
	if len(letter.Body) > maxBody {
		return fmt.Errorf("Letter.Body: must have at most %d bytes, got %d", maxBody, len(letter.Body))
	}
	value := codec.EncodeLetter(letter)
	return l.do(ctx, letter.ID, len(value), func(b *batch) error {
		bucket, err := b.tx.CreateBucketIfNotExists(bucketLetters)
		if err != nil {
			return err
		}
		b.changed = true
		return bucket.Put([]byte(letter.ID), value)
	})
}

// Remove implements [resilience.LetterStore]: when it returns nil the removal is on the disk.
func (l letters) Remove(ctx context.Context, id string) error {
	return l.do(ctx, id, 0, func(b *batch) error {
		bucket := b.tx.Bucket(bucketLetters)
		if bucket == nil || bucket.Get([]byte(id)) == nil {
			return nil
		}
		b.changed = true
		return bucket.Delete([]byte(id))
	})
}

func (l letters) do(ctx context.Context, id string, size int, run func(b *batch) error) error {
	if n := len(id); n == 0 || n > maxID {
		return fmt.Errorf("Letter.ID: must have 1 to %d bytes, got %d", maxID, n)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return l.store.do(ctx, size, run)
}

// What Load reads at a time: nothing of the file is held while somebody does something with the letters.
const (
	loadLetters = 256
	loadBytes   = 4 << 20
)

// Load implements [resilience.LetterStore], in the order of ids. Letters that are put meanwhile may be among them or not.
func (l letters) Load(ctx context.Context, each func(resilience.Letter) error) error {
	var at []byte
	for {
		page, err := l.page(ctx, at)
		if err != nil || len(page) == 0 {
			return err
		}
		for _, letter := range page {
			if err := each(letter); err != nil {
				return err
			}
		}
		at = []byte(page[len(page)-1].ID)
	}
}

// page returns the next letters after the id at.
func (l letters) page(ctx context.Context, at []byte) (page []resilience.Letter, err error) {
	err = l.store.view(ctx, func(tx *bbolt.Tx) error {
		bucket := tx.Bucket(bucketLetters)
		if bucket == nil {
			return nil
		}
		c := bucket.Cursor()
		k, v := c.Seek(at)
		if k != nil && bytes.Equal(k, at) {
			k, v = c.Next()
		}
		for size := 0; k != nil && len(page) < loadLetters && size < loadBytes; k, v = c.Next() {
			letter, err := codec.DecodeLetter(string(k), v)
			if err != nil {
				return err
			}
			page = append(page, letter)
			size += len(v)
		}
		return nil
	})
	return page, err
}

// checkLetters reads every letter.
func checkLetters(tx *bbolt.Tx) error {
	bucket := tx.Bucket(bucketLetters)
	if bucket == nil {
		return nil
	}
	return bucket.ForEach(func(k, v []byte) error {
		_, err := codec.DecodeLetter(string(k), v)
		return err
	})
}
