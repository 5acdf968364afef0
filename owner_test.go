package resilience

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
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

func answersWith(code int) func() (*http.Response, error) {
	return func() (*http.Response, error) { return dlqStatus(code)(0, nil) }
}

// Whoever parked a letter was told that the queue will send it. That another call with the key had to wait, or had no
// credentials, says nothing against it.
func TestOneOwner_ALetterOutlivesTheThrottlingOfACallThatBeganBefore(t *testing.T) {
	for _, code := range []int{http.StatusTooManyRequests, http.StatusUnauthorized} {
		synctest.Test(t, func(t *testing.T) {
			d := mustDLQ(t, DLQConfig{})
			w, first := heldBack(dlqError(errDLQRefused))
			rt := d.Wrap(w)
			done := calling(t.Context(), rt, http.MethodPost, "k")
			_, err := dlqCall(t.Context(), rt, http.MethodPost, "k")
			require.ErrorIs(t, err, ErrParked)
			first <- answersWith(code)
			end := <-done
			require.NoError(t, end.err)
			require.Equal(t, code, end.resp.StatusCode)
			require.Equal(t, LetterWaiting, dlqOnly(t, d).State())
			dlqConserved(t, d)
		})
	}
}

// A write that worked is not sent again by its letter, also where a redrive of it happens to be under way.
func TestOneOwner_AnAnswerSettlesALetterThatIsBeingRedriven(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := mustDLQ(t, DLQConfig{})
		w, first := heldBack(func(int, *http.Request) (*http.Response, error) {
			time.Sleep(time.Second)
			return nil, errDLQRefused
		})
		rt := d.Wrap(w)
		stop := dlqRun(t, d)
		done := calling(t.Context(), rt, http.MethodPost, "k")
		_, err := dlqCall(t.Context(), rt, http.MethodPost, "k")
		require.ErrorIs(t, err, ErrParked)
		for dlqOnly(t, d).State() != LetterLeased {
			time.Sleep(time.Millisecond)
		}
		first <- answersWith(http.StatusCreated)
		require.NoError(t, (<-done).err)
		time.Sleep(time.Hour)
		require.Len(t, w.calls(), 3, "it rang, and nobody rings again")
		require.Zero(t, d.Len())
		dlqConserved(t, d)
		stop()
	})
}

// A call that took a letter over is told its answer where the letter has been settled meanwhile: a refusal makes no letter.
func TestOneOwner_ARefusalAfterTheLetterWasSettledIsTheCallers(t *testing.T) {
	for _, code := range []int{http.StatusBadRequest, http.StatusTooManyRequests} {
		synctest.Test(t, func(t *testing.T) {
			d, w, rt := dlqParked(t, DLQConfig{})
			answer := make(chan func() (*http.Response, error))
			w.set(func(int, *http.Request) (*http.Response, error) { return (<-answer)() })
			done := calling(WithCall(t.Context(), Call{Operation: "op"}), rt, http.MethodPost, "k")
			require.Equal(t, LetterLeased, dlqOnly(t, d).State())
			require.NoError(t, d.Import(fileOf(t, Letter{ID: "there", Key: "k", InDoubt: true})))
			d.settle("k", newsNow(keyDone))
			answer <- answersWith(code)
			end := <-done
			require.NoError(t, end.err)
			require.Equal(t, code, end.resp.StatusCode)
			require.Zero(t, d.Len())
			dlqConserved(t, d)
		})
	}
}

// An import may bring a doubt at any moment: also between the answer and what becomes of the letter.
func TestOneOwner_NoLeaseIsLeftBehindByADoubtThatComesWithTheAnswer(t *testing.T) {
	d, _, _ := dlqParked(t, DLQConfig{})
	s := d.box.ofKey("k")
	held := holding{slot: s, token: d.box.lease(s)}
	require.NoError(t, d.Import(fileOf(t, Letter{ID: "there", Key: "k", InDoubt: true})))
	require.False(t, d.answered(&trip{key: "k"}, nil, held, http.StatusBadRequest), "its refusal is no news about the other process")
	require.Equal(t, 1, d.Len())
	require.NotZero(t, d.merge(held, failure{cause: "status", status: 400}, false).slot)
	require.Equal(t, LetterInDoubt, dlqOnly(t, d).State())
}

// The body of an answer that nobody will see is closed, or its connection would stay busy: a stream is not read for the caller.
func TestOneOwner_TheBodyOfAParkedAnswerIsClosed(t *testing.T) {
	d := mustDLQ(t, DLQConfig{})
	var closed []string
	stream := func(name string) func(int, *http.Request) (*http.Response, error) {
		return func(int, *http.Request) (*http.Response, error) {
			resp := reply(http.StatusServiceUnavailable, "", "Content-Type", "text/event-stream")
			resp.Body = &reportsClose{Reader: strings.NewReader("data: x\n\n"), closed: func() { closed = append(closed, name) }}
			return resp, nil
		}
	}
	w := &dlqWorld{answer: stream("new")}
	rt := d.Wrap(w)
	_, err := dlqCall(t.Context(), rt, http.MethodPut, "k")
	require.ErrorIs(t, err, ErrParked)
	require.Equal(t, []string{"new"}, closed)
	w.set(stream("taken over"))
	_, err = dlqCall(t.Context(), rt, http.MethodPut, "k")
	require.ErrorIs(t, err, ErrParked)
	require.Equal(t, []string{"new", "taken over"}, closed)
	w.set(stream("redrive"))
	require.NoError(t, d.Requeue(dlqOnly(t, d).ID))
	require.Equal(t, RedriveFailed, d.Redrive(t.Context()).Status)
	require.Equal(t, []string{"new", "taken over", "redrive"}, closed)
}

type reportsClose struct {
	io.Reader
	closed func()
}

func (r *reportsClose) Close() error { r.closed(); return nil }

// A failed write whose body is not at hand stays with its caller, as the error that it was.
func TestOneOwner_AFailureWithoutItsBodyIsTheCallers(t *testing.T) {
	d := mustDLQ(t, DLQConfig{})
	req, err := http.NewRequestWithContext(WithIdempotencyKey(t.Context(), "k"), http.MethodPut, "http://api.test/",
		io.LimitReader(dlqZeros{}, defaultMaxRequestBytes+1))
	require.NoError(t, err)
	resp, err := d.Wrap(&dlqWorld{answer: dlqError(errDLQRefused)}).RoundTrip(req)
	require.Nil(t, resp)
	require.ErrorIs(t, err, errDLQRefused)
	require.NotErrorIs(t, err, ErrParked)
	require.Zero(t, d.Len())
}

// A caller whose own deadline passed before the write was sent has taken it back, also where the network knows that, and
// where an earlier attempt may have arrived.
func TestOneOwner_ADeadlineBeforeTheWireTakesTheWriteBack(t *testing.T) {
	for name, refused := range map[string]func(ctx context.Context) error{
		"by the network": func(ctx context.Context) error { return MarkNotSent(ctx.Err()) },
		"by a layer of ours": func(ctx context.Context) error {
			return errors.Join(io.ErrUnexpectedEOF, tripOf(ctx).gone(ctx, "test"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := mustDLQ(t, DLQConfig{})
				ctx, stop := context.WithTimeout(t.Context(), time.Second)
				defer stop()
				w := &dlqWorld{answer: func(_ int, req *http.Request) (*http.Response, error) {
					<-req.Context().Done()
					return nil, refused(req.Context())
				}}
				_, err := dlqCall(ctx, d.Wrap(w), http.MethodPut, "k")
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.NotErrorIs(t, err, ErrParked)
				require.Zero(t, d.Len())
			})
		})
	}
}

// A call that has taken a letter over may ring, so an export made meanwhile says so.
func TestOneOwner_AnExportDuringATakeOverIsInDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, w, rt := dlqParked(t, DLQConfig{})
		w.set(func(int, *http.Request) (*http.Response, error) {
			there := mustDLQ(t, DLQConfig{})
			require.NoError(t, there.Import(strings.NewReader(export(t, d))))
			require.True(t, dlqOnly(t, there).InDoubt)
			return nil, errDLQRefused
		})
		_, err := dlqCall(WithCall(t.Context(), Call{Operation: "op"}), rt, http.MethodPost, "k")
		require.ErrorIs(t, err, ErrParked)
		require.False(t, dlqOnly(t, d).InDoubt)
	})
}

// A refusal of a call that began before answers the letter of its key, too, unless a redrive is at that: what it hears counts.
func TestOneOwner_ARefusalSettlesTheLetterThatNobodyIsAt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, leased := range []bool{false, true} {
			d := mustDLQ(t, DLQConfig{})
			w, first := heldBack(dlqError(errDLQRefused))
			rt := d.Wrap(w)
			done := calling(t.Context(), rt, http.MethodPost, "k")
			_, err := dlqCall(t.Context(), rt, http.MethodPost, "k")
			require.ErrorIs(t, err, ErrParked)
			if leased {
				d.box.lease(d.box.ofKey("k"))
			}
			first <- answersWith(http.StatusNotFound)
			require.NoError(t, (<-done).err)
			require.Equal(t, leased, d.holds("k"))
		}
	})
}

// The other side's wish to be left alone holds for the letter that a call took over, too.
func TestD05_ACallThatTookALetterOverIsToldHowLongToWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, w, rt := dlqParked(t, DLQConfig{})
		w.set(dlqStatus(503, "Retry-After", "600"))
		_, err := dlqCall(WithCall(t.Context(), Call{Operation: "op", Effect: EffectIdempotent}), rt, http.MethodPost, "k")
		require.ErrorIs(t, err, ErrParked)
		require.Equal(t, 10*time.Minute, time.Until(dlqOnly(t, d).Next))
	})
}
