package resilience

import (
	"context"
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

// evidence says it happened, the answer is a 4xx
func TestIdempotency_ARefusalAfterEvidenceProvesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, _ := NewIdempotency(IdempotencyConfig{})
		rt := i.Wrap(RoundTripFunc(func(r *http.Request) (*http.Response, error) {
			rec := i.ID("k")
			// as another process would have observed it
			_, _ = i.apply(context.Background(), rec, keyEvent{kind: eventEvidence, evidence: Evidence{ID: rec, Calls: []Found{{ID: "call_1"}}}, keep: time.Hour})
			return nil, MarkNotSent(http.ErrServerClosed)
		}))
		_, err := postCall(WithIdempotencyKey(t.Context(), "k"), rt, dialBody)
		require.False(t, NotSent(err))
	})
}

func TestIdempotency_AnOpenCircuitBeforeAResendProvesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &trustedFinder{}
		s := newStack(t, Config{DLQ: DLQConfig{Off: true}, Idempotency: IdempotencyConfig{Reconcile: f, ServerKeys: ServerKeysTrust}})
		rt := s.Wrap(&phone{answer: lostAnswer})
		_, err := postCall(WithIdempotencyKey(t.Context(), "k"), rt, dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		s.Breaker.ForceOpen()
		_, err = postCall(WithIdempotencyKey(t.Context(), "k"), rt, dialBody)
		require.False(t, NotSent(err))
		closeStack(t, s)
	})
}

// A re-send that the user chose does not undo the first send: who leaves before it goes out is in doubt.
func TestIdempotency_WhoLeavesBeforeAResendIsInDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIdem(t, IdempotencyConfig{Reconcile: &idReader{}, ServerKeys: ServerKeysTrust})
		p := &phone{answer: lostAnswer}
		_, err := dial(t.Context(), t, i.Wrap(p), "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		hold := LayerFunc(func(next http.RoundTripper) http.RoundTripper {
			return RoundTripFunc(func(r *http.Request) (*http.Response, error) {
				<-r.Context().Done()
				return nil, MarkNotSent(context.Cause(r.Context()))
			})
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = dial(ctx, t, Chain(i.Claim(), hold, i.Intent()).Wrap(p), "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		require.False(t, NotSent(err))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, KeyInDoubt, stateOf(t, i, "k"))
	})
}

// A refusal between the doors of a key that was sent before says nothing about that send.
func TestIdempotency_ARefusedResendIsInDoubtWithItsKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIdem(t, IdempotencyConfig{Reconcile: &idReader{}, ServerKeys: ServerKeysTrust})
		p := &phone{answer: lostAnswer}
		_, err := dial(t.Context(), t, i.Wrap(p), "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		full := LayerFunc(func(http.RoundTripper) http.RoundTripper {
			return RoundTripFunc(func(*http.Request) (*http.Response, error) { return nil, MarkNotSent(errors.New("full")) })
		})
		_, err = dial(t.Context(), t, Chain(i.Claim(), full, i.Intent()).Wrap(p), "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		var e *Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, "k", e.Key)
	})
}

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

// muteStore makes a write and says that it failed, as a store does whose answer is lost.
type muteStore struct {
	*MemoryStore
	mute atomic.Int64 // so many writes from here on
}

func (s *muteStore) CompareAndSwap(ctx context.Context, old uint64, r Record) (uint64, bool, error) {
	version, swapped, err := s.MemoryStore.CompareAndSwap(ctx, old, r)
	if r.State == KeyInDoubt && s.mute.Add(-1) >= 0 {
		return 0, false, errBroken
	}
	return version, swapped, err
}

// A refusal that is recorded a second time, since the store did not say that it had taken it, speaks of its own send still,
// and not of the first one.
func TestKeyState_ARefusalCountsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &muteStore{MemoryStore: NewMemoryStore(0)}
		i := newIdem(t, IdempotencyConfig{Store: store, Reconcile: &idReader{}, ServerKeys: ServerKeysTrust})
		p := &phone{answer: lostAnswer}
		rt := i.Wrap(p)
		_, err := dial(t.Context(), t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		store.mute.Store(1)
		p.before = func(*http.Request, int) (*http.Response, error) { return nil, MarkNotSent(io.EOF) }
		_, err = dial(t.Context(), t, rt, "k", dialBody) // the second send is refused
		require.ErrorIs(t, err, ErrInDoubt)
		require.Equal(t, KeyInDoubt, stateOf(t, i, "k"))
		i.tend(t.Context())
		require.Zero(t, i.Stats().Unwritten)
		require.Equal(t, KeyInDoubt, stateOf(t, i, "k"), "of the first send nothing is known")
		time.Sleep(time.Hour) // the API's own key does not help any more
		p.before, p.answer = nil, nil
		_, err = dial(t.Context(), t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		require.Equal(t, 1, p.rang())
	})
}

func TestKeyState_ALateRefusalCountsOnce(t *testing.T) {
	e := keyEvent{kind: eventAnswer, token: "t", answer: answerReceipt{kind: answerRefused, epoch: 2}}
	for _, from := range []KeyState{KeySending, KeyInDoubt} {
		r := Record{ID: "k", State: from, Token: "t", Epoch: 2, Doubts: 2, Sends: 2}
		r, err := transition(r, e)
		require.NoError(t, err)
		require.Equal(t, KeyInDoubt, r.State)
		require.Equal(t, 1, r.Doubts)
		again, err := transition(r, e)
		require.ErrorIs(t, err, errConflict, "%v", from)
		require.Equal(t, KeyInDoubt, again.State)
		done := e
		done.answer.kind = answerDone
		late, err := transition(r, done)
		require.NoError(t, err, "evidence of an earlier send counts still")
		require.Equal(t, KeyConfirmed, late.State)
	}
}

// A claim that ends without a send leaves the key as it was: what is learned of an earlier send counts still.
func TestKeyState_ARefusedClaimForgetsNoEarlierSend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIdem(t, IdempotencyConfig{})
		p := &phone{answer: lostAnswer}
		_, err := dial(t.Context(), t, i.Wrap(p), "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		require.NoError(t, i.Resolve(t.Context(), "k", Resolution{State: KeyNotApplied, Reason: "asked"}))
		resolved, err := i.Lookup(t.Context(), "k")
		require.NoError(t, err)
		time.Sleep(time.Minute)
		full := LayerFunc(func(http.RoundTripper) http.RoundTripper {
			return RoundTripFunc(func(*http.Request) (*http.Response, error) { return nil, MarkNotSent(ErrFull) })
		})
		for range 2 {
			_, err = dial(t.Context(), t, Chain(i.Claim(), full, i.Intent()).Wrap(p), "k", dialBody)
			require.ErrorIs(t, err, ErrFull)
			rec, err := i.Lookup(t.Context(), "k")
			require.NoError(t, err)
			require.Equal(t, KeyNotApplied, rec.State)
			require.Equal(t, "operator", rec.Evidence)
			require.Equal(t, resolved.Settled, rec.Settled, "it was said then, and of what was sent before")
		}
		require.NoError(t, i.Observe(t.Context(), Evidence{ID: i.ID("k"), Calls: []Found{{ID: "call_1"}}}))
		require.Equal(t, KeyDisputed, stateOf(t, i, "k"), "the operator was wrong")
		_, err = dial(t.Context(), t, i.Wrap(p), "k", dialBody)
		require.ErrorIs(t, err, ErrDisputed)
		require.Equal(t, 1, p.rang())
	})
}

// The refusal of a send that was forgotten says nothing about the one that is under way under the same key: tokens differ.
func TestI9_ALateRefusalOfAForgottenSendFreesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{DLQ: DLQConfig{Off: true}})
		p := &phone{before: func(_ *http.Request, n int) (*http.Response, error) {
			if n > 1 {
				return nil, nil
			}
			time.Sleep(time.Hour) // whatever its context says
			return nil, MarkNotSent(errors.New("refused"))
		}, answer: func(*http.Request, int) (*http.Response, error) {
			time.Sleep(2 * time.Hour)
			return reply(201, `{}`), nil
		}}
		rt, ctx := s.Wrap(p), WithCall(context.Background(), Call{Limit: 3 * time.Hour, Budget: time.Second})
		_, err := dial(WithCall(ctx, Call{Limit: time.Minute}), t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		time.Sleep(2 * time.Minute)
		require.NoError(t, s.Idempotency.Resolve(ctx, "k", Resolution{State: KeyNotApplied, Reason: "not in the list"}))
		require.NoError(t, s.Idempotency.Forget(ctx, "k"))
		_, err = dial(ctx, t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		before := lookUp(t, s.Idempotency, "k")
		require.Equal(t, KeySending, before.State)
		time.Sleep(time.Hour) // the first one comes back
		require.Equal(t, before, lookUp(t, s.Idempotency, "k"))
		time.Sleep(2 * time.Hour)
		require.Equal(t, KeyConfirmed, stateOf(t, s.Idempotency, "k"))
		require.Equal(t, 1, p.rang())
		closeStack(t, s)
	})
}
