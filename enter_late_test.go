package resilience

import (
	"context"
	"io"
	"net/http"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// countedBody counts how often it is closed.
type countedBody struct {
	readerFunc
	closed  atomic.Int64
	onClose func() // nil: nothing
}

func (b *countedBody) Close() error {
	if b.closed.Add(1) == 1 && b.onClose != nil {
		b.onClose()
	}
	return nil
}

// However the reading of a body ends, the body is closed once: also one that is said to be in memory, and one that came
// back from a transport between two layers.
func TestEnter_ABodyWhoseReadDoesNotReturnIsClosedOnce(t *testing.T) {
	for name, end := range map[string]func(){"panic": func() { panic("read") }, "goexit": runtime.Goexit} {
		for _, where := range []string{"piped", "in memory", "behind a transport"} {
			t.Run(name+" "+where, func(t *testing.T) {
				b := &countedBody{readerFunc: func([]byte) (int, error) { end(); return 0, io.EOF }}
				req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://server.test/", b)
				require.NoError(t, err)
				rt := newTestBreaker(t, BreakerConfig{}).Wrap(answering(200))
				switch where {
				case "in memory":
					req.GetBody = func() (io.ReadCloser, error) { return http.NoBody, nil }
				case "behind a transport":
					inner := rt
					rt = newTestBreaker(t, BreakerConfig{}).Wrap(RoundTripFunc(func(out *http.Request) (*http.Response, error) {
						again := out.Clone(out.Context())
						again.Body = b
						return inner.RoundTrip(again)
					}))
					req.Body = http.NoBody
				}
				done := make(chan struct{})
				go func() {
					defer close(done)
					defer func() { _ = recover() }()
					_, _ = rt.RoundTrip(req)
					t.Error("it returned")
				}()
				<-done
				require.EqualValues(t, 1, b.closed.Load())
			})
		}
	}
}

// A body that does not come in time is closed once: to end its reading, and not again by the one who reads.
func TestEnter_ABodyThatComesTooLateIsClosedOnce(t *testing.T) {
	for name, end := range map[string]error{"end": io.EOF, "failure": io.ErrUnexpectedEOF} {
		for _, ends := range []bool{true, false} { // with Close
			synctest.Test(t, func(t *testing.T) {
				closed := make(chan struct{})
				b := &countedBody{}
				b.readerFunc = func([]byte) (int, error) {
					if ends {
						<-closed
					} else {
						time.Sleep(time.Hour)
					}
					return 0, end
				}
				b.onClose = func() { close(closed) }
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				req, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://server.test/", b)
				require.NoError(t, err)
				sent := false
				_, err = newTestBreaker(t, BreakerConfig{}).Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
					sent = true
					return ok(""), nil
				})).RoundTrip(req)
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.True(t, NotSent(err), name)
				time.Sleep(2 * time.Hour)
				require.False(t, sent)
				require.EqualValues(t, 1, b.closed.Load(), name)
			})
		}
	}
}
