package resilience_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/retell-resilience/resilience"
)

// A server that fails is left alone: the third call is not sent.
func ExampleBreaker() {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusBadGateway)
	}))
	defer server.Close()

	breaker, err := resilience.NewBreaker(resilience.BreakerConfig{MinCalls: 2, OpenFor: time.Minute})
	if err != nil {
		fmt.Println(err)
		return
	}
	client := &http.Client{Transport: breaker.Wrap(nil)}
	for range 3 {
		resp, err := client.Get(server.URL)
		var refusal *resilience.Error
		if errors.As(err, &refusal) {
			fmt.Println("refused:", errors.Is(err, resilience.ErrOpen), "safe to try again:", resilience.NotSent(err),
				"in about", refusal.RetryAfter.Round(time.Minute))
			continue
		}
		if err != nil {
			fmt.Println(err)
			continue
		}
		_ = resp.Body.Close()
		fmt.Println(resp.Status)
	}
	fmt.Println("circuit:", breaker.State())
	// Output:
	// 502 Bad Gateway
	// 502 Bad Gateway
	// refused: true safe to try again: true in about 1m0s
	// circuit: open
}

// Allow protects work that is not HTTP. Until it is known better, the outcome is a failure, so a panic counts as one.
func ExampleBreaker_Allow() {
	breaker, err := resilience.NewBreaker(resilience.BreakerConfig{MinCalls: 1})
	if err != nil {
		fmt.Println(err)
		return
	}
	query := func(work func() error) error {
		done, err := breaker.Allow()
		if err != nil {
			return err
		}
		var outcome resilience.Outcome
		defer func() { done(outcome) }()
		err = work()
		if err == nil {
			outcome = resilience.OutcomeSuccess
		}
		return err
	}
	fmt.Println(query(func() error { return errors.New("connection lost") }))
	fmt.Println(query(func() error { return nil }))
	// Output:
	// connection lost
	// breaker: circuit open: last failure: reported
}

// One operation fails and the rest of the API works: with a circuit for each operation, only that one is left alone.
func ExampleBreaker_Circuit() {
	breaker, err := resilience.NewBreaker(resilience.BreakerConfig{
		MinCalls: 2,
		Key:      func(c resilience.Call) string { return c.Operation },
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	api := resilience.RoundTripFunc(func(req *http.Request) (*http.Response, error) {
		status := http.StatusOK
		if req.URL.Path == "/voices" {
			status = http.StatusBadGateway
		}
		return &http.Response{StatusCode: status, Header: http.Header{}, Body: http.NoBody}, nil
	})
	client := &http.Client{Transport: breaker.Wrap(api)}
	for _, operation := range []string{"voices", "agents", "voices", "agents"} {
		ctx := resilience.WithCall(context.Background(), resilience.Call{Operation: operation}) // in a stack: Config.Describe
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "https://api.example.com/"+operation, nil)
		if resp, err := client.Do(req); err == nil {
			_ = resp.Body.Close()
		}
	}
	fmt.Println("voices:", breaker.Circuit("voices").State())
	fmt.Println("agents:", breaker.Circuit("agents").State())
	fmt.Println("the shared one, which no call used:", breaker.State(), "- circuits not closed:", breaker.Stats().OpenCircuits)
	// Output:
	// voices: open
	// agents: closed
	// the shared one, which no call used: closed - circuits not closed: 1
}
