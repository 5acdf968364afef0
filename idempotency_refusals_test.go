package resilience

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A refusal that comes when its key has been forgotten and used anew speaks of its own send, though that had the same epoch.
func TestInvariantI9_ARefusalFromBeforeAForgottenKeyProvesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIdem(t, IdempotencyConfig{})
		l, err := NewTimeout(TimeoutConfig{})
		require.NoError(t, err)
		p := &phone{
			before: func(_ *http.Request, n int) (*http.Response, error) {
				if n > 1 {
					return nil, nil
				}
				time.Sleep(time.Hour) // deaf to its limit
				return reply(400, ""), nil
			},
			answer: lostAnswer,
		}
		rt := Chain(i.Claim(), i.Intent(), l.Attempt()).Wrap(p)
		_, err = dial(t.Context(), t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		require.NoError(t, i.Resolve(t.Context(), "k", Resolution{State: KeyNotApplied, Reason: "nobody was called"}))
		require.NoError(t, i.Forget(t.Context(), "k"))
		_, err = dial(t.Context(), t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		require.Equal(t, 1, p.rang())
		time.Sleep(2 * time.Hour) // the first refusal arrives
		require.Equal(t, KeyInDoubt, stateOf(t, i, "k"))
		_, err = dial(t.Context(), t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		require.Equal(t, 1, p.rang())
	})
}

// turnedStore is a store whose clock somebody turns.
type turnedStore struct {
	*MemoryStore
	by atomic.Int64
}

func (s *turnedStore) Now() time.Time { return time.Now().Add(time.Duration(s.by.Load())) }

// I20: how old a send is cannot be said by a clock that went back past it, so a trusted key may be too old by now.
func TestI20_AClockThatWentBackMakesNoKeyYoung(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &turnedStore{MemoryStore: NewMemoryStore(0)}
		i := newIdem(t, IdempotencyConfig{Store: store, Reconcile: &idReader{}, ServerKeys: ServerKeysTrust})
		p := &phone{answer: lostAnswer}
		_, err := dial(t.Context(), t, i.Wrap(p), "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		time.Sleep(2 * time.Hour)
		store.by.Store(int64(-3 * time.Hour))
		_, err = dial(t.Context(), t, i.Wrap(p), "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		require.Equal(t, 1, p.rang())
	})
}

// A status that refuses is proof, whatever became of its body: the key is free, and the caller may send again.
func TestI08_ARefusalWhoseBodyCannotBeReadGivesTheKeyBack(t *testing.T) {
	cut := func(code int) *http.Response {
		resp := reply(code, "")
		resp.Body = io.NopCloser(io.MultiReader(strings.NewReader(`{"mess`), failingReader{}))
		return resp
	}
	long := func(code int) *http.Response { return reply(code, strings.Repeat("x", 100)) }
	for name, answer := range map[string]func(int) *http.Response{"cut short": cut, "too large": long} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				for _, code := range []int{401, 404, 408, 409, 425, 429, 499} {
					s := newStack(t, Config{DLQ: DLQConfig{Off: true}, Timeout: TimeoutConfig{MaxResponseBytes: 50}})
					p := &phone{before: func(_ *http.Request, n int) (*http.Response, error) {
						if n == 1 {
							return answer(code), nil
						}
						return nil, nil
					}}
					_, err := dial(t.Context(), t, s.Wrap(p), "k", dialBody)
					require.Error(t, err)
					require.Equal(t, 1, p.sends, "a layer repeats only what no answer came to, and a 429 that is whole")
					var e *Error
					require.ErrorAs(t, err, &e)
					require.Equal(t, code, e.StatusCode)
					proof := isRefusalStatus(code)
					require.Equal(t, proof, NotSent(err))
					require.Equal(t, !proof, InDoubt(err))
					rec, err := s.Idempotency.Lookup(t.Context(), "k")
					require.NoError(t, err)
					require.Equal(t, code, rec.Status)
					if proof {
						require.Equal(t, KeyNotApplied, rec.State)
						resp, err := dial(t.Context(), t, s.Wrap(p), "k", dialBody)
						require.NoError(t, err)
						require.Equal(t, 201, resp.StatusCode)
					} else {
						require.Equal(t, KeyInDoubt, rec.State)
					}
					closeStack(t, s)
				}
			})
		})
	}
}

// With the queue, such a write is a letter that waits to be sent, not one in doubt.
// It is no more for the queue than one that can be read.
func TestI08_ARefusalWhoseBodyCannotBeReadMakesNoLetter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Timeout: TimeoutConfig{MaxResponseBytes: 50}})
		answers := []int{403, 503, 503, 503, 404, 404}
		p := &phone{before: func(_ *http.Request, n int) (*http.Response, error) {
			code := answers[n-1]
			if code == 503 {
				return nil, MarkNotSent(errors.New("no line"))
			}
			return reply(code, strings.Repeat("x", 100)), nil
		}}
		_, err := dial(t.Context(), t, s.Wrap(p), "k", dialBody)
		require.NotErrorIs(t, err, ErrParked)
		require.True(t, NotSent(err))
		require.Zero(t, s.DLQ.Stats().Letters)

		_, err = dial(t.Context(), t, s.Wrap(p), "k", dialBody)
		require.ErrorIs(t, err, ErrParked)
		time.Sleep(time.Minute)
		s.DLQ.Redrive(t.Context())
		require.Equal(t, "poison", s.DLQ.List(LetterFilter{})[0].ParkedReason, "the same request gets the same answer")

		require.NoError(t, s.DLQ.Requeue(s.DLQ.List(LetterFilter{})[0].ID))
		_, err = dial(t.Context(), t, s.Wrap(p), "k", dialBody) // which takes the letter over
		require.NotErrorIs(t, err, ErrParked)
		require.True(t, NotSent(err))
		require.Zero(t, s.DLQ.Stats().Letters, "it is answered")
		closeStack(t, s)
	})
}

// A refusal of our own, or one that leaves a doubt of another send, may have the status of an earlier answer: nothing was
// answered to this request.
func TestUnreadRefusal_IsOneThatSettlesItsCall(t *testing.T) {
	tr := &trip{}
	with := func(e *Error, code int) error { e.StatusCode = code; return fmt.Errorf("outer: %w", e) }
	for name, c := range map[string]struct {
		err  error
		want int
	}{
		"none":                 {nil, 0},
		"no status":            {tr.fail("idempotency", MarkNotSent(io.EOF)), 0},
		"refused by the API":   {with(tr.fail("idempotency", MarkNotSent(io.EOF)), 404), 404},
		"a status of doubt":    {with(tr.fail("idempotency", MarkNotSent(io.EOF)), 409), 0},
		"refused, first sends": {with(tr.fail("idempotency", errors.Join(ErrInDoubt, io.EOF)), 404), 0},
		"not proven":           {with(tr.fail("timeout", io.EOF), 404), 0},
		"refused by us":        {with(tr.refuse("idempotency", ErrInFlight), 404), 0},
	} {
		require.Equal(t, c.want, unreadRefusal(c.err), name)
	}
}
