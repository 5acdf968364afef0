package archive

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

func key(n int) (k Key) {
	binary.LittleEndian.PutUint64(k[:], uint64(n))
	return k
}

// A map and a list of what came when must always agree with the archive.
func TestAgainstAModel(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 0))
		var a Archive
		model, order := map[int]string{}, []int{}
		forget := func(n int) {
			delete(model, n)
			for i, o := range order {
				if o == n {
					order = append(order[:i], order[i+1:]...)
					break
				}
			}
		}
		for range 3000 {
			n := rng.IntN(300)
			switch rng.IntN(4) {
			case 0, 1:
				text := fmt.Sprint(n, "-", rng.Uint64(), string(make([]byte, rng.IntN(4000))))
				forget(n)
				model[n], order = text, append(order, n)
				a.Put(key(n), []byte(text))
			case 2:
				forget(n)
				a.Remove(key(n))
			default:
				if text, ok := model[n]; ok {
					require.Equal(t, text, string(a.Get(key(n))))
				} else {
					require.Nil(t, a.Get(key(n)))
				}
			}
			require.Equal(t, len(model), a.Len())
		}
		for len(order) > 0 { // from the oldest on
			var seen []Key
			a.Oldest(7, func(k Key, entry []byte) bool {
				require.Equal(t, key(order[len(seen)]), k)
				require.Equal(t, model[order[len(seen)]], string(entry))
				seen = append(seen, k)
				return true
			})
			for _, k := range seen {
				a.Remove(k)
			}
			order = order[len(seen):]
		}
		require.Zero(t, a.Len())
	}
}

func TestTheOldestAreShownOnceAndStopWhereToldTo(t *testing.T) {
	var a Archive
	for n := range 10 {
		a.Put(key(n), []byte{byte(n)})
	}
	shown := 0
	a.Oldest(100, func(_ Key, entry []byte) bool { shown++; return entry[0] < 3 })
	require.Equal(t, 4, shown)
	a.Oldest(1, func(k Key, _ []byte) bool { require.Equal(t, key(3), k); return false })
}

func TestAnEntryLargerThanAChunk(t *testing.T) {
	var a Archive
	big := make([]byte, 3*chunkSize)
	big[len(big)-1] = 7
	a.Put(key(1), big)
	require.Equal(t, big, a.Get(key(1)))
	a.Remove(key(1))
	require.Zero(t, a.Bytes())
}
