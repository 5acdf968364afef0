package resilience

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Len is the number of letters, parked and superseded ones included.
func (d *DLQ) Len() int {
	if d == nil {
		return 0
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.box.len()
}

// Get returns the letter with that id as it is now, and moves nothing; ok is false when there is none.
func (d *DLQ) Get(id string) (l Letter, ok bool) {
	if d == nil {
		return l, false
	}
	d.mu.Lock()
	s := d.box.ofID(id)
	if s == nil {
		d.mu.Unlock()
		return l, false
	}
	found := s.letter
	d.mu.Unlock()
	return found.clone(), true
}

// List returns the letters that f chooses, the oldest first: by First as the wall clock showed it, and by ID where that is
// equal. No letter's place in this order ever changes. It is meant to be read in pages:
//
//	f := LetterFilter{State: LetterParked, Limit: 100}
//	for page := d.List(f); len(page) > 0; page = d.List(f) {
//		…
//		f.After = page[len(page)-1].Cursor()
//	}
//
// Whatever happens between two pages, a letter is in at most one of them, and in one if f chooses it all the time from
// the first page to the last. One that comes, goes, or changes its state meanwhile may be in one or not: a new letter is,
// where its First lies behind the cursor, as that of a call does that began after all those listed. The letter that a cursor came
// from need not be there any more. Cursors outlive the process as letters do: by DLQConfig.Store, or by Export and Import.
//
// A page costs O(log n) for n letters, and a copy of each letter in it; letters that f passes over cost a look each. No
// call waits for more than a small part of that, so letters of one page may have been looked at one after the other.
func (d *DLQ) List(f LetterFilter) []Letter {
	if d == nil {
		return nil
	}
	var list []Letter
	for after := f.After; ; {
		some := d.page(after)
		for _, l := range some {
			if !f.matches(l) {
				continue
			}
			if list = append(list, l.clone()); len(list) == f.Limit {
				return list
			}
		}
		if len(some) < listStep {
			return list
		}
		after = some[listStep-1].cursor()
	}
}

// listStep is how many letters are looked at under the lock at a time.
const listStep = 256

func (d *DLQ) page(after LetterCursor) []*Letter {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.box.page(after, listStep)
}

// view is all letters at one moment, in the order of List.
func (d *DLQ) view() []letterView {
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.box.snapshot()
}

// Requeue makes a letter due now, with no attempts spent, whatever it was parked for; MaxAge begins anew, [WithExpiry]
// stays. A letter in doubt stays in doubt: it is looked up again. To send one anyway, use [Idempotency.Resolve], which takes
// a key that is in doubt here, or delete the letter and Add it with InDoubt and Parked false (and First and Expires zero,
// where its time is over). That is the only way where the doubt came with an import (DoubtSince) and the key here is free, or
// was settled before. The errors are [ErrNoLetter], [ErrLetterBusy], and one for a letter that may not be sent any more
// because it was redacted or because its WithExpiry has passed.
func (d *DLQ) Requeue(id string) error {
	if d == nil {
		return ErrNoLetter
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.box.ofID(id)
	if s == nil {
		return ErrNoLetter
	}
	return d.requeue(s, time.Now())
}

func (d *DLQ) requeue(s *letterSlot, now time.Time) error {
	switch l := s.letter; {
	case s.token != 0:
		return ErrLetterBusy
	case l.Redacted:
		return errors.New("dlq: the letter was redacted, so its request is not whole")
	case !l.NotAfter.IsZero() && !now.Before(l.NotAfter):
		return errors.New("dlq: the expiry that its caller set has passed")
	}
	d.box.change(s, func(l *Letter) { d.revive(l, now) })
	s.waits = 0
	d.tell(EventLetterAdded, s.letter, "requeued")
	d.wake()
	return nil
}

// RequeueAll requeues every parked letter for which that is possible, the oldest first, and returns their number.
// Superseded letters stay.
func (d *DLQ) RequeueAll() int {
	n := 0
	for _, v := range d.view() {
		if v.letter.state() == LetterParked && d.Requeue(v.letter.ID) == nil {
			n++
		}
	}
	return n
}

// Delete removes a letter for good. reason goes into the event that says so; it must hold no personal data. The errors
// are [ErrNoLetter], [ErrLetterBusy], and [ErrStore]: the letter is gone from the queue, but within 5 s DLQConfig.Store did
// not confirm that it is gone there too. It is tried again; should the process end before, the letter comes back.
func (d *DLQ) Delete(id, reason string) error {
	if d == nil {
		return ErrNoLetter
	}
	seq, err := d.delete(id, reason)
	if err != nil || d.journal == nil {
		return err
	}
	wait, stop := patience(context.Background())
	defer stop()
	if err := d.journal.await(wait, id, seq); err != nil {
		return fmt.Errorf("dlq: the letter was deleted, but not yet in the store: %w", errors.Join(ErrStore, err))
	}
	return nil
}

func (d *DLQ) delete(id, reason string) (seq uint64, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.box.ofID(id)
	switch {
	case s == nil:
		return 0, ErrNoLetter
	case s.token != 0:
		return 0, ErrLetterBusy
	}
	d.box.remove(s)
	d.counters.Deleted++
	d.tell(EventLetterDeleted, s.letter, or(reason, "deleted"))
	d.callNext()
	return s.noted, nil
}

// settle tells what became of the key with this id elsewhere.
func (d *DLQ) settle(id string, news keyNews) {
	if d == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.box.keys()[id]
	switch {
	case s == nil:
	case news.verdict == keyDone:
		d.found(s)
	case news.verdict == keyUnknown && !s.letter.InDoubt:
		d.doubt(s, true, time.Time{})
	case s.letter.InDoubt && s.letter.clearedBy(news):
		d.doubt(s, false, time.Time{})
	}
}

// doubt says of a letter that it is in doubt, or is not any more, which is news; the lock is held. since is for a doubt
// that came with an import.
func (d *DLQ) doubt(s *letterSlot, doubt bool, since time.Time) {
	s.waits = 0
	d.box.change(s, func(l *Letter) {
		l.setDoubt(doubt, since)
		l.Next = time.Now().Add(d.backoff(0))
	})
	d.wake()
}

// holds reports whether there is a letter for the key with this id; the record of the key must stay as long.
func (d *DLQ) holds(id string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.box.keys()[id] != nil
}
