package resilience

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// lettersWorld is one run of the simulation: processes that come and go over one shelf.
type lettersWorld struct {
	t     *testing.T
	rng   *rand.Rand // of the steps, which are one after the other
	shelf *shelf
	limit int

	mu     sync.Mutex
	faults *rand.Rand      // of what happens at the same time
	bad    bool            // the store has faults
	owned  map[string]bool // letters whose caller was told so, and of which nobody heard that they are gone
	tried  map[string]bool // every letter that was ever put

	store *shelfStore
	d     *DLQ
	rt    http.RoundTripper
	stop  func()
	calls sync.WaitGroup
}

func (w *lettersWorld) chance(percent int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.faults.IntN(100) < percent
}

func (w *lettersWorld) draw(n int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.faults.IntN(n)
}

// fault is a disk that takes its time, and sometimes fails: before, after, for long, or by a panic.
func (w *lettersWorld) fault(ctx context.Context, op, id string, effect func()) error {
	w.mu.Lock()
	bad := w.bad
	if op == "put" {
		w.tried[id] = true
	}
	w.mu.Unlock()
	time.Sleep(time.Duration(w.draw(40)) * time.Millisecond)
	kind := 99
	if bad {
		kind = w.draw(10)
	}
	switch kind {
	case 0, 1:
		return errShelf
	case 2:
		effect()
		return errShelf
	case 3:
		panic("the driver")
	case 4:
		<-ctx.Done()
		return ctx.Err()
	case 5:
		time.Sleep(20 * time.Second) // whatever its context says
		effect()
		return errShelf
	}
	effect()
	time.Sleep(time.Duration(w.draw(40)) * time.Millisecond)
	return nil
}

func (w *lettersWorld) start() {
	w.store = w.shelf.open()
	w.store.set(w.fault)
	store, live := w.store, func(f func()) {
		w.mu.Lock()
		defer w.mu.Unlock()
		f()
	}
	d, err := NewDLQ(DLQConfig{
		Store: store, MaxLetters: w.limit, Overflow: []Overflow{OverflowRejectNew, OverflowDropOldest, OverflowBlock}[w.rng.IntN(3)],
		OnDrop: func(Letter) {}, Attempts: 3, Rate: -1,
		OnEvent: func(e Event) {
			if store.isDead() {
				return
			}
			switch e.Kind {
			case EventLetterDone, EventLetterDeleted, EventLetterDropped:
				live(func() { delete(w.owned, e.LetterID) })
			}
		},
	})
	require.NoError(w.t, err)
	d.reconcile = func(context.Context, string) keyNews { return newsNow(keyVerdict(w.draw(3))) }
	w.d, w.rt = d, d.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
		time.Sleep(time.Duration(w.draw(30)) * time.Millisecond)
		if w.chance(15) {
			return nil, errors.New("reset")
		}
		return dlqStatus([]int{201, 201, 400, 409, 429, 500, 503, 503}[w.draw(8)])(0, req)
	}))
	w.stop = dlqRun(w.t, d)
}

func (p *shelfStore) isDead() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dead
}

// own notes that somebody was told that the queue owns a letter, if he was told it by a process that lived.
func (w *lettersWorld) own(store *shelfStore, d *DLQ, id string) {
	if store.isDead() {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, there := d.Get(id); there { // else it has left already, and said so
		w.owned[id] = true
	}
}

func (w *lettersWorld) step() {
	d, rt, store := w.d, w.rt, w.store
	key := fmt.Sprint("k", w.rng.IntN(30))
	switch w.rng.IntN(12) {
	case 0, 1, 2, 3:
		method, limit := []string{"PUT", "POST"}[w.rng.IntN(2)], time.Duration(w.rng.IntN(3000))*time.Millisecond
		call := Call{Operation: "op", Resource: fmt.Sprint("r", w.rng.IntN(6))}
		w.calls.Go(func() {
			ctx, cancel := context.WithTimeout(WithCall(context.Background(), call), limit)
			defer cancel()
			resp, err := dlqCall(ctx, rt, method, key)
			var e *Error
			switch {
			case err == nil:
				_ = resp.Body.Close()
			case errors.Is(err, ErrParked) && errors.As(err, &e):
				require.NotErrorIs(w.t, err, ErrLettersFull)
				w.own(store, d, e.LetterID)
			}
		})
	case 4, 5:
		id := fmt.Sprint("added-", w.rng.Int64())
		body := make([]byte, w.rng.IntN(5000))
		w.calls.Go(func() {
			if d.Add(Letter{ID: id, Operation: "op", Method: "PUT", URL: "http://h/", Key: key, Body: body}) == nil {
				w.own(store, d, id)
			}
		})
	case 6:
		from := mustDLQ(w.t, DLQConfig{})
		for i := range 3 {
			l := Letter{Operation: "op", Method: "PUT", URL: "http://h/", Key: fmt.Sprint(key, "-", i)}
			if i == 0 { // one that may be here already, and that something is known about
				l.Key, l.InDoubt = key, true
			}
			require.NoError(w.t, from.Add(l))
		}
		file := dlqExport(w.t, from)
		w.calls.Go(func() {
			if d.Import(bytes.NewReader(file)) != nil {
				return
			}
			for _, l := range from.List(LetterFilter{}) {
				w.own(store, d, l.ID)
			}
		})
	case 7, 8:
		if all := d.List(LetterFilter{}); len(all) > 0 {
			id := all[w.rng.IntN(len(all))].ID
			remove := w.rng.IntN(2) == 0
			w.calls.Go(func() {
				if remove {
					_ = d.Delete(id, "")
				} else {
					_ = d.Requeue(id)
				}
			})
		}
	case 9:
		d.settle(key, newsNow(keyVerdict(w.rng.IntN(3))))
	case 10:
		w.mu.Lock()
		w.bad = w.rng.IntN(3) == 0
		w.mu.Unlock()
	case 11:
		time.Sleep(time.Duration(w.rng.IntN(60)) * time.Second)
	}
	time.Sleep(time.Duration(w.rng.IntN(30)) * time.Millisecond)
	dlqConservedNow(w.t, d)
}

// dlqConservedNow is dlqConserved for a queue that is at work.
func dlqConservedNow(t testing.TB, d *DLQ) {
	t.Helper()
	s := d.Stats()
	require.Equal(t, s.Admitted, s.Acked+s.Deleted+s.Dropped+uint64(s.Letters), "%+v", s)
	require.Equal(t, s.Letters, s.Waiting+s.InDoubt+s.Leased+s.Parked+s.Superseded, "%+v", s)
}

// crash ends the process in the middle of whatever it does, and starts the next one.
func (w *lettersWorld) crash() {
	d := w.d
	synctest.Wait() // what was to be said is said; writes and calls are in the middle
	w.store.kill()
	require.False(w.t, w.store.twice.Load(), "two writes of one letter at a time")
	w.start()
	w.mu.Lock()
	defer w.mu.Unlock()
	for id := range w.owned {
		_, there := w.d.Get(id)
		require.True(w.t, there, "of %d letters whose callers were told that they are parked, %s is gone", len(w.owned), id)
	}
	for _, l := range w.d.List(LetterFilter{}) {
		require.True(w.t, w.tried[l.ID], "a letter from nowhere")
		w.owned[l.ID] = true // from now on it is
	}
	dlqConservedNow(w.t, w.d)
	w.calls.Go(func() { // the ghost of the old process must be gone when the bubble ends
		ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
		defer cancel()
		_ = d.close(ctx)
	})
}

// quiet lets everything come to an end, and compares what is in the queue with what is in the store.
func (w *lettersWorld) quiet() {
	w.mu.Lock()
	w.bad = false
	w.mu.Unlock()
	w.calls.Wait()
	w.stop()
	time.Sleep(time.Minute)
	require.NoError(w.t, w.d.close(w.t.Context()))
	dlqConserved(w.t, w.d)
	require.False(w.t, w.store.twice.Load(), "two writes of one letter at a time")
	require.Zero(w.t, w.d.Stats().Unwritten)
	require.Zero(w.t, w.d.box.coming)
	require.Zero(w.t, w.d.box.comingBytes)
	require.Zero(w.t, w.d.journal.owed)
	list := w.d.List(LetterFilter{})
	require.Len(w.t, w.shelf.ids(), len(list))
	for _, l := range list {
		require.Equal(w.t, l, w.shelf.get(l.ID), "the last state is in the store")
	}
	again := mustDLQ(w.t, DLQConfig{Store: w.shelf.open()})
	require.Len(w.t, again.List(LetterFilter{}), len(list))
	for _, l := range list {
		got, _ := again.Get(l.ID)
		require.Equal(w.t, l, got, "and a new queue has it")
	}
}

// D1 and D6, with a store that may fail: nothing gets lost without a word, and after a crash every letter is there that
// somebody was told of and nobody was told to be gone.
func TestSim_LettersSurvive(t *testing.T) {
	seeds := uint64(40)
	if n, err := strconv.ParseUint(os.Getenv("SIM_SEEDS"), 10, 32); err == nil && n > 0 {
		seeds = n
	}
	for seed := range seeds {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &lettersWorld{
					t: t, rng: rand.New(rand.NewPCG(seed, 1)), faults: rand.New(rand.NewPCG(seed, 2)), shelf: newShelf(),
					owned: map[string]bool{}, tried: map[string]bool{},
				}
				w.limit = 5 + w.rng.IntN(30)
				w.start()
				for range 6 {
					for range 5 + w.rng.IntN(40) {
						w.step()
					}
					if w.rng.IntN(3) > 0 {
						old := w.stop
						w.crash()
						w.calls.Go(old)
					}
				}
				w.quiet()
			})
		})
	}
}
