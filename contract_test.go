package resilience

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// The contract of http.RoundTripper, for every layer and every stack: the caller's request is unchanged, its body is
// closed on every path, exactly one of response and error comes back, and the response can be read after the return.
func TestContract(t *testing.T) {
	off := func(edit func(*Config)) func() Layer {
		return func() Layer {
			cfg := Config{}
			edit(&cfg)
			s, err := New(cfg)
			if err != nil {
				panic(err)
			}
			return s
		}
	}
	must := func(l Layer, err error) Layer {
		if err != nil {
			panic(err)
		}
		return l
	}
	layers := map[string]func() Layer{
		"budget":   func() Layer { l, err := NewTimeout(TimeoutConfig{}); return must(l.Budget(), err) },
		"attempt":  func() Layer { l, err := NewTimeout(TimeoutConfig{}); return must(l.Attempt(), err) },
		"timeout":  func() Layer { l, err := NewTimeout(TimeoutConfig{}); return must(l, err) },
		"here":     func() Layer { l, err := NewTimeout(TimeoutConfig{Cooperative: true}); return must(l, err) },
		"retry":    func() Layer { l, err := NewRetry(RetryConfig{}); return must(l, err) },
		"breaker":  func() Layer { l, err := NewBreaker(BreakerConfig{}); return must(l, err) },
		"bulkhead": func() Layer { l, err := NewBulkhead(BulkheadConfig{}); return must(l, err) },
		"fallback": func() Layer { l, err := NewFallback(FallbackConfig{}); return must(l, err) },
		"keys":     func() Layer { l, err := NewIdempotency(IdempotencyConfig{}); return must(l, err) },
		"dlq":      func() Layer { l, err := NewDLQ(DLQConfig{KeepUnnamed: true}); return must(l, err) },
		"stack":    off(func(*Config) {}),
		"open": func() Layer {
			l, err := NewBreaker(BreakerConfig{})
			l.ForceOpen()
			return must(l, err)
		},
		"full": func() Layer {
			l, err := NewBulkhead(BulkheadConfig{Critical: -1, Normal: 1, Bulk: -1, Queue: -1})
			_, _ = l.Acquire(context.Background(), PriorityNormal)
			return must(l, err)
		},
		"closed stack": func() Layer {
			s, err := New(Config{})
			_ = s.Close(context.Background())
			return must(s, err)
		},
		"stack without keys":    off(func(c *Config) { c.Idempotency.Off = true }),
		"stack in place":        off(func(c *Config) { c.Timeout.Cooperative = true }),
		"stack without time":    off(func(c *Config) { c.Timeout.Off = true }),
		"stack without letters": off(func(c *Config) { c.DLQ.Off = true }),
		"stack and more": func() Layer {
			s, err := New(Config{})
			l, err2 := NewTimeout(TimeoutConfig{})
			return must(Chain(l, s), errors.Join(err, err2))
		},
	}
	ends := map[string]func(ctx context.Context) (*http.Response, error){
		"200": func(context.Context) (*http.Response, error) { return reply(200, "the answer"), nil },
		"404": func(context.Context) (*http.Response, error) { return reply(404, "the answer"), nil },
		"500": func(context.Context) (*http.Response, error) { return reply(500, "the answer"), nil },
		"429": func(context.Context) (*http.Response, error) {
			return reply(429, "the answer", "Retry-After", "1"), nil
		},
		"error":   func(context.Context) (*http.Response, error) { return nil, io.EOF },
		"refused": func(context.Context) (*http.Response, error) { return nil, MarkNotSent(io.EOF) },
		"both":    func(context.Context) (*http.Response, error) { return reply(200, "x"), io.EOF },
		"neither": func(context.Context) (*http.Response, error) { return nil, nil },
		"hang": func(ctx context.Context) (*http.Response, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		},
	}
	for layer, make := range layers {
		for end, answer := range ends {
			for _, method := range []string{http.MethodGet, http.MethodPut, http.MethodPost} {
				for _, client := range []bool{false, true} {
					name := strings.Join([]string{layer, end, method, map[bool]string{true: "client", false: "bare"}[client]}, "/")
					t.Run(name, func(t *testing.T) {
						synctest.Test(t, func(t *testing.T) { keepsContract(t, make(), answer, method, client) })
					})
				}
			}
		}
	}
}

func keepsContract(t *testing.T, l Layer, answer func(context.Context) (*http.Response, error), method string, client bool) {
	rt := l.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
		if req.Body != nil {
			_, _ = io.Copy(io.Discard, req.Body)
			_ = req.Body.Close()
		}
		return answer(req.Context())
	}))
	ctx, cancel := context.WithTimeout(WithIdempotencyKey(t.Context(), "k"), 10*time.Minute)
	defer cancel()
	body := &watchedBody{Reader: strings.NewReader(`{"a":1}`)}
	req, err := http.NewRequestWithContext(ctx, method, "http://api.test/x?y=1", nil)
	require.NoError(t, err)
	req.Body, req.ContentLength = body, 7
	req.Header.Set("Idempotency-Key", "k")
	req.Header.Set("Authorization", "Bearer key_1")
	before, url, headers := *req, *req.URL, req.Header.Clone()

	var resp *http.Response
	if client {
		resp, err = (&http.Client{Transport: rt, Timeout: 5 * time.Minute}).Do(req)
	} else {
		resp, err = rt.RoundTrip(req)
	}
	require.NotEqual(t, resp == nil, err == nil, "exactly one of response and error: %v, %v", resp, err)
	if resp != nil {
		text, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.Equal(t, "the answer", string(text))
		require.NoError(t, resp.Body.Close())
	}
	require.False(t, NotSent(err) && InDoubt(err), "never both")
	require.Equal(t, before.Method, req.Method)
	require.Equal(t, url, *req.URL)
	require.Equal(t, headers, req.Header)
	require.Equal(t, before.ContentLength, req.ContentLength)
	require.Equal(t, io.ReadCloser(body), req.Body)
	time.Sleep(time.Hour) // flights have limits of their own
	if s, ok := l.(*Stack); ok {
		require.NoError(t, s.Close(context.Background()))
		require.Zero(t, s.Stats().Bulkhead.InUse)
	}
	synctest.Wait()
	require.True(t, body.closed.Load(), "the body is closed")
}

type watchedBody struct {
	io.Reader
	closed atomic.Bool
}

func (b *watchedBody) Close() error {
	b.closed.Store(true)
	return nil
}
