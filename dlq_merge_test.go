package resilience

import (
	"context"
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// What becomes of a letter when a call with its key fails.
func TestDLQ_ACallWithTheKeyOfALetterFails(t *testing.T) {
	refusal := &Error{Layer: "bulkhead", Err: ErrFull, verdict: refused}
	for name, c := range map[string]struct {
		letter   Letter
		method   string
		err      error
		cancel   bool
		state    LetterState
		attempts int
		merged   uint64
	}{
		"an attempt":                         {method: "PUT", err: io.EOF, state: LetterWaiting, attempts: 1, merged: 1},
		"a refusal":                          {method: "PUT", err: refusal, state: LetterWaiting, merged: 1},
		"it was superseded before":           {letter: Letter{Superseded: true}, method: "PUT", err: io.EOF, state: LetterWaiting, attempts: 1, merged: 1},
		"it is not whole":                    {letter: Letter{Redacted: true, Parked: true, ParkedReason: "redacted"}, method: "PUT", err: io.EOF, state: LetterParked, attempts: 1, merged: 1},
		"the caller takes it back":           {method: "PUT", err: MarkNotSent(io.EOF), cancel: true, state: LetterWaiting},
		"the caller takes it back, too late": {method: "POST", err: io.EOF, cancel: true, state: LetterInDoubt, attempts: 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := mustDLQ(t, DLQConfig{Base: time.Hour, Cap: time.Hour, MaxAge: -1})
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				rt := d.Wrap(&dlqWorld{answer: func(int, *http.Request) (*http.Response, error) {
					if c.cancel {
						cancel()
					}
					return nil, c.err
				}})
				l := c.letter
				l.Key, l.Method, l.Operation, l.URL, l.Body = "k", c.method, c.method, "http://api.test/v2/things?x=1", []byte(`{"n":1}`)
				require.NoError(t, d.Add(l))
				time.Sleep(time.Second)
				_, err := dlqCall(ctx, rt, c.method, "k")
				require.ErrorIs(t, err, ErrParked)
				got := dlqOnly(t, d)
				require.Equal(t, c.state, got.State())
				require.Equal(t, c.attempts, got.Attempts)
				require.Equal(t, c.merged, d.Stats().Merged)
				require.Equal(t, !c.cancel || c.attempts > 0, got.Last.Equal(time.Now()))
				dlqConserved(t, d)
			})
		})
	}
}

// The letter of a call was found to have worked while the call was under way: what comes then is a letter of its own.
func TestDLQ_ALetterThatIsGoneIsNotMergedInto(t *testing.T) {
	d := mustDLQ(t, DLQConfig{})
	rt := d.Wrap(&dlqWorld{answer: func(n int, _ *http.Request) (*http.Response, error) {
		if n == 2 {
			d.settle("k", keyNews{verdict: keyDone})
		}
		return nil, errDLQRefused
	}})
	_, err := dlqCall(t.Context(), rt, http.MethodPut, "k")
	require.ErrorIs(t, err, ErrParked)
	first := dlqOnly(t, d)
	_, err = dlqCall(t.Context(), rt, http.MethodPut, "k")
	require.ErrorIs(t, err, ErrParked)
	require.NotEqual(t, first.ID, dlqOnly(t, d).ID)
	require.Zero(t, d.Stats().Merged)
	dlqConserved(t, d)
}

func TestDLQ_ARefusedLetterSaysWhy(t *testing.T) {
	causes := make(chan string, 9)
	d := mustDLQ(t, DLQConfig{MaxLetters: 1, OnEvent: func(e Event) {
		if e.Kind == EventLetterRefused {
			causes <- e.Cause
		}
	}})
	require.NoError(t, d.Add(Letter{Operation: "op"}))
	require.ErrorIs(t, d.Add(Letter{Operation: "op"}), ErrLettersFull)
	require.Equal(t, "full", <-causes)
	require.NoError(t, d.close(t.Context()))
	require.ErrorIs(t, d.Add(Letter{Operation: "op"}), ErrClosed)
	require.Equal(t, "closed", <-causes)
}

// Two calls with one key fail one after the other; what the other side says last of when to come again counts.
func TestDLQ_ASecondFailureSaysWhenToComeAgain(t *testing.T) {
	for name, edit := range map[string]func(*DLQ){
		"waiting": func(*DLQ) {},
		"given up": func(d *DLQ) {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.park(d.box.ofKey("k"), "attempts", func(*Letter) {})
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := mustDLQ(t, DLQConfig{})
				rt := d.Wrap(&dlqWorld{answer: func(n int, _ *http.Request) (*http.Response, error) {
					time.Sleep(time.Duration(n) * time.Second)
					if n == 1 {
						return nil, errDLQRefused
					}
					return reply(503, "", "Retry-After", "60"), nil
				}})
				ends := make(chan error, 2)
				for range cap(ends) {
					go func() {
						_, err := dlqCall(t.Context(), rt, http.MethodPut, "k")
						ends <- err
					}()
				}
				require.ErrorIs(t, <-ends, ErrParked)
				edit(d)
				require.ErrorIs(t, <-ends, ErrParked)
				require.EqualValues(t, 1, d.Stats().Merged)
				require.Equal(t, LetterWaiting, dlqOnly(t, d).State())
				require.GreaterOrEqual(t, time.Until(dlqOnly(t, d).Next), time.Minute)
			})
		})
	}
}

// Without a bound on attempts the failures of callers count, and the delay grows with them.
func TestD05_FailuresOfCallersCountWithoutABound(t *testing.T) {
	d, _, rt := dlqParked(t, DLQConfig{Attempts: -1})
	for range 7 {
		_, err := dlqCall(WithCall(t.Context(), Call{Operation: "op"}), rt, http.MethodPost, "k")
		require.ErrorIs(t, err, ErrParked)
	}
	require.Equal(t, 7, dlqOnly(t, d).Attempts)
}
