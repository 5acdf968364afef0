package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/retell-resilience/resilience"
	"github.com/retell-resilience/resilience/retell"
)

// teller writes lines with the time at which things happened. The layers tell of themselves on goroutines of their own.
type teller struct {
	mu    sync.Mutex
	out   io.Writer
	start time.Time
}

func newTeller(out io.Writer) *teller { return &teller{out: out, start: time.Now()} }

func (t *teller) writef(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, _ = fmt.Fprintf(t.out, format, args...) // a closed terminal is no reason to stop calling people
}

func (t *teller) chapter(title string) { t.writef("\n%s\n", title) }

func (t *teller) sayf(who, format string, args ...any) {
	t.writef("%6.2f s  %-7s %s\n", time.Since(t.start).Seconds(), who, fmt.Sprintf(format, args...))
}

// hear is the OnEvent of the stack.
func (t *teller) hear(e resilience.Event) {
	if text := eventInWords(e); text != "" {
		t.sayf("  event", "%s", text)
	}
}

// eventInWords is empty for events that would only make the story long.
func eventInWords(e resilience.Event) string {
	switch e.Kind {
	case resilience.EventCircuitOpen:
		return fmt.Sprintf("the circuit opens for %.0f s", e.Duration.Seconds())
	case resilience.EventCircuitHalfOpen:
		return "the circuit is half open: one trial"
	case resilience.EventCircuitClose:
		return "the circuit closes"
	case resilience.EventLetterAdded:
		if e.Cause == "merged" {
			return "the letter of that key is there already"
		}
		return fmt.Sprintf("a letter keeps the %s (%s)", e.Operation, e.Cause)
	case resilience.EventLetterDone:
		return fmt.Sprintf("a letter is settled: the %s has happened", e.Operation)
	case resilience.EventLetterParked:
		return fmt.Sprintf("a letter is given up: alert somebody (%s)", e.Cause)
	case resilience.EventLookup:
		return fmt.Sprintf("looked the lost call up, found: %d", e.Count)
	case resilience.EventKeyChanged:
		if e.To == resilience.KeyInDoubt.String() || e.From == resilience.KeyInDoubt.String() {
			return fmt.Sprintf("key %s: %s → %s", e.KeyHash, e.From, e.To)
		}
	case resilience.EventHealthChanged:
		return fmt.Sprintf("health: %s → %s", e.From, e.To)
	}
	return ""
}

// inWords says what an error means for whoever wanted the call. The order matters: in doubt first.
func inWords(err error) string {
	var said *retell.Error
	switch {
	case resilience.InDoubt(err):
		return "in doubt: it may ring. Not sent again; the key is being looked up"
	case errors.Is(err, resilience.ErrParked):
		return "not now, but it will be made: a letter has it"
	case errors.Is(err, resilience.ErrOpen):
		return "refused here, nothing was sent: the circuit is open"
	case errors.Is(err, retell.ErrUnauthorized):
		return "the API key was refused"
	case errors.Is(err, retell.ErrPaymentRequired):
		return "the workspace cannot pay"
	case errors.Is(err, retell.ErrRateLimited):
		return "too many requests, or no free call slot"
	case retell.IsNotFound(err):
		return "there is no such thing under this API key"
	case errors.As(err, &said):
		return fmt.Sprintf("Retell says no: status %d", said.StatusCode)
	case resilience.NotSent(err):
		return "nothing was sent: try again later"
	}
	return "failed: " + err.Error() // holds neither number nor key
}

// reportInWords names the status and, where it is not healthy, what made it so.
func reportInWords(r resilience.Report) string {
	var why []string
	for _, c := range r.Checks {
		if c.Status > resilience.Healthy {
			why = append(why, c.Name+": "+c.Message)
		}
	}
	if len(why) == 0 {
		return r.Status.String()
	}
	return r.Status.String() + " (" + strings.Join(why, "; ") + ")"
}

// masked shows enough of a number to tell it from its neighbours.
func masked(number string) string {
	if len(number) < 6 {
		return "•••"
	}
	return number[:2] + "•••" + number[len(number)-2:]
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}
