package resilience

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"

	"github.com/retell-resilience/resilience/internal/body"
	"github.com/retell-resilience/resilience/internal/canonical"
)

// Do runs fn on the road of s: the same circuit, slots, budget, keys, letters and cached answers as its HTTP requests.
// It is for work that is not net/http: a WebSocket dial, another SDK. call.Effect unset means once: fn is then run again
// only after an error that [MarkNotSent] made, and any other error of it leaves the key in doubt.
//
// Answers are kept as JSON of T, for replays, shared executions and the fallback cache; call.Params, which must encode as
// JSON, tells one call from another. A failed write becomes a letter only if DLQ.Handle knows the operation. fn runs under a
// context that ends at the attempt's limit, on a goroutine of its own so that one that ignores its context does not hold the
// caller, unless TimeoutConfig.Cooperative says that none does; a panic or Goexit of fn reaches the caller. A call through s
// inside of fn, with fn's context, is part of this one: it takes no second slot.
//
// A nil s runs fn as it is.
func Do[T any](ctx context.Context, s *Stack, call Call, fn func(context.Context) (T, error)) (T, error) {
	var zero T
	if s == nil || s.inside(ctx) {
		return fn(ctx)
	}
	run := func(ctx context.Context) (*http.Response, error) {
		v, err := fn(ctx)
		if err != nil {
			return nil, err
		}
		return answerOf(v)
	}
	resp, err := s.do(ctx, call, run)
	if err != nil {
		return zero, err
	}
	held, ok := resp.Body.(*body.Held)
	if !ok {
		return zero, errors.New("the answer was not kept")
	}
	if v, ok := held.Value.(T); ok {
		return v, nil
	}
	var v T
	if err := json.Unmarshal(held.Bytes(), &v); err != nil {
		return zero, &Error{Layer: "stack", Operation: call.Operation, Err: errors.New("the kept answer does not decode as the type asked for")}
	}
	return v, nil
}

// answerOf makes an answer of a value. One that does not encode is the caller's all the same; it cannot be kept.
func answerOf(v any) (*http.Response, error) {
	a := &struct { // one allocation for both
		http.Response
		body.Held
	}{
		http.Response{
			Status: "200 OK", StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, ContentLength: -1,
		},
		body.OfValue(v, json.Marshal),
	}
	a.Response.Body = &a.Held
	return &a.Response, nil
}

// workRequest stands for work that is not HTTP: letters and fingerprints need something to name it by.
func workRequest() *http.Request {
	return &http.Request{
		Method: http.MethodPost, URL: &url.URL{Scheme: "do", Host: "work", Path: "/"}, Header: http.Header{},
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
}

// do sends work down the road as if it were a request whose body is the parameters.
func (s *Stack) do(ctx context.Context, call Call, run func(context.Context) (*http.Response, error)) (*http.Response, error) {
	if !s.calls.begin() {
		return nil, &Error{Layer: "stack", Operation: call.Operation, Err: ErrClosed, verdict: refused}
	}
	defer s.calls.end()
	t := &trip{
		call: call, stack: s, outer: tripOf(ctx), road: s.work, run: run,
	}
	t.clock.epoch = s.epoch
	t.resolve(overridesOf(ctx), "do", EffectOnce)
	if err := t.checkKey(); err != nil {
		return nil, err
	}
	if t.call.Params != nil {
		params, err := canonical.Marshal(t.call.Params)
		if err != nil {
			return nil, t.refuse("stack", errors.Join(errors.New("Call.Params does not encode as JSON"), err))
		}
		t.payload = body.Of(params)
	}
	defer t.ctx.end(finished)
	return s.work.travel(t.begin(ctx), t, s.workReq)
}

// workLeg is the end of the road for work that is not HTTP.
type workLeg struct{}

func (workLeg) RoundTrip(*http.Request) (*http.Response, error) {
	return nil, errors.New("work travels with its trip only")
}

func (workLeg) travel(ctx context.Context, t *trip, _ *http.Request) (*http.Response, error) {
	defer t.now()
	return t.run(ctx)
}
