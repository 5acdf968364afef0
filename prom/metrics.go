package prom

import (
	"math"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/retell-resilience/resilience"
)

// metrics are all but the latency, in the order of the road. See the fields of [resilience.Stats] for what they mean.
func metrics() []metric {
	var list []metric
	for _, layer := range [][]metric{
		stackMetrics(), fallbackMetrics(), idempotencyMetrics(), dlqMetrics(), timeoutMetrics(), retryMetrics(), bulkheadMetrics(),
		breakerMetrics(), healthMetrics(),
	} {
		list = append(list, layer...)
	}
	return list
}

// gauge is a number that goes up and down; NaN means that there is none.
func gauge(name, help string, read func(at snapshot) float64) metric {
	return metric{desc(name, help), prometheus.GaugeValue, func(at snapshot, show func(float64, ...string)) {
		if v := read(at); !math.IsNaN(v) {
			show(v)
		}
	}}
}

func gauges(name, help, label string, read func(at snapshot) values) metric {
	return metric{desc(name, help, label), prometheus.GaugeValue, func(at snapshot, show func(float64, ...string)) { read(at).show(show) }}
}

func counter(name, help string, read func(at snapshot) uint64) metric {
	return metric{desc(name, help), prometheus.CounterValue, func(at snapshot, show func(float64, ...string)) { show(number(read(at))) }}
}

func counters(name, help, label string, read func(at snapshot) values) metric {
	return metric{desc(name, help, label), prometheus.CounterValue, func(at snapshot, show func(float64, ...string)) { read(at).show(show) }}
}

func stackMetrics() []metric {
	return []metric{
		gauge("calls", "Callers on the road now.", func(at snapshot) float64 { return number(at.Calls) }),
		gauge("running", "1 while Stack.Run is at work.", func(at snapshot) float64 { return flag(at.Running) }),
		counters("events_dropped_total", "Events that listeners were too slow for, by layer.", "layer", func(at snapshot) values {
			return deliveries(at, func(d resilience.DeliveryStats) uint64 { return d.Dropped })
		}),
		counters("listener_panics_total", "Listeners and callbacks that panicked, by layer.", "layer", func(at snapshot) values {
			return deliveries(at, func(d resilience.DeliveryStats) uint64 { return d.Panics })
		}),
	}
}

func deliveries(at snapshot, of func(resilience.DeliveryStats) uint64) values {
	return values{
		{"fallback", number(of(at.Fallback.Delivery))}, {"idempotency", number(of(at.Idempotency.Delivery))},
		{"dlq", number(of(at.DLQ.Delivery))}, {"timeout", number(of(at.Timeout.Delivery))}, {"retry", number(of(at.Retry.Delivery))},
	}
}

func fallbackMetrics() []metric {
	return []metric{
		gauge("fallback_entries", "Answers kept.", func(at snapshot) float64 { return number(at.Fallback.Entries) }),
		gauge("fallback_bytes", "Their memory.", func(at snapshot) float64 { return number(at.Fallback.Bytes) }),
		gauge("fallback_refreshing", "Refreshes in the background under way.", func(at snapshot) float64 { return number(at.Fallback.Refreshing) }),
		counters("fallback_served_total", "Kept answers given to callers, by age.", "staleness", func(at snapshot) values {
			f := at.Fallback
			return values{{"fresh", number(f.Fresh)}, {"stale", number(f.Stale)}, {"very-stale", number(f.VeryStale)}}
		}),
		counter("fallback_misses_total", "Reads that failed with no answer kept.", func(at snapshot) uint64 { return at.Fallback.Misses }),
		counter("fallback_coalesced_total", "Reads that shared the call of another.", func(at snapshot) uint64 { return at.Fallback.Coalesced }),
		counter("fallback_stored_total", "Answers that were kept.", func(at snapshot) uint64 { return at.Fallback.Stored }),
		counters("fallback_removed_total", "Answers that are kept no longer, or were not.", "cause", func(at snapshot) values {
			f := at.Fallback
			return values{{"evicted", number(f.Evicted)}, {"expired", number(f.Expired)}, {"invalidated", number(f.Invalidated)}}
		}),
		counter("fallback_refreshes_total", "Refreshes in the background.", func(at snapshot) uint64 { return at.Fallback.Refreshes }),
		counter("fallback_refresh_failures_total", "Of these, failed.", func(at snapshot) uint64 { return at.Fallback.RefreshFailures }),
		counter("fallback_func_calls_total", "Times a substitute of the program's own was asked.", func(at snapshot) uint64 { return at.Fallback.FuncCalls }),
		counter("fallback_func_failures_total", "Of these, failed.", func(at snapshot) uint64 { return at.Fallback.FuncFailures }),
	}
}

func idempotencyMetrics() []metric {
	return []metric{
		gauge("idempotency_flights", "Calls that must happen once under way.", func(at snapshot) float64 { return number(at.Idempotency.Flights) }),
		gauge("idempotency_unwritten", "Outcomes that the store has not taken yet.", func(at snapshot) float64 { return number(at.Idempotency.Unwritten) }),
		counters("idempotency_calls_total", "What became of calls that must happen once.", "outcome", func(at snapshot) values {
			i := at.Idempotency
			return values{
				{"executed", number(i.Executed)}, {"replayed", number(i.Replayed)}, {"joined", number(i.Joined)},
				{"in-flight", number(i.InFlight)}, {"reused", number(i.Reused)}, {"given-back", number(i.GivenBack)},
			}
		}),
		counter("idempotency_in_doubt_total", "Keys that came in doubt.", func(at snapshot) uint64 { return at.Idempotency.InDoubt }),
		counter("idempotency_disputed_total", "Keys with two results.", func(at snapshot) uint64 { return at.Idempotency.Disputed }),
		counter("idempotency_resent_total", "Sends under a key that the API is trusted to honour.", func(at snapshot) uint64 { return at.Idempotency.Resent }),
		counter("idempotency_assumed_total", "Keys in doubt taken as not applied.", func(at snapshot) uint64 { return at.Idempotency.Assumed }),
		counter("idempotency_lookups_total", "Look-ups of keys in doubt.", func(at snapshot) uint64 { return at.Idempotency.Lookups }),
		counter("idempotency_lookups_found_total", "Of these, found what became of it.", func(at snapshot) uint64 { return at.Idempotency.Found }),
		counter("idempotency_lookup_errors_total", "Of these, failed.", func(at snapshot) uint64 { return at.Idempotency.LookupErrors }),
		counter("idempotency_store_errors_total", "Failures of the store.", func(at snapshot) uint64 { return at.Idempotency.StoreErrors }),
	}
}

func dlqMetrics() []metric {
	return []metric{
		gauges("dlq_letters", "Dead letters, by state.", "state", func(at snapshot) values {
			d := at.DLQ
			return values{
				{"waiting", number(d.Waiting)}, {"in-doubt", number(d.InDoubt)}, {"leased", number(d.Leased)},
				{"parked", number(d.Parked)}, {"superseded", number(d.Superseded)},
			}
		}),
		gauge("dlq_bytes", "Their memory.", func(at snapshot) float64 { return number(at.DLQ.Bytes) }),
		gauge("dlq_oldest_age_seconds", "Since the first try of the oldest letter that is neither parked nor superseded.", func(at snapshot) float64 {
			return at.DLQ.OldestAge.Seconds()
		}),
		gauge("dlq_next_due_timestamp_seconds", "When the next redrive is due.", func(at snapshot) float64 { return instant(at.DLQ.NextDue) }),
		gauge("dlq_blocked", "Callers who wait for room.", func(at snapshot) float64 { return number(at.DLQ.Blocked) }),
		gauge("dlq_redriving", "Redrives under way.", func(at snapshot) float64 { return number(at.DLQ.Running) }),
		gauge("dlq_unwritten", "Letters whose last change is not in the store yet.", func(at snapshot) float64 { return number(at.DLQ.Unwritten) }),
		counter("dlq_admitted_total", "Letters that came in.", func(at snapshot) uint64 { return at.DLQ.Admitted }),
		counter("dlq_loaded_total", "Of these, from the store at the start.", func(at snapshot) uint64 { return at.DLQ.Loaded }),
		counter("dlq_merged_total", "Failures that joined the letter of their key.", func(at snapshot) uint64 { return at.DLQ.Merged }),
		counter("dlq_refused_total", "Letters that did not come in: their writes stayed with the callers.", func(at snapshot) uint64 { return at.DLQ.Refused }),
		counters("dlq_removed_total", "Letters that are gone.", "cause", func(at snapshot) values {
			d := at.DLQ
			return values{{"acked", number(d.Acked)}, {"deleted", number(d.Deleted)}, {"dropped", number(d.Dropped)}}
		}),
		counter("dlq_spilled_total", "Letters that DLQConfig.Spill took.", func(at snapshot) uint64 { return at.DLQ.Spilled }),
		counter("dlq_redrives_total", "Times a letter was taken up.", func(at snapshot) uint64 { return at.DLQ.Redriven }),
		counter("dlq_redrives_failed_total", "Attempts spent.", func(at snapshot) uint64 { return at.DLQ.Failed }),
		counter("dlq_redrives_paused_total", "Redrives put off without spending an attempt.", func(at snapshot) uint64 { return at.DLQ.Paused }),
		counter("dlq_given_up_total", "Times a letter was parked: a person has to look.", func(at snapshot) uint64 { return at.DLQ.GivenUp }),
		counter("dlq_expired_total", "Of these, because its time was over.", func(at snapshot) uint64 { return at.DLQ.Expired }),
		counter("dlq_superseded_total", "Letters superseded by a newer write.", func(at snapshot) uint64 { return at.DLQ.Overtaken }),
		counter("dlq_store_failures_total", "Writes that the store did not take.", func(at snapshot) uint64 { return at.DLQ.StoreFailures }),
	}
}

func timeoutMetrics() []metric {
	return []metric{
		counters("timeout_fired_total", "How often each limit fired.", "limit", func(at snapshot) values {
			t := at.Timeout
			return values{
				{"connect", number(t.Connect)}, {"request", number(t.Request)}, {"upload", number(t.Upload)},
				{"long-poll", number(t.LongPoll)}, {"limit", number(t.Call)}, {"budget", number(t.Budget)},
			}
		}),
		counter("timeout_late_total", "Attempts that ended after their caller was answered.", func(at snapshot) uint64 { return at.Timeout.Late }),
		gauge("timeout_lingering", "Such attempts that have not ended yet.", func(at snapshot) float64 { return number(at.Timeout.Lingering) }),
	}
}

func retryMetrics() []metric {
	return []metric{
		counter("retry_calls_total", "Calls that came to the layer.", func(at snapshot) uint64 { return at.Retry.Calls }),
		counter("retry_attempts_total", "Their attempts.", func(at snapshot) uint64 { return at.Retry.Attempts }),
		counter("retry_retries_total", "Of these, after the first.", func(at snapshot) uint64 { return at.Retry.Retries }),
		counters("retry_refused_total", "Retries that were not made.", "cause", func(at snapshot) values {
			return values{{"retry-budget", number(at.Retry.RefusedByBudget)}, {"time", number(at.Retry.GaveUp)}}
		}),
		counter("retry_throttled_total", "Answers with status 429.", func(at snapshot) uint64 { return at.Retry.Throttled }),
		gauge("retry_gates", "Operations that are slowed down.", func(at snapshot) float64 { return number(at.Retry.Gates) }),
		gauge("retry_budget_left", "Retries that the retry budget allows; not there if it has no limit.", func(at snapshot) float64 {
			return unlessBelowZero(at.Retry.BudgetLeft)
		}),
	}
}

// unlessBelowZero is for numbers of which -1 means that there is none.
func unlessBelowZero(v float64) float64 {
	if v < 0 {
		return math.NaN()
	}
	return v
}

func bulkheadMetrics() []metric {
	tiers := func(read func(resilience.TierStats) float64) func(at snapshot) values {
		return func(at snapshot) values {
			b := at.Bulkhead
			return values{{"critical", read(b.Critical)}, {"normal", read(b.Normal)}, {"bulk", read(b.Bulk)}}
		}
	}
	return []metric{
		gauge("bulkhead_slots", "Slots over all tiers.", func(at snapshot) float64 { return number(at.Bulkhead.Total) }),
		gauge("bulkhead_slots_effective", "How many of them may be used now.", func(at snapshot) float64 { return number(at.Bulkhead.Effective) }),
		gauge("bulkhead_slots_in_use", "Slots held.", func(at snapshot) float64 { return number(at.Bulkhead.InUse) }),
		gauge("bulkhead_slots_abandoned", "Slots held by work that outlived its caller.", func(at snapshot) float64 { return number(at.Bulkhead.Abandoned) }),
		gauge("bulkhead_waiting", "Calls that wait for a slot.", func(at snapshot) float64 { return number(at.Bulkhead.Waiting) }),
		gauge("bulkhead_places", "Places to wait in each tier.", func(at snapshot) float64 { return number(at.Bulkhead.Queue) }),
		gauge("bulkhead_saturated", "1 while somebody waits because there is no slot.", func(at snapshot) float64 { return flag(at.Bulkhead.Saturated) }),
		gauge("bulkhead_oldest_wait_seconds", "How long the one who waits longest has waited.", func(at snapshot) float64 { return at.Bulkhead.OldestWait.Seconds() }),
		gauge("bulkhead_recent_sheds", "Calls lost for lack of a slot in the last ten seconds.", func(at snapshot) float64 { return number(at.Bulkhead.RecentSheds) }),
		gauges("bulkhead_tier_guaranteed", "Slots that a tier is guaranteed.", "tier", tiers(func(t resilience.TierStats) float64 { return number(t.Guaranteed) })),
		gauges("bulkhead_tier_in_use", "Slots that a tier holds.", "tier", tiers(func(t resilience.TierStats) float64 { return number(t.InUse) })),
		gauges("bulkhead_tier_waiting", "Calls of a tier that wait.", "tier", tiers(func(t resilience.TierStats) float64 { return number(t.Waiting) })),
		counters("bulkhead_granted_total", "Calls that got a slot.", "tier", tiers(func(t resilience.TierStats) float64 { return number(t.Granted) })),
		counters("bulkhead_rejected_total", "Calls sent away.", "tier", tiers(func(t resilience.TierStats) float64 { return number(t.Rejected) })),
		counters("bulkhead_displaced_total", "Calls that lost their place to a critical one.", "tier", tiers(func(t resilience.TierStats) float64 { return number(t.Displaced) })),
		counters("bulkhead_cancelled_total", "Calls that left before there was a slot.", "tier", tiers(func(t resilience.TierStats) float64 { return number(t.Cancelled) })),
		counters("bulkhead_waits_total", "Slots given to calls that had to wait.", "tier", tiers(func(t resilience.TierStats) float64 { return number(t.Waited) })),
		counters("bulkhead_wait_seconds_total", "How long those waited, together.", "tier", tiers(func(t resilience.TierStats) float64 { return t.WaitTotal.Seconds() })),
		gauges("bulkhead_longest_wait_seconds", "The longest of these waits.", "tier", tiers(func(t resilience.TierStats) float64 { return t.WaitMax.Seconds() })),
	}
}

func breakerMetrics() []metric {
	counts := func(of func(resilience.BreakerStats) resilience.BreakerCounts) func(at snapshot) values {
		return func(at snapshot) values {
			c := of(at.Breaker)
			return values{{"success", number(c.Successes)}, {"failure", number(c.Failures)}, {"slow", number(c.Slow)}}
		}
	}
	return []metric{
		gauges("breaker_state", "1 for the state that the shared circuit is in.", "state", func(at snapshot) values {
			is := func(s resilience.BreakerState) float64 { return flag(at.Breaker.State == s) }
			return values{
				{"closed", is(resilience.BreakerClosed)}, {"half-open", is(resilience.BreakerHalfOpen)}, {"open", is(resilience.BreakerOpen)},
			}
		}),
		gauge("breaker_forced", "1 while it is held by hand.", func(at snapshot) float64 { return flag(at.Breaker.Forced) }),
		gauge("breaker_failure_rate", "Of the calls in the window; not there while it is not known.", func(at snapshot) float64 { return unlessBelowZero(at.Breaker.FailureRate) }),
		gauge("breaker_slow_rate", "Of the calls in the window; not there while it is not known.", func(at snapshot) float64 { return unlessBelowZero(at.Breaker.SlowRate) }),
		gauges("breaker_window_calls", "Calls in the window; slow ones are among the others.", "outcome", counts(func(b resilience.BreakerStats) resilience.BreakerCounts { return b.Window })),
		gauges("breaker_last_trip_calls", "Calls in the window when the circuit opened last.", "outcome", counts(func(b resilience.BreakerStats) resilience.BreakerCounts { return b.LastTrip })),
		counters("breaker_calls_total", "Completed and refused calls.", "outcome", func(at snapshot) values {
			b := at.Breaker
			return values{
				{"success", number(b.Successes)}, {"failure", number(b.Failures)}, {"ignored", number(b.Ignored)}, {"rejected", number(b.Rejected)},
			}
		}),
		counters("breaker_transitions_total", "Changes of state.", "to", func(at snapshot) values {
			b := at.Breaker
			return values{{"open", number(b.Opened)}, {"half-open", number(b.HalfOpened)}, {"closed", number(b.Closed)}}
		}),
		gauge("breaker_open_since_timestamp_seconds", "Since when it is open; not there unless it is.", func(at snapshot) float64 { return instant(at.Breaker.OpenSince) }),
		gauge("breaker_retry_after_seconds", "Until a trial is due.", func(at snapshot) float64 { return at.Breaker.RetryAfter.Seconds() }),
		gauge("breaker_share", "Of the usual load that the circuit wants.", func(at snapshot) float64 { return at.Breaker.Share }),
		gauge("breaker_circuits", "Circuits made by BreakerConfig.Key.", func(at snapshot) float64 { return number(at.Breaker.Circuits) }),
		gauge("breaker_circuits_open", "Of these, not closed.", func(at snapshot) float64 { return number(at.Breaker.OpenCircuits) }),
	}
}

// healthMetrics are numbers that grow as things get worse: 0 not known, 1 healthy, 2 degraded, 3 unhealthy.
func healthMetrics() []metric {
	return []metric{
		gauge("health_status", "The whole: 0 not known, 1 healthy, 2 degraded, 3 unhealthy.", func(at snapshot) float64 { return number(int(at.report.Status)) }),
		gauges("health_component_status", "The worst reading of a component: 0 not known, 1 healthy, 2 degraded, 3 unhealthy.", "component", func(at snapshot) values {
			var v values
			place := map[string]int{}
			for _, c := range at.report.Checks {
				i, seen := place[c.Name]
				if !seen {
					i, place[c.Name] = len(v), len(v)
					v = append(v, values{{c.Name, 0}}...)
				}
				v[i].value = max(v[i].value, number(int(c.Status)))
			}
			return v
		}),
	}
}
