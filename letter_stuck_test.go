package resilience

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// stuckStore has n letters, and takes nothing more until release is closed, whatever contexts say.
func stuckStore(t *testing.T, n int, cfg DLQConfig) (d *DLQ, s *shelf, release chan struct{}) {
	t.Helper()
	s = newShelf()
	p := s.open()
	cfg.Store = p
	d = mustDLQ(t, cfg)
	for i := range n {
		require.NoError(t, d.Add(Letter{ID: fmt.Sprint(i), Operation: "op", Key: fmt.Sprint("k", i)}))
	}
	release = make(chan struct{})
	p.set(func(_ context.Context, _, _ string, effect func()) error {
		<-release
		effect()
		return nil
	})
	return d, s, release
}

// A store that ignores its contexts can hold every writer. Nobody waits for it longer than a write may take, what it holds
// up is counted and reported, and it is written when the store comes back.
func TestDLQStore_AStoreThatHoldsEveryWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = letterWriters + 8
		var mu sync.Mutex
		unwritten := map[string]Event{}
		d, s, release := stuckStore(t, n, DLQConfig{OnEvent: func(e Event) {
			mu.Lock()
			defer mu.Unlock()
			if e.Kind == EventLetterUnwritten {
				unwritten[e.LetterID] = e
			}
		}})
		for i := range n {
			require.NoError(t, d.Requeue(fmt.Sprint(i)))
		}
		synctest.Wait()
		require.Equal(t, n, d.Stats().Unwritten)
		require.Zero(t, d.Stats().StoreFailures, "it has its time")
		time.Sleep(letterWriteLimit)
		synctest.Wait()
		require.EqualValues(t, letterWriters, d.Stats().StoreFailures)
		require.NoError(t, d.events.drain(t.Context()))
		mu.Lock()
		require.Len(t, unwritten, letterWriters)
		for _, e := range unwritten {
			require.Equal(t, n, e.Count, "what waits behind them is not in the store either")
		}
		mu.Unlock()

		// Writes stay with their callers, who hear of it in time.
		rt := d.Wrap(&dlqWorld{answer: dlqError(errDLQRefused)})
		began := time.Now()
		_, err := dlqCall(t.Context(), rt, http.MethodPut, "new")
		require.ErrorIs(t, err, ErrLettersFull)
		require.ErrorIs(t, d.Delete("0", ""), ErrStore)
		require.ErrorIs(t, d.Delete("39", ""), ErrStore)
		require.LessOrEqual(t, time.Since(began), 3*letterWriteLimit)
		require.Equal(t, n, d.Stats().Unwritten, "what was refused is not owed")

		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err = d.close(ctx)
		require.ErrorIs(t, err, ErrStore)
		require.ErrorContains(t, err, fmt.Sprintf("changes of %d letters", n))

		close(release)
		require.NoError(t, d.close(t.Context()))
		require.Len(t, s.ids(), n-2)
		for _, l := range d.List(LetterFilter{}) {
			require.Equal(t, l, s.get(l.ID))
		}
		require.Zero(t, d.Stats().Unwritten)
		require.EqualValues(t, letterWriters, d.Stats().StoreFailures, "a write that came in the end failed once")
		dlqConserved(t, d)
	})
}

// What Close says is not in the store is what is not there when it returns.
func TestDLQStore_CloseCountsWhatIsLeftWhenItReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 40
		s := newShelf()
		p := s.open()
		d := mustDLQ(t, DLQConfig{Store: p})
		for i := range n {
			require.NoError(t, d.Add(Letter{ID: fmt.Sprint(i), Operation: "op", Key: fmt.Sprint("k", i)}))
		}
		release := make(chan struct{})
		p.set(func(_ context.Context, _, id string, effect func()) error {
			if id == "0" {
				<-release
			}
			effect()
			return nil
		})
		for i := range n {
			require.NoError(t, d.Requeue(fmt.Sprint(i)))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := d.close(ctx)
		require.ErrorContains(t, err, "changes of 1 letters")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		close(release)
		require.NoError(t, d.close(t.Context()))
	})
}

// A write that fails when its time is long over was reported when that was so, and is tried again all the same.
func TestDLQStore_AWriteThatFailsLateIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		p := s.open()
		d := mustDLQ(t, DLQConfig{Store: p})
		require.NoError(t, d.Add(Letter{ID: "x", Operation: "op", Key: "k"}))
		p.set(func(_ context.Context, _, _ string, effect func()) error {
			if d.Stats().StoreFailures == 0 {
				time.Sleep(letterWriteLimit + time.Second)
				return errShelf
			}
			effect()
			return nil
		})
		stop := dlqRun(t, d)
		defer stop()
		d.settle("k", keyNews{verdict: keyDone}) // the queue is empty: only the removal is left to be done
		time.Sleep(letterWriteLimit + 3*time.Second)
		require.Empty(t, s.ids())
		require.EqualValues(t, 1, d.Stats().StoreFailures)
	})
}

// Why something is not in the store is said as long as it is known of one letter.
func TestDLQStore_CloseSaysWhyItIsNotThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 2 * letterWriters
		d, _, release := stuckStore(t, n, DLQConfig{})
		p, _ := d.cfg.Store.(*shelfStore)
		p.set(func(_ context.Context, _, id string, _ func()) error {
			if id == "0" {
				return errShelf
			}
			<-release
			return nil
		})
		for i := range n {
			require.NoError(t, d.Requeue(fmt.Sprint(i)))
		}
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, d.close(ctx), errShelf)
		p.set(nil)
		close(release)
		require.NoError(t, d.close(t.Context()))
	})
}

// Whoever waits for a change that is in the store hears so, whatever became of the changes after it.
func TestDLQStore_ALaterChangeThatFailsTakesNothingBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newShelf().open()
		d := mustDLQ(t, DLQConfig{Store: p})
		require.NoError(t, d.Add(Letter{ID: "x", Operation: "op"}))
		require.NoError(t, d.Requeue("x"))
		onDisk(t, d)
		first := d.box.ofID("x").noted
		p.set(failing)
		require.NoError(t, d.Requeue("x"))
		require.NoError(t, d.journal.await(t.Context(), "x", first))
		synctest.Wait()
		require.NoError(t, d.journal.await(t.Context(), "x", first))
		require.ErrorIs(t, d.journal.await(t.Context(), "x", d.box.ofID("x").noted), errShelf)
	})
}
