package archive

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSmallEntriesShareAChunk(t *testing.T) {
	var a Archive
	entry := make([]byte, 1024-headerSize)
	for n := range 256 {
		a.Put(key(n), entry)
		require.Equal(t, chunkSize, a.Bytes())
	}
	a.Put(key(256), nil)
	require.Equal(t, 2*chunkSize, a.Bytes(), "the first is full to the last byte")
}

func TestAnEntryThatIsReplacedLeavesNothing(t *testing.T) {
	var a Archive
	for range 100 {
		a.Put(key(1), make([]byte, chunkSize/2))
		require.Equal(t, chunkSize, a.Bytes(), "the chunk of the one before is gone")
	}
	a.Remove(key(1))
	require.Zero(t, a.Bytes())
	require.Empty(t, a.chunks)
}

func TestAChunkGoesWithItsLastEntryWhereverItStands(t *testing.T) {
	var a Archive
	for n := range 3 {
		a.Put(key(n), make([]byte, chunkSize/2+n))
	}
	a.Remove(key(1))
	a.Remove(key(2))
	require.Equal(t, chunkSize, a.Bytes())
	require.Nil(t, a.chunks[1])
	require.Nil(t, a.chunks[2])
	a.Put(key(3), []byte("new")) // the newest chunk is gone
	require.Equal(t, "new", string(a.Get(key(3))))
	a.Remove(key(0))
	require.Len(t, a.chunks, 1)
	require.Equal(t, "new", string(a.Get(key(3))))
}

func TestOldestLooksAtSoManyAndNoMore(t *testing.T) {
	var a Archive
	for n := range 5 {
		a.Put(key(n), nil)
	}
	a.Remove(key(0)) // looked at, but not shown
	shown := 0
	a.Oldest(3, func(Key, []byte) bool { shown++; return true })
	require.Equal(t, 2, shown)
	a.Oldest(0, func(Key, []byte) bool { t.Error("none"); return true })
}
