package resilience

import (
	"context"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Where the user trusts the API's keys, a call with the key of a letter in doubt is sent again; what is asked at the last
// moment knows that.
func TestOneOwner_ACallUnderTheKeyOfALetterInDoubtIsSentAgainWhereThatIsTrusted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Idempotency: IdempotencyConfig{Reconcile: &idReader{}, ServerKeys: ServerKeysTrust}})
		p := &phone{answer: lostAnswer}
		rt := s.Wrap(p)
		_, err := dial(t.Context(), t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		require.True(t, dlqOnly(t, s.DLQ).InDoubt)
		p.answer = nil
		resp, err := dial(t.Context(), t, rt, "k", dialBody)
		require.NoError(t, err)
		require.Equal(t, 201, resp.StatusCode)
		require.Zero(t, s.DLQ.Len())
		closeStack(t, s)
	})
}

// Who joins a redrive that fails.
func TestOneOwner_WhoJoinsARedriveIsToldWhoseItIs(t *testing.T) {
	for name, out := range map[string]struct {
		resp func() *http.Response
		err  error
	}{
		"not sent": {err: errDLQRefused},
		"429":      {resp: func() *http.Response { return reply(429, "{}") }},
		"401":      {resp: func() *http.Response { return reply(401, "{}") }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStack(t, Config{Retry: RetryConfig{Off: true}})
				answer := func() (*http.Response, error) { return nil, errDLQRefused }
				rt := s.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) { return answer() }))
				_, err := dial(t.Context(), t, rt, "k", dialBody)
				require.ErrorIs(t, err, ErrParked)
				release := make(chan struct{})
				answer = func() (*http.Response, error) {
					<-release
					if out.resp != nil {
						return out.resp(), nil
					}
					return nil, out.err
				}
				time.Sleep(2 * time.Second)
				result := make(chan RedriveResult)
				go func() { result <- s.DLQ.Redrive(t.Context()) }()
				synctest.Wait()
				time.AfterFunc(time.Second, func() { close(release) })
				_, err = dial(t.Context(), t, rt, "k", dialBody)
				<-result
				l := dlqOnly(t, s.DLQ)
				closeStack(t, s)
				require.Equal(t, LetterWaiting, l.State(), "the queue will send it")
				require.ErrorIs(t, err, ErrParked)
				require.False(t, NotSent(err))
			})
		})
	}
}

func TestOneOwner_ARedriveThatMeetsACall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{
			Idempotency: IdempotencyConfig{Store: slowWrites{NewMemoryStore(0)}},
			DLQ: DLQConfig{Authorize: func(context.Context, Letter, *http.Request) error {
				time.Sleep(100 * time.Millisecond)
				return nil
			}},
		})
		var down atomic.Bool
		down.Store(true)
		p := &phone{before: func(*http.Request, int) (*http.Response, error) {
			if down.Load() {
				return nil, errDLQRefused
			}
			return nil, nil
		}}
		rt := s.Wrap(p)
		_, err := dial(t.Context(), t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrParked)
		down.Store(false)
		time.Sleep(5 * time.Second)
		result := make(chan RedriveResult)
		go func() { result <- s.DLQ.Redrive(t.Context()) }()
		time.Sleep(95 * time.Millisecond)
		_, err = dial(t.Context(), t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrParked)
		<-result
		l := s.DLQ.List(LetterFilter{})
		closeStack(t, s)
		for _, l := range l {
			require.False(t, l.InDoubt, "nothing was sent")
		}
	})
}

// Whoever believes NotSent rings twice.
func TestOneOwner_NotSentIsTrueOfAJoinedRedrive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Retry: RetryConfig{Off: true}})
		var mu sync.Mutex
		rang, answer := 0, func() (*http.Response, error) { return nil, errDLQRefused }
		set := func(f func() (*http.Response, error)) { mu.Lock(); defer mu.Unlock(); answer = f }
		rt := s.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			mu.Lock()
			f := answer
			mu.Unlock()
			return f()
		}))
		_, err := dial(t.Context(), t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrParked)
		set(func() (*http.Response, error) { time.Sleep(time.Second); return nil, errDLQRefused })
		time.Sleep(2 * time.Second)
		go s.DLQ.Redrive(context.Background())
		synctest.Wait()
		_, err = dial(t.Context(), t, rt, "k", dialBody) // joins the redrive
		set(func() (*http.Response, error) { rang++; return reply(201, `{"call_id":"c"}`), nil })
		if NotSent(err) { // "provably nothing happened: safe to try again", and nobody said that a letter owns it
			_, err = dial(t.Context(), t, rt, "another key", dialBody)
			require.NoError(t, err)
		}
		time.Sleep(10 * time.Minute)
		s.DLQ.Redrive(context.Background())
		closeStack(t, s)
		require.Equal(t, 1, rang)
	})
}

// A letter falls due while the call that made it still gives its key back, which takes 10 ms.
func TestOneOwner_ALetterThatIsDueAtOnceIsNotInDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{
			Idempotency: IdempotencyConfig{Store: slowWrites{NewMemoryStore(0)}},
			DLQ:         DLQConfig{Base: time.Millisecond}, // the default's random delay may be as short
			Bulkhead:    BulkheadConfig{Total: 1, Queue: -1},
		})
		p := &phone{}
		rt := s.Wrap(p)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		release, err := s.Bulkhead.Acquire(t.Context(), PriorityCritical)
		require.NoError(t, err)
		_, err = dial(t.Context(), t, rt, "k", dialBody) // no slot, no queue: nothing is sent
		require.ErrorIs(t, err, ErrParked)
		require.ErrorIs(t, err, ErrFull)
		require.NotErrorIs(t, err, ErrInDoubt)
		release()
		time.Sleep(30 * time.Minute)
		letters := s.DLQ.List(LetterFilter{})
		cancel()
		require.NoError(t, <-done)
		closeStack(t, s)
		require.Empty(t, letters, "nothing was ever sent for it, and the other side is back")
		require.Equal(t, 1, p.rang())
	})
}

// A redrive that ends in the queue for a slot while a caller with its key still waits there.
func TestOneOwner_ARedriveThatLeavesAJoinerBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Bulkhead: BulkheadConfig{Total: 1}})
		p := &phone{}
		rt := s.Wrap(p)
		s.Breaker.ForceOpen()
		_, err := dial(t.Context(), t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrParked)
		s.Breaker.Reset()
		release, err := s.Bulkhead.Acquire(t.Context(), PriorityCritical)
		require.NoError(t, err)
		time.Sleep(5 * time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		result := make(chan RedriveResult, 1)
		go func() { result <- s.DLQ.Redrive(ctx) }()
		synctest.Wait()
		patient, cancel2 := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel2()
		_, err = dial(patient, t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrParked)
		<-result
		release()
		for range 20 {
			time.Sleep(time.Minute)
			s.DLQ.Redrive(t.Context())
		}
		left := s.DLQ.List(LetterFilter{})
		closeStack(t, s)
		require.Empty(t, left, "nothing was sent, and there is a slot")
		require.Equal(t, 1, p.rang())
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

// A failed write belongs to its caller or to a letter, and the caller is told which, at whatever instant they leave.

// slowRelease takes a second to give a key back.
type slowRelease struct{ *MemoryStore }

func (s slowRelease) CompareAndSwap(ctx context.Context, old uint64, r Record) (uint64, bool, error) {
	if r.State == KeyFree || r.State == KeyNotApplied {
		time.Sleep(time.Second)
	}
	return s.MemoryStore.CompareAndSwap(ctx, old, r)
}

func TestOneOwner_ACallerWhoLeavesAfterALetterWasMadeIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Idempotency: IdempotencyConfig{Store: slowRelease{NewMemoryStore(0)}}})
		s.Breaker.ForceOpen()
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		_, err := dial(ctx, t, s.Wrap(&phone{}), "k", dialBody)
		require.Equal(t, 1, s.DLQ.Len())
		require.ErrorIs(t, err, ErrParked)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.False(t, NotSent(err), "the queue will send it")
		var e *Error
		require.ErrorAs(t, err, &e)
		require.NotEmpty(t, e.LetterID)
		time.Sleep(2 * time.Second)
		closeStack(t, s)
	})
}

func TestOneOwner_ACallerWhoLeavesWhileTheQueueDecidesLearnsTheDecision(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{DLQ: DLQConfig{MaxLetters: 1, Overflow: OverflowBlock}})
		s.Breaker.ForceOpen()
		rt := s.Wrap(&phone{})
		_, err := dial(t.Context(), t, rt, "first", dialBody)
		require.ErrorIs(t, err, ErrParked)
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		start := time.Now()
		_, err = dial(ctx, t, rt, "second", dialBody) // waits for room
		require.Equal(t, 500*time.Millisecond, time.Since(start))
		require.NotErrorIs(t, err, ErrParked)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		synctest.Wait()
		require.Equal(t, 1, s.DLQ.Len(), "it is the caller's")
		closeStack(t, s)
	})
}

func TestOneOwner_ACallerWhoTookALetterOverAndLeavesIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Bulkhead: BulkheadConfig{Critical: -1, Normal: 1, Bulk: -1}})
		s.Breaker.ForceOpen()
		p := &phone{answer: func(*http.Request, int) (*http.Response, error) {
			time.Sleep(10 * time.Second)
			return reply(201, "{}"), nil
		}}
		rt := s.Wrap(p)
		_, err := dial(t.Context(), t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrParked)
		s.Breaker.Reset()
		go dial(context.Background(), t, rt, "other", `{"to_number":"+15550002222"}`) //nolint:errcheck // it has the slot
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = dial(ctx, t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrParked, "the letter is still there, and will be sent")
		require.False(t, NotSent(err))
		require.Equal(t, 1, s.DLQ.Len())
		time.Sleep(time.Minute)
		closeStack(t, s)
	})
}

func TestOneOwner_ACallerWhoJoinsARedriveAndLeavesIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Bulkhead: BulkheadConfig{Critical: -1, Normal: 1, Bulk: -1}, DLQ: DLQConfig{Base: time.Millisecond}})
		s.Breaker.ForceOpen()
		p := &phone{answer: func(*http.Request, int) (*http.Response, error) {
			time.Sleep(10 * time.Second)
			return reply(201, "{}"), nil
		}}
		rt := s.Wrap(p)
		_, err := dial(t.Context(), t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrParked)
		s.Breaker.Reset()
		go dial(context.Background(), t, rt, "other", `{"to_number":"+15550002222"}`) //nolint:errcheck // it has the slot
		synctest.Wait()
		run, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(run) }()
		time.Sleep(time.Second) // the redrive waits for the slot
		require.Equal(t, 1, s.DLQ.Stats().Running)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = dial(ctx, t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrParked)
		require.False(t, NotSent(err))
		time.Sleep(time.Minute)
		require.Equal(t, 2, p.rang(), "each of the two once")
		stop()
		require.NoError(t, <-done)
		closeStack(t, s)
	})
}
