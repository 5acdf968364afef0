// Package retryafter reads how long a server asks to wait before the next request.
package retryafter

import (
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Longest is what is made of a longer time, which nobody means.
const Longest = 24 * time.Hour

// Parse understands Retry-After-Ms, and Retry-After as seconds (a fraction too) or as a date (RFC 9110, section 10.2.3). A
// date that is over is no wait, and none is longer than [Longest]. ok is false where there is nothing, or nothing that can be understood.
func Parse(h http.Header, now time.Time) (wait time.Duration, ok bool) {
	if wait, ok = number(h.Get("Retry-After-Ms"), time.Millisecond); ok {
		return wait, true
	}
	value := h.Get("Retry-After")
	if wait, ok = number(value, time.Second); ok {
		return wait, true
	}
	at, err := http.ParseTime(strings.TrimSpace(value))
	if err != nil {
		return 0, false
	}
	return min(max(0, at.Sub(now)), Longest), true
}

func number(value string, unit time.Duration) (time.Duration, bool) {
	value = strings.TrimSpace(value)
	if strings.Trim(value, "0123456789.eE+-") != "" { // ParseFloat knows more: hex, inf
		return 0, false
	}
	f, err := strconv.ParseFloat(value, 64)
	if err != nil && !math.IsInf(f, 1) || f < 0 { // too large a number is a long time
		return 0, false
	}
	return time.Duration(min(f*float64(unit), float64(Longest))), true
}
