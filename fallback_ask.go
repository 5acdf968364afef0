package resilience

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/retell-resilience/resilience/internal/answers"
	"github.com/retell-resilience/resilience/internal/body"
)

// How a read of a [Fallback] gets its answer: from below, by one call for all who ask the same; again, in the background;
// or from a function of the user's.

// callID tells reads apart that must not wait for each other: a critical one not for one in the bulk tier, a patient one
// not for one with a short limit, and one that wants the whole answer not for one that gets 304 because it has it already.
type callID struct {
	priority   Priority
	class      Class
	limit      time.Duration
	conditions string
}

// conditionsOf is what a request makes its answer depend on (RFC 9110 section 13.1). A kept answer, which is whole, suits
// all of them.
func conditionsOf(h http.Header) string {
	var all []string
	for name, values := range h {
		if len(name) > 3 && strings.EqualFold(name[:3], "If-") {
			all = append(all, strings.ToLower(name)+"\n"+strings.Join(values, "\n"))
		}
	}
	if len(all) > 1 {
		slices.Sort(all)
	}
	return strings.Join(all, "\n")
}

// ask gets the answer from below, with one call for all who ask the same at the same time. The first leads, in its own
// goroutine and under its own context. When it ends for a reason of its own, one of those who waited leads next.
func (f *Fallback) ask(ctx context.Context, t *trip, req *http.Request, next leg, key answers.Key) (*http.Response, error) {
	id := callID{t.call.Priority, t.call.Class, t.call.Limit, conditionsOf(req.Header)}
	for {
		call, leads := f.store.Join(key, id, t.call.Resource, t)
		if leads {
			if resp := f.unasked(ctx, t, req, next, key); resp != nil { // an answer came since the first look
				f.store.Leave(call, nil, time.Time{})
				f.store.End(call)
				return resp, nil
			}
			return f.lead(ctx, call, t, req, next, key)
		}
		if t.within(call.Leader) { // a chain with this layer twice, or a transport that asks the same: waiting would never end
			return f.alone(ctx, t, req, next, key)
		}
		if err := f.await(ctx, t, call); err != nil {
			return nil, err
		}
		switch call.Ending {
		case answers.Answered:
			f.coalesced.Add(1)
			return call.Answer.Response(req, false), nil
		case answers.Failed:
			f.coalesced.Add(1)
			return nil, call.Err
		case answers.Unshared, answers.Abandoned: // an own call, or around again
		}
		if t.tooLate(ctx) {
			return nil, t.goneSoon(ctx, "fallback")
		}
		if call.Ending == answers.Unshared {
			return f.alone(ctx, t, req, next, key)
		}
	}
}

// await waits for the call of somebody else.
func (f *Fallback) await(ctx context.Context, t *trip, call *answers.Call[callID, *trip]) error {
	defer t.waited()
	select {
	case <-call.Done():
		return nil
	case <-ctx.Done():
		return t.gone(ctx, "fallback")
	case <-f.closing:
		return t.refuse("fallback", ErrClosed)
	}
}

// within reports whether t is, or was started inside, the trip other.
func (t *trip) within(other *trip) bool {
	for ; t != nil; t = t.outer {
		if t == other {
			return true
		}
	}
	return false
}

// lead makes the call and tells those who wait how it ended.
func (f *Fallback) lead(
	ctx context.Context, call *answers.Call[callID, *trip], t *trip, req *http.Request, next leg, key answers.Key,
) (resp *http.Response, err error) {
	returned := false
	var kept *answers.Answer
	defer func() {
		if f.leave(call, t, kept) && returned {
			call.Ending, call.Answer, call.Err = f.share(ctx, resp, kept, err)
		}
		f.store.End(call)
	}()
	resp, kept, err = f.send(ctx, call, t, req, next, key)
	returned = true
	return resp, err
}

func (f *Fallback) leave(call *answers.Call[callID, *trip], t *trip, a *answers.Answer) (awaited bool) {
	var now time.Time
	if a != nil {
		now = t.clock.at(t.lately())
	}
	return f.store.Leave(call, a, now)
}

// share says what the end of a leader's call means to the others. An error that came as the leader left, or because the
// leader had no more time, is the leader's.
func (f *Fallback) share(ctx context.Context, resp *http.Response, kept *answers.Answer, err error) (answers.Ending, *answers.Answer, error) {
	switch {
	case err != nil && (ctx.Err() != nil || outOfOwnTime(err)):
		return answers.Abandoned, nil, nil
	case err != nil:
		return answers.Failed, nil, err
	case kept != nil:
		return answers.Answered, kept, nil
	}
	if a, ok := answers.Take(resp, f.keys.Headers()); ok {
		return answers.Answered, a, nil
	}
	return answers.Unshared, nil, nil
}

// outOfOwnTime reports whether a call failed because its caller could not wait: somebody with more time may get an answer.
// The context alone does not tell, since an attempt ends with the budget before anybody looks at that, and who is about to
// run out of time is sent home early.
func outOfOwnTime(err error) (own bool) {
	walk(err, func(e error) {
		ours, _ := e.(*Error) //nolint:errorlint // walk visits every node itself
		inTime := ours == nil || ours.Limit != limitBudget.String() && ours.Limit != limitCaller.String()
		own = own || !inTime || e == ErrThrottled //nolint:errorlint // as above
	})
	return own
}

// alone makes the call for one caller.
func (f *Fallback) alone(ctx context.Context, t *trip, req *http.Request, next leg, key answers.Key) (*http.Response, error) {
	call := f.store.Begin(key, t.call.Resource)
	var kept *answers.Answer
	defer func() {
		f.leave(call, t, kept)
		f.store.End(call)
	}()
	resp, kept, err := f.send(ctx, call, t, req, next, key)
	return resp, err
}

// send asks below, and returns the answer as it can be kept, nil if it is not worth that.
func (f *Fallback) send(
	ctx context.Context, call *answers.Call[callID, *trip], t *trip, req *http.Request, next leg, key answers.Key,
) (*http.Response, *answers.Answer, error) {
	resp, err := fromBelow(ctx, t, req, next)
	if err != nil {
		return nil, nil, err
	}
	switch resp.StatusCode {
	case http.StatusOK:
		a, _ := call.Take(resp, f.keys.Headers())
		return resp, a, nil
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusGone:
		f.store.Drop(key) // what was good before is not any more
	}
	return resp, nil, nil
}

// refresh renews an answer in the background, unless somebody is at it, it failed lately, or too many are under way.
func (f *Fallback) refresh(ctx context.Context, t *trip, req *http.Request, next leg, key answers.Key) {
	if isClosed(f.closing) || !f.refreshing.beginUpTo(maxRefreshes) {
		return
	}
	if !f.store.BeginRefresh(key, time.Now()) {
		f.refreshing.end()
		return
	}
	f.refreshes.Add(1)
	own := bytes.Clone(key) // which outlives the caller
	again := t.copy()
	again.call.Priority = PriorityBulk
	ctx, cancel := f.background(ctx, t.call.Budget)
	ctx = again.begin(ctx)
	req = detached(ctx, req)
	go capture(func() (*http.Response, error) { return f.alone(ctx, again, req, next, own) }, func(r result) {
		again.ctx.end(finished)
		cancel()
		f.refreshed(again, own, r)
		f.refreshing.end()
	})
}

// background returns a context with the values of ctx that ends by itself: when the budget is used up, or at Close.
func (f *Fallback) background(ctx context.Context, budget time.Duration) (context.Context, func()) {
	if budget <= 0 {
		budget = refreshBudget
	}
	ctx, stop := context.WithTimeoutCause(context.WithoutCancel(ctx), budget, errBudget)
	if f.closing == nil {
		return ctx, stop
	}
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-f.closing:
			cancel(ErrClosed)
		case <-ctx.Done():
		}
	}()
	return ctx, stop
}

// refreshed notes how a refresh ended.
func (f *Fallback) refreshed(t *trip, key answers.Key, r result) {
	ev := Event{Kind: EventRefresh, Operation: t.call.Operation}
	switch {
	case r.panicked, r.exited:
		ev.Cause = "panic"
	case r.err != nil:
		ev.Cause = causesOf(r.err).word()
	case r.resp.StatusCode != http.StatusOK:
		ev.Cause, ev.StatusCode = "status", r.resp.StatusCode
	}
	discard(r.resp)
	if ev.Cause != "" {
		f.refreshFailed.Add(1)
	}
	f.store.EndRefresh(key, time.Now(), ev.Cause != "")
	f.events.emit(ev)
}

// drain lets no other refresh begin, and waits until none is under way, or ctx ends.
func (f *Fallback) drain(ctx context.Context) error {
	f.refreshing.close()
	if left := f.refreshing.wait(ctx); left > 0 {
		return fmt.Errorf("fallback: %d answers were still being renewed: %w", left, context.Cause(ctx))
	}
	return nil
}

// substitute asks a function of the user's; nil: there is none, or it failed.
func (f *Fallback) substitute(
	ctx context.Context, t *trip, req *http.Request, ask substituteFunc, why string, resp *http.Response, err error,
) (*http.Response, error) {
	if ask == nil {
		return nil, nil //nolint:nilnil // no substitute, and nothing went wrong
	}
	if call, ours := ctx.(*callContext); ours {
		call.budget(t.now()) // the user's function shall see it if it is spent
	}
	cause := err
	if resp != nil {
		answered := t.fail("fallback", errUpstream)
		answered.StatusCode = resp.StatusCode
		cause = answered
	}
	made, err := f.callFunc(ctx, t, req, ask, cause)
	if err != nil {
		f.funcFailed.Add(1)
		return nil, err
	}
	discard(resp)
	made.Header.Set(markHeader, madeByFunc+"; reason="+why)
	f.events.emit(Event{Kind: EventFallbackServed, Operation: t.call.Operation, To: madeByFunc, Cause: why})
	return made, nil
}

// errUpstream is what Func is told about an answer of 500 and more.
var errUpstream = errors.New("upstream failed")

// callFunc runs a user's function on a copy of the request, and takes what it returns into memory, in a copy.
func (f *Fallback) callFunc(ctx context.Context, t *trip, req *http.Request, ask substituteFunc, cause error) (resp *http.Response, err error) {
	f.funcCalls.Add(1)
	defer t.waited()
	defer func() {
		if v := recover(); v != nil {
			resp, err = nil, t.fail("fallback", fmt.Errorf("func panicked: %T", v))
			f.events.emit(Event{Kind: EventPanic, Operation: t.call.Operation, Cause: "func"})
		}
	}()
	in := detached(ctx, req)
	if data, whole := t.payload.Bytes(); whole && len(data) > 0 {
		in.Body, in.ContentLength = body.NewHeld(data), int64(len(data))
	}
	out, err := ask(in, cause)
	switch {
	case err != nil:
		discard(out)
		return nil, err
	case out == nil:
		return nil, t.fail("fallback", errors.New("func returned neither a response nor an error"))
	}
	made := *out
	if made.Header = out.Header.Clone(); made.Header == nil {
		made.Header = make(http.Header)
	}
	if body.IsStream(&made) {
		return &made, nil
	}
	if err := body.Hold(&made, -1); err != nil {
		return nil, t.fail("fallback", fmt.Errorf("reading what func returned: %w", err))
	}
	return &made, nil
}
