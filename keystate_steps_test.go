package resilience

import (
	"context"
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A sweep does not take what was claimed anew while it asked whether it may.
func TestKeyState_ASweepLeavesWhatMovedOn(t *testing.T) {
	s := NewMemoryStore(0)
	v, ok, err := s.CompareAndSwap(t.Context(), 0, Record{ID: "a", State: KeyNotApplied, Expires: s.Now()})
	require.True(t, ok)
	require.NoError(t, err)
	n, err := s.Sweep(t.Context(), 10, func(string) bool {
		_, ok, err := s.CompareAndSwap(t.Context(), v, Record{ID: "a", State: KeySending})
		require.True(t, ok)
		require.NoError(t, err)
		return false
	})
	require.NoError(t, err)
	require.Zero(t, n)
	rec, err := s.Load(t.Context(), "a")
	require.NoError(t, err)
	require.Equal(t, KeySending, rec.State)
}

type sharedKeys struct{ KeyStore }

func (sharedKeys) Capabilities() Capabilities {
	return Capabilities{Shared: true, Linearizable: true}
}

func TestKeyState_WhoLostTheClaimToADoubtIsInDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := sharedKeys{NewMemoryStore(0)}
		a, _ := NewIdempotency(IdempotencyConfig{Store: st})
		b, _ := NewIdempotency(IdempotencyConfig{Store: st})
		p := &phone{answer: lostAnswer}
		wait := LayerFunc(func(next http.RoundTripper) http.RoundTripper {
			return RoundTripFunc(func(r *http.Request) (*http.Response, error) {
				time.Sleep(time.Hour) // a queue, a suspended process
				return next.RoundTrip(r)
			})
		})
		done := make(chan error)
		go func() {
			_, err := postCall(WithIdempotencyKey(t.Context(), "k"), Chain(a.Claim(), wait, a.Intent()).Wrap(p), dialBody)
			done <- err
		}()
		time.Sleep(30 * time.Minute)
		_, err := postCall(WithIdempotencyKey(t.Context(), "k"), b.Wrap(p), dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		err = <-done
		require.Equal(t, 1, p.rang())
		require.False(t, NotSent(err))
	})
}

func TestKeyState_RunLeavesAClaimOfItsOwnProcessAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{DLQ: DLQConfig{Off: true}, Bulkhead: BulkheadConfig{Total: 1}})
		p := &phone{}
		rt := s.Wrap(p)
		ctx, cancel := context.WithCancel(t.Context())
		go s.Run(ctx)
		release, err := s.Bulkhead.Acquire(t.Context(), PriorityNormal)
		require.NoError(t, err)
		time.AfterFunc(2*time.Minute, release)
		_, err = postCall(WithIdempotencyKey(WithBudget(t.Context(), -1), "k"), rt, dialBody)
		cancel()
		require.NoError(t, err)
		closeStack(t, s)
	})
}

// What was said of earlier sends is not said of the next one.
func TestKeyState_ASendIsItsOwnEvidence(t *testing.T) {
	claimed := Record{ID: "k", State: KeyClaimed, Token: "t", Settled: modelStart, Evidence: "operator"}
	taken, err := transition(claimed, keyEvent{kind: eventClaim, token: "u", now: modelLate})
	require.NoError(t, err)
	require.Equal(t, modelStart, taken.Settled)
	require.Equal(t, "operator", taken.Evidence)
	sent, err := transition(taken, keyEvent{kind: eventIntend, token: "u", now: modelLate})
	require.NoError(t, err)
	require.Zero(t, sent.Settled)
	require.Empty(t, sent.Evidence)
}

// Where one process at a time uses the store, another owner is dead, and its lease counts for nothing.
func TestKeyState_ALeaseOfTheDead(t *testing.T) {
	for state, dead := range map[KeyState]error{KeyClaimed: nil, KeySending: ErrInDoubt} {
		r := Record{ID: "k", State: state, Token: "t", Owner: "other", Fingerprint: "f", Lease: modelLease}
		for _, exclusive := range []bool{true, false} {
			e := keyEvent{kind: eventClaim, token: "u", now: modelStart, claim: claimRequest{fingerprint: "f", owner: "me", exclusive: exclusive}}
			_, err := transition(r, e)
			if exclusive {
				require.ErrorIs(t, err, dead)
			} else {
				require.ErrorIs(t, err, ErrInFlight)
			}
			e.claim.owner = "other"
			_, err = transition(r, e)
			require.ErrorIs(t, err, ErrInFlight, "its own process lives")
		}
	}
}

// dead leaves the record of a process that died while sending, as far as the store can tell.
func dead(t *testing.T, store KeyStore, key string) {
	t.Helper()
	other := newIdem(t, IdempotencyConfig{Store: store})
	hold := make(chan struct{})
	p := &phone{answer: func(*http.Request, int) (*http.Response, error) { <-hold; return nil, http.ErrHandlerTimeout }}
	go dial(context.Background(), t, other.Wrap(p), key, dialBody) //nolint:errcheck // it dies
	synctest.Wait()
	t.Cleanup(func() { close(hold) })
}

// T7: who claims the key of a process that died while sending finds it in doubt, when the lease is over and not before.
func TestT7_AClaimFindsWhatADeadProcessLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &sharedStore{NewMemoryStore(0)}
		dead(t, store, "k")
		i, p := newIdem(t, IdempotencyConfig{Store: store}), &phone{}
		var e *Error
		_, err := dial(t.Context(), t, i.Wrap(p), "k", dialBody)
		require.ErrorIs(t, err, ErrInFlight)
		require.ErrorAs(t, err, &e)
		lease := 10*time.Minute + 5*time.Second
		require.Equal(t, lease, e.RetryAfter)
		time.Sleep(lease - 1)
		_, err = dial(t.Context(), t, i.Wrap(p), "k", dialBody)
		require.ErrorIs(t, err, ErrInFlight)
		time.Sleep(1)
		_, err = dial(t.Context(), t, i.Wrap(p), "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		require.ErrorAs(t, err, &e)
		require.Equal(t, "k", e.Key)
		require.Positive(t, e.RetryAfter, "the next look-up")
		require.Equal(t, KeyInDoubt, stateOf(t, i, "k"))
		require.Zero(t, p.sends)
		require.EqualValues(t, 2, i.Stats().InFlight)
	})
}

// T7: a store that one process has at a time needs no lease to know that the one before is gone; its own sends are not.
func TestT7_AnOrphanIsInDoubtAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := NewMemoryStore(0)
		dead(t, store, "k")
		i, p := newIdem(t, IdempotencyConfig{Store: store}), &phone{}
		_, err := dial(t.Context(), t, i.Wrap(p), "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		require.Zero(t, p.sends)

		p.answer = func(*http.Request, int) (*http.Response, error) {
			time.Sleep(time.Minute)
			return reply(201, "{}"), nil
		}
		go dial(t.Context(), t, i.Wrap(p), "own", dialBody) //nolint:errcheck // what tend makes of it counts
		synctest.Wait()
		i.tend(t.Context())
		require.Equal(t, KeySending, stateOf(t, i, "own"))
		time.Sleep(2 * time.Minute)
		require.Equal(t, KeyConfirmed, stateOf(t, i, "own"))
	})
}

// T6, T11: that nothing happened is remembered for the retention, so that a call which shows up after all is noticed.
func TestT11_ACallAfterARefusalIsADispute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIdem(t, IdempotencyConfig{})
		p := &phone{before: func(*http.Request, int) (*http.Response, error) { return reply(400, ""), nil }}
		_, err := dial(t.Context(), t, i.Wrap(p), "k", dialBody)
		require.NoError(t, err)
		time.Sleep(23 * time.Hour)
		i.tend(t.Context())
		rec, err := i.Lookup(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, KeyNotApplied, rec.State)
		require.Equal(t, 400, rec.Status)
		require.NoError(t, i.Observe(t.Context(), Evidence{ID: rec.ID, Calls: []Found{{ID: "call_1"}}}))
		_, err = dial(t.Context(), t, i.Wrap(p), "k", dialBody)
		require.ErrorIs(t, err, ErrDisputed)
		var e *Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, "k", e.Key)
		require.Equal(t, []string{"call_1"}, e.CallIDs)
		_, err = dial(t.Context(), t, i.Wrap(&phone{answer: lostAnswer}), "k2", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		for limit, n := range map[int]int{1: 1, 2: 2, 9: 2, 0: 2, -1: 2} {
			list, err := i.Unsettled(t.Context(), limit)
			require.NoError(t, err)
			require.Len(t, list, n, "limit %d", limit)
		}
		_, err = newIdem(t, IdempotencyConfig{Store: brokenStore{}}).Unsettled(t.Context(), 9)
		require.ErrorIs(t, err, ErrStore)
	})
}

// The intent is the last moment at which a call ends that nobody waits for, whatever lies between the doors.
func TestT4_NothingIsSentForNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, p := newIdem(t, IdempotencyConfig{}), &phone{}
		deaf := LayerFunc(func(next http.RoundTripper) http.RoundTripper {
			return RoundTripFunc(func(r *http.Request) (*http.Response, error) {
				time.Sleep(time.Minute)
				return next.RoundTrip(r)
			})
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := dial(ctx, t, Chain(i.Claim(), deaf, i.Intent()).Wrap(p), "k", dialBody)
		require.True(t, NotSent(err))
		time.Sleep(2 * time.Minute)
		require.Zero(t, p.sends)
		require.Equal(t, KeyFree, stateOf(t, i, "k"))
	})
}

func TestIdempotency_NothingIsLeftOfFlights(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, p := newIdem(t, IdempotencyConfig{}), &phone{}
		for n := range 20 {
			_, err := dial(t.Context(), t, i.Wrap(p), fmt.Sprint("k", n), dialBody)
			require.NoError(t, err)
		}
		synctest.Wait()
		require.Empty(t, i.flights)
		require.Zero(t, i.Stats().Flights)
	})
}

// asker looks a lost call up through the stack that lost it.
type asker struct {
	finder
	rt http.RoundTripper
}

func (a *asker) Find(ctx context.Context, _ Record) (Evidence, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://api.test/list-calls", nil)
	if err != nil {
		return Evidence{}, err
	}
	resp, err := a.rt.RoundTrip(req)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errDenied
	}
	return Evidence{}, err
}

// Look-ups go past cached answers, at bulk priority, and know nothing of what the lost call's context said.
func TestLookups_GoPastTheCacheAtBulkPriority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &asker{}
		lists := 0
		var tiers []Priority
		s := newStack(t, Config{
			DLQ: DLQConfig{Off: true}, Idempotency: IdempotencyConfig{Reconcile: a},
			Fallback: FallbackConfig{Fresh: time.Hour, Stale: time.Hour, MaxAge: time.Hour},
		})
		a.rt = s.Wrap(RoundTripFunc(func(r *http.Request) (*http.Response, error) {
			if r.Method != http.MethodGet {
				return lostAnswer(r, 0)
			}
			lists++
			tiers = append(tiers, tripOf(r.Context()).call.Priority)
			if lists > 1 {
				return reply(500, ""), nil
			}
			return reply(200, "[]"), nil
		}))
		_, err := a.Find(t.Context(), Record{}) // fills the cache
		require.NoError(t, err)
		_, err = dial(WithPriority(t.Context(), PriorityCritical), t, a.rt, "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		ctx := WithCall(WithPriority(WithIdempotencyKey(t.Context(), "k"), PriorityCritical), Call{Effect: EffectOnce})
		s.Idempotency.standing(ctx, "k")
		require.Greater(t, lists, 1)
		require.Equal(t, PriorityBulk, tiers[1])
		require.EqualValues(t, 1, s.Idempotency.Stats().LookupErrors, "no old answer stands for a look-up that fails")
		closeStack(t, s)
	})
}

// blind cannot look for anything.
type blind struct{ finder }

func (*blind) Finds(string) bool { return false }

// Absence is not assumed of what could not have been found, nor after two look-ups.
func TestT9_AbsenceNeedsLookUpsThatCouldFind(t *testing.T) {
	rec := Record{State: KeyInDoubt, Lookups: minLookups}
	i := newIdem(t, IdempotencyConfig{Reconcile: &finder{}, AssumeAbsentAfter: time.Hour})
	require.NotZero(t, i.absentAt(rec))
	require.Zero(t, newIdem(t, IdempotencyConfig{Reconcile: &blind{}, AssumeAbsentAfter: time.Hour}).absentAt(rec))
	require.Zero(t, newIdem(t, IdempotencyConfig{Reconcile: &finder{}}).absentAt(rec))
	rec.Lookups--
	require.Zero(t, i.absentAt(rec))
}

// The epoch grows with each claim, proof and re-send, also over the end of a retention; an answer counts for its own alone.
func TestKeyState_EpochsAndLeases(t *testing.T) {
	late := modelLease.Add(time.Hour)
	sending := Record{ID: "k", State: KeySending, Token: "a", Owner: "o", Epoch: 3, Doubts: 1, Sends: 1, Lease: modelLease}
	answer := func(kind answerKind, epoch uint64, r Record) (Record, error) {
		a := answerReceipt{kind: kind, epoch: epoch, status: 429, cause: "status", lease: late, callID: "call1"}
		return transition(r, keyEvent{kind: eventAnswer, token: "a", now: modelStart, answer: a})
	}
	r, err := answer(answerRefused, 3, sending) // T6a
	require.NoError(t, err)
	require.Equal(t, KeyClaimed, r.State)
	require.Equal(t, late, r.Lease, "it is renewed")
	require.Equal(t, uint64(4), r.Epoch)
	require.Zero(t, r.Doubts)
	require.Equal(t, 429, r.Status)

	doubtful, err := answer(answerUnknown, 3, sending)
	require.NoError(t, err)
	again, err := transition(doubtful, keyEvent{kind: eventResend, token: "b", deadline: late, claim: claimRequest{owner: "p"}})
	require.NoError(t, err)
	require.Equal(t, KeySending, again.State)
	require.Equal(t, []any{uint64(4), 2, 2, "b", "p", late}, []any{again.Epoch, again.Doubts, again.Sends, again.Token, again.Owner, again.Lease})
	_, err = transition(doubtful, keyEvent{kind: eventResend, deadline: late})
	require.ErrorIs(t, err, errConflict, "nobody sends without a token")
	again.State, again.Token = KeyInDoubt, "a"
	_, err = answer(answerRefused, 3, again)
	require.ErrorIs(t, err, errConflict, "the refusal of the first send says nothing about the second")

	sending.Epoch = 2
	for _, kind := range []answerKind{answerDone, answerRefused, answerUnknown} {
		_, err = answer(kind, 3, sending)
		require.ErrorIs(t, err, errConflict, "an answer to what was never sent")
	}
	old := Record{ID: "k", State: KeyConfirmed, Epoch: 7, Fingerprint: "f", Expires: modelStart}
	r, err = transition(old, keyEvent{kind: eventClaim, now: modelStart, token: "c", claim: claimRequest{fingerprint: "g"}}) // T13
	require.NoError(t, err)
	require.Equal(t, uint64(8), r.Epoch)
}

// T8a: the answer that comes after its evidence fills in what is replayed.
func TestT8a_TheAnswerFillsTheEvidenceIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIdem(t, IdempotencyConfig{Reconcile: &idReader{}})
		p := &phone{answer: func(*http.Request, int) (*http.Response, error) {
			time.Sleep(time.Second)
			return reply(201, `{"call_id":"call_1","more":true}`, "Content-Type", "application/x"), nil
		}}
		go func() {
			time.Sleep(time.Millisecond)
			_ = i.Observe(context.Background(), Evidence{ID: i.ID("k"), Calls: []Found{{ID: "call_1"}}, Source: "webhook"})
		}()
		first, err := dial(t.Context(), t, i.Wrap(p), "k", dialBody)
		require.NoError(t, err)
		require.True(t, Replayed(first), "the caller has it at once")
		rec, err := i.Lookup(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, "webhook", rec.Evidence)
		time.Sleep(2 * time.Second)
		resp, err := dial(t.Context(), t, i.Wrap(p), "k", dialBody)
		require.NoError(t, err)
		require.Equal(t, 201, resp.StatusCode)
		require.Equal(t, "application/x", resp.Header.Get("Content-Type"))
		require.Equal(t, `{"call_id":"call_1","more":true}`, bodyText(t, resp))
		require.Equal(t, 1, p.rang())
	})
}

// What only the store could say is an error that names it.
func TestIdempotency_QuestionsToABrokenStore(t *testing.T) {
	i := newIdem(t, IdempotencyConfig{Store: brokenStore{}})
	_, err := i.Lookup(t.Context(), "k")
	require.ErrorIs(t, err, ErrStore)
	require.ErrorIs(t, i.Resolve(t.Context(), "k", Resolution{State: KeyNotApplied, Reason: "r"}), ErrStore)
	require.ErrorIs(t, i.Observe(t.Context(), Evidence{ID: i.ID("k"), Calls: []Found{{ID: "c"}}}), ErrStore)
	require.ErrorIs(t, i.Forget(t.Context(), "k"), ErrStore)
	require.Equal(t, KeyInDoubt, i.standing(t.Context(), "k").State, "not known: nothing may be sent")
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
