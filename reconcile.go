package resilience

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// changed tells the world about a step of a key.
func (i *Idempotency) changed(from, to Record) {
	if from.State == to.State {
		return
	}
	i.doubts.note(to)
	kind := EventKeyChanged
	if to.State == KeyDisputed {
		kind = EventKeyDisputed
		i.counts.disputed.Add(1)
	}
	i.events.emit(Event{
		Kind: kind, Operation: to.Operation, KeyHash: keyHash(to.ID), From: from.State.String(), To: to.State.String(),
		StatusCode: to.Status, Cause: to.Cause,
	})
	if to.State == KeyInDoubt {
		select {
		case i.wake <- struct{}{}:
		default:
		}
	}
}

// doubts is what this process knows of keys in doubt and disputed, so that health need not ask the store. Run refreshes it.
type doubts struct {
	mu       sync.Mutex
	open     map[string]openKey
	storeBad bool
}

// openKey is one of which it is not known what became of it.
type openKey struct {
	since    time.Time
	disputed bool
}

func openOf(r Record) openKey { return openKey{r.Settled, r.State == KeyDisputed} }

func (d *doubts) note(r Record) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !r.unclear() {
		delete(d.open, r.ID)
		return
	}
	if d.open == nil {
		d.open = map[string]openKey{}
	}
	d.open[r.ID] = openOf(r)
}

// replace takes over what a look at the whole store found, which may have passed by what came in doubt since it began.
func (d *doubts) replace(open map[string]openKey, began time.Time, storeBad bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.storeBad = storeBad
	if storeBad {
		return
	}
	for id, k := range d.open {
		if !k.since.Before(began) {
			open[id] = k
		}
	}
	d.open = open
}

func (d *doubts) summary(now time.Time) (inDoubt, disputed int, oldest time.Duration, storeBad bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, k := range d.open {
		if k.disputed {
			disputed++
			continue
		}
		inDoubt++
		oldest = max(oldest, now.Sub(k.since))
	}
	return inDoubt, disputed, oldest, d.storeBad
}

// announce tells whoever keeps something for the key that its outcome is known now.
func (i *Idempotency) announce(rec Record) {
	if i.onSettle != nil && (rec.finished() || rec.State == KeyDisputed) {
		i.onSettle(rec.ID, rec)
	}
}

// Lookup returns the record of a key: its state, times, attempts, call id and the next planned look-up. A key that is
// not known has State KeyFree, which is no error; a store that fails is ErrStore.
func (i *Idempotency) Lookup(ctx context.Context, key string) (Record, error) {
	if i == nil {
		return Record{}, nil
	}
	rec, err := i.load(ctx, i.ID(key))
	if err != nil {
		return Record{}, &Error{Layer: "idempotency", Err: errors.Join(ErrStore, err)}
	}
	return rec, nil
}

// Resolve is the operator's word on a key that is in doubt or disputed. It says what is wrong with the resolution by
// field, and changes nothing then. A key in another state is an error that names the state; a store that fails is ErrStore.
func (i *Idempotency) Resolve(ctx context.Context, key string, v Resolution) error {
	if i == nil {
		return errors.New("idempotency is off")
	}
	f := faults{prefix: "Resolution"}
	if v.State != KeyConfirmed && v.State != KeyNotApplied {
		f.add("State", "KeyConfirmed or KeyNotApplied", v.State)
	}
	if v.Reason == "" {
		f.add("Reason", "given", "nothing")
	}
	if err := f.err(); err != nil {
		return err
	}
	id := i.ID(key)
	i.expire(ctx, id)
	rec, err := i.apply(ctx, id, keyEvent{kind: eventResolve, verdict: v, keep: i.cfg.TTL})
	switch {
	case errors.Is(err, errConflict):
		return fmt.Errorf("the key is %v; only one that is in_doubt or disputed can be resolved", rec.State)
	case err != nil:
		return &Error{Layer: "idempotency", Err: errors.Join(ErrStore, err)}
	}
	i.settled(rec)
	return nil
}

// Observe takes evidence from elsewhere: a webhook, an object that was read. Evidence about a key without a record
// here reaches its dead letter alone. Two different results for one key make it disputed, whatever it was before. What is
// known already is no error; an Evidence without an ID is one, and so is a store that fails (ErrStore).
func (i *Idempotency) Observe(ctx context.Context, ev Evidence) error {
	if i == nil {
		return nil
	}
	if ev.ID == "" {
		return errors.New("Evidence.ID: must be the id of a record, got nothing")
	}
	rec, err := i.apply(ctx, ev.ID, keyEvent{kind: eventEvidence, evidence: ev, keep: i.cfg.TTL})
	switch {
	case errors.Is(err, errConflict) && rec.State == KeyFree: // a letter may know the key
		i.announceUnknown(ev)
		return nil
	case errors.Is(err, errConflict): // nothing new
		return nil
	case err != nil:
		return &Error{Layer: "idempotency", Err: errors.Join(ErrStore, err)}
	}
	i.settled(rec)
	return nil
}

// announceUnknown is announce for a key without a record. Two calls for it are a dispute, which only the event tells of.
func (i *Idempotency) announceUnknown(ev Evidence) {
	rec := Record{ID: ev.ID}
	switch ids := foundIDs(ev); len(ids) {
	case 0:
		return
	case 1:
		rec.State, rec.CallID = KeyConfirmed, ids[0]
	default:
		rec.State, rec.CallIDs = KeyDisputed, ids
		i.counts.disputed.Add(1)
		i.events.emit(Event{
			Kind: EventKeyDisputed, KeyHash: keyHash(rec.ID), From: KeyFree.String(), To: rec.State.String(),
		})
	}
	i.announce(rec)
}

// settled hands an outcome that came from elsewhere to those who wait for the call's own answer.
func (i *Idempotency) settled(rec Record) {
	i.mu.Lock()
	f := i.flights[rec.ID]
	i.mu.Unlock()
	if f != nil && rec.State == KeyConfirmed {
		f.publish(result{resp: i.replay(rec)})
	}
	i.announce(rec)
}

// Forget removes the record of a finished key before its time, so that the key can be used anew. A key that is not
// finished, or that a dead letter refers to, is an error and stays; one without a record is none. A store that fails is
// ErrStore.
func (i *Idempotency) Forget(ctx context.Context, key string) error {
	if i == nil {
		return nil
	}
	id := i.ID(key)
	rec, err := i.load(ctx, id)
	switch {
	case err != nil:
		return &Error{Layer: "idempotency", Err: errors.Join(ErrStore, err)}
	case rec.State == KeyFree:
		return nil
	case !rec.finished():
		return fmt.Errorf("the key is %v; only a finished one can be forgotten", rec.State)
	case i.isPinned()(id):
		return errors.New("a dead letter refers to the key")
	}
	rec.State = KeyFree
	if _, swapped, err := i.swap(ctx, rec.Version, rec); err != nil || !swapped {
		return &Error{Layer: "idempotency", Err: errors.Join(ErrStore, err)}
	}
	return nil
}

func (i *Idempotency) isPinned() func(string) bool {
	if i.pinned == nil {
		return func(string) bool { return false }
	}
	return i.pinned
}

// expire puts a key in doubt whose owner died while sending. Nothing happens to any other.
func (i *Idempotency) expire(ctx context.Context, id string) {
	rec, err := i.load(ctx, id)
	if err != nil || rec.State != KeySending {
		return
	}
	e := keyEvent{kind: eventExpire, claim: i.identity()}
	_, _ = i.advance(ctx, rec, e) // one that is not due stays as it is
}

// identity is this process as the store's records know it.
func (i *Idempotency) identity() claimRequest {
	return claimRequest{owner: i.owner, exclusive: !i.store.Capabilities().Shared}
}

// standing looks a key up now, for somebody who would send it again.
func (i *Idempotency) standing(ctx context.Context, key string) Record {
	id := i.ID(key)
	i.expire(ctx, id)
	rec, err := i.load(ctx, id)
	if err != nil {
		return Record{ID: id, State: KeyInDoubt} // not known: nothing may be sent
	}
	if rec.State == KeyInDoubt && i.cfg.Reconcile != nil {
		return i.find(ctx, rec)
	}
	return rec
}

// shutdown refuses new flights and waits for those under way. Those that have not landed when ctx ends are recorded as in
// doubt, as far as they may have been sent, and counted in the error.
func (i *Idempotency) shutdown(ctx context.Context) error {
	i.mu.Lock()
	i.shut = true
	i.mu.Unlock()
	landed := make(chan struct{})
	go func() {
		i.active.Wait()
		close(landed)
	}()
	select {
	case <-landed:
		return nil
	case <-ctx.Done():
	}
	i.mu.Lock()
	flights := make([]*flight, 0, len(i.flights))
	for _, f := range i.flights {
		flights = append(flights, f)
	}
	i.mu.Unlock()
	inDoubt := 0
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abandonPatience)
	defer cancel()
	for _, f := range flights {
		if f.sent() && i.abandon(ctx, f) {
			inDoubt++
		}
		f.cancel(ErrClosed)
	}
	if len(flights) == 0 {
		return nil
	}
	return fmt.Errorf("%d calls were still under way, %d of them are in doubt now", len(flights), inDoubt)
}

// abandon records the send of a flight as in doubt before its answer is there.
func (i *Idempotency) abandon(ctx context.Context, f *flight) bool {
	rec, err := i.load(ctx, f.id)
	if err != nil || rec.State != KeySending {
		return false
	}
	a := answerReceipt{kind: answerUnknown, cause: "closed", epoch: rec.Epoch}
	_, err = i.advance(ctx, rec, keyEvent{kind: eventAnswer, token: f.token, answer: a})
	return err == nil
}

// IdempotencyStats is a snapshot; the counters run from the start.
type IdempotencyStats struct {
	// Executed counts sends, Replayed stored answers given, Joined callers who shared a flight.
	Executed, Replayed, Joined uint64
	// InFlight, Reused count refusals: another process has the key, the key belongs to another request.
	InFlight, Reused uint64
	// GivenBack counts keys that were free again without having had an effect.
	GivenBack uint64
	// InDoubt and Disputed count how often a key came into that state.
	InDoubt, Disputed uint64
	// StoreErrors counts failures of the store, Unwritten the outcomes that it has not taken yet.
	StoreErrors uint64
	Unwritten   int
	// Lookups, Found, LookupErrors count what the reconciler did.
	Lookups, Found, LookupErrors uint64
	// Resent counts sends under a key that the API is trusted to honour, Assumed the keys in doubt that were taken as not
	// applied: both are the user's choice, see IdempotencyConfig.
	Resent, Assumed uint64
	// Flights are the effect-once calls under way now.
	Flights  int
	Delivery DeliveryStats
}

// Stats may be called at any time.
func (i *Idempotency) Stats() IdempotencyStats {
	if i == nil {
		return IdempotencyStats{}
	}
	c := &i.counts
	return IdempotencyStats{
		Executed: c.executed.Load(), Replayed: c.replayed.Load(), Joined: c.joined.Load(), InFlight: c.inFlight.Load(),
		Reused: c.reused.Load(), GivenBack: c.givenBack.Load(), InDoubt: c.inDoubt.Load(), Disputed: c.disputed.Load(),
		StoreErrors: c.storeErrors.Load(), Unwritten: len(i.unwritten.ids()), Lookups: c.lookups.Load(),
		Resent: c.resent.Load(), Assumed: c.assumed.Load(),
		Found: c.found.Load(), LookupErrors: c.lookupErrors.Load(), Flights: int(c.flights.Load()),
		Delivery: i.events.stats(),
	}
}

// Unsettled lists the keys that are in doubt or disputed, at most limit of them (0 or less: all), for health and for
// operators. The error is ErrStore; what was read before it comes along.
func (i *Idempotency) Unsettled(ctx context.Context, limit int) ([]Record, error) {
	if i == nil {
		return nil, nil
	}
	var list []Record
	for cursor := ""; ; {
		page, next, err := i.unsettled(ctx, cursor, 256)
		if err != nil {
			return list, &Error{Layer: "idempotency", Err: errors.Join(ErrStore, err)}
		}
		for _, rec := range page {
			if !rec.unclear() {
				continue
			}
			if list = append(list, rec); len(list) == limit {
				return list, nil
			}
		}
		if cursor = next; cursor == "" {
			return list, nil
		}
	}
}
