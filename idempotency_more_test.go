package resilience

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

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

// Idempotency that was left out of a stack is nil, and no method of it may end the program.
func TestIdempotency_NilIsSafe(t *testing.T) {
	s := newStack(t, Config{Idempotency: IdempotencyConfig{Off: true}})
	keys := s.Idempotency
	require.Nil(t, keys)
	require.Empty(t, keys.ID("k"))
	record, err := keys.Lookup(t.Context(), "k")
	require.NoError(t, err)
	require.Equal(t, KeyFree, record.State)
	unsettled, err := keys.Unsettled(t.Context(), 1)
	require.NoError(t, err)
	require.Empty(t, unsettled)
	require.Error(t, keys.Resolve(t.Context(), "k", Resolution{State: KeyNotApplied, Reason: "it is off"}), "nothing was resolved")
	require.NoError(t, keys.Observe(t.Context(), Evidence{ID: "x"}))
	require.NoError(t, keys.Forget(t.Context(), "k"))
	require.Zero(t, keys.Stats())
	closeStack(t, s)
}
