package resilience

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

type cornerShared struct{ KeyStore }

func (cornerShared) Capabilities() Capabilities {
	return Capabilities{Shared: true, Linearizable: true}
}

func TestCorner_LostClaimNowInDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := cornerShared{NewMemoryStore(0)}
		a, _ := NewIdempotency(IdempotencyConfig{Store: st})
		b, _ := NewIdempotency(IdempotencyConfig{Store: st})
		p := &phone{answer: lostAnswer}
		wait := LayerFunc(func(next http.RoundTripper) http.RoundTripper {
			return RoundTripFunc(func(r *http.Request) (*http.Response, error) {
				time.Sleep(time.Hour) // a queue, a suspended process
				return next.RoundTrip(r)
			})
		})
		done := make(chan error)
		go func() {
			_, err := cornerPost(WithIdempotencyKey(t.Context(), "k"), Chain(a.Claim(), wait, a.Intent()).Wrap(p), dialBody)
			done <- err
		}()
		time.Sleep(30 * time.Minute)
		_, err := cornerPost(WithIdempotencyKey(t.Context(), "k"), b.Wrap(p), dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		err = <-done
		t.Log(err)
		require.Equal(t, 1, p.rang())
		require.False(t, NotSent(err))
	})
}

// a foreign layer between the doors sets a header, the reconciler marks
func TestCorner_ForeignHeaderBetweenDoors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, _ := NewIdempotency(IdempotencyConfig{Reconcile: &cornerFind{}})
		auth := LayerFunc(func(next http.RoundTripper) http.RoundTripper {
			return RoundTripFunc(func(r *http.Request) (*http.Response, error) {
				r = r.Clone(r.Context())
				r.Header.Set("Authorization", "Bearer x")
				return next.RoundTrip(r)
			})
		})
		got := ""
		_, err := cornerPost(WithIdempotencyKey(t.Context(), "k"), Chain(i.Claim(), auth, i.Intent()).Wrap(RoundTripFunc(func(r *http.Request) (*http.Response, error) {
			got = r.Header.Get("Authorization")
			return reply(201, "{}"), nil
		})), dialBody)
		require.NoError(t, err)
		require.Equal(t, "Bearer x", got)
	})
}

// evidence says it happened, the answer is a 4xx
func TestCorner_EvidenceThenRefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, _ := NewIdempotency(IdempotencyConfig{})
		rt := i.Wrap(RoundTripFunc(func(r *http.Request) (*http.Response, error) {
			rec := i.ID("k")
			// as another process would have observed it
			_, _ = i.apply(context.Background(), rec, keyEvent{kind: eventEvidence, evidence: Evidence{ID: rec, Calls: []Found{{ID: "call_1"}}}, keep: time.Hour})
			return nil, MarkNotSent(http.ErrServerClosed)
		}))
		_, err := cornerPost(WithIdempotencyKey(t.Context(), "k"), rt, dialBody)
		t.Log(err)
		require.False(t, NotSent(err))
	})
}

func TestCorner_JoinerOutlivesLeaderLease(t *testing.T) {
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
		go cornerPost(WithBudget(k, 2*time.Second), rt, dialBody)
		time.Sleep(time.Second)
		_, err = cornerPost(WithBudget(k, time.Minute), rt, dialBody)
		cancel()
		require.NoError(t, err)
		closeStack(t, s)
	})
}

type cornerSlow struct{ KeyStore }

func (s cornerSlow) CompareAndSwap(ctx context.Context, old uint64, r Record) (uint64, bool, error) {
	v, ok, err := s.KeyStore.CompareAndSwap(ctx, old, r)
	if r.State == KeyConfirmed {
		time.Sleep(2 * time.Second)
	}
	return v, ok, err
}

func TestCorner_UnnamedToldWhileRecording(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Idempotency: IdempotencyConfig{Store: cornerSlow{NewMemoryStore(0)}}})
		p := &phone{answer: func(*http.Request, int) (*http.Response, error) {
			time.Sleep(4 * time.Second)
			return reply(201, `{"call_id":"c"}`), nil
		}}
		rt := s.Wrap(p)
		_, err := cornerPost(WithBudget(t.Context(), 5*time.Second), rt, dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		var e *Error
		require.ErrorAs(t, err, &e)
		time.Sleep(10 * time.Second)
		_, err = cornerPost(WithIdempotencyKey(t.Context(), e.Key), rt, dialBody)
		require.NoError(t, err)
		require.Equal(t, 1, p.rang())
		closeStack(t, s)
	})
}

func TestCorner_LateAnswerOfAnUnnamedKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{})
		p := &phone{answer: func(*http.Request, int) (*http.Response, error) {
			time.Sleep(time.Minute) // deaf to its context, past the attempt's limit
			return reply(201, `{"call_id":"c"}`), nil
		}}
		rt := s.Wrap(p)
		_, err := cornerPost(t.Context(), rt, dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		var e *Error
		require.ErrorAs(t, err, &e)
		time.Sleep(2 * time.Minute)
		_, err = cornerPost(WithIdempotencyKey(t.Context(), e.Key), rt, dialBody)
		require.NoError(t, err)
		require.Equal(t, 1, p.rang())
		closeStack(t, s)
	})
}

// net's own dialer tells of what it does under another key than net/http's, so a test with a fake would not do.
func TestT11_ConnectLimitOverNetHTTP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // connects, and never shakes hands
	require.NoError(t, err)
	defer l.Close()
	to := newTime(t, TimeoutConfig{Connect: 50 * time.Millisecond})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+l.Addr().String(), nil)
	require.NoError(t, err)
	_, err = to.Wrap(nil).RoundTrip(req)
	var e *Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, "connect", e.Limit)
	require.True(t, NotSent(err))
}

// A user's dialer tells nothing, but the handshake does.
func TestT11_ConnectLimitWithADialerOfTheUsers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := NewTransport()
		server, client := net.Pipe()
		tr.DialContext = func(context.Context, string, string) (net.Conn, error) { return client, nil }
		go func() { _, _ = io.Copy(io.Discard, server) }()
		to := newTime(t, TimeoutConfig{Connect: time.Second})
		_, err := fetch(t.Context(), t, to.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			req = req.Clone(req.Context())
			req.URL.Scheme = "https"
			return tr.RoundTrip(req)
		})))
		var e *Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, "connect", e.Limit)
		_ = server.Close()
		tr.CloseIdleConnections()
	})
}

// A user's trace hears each thing once, however many wires are on the road.
func TestTransport_AUsersTraceHearsOnce(t *testing.T) {
	s := newRawServer(t, func(_ int64, w io.Writer) bool { answered201(w); return true })
	heard := map[string]int{}
	var mu sync.Mutex
	hear := func(what string) { mu.Lock(); defer mu.Unlock(); heard[what]++ }
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		GetConn: func(string) { hear("get") }, GotConn: func(httptrace.GotConnInfo) { hear("got") },
		ConnectStart: func(string, string) { hear("connect") },
	})
	stack, tr := newStack(t, Config{}), NewTransport()
	defer tr.CloseIdleConnections()
	foreign := LayerFunc(func(next http.RoundTripper) http.RoundTripper { return RoundTripFunc(next.RoundTrip) })
	b, err := NewBreaker(BreakerConfig{})
	require.NoError(t, err)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url(), nil)
	require.NoError(t, err)
	resp, err := stack.Wrap(Chain(foreign, b).Wrap(tr)).RoundTrip(req)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, map[string]int{"get": 1, "got": 1, "connect": 1}, heard)
	closeStack(t, stack)
}

// A hedger that gives up on the send under way does not make its outcome a refusal: the flight waits for it.
func TestCorner_AHedgersRefusalIsNoProof(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, answer := range map[string]func(*http.Request, int) (*http.Response, error){"answered": nil, "lost": lostAnswer} {
			i := newIdem(t, IdempotencyConfig{})
			p := &phone{answer: func(req *http.Request, n int) (*http.Response, error) {
				time.Sleep(50 * time.Millisecond) // it rings
				if answer == nil {
					return reply(201, `{"call_id":"call_1"}`), nil
				}
				return answer(req, n)
			}}
			hedge := LayerFunc(func(next http.RoundTripper) http.RoundTripper {
				return RoundTripFunc(func(r *http.Request) (*http.Response, error) {
					ended := make(chan error, 2)
					for n := range 2 {
						go func() {
							time.Sleep(time.Duration(n) * 10 * time.Millisecond)
							_, err := next.RoundTrip(r) //nolint:bodyclose // nobody reads it
							ended <- err
						}()
					}
					return nil, <-ended
				})
			})
			resp, err := cornerPost(WithIdempotencyKey(t.Context(), "k"), Chain(i.Claim(), hedge, i.Intent()).Wrap(p), dialBody)
			require.False(t, NotSent(err), name)
			require.Equal(t, answer != nil, InDoubt(err), name)
			require.Equal(t, answer == nil, resp != nil && Replayed(resp), name)
			require.Equal(t, 1, p.rang())
		}
	})
}

type cutBody struct{ reads int }

func (c *cutBody) Read(p []byte) (int, error) {
	if c.reads++; c.reads == 1 {
		return copy(p, `{"id":`), nil
	}
	return 0, fmt.Errorf("decrypting: %w", io.EOF)
}
func (*cutBody) Close() error { return nil }

// Only io.EOF itself is the end of a body. One that is wrapped says that something broke.
func TestCorner_AWrappedEOFIsNoEnd(t *testing.T) {
	l := newTime(t, TimeoutConfig{})
	_, err := fetch(t.Context(), t, l.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: 200, Header: http.Header{}, ContentLength: -1, Body: &cutBody{}}, nil
	})))
	require.ErrorContains(t, err, "cut short")
}

// What a user's function does for a failed read can see that the budget is spent.
func TestFallback_TheFunctionSeesTheSpentBudget(t *testing.T) {
	onEitherGoroutine(t, func(t *testing.T, cooperative bool) {
		s := newStack(t, Config{Timeout: TimeoutConfig{Cooperative: cooperative}, Retry: RetryConfig{Off: true}})
		asked := false
		ctx := WithFallback(t.Context(), func(ctx context.Context, _ error) (int, error) {
			asked = true
			require.ErrorIs(t, ctx.Err(), context.DeadlineExceeded)
			return 1, nil
		})
		call := Call{Effect: EffectRead, Budget: time.Second, Limit: time.Minute}
		v, err := Do(ctx, s, call, func(ctx context.Context) (int, error) { <-ctx.Done(); return 0, ctx.Err() })
		require.NoError(t, err)
		require.Equal(t, 1, v)
		require.True(t, asked)
		closeStack(t, s)
	})
}

// A substitute is for the call that it was given to, not for those that are made inside of it.
func TestFallback_ASubstituteStaysWithItsCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newStack(t, Config{}), newStack(t, Config{Retry: RetryConfig{Off: true}})
		ctx := WithFallback(t.Context(), func(context.Context, error) (int, error) { return 42, nil })
		for _, effect := range []Effect{EffectRead, EffectOnce} {
			_, err := Do(ctx, a, Call{Operation: "outer", Effect: effect}, func(ctx context.Context) (int, error) {
				_, err := Do(ctx, b, Call{Operation: "token", Effect: EffectRead}, func(context.Context) (int, error) { return 0, io.EOF })
				require.ErrorIs(t, err, io.EOF)
				return 1, nil
			})
			require.NoError(t, err)
		}
		closeStack(t, a)
		closeStack(t, b)
	})
}

// A foreign layer that only adds a value to the context does not hide that the budget is spent.
func TestT08_ABudgetSpentBeyondAForeignContext(t *testing.T) {
	onEitherGoroutine(t, func(t *testing.T, cooperative bool) {
		l := newTime(t, TimeoutConfig{Total: 50 * time.Millisecond, Cooperative: cooperative})
		type tag struct{}
		slow := LayerFunc(func(next http.RoundTripper) http.RoundTripper {
			return RoundTripFunc(func(r *http.Request) (*http.Response, error) {
				time.Sleep(80 * time.Millisecond)
				return next.RoundTrip(r.WithContext(context.WithValue(r.Context(), tag{}, 1)))
			})
		})
		_, err := fetch(t.Context(), t, Chain(l.Budget(), slow, l.Attempt()).Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			t.Error("it was sent all the same")
			return nil, io.EOF
		})))
		require.ErrorIs(t, err, ErrTimeout)
		require.True(t, NotSent(err))
	})
}

// Err says what the caller's context says, also where that has a cause of its own.
func TestT04_ADeadlineWithACauseIsADeadline(t *testing.T) {
	onEitherGoroutine(t, func(t *testing.T, cooperative bool) {
		l := newTime(t, TimeoutConfig{Cooperative: cooperative})
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, errors.New("mine"))
		defer cancel()
		_, err := fetch(ctx, t, l.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			<-req.Context().Done()
			require.ErrorIs(t, req.Context().Err(), context.DeadlineExceeded)
			return nil, req.Context().Err()
		})))
		require.ErrorContains(t, err, "mine")
	})
}
