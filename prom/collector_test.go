package prom

import (
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
	"github.com/retell-resilience/resilience/retell"
	"github.com/retell-resilience/resilience/retell/retelltest"
)

// fixed shows one snapshot, whatever the stack says.
type fixed struct {
	*Collector
	at snapshot
}

func (f fixed) Collect(out chan<- prometheus.Metric) { f.show(f.at, out) }

// shown are all values that a snapshot leads to.
func shown(t *testing.T, at snapshot) map[float64]int {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(fixed{NewCollector(nil), at})
	families, err := registry.Gather()
	require.NoError(t, err)
	found := map[float64]int{}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			found[m.GetGauge().GetValue()]++
			found[m.GetCounter().GetValue()]++
			if s := m.GetSummary(); s != nil {
				found[float64(s.GetSampleCount())]++
				found[s.GetSampleSum()]++
				for _, q := range s.GetQuantile() {
					found[q.GetValue()]++
				}
			}
		}
	}
	return found
}

// Every number of Stats is shown somewhere: one that is added must get a metric here.
func TestCollector_ShowsAllOfStats(t *testing.T) {
	var at snapshot
	fields := map[string]reflect.Value{}
	walk(t, reflect.ValueOf(&at.Stats).Elem(), "", fields)
	require.Greater(t, len(fields), 100)
	at.Breaker.FailureRate, at.Breaker.SlowRate, at.Retry.BudgetLeft = -1, -1, -1
	delete(fields, ".DLQ.Letters")   // the sum of the states
	delete(fields, ".Breaker.State") // see below
	before := shown(t, at)
	for name, field := range fields {
		old := reflect.New(field.Type()).Elem()
		old.Set(field)
		want := set(t, field, name)
		require.Greater(t, shown(t, at)[want], before[want], "no metric shows Stats%s", name)
		field.Set(old)
	}
	at.Latency = map[string]resilience.Latency{"request": {
		Count: 7001, Mean: 2 * time.Second, P50: 7003 * time.Second, P90: 7005 * time.Second, P99: 7007 * time.Second, Max: 7009 * time.Second,
	}}
	found := shown(t, at)
	for _, want := range []float64{7001, 14002, 7003, 7005, 7007, 7009} {
		require.Positive(t, found[want], want)
	}
}

func walk(t *testing.T, v reflect.Value, path string, fields map[string]reflect.Value) {
	t.Helper()
	for i := range v.NumField() {
		name, f := path+"."+v.Type().Field(i).Name, v.Field(i)
		switch {
		case f.Kind() == reflect.Struct && f.Type() != reflect.TypeFor[time.Time]():
			walk(t, f, name, fields)
		case f.Kind() != reflect.Map: // Latency
			fields[name] = f
		}
	}
}

// set gives a field a value that no other has, and returns how a metric shows that.
func set(t *testing.T, field reflect.Value, name string) float64 {
	t.Helper()
	switch p := field.Addr().Interface().(type) {
	case *int:
		*p = 7919
	case *int64:
		*p = 7919
	case *uint64:
		*p = 7919
	case *float64:
		*p = 7919
	case *time.Duration:
		*p = 7919 * time.Second
	case *time.Time:
		*p = time.Unix(7919, 0)
	case *bool:
		*p = true
		return 1
	default:
		t.Fatalf("the test does not know the type of Stats%s", name)
	}
	return 7919
}

func TestCollector_States(t *testing.T) {
	at := snapshot{report: resilience.Report{Status: resilience.Unhealthy, Checks: []resilience.CheckResult{
		{Name: "api", Status: resilience.Unhealthy}, {Name: "dlq", Status: resilience.Healthy}, {Name: "dlq", Status: resilience.Degraded},
		{Name: "dlq", Status: resilience.Unknown}, {Name: "own"},
	}}}
	at.Breaker.State, at.Breaker.FailureRate, at.Breaker.SlowRate, at.Retry.BudgetLeft = resilience.BreakerHalfOpen, 0.25, -1, -1
	require.NoError(t, testutil.CollectAndCompare(fixed{NewCollector(nil), at}, strings.NewReader(`
# HELP resilience_breaker_failure_rate Of the calls in the window; not there while it is not known.
# TYPE resilience_breaker_failure_rate gauge
resilience_breaker_failure_rate 0.25
# HELP resilience_breaker_state 1 for the state that the shared circuit is in.
# TYPE resilience_breaker_state gauge
resilience_breaker_state{state="closed"} 0
resilience_breaker_state{state="half-open"} 1
resilience_breaker_state{state="open"} 0
# HELP resilience_health_component_status The worst reading of a component: 0 not known, 1 healthy, 2 degraded, 3 unhealthy.
# TYPE resilience_health_component_status gauge
resilience_health_component_status{component="api"} 3
resilience_health_component_status{component="dlq"} 2
resilience_health_component_status{component="own"} 0
# HELP resilience_health_status The whole: 0 not known, 1 healthy, 2 degraded, 3 unhealthy.
# TYPE resilience_health_status gauge
resilience_health_status 3
`), "resilience_breaker_state", "resilience_breaker_failure_rate", "resilience_breaker_slow_rate", "resilience_retry_budget_left",
		"resilience_breaker_open_since_timestamp_seconds", "resilience_health_status", "resilience_health_component_status"))
}

func TestCollector_NamesAreAsPrometheusWants(t *testing.T) {
	problems, err := testutil.CollectAndLint(fixed{NewCollector(nil), snapshot{}})
	require.NoError(t, err)
	require.Empty(t, problems)
}

// A scrape reads, and waits for nobody: a probe that hangs holds none up.
func TestCollector_OfAStack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := retelltest.NewServer()
		defer srv.Close()
		client, err := retell.New(retelltest.DefaultKey, retell.WithTransport(srv.Transport()))
		require.NoError(t, err)
		defer func() { require.NoError(t, client.Close(t.Context())) }()
		registry := prometheus.NewPedanticRegistry()
		registry.MustRegister(NewCollector(client.Stack()))
		srv.Inject("get-concurrency", retelltest.HangBeforeEffect())
		srv.Inject("create-phone-call", retelltest.LostAnswer())
		_, err = client.Calls.CreatePhoneCall(t.Context(), retell.CreatePhoneCallParams{
			FromNumber: "+15550001000", ToNumber: "+15555550123",
		}, retell.IdempotencyKey("reminder:4711"))
		require.True(t, resilience.InDoubt(err))

		began := time.Now()
		var scrapes sync.WaitGroup
		for range 4 {
			scrapes.Go(func() {
				if _, err := registry.Gather(); err != nil {
					t.Error(err)
				}
			})
		}
		scrapes.Wait()
		require.Zero(t, time.Since(began))
		srv.Release()
		require.NoError(t, testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP resilience_idempotency_in_doubt_total Keys that came in doubt.
# TYPE resilience_idempotency_in_doubt_total counter
resilience_idempotency_in_doubt_total 1
# HELP resilience_running 1 while Stack.Run is at work.
# TYPE resilience_running gauge
resilience_running 0
`), "resilience_idempotency_in_doubt_total", "resilience_running"))
	})
}
