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

// The database that reminders come from belongs into the report, too. A read never waits for it: Run keeps the answer fresh.
func ExampleHealthCheck() {
	ping := func(context.Context) error { return errors.New("dial tcp 10.0.0.7:5432: no route") } // your db.PingContext
	changed := make(chan resilience.Report, 1)
	stack, err := resilience.New(resilience.Config{Health: resilience.HealthConfig{
		Checks: []resilience.HealthCheck{{
			Name: "database",
			Run: func(ctx context.Context) []resilience.CheckResult {
				if err := ping(ctx); err != nil { // its text is for the log: what is returned here is shown to everybody
					return []resilience.CheckResult{{Status: resilience.Unhealthy, Message: "no reminders can be read"}}
				}
				return []resilience.CheckResult{{Status: resilience.Healthy}}
			},
		}},
		OnChange: func(_, now resilience.Report) { changed <- now },
	}})
	if err != nil {
		fmt.Println(err)
		return
	}
	go stack.Run(context.Background())      // until Close
	defer stack.Close(context.Background()) //nolint:errcheck // nothing is under way

	report := <-changed
	database := report.Find("database")
	fmt.Println(report.Status, "because of", database.Name+":", database.Message)
	w := httptest.NewRecorder()
	stack.Health().Ready().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/readyz", nil))
	fmt.Println("/readyz", w.Code)
	// Output:
	// unhealthy because of database: no reminders can be read
	// /readyz 503
}
