package resilience

import (
	"io"
	"net/http"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

// countedBody counts how often it is closed.
type countedBody struct {
	readerFunc
	closed atomic.Int64
}

func (b *countedBody) Close() error { b.closed.Add(1); return nil }

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
