package main

import (
	"fmt"
	"strings"
)

// A target bounds what one library of one group costs: against a peer in the same group, or, without one, in allocations.
// Where the peers run the work on the caller's goroutine, and so would be held by work that ignores its context, ours is
// compared as it is when it may do so, too.
type target struct {
	what           string
	group, library string
	peer           string
	most           float64
	always         measure // the target is about this, whatever is compared otherwise
}

var targets = []target{
	{what: "breaker closed, Allow and done, to gobreaker's Execute", group: "BreakerClosed", library: "ours-allow", peer: "gobreaker", most: 1.5},
	{what: "breaker closed, Allow and done: allocations", group: "BreakerClosed", library: "ours-allow", most: 1},
	{what: "breaker closed, on the road, to gobreaker's Execute", group: "BreakerClosed", library: "ours-road", peer: "gobreaker", most: 1.5},
	{what: "breaker closed, on the road: allocations", group: "BreakerClosed", library: "ours-road", most: 0},
	{what: "breaker open, to gobreaker's refusal", group: "BreakerOpen", library: "ours-allow", peer: "gobreaker", most: 1.5},
	{what: "breaker open: allocations", group: "BreakerOpen", library: "ours-allow", most: 1},
	{what: "bulkhead free, Acquire, to failsafe-go's bare one", group: "BulkheadFree", library: "ours-acquire", peer: "failsafe-bare", most: 1},
	{what: "bulkhead free, on the road, to failsafe-go's bare one", group: "BulkheadFree", library: "ours-road", peer: "failsafe-bare", most: 1},
	{what: "bulkhead free, on the road: allocations", group: "BulkheadFree", library: "ours-road", most: 0},
	{what: "bulkhead contended, to x/sync's semaphore", group: "BulkheadContended", library: "ours-acquire", peer: "xsync-semaphore", most: 1},
	{what: "breaker + bulkhead + timeout, to failsafe-go", group: "BreakerBulkheadTimeout", library: "ours-in-place", peer: "failsafe", most: 0.5},
	{what: "breaker + bulkhead + timeout, to wired by hand", group: "BreakerBulkheadTimeout", library: "ours-in-place", peer: "by-hand", most: 1.2},
	{what: "whole road, a read, to failsafe-go's four", group: "WholeRoad", library: "ours-in-place", peer: "failsafe", most: 0.75},
	{what: "whole road, a read: allocations", group: "WholeRoad", library: "ours-in-place", most: 12},
	{what: "http.Client in memory, added, to what failsafe-go's four add", group: "HTTPMemoryAdds", library: "ours-in-place", peer: "failsafe", most: 0.75},
	{what: "loopback, CPU for a request, to the bare client", group: "HTTPLoopback", library: "ours", peer: "bare", most: 1.1, always: byCPU},
}

type verdict struct {
	target
	got   float64
	known bool // it was measured
}

func (v verdict) met() bool { return v.known && v.got <= v.most }

func check(r *results, by measure) []verdict {
	verdicts := make([]verdict, len(targets))
	for i, t := range targets {
		v, w := verdict{target: t}, r.find(t.group, t.library)
		m := by
		if t.always != "" {
			m = t.always
		}
		switch {
		case t.peer != "":
			v.got, v.known = ratio(w, r.find(t.group, t.peer), m)
		case w != nil:
			v.got, v.known = w.Allocs, true
		}
		verdicts[i] = v
	}
	return verdicts
}

func allMet(verdicts []verdict) bool {
	for _, v := range verdicts {
		if !v.met() {
			return false
		}
	}
	return true
}

func targetTable(verdicts []verdict) string {
	var b strings.Builder
	b.WriteString("| target | at most | measured | |\n|---|--:|--:|---|\n")
	met := 0
	for _, v := range verdicts {
		unit := "×"
		if v.peer == "" {
			unit = ""
		}
		got, word := fmt.Sprintf("%.2f%s", v.got, unit), "missed"
		switch {
		case !v.known:
			got, word = "–", "not measured"
		case v.met():
			word = "met"
			met++
		}
		fmt.Fprintf(&b, "| %s | %.2f%s | %s | %s |\n", v.what, v.most, unit, got, word)
	}
	fmt.Fprintf(&b, "\n%d of %d targets are met.\n", met, len(verdicts))
	return b.String()
}
