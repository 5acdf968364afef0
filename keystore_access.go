package resilience

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// How records are read and changed, whatever the store does.

// apply feeds an event to the key's state machine and writes what comes out, in one step that nobody can come between.
// On an error it returns the record as it stands.
func (i *Idempotency) apply(ctx context.Context, id string, e keyEvent) (Record, error) {
	rec, err := i.load(ctx, id)
	if err != nil {
		return Record{ID: id}, err
	}
	return i.advance(ctx, rec, e)
}

// advance is apply for somebody who knows the record already; it reads it again only if somebody else has written since.
func (i *Idempotency) advance(ctx context.Context, rec Record, e keyEvent) (Record, error) {
	for {
		e.now = i.store.Now()
		next, err := transition(rec, e)
		if err != nil {
			return rec, err
		}
		version, swapped, err := i.swap(ctx, rec.Version, next)
		if err != nil {
			return rec, err
		}
		if swapped {
			next.Version = version
			i.unwritten.drop(rec.ID)
			i.changed(rec, next)
			return next, nil
		}
		if ctx.Err() != nil { // a store that is never done with a conflict has failed
			return rec, context.Cause(ctx)
		}
		latest, err := i.load(ctx, rec.ID)
		if err != nil {
			return rec, err
		}
		rec = latest
	}
}

// swap asks the store, once more after a sweep when it is full. A store that panics has failed.
func (i *Idempotency) swap(ctx context.Context, old uint64, rec Record) (version uint64, swapped bool, err error) {
	defer recoverAsError(&err)
	version, swapped, err = i.store.CompareAndSwap(ctx, old, rec)
	if errors.Is(err, ErrStoreFull) {
		if removed, sweepErr := i.store.Sweep(ctx, sweepBatch, i.isPinned()); sweepErr == nil && removed > 0 {
			return i.store.CompareAndSwap(ctx, old, rec)
		}
	}
	return version, swapped, err
}

// storePatience is how long the store may take to record what has happened. One that hangs has failed: the outcome is
// remembered here, and Run repeats the write. So it holds no slot, no answer, and not Close.
const storePatience = 5 * time.Second

// abandonPatience is how long it may take for all that Close has to give up; what is not recorded then, the lease tells.
const abandonPatience = time.Second

// lasting is a context for what is recorded although the caller may have left.
func lasting(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), storePatience)
}

func recoverAsError(err *error) {
	if v := recover(); v != nil {
		*err = fmt.Errorf("panic: %T", v)
	}
}

// read asks the store.
func (i *Idempotency) read(ctx context.Context, id string) (rec Record, err error) {
	defer recoverAsError(&err)
	rec, err = i.store.Load(ctx, id)
	rec.ID = id
	return rec, err
}

// load reads a record, with what this process knows better because the store would not take it.
func (i *Idempotency) load(ctx context.Context, id string) (Record, error) {
	rec, err := i.read(ctx, id)
	if known, ok := i.unwritten.get(id); ok {
		if err != nil && known.rec.State != KeyFree {
			return known.rec, nil
		}
		if err != nil {
			return rec, err
		}
		if better, transitionErr := transition(rec, known.event); transitionErr == nil {
			better.Version = rec.Version
			return better, nil
		}
	}
	return rec, err
}

// unwritten are outcomes that the store would not take. This process answers from them; Run repeats the writes.
type unwritten struct {
	mu   sync.Mutex
	list map[string]outcome
}

type outcome struct {
	event keyEvent
	rec   Record
}

func (u *unwritten) keep(id string, from Record, e keyEvent, now time.Time) Record {
	e.now = now
	rec, _ := transition(from, e) // as it is where the event does not fit
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.list == nil {
		u.list = map[string]outcome{}
	}
	u.list[id] = outcome{event: e, rec: rec}
	return rec
}

func (u *unwritten) get(id string) (outcome, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	o, ok := u.list[id]
	return o, ok
}

func (u *unwritten) drop(id string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.list, id)
}

func (u *unwritten) ids() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	ids := make([]string, 0, len(u.list))
	for id := range u.list {
		ids = append(ids, id)
	}
	return ids
}
