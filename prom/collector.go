// Package prom shows a [resilience.Stack] to Prometheus:
//
//	registry.MustRegister(prom.NewCollector(client.Stack()))
//
// A scrape reads [resilience.Stack.Stats] and what [resilience.Health] knows; between two scrapes nothing runs and nothing is
// kept. Names begin with "resilience_". Labels are closed sets: tiers, states, outcomes, names of components; never a phone
// number, an id or a key. For several stacks in one program register each under a label of its own:
//
//	prometheus.WrapRegistererWith(prometheus.Labels{"stack": "eu"}, registry).MustRegister(prom.NewCollector(eu))
package prom

import (
	"context"
	"math"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/retell-resilience/resilience"
)

// Collector is a [prometheus.Collector] over one stack. It is safe for concurrent use.
type Collector struct {
	stack   *resilience.Stack
	metrics []metric
	latency *prometheus.Desc
}

var _ prometheus.Collector = (*Collector)(nil)

// NewCollector returns one that nobody has registered yet. A layer that the stack has not got shows zeros.
func NewCollector(stack *resilience.Stack) *Collector {
	return &Collector{stack: stack, metrics: metrics(), latency: desc("call_duration_seconds",
		"What callers waited, everything included, by class of the operation.", "class")}
}

// Describe implements [prometheus.Collector].
func (c *Collector) Describe(descs chan<- *prometheus.Desc) {
	for _, m := range c.metrics {
		descs <- m.desc
	}
	descs <- c.latency
}

// Collect implements [prometheus.Collector]. It waits for nobody: where the probe of Health is due it is started, and the next
// scrape shows what it said.
func (c *Collector) Collect(out chan<- prometheus.Metric) {
	c.show(snapshot{Stats: c.stack.Stats(), report: c.stack.Health().Check(impatient())}, out)
}

func (c *Collector) show(at snapshot, out chan<- prometheus.Metric) {
	for _, m := range c.metrics {
		m.read(at, func(value float64, labels ...string) {
			out <- prometheus.MustNewConstMetric(m.desc, m.kind, value, labels...)
		})
	}
	for class, l := range at.Latency { // the sum is the mean times the count, since that is what Stats has
		out <- prometheus.MustNewConstSummary(c.latency, l.Count, l.Mean.Seconds()*float64(l.Count), map[float64]float64{
			0.5: l.P50.Seconds(), 0.9: l.P90.Seconds(), 0.99: l.P99.Seconds(), 1: l.Max.Seconds(),
		}, class)
	}
}

// impatient is the context of a caller who has left already.
func impatient() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// snapshot is what one scrape shows.
type snapshot struct {
	resilience.Stats
	report resilience.Report
}

// metric is one name with all its labels.
type metric struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	read func(at snapshot, show func(value float64, labels ...string))
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("resilience_"+name, help, labels, nil)
}

// values shows a metric with one label.
type values []struct {
	label string
	value float64
}

func (v values) show(show func(float64, ...string)) {
	for _, one := range v {
		show(one.value, one.label)
	}
}

func number[N int | int64 | uint64](n N) float64 { return float64(n) }

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// instant is in seconds since 1970, as Prometheus counts; the zero time is not shown.
func instant(t time.Time) float64 {
	if t.IsZero() {
		return math.NaN()
	}
	return float64(t.UnixNano()) / 1e9
}
