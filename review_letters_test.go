package resilience

import (
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
)

// After a start there may be more letters than MaxLetters. None of them goes for one that does not fit even then.
func TestDLQStore_NothingIsDroppedInVain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		d := mustDLQ(t, DLQConfig{Store: s.open()})
		for _, id := range []string{"1", "2", "3"} {
			require.NoError(t, d.Add(Letter{ID: id, Operation: "op", InDoubt: true}))
		}
		require.NoError(t, d.Add(Letter{ID: "4", Operation: "op"}))
		d = mustDLQ(t, DLQConfig{Store: s.open(), MaxLetters: 2, Overflow: OverflowDropOldest, OnDrop: func(Letter) {}})
		require.ErrorIs(t, d.Add(Letter{Operation: "op"}), ErrLettersFull)
		require.Equal(t, 4, d.Len())
		require.Zero(t, d.Stats().Dropped)
	})
}
