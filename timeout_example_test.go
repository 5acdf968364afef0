package resilience_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/retell-resilience/resilience"
)

// A timeout names the limit that fired.
func ExampleTimeout() {
	limits, err := resilience.NewTimeout(resilience.TimeoutConfig{Request: 10 * time.Millisecond})
	if err != nil {
		fmt.Println(err)
		return
	}
	hangs := resilience.RoundTripFunc(func(req *http.Request) (*http.Response, error) {
		<-req.Context().Done()
		return nil, req.Context().Err()
	})
	_, err = (&http.Client{Transport: limits.Wrap(hangs)}).Get("https://api.example.com/agents/7") //nolint:bodyclose // there is an error
	var e *resilience.Error
	if errors.As(err, &e) {
		fmt.Println(e.Limit, errors.Is(err, resilience.ErrTimeout), errors.Is(err, context.DeadlineExceeded))
	}
	// Output: request true true
}
