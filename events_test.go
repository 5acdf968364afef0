package resilience

import (
	"context"
	"log/slog"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// B43: a listener that panics, exits or blocks does not stop the others.
func TestB43_AListenerStopsNoOtherListener(t *testing.T) {
	for name, bad := range map[string]func(){
		"panic":  func() { panic("listener") },
		"goexit": runtime.Goexit,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var before, after heard
				s := newStack(t, Config{
					Breaker: BreakerConfig{MinCalls: 1, OnEvent: func(e Event) { before.listen(e); bad() }},
					OnEvent: func(e Event) {
						if e.Layer == "breaker" {
							after.listen(e)
						}
					},
				})
				report(t, s.Breaker, "F")
				time.Sleep(30 * time.Second)
				report(t, s.Breaker, "S")
				synctest.Wait()
				want := []EventKind{EventCircuitOpen, EventCircuitHalfOpen, EventCircuitClose}
				require.Equal(t, want, before.kinds())
				require.Equal(t, want, after.kinds())
				require.EqualValues(t, 3, s.Breaker.events.stats().Panics)
				closeStack(t, s)
			})
		})
	}
}

// A listener that hangs costs the oldest events, never a callback, and the count comes in their place.
func TestEvents_TheOldestAreDroppedAndCountedInTheirPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []int // attempts; a count of dropped ones is negative, a callback is 0
		hang := make(chan struct{})
		e := newEvents("x", func(ev Event) {
			if ev.Kind == EventEventsDropped {
				require.Equal(t, "x", ev.Layer)
				require.Equal(t, time.Now(), ev.Time)
				got = append(got, -ev.Count)
				return
			}
			got = append(got, ev.Attempt)
			if ev.Attempt%10_000 == 0 {
				<-hang
			}
		})
		flood := func(first, drops int) (want []int) {
			e.emit(Event{Kind: EventRetry, Attempt: first})
			synctest.Wait() // it hangs there
			e.call(func() { got = append(got, 0) })
			for i := range maxQueuedEvents - 1 + drops { // the callback has a place of its own in the bound
				e.emit(Event{Kind: EventRetry, Attempt: first + 1 + i})
			}
			hang <- struct{}{}
			synctest.Wait()
			want = []int{first, -drops, 0}
			for i := drops; i < maxQueuedEvents-1+drops; i++ {
				want = append(want, first+1+i)
			}
			return want
		}
		want := flood(10_000, 7)
		require.Equal(t, want, got)
		require.Equal(t, DeliveryStats{Dropped: 7}, e.stats())
		got = nil
		want = flood(20_000, 1)
		require.Equal(t, want, got, "each drop is reported once")
		require.Equal(t, DeliveryStats{Dropped: 8}, e.stats())
	})
}

// Exactly so many wait without loss, and callbacks beyond them.
func TestEvents_NothingIsDroppedWithinTheBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang, heard, called := make(chan struct{}), 0, 0
		e := newEvents("x", func(Event) {
			<-hang
			heard++
		})
		e.emit(Event{Kind: EventRetry})
		synctest.Wait()
		for range maxQueuedEvents {
			e.emit(Event{Kind: EventRetry})
		}
		for range 10 {
			e.call(func() { called++ })
		}
		close(hang)
		require.NoError(t, e.drain(t.Context()))
		require.Equal(t, 1+maxQueuedEvents, heard)
		require.Equal(t, 10, called)
		require.Zero(t, e.stats())
	})
}

// Goexit takes the delivering goroutine along. Each listener still hears each event once, in order, each callback runs
// once, and whoever waits for the end is told.
func TestEvents_GoexitAndPanicsLoseNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var first, second, calls []int
		misbehave := func(i int) {
			switch i % 3 {
			case 0:
				runtime.Goexit()
			case 1:
				panic("listener")
			}
		}
		e := newEvents("x", func(ev Event) {
			first = append(first, ev.Attempt)
			misbehave(ev.Attempt)
		})
		e.listen(func(ev Event) {
			second = append(second, ev.Attempt)
			misbehave(ev.Attempt + 1)
		})
		var want []int
		for i := range 9 {
			want = append(want, i)
			e.emit(Event{Kind: EventRetry, Attempt: i})
			e.call(func() {
				calls = append(calls, i)
				misbehave(i)
			})
		}
		require.NoError(t, e.drain(t.Context()))
		require.Equal(t, want, first)
		require.Equal(t, want, second)
		require.Equal(t, want, calls)
		require.Equal(t, DeliveryStats{Panics: 18}, e.stats())

		e.emit(Event{Kind: EventRetry, Attempt: 11})
		synctest.Wait()
		require.Equal(t, 11, second[9], "and it goes on")
	})
}

// What is shown of a key is what an operator finds by [Idempotency.ID].
func TestEvents_KeyHashIsTheBeginningOfTheID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h heard
		i := newIdem(t, IdempotencyConfig{OnEvent: h.listen})
		_, err := dial(t.Context(), t, i.Wrap(&phone{}), "k", dialBody)
		require.NoError(t, err)
		synctest.Wait()
		require.NotEmpty(t, h.all)
		for _, e := range h.all {
			require.Equal(t, i.ID("k")[:10], e.KeyHash)
		}
	})
}

// The page of the health view shows events also where nobody listens.
func TestEvents_ARecorderNeedsNoListener(t *testing.T) {
	var kept []Event
	e := newEvents("x", nil)
	e.recorder = func(ev Event) { kept = append(kept, ev) }
	e.emit(Event{Kind: EventRetry})
	require.Len(t, kept, 1)
	require.Equal(t, "x", kept[0].Layer)
	require.False(t, e.running, "no goroutine for nobody")
}

// Every kind has the level that [LogEvents] promises for it.
func TestLogEvents_EveryLevel(t *testing.T) {
	for level, kinds := range map[slog.Level][]EventKind{
		slog.LevelError: {
			EventLetterParked, EventLetterDropped, EventKeyDisputed, EventStoreFailed, EventPanic, EventEventsDropped,
		},
		slog.LevelWarn: {
			EventCircuitOpen, EventCircuitExceeded, EventSlotRejected, EventSlotAbandoned, EventTimeout, EventRetryRefused,
			EventThrottled, EventFallbackServed, EventFallbackFailed, EventKeyReused, EventLetterAdded, EventLetterRefused,
			EventRedrivePaused,
		},
		slog.LevelInfo: {
			EventCircuitHalfOpen, EventCircuitClose, EventCircuitReset, EventSlotReturned, EventLetterRedriven,
			EventLetterDone, EventLetterDeleted,
		},
		slog.LevelDebug: {
			EventRetry, EventAttemptLate, EventRefresh, EventKeyChanged, EventKeyReplayed, EventKeyJoined, EventLookup,
		},
	} {
		for _, kind := range kinds {
			require.Equal(t, level, Event{Kind: kind}.Level(), kind)
		}
	}
}

// Close joins what went wrong in every layer: a bare "context deadline exceeded" would not say where.
func TestEvents_ADrainThatEndsEarlySaysWhose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		heard := make(chan struct{})
		e := newEvents("breaker", func(Event) { <-heard })
		e.emit(Event{Kind: EventRetry})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := e.drain(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.EqualError(t, err, "breaker: not all events had been delivered: context deadline exceeded")
		close(heard)
		require.NoError(t, e.drain(t.Context()))
	})
}
