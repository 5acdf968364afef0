// Command quickstart shows in a few seconds what the layers do for phone calls: an answer gets lost, the API goes away, it
// comes back, and every phone has rung no more than once.
//
//	go run ./examples/quickstart
//
// It talks to a Retell server in a box, on this machine. With RETELL_API_KEY set it talks to the real API instead (or to
// RETELL_BASE_URL) and only reads; it calls somebody only if told who, with -from and -to:
//
//	RETELL_API_KEY=… go run ./examples/quickstart
//	RETELL_API_KEY=… go run ./examples/quickstart -from <your number> -to <a phone that may ring>
//
// story.go is the demonstration, real.go the visit to the real API, words.go puts what happens into words.
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
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
}

// run picks the box or the real API.
func run(ctx context.Context, args []string, env func(string) string, out io.Writer) error {
	flags := flag.NewFlagSet("quickstart", flag.ContinueOnError)
	flags.SetOutput(out)
	from := flags.String("from", "", "your number to call from (real API only)")
	to := flags.String("to", "", "the number to call (real API only)")
	if err := flags.Parse(args); err != nil {
		return err
	}
	key := env("RETELL_API_KEY")
	switch {
	case (*from == "") != (*to == ""):
		return errors.New("-from and -to go together")
	case key != "":
		return visit(ctx, out, visitor{key: key, baseURL: env("RETELL_BASE_URL"), from: *from, to: *to})
	case *from != "":
		return errors.New("-from and -to need RETELL_API_KEY: the server in the box rings no real phone")
	}
	return tell(ctx, out)
}
