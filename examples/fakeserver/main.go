// Command fakeserver is a Retell server in a box that fails on demand: point a program at it and see what its phones go
// through.
//
//	go run ./examples/fakeserver -lost-answer 0.2 -throttle 0.1
//
// Its first line of output is its URL. It accepts every API key that starts with "key_". GET /_/rings says how often
// each phone rang, GET /_/requests how many requests each operation received.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/retell-resilience/resilience/retell/retelltest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "fakeserver:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends.
func run(ctx context.Context, args []string, out, messages io.Writer) error {
	flags := flag.NewFlagSet("fakeserver", flag.ContinueOnError)
	flags.SetOutput(messages)
	var (
		addr         = flags.String("addr", "127.0.0.1:0", "address to listen on")
		seed         = flags.Int64("seed", 0, "seed of ids and faults")
		concurrency  = flags.Int("concurrency", retelltest.DefaultConcurrency, "calls at once; -1: no limit")
		noServerKeys = flags.Bool("no-server-keys", false, "ignore idempotency_key, like an older deployment")
		ring         = flags.Duration("ring", 5*time.Second, "how long a call rings")
		talk         = flags.Duration("talk", 20*time.Second, "how long a call lasts")
	)
	shares := []struct {
		share *float64
		fault retelltest.Fault
	}{
		{flags.Float64("lost-answer", 0, "share of requests carried out and not answered"), retelltest.LostAnswer()},
		{flags.Float64("reset", 0, "share of connections dropped before anything is done"), retelltest.ResetBeforeEffect()},
		{flags.Float64("hang", 0, "share of requests carried out that hang until the client gives up"), retelltest.HangAfterEffect()},
		{flags.Float64("throttle", 0, "share of requests answered 429"), retelltest.Throttle(time.Second)},
		{flags.Float64("errors", 0, "share of requests answered 500 before anything is done"), retelltest.Status(500)},
	}
	if err := flags.Parse(args); err != nil {
		return err
	}
	sum := 0.0
	for _, s := range shares {
		if !(*s.share >= 0) {
			return errors.New("a share of faults must not be negative")
		}
		sum += *s.share
	}
	if sum > 1+1e-9 { // ten shares of 0.1 are allowed
		return fmt.Errorf("the shares of faults add up to %v, more than 1", sum)
	}
	opts := []retelltest.Option{
		retelltest.WithSeed(*seed), retelltest.WithConcurrency(*concurrency), retelltest.WithCallLife(*ring, *talk),
	}
	if *noServerKeys {
		opts = append(opts, retelltest.WithoutServerKeys())
	}
	srv := retelltest.NewServer(opts...)
	defer srv.Close()
	for _, s := range shares {
		srv.Rate(retelltest.Any, *s.share, s.fault)
	}
	url, err := srv.Listen(*addr)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(out, url); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}
