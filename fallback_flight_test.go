package resilience

import (
	"context"
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
