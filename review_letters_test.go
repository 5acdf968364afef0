package resilience

import (
	"bytes"
	"fmt"
	"math"
	"strings"
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

// A number that cannot be counted on from would be negative one failure later, and no delay is worked out from that.
func TestDLQ_NumbersThatHaveNoNextOneAreRefused(t *testing.T) {
	d := mustDLQ(t, DLQConfig{})
	require.Error(t, d.Add(Letter{Operation: "op", Attempts: math.MaxInt}))
	require.Error(t, d.Add(Letter{Operation: "op", Redrives: math.MaxInt}))
	require.NoError(t, d.Add(Letter{Operation: "op", Attempts: 77, Redrives: 88}))
	file := string(dlqExport(t, d))
	for _, number := range []string{`"attempts":77`, `"redrives":88`} {
		name, _, _ := strings.Cut(number, ":")
		bad := dlqReseal(strings.Replace(file, number, name+fmt.Sprintf(":%d", math.MaxInt), 1))
		require.ErrorContains(t, mustDLQ(t, DLQConfig{}).Import(strings.NewReader(bad)), "out of bounds")
	}
	require.NoError(t, mustDLQ(t, DLQConfig{}).Import(bytes.NewReader([]byte(file))))
}
