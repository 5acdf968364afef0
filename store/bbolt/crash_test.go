//go:build unix

package boltstore

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
)

// The tests below run this test binary again, as a process that dies.
const (
	crashEnv = "BOLTSTORE_CRASH"
	pathEnv  = "BOLTSTORE_PATH"
)

var children = map[string]func(path string) error{
	"in RoundTrip":   func(path string) error { return callAndDie(path, "in RoundTrip") },
	"after claim":    func(path string) error { return callAndDie(path, "after claim") },
	"after answer":   func(path string) error { return callAndDie(path, "after answer") },
	"after record":   func(path string) error { return callAndDie(path, "after record") },
	"storm":          storm,
	"letters":        parkUntilKilled,
	"file too large": fillUp,
}

func TestMain(m *testing.M) {
	if child := children[os.Getenv(crashEnv)]; child != nil {
		if err := child(os.Getenv(pathEnv)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func child(t *testing.T, name, path string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0]) //nolint:gosec // this binary
	cmd.Env = append(os.Environ(), crashEnv+"="+name, pathEnv+"="+path)
	cmd.Stderr = os.Stderr
	return cmd
}

func die() {
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // it takes a moment
}

// phone counts what was sent; it may do something else first.
type phone struct {
	sends  atomic.Int64
	before func()
}

func (p *phone) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		_ = req.Body.Close()
	}
	p.sends.Add(1)
	if p.before != nil {
		p.before()
	}
	return &http.Response{
		StatusCode: http.StatusCreated, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: req,
		Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(`{"call_id":"call_1"}`)),
	}, nil
}

func ring(i *resilience.Idempotency, next http.RoundTripper) (*http.Response, error) {
	ctx := resilience.WithIdempotencyKey(context.Background(), "reminder:4711")
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://api.example.com/v2/create-phone-call", strings.NewReader(`{"to_number":"+15550100"}`))
	if err != nil {
		return nil, err
	}
	return next.RoundTrip(req)
}

// callAndDie makes a call, and the process ends in the middle of it.
func callAndDie(path, where string) error {
	s, err := Open(path, Options{})
	if err != nil {
		return err
	}
	i, err := resilience.NewIdempotency(resilience.IdempotencyConfig{Store: s})
	if err != nil {
		return err
	}
	p := &phone{}
	if where == "in RoundTrip" {
		p.before = die
	}
	between := resilience.LayerFunc(func(next http.RoundTripper) http.RoundTripper {
		return resilience.RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			if where == "after claim" {
				die()
			}
			return next.RoundTrip(req)
		})
	})
	below := resilience.LayerFunc(func(next http.RoundTripper) http.RoundTripper {
		return resilience.RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			resp, err := next.RoundTrip(req)
			if where == "after answer" {
				die()
			}
			return resp, err
		})
	})
	_, err = ring(i, resilience.Chain(i.Claim(), between, i.Intent(), below).Wrap(p))
	if err == nil && where == "after record" {
		die()
	}
	return fmt.Errorf("the process is still there: %w", err)
}

// A process that dies leaves its key where it was, and the next one neither rings again nor forgets.
func TestCrash_OneKeyOneRing(t *testing.T) {
	for _, c := range []struct {
		where string
		left  resilience.KeyState // what the next process finds
		sends int64               // what its own call sends
		after resilience.KeyState
	}{
		{"after claim", resilience.KeyClaimed, 1, resilience.KeyConfirmed},
		{"in RoundTrip", resilience.KeySending, 0, resilience.KeyInDoubt},
		{"after answer", resilience.KeySending, 0, resilience.KeyInDoubt},
		{"after record", resilience.KeyConfirmed, 0, resilience.KeyConfirmed},
	} {
		t.Run(c.where, func(t *testing.T) {
			path := keysFile(t)
			requireKilled(t, child(t, c.where, path).Run())

			s := open(t, path, Options{})
			i, err := resilience.NewIdempotency(resilience.IdempotencyConfig{Store: s})
			require.NoError(t, err)
			rec, err := i.Lookup(t.Context(), "reminder:4711")
			require.NoError(t, err)
			require.Equal(t, c.left, rec.State)

			p := &phone{}
			for range 2 {
				resp, err := ring(i, i.Wrap(p))
				if c.after == resilience.KeyInDoubt {
					require.ErrorIs(t, err, resilience.ErrInDoubt)
					require.True(t, resilience.InDoubt(err))
				} else {
					require.NoError(t, err)
					require.Equal(t, http.StatusCreated, resp.StatusCode)
					require.NoError(t, resp.Body.Close())
				}
				require.Equal(t, c.sends, p.sends.Load())
				rec, err = i.Lookup(t.Context(), "reminder:4711")
				require.NoError(t, err)
				require.Equal(t, c.after, rec.State)
			}
			if c.after != resilience.KeyInDoubt {
				return
			}
			require.NoError(t, i.Resolve(t.Context(), "reminder:4711", resilience.Resolution{
				State: resilience.KeyNotApplied, Reason: "asked the other side",
			}))
			resp, err := ring(i, i.Wrap(p))
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
			require.Equal(t, int64(1), p.sends.Load())
		})
	}
}

func requireKilled(t *testing.T, err error) {
	t.Helper()
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
	status, _ := exit.Sys().(syscall.WaitStatus)
	require.Equal(t, syscall.SIGKILL, status.Signal())
}

const (
	stormWriters = 8
	stormKeys    = 6
	stormDue     = "due" // begins the token of a record that a sweep may take
	stormFree    = "free"
)

// storm writes without end. It says of each write when it begins and when it was acknowledged: "try key token" and
// "ack key token". A key belongs to one writer.
func storm(path string) error {
	var mu sync.Mutex
	say := func(word, key, token string) {
		mu.Lock()
		defer mu.Unlock()
		_, _ = fmt.Fprintln(os.Stdout, word, key, token) // one write, so a line is whole or not there
	}
	say("open", "", "")
	s, err := Open(path, Options{})
	if err != nil {
		return err
	}
	failed := make(chan error, stormWriters+1)
	for w := range stormWriters {
		go func() { failed <- stormWriter(s, w, say) }()
	}
	go func() {
		for {
			if _, err := s.Sweep(context.Background(), 3, func(string) bool { return false }); err != nil {
				failed <- err
			}
		}
	}()
	return <-failed
}

func stormWriter(s *Store, w int, say func(word, key, token string)) error {
	random := rand.New(rand.NewPCG(uint64(os.Getpid()), uint64(w))) //nolint:gosec // any will do
	ctx := context.Background()
	for n := 0; ; n++ {
		key := fmt.Sprintf("%d-%d", w, random.IntN(stormKeys))
		rec := claim(key, fmt.Sprintf("t%d", n))
		rec.State = resilience.KeyState(1 + random.IntN(6)) //nolint:gosec // the states of a record
		rec.Body = make([]byte, random.IntN(9000))
		switch random.IntN(5) {
		case 0:
			rec.State, rec.Token = resilience.KeyFree, stormFree
		case 1:
			rec.State, rec.Expires, rec.Token = resilience.KeyConfirmed, s.Now(), fmt.Sprintf("%s%d", stormDue, n)
		default:
			rec.Expires = s.Now().Add(time.Hour)
		}
		say("try", key, rec.Token)
		for {
			old, err := s.Load(ctx, key)
			if err != nil {
				return err
			}
			_, swapped, err := s.CompareAndSwap(ctx, old.Version, rec)
			if err != nil {
				return err
			}
			if swapped {
				break
			}
			if !strings.HasPrefix(old.Token, stormDue) {
				return errors.New("a write over what was just read was refused, and no sweep can have come between")
			}
		}
		say("ack", key, rec.Token)
	}
}

// Whatever moment a process is killed at, everything that was acknowledged is there, and the file is sound.
func TestCrash_AcknowledgedWritesSurvive(t *testing.T) {
	seeds := 36
	if testing.Short() {
		seeds = 6
	}
	path := ""
	acked, pending := map[string]string{}, map[string]string{}
	for seed := range seeds {
		if seed%4 == 0 { // now and then over what earlier ones left behind
			path = keysFile(t)
			acked, pending = map[string]string{}, map[string]string{}
		}
		stormUntilKilled(t, seed, path, acked, pending)
		s, err := Open(path, Options{})
		require.NoError(t, err, "seed %d", seed)
		present := int64(0)
		for w := range stormWriters {
			for k := range stormKeys {
				key := fmt.Sprintf("%d-%d", w, k)
				rec, err := s.Load(t.Context(), key)
				require.NoError(t, err)
				if rec.Version != 0 {
					present++
				}
				token := rec.Token
				if token == "" {
					token = stormFree
				}
				possible := []string{acked[key], pending[key]}
				if acked[key] == "" || strings.HasPrefix(acked[key]+" "+pending[key], stormDue) || strings.HasPrefix(pending[key], stormDue) {
					possible = append(possible, stormFree)
				}
				require.Contains(t, possible, token, "seed %d, key %s: what was acknowledged is not there", seed, key)
				acked[key] = token
				delete(pending, key)
			}
		}
		require.Equal(t, present, s.Stats().Keys, "seed %d", seed)
		require.NoError(t, s.Close())
	}
}

// stormUntilKilled kills the child after some acknowledgements and some moments, both by the seed.
func stormUntilKilled(t *testing.T, seed int, path string, acked, pending map[string]string) {
	t.Helper()
	random := rand.New(rand.NewPCG(uint64(seed), 7)) //nolint:gosec // a test that can be repeated
	cmd := child(t, "storm", path)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	after, moments := 0, random.IntN(20_000)
	if seed%6 != 0 { // else it dies while it opens the file
		after = random.IntN(250)
	}
	acks := 0
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		word, rest, _ := strings.Cut(lines.Text(), " ")
		key, token, _ := strings.Cut(rest, " ")
		switch word {
		case "try":
			pending[key] = token
		case "ack":
			acks++
			acked[key] = token
			delete(pending, key)
		}
		if acks == after {
			for range moments {
				runtime.Gosched()
			}
			require.NoError(t, cmd.Process.Kill())
		}
	}
	require.NoError(t, lines.Err())
	requireKilled(t, cmd.Wait())
}

// fillUp runs into the end of what the file may have, and goes on when there is room again.
func fillUp(path string) error {
	signal.Ignore(syscall.SIGXFSZ)
	s, err := Open(path, Options{})
	if err != nil {
		return err
	}
	ctx := context.Background()
	written, body := 0, make([]byte, 20_000)
	write := func() error {
		rec := claim(strconv.Itoa(written), strconv.Itoa(written))
		rec.Body = body
		_, swapped, err := s.CompareAndSwap(ctx, 0, rec)
		if swapped {
			written++
		}
		return err
	}
	for range 10 {
		if err := write(); err != nil {
			return err
		}
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		return err
	}
	unlimited := limit.Cur
	size := uint64(s.Stats().FileBytes) //nolint:gosec // not negative
	for _, room := range []uint64{size + 40_000, size, size / 2, 0} {
		limit.Cur = room
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
			return err
		}
		failures := 0
		for n := 0; failures < 3; n++ {
			if err := write(); err != nil {
				failures++
			}
			if n > 1000 {
				return fmt.Errorf("there is no end of room at %d", room)
			}
		}
		limit.Cur = unlimited
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
			return err
		}
		if broken := s.Stats().Broken; broken != nil {
			return fmt.Errorf("a full disk must not end the store: %w", broken)
		}
		for range 5 {
			if err := write(); err != nil {
				return fmt.Errorf("there is room again: %w", err)
			}
		}
	}
	if err := s.Close(); err != nil {
		return err
	}
	if s, err = Open(path, Options{}); err != nil {
		return err
	}
	if n := s.Stats().Keys; n != int64(written) {
		return fmt.Errorf("%d writes were acknowledged, %d records are there", written, n)
	}
	return s.Close()
}

func TestCommit_DiskFullAndRoomAgain(t *testing.T) {
	require.NoError(t, child(t, "file too large", keysFile(t)).Run())
}
