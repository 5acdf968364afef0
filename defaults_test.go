package resilience

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// README.md says what every field is when nobody sets it.
func TestREADMETellsTheDefaults(t *testing.T) {
	b, r, d := BreakerConfig{}.resolve(), RetryConfig{}.withDefaults(), DLQConfig{}.withDefaults()
	to, keys := TimeoutConfig{}.withDefaults(), IdempotencyConfig{}.withDefaults()
	bounds, err := BulkheadConfig{}.bounds()
	require.NoError(t, err)
	fresh, stale, maxAge := FallbackConfig{}.ages(&faults{})
	h, err := NewHealth(HealthConfig{})
	require.NoError(t, err)
	timeouts, err := NewTimeout(TimeoutConfig{})
	require.NoError(t, err)
	limit, _ := timeouts.LimitOf(Call{})
	require.IsType(t, &MemoryStore{}, keys.Store)
	mib := func(n int64) string { return fmt.Sprintf("%d MiB", n>>20) }
	want := map[string]string{
		"`Breaker.FailureRate`":                 fmt.Sprint(b.FailureRate),
		"`Breaker.MinCalls`":                    fmt.Sprint(b.MinCalls),
		"`Breaker.Window`":                      inWords(b.Window),
		"`Breaker.OpenFor`, `MaxOpenFor`":       inWords(b.OpenFor) + ", grows to " + inMinutes(b.MaxOpenFor),
		"`Breaker.Trials`, `Ramp`":              fmt.Sprint(b.Trials) + ", " + inWords(b.Ramp),
		"`Retry.Max`":                           fmt.Sprintf("%d retries", r.Max),
		"`Retry.Base`, `Cap`":                   inWords(r.Base) + ", " + inWords(r.Cap) + ", full jitter",
		"`Retry.MaxRetryAfter`":                 inWords(r.MaxRetryAfter),
		"`Retry.Ratio`, `RatioPerSecond`":       fmt.Sprintf("%v %% of calls + %v/s", 100*r.Ratio, r.RatioPerSecond),
		"`Timeout.Connect`, `Request`":          inWords(to.Connect) + ", " + inWords(to.Request),
		"`Timeout.Upload`, `LongPoll`":          inWords(to.Upload) + ", " + inWords(to.LongPoll),
		"`Timeout.Total`":                       fmt.Sprintf("%d × the attempt limit", timeouts.budgetOf(&Call{})/limit),
		"`Timeout.MaxResponseBytes`":            mib(to.MaxResponseBytes),
		"`Timeout.MaxRequestBytes`":             mib(to.MaxRequestBytes),
		"`Bulkhead.Critical`, `Normal`, `Bulk`": fmt.Sprintf("%d, %d, %d", bounds.Guaranteed[0], bounds.Guaranteed[1], bounds.Guaranteed[2]),
		"`Bulkhead.Total`":                      fmt.Sprintf("the sum of the tiers: %d", bounds.Total),
		"`Bulkhead.Queue`, `AgeAfter`":          fmt.Sprintf("%d a tier, ", bounds.Places) + inWords(bounds.AgeAfter),
		"`DLQ.Attempts`":                        fmt.Sprint(d.Attempts),
		"`DLQ.Base`, `Cap`":                     inWords(d.Base) + ", " + inMinutes(d.Cap) + ", random",
		"`DLQ.MaxAge`":                          inWords(d.MaxAge),
		"`DLQ.MaxLetters`, `MaxBytes`":          fmt.Sprintf("%d,%03d, ", d.MaxLetters/1000, d.MaxLetters%1000) + mib(d.MaxBytes),
		"`DLQ.Concurrency`, `Rate`":             fmt.Sprintf("%d, %v/s", d.Concurrency, d.Rate),
		"`Fallback.Fresh`, `Stale`, `MaxAge`":   inWords(fresh) + ", " + inMinutes(stale) + ", " + inWords(maxAge),
		"`Fallback.MaxBytes`":                   mib(defaultFallbackBytes),
		"`Idempotency.TTL`":                     inWords(keys.TTL),
		"`Idempotency.Store`":                   "memory",
		"`Health.ProbeEvery`, `ProbeTimeout`":   inWords(h.probe.every) + ", " + inWords(h.probe.timeout),
		"`Health.WarnLetters`":                  fmt.Sprint(h.warnLetters),
	}
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	_, table, _ := strings.Cut(string(readme), "\n| Field | Default | | Field | Default |\n")
	table, _, _ = strings.Cut(table, "\n\n")
	said := map[string]string{}
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		for i := 1; i+1 < len(cells); i += 3 {
			if name := strings.TrimSpace(cells[i]); strings.HasPrefix(name, "`") {
				said[name] = strings.TrimSpace(cells[i+1])
			}
		}
	}
	require.Equal(t, want, said)
}

// inWords is a time as README.md writes most of them.
func inWords(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%d ms", d/time.Millisecond)
	case d >= time.Hour:
		return fmt.Sprintf("%d h", d/time.Hour)
	}
	return fmt.Sprintf("%d s", d/time.Second)
}

func inMinutes(d time.Duration) string { return fmt.Sprintf("%d min", d/time.Minute) }

func TestConfig_AForgottenUnitIsRefused(t *testing.T) {
	_, err := New(Config{
		Timeout: TimeoutConfig{Request: 30}, Breaker: BreakerConfig{OpenFor: 999},
		Idempotency: IdempotencyConfig{TTL: 24}, DLQ: DLQConfig{MaxAge: 3600 * time.Nanosecond},
	})
	require.ErrorContains(t, err, "Timeout.Request: must be at least 1µs (a number alone counts nanoseconds: write 30 * time.Second), got 30ns")
	require.ErrorContains(t, err, "Breaker.OpenFor")
	require.ErrorContains(t, err, "Idempotency.TTL")
	_, err = New(Config{Timeout: TimeoutConfig{Connect: time.Microsecond}})
	require.NoError(t, err)
}

// Off means the same for every layer: there is none. Its config is checked all the same.
func TestConfig_OffIsNoLayer(t *testing.T) {
	for name, layer := range map[string]func(bad int) (Layer, bool, error){
		"Fallback": func(bad int) (Layer, bool, error) {
			l, err := NewFallback(FallbackConfig{Off: true, MaxBytes: int64(bad)})
			return l, l == nil, err
		},
		"Idempotency": func(bad int) (Layer, bool, error) {
			l, err := NewIdempotency(IdempotencyConfig{Off: true, TTL: time.Duration(bad)})
			return l, l == nil, err
		},
		"DLQ": func(bad int) (Layer, bool, error) {
			l, err := NewDLQ(DLQConfig{Off: true, MaxLetters: bad})
			return l, l == nil, err
		},
		"Timeout": func(bad int) (Layer, bool, error) {
			l, err := NewTimeout(TimeoutConfig{Off: true, Total: time.Duration(bad)})
			return l, l == nil, err
		},
		"Retry": func(bad int) (Layer, bool, error) {
			l, err := NewRetry(RetryConfig{Off: true, Max: bad})
			return l, l == nil, err
		},
		"Bulkhead": func(bad int) (Layer, bool, error) {
			l, err := NewBulkhead(BulkheadConfig{Off: true, Queue: bad})
			return l, l == nil, err
		},
		"Breaker": func(bad int) (Layer, bool, error) {
			l, err := NewBreaker(BreakerConfig{Off: true, MinCalls: bad})
			return l, l == nil, err
		},
	} {
		l, none, err := layer(0)
		require.NoError(t, err, name)
		require.True(t, none, name)
		resp, err := fetch(t.Context(), t, l.Wrap(slow(0)))
		require.NoError(t, err, name)
		require.Equal(t, 200, resp.StatusCode)
		_, _, err = layer(-7)
		require.ErrorContains(t, err, name+".")
	}
}
