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

// A third caller gets ErrInFlight in the same process.
func TestIdempotency_TheThirdWaitsForTheFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIdem(t, IdempotencyConfig{})
		release := make(chan struct{})
		var n atomic.Int64
		between := LayerFunc(func(next http.RoundTripper) http.RoundTripper {
			return RoundTripFunc(func(req *http.Request) (*http.Response, error) {
				if n.Add(1) == 1 {
					<-release // a layer that is slow to hear of the end
					return nil, errors.New("gone")
				}
				return next.RoundTrip(req)
			})
		})
		rt := Chain(i.Claim(), between, i.Intent()).Wrap(&phone{})
		for range 2 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			_, err := dial(ctx, t, rt, "k", dialBody)
			cancel()
			require.ErrorIs(t, err, context.DeadlineExceeded)
			synctest.Wait()
		}
		time.AfterFunc(time.Second, func() { close(release) })
		_, err := dial(t.Context(), t, rt, "k", dialBody)
		if err != nil {
			time.Sleep(2 * time.Second)
		}
		require.NoError(t, err)
	})
}

func TestIdempotency_AKnownOutcomeDoesNotWaitForTheWire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, rt, p, letGo := hungCall(t)
		asked := time.Now()
		resp, err := dial(t.Context(), t, rt, "k", dialBody)
		took := time.Since(asked)
		letGo()
		closeStack(t, s)
		require.NoError(t, err)
		require.Equal(t, 200, resp.StatusCode)
		require.Zero(t, took)
		require.Equal(t, 1, p.rang())
	})
}

// Nobody else gets the key while its holder waits to try again.
func TestIdempotency_AKeyStaysClaimedBetweenTwoTries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &sharedStore{NewMemoryStore(0)}
		a := newStack(t, Config{Idempotency: IdempotencyConfig{Store: store}})
		b := newStack(t, Config{Idempotency: IdempotencyConfig{Store: store}})
		p := &phone{before: func(_ *http.Request, n int) (*http.Response, error) {
			if n == 1 {
				return reply(429, "{}", "Retry-After", "10"), nil
			}
			return nil, nil
		}}
		first := make(chan error, 1)
		go func() { _, err := dial(context.Background(), t, a.Wrap(p), "k", dialBody); first <- err }()
		time.Sleep(5 * time.Second)
		_, err := dial(t.Context(), t, b.Wrap(p), "k", dialBody)
		require.ErrorIs(t, err, ErrInFlight)
		require.NoError(t, <-first)
		require.Equal(t, 1, p.rang())
		closeStack(t, a)
		closeStack(t, b)
	})
}

func TestIdempotency_AJoinerMayWaitLongerThanItsLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{DLQ: DLQConfig{Off: true}, Bulkhead: BulkheadConfig{Total: 1}})
		p := &phone{}
		rt := s.Wrap(p)
		ctx, cancel := context.WithCancel(t.Context())
		go s.Run(ctx)
		release, err := s.Bulkhead.Acquire(t.Context(), PriorityNormal)
		require.NoError(t, err)
		time.AfterFunc(30*time.Second, release)
		k := WithIdempotencyKey(t.Context(), "k")
		go postCall(WithBudget(k, 2*time.Second), rt, dialBody)
		time.Sleep(time.Second)
		_, err = postCall(WithBudget(k, time.Minute), rt, dialBody)
		cancel()
		require.NoError(t, err)
		closeStack(t, s)
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
