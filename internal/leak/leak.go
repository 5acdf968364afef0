// Package leak fails a package's tests when goroutines are left after them.
package leak

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"
)

// Runner is what a *testing.M is.
type Runner interface{ Run() int }

// Main runs the tests and then looks for goroutines that were not there before. Use it in TestMain:
//
//	func TestMain(m *testing.M) { leak.Main(m) }
func Main(m Runner) { os.Exit(run(m, os.Stderr)) }

func run(m Runner, out io.Writer) int {
	before := goroutines()
	code := m.Run()
	if code != 0 {
		return code
	}
	var left []string
	for range 200 { // those that are ending get two seconds to end
		if left = newSince(before); len(left) == 0 {
			return 0
		}
		time.Sleep(10 * time.Millisecond)
	}
	_, _ = fmt.Fprintf(out, "%d goroutines are left after the tests:\n\n%s\n", len(left), strings.Join(left, "\n\n"))
	return 1
}

func newSince(before map[string]string) []string {
	var left []string
	for id, stack := range goroutines() {
		if before[id] == "" && !ofTheRuntime(stack) {
			left = append(left, stack)
		}
	}
	return left
}

// goroutines returns the stacks by the first line up to the state, which names the goroutine.
func goroutines() map[string]string {
	buf := make([]byte, 1<<20)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	all := map[string]string{}
	for _, stack := range strings.Split(string(buf), "\n\n") {
		id, _, _ := strings.Cut(stack, " [")
		all[id] = stack
	}
	return all
}

// ofTheRuntime: the testing package and signal handling have goroutines of their own.
func ofTheRuntime(stack string) bool {
	for _, known := range []string{"testing.(*M).", "testing.runFuzz", "testing.tRunner", "os/signal.", "runtime/pprof.", "internal/fuzz."} {
		if strings.Contains(stack, known) {
			return true
		}
	}
	return false
}
