package resilience

import (
	"context"
	"io"
	"math/rand/v2"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func newTrip() *trip {
	t := &trip{}
	t.clock.epoch = time.Now()
	return t
}

// Who waits already is not woken by a budget that was taken away.
func TestCallContext_UnlimitStopsTheTimerOfThoseWhoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := newTrip()
		c := tr.begin(t.Context())
		c.limit(tr.now(), time.Second)
		done := c.Done()
		c.unlimit()
		time.Sleep(time.Minute)
		select {
		case <-done:
			t.Fatal(context.Cause(c))
		default:
		}
		c.end(finished)
		<-done
	})
}

// Who waits already is woken by a budget that comes later, by the earliest of them.
func TestCallContext_ALimitStartsTheTimerOfThoseWhoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := newTrip()
		c := tr.begin(t.Context())
		done, began := c.Done(), time.Now()
		c.limit(tr.now(), time.Minute)
		c.limit(tr.now(), time.Second)
		c.limit(tr.now(), time.Hour)
		<-done
		require.Equal(t, time.Second, time.Since(began))
		require.ErrorIs(t, causeOf(c), errBudget)
	})
}

// watchedContext counts who wants to know of its end.
type watchedContext struct {
	context.Context
	done chan struct{}
	open atomic.Int64
}

func (w *watchedContext) Done() <-chan struct{} { return w.done }

func (w *watchedContext) AfterFunc(f func()) func() bool {
	w.open.Add(1)
	var once sync.Once
	end := make(chan struct{})
	go func() {
		select {
		case <-w.done:
			once.Do(func() { w.open.Add(-1); f() })
		case <-end:
		}
	}()
	return func() (first bool) {
		once.Do(func() { first = true; w.open.Add(-1); close(end) })
		return
	}
}

// limit, unlimit, end and Done in any order: everybody wakes, nothing runs on.
func TestCallContext_InAnyOrder(t *testing.T) {
	for n := range 3000 {
		caller := &watchedContext{Context: context.Background(), done: make(chan struct{})}
		tr := newTrip()
		c := tr.begin(caller)
		var wg sync.WaitGroup
		start := make(chan struct{})
		do := func(f func()) {
			wg.Add(1)
			go func() {
				defer wg.Done()
				<-start
				for range rand.IntN(3) {
					runtime.Gosched()
				}
				f()
			}()
		}
		do(func() { <-c.Done() })
		do(func() { <-c.Done(); _ = causeOf(c) })
		do(func() { c.limit(tr.now(), time.Hour) })
		do(func() { c.limit(tr.now(), time.Duration(1+rand.IntN(20))*time.Microsecond) })
		if n%2 == 0 {
			do(func() { c.unlimit() })
		}
		if n%3 == 0 {
			do(func() { c.budget(tr.now()) })
		}
		do(func() { _ = c.Err(); c.Deadline() })
		do(func() { c.end(finished) })
		do(func() { child, cancel := context.WithCancel(c); defer cancel(); <-child.Done() })
		do(func() { _, cancel := context.WithCancel(c); cancel() })
		close(start)
		wg.Wait()
		c.mu.Lock() // whoever ended it may be at it still
		a := c.awaited.Load()
		c.mu.Unlock()
		if a.timer != nil && a.timer.Stop() {
			t.Fatal("a timer runs on")
		}
		if caller.open.Load() != 0 {
			t.Fatal("somebody still wants to know of the caller's end")
		}
	}
}

// Contexts that derive from a call's end where it does, without a goroutine that waits for that.
func TestCallContext_ThoseWhoDeriveFromIt(t *testing.T) {
	tr := newTrip()
	c := tr.begin(context.Background())
	behindWire := &sighting{Context: c, wire: newWire(slow(0), 0)}
	var derived []context.Context
	for _, parent := range []context.Context{c, behindWire} {
		child, cancel := context.WithCancel(parent)
		defer cancel()
		grandchild, cancel := context.WithTimeout(child, time.Hour)
		defer cancel()
		derived = append(derived, child, grandchild)
		gone, leave := context.WithCancel(parent)
		leave()
		require.ErrorIs(t, gone.Err(), context.Canceled)
	}
	require.Equal(t, 2, c.awaited.Load().followers.Len(), "who has left follows no more")
	for _, d := range derived {
		require.NoError(t, d.Err())
	}
	c.end(&ending{context.DeadlineExceeded, errBudget})
	for _, d := range derived {
		require.ErrorIs(t, d.Err(), context.DeadlineExceeded, "at once")
	}
	late, cancel := context.WithCancel(c)
	defer cancel()
	require.ErrorIs(t, late.Err(), context.DeadlineExceeded)
	ran := make(chan struct{})
	require.False(t, c.AfterFunc(func() { close(ran) })())
	<-ran
}

func TestAttemptContext_InAnyOrder(t *testing.T) {
	l := newTime(t, TimeoutConfig{Request: time.Hour, Connect: time.Hour})
	for n := range 1000 {
		synctest.Test(t, func(t *testing.T) {
			caller := &watchedContext{Context: context.Background(), done: make(chan struct{})}
			tr := newTrip()
			c := tr.begin(caller)
			c.limit(tr.now(), time.Hour)
			a := &attemptContext{layer: l, trip: tr}
			if n%2 == 0 {
				a.wake = make(chan struct{}, 3)
			}
			require.True(t, a.start(c))
			var wg sync.WaitGroup
			start := make(chan struct{})
			do := func(f func()) { wg.Go(func() { <-start; f() }) }
			do(func() { <-a.Done() })
			do(func() { ctx, cancel := context.WithCancel(a); defer cancel(); <-ctx.Done() })
			do(a.dialing)
			do(a.connected)
			do(func() { _ = a.Err(); a.Deadline(); a.Value(dialWatchKey{}) })
			do(func() {
				if n%3 == 0 {
					a.unlimit()
					a.end(context.Canceled)
				} else {
					a.close()
				}
			})
			close(start)
			wg.Wait()
			a.dialing()
			if a.clock != nil && a.clock.Stop() || a.looked.dial != nil && a.looked.dial.Stop() {
				t.Error("a timer runs on")
			}
			c.end(finished)
			synctest.Wait()
			require.Zero(t, caller.open.Load(), "somebody still wants to know of the caller's end")
		})
	}
}

// A transport that keeps the request's context finds it ended, whatever way the call ended.
func TestContext_OneThatIsKeptEndsWithItsCall(t *testing.T) {
	for name, c := range map[string]struct {
		cooperative bool
		answer      func(*http.Request) (*http.Response, error)
	}{
		"answer":     {true, func(*http.Request) (*http.Response, error) { return textAnswer(http.StatusOK, nil), nil }},
		"answer, go": {false, func(*http.Request) (*http.Response, error) { return textAnswer(http.StatusOK, nil), nil }},
		"looked": {true, func(r *http.Request) (*http.Response, error) {
			r.Context().Done()
			return textAnswer(http.StatusOK, nil), nil
		}},
		"limit":       {true, untilDone},
		"limit, go":   {false, untilDone},
		"failure":     {true, func(*http.Request) (*http.Response, error) { return nil, io.EOF }},
		"failure, go": {false, func(*http.Request) (*http.Response, error) { return nil, io.EOF }},
		"stream": {true, func(*http.Request) (*http.Response, error) {
			return textAnswer(http.StatusOK, http.Header{"Content-Type": {"text/event-stream"}}), nil
		}},
		"stream, go": {false, func(*http.Request) (*http.Response, error) {
			return textAnswer(http.StatusOK, http.Header{"Content-Type": {"text/event-stream"}}), nil
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := patient(t, func(cfg *Config) { cfg.Timeout.Cooperative = c.cooperative })
				var kept []context.Context
				rt := s.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
					kept = append(kept, req.Context())
					return c.answer(req)
				}))
				resp, err := rt.RoundTrip(readOf(t.Context(), t, callURL))
				if err == nil {
					if len(resp.Header["Content-Type"]) > 0 {
						time.Sleep(2 * time.Hour)
						for _, ctx := range kept {
							require.NoError(t, ctx.Err())
							select {
							case <-ctx.Done():
								t.Fatal("done")
							default:
							}
							_, ok := ctx.Deadline()
							require.False(t, ok)
						}
					}
					require.NoError(t, resp.Body.Close())
				}
				for _, ctx := range kept {
					require.Error(t, ctx.Err())
					select {
					case <-ctx.Done():
					default:
						t.Fatal("not done")
					}
					require.Error(t, context.Cause(ctx))
				}
				closeStack(t, s)
			})
		})
	}
}

func TestContext_HugeLimitsDoNotWrapAround(t *testing.T) {
	const most = 1<<63 - 1
	for _, d := range []time.Duration{most, most - 1, most / 2, most/2 + 1, 1} {
		for _, coop := range []bool{true, false} {
			synctest.Test(t, func(t *testing.T) {
				cfg := Config{Timeout: TimeoutConfig{Total: d, Cooperative: coop}, Retry: RetryConfig{Max: 1}}
				s := newStack(t, cfg)
				rt := s.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
					if d > 1 {
						select {
						case <-req.Context().Done():
							t.Error("ended at once", d)
						case <-time.After(time.Millisecond):
						}
						if at, ok := req.Context().Deadline(); ok && time.Until(at) < time.Second {
							t.Error(at)
						}
					}
					return textAnswer(http.StatusServiceUnavailable, nil), nil
				}))
				ctx := WithCall(t.Context(), Call{Budget: d, Limit: d})
				resp, err := rt.RoundTrip(readOf(ctx, t, callURL))
				if d > 1 {
					require.NoError(t, err)
					require.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
				}
				closeStack(t, s)
			})
		}
	}
}

func TestCallContext_TheFirstEndCounts(t *testing.T) {
	c := newTrip().begin(t.Context())
	c.end(&ending{context.DeadlineExceeded, errBudget})
	c.end(finished)
	require.ErrorIs(t, c.Err(), context.DeadlineExceeded)
	require.ErrorIs(t, causeOf(c), errBudget)
}

func TestDetached_HasNothingOfTheCallers(t *testing.T) {
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://api.test/a", io.NopCloser(nil))
	require.NoError(t, err)
	req.GetBody = func() (io.ReadCloser, error) { return nil, io.EOF }
	req.Cancel = make(chan struct{}) //nolint:staticcheck // http.Client still sets it
	req.Header.Set("X-Tag", "mine")
	own := detached(t.Context(), req)
	require.Nil(t, own.Body)
	require.Nil(t, own.GetBody)
	require.Nil(t, own.Cancel) //nolint:staticcheck // as above
	own.Header.Set("X-Tag", "own")
	own.URL.Path = "/own"
	require.Equal(t, "mine", req.Header.Get("X-Tag"))
	require.Equal(t, "/a", req.URL.Path)
}

// A context tells of the first of all the times that bound it.
func TestContext_TheEarliestDeadlineCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		for _, theirs := range []time.Duration{0, time.Second, 20 * time.Second, time.Hour} {
			for _, budget := range []time.Duration{0, 2 * time.Second, 30 * time.Second} {
				ctx := t.Context()
				want := 10 * time.Second // the attempt's own
				if theirs != 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, theirs)
					defer cancel()
				}
				tr := newTrip()
				call := tr.begin(ctx)
				if budget != 0 {
					call.limit(tr.now(), budget)
				}
				outer := theirs
				if budget != 0 && (theirs == 0 || budget < theirs) {
					outer = budget
				}
				deadline, ok := call.Deadline()
				require.Equal(t, outer != 0, ok)
				if ok {
					require.Equal(t, outer, deadline.Sub(began))
				}
				require.Equal(t, budget != 0 && outer == budget, call.budgetIsFirst())
				ofBudget := budget != 0 && budget < want
				for _, bound := range []time.Duration{theirs, budget} {
					if bound != 0 {
						want = min(want, bound)
					}
				}
				c := &attemptContext{layer: newTime(t, TimeoutConfig{Request: 10 * time.Second}), trip: tr}
				require.True(t, c.start(call))
				deadline, ok = c.Deadline()
				require.True(t, ok)
				require.Equal(t, want, deadline.Sub(began), "theirs %v, budget %v", theirs, budget)
				require.Equal(t, ofBudget, c.kind == limitBudget)
				c.close()
				call.end(finished)
			}
		}
	})
}

// Work that looks why its context ended sees that it was the budget.
func TestAttemptContext_TheBudgetIsTheCause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := newTrip()
		call := tr.begin(t.Context())
		call.limit(tr.now(), time.Second)
		c := &attemptContext{layer: newTime(t, TimeoutConfig{}), trip: tr}
		require.True(t, c.start(call))
		<-c.Done()
		require.Equal(t, errBudget, context.Cause(c))
		require.ErrorIs(t, c.Err(), context.DeadlineExceeded)
		late := &attemptContext{layer: c.layer, trip: tr}
		require.False(t, late.start(call), "exactly when the budget is used up there is nothing left")
		require.Equal(t, errBudget, causeOf(late.parent))
		require.ErrorIs(t, call.Err(), context.DeadlineExceeded)
		c.close()
	})
}
