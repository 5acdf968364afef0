package answers

import (
	"net/http"
	"time"
)

// Ending says what a call that is over means to those who waited for it.
type Ending uint8

// The endings. The zero value is what is left of a leader who panicked.
const (
	Abandoned Ending = iota // for a reason of the leader's own: somebody else should lead
	Answered
	Failed
	Unshared // what came cannot be shared: each must ask for themselves
)

// Call is one read on its way. Its answer is kept only if its resource is not invalidated meanwhile. Its leader sets Ending,
// Answer and Err before End; others read them when it is Done.
type Call[ID comparable, L any] struct {
	ID     ID
	Leader L

	Ending Ending
	Answer *Answer
	Err    error

	entry *entry[ID, L]
	node  *node // of its resource
	since uint64
	last  *Answer       // what was kept as it began; nil: nothing
	done  chan struct{} // nil: nobody waits
}

// Join returns a call for this key and id that is on its way, for a follower; or, if there is none, one to lead. A call that
// a write has overtaken is not joined: who asks after the write must see it. A leader must call Leave and then End.
func (s *Store[ID, L]) Join(k Key, id ID, resource string, leader L) (call *Call[ID, L], leads bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entryOf(k)
	if call = e.open(id); call != nil && !call.overtaken() {
		if call.done == nil {
			call.done = make(chan struct{})
		}
		return call, false
	}
	call = s.begin(e, resource)
	call.ID, call.Leader = id, leader
	e.show(call)
	return call, true
}

// Begin returns a call that nobody joins. Leave and then End must follow.
func (s *Store[ID, L]) Begin(k Key, resource string) *Call[ID, L] {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.begin(s.entryOf(k), resource)
}

// open is the call that can be joined under an id; nil: there is none.
func (e *entry[ID, L]) open(id ID) *Call[ID, L] {
	if e.lead != nil && e.lead.ID == id {
		return e.lead
	}
	return e.others[id]
}

// show lets others join a call, which takes the place of an overtaken one.
func (e *entry[ID, L]) show(call *Call[ID, L]) {
	switch {
	case e.others[call.ID] != nil:
		e.others[call.ID] = call
	case e.lead == nil || e.lead.ID == call.ID:
		e.lead = call
	default:
		if e.others == nil {
			e.others = make(map[ID]*Call[ID, L])
		}
		e.others[call.ID] = call
	}
}

// hide takes back what show did, unless another call has the place.
func (e *entry[ID, L]) hide(call *Call[ID, L]) {
	switch call {
	case e.lead:
		e.lead = nil
	case e.others[call.ID]:
		delete(e.others, call.ID)
	}
}

// entryOf returns the entry of a key, a new one if there is none: it must get a call then.
func (s *Store[ID, L]) entryOf(k Key) *entry[ID, L] {
	e := s.entries[string(k)]
	if e == nil {
		e = &entry[ID, L]{key: string(k)}
		s.entries[e.key] = e
	}
	return e
}

func (s *Store[ID, L]) begin(e *entry[ID, L], resource string) *Call[ID, L] {
	call, _ := s.unseen.Get().(*Call[ID, L])
	if call == nil {
		call = new(Call[ID, L])
	}
	call.entry, call.since, call.last = e, s.moment, e.answer
	if e.answer != nil && e.node.resource == resource {
		call.node = e.node // most often: nothing to look for
	} else {
		call.node = s.root.at(resource)
	}
	call.node.calls++
	s.calls++
	e.calls++
	return call
}

// Leave takes a call out, so that nobody joins it any more, and keeps its answer, if there is one and no write has overtaken
// it. It reports whether anybody waits for the call.
func (s *Store[ID, L]) Leave(call *Call[ID, L], a *Answer, now time.Time) (awaited bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a != nil {
		s.put(call, a, now)
	}
	e := call.entry
	e.hide(call)
	e.calls--
	s.prune(e)
	s.calls--
	call.node.calls--
	call.node.prune()
	return call.done != nil
}

// End wakes those who wait. The leader must not use the call any more.
func (s *Store[ID, L]) End(call *Call[ID, L]) {
	if call.done != nil {
		close(call.done)
		return
	}
	*call = Call[ID, L]{}
	s.unseen.Put(call)
}

// Done is closed when the call is over. Only a follower may ask for it.
func (call *Call[ID, L]) Done() <-chan struct{} { return call.done }

// overtaken reports whether something has invalidated the resource of a call since it began.
func (call *Call[ID, L]) overtaken() bool { return call.node.overtaken(call.since) }

// Take is [Take] for the answer to this call. Where nothing has changed it is the one that is kept already, which saves a
// copy.
func (call *Call[ID, L]) Take(resp *http.Response, known []string) (a *Answer, ok bool) {
	if call.last != nil && call.last.is(resp) {
		return call.last, true
	}
	return Take(resp, known)
}
