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

func ExampleHealth() {
	health, err := resilience.NewHealth(resilience.HealthConfig{
		Probe: func(context.Context) error { return errors.New("dial https://api.example.com: no route") },
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	report := health.Check(context.Background())
	api := report.Find("api")
	fmt.Println(report.Status, "because of", api.Name+":", api.Message)

	mux := http.NewServeMux()
	mux.Handle("GET /health", health)         // everything, for people and monitors
	mux.Handle("GET /livez", health.Live())   // is the process alive?
	mux.Handle("GET /readyz", health.Ready()) // is it of any use?
	for _, path := range []string{"/livez", "/readyz"} {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		fmt.Print(path, " ", w.Code, " ", w.Body)
	}
	// Output:
	// unhealthy because of api: the probe failed
	// /livez 200 {"status":"pass","health":"healthy"}
	// /readyz 503 {"status":"fail","health":"unhealthy"}
}

// A readiness probe that does not flap: the API must fail for half a minute before the instance is taken out of service, and
// answer for a quarter of a minute before it is back. What is seen meanwhile is in the report, and in /health.
func ExampleHealthRule() {
	var down error
	health, err := resilience.NewHealth(resilience.HealthConfig{
		Probe:      func(context.Context) error { return down },
		ProbeEvery: time.Nanosecond, // for the example; leave it at 10 s
		Rules: map[string]resilience.HealthRule{
			"api": {WorseAfter: 30 * time.Second, BetterAfter: 15 * time.Second},
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	readyz := func() int {
		w := httptest.NewRecorder()
		health.Ready().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/readyz", nil))
		return w.Code
	}
	fmt.Println(readyz())
	down = errors.New("connection refused")
	fmt.Println(readyz())
	api := health.Check(context.Background()).Find("api")
	fmt.Println(api.Status, "counts,", api.Seen, "is seen")
	// Output:
	// 200
	// 200
	// healthy counts, unhealthy is seen
}
