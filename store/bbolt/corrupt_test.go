package boltstore

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.etcd.io/bbolt"

	"github.com/retell-resilience/resilience"
)

// soundFile is a store with some history; the last write is to a key of its own, because damage to the newest of the two
// pages that say what the file is leads back to the state before it.
func soundFile(t *testing.T) (content []byte, want map[string]string) {
	t.Helper()
	path := keysFile(t)
	s, err := Open(path, Options{})
	require.NoError(t, err)
	want = map[string]string{}
	for i := range 120 {
		rec := claim(fmt.Sprintf("key-%03d", i), fmt.Sprint("token", i))
		rec.State = resilience.KeyState(1 + i%6) //nolint:gosec // the states of a record
		rec.Expires = s.Now()
		rec.Body = make([]byte, i*10%700)
		rec.Version = swap(t, s, 0, rec)
		if i%10 == 0 {
			rec.State = resilience.KeyFree
			swap(t, s, rec.Version, rec)
			continue
		}
		want[rec.ID] = rec.Token
	}
	swap(t, s, 0, claim("last", "last"))
	require.NoError(t, s.Close())
	content, err = os.ReadFile(path) //nolint:gosec // a temporary file
	require.NoError(t, err)
	return content, want
}

// lastUsed is where the pages that are not used yet begin, which are zero.
func lastUsed(content []byte) int {
	n := len(content)
	for n > 0 && content[n-1] == 0 {
		n--
	}
	return (n + 4095) / 4096 * 4096
}

// requireSoundOrRefused opens the damaged file: it is refused, or everything is there.
func requireSoundOrRefused(t *testing.T, content []byte, want map[string]string, what string) (refused bool) {
	t.Helper()
	path := keysFile(t)
	require.NoError(t, os.WriteFile(path, content, 0o600))
	s, err := Open(path, Options{})
	if err != nil {
		require.True(t, errors.Is(err, ErrCorrupt) || errors.Is(err, ErrNewer), "%s: %v", what, err)
		after, err := os.ReadFile(path) //nolint:gosec // a temporary file
		require.NoError(t, err)
		require.Equal(t, content, after, "%s: a file that was refused was changed", what)
		return true
	}
	for i := range 3 { // what it writes goes to pages that are free
		rec := claim(fmt.Sprint("new", i), "a")
		rec.Body = make([]byte, 3000)
		swap(t, s, 0, rec)
	}
	for id, token := range want {
		rec, err := s.Load(t.Context(), id)
		require.NoError(t, err, "%s: %s", what, id)
		require.Equal(t, token, rec.Token, "%s: %s", what, id)
	}
	require.NoError(t, s.Close())
	return false
}

// Flip any byte: the file is refused, or nothing is lost. Never a panic, never a key that looks free.
func TestOpen_FlippedBytes(t *testing.T) {
	content, want := soundFile(t)
	step, refused := 263, 0
	if testing.Short() {
		step = 997
	}
	content = content[:min(len(content), lastUsed(content)+4096)]
	for i := 0; i < len(content); i += step {
		bad := append([]byte(nil), content...)
		bad[i] ^= 0xff
		if requireSoundOrRefused(t, bad, want, fmt.Sprintf("byte %d of %d", i, len(content))) {
			refused++
		}
	}
	require.Positive(t, refused)
	for page := 0; page < len(content); page += 4096 { // what says what a page is
		for i := page; i < min(page+64, len(content)); i += 5 {
			bad := append([]byte(nil), content...)
			bad[i] ^= 1 << (i % 8)
			requireSoundOrRefused(t, bad, want, fmt.Sprintf("byte %d of %d", i, len(content)))
		}
	}
}

func TestOpen_CutFile(t *testing.T) {
	content, want := soundFile(t)
	for n := 1; n < len(content); n += 1013 {
		requireSoundOrRefused(t, content[:n], want, fmt.Sprintf("cut to %d of %d", n, len(content)))
	}
	for _, n := range []int{0, 1, 100, 4096, 8192, 12288, 16384} {
		require.True(t, requireSoundOrRefused(t, content[:n], want, fmt.Sprintf("cut to %d", n)))
	}
}

func TestOpen_NotAKeyStore(t *testing.T) {
	for _, content := range []string{"x", "this is a text\n", string(make([]byte, 64<<10))} {
		path := keysFile(t)
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		_, err := Open(path, Options{})
		require.ErrorIs(t, err, ErrCorrupt)
	}
	path := keysFile(t)
	db, err := bbolt.Open(path, 0o600, nil)
	require.NoError(t, err)
	require.NoError(t, db.Update(func(tx *bbolt.Tx) error {
		_, err := tx.CreateBucket([]byte("somebody else's"))
		return err
	}))
	require.NoError(t, db.Close())
	_, err = Open(path, Options{})
	require.ErrorIs(t, err, ErrCorrupt)
	require.ErrorContains(t, err, "not a key store")
}

// edit changes a closed store behind its back.
func edit(t *testing.T, path string, f func(tx *bbolt.Tx) error) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, nil)
	require.NoError(t, err)
	require.NoError(t, db.Update(f))
	require.NoError(t, db.Close())
}

// What the pages hold can be whole and wrong.
func TestOpen_ListsThatDoNotFit(t *testing.T) {
	for name, c := range map[string]struct {
		edit func(tx *bbolt.Tx) error
		want error
	}{
		"unsettled key not listed": {func(tx *bbolt.Tx) error { return tx.Bucket(bucketUnsettled).Delete([]byte("open")) }, ErrCorrupt},
		"listed without a record":  {func(tx *bbolt.Tx) error { return tx.Bucket(bucketUnsettled).Put([]byte("ghost"), nil) }, ErrCorrupt},
		"expiry not listed": {func(tx *bbolt.Tx) error {
			k, _ := tx.Bucket(bucketExpires).Cursor().First()
			return tx.Bucket(bucketExpires).Delete(k)
		}, ErrCorrupt},
		"another unsettled key listed": {func(tx *bbolt.Tx) error {
			b := tx.Bucket(bucketUnsettled)
			return errors.Join(b.Delete([]byte("open")), b.Put([]byte("ghost"), nil))
		}, ErrCorrupt},
		"another expiry listed": {func(tx *bbolt.Tx) error {
			b := tx.Bucket(bucketExpires)
			k, _ := b.Cursor().First()
			return errors.Join(b.Delete(k), b.Put(append(bytes.Clone(k), 'x'), nil))
		}, ErrCorrupt},
		"record gone":                           {func(tx *bbolt.Tx) error { return tx.Bucket(bucketRecords).Delete([]byte("done")) }, ErrCorrupt},
		"versions begin again":                  {func(tx *bbolt.Tx) error { return tx.Bucket(bucketRecords).SetSequence(0) }, ErrCorrupt},
		"record under another":                  {func(tx *bbolt.Tx) error { return moveRecord(tx) }, ErrCorrupt},
		"bucket gone":                           {func(tx *bbolt.Tx) error { return tx.DeleteBucket(bucketExpires) }, ErrCorrupt},
		"counts gone":                           {func(tx *bbolt.Tx) error { return tx.Bucket(bucketMeta).Delete(keyCounts) }, ErrCorrupt},
		"more unsettled counted than there are": {func(tx *bbolt.Tx) error { return tx.Bucket(bucketMeta).Put(keyCounts, counts(2, 2)) }, ErrCorrupt},
		"fewer records counted than there are":  {func(tx *bbolt.Tx) error { return tx.Bucket(bucketMeta).Put(keyCounts, counts(1, 1)) }, ErrCorrupt},
		"format of the future":                  {func(tx *bbolt.Tx) error { return tx.Bucket(bucketMeta).Put(keyFormat, []byte{2}) }, ErrNewer},
		"record of the future": {func(tx *bbolt.Tx) error {
			return tx.Bucket(bucketRecords).Put([]byte("done"), sealed("done", []byte{2, 1, 1, 1}))
		}, ErrNewer},
		"a format of nothing":   {func(tx *bbolt.Tx) error { return tx.Bucket(bucketMeta).Put(keyFormat, []byte{0}) }, ErrCorrupt},
		"two formats":           {func(tx *bbolt.Tx) error { return tx.Bucket(bucketMeta).Put(keyFormat, []byte{1, 1}) }, ErrCorrupt},
		"no format":             {func(tx *bbolt.Tx) error { return tx.Bucket(bucketMeta).Delete(keyFormat) }, ErrCorrupt},
		"nothing changed, fits": {func(*bbolt.Tx) error { return nil }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			path := keysFile(t)
			s, err := Open(path, Options{})
			require.NoError(t, err)
			swap(t, s, 0, claim("open", "a"))
			done := claim("done", "a")
			done.State, done.Expires = resilience.KeyConfirmed, s.Now()
			swap(t, s, 0, done)
			require.NoError(t, s.Close())
			edit(t, path, c.edit)
			s, err = Open(path, Options{})
			if c.want == nil {
				require.NoError(t, err)
				require.NoError(t, s.Close())
				return
			}
			require.ErrorIs(t, err, c.want)
		})
	}
}

func moveRecord(tx *bbolt.Tx) error {
	records := tx.Bucket(bucketRecords)
	value := append([]byte(nil), records.Get([]byte("done"))...)
	if err := records.Delete([]byte("done")); err != nil {
		return err
	}
	return records.Put([]byte("dome"), value)
}

// A store that was opened without the check finds a damaged record when it is read, and does not take its key for free.
func TestSkipCheck_DamageShowsWhenRead(t *testing.T) {
	path := keysFile(t)
	s, err := Open(path, Options{})
	require.NoError(t, err)
	swap(t, s, 0, claim("bad", "a"))
	swap(t, s, 0, claim("good", "a"))
	require.NoError(t, s.Close())
	edit(t, path, func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketRecords).Put([]byte("bad"), []byte{1, 2, 3, 4, 5, 6, 7})
	})
	s = open(t, path, Options{SkipCheck: true})
	_, err = s.Load(t.Context(), "bad")
	require.ErrorIs(t, err, ErrCorrupt)
	_, swapped, err := s.CompareAndSwap(t.Context(), 0, claim("bad", "b"))
	require.ErrorIs(t, err, ErrCorrupt)
	require.False(t, swapped)
	var own error
	require.NoError(t, s.do(t.Context(), 0, func(b *batch) (failure error) { // as if it had become so since Load
		_, swapped, own, failure = b.swap(0, claim("bad", "b"))
		return failure
	}))
	require.ErrorIs(t, own, ErrCorrupt)
	require.False(t, swapped)
	_, _, err = s.Unsettled(t.Context(), "", 10)
	require.ErrorIs(t, err, ErrCorrupt)
	rec, err := s.Load(t.Context(), "good")
	require.NoError(t, err)
	swap(t, s, rec.Version, claim("good", "b"))
}

// Nor is what should be looked after left out of the list of it.
func TestSkipCheck_UnsettledLeavesNothingOut(t *testing.T) {
	for name, c := range map[string]struct {
		edit func(tx *bbolt.Tx) error
		want error
	}{
		"no record": {func(tx *bbolt.Tx) error { return tx.Bucket(bucketRecords).Delete([]byte("open")) }, ErrCorrupt},
		"a record of the future": {func(tx *bbolt.Tx) error {
			return tx.Bucket(bucketRecords).Put([]byte("open"), sealed("open", []byte{2, 1, 1, 1}))
		}, ErrNewer},
	} {
		t.Run(name, func(t *testing.T) {
			path := keysFile(t)
			s, err := Open(path, Options{})
			require.NoError(t, err)
			swap(t, s, 0, claim("open", "a"))
			require.NoError(t, s.Close())
			edit(t, path, c.edit)
			s = open(t, path, Options{SkipCheck: true})
			page, _, err := s.Unsettled(t.Context(), "", 10)
			require.ErrorIs(t, err, c.want)
			require.Empty(t, page)
		})
	}
}

// A page of an open file that cannot be read any more, as when the file was cut off, is an error and not the end of the
// process, and no call after it hangs.
func TestLoad_PageThatCannotBeRead(t *testing.T) {
	for name, left := range map[string]int64{"a record's": 2 * int64(os.Getpagesize()), "the first": 0} {
		t.Run(name, func(t *testing.T) {
			path := keysFile(t)
			s, err := Open(path, Options{})
			require.NoError(t, err)
			for i := range 50 {
				rec := claim(fmt.Sprint(i), "a")
				rec.Body = make([]byte, 10_000)
				swap(t, s, 0, rec)
			}
			require.NoError(t, os.Truncate(path, left))
			over := make(chan struct{})
			go func() {
				defer close(over)
				for range 3 {
					_, err := s.Load(t.Context(), "7")
					assert.ErrorIs(t, err, ErrCorrupt)
				}
				_ = s.Close()
			}()
			select {
			case <-over:
			case <-time.After(10 * time.Second):
				t.Fatal("it hangs")
			}
		})
	}
}
