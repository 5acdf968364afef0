package resilience

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

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

// phone is the other side of the tests: it rings, and answers as it is told.
type phone struct {
	mu    sync.Mutex
	rings map[string]int // by body
	// answer is asked after a ring; nil: 201 with a call id.
	answer func(req *http.Request, n int) (*http.Response, error)
	// before is asked before a ring; an answer from it means that nothing rang.
	before func(req *http.Request, n int) (*http.Response, error)
	sends  int
}

func (p *phone) RoundTrip(req *http.Request) (*http.Response, error) {
	text := ""
	if req.Body != nil {
		b, err := io.ReadAll(req.Body)
		_ = req.Body.Close()
		if err != nil {
			return nil, err
		}
		text = string(b)
	}
	p.mu.Lock()
	p.sends++
	n := p.sends
	p.mu.Unlock()
	if p.before != nil {
		if resp, err := p.before(req, n); resp != nil || err != nil {
			return resp, err
		}
	}
	p.mu.Lock()
	if p.rings == nil {
		p.rings = map[string]int{}
	}
	p.rings[text]++
	p.mu.Unlock()
	if p.answer != nil {
		return p.answer(req, n)
	}
	return reply(201, fmt.Sprintf(`{"call_id":"call_%d"}`, n)), nil
}

func (p *phone) rang() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	sum := 0
	for _, n := range p.rings {
		sum += n
	}
	return sum
}

func reply(code int, text string, headers ...string) *http.Response {
	h := http.Header{}
	for i := 0; i+1 < len(headers); i += 2 {
		h.Set(headers[i], headers[i+1])
	}
	return &http.Response{StatusCode: code, Header: h, Body: io.NopCloser(strings.NewReader(text)), ContentLength: int64(len(text))}
}

const dialBody = `{"to_number":"+15550001111"}`

func dial(ctx context.Context, t testing.TB, rt http.RoundTripper, key, text string) (*http.Response, error) {
	t.Helper()
	if key != "" {
		ctx = WithIdempotencyKey(ctx, key)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://api.test/v2/create-phone-call", strings.NewReader(text))
	require.NoError(t, err)
	return rt.RoundTrip(req)
}

func bodyText(t testing.TB, resp *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return string(b)
}

func newIdem(t testing.TB, cfg IdempotencyConfig) *Idempotency {
	t.Helper()
	i, err := NewIdempotency(cfg)
	require.NoError(t, err)
	return i
}

func stateOf(t testing.TB, i *Idempotency, key string) KeyState {
	t.Helper()
	rec, err := i.Lookup(context.Background(), key)
	require.NoError(t, err)
	return rec.State
}

func TestI01_FinishedKeyIsReplayed(t *testing.T) {
	p := &phone{}
	i := newIdem(t, IdempotencyConfig{})
	rt := i.Wrap(p)
	first, err := dial(t.Context(), t, rt, "k", dialBody)
	require.NoError(t, err)
	second, err := dial(t.Context(), t, rt, "k", dialBody)
	require.NoError(t, err)
	require.Equal(t, 1, p.rang())
	require.Equal(t, 201, second.StatusCode)
	require.False(t, Replayed(first))
	require.True(t, Replayed(second))
	require.Equal(t, bodyText(t, first), bodyText(t, second))
}

func TestI02_SameKeyOtherRequest(t *testing.T) {
	p := &phone{}
	i := newIdem(t, IdempotencyConfig{})
	rt := i.Wrap(p)
	_, err := dial(t.Context(), t, rt, "k", dialBody)
	require.NoError(t, err)
	_, err = dial(t.Context(), t, rt, "k", `{"to_number":"+15550002222"}`)
	require.ErrorIs(t, err, ErrKeyReused)
	require.True(t, NotSent(err))
	require.Equal(t, 1, p.rang())
	again, err := dial(t.Context(), t, rt, "k", dialBody)
	require.NoError(t, err)
	require.True(t, Replayed(again))
}

// I11 of the invariants: a mismatch is reported at once, also while the first request flies.
func TestI02_MismatchIsReportedAtOnceWhileTheFirstFlies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		p := &phone{answer: func(*http.Request, int) (*http.Response, error) { <-release; return reply(201, "{}"), nil }}
		rt := newIdem(t, IdempotencyConfig{}).Wrap(p)
		go dial(context.Background(), t, rt, "k", dialBody) //nolint:errcheck // the other one counts
		synctest.Wait()
		_, err := dial(t.Context(), t, rt, "k", `{"to_number":"+15550002222"}`)
		require.ErrorIs(t, err, ErrKeyReused)
		close(release)
	})
}

func TestI03_FiftyCallersRingOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &phone{answer: func(*http.Request, int) (*http.Response, error) {
			time.Sleep(time.Second)
			return reply(201, `{"call_id":"call_1"}`), nil
		}}
		rt := newIdem(t, IdempotencyConfig{}).Wrap(p)
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				resp, err := dial(t.Context(), t, rt, "k", dialBody)
				if err != nil || resp.StatusCode != 201 || bodyText(t, resp) != `{"call_id":"call_1"}` {
					t.Errorf("got %v %v", resp, err)
				}
			})
		}
		wg.Wait()
		require.Equal(t, 1, p.rang())
	})
}

func TestI03_AnotherProcessGetsInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &sharedStore{NewMemoryStore(0)}
		release := make(chan struct{})
		p := &phone{answer: func(*http.Request, int) (*http.Response, error) { <-release; return reply(201, "{}"), nil }}
		one, two := newIdem(t, IdempotencyConfig{Store: store}), newIdem(t, IdempotencyConfig{Store: store})
		go dial(context.Background(), t, one.Wrap(p), "k", dialBody) //nolint:errcheck // the other one counts
		synctest.Wait()
		_, err := dial(t.Context(), t, two.Wrap(p), "k", dialBody)
		require.ErrorIs(t, err, ErrInFlight)
		require.True(t, NotSent(err))
		var e *Error
		require.ErrorAs(t, err, &e)
		require.Positive(t, e.RetryAfter)
		close(release)
		synctest.Wait()
		resp, err := dial(t.Context(), t, two.Wrap(p), "k", dialBody)
		require.NoError(t, err)
		require.True(t, Replayed(resp))
		require.Equal(t, 1, p.rang())
	})
}

// sharedStore says of itself that several processes use it.
type sharedStore struct{ *MemoryStore }

func (s *sharedStore) Capabilities() Capabilities {
	return Capabilities{Shared: true, Linearizable: true}
}

func TestI04_WaitingCallersContextEndsOnlyItsOwnWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &phone{answer: func(*http.Request, int) (*http.Response, error) {
			time.Sleep(time.Second)
			return reply(201, "{}"), nil
		}}
		rt := newIdem(t, IdempotencyConfig{}).Wrap(p)
		leader := make(chan error, 1)
		go func() { _, err := dial(context.Background(), t, rt, "k", dialBody); leader <- err }()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		start := time.Now()
		_, err := dial(ctx, t, rt, "k", dialBody)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.True(t, InDoubt(err), "the request is out")
		require.Equal(t, 100*time.Millisecond, time.Since(start))
		require.NoError(t, <-leader)
		require.Equal(t, 1, p.rang())
	})
}

func TestI05_LeaderLeavesBeforeSendOthersGoOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIdem(t, IdempotencyConfig{})
		hold := make(chan struct{})
		p := &phone{}
		between := LayerFunc(func(next http.RoundTripper) http.RoundTripper {
			return RoundTripFunc(func(req *http.Request) (*http.Response, error) {
				select {
				case <-hold:
					return next.RoundTrip(req)
				case <-req.Context().Done():
					return nil, context.Cause(req.Context())
				}
			})
		})
		rt := Chain(i.Claim(), between, i.Intent()).Wrap(p)
		cause := errors.New("the user hung up")
		ctx, cancel := context.WithCancelCause(context.Background())
		leader := make(chan error, 1)
		go func() { _, err := dial(ctx, t, rt, "k", dialBody); leader <- err }()
		synctest.Wait()
		follower := make(chan error, 1)
		go func() { _, err := dial(context.Background(), t, rt, "k", dialBody); follower <- err }()
		synctest.Wait()
		cancel(cause)
		err := <-leader
		require.ErrorIs(t, err, cause)
		require.False(t, NotSent(err), "the other caller may still have it sent")
		require.False(t, InDoubt(err))
		close(hold)
		require.NoError(t, <-follower)
		require.Equal(t, 1, p.rang())
	})
}

func TestI05_LastCallerLeavesBeforeSendAndTheKeyIsFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIdem(t, IdempotencyConfig{})
		p := &phone{}
		between := LayerFunc(func(next http.RoundTripper) http.RoundTripper {
			return RoundTripFunc(func(req *http.Request) (*http.Response, error) {
				<-req.Context().Done()
				return nil, MarkNotSent(context.Cause(req.Context()))
			})
		})
		rt := Chain(i.Claim(), between, i.Intent()).Wrap(p)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { _, err := dial(ctx, t, rt, "k", dialBody); done <- err }()
		synctest.Wait()
		cancel()
		err := <-done
		require.ErrorIs(t, err, context.Canceled)
		require.True(t, NotSent(err))
		synctest.Wait()
		require.Equal(t, KeyFree, stateOf(t, i, "k"))
		_, err = dial(t.Context(), t, i.Wrap(p), "k", dialBody)
		require.NoError(t, err)
		require.Equal(t, 1, p.rang())
	})
}

func TestI05_LeaderLeavesAfterSendAndTheFlightSettlesTheKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIdem(t, IdempotencyConfig{})
		p := &phone{answer: func(*http.Request, int) (*http.Response, error) {
			time.Sleep(time.Minute)
			return reply(201, "{}"), nil
		}}
		rt := i.Wrap(p)
		cause := errors.New("the user hung up")
		ctx, cancel := context.WithCancelCause(context.Background())
		done := make(chan error, 1)
		go func() { _, err := dial(ctx, t, rt, "k", dialBody); done <- err }()
		synctest.Wait()
		cancel(cause)
		err := <-done
		require.ErrorIs(t, err, ErrInDoubt)
		require.ErrorIs(t, err, cause)
		var e *Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, "k", e.Key)
		require.Equal(t, KeySending, stateOf(t, i, "k"))
		time.Sleep(2 * time.Minute)
		require.Equal(t, KeyConfirmed, stateOf(t, i, "k"))
		resp, err := dial(t.Context(), t, rt, "k", dialBody)
		require.NoError(t, err)
		require.True(t, Replayed(resp))
		require.Equal(t, 1, p.rang())
	})
}

func TestI06_FailedBeforeSendGivesTheKeyBack(t *testing.T) {
	refused := errors.New("connection refused")
	p := &phone{before: func(_ *http.Request, n int) (*http.Response, error) {
		if n == 1 {
			return nil, MarkNotSent(refused)
		}
		return nil, nil
	}}
	i := newIdem(t, IdempotencyConfig{})
	rt := i.Wrap(p)
	_, err := dial(t.Context(), t, rt, "k", dialBody)
	require.ErrorIs(t, err, refused)
	require.True(t, NotSent(err))
	require.Equal(t, KeyNotApplied, stateOf(t, i, "k"))
	_, err = dial(t.Context(), t, rt, "k", dialBody)
	require.NoError(t, err)
	require.Equal(t, 1, p.rang())
}

func TestI07_UnknownOutcomeIsNeverSentAgain(t *testing.T) {
	for name, fault := range map[string]func(*http.Request, int) (*http.Response, error){
		"reset": func(*http.Request, int) (*http.Response, error) { return nil, errors.New("connection reset by peer") },
		"eof":   func(*http.Request, int) (*http.Response, error) { return nil, io.ErrUnexpectedEOF },
		"500":   func(*http.Request, int) (*http.Response, error) { return reply(500, "{}"), nil },
		"503":   func(*http.Request, int) (*http.Response, error) { return reply(503, "{}"), nil },
		"408":   func(*http.Request, int) (*http.Response, error) { return reply(408, "{}"), nil },
		"409":   func(*http.Request, int) (*http.Response, error) { return reply(409, "{}"), nil },
		"425":   func(*http.Request, int) (*http.Response, error) { return reply(425, "{}"), nil },
		"499":   func(*http.Request, int) (*http.Response, error) { return reply(499, "{}"), nil },
		"307":   func(*http.Request, int) (*http.Response, error) { return reply(307, "", "Location", "/x"), nil },
		"truncated": func(*http.Request, int) (*http.Response, error) {
			resp := reply(201, "")
			resp.Body = io.NopCloser(io.MultiReader(strings.NewReader(`{"call`), failingReader{}))
			return resp, nil
		},
		"neither": func(*http.Request, int) (*http.Response, error) { return nil, nil },
	} {
		t.Run(name, func(t *testing.T) {
			p := &phone{answer: fault}
			i := newIdem(t, IdempotencyConfig{})
			rt := i.Wrap(p)
			_, err := dial(t.Context(), t, rt, "k", dialBody)
			require.ErrorIs(t, err, ErrInDoubt)
			require.False(t, NotSent(err))
			require.Equal(t, KeyInDoubt, stateOf(t, i, "k"))
			_, err = dial(t.Context(), t, rt, "k", dialBody)
			require.ErrorIs(t, err, ErrInDoubt)
			var e *Error
			require.ErrorAs(t, err, &e)
			require.Equal(t, "k", e.Key)
			require.Equal(t, 1, p.rang())
		})
	}
}

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestI08_DefiniteRejectionGivesTheKeyBackAndTheAnswer(t *testing.T) {
	for _, code := range []int{400, 401, 402, 403, 404, 412, 422, 429} {
		p := &phone{before: func(_ *http.Request, n int) (*http.Response, error) {
			if n == 1 {
				return reply(code, `{"status":"error"}`), nil
			}
			return nil, nil
		}}
		i := newIdem(t, IdempotencyConfig{})
		rt := i.Wrap(p)
		resp, err := dial(t.Context(), t, rt, "k", dialBody)
		require.NoError(t, err)
		require.Equal(t, code, resp.StatusCode)
		require.Equal(t, `{"status":"error"}`, bodyText(t, resp))
		resp, err = dial(t.Context(), t, rt, "k", dialBody)
		require.NoError(t, err)
		require.Equal(t, 201, resp.StatusCode)
		require.Equal(t, 1, p.rang())
	}
}

func TestI09_ServerErrorOnADialIsInDoubtWithTheStatus(t *testing.T) {
	p := &phone{answer: func(*http.Request, int) (*http.Response, error) { return reply(502, "secret +15550001111"), nil }}
	_, err := dial(t.Context(), t, newIdem(t, IdempotencyConfig{}).Wrap(p), "k", dialBody)
	var e *Error
	require.ErrorAs(t, err, &e)
	require.ErrorIs(t, err, ErrInDoubt)
	require.Equal(t, 502, e.StatusCode)
	require.NotContains(t, err.Error(), "555")
}

func TestI11_ASuccessorIsNotOverwrittenByTheFirstOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &sharedStore{NewMemoryStore(0)}
		p := &phone{}
		one, two := newIdem(t, IdempotencyConfig{Store: store}), newIdem(t, IdempotencyConfig{Store: store})
		hold := make(chan struct{})
		between := LayerFunc(func(next http.RoundTripper) http.RoundTripper {
			return RoundTripFunc(func(req *http.Request) (*http.Response, error) { <-hold; return next.RoundTrip(req) })
		})
		first := make(chan error, 1)
		ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
		defer cancel()
		go func() {
			_, err := dial(ctx, t, Chain(one.Claim(), between, one.Intent()).Wrap(p), "k", dialBody)
			first <- err
		}()
		synctest.Wait()
		time.Sleep(time.Hour - time.Second) // it hangs until shortly before its lease is over
		// The lease is the rest of the caller's time and five seconds.
		time.Sleep(7 * time.Second)
		_, err := dial(t.Context(), t, two.Wrap(p), "k", dialBody)
		require.NoError(t, err)
		close(hold)
		err = <-first
		require.Error(t, err)
		synctest.Wait()
		require.Equal(t, 1, p.rang(), "the one whose lease ran out must not send")
		require.Equal(t, KeyConfirmed, stateOf(t, two, "k"))
	})
}

func TestI12_RetentionEndsToTheNanosecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := NewMemoryStore(0)
		i := newIdem(t, IdempotencyConfig{Store: store})
		p := &phone{}
		rt := i.Wrap(p)
		_, err := dial(t.Context(), t, rt, "k", dialBody)
		require.NoError(t, err)
		time.Sleep(24*time.Hour - 1)
		i.tend(t.Context())
		resp, err := dial(t.Context(), t, rt, "k", dialBody)
		require.NoError(t, err)
		require.True(t, Replayed(resp))
		time.Sleep(1)
		resp, err = dial(t.Context(), t, rt, "k", dialBody)
		require.NoError(t, err)
		require.False(t, Replayed(resp))
		require.Equal(t, 2, p.rang())
		time.Sleep(24 * time.Hour)
		i.tend(t.Context())
		require.Zero(t, store.Len(), "expired records leave memory without being touched")
	})
}

func TestI12_InDoubtNeverExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIdem(t, IdempotencyConfig{})
		p := &phone{answer: func(*http.Request, int) (*http.Response, error) { return nil, io.EOF }}
		rt := i.Wrap(p)
		_, err := dial(t.Context(), t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		time.Sleep(1000 * time.Hour)
		i.tend(t.Context())
		_, err = dial(t.Context(), t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		require.Equal(t, 1, p.rang())
	})
}

func TestI12_AKeyThatALetterRefersToIsPinned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIdem(t, IdempotencyConfig{})
		i.pinned = func(id string) bool { return id == i.ID("k") }
		_, err := dial(t.Context(), t, i.Wrap(&phone{}), "k", dialBody)
		require.NoError(t, err)
		time.Sleep(48 * time.Hour)
		i.tend(t.Context())
		resp, err := dial(t.Context(), t, i.Wrap(&phone{}), "k", dialBody)
		require.NoError(t, err)
		require.True(t, Replayed(resp))
	})
}

func TestI13_AFullStoreRefusesRatherThanForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIdem(t, IdempotencyConfig{Store: NewMemoryStore(2)})
		lost := &phone{answer: func(*http.Request, int) (*http.Response, error) { return nil, io.EOF }}
		_, err := dial(t.Context(), t, i.Wrap(lost), "doubt", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		p := &phone{}
		_, err = dial(t.Context(), t, i.Wrap(p), "done", dialBody)
		require.NoError(t, err)
		_, err = dial(t.Context(), t, i.Wrap(p), "third", dialBody)
		require.ErrorIs(t, err, ErrStoreFull)
		require.True(t, NotSent(err))
		require.Equal(t, 1, p.rang())
		time.Sleep(25 * time.Hour)
		_, err = dial(t.Context(), t, i.Wrap(p), "third", dialBody)
		require.NoError(t, err, "what is past its retention makes room")
		require.Equal(t, KeyInDoubt, stateOf(t, i, "doubt"))
	})
}

func TestI16_KeyIsTrimmedAndChecked(t *testing.T) {
	p := &phone{}
	rt := newIdem(t, IdempotencyConfig{}).Wrap(p)
	for _, bad := range []string{"  ", strings.Repeat("x", 256), "a\x00b", "a\nb"} {
		_, err := dial(WithIdempotencyKey(t.Context(), bad), t, rt, "", dialBody)
		require.ErrorIs(t, err, ErrBadKey)
		require.True(t, NotSent(err))
	}
	require.Zero(t, p.rang())
	_, err := dial(t.Context(), t, rt, " k ", dialBody)
	require.NoError(t, err)
	resp, err := dial(t.Context(), t, rt, "k", dialBody)
	require.NoError(t, err)
	require.True(t, Replayed(resp))
}

func TestI19_ReadsBypassTheStore(t *testing.T) {
	i := newIdem(t, IdempotencyConfig{Store: brokenStore{}})
	req, _ := http.NewRequestWithContext(WithIdempotencyKey(t.Context(), "k"), http.MethodGet, "http://api.test/x", nil)
	resp, err := i.Wrap(&phone{}).RoundTrip(req)
	require.NoError(t, err)
	require.Equal(t, 201, resp.StatusCode)
}

// brokenStore answers nothing but errors.
type brokenStore struct{}

var errBroken = errors.New("disk on fire")

func (brokenStore) Load(context.Context, string) (Record, error) { return Record{}, errBroken }

func (brokenStore) CompareAndSwap(context.Context, uint64, Record) (uint64, bool, error) {
	return 0, false, errBroken
}

func (brokenStore) Unsettled(context.Context, string, int) ([]Record, string, error) {
	return nil, "", errBroken
}

func (brokenStore) Sweep(context.Context, int, func(string) bool) (int, error) { return 0, errBroken }

func (brokenStore) Now() time.Time { return time.Now() }

func (brokenStore) Capabilities() Capabilities { return Capabilities{} }

func TestIdempotency_I14_StoreErrorBeforeTheIntentSendsNothing(t *testing.T) {
	p := &phone{}
	_, err := dial(t.Context(), t, newIdem(t, IdempotencyConfig{Store: brokenStore{}}).Wrap(p), "k", dialBody)
	require.ErrorIs(t, err, ErrStore)
	require.ErrorIs(t, err, errBroken)
	require.True(t, NotSent(err))
	require.Zero(t, p.sends)
}

// flakyStore fails writes of one state.
type flakyStore struct {
	*MemoryStore
	mu   sync.Mutex
	fail KeyState
	with func()
}

func (s *flakyStore) set(state KeyState) {
	s.mu.Lock()
	s.fail = state
	s.mu.Unlock()
}

func (s *flakyStore) CompareAndSwap(ctx context.Context, old uint64, r Record) (uint64, bool, error) {
	s.mu.Lock()
	fail := s.fail
	s.mu.Unlock()
	if r.State == fail {
		if s.with != nil {
			s.with()
		}
		return 0, false, errBroken
	}
	return s.MemoryStore.CompareAndSwap(ctx, old, r)
}

func TestIdempotency_I14_StoreErrorAtTheIntentSendsNothing(t *testing.T) {
	for name, with := range map[string]func(){"error": nil, "panic": func() { panic("store") }} {
		t.Run(name, func(t *testing.T) {
			p := &phone{}
			store := &flakyStore{MemoryStore: NewMemoryStore(0), fail: KeySending, with: with}
			i := newIdem(t, IdempotencyConfig{Store: store})
			_, err := dial(t.Context(), t, i.Wrap(p), "k", dialBody)
			require.ErrorIs(t, err, ErrStore)
			require.True(t, NotSent(err))
			require.Zero(t, p.sends)
			require.Equal(t, KeyFree, stateOf(t, i, "k"))
		})
	}
}

func TestIdempotency_I14_StoreErrorAfterTheSendKeepsTheAnswer(t *testing.T) {
	p := &phone{}
	store := &flakyStore{MemoryStore: NewMemoryStore(0), fail: KeyConfirmed}
	i := newIdem(t, IdempotencyConfig{Store: store})
	rt := i.Wrap(p)
	resp, err := dial(t.Context(), t, rt, "k", dialBody)
	require.NoError(t, err)
	require.Equal(t, 201, resp.StatusCode)
	again, err := dial(t.Context(), t, rt, "k", dialBody)
	require.NoError(t, err)
	require.True(t, Replayed(again), "this process answers from memory")
	require.Equal(t, 1, p.rang())
	store.set(KeyFree)
	i.tend(t.Context())
	require.Zero(t, i.Stats().Unwritten)
	rec, _ := store.Load(t.Context(), i.ID("k"))
	require.Equal(t, KeyConfirmed, rec.State, "Run repeats the write")
}

func TestIdempotency_PanicInTheTransportSettlesTheKeyInDoubt(t *testing.T) {
	i := newIdem(t, IdempotencyConfig{})
	p := &phone{answer: func(*http.Request, int) (*http.Response, error) { panic("boom") }}
	rt := i.Wrap(p)
	require.PanicsWithValue(t, "boom", func() { _, _ = dial(t.Context(), t, rt, "k", dialBody) })
	require.Equal(t, KeyInDoubt, stateOf(t, i, "k"))
	p.answer = nil
	_, err := dial(t.Context(), t, rt, "k", dialBody)
	require.ErrorIs(t, err, ErrInDoubt)
	_, err = dial(t.Context(), t, rt, "next", dialBody)
	require.NoError(t, err)
	require.Zero(t, i.Stats().Flights)
}

func TestIdempotency_GoexitInTheTransportSettlesTheKeyInDoubt(t *testing.T) {
	i := newIdem(t, IdempotencyConfig{})
	p := &phone{answer: func(*http.Request, int) (*http.Response, error) { runtime.Goexit(); return nil, nil }}
	rt := i.Wrap(p)
	returned := false
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = dial(t.Context(), t, rt, "k", dialBody)
		returned = true
	}()
	<-done
	require.False(t, returned, "Goexit reaches the caller")
	require.Equal(t, KeyInDoubt, stateOf(t, i, "k"))
}

func TestIdempotency_IntentWithoutClaimIsRefused(t *testing.T) {
	p := &phone{}
	_, err := dial(t.Context(), t, newIdem(t, IdempotencyConfig{}).Intent().Wrap(p), "k", dialBody)
	require.True(t, NotSent(err))
	require.Zero(t, p.sends)
}

// finder is a reconciler over a fake index.
type finder struct {
	mu    sync.Mutex
	found []Found
	err   error
	asked int
}

func (f *finder) Mark(req *http.Request, key string) error {
	req.Header.Set("X-Marker", RecordID(req.Context())+"/"+key)
	return nil
}

func (f *finder) Find(context.Context, Record) (Evidence, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked++
	return Evidence{Calls: f.found}, f.err
}

func lostAnswer(*http.Request, int) (*http.Response, error) { return nil, io.EOF }

func TestIdempotency_LookupFindsALostCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &finder{}
		i := newIdem(t, IdempotencyConfig{Reconcile: f})
		p := &phone{answer: lostAnswer}
		rt := i.Wrap(p)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go i.run(ctx)
		_, err := dial(t.Context(), t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		time.Sleep(20 * time.Second) // three empty look-ups prove nothing
		require.Equal(t, KeyInDoubt, stateOf(t, i, "k"))
		f.mu.Lock()
		require.Equal(t, 3, f.asked)
		f.found = []Found{{ID: "call_7", Body: []byte(`{"call_id":"call_7"}`)}}
		f.mu.Unlock()
		time.Sleep(time.Minute)
		rec, err := i.Lookup(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, KeyConfirmed, rec.State)
		require.Equal(t, "call_7", rec.CallID)
		resp, err := dial(t.Context(), t, rt, "k", dialBody)
		require.NoError(t, err)
		require.True(t, Replayed(resp))
		require.JSONEq(t, `{"call_id":"call_7"}`, bodyText(t, resp))
		require.Equal(t, 1, p.rang())
	})
}

// hangingFinder finds the call of every key but one, for which it hangs.
type hangingFinder struct {
	finder
	hung string
	most atomic.Int64
	now  atomic.Int64
}

func (f *hangingFinder) Find(ctx context.Context, rec Record) (Evidence, error) {
	f.most.Store(max(f.most.Load(), f.now.Add(1)))
	defer f.now.Add(-1)
	if rec.ID == f.hung {
		<-ctx.Done()
		return Evidence{}, ctx.Err()
	}
	time.Sleep(time.Second)
	return Evidence{Calls: []Found{{ID: "call_" + rec.ID[:8]}}}, nil
}

// One look-up that hangs keeps nobody else's call lost, and a hundred are not looked up all at once.
func TestIdempotency_LookupsGoSideBySide(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &hangingFinder{}
		i := newIdem(t, IdempotencyConfig{Reconcile: f})
		f.hung = i.ID("k0")
		rt := i.Wrap(&phone{answer: lostAnswer})
		const keys = 30
		for n := range keys {
			_, err := dial(t.Context(), t, rt, fmt.Sprint("k", n), dialBody)
			require.ErrorIs(t, err, ErrInDoubt)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); i.run(ctx) }()
		time.Sleep(30 * time.Second)
		for n := 1; n < keys; n++ {
			require.Equal(t, KeyConfirmed, stateOf(t, i, fmt.Sprint("k", n)), n)
		}
		require.Equal(t, KeyInDoubt, stateOf(t, i, "k0"))
		require.EqualValues(t, lookupsAtOnce, f.most.Load())
		cancel()
		<-done
	})
}

func TestIdempotency_TwoCallsForOneKeyAreDisputed(t *testing.T) {
	i := newIdem(t, IdempotencyConfig{})
	p := &phone{answer: lostAnswer}
	rt := i.Wrap(p)
	_, err := dial(t.Context(), t, rt, "k", dialBody)
	require.ErrorIs(t, err, ErrInDoubt)
	require.NoError(t, i.Observe(t.Context(), Evidence{ID: i.ID("k"), Calls: []Found{{ID: "a"}, {ID: "b"}}, Source: "webhook"}))
	_, err = dial(t.Context(), t, rt, "k", dialBody)
	require.ErrorIs(t, err, ErrDisputed)
	var e *Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, []string{"a", "b"}, e.CallIDs)
	require.EqualValues(t, 1, i.Stats().Disputed)
	require.NoError(t, i.Resolve(t.Context(), "k", Resolution{State: KeyConfirmed, CallID: "a", Reason: "b was hung up"}))
	require.Equal(t, KeyConfirmed, stateOf(t, i, "k"))
}

func TestIdempotency_EvidenceBeforeTheAnswerServesTheWaiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIdem(t, IdempotencyConfig{})
		p := &phone{answer: func(*http.Request, int) (*http.Response, error) {
			time.Sleep(time.Hour)
			return nil, io.EOF
		}}
		done := make(chan *http.Response, 1)
		go func() {
			resp, err := dial(context.Background(), t, i.Wrap(p), "k", dialBody)
			if err != nil {
				t.Error(err)
			}
			done <- resp
		}()
		synctest.Wait()
		start := time.Now()
		require.NoError(t, i.Observe(t.Context(), Evidence{ID: i.ID("k"), Calls: []Found{{ID: "call_9", Body: []byte(`{}`)}}}))
		resp := <-done
		require.True(t, Replayed(resp))
		require.Zero(t, time.Since(start))
		time.Sleep(2 * time.Hour) // the later error changes nothing
		rec, _ := i.Lookup(t.Context(), "k")
		require.Equal(t, KeyConfirmed, rec.State)
		require.Equal(t, "call_9", rec.CallID)
	})
}

func TestIdempotency_OperatorResolves(t *testing.T) {
	i := newIdem(t, IdempotencyConfig{})
	p := &phone{answer: lostAnswer}
	rt := i.Wrap(p)
	_, err := dial(t.Context(), t, rt, "k", dialBody)
	require.ErrorIs(t, err, ErrInDoubt)
	err = i.Resolve(t.Context(), "k", Resolution{})
	require.ErrorContains(t, err, "Resolution.State")
	require.ErrorContains(t, err, "Resolution.Reason")
	require.NoError(t, i.Resolve(t.Context(), "k", Resolution{State: KeyNotApplied, Reason: "not in the carrier's list"}))
	p.answer = nil
	_, err = dial(t.Context(), t, rt, "k", dialBody)
	require.NoError(t, err)
	require.ErrorContains(t, i.Resolve(t.Context(), "k", Resolution{State: KeyNotApplied, Reason: "x"}), "confirmed")
	require.NoError(t, i.Forget(t.Context(), "k"))
	require.Equal(t, KeyFree, stateOf(t, i, "k"))
}

func TestIdempotency_MarksWhatGoesOut(t *testing.T) {
	i := newIdem(t, IdempotencyConfig{Reconcile: &finder{}})
	var seen string
	p := &phone{before: func(req *http.Request, _ int) (*http.Response, error) {
		seen = req.Header.Get("X-Marker")
		require.Empty(t, req.Header.Get("Idempotency-Key"))
		return nil, nil
	}}
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://api.test/x", strings.NewReader(dialBody))
	req.Header.Set("Idempotency-Key", "mine")
	_, err := i.Wrap(p).RoundTrip(req)
	require.NoError(t, err)
	require.Equal(t, i.ID("mine")+"/mine", seen)
	require.Equal(t, "mine", req.Header.Get("Idempotency-Key"), "the caller's request is unchanged")
	require.Empty(t, req.Header.Get("X-Marker"))
}

// lostRace is a store in which somebody else is always faster, and which cannot be read after that.
type lostRace struct{ faultyStore }

func (s *lostRace) CompareAndSwap(context.Context, uint64, Record) (uint64, bool, error) {
	s.noLoad.Store(true)
	return 0, false, nil
}

func TestIdempotency_AStoreThatFailsAfterALostRaceSendsNothing(t *testing.T) {
	i, p := newIdem(t, IdempotencyConfig{Store: &lostRace{faultyStore{KeyStore: NewMemoryStore(0)}}}), &phone{}
	_, err := dial(t.Context(), t, i.Wrap(p), "k", dialBody)
	require.ErrorIs(t, err, ErrStore)
	require.True(t, NotSent(err))
	require.Zero(t, p.sends)
}

// What an operator sees of a key tells where it stands, and for how long.
func TestLookup_TellsWhereAKeyStands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIdem(t, IdempotencyConfig{Reconcile: &finder{}})
		ctx := WithCall(t.Context(), Call{Operation: "create-phone-call", Resource: "call"})
		p := &phone{answer: lostAnswer}
		_, err := dial(ctx, t, i.Wrap(p), "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		rec := lookUp(t, i, "k")
		require.Equal(t, []any{"create-phone-call", "call", "transport", 1}, []any{rec.Operation, rec.Resource, rec.Cause, rec.Doubts})
		require.Equal(t, time.Now().Add(time.Second), rec.NextLookup)

		time.Sleep(time.Minute)
		require.NoError(t, i.Resolve(ctx, "k", Resolution{State: KeyNotApplied, Reason: "not in the list"}))
		rec = lookUp(t, i, "k")
		require.Equal(t, []any{"operator", "not in the list", 0, ""}, []any{rec.Evidence, rec.Reason, rec.Doubts, rec.CallID})
		require.Zero(t, rec.NextLookup)
		require.Equal(t, time.Now(), rec.Settled)

		time.Sleep(time.Minute)
		p.answer = nil
		_, err = dial(ctx, t, i.Wrap(p), "k", dialBody)
		require.NoError(t, err)
		rec = lookUp(t, i, "k")
		require.Equal(t, []any{"answer", "", ""}, []any{rec.Evidence, rec.Reason, rec.Cause})
		require.Equal(t, time.Now(), rec.Settled)

		time.Sleep(time.Minute)
		notice(t, i, Found{ID: "a"}, Found{ID: "b"})
		rec = lookUp(t, i, "k")
		require.Equal(t, []string{"a", "b"}, rec.CallIDs)
		require.Equal(t, time.Now(), rec.Settled)
		require.Zero(t, rec.NextLookup)
		notice(t, i, Found{ID: "b"})
		require.Equal(t, rec, lookUp(t, i, "k"), "what is known changes nothing")
		notice(t, i, Found{ID: "b"}, Found{ID: "c"})
		require.Equal(t, []string{"a", "b", "c"}, lookUp(t, i, "k").CallIDs)
	})
}
