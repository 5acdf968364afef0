package circuit

import (
	"sync"
	"sync/atomic"
)

// Once makes a ticket count once, however often it is left.
func (g *Gate) Once(t Ticket) Ticket {
	t.mark = g.marks.next()
	return t
}

// marks hands out bits that can be set once. Sixty-four share a word, so that a ticket that counts once costs next to no
// allocation.
type marks struct {
	mu   sync.Mutex
	word *atomic.Uint64
	used uint
}

// mark is one such bit. The zero mark can be set again and again.
type mark struct {
	word *atomic.Uint64
	bit  uint64
}

func (m *marks) next() mark {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.word == nil || m.used == 64 {
		m.word, m.used = new(atomic.Uint64), 0
	}
	m.used++
	return mark{m.word, 1 << (m.used - 1)}
}

// set reports whether it had not been set before.
func (m mark) set() bool { return m.word == nil || m.word.Or(m.bit)&m.bit == 0 }
