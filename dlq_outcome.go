package resilience

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"syscall"
	"time"

	"github.com/retell-resilience/resilience/internal/retryafter"
)

// failure is why a write did not work, in words that hold no personal data.
type failure struct {
	cause, detail string
	status        int
	after         time.Duration // at least this long before the next try
	doubt         bool          // it may have taken effect
	refused       bool          // by a layer of ours: no attempt was made
	err           error
}

func (f failure) attempt(now time.Time) LetterAttempt {
	return LetterAttempt{Time: now, Cause: f.cause, Detail: f.detail, StatusCode: f.status}
}

// failureOf describes an answer that is not a success. What may have happened once and must not happen twice is in doubt
// unless it is proven that nothing was sent.
func failureOf(a answer, effect Effect) failure {
	once := effect == EffectOnce
	if a.err == nil {
		code := a.resp.StatusCode
		after, _ := retryafter.Parse(a.resp.Header, time.Now())
		return failure{
			cause: "status", detail: fmt.Sprintf("status %d", code), status: code, after: after,
			doubt: once && doubtfulStatus(code),
		}
	}
	f := failure{err: a.err, status: statusOf(a.err), after: retryAfterOf(a.err), refused: isRefusal(a.err)}
	f.doubt = InDoubt(a.err) || once && !NotSent(a.err)
	f.cause, f.detail = letterCause(a.err)
	return f
}

func retryAfterOf(err error) (after time.Duration) {
	walk(err, func(e error) {
		if ours, ok := e.(*Error); ok { //nolint:errorlint // walk visits every node itself
			after = max(after, ours.RetryAfter)
		}
	})
	return min(after, retryafter.Longest) // a function of the user's may say what it likes
}

// letterCauses are looked for in this order: what says most comes first.
var letterCauses = []struct {
	err   error
	cause string
}{
	{ErrDisputed, "disputed"}, {ErrKeyReused, "key"}, {ErrBadKey, "key"}, {ErrPoison, "poison"}, {ErrOpen, "open"},
	{ErrFull, "full"}, {ErrStoreFull, "store"}, {ErrStore, "store"}, {errOvertaken, "overtaken"},
	{errSuperseded, "superseded"}, {ErrInFlight, "in-flight"}, {ErrTimeout, "timeout"},
	{context.DeadlineExceeded, "timeout"}, {context.Canceled, "canceled"}, {ErrClosed, "closed"}, {ErrInDoubt, "in-doubt"},
}

// letterCause names an error by a word, and by a text that comes from us or the operating system, never from the other side.
func letterCause(err error) (cause, detail string) {
	var errno syscall.Errno
	var panicked *panicError
	switch {
	case errors.As(err, &panicked):
		return "panic", panicked.Error()
	case errors.As(err, &errno):
		return "transport", errno.Error()
	}
	for _, known := range letterCauses {
		if errors.Is(err, known.err) {
			return known.cause, known.err.Error()
		}
	}
	return "transport", fmt.Sprintf("%T", root(err))
}

// root is the innermost error along the first branch: its type says more than that of its wrappers.
func root(err error) error {
	for {
		var inner error
		switch e := err.(type) { //nolint:errorlint // walking down is the point
		case interface{ Unwrap() error }:
			inner = e.Unwrap()
		case interface{ Unwrap() []error }:
			if all := e.Unwrap(); len(all) > 0 {
				inner = all[0]
			}
		}
		if inner == nil {
			return err
		}
		err = inner
	}
}

// letterVerdict is what a redrive means for its letter.
type letterVerdict uint8

const (
	letterFailed   letterVerdict = iota // an attempt was spent
	letterDone                          // it worked
	letterPoison                        // it never will
	letterDoubt                         // it may have taken effect: look it up from now on
	letterDisputed                      // two results are known for the key
	letterPaused                        // not tried, or not this letter's fault: later, for nothing
	letterReturned                      // not tried, the context ended: as it was
)

// judge says what the answer to a redrive means. work: it was done by a function given to Handle.
func judge(ctx context.Context, l *Letter, a answer, work bool) (letterVerdict, failure) {
	if work && a.err == nil {
		return letterDone, failure{}
	}
	f := failureOf(a, l.effect())
	if a.err == nil || unreadRefusal(a.err) != 0 {
		return judgeStatus(&f), f
	}
	var e *Error
	if errors.As(a.err, &e) && e.LetterID == l.ID && errors.Is(a.err, ErrParked) && !InDoubt(a.err) {
		// It met a call with its key, which this very letter turned away: nothing was sent.
		f.cause = "in-flight"
		return letterPaused, f
	}
	calledOff := errors.Is(context.Cause(ctx), errSuperseded)
	if (work || calledOff) && !f.doubt && ctx.Err() != nil && !hopeless(a.err) {
		return letterReturned, f // it was interrupted, it did not fail
	}
	return judgeError(ctx, f), f
}

func judgeStatus(f *failure) letterVerdict {
	switch {
	case f.status/100 == 2:
		return letterDone
	case f.status == http.StatusTooManyRequests:
		f.cause = "throttled"
		return letterPaused
	case f.status == http.StatusUnauthorized, f.status == http.StatusPaymentRequired, f.status == http.StatusForbidden:
		f.cause = "credentials" // of the account, not of the letter: it waits until somebody has put that right
		return letterPaused
	case f.doubt:
		return letterDoubt
	case f.status >= 400 && doubtfulStatus(f.status):
		return letterFailed
	}
	f.cause = "poison" // the same request gets the same answer: a person has to look
	return letterPoison
}

func judgeError(ctx context.Context, f failure) letterVerdict {
	switch {
	case errors.Is(f.err, ErrDisputed):
		return letterDisputed
	case InDoubt(f.err):
		return letterDoubt
	case hopeless(f.err):
		return letterPoison
	case NotSent(f.err) && ctx.Err() != nil: // what a layer of ours refused was not sent either
		return letterReturned
	case f.refused:
		return letterPaused
	case f.doubt:
		return letterDoubt
	}
	return letterFailed
}

func hopeless(err error) bool {
	return errors.Is(err, ErrPoison) || errors.Is(err, ErrKeyReused) || errors.Is(err, ErrBadKey) || undecodable(err)
}

func undecodable(err error) bool {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	return errors.As(err, &syntax) || errors.As(err, &kind)
}

// backoff is a random delay after n failures, up to Base doubled n times, at most Cap.
func (d *DLQ) backoff(n int) time.Duration {
	return 1 + rand.N(doubled(d.cfg.Base, d.cfg.Cap, n)) //nolint:gosec // it spreads load, it guards nothing
}

// panicError is a function of the user's that panicked, or called runtime.Goexit.
type panicError struct{ what string }

func (e *panicError) Error() string { return e.what }

// guard runs a function of the user's in a goroutine of its own, so that a panic or Goexit in it is an error here.
func (d *DLQ) guard(operation string, f func() error) error {
	done := make(chan error, 1)
	go func() {
		var err error = &panicError{"the goroutine exited"}
		defer func() {
			if v := recover(); v != nil {
				err = &panicError{fmt.Sprintf("panic: %T", v)}
			}
			done <- err
		}()
		err = f()
	}()
	err := <-done
	var panicked *panicError
	if errors.As(err, &panicked) {
		d.events.emit(Event{Kind: EventPanic, Operation: operation, Cause: "panic"})
	}
	return err
}

// keyHash is short and the same for the same key; in a stack it is the one that the events of keys show.
func (d *DLQ) keyHash(key string) string {
	if d.box.keyID != nil {
		return keyHash(d.box.keyID(key))
	}
	sum := sha256.Sum256([]byte(key))
	return hex.EncodeToString(sum[:])[:10]
}
