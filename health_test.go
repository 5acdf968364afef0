package resilience

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func healthOf(t *testing.T, cfg HealthConfig) *Health {
	t.Helper()
	h, err := NewHealth(cfg)
	require.NoError(t, err)
	return h
}

func codes(err error) func(context.Context) error {
	return func(context.Context) error { return err }
}

// watchOne adds a passive check with one reading.
func watchOne(h *Health, c CheckResult) {
	h.watch(c.Name, func(context.Context) []CheckResult { return []CheckResult{c} })
}

func TestHealthConfigNamesEveryFault(t *testing.T) {
	_, err := NewHealth(HealthConfig{ProbeEvery: -1, ProbeTimeout: -time.Second, WarnLetters: -2})
	require.ErrorContains(t, err, "Health.ProbeEvery")
	require.ErrorContains(t, err, "Health.ProbeTimeout")
	require.ErrorContains(t, err, "Health.WarnLetters")
}

func TestH01_AllFineIsHealthyWithAnEntryPerLayer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := healthOf(t, HealthConfig{Probe: func(context.Context) error { time.Sleep(30 * time.Millisecond); return nil }})
		names := []string{"timeout", "fallback", "keys", "dlq", "retry", "bulkhead", "circuit"}
		for _, name := range names {
			watchOne(h, CheckResult{Name: name, Status: Healthy, State: "ok", Value: 3, Unit: "things"})
		}
		h.watchers[0].look = func(context.Context) []CheckResult {
			time.Sleep(time.Millisecond)
			return []CheckResult{{Status: Healthy, State: "ok", Value: 3, Unit: "things"}}
		}
		r := h.Check(t.Context())
		require.Equal(t, Healthy, r.Status)
		require.Len(t, r.Checks, 1+len(names))
		for i, name := range names {
			c := r.Checks[i+1]
			require.Equal(t, name, c.Name)
			require.Equal(t, "ok", c.State)
			require.EqualValues(t, 3, c.Value)
			require.Equal(t, r.Time, c.Time)
		}
		require.Equal(t, time.Millisecond, r.Checks[1].Duration)
		api := r.Find("api")
		require.Equal(t, "ok", api.State)
		require.EqualValues(t, 30, api.Value)
		require.Equal(t, 30*time.Millisecond, api.Duration)
	})
}

func TestH02_OpenCircuitIsDegraded(t *testing.T) {
	h := healthOf(t, HealthConfig{Probe: codes(nil)})
	status, why := circuitStatus("open", false, false)
	watchOne(h, CheckResult{Name: "circuit", Status: status, State: "open", Message: why, RetryAfter: time.Second})
	require.Equal(t, Degraded, h.Check(t.Context()).Status)

	// The same when the probe goes through the open circuit: our refusal says nothing about the other side.
	h.probe.ask = askProbe(codes(&Error{Layer: "breaker", Err: ErrOpen, RetryAfter: time.Second, verdict: refused}))
	h.probe.run = nil
	r := h.Check(t.Context())
	require.Equal(t, Degraded, r.Status)
	require.Equal(t, Unknown, r.Find("api").Status)
}

func TestH03_CircuitStates(t *testing.T) {
	for _, c := range []struct {
		state               string
		forced, metricsOnly bool
		want                Status
		note                string
	}{
		{"closed", false, false, Healthy, ""},
		{"half-open", false, false, Degraded, "trial"},
		{"open", false, false, Degraded, "refused"},
		{"open", true, false, Degraded, "manual"},
		{"open", true, true, Degraded, "manual"},
		{"closed", true, false, Unknown, "manual"},
		{"closed", false, true, Unknown, "metrics only"},
		{"", false, false, Unknown, "not known"},
	} {
		status, why := circuitStatus(c.state, c.forced, c.metricsOnly)
		require.Equal(t, c.want, status, c)
		require.Contains(t, why, c.note, c)
	}
}

func TestH06_NoProbeOrNoResultIsUnknown(t *testing.T) {
	h := healthOf(t, HealthConfig{})
	require.Equal(t, Unknown, h.Check(t.Context()).Status)
	h.watch("nothing", func(context.Context) []CheckResult { return nil })
	h.watch("nobody", nil)
	require.Equal(t, Unknown, h.Check(t.Context()).Status)
	watchOne(h, CheckResult{Name: "dlq", Status: Healthy})
	r := h.Check(t.Context())
	require.Equal(t, Healthy, r.Status, "unknown does not win")
	for _, name := range []string{"api", "nothing", "nobody"} {
		require.Equal(t, Unknown, r.Find(name).Status)
		require.NotEmpty(t, r.Find(name).Message)
	}

	var none *Health
	require.Equal(t, Unknown, none.Check(t.Context()).Status)
}

func TestH07_PanicsStayWithTheirComponent(t *testing.T) {
	for state, probe := range map[string]func(context.Context) error{
		"panic":  func(context.Context) error { panic("+15555550100") },
		"exited": func(context.Context) error { runtime.Goexit(); return nil },
	} {
		h := healthOf(t, HealthConfig{Probe: probe})
		h.watch("dlq", func(context.Context) []CheckResult { panic("+15555550100") })
		watchOne(h, CheckResult{Name: "circuit", Status: Healthy})
		r := h.Check(t.Context())
		require.Equal(t, Unhealthy, r.Status)
		require.Equal(t, state, r.Find("api").State)
		require.Equal(t, Unhealthy, r.Find("dlq").Status)
		require.Equal(t, Healthy, r.Find("circuit").Status)
		require.NotContains(t, fmt.Sprintf("%+v", r), "+1415")
	}
}

func TestH08_LettersWarnAboveTheLimit(t *testing.T) {
	warn := healthOf(t, HealthConfig{}).warnLetters
	for _, c := range []struct {
		letters, warn, parked, room int
		want                        Status
	}{
		{0, warn, 0, 10000, Healthy},
		{100, warn, 0, 10000, Healthy},
		{101, warn, 0, 10000, Degraded},
		{100, warn, 100, 10000, Healthy},
		{5000, -1, 0, 10000, Healthy},
		{8000, -1, 0, 10000, Degraded},
		{7999, -1, 0, 10000, Healthy},
		{5000, -1, 0, -1, Healthy},
		{40, warn, 0, 50, Degraded},
	} {
		status, why := letterStatus(c.letters, c.warn, c.parked, c.room)
		require.Equal(t, c.want, status, c)
		require.Equal(t, c.want != Healthy || c.parked > 0, why != "", c)
	}
}

func TestH10_WorstWinsAndUnknownDoesNot(t *testing.T) {
	for _, c := range []struct {
		in   []Status
		want Status
	}{
		{nil, Unknown},
		{[]Status{Unknown, Unknown}, Unknown},
		{[]Status{Unknown, Healthy}, Healthy},
		{[]Status{Degraded, Healthy, Unknown}, Degraded},
		{[]Status{Healthy, Unhealthy, Degraded}, Unhealthy},
		{[]Status{Healthy, 200}, Unhealthy},
	} {
		checks := make([]CheckResult, len(c.in))
		for i, s := range c.in {
			checks[i].Status = s
		}
		require.Equal(t, c.want, newReport(checks).Status, c)
	}
}

func TestH10_MakingOneComponentWorseNeverImproves(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		checks := make([]CheckResult, 1+random.IntN(6))
		for i := range checks {
			checks[i].Status = Status(random.IntN(4))
		}
		before := newReport(checks).Status
		one := random.IntN(len(checks))
		checks[one].Status += Status(random.IntN(4 - int(checks[one].Status)))
		require.GreaterOrEqual(t, newReport(checks).Status, before)
	}
}

func TestH13_QueuesShedsAndAbandonedWork(t *testing.T) {
	for _, c := range []struct {
		waiting, room int
		want          Status
	}{
		{0, 100, Healthy}, {80, 100, Healthy}, {81, 100, Degraded}, {5000, -1, Healthy}, {0, 0, Healthy}, {1, 1, Degraded},
	} {
		status, why := queueStatus(c.waiting, c.room)
		require.Equal(t, c.want, status, c)
		require.Equal(t, c.want == Degraded, why != "", c)
	}
	status, _ := shedStatus(0)
	require.Equal(t, Healthy, status)
	status, _ = shedStatus(1)
	require.Equal(t, Degraded, status)
	status, why := abandonedStatus(2, 17)
	require.Equal(t, Healthy, status)
	require.Contains(t, why, "2")
	status, _ = abandonedStatus(17, 17)
	require.Equal(t, Degraded, status)
	status, why = abandonedStatus(0, 17)
	require.Equal(t, Healthy, status)
	require.Empty(t, why)
}

func TestHealthKeys(t *testing.T) {
	for age, want := range map[time.Duration]Status{0: Healthy, longInDoubt: Healthy, longInDoubt + 1: Degraded} {
		status, _ := doubtAgeStatus(age)
		require.Equal(t, want, status)
	}
	for keys, want := range map[int]Status{0: Healthy, 1: Degraded} {
		status, _ := disputedStatus(keys)
		require.Equal(t, want, status)
	}
	require.Equal(t, Healthy, storeReading(false).Status)
	require.Equal(t, Unhealthy, storeReading(true).Status)
	require.Equal(t, "down", storeReading(true).State)
}

func TestH14_TheObviousExpressionWorks(t *testing.T) {
	h := healthOf(t, HealthConfig{Probe: codes(nil)})
	watchOne(h, CheckResult{Name: "circuit", Measure: "state", Status: Degraded, State: "open"})
	watchOne(h, CheckResult{Name: "dlq", Measure: "letters", Status: Degraded, Value: 101, Unit: "letters"})
	r := h.Check(t.Context())
	require.True(t, r.Find("circuit").State == "open")
	require.True(t, r.Find("dlq").Value > 100)
	require.Equal(t, "degraded", r.Status.String())
	require.Equal(t, "unknown(9)", Status(9).String())
	require.Equal(t, CheckResult{}, r.Find("absent"))
}

func TestHealthChangeIsToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var changes []string
		var events []Event
		var err error
		h := healthOf(t, HealthConfig{
			Probe:    func(context.Context) error { time.Sleep(time.Millisecond); return err },
			OnChange: func(old, new Report) { changes = append(changes, old.Status.String()+">"+new.Status.String()) },
			OnEvent:  func(e Event) { events = append(events, e) },
		})
		look := func() { h.Check(t.Context()); h.Check(t.Context()); time.Sleep(10 * time.Second); synctest.Wait() }
		look()
		err = errors.New("down")
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		h.Check(gone) // sees only "unknown", which is the reader's haste and no change
		look()
		err = nil
		look()
		require.Equal(t, []string{"unknown>healthy", "healthy>unhealthy", "unhealthy>healthy"}, changes)
		require.Len(t, events, 3)
		require.Equal(t, Event{
			Kind: EventHealthChanged, Layer: "health", From: "healthy", To: "unhealthy", Cause: "api", Time: events[1].Time,
		}, events[1])
	})
}

func TestHealthSlowOldReadingDoesNotUndoANewerOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var changes []Status
		h := healthOf(t, HealthConfig{OnChange: func(_, new Report) { changes = append(changes, new.Status) }})
		h.publish(2, Report{Status: Degraded})
		h.publish(1, Report{Status: Healthy})
		synctest.Wait()
		require.Equal(t, []Status{Degraded}, changes)
	})
}

func TestHealthRefreshKeepsTheAnswerFresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		probes := 0
		h := healthOf(t, HealthConfig{Probe: func(context.Context) error { probes++; time.Sleep(time.Second); return nil }})
		for range 5 {
			time.Sleep(h.refresh(t.Context()))
		}
		require.Equal(t, 5, probes)
		require.Equal(t, 10*time.Second, healthOf(t, HealthConfig{}).refresh(t.Context()), "without a probe too")
	})
}
