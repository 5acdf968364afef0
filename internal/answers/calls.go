package answers

import "sync"

// Calls are the reads on their way that others may wait for. ID tells apart what must not be shared; L says who leads. It is
// safe for concurrent use. The store's lock is theirs too, since each call is a read of it.
type Calls[ID comparable, L any] struct {
	store *Store
	under map[ID]*Call[ID, L]

	// Nearly every call ends without a follower. It is used again then, since nobody else has seen it.
	unseen sync.Pool
}

// NewCalls returns an empty set of calls, whose answers go to the store.
func NewCalls[ID comparable, L any](s *Store) *Calls[ID, L] {
	return &Calls[ID, L]{store: s, under: make(map[ID]*Call[ID, L])}
}

// Ending says what a call that is over means to those who waited for it.
type Ending uint8

// The endings. The zero value is what is left of a leader who panicked.
const (
	Abandoned Ending = iota // for a reason of the leader's own: somebody else should lead
	Answered
	Failed
	Unshared // what came cannot be shared: each must ask for themselves
)

// Call is one read on its way. Its leader sets Ending, Answer and Err before Leave; others read them when it is Done.
type Call[ID comparable, L any] struct {
	ID     ID
	Leader L
	Read   Read

	Ending Ending
	Answer *Answer
	Err    error

	done     chan struct{} // nil: nobody waits
	replaced bool          // by a call that a write did not overtake
}

// Join returns the call under id that is on its way, for a follower; or, if there is none, one to lead. A call that a
// write has overtaken is not joined: who asks after the write must see it. A leader must call Leave and then End.
func (c *Calls[ID, L]) Join(id ID, k Key, resource string, leader L) (call *Call[ID, L], leads bool) {
	c.store.mu.Lock()
	defer c.store.mu.Unlock()
	call = c.under[id]
	switch {
	case call == nil:
	case !call.Read.overtaken():
		if call.done == nil {
			call.done = make(chan struct{})
		}
		return call, false
	default:
		call.replaced = true
	}
	call, _ = c.unseen.Get().(*Call[ID, L])
	if call == nil {
		call = new(Call[ID, L])
	}
	call.ID, call.Leader, call.Read = id, leader, c.store.begin(k, resource)
	c.under[id] = call
	return call, true
}

// Leave takes a call out, so that nobody joins it any more, ends its read, and reports whether anybody waits for it.
func (c *Calls[ID, L]) Leave(call *Call[ID, L]) (awaited bool) {
	c.store.mu.Lock()
	defer c.store.mu.Unlock()
	if !call.replaced {
		delete(c.under, call.ID)
	}
	c.store.end(call.Read)
	return call.done != nil
}

// End wakes those who wait. The leader must not use the call any more.
func (c *Calls[ID, L]) End(call *Call[ID, L]) {
	if call.done != nil {
		close(call.done)
		return
	}
	*call = Call[ID, L]{}
	c.unseen.Put(call)
}

// Done is closed when the call is over. Only a follower may ask for it.
func (call *Call[ID, L]) Done() <-chan struct{} { return call.done }

// Len is how many calls are on their way.
func (c *Calls[ID, L]) Len() int {
	c.store.mu.Lock()
	defer c.store.mu.Unlock()
	return len(c.under)
}
