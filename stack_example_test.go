package resilience_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"

	"github.com/retell-resilience/resilience"
)

// One client, all layers. A read that is answered 503 is tried again; the caller does not notice.
func ExampleStack() {
	asked := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if asked++; asked == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer server.Close()

	stack, err := resilience.New(resilience.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer stack.Close(context.Background()) //nolint:errcheck // nothing is under way
	client := &http.Client{Transport: stack.Wrap(nil)}
	resp, err := client.Get(server.URL)
	if err != nil {
		fmt.Println(err)
		return
	}
	_ = resp.Body.Close()
	fmt.Println(resp.Status, "after", asked, "attempts")
	fmt.Println(stack)
	// Output:
	// 200 OK after 2 attempts
	// budget → fallback → claim → dlq → retry → bulkhead → breaker → intent → attempt → transport
}

// A wrong config is refused with all its faults at once.
func ExampleNew() {
	_, err := resilience.New(resilience.Config{
		Breaker: resilience.BreakerConfig{FailureRate: 50},
		Retry:   resilience.RetryConfig{Max: -2},
	})
	fmt.Println(err)
	// Output:
	// Retry.Max: must be positive, 0 for the default or -1 for none, got -2
	// Breaker.FailureRate: must be between 0 and 1, got 50
}

// Work that is not net/http takes the same road. The second try with the same key is answered from the record of the first.
func ExampleDo() {
	stack, err := resilience.New(resilience.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer stack.Close(context.Background()) //nolint:errcheck // nothing is under way
	ctx := resilience.WithIdempotencyKey(context.Background(), "invoice:4711")
	call := resilience.Call{Operation: "send-invoice", Params: map[string]int{"order": 4711}}
	for range 2 {
		receipt, err := resilience.Do(ctx, stack, call, func(context.Context) (string, error) {
			fmt.Println("sending")
			return "receipt 1", nil
		})
		fmt.Println(receipt, err)
	}
	// Output:
	// sending
	// receipt 1 <nil>
	// receipt 1 <nil>
}

// An answer is lost: nothing is sent again under the key until somebody knows what happened.
func ExampleIdempotency_Resolve() {
	lost := true
	base := resilience.RoundTripFunc(func(*http.Request) (*http.Response, error) {
		if lost {
			return nil, errors.New("connection reset by peer")
		}
		return &http.Response{StatusCode: http.StatusCreated, Header: http.Header{}, Body: http.NoBody}, nil
	})
	keys, err := resilience.NewIdempotency(resilience.IdempotencyConfig{})
	if err != nil {
		fmt.Println(err)
		return
	}
	client := &http.Client{Transport: keys.Wrap(base)}
	ctx := resilience.WithIdempotencyKey(context.Background(), "order:4711")
	send := func() {
		req, _ := http.NewRequestWithContext(ctx, http.MethodPost, "https://api.example.com/orders", strings.NewReader(`{"id":4711}`))
		resp, err := client.Do(req)
		if err != nil {
			fmt.Println("in doubt:", resilience.InDoubt(err), "not sent:", resilience.NotSent(err))
			return
		}
		_ = resp.Body.Close()
		fmt.Println(resp.StatusCode)
	}
	send()
	lost = false
	send() // not sent

	record, _ := keys.Lookup(ctx, "order:4711")
	fmt.Println("requests that were sent:", record.Sends)
	fmt.Println(keys.Resolve(ctx, "order:4711", resilience.Resolution{
		State: resilience.KeyNotApplied, Reason: "the shop has no such order",
	}))
	send()
	// Output:
	// in doubt: true not sent: false
	// in doubt: true not sent: false
	// requests that were sent: 1
	// <nil>
	// 201
}

// Layers in an order of your own, with a piece of your own between them.
func ExampleChain() {
	retry, _ := resilience.NewRetry(resilience.RetryConfig{})
	limits, _ := resilience.NewTimeout(resilience.TimeoutConfig{})
	log := resilience.LayerFunc(func(next http.RoundTripper) http.RoundTripper {
		return resilience.RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			fmt.Println("attempt")
			return next.RoundTrip(req)
		})
	})
	status := http.StatusBadGateway
	base := resilience.RoundTripFunc(func(*http.Request) (*http.Response, error) {
		defer func() { status = http.StatusOK }()
		return &http.Response{StatusCode: status, Header: http.Header{}, Body: http.NoBody}, nil
	})
	client := &http.Client{Transport: resilience.Chain(limits.Budget(), retry, log, limits.Attempt()).Wrap(base)}
	resp, err := client.Get("https://api.example.com/agents/7")
	if err != nil {
		fmt.Println(err)
		return
	}
	_ = resp.Body.Close()
	fmt.Println(resp.StatusCode)
	// Output:
	// attempt
	// attempt
	// 200
}

// What happens on the road, in the program's own log. Events hold no personal data; which are worth a line is up to you.
func ExampleLogEvents() {
	log := slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{} // for the example, whose output must not change
		}
		return a
	}}))
	stack, err := resilience.New(resilience.Config{
		Retry:    resilience.RetryConfig{Max: -1},
		Breaker:  resilience.BreakerConfig{MinCalls: 1},
		Fallback: resilience.FallbackConfig{Off: true},
		OnEvent:  resilience.LogEvents(log),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	client := &http.Client{Transport: stack.Wrap(resilience.RoundTripFunc(func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: http.StatusBadGateway, Header: http.Header{}, Body: http.NoBody}, nil
	}))}
	if resp, err := client.Get("https://api.example.com/agents/7"); err == nil {
		_ = resp.Body.Close()
	}
	_ = stack.Close(context.Background()) // the events so far are delivered before it returns
	// Output: level=WARN msg=circuit.open layer=breaker from=closed to=open status=502 duration=30s cause=status count=1
}
