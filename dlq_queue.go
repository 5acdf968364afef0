package resilience

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
)

// Add puts a letter into the queue, for programs that park work themselves. It keeps a copy, without credentials. An empty
// ID or Key is made; zero times mean: failed now, due after the first random delay. A letter whose key is in the queue
// already is merged into the one there. Add waits for nothing but DLQConfig.Store, 5 s at most. It returns
// [ErrLettersFull] for a letter that does not fit, or, joined to the reason, that did not get into the store,
// [ErrClosed] after the queue was closed, [ErrBadKey] for a key that no call could carry, and another error for a letter
// that names neither operation nor method, or whose id is taken.
func (d *DLQ) Add(l Letter) error {
	if d == nil {
		return fmt.Errorf("%w: there is no queue", ErrLettersFull)
	}
	if l.Operation == "" && l.Method == "" {
		return errors.New("dlq: a letter needs an Operation or a Method")
	}
	now := time.Now()
	l.Operation = or(l.Operation, l.Method)
	l.Cause = or(l.Cause, "caller")
	l.NotAfter = or(l.NotAfter, l.Expires)
	l.First = or(l.First, now)
	l.Last = or(l.Last, l.First)
	l.Next = or(l.Next, now.Add(d.backoff(0)))
	l.Key = or(l.Key, uuid.NewString())
	if !l.writable() {
		return errors.New("dlq: a letter's times must lie in the years 0 to 9999")
	}
	if !l.countable() || l.Call.Effect > EffectOnce || l.Call.Priority > PriorityBulk || l.Call.Class > ClassLongPoll {
		return errors.New("dlq: a letter's Attempts, Redrives, Effect, Priority or Class is none") // no import would take it
	}
	if err := (&trip{key: l.Key, named: true, call: l.Call}).checkKey(); err != nil {
		return err
	}
	if n := len(l.History); n > maxLetterHistory {
		l.History = append(l.History[:1:1], l.History[n-maxLetterHistory+1:]...)
	}
	if len(l.History) == 0 {
		l.note(LetterAttempt{Time: l.Last, Cause: l.Cause, Detail: l.Detail, StatusCode: l.StatusCode})
	}
	_, err := d.admit(context.Background(), l, nil, false)
	return err
}

// errNoRoom is what admitNow says when the overflow policy has to decide.
var errNoRoom = errors.New("no room")

// admit makes l a letter, by the overflow policy where it does not fit, and returns it as it is in the queue.
func (d *DLQ) admit(ctx context.Context, l Letter, road leg, wait bool) (*Letter, error) {
	l = l.clone()
	l.strip()
	l.cut()
	l.ID = or(l.ID, newLetterID())
	l.Leased = false
	l.setDoubt(l.InDoubt, l.DoubtSince)
	l.bound(l.First, d.cfg.maxAge(l.Operation))
	p, err := d.admitNow(&l, road, wait)
	if wait && errors.Is(err, errNoRoom) {
		p, err = d.admitLater(ctx, &l, road)
	}
	var kept *Letter
	switch {
	case err == nil:
		kept, err = d.secure(ctx, p)
	case errors.Is(err, errNoRoom) && d.cfg.Overflow == OverflowSpill:
		kept, err = d.spill(&l)
	}
	if err == nil {
		return kept, nil
	}
	if errors.Is(err, errNoRoom) {
		err = ErrLettersFull
	}
	d.refused(&l, err)
	return nil, err
}

// newLetterID sorts by time.
func newLetterID() string {
	if id, err := uuid.NewV7(); err == nil {
		return id.String()
	}
	return uuid.NewString()
}

// admitNow admits l if there is room. A caller who may wait does not overtake those who do.
func (d *DLQ) admitNow(l *Letter, road leg, waits bool) (placed, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if waits && len(d.blocked) > 0 && d.box.ofKey(l.Key) == nil {
		return placed{}, errNoRoom
	}
	return d.place(l, road)
}

// placed is a letter that has its place in the queue, or will have when it is in the store.
type placed struct {
	slot   *letterSlot
	letter *Letter
	seq    uint64 // the change to wait for
}

// place is admitNow under the lock.
func (d *DLQ) place(l *Letter, road leg) (placed, error) {
	if d.closed {
		return placed{}, ErrClosed
	}
	if s := d.box.ofKey(l.Key); s != nil {
		return d.join(s, l), nil
	}
	if d.box.byID[l.ID] != nil {
		return placed{}, fmt.Errorf("dlq: letter %s is there already", l.ID)
	}
	if !d.mayFit(l.size()) {
		return placed{}, errNoRoom
	}
	late := !l.Superseded && d.overtaken(l.Call.Resource, partsOf(l.Call.Resource, l.Method, l.Body), l.First)
	l.Superseded = l.Superseded || late
	s := d.box.expect(l, road)
	s.arrival.late = late
	if d.journal == nil {
		d.land(s, l.Cause) // nothing has taken its room meanwhile
	}
	return placed{s, l, s.noted}, nil
}

// land makes a letter that was expected one of the queue; false: there was no room after all.
func (d *DLQ) land(s *letterSlot, cause string) bool {
	if d.cfg.Overflow == OverflowDropOldest && !d.fits(1, s.size) && !d.makeRoom(s.size) {
		d.withdraw(s)
		return false
	}
	done, late := s.arrival.done, s.arrival.late
	d.box.land(s)
	d.counters.Admitted++
	d.tell(EventLetterAdded, s.letter, cause)
	switch {
	case done:
		d.ack(s, "settled", 0)
	case late:
		d.tellSuperseded(s)
	}
	d.wake()
	return true
}

// withdraw forgets a letter that was expected.
func (d *DLQ) withdraw(s *letterSlot) {
	s.withdrawn = true
	d.box.remove(s)
	d.journal.giveUp(s.letter.ID)
	d.callNext()
}

// fits reports whether n letters of so many bytes have room. Removals that the store did not take need room too, or they
// would be without bound. What is on its way has its room, except where the oldest have to go for it, for they go last.
func (d *DLQ) fits(n int, size int64) bool {
	n += d.box.len()
	size += d.box.bytes
	if d.journal != nil && d.cfg.Overflow != OverflowDropOldest {
		n += d.box.coming + d.journal.owed
		size += d.box.comingBytes
	}
	return (d.cfg.MaxLetters < 0 || n <= d.cfg.MaxLetters) && (d.cfg.MaxBytes < 0 || size <= d.cfg.MaxBytes)
}

// mayFit reports whether a letter has room, or would have if the oldest went.
func (d *DLQ) mayFit(size int64) bool {
	return d.fits(1, size) || d.cfg.Overflow == OverflowDropOldest && d.canMakeRoom(size)
}

// canMakeRoom reports whether a letter would fit if all that may go went. More than MaxLetters may have been loaded.
func (d *DLQ) canMakeRoom(size int64) bool {
	return (d.cfg.MaxLetters < 0 || d.box.len()-d.box.loose.Len() < d.cfg.MaxLetters) &&
		(d.cfg.MaxBytes < 0 || d.box.bytes-d.box.looseBytes+size <= d.cfg.MaxBytes)
}

// makeRoom drops the oldest letters until size fits; none if even dropping all that may go would not help.
func (d *DLQ) makeRoom(size int64) bool {
	if !d.canMakeRoom(size) {
		return false
	}
	for !d.fits(1, size) {
		s, _ := d.box.loose.Peek()
		d.box.remove(s)
		d.counters.Dropped++
		d.tell(EventLetterDropped, s.letter, "full")
		d.report(d.cfg.OnDrop, s.letter)
	}
	return true
}

// admitLater waits in line for room.
func (d *DLQ) admitLater(ctx context.Context, l *Letter, road leg) (placed, error) {
	if d.cfg.MaxBytes >= 0 && l.size() > d.cfg.MaxBytes {
		return placed{}, errNoRoom
	}
	turn := d.queueUp(false, l.size())
	for {
		select {
		case <-ctx.Done():
			d.leaveLine(turn)
			return placed{}, errNoRoom
		case <-d.closing:
			d.leaveLine(turn)
			return placed{}, ErrClosed
		case <-turn:
		}
		p, err := d.admitNow(l, road, false)
		if !errors.Is(err, errNoRoom) {
			d.nextInLine() // there may be room for another one
			return p, err
		}
		turn = d.queueUp(true, l.size())
	}
}

func (d *DLQ) queueUp(first bool, size int64) chan struct{} {
	turn := make(chan struct{})
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.closed || (first || len(d.blocked) == 0) && d.fits(1, size):
		close(turn) // room came, or the end, before the place in line
	case first:
		d.blocked = slices.Insert(d.blocked, 0, turn)
	default:
		d.blocked = append(d.blocked, turn)
	}
	return turn
}

func (d *DLQ) leaveLine(turn chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if i := slices.Index(d.blocked, turn); i >= 0 {
		d.blocked = slices.Delete(d.blocked, i, i+1)
		return
	}
	d.callNext() // it was our turn already: the next one's
}

func (d *DLQ) nextInLine() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.callNext()
}

// callNext lets the first of those who wait for room try.
func (d *DLQ) callNext() {
	if len(d.blocked) > 0 {
		close(d.blocked[0])
		d.blocked = slices.Delete(d.blocked, 0, 1)
	}
}

// spill hands the letter to the user's sink, which owns it from then on.
func (d *DLQ) spill(l *Letter) (*Letter, error) {
	if err := d.guard(l.Operation, func() error { return d.cfg.Spill(l.clone()) }); err != nil {
		return nil, errNoRoom
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.counters.Spilled++
	d.tell(EventLetterDropped, l, "spilled")
	return l, nil
}

func (d *DLQ) refused(l *Letter, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.counters.Refused++
	cause := "full"
	var store *notStored
	switch {
	case errors.As(err, &store):
		cause = "store"
	case errors.Is(err, ErrClosed):
		cause = "closed"
	}
	d.tell(EventLetterRefused, l, cause)
}

// join merges a second failure of a key into the letter it has, and returns that.
func (d *DLQ) join(s *letterSlot, l *Letter) placed {
	d.counters.Merged++
	last := LetterAttempt{Time: l.Last, Cause: l.Cause, Detail: l.Detail, StatusCode: l.StatusCode}
	d.box.change(s, func(old *Letter) {
		d.failAgain(old, last, l.InDoubt, true)
		old.Next = later(old.Next, l.Next) // the other side may have said when to come again
		old.DoubtSince = later(old.DoubtSince, l.DoubtSince)
		old.Superseded = old.Superseded || d.overtaken(l.Call.Resource, s.parts, later(old.First, l.First))
	})
	d.tell(EventLetterAdded, s.letter, "merged")
	d.wake()
	return placed{s, s.letter, s.noted}
}

// failAgain notes another failure reported by a caller. Whoever calls again wants it done: so a letter that was given up
// begins anew, and one is never given up by this. When it is due is for the caller to say.
func (d *DLQ) failAgain(l *Letter, a LetterAttempt, doubt, counts bool) {
	l.note(a)
	l.InDoubt = l.InDoubt || doubt
	if (l.Parked || l.Superseded) && !l.Redacted {
		d.revive(l, time.Now())
	}
	if counts && (d.cfg.Attempts < 0 || l.Attempts < d.cfg.Attempts-1) {
		l.Attempts++
	}
}

// revive makes a letter as good as new, except that it keeps its history and what is known about its key.
func (d *DLQ) revive(l *Letter, now time.Time) {
	l.Attempts, l.Parked, l.ParkedReason, l.Superseded = 0, false, "", false
	l.Next = now
	l.bound(now, d.cfg.maxAge(l.Operation))
}

// merge gives a letter back whose lease a failed call held, and returns it; none when it is gone. A caller who took the
// call back has not failed.
func (d *DLQ) merge(held holding, f failure, own bool) placed {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.holdsLease(held.slot, held.token) {
		return placed{}
	}
	s := held.slot
	s.token = 0
	if !own {
		d.counters.Merged++
	}
	d.box.change(s, func(l *Letter) {
		if own && !f.doubt {
			return
		}
		d.failAgain(l, f.attempt(time.Now()), f.doubt, !f.refused)
		l.Next = l.Last.Add(max(d.backoff(l.Attempts), f.after))
		l.Superseded = l.Superseded || d.overtaken(l.Call.Resource, s.parts, held.began)
	})
	if !own {
		d.tell(EventLetterAdded, s.letter, "merged")
	}
	d.wake()
	return placed{s, s.letter, s.noted}
}

// letGo gives a lease back after a panic.
func (d *DLQ) letGo(held holding, once bool) {
	if held.slot == nil {
		return
	}
	d.merge(held, failure{cause: "panic", doubt: once}, false)
}

// holdsLease reports whether the lease is still the one that token stands for. A stale one changes nothing.
func (d *DLQ) holdsLease(s *letterSlot, token uint64) bool {
	return s != nil && token != 0 && s.token == token
}

// ack removes a letter whose write has happened, as soon as it has arrived.
func (d *DLQ) ack(s *letterSlot, cause string, status int) {
	if s.arrival != nil {
		s.arrival.done = true
		return
	}
	d.box.remove(s)
	d.counters.Acked++
	l := *s.letter
	l.StatusCode = status
	d.tell(EventLetterDone, &l, cause)
	d.callNext()
}

// found removes a letter whose write was found to have happened: older ones of its resource must not undo it.
func (d *DLQ) found(s *letterSlot) {
	d.ack(s, "settled", 0)
	d.supersede(s.letter.Call.Resource, s.parts, s.letter.First)
}

// park gives a letter up and reports it.
func (d *DLQ) park(s *letterSlot, reason string, edit func(*Letter)) {
	d.box.change(s, func(l *Letter) {
		edit(l)
		l.Parked, l.ParkedReason = true, reason
	})
	s.waits = 0
	d.counters.GivenUp++
	if reason == "expired" {
		d.counters.Expired++
	}
	d.tell(EventLetterParked, s.letter, reason)
	d.report(d.cfg.OnParked, s.letter)
	d.wake()
}

// sweep parks the letters whose time is over, and has written what the store did not take.
func (d *DLQ) sweep(now time.Time) {
	d.journal.retry(now)
	for s := d.box.overdue(now); s != nil; s = d.box.overdue(now) {
		d.park(s, "expired", func(*Letter) {})
	}
}

// tell reports what happened to a letter.
func (d *DLQ) tell(kind EventKind, l *Letter, cause string) {
	d.events.emit(Event{
		Kind: kind, Operation: l.Operation, KeyHash: d.keyHash(l.Key), LetterID: l.ID, StatusCode: l.StatusCode,
		Attempt: l.Attempts, Cause: cause, Count: d.box.len(),
	})
}

// report hands a copy of a letter to a callback of the user's, after the lock is released.
func (d *DLQ) report(callback func(Letter), l *Letter) {
	if callback != nil {
		d.events.call(func() { callback(l.clone()) })
	}
}
