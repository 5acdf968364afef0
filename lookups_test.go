package resilience

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Absence is assumed though nobody has looked for a long time.
type lateIndex struct {
	finder
	visible time.Time
}

func (f *lateIndex) Find(context.Context, Record) (Evidence, error) {
	if time.Now().Before(f.visible) {
		return Evidence{}, nil
	}
	return Evidence{Calls: []Found{{ID: "call_1"}}}, nil
}

func TestLookups_AbsenceIsAssumedAfterALastLook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &lateIndex{visible: time.Now().Add(5*time.Minute + 10*time.Second)} // it rang for five minutes before it was listed
		s := newStack(t, Config{DLQ: DLQConfig{Off: true}, Idempotency: IdempotencyConfig{Reconcile: f, AssumeAbsentAfter: 10 * time.Minute}})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		p := &phone{answer: lostAnswer}
		_, err := dial(t.Context(), t, s.Wrap(p), "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		time.Sleep(12 * time.Minute)
		cancel()
		require.NoError(t, <-done)
		state := stateOf(t, s.Idempotency, "k")
		closeStack(t, s)
		require.NotEqual(t, KeyNotApplied, state, "a look would have found it")
	})
}

// The last look finds the call, and the store does not take that.
func TestLookups_AbsenceIsNotAssumedOfWhatWasFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &lateIndex{visible: time.Now().Add(5*time.Minute + 10*time.Second)}
		store := &answerRefusingStore{MemoryStore: NewMemoryStore(0)}
		store.failing.Store(1)
		s := newStack(t, Config{
			DLQ:         DLQConfig{Off: true},
			Idempotency: IdempotencyConfig{Store: store, Reconcile: f, AssumeAbsentAfter: 10 * time.Minute},
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		_, err := dial(t.Context(), t, s.Wrap(&phone{answer: lostAnswer}), "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		time.Sleep(time.Hour)
		cancel()
		require.NoError(t, <-done)
		require.Negative(t, store.failing.Load(), "it was refused once, and then taken")
		require.Equal(t, KeyConfirmed, stateOf(t, s.Idempotency, "k"))
		closeStack(t, s)
	})
}

// A look-up that hangs stops all tending.
func TestLookups_AHangingLookUpDoesNotStopTheRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &hangingFinder{}
		i := newIdem(t, IdempotencyConfig{Reconcile: f})
		f.hung = i.ID("k0")
		rt := i.Wrap(&phone{answer: lostAnswer})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); i.run(ctx) }()
		_, err := dial(t.Context(), t, rt, "k0", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		time.Sleep(5 * time.Second) // its look-up hangs
		_, err = dial(t.Context(), t, rt, "k1", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		time.Sleep(time.Hour)
		state := stateOf(t, i, "k1")
		cancel()
		<-done
		require.Equal(t, KeyConfirmed, state)
	})
}

// The look-ups of a letter use up the plan of the key.
func TestLookups_AKeyInDoubtIsLookedUpForADay(t *testing.T) {
	for name, off := range map[string]bool{"without letters": true, "with a letter": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &lateIndex{visible: time.Now().Add(6 * time.Hour)}
				s := newStack(t, Config{DLQ: DLQConfig{Off: off}, Idempotency: IdempotencyConfig{Reconcile: f}})
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- s.Run(ctx) }()
				_, err := dial(t.Context(), t, s.Wrap(&phone{answer: lostAnswer}), "k", dialBody)
				require.ErrorIs(t, err, ErrInDoubt)
				time.Sleep(2 * time.Hour)
				time.Sleep(10 * time.Hour)
				state := stateOf(t, s.Idempotency, "k")
				cancel()
				require.NoError(t, <-done)
				closeStack(t, s)
				require.Equal(t, KeyConfirmed, state, "it was listed six hours ago")
			})
		})
	}
}

// Absence is assumed so long after the attempt is over, not after it began.
func TestLookups_AbsenceCountsFromTheEndOfTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIdem(t, IdempotencyConfig{AssumeAbsentAfter: 20 * time.Minute})
		_, err := dial(t.Context(), t, i.Wrap(&phone{answer: lostAnswer}), "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		time.Sleep(29 * time.Minute) // the lease of a call without a limit is ten
		i.tend(t.Context())
		require.Equal(t, KeyInDoubt, stateOf(t, i, "k"))
	})
}

func TestLookups_AStoreThatTakesNothingIsNoReasonToAskAllTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := &faultyStore{KeyStore: NewMemoryStore(0)}
		f := &trustedFinder{}
		s := newStack(t, Config{DLQ: DLQConfig{Off: true}, Idempotency: IdempotencyConfig{Store: st, Reconcile: f}})
		_, err := postCall(WithIdempotencyKey(t.Context(), "k"), s.Wrap(&phone{answer: lostAnswer}), dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		st.noCAS.Store(true)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		require.NoError(t, s.Run(ctx))
		require.Less(t, f.n.Load(), int64(20))
		closeStack(t, s)
	})
}

// diary is a reconciler that notes when it is asked, and answers as it is told.
type diary struct {
	finder
	mu   sync.Mutex
	asks []time.Time
	fail error
	find []Found
}

func (d *diary) Find(context.Context, Record) (Evidence, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asks = append(d.asks, time.Now())
	return Evidence{Calls: d.find}, d.fail
}

func (d *diary) set(found []Found, fail error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.find, d.fail = found, fail
}

func (d *diary) asked() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.asks)
}

func runIdem(t *testing.T, i *Idempotency) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); i.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
	})
}

func lose(t *testing.T, i *Idempotency, key string) {
	t.Helper()
	_, err := dial(t.Context(), t, i.Wrap(&phone{answer: lostAnswer}), key, dialBody)
	require.ErrorIs(t, err, ErrInDoubt)
}

var errDenied = errors.New("status 401")

// Look-ups that fail, because the API key is wrong for example, become rare and do not end; they use up no step of the plan.
func TestLookups_ThoseThatFailBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &diary{fail: errDenied}
		i := newIdem(t, IdempotencyConfig{Reconcile: d})
		runIdem(t, i)
		lose(t, i, "k")
		time.Sleep(time.Minute)
		require.GreaterOrEqual(t, d.asked(), 5, "soon at first")
		time.Sleep(3 * time.Hour)
		early := d.asked()
		require.Less(t, early, 25)
		time.Sleep(48 * time.Hour)
		late := d.asked() - early
		require.GreaterOrEqual(t, late, 43, "about hourly for ever")
		require.LessOrEqual(t, late, 54)
		rec, err := i.Lookup(t.Context(), "k")
		require.NoError(t, err)
		require.Zero(t, rec.Lookups)
		d.set([]Found{{ID: "call_1"}}, nil)
		time.Sleep(66 * time.Minute)
		require.Equal(t, KeyConfirmed, stateOf(t, i, "k"))
		require.EqualValues(t, d.asked()-1, i.Stats().LookupErrors)
	})
}

// What our own side refused, such as an open circuit, was no look-up: it is made as soon as that is over.
func TestLookups_OurOwnRefusalsDoNotBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &diary{fail: &Error{Layer: "breaker", Err: ErrOpen, verdict: refused}}
		i := newIdem(t, IdempotencyConfig{Reconcile: d})
		runIdem(t, i)
		lose(t, i, "k")
		time.Sleep(10*time.Minute + 500*time.Millisecond)
		require.Equal(t, 120, d.asked()) // the first after one second
		d.set([]Found{{ID: "call_1"}}, nil)
		time.Sleep(afterRefusal + 100*time.Millisecond)
		require.Equal(t, KeyConfirmed, stateOf(t, i, "k"))
	})
}

// A look-up out of turn, for a letter, changes nothing in the plan of the key, whether it failed or not.
func TestLookups_OutOfTurnLeaveThePlan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &diary{}
		i := newIdem(t, IdempotencyConfig{Reconcile: d})
		lose(t, i, "k")
		rec, err := i.Lookup(t.Context(), "k")
		require.NoError(t, err)
		for _, fail := range []error{nil, errDenied} {
			d.set(nil, fail)
			require.Equal(t, rec, i.standing(t.Context(), "k"))
		}
		require.Equal(t, 2, d.asked())
	})
}

// Absence is not assumed while the last look fails; it is made again more and more rarely, and then counts.
func TestLookups_ALastLookThatFailsBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &diary{}
		i := newIdem(t, IdempotencyConfig{Reconcile: d, AssumeAbsentAfter: time.Hour})
		runIdem(t, i)
		lose(t, i, "k")
		time.Sleep(50 * time.Minute)
		before := d.asked()
		d.set(nil, errDenied)
		time.Sleep(24 * time.Hour)
		require.Equal(t, KeyInDoubt, stateOf(t, i, "k"))
		require.LessOrEqual(t, d.asked()-before, 28)
		d.set(nil, nil)
		time.Sleep(66 * time.Minute)
		require.Equal(t, KeyNotApplied, stateOf(t, i, "k"))
	})
}

// Absence is assumed on time, right after a last look, also long after the plan is used up.
func TestLookups_TheLastLookIsOnTime(t *testing.T) {
	for _, after := range []time.Duration{10 * time.Minute, 90 * time.Minute, 72 * time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			d := &diary{}
			i := newIdem(t, IdempotencyConfig{Reconcile: d, AssumeAbsentAfter: after})
			runIdem(t, i)
			lose(t, i, "k")
			due := time.Now().Add(10*time.Minute + 5*time.Second + after) // so long may a send without a limit take
			time.Sleep(time.Until(due) - time.Second)
			require.Equal(t, KeyInDoubt, stateOf(t, i, "k"))
			time.Sleep(2 * time.Second)
			require.Equal(t, KeyNotApplied, stateOf(t, i, "k"), after)
			require.WithinDuration(t, due, d.asks[len(d.asks)-1], 0)
		})
	}
}

// hanging never answers.
type hanging struct{ finder }

func (*hanging) Find(ctx context.Context, _ Record) (Evidence, error) {
	<-ctx.Done()
	return Evidence{}, ctx.Err()
}

// Health knows of a key that came in doubt while a look-up of another took its time.
func TestLookups_ADoubtThatComesMeanwhileIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIdem(t, IdempotencyConfig{Reconcile: &hanging{}})
		runIdem(t, i)
		lose(t, i, "k0")
		time.Sleep(5*time.Minute - time.Second) // its look-up hangs
		lose(t, i, "k1")
		time.Sleep(5 * time.Second) // that of the second hangs
		inDoubt, _, _, _ := i.doubts.summary(time.Now())
		require.Equal(t, 2, inDoubt)
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
		require.Zero(t, i.absentAt(rec))
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

// The operator's word on the call whose answer is kept takes nothing of it away: not with its id, and not without one.
func TestResolve_TheAnswerOfTheSameCallIsKept(t *testing.T) {
	for _, id := range []string{"call_1", ""} {
		r := Record{
			State: KeyDisputed, CallID: "call_1", CallIDs: []string{"call_1", "call_2"}, Status: 201,
			Header: http.Header{"Location": {"/1"}}, Body: []byte(`{"call_id":"call_1"}`),
		}
		next, err := transition(r, keyEvent{kind: eventResolve, verdict: Resolution{State: KeyConfirmed, CallID: id, Reason: "heard it"}})
		require.NoError(t, err)
		require.Equal(t, []any{"call_1", 201, r.Header, r.Body}, []any{next.CallID, next.Status, next.Header, next.Body})
	}
}

// Unsettled is for operators: what is only claimed, or being sent, is no business of theirs.
func TestUnsettled_LeavesOutWhatIsUnderWay(t *testing.T) {
	store := NewMemoryStore(0)
	for id, state := range map[string]KeyState{"a": KeyClaimed, "b": KeyInDoubt, "c": KeySending, "d": KeyDisputed} {
		_, swapped, err := store.CompareAndSwap(t.Context(), 0, Record{ID: id, State: state, Owner: "dead"})
		require.NoError(t, err)
		require.True(t, swapped)
	}
	list, err := newIdem(t, IdempotencyConfig{Store: store}).Unsettled(t.Context(), 0)
	require.NoError(t, err)
	require.Len(t, list, 2)
	require.Equal(t, []string{"b", "d"}, []string{list[0].ID, list[1].ID})
}

// unlisted is a store that cannot list.
type unlisted struct {
	*MemoryStore
	fails bool
}

func (s *unlisted) Unsettled(ctx context.Context, cursor string, limit int) ([]Record, string, error) {
	if s.fails {
		return nil, "", errors.New("list")
	}
	return s.MemoryStore.Unsettled(ctx, cursor, limit)
}

// A store that cannot be asked has settled no key.
func TestDoubts_AreNotForgottenWhenTheStoreCannotBeAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &unlisted{MemoryStore: NewMemoryStore(0)}
		i := newIdem(t, IdempotencyConfig{Store: store})
		doubtful(t, i)
		time.Sleep(1) // it is older than the look that follows
		store.fails = true
		i.tend(t.Context())
		inDoubt, _, _, storeBad := i.doubts.summary(time.Now())
		require.True(t, storeBad)
		require.Equal(t, 1, inDoubt)
	})
}

// A plan of look-ups that is used up ends in one more, when absence may be assumed, and says when that is.
func TestT9_TheLastLookUpIsPlanned(t *testing.T) {
	i := newIdem(t, IdempotencyConfig{Reconcile: &finder{}, AssumeAbsentAfter: 48 * time.Hour})
	now := time.Now()
	rec := Record{State: KeyInDoubt, Sent: now, Lease: now.Add(time.Minute), Lookups: 100}
	require.Equal(t, rec.Lease.Add(48*time.Hour), i.plan(rec, nil, now).next)
}

// A key whose plan was used up by a process that assumed nothing is looked up once more by one that does.
func TestT9_AbsenceIsAssumedWhereThePlanWasUsedUpBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIdem(t, IdempotencyConfig{Reconcile: &finder{}, AssumeAbsentAfter: time.Hour})
		_, _, err := i.store.CompareAndSwap(t.Context(), 0, Record{
			ID: "k", State: KeyInDoubt, Lookups: 30, Sent: time.Now(), Lease: time.Now().Add(time.Minute), Doubts: 1,
		})
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go i.run(ctx)
		time.Sleep(61*time.Minute - 1)
		rec, _ := i.load(t.Context(), "k")
		require.Equal(t, KeyInDoubt, rec.State)
		require.Zero(t, i.Stats().Lookups)
		time.Sleep(2)
		synctest.Wait()
		rec, _ = i.load(t.Context(), "k")
		require.Equal(t, KeyNotApplied, rec.State)
		require.EqualValues(t, 1, i.Stats().Lookups)
	})
}

// Where nobody can look, absence is assumed when it is time, and no look-up is waited for.
func TestT9_AbsenceWithoutAReconcilerIsAssumedOnTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIdem(t, IdempotencyConfig{AssumeAbsentAfter: time.Hour})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		doubtful(t, i)
		rec := lookUp(t, i, "k")
		go i.run(ctx)
		time.Sleep(time.Until(rec.Lease.Add(time.Hour)) - 1)
		require.Equal(t, KeyInDoubt, stateOf(t, i, "k"))
		time.Sleep(2)
		synctest.Wait()
		require.Equal(t, KeyNotApplied, stateOf(t, i, "k"))
	})
}

// A refusal has taken the letter away that the call had taken over. Who leaves before it is told must not hear that a letter
// owns the write: there is none.
func TestOneOwner_NobodyIsToldOfALetterThatIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Retry: RetryConfig{Off: true}, Idempotency: IdempotencyConfig{Store: slowRelease{NewMemoryStore(0)}}})
		w := &dlqWorld{answer: dlqError(errDLQRefused)}
		rt := s.Wrap(w)
		_, err := dlqCall(t.Context(), rt, http.MethodPost, "k")
		require.ErrorIs(t, err, ErrParked)
		w.set(dlqStatus(http.StatusNotFound))
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		_, err = dlqCall(ctx, rt, http.MethodPost, "k")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.NotErrorIs(t, err, ErrParked)
		require.True(t, NotSent(err))
		require.Zero(t, s.DLQ.Len())
		closeStack(t, s)
	})
}
