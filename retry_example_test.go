package resilience_test

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/retell-resilience/resilience"
)

// A read is tried again. A call that must happen once is not: nobody knows whether the first one did.
func ExampleRetry() {
	retry, err := resilience.NewRetry(resilience.RetryConfig{Max: 2, Base: time.Millisecond})
	if err != nil {
		fmt.Println(err)
		return
	}
	sent := 0
	failing := resilience.RoundTripFunc(func(*http.Request) (*http.Response, error) {
		sent++
		return &http.Response{StatusCode: http.StatusBadGateway, Body: http.NoBody}, nil
	})
	client := &http.Client{Transport: retry.Wrap(failing)}

	resp, err := client.Get("https://api.example.com/agents/7")
	if err == nil {
		_ = resp.Body.Close()
	}
	fmt.Println("GET: sent", sent)

	sent = 0
	resp, err = client.Post("https://api.example.com/calls", "application/json", strings.NewReader(`{}`))
	if err == nil {
		_ = resp.Body.Close()
	}
	fmt.Println("POST: sent", sent)
	// Output:
	// GET: sent 3
	// POST: sent 1
}
