package resilience

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func newTestBulkhead(t *testing.T, c BulkheadConfig) *Bulkhead {
	t.Helper()
	b, err := NewBulkhead(c)
	require.NoError(t, err)
	return b
}

// slotTaker is one call that takes a slot in a goroutine of its own. Read it after synctest.Wait.
type slotTaker struct {
	name    string
	mu      *sync.Mutex // of the crew
	release func()
	err     error
	done    bool
	took    time.Duration
	cancel  context.CancelCauseFunc
}

// crew starts calls and notes in which order they get slots.
type crew struct {
	t     *testing.T
	b     *Bulkhead
	mu    sync.Mutex
	order []string
}

func (c *crew) come(name string, p Priority) *slotTaker {
	c.t.Helper()
	return c.comeUnder(context.Background(), name, p)
}

// comeUnder returns when the call has a slot, an error, or waits.
func (c *crew) comeUnder(ctx context.Context, name string, p Priority) *slotTaker {
	c.t.Helper()
	ctx, cancel := context.WithCancelCause(ctx)
	s := &slotTaker{name: name, mu: &c.mu, cancel: cancel}
	begin := time.Now()
	go func() {
		release, err := c.b.Acquire(ctx, p)
		c.mu.Lock()
		defer c.mu.Unlock()
		s.release, s.err, s.done, s.took = release, err, true, time.Since(begin)
		if err == nil {
			c.order = append(c.order, name)
		}
	}()
	synctest.Wait()
	return s
}

// end gives the slot back and waits for what follows.
func (s *slotTaker) end() {
	s.release()
	synctest.Wait()
}

func (s *slotTaker) waits() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.done
}

func (s *slotTaker) flies() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.done && s.err == nil
}

// inCrew runs f in a bubble over a bulkhead, and asks at the end that every slot and place is back.
func inCrew(t *testing.T, c BulkheadConfig, f func(*testing.T, *crew)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := newTestBulkhead(t, c)
		f(t, &crew{t: t, b: b})
		synctest.Wait()
		requireIdle(t, b)
	})
}

func requireIdle(t *testing.T, b *Bulkhead) {
	t.Helper()
	s := b.Stats()
	require.Zero(t, s.InUse, "slots left")
	require.Zero(t, s.Waiting, "waiters left")
	require.Zero(t, s.Abandoned)
	require.False(t, b.armed, "timer left")
	for _, tier := range []TierStats{s.Critical, s.Normal, s.Bulk} {
		require.Zero(t, tier.InUse)
		require.Zero(t, tier.Waiting)
	}
}

func requireShed(t *testing.T, err, want error) {
	t.Helper()
	require.ErrorIs(t, err, want)
	require.True(t, NotSent(err))
	require.True(t, isRefusal(err))
	var e *Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, "bulkhead", e.Layer)
}

func arrivals(s TierStats) uint64 { return s.Granted + s.Rejected + s.Displaced + s.Cancelled }

// oneSlot is a bulkhead with a single slot that belongs to nobody.
func oneSlot() BulkheadConfig {
	return BulkheadConfig{Critical: -1, Normal: -1, Bulk: -1, Total: 1}
}

func TestQ01_WithoutAQueueTheNextIsRejectedAtOnce(t *testing.T) {
	c := oneSlot()
	c.Total, c.Queue = 2, -1
	var mu sync.Mutex
	var seen []string
	c.OnEvent = func(e Event) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, fmt.Sprint(e.Kind, " ", e.Layer, " ", e.Cause))
	}
	inCrew(t, c, func(t *testing.T, c *crew) {
		first, second := c.come("1", PriorityNormal), c.come("2", PriorityNormal)
		third := c.come("3", PriorityNormal)
		requireShed(t, third.err, ErrFull)
		require.Nil(t, third.release)
		first.end()
		fourth := c.come("4", PriorityNormal)
		require.True(t, fourth.flies())
		second.end()
		fourth.end()
		require.Equal(t, []string{"slot.rejected bulkhead full"}, seen)
		s := c.b.Stats()
		require.EqualValues(t, 3, s.Normal.Granted)
		require.EqualValues(t, 1, s.Normal.Rejected)
	})
}

func TestQ02_QueuedCallsFollowAndTheOneTooManyIsRejected(t *testing.T) {
	c := oneSlot()
	c.Total, c.Queue = 2, 2
	inCrew(t, c, func(t *testing.T, c *crew) {
		s := make([]*slotTaker, 4)
		for i := range s {
			s[i] = c.come(fmt.Sprint(i), PriorityNormal)
		}
		fifth := c.come("5", PriorityNormal)
		requireShed(t, fifth.err, ErrFull)
		s[0].end()
		require.Equal(t, []string{"0", "1", "2"}, c.order)
		s[1].end()
		require.Equal(t, []string{"0", "1", "2", "3"}, c.order)
		s[2].end()
		s[3].end()
	})
}

func TestQ03_GaugesAreExactAtEachStep(t *testing.T) {
	c := oneSlot()
	c.Total = 2
	inCrew(t, c, func(t *testing.T, c *crew) {
		gauges := func(inUse, waiting int) {
			t.Helper()
			s := c.b.Stats()
			require.Equal(t, [4]int{inUse, waiting, inUse, waiting},
				[4]int{s.InUse, s.Waiting, s.Bulk.InUse, s.Bulk.Waiting})
		}
		gauges(0, 0)
		a := c.come("a", PriorityBulk)
		gauges(1, 0)
		b := c.come("b", PriorityBulk)
		gauges(2, 0)
		d, e := c.come("d", PriorityBulk), c.come("e", PriorityBulk)
		gauges(2, 2)
		a.end()
		gauges(2, 1)
		e.cancel(nil)
		synctest.Wait()
		gauges(2, 0)
		b.end()
		gauges(1, 0)
		d.end()
		gauges(0, 0)
	})
}

func TestQ04_NeverMoreThanTheLimitAlsoWhileItShrinks(t *testing.T) {
	c := oneSlot()
	c.Total = 5
	inCrew(t, c, func(t *testing.T, c *crew) {
		var running, worst atomic.Int64
		var limit atomic.Int64
		limit.Store(5)
		var wg sync.WaitGroup
		rng := rand.New(rand.NewPCG(4, 4))
		for range 100 {
			work := time.Duration(30+rng.IntN(170)) * time.Millisecond
			wg.Go(func() {
				release, err := c.b.Acquire(context.Background(), PriorityNormal)
				if err != nil {
					return
				}
				defer release()
				worst.Store(max(worst.Load(), running.Add(1)))
				time.Sleep(work)
				running.Add(-1)
			})
		}
		for _, total := range []int{4, 3, 2} {
			time.Sleep(300 * time.Millisecond)
			require.LessOrEqual(t, worst.Load(), limit.Load())
			require.NoError(t, c.b.Resize(BulkheadConfig{Total: total}))
			time.Sleep(200 * time.Millisecond) // all who flew before have ended
			limit.Store(int64(total))
			worst.Store(0)
		}
		wg.Wait()
		require.LessOrEqual(t, worst.Load(), int64(2))
		require.EqualValues(t, 100, c.b.Stats().Normal.Granted)
	})
}

func TestQ04_AGrowingLimitWakesThoseWhoWait(t *testing.T) {
	inCrew(t, oneSlot(), func(t *testing.T, c *crew) {
		s := make([]*slotTaker, 4)
		for i := range s {
			s[i] = c.come(fmt.Sprint(i), PriorityNormal)
		}
		require.NoError(t, c.b.Resize(BulkheadConfig{Total: 3}))
		synctest.Wait()
		require.True(t, s[1].flies())
		require.True(t, s[2].flies())
		require.True(t, s[3].waits())
		require.Error(t, c.b.Resize(BulkheadConfig{Total: -3}))
		require.Equal(t, 3, c.b.Stats().Total, "a bad config changes nothing")
		s[0].end()
		for _, one := range s[1:] {
			one.end()
		}
	})
}

func TestQ05_MaxWait(t *testing.T) {
	for _, bound := range []time.Duration{50 * time.Millisecond, 10 * time.Millisecond} {
		c := oneSlot()
		c.MaxWait = bound
		inCrew(t, c, func(t *testing.T, c *crew) {
			first := c.come("first", PriorityNormal)
			late := c.come("late", PriorityNormal)
			time.Sleep(bound)
			synctest.Wait()
			requireShed(t, late.err, ErrFull)
			require.Equal(t, bound, late.took)
			require.EqualValues(t, 1, c.b.Stats().Normal.Rejected)
			require.NotErrorIs(t, late.err, context.DeadlineExceeded, "it is the bulkhead that was full")
			first.end()
		})
	}
}

func TestQ05_WithoutMaxWaitTheDeadlineRules(t *testing.T) {
	for _, none := range []time.Duration{0, -1} {
		c := oneSlot()
		c.MaxWait = none
		inCrew(t, c, func(t *testing.T, c *crew) {
			first := c.come("first", PriorityNormal)
			ctx, cancel := context.WithTimeoutCause(context.Background(), time.Hour, errBudget)
			defer cancel()
			late := c.comeUnder(ctx, "late", PriorityNormal)
			time.Sleep(time.Hour)
			synctest.Wait()
			requireShed(t, late.err, ErrTimeout)
			var e *Error
			require.ErrorAs(t, late.err, &e)
			require.Equal(t, "budget", e.Limit)
			require.Equal(t, time.Hour, late.took)
			s := c.b.Stats()
			require.EqualValues(t, 1, s.Normal.Cancelled)
			require.Equal(t, 1, s.RecentSheds, "it ran out of time for lack of a slot")
			first.end()
		})
	}
}

func TestQ06_AWaiterWhoseContextEndsLeavesNow(t *testing.T) {
	c := oneSlot()
	c.Queue = 1
	inCrew(t, c, func(t *testing.T, c *crew) {
		first := c.come("first", PriorityNormal)
		mine := errors.New("the user closed the tab")
		waiter := c.come("waiter", PriorityNormal)
		waiter.cancel(mine)
		synctest.Wait()
		requireShed(t, waiter.err, mine)
		require.ErrorIs(t, waiter.err, context.Canceled)
		require.Zero(t, waiter.took)
		next := c.come("next", PriorityNormal)
		require.True(t, next.waits(), "the place was free at once")
		first.end()
		require.True(t, next.flies())
		require.Zero(t, c.b.Stats().RecentSheds, "who hangs up was not shed")
		next.end()
	})
}

func TestQ06_ADeadlineOfTheCallerIsNamed(t *testing.T) {
	inCrew(t, oneSlot(), func(t *testing.T, c *crew) {
		first := c.come("first", PriorityNormal)
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		late := c.comeUnder(ctx, "late", PriorityNormal)
		time.Sleep(time.Second)
		synctest.Wait()
		requireShed(t, late.err, context.DeadlineExceeded)
		var e *Error
		require.ErrorAs(t, late.err, &e)
		require.Equal(t, "caller", e.Limit)
		first.end()
	})
}

func TestQ07_AnEndedContextIsNeverQueuedNorAdmitted(t *testing.T) {
	inCrew(t, oneSlot(), func(t *testing.T, c *crew) {
		asked := false
		c.b.refusal = func(Call) error { asked = true; return nil }
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		s := c.comeUnder(ctx, "ended", PriorityCritical)
		requireShed(t, s.err, context.Canceled)
		require.Zero(t, c.b.Stats().Critical.Granted)
		require.EqualValues(t, 1, c.b.Stats().Critical.Cancelled)
		require.False(t, asked)
	})
}

// Ten waiters whose time is up at the instant at which the slot comes free: whoever loses hands it on.
func TestQ08_GrantAndCancellationAtTheSameInstant(t *testing.T) {
	rounds := 10_000 // of ten waiters
	if testing.Short() {
		rounds = 500
	}
	b := newTestBulkhead(t, oneSlot())
	for range rounds {
		release, err := b.Acquire(context.Background(), PriorityNormal)
		require.NoError(t, err, "a slot was lost")
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() {
				release, err := b.Acquire(ctx, Priority(i%4))
				if err == nil {
					release()
				}
			})
		}
		wg.Go(release)
		wg.Go(cancel)
		wg.Wait()
		s := b.Stats()
		if s.InUse != 0 || s.Waiting != 0 {
			t.Fatalf("slots or places lost: %+v", s)
		}
	}
	s := b.Stats()
	require.EqualValues(t, 11*rounds, arrivals(s.Critical)+arrivals(s.Normal)+arrivals(s.Bulk))
}

// The same instant, made certain: slot and cancellation are both there before the waiter wakes.
func TestQ08_TheLoserHandsTheSlotOn(t *testing.T) {
	inCrew(t, oneSlot(), func(t *testing.T, c *crew) {
		first := c.come("first", PriorityNormal)
		loser, next := c.come("loser", PriorityNormal), c.come("next", PriorityNormal)
		c.b.mu.Lock()
		loser.cancel(nil)
		c.b.book.GiveBack(tierOf(PriorityNormal))
		c.b.dispatch(1)
		c.b.mu.Unlock()
		synctest.Wait()
		requireShed(t, loser.err, context.Canceled)
		require.True(t, next.flies())
		s := c.b.Stats()
		require.EqualValues(t, 2, s.Normal.Granted)
		require.EqualValues(t, 1, s.Normal.Cancelled)
		next.end()
		_ = first // its slot was given back above
	})
}

func TestQ09_WhenTheHeadLeavesTheNextGetsTheSlot(t *testing.T) {
	inCrew(t, oneSlot(), func(t *testing.T, c *crew) {
		first, head, next := c.come("first", PriorityNormal), c.come("head", PriorityNormal), c.come("next", PriorityNormal)
		head.cancel(nil)
		first.cancel(nil) // running: it has its slot until it gives it back
		synctest.Wait()
		require.True(t, next.waits())
		first.end()
		require.True(t, next.flies())
		next.end()
	})
}

func TestQ11_FirstComeFirstServedWithinAPriority(t *testing.T) {
	inCrew(t, oneSlot(), func(t *testing.T, c *crew) {
		queue := []*slotTaker{c.come("first", PriorityNormal)}
		for i := range 6 {
			queue = append(queue, c.come(fmt.Sprint(i), PriorityNormal))
		}
		queue[0].end()
		queue[1].end()
		queue[4].cancel(nil) // "3"
		synctest.Wait()
		last := c.come("last", PriorityNormal)
		for _, s := range []*slotTaker{queue[2], queue[3], queue[5], queue[6], last} {
			s.end()
		}
		require.Equal(t, []string{"first", "0", "1", "2", "4", "5", "last"}, c.order)
	})
}

func TestQ12_TheMoreUrgentGoFirst(t *testing.T) {
	inCrew(t, oneSlot(), func(t *testing.T, c *crew) {
		first := c.come("first", PriorityCritical)
		all := map[string]*slotTaker{}
		for _, p := range []Priority{PriorityNormal, PriorityBulk, PriorityUnset, PriorityNormal, PriorityCritical, PriorityBulk} {
			name := fmt.Sprintf("%v%d", p, len(all))
			all[name] = c.come(name, p)
		}
		first.end()
		for i := 1; i <= 6; i++ {
			all[c.order[i]].end()
		}
		require.Equal(t, []string{"first", "critical4", "normal0", "unset2", "normal3", "bulk1", "bulk5"}, c.order)
	})
}

// An endless feed of critical calls, always some waiting, over shares in which bulk has a guarantee, has none, or could
// never have one.
func TestQ13_BulkStartsWithinTheAgeingBound(t *testing.T) {
	const work, age = 10 * time.Millisecond, 100 * time.Millisecond
	for name, c := range map[string]BulkheadConfig{
		"no guarantees":         {Critical: -1, Normal: -1, Bulk: -1, Total: 1},
		"guarantees over total": {Total: 1},
		"only critical":         {Critical: 1, Normal: -1, Bulk: -1, Total: 1},
		"defaults":              {},
	} {
		t.Run(name, func(t *testing.T) {
			c.AgeAfter = age
			inCrew(t, c, func(t *testing.T, c *crew) {
				ctx, stop := context.WithCancel(context.Background())
				for range 3 * c.b.Stats().Total {
					go func() {
						for {
							release, err := c.b.Acquire(ctx, PriorityCritical)
							if err != nil {
								return
							}
							time.Sleep(work)
							release()
						}
					}()
				}
				synctest.Wait()
				bulk := make([]*slotTaker, 5)
				for i := range bulk {
					bulk[i] = c.come(fmt.Sprint("bulk", i), PriorityBulk)
				}
				for _, b := range bulk {
					for b.waits() {
						time.Sleep(time.Millisecond)
						synctest.Wait()
					}
					b.end()
					// each of the five may stand behind the others, and behind as many for whom a guarantee was kept
					require.LessOrEqual(t, b.took, age+10*work, b.name)
				}
				stop()
				time.Sleep(work)
			})
		})
	}
}

func TestQ14_IdleSlotsAreBorrowedAndComeBackFirst(t *testing.T) {
	inCrew(t, BulkheadConfig{Critical: 7, Normal: -1, Bulk: 3}, func(t *testing.T, c *crew) {
		var bulk, live []*slotTaker
		for i := range 15 {
			bulk = append(bulk, c.come(fmt.Sprint("bulk", i), PriorityBulk))
		}
		require.Equal(t, 10, c.b.Stats().Bulk.InUse, "bulk alone may use all")
		time.Sleep(time.Hour) // however old those in the queue are
		for i := range 12 {
			live = append(live, c.come(fmt.Sprint("live", i), PriorityCritical))
		}
		require.Zero(t, c.b.Stats().Critical.InUse, "the total is never exceeded")
		for i := range 10 {
			bulk[i].end()
		}
		s := c.b.Stats()
		require.GreaterOrEqual(t, s.Critical.InUse, 5, "every second slot at least, against a crowd of aged ones")
		require.Equal(t, 10, s.InUse)
		for c.b.Stats().InUse > 0 {
			for _, one := range append(live, bulk[10:]...) {
				if one.flies() {
					one.end()
				}
			}
		}
	})
}

func TestQ14_BothGuaranteesAreKeptUnderLoadFromBothSides(t *testing.T) {
	inCrew(t, BulkheadConfig{Critical: 7, Normal: -1, Bulk: 3, AgeAfter: -1}, func(t *testing.T, c *crew) {
		ctx, stop := context.WithCancel(context.Background())
		feed := func(p Priority) {
			for range 20 {
				go func() {
					for {
						release, err := c.b.Acquire(ctx, p)
						if err != nil {
							return
						}
						time.Sleep(10 * time.Millisecond)
						release()
					}
				}()
			}
		}
		feed(PriorityBulk)
		synctest.Wait()
		require.Equal(t, 10, c.b.Stats().Bulk.InUse)
		feed(PriorityCritical)
		time.Sleep(25 * time.Millisecond)
		synctest.Wait()
		require.Equal(t, 7, c.b.Stats().Critical.InUse)
		require.Equal(t, 3, c.b.Stats().Bulk.InUse)
		stop()
		time.Sleep(10 * time.Millisecond)
	})
}

func TestQ16_OverflowRejectsTheNewcomerExceptACriticalOne(t *testing.T) {
	c := oneSlot()
	c.Queue = 1
	inCrew(t, c, func(t *testing.T, c *crew) {
		first := c.come("first", PriorityNormal)
		critical, normal, bulk := c.come("c", PriorityCritical), c.come("n", PriorityNormal), c.come("b", PriorityBulk)

		requireShed(t, c.come("n2", PriorityNormal).err, ErrFull)
		requireShed(t, c.come("b2", PriorityBulk).err, ErrFull)
		require.True(t, bulk.waits())
		second := c.come("c2", PriorityCritical)
		require.True(t, second.waits())
		requireShed(t, bulk.err, ErrFull)
		requireShed(t, c.come("b3", PriorityBulk).err, ErrFull) // its place is taken
		requireShed(t, c.come("c3", PriorityCritical).err, ErrFull)
		require.True(t, critical.waits())
		require.True(t, normal.waits(), "a normal one is never displaced")

		s := c.b.Stats()
		require.EqualValues(t, 1, s.Bulk.Displaced)
		require.EqualValues(t, 2, s.Bulk.Rejected)
		require.EqualValues(t, 1, s.Normal.Rejected)
		require.EqualValues(t, 1, s.Critical.Rejected)
		require.Equal(t, 5, s.RecentSheds)
		time.Sleep(11 * time.Second)
		require.Zero(t, c.b.Stats().RecentSheds)
		for _, s := range []*slotTaker{first, critical, second, normal} {
			s.end()
		}
	})
}

func TestQ16_TheYoungestBulkOneIsDisplaced(t *testing.T) {
	c := oneSlot()
	c.Queue = 2
	inCrew(t, c, func(t *testing.T, c *crew) {
		first := c.come("first", PriorityNormal)
		old, young := c.come("old", PriorityBulk), c.come("young", PriorityBulk)
		all := []*slotTaker{first, c.come("c1", PriorityCritical), c.come("c2", PriorityCritical), c.come("c3", PriorityCritical), old}
		require.ErrorIs(t, young.err, ErrFull)
		for _, s := range all {
			s.end()
		}
		require.Equal(t, []string{"first", "c1", "c2", "c3", "old"}, c.order)
	})
}

// road is a request that goes through the layer to a leg that does what the test wants.
func roadThrough(b *Bulkhead, p Priority, f func(*http.Request) (*http.Response, error)) (*http.Response, error) {
	ctx := WithCall(context.Background(), Call{Operation: "test", Priority: p})
	req, _ := http.NewRequestWithContext(ctx, http.MethodPost, "http://retell.test/", strings.NewReader("body"))
	return b.Wrap(RoundTripFunc(f)).RoundTrip(req)
}

func ok(body string) *http.Response {
	return &http.Response{
		StatusCode: http.StatusOK, ContentLength: int64(len(body)), Header: http.Header{},
		Body: io.NopCloser(strings.NewReader(body)),
	}
}

func TestQ17_HoweverWorkEndsTheSlotIsFreedOnce(t *testing.T) {
	for name, work := range map[string]func(*http.Request) (*http.Response, error){
		"answer": func(*http.Request) (*http.Response, error) { return ok("fine"), nil },
		"error":  func(*http.Request) (*http.Response, error) { return nil, io.ErrUnexpectedEOF },
		"panic":  func(*http.Request) (*http.Response, error) { panic("boom") },
		"goexit": func(*http.Request) (*http.Response, error) { runtime.Goexit(); return nil, nil }, //nolint:nilnil // not reached
	} {
		t.Run(name, func(t *testing.T) {
			inCrew(t, oneSlot(), func(t *testing.T, c *crew) {
				begin, done := make(chan struct{}), make(chan any)
				go func() {
					defer close(done)
					defer func() {
						if v := recover(); v != nil {
							require.Equal(t, "boom", v, "the panic goes on to the caller")
						}
					}()
					_, _ = roadThrough(c.b, PriorityBulk, func(r *http.Request) (*http.Response, error) {
						<-begin
						return work(r)
					})
				}()
				synctest.Wait()
				next, last := c.come("next", PriorityNormal), c.come("last", PriorityNormal)
				require.Equal(t, 1, c.b.Stats().Bulk.InUse, "the tier comes from the call")
				close(begin)
				<-done
				synctest.Wait()
				require.True(t, next.flies())
				require.True(t, last.waits(), "once, not twice")
				next.end()
				last.end()
			})
		})
	}
}

func TestQ17_ReleaseTwiceIsHarmless(t *testing.T) {
	inCrew(t, oneSlot(), func(t *testing.T, c *crew) {
		first, next, last := c.come("1", PriorityBulk), c.come("2", PriorityBulk), c.come("3", PriorityBulk)
		first.end()
		first.end()
		require.True(t, next.flies())
		require.True(t, last.waits())
		next.end()
		last.end()
	})
}

// overrun is work that goes on after its limit, as the attempt layer reports it.
func TestQ18_T06_WorkThatOutlivesItsLimitKeepsTheSlot(t *testing.T) {
	c := oneSlot()
	c.Total = 2
	var mu sync.Mutex
	var seen []Event
	c.OnEvent = func(e Event) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, e)
	}
	inCrew(t, c, func(t *testing.T, c *crew) {
		var running, worst atomic.Int64
		overrun := func(*http.Request) (*http.Response, error) {
			l := &lingering{err: &Error{Layer: "timeout", Err: ErrTimeout}}
			worst.Store(max(worst.Load(), running.Add(1)))
			go func() {
				time.Sleep(300 * time.Millisecond)
				running.Add(-1)
				l.tail.end()
			}()
			time.Sleep(50 * time.Millisecond)
			return nil, l
		}
		var wg sync.WaitGroup
		for range 6 {
			wg.Go(func() {
				_, err := roadThrough(c.b, PriorityNormal, overrun)
				require.ErrorIs(t, err, ErrTimeout)
			})
		}
		time.Sleep(50 * time.Millisecond)
		synctest.Wait()
		s := c.b.Stats()
		require.Equal(t, 2, s.Abandoned)
		require.Equal(t, 2, s.InUse)
		require.Equal(t, 4, s.Waiting)
		wg.Wait()
		time.Sleep(time.Second)
		synctest.Wait()
		require.EqualValues(t, 2, worst.Load())
		require.Zero(t, c.b.Stats().Abandoned)
		kinds := map[EventKind]int{}
		for _, e := range seen {
			kinds[e.Kind]++
			require.Equal(t, "test", e.Operation)
			if e.Kind == EventSlotReturned {
				require.Equal(t, 250*time.Millisecond, e.Duration)
			}
		}
		require.Equal(t, map[EventKind]int{EventSlotAbandoned: 6, EventSlotReturned: 6}, kinds)
	})
}

func TestAStreamKeepsTheSlotUntilItsEnd(t *testing.T) {
	for name, end := range map[string]func(io.ReadCloser){
		"read":  func(body io.ReadCloser) { _, _ = io.Copy(io.Discard, body) },
		"close": func(body io.ReadCloser) { _ = body.Close() },
		"both":  func(body io.ReadCloser) { _, _ = io.Copy(io.Discard, body); _ = body.Close(); _ = body.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			inCrew(t, oneSlot(), func(t *testing.T, c *crew) {
				resp, err := roadThrough(c.b, PriorityNormal, func(*http.Request) (*http.Response, error) {
					resp := ok("data: 1\n\n")
					resp.Header.Set("Content-Type", "text/event-stream")
					return resp, nil
				})
				require.NoError(t, err)
				require.Equal(t, 1, c.b.Stats().InUse)
				require.Zero(t, c.b.Stats().Abandoned)
				end(resp.Body)
				require.Zero(t, c.b.Stats().InUse)
			})
		})
	}
}

func TestQ21_ConfigDefaultsAndFaults(t *testing.T) {
	s := newTestBulkhead(t, BulkheadConfig{}).Stats()
	require.Equal(t, [5]int{10, 5, 2, 17, 100},
		[5]int{s.Critical.Guaranteed, s.Normal.Guaranteed, s.Bulk.Guaranteed, s.Total, s.Queue})
	s = newTestBulkhead(t, BulkheadConfig{Critical: -1, Bulk: -1, Queue: -1, MaxWait: -1, AgeAfter: -1}).Stats()
	require.Equal(t, [5]int{0, 5, 0, 5, 0},
		[5]int{s.Critical.Guaranteed, s.Normal.Guaranteed, s.Bulk.Guaranteed, s.Total, s.Queue})
	s = newTestBulkhead(t, BulkheadConfig{Critical: int(^uint(0) >> 1)}).Stats()
	require.Positive(t, s.Total, "the sum does not overflow")

	_, err := NewBulkhead(BulkheadConfig{
		Critical: -2, Normal: -2, Bulk: -2, Total: -1, Queue: -2, MaxWait: -2, AgeAfter: -2,
	})
	for _, field := range []string{"Critical", "Normal", "Bulk", "Total", "Queue", "MaxWait", "AgeAfter"} {
		require.ErrorContains(t, err, "Bulkhead."+field+":")
	}
	_, err = NewBulkhead(BulkheadConfig{Critical: -1, Normal: -1, Bulk: -1})
	require.ErrorContains(t, err, "Bulkhead.Total: must be positive where no tier has a guarantee")

	b, err := NewBulkhead(BulkheadConfig{Off: true})
	require.NoError(t, err)
	require.Nil(t, b)
}

func TestQ23_X06_ClosingSendsWaitersHomeAndLetsNobodyIn(t *testing.T) {
	inCrew(t, oneSlot(), func(t *testing.T, c *crew) {
		closing := make(chan struct{})
		c.b.closing = closing
		first := c.come("first", PriorityNormal)
		a, b := c.come("a", PriorityCritical), c.come("b", PriorityBulk)
		close(closing)
		synctest.Wait()
		requireShed(t, a.err, ErrClosed)
		requireShed(t, b.err, ErrClosed)
		requireShed(t, c.come("newcomer", PriorityNormal).err, ErrClosed)
		require.True(t, first.flies(), "what flies goes on")
		first.end()
		requireShed(t, c.come("newcomer", PriorityNormal).err, ErrClosed)
		require.Zero(t, c.b.Stats().RecentSheds)
	})
}

func TestQ23_ASlotGrantedWhileClosingIsNotUsed(t *testing.T) {
	inCrew(t, oneSlot(), func(t *testing.T, c *crew) {
		closing := make(chan struct{})
		c.b.closing = closing
		first := c.come("first", PriorityNormal)
		waiters := []*slotTaker{c.come("a", PriorityNormal), c.come("b", PriorityNormal), c.come("c", PriorityNormal)}
		close(closing)
		first.end()
		for _, w := range waiters {
			requireShed(t, w.err, ErrClosed)
		}
	})
}

func TestQ24_SaturatedMeansSomebodyWaits(t *testing.T) {
	inCrew(t, oneSlot(), func(t *testing.T, c *crew) {
		require.False(t, c.b.Stats().Saturated)
		first := c.come("first", PriorityNormal)
		require.False(t, c.b.Stats().Saturated, "full, but nobody waits")
		second := c.come("second", PriorityNormal)
		require.True(t, c.b.Stats().Saturated)
		first.end()
		require.False(t, c.b.Stats().Saturated)
		second.end()
	})
}

func TestQ26_ATotalBelowTheSumWins(t *testing.T) {
	inCrew(t, BulkheadConfig{Critical: 10, Normal: 5, Bulk: 2, Total: 12}, func(t *testing.T, c *crew) {
		var all []*slotTaker
		for i := range 60 {
			all = append(all, c.come(fmt.Sprint(i), []Priority{PriorityBulk, PriorityNormal, PriorityCritical}[i%3]))
			require.LessOrEqual(t, c.b.Stats().InUse, 12)
		}
		for c.b.Stats().InUse > 0 {
			for _, s := range all {
				if s.flies() {
					s.end() // harmless for one that has ended before
					require.LessOrEqual(t, c.b.Stats().InUse, 12)
				}
			}
		}
	})
}

func TestQ28_QueueTimeIsMeasured(t *testing.T) {
	inCrew(t, oneSlot(), func(t *testing.T, c *crew) {
		first, second, third := c.come("1", PriorityBulk), c.come("2", PriorityBulk), c.come("3", PriorityBulk)
		time.Sleep(time.Second)
		require.Equal(t, time.Second, c.b.Stats().OldestWait)
		first.end()
		time.Sleep(2 * time.Second)
		second.end()
		s := c.b.Stats()
		require.EqualValues(t, 2, s.Bulk.Waited)
		require.Equal(t, 4*time.Second, s.Bulk.WaitTotal)
		require.Equal(t, 3*time.Second, s.Bulk.WaitMax)
		require.Zero(t, s.OldestWait)
		third.end()
	})
}

func TestNilBulkheadAdmitsEverything(t *testing.T) {
	var b *Bulkhead
	release, err := b.Acquire(context.Background(), PriorityBulk)
	require.NoError(t, err)
	release()
	next := RoundTripFunc(func(*http.Request) (*http.Response, error) { return ok(""), nil })
	resp, err := b.Wrap(next).RoundTrip(new(http.Request))
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Zero(t, b.Stats())
	require.NoError(t, b.Resize(BulkheadConfig{}))
}

func TestTheCircuitIsAskedBeforeQueueingAndNotBeforeGranting(t *testing.T) {
	inCrew(t, oneSlot(), func(t *testing.T, c *crew) {
		open := (&trip{}).refuse("breaker", ErrOpen)
		c.b.refusal = func(call Call) error {
			require.Equal(t, PriorityCritical, call.Priority)
			return open
		}
		first := c.come("first", PriorityNormal)
		require.True(t, first.flies())
		require.Same(t, open, c.come("second", PriorityCritical).err)
		require.EqualValues(t, 1, c.b.Stats().Critical.Rejected)
		require.Zero(t, c.b.Stats().RecentSheds, "not for lack of a slot")
		first.end()
	})
}

func TestAnOpeningCircuitSendsThoseHomeWhomItRefuses(t *testing.T) {
	inCrew(t, oneSlot(), func(t *testing.T, c *crew) {
		var open atomic.Bool
		c.b.refusal = func(call Call) error {
			c.b.Stats() // not under the lock
			if open.Load() && call.Priority == PriorityBulk {
				return (&trip{}).refuse("breaker", ErrOpen)
			}
			return nil
		}
		first := c.come("first", PriorityNormal)
		bulk, normal := c.come("bulk", PriorityBulk), c.come("normal", PriorityNormal)
		open.Store(true)
		c.b.sendHome()
		synctest.Wait()
		require.ErrorIs(t, bulk.err, ErrOpen)
		require.True(t, normal.waits())
		first.end()
		normal.end()
	})
}

// What a call waits with serves another call after it. While the circuit is asked about one that waited when it opened,
// that one gets its slot, and the next call waits in its place: the answer is not about that.
func TestAnOpeningCircuitDoesNotSendHomeWhoCameAfter(t *testing.T) {
	for range 20 { // to use a waiter again is a matter of luck
		inCrew(t, oneSlot(), func(t *testing.T, c *crew) {
			first, second := c.come("first", PriorityNormal), c.come("second", PriorityNormal)
			var third *slotTaker
			c.b.refusal = func(Call) error {
				if third != nil {
					return nil
				}
				third = &slotTaker{}
				first.end()
				synctest.Wait()
				third = c.come("third", PriorityNormal)
				return (&trip{}).refuse("breaker", ErrOpen)
			}
			c.b.sendHome()
			synctest.Wait()
			require.True(t, second.flies())
			require.True(t, third.waits())
			second.end()
			third.end()
		})
	}
}

// A slot that comes at the same instant as the end of the longest wait is taken, and the word of it, which nobody read,
// does not reach the next call.
func TestTheWordOfOneWaitDoesNotReachTheNext(t *testing.T) {
	b, err := NewBulkhead(BulkheadConfig{Total: 1})
	require.NoError(t, err)
	w := b.waiterOf(nil, &trip{}, tierOf(PriorityNormal))
	b.mu.Lock()
	require.True(t, b.take(w.Tier, 1))
	require.Equal(t, admitted, b.enqueue(w, 1))
	b.mu.Unlock()
	b.giveBack(w.Tier)
	require.NoError(t, b.leave(context.Background(), w, shedMaxWait))
	b.reuse(w)
	require.Empty(t, w.Value.decided)
	require.Equal(t, waitingCall{decided: w.Value.decided}, w.Value)
}

// The circuit answers, opens, and sends home those who wait before the one who asked stands in the queue.
func TestACircuitThatOpensWhileItIsAskedIsAskedAgain(t *testing.T) {
	inCrew(t, oneSlot(), func(t *testing.T, c *crew) {
		asked := 0
		c.b.refusal = func(Call) error {
			if asked++; asked == 1 {
				c.b.sendHome()
				return nil
			}
			return (&trip{}).refuse("breaker", ErrOpen)
		}
		first := c.come("first", PriorityNormal)
		require.ErrorIs(t, c.come("second", PriorityNormal).err, ErrOpen)
		first.end()
	})
}

func TestAGrowingShareLetsWaitersInWithoutAnyRelease(t *testing.T) {
	c := oneSlot()
	c.Total = 10
	inCrew(t, c, func(t *testing.T, c *crew) {
		begin := time.Now()
		c.b.share = func() float64 { return min(1, 0.1+time.Since(begin).Seconds()/2) }
		require.Equal(t, 1, c.b.Stats().Effective)
		var all []*slotTaker
		for i := range 12 {
			all = append(all, c.come(fmt.Sprint(i), PriorityNormal))
		}
		require.Equal(t, 1, c.b.Stats().InUse)
		time.Sleep(time.Second + time.Millisecond)
		synctest.Wait()
		require.Equal(t, 6, c.b.Stats().InUse)
		time.Sleep(time.Second)
		synctest.Wait()
		require.Equal(t, 10, c.b.Stats().InUse)
		require.False(t, c.b.armed, "at the whole share nothing is watched")
		for _, s := range all {
			s.end()
		}
	})
}

func TestAShareOfNothingStillLetsOneIn(t *testing.T) {
	inCrew(t, BulkheadConfig{}, func(t *testing.T, c *crew) {
		c.b.share = func() float64 { return 0 }
		first, second := c.come("1", PriorityBulk), c.come("2", PriorityBulk)
		require.True(t, second.waits())
		require.True(t, c.b.armed)
		second.cancel(nil)
		synctest.Wait()
		require.False(t, c.b.armed, "nobody waits, nothing is watched")
		first.end()
	})
}

func TestTenThousandWaitersHangUpAtOnce(t *testing.T) {
	waiters := 10_000
	if testing.Short() {
		waiters = 1000
	}
	c := oneSlot()
	c.Queue = waiters
	b := newTestBulkhead(t, c)
	release, err := b.Acquire(context.Background(), PriorityNormal)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for range waiters {
		wg.Go(func() { _, _ = b.Acquire(ctx, PriorityNormal) })
	}
	for b.Stats().Waiting < waiters {
		runtime.Gosched()
	}
	cancel()
	wg.Wait()
	release()
	requireIdle(t, b)
	require.EqualValues(t, waiters, b.Stats().Normal.Cancelled)
}

// Everything at once: whatever happens, no more fly than the largest total allows, and at the end every arrival is
// accounted for once and every slot is back.
func TestStress(t *testing.T) {
	workers, calls := 32, 2000
	if testing.Short() {
		calls = 100
	}
	b := newTestBulkhead(t, BulkheadConfig{Critical: 3, Normal: 2, Bulk: 1, Queue: 4, MaxWait: time.Millisecond})
	var refuse atomic.Bool
	var came, flew, flying, worst atomic.Int64
	b.refusal = func(Call) error {
		if refuse.Load() {
			return (&trip{}).refuse("breaker", ErrOpen)
		}
		return nil
	}
	var share atomic.Int64
	share.Store(100)
	b.share = func() float64 { return float64(share.Load()) / 100 }

	stop := make(chan struct{})
	var meddlers, wg sync.WaitGroup
	meddlers.Go(func() {
		rng := rand.New(rand.NewPCG(1, 1))
		for {
			select {
			case <-stop:
				return
			default:
			}
			switch rng.IntN(4) {
			case 0:
				_ = b.Resize(BulkheadConfig{
					Critical: 1 + rng.IntN(3), Normal: 1 + rng.IntN(2), Bulk: -1, Total: 1 + rng.IntN(6),
					Queue: 1 + rng.IntN(6), MaxWait: time.Duration(rng.IntN(1000)) * time.Microsecond, AgeAfter: 50 * time.Microsecond,
				})
			case 1:
				refuse.Store(rng.IntN(3) == 0)
				b.sendHome()
			case 2:
				share.Store(int64(1 + rng.IntN(150)))
			default:
				_ = b.Stats()
			}
			runtime.Gosched()
		}
	})
	for worker := range workers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(2, uint64(worker)))
			for range calls {
				ctx, cancel := context.WithCancel(context.Background())
				if rng.IntN(3) == 0 {
					go cancel()
				}
				came.Add(1)
				release, err := b.Acquire(ctx, Priority(rng.IntN(4)))
				if err == nil {
					flew.Add(1)
					now := flying.Add(1)
					for w := worst.Load(); now > w && !worst.CompareAndSwap(w, now); w = worst.Load() {
					}
					runtime.Gosched()
					flying.Add(-1)
					release()
				}
				cancel()
			}
		})
	}
	wg.Wait()
	close(stop)
	meddlers.Wait()
	require.LessOrEqual(t, worst.Load(), int64(6))
	s := b.Stats()
	require.Zero(t, s.InUse+s.Waiting+s.Critical.InUse+s.Normal.InUse+s.Bulk.InUse)
	require.EqualValues(t, came.Load(), arrivals(s.Critical)+arrivals(s.Normal)+arrivals(s.Bulk))
	require.EqualValues(t, flew.Load(), s.Critical.Granted+s.Normal.Granted+s.Bulk.Granted)
}

func TestAFreeSlotOnTheRoadCostsNoAllocation(t *testing.T) {
	b := newTestBulkhead(t, BulkheadConfig{})
	d := b.Wrap(newInstant()).(leg) //nolint:forcetypeassert // Wrap makes one
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://retell.test/", http.NoBody)
	call := &trip{}
	require.Zero(t, testing.AllocsPerRun(100, func() { _, _ = d.travel(context.Background(), call, req) }))
	require.LessOrEqual(t, testing.AllocsPerRun(100, func() {
		release, _ := b.Acquire(t.Context(), PriorityBulk)
		release()
	}), 2.0)
}

func TestARefusalOnTheRoadNamesTheOperationAndSendsNothing(t *testing.T) {
	c := oneSlot()
	c.Queue = -1
	inCrew(t, c, func(t *testing.T, c *crew) {
		first := c.come("first", PriorityNormal)
		resp, err := roadThrough(c.b, PriorityCritical, func(*http.Request) (*http.Response, error) {
			t.Error("it went down")
			return nil, io.EOF
		})
		require.Nil(t, resp)
		requireShed(t, err, ErrFull)
		var e *Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, "test", e.Operation)
		require.True(t, e.Temporary())
		first.end()
	})
}

// The slot comes free while the opening circuit is asking about the one who waits: it has the slot, and goes on.
func TestWhoeverGotASlotIsNotSentHome(t *testing.T) {
	inCrew(t, oneSlot(), func(t *testing.T, c *crew) {
		var open atomic.Bool
		first := c.come("first", PriorityNormal)
		c.b.refusal = func(Call) error {
			if !open.Load() {
				return nil
			}
			first.end()
			return (&trip{}).refuse("breaker", ErrOpen)
		}
		second := c.come("second", PriorityNormal)
		open.Store(true)
		c.b.sendHome()
		synctest.Wait()
		require.True(t, second.flies())
		require.Zero(t, c.b.Stats().Normal.Rejected)
		second.end()
	})
}

// A share that has grown is noticed by whoever comes next, for those who were there before.
func TestBulkhead_ANewcomerLetsThoseInWhoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, err := NewBulkhead(BulkheadConfig{Total: 2})
		require.NoError(t, err)
		var whole atomic.Bool
		b.share = func() float64 {
			if whole.Load() {
				return 1
			}
			return 0.5
		}
		releases := make(chan func(), 2)
		come := func() {
			release, err := b.Acquire(t.Context(), PriorityNormal)
			if err != nil {
				t.Error(err)
				return
			}
			releases <- release
		}
		first, err := b.Acquire(t.Context(), PriorityNormal)
		require.NoError(t, err)
		began := time.Now()
		go come()
		synctest.Wait()
		whole.Store(true)
		go come()
		synctest.Wait()
		require.Len(t, releases, 1, "the one who waited")
		require.Equal(t, 1, b.Stats().Waiting)
		require.Zero(t, time.Since(began))
		first()
		(<-releases)()
		(<-releases)()
	})
}
