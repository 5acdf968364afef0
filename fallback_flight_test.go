package resilience

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A write that turns out to have happened invalidates what was read before it did.
func TestFallback_ALostWriteThatIsFoundInvalidates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{DLQ: DLQConfig{Off: true}})
		down := false
		rt := s.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			if req.Method == http.MethodPost || down {
				return nil, errors.New("reset")
			}
			return said(200, "old"), nil
		}))
		ctx := WithCall(t.Context(), Call{Resource: "call/abc"})
		_, err := dial(ctx, t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		resp, err := rt.RoundTrip(readOf(ctx, t, callURL)) // it has not happened yet
		require.NoError(t, err)
		require.Equal(t, "old", wholeText(t, resp))
		require.NoError(t, s.Idempotency.Observe(t.Context(), Evidence{ID: s.Idempotency.ID("k"), Calls: []Found{{ID: "c"}}}))
		down = true
		_, err = rt.RoundTrip(readOf(ctx, t, callURL))
		require.Error(t, err, "the answer from before the write")
		closeStack(t, s)
	})
}

// Who asks without a condition is not given the 304 of somebody who has the answer already.
func TestFallback_A304IsForWhoAskedWithACondition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, err := NewFallback(FallbackConfig{})
		require.NoError(t, err)
		var asked atomic.Int64
		rt := f.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			asked.Add(1)
			time.Sleep(time.Second)
			if req.Header.Get("If-None-Match") != "" {
				return reply(304, ""), nil
			}
			return reply(200, "whole"), nil
		}))
		read := func(status int, condition string) {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://api.test/get-agent/a", nil)
			require.NoError(t, err)
			if condition != "" {
				req.Header.Set("If-None-Match", condition)
			}
			resp, err := rt.RoundTrip(req)
			require.NoError(t, err)
			require.Equal(t, status, resp.StatusCode)
		}
		var all sync.WaitGroup
		all.Go(func() { read(304, `"1"`) })
		time.Sleep(time.Millisecond)
		all.Go(func() { read(304, `"1"`) })
		all.Go(func() { read(200, "") })
		all.Wait()
		require.EqualValues(t, 2, asked.Load(), "who asks the same still shares a call")
	})
}

// A read that shares the call of another is not over because the other had less time.
func TestFallback_AFollowerDoesNotRunOutOfTheLeadersTime(t *testing.T) {
	for name, c := range map[string]struct {
		takes  time.Duration
		leader func(context.Context) (context.Context, context.CancelFunc)
		crowd  func(t *testing.T, s *Stack, rt http.RoundTripper)
		why    error
	}{
		"its budget ends an attempt": {
			takes: 10 * time.Second,
			leader: func(ctx context.Context) (context.Context, context.CancelFunc) {
				return WithBudget(ctx, time.Second), func() {}
			},
			why: ErrTimeout,
		},
		"it has no time left for an attempt": {
			takes: 995 * time.Millisecond,
			leader: func(ctx context.Context) (context.Context, context.CancelFunc) {
				return context.WithTimeout(ctx, 999*time.Millisecond)
			},
			crowd: func(t *testing.T, _ *Stack, rt http.RoundTripper) { // has the one slot
				req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://api.test/other", nil)
				require.NoError(t, err)
				go func() { _, _ = rt.RoundTrip(req) }()
			},
			why: context.DeadlineExceeded,
		},
		"it cannot wait for the gate": {
			leader: func(ctx context.Context) (context.Context, context.CancelFunc) {
				return WithBudget(ctx, 3*time.Second), func() {}
			},
			crowd: func(_ *testing.T, s *Stack, _ http.RoundTripper) {
				s.Retry.gates.closeFor("GET", 2*time.Second, time.Now(), 0)
				s.Retry.gates.reserve("GET", time.Now().Add(2*time.Second), 0)
				time.AfterFunc(time.Second, func() { s.Retry.gates.closeFor("GET", 20*time.Second, time.Now(), 1) })
			},
			why: ErrThrottled,
		},
	} {
		t.Run(name, func(t *testing.T) {
			onEitherGoroutine(t, func(t *testing.T, cooperative bool) {
				s := newStack(t, Config{Timeout: TimeoutConfig{Cooperative: cooperative}, Bulkhead: BulkheadConfig{Total: 1}})
				rt := s.Wrap(slow(c.takes))
				if c.crowd != nil {
					c.crowd(t, s, rt)
					time.Sleep(time.Millisecond)
				}
				var leader sync.WaitGroup
				leader.Go(func() {
					ctx, cancel := c.leader(t.Context())
					defer cancel()
					_, err := fetch(ctx, t, rt)
					require.ErrorIs(t, err, c.why)
				})
				time.Sleep(time.Millisecond)
				resp, err := fetch(WithBudget(t.Context(), 50*time.Second), t, rt)
				require.NoError(t, err)
				require.Equal(t, 200, resp.StatusCode)
				leader.Wait()
				closeStack(t, s)
			})
		})
	}
}

// Whoever asks after a write has ended sees it, or an error: from below, from the cache, from another's call.
func TestFallback_NobodySeesWhatWasBeforeAWrite(t *testing.T) {
	s := newStack(t, Config{
		Fallback: FallbackConfig{ServeFresh: true, Refresh: true}, Retry: RetryConfig{Max: -1}, Idempotency: IdempotencyConfig{Off: true}, DLQ: DLQConfig{Off: true},
		Breaker: BreakerConfig{Off: true}, Bulkhead: BulkheadConfig{Off: true},
		Describe: func(r *http.Request) Call { return Call{Resource: strings.Trim(r.URL.Path, "/")} },
	})
	defer closeStack(t, s)
	var version, done atomic.Int64
	rt := s.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
		if req.Method == http.MethodPut {
			version.Add(1)
			return textAnswer(http.StatusOK, nil), nil
		}
		v := version.Load()
		for range rand.IntN(4) {
			runtime.Gosched()
		}
		switch rand.IntN(4) {
		case 0:
			return nil, io.EOF
		case 1:
			return textAnswer(http.StatusInternalServerError, nil), nil
		}
		text := strconv.FormatInt(v, 10)
		return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(text)), ContentLength: int64(len(text))}, nil
	}))
	var wg sync.WaitGroup
	var readers sync.WaitGroup
	for range 12 {
		readers.Go(func() {
			for range 3000 {
				least := done.Load()
				req, _ := http.NewRequest(http.MethodGet, "http://h/call/a", nil)
				resp, err := rt.RoundTrip(req)
				if err != nil || resp.StatusCode != http.StatusOK {
					continue
				}
				b, _ := io.ReadAll(resp.Body)
				v, _ := strconv.ParseInt(string(b), 10, 64)
				if v < least {
					t.Errorf("saw %d after %d", v, least)
					return
				}
			}
		})
	}
	stop := make(chan struct{})
	var mu sync.Mutex
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				mu.Lock()
				req, _ := http.NewRequest(http.MethodPut, "http://h/call/a", strings.NewReader("x"))
				_, _ = rt.RoundTrip(req)
				done.Store(version.Load())
				mu.Unlock()
				for range rand.IntN(20) {
					runtime.Gosched()
				}
			}
		})
	}
	readers.Wait()
	close(stop)
	wg.Wait()
	require.NoError(t, s.Fallback.drain(t.Context()))
	require.Zero(t, s.Fallback.store.Calls())
}

// Leaders who panic, leave by Goexit, or are cancelled, with followers of all kinds: nobody hangs, nothing is left.
func TestFallback_FollowersOfAllKindsOfLeaders(t *testing.T) {
	for _, coop := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			s := newStack(t, Config{Timeout: TimeoutConfig{Cooperative: coop}, Breaker: BreakerConfig{Off: true}, Retry: RetryConfig{Max: -1}})
			var wg sync.WaitGroup
			r := rand.New(rand.NewPCG(1, 1))
			for i := range 300 {
				end, wait, quit := r.IntN(6), time.Duration(r.IntN(50))*time.Millisecond, time.Duration(r.IntN(60))*time.Millisecond
				at, budget := time.Duration(r.IntN(500))*time.Millisecond, time.Duration(1+r.IntN(80))*time.Millisecond
				param := i % 3
				wg.Go(func() {
					defer func() { _ = recover() }()
					time.Sleep(at)
					ctx, cancel := context.WithTimeout(WithBudget(t.Context(), budget), 10*time.Millisecond+quit)
					defer cancel()
					_, _ = Do(ctx, s, Call{Operation: "op", Effect: EffectRead, Resource: "call/a", Params: param}, func(ctx context.Context) (string, error) {
						select {
						case <-time.After(wait):
						case <-ctx.Done():
							return "", ctx.Err()
						}
						switch end {
						case 0:
							panic("x")
						case 1:
							runtime.Goexit()
						case 2:
							return "", io.EOF
						}
						return "ok", nil
					})
				})
				if i%10 == 0 {
					wg.Go(func() { time.Sleep(at); s.Fallback.Invalidate("call") })
				}
			}
			wg.Wait()
			require.Zero(t, s.Fallback.store.Calls())
			s.Fallback.Invalidate("")
			st := s.Fallback.Stats()
			require.Zero(t, st.Entries)
			require.Zero(t, st.Bytes)
			require.Zero(t, s.Bulkhead.Stats().InUse)
			closeStack(t, s)
		})
	}
}

// moody encodes in other words each time.
type moody int

var moods atomic.Int64

func (moody) MarshalText() ([]byte, error) { return strconv.AppendInt(nil, moods.Add(1), 10), nil }

func TestFallback_AConstantThatEncodesInOtherWords(t *testing.T) {
	s := newStack(t, Config{Retry: RetryConfig{Max: -1}})
	defer closeStack(t, s)
	var fail error
	read := func() (string, error) {
		return Do(t.Context(), s, Call{Operation: "op", Effect: EffectRead, Params: 1}, func(context.Context) (string, error) { return "", fail })
	}
	for range 3 {
		_, err := Do(t.Context(), s, Call{Operation: "op", Effect: EffectRead, Params: 1}, func(context.Context) (moody, error) { return 7, nil })
		require.NoError(t, err)
	}
	fail = io.EOF
	last := strconv.FormatInt(moods.Load(), 10)
	got, err := read()
	require.NoError(t, err)
	require.Equal(t, last, got, "as the last answer said")
}
