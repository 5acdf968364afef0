package resilience

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Config.OnEvent hears every layer.
func TestStack_OneListenerHearsAllLayers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		heard := map[string]bool{}
		s := newStack(t, Config{
			Bulkhead: BulkheadConfig{Total: 1, Queue: -1}, Timeout: TimeoutConfig{Request: time.Second, Total: 10 * time.Second},
			Health: HealthConfig{Probe: func(context.Context) error { return nil }},
			OnEvent: func(e Event) {
				mu.Lock()
				heard[e.Layer] = true
				mu.Unlock()
			},
		})
		rt := s.Wrap(slow(time.Hour))
		s.Breaker.Reset()
		s.Health().Check(t.Context())
		go func() { _, _ = fetch(t.Context(), t, rt) }()
		synctest.Wait()
		_, _ = dial(t.Context(), t, rt, "full", dialBody) // no slot
		time.Sleep(time.Minute)
		_, _ = fetch(t.Context(), t, rt)
		closeStack(t, s)
		for _, layer := range []string{"fallback", "idempotency", "dlq", "timeout", "retry", "bulkhead", "breaker", "health"} {
			require.True(t, heard[layer], layer)
		}
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

// An open circuit pauses redriving: no letter is taken up, and no attempt spent.
func TestStack_AnOpenCircuitPausesRedriving(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &phone{before: func(*http.Request, int) (*http.Response, error) { return nil, MarkNotSent(io.EOF) }}
		var paused []Event
		s := newStack(t, Config{Retry: RetryConfig{Max: -1}, DLQ: DLQConfig{MaxAge: -1, OnEvent: func(e Event) {
			if e.Kind == EventRedrivePaused {
				paused = append(paused, e)
			}
		}}})
		rt := s.Wrap(p)
		_, err := dial(t.Context(), t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrParked)
		p.before = nil
		s.Breaker.ForceOpen()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- s.Run(ctx) }()
		time.Sleep(time.Minute)
		require.Zero(t, s.DLQ.Stats().Redriven)
		require.Zero(t, s.DLQ.List(LetterFilter{})[0].Redrives)
		require.Len(t, paused, 1)
		require.Equal(t, "open", paused[0].Cause)
		s.Breaker.Reset()
		time.Sleep(2 * time.Minute)
		require.Zero(t, s.DLQ.Len())
		cancel()
		require.NoError(t, <-ended)
		// And it can be started again.
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.NoError(t, s.Run(ctx))
		closeStack(t, s)
	})
}

// A redrive is a call of the stack like any other: Close knows of it.
func TestStack_ARedriveIsACallOfTheStack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Retry: RetryConfig{Max: -1}})
		during := Stats{}
		p := &phone{}
		p.before = func(*http.Request, int) (*http.Response, error) { return nil, MarkNotSent(io.EOF) }
		rt := s.Wrap(p)
		_, err := dial(t.Context(), t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrParked)
		p.before = func(req *http.Request, _ int) (*http.Response, error) {
			during = s.Stats()
			inner := req.Clone(req.Context())
			inner.Body = nil
			_, err := fetch(inner.Context(), t, RoundTripFunc(func(r *http.Request) (*http.Response, error) { return reply(200, ""), nil }))
			return nil, err
		}
		time.Sleep(time.Minute)
		require.Equal(t, RedriveDone, s.DLQ.Redrive(t.Context()).Status)
		require.Equal(t, 1, during.Calls)
		closeStack(t, s)
		require.Zero(t, s.Stats().Calls)
		require.Equal(t, RedriveClosed, s.DLQ.Redrive(t.Context()).Status, "the queue is closed with the stack")
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

// TimeoutConfig.MaxRequestBytes counts in a stack, too: a larger body is sent once at most.
func TestStack_TheBoundOfRequestBodiesIsTheConfigs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for limit, sends := range map[int64]int{10: 1, 1000: 3} {
			s := newStack(t, Config{Timeout: TimeoutConfig{MaxRequestBytes: limit}, DLQ: DLQConfig{Off: true}})
			n := 0
			rt := s.Wrap(RoundTripFunc(func(r *http.Request) (*http.Response, error) {
				n++
				_, _ = io.Copy(io.Discard, r.Body)
				return nil, MarkNotSent(io.EOF)
			}))
			req, _ := http.NewRequestWithContext(t.Context(), "PUT", "http://h/", io.NopCloser(bytes.NewReader(make([]byte, 100))))
			_, err := rt.RoundTrip(req)
			require.Error(t, err)
			require.Equal(t, sends, n, limit)
			closeStack(t, s)
		}
	})
}

// Run sweeps the cache.
func TestStack_RunSweepsTheCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Fallback: FallbackConfig{Fresh: time.Second, Stale: 2 * time.Second, MaxAge: 3 * time.Second}})
		_, err := fetch(t.Context(), t, s.Wrap(slow(0)))
		require.NoError(t, err)
		require.Equal(t, 1, s.Fallback.Stats().Entries)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute+time.Second)
		defer cancel()
		require.NoError(t, s.Run(ctx))
		require.Zero(t, s.Fallback.Stats().Bytes)
		closeStack(t, s)
	})
}

// Idempotent writes: an expired result is none, unless a letter refers to it; a stream is no result; a store that fails costs the replay alone.
func TestDeduplicate_WhatIsReplayed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &flakyStore{MemoryStore: NewMemoryStore(0), fail: 99}
		i := newIdem(t, IdempotencyConfig{Store: store, TTL: time.Hour})
		pinned := false
		i.pinned = func(string) bool { return pinned }
		p := &phone{}
		rt := i.Wrap(p)
		ctx := WithCall(t.Context(), Call{Effect: EffectIdempotent})
		put := func(want int) {
			t.Helper()
			_, err := dial(ctx, t, rt, "k", dialBody)
			require.NoError(t, err)
			require.Equal(t, want, p.sends)
		}
		put(1)
		time.Sleep(time.Hour - 1)
		put(1)
		pinned = true
		time.Sleep(time.Hour)
		put(1)
		pinned = false
		put(2) // expired, and in its place a new one
		put(2)
		time.Sleep(2 * time.Hour)
		_, err := dial(ctx, t, rt, "k", `{"other":1}`)
		require.NoError(t, err, "an expired record is no other request")
		store.set(KeyConfirmed)
		for n := range 2 {
			_, err = dial(ctx, t, rt, "bad", dialBody)
			require.NoError(t, err)
			require.EqualValues(t, n+1, i.Stats().StoreErrors)
		}
		require.Equal(t, 5, p.sends)
	})
}

func TestHealth_NumbersOfTheLayers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{
			Bulkhead: BulkheadConfig{Critical: 3, Normal: 2, Bulk: 1, Queue: 7}, DLQ: DLQConfig{MaxLetters: 50, MaxBytes: 10_000},
			Breaker: BreakerConfig{FailureRate: 0.4, MinCalls: 4}, Timeout: TimeoutConfig{Request: time.Second}, Retry: RetryConfig{Max: -1},
		})
		rt := s.Wrap(slow(time.Hour))
		find := func(name, measure, instance string) CheckResult {
			for _, c := range s.Health().Check(t.Context()).Checks {
				if c.Name == name && c.Measure == measure && c.Instance == instance {
					return c
				}
			}
			t.Fatal(name, measure, instance)
			return CheckResult{}
		}
		for range 3 {
			_, _ = fetch(t.Context(), t, rt)
		}
		_, _ = fetch(WithBudget(t.Context(), 100*time.Millisecond), t, rt)
		require.EqualValues(t, 4, find("timeout", "limit", "").Value)
		require.EqualValues(t, 100, find("circuit", "failure rate", "").Value)
		require.EqualValues(t, 40, find("circuit", "failure rate", "").Limit)
		require.EqualValues(t, 3, find("bulkhead", "slots", "critical").Limit)
		require.EqualValues(t, 2, find("bulkhead", "slots", "normal").Limit)
		require.EqualValues(t, 1, find("bulkhead", "slots", "bulk").Limit)
		require.EqualValues(t, 7, find("bulkhead", "queue", "bulk").Limit)
		require.EqualValues(t, 6, find("bulkhead", "abandoned", "").Limit)
		require.EqualValues(t, 50, find("dlq", "letters", "").Limit)
		for n := range 4 { // a letter counts 2 KiB and more: the fourth fills four fifths
			require.Equal(t, Healthy, find("dlq", "letters", "").Status, n)
			require.NoError(t, s.DLQ.Add(Letter{Operation: "o", Method: "PUT", URL: "http://h/", Body: make([]byte, 100)}))
		}
		require.Equal(t, Degraded, find("dlq", "letters", "").Status)
		require.Zero(t, find("keys", "oldest", "").Value)
		s.Breaker.Reset()
		_, err := dial(t.Context(), t, s.Wrap(&phone{answer: lostAnswer}), "", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		require.Equal(t, "being looked up", find("keys", "in doubt", "").Message)
		time.Sleep(longInDoubt)
		require.Equal(t, Healthy, find("keys", "oldest", "").Status)
		require.EqualValues(t, 900, find("keys", "oldest", "").Value)
		time.Sleep(1)
		require.Equal(t, Degraded, find("keys", "oldest", "").Status)
		closeStack(t, s)
	})
}

func TestRetry_CountsWhatItDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRe(t, RetryConfig{Ratio: -1})
		rt, _ := script(status(503), status(429, "Retry-After", "3"), status(200))
		began := time.Now()
		resp, err := fetch(t.Context(), t, r.Wrap(rt))
		require.NoError(t, err)
		require.Equal(t, 200, resp.StatusCode)
		require.LessOrEqual(t, time.Since(began), 3*time.Second+500*time.Millisecond, "waited for once, at the gate")
		st := r.Stats()
		require.EqualValues(t, []uint64{1, 3, 2, 1, 0}, []uint64{st.Calls, st.Attempts, st.Retries, st.Throttled, st.GaveUp})
		require.EqualValues(t, -1, st.BudgetLeft)

		rt, _ = script(status(503, "Retry-After", "30"))
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		resp, err = fetch(ctx, t, newRe(t, RetryConfig{}).Wrap(rt))
		require.NoError(t, err)
		require.Equal(t, 503, resp.StatusCode)

		r = newRe(t, RetryConfig{})
		rt, _ = script(status(503, "Retry-After", "30"))
		_, _ = fetch(ctx, t, r.Wrap(rt))
		require.EqualValues(t, 1, r.Stats().GaveUp)
	})
}

// A gate that is open for everybody costs nobody anything: the list is empty again, and so is the flag that says so.
func TestRetry_AGateGoesAwayWithGoodAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRe(t, RetryConfig{Max: -1})
		codes := []int{429}
		rt := r.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			if len(codes) > 0 {
				code := codes[0]
				codes = codes[1:]
				return reply(code, ""), nil
			}
			return reply(200, ""), nil
		}))
		_, _ = fetch(t.Context(), t, rt)
		require.Equal(t, 1, r.Stats().Gates)
		require.True(t, r.gates.open.Load())
		for range 10 {
			_, err := fetch(t.Context(), t, rt)
			require.NoError(t, err)
		}
		require.Zero(t, r.Stats().Gates)
		require.False(t, r.gates.open.Load())
	})
}

// The last one who hung up at the gate leaves no reservation behind.
func TestRetry_TheGateForgetsThoseWhoHungUp(t *testing.T) {
	now := time.Now()
	g := gates{list: map[string]*gate{}}
	g.closeFor("op", time.Second, now, 0)
	for n := range 4 {
		require.Equal(t, time.Second+time.Duration(n)*minGap, g.reserve("op", now, time.Hour), n)
	}
	require.False(t, g.leave("op", now.Add(time.Second), true), "one passes")
	require.Equal(t, 4*minGap, g.wait("op", now.Add(time.Second)), "behind those who wait")
	for range 3 {
		require.False(t, g.leave("op", now.Add(time.Second+minGap/2), false))
	}
	require.Equal(t, minGap/2, g.reserve("op", now.Add(time.Second+minGap/2), time.Hour), "the gap after the one who passed, and nothing for the others")
	require.Zero(t, g.reserve("op", now.Add(time.Minute), time.Hour))
	require.Equal(t, minGap, g.reserve("op", now.Add(time.Minute), time.Hour))
	g.closeFor("op", time.Hour, now.Add(time.Minute), 0)
	require.True(t, g.leave("op", now.Add(2*time.Minute), true), "closed for longer meanwhile")
}

func TestRetry_AProgramThatMakesOperationsUp(t *testing.T) {
	now := time.Now()
	g := gates{list: map[string]*gate{}}
	for n := range maxGates + 10 {
		g.closeFor(fmt.Sprint(n), time.Second, now, 0)
	}
	require.Len(t, g.list, maxGates)
	require.Equal(t, time.Second, g.reserve("0", now, time.Hour))
	g.closeFor("new", time.Second, now.Add(maxGap), 0)
	require.Len(t, g.list, maxGates, "not yet")
	g.closeFor("new", time.Second, now.Add(time.Second+2*maxGap), 0)
	require.Len(t, g.list, 2, "the one who waits, and the new one")
}

func TestIdempotency_CountsAndReports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kinds := map[EventKind]int{}
		var mu sync.Mutex
		store := &flakyStore{MemoryStore: NewMemoryStore(0), fail: 99}
		i := newIdem(t, IdempotencyConfig{Store: store, OnEvent: func(e Event) { mu.Lock(); kinds[e.Kind]++; mu.Unlock() }})
		p := &phone{answer: func(*http.Request, int) (*http.Response, error) {
			time.Sleep(time.Second)
			return reply(201, "{}"), nil
		}}
		rt := i.Wrap(p)
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() { _, _ = dial(t.Context(), t, rt, "k", dialBody) })
		}
		synctest.Wait()
		_, err := dial(t.Context(), t, rt, "k", `{"other":1}`)
		require.ErrorIs(t, err, ErrKeyReused)
		wg.Wait()
		p.before = func(*http.Request, int) (*http.Response, error) { return reply(400, ""), nil }
		_, _ = dial(t.Context(), t, rt, "refused", dialBody)
		require.Equal(t, KeyNotApplied, stateOf(t, i, "refused"))
		_, _ = dial(t.Context(), t, Chain(i.Claim(), LayerFunc(func(http.RoundTripper) http.RoundTripper {
			return RoundTripFunc(func(*http.Request) (*http.Response, error) { return nil, MarkNotSent(ErrFull) })
		})).Wrap(p), "back", dialBody)
		store.set(KeyClaimed)
		_, err = dial(t.Context(), t, rt, "bad", dialBody)
		require.ErrorIs(t, err, ErrStore)
		synctest.Wait()
		st := i.Stats()
		require.EqualValues(t, 2, st.Joined)
		require.EqualValues(t, 1, st.Reused)
		require.EqualValues(t, 2, st.GivenBack, "the refused one, too")
		require.EqualValues(t, 1, st.StoreErrors)
		require.Equal(t, 2, kinds[EventKeyJoined])
		require.Equal(t, 1, kinds[EventKeyReused])
		require.Equal(t, 1, kinds[EventStoreFailed])
		require.Zero(t, st.Flights)
	})
}

// A second caller elsewhere learns how long the lease lasts: what is left of the first one's time, and five seconds.
func TestIdempotency_InFlightSaysWhen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &sharedStore{NewMemoryStore(0)}
		one, two := newIdem(t, IdempotencyConfig{Store: store}), newIdem(t, IdempotencyConfig{Store: store})
		hold := LayerFunc(func(next http.RoundTripper) http.RoundTripper {
			return RoundTripFunc(func(r *http.Request) (*http.Response, error) {
				<-r.Context().Done()
				return nil, context.Cause(r.Context())
			})
		})
		for limit, want := range map[time.Duration]time.Duration{time.Minute: 64 * time.Second, 0: 604 * time.Second} {
			ctx, cancel := context.WithCancel(t.Context())
			if limit > 0 {
				ctx, cancel = context.WithTimeout(t.Context(), limit)
			}
			key := fmt.Sprint("k", limit)
			done := make(chan struct{})
			go func() { defer close(done); _, _ = dial(ctx, t, Chain(one.Claim(), hold).Wrap(&phone{}), key, dialBody) }()
			time.Sleep(time.Second)
			_, err := dial(t.Context(), t, two.Wrap(&phone{}), key, dialBody)
			require.ErrorIs(t, err, ErrInFlight)
			var e *Error
			require.ErrorAs(t, err, &e)
			require.Equal(t, want, e.RetryAfter)
			cancel()
			<-done
		}
	})
}

// markPanics is a reconciler whose Mark panics.
type markPanics struct{ finder }

func (*markPanics) Mark(*http.Request, string) error { panic("mark") }

// markReads is one that needs the body.
type markReads struct {
	finder
	saw []string
}

func (m *markReads) Mark(r *http.Request, _ string) error {
	text := "none"
	if r.Body != nil {
		b, _ := io.ReadAll(r.Body)
		text = fmt.Sprint(r.ContentLength, string(b))
		r.Body = io.NopCloser(strings.NewReader(string(b) + "+marked"))
		r.ContentLength = int64(len(b) + 7)
	}
	m.saw = append(m.saw, text)
	return nil
}

func TestIdempotency_MarkGetsTheBodyAndMayPanic(t *testing.T) {
	p := &phone{}
	_, err := dial(t.Context(), t, newIdem(t, IdempotencyConfig{Reconcile: &markPanics{}}).Wrap(p), "k", dialBody)
	require.ErrorContains(t, err, "panic")
	require.True(t, NotSent(err))
	require.Zero(t, p.sends)
	m := &markReads{}
	rt := newIdem(t, IdempotencyConfig{Reconcile: m}).Wrap(p)
	_, err = dial(t.Context(), t, rt, "k", dialBody)
	require.NoError(t, err)
	require.Equal(t, []string{fmt.Sprint(len(dialBody), dialBody)}, m.saw)
	require.Equal(t, 1, p.rings[dialBody+"+marked"])
	req, _ := http.NewRequestWithContext(WithIdempotencyKey(t.Context(), "empty"), http.MethodPost, "http://h/", nil)
	_, err = rt.RoundTrip(req)
	require.NoError(t, err)
	require.Equal(t, "none", m.saw[1])
}

// Those who joined get a copy of the answer, and an error of their own where the execution ended without one.
func TestIdempotency_WhatThoseGetWhoJoined(t *testing.T) {
	for name, end := range map[string]func() (*http.Response, error){
		"answer": func() (*http.Response, error) { return reply(201, `{"a":1}`, "X-A", "1"), nil },
		"panic":  func() (*http.Response, error) { panic("boom") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				i := newIdem(t, IdempotencyConfig{})
				rt := i.Wrap(&phone{answer: func(*http.Request, int) (*http.Response, error) { time.Sleep(time.Second); return end() }})
				type told struct {
					resp *http.Response
					err  error
					v    any
				}
				all := make([]told, 3)
				var wg sync.WaitGroup
				for n := range all {
					wg.Go(func() {
						defer func() { all[n].v = recover() }()
						time.Sleep(time.Duration(n) * time.Millisecond)
						all[n].resp, all[n].err = dial(t.Context(), t, rt, "k", dialBody)
					})
				}
				wg.Wait()
				if name == "panic" {
					require.Equal(t, "boom", all[0].v)
					for _, a := range all[1:] {
						require.Nil(t, a.v)
						require.ErrorIs(t, a.err, ErrInDoubt)
						var e *Error
						require.ErrorAs(t, a.err, &e)
						require.Equal(t, "k", e.Key)
					}
					return
				}
				for n, a := range all {
					require.NoError(t, a.err)
					a.resp.Header.Set("X-A", fmt.Sprint("mine", n))
					a.resp.StatusCode = n
				}
				for n, a := range all {
					require.Equal(t, fmt.Sprint("mine", n), a.resp.Header.Get("X-A"), "nobody shares a header")
					require.Equal(t, n, a.resp.StatusCode)
					require.Equal(t, `{"a":1}`, bodyText(t, a.resp))
				}
			})
		})
	}
}

// A re-send that the user chose does not undo the first send: who leaves before it goes out is in doubt.
func TestIdempotency_WhoLeavesBeforeAResendIsInDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIdem(t, IdempotencyConfig{Reconcile: &idReader{}, ServerKeys: ServerKeysTrust})
		p := &phone{answer: lostAnswer}
		_, err := dial(t.Context(), t, i.Wrap(p), "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		hold := LayerFunc(func(next http.RoundTripper) http.RoundTripper {
			return RoundTripFunc(func(r *http.Request) (*http.Response, error) {
				<-r.Context().Done()
				return nil, MarkNotSent(context.Cause(r.Context()))
			})
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = dial(ctx, t, Chain(i.Claim(), hold, i.Intent()).Wrap(p), "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		require.False(t, NotSent(err))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, KeyInDoubt, stateOf(t, i, "k"))
	})
}

// A refusal between the doors of a key that was sent before says nothing about that send.
func TestIdempotency_ARefusedResendIsInDoubtWithItsKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIdem(t, IdempotencyConfig{Reconcile: &idReader{}, ServerKeys: ServerKeysTrust})
		p := &phone{answer: lostAnswer}
		_, err := dial(t.Context(), t, i.Wrap(p), "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		full := LayerFunc(func(http.RoundTripper) http.RoundTripper {
			return RoundTripFunc(func(*http.Request) (*http.Response, error) { return nil, MarkNotSent(errors.New("full")) })
		})
		_, err = dial(t.Context(), t, Chain(i.Claim(), full, i.Intent()).Wrap(p), "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		var e *Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, "k", e.Key)
	})
}

// Who is told at the gate that it has closed for too long gets the answer that sent them there.
func TestRetry_TheAnswerIsTheCallersWhenTheGateClosesForLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		n := 0
		rt := newRe(t, RetryConfig{}).Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			mu.Lock()
			n++
			first := n == 1
			mu.Unlock()
			if first {
				time.Sleep(time.Millisecond) // both have passed
				return reply(429, "slower", "Retry-After", "1"), nil
			}
			time.Sleep(500 * time.Millisecond)
			return reply(429, "", "Retry-After", "50"), nil
		}))
		ctx, cancel := context.WithTimeout(WithCall(t.Context(), Call{Operation: "op"}), 5*time.Second)
		defer cancel()
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				resp, err := fetch(ctx, t, rt)
				require.NoError(t, err)
				require.Equal(t, 429, resp.StatusCode)
			})
		}
		wg.Wait()
		require.Equal(t, 2, n)
	})
}

// A 429 that says nothing of time is waited for as any failure is.
func TestRetry_A429WithoutATimeBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		for range 20 {
			rt, _ := script(status(429), status(200))
			_, err := fetch(t.Context(), t, newRe(t, RetryConfig{}).Wrap(rt))
			require.NoError(t, err)
		}
		require.Greater(t, time.Since(began), time.Second, "evenly between 0 and half a second, twenty times")
	})
}

func TestRetry_ConfigNamesTheseFaults(t *testing.T) {
	for _, c := range []RetryConfig{{Base: 10 * time.Second, Cap: time.Second}} {
		_, err := NewRetry(c)
		require.ErrorContains(t, err, "Retry.Base")
	}
	for _, ratio := range []float64{-0.5, 1.01, math.NaN(), math.Inf(1)} {
		_, err := NewRetry(RetryConfig{Ratio: ratio})
		require.ErrorContains(t, err, "Retry.Ratio", ratio)
	}
}

// Who joined a redrive that ended in a panic on the wire is told that a letter owns the write, and that it may have happened.
func TestOneOwner_WhoJoinsARedriveThatPanicsIsInDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Retry: RetryConfig{Max: -1}})
		p := &phone{before: func(*http.Request, int) (*http.Response, error) { return nil, MarkNotSent(io.EOF) }}
		rt := s.Wrap(p)
		_, err := dial(t.Context(), t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrParked)
		p.before, p.answer = nil, func(*http.Request, int) (*http.Response, error) { time.Sleep(time.Second); panic("boom") }
		time.Sleep(time.Minute)
		done := make(chan RedriveResult)
		go func() { done <- s.DLQ.Redrive(t.Context()) }()
		time.Sleep(time.Millisecond)
		_, err = dial(t.Context(), t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrParked)
		require.ErrorIs(t, err, ErrInDoubt)
		var e *Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, "k", e.Key)
		require.NotEmpty(t, e.LetterID)
		require.Equal(t, RedriveInDoubt, (<-done).Status)
		require.Equal(t, 1, p.rang())
		closeStack(t, s)
	})
}
