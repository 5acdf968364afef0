// Package storetest is the conformance suite of [resilience.KeyStore]: what a store must do so that the promises of
// [resilience.Idempotency] hold on it; and that of [resilience.LetterStore]. A store's own tests call [Run] and [RunLetters]:
//
//	func TestKeys(t *testing.T) {
//		open := func(maxKeys int) func(*testing.T) resilience.KeyStore {
//			return func(t *testing.T) resilience.KeyStore { return openKeys(t, t.TempDir(), maxKeys) } // empty each time
//		}
//		reopen := func(t *testing.T, old resilience.KeyStore) resilience.KeyStore {
//			keys := old.(*myKeys)
//			keys.crash() // as roughly as the store claims to survive
//			return openKeys(t, keys.dir, 0)
//		}
//		storetest.Run(t, open(0), storetest.Reopen(reopen), storetest.Bounded(16, open(16)))
//	}
//
//	func TestLetters(t *testing.T) {
//		open := func(t *testing.T) resilience.LetterStore { return openLetters(t, t.TempDir()) }
//		reopen := func(t *testing.T, old resilience.LetterStore) resilience.LetterStore {
//			letters := old.(*myLetters)
//			letters.crash()
//			return openLetters(t, letters.dir)
//		}
//		storetest.RunLetters(t, open, storetest.ReopenLetters(reopen))
//	}
//
// A store of keys that is in memory leaves Reopen out, one without a bound leaves Bounded out. Each check is a subtest, named
// by what it asks. The suites were shown to catch stores that are wrong in the ways in which stores go wrong: see the tests of
// this package.
package storetest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
)

// Option tells [Run] what a store can do.
type Option func(*suite)

// Reopen lets the suite check durability. reopen closes the store, or lets go of it in the roughest way that the store
// claims to survive, and returns one over the same data. A store that says it is durable cannot be run without.
func Reopen(reopen func(t *testing.T, old resilience.KeyStore) resilience.KeyStore) Option {
	return func(s *suite) { s.reopen = reopen }
}

// Bounded lets the suite check what happens when a store is full: open makes an empty one for at most maxKeys records,
// which must be 2 to 1000.
func Bounded(maxKeys int, open func(t *testing.T) resilience.KeyStore) Option {
	return func(s *suite) { s.maxKeys, s.openBounded = maxKeys, open }
}

// Precision is for stores that keep times less exactly than to the nanosecond: a time may come back d off, and not more.
// The zero time must come back as it is.
func Precision(d time.Duration) Option {
	return func(s *suite) { s.precision = d }
}

// suite is one store under test.
type suite struct {
	open        func(t *testing.T) resilience.KeyStore
	reopen      func(t *testing.T, old resilience.KeyStore) resilience.KeyStore
	openBounded func(t *testing.T) resilience.KeyStore
	maxKeys     int
	precision   time.Duration
}

// Run checks a store. open makes an empty one; what must be closed it leaves to t.Cleanup. Each check gets a store of
// its own. Run waits for nothing but the store, and is meant for -race.
func Run(t *testing.T, open func(t *testing.T) resilience.KeyStore, opts ...Option) {
	t.Helper()
	s := &suite{open: open}
	for _, o := range opts {
		o(s)
	}
	for _, c := range s.checks() {
		t.Run(c.name, c.run)
	}
}

type check struct {
	name string
	run  func(t *testing.T)
}

func (s *suite) checks() []check {
	list := []check{
		{"Capabilities", s.capabilities},
		{"Clock", s.clock},
		{"Load", s.load},
		{"Swap", s.swap},
		{"Removal", s.removal},
		{"Versions", s.versions},
		{"Fields", s.fields},
		{"Absence", s.absence},
		{"LargeBodies", s.largeBodies},
		{"CopiesIn", s.copiesIn},
		{"CopiesOut", s.copiesOut},
		{"Atomic", s.atomic},
		{"IDs", s.ids},
		{"Context", s.endedContext},
		{"RaceForAbsentKey", s.raceForAbsentKey},
		{"RaceForExpiredClaim", s.raceForExpiredClaim},
		{"Fencing", s.fencing},
		{"Linearizable", s.linearizable},
		{"UnsettledStates", s.unsettledStates},
		{"UnsettledPages", s.unsettledPages},
		{"UnsettledUnderWrites", s.unsettledUnderWrites},
		{"Sweep", s.sweep},
		{"SweepOrder", s.sweepOrder},
		{"SweepLimit", s.sweepLimit},
		{"SweepPinned", s.sweepPinned},
		{"SweepExtended", s.sweepExtended},
		{"SweepAgainstClaim", s.sweepAgainstClaim},
	}
	if s.openBounded != nil {
		list = append(list, check{"Full", s.full}, check{"FullRace", s.fullRace})
	}
	if s.reopen != nil {
		list = append(list,
			check{"ReopenRecords", s.reopenRecords},
			check{"ReopenVersions", s.reopenVersions},
			check{"ReopenUnsettled", s.reopenUnsettled})
	}
	return list
}

func (s *suite) capabilities(t *testing.T) {
	c := s.open(t).Capabilities()
	require.True(t, c.Linearizable, "a store that is not linearizable keeps none of the promises")
	require.False(t, c.Durable && s.reopen == nil, "a store that says it is durable must be run with Reopen")
}

func (s *suite) clock(t *testing.T) {
	st := s.open(t)
	last := st.Now()
	require.False(t, last.IsZero())
	for range 1000 {
		now := st.Now()
		require.False(t, now.Before(last), "the clock went back: %v, then %v", last, now)
		last = now
	}
}

// store wraps the one under test with what nearly every check needs.
type store struct {
	resilience.KeyStore
	t *testing.T
}

func (s *suite) start(t *testing.T) store {
	t.Helper()
	return store{s.open(t), t}
}

// load returns a record, or the zero one.
func (s store) load(id string) resilience.Record {
	s.t.Helper()
	rec, err := s.Load(s.t.Context(), id)
	require.NoError(s.t, err, "Load")
	return rec
}

// put writes a record that must be accepted, and returns it as it is stored now.
func (s store) put(old uint64, rec resilience.Record) resilience.Record {
	s.t.Helper()
	version, swapped, err := s.CompareAndSwap(s.t.Context(), old, rec)
	require.NoError(s.t, err, "CompareAndSwap")
	require.True(s.t, swapped, "CompareAndSwap refused a write over version %d", old)
	rec.Version = version
	if rec.State == resilience.KeyFree {
		require.Zero(s.t, version, "the version after a removal")
	} else {
		require.NotZero(s.t, version, "the version of a record")
		require.NotEqual(s.t, old, version, "a write must change the version")
	}
	return rec
}

// refused makes a write that must change nothing.
func (s store) refused(old uint64, rec resilience.Record) {
	s.t.Helper()
	version, swapped, err := s.CompareAndSwap(s.t.Context(), old, rec)
	require.NoError(s.t, err, "a refused write is no error")
	require.Zero(s.t, version, "the version after a refused write")
	require.False(s.t, swapped, "CompareAndSwap accepted a write over version %d, which is not the stored one", old)
}

func (s store) remove(rec resilience.Record) {
	s.t.Helper()
	rec.State = resilience.KeyFree
	s.put(rec.Version, rec)
}

// sweepAll sweeps once, with room for everything.
func (s store) sweepAll(pinned func(string) bool) int {
	s.t.Helper()
	n, err := s.Sweep(s.t.Context(), 1000, pinned)
	require.NoError(s.t, err, "Sweep")
	return n
}

// present returns those of the ids that have a record.
func (s store) present(ids ...string) []string {
	s.t.Helper()
	var list []string
	for _, id := range ids {
		if s.load(id).Version != 0 {
			list = append(list, id)
		}
	}
	return list
}

// now is a moment that has come, also for a store that keeps it less exactly.
func (s *suite) now(st store) time.Time { return st.Now().Add(-s.precision) }

// pages walks through Unsettled and returns all ids in the order they came.
func (s store) pages(limit int) []string {
	s.t.Helper()
	ids, err := walk(s.t.Context(), s, limit)
	require.NoError(s.t, err)
	return ids
}

// walk is pages for goroutines, which may not fail a test at once.
func walk(ctx context.Context, s resilience.KeyStore, limit int) ([]string, error) {
	var ids []string
	for cursor, n := "", 0; ; n++ {
		page, next, err := s.Unsettled(ctx, cursor, limit)
		switch {
		case err != nil:
			return nil, fmt.Errorf("Unsettled: %w", err)
		case limit > 0 && len(page) > limit:
			return nil, fmt.Errorf("Unsettled returned %d records, the limit is %d", len(page), limit)
		case n > 10_000:
			return nil, fmt.Errorf("Unsettled does not come to an end")
		}
		for _, rec := range page {
			if rec.ID <= cursor || (len(ids) > 0 && rec.ID <= ids[len(ids)-1]) {
				return nil, fmt.Errorf("Unsettled is not in the order of ids: %q after %q", rec.ID, cursor)
			}
			ids = append(ids, rec.ID)
		}
		if next == "" {
			return ids, nil
		}
		if next <= cursor {
			return nil, fmt.Errorf("the cursor of Unsettled does not advance: %q after %q", next, cursor)
		}
		cursor = next
	}
}

var (
	unsettled = []resilience.KeyState{resilience.KeyClaimed, resilience.KeySending, resilience.KeyInDoubt, resilience.KeyDisputed}
	finished  = []resilience.KeyState{resilience.KeyConfirmed, resilience.KeyNotApplied}
)

func nobody(string) bool { return false }

// claim is a record as it is written first.
func claim(id, token string) resilience.Record {
	return resilience.Record{ID: id, State: resilience.KeyClaimed, Token: token, Owner: "owner", Epoch: 1, Fingerprint: "f1:00"}
}

// settled is a finished record.
func settled(id string, expires time.Time) resilience.Record {
	return resilience.Record{ID: id, State: resilience.KeyConfirmed, CallID: "call_" + id, Status: 201, Settled: expires, Expires: expires}
}
