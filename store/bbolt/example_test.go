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
	"time"

	"github.com/retell-resilience/resilience"
	"github.com/retell-resilience/resilience/retell"
	"github.com/retell-resilience/resilience/retell/retelltest"
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

// A service with keys and letters in one file: what is started, and in which order it ends. The first run parks a call while
// nobody answers, the second one makes it.
func ExampleStore_Letters() {
	dir, err := os.MkdirTemp("", "letters")
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	srv := retelltest.NewServer()
	defer srv.Close()

	srv.StopListening()
	err = serve(dir, srv, func(ctx context.Context, client *retell.Client, _ <-chan struct{}) {
		_, err := client.Calls.CreatePhoneCall(ctx, retell.CreatePhoneCallParams{
			FromNumber: "+15550001000", ToNumber: "+15555550123",
		}, retell.IdempotencyKey("reminder:4711"))
		fmt.Println("a letter owns it:", errors.Is(err, resilience.ErrParked))
	})
	fmt.Println(err, srv.Rings("+15555550123"))

	if err := srv.StartListening(); err != nil {
		log.Fatal(err)
	}
	err = serve(dir, srv, func(_ context.Context, client *retell.Client, made <-chan struct{}) {
		fmt.Println("letters that were there:", client.Stack().Stats().DLQ.Loaded)
		<-made
	})
	fmt.Println(err, srv.Rings("+15555550123"))
	// Output:
	// a letter owns it: true
	// <nil> 0
	// letters that were there: 1
	// <nil> 1
}

// serve is one life of the service. In a real one ctx is that of signal.NotifyContext, and work serves HTTP until it ends.
func serve(dir string, srv *retelltest.Server, work func(context.Context, *retell.Client, <-chan struct{})) (err error) {
	ctx := context.Background()
	store, err := boltstore.Open(filepath.Join(dir, "keys.db"), boltstore.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }() // last: until Close and Run are over, both write

	made := make(chan struct{}, 1)
	cfg := retell.Config()
	cfg.Retry.Max, cfg.DLQ.Base = -1, 100*time.Millisecond // for the example, which has no time
	cfg.Idempotency.Store = store
	cfg.DLQ.Store = store.Letters()
	cfg.DLQ.OnEvent = func(e resilience.Event) {
		if e.Kind == resilience.EventLetterDone {
			made <- struct{}{}
		}
	}
	client, err := retell.New(retelltest.DefaultKey, retell.WithConfig(cfg), retell.WithTransport(srv.Transport()))
	if err != nil {
		return err
	}
	ran := make(chan error, 1)
	go func() { ran <- client.Stack().Run(ctx) }()
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		err = errors.Join(err, client.Close(closing), <-ran)
	}()
	work(ctx, client, made)
	return nil
}
