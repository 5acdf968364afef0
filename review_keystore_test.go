package resilience

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Two ids may share the key of the archive. Neither is taken for the other then, nor removed with it.
func TestMemoryStore_TwoIDsWithOneKeyOfTheArchive(t *testing.T) {
	s := NewMemoryStore(0)
	sh, k := s.shard("a")
	later := s.Now().Add(time.Hour)
	other := Record{ID: "b", Version: 7, State: KeyConfirmed, Expires: later, CallID: "call_b"}
	sh.packed.Put(k, s.codec.encode(nil, &other))

	load := func() Record {
		rec, err := s.Load(t.Context(), "a")
		require.NoError(t, err)
		return rec
	}
	require.Equal(t, Record{}, load())
	version, swapped, err := s.CompareAndSwap(t.Context(), 0, Record{ID: "a", State: KeyConfirmed, Expires: later, CallID: "call_a"})
	require.NoError(t, err)
	require.True(t, swapped)
	require.Equal(t, "call_a", load().CallID)
	_, swapped, err = s.CompareAndSwap(t.Context(), version, Record{ID: "a"})
	require.NoError(t, err)
	require.True(t, swapped)
	require.Equal(t, Record{}, load())
	kept, err := s.codec.decode(sh.packed.Get(k))
	require.NoError(t, err)
	require.Equal(t, "call_b", kept.CallID)
}

// Both halves of that key come from the id, each in its own way: 64 bits would be too few.
func TestMemoryStore_KeysOfTheArchiveAreWide(t *testing.T) {
	s := NewMemoryStore(0)
	seen := map[string]bool{}
	for n := range 1000 {
		_, k := s.shard(fmt.Sprint(n))
		seen[string(k[:8])], seen[string(k[8:])] = true, true
	}
	require.Len(t, seen, 2000)
}

// A finished record that is claimed again is kept once.
func TestMemoryStore_AClaimedRecordIsNotPacked(t *testing.T) {
	s := NewMemoryStore(0)
	sh, _ := s.shard("a")
	version, _, err := s.CompareAndSwap(t.Context(), 0, Record{ID: "a", State: KeyConfirmed, Expires: s.Now().Add(time.Hour)})
	require.NoError(t, err)
	require.Equal(t, 1, sh.packed.Len())
	_, _, err = s.CompareAndSwap(t.Context(), version, Record{ID: "a", State: KeyClaimed})
	require.NoError(t, err)
	require.Zero(t, sh.packed.Len())
}
