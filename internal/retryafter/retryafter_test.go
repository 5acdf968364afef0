package retryafter

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var now = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

func TestParse_AllForms(t *testing.T) {
	at := now.Add(12 * time.Second)
	for value, want := range map[string]time.Duration{
		"12": 12 * time.Second, " 1.5 ": 1500 * time.Millisecond, "0": 0, "1e2": 100 * time.Second,
		"1e300": Longest, "1e400": Longest,
		at.Format(http.TimeFormat): 12 * time.Second, at.Format("Monday, 02-Jan-06 15:04:05 GMT"): 12 * time.Second,
		at.Format(time.ANSIC): 12 * time.Second, " " + at.Format(http.TimeFormat): 12 * time.Second,
		now.Add(-time.Hour).Format(http.TimeFormat): 0, now.AddDate(10, 0, 0).Format(http.TimeFormat): Longest,
	} {
		wait, ok := Parse(http.Header{"Retry-After": {value}}, now)
		require.True(t, ok, value)
		require.Equal(t, want, wait, value)
	}
}

func TestParse_Garbage(t *testing.T) {
	for _, value := range []string{"", " ", "inf", "+Infinity", "0x1p4", "nan", "NaN", "-5", "-0.5", "-1e400", "soon", "1,2", "1s", "1e", "."} {
		for _, name := range []string{"Retry-After", "Retry-After-Ms"} {
			_, ok := Parse(http.Header{name: {value}}, now)
			require.False(t, ok, value)
		}
	}
	_, ok := Parse(nil, now)
	require.False(t, ok)
}

func TestParse_MillisecondsComeFirst(t *testing.T) {
	for ms, want := range map[string]time.Duration{
		"250": 250 * time.Millisecond, "0": 0, "1e30": Longest, "": 7 * time.Second, "soon": 7 * time.Second, "-5": 7 * time.Second,
	} {
		wait, ok := Parse(http.Header{"Retry-After-Ms": {ms}, "Retry-After": {"7"}}, now)
		require.True(t, ok)
		require.Equal(t, want, wait, ms)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"1", "-1", "1e400", "NaN", "Mon, 02 Jan 2006 15:04:05 GMT", "", "soon"} {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, seconds, ms string) {
		wait, ok := Parse(http.Header{"Retry-After": {seconds}, "Retry-After-Ms": {ms}}, time.Now())
		if wait < 0 || wait > Longest || !ok && wait != 0 {
			t.Errorf("%q %q: %v %v", seconds, ms, wait, ok)
		}
	})
}
