package resilience

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Whoever gets past the stack's own gate just before it closes begins nothing after it.
func TestIdempotency_NoFlightBeginsAfterTheShutdown(t *testing.T) {
	i, p := newIdem(t, IdempotencyConfig{}), &phone{}
	rt := i.Wrap(p)
	require.NoError(t, i.shutdown(t.Context()))
	_, err := dial(t.Context(), t, rt, "k", dialBody)
	require.ErrorIs(t, err, ErrClosed)
	require.True(t, NotSent(err))
	require.Zero(t, p.sends)
	require.Equal(t, KeyFree, stateOf(t, i, "k"))
}

// B46: after Close every call gets ErrClosed, the state is readable, and Close twice is fine.
func TestB46_AfterClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Breaker: BreakerConfig{MinCalls: 1}})
		report(t, s.Breaker, "F")
		closeStack(t, s)
		closeStack(t, s)
		require.Equal(t, BreakerOpen, s.Breaker.State())
		require.Equal(t, 30*time.Second, s.Stats().Breaker.RetryAfter)
		_, err := fetch(t.Context(), t, s.Wrap(slow(0)))
		require.ErrorIs(t, err, ErrClosed)
		require.True(t, NotSent(err))
		_, err = Do(t.Context(), s, Call{}, func(context.Context) (int, error) { return 0, errors.New("it ran") })
		require.ErrorIs(t, err, ErrClosed)
		require.Zero(t, s.Stats().Breaker.Rejected)
	})
}

func TestStack_CloseCountsACallWhoseOutcomeCameFromElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, rt, _, letGo := hungCall(t)
		_, _ = dial(t.Context(), t, rt, "k", dialBody)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := s.Close(ctx)
		letGo()
		require.ErrorContains(t, err, "1 calls were still under way, 0 of them are in doubt now")
	})
}

func TestStack_CloseOfAnIdleStackNeedsNoTime(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 50 {
		s, err := New(Config{})
		require.NoError(t, err)
		require.NoError(t, s.Close(ctx))
	}
}

func TestX06_CloseSendsThoseWhoBackOffHome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := New(Config{Retry: RetryConfig{Base: time.Hour, Cap: time.Hour}})
		require.NoError(t, err)
		rt := s.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) { return nil, io.EOF }))
		time.AfterFunc(time.Millisecond, func() { _ = s.Close(context.Background()) })
		start := time.Now()
		_, err = fetch(WithBudget(t.Context(), 24*time.Hour), t, rt)
		require.ErrorIs(t, err, ErrClosed)
		require.Equal(t, time.Millisecond, time.Since(start))
	})
}

// Close sends those home who wait, also those who wait for room in the queue of letters.
func TestX06_CloseSendsThoseHomeWhoWaitForRoomForTheirLetter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Retry: RetryConfig{Max: -1}, DLQ: DLQConfig{MaxLetters: 1, Overflow: OverflowBlock}})
		p := &phone{before: func(*http.Request, int) (*http.Response, error) { return nil, MarkNotSent(io.EOF) }}
		rt := s.Wrap(p)
		_, err := dial(t.Context(), t, rt, "first", dialBody)
		require.ErrorIs(t, err, ErrParked)
		done := make(chan error, 1)
		go func() {
			_, err := dial(t.Context(), t, rt, "second", dialBody)
			done <- err
		}()
		synctest.Wait()
		require.Equal(t, 1, s.DLQ.Stats().Blocked)
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		require.NoError(t, s.Close(ctx))
		require.Zero(t, time.Since(began), "at once")
		require.ErrorIs(t, <-done, ErrLettersFull)
	})
}

// Run and Close in every order, with contexts that have ended and that have not: nothing hangs, nothing is asked of anybody
// under a context that has ended, nothing is left.
func TestStack_RunAndCloseInEveryOrder(t *testing.T) {
	for name, steps := range map[string]string{
		"close, run": "CR", "close, run under an ended context": "Cr", "run under an ended context, close": "rC",
		"close under an ended context, twice": "cC", "run, run again, close": "rrC", "close, close": "CC", "only run": "r",
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ended, end := context.WithCancel(t.Context())
				end()
				probes := 0
				s := newStack(t, Config{Health: HealthConfig{Probe: func(context.Context) error { probes++; return nil }}})
				s.DLQ.Handle("work", func(context.Context, Letter) error { t.Error("it was redriven"); return nil })
				require.NoError(t, s.DLQ.Add(Letter{Operation: "work", Next: time.Now()}))
				began := time.Now()
				for _, step := range steps {
					switch step {
					case 'R':
						require.NoError(t, s.Run(t.Context()))
					case 'r':
						require.NoError(t, s.Run(ended))
					case 'C':
						require.NoError(t, s.Close(t.Context()))
					case 'c':
						require.NoError(t, s.Close(ended), "there is nothing to wait for")
					}
				}
				synctest.Wait()
				require.Zero(t, time.Since(began))
				require.Zero(t, probes)
				require.Equal(t, 1, s.DLQ.Len())
			})
		})
	}
}

// Many at once: one Run works, the others say so, and all of them and all of Close return. Often, for it depends on who is
// interrupted where.
func TestStack_ManyRunsAndClosesAtOnce(t *testing.T) {
	for range 200 {
		synctest.Test(t, manyRunsAndCloses)
	}
}

func manyRunsAndCloses(t *testing.T) {
	s := newStack(t, Config{Retry: RetryConfig{Off: true}})
	rt := s.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) { return nil, MarkNotSent(io.EOF) }))
	var runs, all sync.WaitGroup
	var mu sync.Mutex
	refused := 0
	for range 20 {
		runs.Go(func() {
			if err := s.Run(t.Context()); err != nil {
				mu.Lock()
				defer mu.Unlock()
				refused++
			}
		})
		all.Go(func() { _, _ = dial(t.Context(), t, rt, "k", dialBody) })
	}
	synctest.Wait()
	require.Equal(t, 19, refused)
	for range 20 {
		all.Go(func() { require.NoError(t, s.Close(t.Context())) })
	}
	all.Wait()
	runs.Wait()
	_, err := dial(t.Context(), t, rt, "k2", dialBody)
	require.True(t, errors.Is(err, ErrClosed) && NotSent(err))
	require.NoError(t, s.Run(t.Context()), "it ends at once")
}

// Each Close waits for all that is under way, however many wait beside it.
func TestStack_ManyClosesWaitForTheSame(t *testing.T) {
	for range 50 {
		synctest.Test(t, manyClosesOverWork)
	}
}

func manyClosesOverWork(t *testing.T) {
	const works = 8 * time.Second
	slowly := false
	s := newStack(t, Config{
		Fallback: FallbackConfig{Refresh: true},
		Health:   HealthConfig{Probe: func(context.Context) error { time.Sleep(time.Second); return nil }},
	})
	rt := s.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
		if slowly {
			time.Sleep(works) // deaf to its context
		}
		return reply(200, `{"call_id":"c"}`), nil
	}))
	var under sync.WaitGroup
	_, err := fetch(t.Context(), t, rt)
	require.NoError(t, err)
	time.Sleep(time.Minute)
	slowly = true
	_, err = fetch(t.Context(), t, rt) // answered from the cache, and renewed
	require.NoError(t, err)
	under.Go(func() { _, _ = dial(t.Context(), t, rt, "k", dialBody) })
	under.Go(func() { s.Health().Check(t.Context()) })
	synctest.Wait()
	require.Equal(t, 1, s.Stats().Fallback.Refreshing)
	began := time.Now()
	for range 20 {
		under.Go(func() {
			require.NoError(t, s.Close(t.Context()))
			require.GreaterOrEqual(t, time.Since(began), works)
		})
	}
	under.Wait()
	require.Equal(t, works, time.Since(began))
	require.Zero(t, s.Stats().Fallback.Refreshing)
}

func TestX06_CloseSendsWaitersHomeAndAwaitsFlights(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Bulkhead: BulkheadConfig{Critical: -1, Normal: 1, Bulk: -1}, DLQ: DLQConfig{Off: true}})
		p := &phone{answer: func(*http.Request, int) (*http.Response, error) {
			time.Sleep(10 * time.Second)
			return reply(201, "{}"), nil
		}}
		rt := s.Wrap(p)
		flying, waiting := make(chan error, 1), make(chan error, 1)
		go func() { _, err := dial(context.Background(), t, rt, "a", dialBody); flying <- err }()
		synctest.Wait()
		go func() { _, err := dial(context.Background(), t, rt, "b", dialBody); waiting <- err }()
		synctest.Wait()
		start := time.Now()
		closed := make(chan error, 1)
		go func() { closed <- s.Close(context.Background()) }()
		err := <-waiting
		require.ErrorIs(t, err, ErrClosed)
		require.True(t, NotSent(err))
		require.Zero(t, time.Since(start))
		_, err = fetch(t.Context(), t, rt)
		require.ErrorIs(t, err, ErrClosed)
		require.NoError(t, <-flying)
		require.NoError(t, <-closed)
		require.Equal(t, 10*time.Second, time.Since(start))
		require.Equal(t, KeyConfirmed, stateOf(t, s.Idempotency, "a"))
		require.Equal(t, KeyFree, stateOf(t, s.Idempotency, "b"))
		closeStack(t, s)
	})
}

func TestX06_CloseWhoseTimeIsUpRecordsFlightsInDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{})
		p := &phone{answer: func(*http.Request, int) (*http.Response, error) {
			time.Sleep(10 * time.Second)
			return reply(201, "{}"), nil
		}}
		done := make(chan error, 1)
		go func() { _, err := dial(context.Background(), t, s.Wrap(p), "a", dialBody); done <- err }()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := s.Close(ctx)
		require.ErrorContains(t, err, "1 of them are in doubt")
		require.Equal(t, KeyInDoubt, stateOf(t, s.Idempotency, "a"))
		<-done
		time.Sleep(time.Minute)
		require.Equal(t, 1, p.rang())
		require.NoError(t, s.Close(context.Background()))
	})
}

func TestStack_RunTwiceIsAnErrorAndEndsWithClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{})
		done := make(chan error, 1)
		go func() { done <- s.Run(context.Background()) }()
		synctest.Wait()
		require.Error(t, s.Run(t.Context()))
		closeStack(t, s)
		require.NoError(t, <-done)
	})
}

func TestStack_CloseLeavesNoGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // a bubble fails by itself when a goroutine is left
		s := newStack(t, Config{OnEvent: func(Event) {}})
		rt := s.Wrap(slow(time.Millisecond))
		var wg sync.WaitGroup
		for i := range 200 {
			wg.Go(func() {
				_, _ = fetch(t.Context(), t, rt)
				_, _ = dial(t.Context(), t, rt, fmt.Sprint(i), dialBody)
			})
		}
		wg.Wait()
		closeStack(t, s)
	})
}

// Between claim and intent a call that meets Close is refused, and nothing is sent.
func TestX06_NothingIsSentOnceCloseHasBegun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIdem(t, IdempotencyConfig{})
		s := newStack(t, Config{})
		p, closing := &phone{}, make(chan struct{})
		i.closing = closing
		rt := i.Wrap(p)
		close(closing)
		_, err := dial(t.Context(), t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrClosed)
		require.True(t, NotSent(err))
		require.Zero(t, p.sends)
		require.Equal(t, (<-chan struct{})(s.closing), s.Idempotency.closing, "the stack wires it")
		closeStack(t, s)
	})
}

// Close says how many were left, counts them, and takes what is idle down.
func TestStack_CloseCountsWhoIsLeftAndEndsIdleConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{})
		rt := s.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			time.Sleep(time.Minute)
			return reply(200, ""), nil
		}))
		go func() { _, _ = fetch(t.Context(), t, rt) }()
		synctest.Wait()
		require.Equal(t, 1, s.Stats().Calls)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := s.Close(ctx)
		require.ErrorContains(t, err, "1 callers were still waiting")
		require.Equal(t, 1, s.Stats().Calls)
		time.Sleep(time.Hour)
		require.Zero(t, s.Stats().Calls)
	})
	closed := make(chan struct{}, 1)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok")) }))
	server.Config.ConnState = func(_ net.Conn, st http.ConnState) {
		if st == http.StateClosed {
			closed <- struct{}{}
		}
	}
	server.Start()
	defer server.Close()
	for _, end := range []func(*Stack, http.RoundTripper){
		func(s *Stack, _ http.RoundTripper) { closeStack(t, s) },
		func(_ *Stack, rt http.RoundTripper) { (&http.Client{Transport: rt}).CloseIdleConnections() },
	} {
		s := newStack(t, Config{})
		rt := s.Wrap(nil)
		resp, err := (&http.Client{Transport: rt}).Get(server.URL)
		require.NoError(t, err)
		_ = resp.Body.Close()
		end(s, rt)
		select {
		case <-closed:
		case <-time.After(5 * time.Second):
			t.Fatal("the connection is still open")
		}
		closeStack(t, s)
	}
}
