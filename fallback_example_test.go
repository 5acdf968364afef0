package resilience_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/retell-resilience/resilience"
)

// A read that fails is answered with the last good answer, which says that it is one.
func ExampleFallback() {
	up := true
	api := resilience.RoundTripFunc(func(*http.Request) (*http.Response, error) {
		if !up {
			return nil, errors.New("connection refused")
		}
		return &http.Response{
			StatusCode: http.StatusOK,
			Header:     http.Header{"Content-Type": {"application/json"}},
			Body:       io.NopCloser(strings.NewReader(`{"agent_id":"a1","agent_name":"Front desk"}`)),
		}, nil
	})

	fallback, err := resilience.NewFallback(resilience.FallbackConfig{})
	if err != nil {
		fmt.Println(err)
		return
	}
	client := &http.Client{Transport: fallback.Wrap(api)}
	show := func() {
		resp, err := client.Get("https://api.retellai.com/get-agent/a1")
		if err != nil {
			fmt.Println(err)
			return
		}
		defer resp.Body.Close() //nolint:errcheck // it was read whole already
		text, _ := io.ReadAll(resp.Body)
		_, staleness, served := resilience.Served(resp)
		fmt.Println(string(text), served, staleness)
	}

	show()
	up = false
	show()
	fmt.Println("kept:", fallback.Stats().Entries)
	// Output:
	// {"agent_id":"a1","agent_name":"Front desk"} false unset
	// {"agent_id":"a1","agent_name":"Front desk"} true fresh
	// kept: 1
}

// A user's own substitute takes the place of an answer that nobody has.
func ExampleFallbackConfig_func() {
	fallback, err := resilience.NewFallback(resilience.FallbackConfig{
		Func: func(*http.Request, error) (*http.Response, error) {
			return &http.Response{
				StatusCode: http.StatusOK,
				Body:       io.NopCloser(strings.NewReader(`{"voices":[]}`)),
			}, nil
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	down := resilience.RoundTripFunc(func(*http.Request) (*http.Response, error) {
		return nil, errors.New("connection refused")
	})
	resp, err := (&http.Client{Transport: fallback.Wrap(down)}).Get("https://api.retellai.com/list-voices")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close() //nolint:errcheck // it was read whole already
	text, _ := io.ReadAll(resp.Body)
	fmt.Println(string(text))
	fmt.Println(resp.Header.Get("Resilience-Fallback"))
	// Output:
	// {"voices":[]}
	// func; reason=transport
}
