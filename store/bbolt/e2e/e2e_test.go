//go:build unix

// Package e2e makes calls over real connections, from processes that are ended and killed, to a server that misbehaves,
// and then counts how often each phone rang.
package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
	"github.com/retell-resilience/resilience/retell/retelltest"
	boltstore "github.com/retell-resilience/resilience/store/bbolt"
)

// newServer is the truth: it knows how often each phone rang. It knows no keys of its own, so that nothing depends on them.
func newServer(t *testing.T) *retelltest.Server {
	server := retelltest.NewServer(retelltest.WithSeed(1), retelltest.WithConcurrency(-1), retelltest.WithoutServerKeys())
	t.Cleanup(server.Close)
	const op = "create-phone-call"
	server.Rate(op, 0.20, retelltest.LostAnswer())
	server.Rate(op, 0.10, retelltest.ResetBeforeEffect())
	server.Rate(op, 0.02, retelltest.HangBeforeEffect())
	server.Rate(op, 0.03, retelltest.HangAfterEffect())
	server.Rate(op, 0.08, retelltest.Status(http.StatusTooManyRequests, "Retry-After", "0"))
	server.Rate(op, 0.02, retelltest.Status(http.StatusTooManyRequests, "Retry-After-Ms", "30"))
	server.Rate(op, 0.01, retelltest.Status(http.StatusBadRequest))
	server.Rate("list-calls", 0.10, retelltest.Status(http.StatusServiceUnavailable))
	server.Rate("list-calls", 0.05, retelltest.ResetBeforeEffect())
	return server
}

func size() int {
	if testing.Short() {
		return 300
	}
	return 2000
}

// A service makes its calls while the network fails, and is restarted twice, once without warning. Nobody is called twice,
// and of everybody it is known whether they were called.
func TestE2E_OneKeyOneRing(t *testing.T) {
	server, n := newServer(t), size()
	d := newDriver(t, server, n)

	d.start()
	d.until("a third is done", func() bool { return d.words >= n*3/10 })
	d.terminate()
	require.FileExists(t, filepath.Join(d.dir, lettersFile))

	d.start()
	d.until("another third is done", func() bool { return d.words >= n*3/10 && len(d.underway) > 0 })
	d.kill()

	d.start()
	d.until("all have been tried", d.idle)
	server.ClearFaults()
	server.Release()
	d.until("all is settled that can be settled", d.settled)
	t.Logf("settled: %s", d.stats())
	askAgain(t, d)
	d.terminate()
	require.Empty(t, d.stderr())
	judge(t, d)
}

// askAgain submits once more what rang, or may have: no phone may ring for that.
func askAgain(t *testing.T, d *driver) {
	rings, asked := d.server.AllRings(), 0
	for i, state := range d.last.States {
		if state == resilience.KeyConfirmed || state == resilience.KeyInDoubt {
			d.jobs[i].parked, d.jobs[i].called = false, ""
			asked++
		}
	}
	for i := range d.jobs {
		if d.last.States[i] == resilience.KeyConfirmed || d.last.States[i] == resilience.KeyInDoubt {
			d.again(i)
		}
	}
	d.until("all have answered once more", d.idle)
	require.Equal(t, rings, d.server.AllRings(), "asking again rang somebody")
	t.Logf("asked again for %d", asked)
}

// judge holds what the last process left on the disk, and what callers were told, against the truth.
func judge(t *testing.T, d *driver) {
	rings, calls := d.server.AllRings(), map[string]string{}
	for _, c := range d.server.Calls() {
		calls[c.To] = c.ID
	}
	letters := lettersOf(t, filepath.Join(d.dir, lettersFile))
	store, err := boltstore.Open(d.path(), boltstore.Options{})
	require.NoError(t, err)
	keys, err := resilience.NewIdempotency(resilience.IdempotencyConfig{Store: store})
	require.NoError(t, err)

	ends := map[string]int{}
	for i, j := range d.jobs {
		rec, err := keys.Lookup(t.Context(), keyOf(i))
		require.NoError(t, err)
		letter, parked := letters[keyOf(i)]
		rang := rings[numberOf(i)]
		delete(rings, numberOf(i))
		about := fmt.Sprintf("%s is %v (%+v), rang %d times, letter: %t, was told %+v", keyOf(i), rec.State, rec, rang, parked, j)
		require.LessOrEqual(t, rang, 1, about)
		if j.called != "" {
			require.Equal(t, calls[numberOf(i)], j.called, about)
			require.Equal(t, resilience.KeyConfirmed, rec.State, about)
		}
		switch rec.State {
		case resilience.KeyConfirmed:
			ends["confirmed"]++
			require.Equal(t, 1, rang, about)
			require.Equal(t, calls[numberOf(i)], rec.CallID, about)
			require.False(t, parked, about)
		case resilience.KeyInDoubt:
			require.Zero(t, rang, about)
			require.True(t, j.doubtful || parked, about)
			if ends["in doubt"]++; parked {
				require.True(t, letter.InDoubt, about)
				ends["in doubt, with a letter"]++
			}
		case resilience.KeyFree, resilience.KeyNotApplied:
			require.Zero(t, rang, about)
			switch {
			case parked:
				ends["given up by the queue"]++
				require.True(t, letter.Parked, about)
			case j.refused:
				ends["refused"]++
			case j.withdrawn:
				ends["withdrawn"]++
			default:
				t.Errorf("lost without a word: %s", about)
			}
		default:
			t.Errorf("not an end: %s", about)
		}
	}
	require.Empty(t, rings, "numbers that nobody asked for")
	require.Equal(t, len(d.jobs), ends["confirmed"]+ends["in doubt"]+ends["given up by the queue"]+ends["refused"]+ends["withdrawn"])
	for _, end := range []string{"confirmed", "in doubt", "refused", "withdrawn"} {
		require.Positive(t, ends[end], "nothing ended as %s: the test shows less than it says", end)
	}
	t.Logf("%d jobs: %v; %d requests to call", len(d.jobs), ends, d.server.Requests("create-phone-call"))
	require.NoError(t, store.Close())
}

// lettersOf reads an export, by key.
func lettersOf(t *testing.T, path string) map[string]resilience.Letter {
	queue, err := resilience.NewDLQ(resilience.DLQConfig{})
	require.NoError(t, err)
	f, err := os.Open(path) //nolint:gosec // a folder of the test's
	require.NoError(t, err)
	require.NoError(t, queue.Import(f))
	require.NoError(t, f.Close())
	letters := map[string]resilience.Letter{}
	for _, l := range queue.List(resilience.LetterFilter{}) {
		letters[l.Key] = l
	}
	return letters
}

// The same faults through a client that just tries again: it calls people twice, or the test above shows nothing.
func TestE2E_ThePlainClientRingsTwice(t *testing.T) {
	server := newServer(t)
	client := &http.Client{Timeout: 750 * time.Millisecond, Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	jobs := make(chan int)
	var callers sync.WaitGroup
	for range 16 {
		callers.Go(func() {
			for i := range jobs {
				plainCall(client, server.URL(), numberOf(i))
			}
		})
	}
	for i := range 300 {
		jobs <- i
	}
	close(jobs)
	callers.Wait()
	twice := 0
	for _, rang := range server.AllRings() {
		if rang > 1 {
			twice++
		}
	}
	require.Positive(t, twice)
	t.Logf("%d of 300 people were called more than once", twice)
}

// plainCall tries three times, as SDKs do.
func plainCall(client *http.Client, url, to string) {
	for range 3 {
		status, err := plainSend(client, url, to)
		if err == nil && status < 500 && status != http.StatusTooManyRequests {
			return
		}
	}
}

func plainSend(client *http.Client, url, to string) (int, error) {
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, url+"/v2/create-phone-call",
		strings.NewReader(fmt.Sprintf(`{"from_number":%q,"to_number":%q}`, fromNumber, to)))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer key_test")
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, errors.Join(err, resp.Body.Close())
}
