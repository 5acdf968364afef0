package resilience

import (
	"errors"
	"fmt"
	"math"
	"time"
)

// faults collects what is wrong with a config, so that a user sees all of it at once.
type faults struct {
	prefix string
	list   []error
}

func (f *faults) add(field, allowed string, got any) {
	f.list = append(f.list, fmt.Errorf("%s.%s: must be %s, got %v", f.prefix, field, allowed, got))
}

func (f *faults) err() error { return errors.Join(f.list...) }

// duration checks a field where zero is the default and -1 means none.
func (f *faults) duration(field string, d time.Duration) {
	if d != -1 {
		f.length(field, "positive, 0 for the default or -1 for none", d)
	}
}

// positive checks a duration that cannot be switched off.
func (f *faults) positive(field string, d time.Duration) {
	f.length(field, "positive or 0 for the default", d)
}

// length refuses what is too short to be meant: Request: 30 is thirty nanoseconds.
func (f *faults) length(field, allowed string, d time.Duration) {
	switch {
	case d < 0:
		f.add(field, allowed, d)
	case d > 1 && d < time.Microsecond: // 1 is as short as can be, and meant
		f.add(field, fmt.Sprintf("at least 1µs (a number alone counts nanoseconds: write %d * time.Second)", d), d)
	}
}

// count checks a number where zero is the default and -1 means none or unlimited.
func (f *faults) count(field string, n int64) {
	if n < -1 {
		f.add(field, "positive, 0 for the default or -1 for none", n)
	}
}

// rate checks a share.
func (f *faults) rate(field string, r float64) {
	if math.IsNaN(r) || r < 0 || r > 1 {
		f.add(field, "between 0 and 1", r)
	}
}

// or returns v, or def where v is the zero value.
func or[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}
