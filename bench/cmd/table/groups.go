package main

import (
	"fmt"
	"strings"
)

// A group is one question; reference is the peer that the ratios are about.
type group struct{ name, title, reference string }

// The groups in the order of the table.
var groups = []group{
	{"BreakerClosed", "Breaker, closed", "gobreaker"},
	{"BreakerOpen", "Breaker, open: a refusal", "gobreaker"},
	{"BulkheadFree", "Bulkhead, a slot is free", "failsafe-bare"},
	{"BulkheadContended", "Bulkhead, 16 goroutines want 2 slots", "xsync-semaphore"},
	{"Timeout", "Timeout", "context"},
	{"BreakerBulkheadTimeout", "Breaker + bulkhead + timeout", "failsafe"},
	{"FourWithRetry", "The same + retry", "failsafe"},
	{"WholeRoad", "Whole road, a read", "failsafe"},
	{"HTTPMemory", "http.Client, in memory", "failsafe"},
	{"HTTPMemoryAdds", "http.Client, in memory: what is added to bare", "failsafe"},
	{"HTTPLoopback", "http.Client, loopback TCP", "bare"},
	{"EffectOnce", "A call that must happen once", "ours-read"},
	{"Layers", "Do of ours with one layer on", "none"},
}

// A difference makes a row that no benchmark measures by itself: from/with less from/without.
type difference struct{ group, library, from, with, without string }

var differences = []difference{
	{"Timeout", "ours-road", "Layers", "timeout", "none"},
	{"HTTPMemoryAdds", "by-hand", "HTTPMemory", "by-hand", "bare"},
	{"HTTPMemoryAdds", "failsafe", "HTTPMemory", "failsafe", "bare"},
	{"HTTPMemoryAdds", "ours", "HTTPMemory", "ours", "bare"},
	{"HTTPMemoryAdds", "ours-in-place", "HTTPMemory", "ours-in-place", "bare"},
}

// known gives groups that the list above does not have a place as well.
func known(r *results) []group {
	all := append([]group(nil), groups...)
	has := map[string]bool{}
	for _, g := range all {
		has[g.name] = true
	}
	for _, w := range r.Rows {
		if !has[w.Group] {
			has[w.Group] = true
			all = append(all, group{name: w.Group, title: w.Group})
		}
	}
	return all
}

func markdown(r *results, by measure) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %s, %d CPUs", r.Date.Format("2006-01-02"), r.Go, r.CPUs)
	if r.Processor != "" {
		fmt.Fprintf(&b, " (%s)", r.Processor)
	}
	fmt.Fprintf(&b, "; medians of %d interleaved runs of %s; ratios and ± by %s.\n\n", r.Count, r.Benchtime, by)
	b.WriteString("| group | library | ns/op | CPU ns/op | ± | allocs/op | B/op | ratio | to |\n|---|---|--:|--:|--:|--:|--:|--:|---|\n")
	for _, g := range known(r) {
		reference := r.find(g.name, g.reference)
		title := g.title
		for _, w := range r.group(g.name) {
			name := w.Library
			if w.Derived {
				name += " (difference)"
			}
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %.0f%% | %s | %s | %s | %s |\n", title, name, digits(w.Time), digits(w.CPU), 100*w.spread(by),
				digits(w.Allocs), digits(w.Bytes), ratioText(w, reference, by), g.reference)
			title = ""
		}
	}
	return b.String()
}

func ratioText(w, reference *row, by measure) string {
	r, ok := ratio(w, reference, by)
	if !ok {
		return "–"
	}
	return fmt.Sprintf("%.2f", r)
}

// ratio is how much w takes for each one that the reference takes.
func ratio(w, reference *row, by measure) (float64, bool) {
	if w == nil || reference == nil || reference.by(by) <= 0 {
		return 0, false
	}
	return w.by(by) / reference.by(by), true
}

// digits writes a number with thousands apart, and small ones with a decimal.
func digits(v float64) string {
	if v > -10 && v < 10 && v != float64(int(v)) {
		return fmt.Sprintf("%.1f", v)
	}
	text := fmt.Sprintf("%.0f", v)
	sign := ""
	if strings.HasPrefix(text, "-") {
		sign, text = "-", text[1:]
	}
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return sign + text
}
