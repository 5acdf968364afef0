// Command existing-client has a client for Retell that was written by hand, in phone.go, and puts the layers below it by
// changing one line:
//
//	before: client := &http.Client{}
//	after:  client := &http.Client{Transport: layers.Transport()}
//
// It runs the same program both ways against a Retell server in a box, which loses an answer each time: the phone has
// rung, and the program does not know it.
//
//	go run ./examples/existing-client
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/retell-resilience/resilience"
	"github.com/retell-resilience/resilience/retell"
	"github.com/retell-resilience/resilience/retell/retelltest"
)

func main() {
	if err := run(context.Background(), os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "existing-client:", err)
		os.Exit(1)
	}
}

const (
	apiKey = "key_existing"
	ours   = "+15550001000"
	theirs = "+15555550123"
)

func run(ctx context.Context, out io.Writer) error {
	if err := before(ctx, out); err != nil {
		return err
	}
	return after(ctx, out)
}

// before is the program as it was.
func before(ctx context.Context, out io.Writer) error {
	// This server does not know Retell's idempotency_key, and the program would not send one.
	server := retelltest.NewServer(retelltest.WithoutServerKeys())
	defer server.Close()

	client := &http.Client{Transport: &http.Transport{}} // as http.Client{}, but its connections are ours to close
	defer client.CloseIdleConnections()

	sayf(out, "Before: http.Client as it is")
	remind(ctx, out, server, &phone{http: client, baseURL: server.URL(), apiKey: apiKey})
	if rings := server.Rings(theirs); rings != 2 {
		return fmt.Errorf("before: the phone rang %d times, and 2 were to be shown", rings)
	}
	return nil
}

// after is the program with the layers. They come from retell.New, which knows how to look a lost call up, and how to
// authorize a redrive; Transport() is all that the hand-written client needs of it. retell.Describe tells the stack that a
// POST to /v2/create-phone-call rings somewhere, and that a GET of /v2/get-call does not.
func after(ctx context.Context, out io.Writer) (err error) {
	server := retelltest.NewServer(retelltest.WithoutServerKeys())
	defer server.Close()

	layers, err := retell.New(apiKey, retell.WithBaseURL(server.URL()))
	if err != nil {
		return err
	}
	stack := layers.Stack()
	running, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- stack.Run(running) }()
	defer func() {
		stop()
		err = errors.Join(err, <-done, layers.Close(context.WithoutCancel(ctx)))
	}()

	client := &http.Client{Transport: layers.Transport()} // the line that changed

	sayf(out, "\nAfter: Transport: layers.Transport()")
	p := &phone{http: client, baseURL: server.URL(), apiKey: apiKey}
	remind(ctx, out, server, p)
	sayf(out, "  meanwhile the lost call is looked up …")
	if err := settled(ctx, stack, "reminder:4711"); err != nil {
		return err
	}
	remind(ctx, out, server, p)
	if rings := server.Rings(theirs); rings != 1 {
		return fmt.Errorf("after: the phone rang %d times", rings)
	}
	return nil
}

// remind is the program's own loop: it tries a reminder again when it fails, as programs do.
func remind(ctx context.Context, out io.Writer, server *retelltest.Server, p *phone) {
	if server.Rings(theirs) == 0 {
		server.Inject("create-phone-call", retelltest.LostAnswer())
	}
	for try := 1; try <= 2; try++ {
		c, err := p.dial(ctx, "reminder:4711", ours, theirs)
		if err == nil {
			c, err = p.get(ctx, c.CallID)
		}
		switch {
		case err == nil:
			sayf(out, "  try %d: %s is %s; the phone has rung %d×", try, c.CallID, c.CallStatus, server.Rings(theirs))
			return
		case resilience.InDoubt(err):
			sayf(out, "  try %d: in doubt, so it was not sent again; the phone has rung %d×", try, server.Rings(theirs))
		default:
			sayf(out, "  try %d: failed, says net/http; the phone has rung %d×", try, server.Rings(theirs))
		}
	}
}

// settled waits until the outcome of a key is known.
func settled(ctx context.Context, stack *resilience.Stack, key string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		if rec, err := stack.Idempotency.Lookup(ctx, key); err == nil && rec.State == resilience.KeyConfirmed {
			return nil
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return fmt.Errorf("the call was not found: %w", ctx.Err())
		}
	}
}

func sayf(out io.Writer, format string, args ...any) { _, _ = fmt.Fprintf(out, format+"\n", args...) }
