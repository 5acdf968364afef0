package resilience

import (
	"cmp"
	"math"
	"strings"
	"time"

	"github.com/retell-resilience/resilience/internal/heapq"
	"github.com/retell-resilience/resilience/internal/ordered"
)

// letterBox keeps letters in memory and finds them by id, key, resource, due time and age, each in O(log n). Every change
// goes through expect, change and remove, which tell the journal of a durable store. It is not safe for concurrent use,
// and decides nothing: that is the queue's business.
//
// A letter in the box is never changed in place, a changed copy takes its place. So whoever read the pointer under the
// lock may go on reading without it.
type letterBox struct {
	drops bool                                          // the oldest may have to go: loose is kept
	note  func(id string, l *Letter, fresh bool) uint64 // tells the journal; l nil: it is gone; nil: there is none
	byID  map[string]*letterSlot
	keyID func(string) string    // makes the id of a key; nil: the key itself
	keyed bool                   // byKey goes by keyID
	byKey map[string]*letterSlot // by the id of the key
	// by what they change, oldest first; superseded letters are no longer in it
	byResource map[string]map[parts]*heapq.Queue[*letterSlot]

	waiting  *heapq.Queue[*letterSlot] // by Next
	ready    *heapq.Queue[*letterSlot] // was due when somebody last looked; oldest first
	expiring *heapq.Queue[*letterSlot] // by Expires: waiting and ready ones
	active   *heapq.Queue[*letterSlot] // oldest first: not parked, not superseded
	loose    *heapq.Queue[*letterSlot] // oldest first: what may be dropped to make room

	list  *ordered.List[listed] // in the order of cursors
	began time.Time             // when the box was made

	bytes, looseBytes int64
	states            [letterStates]int
	coming            int // letters on their way into the store: found by id and key, and no part of anything else
	comingBytes       int64
	seq, token        uint64
}

// letterSlot is a letter's place in the box.
type letterSlot struct {
	letter *Letter
	size   int64
	seq    uint64
	token  uint64 // of the lease; 0: none
	noted  uint64 // the journal's number of the last change
	road   leg    // by which it came; nil: the first
	parts  parts  // what of its resource it changes
	waits  int    // refusals and look-ups in a row, for the backoff between them
	flying bool   // whoever holds the lease may be sending

	arrival   *arrival // it is on its way into the store; nil: it is in the queue, or has left
	withdrawn bool     // it did not get into the store

	atWaiting, atReady, atExpiring, atActive, atLoose, atResource int
}

func newLetterBox() *letterBox {
	b := &letterBox{
		list:       ordered.New(listed.compare),
		began:      time.Now(),
		byID:       map[string]*letterSlot{},
		byKey:      map[string]*letterSlot{},
		byResource: map[string]map[parts]*heapq.Queue[*letterSlot]{},
	}
	due := func(s *letterSlot) int64 { return b.elapsed(s.letter.Next) }
	end := func(s *letterSlot) int64 { return b.elapsed(s.letter.Expires) }
	b.waiting = heapq.New(due, arrivedFirst, func(s *letterSlot) *int { return &s.atWaiting })
	b.ready = heapq.New(b.age, arrivedFirst, func(s *letterSlot) *int { return &s.atReady })
	b.expiring = heapq.New(end, arrivedFirst, func(s *letterSlot) *int { return &s.atExpiring })
	b.active = heapq.New(b.age, arrivedFirst, func(s *letterSlot) *int { return &s.atActive })
	b.loose = heapq.New(b.age, arrivedFirst, func(s *letterSlot) *int { return &s.atLoose })
	return b
}

// elapsed says where a time lies for the clock of this process, which nobody can set; what is due, over or older is decided
// by it alone. Times of files and stores have no such reading: theirs is fixed by what the wall clock said at the beginning.
func (b *letterBox) elapsed(t time.Time) int64 { return max(int64(t.Sub(b.began)), longAgo) }

const longAgo = math.MinInt64 / 2 // far from where a difference of two would overflow

// until is how long it is from now to t; not positive: t has come.
func (b *letterBox) until(t, now time.Time) time.Duration {
	return time.Duration(b.elapsed(t) - b.elapsed(now))
}

func (b *letterBox) expired(l *Letter, now time.Time) bool {
	return !l.Expires.IsZero() && b.until(l.Expires, now) <= 0
}

func (b *letterBox) age(s *letterSlot) int64 { return b.elapsed(s.letter.First) }

func arrivedFirst(x, y *letterSlot) bool { return x.seq < y.seq }

func (b *letterBox) len() int { return len(b.byID) - b.coming }

func (b *letterBox) idOf(key string) string {
	if b.keyID == nil {
		return strings.TrimSpace(key) // as ids do, so that what is one key with them is one without
	}
	return b.keyID(key)
}

// ofKey returns the letter of a key, nil if there is none.
func (b *letterBox) ofKey(key string) *letterSlot { return b.keys()[b.idOf(key)] }

// keys is byKey. The letters of a store may have come before it was known how ids of keys are made.
func (b *letterBox) keys() map[string]*letterSlot {
	if b.keyID != nil && !b.keyed {
		b.keyed = true
		clear(b.byKey)
		for _, s := range b.byID {
			b.byKey[b.idOf(s.letter.Key)] = s
		}
	}
	return b.byKey
}

// insert takes over l, whose id and key must be new.
func (b *letterBox) insert(l *Letter, road leg) { b.land(b.expect(l, road)) }

// expect takes over l, whose id and key must be new, as one that is to come.
func (b *letterBox) expect(l *Letter, road leg) *letterSlot {
	b.seq++
	s := &letterSlot{letter: l, size: l.size(), seq: b.seq, road: road, arrival: &arrival{over: make(chan struct{})}}
	s.parts = partsOf(l.Call.Resource, l.Method, l.Body)
	b.byID[l.ID], b.keys()[b.idOf(l.Key)] = s, s
	b.coming++
	b.comingBytes += s.size
	b.write(s, true)
	b.place(s)
	return s
}

// land makes a letter that was expected one of the box.
func (b *letterBox) land(s *letterSlot) {
	b.arrived(s)
	b.bytes += s.size
	b.states[s.letter.state()]++
	b.list.Insert(b.listed(s))
	b.place(s)
}

func (b *letterBox) arrived(s *letterSlot) {
	b.coming--
	b.comingBytes -= s.size
	close(s.arrival.over)
	s.arrival = nil
}

func (b *letterBox) write(s *letterSlot, fresh bool) {
	if b.note != nil {
		s.noted = b.note(s.letter.ID, s.letter, fresh)
	}
}

// change puts an edited copy in the place of the letter. edit must not touch what size counts, nor ID and First.
func (b *letterBox) change(s *letterSlot, edit func(*Letter)) {
	b.edit(s, edit)
	b.write(s, false)
}

// refresh brings the letter up to date with its lease, which is not written.
func (b *letterBox) refresh(s *letterSlot) { b.edit(s, func(*Letter) {}) }

func (b *letterBox) edit(s *letterSlot, edit func(*Letter)) {
	l := *s.letter
	edit(&l)
	l.Leased = s.token != 0
	if s.arrival == nil {
		b.states[s.letter.state()]--
		b.states[l.state()]++
	}
	s.letter = &l
	b.place(s)
}

func (b *letterBox) remove(s *letterSlot) {
	delete(b.byID, s.letter.ID)
	delete(b.keys(), b.idOf(s.letter.Key))
	if s.arrival != nil {
		b.arrived(s)
	} else {
		b.bytes -= s.size
		b.states[s.letter.state()]--
		b.list.Remove(b.listed(s))
	}
	if b.note != nil {
		s.noted = b.note(s.letter.ID, nil, false)
	}
	s.token = 0
	for _, q := range b.queues() {
		q.Remove(s)
	}
	b.loosen(s, false)
	b.leaveResource(s)
}

// queues are those that a slot can simply be taken out of.
func (b *letterBox) queues() [4]*heapq.Queue[*letterSlot] {
	return [...]*heapq.Queue[*letterSlot]{b.waiting, b.ready, b.expiring, b.active}
}

// place brings every index up to date with the letter.
func (b *letterBox) place(s *letterSlot) {
	l, state := s.letter, s.letter.state()
	here := s.arrival == nil
	b.ready.Remove(s)
	idle := here && (state == LetterWaiting || state == LetterInDoubt)
	keep(b.waiting, s, idle)
	keep(b.expiring, s, idle && !l.Expires.IsZero())
	keep(b.active, s, here && !l.Parked && !l.Superseded)
	b.loosen(s, b.drops && here && state != LetterLeased && !l.InDoubt)
	switch {
	case l.Superseded:
		b.leaveResource(s)
	case l.Call.Resource != "" && s.atResource == 0:
		b.joinResource(s)
	}
}

func keep(q *heapq.Queue[*letterSlot], s *letterSlot, in bool) {
	if in {
		q.Push(s)
		return
	}
	q.Remove(s)
}

func (b *letterBox) loosen(s *letterSlot, loose bool) {
	switch was := b.loose.Has(s); {
	case loose && !was:
		b.loose.Push(s)
		b.looseBytes += s.size
	case !loose && was:
		b.loose.Remove(s)
		b.looseBytes -= s.size
	}
}

func (b *letterBox) joinResource(s *letterSlot) {
	all := b.byResource[s.letter.Call.Resource]
	if all == nil {
		all = map[parts]*heapq.Queue[*letterSlot]{}
		b.byResource[s.letter.Call.Resource] = all
	}
	q := all[s.parts]
	if q == nil {
		q = heapq.New(b.age, arrivedFirst, func(s *letterSlot) *int { return &s.atResource })
		all[s.parts] = q
	}
	q.Push(s)
}

func (b *letterBox) leaveResource(s *letterSlot) {
	if s.atResource == 0 {
		return
	}
	all := b.byResource[s.letter.Call.Resource]
	q := all[s.parts]
	q.Remove(s)
	if q.Len() == 0 {
		delete(all, s.parts)
	}
	if len(all) == 0 {
		delete(b.byResource, s.letter.Call.Resource)
	}
}

// olderThan returns one letter of a resource's queue that began before t.
func (b *letterBox) olderThan(q *heapq.Queue[*letterSlot], t time.Time) *letterSlot {
	if s, ok := q.Peek(); ok && b.elapsed(s.letter.First) < b.elapsed(t) {
		return s
	}
	return nil
}

// overdue returns one waiting letter whose time is over.
func (b *letterBox) overdue(now time.Time) *letterSlot {
	if s, ok := b.expiring.Peek(); ok && b.expired(s.letter, now) {
		return s
	}
	return nil
}

// oldestDue returns the oldest of the letters that are due.
func (b *letterBox) oldestDue(now time.Time) *letterSlot {
	for {
		s, ok := b.waiting.Peek()
		if !ok || b.until(s.letter.Next, now) > 0 {
			break
		}
		b.waiting.Remove(s)
		b.ready.Push(s)
	}
	s, _ := b.ready.Peek()
	return s
}

// nextDue is when the next letter is due; zero: none waits.
func (b *letterBox) nextDue() time.Time {
	if s, ok := b.ready.Peek(); ok {
		return s.letter.Next
	}
	if s, ok := b.waiting.Peek(); ok {
		return s.letter.Next
	}
	return time.Time{}
}

// nextExpiry is when the time of the next waiting letter is over; zero: never.
func (b *letterBox) nextExpiry() time.Time {
	if s, ok := b.expiring.Peek(); ok {
		return s.letter.Expires
	}
	return time.Time{}
}

// lease marks the letter as taken. Whoever wants to change it afterwards shows the token.
func (b *letterBox) lease(s *letterSlot) uint64 {
	b.token++
	s.token, s.flying = b.token, false
	b.refresh(s)
	return s.token
}

// listed is a letter in the order of cursors. Beside it stands what tells nearly any two apart without a look at them.
type listed struct {
	at   int64 // First by the wall clock, in nanoseconds since the box was made, as far as that can be said in 64 bits
	slot *letterSlot
}

func (b *letterBox) listed(s *letterSlot) listed { return listed{b.wall(s.letter.First), s} }

// wall leaves the monotonic clock out: a cursor from a file has none, and one order must hold for all.
func (b *letterBox) wall(t time.Time) int64 { return int64(t.Round(0).Sub(b.began.Round(0))) }

func (x listed) compare(y listed) int {
	if c := cmp.Compare(x.at, y.at); c != 0 {
		return c
	}
	return x.slot.letter.cursor().compare(y.slot.letter.cursor())
}

// page returns up to n letters that come after the cursor.
func (b *letterBox) page(after LetterCursor, n int) []*Letter {
	all, at := after == LetterCursor{}, b.wall(after.First)
	past := func(x listed) bool {
		switch {
		case all:
			return true
		case x.at != at:
			return x.at > at
		}
		return after.compare(x.slot.letter.cursor()) < 0
	}
	found := b.list.From(past, n)
	page := make([]*Letter, 0, len(found))
	for _, x := range found {
		page = append(page, x.slot.letter)
	}
	return page
}

// snapshot returns all letters, in the order of cursors.
func (b *letterBox) snapshot() []letterView {
	all := make([]letterView, 0, b.len())
	for _, x := range b.list.From(func(listed) bool { return true }, b.len()) {
		all = append(all, letterView{x.slot.letter, x.slot.token != 0 && x.slot.flying})
	}
	return all
}

// ofID returns the letter with that id, nil if there is none, or if it has not arrived.
func (b *letterBox) ofID(id string) *letterSlot {
	if s := b.byID[id]; s != nil && s.arrival == nil {
		return s
	}
	return nil
}

// letterView is a letter as it was at one moment.
type letterView struct {
	letter *Letter
	flying bool
}
