package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
)

// LetterOption tells [RunLetters] what a store can do.
type LetterOption func(*letterSuite)

// ReopenLetters lets the suite check durability, and cannot be left out: it is what a LetterStore is for. reopen closes
// the store, or lets go of it in the roughest way that the store claims to survive, and returns one over the same data.
func ReopenLetters(reopen func(t *testing.T, old resilience.LetterStore) resilience.LetterStore) LetterOption {
	return func(s *letterSuite) { s.reopen = reopen }
}

// LetterPrecision is for stores that keep times less exactly than to the nanosecond, as [Precision] is.
func LetterPrecision(d time.Duration) LetterOption {
	return func(s *letterSuite) { s.precision = d }
}

type letterSuite struct {
	open      func(t *testing.T) resilience.LetterStore
	reopen    func(t *testing.T, old resilience.LetterStore) resilience.LetterStore
	precision time.Duration
}

// RunLetters is the conformance suite of [resilience.LetterStore]. open makes an empty store; what must be closed it leaves
// to t.Cleanup. Each check gets a store of its own.
//
//	storetest.RunLetters(t, func(t *testing.T) resilience.LetterStore { return open(t, t.TempDir()) },
//		storetest.ReopenLetters(reopen))
func RunLetters(t *testing.T, open func(t *testing.T) resilience.LetterStore, opts ...LetterOption) {
	t.Helper()
	s := &letterSuite{open: open}
	for _, o := range opts {
		o(s)
	}
	for _, c := range []check{
		{"Empty", s.empty},
		{"Fields", s.fields},
		{"Replace", s.replace},
		{"Remove", s.remove},
		{"LoadOnce", s.loadOnce},
		{"LoadStops", s.loadStops},
		{"CopiesIn", s.copiesIn},
		{"CopiesOut", s.copiesOut},
		{"IDs", s.ids},
		{"OddBytes", s.oddBytes},
		{"LargeBodies", s.largeBodies},
		{"Context", s.endedContext},
		{"Concurrent", s.concurrent},
		{"Atomic", s.atomic},
		{"Durable", s.durable},
		{"DurableUnderWrites", s.durableUnderWrites},
	} {
		t.Run(c.name, c.run)
	}
}

// letterStore wraps the one under test with what nearly every check needs.
type letterStore struct {
	resilience.LetterStore
	t *testing.T
}

func (s *letterSuite) start(t *testing.T) letterStore {
	t.Helper()
	return letterStore{s.open(t), t}
}

func (s letterStore) put(l resilience.Letter) {
	s.t.Helper()
	require.NoError(s.t, s.Put(s.t.Context(), l), "Put")
}

func (s letterStore) remove(id string) {
	s.t.Helper()
	require.NoError(s.t, s.Remove(s.t.Context(), id), "Remove")
}

// all loads everything, and takes nothing twice.
func (s letterStore) all() map[string]resilience.Letter {
	s.t.Helper()
	all, err := loadAll(s.t.Context(), s)
	require.NoError(s.t, err)
	return all
}

// loadAll is all for goroutines, which may not fail a test at once.
func loadAll(ctx context.Context, s resilience.LetterStore) (map[string]resilience.Letter, error) {
	all := map[string]resilience.Letter{}
	err := s.Load(ctx, func(l resilience.Letter) error {
		if _, twice := all[l.ID]; twice {
			return fmt.Errorf("letter %q was loaded twice", l.ID)
		}
		all[l.ID] = l
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("Load: %w", err)
	}
	return all, nil
}

// requireAll compares what is stored with what should be.
func (s *letterSuite) requireAll(st letterStore, want map[string]resilience.Letter) {
	st.t.Helper()
	got := st.all()
	for id, l := range want {
		require.Contains(st.t, got, id, "a letter is missing")
		s.requireSame(st.t, "Letter", reflect.ValueOf(l), reflect.ValueOf(got[id]))
	}
	require.Len(st.t, got, len(want), "there are letters that should not be there")
}

// fullLetter is a letter in which no field is zero that is stored, so that none can get lost unseen. n tells letters apart.
func fullLetter(t *testing.T, n int) resilience.Letter {
	t.Helper()
	var l resilience.Letter
	fill(t, reflect.ValueOf(&l).Elem(), "Letter", n)
	l.ID = name("letter", n)
	return l
}

// fill gives every field a value; see LetterStore for the two that are never set.
func fill(t *testing.T, v reflect.Value, path string, n int) {
	t.Helper()
	label := fmt.Sprintf("%s/%d/ü日本", path, n)
	switch p := v.Addr().Interface().(type) {
	case *string:
		*p = label
	case *bool:
		*p = path != "Letter.Leased"
	case *int:
		*p = 1<<40 + 1000*len(path) + n
	case *time.Duration:
		*p = time.Duration(1<<60 + 1000*len(path) + n)
	case *resilience.Effect:
		*p = resilience.EffectRead + resilience.Effect(n%3)
	case *resilience.Priority:
		*p = resilience.PriorityNormal + resilience.Priority(n%3)
	case *resilience.Class:
		*p = resilience.ClassRequest + resilience.Class(n%3)
	case *time.Time:
		*p = time.Date(2099, 12, 31, 23, 59, 59, 123456789, time.FixedZone("", 3600)).Add(-time.Duration(n*1000+len(path)) * time.Minute)
	case *[]byte:
		*p = []byte(label)
		for b := range 256 {
			*p = append(*p, byte(b))
		}
	case *http.Header:
		*p = http.Header{"Content-Type": {"application/json", label}, "X-Empty": {""}, "x-raw": {"a, b;\tc"}}
	case *any: // Call.Params
	default:
		switch v.Kind() {
		case reflect.Struct:
			for i := range v.NumField() {
				fill(t, v.Field(i), path+"."+v.Type().Field(i).Name, n)
			}
		case reflect.Slice:
			v.Set(reflect.MakeSlice(v.Type(), 3, 3))
			for i := range 3 {
				fill(t, v.Index(i), fmt.Sprintf("%s[%d]", path, i), n)
			}
		default:
			t.Fatalf("storetest does not know the type of %s: %T", path, p)
		}
	}
}

// requireSame compares field by field, and names the one that got lost.
func (s *letterSuite) requireSame(t *testing.T, path string, want, got reflect.Value) {
	t.Helper()
	if at, ok := want.Interface().(time.Time); ok {
		bt, _ := got.Interface().(time.Time)
		require.Equal(t, at.IsZero(), bt.IsZero(), "%s: the zero time", path)
		require.LessOrEqual(t, bt.Sub(at).Abs(), s.precision, "%s: %v became %v", path, at, bt)
		return
	}
	switch want.Kind() {
	case reflect.Struct:
		for i := range want.NumField() {
			s.requireSame(t, path+"."+want.Type().Field(i).Name, want.Field(i), got.Field(i))
		}
	case reflect.Slice:
		if want.Type().Elem().Kind() == reflect.Uint8 {
			require.True(t, bytes.Equal(want.Bytes(), got.Bytes()), "%s: %d bytes became %d others", path, want.Len(), got.Len())
			return
		}
		require.Equal(t, want.Len(), got.Len(), path)
		for i := range want.Len() {
			s.requireSame(t, fmt.Sprintf("%s[%d]", path, i), want.Index(i), got.Index(i))
		}
	case reflect.Map:
		if want.Len() > 0 || got.Len() > 0 {
			require.Equal(t, want.Interface(), got.Interface(), path)
		}
	default:
		require.Equal(t, want.Interface(), got.Interface(), path)
	}
}

func (s *letterSuite) empty(t *testing.T) {
	st := s.start(t)
	require.Empty(t, st.all())
	st.remove("nobody")
	st.remove("nobody")
	require.Empty(t, st.all())
}

func (s *letterSuite) fields(t *testing.T) {
	st := s.start(t)
	for n := range 3 {
		l := fullLetter(t, n)
		st.put(l)
		s.requireAll(st, map[string]resilience.Letter{l.ID: l})
		other := fullLetter(t, n+100) // every field changes
		other.ID = l.ID
		st.put(other)
		s.requireAll(st, map[string]resilience.Letter{l.ID: other})
		least := resilience.Letter{ID: l.ID} // no field stays behind
		st.put(least)
		s.requireAll(st, map[string]resilience.Letter{l.ID: least})
		st.put(l)
		s.requireAll(st, map[string]resilience.Letter{l.ID: l})
		st.remove(l.ID)
	}
	for i := range reflect.TypeFor[resilience.Letter]().NumField() { // each field alone
		var l resilience.Letter
		v := reflect.ValueOf(&l).Elem().Field(i)
		fill(t, v, "Letter."+reflect.TypeFor[resilience.Letter]().Field(i).Name, i)
		l.ID = "alone"
		st.put(l)
		s.requireAll(st, map[string]resilience.Letter{l.ID: l})
	}
}

func (s *letterSuite) replace(t *testing.T) {
	st := s.start(t)
	want := map[string]resilience.Letter{}
	for round := range 4 {
		for n := range 10 {
			l := fullLetter(t, 10*round+n)
			l.ID = name("letter", n)
			st.put(l)
			want[l.ID] = l
		}
		s.requireAll(st, want)
	}
	same := fullLetter(t, 1)
	same.ID = "other" // two ids with one key are two letters: which one counts is the queue's business
	same.Key = want[name("letter", 1)].Key
	st.put(same)
	want[same.ID] = same
	s.requireAll(st, want)
}

func (s *letterSuite) remove(t *testing.T) {
	st := s.start(t)
	want := map[string]resilience.Letter{}
	for n := range 20 {
		l := fullLetter(t, n)
		st.put(l)
		want[l.ID] = l
	}
	for n := range 20 {
		if n%3 == 0 {
			continue
		}
		id := name("letter", n)
		st.remove(id)
		delete(want, id)
		s.requireAll(st, want)
		st.remove(id)
	}
	back := fullLetter(t, 1)
	st.put(back)
	want[back.ID] = back
	s.requireAll(st, want)
}

// loadOnce: more letters than a page of any store has, of all sizes.
func (s *letterSuite) loadOnce(t *testing.T) {
	st := s.start(t)
	want := map[string]resilience.Letter{}
	for n := range 700 {
		l := resilience.Letter{ID: name("letter", n), Key: name("key", n), Body: make([]byte, n*n%30_000)}
		st.put(l)
		want[l.ID] = l
	}
	s.requireAll(st, want)
	s.requireAll(st, want)
}

// loadStops: an error of the one who loads is his, and ends it.
func (s *letterSuite) loadStops(t *testing.T) {
	st := s.start(t)
	for n := range 10 {
		st.put(fullLetter(t, n))
	}
	stop := errors.New("enough")
	for after := 1; after <= 10; after++ {
		n := 0
		err := st.Load(t.Context(), func(resilience.Letter) error {
			if n++; n == after {
				return stop
			}
			return nil
		})
		require.ErrorIs(t, err, stop)
		require.Equal(t, after, n, "Load went on after an error")
	}
	st.put(fullLetter(t, 11)) // and nothing is held
	require.Len(t, st.all(), 11)
}

// scribbleLetter changes everything in a letter that is shared with its copies.
func scribbleLetter(l resilience.Letter) {
	clear(l.Body)
	clear(l.History)
	for name, values := range l.Header {
		clear(values)
		delete(l.Header, name)
	}
}

func (s *letterSuite) copiesIn(t *testing.T) {
	st := s.start(t)
	l := fullLetter(t, 1)
	st.put(l)
	s.requireSame(t, "the letter that was put", reflect.ValueOf(fullLetter(t, 1)), reflect.ValueOf(l))
	scribbleLetter(l)
	s.requireAll(st, map[string]resilience.Letter{l.ID: fullLetter(t, 1)})
}

func (s *letterSuite) copiesOut(t *testing.T) {
	st := s.start(t)
	want := fullLetter(t, 1)
	st.put(fullLetter(t, 1))
	for range 2 {
		require.NoError(t, st.Load(t.Context(), func(l resilience.Letter) error {
			scribbleLetter(l)
			return nil
		}))
		s.requireAll(st, map[string]resilience.Letter{want.ID: want})
	}
	kept := st.all()[want.ID]
	st.put(fullLetter(t, 2))
	st.remove(want.ID)
	for n := range 50 { // what was loaded does not change under whoever has it
		st.put(fullLetter(t, n+10))
	}
	s.requireSame(t, "Letter", reflect.ValueOf(want), reflect.ValueOf(kept))
}

func (s *letterSuite) ids(t *testing.T) {
	st := s.start(t)
	want := map[string]resilience.Letter{}
	for _, id := range []string{
		"a", "A", "ab", "a ", " a", "a\x00", "a\x00b", "\x00", "ü", "u\u0308", "日本", "\xff\xfe", "../a", "a/b", "a\\b", "%61", "a%00",
		"'", `"`, "a\nb", "*", "a?", "-", "_", ".", "..", "nil", "null", "0", "00", strings.Repeat("x", 255), strings.Repeat("x", 256),
		strings.Repeat("x", 1023) + "y", strings.Repeat("x", 1023) + "z",
	} {
		l := resilience.Letter{ID: id, Key: "key of " + id}
		st.put(l)
		want[id] = l
	}
	s.requireAll(st, want)
	for id := range want {
		st.remove(id)
		delete(want, id)
		if len(want)%5 == 0 {
			s.requireAll(st, want)
		}
	}
}

// oddBytes: what is sent again is what was to be sent, byte by byte.
func (s *letterSuite) oddBytes(t *testing.T) {
	st := s.start(t)
	want := map[string]resilience.Letter{}
	for i, text := range []string{"\xff\xfe", "\x00", "<&>\u2028", "a\x00b", "\r\n", "\ufffd", "\xc3(", "{\"a\":1}", strings.Repeat("é", 5000)} {
		l := fullLetter(t, i)
		l.Operation, l.Key, l.Method, l.URL, l.Host, l.Cause, l.Detail, l.ParkedReason = text, text, text, text, text, text, text, text
		l.Call.Operation, l.Call.Resource = text, text
		l.Header = http.Header{"X": {text, "", text}, text: {text}, "Y": {}}
		l.Header["Y"] = []string{""}
		l.Body = []byte(text)
		l.History[1].Cause, l.History[1].Detail = text, text
		st.put(l)
		want[l.ID] = l
	}
	s.requireAll(st, want)
}

func (s *letterSuite) largeBodies(t *testing.T) {
	st := s.start(t)
	random := rand.NewChaCha8([32]byte{1})
	want := map[string]resilience.Letter{}
	for i, size := range []int{1, 4095, 4096, 4097, 64 << 10, 64<<10 + 1, 1 << 20, 8<<20 + 1} {
		l := resilience.Letter{ID: name("letter", i), Body: make([]byte, size)}
		_, _ = random.Read(l.Body) // it never fails
		st.put(l)
		want[l.ID] = l
	}
	s.requireAll(st, want)
	for id, l := range want {
		l.Body = l.Body[:len(l.Body)/2]
		st.put(l)
		want[id] = l
	}
	s.requireAll(st, want)
}

func (s *letterSuite) endedContext(t *testing.T) {
	st := s.start(t)
	l := fullLetter(t, 1)
	st.put(l)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	other := fullLetter(t, 2)
	require.Error(t, st.Put(ctx, other))
	changed := fullLetter(t, 3)
	changed.ID = l.ID
	require.Error(t, st.Put(ctx, changed))
	require.Error(t, st.Remove(ctx, l.ID))
	_, err := loadAll(ctx, st)
	require.Error(t, err)
	s.requireAll(st, map[string]resilience.Letter{l.ID: l})
}

// concurrent: writes of different letters do not disturb each other, nor a Load meanwhile.
func (s *letterSuite) concurrent(t *testing.T) {
	st := s.start(t)
	const writers, rounds = 16, 20
	steady := fullLetter(t, 9999)
	st.put(steady)
	var mu sync.Mutex
	want := map[string]resilience.Letter{steady.ID: steady}
	letters := make([]resilience.Letter, writers)
	for w := range writers {
		letters[w] = fullLetter(t, w)
	}
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			l := letters[w]
			for n := range rounds {
				l.Attempts = n
				if err := st.Put(t.Context(), l); err != nil {
					t.Errorf("Put: %v", err)
				}
				if n%3 == 2 || n == rounds-1 && w%2 == 0 {
					if err := st.Remove(t.Context(), l.ID); err != nil {
						t.Errorf("Remove: %v", err)
					}
				}
			}
			if w%2 == 1 {
				mu.Lock()
				defer mu.Unlock()
				want[l.ID] = l
			}
		})
	}
	for range 2 {
		wg.Go(func() {
			for range 10 {
				all, err := loadAll(t.Context(), st)
				if err != nil {
					t.Error(err)
				} else if _, ok := all[steady.ID]; !ok {
					t.Error("a Load under writes lost a letter that was there all the time")
				}
			}
		})
	}
	wg.Wait()
	s.requireAll(st, want)
}

// atomic: a letter that is being replaced is the old one or the new one.
func (s *letterSuite) atomic(t *testing.T) {
	st := s.start(t)
	version := func(n int) resilience.Letter {
		return resilience.Letter{ID: "x", Attempts: n, Cause: fmt.Sprint(n), Body: bytes.Repeat([]byte{byte(n)}, 20_000)}
	}
	st.put(version(0))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n := range 60 {
			if err := st.Put(t.Context(), version(n)); err != nil {
				t.Errorf("Put: %v", err)
			}
		}
	}()
	defer func() { <-done }() // whatever becomes of the rest
	for last, over := 0, false; !over; {
		select {
		case <-done:
			over = true
		default:
		}
		l, ok := st.all()["x"]
		require.True(t, ok, "it is gone while it is replaced")
		require.GreaterOrEqual(t, l.Attempts, last, "an older state came back")
		last = l.Attempts
		s.requireSame(t, "Letter", reflect.ValueOf(version(l.Attempts)), reflect.ValueOf(l))
	}
	s.requireAll(st, map[string]resilience.Letter{"x": version(59)})
}

// durable: everything that was acknowledged is there, and nothing else.
func (s *letterSuite) durable(t *testing.T) {
	require.NotNil(t, s.reopen, "run it with ReopenLetters")
	st := s.start(t)
	want := map[string]resilience.Letter{}
	for round := range 4 {
		for n := range 20 {
			l := fullLetter(t, 20*round+n)
			l.ID = name("letter", n)
			switch (n + round) % 3 {
			case 0:
				st.remove(l.ID)
				delete(want, l.ID)
			default:
				st.put(l)
				want[l.ID] = l
			}
		}
		st.LetterStore = s.reopen(t, st.LetterStore)
		s.requireAll(st, want)
	}
	for id := range want {
		st.remove(id)
	}
	st.LetterStore = s.reopen(t, st.LetterStore)
	require.Empty(t, st.all(), "removed letters came back")
}

// durableUnderWrites: what one writer was told is there, whatever others do at the same time.
func (s *letterSuite) durableUnderWrites(t *testing.T) {
	require.NotNil(t, s.reopen, "run it with ReopenLetters")
	st := s.start(t)
	var mu sync.Mutex
	var acked []string
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for n := range 8 {
				l := resilience.Letter{ID: name(fmt.Sprint("letter", w), n), Body: make([]byte, 1000*n)}
				if err := st.Put(t.Context(), l); err != nil {
					t.Errorf("Put: %v", err)
					return
				}
				mu.Lock()
				acked = append(acked, l.ID)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	st.LetterStore = s.reopen(t, st.LetterStore)
	all := st.all()
	for _, id := range acked {
		require.Contains(t, all, id)
	}
	require.Len(t, all, len(acked))
	require.True(t, slices.ContainsFunc(acked, func(id string) bool { return len(all[id].Body) > 0 }))
}
