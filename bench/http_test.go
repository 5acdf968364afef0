package bench

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/failsafe-go/failsafe-go"
	"github.com/failsafe-go/failsafe-go/failsafehttp"
	"github.com/retell-resilience/resilience"
	"github.com/sony/gobreaker/v2"
	"golang.org/x/sync/semaphore"
)

type roundTripper = http.RoundTripper

const answerText = `{"call_id":"call_0000000000000000","call_status":"ended","agent_id":"agent_1","duration_ms":61000}`

// answer answers at once, from memory.
var answer = resilience.RoundTripFunc(func(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		_ = req.Body.Close()
	}
	return &http.Response{
		StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(answerText)),
		ContentLength: int64(len(answerText)), Request: req,
	}, nil
})

func keyOf(n int) string { return "order-" + strconv.Itoa(n) }

// httpByHand is a transport as one writes it around another: slots, a breaker, a deadline that ends with the body, a loop.
type httpByHand struct {
	next    http.RoundTripper
	slots   *semaphore.Weighted
	breaker *gobreaker.CircuitBreaker[*http.Response]
}

func newHTTPByHand(next http.RoundTripper) *httpByHand {
	return &httpByHand{next, semaphore.NewWeighted(slotCount), gobreaker.NewCircuitBreaker[*http.Response](gobreaker.Settings{})}
}

func (h *httpByHand) RoundTrip(req *http.Request) (*http.Response, error) {
	for n := 0; ; n++ {
		resp, err := h.once(req)
		if (err == nil && resp.StatusCode < 500) || n == retries || req.Method != http.MethodGet {
			return resp, err
		}
		if resp != nil {
			_ = resp.Body.Close()
		}
		if err := pause(req.Context(), n); err != nil {
			return nil, err
		}
	}
}

func (h *httpByHand) once(req *http.Request) (*http.Response, error) {
	if err := h.slots.Acquire(req.Context(), 1); err != nil {
		return nil, err
	}
	defer h.slots.Release(1)
	return h.breaker.Execute(func() (*http.Response, error) {
		ctx, cancel := context.WithTimeout(req.Context(), limit)
		resp, err := h.next.RoundTrip(req.WithContext(ctx))
		if err != nil {
			cancel()
			return nil, err
		}
		resp.Body = &cancelledBody{resp.Body, cancel}
		return resp, nil
	})
}

type cancelledBody struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (b *cancelledBody) Close() error {
	defer b.cancel()
	return b.ReadCloser.Close()
}

func failsafeHTTP(*testing.B) http.RoundTripper { return failsafeAround(answer) }

func failsafeAround(next http.RoundTripper) http.RoundTripper {
	policies := append([]failsafe.Policy[*http.Response]{failsafehttp.NewRetryPolicyBuilder().WithMaxRetries(retries).Build()}, failsafeThree[*http.Response]()...)
	return failsafehttp.NewRoundTripper(next, policies...)
}

func oursHTTP(b *testing.B) http.RoundTripper { return stackOf(b, withAll).Wrap(answer) }

func oursHTTPInPlace(b *testing.B) http.RoundTripper { return stackOf(b, withAll|inPlace).Wrap(answer) }

func exchange(c *http.Client, req *http.Request) error {
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.Body.Close()
}

func get(library, url string, make func(b *testing.B) http.RoundTripper) piece {
	return loop(library, func(b *testing.B) func() error {
		c := &http.Client{Transport: make(b)}
		req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, url, nil)
		if err != nil {
			b.Fatal(err)
		}
		return func() error { return exchange(c, req) }
	})
}

// post sends a body; for ours that is a call that must happen once. The request is made anew each time, by all of them.
func post(library string, make func(b *testing.B) http.RoundTripper) piece {
	return loop(library, func(b *testing.B) func() error {
		c, ctx := &http.Client{Transport: make(b)}, context.Background()
		return func() error {
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://api.test/v2/create-phone-call", strings.NewReader(answerText))
			if err != nil {
				return err
			}
			return exchange(c, req)
		}
	})
}

// http.Client over a transport in memory. "Adds" in the table is a line less bare. Ours reads the answer's body within the
// limits and keeps it, for the cache as well; by hand and failsafe-go's leave that to the caller.
func BenchmarkHTTPMemory(b *testing.B) {
	const url = "http://api.test/v2/get-call/call_1"
	run(b, []piece{
		get("bare", url, func(*testing.B) http.RoundTripper { return answer }),
		get("by-hand", url, func(*testing.B) http.RoundTripper { return newHTTPByHand(answer) }),
		get("failsafe", url, failsafeHTTP),
		get("ours", url, oursHTTP),
		get("ours-in-place", url, oursHTTPInPlace),
	})
}

// http.Client over loopback TCP, to a server in a process of its own, so that cpu-ns/op is what the client's process
// spends, system calls included. All of them use the same kind of transport.
func BenchmarkHTTPLoopback(b *testing.B) {
	url := serve(b)
	around := func(library string, wrap func(b *testing.B, base http.RoundTripper) http.RoundTripper) piece {
		return get(library, url, func(b *testing.B) http.RoundTripper {
			base := resilience.NewTransport()
			b.Cleanup(base.CloseIdleConnections)
			return wrap(b, base)
		})
	}
	run(b, []piece{
		around("bare", func(_ *testing.B, base http.RoundTripper) http.RoundTripper { return base }),
		around("by-hand", func(_ *testing.B, base http.RoundTripper) http.RoundTripper { return newHTTPByHand(base) }),
		around("failsafe", func(_ *testing.B, base http.RoundTripper) http.RoundTripper { return failsafeAround(base) }),
		around("ours", func(b *testing.B, base http.RoundTripper) http.RoundTripper { return stackOf(b, withAll).Wrap(base) }),
	})
}

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

const serverVariable = "BENCH_LOOPBACK_SERVER"

// serve starts this test binary again, as a server that ends when its standard input does.
func serve(b *testing.B) string {
	b.Helper()
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(self) //nolint:gosec,noctx // it ends with the benchmark
	cmd.Env = append(os.Environ(), serverVariable+"=1")
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	return strings.TrimSpace(line)
}

// beServer is the other end.
func beServer() int {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // there is nothing to wait for
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	server := &http.Server{ReadHeaderTimeout: limit, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, answerText)
	})}
	go func() { _ = server.Serve(l) }()
	fmt.Printf("http://%s/v2/get-call/call_1\n", l.Addr())
	_, _ = io.Copy(io.Discard, os.Stdin)
	_ = server.Close()
	return 0
}
