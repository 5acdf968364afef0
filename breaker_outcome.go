package resilience

import (
	"context"
	"errors"
	"net/http"

	"github.com/retell-resilience/resilience/internal/circuit"
)

// What the end of an exchange tells a [Breaker] about the other side.

// observe reports how the rest of the road ended, whichever way it did.
func observe(ctx context.Context, t *trip, req *http.Request, next leg, done func(circuit.Result)) (*http.Response, error) {
	result := circuit.Result{Outcome: circuit.Failure, Cause: "panic"} // stays, after a panic or runtime.Goexit
	defer func() { done(result) }()
	resp, err := next.travel(ctx, t, req)
	result = resultOf(ctx, resp, err)
	return resp, err
}

// resultOf is the one place that says what an answer or an error tells about the server.
func resultOf(ctx context.Context, resp *http.Response, err error) circuit.Result {
	switch {
	case err == nil:
		return resultOfStatus(resp.StatusCode)
	case isRefusal(err), ctx.Err() != nil && !outOfBudget(ctx):
		return circuit.Result{Outcome: circuit.Ignored}
	case errors.Is(err, ErrTooLarge), answered(err): // the server is there; its status says how well
		return resultOfStatus(statusOf(err))
	}
	return circuit.Result{Outcome: circuit.Failure, Cause: failureCause(err)}
}

func resultOfStatus(code int) circuit.Result {
	switch {
	case code == http.StatusTooManyRequests:
		return circuit.Result{Outcome: circuit.Ignored}
	case code >= http.StatusInternalServerError:
		return circuit.Result{Outcome: circuit.Failure, Cause: "status", Status: code}
	}
	return circuit.Result{Outcome: circuit.Success}
}

// answered reports whether an error stands for a whole answer, one that leaves the outcome of the call in doubt.
func answered(err error) bool {
	var e *Error
	var truncated *truncatedError
	return InDoubt(err) && errors.As(err, &e) && e.StatusCode > 0 && !errors.As(err, &truncated)
}

func failureCause(err error) string {
	var truncated *truncatedError
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	case errors.As(err, &truncated):
		return "truncated"
	}
	return "transport"
}
