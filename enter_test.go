package resilience

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

type closeable struct {
	io.Reader
	closed bool
}

func (c *closeable) Close() error { c.closed = true; return nil }

// A body that is too long to be kept is not read when the call is refused, and closed all the same.
func TestEnter_ALongBodyOfARefusedCallIsClosed(t *testing.T) {
	s := newStack(t, Config{Timeout: TimeoutConfig{MaxRequestBytes: 4}, DLQ: DLQConfig{Off: true}})
	s.Breaker.ForceOpen()
	c := &closeable{Reader: bytes.NewReader(make([]byte, 100))}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://server.test/", c)
	require.NoError(t, err)
	_, err = s.Wrap(answering(200)).RoundTrip(req)
	require.ErrorIs(t, err, ErrOpen)
	require.True(t, c.closed)
}

// What a transport asks on the way, for a token say, is a call of its own, with its own effect and priority.
func TestEnter_ARequestOfItsOwnOnTheWayIsACallOfItsOwn(t *testing.T) {
	var seen []string
	inner := newTestBreaker(t, BreakerConfig{Key: func(c Call) string {
		seen = append(seen, c.Operation+" "+c.Effect.String())
		return ""
	}}).Wrap(answering(200))
	between := RoundTripFunc(func(req *http.Request) (*http.Response, error) {
		token, err := http.NewRequestWithContext(req.Context(), http.MethodGet, "http://tokens.test/", nil)
		require.NoError(t, err)
		_, err = inner.RoundTrip(token)
		require.NoError(t, err)
		return inner.RoundTrip(req)
	})
	ctx := WithCall(t.Context(), Call{Effect: EffectOnce})
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://server.test/", strings.NewReader("x"))
	require.NoError(t, err)
	_, err = newTestBulkhead(t, BulkheadConfig{}).Wrap(between).RoundTrip(req)
	require.NoError(t, err)
	require.Len(t, seen, 2)
	require.NotEqual(t, seen[0], seen[1])
}

// Whoever kept the context of a call sees it end with the call.
func TestEnter_TheContextEndsWithTheCall(t *testing.T) {
	for name, next := range map[string]RoundTripFunc{"answer": answering(200), "error": failingWith(io.EOF)} {
		var kept context.Context
		rt := newTestBreaker(t, BreakerConfig{}).Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			kept = req.Context()
			require.NoError(t, kept.Err())
			return next(req)
		}))
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://server.test/", nil)
		require.NoError(t, err)
		_, _ = rt.RoundTrip(req)
		require.ErrorIs(t, kept.Err(), context.Canceled, name)
	}
}

// However early a request is refused, its body is closed.
func TestEnter_TheBodyOfARequestThatNeverEnteredIsClosed(t *testing.T) {
	panics := newStack(t, Config{Describe: func(*http.Request) Call { panic("describe") }})
	for name, rt := range map[string]http.RoundTripper{"no URL": newStack(t, Config{}).Wrap(answering(200)), "panic": panics.Wrap(answering(200))} {
		c := &closeable{Reader: strings.NewReader("x")}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://server.test/", c)
		require.NoError(t, err)
		if name == "no URL" {
			req.URL = nil
		}
		_, err = rt.RoundTrip(req)
		require.True(t, NotSent(err), name)
		require.True(t, c.closed, name)
	}
}

// The context of a streamed answer lasts as long as the stream, and no longer.
func TestEnter_TheContextOfAStreamEndsWithIt(t *testing.T) {
	var kept context.Context
	rt := newTestBreaker(t, BreakerConfig{}).Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
		kept = req.Context()
		return &http.Response{
			StatusCode: 200, Header: http.Header{"Content-Type": {"text/event-stream"}}, Body: io.NopCloser(strings.NewReader("data: 1\n\n")), ContentLength: -1,
		}, nil
	}))
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://server.test/", nil)
	require.NoError(t, err)
	resp, err := rt.RoundTrip(req)
	require.NoError(t, err)
	require.NoError(t, kept.Err())
	require.NoError(t, resp.Body.Close())
	require.Error(t, kept.Err())
}

// A stack over another one describes the calls in its own way.
func TestEnter_AStackOverAnother(t *testing.T) {
	named := func(name string, seen *[]string) *Stack {
		return newStack(t, Config{
			Describe: func(*http.Request) Call { return Call{Operation: name} },
			Breaker:  BreakerConfig{Key: func(c Call) string { *seen = append(*seen, c.Operation); return "" }},
		})
	}
	var seen []string
	rt := named("outer", &seen).Wrap(named("inner", &seen).Wrap(answering(200)))
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://server.test/", nil)
	require.NoError(t, err)
	_, err = rt.RoundTrip(req)
	require.NoError(t, err)
	require.Equal(t, []string{"outer", "inner"}, seen)
}

func TestStack_ARequestWithoutAURLIsRefused(t *testing.T) {
	s := newStack(t, Config{})
	rt := s.Wrap(&phone{})
	for _, method := range []string{http.MethodGet, http.MethodPut, http.MethodPost} {
		_, err := rt.RoundTrip(&http.Request{Method: method, Header: http.Header{}})
		require.ErrorContains(t, err, "URL")
		require.True(t, NotSent(err))
	}
	closeStack(t, s)
}
