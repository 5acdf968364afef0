package resilience

import (
	"context"
	"errors"
	"net/http"
)

// needsSubstitute says in one word why a read needs a substitute; empty: it does not.
func needsSubstitute(ctx context.Context, resp *http.Response, err error) string {
	if err == nil && resp.StatusCode < 500 {
		return ""
	}
	if ctx.Err() != nil && !outOfBudget(ctx) {
		return "" // the caller has left
	}
	if err == nil {
		return "status"
	}
	c := causesOf(err)
	switch {
	case c.cut:
		return "truncated"
	case c.closed, c.status >= 400 && c.status < 500: // an end, an answer
		return ""
	}
	return c.word()
}

// causes are what a tree of errors says about why a call failed.
type causes struct {
	status                                      int // of an answer
	cut, closed, open, full, throttled, timeout bool
}

// causesOf looks at each error once, where errors.Is would walk the tree for each sentinel. Only a deadline may be a foreign
// error that says of itself to be one.
func causesOf(err error) (c causes) {
	walk(err, func(e error) {
		switch e {
		case ErrTooLarge: //nolint:errorlint // walk visits every node itself
			c.cut = true
		case ErrClosed:
			c.closed = true
		case ErrOpen:
			c.open = true
		case ErrFull:
			c.full = true
		case ErrThrottled:
			c.throttled = true
		case ErrTimeout:
			c.timeout = true
		}
		switch e := e.(type) { //nolint:errorlint // as above
		case *Error:
			c.status = max(c.status, e.StatusCode)
		case *truncatedError:
			c.cut = true
		}
	})
	c.timeout = c.timeout || errors.Is(err, context.DeadlineExceeded)
	return c
}

// word is the closed set of causes in events and marks.
func (c causes) word() string {
	switch {
	case c.closed:
		return "closed"
	case c.open:
		return "open"
	case c.full:
		return "full"
	case c.throttled:
		return "throttled"
	case c.timeout:
		return "timeout"
	}
	return "transport"
}
