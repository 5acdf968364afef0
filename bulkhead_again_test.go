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
