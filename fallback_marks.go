package resilience

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Staleness says how old an answer is.
type Staleness uint8

// The classes of age. The zero value says that nothing is known of an age.
const (
	StalenessUnset Staleness = iota
	Fresh                    // younger than FallbackConfig.Fresh
	Stale                    // younger than FallbackConfig.Stale
	VeryStale                // older than that
)

// String returns "unset", "fresh", "stale" or "very_stale".
func (s Staleness) String() string { return nameOf(int(s), "unset", "fresh", "stale", "very_stale") }

// markHeader marks what did not come from upstream: "stale; reason=open; age=12m3s". A reason is the Cause of
// EventFallbackServed. The mark is in a header since that survives what wraps bodies, http.Client with a Timeout among
// them. It cannot be forged: the layer takes it off whatever comes from below.
const (
	markHeader = "Resilience-Fallback"
	madeByFunc = "func"
)

// marks returns the mark of a kept answer, and its Age in whole seconds, RFC 9111 section 5.1. They are cut from a sheet
// that holds those of some twenty answers: a piece of memory for each is more than all the rest of the mark costs.
func (f *Fallback) marks(s Staleness, why string, age time.Duration) (mark, seconds string) {
	var space [96]byte
	b := append(space[:0], s.String()...)
	b = append(append(b, "; reason="...), why...)
	b = append(append(b, "; age="...), age.String()...)
	n := len(b)
	b = strconv.AppendInt(b, int64(age/time.Second), 10)
	sheet, _ := f.sheets.Get().(*strings.Builder)
	if sheet == nil || sheet.Cap()-sheet.Len() < len(b) {
		sheet = new(strings.Builder)
		sheet.Grow(sheetSize)
	}
	start := sheet.Len()
	sheet.Write(b)
	both := sheet.String()[start:]
	f.sheets.Put(sheet)
	return both[:n], both[n:]
}

const sheetSize = 1024

// Served reports whether a response that passed a [Fallback] is a substitute (ok), how old it is, and how stale. What
// FallbackConfig.Func or [WithFallback] made has no age: 0 and StalenessUnset. [ServedReason] says why it was served.
func Served(resp *http.Response) (age time.Duration, s Staleness, ok bool) {
	if resp == nil {
		return 0, StalenessUnset, false
	}
	kind, rest, _ := strings.Cut(resp.Header.Get(markHeader), "; reason=")
	if kind == madeByFunc {
		return 0, StalenessUnset, true
	}
	for s = Fresh; s <= VeryStale; s++ {
		if kind == s.String() {
			_, text, _ := strings.Cut(rest, "; age=")
			age, err := time.ParseDuration(text)
			return age, s, err == nil
		}
	}
	return 0, StalenessUnset, false
}

// ServedReason says in one word why a substitute was served: "fresh" and "refresh" without asking, else the failure:
// "transport", "timeout", "status" (of 500 and more), "truncated", "open", "full", "throttled". Empty where [Served] says that
// there is none.
func ServedReason(resp *http.Response) string {
	if _, _, ok := Served(resp); !ok {
		return ""
	}
	_, rest, _ := strings.Cut(resp.Header.Get(markHeader), "; reason=")
	why, _, _ := strings.Cut(rest, ";")
	return why
}
