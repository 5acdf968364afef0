// Command outage plays an outage of an hour, with phone calls and reads going on, in less than a minute. It prints a line
// for each minute of the story, then a table, and draws a timeline.
//
//	go run ./examples/outage
//	go run ./examples/outage -minute 100ms -o timeline.svg
//
// Everything runs on this machine, against a Retell server in a box. All times of the layers are shortened in the same
// proportion as the minute, so what happens is what would happen in an hour. world.go is the story, draw.go the drawing.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout)
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "outage:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("outage", flag.ContinueOnError)
	flags.SetOutput(out)
	length := flags.Duration("minute", 400*time.Millisecond, "how long a minute of the story takes, at least 10ms")
	path := flags.String("o", filepath.Join(os.TempDir(), "outage.svg"), "where to draw the timeline")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *length < 10*time.Millisecond || *length > time.Minute {
		return errors.New("-minute must be between 10ms and 1m")
	}
	story, err := play(ctx, out, *length)
	if err != nil {
		return err
	}
	if err := os.WriteFile(*path, []byte(story.draw()), 0o600); err != nil {
		return err
	}
	return story.sum(out, *path)
}
