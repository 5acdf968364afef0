package resilience

import (
	"context"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"
)

// What Run does for keys: it looks lost outcomes up, repeats writes that the store refused, frees what dead processes held,
// and sweeps.

const (
	sweepBatch = 1024
	tendEvery  = 10 * time.Second
	// afterRefusal is when a look-up that our own side refused is tried again.
	afterRefusal = 5 * time.Second
	// rarest is how far apart look-ups that fail come to be: as far as those of the plan.
	rarest = time.Hour
)

// run looks after keys until ctx ends.
func (i *Idempotency) run(ctx context.Context) {
	for {
		sleep(ctx, i.tend(ctx), i.wake)
		if ctx.Err() != nil {
			return
		}
	}
}

// tend goes once over everything that is not settled and returns when to come again.
func (i *Idempotency) tend(ctx context.Context) time.Duration {
	for _, id := range i.unwritten.ids() {
		i.rewrite(ctx, id)
	}
	next, began := tendEvery, i.store.Now()
	open := map[string]openKey{}
	var failed error
	for cursor := ""; ; {
		page, after, err := i.unsettled(ctx, cursor, 256)
		if err != nil {
			failed = err
			break
		}
		for _, one := range i.tendAll(ctx, page) {
			if one.due > 0 {
				next = min(next, one.due)
			}
			if one.rec.unclear() {
				open[one.rec.ID] = openOf(one.rec)
			}
		}
		if cursor = after; cursor == "" || ctx.Err() != nil {
			break
		}
	}
	if ctx.Err() != nil { // not all was seen, and if something failed it was not the store
		return next
	}
	if failed != nil {
		i.counts.storeErrors.Add(1)
	}
	i.doubts.replace(open, began, failed != nil)
	if err := i.sweep(ctx); err != nil {
		i.counts.storeErrors.Add(1)
	}
	return max(next, time.Millisecond)
}

// lookupsAtOnce: one look-up that hangs must not keep hundreds of others waiting, and all together must not be a crowd.
const lookupsAtOnce = 4

// tended is a key after it was looked after, and when it is due again; 0: nothing is planned.
type tended struct {
	rec Record
	due time.Duration
}

func (i *Idempotency) tendAll(ctx context.Context, page []Record) []tended {
	results := make([]tended, len(page))
	var g errgroup.Group
	g.SetLimit(lookupsAtOnce)
	for n, rec := range page {
		g.Go(func() error {
			results[n].rec, results[n].due = i.tendKey(ctx, rec)
			return nil
		})
	}
	_ = g.Wait() // none fails
	return results
}

func (i *Idempotency) unsettled(ctx context.Context, cursor string, limit int) (page []Record, next string, err error) {
	defer recoverAsError(&err)
	return i.store.Unsettled(ctx, cursor, limit)
}

func (i *Idempotency) sweep(ctx context.Context) (err error) {
	defer recoverAsError(&err)
	_, err = i.store.Sweep(ctx, sweepBatch, i.isPinned())
	return err
}

func (i *Idempotency) rewrite(ctx context.Context, id string) {
	o, ok := i.unwritten.get(id)
	if !ok {
		return
	}
	rec, err := i.read(ctx, id)
	if err != nil {
		return
	}
	e := o.event
	e.now = i.store.Now()
	next, err := transition(rec, e)
	if err != nil { // the key has moved on without it
		i.unwritten.drop(id)
		return
	}
	if version, swapped, err := i.swap(ctx, rec.Version, next); err == nil && swapped {
		next.Version = version
		i.unwritten.drop(id)
		i.changed(rec, next)
		i.announce(next)
	}
}

// tendKey does what is due for one key. It returns the record as it stands then, and when it is due again; 0: nothing is
// planned.
func (i *Idempotency) tendKey(ctx context.Context, rec Record) (Record, time.Duration) {
	switch rec.State {
	case KeySending:
		if _, known := i.unwritten.get(rec.ID); known {
			return rec, 0 // its answer is known: it is written before anything else
		}
		e := keyEvent{kind: eventExpire, claim: i.identity()}
		if next, err := i.advance(ctx, rec, e); err == nil {
			return next, time.Millisecond
		}
	case KeyClaimed:
		if i.flying(rec) {
			return rec, 0 // it waits for longer than it thought
		}
		if rec.orphaned(i.identity()) || !i.store.Now().Before(rec.Lease) {
			// Its owner died before sending anything.
			rec, _ = i.advance(ctx, rec, keyEvent{kind: eventRelease, token: rec.Token, keep: i.cfg.TTL})
		}
	case KeyInDoubt:
		return i.tendDoubt(ctx, rec)
	}
	return rec, 0
}

func (i *Idempotency) tendDoubt(ctx context.Context, rec Record) (Record, time.Duration) {
	if due, planned := i.nextStep(rec); due > 0 || !planned {
		return rec, due
	}
	looked := true
	if i.cfg.Reconcile != nil {
		rec, looked = i.look(ctx, rec)
	}
	if rec.State != KeyInDoubt {
		return rec, 0
	}
	if looked && i.isAbsent(rec) { // what was not listed earlier is not now
		return i.assumeAbsent(ctx, rec), 0
	}
	if due, planned := i.nextStep(rec); due > 0 || !planned {
		return rec, due
	}
	return rec, afterRefusal // the store would not take what the look-up brought
}

// nextStep is how long it is until a key in doubt is looked up, or taken as not applied, if that is planned; 0: it is due.
func (i *Idempotency) nextStep(rec Record) (due time.Duration, planned bool) {
	at := rec.NextLookup
	if i.cfg.Reconcile == nil || at.IsZero() { // no look-up is planned
		at = i.absentAt(rec)
	}
	if at.IsZero() {
		return 0, false
	}
	return max(0, at.Sub(i.store.Now())), true
}

// isAbsent reports whether a key in doubt may be taken as not applied by now.
func (i *Idempotency) isAbsent(rec Record) bool {
	at := i.absentAt(rec)
	return !at.IsZero() && !i.store.Now().Before(at)
}

// flying reports whether a claim is of a flight of this process that is under way.
func (i *Idempotency) flying(rec Record) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	f := i.flights[rec.ID]
	return f != nil && f.token == rec.Token
}

// absentAt is when a key in doubt may be taken as not applied, by the user's choice; zero: never.
func (i *Idempotency) absentAt(rec Record) time.Time {
	if i.cfg.AssumeAbsentAfter == 0 || !i.lookedEnough(rec) {
		return time.Time{}
	}
	return later(rec.Sent, rec.Lease).Add(i.cfg.AssumeAbsentAfter) // the attempt itself must be over, too
}

// lookedEnough reports whether absence may follow from the look-ups for a key: not where they could not have found it.
func (i *Idempotency) lookedEnough(rec Record) bool {
	if i.cfg.Reconcile == nil {
		return true
	}
	f, partial := i.cfg.Reconcile.(Finder)
	return rec.Lookups >= minLookups && (!partial || finds(f, rec.Operation))
}

func (i *Idempotency) assumeAbsent(ctx context.Context, rec Record) Record {
	next, err := i.advance(ctx, rec, keyEvent{kind: eventAbsent, keep: i.cfg.TTL})
	if err == nil {
		i.counts.assumed.Add(1)
		i.settled(next)
	}
	return next
}

// absentAsOf says of a key that was not applied how far that reaches: nothing that anybody sent before has taken effect.
// Zero: the record says so only of what is in it, whose sends were refused. The operator speaks of the key, whoever sent;
// and so does the user's choice, of whatever has been on its way for long enough.
func (i *Idempotency) absentAsOf(rec Record) time.Time {
	switch {
	case rec.Evidence == "operator":
		return rec.Settled
	case rec.Evidence == "assumed" && i.cfg.AssumeAbsentAfter > 0:
		return i.store.Now().Add(-i.cfg.AssumeAbsentAfter)
	}
	return time.Time{}
}

// find looks one key up. An empty answer proves nothing; a refusal of our own uses no step of the plan up.
func (i *Idempotency) find(ctx context.Context, rec Record) Record {
	rec, _ = i.look(ctx, rec)
	return rec
}

// look is find, and reports whether the record now says what was found: only then absence may be taken from it.
func (i *Idempotency) look(ctx context.Context, rec Record) (_ Record, looked bool) {
	i.counts.lookups.Add(1)
	ev, err := i.callFind(ctx, rec)
	ev.ID = rec.ID
	if err == nil && len(foundIDs(ev)) > 0 {
		i.counts.found.Add(1)
		ev.Source = or(ev.Source, "lookup")
		next, err := i.apply(ctx, rec.ID, keyEvent{kind: eventEvidence, evidence: ev, keep: i.cfg.TTL})
		i.events.emit(Event{Kind: EventLookup, Operation: rec.Operation, KeyHash: keyHash(rec.ID), Count: len(ev.Calls)})
		if err == nil {
			i.settled(next)
		}
		return next, err == nil
	}
	if err != nil {
		i.counts.lookupErrors.Add(1)
	}
	now := i.store.Now()
	if now.Before(rec.NextLookup) {
		return rec, err == nil // somebody else asked, out of turn: the plan stays as it is
	}
	i.events.emit(Event{Kind: EventLookup, Operation: rec.Operation, KeyHash: keyHash(rec.ID), Attempt: rec.Lookups + 1})
	next, _ := i.apply(ctx, rec.ID, i.plan(rec, err, now)) // on an error the record as it stands
	return next, err == nil
}

// plan says when the next look-up is due after one that found nothing, or failed.
func (i *Idempotency) plan(rec Record, err error, now time.Time) keyEvent {
	e := keyEvent{kind: eventLooked, failed: err != nil}
	if e.failed {
		e.next = now.Add(afterRefusal)
		if !isRefusal(err) { // the other side's: what fails for long is asked ever more rarely
			e.next = now.Add(jitter(min(max(now.Sub(rec.Settled)/2, afterRefusal), rarest)))
		}
		return e
	}
	rec.Lookups++
	if delay := lookupDelay(rec.Lookups); delay >= 0 { // else the plan is used up: a webhook or a person settles it
		e.next = now.Add(jitter(delay))
	}
	if absent := i.absentAt(rec); !absent.IsZero() && (e.next.IsZero() || absent.Before(e.next)) {
		e.next = absent // a last look, right before absence is assumed
	}
	return e
}

// callFind asks the reconciler, past caches and shared answers, at bulk priority.
func (i *Idempotency) callFind(ctx context.Context, rec Record) (ev Evidence, err error) {
	defer recoverAsError(&err)
	// Nothing of what ctx says of the lost call may describe the look-up: neither its key nor its operation.
	o := &overrides{fresh: true, call: Call{Priority: PriorityBulk}}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	return i.cfg.Reconcile.Find(context.WithValue(ctx, overridesKey{}, o), rec)
}

// jitter spreads a delay by a tenth either way.
func jitter(d time.Duration) time.Duration {
	tenth := int64(d / 10)
	return d - time.Duration(tenth) + time.Duration(rand.Int64N(2*tenth+1)) //nolint:gosec // jitter needs no secret
}
