package resilience

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func nthNumber(i int) string { return fmt.Sprintf(`{"to_number":"+1555000%04d"}`, i) }

// outage is a phone that nothing reaches while it is down.
type outage struct {
	phone
	down atomic.Bool
}

func newOutage() *outage {
	o := &outage{}
	o.before = func(*http.Request, int) (*http.Response, error) {
		if o.down.Load() {
			return nil, MarkNotSent(errors.New("connection refused"))
		}
		return nil, nil
	}
	return o
}

// rangEach checks that each of the numbers rang as often as wanted.
func (o *outage) rangEach(t *testing.T, from, to, want int) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := from; i < to; i++ {
		require.Equal(t, want, o.rings[nthNumber(i)], "call %d", i)
	}
}

// runStack runs the background work until the returned function is called.
func runStack(t *testing.T, s *Stack) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	return func() {
		cancel()
		require.NoError(t, <-done)
	}
}

// Nothing is lost and nothing doubled in an hour's outage, while the background work runs all along.
func TestStack_AnOutageOfAnHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOutage()
		var parked sync.Map
		s := newStack(t, Config{DLQ: DLQConfig{MaxAge: 50 * time.Minute, Attempts: -1, OnParked: func(l Letter) {
			_, twice := parked.LoadOrStore(l.Key, l.ParkedReason)
			require.False(t, twice, "reported once")
		}}})
		rt := s.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			if req.Method == http.MethodGet {
				if o.down.Load() {
					return reply(503, ""), nil
				}
				return reply(200, "agent"), nil
			}
			return o.RoundTrip(req)
		}))
		_, err := fetch(t.Context(), t, rt)
		require.NoError(t, err)
		kept := time.Now()
		stop := runStack(t, s)
		o.down.Store(true)
		const minutes, each = 60, 5
		for m := range minutes {
			resp, err := fetch(t.Context(), t, rt)
			require.NoError(t, err)
			age, staleness, ok := Served(resp)
			require.True(t, ok)
			require.Equal(t, time.Since(kept).Truncate(time.Second), age.Truncate(time.Second), "an honest age")
			want := VeryStale
			if age < time.Minute {
				want = Fresh
			} else if age < 10*time.Minute {
				want = Stale
			}
			require.Equal(t, want, staleness)
			for i := range each {
				n := m*each + i
				_, err := dial(t.Context(), t, rt, fmt.Sprint("k", n), nthNumber(n))
				require.ErrorIs(t, err, ErrParked)
				require.False(t, NotSent(err))
				require.False(t, InDoubt(err), "it is proven that nothing was sent")
			}
			time.Sleep(time.Until(kept.Add(time.Duration(m+1) * time.Minute)))
		}
		require.Zero(t, o.rang())
		stats := s.Stats().DLQ
		require.EqualValues(t, minutes*each, stats.Admitted)
		require.Equal(t, minutes*each, stats.Letters, "none is lost")
		gone := s.DLQ.List(LetterFilter{State: LetterParked})
		require.GreaterOrEqual(t, len(gone), 10*each, "those of the first ten minutes are too old")
		require.LessOrEqual(t, len(gone), 11*each, "those of the eleventh become so at this very instant")
		for _, l := range gone {
			require.Equal(t, "expired", l.ParkedReason)
		}

		o.down.Store(false)
		time.Sleep(30 * time.Minute)
		// The circuit tries again after five minutes at most; letters whose time is over by then are too old, too.
		tooOld := map[string]bool{}
		for _, l := range s.DLQ.List(LetterFilter{}) {
			require.Equal(t, LetterParked, l.State(), "what was given up stays for a person")
			reason, told := parked.Load(l.Key)
			require.True(t, told)
			require.Equal(t, "expired", reason)
			tooOld[l.Key] = true
		}
		require.LessOrEqual(t, len(tooOld), 16*each)
		for i := range minutes * each {
			key, rings, states := fmt.Sprint("k", i), 1, []KeyState{KeyConfirmed}
			if tooOld[key] {
				rings, states = 0, []KeyState{KeyFree, KeyNotApplied}
			}
			o.rangEach(t, i, i+1, rings)
			require.Contains(t, states, stateOf(t, s.Idempotency, key), key)
		}
		stop()
		closeStack(t, s)
		conservedLetters(t, s.DLQ)
	})
}

func conservedLetters(t *testing.T, d *DLQ) {
	t.Helper()
	s := d.Stats()
	require.Equal(t, s.Admitted, s.Acked+s.Deleted+s.Dropped+uint64(s.Letters)) //nolint:gosec // small
}

// Two hundred writes fail at the same instant, and the queue has room for a few: each caller is told the truth.
func TestD10_OverflowUnderTheWholeStack(t *testing.T) {
	const calls, room = 200, 20
	for _, policy := range []Overflow{OverflowRejectNew, OverflowBlock, OverflowDropOldest, OverflowSpill} {
		t.Run(policy.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex
				owned := map[string]string{} // by key: who has the write now
				note := func(who string) func(l Letter) {
					return func(l Letter) {
						mu.Lock()
						defer mu.Unlock()
						owned[l.Key] = who
					}
				}
				spilled := 0
				o := newOutage()
				o.down.Store(true)
				s := newStack(t, Config{
					Bulkhead: BulkheadConfig{Queue: calls}, Breaker: BreakerConfig{MetricsOnly: true},
					Timeout: TimeoutConfig{Request: 10 * time.Second, Total: 20 * time.Second},
					DLQ: DLQConfig{MaxLetters: room, Overflow: policy, OnDrop: note("drop"), Spill: func(l Letter) error {
						mu.Lock()
						defer mu.Unlock()
						if spilled++; spilled%10 == 0 {
							return errors.New("the sink is full now and then")
						}
						owned[l.Key] = "spill"
						return nil
					}},
				})
				rt := s.Wrap(o)
				var parked, back atomic.Int64
				var wg sync.WaitGroup
				for i := range calls {
					key := fmt.Sprint("k", i)
					wg.Go(func() {
						start := time.Now()
						_, err := dial(context.Background(), t, rt, key, nthNumber(i))
						require.Error(t, err)
						require.LessOrEqual(t, time.Since(start), 20*time.Second+grace)
						require.False(t, InDoubt(err))
						if errors.Is(err, ErrParked) {
							require.False(t, NotSent(err))
							require.NotErrorIs(t, err, ErrLettersFull)
							parked.Add(1)
							return
						}
						if policy != OverflowBlock { // there the budget may end the wait
							require.ErrorIs(t, err, ErrLettersFull)
						}
						require.True(t, NotSent(err), "it is proven, and the caller's again")
						back.Add(1)
						mu.Lock()
						defer mu.Unlock()
						owned[key] = "caller"
					})
				}
				wg.Wait()
				synctest.Wait() // flights whose callers have left
				require.NoError(t, s.DLQ.events.drain(t.Context()))
				stats := s.Stats().DLQ
				require.EqualValues(t, calls, parked.Load()+back.Load())
				require.EqualValues(t, parked.Load(), stats.Admitted+stats.Spilled)
				require.EqualValues(t, back.Load(), stats.Refused)
				require.EqualValues(t, calls, stats.Admitted+stats.Spilled+stats.Refused)
				require.Equal(t, room, stats.Letters)
				for _, l := range s.DLQ.List(LetterFilter{}) {
					require.Empty(t, owned[l.Key], "one owner")
					owned[l.Key] = "queue"
				}
				byOwner := map[string]int{}
				for i := range calls {
					byOwner[owned[fmt.Sprint("k", i)]]++
				}
				want := map[Overflow]map[string]int{
					OverflowRejectNew:  {"queue": room, "caller": calls - room},
					OverflowBlock:      {"queue": room, "caller": calls - room},
					OverflowDropOldest: {"queue": room, "drop": calls - room},
					OverflowSpill:      {"queue": room, "spill": (calls - room) * 9 / 10, "caller": (calls - room) / 10},
				}
				require.Equal(t, want[policy], byOwner)
				conservedLetters(t, s.DLQ)

				o.down.Store(false)
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute)
				defer cancel()
				require.NoError(t, s.Run(ctx))
				for i := range calls {
					rings := 0
					if owned[fmt.Sprint("k", i)] == "queue" {
						rings = 1
					}
					o.rangEach(t, i, i+1, rings)
				}
				closeStack(t, s)
			})
		})
	}
}

// With OverflowBlock the callers wait for room, and get it as letters are sent.
func TestD10_BlockedCallersGetTheRoomThatComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const calls, room = 200, 20
		o := newOutage()
		o.down.Store(true)
		s := newStack(t, Config{
			Bulkhead: BulkheadConfig{Queue: calls}, Breaker: BreakerConfig{MetricsOnly: true}, Retry: RetryConfig{Max: -1},
			DLQ: DLQConfig{MaxLetters: room, Overflow: OverflowBlock, Rate: -1},
		})
		rt := s.Wrap(o)
		stop := runStack(t, s)
		var parked atomic.Int64
		var wg sync.WaitGroup
		for i := range calls {
			wg.Go(func() {
				_, err := dial(context.Background(), t, rt, fmt.Sprint("k", i), nthNumber(i))
				require.ErrorIs(t, err, ErrParked)
				parked.Add(1)
			})
		}
		synctest.Wait()
		require.EqualValues(t, room, parked.Load())
		require.Equal(t, calls-room, s.Stats().DLQ.Blocked)
		o.down.Store(false)
		wg.Wait()
		time.Sleep(10 * time.Minute)
		o.rangEach(t, 0, calls, 1)
		require.Zero(t, s.DLQ.Len())
		stop()
		closeStack(t, s)
	})
}

// A flight that nobody waits for any more is one failure, however it ends.
func TestB13_AGivenUpFlightIsOneFailureHoweverItEnds(t *testing.T) {
	for name, ending := range map[string]func(*http.Request) (*http.Response, error){
		"answered late": func(*http.Request) (*http.Response, error) { return reply(201, "{}"), nil },
		"refused late":  func(*http.Request) (*http.Response, error) { return reply(503, ""), nil },
		"lost":          func(*http.Request) (*http.Response, error) { return nil, errors.New("reset") },
		"never": func(req *http.Request) (*http.Response, error) {
			<-req.Context().Done()
			return nil, context.Cause(req.Context())
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStack(t, Config{})
				p := &phone{answer: func(req *http.Request, _ int) (*http.Response, error) {
					time.Sleep(10 * time.Second)
					return ending(req)
				}}
				rt := s.Wrap(p)
				var wg sync.WaitGroup
				for _, wait := range []time.Duration{time.Second, 2 * time.Second, 3 * time.Second} {
					wg.Go(func() {
						_, err := dial(WithBudget(context.Background(), wait), t, rt, "k", dialBody)
						require.True(t, InDoubt(err))
						require.ErrorIs(t, err, ErrTimeout)
					})
				}
				time.Sleep(2500 * time.Millisecond)
				require.Zero(t, s.Breaker.Stats().Failures, "one still waits")
				wg.Wait()
				require.EqualValues(t, 1, s.Breaker.Stats().Failures)
				time.Sleep(time.Hour)
				stats := s.Breaker.Stats()
				require.EqualValues(t, 1, stats.Failures)
				require.Zero(t, stats.Successes)
				require.Equal(t, 1, p.rang())
				closeStack(t, s)
			})
		})
	}
	synctest.Test(t, func(t *testing.T) { // who cancels has not found it slow
		s := newStack(t, Config{})
		ctx, cancel := context.WithCancel(t.Context())
		p := &phone{answer: func(*http.Request, int) (*http.Response, error) {
			cancel()
			time.Sleep(time.Second)
			return reply(201, "{}"), nil
		}}
		_, err := dial(ctx, t, s.Wrap(p), "k", dialBody)
		require.True(t, InDoubt(err))
		require.ErrorIs(t, err, context.Canceled)
		time.Sleep(time.Minute)
		require.Zero(t, s.Breaker.Stats().Failures)
		require.EqualValues(t, 1, s.Breaker.Stats().Successes)
		closeStack(t, s)
	})
}

// What the other side asks for is the least that a letter waits, whoever answered so: the first try or a redrive.
func TestD02_RetryAfterIsAFloorForRedrives(t *testing.T) {
	for _, code := range []int{429, 503} {
		for _, header := range []string{"Retry-After", "Retry-After-Ms"} {
			t.Run(fmt.Sprint(code, header), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var sends []time.Time
					value := "1200"
					if header == "Retry-After-Ms" {
						value = "1200000"
					}
					s := newStack(t, Config{Retry: RetryConfig{Max: -1}, DLQ: DLQConfig{MaxAge: -1}})
					rt := s.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
						sends = append(sends, time.Now())
						if len(sends) < 4 {
							return reply(code, "", header, value), nil
						}
						return reply(200, ""), nil
					}))
					stop := runStack(t, s)
					ctx := WithCall(WithIdempotencyKey(t.Context(), "k"), Call{Effect: EffectIdempotent})
					_, err := dial(ctx, t, rt, "", dialBody)
					if code == 429 { // a settled answer, the caller's own: leave it to the queue by hand
						require.NoError(t, err)
						sends = sends[:0]
						require.NoError(t, s.DLQ.Add(Letter{
							Key: "k", Call: Call{Effect: EffectIdempotent}, Method: http.MethodPost,
							URL: "http://api.test/v2/create-phone-call", Body: []byte(dialBody),
						}))
					} else {
						require.ErrorIs(t, err, ErrParked)
					}
					time.Sleep(12 * time.Hour)
					synctest.Wait()
					require.Len(t, sends, 4)
					for i := 1; i < len(sends); i++ {
						require.GreaterOrEqual(t, sends[i].Sub(sends[i-1]), 20*time.Minute)
						require.LessOrEqual(t, sends[i].Sub(sends[i-1]), 30*time.Minute)
					}
					require.Zero(t, s.DLQ.Len())
					stop()
					closeStack(t, s)
				})
			})
		}
	}
}
