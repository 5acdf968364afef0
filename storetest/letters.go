package storetest

import (
	"context"
	"errors"
	"fmt"
	"reflect"
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

func (s *letterSuite) empty(t *testing.T) {
	st := s.start(t)
	require.Empty(t, st.all())
	st.remove("nobody")
	st.remove("nobody")
	require.Empty(t, st.all())
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
	for after := 1; after <= 11; after++ { // when the context ends meanwhile, what comes is all or an error
		ctx, cancel := context.WithCancel(t.Context())
		n := 0
		err := st.Load(ctx, func(resilience.Letter) error {
			if n++; n == after {
				cancel()
			}
			return nil
		})
		cancel()
		require.True(t, err != nil || n == 11, "Load ended after %d letters of 11, and said nothing", n)
	}
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
