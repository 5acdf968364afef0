package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// measure is what is compared.
type measure string

const (
	byCPU  measure = "cpu"  // what the process spent on the processor
	byTime measure = "time" // what the clock says
)

func (m measure) String() string {
	if m == byTime {
		return "ns/op"
	}
	return "CPU ns/op"
}

// A sample is one line of one run.
type sample struct {
	Time   float64 `json:"ns"`
	CPU    float64 `json:"cpu_ns"`
	Bytes  float64 `json:"bytes"`
	Allocs float64 `json:"allocs"`
}

func (s sample) by(m measure) float64 {
	if m == byTime {
		return s.Time
	}
	return s.CPU
}

// A row is one library in one group: medians, and what they are medians of.
type row struct {
	Group   string `json:"group"`
	Library string `json:"library"`
	sample
	// Derived rows are differences of two others.
	Derived bool     `json:"derived,omitempty"`
	Samples []sample `json:"samples"`
}

// spread is half the distance from the least to the greatest sample, relative to the median.
func (r *row) spread(m measure) float64 {
	values := make([]float64, len(r.Samples))
	for i, s := range r.Samples {
		values[i] = s.by(m)
	}
	mid := median(values)
	if mid == 0 {
		return 0
	}
	return (slices.Max(values) - slices.Min(values)) / 2 / mid
}

type results struct {
	Date      time.Time `json:"date"`
	Go        string    `json:"go"`
	CPUs      int       `json:"cpus"`
	Processor string    `json:"processor,omitempty"`
	Count     int       `json:"count"`
	Benchtime string    `json:"benchtime"`
	Rows      []*row    `json:"rows"`

	raw bytes.Buffer
}

func (r *results) find(group, library string) *row {
	for _, w := range r.Rows {
		if w.Group == group && w.Library == library {
			return w
		}
	}
	return nil
}

func (r *results) group(name string) []*row {
	var rows []*row
	for _, w := range r.Rows {
		if w.Group == name {
			rows = append(rows, w)
		}
	}
	return rows
}

// parse adds what the testing package printed.
func parse(in io.Reader, r *results) error {
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		line := lines.Text()
		if cpu, ok := strings.CutPrefix(line, "cpu: "); ok {
			r.Processor = cpu
		}
		if strings.HasPrefix(line, "--- FAIL") {
			return errors.New(line)
		}
		fields := strings.Fields(line)
		if !strings.HasPrefix(line, "Benchmark") || len(fields) < 4 {
			continue
		}
		group, library, ok := split(fields[0])
		if !ok {
			continue
		}
		s, err := parseSample(fields[2:])
		if err != nil {
			return fmt.Errorf("%q: %w", line, err)
		}
		r.add(group, library, s)
	}
	return lines.Err()
}

// split takes BenchmarkGroup/library-2 apart.
func split(name string) (group, library string, ok bool) {
	group, library, ok = strings.Cut(strings.TrimPrefix(name, "Benchmark"), "/")
	if i := strings.LastIndexByte(library, '-'); i > 0 {
		if _, err := strconv.Atoi(library[i+1:]); err == nil {
			library = library[:i]
		}
	}
	return group, library, ok
}

func parseSample(fields []string) (sample, error) {
	var s sample
	seen := false
	for i := 0; i+1 < len(fields); i += 2 {
		v, err := strconv.ParseFloat(fields[i], 64)
		if err != nil {
			return s, err
		}
		switch fields[i+1] {
		case "ns/op":
			s.Time, seen = v, true
		case "cpu-ns/op":
			s.CPU = v
		case "B/op":
			s.Bytes = v
		case "allocs/op":
			s.Allocs = v
		}
	}
	if !seen {
		return s, errors.New("it has no ns/op")
	}
	return s, nil
}

func (r *results) add(group, library string, s sample) {
	w := r.find(group, library)
	if w == nil {
		w = &row{Group: group, Library: library}
		r.Rows = append(r.Rows, w)
	}
	w.Samples = append(w.Samples, s)
}

// finish works out the differences and the medians.
func (r *results) finish() {
	for _, d := range differences {
		r.derive(d)
	}
	for _, w := range r.Rows {
		w.sample = medians(w.Samples)
	}
}

// derive takes the difference run by run, so that a slow minute is on both sides of it.
func (r *results) derive(d difference) {
	with, without := r.find(d.from, d.with), r.find(d.from, d.without)
	if with == nil || without == nil {
		return
	}
	w := &row{Group: d.group, Library: d.library, Derived: true}
	for i := range min(len(with.Samples), len(without.Samples)) {
		a, b := with.Samples[i], without.Samples[i]
		w.Samples = append(w.Samples, sample{a.Time - b.Time, a.CPU - b.CPU, a.Bytes - b.Bytes, a.Allocs - b.Allocs})
	}
	r.Rows = append(r.Rows, w)
}

func medians(samples []sample) sample {
	of := func(get func(sample) float64) float64 {
		values := make([]float64, len(samples))
		for i, s := range samples {
			values[i] = get(s)
		}
		return median(values)
	}
	return sample{
		Time:   of(func(s sample) float64 { return s.Time }),
		CPU:    of(func(s sample) float64 { return s.CPU }),
		Bytes:  of(func(s sample) float64 { return s.Bytes }),
		Allocs: of(func(s sample) float64 { return s.Allocs }),
	}
}

func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	mid := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[mid]
	}
	return (sorted[mid-1] + sorted[mid]) / 2
}

func (r *results) encode() ([]byte, error) {
	data, err := json.MarshalIndent(r, "", "\t")
	return append(data, '\n'), err
}

func load(path string) (*results, error) {
	data, err := os.ReadFile(path) //nolint:gosec // the user names it
	if err != nil {
		return nil, err
	}
	r := new(results)
	if err := json.Unmarshal(data, r); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}
