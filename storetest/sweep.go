package storetest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
)

// sweep takes finished records past their time, and nothing else, however old.
func (s *suite) sweep(t *testing.T) {
	st := s.start(t)
	past, future := st.Now().Add(-time.Hour), st.Now().Add(time.Hour)
	var stay, leave []string
	put := func(state resilience.KeyState, expires time.Time, goes bool) {
		id := name("key", len(stay)+len(leave))
		rec := resilience.Record{ID: id, State: state, Claimed: past, Sent: past, Settled: past, Lease: past, Expires: expires}
		st.put(0, rec)
		if goes {
			leave = append(leave, id)
		} else {
			stay = append(stay, id)
		}
	}
	for _, state := range unsettled {
		put(state, past, false)
		put(state, time.Time{}, false)
		put(state, past.Add(-10_000*time.Hour), false)
	}
	for _, state := range finished {
		put(state, past, true)
		put(state, s.now(st), true) // it may go at once
		put(state, time.Time{}, true)
		put(state, future, false)
		put(state, st.Now().Add(73*365*24*time.Hour), false)
	}
	all := append(slices.Clone(stay), leave...)
	require.Equal(t, len(leave), st.sweepAll(nobody), "how many records were removed")
	require.ElementsMatch(t, stay, st.present(all...), "what is left")
	require.Zero(t, st.sweepAll(nobody))
	require.Len(t, st.pages(5), 3*len(unsettled))
	for _, id := range leave { // a swept key is free
		st.put(0, claim(id, "again"))
	}
	require.Zero(t, st.sweepAll(nobody), "what a swept record left behind swept its successor")
	require.Equal(t, leave, st.present(leave...), "what a swept record left behind swept its successor")
}

// sweepOrder: what is due goes, in whatever order records were written and expire.
func (s *suite) sweepOrder(t *testing.T) {
	st := s.start(t)
	var want []string
	for i := range 200 {
		expires := st.Now().Add(time.Duration(i+1) * time.Hour)
		if i%2 == 1 {
			expires = st.Now().Add(-time.Duration(i) * time.Minute)
		} else {
			want = append(want, name("key", i))
		}
		st.put(0, settled(name("key", i), expires))
	}
	require.Equal(t, 100, st.sweepAll(nobody), "how many records were removed")
	require.Equal(t, want, st.present(want...))
}

func (s *suite) sweepLimit(t *testing.T) {
	st := s.start(t)
	var ids []string
	for i := range 25 {
		ids = append(ids, name("key", i))
		st.put(0, settled(ids[i], s.now(st).Add(-time.Duration(i)*time.Second)))
	}
	left := len(ids)
	for left > 0 {
		n, err := st.Sweep(t.Context(), 4, nil) // which pins none
		require.NoError(t, err)
		require.LessOrEqual(t, n, 4, "the limit is 4")
		require.Positive(t, n, "%d records are due, and none was removed", left)
		left -= n
		require.Len(t, st.present(ids...), left, "the number that Sweep returned is not what it removed")
	}
	require.Zero(t, st.sweepAll(nobody))
}

// sweepPinned: what is pinned stays, and does not keep others from going.
func (s *suite) sweepPinned(t *testing.T) {
	st := s.start(t)
	var pinned, others []string
	for i := range 150 {
		id := name("key", i)
		st.put(0, settled(id, st.Now().Add(-time.Hour)))
		if i%15 == 14 {
			others = append(others, id)
		} else {
			pinned = append(pinned, id)
		}
	}
	asked := map[string]bool{}
	isPinned := func(id string) bool {
		asked[id] = true
		return slices.Contains(pinned, id)
	}
	n, err := st.Sweep(t.Context(), len(others), isPinned)
	require.NoError(t, err)
	require.Equal(t, len(others), n, "how many records were removed")
	require.Equal(t, pinned, st.present(pinned...), "a pinned record was removed")
	require.Empty(t, st.present(others...))
	for _, id := range others {
		require.True(t, asked[id], "%s was removed without asking whether it is pinned", id)
	}
	require.Zero(t, st.sweepAll(isPinned))
	require.Equal(t, pinned, st.present(pinned...), "a pinned record was removed by a later sweep")
}

// sweepExtended: the expiry that counts is the one that is stored, not one that was.
func (s *suite) sweepExtended(t *testing.T) {
	st := s.start(t)
	past, future := st.Now().Add(-time.Hour), st.Now().Add(time.Hour)
	longer := st.put(0, settled("longer", past))
	shorter := st.put(0, settled("shorter", future))
	reopened := st.put(0, settled("reopened", past))
	longer.Expires, shorter.Expires, reopened.State = future, past, resilience.KeyInDoubt
	longer = st.put(longer.Version, longer)
	st.put(shorter.Version, shorter)
	st.put(reopened.Version, reopened)
	require.Equal(t, 1, st.sweepAll(nobody))
	require.Equal(t, []string{"longer", "reopened"}, st.present("longer", "shorter", "reopened"))
	longer.Expires = past
	st.put(longer.Version, longer)
	require.Equal(t, 1, st.sweepAll(nobody))
	require.Equal(t, []string{"reopened"}, st.present("longer", "reopened"))
}

// sweepAgainstClaim: a record that is claimed or settled anew while a sweep looks at it is no longer due. Whoever was told
// that the write was made finds it made.
func (s *suite) sweepAgainstClaim(t *testing.T) {
	const n = 60
	st := s.start(t)
	old := map[string]resilience.Record{}
	for i := range n {
		id := name("key", i)
		old[id] = st.put(0, settled(id, st.Now().Add(-time.Hour)))
	}
	var mu sync.Mutex
	claimed := map[string]uint64{}
	var failure atomic.Value
	var late sync.WaitGroup
	take := func(id string) {
		next := claim(id, "again")
		if strings.ContainsAny(id[len(id)-1:], "02468") {
			next = settled(id, st.Now().Add(time.Hour))
		}
		version, swapped, err := st.CompareAndSwap(context.WithoutCancel(t.Context()), old[id].Version, next)
		if err != nil {
			failure.Store(err)
		}
		if swapped {
			mu.Lock()
			claimed[id] = version
			mu.Unlock()
		}
	}
	removed := 0
	for range 3 {
		n, err := st.Sweep(t.Context(), n, func(id string) bool {
			done := make(chan struct{})
			late.Go(func() {
				take(id)
				close(done)
			})
			select { // a store that holds a lock meanwhile makes the claim wait; that is its choice
			case <-done:
			case <-time.After(50 * time.Millisecond):
			}
			return false
		})
		require.NoError(t, err)
		removed += n
	}
	late.Wait()
	if err, ok := failure.Load().(error); ok {
		require.NoError(t, err)
	}
	require.Equal(t, n, removed+len(claimed), "%d were swept, %d claimed", removed, len(claimed))
	for id := range old {
		rec := st.load(id)
		require.Equal(t, claimed[id], rec.Version, "%s: a sweep came between a claim and its record", id)
	}
}

func (s *suite) full(t *testing.T) {
	require.True(t, s.maxKeys >= 2 && s.maxKeys <= 1000, "Bounded: maxKeys must be 2 to 1000, got %d", s.maxKeys)
	st := store{s.openBounded(t), t}
	var held []resilience.Record
	for i := range s.maxKeys {
		held = append(held, st.put(0, claim(name("key", i), "a")))
	}
	refused := func() {
		t.Helper()
		for range 3 {
			version, swapped, err := st.CompareAndSwap(t.Context(), 0, claim("new", "a"))
			require.ErrorIs(t, err, resilience.ErrStoreFull)
			require.False(t, swapped)
			require.Zero(t, version)
		}
		require.Zero(t, st.load("new").Version)
	}
	refused()
	st.refused(0, claim(held[0].ID, "b")) // not a new one
	require.Zero(t, st.sweepAll(nobody))
	refused()
	for i, rec := range held { // everything that is there can go on
		rec.State = append(unsettled, finished...)[i%6]
		rec.Expires = st.Now().Add(-time.Hour)
		rec.Body = make([]byte, 1000)
		held[i] = st.put(rec.Version, rec)
	}
	refused() // also finished ones are not given up unasked
	require.Equal(t, s.maxKeys, len(st.present(ids(held)...)))

	var due []string
	for _, rec := range held {
		if slices.Contains(finished, rec.State) {
			due = append(due, rec.ID)
		}
	}
	if len(due) > 0 {
		require.Equal(t, len(due), st.sweepAll(nobody))
		for i := range due {
			st.put(0, claim(name("swept", i), "a"))
		}
		refused()
	}
	st.remove(st.load(held[0].ID))
	st.put(0, claim("new", "a"))
	_, _, err := st.CompareAndSwap(t.Context(), 0, claim("newer", "a"))
	require.ErrorIs(t, err, resilience.ErrStoreFull)
}

// fullRace: the bound holds against many at once, and places are not lost.
func (s *suite) fullRace(t *testing.T) {
	st := store{s.openBounded(t), t}
	var stored atomic.Int64
	var failure atomic.Value
	together(raceWriters, func(w int) {
		for i := range s.maxKeys {
			_, swapped, err := st.CompareAndSwap(t.Context(), 0, claim(name(name("key", w), i), "a"))
			switch {
			case swapped:
				stored.Add(1)
			case !errors.Is(err, resilience.ErrStoreFull):
				failure.Store(errors.Join(errors.New("neither stored nor ErrStoreFull"), err))
			}
		}
	})
	if err, ok := failure.Load().(error); ok {
		require.NoError(t, err)
	}
	require.EqualValues(t, s.maxKeys, stored.Load())
	require.Len(t, st.pages(100), s.maxKeys)
}

func ids(records []resilience.Record) []string {
	list := make([]string, 0, len(records))
	for _, rec := range records {
		list = append(list, rec.ID)
	}
	return list
}
