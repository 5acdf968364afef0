package pgstore_test

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
	"github.com/retell-resilience/resilience/retell"
	"github.com/retell-resilience/resilience/retell/retelltest"
	pgstore "github.com/retell-resilience/resilience/store/postgres"
)

// A worker is this test binary again, with these in its environment: one instance of a service, which makes every call that
// is to be made, as if a load balancer had sent each request to every instance.
const (
	workerEnv = "PGSTORE_WORKER_DSN"
	driverEnv = "PGSTORE_WORKER_DRIVER"
	tableEnv  = "PGSTORE_WORKER_TABLE"
	urlEnv    = "PGSTORE_WORKER_URL"
)

const (
	people   = 200
	callers  = 8 // at a time, in each worker
	patience = 2 * time.Minute
)

func keyOf(n int) string    { return fmt.Sprintf("reminder:%04d", n) }
func numberOf(n int) string { return fmt.Sprintf("+1555100%04d", n) }

// workerConfig is Retell's with limits short enough for a test.
func workerConfig(store resilience.KeyStore, letters resilience.LetterStore) resilience.Config {
	cfg := retell.Config()
	cfg.Describe = func(req *http.Request) resilience.Call {
		c := retell.Describe(req)
		if c.Operation == "create-phone-call" {
			c.Limit, c.Budget = 500*time.Millisecond, 2*time.Second
		}
		return c
	}
	cfg.Idempotency.Store = store
	cfg.Breaker.MetricsOnly = true // a third of the answers are faults
	cfg.Retry.Base = 20 * time.Millisecond
	cfg.DLQ.Store = letters
	cfg.DLQ.Base, cfg.DLQ.Cap, cfg.DLQ.Rate = 2*time.Second, 4*time.Second, -1
	return cfg
}

// work is the life of a worker: it says "done" when it has asked for every call, and ends when its stdin does.
func work(dsn string) int {
	if err := callAll(dsn); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func callAll(dsn string) error {
	db, err := sql.Open(os.Getenv(driverEnv), dsn)
	if err != nil {
		return err
	}
	store, err := pgstore.Open(context.Background(), db, pgstore.Options{Table: os.Getenv(tableEnv)})
	if err != nil {
		return err
	}
	letters, err := store.Letters(context.Background())
	if err != nil {
		return err
	}
	client, err := retell.New("key_test", retell.WithBaseURL(os.Getenv(urlEnv)), retell.WithConfig(workerConfig(store, letters)))
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- client.Stack().Run(context.Background()) }()
	ctx, cancel := context.WithCancel(context.Background())
	var heirs sync.WaitGroup
	heirs.Go(func() { takeOver(ctx, letters, client.Stack().DLQ) })
	jobs := make(chan int)
	var calls sync.WaitGroup
	for range callers {
		calls.Go(func() {
			for n := range jobs {
				insist(client, n)
			}
		})
	}
	for n := range people { // in the same order in all of them: who is behind catches up, since answers are replayed, and races
		jobs <- n
	}
	close(jobs)
	calls.Wait()
	fmt.Println("done")
	_, _ = io.Copy(io.Discard, os.Stdin)
	cancel()
	heirs.Wait()
	err = client.Close(context.Background())
	return errors.Join(err, <-ended, letters.Close(), db.Close())
}

func takeOver(ctx context.Context, letters *pgstore.Letters, queue *resilience.DLQ) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if _, err := letters.TakeOver(ctx, queue); err != nil && ctx.Err() == nil {
				fmt.Fprintln(os.Stderr, err)
			}
		case <-ctx.Done():
			return
		}
	}
}

// insist asks for a call until it is made, or may have been, or a letter owns it: then it says so.
func insist(client *retell.Client, n int) {
	for range 100 {
		_, err := client.Calls.CreatePhoneCall(context.Background(), retell.CreatePhoneCallParams{
			FromNumber: "+15550001000", ToNumber: numberOf(n),
		}, retell.IdempotencyKey(keyOf(n)))
		var ours *resilience.Error
		switch {
		case errors.Is(err, resilience.ErrParked):
			fmt.Println("parked")
			return
		case err == nil, resilience.InDoubt(err):
			return
		case errors.As(err, &ours):
			<-time.After(max(20*time.Millisecond, min(ours.RetryAfter, 200*time.Millisecond)))
		}
	}
}

type process struct {
	*exec.Cmd
	stdin  io.Closer
	done   chan struct{} // closed when it says so, or has ended
	parked atomic.Int64  // letters that it said it has
	stderr *strings.Builder
}

func startWorker(t *testing.T, driver, dsn, table, url string) *process {
	t.Helper()
	p := &process{Cmd: exec.CommandContext(t.Context(), os.Args[0]), done: make(chan struct{}), stderr: &strings.Builder{}} //nolint:gosec // this binary
	p.Env = append(os.Environ(), workerEnv+"="+dsn, driverEnv+"="+driver, tableEnv+"="+table, urlEnv+"="+url)
	p.Stderr = p.stderr
	in, err := p.StdinPipe()
	require.NoError(t, err)
	out, err := p.StdoutPipe()
	require.NoError(t, err)
	p.stdin = in
	require.NoError(t, p.Start())
	go func() {
		defer close(p.done)
		lines := bufio.NewScanner(out)
		for lines.Scan() && lines.Text() != "done" {
			p.parked.Add(1)
		}
	}()
	return p
}

// until waits for something that others bring about.
func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	over := time.NewTimer(patience)
	defer over.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-over.C:
			t.Fatalf("waited too long until %s", what)
		}
	}
}

// Three instances of a service are asked for the same calls at the same time, while answers get lost, and one of them is
// killed in the middle, with letters that the others then send; or the database fails as well. Nobody is called twice, nobody is
// forgotten, and of everybody it is known in the end whether they were called.
func TestProcesses_OneKeyOneRing(t *testing.T) {
	needServer(t)
	for name, c := range map[string]struct {
		driver  string
		crashes bool
	}{
		"an instance dies":            {driver: "pgx"},
		"and the database fails":      {driver: "pgx", crashes: true},
		"and the database fails (pq)": {driver: "postgres", crashes: true}, // which has database/sql repeat what went wrong
	} {
		t.Run(name, func(t *testing.T) {
			s, err := newServer("")
			require.NoError(t, err)
			t.Cleanup(s.end)
			threeInstances(t, s, c.driver, c.crashes)
		})
	}
}

func threeInstances(t *testing.T, s *server, driver string, crashes bool) {
	retellServer := retelltest.NewServer(retelltest.WithSeed(1), retelltest.WithConcurrency(-1), retelltest.WithoutServerKeys())
	t.Cleanup(retellServer.Close)
	const op = "create-phone-call"
	retellServer.Rate(op, 0.15, retelltest.LostAnswer())
	retellServer.Rate(op, 0.10, retelltest.ResetBeforeEffect())
	retellServer.Rate(op, 0.03, retelltest.HangAfterEffect())
	retellServer.Rate(op, 0.05, retelltest.Status(http.StatusTooManyRequests, "Retry-After", "0"))
	table := tableName()
	var workers []*process
	for range 3 {
		workers = append(workers, startWorker(t, driver, s.dsn(), table, retellServer.URL()))
	}
	victim := -1
	until(t, "a third has been called, and somebody has letters", func() bool {
		victim = slices.IndexFunc(workers, func(w *process) bool { return w.parked.Load() > 0 })
		return victim >= 0 && len(retellServer.AllRings()) > people/3
	})
	dead := workers[victim]
	workers = slices.Delete(workers, victim, victim+1)
	require.NoError(t, dead.Process.Kill())
	if crashes {
		require.NoError(t, s.crash())
		require.NoError(t, s.start())
	}
	<-dead.done
	require.Error(t, dead.Wait())
	for _, w := range workers {
		<-w.done
	}
	retellServer.ClearFaults()
	retellServer.Release()

	db := connect(t, "pgx", s.dsn())
	queues := func() (n int) {
		row := db.QueryRowContext(t.Context(), fmt.Sprintf(`SELECT count(DISTINCT queue) FROM %s_letters`, table))
		require.NoError(t, row.Scan(&n))
		return n
	}
	keys, err := resilience.NewIdempotency(resilience.IdempotencyConfig{Store: open(t, db, table)})
	require.NoError(t, err)
	stateOf := func(n int) resilience.Record {
		rec, err := keys.Lookup(t.Context(), keyOf(n))
		require.NoError(t, err)
		return rec
	}
	until(t, "whatever rang is confirmed, and nobody is forgotten", func() bool {
		rings := retellServer.AllRings()
		if queues() > len(workers) {
			return false // what the dead one left lies there still
		}
		for n := range people {
			rec := stateOf(n)
			require.LessOrEqual(t, rings[numberOf(n)], 1, "%s: %v", keyOf(n), rec)
			if rec.State != resilience.KeyConfirmed && rec.State != resilience.KeyInDoubt ||
				rings[numberOf(n)] > 0 && rec.State != resilience.KeyConfirmed {
				return false
			}
		}
		return true
	})
	for _, w := range workers {
		require.NoError(t, w.stdin.Close())
		require.NoError(t, w.Wait(), w.stderr.String())
		require.True(t, crashes || w.stderr.Len() == 0, w.stderr.String())
	}

	rings, calls, ends := retellServer.AllRings(), map[string]string{}, map[resilience.KeyState]int{}
	for _, c := range retellServer.Calls() {
		calls[c.To] = c.ID
	}
	for n := range people {
		rec, rang := stateOf(n), rings[numberOf(n)]
		ends[rec.State]++
		require.LessOrEqual(t, rang, 1, "%s: %v", keyOf(n), rec)
		require.Equal(t, rang == 1, rec.State == resilience.KeyConfirmed, "%s: %v", keyOf(n), rec)
		require.Equal(t, calls[numberOf(n)], rec.CallID, "%s: %v", keyOf(n), rec)
	}
	require.Positive(t, ends[resilience.KeyInDoubt], "no answer was lost: the test shows less than it says")
	require.Greater(t, retellServer.Requests(op), people/2)
	t.Logf("%v; %d requests to call, %d phones rang", ends, retellServer.Requests(op), len(rings))
}
