package resilience

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A slot that comes with the end of MaxWait is as useless in the last moment of the budget as any other.
func TestBulkhead_ASlotInTheLastMomentIsNotUsed(t *testing.T) {
	for range 200 {
		synctest.Test(t, func(t *testing.T) {
			c := oneSlot()
			c.MaxWait = time.Second
			b := newTestBulkhead(t, c)
			release, err := b.Acquire(t.Context(), PriorityNormal)
			require.NoError(t, err)
			time.AfterFunc(time.Second, release)
			sent := 0
			rt := Chain(newTime(t, TimeoutConfig{}).Budget(), b).Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
				sent++
				return answering(200)(req)
			}))
			_, err = fetch(WithBudget(t.Context(), time.Second+5*time.Millisecond), t, rt)
			require.Error(t, err)
			require.Zero(t, sent)
			synctest.Wait()
			requireIdle(t, b)
		})
	}
}

// refusedOne is what the circuit says about one call.
type refusedOne struct{ who string }

func (r *refusedOne) Error() string { return r.who }

func (r *refusedOne) Unwrap() error { return ErrOpen }

// Everything that may end a wait happens at once, to calls that have names. What ends a call is about that call, the slots
// counted are those that were given, and after the end of it all nothing is left.
func TestBulkhead_WhatEndsAWaitIsAboutThatCall(t *testing.T) {
	for seed := range uint64(2) {
		whoseEnd(t, seed)
	}
}

func whoseEnd(t *testing.T, seed uint64) {
	const workers, calls = 24, 100
	b := newTestBulkhead(t, BulkheadConfig{Critical: 2, Normal: 1, Bulk: 1, Queue: 6})
	closing := make(chan struct{})
	b.closing = closing
	var round atomic.Int64
	b.refusal = func(c Call) error {
		n, _ := strconv.Atoi(c.Operation)
		if (int64(n)+round.Load())%7 == 0 {
			return &refusedOne{c.Operation}
		}
		return nil
	}
	var share atomic.Int64
	share.Store(100)
	b.share = func() float64 { return float64(share.Load()) / 100 }
	var counts [8]atomic.Int64
	stop := make(chan struct{})
	var meddler, wg sync.WaitGroup
	meddler.Go(func() {
		rng := rand.New(rand.NewPCG(seed, 1))
		for {
			select {
			case <-stop:
				return
			default:
			}
			switch rng.IntN(6) {
			case 0:
				_ = b.Resize(BulkheadConfig{
					Critical: 1 + rng.IntN(3), Normal: 1 + rng.IntN(2), Bulk: -1, Total: 1 + rng.IntN(6),
					Queue: 1 + rng.IntN(6), MaxWait: time.Duration(rng.IntN(100)) * time.Microsecond, AgeAfter: 20 * time.Microsecond,
				})
			case 1, 2, 3:
				round.Add(1)
				b.sendHome()
			case 4:
				share.Store(int64(20 + rng.IntN(100)))
			default:
				_ = b.Stats()
			}
			runtime.Gosched()
		}
	})
	var came atomic.Int64
	for worker := range workers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(worker)+2))
			for n := range calls {
				if worker == 0 && n == calls*9/10 {
					close(closing)
				}
				cause := fmt.Errorf("%d of %d", n, worker)
				ctx, cancel := context.WithCancelCause(context.Background())
				canceled := rng.IntN(3) == 0
				if canceled {
					go cancel(cause)
				}
				tr := &trip{call: Call{Operation: strconv.Itoa(worker*1000 + n), Priority: Priority(1 + rng.IntN(3))}}
				came.Add(1)
				down := false
				_, err := b.pass(ctx, tr, nil, legFunc(func(*trip, *http.Request) (*http.Response, error) {
					down = true
					if rng.IntN(2) == 0 {
						runtime.Gosched()
					}
					return reply(200, ""), nil
				}))
				var refused *refusedOne
				switch {
				case down != (err == nil):
					t.Errorf("down %v, %v", down, err)
				case down:
					counts[0].Add(1)
				case errors.As(err, &refused):
					counts[1].Add(1)
					if refused.who != tr.call.Operation {
						t.Errorf("%s got the refusal of %s", tr.call.Operation, refused.who)
					}
				case errors.Is(err, context.Canceled):
					counts[2].Add(1)
					if !canceled || !errors.Is(err, cause) {
						t.Error(err)
					}
				case errors.Is(err, ErrFull), errors.Is(err, ErrClosed):
					var e *Error
					if !errors.As(err, &e) || e.Operation != tr.call.Operation {
						t.Errorf("%v is not about %s", err, tr.call.Operation)
					}
					switch {
					case errors.Is(err, errDisplaced):
						counts[3].Add(1)
						if tr.call.Priority != PriorityBulk {
							t.Error(tr.call.Priority)
						}
					case errors.Is(err, errMaxWait):
						counts[4].Add(1)
					case errors.Is(err, ErrClosed):
						counts[5].Add(1)
					default:
						counts[6].Add(1)
					}
				default:
					t.Error(err)
				}
				cancel(nil)
			}
		})
	}
	wg.Wait()
	close(stop)
	meddler.Wait()
	b.mu.Lock()
	b.watchShare(1)
	b.mu.Unlock()
	requireIdle(t, b)
	s := b.Stats()
	require.EqualValues(t, came.Load(), arrivals(s.Critical)+arrivals(s.Normal)+arrivals(s.Bulk))
	require.EqualValues(t, counts[0].Load(), s.Critical.Granted+s.Normal.Granted+s.Bulk.Granted)
	require.EqualValues(t, counts[3].Load(), s.Bulk.Displaced)
	require.EqualValues(t, counts[2].Load(), s.Critical.Cancelled+s.Normal.Cancelled+s.Bulk.Cancelled)
}

// What ends with a slot leaves its waiter to the next call; what ended otherwise may still be known to somebody.
func TestBulkhead_AWaiterServesTheNextCall(t *testing.T) {
	inCrew(t, oneSlot(), func(t *testing.T, c *crew) {
		const waits = 100 // each uses a waiter again most of the time, and not always
		used := map[*waiter]bool{}
		holder := c.come("", PriorityNormal)
		for range waits {
			next := c.come("", PriorityBulk)
			for w := range c.b.book.All {
				used[w] = true
			}
			holder.end()
			holder = next
		}
		holder.end()
		require.Less(t, len(used), waits)
	})
}

// A call came when it came, though the circuit is asked about it before it waits.
func TestBulkhead_TheWaitBeginsWithTheArrival(t *testing.T) {
	inCrew(t, oneSlot(), func(t *testing.T, c *crew) {
		first := c.come("first", PriorityNormal)
		c.b.refusal = func(Call) error { time.Sleep(time.Second); return nil }
		second := c.come("second", PriorityNormal)
		time.Sleep(3 * time.Second)
		require.Equal(t, 3*time.Second, c.b.Stats().OldestWait)
		first.end()
		second.end()
		require.Equal(t, 3*time.Second, c.b.Stats().Normal.WaitMax)
	})
}

// While the opening circuit is asked about a call its caller hangs up: that is how it ended, once.
func TestBulkhead_WhoeverLeftIsNotSentHome(t *testing.T) {
	inCrew(t, oneSlot(), func(t *testing.T, c *crew) {
		first, second := c.come("first", PriorityNormal), c.come("second", PriorityNormal)
		c.b.refusal = func(Call) error {
			second.cancel(nil)
			synctest.Wait()
			return (&trip{}).refuse("breaker", ErrOpen)
		}
		c.b.sendHome()
		require.ErrorIs(t, second.err, context.Canceled)
		s := c.b.Stats().Normal
		require.Equal(t, []uint64{0, 1}, []uint64{s.Rejected, s.Cancelled})
		first.end()
	})
}

// A call that is sent away when its time is nearly up hears why it was sent away.
func TestBulkhead_WhoIsSentHomeLateHearsWhy(t *testing.T) {
	inCrew(t, oneSlot(), func(t *testing.T, c *crew) {
		first := c.come("first", PriorityNormal)
		var open atomic.Bool
		c.b.refusal = func(Call) error {
			if open.Load() {
				return (&trip{}).refuse("breaker", ErrOpen)
			}
			return nil
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		done := make(chan error, 1)
		go func() {
			_, err := c.b.pass(ctx, &trip{road: legFunc(nil)}, nil, nil)
			done <- err
		}()
		time.Sleep(time.Second - useful/2)
		open.Store(true)
		c.b.sendHome()
		err := <-done
		require.ErrorIs(t, err, ErrOpen)
		require.NotErrorIs(t, err, ErrTimeout)
		s := c.b.Stats().Normal
		require.Equal(t, []uint64{1, 0}, []uint64{s.Rejected, s.Cancelled})
		first.end()
	})
}

// The event of a rejection says how long the call waited, whenever it came.
func TestBulkhead_ARejectionSaysHowLongTheCallWaited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h heard
		c := oneSlot()
		c.MaxWait, c.OnEvent = 2*time.Second, h.listen
		b := newTestBulkhead(t, c)
		time.Sleep(time.Hour)
		release, err := b.Acquire(t.Context(), PriorityNormal)
		require.NoError(t, err)
		_, err = b.Acquire(t.Context(), PriorityNormal)
		requireShed(t, err, ErrFull)
		synctest.Wait()
		require.Len(t, h.all, 1)
		require.Equal(t, "max-wait", h.all[0].Cause)
		require.Equal(t, 2*time.Second, h.all[0].Duration)
		require.Equal(t, 1, b.Stats().RecentSheds, "it was lost for lack of a slot")
		release()
	})
}

// Waits are measured from where they began, on a bulkhead of any age.
func TestBulkhead_QueueTimeOnAnOldBulkhead(t *testing.T) {
	inCrew(t, oneSlot(), func(t *testing.T, c *crew) {
		time.Sleep(time.Hour)
		first, second := c.come("1", PriorityBulk), c.come("2", PriorityBulk)
		time.Sleep(time.Second)
		require.Equal(t, time.Second, c.b.Stats().OldestWait)
		first.end()
		require.Equal(t, time.Second, c.b.Stats().Bulk.WaitMax)
		require.Equal(t, time.Second, c.b.Stats().Bulk.WaitTotal)
		second.end()
	})
}

// Whichever way the last one who waits goes, the timer that watches the share stops.
func TestBulkhead_NobodyWatchesTheShareForNobody(t *testing.T) {
	ends := map[string]func(c *crew, w *slotTaker, p Priority){
		"sent home": func(c *crew, _ *slotTaker, p Priority) {
			c.b.refusal = func(call Call) error {
				if call.Priority == p {
					return (&trip{}).refuse("breaker", ErrOpen)
				}
				return nil
			}
			c.b.sendHome()
		},
		"hangs up": func(_ *crew, w *slotTaker, _ Priority) { w.cancel(errors.New("enough")) },
	}
	for name, end := range ends {
		c := oneSlot()
		c.Total = 10
		inCrew(t, c, func(t *testing.T, c *crew) {
			c.b.share = func() float64 { return 0.1 }
			first, second := c.come("1", PriorityNormal), c.come("2", PriorityNormal)
			third := c.come("3", PriorityCritical)
			require.True(t, c.b.armed)
			end(c, second, PriorityNormal)
			synctest.Wait()
			require.True(t, c.b.armed, name)
			end(c, third, PriorityCritical)
			synctest.Wait()
			require.False(t, c.b.armed, name)
			require.False(t, c.b.recheck.Stop(), "%s: the timer runs on", name)
			first.end()
		})
	}
}

// AgeAfter is 5 s where nothing else is said.
func TestBulkhead_TheDefaultAge(t *testing.T) {
	inCrew(t, BulkheadConfig{Critical: -1, Normal: -1, Bulk: -1, Total: 1}, func(t *testing.T, c *crew) {
		holder := c.come("holder", PriorityCritical)
		bulk := c.come("bulk", PriorityBulk)
		time.Sleep(5*time.Second - 1)
		urgent := c.come("urgent", PriorityCritical)
		holder.end()
		require.True(t, urgent.flies(), "a moment before")
		time.Sleep(1)
		later := c.come("later", PriorityCritical)
		urgent.end()
		require.True(t, bulk.flies())
		bulk.end()
		later.end()
	})
}

// Q28: what was spent in the queue is taken off what the attempt may take.
func TestQ28_QueueTimeIsTakenOffTheBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Bulkhead: BulkheadConfig{Critical: -1, Normal: 1, Bulk: -1}, Timeout: TimeoutConfig{Total: 8 * time.Second, Request: 8 * time.Second}})
		release, err := s.Bulkhead.Acquire(t.Context(), PriorityNormal)
		require.NoError(t, err)
		time.AfterFunc(5*time.Second, release)
		start := time.Now()
		_, err = fetch(t.Context(), t, s.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			deadline, ok := req.Context().Deadline()
			require.True(t, ok)
			require.Equal(t, 3*time.Second, time.Until(deadline))
			return slow(time.Minute)(req)
		})))
		require.ErrorIs(t, err, ErrTimeout)
		require.Equal(t, 8*time.Second, time.Since(start))
		require.Equal(t, 5*time.Second, s.Stats().Bulkhead.Normal.WaitMax)
		closeStack(t, s)
	})
}

// A circuit that opens just after it was asked, and has sent those home who waited, is asked again by whoever was not among
// them yet.
func TestBulkhead_ACircuitThatOpensBetweenAskingAndWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, err := NewBulkhead(BulkheadConfig{Critical: -1, Normal: 1, Bulk: -1})
		require.NoError(t, err)
		asked := 0
		b.refusal = func(Call) error {
			if asked++; asked == 1 {
				b.sendHome()
				return nil
			}
			return ErrOpen
		}
		release, err := b.Acquire(t.Context(), PriorityNormal)
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		_, err = b.Acquire(ctx, PriorityNormal)
		require.ErrorIs(t, err, ErrOpen)
		require.Equal(t, 2, asked)
		release()
		require.Zero(t, b.Stats().InUse)
	})
}

func TestBulkhead_ResizeBelowWaitersAndBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, err := NewBulkhead(BulkheadConfig{Total: 2})
		require.NoError(t, err)
		r1, _ := b.Acquire(t.Context(), PriorityBulk)
		r2, _ := b.Acquire(t.Context(), PriorityBulk)
		got := make(chan func(), 10)
		for range 10 {
			go func() {
				if r, err := b.Acquire(t.Context(), PriorityNormal); err == nil {
					got <- r
				}
			}()
		}
		synctest.Wait()
		require.NoError(t, b.Resize(BulkheadConfig{Total: 1, Queue: -1}))
		r1()
		synctest.Wait()
		require.Empty(t, got)
		r2()
		synctest.Wait()
		require.Len(t, got, 1)
		require.NoError(t, b.Resize(BulkheadConfig{Total: 20}))
		synctest.Wait()
		require.Len(t, got, 10)
		for range 10 {
			(<-got)()
		}
		require.Zero(t, b.Stats().InUse)
	})
}

func TestBulkhead_ASlotThatComesWithTheEndOfMaxWaitIsWelcome(t *testing.T) {
	b, err := NewBulkhead(BulkheadConfig{Total: 1})
	require.NoError(t, err)
	release, err := b.Acquire(t.Context(), PriorityNormal)
	require.NoError(t, err)
	tier := tierOf(PriorityNormal)
	w := b.waiterOf(nil, &roadless[tier], tier)
	b.mu.Lock()
	require.Equal(t, admitted, b.enqueue(w, 1))
	b.mu.Unlock()
	release()
	require.NoError(t, b.leave(t.Context(), w, shedMaxWait))
	require.Equal(t, 1, b.Stats().InUse)
	b.giveBack(tier)
	require.Zero(t, b.Stats().InUse)
}

func TestBulkhead_WhoCameTooLateIsNoShed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, err := NewBulkhead(BulkheadConfig{})
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		time.Sleep(2 * time.Second)
		_, err = b.Acquire(ctx, PriorityNormal)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Zero(t, b.Stats().RecentSheds)
	})
}
