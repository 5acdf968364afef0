package resilience

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/retell-resilience/resilience/internal/body"
)

// What the queue does with a call that passes: it takes over the letter of its key, and keeps the write if it fails for good.

// pass is the door. A redrive goes through untouched: whoever drives it settles its letter.
func (d *DLQ) pass(ctx context.Context, t *trip, req *http.Request, next leg) (*http.Response, error) {
	if t.letter != "" {
		return next.travel(ctx, t, req)
	}
	held, err := d.takeOver(ctx, t, req)
	if err != nil {
		return nil, err
	}
	sent, _ := t.payload.Bytes()
	held.began, held.changes = time.Now(), partsOf(t.call.Resource, methodOf(req), sent)
	d.begin(t.call.Resource, held.changes, held.began)
	defer d.end(t.call.Resource)
	ended := false
	defer func() {
		if !ended {
			d.letGo(held, t.call.Effect == EffectOnce) // a panic or Goexit below; it is the caller's
		}
	}()
	resp, err := next.travel(ctx, t, req)
	ended = true
	code := unreadRefusal(err)
	if err == nil {
		code = resp.StatusCode
	}
	if code != 0 && code < http.StatusInternalServerError && d.answered(t, req, held, code) {
		return resp, err
	}
	return d.failed(ctx, t, req, held, answer{resp, err})
}

// answer is how an exchange ended.
type answer struct {
	resp *http.Response
	err  error
}

// holding is a call on its way, and the letter with its key whose lease it has taken.
type holding struct {
	slot    *letterSlot // nil: there is none
	token   uint64
	began   time.Time // when the call began
	changes parts     // what it changes
}

// takeOver takes the lease of the letter with the key of the call: its outcome is then the letter's.
func (d *DLQ) takeOver(ctx context.Context, t *trip, req *http.Request) (holding, error) {
	for t.key != "" {
		held, coming, err := d.tryTakeOver(t, req)
		if coming == nil {
			return held, err
		}
		select {
		case <-coming: // now it is known whose the write is
		case <-ctx.Done():
			return holding{}, t.refuse("dlq", context.Cause(ctx))
		}
	}
	return holding{}, nil
}

func (d *DLQ) tryTakeOver(t *trip, req *http.Request) (held holding, coming <-chan struct{}, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.box.ofKey(t.key)
	switch {
	case s == nil:
		return holding{}, nil, nil
	case s.arrival != nil:
		return holding{}, s.arrival.over, nil
	case !s.letter.sameWrite(writeOf(t, req)): // its outcome would be taken for that of another write
		return holding{}, nil, t.refuse("dlq", ErrKeyReused)
	case s.letter.InDoubt && !resends(t):
		// Nobody above knows what the letter knows: there is no layer for keys, or its store has forgotten.
		return holding{}, nil, d.parkedError(t, s.letter, ErrInDoubt)
	case s.token != 0:
		return holding{}, nil, d.parkedError(t, s.letter, nil)
	}
	held = holding{slot: s, token: d.box.lease(s)}
	s.flying = true
	t.owned(s.letter.ID)
	return held, nil, nil
}

// resends reports whether the call is let through though its key is known to be in doubt, in a mode the user chose.
func resends(t *trip) bool { return t.flight != nil && t.flight.rec.Doubts > 0 }

// parkedError says that a letter owns the write.
func (d *DLQ) parkedError(t *trip, l *Letter, cause error) *Error {
	e := t.fail("dlq", errors.Join(ErrParked, cause))
	e.Key, e.LetterID, e.StatusCode = l.Key, l.ID, statusOf(cause)
	if l.InDoubt && !InDoubt(e) {
		e.Err = errors.Join(e.Err, ErrInDoubt)
	}
	return e
}

// answered settles what letters an answer leaves behind. It is false, and changes nothing, where the letter that the call has
// taken over outlives the answer and goes back to the queue with it.
func (d *DLQ) answered(t *trip, req *http.Request, held holding, status int) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	mine := d.holdsLease(held.slot, held.token)
	if mine && held.slot.letter.outlives(status) {
		return false
	}
	worked := status/100 == 2
	if t.key != "" {
		// Also one that the failure of another call made meanwhile, and a redrive may be at: it has happened. Not that of
		// another write, which only shares the key.
		s := d.box.ofKey(t.key)
		if s != nil && (mine || (worked || s.token == 0 && !s.letter.outlives(status)) && s.letter.sameWrite(writeOf(t, req))) {
			d.callOff(s, errAnswered) // without its letter it would not even hear of newer writes
			d.ack(s, "answered", status)
			t.owned("")
		}
	}
	if worked {
		d.supersede(t.call.Resource, held.changes, held.began)
	}
	return true
}

// failed gives a write that did not work to the queue, or leaves it with its caller.
func (d *DLQ) failed(ctx context.Context, t *trip, req *http.Request, held holding, a answer) (*http.Response, error) {
	f := failureOf(a, t.call.Effect)
	if held.slot != nil {
		if p := d.merge(held, f, callersOwn(ctx, a)); p.slot != nil {
			_, _ = d.secure(ctx, p) // it is the queue's in any case
			discard(a.resp)
			return nil, d.parkedBecause(t, p.letter, f)
		}
	}
	if !d.wants(ctx, t, a) {
		return a.resp, a.err
	}
	l, ok := d.letterOf(t, req, f, held.began)
	if !ok {
		return a.resp, a.err
	}
	ctx, decided, ok := t.handOver(ctx)
	if !ok {
		return a.resp, a.err
	}
	kept, err := d.admitFor(ctx, l, t.road, decided)
	switch {
	case err == nil:
		discard(a.resp)
		return nil, d.parkedBecause(t, kept, f)
	case a.err == nil:
		return a.resp, nil // a settled outcome is a response; that no letter was made is counted and reported
	}
	why := ErrLettersFull
	if errors.Is(err, ErrKeyReused) {
		why = ErrKeyReused
	}
	e := t.fail("dlq", errors.Join(a.err, why))
	e.Key, e.StatusCode = t.key, f.status
	return nil, e
}

// admitFor is admit for a caller who may leave meanwhile, and must know then whether a letter was made.
func (d *DLQ) admitFor(ctx context.Context, l Letter, road leg, decided func(string)) (kept *Letter, err error) {
	id := ""
	defer func() { decided(id) }() // a Spill of the user's may panic
	kept, err = d.admit(ctx, l, road, d.cfg.Overflow == OverflowBlock)
	switch {
	case err != nil:
		return nil, err
	case !kept.sameWrite(l, true): // it came while the call was under way, and does not do what the call wants
		return nil, ErrKeyReused
	}
	id = kept.ID
	return kept, nil
}

// parkedBecause is parkedError for a write that the queue has taken just now, and why it failed.
func (d *DLQ) parkedBecause(t *trip, l *Letter, f failure) *Error {
	e := d.parkedError(t, l, f.err)
	e.StatusCode = f.status
	return e
}

// callersOwn reports whether the caller ended the call: before it was sent, or at any time by cancelling. Such a caller
// has taken the write back. A budget is no wish of the caller's.
func callersOwn(ctx context.Context, a answer) bool {
	if a.err == nil || ctx.Err() == nil || outOfBudget(ctx) {
		return false
	}
	return NotSent(a.err) || !byTime(ctx)
}

// neverKept are failures that a redrive cannot help, or that are the caller's to know.
var neverKept = []error{
	ErrClosed, ErrKeyReused, ErrBadKey, ErrStore, ErrStoreFull, ErrDisputed, ErrParked, ErrLettersFull, body.ErrSpent,
}

// wants reports whether the queue takes a failed write.
func (d *DLQ) wants(ctx context.Context, t *trip, a answer) bool {
	if t.key == "" || !t.named && !d.cfg.KeepUnnamed || t.deserted() || callersOwn(ctx, a) {
		return false
	}
	for _, never := range neverKept {
		if errors.Is(a.err, never) {
			return false
		}
	}
	if t.run != nil && d.handler(t.call.Operation) == nil {
		return false
	}
	if d.cfg.Keep == nil {
		return true
	}
	keep := false
	_ = d.guard(t.call.Operation, func() error { keep = d.cfg.Keep(t.call); return nil })
	return keep
}

// letterOf makes the letter of a failed call; ok is false when its body is not at hand.
func (d *DLQ) letterOf(t *trip, req *http.Request, f failure, started time.Time) (l Letter, ok bool) {
	l, whole := writeOf(t, req)
	if !whole {
		return l, false
	}
	l.Key, l.Named, l.Call, l.NotAfter, l.First, l.InDoubt = t.key, t.named, t.call, t.expiry(), started, f.doubt
	l.Call.Params, l.Call.Budget = nil, 0
	l.note(f.attempt(time.Now()))
	l.Next = l.Last.Add(max(d.backoff(0), f.after))
	return l, true
}

// writeOf is what a call asks for, as its letter holds it; whole is false when its body is not at hand.
func writeOf(t *trip, req *http.Request) (l Letter, whole bool) {
	l.Operation = t.call.Operation
	l.Body, whole = t.payload.Bytes()
	if t.run != nil { // no request: its parameters are all there is
		return l, whole
	}
	l.Method, l.URL, l.Header = methodOf(req), req.URL.String(), req.Header
	if req.Host != req.URL.Host {
		l.Host = req.Host
	}
	return l, whole
}
