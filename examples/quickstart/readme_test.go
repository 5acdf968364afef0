package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
	"github.com/retell-resilience/resilience/retell"
	"github.com/retell-resilience/resilience/retell/retelltest"
)

// What follows is the code in README.md. TestREADMECompiles holds that each block there stands here, word for word.

func readmeExistingClient(ctx context.Context) error {
	layers, err := retell.New(os.Getenv("RETELL_API_KEY"))
	if err != nil {
		return err
	}
	client := &http.Client{Transport: layers.Transport()} // the line that changes
	go layers.Stack().Run(ctx)                            // redrives letters, looks lost calls up
	defer layers.Close(context.Background())

	client.CloseIdleConnections() // stands for what the program does with it
	return nil
}

func readmeNewClient(ctx context.Context) error {
	client, err := retell.New(os.Getenv("RETELL_API_KEY"))
	if err != nil {
		return err
	}
	go client.Stack().Run(ctx) // redrives letters, looks lost calls up
	defer client.Close(context.Background())
	call, err := client.Calls.CreatePhoneCall(ctx, retell.CreatePhoneCallParams{
		FromNumber: "+15555550100", ToNumber: "+15555550123",
	}, retell.IdempotencyKey("reminder:4711:2026-11-23"))

	fmt.Println(call, err)
	return err
}

func readmeErrors(err error) {
	switch {
	case err == nil:
		fmt.Println("the call is on its way")
	case resilience.InDoubt(err):
		fmt.Println("the phone may ring: do not call again under another key")
	case errors.Is(err, resilience.ErrParked):
		fmt.Println("the call will be made without you")
	case resilience.NotSent(err):
		fmt.Println("nothing happened: call again later, with the same key")
	default:
		fmt.Println("the API said no, or what may be repeated failed:", err)
	}
}

func readmeConfig(alertOps func(string)) (*retell.Client, error) {
	cfg := retell.Config()
	cfg.Breaker.OpenFor = time.Minute
	cfg.DLQ.OnParked = func(l resilience.Letter) { alertOps("letter given up: " + l.Operation) }
	cfg.OnEvent = func(e resilience.Event) {
		switch e.Kind {
		case resilience.EventCircuitOpen:
			alertOps("Retell: circuit open, requests fail fast")
		case resilience.EventCircuitHalfOpen, resilience.EventCircuitClose:
			log.Println("Retell:", e.Kind)
		}
	}
	return retell.New(os.Getenv("RETELL_API_KEY"), retell.WithConfig(cfg))
}

func readmeKey(appointmentID string, params retell.CreatePhoneCallParams) (string, error) {
	key, err := resilience.DeriveKey("create-phone-call", params, "reminder", appointmentID)

	return key, err
}

func readmeHealth(client *retell.Client, mux *http.ServeMux) {
	mux.Handle("GET /health", client.Stack().Health())       // JSON for monitors, a page for browsers
	mux.Handle("GET /livez", client.Stack().Health().Live()) // does not look at Retell
	fmt.Println("Retell circuit:", client.Stack().Breaker.State())
}

func readmeReadiness(mux *http.ServeMux) (*retell.Client, error) {
	cfg := retell.Config()
	cfg.Health.Rules = map[string]resilience.HealthRule{
		"api": {WorseAfter: 30 * time.Second, BetterAfter: 15 * time.Second},
	}
	client, err := retell.New(os.Getenv("RETELL_API_KEY"), retell.WithConfig(cfg))
	if err != nil {
		return nil, err
	}
	mux.Handle("GET /readyz", client.Stack().Health().Ready()) // 503 while unhealthy
	return client, nil
}

func readmeResolve(ctx context.Context, client *retell.Client) error {
	keys := client.Stack().Idempotency
	record, err := keys.Lookup(ctx, "reminder:4711:2026-11-23") // how does it stand?
	if err == nil && record.State == resilience.KeyInDoubt {
		err = keys.Resolve(ctx, "reminder:4711:2026-11-23", resilience.Resolution{
			State: resilience.KeyNotApplied, Reason: "the call history of that day has no such call",
		})
	}

	return err
}

func TestReminderRingsOnce(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	client, err := retell.New(retelltest.DefaultKey, retell.WithTransport(srv.Transport()))
	require.NoError(t, err)
	defer client.Close(t.Context())

	srv.Inject("create-phone-call", retelltest.LostAnswer())
	for range 3 { // your code, asked three times
		_, err = client.Calls.CreatePhoneCall(t.Context(), retell.CreatePhoneCallParams{
			FromNumber: "+15550001000", ToNumber: "+15555550123",
		}, retell.IdempotencyKey("reminder:4711"))
		require.True(t, resilience.InDoubt(err))
	}
	require.Equal(t, 1, srv.Rings("+15555550123"))
}

func TestREADMECompiles(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	source, err := os.ReadFile("readme_test.go")
	require.NoError(t, err)
	blocks := strings.Split(string(readme), "```go\n")[1:]
	require.NotEmpty(t, blocks)
	for _, block := range blocks {
		code, _, closed := strings.Cut(block, "```")
		require.True(t, closed)
		require.Contains(t, unindented(string(source)), unindented(code))
	}
}

// unindented makes code comparable wherever it stands.
func unindented(code string) string {
	lines := strings.Split(code, "\n")
	for i, line := range lines {
		lines[i] = strings.Join(strings.Fields(line), " ")
	}
	return strings.Join(lines, "\n")
}

// The functions above are only read and compiled, but what they do without a network may as well be tried.
func TestREADMERuns(t *testing.T) {
	t.Setenv("RETELL_API_KEY", "key_readme")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, readmeExistingClient(ctx))
	require.Error(t, readmeNewClient(ctx))
	readmeErrors(context.Canceled)
	client, err := readmeConfig(func(string) {})
	require.NoError(t, err)
	key, err := readmeKey("4711", retell.CreatePhoneCallParams{})
	require.NoError(t, err)
	require.Len(t, key, 43)
	readmeHealth(client, http.NewServeMux())
	require.NoError(t, readmeResolve(t.Context(), client))
	require.NoError(t, client.Close(t.Context()))
	client, err = readmeReadiness(http.NewServeMux())
	require.NoError(t, err)
	require.NoError(t, client.Close(t.Context()))
}
