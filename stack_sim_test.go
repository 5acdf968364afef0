package resilience

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// stackSim is one history of a whole stack: processes that come and go over one key store and one store of letters, callers
// who do everything that callers do, and another side that does everything that another side may do. What really rang is
// known here, and only here.
type stackSim struct {
	t    *testing.T
	rng  *rand.Rand // of the steps
	from time.Time

	mu    sync.Mutex
	dice  *rand.Rand // of what happens at the same time
	calm  bool       // nothing fails any more
	truth map[string]*truth
	next  int

	keys    *MemoryStore
	shared  bool // two processes live at a time
	moved   bool // letters went from one queue to another
	shelves []*shelf
	all     []*simProcess
	p       *simProcess // whose turn it is
	callers sync.WaitGroup
	log     []string
}

// truth is what really became of the request for one call: by the body's id.
type truth struct {
	rings   int // took effect
	sends   int // reached the transport
	pending int // accepted, and may still take effect
	owner   string
}

// simProcess is one life.
type simProcess struct {
	place  int
	stack  *Stack
	rt     http.RoundTripper
	http   *http.Client
	keys   *simKeys
	shelf  *shelfStore
	events map[string][]Event // by layer
	done   map[string]bool    // letters that left the queue, and it was told
	dead   bool               // killed: nothing that it does reaches the world
	stop   func()
	calls  int
}

func (w *stackSim) roll(n int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.dice.IntN(n)
}

func (w *stackSim) isCalm() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.calm
}

func (w *stackSim) notef(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.log = append(w.log, fmt.Sprintf("%8.3f ", time.Since(w.from).Seconds())+fmt.Sprintf(format, args...))
}

func (w *stackSim) failf(format string, args ...any) {
	w.notef("VIOLATION "+format, args...)
	w.t.Errorf(format, args...)
}

var errSimStore = errors.New("store: no")

func (simBroken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func (w *stackSim) start(place int) {
	p := &simProcess{place: place, events: map[string][]Event{}, done: map[string]bool{}}
	p.keys = &simKeys{MemoryStore: w.keys, w: w, bad: []int{0, 0, 3, 10}[w.rng.IntN(4)]}
	p.shelf = w.shelves[place].open()
	p.shelf.set(func(ctx context.Context, _, _ string, effect func()) error {
		time.Sleep(time.Duration(w.roll(30)) * time.Millisecond)
		if !w.isCalm() && w.roll(100) < p.keys.bad {
			switch w.roll(3) {
			case 0:
				return errShelf
			case 1:
				effect()
				return errShelf
			case 2:
				<-ctx.Done()
				return ctx.Err()
			}
		}
		effect()
		return nil
	})
	cfg := Config{
		Idempotency: IdempotencyConfig{Store: p.keys, Reconcile: simFinder{w}},
		DLQ: DLQConfig{
			Store: p.shelf, MaxLetters: []int{0, 3, 20}[w.rng.IntN(3)], KeepUnnamed: w.rng.IntN(2) == 0,
			Overflow: []Overflow{OverflowRejectNew, OverflowBlock, OverflowDropOldest}[w.rng.IntN(3)], OnDrop: func(Letter) {},
		},
		Retry:    RetryConfig{Max: []int{0, 5, -1}[w.rng.IntN(3)], Ratio: []float64{0, -1}[w.rng.IntN(2)]},
		Bulkhead: simBounds(w.rng),
		Breaker:  BreakerConfig{OpenFor: time.Duration(1+w.rng.IntN(20)) * time.Second, Trials: 1 + w.rng.IntN(3), MinCalls: 3 + w.rng.IntN(10)},
		Timeout:  TimeoutConfig{Cooperative: false},
		Health: HealthConfig{Probe: func(ctx context.Context) error {
			switch w.roll(8) {
			case 0:
				panic("probe")
			case 1:
				<-ctx.Done()
				return ctx.Err()
			case 2:
				time.Sleep(time.Duration(w.roll(30)) * time.Second)
			case 3:
				return errors.New("no")
			case 4:
				runtime.Goexit()
			}
			return nil
		}},
		OnEvent: func(e Event) {
			w.mu.Lock()
			defer w.mu.Unlock()
			p.events[e.Layer] = append(p.events[e.Layer], e)
			switch e.Kind {
			case EventLetterDone, EventLetterDeleted, EventLetterDropped:
				p.done[e.LetterID] = true
			}
		},
	}
	if w.rng.IntN(3) == 0 {
		cfg.Breaker.Key = func(c Call) string { return c.Operation }
	}
	if w.rng.IntN(3) == 0 {
		cfg.Timeout.Request, cfg.Timeout.Total = 3*time.Second, -1
	}
	stack, err := New(cfg)
	require.NoError(w.t, err)
	p.stack = stack
	p.rt = stack.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) { return w.answer(p, req) }))
	p.http = &http.Client{Transport: p.rt, Timeout: 7 * time.Second}
	w.all[place], w.p = p, p
	w.run(p)
	w.notef("START")
}

func (w *stackSim) run(p *simProcess) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = p.stack.Run(ctx) }()
	p.stop = func() { cancel(); <-ended }
}

func simBounds(rng *rand.Rand) BulkheadConfig {
	c := BulkheadConfig{Queue: []int{0, -1, 3}[rng.IntN(3)], Total: []int{0, 1, 4}[rng.IntN(3)]}
	if rng.IntN(3) == 0 {
		c.MaxWait = time.Duration(rng.IntN(5000)+1) * time.Millisecond
	}
	return c
}

var errSimCause = errors.New("the caller hung up")

const simGrace = 1100 * time.Millisecond // the letter's store may take so long

func (w *stackSim) step() {
	w.p = w.all[w.rng.IntN(len(w.all))]
	p := w.p
	switch w.rng.IntN(30) {
	case 0:
		p.stack.Breaker.ForceOpen()
	case 1:
		p.stack.Breaker.ForceClose()
	case 2, 3:
		p.stack.Breaker.Reset()
	case 4:
		if err := p.stack.Bulkhead.Resize(simBounds(w.rng)); err != nil {
			w.failf("resize: %v", err)
		}
	case 5:
		w.hand(w.pickKey())
	case 6:
		w.observe(w.pickKey())
	case 7:
		if all := p.stack.DLQ.List(LetterFilter{}); len(all) > 0 {
			id := all[w.rng.IntN(len(all))].ID
			w.notef("requeue")
			_ = p.stack.DLQ.Requeue(id)
		}
	case 8:
		w.callers.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Duration(w.roll(30)+1)*time.Second)
			defer cancel()
			p.stack.DLQ.Redrive(ctx)
		})
	case 9:
		_ = p.stack.DLQ.Export(io.Discard)
	case 10:
		w.health(p)
	case 11:
		p.stop()
		w.callers.Go(func() { time.Sleep(time.Second) })
		w.run(p)
	case 12:
		w.check(p)
	case 13:
		if w.rng.IntN(4) == 0 {
			w.restart()
		}
	case 14:
		if w.rng.IntN(3) == 0 { // letters of one go to the other, or come back to where they were
			var file bytes.Buffer
			_ = p.stack.DLQ.Export(&file)
			to := w.all[w.rng.IntN(len(w.all))]
			w.moved = true
			w.callers.Go(func() { w.notef("import %v", to.stack.DLQ.Import(&file)) })
		}
	case 15, 16, 17:
		w.do()
	default:
		w.call()
	}
	if w.rng.IntN(3) == 0 {
		time.Sleep(time.Duration(w.rng.IntN(2500)) * time.Millisecond)
	}
	if w.rng.IntN(60) == 0 {
		time.Sleep(time.Duration(w.rng.IntN(120)) * time.Second)
	}
}

func (w *stackSim) pickKey() string {
	if w.rng.IntN(2) == 0 {
		return fmt.Sprint("once-shared-", w.rng.IntN(8))
	}
	return fmt.Sprint("once-own-", 1+w.rng.IntN(max(w.next, 1)))
}

// hand is an operator who knows the truth.
func (w *stackSim) hand(key string) {
	p := w.p
	w.callers.Go(func() {
		id := p.stack.Idempotency.ID(key)
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		rec, err := p.stack.Idempotency.Lookup(ctx, key)
		if err != nil || rec.State != KeyInDoubt || time.Since(rec.Sent) < 10*time.Minute {
			return
		}
		w.mu.Lock()
		t := *w.of(id)
		w.mu.Unlock()
		if t.pending > 0 {
			return
		}
		v := Resolution{State: KeyNotApplied, Reason: "sim"}
		if t.rings > 0 {
			v.State, v.CallID = KeyConfirmed, simCallID(id, 1)
		}
		w.notef("resolve %s %v", key, v.State)
		_ = p.stack.Idempotency.Resolve(ctx, key, v)
	})
}

func (w *stackSim) observe(key string) {
	p := w.p
	w.callers.Go(func() {
		id := p.stack.Idempotency.ID(key)
		w.mu.Lock()
		rings := w.of(id).rings
		w.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if rings > 0 {
			w.notef("observe %s", key)
			_ = p.stack.Idempotency.Observe(ctx, w.evidence(id, rings))
		}
	})
}

// restart ends the process, well or badly, and starts the next one over the same stores.
func (w *stackSim) restart() {
	p := w.p
	if w.rng.IntN(2) == 0 {
		w.notef("CRASH")
		synctest.Wait()
		w.mu.Lock()
		p.dead = true
		w.mu.Unlock()
		p.keys.kill()
		p.shelf.kill()
		w.callers.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
			defer cancel()
			_ = p.stack.Close(ctx)
		})
	} else {
		w.close(p, time.Duration(w.rng.IntN(60))*time.Second)
		p.keys.kill() // what is left of it is the ghost of a process
		p.shelf.kill()
		w.mu.Lock()
		p.dead = true
		w.mu.Unlock()
	}
	w.start(p.place)
}

func (w *stackSim) close(p *simProcess, patience time.Duration) {
	w.notef("CLOSE %s", patience)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	began := time.Now()
	err := p.stack.Close(ctx)
	w.notef("closed: %v", err)
	if took := time.Since(began); took > patience+simGrace {
		w.failf("Close took %s of %s", took, patience)
	}
}

func stackSimSeeds(t *testing.T) (from, to uint64) {
	if n, err := strconv.ParseUint(os.Getenv("SIM_SEED"), 10, 64); err == nil {
		return n, n + 1
	}
	if n, err := strconv.ParseUint(os.Getenv("SIM_SEEDS"), 10, 64); err == nil && n > 0 {
		first, _ := strconv.ParseUint(os.Getenv("SIM_FROM"), 10, 64)
		return first, first + n
	}
	if testing.Short() {
		return 0, 5
	}
	return 0, 20
}

func TestSim_AWholeStackKeepsItsPromises(t *testing.T) {
	from, to := stackSimSeeds(t)
	for seed := from; seed < to; seed++ {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			var w *stackSim
			defer func() {
				if dir := os.Getenv("SIM_LOG"); t.Failed() && dir != "" {
					_ = os.WriteFile(filepath.Join(dir, fmt.Sprint("sim-", seed, ".log")), []byte(strings.Join(w.log, "\n")), 0o600)
				}
			}()
			synctest.Test(t, func(t *testing.T) {
				w = &stackSim{
					t: t, rng: rand.New(rand.NewPCG(seed, 1)), dice: rand.New(rand.NewPCG(seed, 2)), from: time.Now(),
					truth: map[string]*truth{}, keys: NewMemoryStore(0),
				}
				w.shared = w.rng.IntN(3) == 0
				for place := range 1 + w.rng.IntN(2) {
					if place == 0 || w.shared {
						w.shelves, w.all = append(w.shelves, newShelf()), append(w.all, nil)
						w.start(place)
					}
				}
				for range 50 + w.rng.IntN(250) {
					w.step()
				}
				w.end()
			})
		})
	}
}
