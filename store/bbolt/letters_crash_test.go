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
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
)

const letterWorkers = 8

// letterStack has keys and letters in one file.
func letterStack(s *Store, p http.RoundTripper) (*resilience.Stack, http.RoundTripper, error) {
	stack, err := resilience.New(resilience.Config{
		Idempotency: resilience.IdempotencyConfig{Store: s},
		DLQ:         resilience.DLQConfig{Store: s.Letters(), Base: time.Millisecond, Attempts: -1, Rate: -1, MaxLetters: -1},
		Retry:       resilience.RetryConfig{Off: true},
		Breaker:     resilience.BreakerConfig{Off: true},
		Bulkhead:    resilience.BulkheadConfig{Off: true},
	})
	if err != nil {
		return nil, nil, err
	}
	return stack, stack.Wrap(p), nil
}

// textOf reads and closes the body of a request.
func textOf(req *http.Request) string {
	b, _ := io.ReadAll(req.Body)
	_ = req.Body.Close()
	return string(b)
}

func rang(req *http.Request) *http.Response {
	return &http.Response{
		StatusCode: http.StatusCreated, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: req,
		Header: http.Header{}, Body: io.NopCloser(strings.NewReader(`{"call_id":"call_1"}`)),
	}
}

// parkUntilKilled makes calls that fail the first time, and redrives some of them. It says "sent key" before a call takes
// effect, and "parked key letter" when its caller was told so.
func parkUntilKilled(path string) error {
	var mu sync.Mutex
	seen := map[string]bool{}
	say := func(words ...any) {
		mu.Lock()
		defer mu.Unlock()
		_, _ = fmt.Fprintln(os.Stdout, words...)
	}
	s, err := Open(path, Options{})
	if err != nil {
		return err
	}
	stack, rt, err := letterStack(s, resilience.RoundTripFunc(func(req *http.Request) (*http.Response, error) {
		key := textOf(req)
		mu.Lock()
		again := seen[key]
		seen[key] = true
		mu.Unlock()
		if !again || len(key)%3 == 0 {
			return nil, resilience.MarkNotSent(errors.New("connection refused"))
		}
		say("sent", key)
		return rang(req), nil
	}))
	if err != nil {
		return err
	}
	failed := make(chan error, letterWorkers+1)
	go func() { failed <- stack.Run(context.Background()) }()
	for w := range letterWorkers {
		go func() {
			for n := 0; ; n++ {
				key := fmt.Sprintf("%d-%d-%d", os.Getpid(), w, n)
				ctx := resilience.WithIdempotencyKey(context.Background(), key)
				req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://api.example.com/v2/create-phone-call", strings.NewReader(key))
				if err != nil {
					failed <- err
					return
				}
				_, err = rt.RoundTrip(req) //nolint:bodyclose // it fails
				var e *resilience.Error
				if !errors.Is(err, resilience.ErrParked) || !errors.As(err, &e) {
					failed <- fmt.Errorf("the call was not parked: %w", err)
					return
				}
				say("parked", key, e.LetterID)
			}
		}()
	}
	return <-failed
}

// Whatever moment the process is killed at: every letter is there whose caller was told so and that was not sent, and the
// next process sends each once.
func TestCrash_ParkedLettersSurvive(t *testing.T) {
	seeds := 12
	if testing.Short() {
		seeds = 3
	}
	path := keysFile(t)
	sends := map[string]int{}
	for seed := range seeds {
		parked, sent := parkedUntilKilled(t, seed, path)
		for _, key := range sent {
			sends[key]++
		}
		s, err := Open(path, Options{})
		require.NoError(t, err, "seed %d", seed)
		var mu sync.Mutex
		stack, _, err := letterStack(s, resilience.RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			key := textOf(req)
			mu.Lock()
			defer mu.Unlock()
			sends[key]++
			return rang(req), nil
		}))
		require.NoError(t, err)
		for key, id := range parked {
			_, there := stack.DLQ.Get(id)
			require.True(t, there || sends[key] == 1, "seed %d: a letter is gone whose caller was told that it is parked", seed)
		}
		all := stack.DLQ.List(resilience.LetterFilter{})
		for {
			r := stack.DLQ.Redrive(t.Context())
			if r.Status == resilience.RedriveEmpty || r.Status == resilience.RedriveNotDue && waitingOnly(stack.DLQ) == 0 {
				break
			}
			if r.Status == resilience.RedriveNotDue {
				runtime.Gosched()
			}
		}
		for _, l := range all {
			left, there := stack.DLQ.Get(l.ID)
			if there { // killed between the intent and the answer: nobody knows, so it is looked up and not sent
				require.True(t, left.InDoubt, "seed %d: %+v", seed, left)
				require.LessOrEqual(t, sends[l.Key], 1)
				require.NoError(t, stack.DLQ.Delete(l.ID, "test"))
				continue
			}
			require.Equal(t, 1, sends[l.Key], "seed %d: %s", seed, l.Key)
		}
		for key, n := range sends {
			require.Equal(t, 1, n, "seed %d: %s was sent again", seed, key)
		}
		require.NoError(t, stack.Close(t.Context()))
		require.NoError(t, s.Close())
	}
	require.NotEmpty(t, sends)
}

// waitingOnly counts letters that can be sent.
func waitingOnly(d *resilience.DLQ) int {
	return len(d.List(resilience.LetterFilter{State: resilience.LetterWaiting}))
}

func parkedUntilKilled(t *testing.T, seed int, path string) (parked map[string]string, sent []string) {
	t.Helper()
	random := rand.New(rand.NewPCG(uint64(seed), 9)) //nolint:gosec // a test that can be repeated
	cmd := child(t, "letters", path)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	after, moments := 1+random.IntN(200), random.IntN(20_000)
	parked = map[string]string{}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		switch words[0] {
		case "parked":
			parked[words[1]] = words[2]
		case "sent":
			sent = append(sent, words[1])
		}
		if len(parked) == after {
			for range moments {
				runtime.Gosched()
			}
			require.NoError(t, cmd.Process.Kill())
		}
	}
	require.NoError(t, lines.Err())
	requireKilled(t, cmd.Wait())
	return parked, sent
}
