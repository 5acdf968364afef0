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

// After RoundTrip has returned the request is its caller's again, though the work may go on: neither a flight nor an
// attempt that was left behind may look at it. The race detector tells.
func TestCorner_TheRequestIsTheCallersAgain(t *testing.T) {
	for name, wrap := range map[string]func(t *testing.T, rt http.RoundTripper) http.RoundTripper{
		"flight": func(t *testing.T, rt http.RoundTripper) http.RoundTripper {
			return newIdem(t, IdempotencyConfig{}).Wrap(rt)
		},
		"attempt left behind": func(t *testing.T, rt http.RoundTripper) http.RoundTripper {
			return newTime(t, TimeoutConfig{Request: time.Second}).Wrap(rt)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				seen := make(chan string, 1)
				rt := wrap(t, RoundTripFunc(func(req *http.Request) (*http.Response, error) {
					time.Sleep(time.Minute) // whatever its context says
					seen <- req.Header.Get("X-Tag") + req.URL.Path
					return reply(200, "late"), nil
				}))
				ctx, cancel := context.WithTimeout(WithIdempotencyKey(t.Context(), "k"), 2*time.Second)
				defer cancel()
				req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://api.test/a", nil)
				require.NoError(t, err)
				req.Header.Set("X-Tag", "mine")
				_, err = rt.RoundTrip(req) //nolint:bodyclose // there is none
				require.Error(t, err)
				req.Header.Set("X-Tag", "another's")
				req.URL.Path = "/b"
				require.Equal(t, "mine/a", <-seen)
			})
		})
	}
}

func TestDetached_HasNothingOfTheCallers(t *testing.T) {
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://api.test/a", io.NopCloser(nil))
	require.NoError(t, err)
	req.GetBody = func() (io.ReadCloser, error) { return nil, io.EOF }
	req.Cancel = make(chan struct{}) //nolint:staticcheck // http.Client still sets it
	req.Header.Set("X-Tag", "mine")
	own := detached(t.Context(), req)
	require.Nil(t, own.Body)
	require.Nil(t, own.GetBody)
	require.Nil(t, own.Cancel) //nolint:staticcheck // as above
	own.Header.Set("X-Tag", "own")
	own.URL.Path = "/own"
	require.Equal(t, "mine", req.Header.Get("X-Tag"))
	require.Equal(t, "/a", req.URL.Path)
}

// http.Client cancels a foreign transport through Request.Cancel, with an error of no type: it must not get that far.
func TestCorner_CancelDoesNotGoDown(t *testing.T) {
	for name, rt := range map[string]func(http.RoundTripper) http.RoundTripper{
		"own goroutine": newTime(t, TimeoutConfig{}).Wrap, "in place": newTime(t, TimeoutConfig{Cooperative: true}).Wrap,
	} {
		c := &http.Client{Timeout: time.Hour, Transport: rt(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			require.Nil(t, req.Cancel, name) //nolint:staticcheck // http.Client still sets it
			return reply(200, ""), nil
		}))}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://api.test/", nil)
		require.NoError(t, err)
		resp, err := c.Do(req)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
	}
}

// The context that a budget makes below a foreign one ends with the call, or it would hang on to a caller's that lasts.
func TestTimeout_TheBudgetsOwnContextEnds(t *testing.T) {
	l := newTime(t, TimeoutConfig{})
	type tag struct{}
	foreign := LayerFunc(func(next http.RoundTripper) http.RoundTripper {
		return RoundTripFunc(func(r *http.Request) (*http.Response, error) {
			return next.RoundTrip(r.WithContext(context.WithValue(context.WithoutCancel(r.Context()), tag{}, 1)))
		})
	})
	b, err := NewBreaker(BreakerConfig{})
	require.NoError(t, err)
	var below context.Context
	_, err = fetch(t.Context(), t, Chain(b, foreign, l.Budget()).Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
		below = req.Context()
		require.NoError(t, below.Err())
		return reply(200, ""), nil
	})))
	require.NoError(t, err)
	require.ErrorIs(t, below.Err(), context.Canceled)
}

// A hedger that panics leaves its send to the flight, which waits for it before it says what became of the key.
func TestCorner_AHedgersPanicLeavesItsSend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIdem(t, IdempotencyConfig{})
		p := &phone{answer: func(*http.Request, int) (*http.Response, error) {
			time.Sleep(time.Second)
			return reply(201, `{"call_id":"call_1"}`), nil
		}}
		hedge := LayerFunc(func(next http.RoundTripper) http.RoundTripper {
			return RoundTripFunc(func(r *http.Request) (*http.Response, error) {
				go func() { _, _ = next.RoundTrip(r) }() //nolint:bodyclose // nobody reads it
				time.Sleep(time.Millisecond)
				panic("hedger")
			})
		})
		require.PanicsWithValue(t, "hedger", func() {
			_, _ = cornerPost(WithIdempotencyKey(t.Context(), "k"), Chain(i.Claim(), hedge, i.Intent()).Wrap(p), dialBody)
		})
		require.Equal(t, KeyConfirmed, stateOf(t, i, "k"), "its answer had come when the panic was handed on")
		require.Equal(t, 1, p.rang())
	})
}

// A circuit that opens just after it was asked, and has sent those home who waited, is asked again by whoever was not among
// them yet.
func TestBulkhead_ACircuitThatOpensBetweenAskingAndWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, err := NewBulkhead(BulkheadConfig{Critical: -1, Normal: 1, Bulk: -1})
		require.NoError(t, err)
		asked := 0
		b.refusal = func(Call) error {
			if asked++; asked == 1 {
				b.sendHome()
				return nil
			}
			return ErrOpen
		}
		release, err := b.Acquire(t.Context(), PriorityNormal)
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		_, err = b.Acquire(ctx, PriorityNormal)
		require.ErrorIs(t, err, ErrOpen)
		require.Equal(t, 2, asked)
		release()
		require.Zero(t, b.Stats().InUse)
	})
}
