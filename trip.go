package resilience

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"sync/atomic"
	"time"

	"github.com/retell-resilience/resilience/internal/body"
)

// trip is what the layers share about one call while it is on the road. The first layer that sees a request makes it, the
// context carries it on, so layers find it again behind a transport that is not ours. What describes the call does not
// change after [enter]; a flight travels on a copy.
type trip struct {
	call    Call
	said    *overrides // what the caller said through the context; nil: nothing
	key     string     // idempotency key: named by the caller, or made by the claim; "" for reads
	payload *body.Payload

	stack  *Stack  // the stack whose road this is; nil for layers used alone
	outer  *trip   // the trip inside which this one was started, for nested use
	flight *flight // set below the claim, for a call that must happen once
	marked *marked // what goes out instead of the request, for a call that carries its key

	run func(context.Context) (*http.Response, error) // the work of a Do; nil for HTTP

	clock clock

	ctx callContext

	road   leg    // where the trip entered: a redrive of its letter goes the same way
	letter string // id of the letter that this trip redrives, itself or for a function that does

	first     attemptContext // of the first attempt, which most calls leave it at
	attempted atomic.Bool    // first is taken
	named     bool           // the caller named the key
}

// fresh reports whether a cached or shared answer would not do.
func (t *trip) fresh() bool { return t.said != nil && t.said.fresh }

// expiry is when no redrive makes sense any more; zero: no such time.
func (t *trip) expiry() time.Time {
	if t.said == nil {
		return time.Time{}
	}
	return t.said.expiry
}

// value is what the context of the call has under a key.
func (t *trip) value(key any) any {
	switch {
	case t.flight != nil:
		return t.flight.ctx.Value(key)
	case t.ctx.caller != nil:
		return t.ctx.Value(key)
	}
	return nil
}

// copy is a trip of its own for a flight.
func (t *trip) copy() *trip {
	c := &trip{
		call: t.call, key: t.key, named: t.named, said: t.said, payload: t.payload,
		stack: t.stack, outer: t.outer, marked: t.marked, run: t.run, road: t.road, letter: t.letter,
	}
	c.clock.epoch = t.clock.epoch
	return c
}

// deserted reports whether everybody who waited for the call has left; its flight goes on for the record alone.
func (t *trip) deserted() bool { return t.flight != nil && t.flight.deserted() }

// handOver is what a queue does before it takes the write of a call: see [flight]. ok is false when nobody is left to be
// told. done must be called with the id of the letter, or "" when none was made.
func (t *trip) handOver(ctx context.Context) (inner context.Context, done func(letter string), ok bool) {
	if t.flight == nil {
		return ctx, func(string) {}, true
	}
	return t.flight.handOver(ctx)
}

// owned notes which letter owns the write of the call; "": none.
func (t *trip) owned(letter string) {
	if t.flight != nil {
		t.flight.owned(letter)
	}
}

// marked is a request as the reconciler marked it. Letters and fingerprints keep to the original.
type marked struct {
	url     *url.URL    // nil: unchanged
	header  http.Header // what Mark set; an empty list takes the header away
	payload *body.Payload
}

// markedAs is what Mark changed in a request.
func markedAs(before, after *http.Request, payload *body.Payload) *marked {
	m := &marked{payload: payload}
	if after.URL != nil && after.URL.String() != before.URL.String() {
		m.url = after.URL
	}
	for name, values := range after.Header {
		if !slices.Equal(values, before.Header[name]) {
			m.set(name, values)
		}
	}
	for name := range before.Header {
		if _, kept := after.Header[name]; !kept {
			m.set(name, nil)
		}
	}
	return m
}

func (m *marked) set(name string, values []string) {
	if m.header == nil {
		m.header = http.Header{}
	}
	m.header[name] = values
}

// apply makes the same changes in what goes out, whose header may have been changed on the way.
func (m *marked) apply(out *http.Request) {
	if m.url != nil {
		out.URL = m.url
	}
	if m.header == nil {
		return
	}
	if out.Header = out.Header.Clone(); out.Header == nil {
		out.Header = http.Header{}
	}
	for name, values := range m.header {
		if len(values) == 0 {
			delete(out.Header, name)
			continue
		}
		out.Header[name] = values
	}
}

type tripKey struct{}

func tripOf(ctx context.Context) *trip {
	t, _ := ctx.Value(tripKey{}).(*trip)
	return t
}

// refuse is the error of a layer that ends a call before it was sent.
func (t *trip) refuse(layer string, err error) *Error {
	return &Error{Layer: layer, Operation: t.call.Operation, Err: err, verdict: refused}
}

// fail is the error of a layer that ends a call of which nothing is proven.
func (t *trip) fail(layer string, err error) *Error {
	return &Error{Layer: layer, Operation: t.call.Operation, Err: err}
}

// errBudget is the cause with which a call's context ends when its budget is used up.
var errBudget = fmt.Errorf("%w: budget", ErrTimeout)

// errCanceled is the cause with which a call's context ends when Request.Cancel was closed.
var errCanceled = fmt.Errorf("request canceled: %w", context.Canceled)

// gone is the error for a call whose context ended while a layer made it wait: the budget's, or the caller's own cause.
// One that is about to end is treated as if it had.
func (t *trip) gone(ctx context.Context, layer string) *Error {
	if ctx.Err() == nil {
		return t.goneSoon(ctx, layer)
	}
	cause := causeOf(ctx)
	e := t.refuse(layer, cause)
	switch {
	case errors.Is(cause, errBudget):
		e.Limit = limitBudget.String()
	case errors.Is(cause, ErrClosed):
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		e.Limit = limitCaller.String()
	}
	if !errors.Is(cause, ctx.Err()) && !errors.Is(cause, errBudget) && !errors.Is(cause, ErrClosed) {
		e.Err = errors.Join(cause, ctx.Err())
	}
	return e
}

func (t *trip) goneSoon(ctx context.Context, layer string) *Error {
	e := t.refuse(layer, errBudget)
	first := firstLimit(ctx)
	if t.flight != nil {
		first = t.flight.limit()
	}
	if first == limitCaller {
		e.Err = context.DeadlineExceeded
	}
	e.Limit = first.String()
	return e
}

// limitKind names the limits.
type limitKind uint8

const (
	limitRequest limitKind = iota
	limitConnect
	limitUpload
	limitLongPoll
	limitCall
	limitBudget
	limitCaller
	limitKinds
)

func (k limitKind) String() string {
	return nameOf(int(k), "request", "connect", "upload", "long-poll", "limit", "budget", "caller")
}

// firstLimit names what ends the call of ctx first: its budget, or the time its caller has.
func firstLimit(ctx context.Context) limitKind {
	if call, _ := ctx.Value(callContextKey{}).(*callContext); call != nil && !call.budgetIsFirst() {
		return limitCaller
	}
	return limitBudget
}

// tooLate reports whether the time that is left is too short for an attempt. Work that did not come by a road is left to
// who does it.
func (t *trip) tooLate(ctx context.Context) bool {
	if t.road == nil {
		return false
	}
	deadline, ok := ctx.Deadline()
	return ok && time.Until(deadline) < useful
}

// byTime reports whether ctx ended because time ran out, ours or the caller's, rather than because somebody cancelled.
func byTime(ctx context.Context) bool {
	return outOfBudget(ctx) || errors.Is(ctx.Err(), context.DeadlineExceeded)
}

// watchCancel makes Request.Cancel end the context. http.Client with a Timeout sets both: a deadline on the context, and
// Cancel, which it closes at the deadline. Whatever comes back after that has its type erased, so the context here ends
// a little earlier: by 5 % of the time left, at most 50 ms.
func watchCancel(ctx context.Context, req *http.Request) (context.Context, func()) {
	canceled := req.Cancel //nolint:staticcheck // http.Client still sets it
	if canceled == nil {
		return ctx, func() {}
	}
	cancelTimer := func() {}
	if deadline, ok := ctx.Deadline(); ok {
		ctx, cancelTimer = context.WithDeadline(ctx, deadline.Add(-min(50*time.Millisecond, time.Until(deadline)/20)))
	}
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		select {
		case <-canceled:
			cancel(errCanceled)
		case <-done:
		}
	}()
	return ctx, func() {
		close(done)
		cancel(nil)
		cancelTimer()
	}
}
