// Command table runs the benchmarks of this module and says how they compare. Run it in the folder of the module:
//
//	go run ./cmd/table          # runs, prints a Markdown table, writes results/
//	go run ./cmd/table -check   # the same, then the targets; it fails when one is missed
//	go run ./cmd/table -from results/results.json -check
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"time"
)

const module = "github.com/retell-resilience/resilience/bench"

type options struct {
	count     int
	benchtime string
	bench     string
	from      string
	out       string
	by        measure
	check     bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := command(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, err)
		stop()
		os.Exit(1) //nolint:gocritic // stop has been called
	}
}

var errMissed = errors.New("not every target is met")

func command(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parseFlags(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	var res *results
	if o.from != "" {
		res, err = load(o.from)
	} else {
		res, err = measureAll(ctx, o, stderr)
	}
	if err != nil {
		return err
	}
	if _, err := fmt.Fprint(stdout, markdown(res, o.by)); err != nil {
		return err
	}
	if o.from == "" && o.bench == "." { // a part of the groups is for looking at, not for keeping
		if err := save(res, o); err != nil {
			return err
		}
	}
	if !o.check {
		return nil
	}
	verdicts := check(res, o.by)
	if _, err := fmt.Fprint(stdout, "\n", targetTable(verdicts)); err != nil {
		return err
	}
	if !allMet(verdicts) {
		return errMissed
	}
	return nil
}

func parseFlags(args []string, stderr io.Writer) (options, error) {
	o := options{by: byTime}
	set := flag.NewFlagSet("table", flag.ContinueOnError)
	set.SetOutput(stderr)
	set.IntVar(&o.count, "count", 6, "how often the whole suite runs; the runs of one benchmark lie far apart in time")
	set.StringVar(&o.benchtime, "benchtime", "300ms", "how long each benchmark runs each time")
	set.StringVar(&o.bench, "bench", ".", "which benchmarks; all: the results are written")
	set.StringVar(&o.from, "from", "", "read results from this file instead of running")
	set.StringVar(&o.out, "out", "results", "folder for the results")
	set.BoolVar(&o.check, "check", false, "compare with the targets, and fail when one is missed")
	set.Func("by", "what ratios, targets and bars compare: time (default) or cpu", func(s string) error {
		o.by = measure(s)
		if o.by != byCPU && o.by != byTime {
			return errors.New("it is cpu or time")
		}
		return nil
	})
	if err := set.Parse(args); err != nil {
		return o, err
	}
	if o.count < 1 || set.NArg() > 0 {
		return o, errors.New("-count must be at least 1, and there are no arguments but flags")
	}
	return o, nil
}

// measureAll builds the benchmarks once and runs all of them o.count times, so that what else the machine does in some
// minute falls on every library alike. Each runs in a process of its own: some libraries leave goroutines and memory
// behind, for which whoever comes after them would pay.
func measureAll(ctx context.Context, o options, progress io.Writer) (*results, error) {
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	binary := filepath.Join(dir, "bench.test")
	if out, err := exec.CommandContext(ctx, "go", "test", "-c", "-o", binary, module).CombinedOutput(); err != nil { //nolint:gosec // our own module
		return nil, fmt.Errorf("%w\n%s", err, out)
	}
	res := &results{Date: time.Now().UTC().Truncate(time.Second), Go: runtime.Version(), CPUs: runtime.NumCPU(), Count: o.count, Benchtime: o.benchtime}
	names, err := namesOf(ctx, binary, o.bench)
	if err != nil {
		return nil, err
	}
	for n := range o.count {
		if _, err := fmt.Fprintf(progress, "run %d of %d\n", n+1, o.count); err != nil {
			return nil, err
		}
		for _, name := range names {
			out, err := bench(ctx, binary, name, o.benchtime)
			if err != nil {
				return nil, err
			}
			res.raw.Write(out)
		}
	}
	if err := parse(bytes.NewReader(res.raw.Bytes()), res); err != nil {
		return nil, err
	}
	res.finish()
	return res, nil
}

// namesOf runs the benchmarks once to see which there are, and returns a pattern for each.
func namesOf(ctx context.Context, binary, pattern string) ([]string, error) {
	out, err := bench(ctx, binary, pattern, "1x")
	if err != nil {
		return nil, err
	}
	var all results
	if err := parse(bytes.NewReader(out), &all); err != nil {
		return nil, err
	}
	var names []string
	for _, w := range all.Rows {
		names = append(names, "^Benchmark"+w.Group+"$/^"+w.Library+"$")
	}
	return names, nil
}

func bench(ctx context.Context, binary, pattern, benchtime string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, binary, "-test.run", "^$", "-test.bench", pattern, "-test.benchtime", benchtime, "-test.benchmem") //nolint:gosec // our own
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%w\n%s%s", err, out, errs.Bytes())
	}
	return out, nil
}

func save(res *results, o options) error {
	if err := os.MkdirAll(o.out, 0o755); err != nil { //nolint:gosec // for everybody to read
		return err
	}
	encoded, err := res.encode()
	if err != nil {
		return err
	}
	for name, data := range map[string][]byte{
		"results.json": encoded, "results.md": []byte(markdown(res, o.by)), "speed.svg": []byte(chart(res, o.by)), "benchstat.txt": res.raw.Bytes(),
	} {
		if err := os.WriteFile(filepath.Join(o.out, name), data, 0o644); err != nil { //nolint:gosec // as above
			return err
		}
	}
	return nil
}
