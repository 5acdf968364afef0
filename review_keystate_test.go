package resilience

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func lookUp(t *testing.T, i *Idempotency, key string) Record {
	t.Helper()
	rec, err := i.Lookup(t.Context(), key)
	require.NoError(t, err)
	return rec
}

// A key that was refused, and given back once more without a send, still knows a call that shows up as a contradiction.
func TestT11_ACallAfterARefusalIsADisputeThoughTheKeyWasTakenSince(t *testing.T) {
	s := newStack(t, Config{DLQ: DLQConfig{Off: true}})
	p := &phone{before: func(*http.Request, int) (*http.Response, error) { return reply(400, ""), nil }}
	_, err := dial(t.Context(), t, s.Wrap(p), "k", dialBody)
	require.NoError(t, err)
	for range 2 {
		s.Breaker.ForceOpen()
		_, err = dial(t.Context(), t, s.Wrap(p), "k", dialBody)
		require.ErrorIs(t, err, ErrOpen)
		require.Equal(t, KeyNotApplied, stateOf(t, s.Idempotency, "k"))
	}
	notice(t, s.Idempotency, Found{ID: "call_1"})
	require.Equal(t, KeyDisputed, stateOf(t, s.Idempotency, "k"))
	closeStack(t, s)
}

// Other processes give a send as long as the attempt may take, however short its caller's patience is.
func TestT7_ASendIsNotTakenForDeadWithItsCallersPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &sharedStore{NewMemoryStore(0)}
		one, two := newStack(t, Config{Idempotency: IdempotencyConfig{Store: store}}), newIdem(t, IdempotencyConfig{Store: store})
		p := &phone{answer: func(*http.Request, int) (*http.Response, error) {
			time.Sleep(25 * time.Second)
			return reply(201, `{}`), nil
		}}
		_, err := dial(WithBudget(t.Context(), time.Second), t, one.Wrap(p), "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		time.Sleep(20 * time.Second)
		_, err = dial(t.Context(), t, two.Wrap(p), "k", dialBody)
		require.ErrorIs(t, err, ErrInFlight)
		time.Sleep(5 * time.Second)
		resp, err := dial(t.Context(), t, two.Wrap(p), "k", dialBody)
		require.NoError(t, err)
		require.True(t, Replayed(resp))
		require.Equal(t, 1, p.sends)
		closeStack(t, one)
	})
}

// Absence needs empty look-ups after the last send: those that were made before a re-send could not have found it.
func TestT9_LookUpsBeforeAResendDoNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIdem(t, IdempotencyConfig{Reconcile: &idReader{}, ServerKeys: ServerKeysTrust, AssumeAbsentAfter: 10 * time.Minute})
		lose(t, i, "k")
		for range minLookups {
			time.Sleep(time.Minute)
			i.tend(t.Context())
		}
		require.Equal(t, minLookups, lookUp(t, i, "k").Lookups)
		lose(t, i, "k")
		rec := lookUp(t, i, "k")
		require.Equal(t, 2, rec.Sends)
		require.Equal(t, 2, rec.Doubts)
		require.Zero(t, rec.Lookups)
		require.Zero(t, i.absentIn(rec))
	})
}

// The plan of the look-ups, as it is documented.
func TestLookups_ComeSoonAtFirstThenHourlyForADay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &diary{}
		i := newIdem(t, IdempotencyConfig{Reconcile: d})
		runIdem(t, i)
		lose(t, i, "k")
		last := time.Now()
		time.Sleep(30 * time.Hour)
		plan := []time.Duration{time.Second, 3 * time.Second, 10 * time.Second, 30 * time.Second, 2 * time.Minute, 10 * time.Minute}
		for range 24 {
			plan = append(plan, time.Hour)
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		require.Len(t, d.asks, len(plan))
		for n, at := range d.asks {
			require.InDelta(t, plan[n].Seconds(), at.Sub(last).Seconds(), plan[n].Seconds()/10+0.1, n)
			last = at
		}
		rec := lookUp(t, i, "k")
		require.Equal(t, KeyInDoubt, rec.State)
		require.Zero(t, rec.NextLookup, "a person or a webhook settles it")
	})
}

// What an operator sees of a key tells where it stands, and for how long.
func TestLookup_TellsWhereAKeyStands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIdem(t, IdempotencyConfig{Reconcile: &finder{}})
		ctx := WithCall(t.Context(), Call{Operation: "create-phone-call", Resource: "call"})
		p := &phone{answer: lostAnswer}
		_, err := dial(ctx, t, i.Wrap(p), "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		rec := lookUp(t, i, "k")
		require.Equal(t, []any{"create-phone-call", "call", "transport", 1}, []any{rec.Operation, rec.Resource, rec.Cause, rec.Doubts})
		require.Equal(t, time.Now().Add(time.Second), rec.NextLookup)

		time.Sleep(time.Minute)
		require.NoError(t, i.Resolve(ctx, "k", Resolution{State: KeyNotApplied, Reason: "not in the list"}))
		rec = lookUp(t, i, "k")
		require.Equal(t, []any{"operator", "not in the list", 0, ""}, []any{rec.Evidence, rec.Reason, rec.Doubts, rec.CallID})
		require.Zero(t, rec.NextLookup)
		require.Equal(t, time.Now(), rec.Settled)

		time.Sleep(time.Minute)
		p.answer = nil
		_, err = dial(ctx, t, i.Wrap(p), "k", dialBody)
		require.NoError(t, err)
		rec = lookUp(t, i, "k")
		require.Equal(t, []any{"answer", "", ""}, []any{rec.Evidence, rec.Reason, rec.Cause})
		require.Equal(t, time.Now(), rec.Settled)

		time.Sleep(time.Minute)
		notice(t, i, Found{ID: "a"}, Found{ID: "b"})
		rec = lookUp(t, i, "k")
		require.Equal(t, []string{"a", "b"}, rec.CallIDs)
		require.Equal(t, time.Now(), rec.Settled)
		require.Zero(t, rec.NextLookup)
		notice(t, i, Found{ID: "b"})
		require.Equal(t, rec, lookUp(t, i, "k"), "what is known changes nothing")
		notice(t, i, Found{ID: "b"}, Found{ID: "c"})
		require.Equal(t, []string{"a", "b", "c"}, lookUp(t, i, "k").CallIDs)
	})
}

// A look-up that is planned for a key in doubt is planned no more when the key is disputed.
func TestT11_ADisputeIsNotLookedUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &diary{}
		i := newIdem(t, IdempotencyConfig{Reconcile: d})
		lose(t, i, "k")
		notice(t, i, Found{ID: "a"}, Found{ID: "b"})
		require.Zero(t, lookUp(t, i, "k").NextLookup)
		runIdem(t, i)
		time.Sleep(time.Hour)
		require.Zero(t, d.asked())
	})
}

// An answer that names no call contradicts nothing, and one that does names the call that was confirmed without.
func TestT8_AnAnswerWithoutAnIDIsNoContradiction(t *testing.T) {
	done := func(r Record, id, text string) (Record, error) {
		a := answerReceipt{kind: answerDone, epoch: 1, callID: id, status: 201, body: []byte(text)}
		return transition(r, keyEvent{kind: eventAnswer, token: "a", now: modelStart, answer: a})
	}
	found := Record{ID: "k", State: KeyConfirmed, Epoch: 1, CallID: "call_1"}
	r, err := done(found, "", "{}")
	require.NoError(t, err)
	require.Equal(t, []any{KeyConfirmed, "call_1", "{}", 201}, []any{r.State, r.CallID, string(r.Body), r.Status})
	r, err = done(found, "call_2", "{}")
	require.NoError(t, err)
	require.Equal(t, KeyDisputed, r.State)
	require.Equal(t, []string{"call_1", "call_2"}, r.CallIDs)

	found.CallID = ""
	r, err = done(found, "call_1", "{}")
	require.NoError(t, err)
	require.Equal(t, []any{KeyConfirmed, "call_1"}, []any{r.State, r.CallID})
	found.Body = []byte("found")
	_, err = done(found, "call_1", "{}")
	require.ErrorIs(t, err, errConflict, "what was replayed once is replayed again")

	r, err = transition(Record{ID: "k", State: KeyConfirmed}, keyEvent{kind: eventEvidence, evidence: Evidence{Calls: []Found{{ID: "c"}}}})
	require.NoError(t, err)
	require.Equal(t, []any{KeyConfirmed, "c"}, []any{r.State, r.CallID})
}

// The replay has the answer's type; a re-send whose answer is lost takes nothing back of a success that could not be read.
func TestReplay_HasTheTypeOfTheAnswer(t *testing.T) {
	i := newIdem(t, IdempotencyConfig{})
	rt := i.Wrap(&phone{answer: func(*http.Request, int) (*http.Response, error) {
		return reply(202, "<a/>", "Content-Type", "text/xml", "Set-Cookie", "secret"), nil
	}})
	for range 2 {
		resp, err := dial(t.Context(), t, rt, "k", dialBody)
		require.NoError(t, err)
		require.Equal(t, 202, resp.StatusCode)
		require.Equal(t, "text/xml", resp.Header.Get("Content-Type"))
	}
	require.Empty(t, lookUp(t, i, "k").Header.Get("Set-Cookie"))
}

func TestIdempotency_ASuccessThatCouldNotBeReadIsRemembered(t *testing.T) {
	i := newIdem(t, IdempotencyConfig{Reconcile: &idReader{}, ServerKeys: ServerKeysTrust})
	p := &phone{answer: func(*http.Request, int) (*http.Response, error) { return reply(201, "<html>"), nil }}
	_, err := dial(t.Context(), t, i.Wrap(p), "k", dialBody)
	require.ErrorIs(t, err, ErrInDoubt)
	p.answer = lostAnswer
	_, err = dial(t.Context(), t, i.Wrap(p), "k", dialBody)
	require.ErrorIs(t, err, ErrInDoubt)
	require.Equal(t, 2, p.sends)
	require.True(t, lookUp(t, i, "k").Accepted)
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
