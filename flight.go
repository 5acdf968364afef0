package resilience

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/retell-resilience/resilience/internal/body"
)

// flight is one execution of a call that must happen once. Until the intent to send is recorded it belongs to those who
// wait for it and ends when the last of them leaves. From then on it goes on by itself.
type flight struct {
	id, key, print, token string
	named                 bool
	trip                  *trip // the leader's, copied: the leader may leave
	ctx                   context.Context
	cancel                context.CancelCauseFunc
	previous              *flight // that has to land before this one begins; nil: none
	landed                chan struct{}

	rec Record // as the store has it; touched by the flight's goroutine, and by a send while it is under way

	mu        sync.Mutex
	waiters   int
	sending   chan struct{} // closed when the send under way has ended; nil: there is none
	committed bool          // the intent is recorded or being recorded
	shared    bool          // somebody joined
	unbounded bool          // somebody waits without a deadline
	latest    time.Time     // deadline of the most patient waiter
	whose     limitKind     // what sets it, see firstLimit
	givenUp   []func()      // to be run when the last waiter ran out of time
	owed      bool          // an earlier send of the key is in doubt
	told      bool          // somebody left who was told that the outcome is in doubt
	left      bool          // the leader, who alone could have read a stream
	letter    string        // id of the dead letter that owns the write; "": none
	handing   *handing      // the write is being handed over to a queue
	over      bool
	result    result
	done      chan struct{}
}

func newFlight(t *trip, ctx context.Context, key, id, print string) *flight {
	own := t.copy()
	f := &flight{
		id: id, key: key, print: print, named: t.named, letter: t.letter,
		trip: own, landed: make(chan struct{}), done: make(chan struct{}), waiters: 1,
	}
	own.key, own.flight = key, f
	own.payload.Hold()
	f.extend(ctx)
	inner, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	f.ctx, f.cancel = &flightContext{Context: inner, flight: f}, cancel
	return f
}

// flightContext has the deadline of the most patient waiter, so that whoever waits below does not plan past it.
type flightContext struct {
	context.Context
	flight *flight
}

func (c *flightContext) Deadline() (time.Time, bool) { return c.flight.deadline() }

// Value finds the flight's own trip, not the leader's.
func (c *flightContext) Value(key any) any {
	switch key.(type) {
	case tripKey:
		return c.flight.trip
	case callContextKey: // it is the leader's, who may leave
		return nil
	}
	return c.Context.Value(key)
}

func (f *flight) deadline() (time.Time, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.latest, !f.unbounded
}

// extend takes a waiter's deadline into account; the lock is held, or the flight is new.
func (f *flight) extend(ctx context.Context) {
	deadline, ok := ctx.Deadline()
	switch {
	case !ok:
		f.unbounded = true
	case deadline.After(f.latest):
		f.latest, f.whose = deadline, firstLimit(ctx)
	}
}

func (f *flight) limit() limitKind {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.whose
}

// join adds a waiter, unless the flight is ending. A caller with another request is told so by the fingerprint.
func (f *flight) join(ctx context.Context, print string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over || f.ctx.Err() != nil {
		return false
	}
	if f.print == print {
		f.waiters++
		f.shared = true
		f.extend(ctx)
	}
	return true
}

// parting is how things stand for a waiter who leaves.
type parting struct {
	over   bool   // not a parting: the result was there
	sent   bool   // the request may be out
	last   bool   // nobody else waits
	letter string // a dead letter owns the write
}

// leave takes a waiter away. The last one's leaving and the handing over to a queue exclude each other: either the caller
// owns the write afterwards, or a letter does and the caller is told so.
func (f *flight) leave(why *Error, byTime, leader bool) parting {
	f.mu.Lock()
	if f.over {
		f.mu.Unlock()
		return parting{over: true}
	}
	f.waiters--
	for f.waiters == 0 && f.handing != nil {
		h := f.handing
		f.mu.Unlock()
		h.hurry(why.Err)
		<-h.decided
		f.mu.Lock()
	}
	p := parting{sent: f.committed || f.owed, last: f.waiters == 0, letter: f.letter}
	f.told, f.left = f.told || p.sent, f.left || leader
	var tell []func()
	if p.last && p.sent && byTime {
		tell, f.givenUp = f.givenUp, nil
	}
	if p.last && !f.committed {
		f.cancel(why.Err)
	}
	f.mu.Unlock()
	for _, g := range tell {
		g()
	}
	return p
}

// handing is the time in which a queue decides whether it takes a write.
type handing struct {
	hurry   context.CancelCauseFunc // ends what the queue waits for
	decided chan struct{}
}

// handOver begins the handing over of the write to a queue, if anybody still waits for it: without a caller to tell there
// is no promise to make. The queue works under the context and says at the end which letter it made, "" for none.
func (f *flight) handOver(ctx context.Context) (inner context.Context, done func(letter string), ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.waiters == 0 {
		return ctx, nil, false
	}
	h := &handing{decided: make(chan struct{})}
	inner, h.hurry = context.WithCancelCause(ctx)
	f.handing = h
	return inner, func(letter string) {
		f.mu.Lock()
		f.letter, f.handing = letter, nil
		f.mu.Unlock()
		close(h.decided)
		h.hurry(nil)
	}, true
}

// owned notes that a letter owns the write, or that none does any more.
func (f *flight) owned(letter string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.letter = letter
}

// owner is the letter that owns the write; "": none.
func (f *flight) owner() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.letter
}

// onGivenUp runs g once if the last waiter leaves because time ran out while the request is out.
func (f *flight) onGivenUp(g func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.givenUp = append(f.givenUp[:0], g) // of the attempt that is under way
}

// commit is the point of no return: from here on no leaving waiter ends the flight.
func (f *flight) commit() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.waiters == 0 || f.ctx.Err() != nil {
		return false
	}
	f.committed = true
	return true
}

// beginSend reports whether no other send is under way. From here to endSend the record belongs to the send; see
// waitForSend.
func (f *flight) beginSend() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sending != nil {
		return false
	}
	f.sending = make(chan struct{})
	return true
}

func (f *flight) endSend() {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.sending)
	f.sending = nil
}

// waitForSend waits for a send that a foreign layer between the doors has left behind: until it has ended nobody knows how
// the flight did.
func (f *flight) waitForSend() {
	f.mu.Lock()
	sending := f.sending
	f.mu.Unlock()
	if sending != nil {
		<-sending
	}
}

// uncommit gives the flight back to its waiters after a proof that nothing happened.
func (f *flight) uncommit() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.committed = false
	if f.waiters == 0 {
		f.cancel(context.Canceled)
	}
}

func (f *flight) deserted() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.waiters == 0
}

var errSettled = errors.New("the outcome is known")

// publish hands the result to all waiters; the first one counts, which may be evidence that came before the answer.
func (f *flight) publish(r result) {
	f.mu.Lock()
	taken := !f.over
	if taken {
		f.over, f.result = true, r
		close(f.done)
	}
	unread := !taken || f.left
	h := f.handing
	f.mu.Unlock()
	if h != nil { // the outcome came from elsewhere: nobody waits for room for a letter any more
		h.hurry(errSettled)
	}
	if unread && tailOf(r.resp, r.err) != nil && r.err == nil {
		discard(r.resp) // a stream that nobody is there to read
	}
}

func (f *flight) isTold() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.told
}

// deliver gives a waiter the flight's result. A panic is the leader's; the others get an error.
func (f *flight) deliver(t *trip, leader bool) (*http.Response, error) {
	r := f.result
	switch {
	case leader && (!f.shared || r.resp == nil):
		return r.deliver()
	case leader: // others copy the response while the leader's caller uses it
		own := *r.resp
		own.Header = r.resp.Header.Clone()
		return &own, nil
	case f.trip.letter != "" && !r.settles(): // of a redrive: its letter goes on to own the write
		e := t.fail("idempotency", errors.Join(ErrParked, r.err))
		e.Key, e.LetterID, e.StatusCode = f.key, f.trip.letter, statusOf(r.err)
		if r.resp != nil {
			e.StatusCode = r.resp.StatusCode
		}
		if f.sent() && r.resp == nil && r.err == nil {
			e.Err = errors.Join(ErrInDoubt, e.Err)
		}
		return nil, e
	case r.panicked || r.exited:
		e := t.fail("idempotency", errors.New("the shared execution ended in a "+r.cause()))
		if f.sent() {
			e.Err, e.Key = errors.Join(ErrInDoubt, e.Err), f.key
		}
		return nil, e
	case r.err != nil:
		return nil, r.err
	case tailOf(r.resp, nil) != nil:
		return nil, t.fail("idempotency", errors.New("the answer is a stream, which another caller reads"))
	}
	return body.Copy(r.resp), nil
}

// settles reports whether a redrive that ended so takes its letter out of the queue, or has it given up.
func (r result) settles() bool {
	return r.resp != nil && r.err == nil && r.resp.StatusCode < http.StatusInternalServerError && !notYet(r.resp.StatusCode)
}

func (f *flight) sent() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.committed
}

func (f *flight) hasLanded() bool { return isClosed(f.landed) }

// waitForPrevious waits until the flight before has landed, or its outcome is known from elsewhere: it is in the store then.
func (f *flight) waitForPrevious() error {
	if f.previous == nil {
		return nil
	}
	select {
	case <-f.previous.landed:
	case <-f.previous.done:
		return nil
	case <-f.ctx.Done():
		return f.trip.gone(f.ctx, "idempotency")
	}
	if f.trip.tooLate(f.ctx) {
		return f.trip.goneSoon(f.ctx, "idempotency")
	}
	return nil
}

// owe notes that an earlier send of the key is in doubt.
func (f *flight) owe() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.owed = true
}

// hand is deliver, and lets the caller's end reach a stream that they read.
func (f *flight) hand(t *trip, ctx context.Context, leader bool) (*http.Response, error) {
	resp, err := f.deliver(t, leader)
	if tl := tailOf(resp, err); tl != nil && err == nil {
		stop := context.AfterFunc(ctx, func() { f.cancel(causeOf(ctx)) })
		tl.after(func() { stop() })
	}
	return resp, err
}
