package resilience

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestD15_CloseWaitsAndKeepsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, w, rt := dlqParked(t, DLQConfig{})
		w.set(func(_ int, req *http.Request) (*http.Response, error) {
			<-req.Context().Done()
			return nil, req.Context().Err()
		})
		stop := dlqRun(t, d)
		time.Sleep(time.Second)
		require.Equal(t, 1, d.Stats().Running)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began := time.Now()
		require.ErrorContains(t, d.close(ctx), "1 redrives")
		require.Equal(t, time.Minute, time.Since(began))
		synctest.Wait()
		require.True(t, dlqOnly(t, d).InDoubt, "it was on the wire")
		require.Zero(t, d.Stats().Running)
		require.ErrorIs(t, d.Add(Letter{Operation: "x"}), ErrClosed)
		require.Equal(t, RedriveClosed, d.Redrive(t.Context()).Status)
		w.set(dlqError(errDLQRefused))
		_, err := dlqCall(t.Context(), rt, http.MethodPost, "k2")
		require.ErrorIs(t, err, ErrLettersFull)
		require.True(t, NotSent(err))
		d.run(t.Context())
		require.NoError(t, d.close(t.Context()))
		stop()
		dlqConserved(t, d)
	})
}

func TestD15_CloseWaitsForARedriveThatEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, w, _ := dlqParked(t, DLQConfig{})
		w.set(func(n int, req *http.Request) (*http.Response, error) {
			time.Sleep(10 * time.Second)
			return dlqStatus(201)(n, req)
		})
		stop := dlqRun(t, d)
		time.Sleep(time.Second)
		require.NoError(t, d.close(t.Context()))
		require.Zero(t, d.Len())
		stop()
	})
}

func TestD17_RedriveTellsItsEndsApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := mustDLQ(t, DLQConfig{})
		bad := errors.New("bad")
		d.Handle("ok", func(context.Context, Letter) error { return nil })
		d.Handle("bad", func(context.Context, Letter) error { return bad })
		require.Equal(t, RedriveResult{Status: RedriveEmpty}, d.Redrive(t.Context()))
		require.NoError(t, d.Add(Letter{ID: "1", Operation: "bad"}))
		next := dlqOnly(t, d).Next
		require.Equal(t, RedriveResult{Status: RedriveNotDue, Next: next}, d.Redrive(t.Context()))
		for i := range 5 {
			require.NoError(t, d.Add(Letter{ID: fmt.Sprint("ok", i), Operation: "ok"}))
		}
		time.Sleep(time.Second)
		r := d.Redrive(t.Context())
		require.Equal(t, []any{RedriveFailed, "1", bad}, []any{r.Status, r.LetterID, r.Err})
		for i := range 5 { // a failure in front does not stop the good ones
			r := d.Redrive(t.Context())
			require.Equal(t, RedriveResult{Status: RedriveDone, LetterID: fmt.Sprint("ok", i)}, r)
		}
		dlqConserved(t, d)
	})
}

func TestD18_WhatHealthReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := mustDLQ(t, DLQConfig{})
		require.Zero(t, d.Stats())
		due := time.Now().Add(time.Hour)
		require.NoError(t, d.Add(Letter{Operation: "a", Next: due}))
		require.NoError(t, d.Add(Letter{ID: "poison", Operation: "b", Next: time.Now()}))
		require.NoError(t, d.Add(Letter{Operation: "c", InDoubt: true, Next: due.Add(1)}))
		require.Equal(t, RedriveParked, d.Redrive(t.Context()).Status)
		time.Sleep(30 * time.Minute)
		s := d.Stats()
		require.Equal(t, []int{3, 1, 1, 0, 1, 0}, []int{s.Letters, s.Waiting, s.InDoubt, s.Leased, s.Parked, s.Superseded})
		require.Equal(t, 30*time.Minute, s.OldestAge)
		require.True(t, s.NextDue.Equal(due))
		require.Equal(t, s, d.Stats(), "reading changes nothing")
	})
}

func TestDLQEventsShowNoKeyAndNoCallbackHarms(t *testing.T) {
	var mu sync.Mutex
	var events []Event
	d := mustDLQ(t, DLQConfig{
		Attempts: 1, OnParked: func(Letter) { panic("x") },
		OnEvent: func(e Event) { mu.Lock(); defer mu.Unlock(); events = append(events, e) },
	})
	d.Handle("op", func(context.Context, Letter) error { return errors.New("call +1 555 0100") })
	require.NoError(t, d.Add(Letter{Operation: "op", Key: "secret-key", Next: time.Now()}))
	require.Equal(t, RedriveParked, d.Redrive(t.Context()).Status)
	require.NoError(t, d.events.drain(t.Context()))
	mu.Lock()
	defer mu.Unlock()
	require.Len(t, events, 3)
	for _, e := range events {
		require.NotContains(t, fmt.Sprintf("%+v", e), "secret-key")
		require.NotContains(t, fmt.Sprintf("%+v", e), "call +1")
		require.Len(t, e.KeyHash, 10)
	}
	require.NotContains(t, dlqOnly(t, d).Detail, "call +1")
	require.EqualValues(t, 1, d.Stats().Delivery.Panics)
}

// Whatever happens, in whatever order: nothing gets lost without a word.
func TestDLQConservation(t *testing.T) {
	for seed := range uint64(40) {
		synctest.Test(t, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 7))
			policy := []Overflow{OverflowRejectNew, OverflowDropOldest}[rng.IntN(2)]
			d := mustDLQ(t, DLQConfig{
				MaxLetters: 5 + rng.IntN(20), MaxBytes: 64 << 10, Overflow: policy, OnDrop: func(Letter) {}, Attempts: 2,
			})
			d.reconcile = func(context.Context, string) keyNews { return newsNow(keyVerdict(rand.IntN(3))) }
			codes := []int{200, 200, 400, 401, 404, 409, 429, 500, 503}
			w := &dlqWorld{}
			w.set(func(n int, req *http.Request) (*http.Response, error) {
				if n%5 == 0 {
					return nil, errors.New("reset")
				}
				return dlqStatus(codes[n%len(codes)])(n, req)
			})
			rt := d.Wrap(w)
			id := func() string {
				if all := d.List(LetterFilter{}); len(all) > 0 {
					return all[rng.IntN(len(all))].ID
				}
				return ""
			}
			for range 300 {
				key := fmt.Sprint("k", rng.IntN(40))
				switch rng.IntN(9) {
				case 0, 1:
					ctx := WithCall(t.Context(), Call{Resource: fmt.Sprint("r", rng.IntN(4))})
					_, _ = dlqCall(ctx, rt, []string{"PUT", "POST"}[rng.IntN(2)], key)
				case 2:
					_ = d.Add(Letter{Operation: "x", Method: "PUT", URL: "http://h/", Key: key, Body: make([]byte, rng.IntN(9<<10))})
				case 3, 4:
					d.Redrive(t.Context())
				case 5:
					_ = d.Delete(id(), "")
				case 6:
					_ = d.Requeue(id())
				case 7:
					d.settle(key, newsNow(keyVerdict(rng.IntN(3))))
				case 8:
					time.Sleep(time.Duration(rng.IntN(20)) * time.Minute)
				}
				dlqConserved(t, d)
				require.LessOrEqual(t, d.Len(), d.cfg.MaxLetters)
				require.LessOrEqual(t, d.Stats().Bytes, d.cfg.MaxBytes)
				require.Equal(t, len(d.box.byID), len(d.box.byKey))
			}
			for _, l := range d.List(LetterFilter{}) {
				require.NoError(t, d.Delete(l.ID, ""))
			}
			s := d.Stats()
			require.Zero(t, s.Letters)
			require.Zero(t, s.Bytes)
			require.Zero(t, d.box.looseBytes)
			require.Empty(t, d.box.byResource)
			for _, q := range d.box.queues() {
				require.Zero(t, q.Len())
			}
		})
	}
}

// Close begins with its call, not with the end of what it waits for: no letter is redriven any more, also not by who asks.
func TestD15_NoRedriveBeginsOnceCloseHasBegun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{})
		worked := 0
		s.DLQ.Handle("work", func(context.Context, Letter) error { worked++; return nil })
		rt := s.Wrap(&phone{answer: func(*http.Request, int) (*http.Response, error) {
			time.Sleep(10 * time.Second)
			return reply(201, "{}"), nil
		}})
		flying, closed := make(chan error, 1), make(chan error, 1)
		go func() { _, err := dial(t.Context(), t, rt, "a", dialBody); flying <- err }()
		synctest.Wait()
		require.NoError(t, s.DLQ.Add(Letter{Operation: "work", Next: time.Now()}))
		go func() { closed <- s.Close(context.Background()) }()
		synctest.Wait()
		r := s.DLQ.Redrive(t.Context())
		require.Equal(t, RedriveClosed, r.Status)
		require.ErrorIs(t, r.Err, ErrClosed)
		require.Zero(t, worked)
		require.NoError(t, <-flying)
		require.NoError(t, <-closed)
		require.Equal(t, 1, s.DLQ.Stats().Waiting)
	})
}

// Who stops the runner gets it back when its redrives have ended, and not before; a closed queue ends it as well.
func TestD06_TheRunnerEndsAfterItsRedrives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, w, _ := dlqParked(t, DLQConfig{})
		w.set(func(n int, req *http.Request) (*http.Response, error) {
			time.Sleep(time.Hour)
			return dlqStatus(200)(n, req)
		})
		stop := dlqRun(t, d)
		time.Sleep(time.Minute)
		require.Equal(t, 1, d.Stats().Running)
		stop()
		require.Zero(t, d.Stats().Running)
		done := make(chan struct{})
		go func() { defer close(done); d.run(t.Context()) }()
		synctest.Wait()
		require.NoError(t, d.close(t.Context()))
		<-done
	})
}
