package resilience

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/retell-resilience/resilience/internal/body"
)

// maxStoredBody bounds the answer that a record keeps for replays; of a longer one only status and id are kept.
const maxStoredBody = 64 << 10

// intent records that the request is about to be sent, sends it, and records what became of it.
func (i *Idempotency) intent(ctx context.Context, t *trip, req *http.Request, next leg) (*http.Response, error) {
	if t.call.Effect != EffectOnce {
		if err := i.recalled(t, t.letter); err != nil {
			return nil, err
		}
		return next.travel(ctx, t, req)
	}
	f := t.flight
	if f == nil {
		return nil, t.refuse("idempotency", errors.New("an effect-once call reached Intent without passing Claim"))
	}
	if !f.beginSend() { // somebody between the doors hedges
		return nil, t.refuse("idempotency", errors.New("this call is being sent already"))
	}
	defer f.endSend()
	if f.rec.State == KeyInDoubt && !i.mayResend(f.rec) { // somebody between the doors tries again, or it took too long
		return nil, i.refuseClaim(f, f.rec, ErrInDoubt)
	}
	if err := i.mayIntend(f); err != nil {
		return nil, err
	}
	rec, err := i.intend(f)
	if err != nil {
		return nil, err
	}
	if rec.State != KeySending { // evidence was faster
		return i.replayed(rec), nil
	}
	ended := false
	out, cancel := i.sendContext(f)
	defer func() {
		if !ended { // a panic or Goexit: the request may be out
			cancel()
			i.settle(f, rec.Epoch, answerReceipt{kind: answerUnknown, cause: "panic"})
		}
	}()
	resp, err := next.travel(out, t, req)
	ended = true
	afterExchange(resp, err, cancel)
	return i.conclude(f, rec.Epoch, resp, err)
}

// openEnded has no deadline: past the intent the attempt's own limit counts, not how long anybody waits.
type openEnded struct{ context.Context }

func (openEnded) Deadline() (time.Time, bool) { return time.Time{}, false }

// sendContext is the context of one send. Where no layer below limits attempts, the flight limits itself.
func (i *Idempotency) sendContext(f *flight) (context.Context, context.CancelFunc) {
	ctx := openEnded{f.ctx}
	if i.limitOf != nil {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, i.attemptLimit(f.trip.call))
}

// mayIntend is the last moment at which the call can end with nothing sent.
func (i *Idempotency) mayIntend(f *flight) error {
	t := f.trip
	if t.letter != "" && !t.expiry().IsZero() && !time.Now().Before(t.expiry()) {
		e := t.refuse("idempotency", ErrTimeout)
		e.Limit = "expiry"
		return e
	}
	if isClosed(i.closing) {
		return t.refuse("idempotency", ErrClosed)
	}
	if err := i.recalled(t, f.owner()); err != nil && !(f.rec.State == KeyInDoubt && errors.Is(err, ErrInDoubt)) {
		return err
	}
	if !f.commit() {
		return t.gone(f.ctx, "idempotency")
	}
	return nil
}

// recalled asks once more for a call that is about a letter: while it waited another process's send may have become known,
// or a newer write may have begun.
func (i *Idempotency) recalled(t *trip, letter string) error {
	if letter == "" || i.recall == nil {
		return nil
	}
	switch err := i.recall(letter, t.letter != ""); {
	case err == nil:
		return nil
	case errors.Is(err, ErrInDoubt):
		e := t.fail("idempotency", err)
		e.Key = t.key
		return e
	default:
		return t.refuse("idempotency", err)
	}
}

// intend is T4. Nothing is sent unless the store has said yes.
func (i *Idempotency) intend(f *flight) (Record, error) {
	lease := i.store.Now().Add(i.attemptLimit(f.trip.call) + 5*time.Second)
	e := keyEvent{kind: eventIntend, token: f.token, deadline: lease, claim: i.identity()}
	if f.rec.State == KeyInDoubt {
		e.kind = eventResend
		i.counts.resent.Add(1)
	}
	// Past the commit no leaving waiter ends the flight, so that their deadline would end nothing, either.
	ctx, cancel := context.WithTimeout(openEnded{f.ctx}, storePatience)
	defer cancel()
	rec, err := i.advance(ctx, f.rec, e)
	switch {
	case err == nil:
		f.rec = rec
		i.counts.executed.Add(1)
		return rec, nil
	case errors.Is(err, errConflict) && rec.State == KeyConfirmed:
		f.rec = rec
		return rec, nil
	}
	f.uncommit()
	f.rec = rec
	switch {
	case errors.Is(err, errConflict) && rec.State == KeyDisputed:
		return rec, i.refuseClaim(f, rec, ErrDisputed)
	case errors.Is(err, errConflict) && rec.State == KeyInDoubt: // whoever had it then has lost the answer
		return rec, i.refuseClaim(f, rec, ErrInDoubt)
	case errors.Is(err, errConflict): // the lease ran out and somebody else has the key
		return rec, i.refuseClaim(f, rec, ErrInFlight)
	}
	// The store may have made the write all the same. Nothing was sent, and it must know that.
	epoch := rec.Epoch
	if e.kind == eventResend {
		epoch++
	}
	if known := i.record(f, Record{}, epoch, answerReceipt{kind: answerRefused, cause: "not_sent"}); known.State != KeyFree {
		f.rec = known // else the store says nothing at all, and it stays as it was
	}
	return rec, i.storeFailed(f, err)
}

// conclude settles the key by what came back, and says to the caller what that means.
func (i *Idempotency) conclude(f *flight, epoch uint64, resp *http.Response, err error) (*http.Response, error) {
	a := i.classify(f.trip.call.Operation, resp, err)
	var l *lingering
	if errors.As(err, &l) {
		l.tail.after(func() { i.late(f, epoch, l.late) })
	}
	rec := i.settle(f, epoch, a)
	switch {
	case a.kind == answerDone:
		return resp, nil
	case a.kind == answerRefused && rec.State != KeyInDoubt && rec.State != KeyConfirmed && rec.State != KeyDisputed:
		f.uncommit()
		if err != nil && !NotSent(err) { // the status said no, the rest could not be read
			e := f.trip.fail("idempotency", MarkNotSent(err))
			e.StatusCode = a.status
			return nil, e
		}
		return resp, err
	}
	// In doubt; also after the refusal of a re-send, which proves nothing about the first send.
	discard(resp) // the caller gets an error instead
	switch rec.State {
	case KeyConfirmed: // evidence was faster than this answer
		return i.replayed(rec), nil
	case KeyDisputed:
		return nil, i.refuseClaim(f, rec, ErrDisputed)
	}
	i.counts.inDoubt.Add(1)
	e := f.trip.fail("idempotency", errors.Join(ErrInDoubt, err))
	e.Key, e.StatusCode = f.key, a.status
	var inner *Error
	if errors.As(err, &inner) {
		e.Limit = inner.Limit
	}
	return nil, e
}

// late takes what an attempt brought after its limit.
func (i *Idempotency) late(f *flight, epoch uint64, r result) {
	if r.panicked || r.exited {
		return // in doubt already
	}
	i.record(f, Record{}, epoch, i.classify(f.trip.call.Operation, r.resp, r.err))
	discard(r.resp)
}

// classify says what an answer to an effect-once request means for the world.
func (i *Idempotency) classify(operation string, resp *http.Response, err error) answerReceipt {
	if err != nil {
		return classifyError(err)
	}
	switch code := resp.StatusCode; {
	case isSuccess(code) || code == http.StatusSwitchingProtocols:
		a := receiptOf(resp)
		if id, ok := i.cfg.Reconcile.(Identifier); ok && a.body != nil {
			if a.callID, ok = idIn(id, operation, a.body); !ok {
				a.kind, a.accepted, a.cause = answerUnknown, true, "unreadable"
			}
		}
		return a
	case isRefusalStatus(code):
		return answerReceipt{kind: answerRefused, status: code, cause: "status"}
	default:
		return answerReceipt{kind: answerUnknown, status: code, cause: "status"}
	}
}

// Identifier is implemented by a [Reconciler] that can read from a successful answer what was created. ok is false for
// an answer that should name it and does not: then the outcome is in doubt, for want of an id.
type Identifier interface {
	CallID(operation string, body []byte) (id string, ok bool)
}

// A panic in what a reconciler implements besides says nothing: it can neither name nor answer, find nor vouch for anything.
func saysNothing() { _ = recover() }

func idIn(r Identifier, operation string, body []byte) (id string, ok bool) {
	defer saysNothing()
	return r.CallID(operation, body)
}

func answerFor(r Answerer, operation, callID string) (text []byte) {
	defer saysNothing()
	return r.Answer(operation, callID)
}

func finds(r Finder, operation string) (yes bool) {
	defer saysNothing()
	return r.Finds(operation)
}

func honorsKey(r KeyHonorer, operation string) (d time.Duration) {
	defer saysNothing()
	return r.HonorsKey(operation)
}

func classifyError(err error) answerReceipt {
	a := answerReceipt{kind: answerUnknown, cause: "transport"}
	var cut *truncatedError
	switch {
	case NotSent(err):
		a.kind, a.cause = answerRefused, "not_sent"
	case errors.As(err, &cut):
		a.status, a.cause = cut.status, "truncated"
	case errors.Is(err, ErrTooLarge):
		a.status, a.cause = statusOf(err), "too_large"
	case errors.Is(err, context.DeadlineExceeded):
		a.cause = "timeout"
	case errors.Is(err, context.Canceled):
		a.cause = "canceled"
	}
	a.accepted = isSuccess(a.status)
	if isRefusalStatus(a.status) { // which is proof enough, whatever became of the body
		a.kind = answerRefused
	}
	return a
}

func receiptOf(resp *http.Response) answerReceipt {
	a := answerReceipt{kind: answerDone, status: resp.StatusCode}
	b, ok := body.BytesOf(resp)
	if ok && len(b) <= maxStoredBody {
		a.body = append([]byte{}, b...)
		a.header = http.Header{}
		for _, name := range []string{"Content-Type", "Content-Encoding", "Location"} {
			if v := resp.Header.Values(name); len(v) > 0 {
				a.header[name] = append([]string(nil), v...)
			}
		}
	}
	return a
}

// settle records an answer, on the flight's goroutine. The caller's own leaving must not keep it from being recorded.
func (i *Idempotency) settle(f *flight, epoch uint64, a answerReceipt) Record {
	f.rec = i.record(f, f.rec, epoch, a)
	return f.rec
}

// record writes what became of a send; from is the record as the flight knows it, zero off its goroutine. If the store
// fails, this process remembers, and Run repeats the write.
func (i *Idempotency) record(f *flight, from Record, epoch uint64, a answerReceipt) Record {
	a.epoch = epoch
	a.lease = i.lease(f)
	// Whoever was told that the outcome is in doubt has the key, named or not, and will come back with it.
	e := keyEvent{kind: eventAnswer, token: f.token, answer: a, keep: i.retention(f.named || from.ID == "" || f.isTold())}
	ctx, cancel := lasting(f.ctx)
	defer cancel()
	var rec Record
	var err error
	if from.ID != "" {
		rec, err = i.advance(ctx, from, e)
	} else {
		rec, err = i.apply(ctx, f.id, e)
	}
	switch {
	case err == nil:
		i.announce(rec)
	case !errors.Is(err, errConflict):
		i.counts.storeErrors.Add(1)
		i.events.emit(Event{Kind: EventStoreFailed, Operation: f.trip.call.Operation, KeyHash: keyHash(f.id)})
		rec = i.unwritten.keep(f.id, from, e, i.store.Now())
	}
	return rec
}

// replayHeader flags an answer that was not given to this request: it is a stored one, or what evidence showed.
const replayHeader = "Idempotent-Replayed"

// Replayed reports whether an answer is that of an earlier request with the same key.
func Replayed(resp *http.Response) bool {
	return resp != nil && resp.Header.Get(replayHeader) == "true"
}

func (i *Idempotency) replayed(rec Record) *http.Response {
	i.counts.replayed.Add(1)
	i.events.emit(Event{Kind: EventKeyReplayed, Operation: rec.Operation, KeyHash: keyHash(rec.ID)})
	return i.replay(rec)
}

// replay makes the answer that the record stands for.
func (i *Idempotency) replay(rec Record) *http.Response {
	if a, ok := i.cfg.Reconcile.(Answerer); ok && rec.Body == nil && rec.CallID != "" {
		if text := answerFor(a, rec.Operation, rec.CallID); text != nil {
			rec.Body, rec.Header = text, nil
		}
	}
	h := rec.Header.Clone()
	if h == nil {
		h = http.Header{"Content-Type": {"application/json"}}
	}
	h.Set(replayHeader, "true")
	status := or(rec.Status, http.StatusOK)
	return &http.Response{
		Status: fmt.Sprintf("%d %s", status, http.StatusText(status)), StatusCode: status,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: h, Body: body.NewHeld(rec.Body), ContentLength: int64(len(rec.Body)),
	}
}
