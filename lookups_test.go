package resilience

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

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
	done := make(chan error, 1)
	go func() { done <- i.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
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
