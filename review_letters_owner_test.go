package resilience

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// heldBack is a transport that keeps its first request until it hears what to answer to it.
func heldBack(then func(int, *http.Request) (*http.Response, error)) (w *dlqWorld, first chan func() (*http.Response, error)) {
	first = make(chan func() (*http.Response, error))
	return &dlqWorld{answer: func(n int, req *http.Request) (*http.Response, error) {
		if n == 1 {
			return (<-first)()
		}
		return then(n, req)
	}}, first
}

func answersWith(code int) func() (*http.Response, error) {
	return func() (*http.Response, error) { return dlqStatus(code)(0, nil) }
}

type ownerEnd struct {
	resp *http.Response
	err  error
}

// calling makes a call on the side.
func calling(ctx context.Context, rt http.RoundTripper, method, key string) chan ownerEnd {
	done := make(chan ownerEnd, 1)
	go func() {
		resp, err := dlqCall(ctx, rt, method, key)
		done <- ownerEnd{resp, err}
	}()
	synctest.Wait()
	return done
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
	require.False(t, d.answered(&trip{key: "k"}, held, http.StatusBadRequest), "its refusal is no news about the other process")
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

// The letter of work that is not HTTP names no request: without its function there is nothing to send.
func TestOneOwner_TheLetterOfWorkIsNoRequest(t *testing.T) {
	s := newStack(t, Config{Retry: RetryConfig{Off: true}})
	s.DLQ.Handle("op", func(context.Context, Letter) error { return nil })
	_, err := Do(WithIdempotencyKey(t.Context(), "k"), s, Call{Operation: "op", Effect: EffectIdempotent, Params: "p"},
		func(context.Context) (int, error) { return 0, errDLQRefused })
	require.ErrorIs(t, err, ErrParked)
	l := dlqOnly(t, s.DLQ)
	require.Equal(t, []any{"", "", "", `"p"`}, []any{l.Method, l.URL, l.Host, string(l.Body)})
	require.Empty(t, l.Header)
	closeStack(t, s)
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
