package boltstore

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/bbolt"

	"github.com/retell-resilience/resilience"
	"github.com/retell-resilience/resilience/storetest"
)

func TestLetters_Conformance(t *testing.T) {
	stores, paths := map[resilience.LetterStore]*Store{}, map[resilience.LetterStore]string{}
	start := func(t *testing.T, path string) resilience.LetterStore {
		s := open(t, path, Options{})
		l := s.Letters()
		stores[l], paths[l] = s, path
		return l
	}
	storetest.RunLetters(t, func(t *testing.T) resilience.LetterStore {
		return start(t, filepath.Join(t.TempDir(), "keys.db"))
	}, storetest.ReopenLetters(func(t *testing.T, old resilience.LetterStore) resilience.LetterStore {
		require.NoError(t, stores[old].Close())
		return start(t, paths[old])
	}))
}

// Load reads so many letters at a time, and so many bytes, whatever there are: a page and the next make all of them.
func TestLetters_LoadedInPages(t *testing.T) {
	for name, c := range map[string]struct{ letters, body, page int }{
		"many":  {letters: loadLetters + 1, body: 1, page: loadLetters},
		"large": {letters: 5, body: loadBytes / 2, page: 2},
		"huge":  {letters: 2, body: loadBytes, page: 1},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, keysFile(t), Options{})
			var wg sync.WaitGroup
			for i := range c.letters {
				wg.Go(func() {
					letter := resilience.Letter{ID: fmt.Sprintf("%04d", i), Body: make([]byte, c.body)}
					if err := s.Letters().Put(t.Context(), letter); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			page, err := letters{s}.page(t.Context(), nil)
			require.NoError(t, err)
			require.Len(t, page, c.page)
			n := 0
			require.NoError(t, s.Letters().Load(t.Context(), func(l resilience.Letter) error {
				require.Equal(t, fmt.Sprintf("%04d", n), l.ID)
				n++
				return s.Letters().Put(t.Context(), l) // nothing is held meanwhile
			}))
			require.Equal(t, c.letters, n)
		})
	}
}

// A damaged letter, or one of a newer version, is found when the file is opened; with SkipCheck, when it is loaded.
func TestLetters_Damage(t *testing.T) {
	for name, c := range map[string]struct {
		value []byte
		want  error
	}{
		"damaged": {[]byte("nonsense"), ErrCorrupt},
		"newer":   {sealed("x", []byte{2}), ErrNewer},
	} {
		t.Run(name, func(t *testing.T) {
			path := keysFile(t)
			s := open(t, path, Options{})
			require.NoError(t, s.Letters().Put(t.Context(), sampleLetter()))
			require.NoError(t, s.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucketLetters).Put([]byte("x"), c.value) }))
			require.NoError(t, s.Close())
			_, err := Open(path, Options{})
			require.ErrorIs(t, err, c.want)
			s = open(t, path, Options{SkipCheck: true})
			require.ErrorIs(t, s.Letters().Load(t.Context(), func(resilience.Letter) error { return nil }), c.want)
			_, err = resilience.NewDLQ(resilience.DLQConfig{Store: s.Letters()})
			require.ErrorIs(t, err, c.want)
		})
	}
}

func TestLetters_ShareCommitsWithKeys(t *testing.T) {
	s := open(t, keysFile(t), Options{})
	const n = 200
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			l := sampleLetter()
			l.ID = fmt.Sprint(i)
			require.NoError(t, s.Letters().Put(context.Background(), l))
		})
		wg.Go(func() { swap(t, s, 0, claim(fmt.Sprint(i), "t")) })
	}
	wg.Wait()
	st := s.Stats()
	require.EqualValues(t, 2*n, st.Writes)
	require.EqualValues(t, n, st.Keys)
	require.Less(t, st.Commits, st.Writes)
	before := s.Stats().Commits
	require.NoError(t, s.Letters().Remove(t.Context(), "nobody"))
	require.Equal(t, before, s.Stats().Commits, "what changes nothing costs no sync")
}

func TestLetters_BadIDsAndClosed(t *testing.T) {
	s := open(t, keysFile(t), Options{})
	l := s.Letters()
	for _, id := range []string{"", string(make([]byte, 1025))} {
		require.ErrorContains(t, l.Put(t.Context(), resilience.Letter{ID: id}), "Letter.ID")
		require.ErrorContains(t, l.Remove(t.Context(), id), "Letter.ID")
	}
	require.NoError(t, s.Close())
	require.ErrorIs(t, l.Put(t.Context(), resilience.Letter{ID: "x"}), resilience.ErrClosed)
	require.ErrorIs(t, l.Remove(t.Context(), "x"), resilience.ErrClosed)
	require.ErrorIs(t, l.Load(t.Context(), func(resilience.Letter) error { return nil }), resilience.ErrClosed)
}

// The room of letters that have gone is used again: a file is as large as the most letters that were ever in it, however
// many went through.
func TestLetters_TheFileDoesNotGrow(t *testing.T) {
	path := keysFile(t)
	s := open(t, path, Options{})
	l := s.Letters()
	wave := func(n int) {
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() {
				letter := sampleLetter()
				letter.ID, letter.Body = fmt.Sprintf("wave-%d-%d", n, i), make([]byte, 10_000)
				for range 3 { // as many changes as a redrive makes
					if err := l.Put(t.Context(), letter); err != nil {
						t.Error(err)
					}
				}
				if err := l.Remove(t.Context(), letter.ID); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	size := func() int64 {
		info, err := os.Stat(path)
		require.NoError(t, err)
		return info.Size()
	}
	wave(0)
	wave(1)
	before := size()
	for n := range 10 {
		wave(2 + n)
	}
	require.LessOrEqual(t, size(), 2*before, "ten times as many letters went through")
}
