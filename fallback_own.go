package resilience

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/retell-resilience/resilience/internal/body"
)

// WithFallback gives the reads made under the returned context a substitute of the caller's own, for one who has a better
// answer than the cache: settings from a file, a value that is right for this caller. When a read fails, f is asked before
// the kept answers are; if it fails in turn they are next, and then FallbackConfig.Func. It works wherever a [Fallback] is on
// the road, for reads of which no answers are kept as well, and for [Do] of the same T.
//
// f gets the error, or an [*Error] with the StatusCode of a 5xx answer, and the context of the call, which has ended when
// the budget is used up. It runs on the caller's goroutine. What it returns is encoded as JSON, with status 200, marked like
// what FallbackConfig.Func makes ([Served] knows no age of it), and never kept. One that panics has failed. Calls that f
// makes under its context are part of the call. A later WithFallback takes the place of an earlier one; nil takes it away.
func WithFallback[T any](ctx context.Context, f func(context.Context, error) (T, error)) context.Context {
	var own substituteFunc
	if f != nil {
		own = func(req *http.Request, err error) (*http.Response, error) {
			v, err := f(req.Context(), err)
			if err != nil {
				return nil, err
			}
			data, err := json.Marshal(v)
			if err != nil {
				return nil, err
			}
			return &http.Response{
				Status: "200 OK", StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
				Header: http.Header{"Content-Type": {"application/json"}}, Body: body.NewHeld(data), ContentLength: int64(len(data)),
			}, nil
		}
	}
	return context.WithValue(ctx, ownFallbackKey{}, &own)
}

// substituteFunc is what FallbackConfig.Func is.
type substituteFunc func(*http.Request, error) (*http.Response, error)

type ownFallbackKey struct{}

// ownFallback is the caller's own substitute for this read. One that was given to a call inside of which this read is made
// is for that call.
func (t *trip) ownFallback(ctx context.Context) substituteFunc {
	own, _ := ctx.Value(ownFallbackKey{}).(*substituteFunc)
	if own == nil || t.outer != nil && own == t.outer.value(ownFallbackKey{}) {
		return nil
	}
	return *own
}
