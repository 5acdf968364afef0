package circuit

import (
	"sync"

	"github.com/retell-resilience/resilience/internal/waitq"
)

// Set holds one gate for each key, at most so many. The ones unused for longest go first, see evict.
type Set struct {
	cfg   *Config
	limit int // 0: none

	byHand sync.Mutex // held while all gates are forced, so that they end up the same

	mu    sync.Mutex
	blank *Gate // what a circuit looks like that nobody has used
	byKey map[string]*Gate
	order waitq.Queue[*Gate] // the one unused for longest is the oldest
}

// NewSet makes an empty set.
func NewSet(cfg *Config, limit int) *Set {
	quiet := *cfg
	quiet.Changed, quiet.Opened = func(Change) {}, func() {}
	return &Set{cfg: cfg, limit: limit, blank: New(&quiet, ""), byKey: map[string]*Gate{}}
}

// Get returns the gate for key, made if it is missing.
func (s *Set) Get(key string) *Gate {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g, ok := s.byKey[key]; ok {
		if s.limit > 0 {
			s.order.Remove(&g.place)
			s.order.Push(&g.place)
		}
		return g
	}
	if s.limit > 0 && s.order.Len() >= s.limit {
		s.evict()
	}
	g := New(s.cfg, key)
	g.follow(s.blank)
	g.place.Value = g
	s.order.Push(&g.place)
	s.byKey[key] = g
	return g
}

// Peek returns the gate for key, or one that looks like it would if it is missing.
func (s *Set) Peek(key string) *Gate {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g, ok := s.byKey[key]; ok {
		return g
	}
	return s.blank
}

// spared is how many gates in trouble are passed over in the search for one that may be forgotten.
const spared = 16

// evict forgets the circuit unused for longest. One that is open or held by hand is worth more than a closed one, but
// the search for a closed one must end.
func (s *Set) evict() {
	victim := s.order.Oldest().Value
	looked := 0
	for p := range s.order.All {
		if v := p.Value.View(); v.State == Closed && !v.Forced {
			victim = p.Value
			break
		}
		if looked++; looked == spared {
			break
		}
	}
	delete(s.byKey, victim.key)
	s.order.Remove(&victim.place)
}

// All returns the gates there are.
func (s *Set) All() []*Gate {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*Gate, 0, s.order.Len())
	for p := range s.order.All {
		all = append(all, p.Value)
	}
	return all
}

// Len is the number of gates.
func (s *Set) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.order.Len()
}

// Troubled returns the keys of the gates that are not closed, in no order.
func (s *Set) Troubled() []string {
	var keys []string
	for _, g := range s.All() {
		if g.State() != Closed {
			keys = append(keys, g.key)
		}
	}
	return keys
}

// Each does something by hand to every gate, those that will be made included.
func (s *Set) Each(do func(*Gate)) {
	s.byHand.Lock()
	defer s.byHand.Unlock()
	do(s.blank)
	s.blank.forget() // what is done to all is no history of a circuit that is not there
	for _, g := range s.All() {
		do(g)
	}
}
