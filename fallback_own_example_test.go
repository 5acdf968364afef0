package resilience_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/retell-resilience/resilience"
)

// A caller who has a better answer than the cache gives it to the read.
func ExampleWithFallback() {
	fallback, err := resilience.NewFallback(resilience.FallbackConfig{})
	if err != nil {
		fmt.Println(err)
		return
	}
	down := resilience.RoundTripFunc(func(*http.Request) (*http.Response, error) {
		return nil, errors.New("connection refused")
	})
	ctx := resilience.WithFallback(context.Background(), func(context.Context, error) (map[string]string, error) {
		return map[string]string{"voice": "the one in our settings"}, nil
	})
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "https://api.example.com/agents/7", nil)
	resp, err := (&http.Client{Transport: fallback.Wrap(down)}).Do(req)
	if err != nil {
		fmt.Println(err)
		return
	}
	body, _ := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	_, _, substitute := resilience.Served(resp)
	fmt.Println(string(body), substitute, resilience.ServedReason(resp))
	// Output: {"voice":"the one in our settings"} true transport
}
