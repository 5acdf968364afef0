package resilience_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"

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
