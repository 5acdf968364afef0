package resilience

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// newJournal makes the journal of a queue that has a store.
func (d *DLQ) newJournal() *letterJournal {
	return &letterJournal{
		mu: &d.mu, write: d.writeLetter, fault: d.writeFailed, wake: d.wake, freed: d.callNext, entries: map[string]*journalEntry{},
	}
}

// writeLetter brings the state of one letter into the store.
func (d *DLQ) writeLetter(ctx context.Context, id string, l *Letter) error {
	if l == nil {
		return d.guard("", func() error { return d.cfg.Store.Remove(ctx, id) })
	}
	return d.guard(l.Operation, func() error {
		c, err := d.seal(l)
		if err != nil {
			return err
		}
		c.Leased = false
		return d.cfg.Store.Put(ctx, c)
	})
}

// writeFailed reports a write that failed; the lock is held.
func (d *DLQ) writeFailed(id string) {
	d.counters.StoreFailures++
	ev := Event{Kind: EventLetterUnwritten, LetterID: id, Cause: "store", Count: len(d.journal.entries)}
	if s := d.box.byID[id]; s != nil {
		ev.Operation, ev.KeyHash = s.letter.Operation, d.keyHash(s.letter.Key)
	}
	d.events.emit(ev)
}

// seal returns a copy of l whose request is sealed.
func (d *DLQ) seal(l *Letter) (Letter, error) { return withRequest(l, d.cfg.Seal) }

// open is the inverse of seal.
func (d *DLQ) open(l *Letter) (*Letter, error) {
	c, err := withRequest(l, d.cfg.Open)
	return &c, err
}

// opened is open for a letter of a file, where Open may panic.
func (d *DLQ) opened(l *Letter) (*Letter, error) {
	err := d.guard(l.Operation, func() (err error) { l, err = d.open(l); return err })
	return l, err
}

// withRequest returns a copy of l whose request is what change makes of it; nil: as it is.
func withRequest(l *Letter, change func(Letter) (Letter, error)) (Letter, error) {
	c := l.clone()
	if change == nil {
		return c, nil
	}
	changed, err := change(l.clone())
	if err != nil {
		return c, err
	}
	changed = changed.clone()
	c.URL, c.Host, c.Header, c.Body = changed.URL, changed.Host, changed.Header, changed.Body
	return c, nil
}

// load fills the new queue from its store. Nobody else knows the queue yet.
func (d *DLQ) load() error {
	letters, err := d.lettersOf(context.Background(), d.cfg.Store)
	if err != nil {
		return fmt.Errorf("dlq: loading the letters: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, l := range letters {
		d.takeIn(l)
	}
	d.box.oldestDue(time.Now()) // sorts what is due, while nobody waits for that
	return nil
}

// Adopt brings the letters of another store, whose queue is gone, into this queue, as Import does with those of a file: what is
// here already stays as it is, and a doubt is about what another process sent. Each is removed from that store when it is in
// the queue, and in DLQConfig.Store. Those for which there is no room stay where they are ([ErrLettersFull]), and so do all
// where one cannot be read, or opened by DLQConfig.Open; after any error Adopt may be called again. The store must be
// nobody's meanwhile, and the keys of its letters in the store of this stack's keys, or a letter that was on its way when its
// queue ended would be sent again.
func (d *DLQ) Adopt(ctx context.Context, from LetterStore) error {
	if d == nil {
		return fmt.Errorf("%w: there is no queue", ErrLettersFull)
	}
	letters, err := d.lettersOf(ctx, from)
	if err != nil {
		return fmt.Errorf("dlq: adopting letters: %w", err)
	}
	d.date(letters)
	for _, l := range letters {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := d.bringIn([]*Letter{l}); err != nil {
			return err
		}
		if err := d.guard(l.Operation, func() error { return from.Remove(ctx, l.ID) }); err != nil {
			return fmt.Errorf("dlq: adopting letters: %s is here, and cannot be removed there: %w", l.ID, err)
		}
	}
	return nil
}

// lettersOf reads a store, within a minute.
func (d *DLQ) lettersOf(ctx context.Context, store LetterStore) ([]*Letter, error) {
	ctx, cancel := context.WithTimeout(ctx, letterLoadLimit)
	defer cancel()
	type loaded struct {
		letters []*Letter
		err     error
	}
	done := make(chan loaded, 1)
	go func() { // it outlives the call only where a store ignores its context
		var all loaded
		all.err = d.guard("", func() error {
			return store.Load(ctx, func(l Letter) error {
				opened, err := d.open(&l)
				if err == nil && l.ID == "" {
					err = errors.New("it has no id")
				}
				if err != nil {
					return fmt.Errorf("letter %q: %w", l.ID, err)
				}
				opened.tidy()
				all.letters = append(all.letters, opened)
				return ctx.Err()
			})
		})
		done <- all
	}()
	select {
	case all := <-done:
		return all.letters, all.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// takeIn makes a letter of the store one of the queue, whatever the bounds. Two may have one key, when a removal did not
// get to the store before the process ended: they become one, the newer, and the older is removed.
func (d *DLQ) takeIn(l *Letter) {
	alike := func() *letterSlot {
		if s := d.box.byID[l.ID]; s != nil {
			return s
		}
		return d.box.ofKey(l.Key)
	}
	for s := alike(); s != nil; s = alike() {
		d.box.remove(s)
		d.counters.Loaded--
		older := s.letter
		if l.Last.Before(older.Last) {
			l, older = older, l
		}
		kept := *l
		kept.setDoubt(l.InDoubt || older.InDoubt, later(l.DoubtSince, older.DoubtSince))
		l = &kept
		d.journal.later(older.ID, nil)
		d.journal.later(l.ID, l)
	}
	d.box.insert(l, nil)
	d.counters.Loaded++
	d.counters.Admitted = d.counters.Loaded
}

// patience is how long a caller waits for the store: as long as it has time, but not less than a second (its time may be
// over, which is why there is a letter) and not more than 5 s. One who cancels does not wait.
func patience(ctx context.Context) (context.Context, func()) {
	limit := letterWriteLimit
	if deadline, ok := ctx.Deadline(); ok {
		limit = min(max(time.Until(deadline), letterGrace), limit)
	}
	wait, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), limit, errSlowStore)
	stop := context.AfterFunc(ctx, func() {
		if !byTime(ctx) {
			cancel()
		}
	})
	return wait, func() { stop(); cancel() }
}

var errSlowStore = errors.New("the store took too long")

// arrival is a letter on its way into the store. It is in the queue when it is there.
type arrival struct {
	over chan struct{} // closed when it is in the queue, or is not going to be
	done bool          // its write has happened meanwhile
	late bool          // a newer write has worked
}

// notStored is why a letter is refused that did not get into the store.
type notStored struct{ err error }

func (e *notStored) Error() string   { return "dlq: the store did not take the letter: " + e.err.Error() }
func (e *notStored) Unwrap() []error { return []error{ErrLettersFull, e.err} }

// secure returns when a letter is in the store, and in the queue. Where it does not get there, nothing of it is kept. A
// letter that was in the queue already stays there, though its last change is not in the store yet.
func (d *DLQ) secure(ctx context.Context, p placed) (*Letter, error) {
	if d.journal == nil {
		return p.letter, nil
	}
	wait, stop := patience(ctx)
	defer stop()
	err := d.journal.await(wait, p.letter.ID, p.seq)
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case p.slot.withdrawn:
		return nil, &notStored{errors.Join(err, errSlowStore)}
	case p.slot.arrival == nil:
		return p.letter, nil
	case err != nil:
		d.withdraw(p.slot)
		return nil, &notStored{err}
	case !d.land(p.slot, p.slot.letter.Cause):
		return nil, errNoRoom
	}
	return p.letter, nil
}
