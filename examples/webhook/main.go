// Command webhook receives Retell's webhooks without losing one. An event that cannot be processed now becomes a letter of
// a dead-letter queue, and only then is Retell told that all is well; the letter is processed when that works again. An
// event that cannot even be kept is answered with a 5xx, so that Retell sends it again.
//
//	go run ./examples/webhook
//
// plays a demonstration against a Retell server in a box. With -addr it serves for real:
//
//	RETELL_API_KEY=… go run ./examples/webhook -addr :8080 -letters events.letters
//
// RETELL_API_KEY must be the key with the "webhook" badge. Webhooks come to /retell/webhook; /health says how things are.
//
// receiver.go is what to copy, story.go the demonstration, serve.go the server.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	err := run(ctx, os.Args[1:], os.Getenv, os.Stdout)
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "webhook:", err)
		os.Exit(1)
	}
}

// run picks the demonstration or the server.
func run(ctx context.Context, args []string, env func(string) string, out io.Writer) error {
	flags := flag.NewFlagSet("webhook", flag.ContinueOnError)
	flags.SetOutput(out)
	addr := flags.String("addr", "", "address to serve on; empty: the demonstration")
	letters := flags.String("letters", "", "file that keeps the letters over a restart; it holds what callers said, so protect it")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *addr == "" {
		return tell(ctx, out)
	}
	key := env("RETELL_API_KEY")
	if key == "" {
		return errors.New("-addr needs RETELL_API_KEY, the key with the webhook badge")
	}
	return serve(ctx, out, server{addr: *addr, key: key, baseURL: env("RETELL_BASE_URL"), letters: *letters})
}
