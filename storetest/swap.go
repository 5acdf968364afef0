package storetest

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
)

func (s *suite) load(t *testing.T) {
	st := s.start(t)
	require.Equal(t, resilience.Record{}, st.load("unknown"), "a key without a record is the zero Record")
	st.put(0, claim("known", "a"))
	require.Equal(t, resilience.Record{}, st.load("unknown"))
	require.Equal(t, "known", st.load("known").ID)
}

func (s *suite) swap(t *testing.T) {
	st := s.start(t)
	st.refused(1, claim("key", "a"))
	require.Zero(t, st.load("key").Version, "a refused write created a record")

	first := st.put(0, claim("key", "a"))
	require.Equal(t, first.Version, st.load("key").Version, "Load and CompareAndSwap must agree on the version")
	st.refused(0, claim("key", "b"))
	st.refused(first.Version+1, claim("key", "b"))
	st.refused(^uint64(0), claim("key", "b"))
	require.Equal(t, "a", st.load("key").Token, "a refused write changed the record")

	lying := claim("key", "c")
	lying.Version = 12345 // the version in the record is the store's business
	second := st.put(first.Version, lying)
	got := st.load("key")
	require.Equal(t, "c", got.Token)
	require.Equal(t, second.Version, got.Version)

	st.refused(first.Version, claim("key", "d"))
	require.Equal(t, "c", st.load("key").Token, "a refused write changed the record")
	require.Zero(t, st.load("kez").Version)
}

func (s *suite) removal(t *testing.T) {
	st := s.start(t)
	rec := st.put(0, claim("key", "a"))
	free := rec
	free.State = resilience.KeyFree
	st.refused(rec.Version+1, free)
	st.refused(0, free)
	require.Equal(t, rec.Version, st.load("key").Version, "a refused removal changed the record")
	st.remove(rec)
	require.Equal(t, resilience.Record{}, st.load("key"), "a removed record is gone")
	require.Empty(t, st.pages(10), "a removed record is not unsettled")
	st.refused(rec.Version, claim("key", "b"))
	st.refused(rec.Version, free)
	require.Zero(t, st.load("key").Version)
	st.put(0, claim("key", "c"))
	require.Equal(t, "c", st.load("key").Token)

	done := st.put(0, settled("done", s.now(st)))
	st.remove(done)
	st.put(0, claim("done", "a"))
	require.Zero(t, st.sweepAll(nobody), "what a removed record left behind swept its successor")
	require.Equal(t, []string{"done"}, st.present("done"))
}

// versions must never come again for a key, not even after its removal: a holder who was away all the while would take
// somebody else's record for its own.
func (s *suite) versions(t *testing.T) {
	st := s.start(t)
	seen := map[uint64]bool{}
	for range 20 {
		rec := st.put(0, claim("key", "a"))
		for range 3 {
			require.False(t, seen[rec.Version], "version %d was used for this key before", rec.Version)
			seen[rec.Version] = true
			rec = st.put(rec.Version, rec)
		}
		seen[rec.Version] = true
		stale := rec.Version
		st.remove(rec)
		again := st.put(0, claim("key", "b"))
		st.refused(stale, claim("key", "stale"))
		require.False(t, seen[again.Version], "version %d was used for this key before", again.Version)
		seen[again.Version] = true
		st.remove(again)
	}
}

// odd ids may be refused with an error; none may be taken for another one. The library's own are plain.
func (s *suite) ids(t *testing.T) {
	plain := []string{
		"abcdefghijklmnopqrstuvwxyz", "a", "aa", "a234567", "0", strings.Repeat("x", 26), strings.Repeat("x", 25),
	}
	odd := []string{
		"A", "AA", " a", "a ", "a\t", "a%", "a_", "_", "%", "*", "a'", `a"`, "a;--", `a\`, "a/b", "../a", ".", "a:b", "a|b",
		"{a}", "ä", "a\u0308", "日本", "a\x00", "a\x00b", "\x00", "a\n", "\xff", "a\xff", "null", "NULL", "-1",
		strings.Repeat("y", 255), strings.Repeat("y", 256), strings.Repeat("y", 4096),
	}
	st := s.start(t)
	stored := map[string]uint64{}
	for _, id := range plain {
		stored[id] = st.put(0, claim(id, id)).Version
	}
	for _, id := range odd {
		version, swapped, err := st.CompareAndSwap(t.Context(), 0, claim(id, id))
		if err != nil {
			continue
		}
		require.True(t, swapped, "%q was taken for another id", id)
		stored[id] = version
	}
	for id, version := range stored {
		rec := st.load(id)
		require.Equal(t, id, rec.ID)
		require.Equal(t, id, rec.Token, "%q", id)
		require.Equal(t, version, rec.Version, "%q", id)
	}
	require.Len(t, st.pages(3), len(stored), "Unsettled")
	for _, id := range []string{"b", "abcdefghijklmnopqrstuvwxy", "abcdefghijklmnopqrstuvwxyz2", "ABCDEFGHIJKLMNOPQRSTUVWXYZ"} {
		require.Zero(t, st.load(id).Version, "%q was taken for another id", id)
	}
}

// endedContext allows a store to refuse and to go on, but not to say one thing and do the other.
func (s *suite) endedContext(t *testing.T) {
	st := s.start(t)
	old := st.put(0, claim("old", "a"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if version, swapped, err := st.CompareAndSwap(ctx, 0, claim("new", "a")); err != nil {
		require.ErrorIs(t, err, context.Canceled)
		require.False(t, swapped)
		require.Zero(t, st.load("new").Version, "a write that failed before it began was made")
	} else {
		require.True(t, swapped)
		require.Equal(t, version, st.load("new").Version)
	}
	if rec, err := st.Load(ctx, "old"); err != nil {
		require.ErrorIs(t, err, context.Canceled)
		require.Equal(t, resilience.Record{}, rec)
	} else {
		require.Equal(t, old.Version, rec.Version)
	}
	st.put(0, settled("due", s.now(st)))
	if n, err := st.Sweep(ctx, 10, nobody); err != nil {
		require.ErrorIs(t, err, context.Canceled)
	} else {
		require.Equal(t, 1, n)
	}
	if page, _, err := st.Unsettled(ctx, "", 10); err != nil {
		require.ErrorIs(t, err, context.Canceled)
	} else {
		require.Contains(t, ids(page), "old", "no error, and less than there is")
	}
	require.Equal(t, "a", st.load("old").Token, "the store works on")
}

// together runs f in n goroutines that start at the same time, and waits for them.
func together(n int, f func(i int)) {
	var ready, done sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		ready.Add(1)
		done.Go(func() {
			ready.Done()
			<-start
			f(i)
		})
	}
	ready.Wait()
	close(start)
	done.Wait()
}

const (
	raceRounds  = 40
	raceWriters = 16
)

// winner of a race for one key.
type race struct {
	wins, failures atomic.Int64
	token          atomic.Value
	version        atomic.Uint64
	err            atomic.Value
}

func (r *race) try(ctx context.Context, st resilience.KeyStore, old uint64, rec resilience.Record) {
	version, swapped, err := st.CompareAndSwap(ctx, old, rec)
	switch {
	case err != nil:
		r.failures.Add(1)
		r.err.Store(err.Error())
	case swapped:
		r.wins.Add(1)
		r.token.Store(rec.Token)
		r.version.Store(version)
	}
}

func (r *race) check(t *testing.T, got resilience.Record) {
	t.Helper()
	require.Zero(t, r.failures.Load(), "%v", r.err.Load())
	require.EqualValues(t, 1, r.wins.Load(), "how many writers were told that they had won")
	require.Equal(t, r.token.Load(), got.Token, "the record is not the winner's")
	require.Equal(t, r.version.Load(), got.Version)
}

func (s *suite) raceForAbsentKey(t *testing.T) {
	st := s.start(t)
	for round := range raceRounds {
		id, r := name("key", round), &race{}
		together(raceWriters, func(i int) { r.try(t.Context(), st, 0, claim(id, name("writer", i))) })
		r.check(t, st.load(id))
	}
}

func (s *suite) raceForExpiredClaim(t *testing.T) {
	st := s.start(t)
	for round := range raceRounds {
		id, r := name("key", round), &race{}
		expired := claim(id, "dead")
		expired.Lease = st.Now().Add(-time.Second)
		old := st.put(0, expired)
		together(raceWriters, func(i int) {
			rec, err := st.Load(t.Context(), id)
			if err != nil {
				r.failures.Add(1)
				r.err.Store(err.Error())
				return
			}
			if rec.Version != old.Version {
				return // somebody was faster
			}
			next := claim(id, name("writer", i))
			next.Epoch, next.Lease = rec.Epoch+1, st.Now().Add(time.Hour)
			r.try(t.Context(), st, rec.Version, next)
		})
		r.check(t, st.load(id))
	}
}

// fencing: whoever was away comes back with a stale version, whatever happened to the key in between.
func (s *suite) fencing(t *testing.T) {
	st := s.start(t)
	first := st.put(0, claim("key", "first"))
	var stale []uint64
	steps := []func(resilience.Record) resilience.Record{
		func(r resilience.Record) resilience.Record { return st.put(r.Version, claim("key", "second")) },
		func(r resilience.Record) resilience.Record {
			r.State = resilience.KeySending
			return st.put(r.Version, r)
		},
		func(r resilience.Record) resilience.Record {
			r.State = resilience.KeyInDoubt
			return st.put(r.Version, r)
		},
		func(r resilience.Record) resilience.Record {
			return st.put(r.Version, settled("key", st.Now().Add(time.Hour)))
		},
		func(r resilience.Record) resilience.Record { st.remove(r); return st.put(0, claim("key", "third")) },
		func(r resilience.Record) resilience.Record {
			r = st.put(r.Version, settled("key", st.Now().Add(-time.Hour)))
			if st.sweepAll(nobody) == 0 { // other checks ask for that
				st.remove(r)
			}
			st.refused(r.Version, claim("key", "late"))
			return st.put(0, claim("key", "fourth"))
		},
	}
	for i, step := range steps {
		stale = append(stale, first.Version)
		first = step(first)
		for _, old := range stale {
			late := claim("key", "late")
			st.refused(old, late)
			late.State = resilience.KeyFree
			st.refused(old, late)
		}
		require.Equal(t, first.Version, st.load("key").Version, "step %d", i)
		require.Equal(t, first.Token, st.load("key").Token, "step %d", i)
	}
}
