package resilience

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// a foreign layer between the doors sets a header, the reconciler marks
func TestWire_ForeignHeaderBetweenDoors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, _ := NewIdempotency(IdempotencyConfig{Reconcile: &trustedFinder{}})
		auth := LayerFunc(func(next http.RoundTripper) http.RoundTripper {
			return RoundTripFunc(func(r *http.Request) (*http.Response, error) {
				r = r.Clone(r.Context())
				r.Header.Set("Authorization", "Bearer x")
				return next.RoundTrip(r)
			})
		})
		got := ""
		_, err := postCall(WithIdempotencyKey(t.Context(), "k"), Chain(i.Claim(), auth, i.Intent()).Wrap(RoundTripFunc(func(r *http.Request) (*http.Response, error) {
			got = r.Header.Get("Authorization")
			return reply(201, "{}"), nil
		})), dialBody)
		require.NoError(t, err)
		require.Equal(t, "Bearer x", got)
	})
}

// A hedger that gives up on the send under way does not make its outcome a refusal: the flight waits for it.
func TestWire_AHedgersRefusalIsNoProof(t *testing.T) {
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
			resp, err := postCall(WithIdempotencyKey(t.Context(), "k"), Chain(i.Claim(), hedge, i.Intent()).Wrap(p), dialBody)
			require.False(t, NotSent(err), name)
			require.Equal(t, answer != nil, InDoubt(err), name)
			require.Equal(t, answer == nil, resp != nil && Replayed(resp), name)
			require.Equal(t, 1, p.rang())
		}
	})
}

// A hedger that panics leaves its send to the flight, which waits for it before it says what became of the key.
func TestWire_AHedgersPanicLeavesItsSend(t *testing.T) {
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
			_, _ = postCall(WithIdempotencyKey(t.Context(), "k"), Chain(i.Claim(), hedge, i.Intent()).Wrap(p), dialBody)
		})
		require.Equal(t, KeyConfirmed, stateOf(t, i, "k"), "its answer had come when the panic was handed on")
		require.Equal(t, 1, p.rang())
	})
}

// Foreign retry between the doors
func TestWire_ForeignRetryBetweenDoors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, err := NewIdempotency(IdempotencyConfig{})
		require.NoError(t, err)
		p := &phone{answer: lostAnswer}
		again := LayerFunc(func(next http.RoundTripper) http.RoundTripper {
			return RoundTripFunc(func(r *http.Request) (*http.Response, error) {
				for n := 0; ; n++ {
					resp, err := next.RoundTrip(r)
					if err == nil || n == 2 {
						return resp, err
					}
				}
			})
		})
		_, err = postCall(WithIdempotencyKey(t.Context(), "k"), Chain(i.Claim(), again, i.Intent()).Wrap(p), dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		require.Equal(t, 1, p.rang())
	})
}

// A foreign layer that sends twice at once, to take the quicker answer, gets one of the two refused: the call is sent once.
func TestWire_ForeignHedgeBetweenDoors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, err := NewIdempotency(IdempotencyConfig{})
		require.NoError(t, err)
		p := &phone{answer: func(*http.Request, int) (*http.Response, error) {
			time.Sleep(time.Second)
			return reply(201, `{"call_id":"call_1"}`), nil
		}}
		refusals := make(chan error, 2)
		hedge := LayerFunc(func(next http.RoundTripper) http.RoundTripper {
			return RoundTripFunc(func(r *http.Request) (*http.Response, error) {
				answers := make(chan *http.Response, 2)
				for range 2 {
					go func() {
						resp, err := next.RoundTrip(r) //nolint:bodyclose // the caller does
						if err != nil {
							refusals <- err
							return
						}
						answers <- resp
					}()
				}
				return <-answers, nil
			})
		})
		resp, err := postCall(WithIdempotencyKey(t.Context(), "k"), Chain(i.Claim(), hedge, i.Intent()).Wrap(p), dialBody)
		require.NoError(t, err)
		require.Equal(t, 201, resp.StatusCode)
		require.Equal(t, 1, p.rang())
		err = <-refusals
		require.True(t, NotSent(err), "%v", err)
		require.Equal(t, KeyConfirmed, stateOf(t, i, "k"))
	})
}

// A piece of the user's between two layers may change the body of a request, and may hand on one that is too large to keep.
func TestWire_APieceOfTheUsersHandsItsOwnBodyOn(t *testing.T) {
	upper := LayerFunc(func(next http.RoundTripper) http.RoundTripper {
		return RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			text, err := io.ReadAll(req.Body)
			if err != nil {
				return nil, err
			}
			_ = req.Body.Close()
			out := req.Clone(req.Context())
			out.Body = io.NopCloser(strings.NewReader(strings.ToUpper(string(text))))
			return next.RoundTrip(out)
		})
	})
	asItIs := LayerFunc(func(next http.RoundTripper) http.RoundTripper { return RoundTripFunc(next.RoundTrip) })
	twice := LayerFunc(func(next http.RoundTripper) http.RoundTripper {
		return RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			_, _ = next.RoundTrip(req)
			return next.RoundTrip(req)
		})
	})
	for name, c := range map[string]struct {
		piece Layer
		limit int64
		want  []string
		fails bool
	}{
		"changed":                {piece: upper, limit: 100, want: []string{"TEXT"}},
		"changed, large":         {piece: upper, limit: 2, want: []string{"TEXT"}},
		"as it is":               {piece: asItIs, limit: 100, want: []string{"text"}},
		"as it is, large":        {piece: asItIs, limit: 2, want: []string{"text"}},
		"as it is, twice":        {piece: twice, limit: 100, want: []string{"text", "text"}},
		"as it is, large, twice": {piece: twice, limit: 2, want: []string{"text"}, fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				to := newTime(t, TimeoutConfig{MaxRequestBytes: c.limit})
				var got []string
				rt := Chain(to.Budget(), c.piece, to.Attempt()).Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
					text, err := io.ReadAll(req.Body)
					require.NoError(t, err)
					got = append(got, string(text))
					return reply(200, "{}"), nil
				}))
				req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://api.test/x", strings.NewReader("text"))
				require.NoError(t, err)
				_, err = rt.RoundTrip(req)
				require.Equal(t, c.fails, err != nil, "%v", err)
				require.False(t, NotSent(err), "it was sent once")
				require.Equal(t, c.want, got)
			})
		})
	}
}

// What such a piece changes belongs to the same flight: its key is in doubt when the answer is lost, and it is not sent again.
func TestWire_APieceOfTheUsersBetweenTheDoorsOfAKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIdem(t, IdempotencyConfig{})
		piece := LayerFunc(func(next http.RoundTripper) http.RoundTripper {
			return RoundTripFunc(func(req *http.Request) (*http.Response, error) {
				_ = req.Body.Close()
				out := req.Clone(req.Context())
				out.Body = io.NopCloser(strings.NewReader("changed"))
				return next.RoundTrip(out)
			})
		})
		p := &phone{answer: lostAnswer}
		rt := Chain(i.Claim(), piece, i.Intent()).Wrap(p)
		for range 2 {
			_, err := dial(t.Context(), t, rt, "k", dialBody)
			require.ErrorIs(t, err, ErrInDoubt)
		}
		require.Equal(t, map[string]int{"changed": 1}, p.rings)
	})
}
