package resilience

import (
	"cmp"
	"context"
	"errors"
	"sync"
	"time"
)

// LetterStore keeps letters for a [DLQ] beyond the life of the process. It belongs to one queue at a time. An
// implementation must pass RunLetters in package storetest. All methods must be safe for concurrent use.
//
// A letter is stored as it is handed over, every field of it exactly, save for Call.Params and Leased, which are never
// set, and for the zone and the monotonic reading of times. A header or body without anything in it may come back nil.
// What a letter shares with the one that handed it over, or that it is handed to, must neither be changed nor kept:
// copy it.
//
// The queue makes one call for an id at a time, and several for different ids at once. Contexts of writes end after 5 s;
// they carry nothing of a caller's. Under one that has ended a method returns an error, and changes nothing. A write that
// has not returned by then counts as failed and no caller waits for it, but its id is not written again until it has. There
// are at most 32 writes at a time: a store that holds all of them for longer is written nothing more, and new letters are
// refused, until one returns.
type LetterStore interface {
	// Put inserts l, or replaces the letter with its id, in one atomic step: whoever loads sees the old one or the new
	// one, whole. When it returns nil the letter is durable. After an error the letter may be there, as it was before or
	// as it was to become: the queue writes it again, or removes it.
	Put(ctx context.Context, l Letter) error

	// Remove removes the letter with this id; that there is none is no error. After an error it may be gone or not: the
	// queue repeats it. A removal that was acknowledged should be durable; one that comes undone sends a letter again,
	// which its idempotency key has to absorb.
	Remove(ctx context.Context, id string) error

	// Load hands every letter to each, one after the other, once each, in any order, and returns when that is done. An
	// error of each ends it and is returned. A letter that cannot be read, or was written by a newer version and is not
	// known in full, is an error, never one letter less.
	Load(ctx context.Context, each func(Letter) error) error
}

const (
	letterWriters     = 32               // writes under way at a time; a store can make one sync of them
	letterWriteLimit  = 5 * time.Second  // for one write, and for the patience of whoever waits for one
	letterGrace       = time.Second      // for a caller whose time is over, which is why most letters are made
	letterLoadLimit   = time.Minute      // to load all letters, and to write all those of an import
	letterRetryFirst  = time.Second      // after the first write that failed
	letterRetryAtMost = 30 * time.Second // after many
)

// letterJournal brings what happens to letters into the store: the last state of each letter wins, and there is never more
// than one write under way for one. What is not in the store yet is all it remembers. Its lock is the queue's, which is
// never held while it writes. A nil journal has nothing to try again, and nothing left at the end.
type letterJournal struct {
	mu    *sync.Mutex
	write func(ctx context.Context, id string, l *Letter) error // l nil: remove
	fault func(id string)                                       // a write failed; the lock is held
	wake  func()                                                // for retry, whose time is set; the lock is held
	freed func()                                                // a removal that was owed is made; the lock is held

	entries  map[string]*journalEntry // by id
	queue    []*journalEntry
	seq      uint64
	writers  int
	owed     int           // removals that failed
	failures int           // in a row
	retryAt  time.Time     // when those that failed are tried again; zero: none failed
	idle     chan struct{} // closed when nothing is under way; nil: nobody waits for it
}

// journalEntry is a letter whose last state is not in the store.
type journalEntry struct {
	id      string
	want    *Letter // nil: it is to be removed
	seq     uint64  // of the last change
	written uint64  // up to here it is in the store
	failed  uint64  // up to here the last write tried; 0: it did not fail
	err     error
	known   bool // the store may have heard of the letter
	owed    bool // its removal failed
	queued  bool
	writing bool
	cancel  context.CancelFunc // of the last write
	ended   chan struct{}      // closed when the next write has ended, or its time is over
}

// note remembers the state that a letter has now, and returns the number to wait for. fresh: the store has never heard of
// it. The lock is held.
func (j *letterJournal) note(id string, l *Letter, fresh bool) uint64 {
	j.seq++
	e := j.entries[id]
	if e == nil {
		e = &journalEntry{id: id, written: j.seq - 1, known: !fresh, ended: make(chan struct{})}
		j.entries[id] = e
	}
	e.want, e.seq = l, j.seq
	switch {
	case l == nil && !e.known:
		j.forget(e) // it never got there
	case !e.queued && !e.writing:
		j.enqueue(e)
	}
	return j.seq
}

func (j *letterJournal) owe(e *journalEntry, owed bool) {
	switch was := e.owed; {
	case owed && !was:
		j.owed++
	case was && !owed:
		j.owed--
		j.freed()
	}
	e.owed = owed
}

func (j *letterJournal) enqueue(e *journalEntry) {
	e.queued = true
	j.queue = append(j.queue, e)
	if j.writers < letterWriters {
		j.writers++
		go j.work()
	}
}

// forget ends an entry: all of it is in the store, or must not get there.
func (j *letterJournal) forget(e *journalEntry) {
	delete(j.entries, e.id)
	close(e.ended)
	e.ended = nil
}

// work writes until there is nothing to be written.
func (j *letterJournal) work() {
	j.mu.Lock()
	defer j.mu.Unlock()
	for len(j.queue) > 0 {
		e := j.queue[0]
		j.queue = j.queue[1:]
		e.queued = false
		if e.ended != nil { // else it was forgotten
			j.writeOut(e)
		}
	}
	j.queue = nil
	j.writers--
	if j.writers == 0 && j.idle != nil {
		close(j.idle)
		j.idle = nil
	}
}

func (j *letterJournal) writeOut(e *journalEntry) {
	ctx, cancel := context.WithTimeout(context.Background(), letterWriteLimit)
	defer cancel()
	want, seq := e.want, e.seq
	e.writing, e.known, e.cancel = true, true, cancel
	returned := j.timed(e, want, seq)
	j.mu.Unlock()
	err := j.write(ctx, e.id, want)
	j.mu.Lock()
	late := returned()
	e.writing = false
	if err == nil {
		e.written = seq
		j.failures = 0
	} else {
		j.failures++
		if j.retryAt.IsZero() { // else one letter that is never taken would put all others off for ever
			j.retryAt = time.Now().Add(min(letterRetryFirst<<min(j.failures-1, 10), letterRetryAtMost))
		}
		if !late { // it is reported once
			j.fault(e.id)
		}
		j.wake()
	}
	j.ruled(e, want, seq, err)
	switch {
	case err == nil && e.seq == seq:
		j.forget(e)
		return
	case e.seq != seq:
		j.enqueue(e) // there is news already
	}
	e.tell()
}

// timed has a write fail that has not returned when its time is over, as under a store that ignores its context. Whoever
// it returns to calls returned, under the lock, and hears whether that came too late.
func (j *letterJournal) timed(e *journalEntry, want *Letter, seq uint64) (returned func() (late bool)) {
	over, late := false, false
	timer := time.AfterFunc(letterWriteLimit, func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		if over {
			return
		}
		late = true
		j.fault(e.id)
		j.ruled(e, want, seq, errSlowStore)
		e.tell()
	})
	return func() bool {
		timer.Stop()
		over = true
		return late
	}
}

// ruled notes how a write of the state want went.
func (j *letterJournal) ruled(e *journalEntry, want *Letter, seq uint64, err error) {
	e.failed, e.err = 0, err
	if err != nil {
		e.failed = seq
	}
	j.owe(e, err != nil && e.want == nil && want == nil)
}

// tell wakes those who wait for a write.
func (e *journalEntry) tell() {
	close(e.ended)
	e.ended = make(chan struct{})
}

// later remembers a state that is written at the first opportunity. It starts nothing.
func (j *letterJournal) later(id string, l *Letter) {
	j.seq++
	e := &journalEntry{id: id, want: l, seq: j.seq, failed: j.seq, known: true, ended: make(chan struct{})}
	j.entries[id] = e
	j.retryAt = time.Now()
}

// retry tries again what failed, when it is time for that. The lock is held.
func (j *letterJournal) retry(now time.Time) {
	if j == nil || j.retryAt.IsZero() || now.Before(j.retryAt) {
		return
	}
	j.retryAt = time.Time{}
	for _, e := range j.entries {
		if !e.queued && !e.writing { // so it has failed
			j.enqueue(e)
		}
	}
}

// await returns when the change with this number is in the store, when a write of it failed, or when ctx ends.
func (j *letterJournal) await(ctx context.Context, id string, seq uint64) error {
	for {
		ended, err := j.standing(id, seq)
		if ended == nil {
			return err
		}
		select {
		case <-ended:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// standing says what became of a change; nil and no error: it is in the store.
func (j *letterJournal) standing(id string, seq uint64) (ended <-chan struct{}, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	e := j.entries[id]
	switch {
	case e == nil || e.written >= seq:
		return nil, nil
	case e.failed >= seq:
		return nil, e.err
	}
	return e.ended, nil
}

// giveUp ends a write under way that nobody waits for. The lock is held.
func (j *letterJournal) giveUp(id string) {
	if e := j.entries[id]; e != nil && e.cancel != nil {
		e.cancel()
	}
}

// drain tries everything once more and waits until nothing is under way, or ctx ends. It returns how many letters are not
// in the store as they are, and why not, as far as that is known.
func (j *letterJournal) drain(ctx context.Context) (left int, err error) {
	if j == nil {
		return 0, nil
	}
	j.mu.Lock()
	j.retry(j.retryAt)
	j.mu.Unlock()
	for {
		var idle <-chan struct{}
		if idle, left, err = j.rest(); idle == nil {
			return left, err
		}
		select {
		case <-idle:
		case <-ctx.Done():
			_, left, err = j.rest() // much may have been written meanwhile
			return left, errors.Join(context.Cause(ctx), err)
		}
	}
}

// rest returns what is not in the store, and a channel that is closed when nothing is under way; nil: nothing is.
func (j *letterJournal) rest() (idle <-chan struct{}, left int, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, e := range j.entries {
		err = cmp.Or(err, e.err)
	}
	if j.writers > 0 && j.idle == nil {
		j.idle = make(chan struct{})
	}
	if j.writers > 0 {
		idle = j.idle
	}
	return idle, len(j.entries), err
}
