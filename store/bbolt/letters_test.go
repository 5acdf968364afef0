package boltstore

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"testing"
	"time"

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

func sampleLetter() resilience.Letter {
	at := time.Date(2026, 11, 23, 14, 0, 0, 5, time.UTC)
	return resilience.Letter{
		ID: "id", Operation: "op", Key: "k", Named: true,
		Call: resilience.Call{
			Operation: "co", Effect: resilience.EffectOnce, Priority: resilience.PriorityBulk, Class: resilience.ClassLongPoll,
			Limit: -1, Budget: time.Second, Resource: "res",
		},
		Method: "POST", URL: "u\xff", Host: "h", Header: http.Header{"A": {"\xff", ""}, "B": {}}, Body: []byte{0, 255}, NeedsAuth: true,
		Cause: "c", Detail: "d", StatusCode: 503, Attempts: 2, Redrives: 3, First: at, Last: at, Next: at, Expires: at, NotAfter: at,
		InDoubt: true, DoubtSince: at, Parked: true, ParkedReason: "p", Superseded: true, Redacted: true,
		History: []resilience.LetterAttempt{{Time: at, Cause: "c", Detail: "d", StatusCode: 503}, {}},
	}
}

// Every field is stored: one that is added to Letter must get a number here.
func TestLetters_EveryField(t *testing.T) {
	v := reflect.ValueOf(sampleLetter())
	for i := range v.NumField() {
		name := v.Type().Field(i).Name
		require.Equal(t, name == "Leased", v.Field(i).IsZero(), "sampleLetter leaves Letter.%s out", name)
	}
	got, err := decodeLetter("id", encodeLetter(sampleLetter()))
	require.NoError(t, err)
	require.Equal(t, sampleLetter(), got)
}

// What was written once can be read for ever.
func TestLetters_Version1(t *testing.T) {
	b, err := hex.DecodeString(goldenLetter)
	require.NoError(t, err)
	got, err := decodeLetter("id", b)
	require.NoError(t, err)
	first := sampleLetter()
	first.DoubtSince = time.Time{}
	require.Equal(t, first, got)
	require.Equal(t, goldenLetter, hex.EncodeToString(encodeLetter(first)))

	b, err = hex.DecodeString(goldenDoubtSince)
	require.NoError(t, err)
	got, err = decodeLetter("id", b)
	require.NoError(t, err)
	require.Equal(t, sampleLetter(), got)
	require.Equal(t, goldenDoubtSince, hex.EncodeToString(encodeLetter(sampleLetter())))
}

// goldenDoubtSince has every field, goldenLetter those that there were at first.
const goldenDoubtSince = "0101026f7002016b03000402636f050103060103070103080101090580a8d6b9070a037265730b04504f53540c0275ff0d01680e0a0201410201ff000142000f0200ff10001101631201641302ee071401041501061606c09ba2b00d051706c09ba2b00d051806c09ba2b00d051906c09ba2b00d051a06c09ba2b00d051b001c001d01701e001f00201502120106c09ba2b00d050201630301640402ee07002106c09ba2b00d05d3dd6af8"

const goldenLetter = "0101026f7002016b03000402636f050103060103070103080101090580a8d6b9070a037265730b04504f53540c0275ff0d01680e0a0201410201ff000142000f0200ff10001101631201641302ee071401041501061606c09ba2b00d051706c09ba2b00d051806c09ba2b00d051906c09ba2b00d051a06c09ba2b00d051b001c001d01701e001f00201502120106c09ba2b00d050201630301640402ee07002a88f1a5"

func TestLetters_NothingIsDroppedSilently(t *testing.T) {
	whole := encodeLetter(sampleLetter())
	content := whole[:len(whole)-4]
	newer := append([]byte(nil), content...)
	newer[0] = 2
	for _, b := range [][]byte{
		newer,
		append(append([]byte(nil), content...), 200, 1, 7),
		{letterEncoding, letterEffect, 1, 99},
		{letterEncoding, letterPriority, 1, 99},
		{letterEncoding, letterClass, 1, 99},
		{letterEncoding, letterEffect, 2, 0x81, 2}, // 257, which must not be read as 1
		{letterEncoding, letterPriority, 2, 0x81, 2},
		{letterEncoding, letterClass, 2, 0x81, 2},
		{letterEncoding, letterHistory, 5, 1, 3, 99, 1, 0},
	} {
		_, err := decodeLetter("id", sealed("id", b))
		require.ErrorIs(t, err, ErrNewer)
	}
	_, err := decodeLetter("other", whole)
	require.ErrorIs(t, err, ErrCorrupt)
	for i := range whole {
		for bit := range 8 {
			bad := append([]byte(nil), whole...)
			bad[i] ^= 1 << bit
			_, err := decodeLetter("id", bad)
			require.Error(t, err, "byte %d", i)
		}
		_, err := decodeLetter("id", whole[:i])
		require.Error(t, err)
	}
}

// Behind a checksum that fits, what makes no sense is damage all the same.
func TestLetters_NoSense(t *testing.T) {
	for name, b := range map[string][]byte{
		"a number that does not end":             {letterEncoding, letterStatus, 1, 0x80},
		"more than a number":                     {letterEncoding, letterStatus, 2, 2, 2},
		"a value where none belongs":             {letterEncoding, letterInDoubt, 1, 0},
		"a field twice":                          {letterEncoding, letterCause, 1, 'a', letterCause, 1, 'b'},
		"a field out of order":                   {letterEncoding, letterCause, 1, 'a', letterKey, 1, 'k'},
		"a field longer than the letter":         {letterEncoding, letterCause, 9, 'a'},
		"an attempt whose number does not end":   {letterEncoding, letterHistory, 5, 1, 3, attemptStatus, 1, 0x80},
		"an attempt with more than a number":     {letterEncoding, letterHistory, 6, 1, 4, attemptStatus, 2, 2, 2},
		"an attempt longer than the history":     {letterEncoding, letterHistory, 2, 1, 9},
		"fewer attempts than there should be":    {letterEncoding, letterHistory, 4, 2, 0},
		"more attempts than there should be":     {letterEncoding, letterHistory, 3, 1, 0, 0},
		"a field of an attempt that comes twice": {letterEncoding, letterHistory, 8, 1, 6, attemptStatus, 1, 2, attemptStatus, 1, 4},
	} {
		l, err := decodeLetter("id", sealed("id", b))
		require.ErrorIs(t, err, ErrCorrupt, name)
		require.Equal(t, resilience.Letter{}, l, name)
	}
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

func FuzzDecodeLetter(f *testing.F) {
	whole := encodeLetter(sampleLetter())
	f.Add(whole[:len(whole)-4])
	f.Add([]byte{letterEncoding, letterHistory, 5, 1, 3, attemptStatus, 1, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := decodeLetter("id", sealed("id", b))
		if err != nil {
			return
		}
		again, err := decodeLetter("id", encodeLetter(l))
		require.NoError(t, err)
		require.Equal(t, l, again)
	})
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
