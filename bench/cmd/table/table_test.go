package main

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const output = `goos: linux
cpu: Some <Processor> & more
BenchmarkBreakerClosed/gobreaker-2   	 1000000	 254.3 ns/op	 100.0 cpu-ns/op	 0 B/op	 0 allocs/op
BenchmarkBreakerClosed/ours-allow-2  	 1000000	 200.0 ns/op	 140 cpu-ns/op	 64 B/op	 1 allocs/op
BenchmarkLayers/none-2               	 1000	 1000 ns/op	 900 cpu-ns/op	 10 B/op	 9 allocs/op
BenchmarkLayers/timeout-2            	 1000	 1200 ns/op	 1100 cpu-ns/op	 10 B/op	 9 allocs/op
BenchmarkBreakerClosed/gobreaker-2   	 1000000	 100 ns/op	 300 cpu-ns/op	 0 B/op	 0 allocs/op
BenchmarkBreakerClosed/ours-allow-2  	 1000000	 300 ns/op	 160 cpu-ns/op	 64 B/op	 1 allocs/op
BenchmarkLayers/none-2               	 1000	 9000 ns/op	 1900 cpu-ns/op	 10 B/op	 9 allocs/op
BenchmarkLayers/timeout-2            	 1000	 9200 ns/op	 2000 cpu-ns/op	 10 B/op	 9 allocs/op
BenchmarkNew/with-dash-8             	 1000	 9 ns/op
PASS
`

func parsed(t *testing.T) *results {
	t.Helper()
	r := &results{Date: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Go: "go1", CPUs: 2, Count: 2, Benchtime: "1s"}
	if err := parse(strings.NewReader(output), r); err != nil {
		t.Fatal(err)
	}
	r.finish()
	return r
}

func equal(t *testing.T, what string, got, want any) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1, 2}, 2}, {[]float64{4, 1, 2, 100}, 3}} {
		in := append([]float64(nil), c.in...)
		equal(t, "median", median(in), c.want)
		for i := range in {
			equal(t, "what was asked about is left as it was", in[i], c.in[i])
		}
	}
}

func TestParse(t *testing.T) {
	r := parsed(t)
	equal(t, "processor", r.Processor, "Some <Processor> & more")
	w := r.find("BreakerClosed", "ours-allow")
	equal(t, "samples", len(w.Samples), 2)
	equal(t, "medians", w.sample, sample{250, 150, 64, 1})
	equal(t, "a library with a dash", r.find("New", "with-dash").Time, 9.0)
}

func TestParse_Faults(t *testing.T) {
	for _, in := range []string{"--- FAIL: BenchmarkX/y\n", "BenchmarkX/y 10 many ns/op\n", "BenchmarkX/y 10 5 B/op\n"} {
		if err := parse(strings.NewReader(in), new(results)); err == nil {
			t.Errorf("%q is no fault", in)
		}
	}
}

func TestDifferencesAreTakenRunByRun(t *testing.T) {
	w := parsed(t).find("Timeout", "ours-road")
	equal(t, "derived", w.Derived, true)
	equal(t, "difference", w.sample, sample{200, 150, 0, 0})
}

func TestRatio(t *testing.T) {
	r := parsed(t)
	ours, peer := r.find("BreakerClosed", "ours-allow"), r.find("BreakerClosed", "gobreaker")
	got, ok := ratio(ours, peer, byCPU)
	if !ok || got != 0.75 {
		t.Errorf("got %v %v", got, ok)
	}
	got, ok = ratio(ours, peer, byTime)
	if !ok || math.Abs(got-250/177.15) > 1e-9 {
		t.Errorf("got %v %v", got, ok)
	}
	for _, none := range []*row{nil, {}} {
		if _, ok := ratio(ours, none, byCPU); ok {
			t.Error("a ratio to nothing")
		}
	}
}

func TestSpread(t *testing.T) {
	equal(t, "spread", parsed(t).find("BreakerClosed", "gobreaker").spread(byCPU), 0.5)
	equal(t, "of nothing", (&row{Samples: []sample{{}}}).spread(byCPU), 0.0)
}

func TestDigits(t *testing.T) {
	for in, want := range map[float64]string{0: "0", 4.66: "4.7", 9: "9", -3: "-3", 10.4: "10", 999: "999", 1000: "1,000", 1234567: "1,234,567", -1234: "-1,234"} {
		equal(t, "digits", digits(in), want)
	}
}

func TestMarkdown(t *testing.T) {
	got := markdown(parsed(t), byCPU)
	for _, want := range []string{
		"2026-01-02, go1, 2 CPUs (Some <Processor> & more); medians of 2 interleaved runs of 1s; ratios and ± by CPU ns/op.",
		"| Breaker, closed | gobreaker | 177 | 200 | 50% | 0 | 0 | 1.00 | gobreaker |",
		"|  | ours-allow | 250 | 150 | 7% | 1 | 64 | 0.75 | gobreaker |",
		"| Timeout | ours-road (difference) | 200 | 150 |",
		"| New | with-dash | 9 | 0 | 0% | 0 | 0 | – |  |",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%s\nlacks %s", got, want)
		}
	}
}

func TestCheck(t *testing.T) {
	verdicts := check(parsed(t), byCPU)
	byName := map[string]verdict{}
	for _, v := range verdicts {
		byName[v.group+" "+v.library+" "+v.peer] = v
	}
	met := byName["BreakerClosed ours-allow gobreaker"]
	equal(t, "met", met.met(), true)
	equal(t, "measured", met.got, 0.75)
	equal(t, "allocations", byName["BreakerClosed ours-allow "].met(), true)
	equal(t, "what was not measured is not met", byName["HTTPLoopback ours bare"].met(), false)
	equal(t, "all", allMet(verdicts), false)
	if text := targetTable(verdicts); !strings.Contains(text, "2 of 16 targets are met") || !strings.Contains(text, "| – | not measured |") {
		t.Error(text)
	}
	equal(t, "above the bound", verdict{target: target{most: 1}, got: 1.001, known: true}.met(), false)
}

// The loopback target is about the processor even where the clock is compared.
func TestCheck_LoopbackIsAlwaysByCPU(t *testing.T) {
	r := &results{}
	r.add("HTTPLoopback", "bare", sample{Time: 1, CPU: 100})
	r.add("HTTPLoopback", "ours", sample{Time: 9, CPU: 105})
	r.finish()
	verdicts := check(r, byTime)
	equal(t, "loopback", verdicts[len(verdicts)-1].met(), true)
}

// A target, a difference or a reference that names what no benchmark is called would never be measured.
func TestEveryNameIsMeasured(t *testing.T) {
	r, err := load(filepath.Join("..", "..", "results", "results.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range check(r, byCPU) {
		if !v.known {
			t.Errorf("%q was not measured", v.what)
		}
	}
	for _, g := range groups {
		if r.find(g.name, g.reference) == nil {
			t.Errorf("%s has no %q", g.name, g.reference)
		}
	}
	for _, d := range differences {
		if r.find(d.group, d.library) == nil {
			t.Errorf("%s/%s was not worked out", d.group, d.library)
		}
	}
}

func TestChartIsWellFormed(t *testing.T) {
	r := parsed(t)
	r.add("BreakerClosed", `<&">`, sample{Time: 1e6, CPU: 1e6}) // longer than any bar
	r.add("BreakerClosed", "http-ours", sample{CPU: 1, Time: 1})
	r.add("BreakerClosed", "negative", sample{Time: -5, CPU: -5})
	r.finish()
	for _, by := range []measure{byCPU, byTime} {
		svg := chart(r, by)
		bars := 0
		for d := xml.NewDecoder(strings.NewReader(svg)); ; {
			token, err := d.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%v in\n%s", err, svg)
			}
			if e, ok := token.(xml.StartElement); ok && e.Name.Local == "rect" {
				bars++
			}
		}
		// The page, the two that were measured, two more, the group that nobody knows, the difference.
		if bars < 7 || !strings.Contains(svg, "prefers-color-scheme: dark") || !strings.Contains(svg, `class="cut"`) || strings.Count(svg, `<rect class="ours"`) < 2 {
			t.Errorf("%d bars in\n%s", bars, svg)
		}
	}
}

func TestBars(t *testing.T) {
	room, cut := barOf(5, 5)
	equal(t, "the longest is whole", cut, false)
	half, _ := barOf(2.5, 5)
	equal(t, "half", half, room/2)
	over, cut := barOf(50, 5)
	equal(t, "cut", cut, true)
	equal(t, "not longer than the room", over, room)
	none, _ := barOf(-1, 5)
	equal(t, "negative", none, 1.0)
}

func TestResultsComeBack(t *testing.T) {
	r, dir := parsed(t), t.TempDir()
	if err := save(r, options{out: dir, by: byCPU}); err != nil {
		t.Fatal(err)
	}
	again, err := load(filepath.Join(dir, "results.json"))
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "table", markdown(again, byTime), markdown(r, byTime))
	for _, name := range []string{"speed.svg", "results.md", "benchstat.txt"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	var out bytes.Buffer
	err = command(context.Background(), []string{"-from", filepath.Join(dir, "results.json"), "-check"}, &out, io.Discard)
	if !errors.Is(err, errMissed) || !strings.Contains(out.String(), "| Breaker, closed |") {
		t.Error(err, out.String())
	}
}

func TestFlags(t *testing.T) {
	for _, args := range [][]string{{"-count", "0"}, {"-by", "feeling"}, {"word"}, {"-from", filepath.Join(t.TempDir(), "none")}} {
		if err := command(context.Background(), args, io.Discard, io.Discard); err == nil {
			t.Errorf("%q is no fault", args)
		}
	}
	o, err := parseFlags([]string{"-by", "cpu"}, io.Discard)
	if err != nil || o.by != byCPU || o.count != 6 {
		t.Error(o, err)
	}
}
