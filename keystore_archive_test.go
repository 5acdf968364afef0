package resilience

import (
	"fmt"
	"testing"
	"testing/synctest"
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

// Packed records are looked at again when their time has come, all that are due in one sweep; and a pinned one when its pin
// is gone.
func TestMemoryStore_PackedRecordsAreSwept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewMemoryStore(0)
		for n := range 200 {
			_, _, err := s.CompareAndSwap(t.Context(), 0, Record{ID: fmt.Sprint(n), State: KeyConfirmed, Expires: s.Now().Add(time.Hour)})
			require.NoError(t, err)
		}
		pinned := func(id string) bool { return id == "7" }
		sweep := func(pinned func(string) bool, want int) {
			t.Helper()
			n, err := s.Sweep(t.Context(), 1000, pinned)
			require.NoError(t, err)
			require.Equal(t, want, n)
		}
		sweep(nil, 0)
		time.Sleep(time.Hour)
		sweep(pinned, 199)
		sh, _ := s.shard("7")
		require.Zero(t, sh.packed.Len(), "it is kept once")
		rec, err := s.Load(t.Context(), "7")
		require.NoError(t, err)
		require.Equal(t, KeyConfirmed, rec.State)
		time.Sleep(time.Minute)
		sweep(pinned, 0)
		time.Sleep(time.Minute)
		sweep(nil, 1)
		require.Zero(t, s.Len())
	})
}
