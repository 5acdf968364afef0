package storetest

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
)

// reopenRecords: everything that was acknowledged is there, and nothing else.
func (s *suite) reopenRecords(t *testing.T) {
	st := s.start(t)
	want := map[string]resilience.Record{}
	var gone []string
	for n := range 60 {
		rec := full(t, n)
		rec.State = append(unsettled, finished...)[n%6]
		rec.Expires = st.Now().Add(time.Hour)
		rec = st.put(0, rec)
		switch n % 4 {
		case 1:
			rec.Token = "second"
			rec = st.put(rec.Version, rec)
		case 2:
			st.remove(rec)
			gone = append(gone, rec.ID)
			continue
		case 3:
			st.remove(rec)
			rec = st.put(0, rec)
		}
		want[rec.ID] = rec
	}
	for range 2 {
		st.KeyStore = s.reopen(t, st.KeyStore)
		for id, rec := range want {
			s.requireSame(t, rec, st.load(id))
		}
		require.Empty(t, st.present(gone...), "removed records came back")
	}
}

// reopenVersions: no version comes again after a restart either.
func (s *suite) reopenVersions(t *testing.T) {
	st := s.start(t)
	seen := map[uint64]bool{}
	for range 3 {
		rec := st.put(0, claim("key", "a"))
		require.False(t, seen[rec.Version], "version %d was used for this key before", rec.Version)
		seen[rec.Version] = true
		rec = st.put(rec.Version, rec)
		require.False(t, seen[rec.Version], "version %d was used for this key before", rec.Version)
		seen[rec.Version] = true
		st.remove(rec)
		st.KeyStore = s.reopen(t, st.KeyStore)
		again := st.put(0, claim("key", "b"))
		require.False(t, seen[again.Version], "version %d was used for this key before the restart", again.Version)
		seen[again.Version] = true
		st.refused(rec.Version, claim("key", "stale"))
		st.KeyStore = s.reopen(t, st.KeyStore)
		st.refused(rec.Version, claim("key", "stale"))
		st.remove(again)
	}
}

// reopenUnsettled: what must be looked after, and what may go, is known after a restart too.
func (s *suite) reopenUnsettled(t *testing.T) {
	st := s.start(t)
	var open, due []string
	for i := range 36 {
		id := name("key", i)
		state := append(unsettled, finished...)[i%6]
		st.put(0, resilience.Record{ID: id, State: state, Expires: st.Now().Add(-time.Hour)})
		if slices.Contains(unsettled, state) {
			open = append(open, id)
		} else {
			due = append(due, id)
		}
	}
	st.KeyStore = s.reopen(t, st.KeyStore)
	require.Equal(t, open, st.pages(5))
	require.Equal(t, due, st.present(due...))
	require.Equal(t, len(due), st.sweepAll(nobody))
	st.KeyStore = s.reopen(t, st.KeyStore)
	require.Equal(t, open, st.pages(5))
	require.Empty(t, st.present(due...), "swept records came back")
}
