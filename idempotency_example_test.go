package resilience_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/retell-resilience/resilience"
)

// Calls with one key are one call. The second gets the answer of the first, and another call under the key is refused.
func ExampleIdempotency() {
	keys, err := resilience.NewIdempotency(resilience.IdempotencyConfig{})
	if err != nil {
		fmt.Println(err)
		return
	}
	sent := 0
	phone := resilience.RoundTripFunc(func(*http.Request) (*http.Response, error) {
		sent++
		return &http.Response{StatusCode: http.StatusCreated, Body: io.NopCloser(strings.NewReader(`{"id":"call_1"}`))}, nil
	})
	client := &http.Client{Transport: keys.Wrap(phone)}
	ctx := resilience.WithIdempotencyKey(context.Background(), "reminder:4711")
	call := func(body string) {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://api.example.com/calls", strings.NewReader(body))
		if err != nil {
			fmt.Println(err)
			return
		}
		resp, err := client.Do(req)
		if err != nil {
			fmt.Println("reused:", errors.Is(err, resilience.ErrKeyReused), "sent", sent)
			return
		}
		answer, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		fmt.Println(string(answer), "replayed:", resilience.Replayed(resp), "sent", sent)
	}
	call(`{"to":"+15555550123"}`)
	call(`{"to":"+15555550123"}`)
	call(`{"to":"+15555550199"}`)
	// Output:
	// {"id":"call_1"} replayed: false sent 1
	// {"id":"call_1"} replayed: true sent 1
	// reused: true sent 1
}
