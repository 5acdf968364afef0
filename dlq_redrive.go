package resilience

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"time"
)

// Handle has letters of one operation redriven by fn, instead of by sending their request; the letter's key and expiry are
// in its context, at bulk priority, so a call that fn makes through the same stack belongs to the letter. An error counts
// as a failed attempt. An error that is [ErrInDoubt] has the letter looked up from then on, and so does, for a letter
// whose effect is EffectOnce, every error that is not [NotSent]; one that is [ErrPoison] parks it, and so does an error of
// encoding/json at decoding: a letter whose effect is EffectOnce is then in doubt as well. A panic is a failure.
// fn must end when its context does. nil takes the function away. Register before the first call and before Run.
//
// Have fn make its call through the same stack ([Do], or a client of its), with the context it gets: then the key knows of it.
// Work that goes past the stack settles the letter and not the key, and the next call with that key does it again.
func (d *DLQ) Handle(operation string, fn func(context.Context, Letter) error) {
	if d == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if fn == nil {
		delete(d.handlers, operation)
		return
	}
	d.handlers[operation] = fn
}

func (d *DLQ) handler(operation string) func(context.Context, Letter) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.handlers[operation]
}

// RedriveStatus says how a [DLQ.Redrive] ended.
type RedriveStatus uint8

// The ends of a redrive.
const (
	RedriveEmpty    RedriveStatus = iota // no letter waits
	RedriveNotDue                        // the next one is due at Next
	RedriveDone                          // it worked, the letter is gone
	RedriveFailed                        // it failed, the letter waits until Next
	RedriveParked                        // it failed, the letter was given up
	RedriveInDoubt                       // it may have taken effect; the letter is looked up again at Next
	RedrivePaused                        // it could not be tried now; no attempt was spent
	RedriveReturned                      // the context ended before it was sent; the letter is as it was
	RedriveClosed                        // the queue is closed
)

// String returns "empty", "not-due", "done", "failed", "parked", "in-doubt", "paused", "returned" or "closed".
func (s RedriveStatus) String() string {
	return nameOf(int(s), "empty", "not-due", "done", "failed", "parked", "in-doubt", "paused", "returned", "closed")
}

// RedriveResult is what one [DLQ.Redrive] did.
type RedriveResult struct {
	Status   RedriveStatus
	LetterID string    // of the letter it took; empty for RedriveEmpty, RedriveNotDue and RedriveClosed
	Next     time.Time // when to come again, where that is known
	Err      error     // why it did not work; nil for RedriveDone, RedriveEmpty and RedriveNotDue
}

// Redrive takes the oldest letter that is due and tries it once: sends it, hands it to its [DLQ.Handle] function, or, where
// it is in doubt, looks up what became of it. It returns when that is over. Two callers never get the same letter.
func (d *DLQ) Redrive(ctx context.Context) RedriveResult {
	if d == nil {
		return RedriveResult{}
	}
	ls, result := d.take(ctx)
	if ls == nil {
		return result
	}
	return d.redrive(ls)
}

// lease is a letter in the hands of a redrive.
type lease struct {
	slot   *letterSlot
	token  uint64
	letter *Letter
	road   leg
	ctx    context.Context //nolint:containedctx // it lives as long as the lease
}

// take leases the oldest due letter; nil: there is none, the result says why.
func (d *DLQ) take(ctx context.Context) (*lease, RedriveResult) {
	now := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed || isClosed(d.closing) { // while the stack closes, its calls are awaited, and may become letters
		return nil, RedriveResult{Status: RedriveClosed, Err: ErrClosed}
	}
	d.sweep(now)
	s := d.box.oldestDue(now)
	if s == nil {
		if next := d.box.nextDue(); !next.IsZero() {
			return nil, RedriveResult{Status: RedriveNotDue, Next: next}
		}
		return nil, RedriveResult{}
	}
	ls := &lease{slot: s, token: d.box.lease(s), letter: s.letter, road: s.road}
	if ls.road == nil {
		ls.road = d.road
	}
	if ls.road == nil {
		ls.road = d.ownDoor
	}
	ctx, cancel := context.WithCancelCause(ctx)
	d.running[ls.token] = cancel
	ls.ctx = d.letterContext(ctx, ls.letter)
	return ls, RedriveResult{}
}

// letterContext is what travels with a redrive.
func (d *DLQ) letterContext(ctx context.Context, l *Letter) context.Context {
	ctx = context.WithValue(ctx, tripKey{}, (*trip)(nil))           // Redrive may be called from within another call
	ctx = context.WithValue(ctx, overridesKey{}, (*overrides)(nil)) // and under a context that describes others
	call := l.Call
	call.Operation, call.Priority, call.Budget = l.Operation, PriorityBulk, 0
	ctx = WithCall(ctx, call)
	ctx = WithIdempotencyKey(ctx, l.Key)
	ctx = WithExpiry(ctx, l.Expires)
	return override(ctx, func(o *overrides) { o.letter = l.ID })
}

// redrive does with a leased letter what is to be done, and gives it back.
func (d *DLQ) redrive(ls *lease) RedriveResult {
	defer d.finish(ls)
	d.begin(ls.letter.Call.Resource, ls.slot.parts, ls.letter.First)
	defer d.end(ls.letter.Call.Resource)
	if ls.letter.InDoubt {
		if result, settled := d.lookUp(ls); settled {
			return result
		}
	}
	verdict, f := d.try(ls)
	return d.conclude(ls, verdict, f)
}

// finish ends the context of a redrive, which has given its lease back, and reports that it is over.
func (d *DLQ) finish(ls *lease) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.counters.Redriven++
	d.running[ls.token](nil)
	delete(d.running, ls.token)
	d.wake()
}

// lookUp asks what became of a letter in doubt. settled: there is nothing to send.
func (d *DLQ) lookUp(ls *lease) (result RedriveResult, settled bool) {
	var news keyNews
	if d.reconcile != nil {
		_ = d.guard(ls.letter.Operation, func() error { // a panic tells nothing about the key
			news = d.reconcile(ls.ctx, ls.letter.Key)
			return nil
		})
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.holdsLease(ls.slot, ls.token) {
		return d.goneElsewhere(ls), true
	}
	verdict := news.verdict
	switch l := ls.slot.letter; {
	case !l.InDoubt: // the news came from elsewhere while we asked
		verdict = keyNotApplied
	case verdict == keyNotApplied && !l.clearedBy(news): // of what another process sent, we have learned nothing
		verdict = keyUnknown
	}
	result = RedriveResult{Status: RedriveInDoubt, LetterID: ls.letter.ID, Err: ErrInDoubt}
	s, enough := ls.slot, d.cfg.Attempts >= 0 && ls.letter.Attempts >= d.cfg.Attempts
	switch {
	case verdict == keyDone:
		d.tell(EventLetterRedriven, s.letter, "settled")
		d.found(s)
		return RedriveResult{Status: RedriveDone, LetterID: ls.letter.ID}, true
	case verdict == keyNotApplied && !enough:
		d.box.change(s, func(l *Letter) { l.setDoubt(false, time.Time{}) })
		ls.letter = s.letter
		return result, false
	}
	s.token = 0
	if verdict == keyNotApplied {
		d.park(s, "attempts", func(l *Letter) { l.setDoubt(false, time.Time{}); l.Redrives++ })
		d.tell(EventLetterRedriven, s.letter, "attempts")
		result.Status, result.Err = RedriveParked, errors.New("dlq: the write has not happened, and no attempt is left")
		return result, true
	}
	d.postpone(s, 0, func(l *Letter) { l.Redrives++ })
	d.tell(EventLetterRedriven, s.letter, "in-doubt")
	result.Next = s.letter.Next
	return result, true
}

// postpone has a letter wait longer each time, without spending an attempt.
func (d *DLQ) postpone(s *letterSlot, after time.Duration, edit func(*Letter)) {
	delay := max(d.backoff(s.waits), after)
	s.waits++
	d.box.change(s, func(l *Letter) {
		edit(l)
		l.Next = time.Now().Add(delay)
	})
}

// goneElsewhere is the result of a redrive whose letter was settled by somebody else meanwhile.
func (d *DLQ) goneElsewhere(ls *lease) RedriveResult {
	return RedriveResult{Status: RedriveDone, LetterID: ls.letter.ID}
}

// try makes one attempt, to whatever end.
func (d *DLQ) try(ls *lease) (letterVerdict, failure) {
	handler := d.handler(ls.letter.Operation)
	var a answer
	sent := false
	err := d.guard(ls.letter.Operation, func() (err error) {
		if err = d.mayGo(ls); err != nil {
			return err
		}
		if handler != nil {
			sent = true
			d.takeOff(ls)
			return handler(ls.ctx, ls.letter.clone())
		}
		req, err := d.request(ls)
		if err != nil {
			return err
		}
		if err = d.mayGo(ls); err != nil { // Authorize may have taken its time
			return err
		}
		sent = true
		d.takeOff(ls)
		a.resp, a.err = d.send(req, ls)
		return a.err
	})
	var stopped *notTried
	switch {
	case errors.As(err, &stopped):
		return stopped.verdict, failure{cause: stopped.cause, err: err}
	case err != nil && !sent: // Authorize panicked
		return letterPaused, failure{cause: "authorize", err: err}
	case err != nil:
		a = answer{err: err}
	}
	defer discard(a.resp)
	return judge(ls.ctx, ls.letter, a, handler != nil)
}

// notTried says that a redrive ended before anything was sent.
type notTried struct {
	verdict letterVerdict
	cause   string
	err     error
}

func (e *notTried) Error() string {
	if e.err == nil {
		return "not tried: " + e.cause
	}
	return fmt.Sprintf("not tried: %s: %v", e.cause, e.err)
}
func (e *notTried) Unwrap() error { return e.err }

// mayGo asks at the moment of sending whether the letter may still be sent.
func (d *DLQ) mayGo(ls *lease) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	l := ls.slot.letter
	switch {
	case !d.holdsLease(ls.slot, ls.token):
		return &notTried{letterReturned, "settled", nil}
	case ls.ctx.Err() != nil:
		return &notTried{letterReturned, "canceled", context.Cause(ls.ctx)}
	case l.InDoubt, d.box.expired(l, time.Now()): // a letter that is superseded has its redrive called off
		return &notTried{letterReturned, "expired", nil}
	case l.Redacted:
		return &notTried{letterPoison, "redacted", nil}
	}
	return nil
}

// takeOff notes that the letter is on its way from here on: an export says so.
func (d *DLQ) takeOff(ls *lease) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.holdsLease(ls.slot, ls.token) {
		ls.slot.flying = true
	}
}

// request builds what is sent.
func (d *DLQ) request(ls *lease) (*http.Request, error) {
	l := ls.letter
	if l.Method == "" {
		return nil, &notTried{letterPoison, "unknown-operation", nil}
	}
	if ls.road == nil {
		return nil, &notTried{letterPaused, "no-road", nil}
	}
	if l.NeedsAuth && d.cfg.Authorize == nil {
		return nil, &notTried{letterPaused, "no-authorize", nil}
	}
	req, err := http.NewRequestWithContext(ls.ctx, l.Method, l.URL, bytes.NewReader(l.Body))
	if err != nil {
		return nil, &notTried{letterPoison, "undecodable", nil} // the error would show the URL
	}
	maps.Copy(req.Header, l.Header.Clone())
	if l.Host != "" {
		req.Host = l.Host
	}
	if d.cfg.Authorize != nil {
		if err := d.cfg.Authorize(ls.ctx, l.clone(), req); err != nil {
			return nil, &notTried{letterPaused, "authorize", err}
		}
	}
	return req, nil
}

func (d *DLQ) send(req *http.Request, ls *lease) (*http.Response, error) {
	if d.reenter != nil {
		return d.reenter(req, ls.road)
	}
	return enter(req, ls.road, entry{})
}

// conclude settles the letter by what came out.
func (d *DLQ) conclude(ls *lease, v letterVerdict, f failure) RedriveResult {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.holdsLease(ls.slot, ls.token) {
		return d.goneElsewhere(ls)
	}
	s := ls.slot
	result := RedriveResult{LetterID: ls.letter.ID, Err: f.err}
	if f.err == nil && v != letterDone {
		result.Err = errors.New(f.detail)
	}
	if v == letterDone {
		d.tell(EventLetterRedriven, s.letter, "done")
		d.ack(s, "redriven", f.status)
		d.supersede(ls.letter.Call.Resource, s.parts, ls.letter.First)
		result.Status = RedriveDone
		return result
	}
	s.token = 0
	switch v {
	case letterFailed:
		d.attemptFailed(s, f)
		result.Status = RedriveFailed
	case letterPoison:
		d.park(s, poisonReason(f), func(l *Letter) { d.spend(l, f); l.InDoubt = l.InDoubt || f.mayHaveBeen() })
	case letterDisputed:
		d.park(s, "disputed", func(l *Letter) { d.spend(l, f); l.InDoubt = true })
	case letterDoubt:
		s.waits = 0
		d.postpone(s, f.after, func(l *Letter) { d.spend(l, f); l.InDoubt = true })
		result.Status = RedriveInDoubt
	case letterPaused:
		d.pause(s, f)
		result.Status = RedrivePaused
	default:
		d.box.refresh(s)
		result.Status = RedriveReturned
		d.sweep(time.Now())
	}
	if s.letter.Parked {
		result.Status = RedriveParked
	}
	d.tell(EventLetterRedriven, s.letter, f.cause)
	result.Next = s.letter.Next
	return result
}

// attemptFailed spends an attempt; the last one parks the letter.
func (d *DLQ) attemptFailed(s *letterSlot, f failure) {
	s.waits = 0
	if n := s.letter.Attempts + 1; d.cfg.Attempts >= 0 && n >= d.cfg.Attempts {
		d.park(s, "attempts", func(l *Letter) { d.spend(l, f) })
		return
	}
	d.box.change(s, func(l *Letter) {
		d.spend(l, f)
		l.Next = l.Last.Add(max(d.backoff(l.Attempts), f.after))
	})
}

// spend notes a failed attempt.
func (d *DLQ) spend(l *Letter, f failure) {
	d.counters.Failed++
	l.Attempts++
	l.Redrives++
	l.note(f.attempt(time.Now()))
}

// pause puts a letter off that could not be tried, and says so.
func (d *DLQ) pause(s *letterSlot, f failure) {
	d.counters.Paused++
	d.postpone(s, f.after, func(l *Letter) {
		l.Redrives++
		l.Cause, l.Detail, l.StatusCode = f.cause, f.detail, f.status
	})
	d.tell(EventRedrivePaused, s.letter, f.cause)
}

// mayHaveBeen reports whether work that will never succeed may have: it failed at decoding, and that may have been its answer.
func (f failure) mayHaveBeen() bool {
	return f.doubt && undecodable(f.err) && !errors.Is(f.err, ErrPoison)
}

func poisonReason(f failure) string {
	if f.cause == "redacted" {
		return "redacted"
	}
	return "poison"
}
