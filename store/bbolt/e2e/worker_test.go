//go:build unix

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/retell-resilience/resilience"
	"github.com/retell-resilience/resilience/retell"
	boltstore "github.com/retell-resilience/resilience/store/bbolt"
)

// The worker is this test binary again, with these two in its environment: a service that makes the calls it is told to
// make. It reads orders from stdin and says what became of them on stdout, one JSON value a line.
const (
	dirEnv = "E2E_DIR"
	urlEnv = "E2E_URL"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(dirEnv); dir != "" {
		if err := work(dir, os.Getenv(urlEnv)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

const fromNumber = "+15550001000"

func keyOf(job int) string    { return fmt.Sprintf("reminder:%04d", job) }
func numberOf(job int) string { return fmt.Sprintf("+1555100%04d", job) }

// order is a line of stdin.
type order struct {
	Seq      int
	Job      int           `json:",omitempty"`
	Patience time.Duration `json:",omitempty"` // after which the caller hangs up; 0: never
	Report   int           `json:",omitempty"` // not a call: say how that many jobs stand
}

// line is a line of stdout: one of these.
type line struct {
	Word   *word   `json:",omitempty"`
	Report *report `json:",omitempty"`
	Closed string  `json:",omitempty"` // what Close said
}

// word is what a caller was told.
type word struct {
	Seq, Job, Worker         int
	CallID                   string `json:",omitempty"`
	Replayed                 bool   `json:",omitempty"`
	InDoubt, NotSent, Parked bool   `json:",omitempty"`
	Status                   int    `json:",omitempty"` // of an answer that is no success
	Error                    string `json:",omitempty"`
}

// report is how jobs stand in the worker.
type report struct {
	Seq     int
	States  []resilience.KeyState
	Waiting int // letters that will be sent, or whose call is known to have happened
	Stats   string
}

const (
	storeFile   = "keys.db"
	lettersFile = "letters.jsonl"
)

// workerConfig is Retell's with limits short enough for a test.
func workerConfig(store resilience.KeyStore) resilience.Config {
	cfg := retell.Config()
	cfg.Describe = func(req *http.Request) resilience.Call {
		c := retell.Describe(req)
		switch c.Operation {
		case "create-phone-call":
			c.Limit, c.Budget = 750*time.Millisecond, 5*time.Second
		case "list-calls":
			c.Limit, c.Budget = 5*time.Second, 10*time.Second
		}
		return c
	}
	cfg.Idempotency.Store = store
	cfg.Bulkhead = resilience.BulkheadConfig{Critical: 16, Normal: 2, Bulk: 4, Queue: 60}
	// The faults alone are a third of all answers: it opens now and then, not all the time.
	cfg.Breaker = resilience.BreakerConfig{FailureRate: 0.6, MinCalls: 20, Window: 2 * time.Second, OpenFor: 300 * time.Millisecond, MaxOpenFor: time.Second, Ramp: -1}
	cfg.Retry = resilience.RetryConfig{Base: 50 * time.Millisecond}
	cfg.DLQ.Rate, cfg.DLQ.Concurrency, cfg.DLQ.Base, cfg.DLQ.Cap = -1, 4, 500*time.Millisecond, 5*time.Second
	return cfg
}

type worker struct {
	client *retell.Client
	dir    string

	mu  sync.Mutex
	out *json.Encoder

	callers sync.WaitGroup
}

// work is the life of the worker: it ends by SIGTERM, or when nobody holds its stdin any more.
func work(dir, url string) error {
	store, err := boltstore.Open(filepath.Join(dir, storeFile), boltstore.Options{LockTimeout: 10 * time.Second})
	if err != nil {
		return err
	}
	client, err := retell.New("key_test", retell.WithBaseURL(url), retell.WithConfig(workerConfig(store)))
	if err != nil {
		return err
	}
	w := &worker{client: client, dir: dir, out: json.NewEncoder(os.Stdout)}
	if err := w.importLetters(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- client.Stack().Run(context.Background()) }()
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	orders := readOrders()
	for open := true; open; {
		select {
		case o, ok := <-orders:
			if open = ok; ok {
				w.obey(o)
			}
		case <-stop:
			open = false
		}
	}
	w.shutDown()
	return errors.Join(<-ended, w.exportLetters(), store.Close())
}

func readOrders() <-chan order {
	orders := make(chan order)
	go func() {
		defer close(orders)
		in := json.NewDecoder(bufio.NewReader(os.Stdin))
		for {
			var o order
			if in.Decode(&o) != nil {
				return
			}
			orders <- o
		}
	}()
	return orders
}

func (w *worker) say(l line) {
	w.mu.Lock()
	defer w.mu.Unlock()
	_ = w.out.Encode(l) // nobody hears it when the driver is gone
}

func (w *worker) obey(o order) {
	if o.Report > 0 {
		w.report(o)
		return
	}
	w.callers.Go(func() {
		ctx := context.Background()
		if o.Patience > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, o.Patience)
			defer cancel()
		}
		call, err := w.client.Calls.CreatePhoneCall(ctx, retell.CreatePhoneCallParams{
			FromNumber: fromNumber, ToNumber: numberOf(o.Job),
		}, retell.IdempotencyKey(keyOf(o.Job)))
		said := word{
			Seq: o.Seq, Job: o.Job,
			InDoubt: resilience.InDoubt(err), NotSent: resilience.NotSent(err), Parked: errors.Is(err, resilience.ErrParked),
		}
		var answer *retell.Error
		switch {
		case err == nil:
			said.CallID, said.Replayed = call.CallID, call.Replayed
		case errors.As(err, &answer):
			said.Status, said.Error = answer.StatusCode, err.Error()
		default:
			said.Error = err.Error()
		}
		w.say(line{Word: &said})
	})
}

func (w *worker) report(o order) {
	stack := w.client.Stack()
	r := &report{Seq: o.Seq, States: make([]resilience.KeyState, o.Report)}
	for job := range r.States {
		rec, err := stack.Idempotency.Lookup(context.Background(), keyOf(job))
		if err != nil {
			rec.State = resilience.KeyClaimed // not settled: the driver asks again
		}
		r.States[job] = rec.State
	}
	for _, l := range stack.DLQ.List(resilience.LetterFilter{}) {
		rec, err := stack.Idempotency.Lookup(context.Background(), l.Key)
		if err != nil || rec.State == resilience.KeyConfirmed || !l.InDoubt && !l.Parked {
			r.Waiting++
		}
	}
	s := stack.Stats()
	r.Stats = fmt.Sprintf("letters %d: waiting %d, in doubt %d, parked %d; look-ups %d, found %d, failed %d; circuit %v",
		s.DLQ.Letters, s.DLQ.Waiting, s.DLQ.InDoubt, s.DLQ.Parked, s.Idempotency.Lookups, s.Idempotency.Found,
		s.Idempotency.LookupErrors, stack.Breaker.State())
	w.say(line{Report: r})
}

// shutDown leaves less time than a hanging call takes, so that some are cut off.
func (w *worker) shutDown() {
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	said := "nothing was under way"
	if err := w.client.Close(ctx); err != nil {
		said = err.Error()
	}
	w.callers.Wait() // each hears how its call stands
	w.say(line{Closed: said})
}

func (w *worker) exportLetters() error {
	path := filepath.Join(w.dir, lettersFile)
	f, err := os.Create(path + ".new") //nolint:gosec // a folder of the test's
	if err != nil {
		return err
	}
	if err := errors.Join(w.client.Stack().DLQ.Export(f), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// importLetters takes an export over: it is then this process's, and gone with it.
func (w *worker) importLetters() error {
	path := filepath.Join(w.dir, lettersFile)
	f, err := os.Open(path) //nolint:gosec // a folder of the test's
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(w.client.Stack().DLQ.Import(f), f.Close(), os.Remove(path))
}
