// Package archive keeps many small byte strings in memory in the order in which they came, and finds them by key. It holds
// no pointers to them, so ten million of them cost the garbage collector nothing, and forgetting the oldest is cheap.
package archive

import "encoding/binary"

// Key is a hash of whatever names an entry. Two names with the same key cannot both be kept.
type Key [16]byte

// Archive is not safe for concurrent use. The zero value is ready.
type Archive struct {
	index  map[Key]place
	chunks []*chunk // oldest first; nil where nothing is left
	base   uint32   // number of the first chunk
	bytes  int
}

type place struct{ chunk, offset uint32 }

type chunk struct {
	data []byte
	live int // entries that are still in the index
	next int // where Oldest goes on
}

const (
	chunkSize  = 256 << 10
	headerSize = 4 + len(Key{})
)

// Len returns the number of entries, Bytes what their chunks take.
func (a *Archive) Len() int   { return len(a.index) }
func (a *Archive) Bytes() int { return a.bytes }

// Get returns the entry, nil if there is none. It must not be changed, and not be kept.
func (a *Archive) Get(k Key) []byte {
	p, ok := a.index[k]
	if !ok {
		return nil
	}
	_, entry, _ := a.chunks[p.chunk-a.base].at(int(p.offset))
	return entry
}

// Put adds an entry as the newest, in place of an older one with its key.
func (a *Archive) Put(k Key, entry []byte) {
	a.Remove(k)
	if a.index == nil {
		a.index = map[Key]place{}
	}
	c := a.room(headerSize + len(entry))
	a.index[k] = place{a.base + uint32(len(a.chunks)) - 1, uint32(len(c.data))} //nolint:gosec // bounded by the chunk size
	c.data = binary.LittleEndian.AppendUint32(c.data, uint32(len(entry)))       //nolint:gosec // as above
	c.data = append(c.data, k[:]...)
	c.data = append(c.data, entry...)
	c.live++
}

func (a *Archive) room(n int) *chunk {
	if last := len(a.chunks) - 1; last >= 0 && a.chunks[last] != nil {
		if c := a.chunks[last]; len(c.data)+n <= cap(c.data) {
			return c
		}
	}
	c := &chunk{data: make([]byte, 0, max(chunkSize, n))}
	a.chunks = append(a.chunks, c)
	a.bytes += cap(c.data)
	return c
}

// at reads the entry at an offset, and where the next one begins.
func (c *chunk) at(offset int) (k Key, entry []byte, next int) {
	n := int(binary.LittleEndian.Uint32(c.data[offset:]))
	copy(k[:], c.data[offset+4:])
	next = offset + headerSize + n
	return k, c.data[offset+headerSize : next : next], next
}

// Remove forgets an entry, and its chunk with the last one in it.
func (a *Archive) Remove(k Key) {
	p, ok := a.index[k]
	if !ok {
		return
	}
	delete(a.index, k)
	i := p.chunk - a.base
	if a.chunks[i].live--; a.chunks[i].live > 0 {
		return
	}
	a.bytes -= cap(a.chunks[i].data)
	a.chunks[i] = nil
	for len(a.chunks) > 0 && a.chunks[0] == nil {
		a.chunks = a.chunks[1:]
		a.base++
	}
}

// Oldest calls f with entries from the oldest on, until f returns false or n have been looked at. f must not change the
// archive. Those for which it returned true are not shown again: they are expected to be removed.
func (a *Archive) Oldest(n int, f func(k Key, entry []byte) bool) {
	for i, c := range a.chunks {
		for c != nil && c.next < len(c.data) {
			if n--; n < 0 {
				return
			}
			k, entry, next := c.at(c.next)
			here := place{a.base + uint32(i), uint32(c.next)} //nolint:gosec // as in Put
			if p, ok := a.index[k]; ok && p == here && !f(k, entry) {
				return
			}
			c.next = next
		}
	}
}
