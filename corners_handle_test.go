package resilience

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// What a function of DLQ.Handle does through the stack with the context it gets is the letter's own call.

// sendCall is one piece of work under the key of ctx.
func sendCall(ctx context.Context, s *Stack, fn func(context.Context) (string, error)) (string, error) {
	return Do(ctx, s, Call{Operation: "send", Effect: EffectOnce, Params: "x"}, fn)
}

func TestCorner_WhoJoinsTheWorkOfAHandleFunctionIsToldWhoseItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Retry: RetryConfig{Off: true}})
		failing := func(context.Context) (string, error) {
			time.Sleep(time.Second)
			return "", MarkNotSent(errDLQRefused)
		}
		s.DLQ.Handle("send", func(ctx context.Context, l Letter) error {
			_, err := sendCall(WithIdempotencyKey(ctx, l.Key), s, failing) // naming the letter's key again changes nothing
			return err
		})
		ctx := WithIdempotencyKey(t.Context(), "k")
		_, err := sendCall(ctx, s, failing)
		require.ErrorIs(t, err, ErrParked)
		time.Sleep(2 * time.Second)

		result := make(chan RedriveResult)
		go func() { result <- s.DLQ.Redrive(t.Context()) }()
		synctest.Wait()
		_, err = sendCall(ctx, s, failing)
		r := <-result
		l := dlqOnly(t, s.DLQ)
		closeStack(t, s)
		require.Equal(t, RedriveFailed, r.Status)
		require.Equal(t, LetterWaiting, l.State(), "the queue will do it")
		require.ErrorIs(t, err, ErrParked)
		require.False(t, NotSent(err), "the caller must not do it under another key")
		var e *Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, l.ID, e.LetterID)
	})
}

func TestCorner_AHandleFunctionThatMeetsACallItsLetterTurnedAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{
			Retry:       RetryConfig{Off: true},
			Idempotency: IdempotencyConfig{Store: slowWrites{NewMemoryStore(0)}},
		})
		var down atomic.Bool
		down.Store(true)
		runs := 0
		work := func(context.Context) (string, error) {
			if down.Load() {
				return "", MarkNotSent(errDLQRefused)
			}
			runs++
			return "done", nil
		}
		s.DLQ.Handle("send", func(ctx context.Context, _ Letter) error {
			time.Sleep(100 * time.Millisecond)
			_, err := sendCall(ctx, s, work)
			return err
		})
		ctx := WithIdempotencyKey(t.Context(), "k")
		_, err := sendCall(ctx, s, work)
		require.ErrorIs(t, err, ErrParked)
		down.Store(false)
		time.Sleep(2 * time.Second)

		result := make(chan RedriveResult)
		go func() { result <- s.DLQ.Redrive(t.Context()) }()
		time.Sleep(95 * time.Millisecond)
		_, err = sendCall(ctx, s, work) // claims the key first, and meets the letter's lease
		r := <-result
		require.ErrorIs(t, err, ErrParked)
		require.Equal(t, RedrivePaused, r.Status, "nothing was done, and nothing is in doubt")
		l := dlqOnly(t, s.DLQ)
		require.False(t, l.InDoubt)
		require.Zero(t, l.Attempts)
		time.Sleep(5 * time.Second)
		require.Equal(t, RedriveDone, s.DLQ.Redrive(t.Context()).Status)
		closeStack(t, s)
		require.Equal(t, 1, runs)
	})
}

func TestCorner_AnotherKeyInAHandleFunctionIsACallOfItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Retry: RetryConfig{Off: true}})
		failing := func(context.Context) (string, error) { return "", MarkNotSent(errDLQRefused) }
		var inner error
		s.DLQ.Handle("send", func(ctx context.Context, _ Letter) error {
			_, inner = sendCall(WithIdempotencyKey(ctx, "another"), s, failing)
			return nil
		})
		_, err := sendCall(WithIdempotencyKey(t.Context(), "k"), s, failing)
		require.ErrorIs(t, err, ErrParked)
		time.Sleep(2 * time.Second)
		require.Equal(t, RedriveDone, s.DLQ.Redrive(t.Context()).Status)
		l := dlqOnly(t, s.DLQ)
		closeStack(t, s)
		require.ErrorIs(t, inner, ErrParked, "its failure is kept like any other")
		require.Equal(t, "another", l.Key)
	})
}

// Where the user trusts the API's keys, a call with the key of a letter in doubt is sent again; what is asked at the last
// moment knows that.
func TestCorner_ACallUnderTheKeyOfALetterInDoubtIsSentAgainWhereThatIsTrusted(t *testing.T) {
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
