package boltstore_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/retell-resilience/resilience"
	boltstore "github.com/retell-resilience/resilience/store/bbolt"
)

// A process dies after it has sent and before it has heard. The next one does not ring again.
func Example() {
	dir, err := os.MkdirTemp("", "keys")
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	path := filepath.Join(dir, "keys.db")

	first := process(path, resilience.RoundTripFunc(func(*http.Request) (*http.Response, error) {
		return nil, io.ErrUnexpectedEOF // the answer is lost
	}))
	second := process(path, resilience.RoundTripFunc(func(*http.Request) (*http.Response, error) {
		fmt.Println("rings again")
		return nil, io.ErrUnexpectedEOF
	}))
	fmt.Println(errors.Is(first, resilience.ErrInDoubt), errors.Is(second, resilience.ErrInDoubt))
	// Output: true true
}

func process(path string, phone http.RoundTripper) error {
	store, err := boltstore.Open(path, boltstore.Options{})
	if err != nil {
		return err
	}
	defer func() { _ = store.Close() }()
	keys, err := resilience.NewIdempotency(resilience.IdempotencyConfig{Store: store})
	if err != nil {
		return err
	}
	ctx := resilience.WithIdempotencyKey(context.Background(), "reminder:4711:2026-11-23")
	body := strings.NewReader(`{"to_number": "+15550100"}`)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://api.example.com/v2/create-phone-call", body)
	if err != nil {
		return err
	}
	resp, err := keys.Wrap(phone).RoundTrip(req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}
