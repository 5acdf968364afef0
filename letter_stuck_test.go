package resilience

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// One letter that the store never takes does not keep the others from being tried again.
func TestLetter_ALetterTheStoreNeverTakesDoesNotStarveTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sh := newShelf()
		store := sh.open()
		failOnce := true
		store.set(func(_ context.Context, op, id string, effect func()) error {
			if id == "good" && op == "remove" && failOnce {
				failOnce = false
				return errShelf
			}
			if strings.HasPrefix(id, "bad") {
				return errShelf
			}
			effect()
			return nil
		})
		d := mustDLQ(t, DLQConfig{Store: store})
		stop := dlqRun(t, d)
		require.NoError(t, d.Add(Letter{ID: "good", Operation: "op", Key: "k"}))
		require.Error(t, d.Delete("good", "x"))
		for i := range 600 { // ten minutes
			_ = d.Add(Letter{ID: fmt.Sprint("bad", i), Operation: "op"})
			time.Sleep(time.Second)
		}
		n := len(sh.ids())
		stop()
		store.set(nil)
		_ = d.close(t.Context())
		require.Zero(t, n, "nothing tried the removal again in ten minutes")
	})
}

// Close says what is not in the store also where a redrive hangs.
func TestLetter_CloseSaysWhatIsNotInTheStoreThoughARedriveHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sh := newShelf()
		store := sh.open()
		d := mustDLQ(t, DLQConfig{Store: store})
		release := make(chan struct{})
		d.Handle("hangs", func(context.Context, Letter) error { <-release; return nil })
		require.NoError(t, d.Add(Letter{ID: "hangs", Operation: "hangs", Next: time.Now()}))
		require.NoError(t, d.Add(Letter{ID: "other", Operation: "op"}))
		go d.Redrive(context.Background())
		synctest.Wait()
		store.set(failing)
		require.Error(t, d.Delete("other", ""))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := d.close(ctx)
		close(release)
		require.ErrorIs(t, err, ErrStore)
	})
}

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

// A caller waits for its own change, not for the changes that came after it, and no shorter either.
func TestDLQStore_EachChangeIsWaitedForByItself(t *testing.T) {
	for _, fails := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			p := newShelf().open()
			d := mustDLQ(t, DLQConfig{Store: p})
			require.NoError(t, d.Add(Letter{ID: "x", Operation: "op"}))
			onDisk(t, d)
			first := true
			p.set(func(_ context.Context, _, _ string, effect func()) error {
				failing := fails && first
				first = false
				time.Sleep(time.Second)
				if failing {
					return errShelf
				}
				effect()
				return nil
			})
			began := time.Now()
			type told struct {
				err error
				at  time.Duration
			}
			written := make(chan told, 2)
			for range cap(written) {
				require.NoError(t, d.Requeue("x"))
				seq := d.box.ofID("x").noted
				go func() {
					err := d.journal.await(t.Context(), "x", seq)
					written <- told{err, time.Since(began)}
				}()
				synctest.Wait()
			}
			one, two := <-written, <-written
			require.Equal(t, fails, one.err != nil)
			require.Equal(t, time.Second, one.at)
			require.Equal(t, told{nil, 2 * time.Second}, two)
		})
	}
}

// A write that nobody waits for any more is ended: a store need not go on with it.
func TestDLQStore_AWriteThatWasGivenUpIsCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newShelf().open()
		d := mustDLQ(t, DLQConfig{Store: p})
		rt := d.Wrap(&dlqWorld{answer: dlqError(errDLQRefused)})
		began := time.Now()
		ended := make(chan time.Duration, 1)
		p.set(func(ctx context.Context, op, _ string, effect func()) error {
			if op == "put" {
				<-ctx.Done()
				ended <- time.Since(began)
				return ctx.Err()
			}
			effect()
			return nil
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		_, err := dlqCall(ctx, rt, http.MethodPut, "k")
		require.ErrorIs(t, err, ErrLettersFull)
		require.Equal(t, letterGrace, <-ended)
		onDisk(t, d)
	})
}

// Room that a removal held which the store had not taken goes to who waits for it, when the store has taken it.
func TestDLQStore_RoomComesBackWithARemoval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newShelf().open()
		d := mustDLQ(t, DLQConfig{Store: p, MaxLetters: 1, Overflow: OverflowBlock})
		require.NoError(t, d.Add(Letter{ID: "x", Operation: "op"}))
		p.set(failing)
		require.ErrorIs(t, d.Delete("x", ""), ErrStore)
		rt := d.Wrap(&dlqWorld{answer: dlqError(errDLQRefused)})
		told := make(chan error, 1)
		go func() {
			_, err := dlqCall(t.Context(), rt, http.MethodPut, "k")
			told <- err
		}()
		synctest.Wait()
		require.Equal(t, 1, d.Stats().Blocked)
		p.set(nil)
		stop := dlqRun(t, d)
		defer stop()
		time.Sleep(letterRetryFirst)
		synctest.Wait()
		require.Zero(t, d.Stats().Blocked)
		require.ErrorIs(t, <-told, ErrParked)
	})
}

// However many writes fail meanwhile, what failed first is tried again when it was to be.
func TestDLQStore_OthersThatFailPutNothingOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		p := s.open()
		d := mustDLQ(t, DLQConfig{Store: p})
		require.NoError(t, d.Add(Letter{ID: "x", Operation: "op"}))
		p.set(failing)
		require.ErrorIs(t, d.Delete("x", ""), ErrStore)
		p.set(func(_ context.Context, op, _ string, effect func()) error {
			if op == "put" {
				return errShelf
			}
			effect()
			return nil
		})
		for range 5 {
			time.Sleep(letterRetryFirst / 4)
			require.ErrorIs(t, d.Add(Letter{Operation: "op"}), ErrLettersFull)
			d.next(time.Now()) // as Run does
			synctest.Wait()
		}
		require.Empty(t, s.ids())
	})
}

// What failed is tried again after 1 s, 2 s, 4 s and so on up to 30 s, and after 1 s again when a write has succeeded.
func TestDLQStore_BacksOffUntilAWriteSucceeds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newShelf().open()
		d := mustDLQ(t, DLQConfig{Store: p})
		var waits []int
		last := time.Now()
		p.set(func(_ context.Context, _, id string, effect func()) error {
			waits = append(waits, int(time.Since(last).Seconds()))
			last = time.Now()
			if id == "taken" {
				effect()
				return nil
			}
			return errShelf
		})
		note := func(id string) {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.journal.note(id, &Letter{ID: id}, true)
		}
		pass := func(seconds int) {
			for range seconds {
				synctest.Wait()
				d.next(time.Now())
				synctest.Wait()
				time.Sleep(time.Second)
			}
		}
		note("refused")
		pass(100)
		require.Equal(t, []int{0, 1, 2, 4, 8, 16, 30, 30}, waits)
		note("taken")
		pass(60)
		require.Equal(t, []int{9, 21, 1, 2, 4, 8, 16}, waits[8:])
	})
}

// An import, too, waits no longer for a write than the write may take.
func TestDLQStore_ImportDoesNotWaitForAWriteThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, _, release := stuckStore(t, 0, DLQConfig{})
		began := time.Now()
		require.ErrorIs(t, d.Import(bytes.NewReader(dlqExport(t, dlqVaried(t)))), errSlowStore)
		require.Equal(t, letterWriteLimit, time.Since(began))
		require.Zero(t, d.Len())
		close(release)
		onDisk(t, d)
	})
}

// A removal that hangs holds its room as one that failed does; a letter that was refused holds none.
func TestDLQStore_RoomOfAWriteThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, s, release := stuckStore(t, 1, DLQConfig{MaxLetters: 1})
		require.ErrorIs(t, d.Delete("0", ""), ErrStore)
		synctest.Wait()
		began := time.Now()
		require.ErrorIs(t, d.Add(Letter{Operation: "op"}), ErrLettersFull)
		require.Zero(t, time.Since(began), "there is no room to wait in")
		close(release)
		onDisk(t, d)
		require.Empty(t, s.ids())

		release = make(chan struct{})
		p, _ := d.cfg.Store.(*shelfStore)
		p.set(func(_ context.Context, _, id string, effect func()) error {
			if id != "fits" {
				<-release
			}
			effect()
			return nil
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		_, err := dlqCall(ctx, d.Wrap(&dlqWorld{answer: dlqError(errDLQRefused)}), http.MethodPut, "k")
		require.ErrorIs(t, err, ErrLettersFull)
		time.Sleep(letterWriteLimit)
		require.EqualValues(t, 2, d.Stats().StoreFailures)
		require.NoError(t, d.Add(Letter{ID: "fits", Operation: "op"}))
		close(release)
		onDisk(t, d)
		require.Equal(t, []string{"fits"}, s.ids())
	})
}

// A letter that was loaded and is deleted before anything was written of it is in the store, and must go there too.
func TestDLQStore_AMergedLetterThatIsDeletedAtOnceIsRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		now := time.Now()
		for i, id := range []string{"older", "newer"} {
			s.letters[id] = Letter{ID: id, Operation: "op", Key: "k", First: now, Last: now.Add(time.Duration(i)), Next: now.Add(time.Hour)}
		}
		d := mustDLQ(t, DLQConfig{Store: s.open()})
		require.NoError(t, d.Delete("newer", ""))
		onDisk(t, d)
		require.Empty(t, s.ids())
	})
}
