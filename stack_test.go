package resilience

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// X02: one claim for three attempts, and one record.
func TestX02_ThreeAttemptsAreOneKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var changes []string
		s := newStack(t, Config{Retry: RetryConfig{Base: time.Millisecond}, DLQ: DLQConfig{Off: true}, Idempotency: IdempotencyConfig{OnEvent: func(e Event) {
			if e.Kind == EventKeyChanged {
				changes = append(changes, e.From+" "+e.To)
			}
		}}})
		rt, sends := script(failing2(MarkNotSent(io.EOF)), failing2(MarkNotSent(io.EOF)), status(201))
		_, err := dial(t.Context(), t, s.Wrap(rt), "k", dialBody)
		require.NoError(t, err)
		synctest.Wait()
		require.Equal(t, 3, *sends)
		claims := 0
		for _, c := range changes {
			if c == "free claimed" {
				claims++
			}
		}
		require.Equal(t, 1, claims, changes)
		require.EqualValues(t, 2, s.Breaker.Stats().Failures)
		require.EqualValues(t, 1, s.Breaker.Stats().Successes)
		closeStack(t, s)
	})
}

func TestQ07_AnEndedContextIsNeverSent(t *testing.T) {
	for range 100 {
		synctest.Test(t, func(t *testing.T) {
			s, p := newStack(t, Config{}), &phone{}
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			_, err := dial(ctx, t, s.Wrap(p), "k", dialBody)
			synctest.Wait()
			require.True(t, NotSent(err))
			require.Zero(t, p.rang())
			closeStack(t, s)
		})
	}
}

func newStack(t testing.TB, cfg Config) *Stack {
	t.Helper()
	s, err := New(cfg)
	require.NoError(t, err)
	return s
}

func closeStack(t testing.TB, s *Stack) {
	t.Helper()
	require.NoError(t, s.Close(context.Background()))
}

func TestStack_EveryFaultOfEveryLayerAtOnce(t *testing.T) {
	_, err := New(Config{
		Breaker: BreakerConfig{FailureRate: 2}, Bulkhead: BulkheadConfig{Total: -3}, Timeout: TimeoutConfig{Connect: -2},
		Retry: RetryConfig{Max: -2}, Fallback: FallbackConfig{MaxAge: -5}, Idempotency: IdempotencyConfig{TTL: -2},
		DLQ: DLQConfig{Attempts: -7}, Health: HealthConfig{WarnLetters: -9},
	})
	for _, field := range []string{
		"Breaker.FailureRate", "Bulkhead.Total", "Timeout.Connect", "Retry.Max", "Fallback.MaxAge", "Idempotency.TTL",
		"DLQ.Attempts", "Health.WarnLetters",
	} {
		require.ErrorContains(t, err, field)
	}
}

func TestStack_LayersThatAreOffAreNilAndSafe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{
			Fallback: FallbackConfig{Off: true}, Idempotency: IdempotencyConfig{Off: true}, DLQ: DLQConfig{Off: true},
			Timeout: TimeoutConfig{Off: true}, Retry: RetryConfig{Off: true}, Bulkhead: BulkheadConfig{Off: true},
			Breaker: BreakerConfig{Off: true},
		})
		require.Equal(t, "transport", s.String())
		resp, err := fetch(t.Context(), t, s.Wrap(slow(0)))
		require.NoError(t, err)
		require.Equal(t, 200, resp.StatusCode)
		require.Equal(t, BreakerClosed, s.Breaker.State())
		require.Zero(t, s.DLQ.Len())
		_ = s.Stats()
		require.Equal(t, Unknown, s.Health().Check(t.Context()).Status)
		v, err := Do(t.Context(), s, Call{}, func(context.Context) (int, error) { return 7, nil })
		require.NoError(t, err)
		require.Equal(t, 7, v)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		require.NoError(t, s.Run(ctx))
		closeStack(t, s)
	})
}

// The promise: a lost answer rings once, is in doubt, and its letter says so.
func TestStack_LostAnswerOfANamedCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{})
		p := &phone{answer: lostAnswer}
		c := &http.Client{Transport: s.Wrap(p)}
		req, _ := http.NewRequestWithContext(WithIdempotencyKey(t.Context(), "reminder:4711"), http.MethodPost, "http://api.test/v2/create-phone-call", strings.NewReader(dialBody))
		_, err := c.Do(req) //nolint:bodyclose // there is none
		require.ErrorIs(t, err, ErrInDoubt)
		require.ErrorIs(t, err, ErrParked)
		require.True(t, InDoubt(err))
		require.False(t, NotSent(err))
		var e *Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, "reminder:4711", e.Key)
		require.NotEmpty(t, e.LetterID)
		l, ok := s.DLQ.Get(e.LetterID)
		require.True(t, ok)
		require.True(t, l.InDoubt)
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Hour)
		defer cancel()
		require.NoError(t, s.Run(ctx))
		_, err = c.Do(req.Clone(WithIdempotencyKey(context.Background(), "reminder:4711"))) //nolint:bodyclose // there is none
		require.Error(t, err)
		require.Equal(t, 1, p.rang(), "no retry, no redrive, no second caller rings again")
		closeStack(t, s)
	})
}

func TestStack_RefusedConnectionIsRetriedAndRingsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{})
		p := &phone{before: func(_ *http.Request, n int) (*http.Response, error) {
			if n < 3 {
				return nil, MarkNotSent(errors.New("connection refused"))
			}
			return nil, nil
		}}
		resp, err := dial(t.Context(), t, s.Wrap(p), "k", dialBody)
		require.NoError(t, err)
		require.Equal(t, 201, resp.StatusCode)
		require.Equal(t, 1, p.rang())
		require.Zero(t, s.DLQ.Len())
		closeStack(t, s)
	})
}

func TestStack_OutageOfReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down atomic.Bool
		var asked atomic.Int64
		s := newStack(t, Config{Retry: RetryConfig{Max: -1}, Health: HealthConfig{Probe: func(context.Context) error { return nil }}})
		rt := s.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			asked.Add(1)
			if down.Load() {
				return reply(503, "down"), nil
			}
			return reply(200, "agent"), nil
		}))
		_, err := fetch(t.Context(), t, rt)
		require.NoError(t, err)
		require.Equal(t, Healthy, s.Health().Check(t.Context()).Status)
		time.Sleep(2 * time.Minute)
		down.Store(true)
		for range 20 {
			resp, err := fetch(t.Context(), t, rt)
			require.NoError(t, err)
			require.Equal(t, "agent", bodyText(t, resp))
			_, staleness, ok := Served(resp)
			require.True(t, ok)
			require.Equal(t, Stale, staleness)
		}
		require.EqualValues(t, 11, asked.Load(), "the circuit opened at the tenth failure")
		require.Equal(t, BreakerOpen, s.Breaker.State())
		require.Equal(t, "open", s.Breaker.State().String())
		require.Equal(t, Degraded, s.Health().Check(t.Context()).Status)
		down.Store(false)
		time.Sleep(40 * time.Second)
		resp, err := fetch(t.Context(), t, rt)
		require.NoError(t, err)
		_, _, ok := Served(resp)
		require.False(t, ok)
		require.Equal(t, BreakerClosed, s.Breaker.State())
		require.Equal(t, Healthy, s.Health().Check(t.Context()).Status)
		closeStack(t, s)
	})
}

func TestStack_PanicsLeaveNothingBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var boom atomic.Bool
		s := newStack(t, Config{
			Describe: func(req *http.Request) Call {
				if req.Header.Get("Describe") != "" {
					panic("describe")
				}
				return Call{}
			},
			OnEvent: func(Event) { panic("listener") },
		})
		rt := s.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			if boom.Load() {
				panic("transport")
			}
			return reply(200, "ok"), nil
		}))
		boom.Store(true)
		require.PanicsWithValue(t, "transport", func() { _, _ = fetch(t.Context(), t, rt) })
		require.PanicsWithValue(t, "transport", func() { _, _ = dial(t.Context(), t, rt, "k", dialBody) })
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://api.test/", nil)
		req.Header.Set("Describe", "1")
		_, err := rt.RoundTrip(req)
		require.True(t, NotSent(err))
		require.NotContains(t, err.Error(), "describe panicked: describe")
		boom.Store(false)
		_, err = fetch(t.Context(), t, rt)
		require.NoError(t, err)
		_, err = dial(t.Context(), t, rt, "k2", dialBody)
		require.NoError(t, err)
		require.Zero(t, s.Stats().Bulkhead.InUse)
		require.Zero(t, s.Stats().Idempotency.Flights)
		closeStack(t, s)
	})
}

func TestX01_TheSlotIsFreeWhileBackingOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Bulkhead: BulkheadConfig{Critical: -1, Normal: 1, Bulk: -1}, Retry: RetryConfig{Base: time.Minute, Cap: time.Minute}, Fallback: FallbackConfig{Off: true}})
		first := true
		rt := s.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			if req.Header.Get("First") != "" && first {
				first = false
				return reply(503, "", "Retry-After", "30"), nil
			}
			return reply(200, ""), nil
		}))
		done := make(chan error, 1)
		go func() {
			req, _ := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://api.test/", nil)
			req.Header.Set("First", "1")
			_, err := rt.RoundTrip(req)
			done <- err
		}()
		synctest.Wait()
		require.Zero(t, s.Bulkhead.Stats().InUse)
		start := time.Now()
		_, err := fetch(t.Context(), t, rt)
		require.NoError(t, err)
		require.Zero(t, time.Since(start))
		require.NoError(t, <-done)
		closeStack(t, s)
	})
}

func TestX02_ThreeAttemptsAreThreeResultsAndOneOfEverythingElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Retry: RetryConfig{Base: time.Millisecond}})
		most := 0
		rt := s.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			most = max(most, s.Bulkhead.Stats().InUse)
			return reply(503, ""), nil
		}))
		ctx := WithCall(WithIdempotencyKey(t.Context(), "k"), Call{Effect: EffectIdempotent})
		_, err := dial(ctx, t, rt, "", dialBody)
		require.ErrorIs(t, err, ErrParked)
		var e *Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, 503, e.StatusCode)
		require.EqualValues(t, 3, s.Breaker.Stats().Failures)
		require.Equal(t, 1, s.DLQ.Len())
		require.Equal(t, 1, most)
		closeStack(t, s)
	})
}

func TestStack_AnOutageLeavesLettersThatRunRedrives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down atomic.Bool
		down.Store(true)
		s := newStack(t, Config{})
		p := &phone{before: func(*http.Request, int) (*http.Response, error) {
			if down.Load() {
				return nil, MarkNotSent(errors.New("connection refused"))
			}
			return nil, nil
		}}
		rt := s.Wrap(p)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		for i := range 20 {
			_, err := dial(t.Context(), t, rt, fmt.Sprint("k", i), fmt.Sprintf(`{"to_number":"+1555000%04d"}`, i))
			require.ErrorIs(t, err, ErrParked)
			require.False(t, NotSent(err), "the queue will send it")
		}
		require.Equal(t, 20, s.DLQ.Len())
		require.Equal(t, BreakerOpen, s.Breaker.State())
		time.Sleep(5 * time.Minute)
		require.Zero(t, p.rang())
		down.Store(false)
		time.Sleep(20 * time.Minute)
		require.Equal(t, 20, p.rang(), "every call was made, once")
		require.Zero(t, s.DLQ.Len())
		for i := range 20 {
			require.Equal(t, KeyConfirmed, stateOf(t, s.Idempotency, fmt.Sprint("k", i)))
		}
		cancel()
		require.NoError(t, <-done)
		closeStack(t, s)
	})
}

func TestStack_ASecondCallWithTheSameKeyTakesTheLetterOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down atomic.Bool
		down.Store(true)
		s := newStack(t, Config{Retry: RetryConfig{Max: -1}})
		p := &phone{before: func(*http.Request, int) (*http.Response, error) {
			if down.Load() {
				return nil, MarkNotSent(errors.New("connection refused"))
			}
			return nil, nil
		}}
		rt := s.Wrap(p)
		_, err := dial(t.Context(), t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrParked)
		down.Store(false)
		resp, err := dial(t.Context(), t, rt, "k", dialBody)
		require.NoError(t, err)
		require.Equal(t, 201, resp.StatusCode)
		require.Zero(t, s.DLQ.Len())
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		require.NoError(t, s.Run(ctx))
		require.Equal(t, 1, p.rang())
		closeStack(t, s)
	})
}

func TestDo_IsTheSameRoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Retry: RetryConfig{Max: -1}})
		type agent struct{ Name string }
		read := Call{Operation: "get-agent", Effect: EffectRead, Params: map[string]any{"id": 1}}
		v, err := Do(t.Context(), s, read, func(context.Context) (agent, error) { return agent{"Ann"}, nil })
		require.NoError(t, err)
		require.Equal(t, agent{"Ann"}, v)
		v, err = Do(t.Context(), s, read, func(context.Context) (agent, error) { return agent{}, io.EOF })
		require.NoError(t, err, "served from the cache")
		require.Equal(t, agent{"Ann"}, v)
		read.Params = map[string]any{"id": 2}
		_, err = Do(t.Context(), s, read, func(context.Context) (agent, error) { return agent{}, io.EOF })
		require.ErrorIs(t, err, io.EOF, "other parameters, other answer")

		n := 0
		once := Call{Operation: "dial"}
		run := func(context.Context) (agent, error) { n++; return agent{"Bob"}, nil }
		key := WithIdempotencyKey(t.Context(), "k")
		for range 3 {
			v, err = Do(key, s, once, run)
			require.NoError(t, err)
			require.Equal(t, agent{"Bob"}, v)
		}
		require.Equal(t, 1, n)
		once.Params = 1
		_, err = Do(key, s, once, run)
		require.ErrorIs(t, err, ErrKeyReused)
		_, err = Do(WithIdempotencyKey(t.Context(), "lost"), s, Call{Operation: "dial"}, func(context.Context) (int, error) { return 0, io.EOF })
		require.ErrorIs(t, err, ErrInDoubt)
		require.NotErrorIs(t, err, ErrParked, "nothing knows how to do it again")
		_, err = Do(t.Context(), s, Call{Operation: "dial", Params: func() {}}, run)
		require.True(t, NotSent(err))
		require.ErrorContains(t, err, "Params")
		closeStack(t, s)
		_, err = Do(t.Context(), s, once, run)
		require.ErrorIs(t, err, ErrClosed)
	})
}

func TestDo_IsParkedWhereAHandlerKnowsTheOperation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{})
		redone := 0
		s.DLQ.Handle("send", func(_ context.Context, l Letter) error {
			redone++
			require.JSONEq(t, `{"to":"a"}`, string(l.Body))
			return nil
		})
		_, err := Do(WithIdempotencyKey(t.Context(), "k"), s, Call{Operation: "send", Effect: EffectIdempotent, Params: map[string]string{"to": "a"}},
			func(context.Context) (int, error) { return 0, io.EOF })
		require.ErrorIs(t, err, ErrParked)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		require.NoError(t, s.Run(ctx))
		require.Equal(t, 1, redone)
		require.Zero(t, s.DLQ.Len())
		closeStack(t, s)
	})
}

func TestDo_PanicsGoexitAndContexts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{})
		for _, effect := range []Effect{EffectRead, EffectIdempotent, EffectOnce} {
			call := Call{Operation: "x", Effect: effect}
			require.PanicsWithValue(t, "boom", func() {
				_, _ = Do(t.Context(), s, call, func(context.Context) (int, error) { panic("boom") })
			})
			returned := true
			done := make(chan struct{})
			go func() {
				defer close(done)
				_, _ = Do(context.Background(), s, call, func(context.Context) (int, error) { returned = false; runtime.Goexit(); return 0, nil })
				returned = true
			}()
			<-done
			require.False(t, returned)
			cause := errors.New("gone")
			ctx, cancel := context.WithCancelCause(t.Context())
			time.AfterFunc(time.Second, func() { cancel(cause) })
			start := time.Now()
			_, err := Do(ctx, s, call, func(ctx context.Context) (int, error) { time.Sleep(time.Minute); return 0, nil })
			require.ErrorIs(t, err, cause)
			require.LessOrEqual(t, time.Since(start), time.Second+grace)
			time.Sleep(time.Hour)
		}
		require.Zero(t, s.Stats().Bulkhead.InUse)
		closeStack(t, s)
	})
}

func TestDo_NestedCallsArePartOfTheOuterOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Bulkhead: BulkheadConfig{Critical: -1, Normal: 1, Bulk: -1}})
		p := &phone{}
		rt := s.Wrap(p)
		v, err := Do(WithIdempotencyKey(t.Context(), "k"), s, Call{Operation: "outer"}, func(ctx context.Context) (int, error) {
			if _, err := dial(ctx, t, rt, "k", dialBody); err != nil {
				return 0, err
			}
			return Do(ctx, s, Call{Operation: "inner"}, func(context.Context) (int, error) { return 42, nil })
		})
		require.NoError(t, err)
		require.Equal(t, 42, v)
		require.Equal(t, 1, p.rang())
		closeStack(t, s)
	})
}

func TestStack_ALetterOutlivesACallThatWasThrottled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Retry: RetryConfig{Max: -1}})
		answers := []func() (*http.Response, error){
			failing2(MarkNotSent(io.EOF)), status(429, "Retry-After", "1"), status(201),
		}
		rt, sends := script(answers...)
		wrapped := s.Wrap(rt)
		_, err := dial(t.Context(), t, wrapped, "k", dialBody)
		require.ErrorIs(t, err, ErrParked)
		_, err = dial(t.Context(), t, wrapped, "k", dialBody)
		require.ErrorIs(t, err, ErrParked, "the first caller was told that the queue will send it")
		require.False(t, InDoubt(err))
		var e *Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, 429, e.StatusCode)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		require.NoError(t, s.Run(ctx))
		require.Equal(t, 3, *sends)
		require.Zero(t, s.DLQ.Len())
		closeStack(t, s)
	})
}
