package resilience

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/google/uuid"

	"github.com/retell-resilience/resilience/internal/body"
)

// claim is the door of [Idempotency.Claim]: what must happen once gets its key here, and the flight it travels in.
func (i *Idempotency) claim(ctx context.Context, t *trip, req *http.Request, next leg) (*http.Response, error) {
	switch t.call.Effect {
	case EffectOnce:
		return i.once(ctx, t, req, next)
	case EffectIdempotent:
		if t.named {
			return i.deduplicate(ctx, t, req, next)
		}
	}
	return next.travel(ctx, t, req)
}

// once executes the call in a flight of its own, which outlives a caller who leaves, or joins the flight that is under way.
func (i *Idempotency) once(ctx context.Context, t *trip, req *http.Request, next leg) (*http.Response, error) {
	key := t.key
	if !t.named {
		key = uuid.NewString()
	}
	if ctx.Err() != nil { // its flight might be off before anybody sees that nobody waits for it
		return nil, t.gone(ctx, "idempotency")
	}
	id, print := i.ID(key), fingerprint(t, req)
	f, leader, err := i.board(ctx, t, key, id, print)
	if err != nil {
		return nil, err
	}
	if leader {
		go i.fly(f, detached(f.ctx, req), next)
	}
	return i.await(f, t, ctx, leader)
}

// board joins the flight of the key, or opens one. A flight that is ending cannot be joined: the new one waits for it.
func (i *Idempotency) board(ctx context.Context, t *trip, key, id, print string) (f *flight, leader bool, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.shut {
		return nil, false, t.refuse("idempotency", ErrClosed)
	}
	old := i.flights[id]
	if old != nil && old.join(ctx, print) {
		if old.print != print {
			return nil, false, i.reused(t, id)
		}
		i.counts.joined.Add(1)
		i.events.emit(Event{Kind: EventKeyJoined, Operation: t.call.Operation, KeyHash: keyHash(id)})
		return old, false, nil
	}
	f = newFlight(t, ctx, key, id, print)
	f.token = i.owner + "." + strconv.FormatUint(i.tokens.Add(1), 36)
	f.previous = old
	i.flights[id] = f
	i.active.Add(1)
	i.counts.flights.Add(1)
	return f, true, nil
}

func (i *Idempotency) reused(t *trip, id string) error {
	i.counts.reused.Add(1)
	i.events.emit(Event{Kind: EventKeyReused, Operation: t.call.Operation, KeyHash: keyHash(id)})
	return t.refuse("idempotency", ErrKeyReused)
}

// await is the caller's side of a flight: its answer, or the caller's own end.
func (i *Idempotency) await(f *flight, t *trip, ctx context.Context, leader bool) (*http.Response, error) {
	select {
	case <-f.done:
	case <-ctx.Done(): // though the answer may be there, too
		if err := i.leave(f, t, t.gone(ctx, "idempotency"), byTime(ctx), leader); err != nil {
			return nil, err
		}
	}
	return f.hand(t, ctx, leader)
}

// leave gives up waiting. Past the intent the outcome is in doubt for this caller, though the flight goes on; and a letter
// that owns the write by now will see to it.
func (i *Idempotency) leave(f *flight, t *trip, why *Error, byTime, leader bool) error {
	p := f.leave(why, byTime, leader)
	switch {
	case p.over:
		return nil
	case leader && t.letter != "" && !p.sent && !p.last: // a redrive keeps its lease until it knows whether the others sent it
		<-f.done
		return nil
	}
	if !p.sent && p.letter == "" {
		if !p.last { // somebody else may still have it sent
			why.verdict = undecided
		}
		return why
	}
	e := t.fail("idempotency", why.Err)
	e.Key, e.Limit, e.LetterID = f.key, why.Limit, p.letter
	if p.letter != "" {
		e.Err = errors.Join(ErrParked, e.Err)
	}
	if p.sent {
		e.Err = errors.Join(ErrInDoubt, e.Err)
	}
	return e
}

// fly is the flight itself, from the claim to the record of its outcome. It must be the whole body of a goroutine.
func (i *Idempotency) fly(f *flight, req *http.Request, next leg) {
	capture(func() (*http.Response, error) {
		if err := f.waitForPrevious(); err != nil {
			return nil, err
		}
		if replayed, err := i.take(f); replayed != nil || err != nil {
			return replayed, err
		}
		if err := i.mark(f, req); err != nil {
			return nil, err
		}
		resp, err := next.travel(f.ctx, f.trip, req)
		f.waitForSend()
		if err != nil && f.rec.State == KeyConfirmed { // an attempt that the layer between has not waited for
			return i.replayed(f.rec), nil
		}
		if err != nil && f.rec.State == KeyInDoubt && f.letter == "" && !InDoubt(err) {
			e := f.trip.fail("idempotency", errors.Join(ErrInDoubt, err)) // of the first send nothing is known
			e.Key = f.key
			err = e
		}
		return resp, err
	}, func(r result) {
		f.waitForSend() // a panic may have passed one by
		i.giveBack(f)
		i.land(f) // first, so that whoever has the answer finds nothing of the flight left
		f.publish(r)
		i.remember(f)
	})
}

// remember keeps the outcome of a call whose caller left, with the key, while it was being recorded.
func (i *Idempotency) remember(f *flight) {
	now := i.store.Now()
	if f.named || !f.isTold() || !f.rec.finished() || now.Before(f.rec.Expires) {
		return
	}
	rec := f.rec
	rec.Expires = now.Add(i.cfg.TTL)
	ctx, cancel := lasting(f.ctx)
	defer cancel()
	if _, _, err := i.swap(ctx, rec.Version, rec); err != nil {
		i.counts.storeErrors.Add(1)
	}
}

// land takes a finished flight off the list.
func (i *Idempotency) land(f *flight) {
	i.mu.Lock()
	close(f.landed)
	if i.flights[f.id] == f {
		delete(i.flights, f.id)
		if p := f.previous; p != nil && !p.hasLanded() { // it left before its turn: the next one waits for the same
			i.flights[f.id] = p
		}
	}
	f.previous = nil
	i.mu.Unlock()
	f.trip.payload.Release()
	i.counts.flights.Add(-1)
	i.active.Done()
}

// take claims the key in the store. It returns the answer of a finished record for a replay.
func (i *Idempotency) take(f *flight) (*http.Response, error) {
	for {
		e := keyEvent{kind: eventClaim, token: f.token, claim: i.claimRequest(f)}
		rec, err := i.apply(f.ctx, f.id, e)
		switch {
		case err == nil:
			f.rec = rec
			return nil, nil
		case errors.Is(err, errReplay):
			return i.replayed(rec), nil
		case errors.Is(err, ErrInDoubt) && i.mayResend(rec):
			f.rec = rec
			f.owe()
			return nil, nil
		case errors.Is(err, ErrInDoubt) && rec.State == KeySending:
			// Its owner is gone: what it sent is in doubt from now on.
			expire := keyEvent{kind: eventExpire, claim: e.claim}
			if _, err := i.apply(f.ctx, f.id, expire); err != nil && !errors.Is(err, errConflict) {
				return nil, i.storeFailed(f, err)
			}
		default:
			return nil, i.refuseClaim(f, rec, err)
		}
	}
}

// mayResend reports whether the user's choice lets a call in doubt be sent again under the API's own key.
func (i *Idempotency) mayResend(rec Record) bool {
	if i.cfg.ServerKeys != ServerKeysTrust || rec.State != KeyInDoubt {
		return false
	}
	h, ok := i.cfg.Reconcile.(KeyHonorer)
	age := i.store.Now().Sub(rec.Sent)
	return ok && age >= 0 && age < honorsKey(h, rec.Operation) // a clock that went back tells no age
}

// lease is until when a flight may go on with its key.
func (i *Idempotency) lease(f *flight) time.Time {
	left := i.attemptLimit(f.trip.call)
	if deadline, ok := f.deadline(); ok {
		left = max(0, time.Until(deadline))
	}
	return i.store.Now().Add(left + 5*time.Second)
}

func (i *Idempotency) claimRequest(f *flight) claimRequest {
	c := i.identity()
	c.fingerprint, c.operation, c.resource = f.print, f.trip.call.Operation, f.trip.call.Resource
	c.lease, c.pinned = i.lease(f), f.named && i.isPinned()(f.id)
	return c
}

// attemptLimit bounds leases, and flights where no layer below bounds them; a call without any limit gets a generous one.
func (i *Idempotency) attemptLimit(c Call) time.Duration {
	limit := c.Limit
	if i.limitOf != nil {
		limit = i.limitOf(c)
	}
	if limit <= 0 {
		return 10 * time.Minute
	}
	return limit
}

// refuseClaim is what a caller gets whose key is taken.
func (i *Idempotency) refuseClaim(f *flight, rec Record, err error) error {
	t := f.trip
	switch {
	case errors.Is(err, ErrInFlight):
		i.counts.inFlight.Add(1)
		e := t.refuse("idempotency", ErrInFlight)
		e.RetryAfter = max(0, rec.Lease.Sub(i.store.Now()))
		return e
	case errors.Is(err, ErrKeyReused):
		return i.reused(t, f.id)
	case errors.Is(err, ErrInDoubt):
		e := t.fail("idempotency", ErrInDoubt)
		e.Key, e.StatusCode = f.key, rec.Status
		e.RetryAfter = max(0, rec.NextLookup.Sub(i.store.Now()))
		return e
	case errors.Is(err, ErrDisputed):
		e := t.fail("idempotency", ErrDisputed)
		e.Key, e.CallIDs = f.key, rec.CallIDs
		return e
	}
	return i.storeFailed(f, err)
}

func (i *Idempotency) storeFailed(f *flight, err error) error {
	i.counts.storeErrors.Add(1)
	i.events.emit(Event{Kind: EventStoreFailed, Operation: f.trip.call.Operation, KeyHash: keyHash(f.id)})
	if errors.Is(err, ErrStoreFull) {
		return f.trip.refuse("idempotency", err)
	}
	if f.ctx.Err() != nil {
		return f.trip.gone(f.ctx, "idempotency")
	}
	return f.trip.refuse("idempotency", errors.Join(ErrStore, err))
}

// mark lets the reconciler write the key into the request that will go out; letters and fingerprints keep the original.
func (i *Idempotency) mark(f *flight, req *http.Request) error {
	b, whole := f.trip.payload.Bytes()
	if i.cfg.Reconcile == nil || !whole {
		return nil
	}
	clone := req.Clone(context.WithValue(f.ctx, recordIDKey{}, f.id))
	if len(b) > 0 {
		clone.Body, _, clone.ContentLength, _ = body.Of(b).Open() // a body in memory always opens
	}
	if err := i.callMark(clone, f.key); err != nil {
		return f.trip.refuse("idempotency", fmt.Errorf("marking the request: %w", err))
	}
	f.trip.marked = markedAs(req, clone, body.Read(clone.Body, clone.ContentLength, -1))
	return nil
}

func (i *Idempotency) callMark(req *http.Request, key string) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic: %T", v)
		}
	}()
	return i.cfg.Reconcile.Mark(req, key)
}

// giveBack releases a key that is still only claimed at the end of its flight: nothing was sent, or what was sent was
// refused and nobody retries.
func (i *Idempotency) giveBack(f *flight) {
	if f.rec.State != KeyClaimed {
		return
	}
	i.counts.givenBack.Add(1)
	e := keyEvent{kind: eventRelease, token: f.token, keep: i.retention(f.named)}
	ctx, cancel := lasting(f.ctx)
	defer cancel()
	rec, err := i.advance(ctx, f.rec, e)
	if err != nil && !errors.Is(err, errConflict) {
		i.counts.storeErrors.Add(1) // the lease frees the key
		return
	}
	f.rec = rec
}

// retention of a finished record: a key that nobody named will not be asked for again.
func (i *Idempotency) retention(named bool) time.Duration {
	if named {
		return i.cfg.TTL
	}
	return 0
}
