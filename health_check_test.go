package resilience

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func one(c CheckResult) func(context.Context) []CheckResult {
	return func(context.Context) []CheckResult { return []CheckResult{c} }
}

func TestHealthCheckConfigNamesEveryFault(t *testing.T) {
	_, err := NewHealth(HealthConfig{Checks: []HealthCheck{
		{Name: ""}, {Name: "dlq"}, {Name: "api"}, {Name: "db"}, {Name: "db", Every: -1, Timeout: -1}, {Name: "a:b"}, {Name: "fine"},
	}})
	for _, field := range []string{
		"Checks[0].Name", "Checks[1].Name", "Checks[2].Name", "Checks[4].Name", "Checks[4].Every", "Checks[4].Timeout", "Checks[5].Name",
	} {
		require.ErrorContains(t, err, "Health."+field)
	}
	require.NotContains(t, err.Error(), "Checks[3]")
	require.NotContains(t, err.Error(), "Checks[6]")
}

func TestHealthChecksAreShownWithTheirAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rows := []CheckResult{{Measure: "open", Status: Healthy, Value: 3, Unit: "files"}, {Name: "else", Measure: "x", Status: Degraded, RetryAfter: 20 * time.Second}}
		h := healthOf(t, HealthConfig{Checks: []HealthCheck{
			{Name: "disk", Run: func(context.Context) []CheckResult { time.Sleep(time.Second); return rows }},
			{Name: "left out"}, {Name: "mute", Run: func(context.Context) []CheckResult { return nil }},
		}})
		started := time.Now()
		r := h.Check(t.Context())
		require.Zero(t, time.Since(started), "nobody waits")
		require.Equal(t, Unknown, r.Status)
		require.Equal(t, "asking", r.Find("disk").State)
		require.Equal(t, CheckResult{}, r.Find("left out"))
		time.Sleep(3 * time.Second)
		synctest.Wait()
		rows[0].Value = 99 // the check's own
		r = h.Check(t.Context())
		require.Equal(t, Degraded, r.Status)
		require.Len(t, r.Checks, 4)
		disk := r.Checks[1:]
		require.Equal(t, "disk", disk[1].Name, "all are under the name of the check")
		require.EqualValues(t, 3, disk[0].Value)
		require.Equal(t, 2*time.Second, disk[0].Age)
		require.Equal(t, time.Second, disk[0].Duration)
		require.Equal(t, 18*time.Second, disk[1].RetryAfter)
		require.Equal(t, "no reading", r.Find("mute").Message)
		time.Sleep(time.Second)
		synctest.Wait()
	})
}

func TestH09_ManyReadsOneRunOfEachCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var runs, together, most atomic.Int32
		run := func(context.Context) []CheckResult {
			runs.Add(1)
			most.Store(max(most.Load(), together.Add(1)))
			defer together.Add(-1)
			time.Sleep(1500 * time.Millisecond)
			return []CheckResult{{Status: Healthy, State: "ok"}}
		}
		h := healthOf(t, HealthConfig{Checks: []HealthCheck{{Name: "db", Run: run, Every: 10 * time.Second}}})
		var wg sync.WaitGroup
		for i := range 30_000 {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * time.Millisecond)
				started := time.Now()
				h.Check(t.Context())
				require.Zero(t, time.Since(started))
			})
		}
		wg.Wait()
		require.LessOrEqual(t, runs.Load(), int32(3), "a thousand reads each second for half a minute")
		require.GreaterOrEqual(t, runs.Load(), int32(2))
		require.EqualValues(t, 1, most.Load())
	})
}

func TestH05_AnOldAnswerOfACheckIsShownForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var status atomic.Int32
		status.Store(int32(Healthy))
		h := healthOf(t, HealthConfig{Checks: []HealthCheck{{Name: "db", Run: func(context.Context) []CheckResult {
			time.Sleep(time.Millisecond)
			return []CheckResult{{Status: Status(status.Load()), State: "seen"}}
		}}}})
		look := func() CheckResult { return h.Check(t.Context()).Find("db") }
		look()
		time.Sleep(30 * time.Second)
		require.Equal(t, Healthy, look().Status, "old, and the next is due")
		time.Sleep(32*time.Second + time.Millisecond)
		c := look()
		require.Equal(t, Unknown, c.Status)
		require.Equal(t, "stale", c.State)
		require.Equal(t, 32*time.Second, c.Age)
		status.Store(int32(Unhealthy))
		time.Sleep(time.Hour)
		look()
		time.Sleep(time.Hour)
		c = look()
		require.Equal(t, Unhealthy, c.Status, "an old failure stands until it is refuted")
		require.Equal(t, time.Hour-time.Millisecond, c.Age)
		time.Sleep(time.Second)
	})
}

func TestH07_ChecksThatMisbehaveHarmOnlyThemselves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		runs := map[string]func(context.Context) []CheckResult{
			"panic":  func(context.Context) []CheckResult { panic("+15555550100") },
			"exited": func(context.Context) []CheckResult { runtime.Goexit(); return nil },
			"timeout": func(context.Context) []CheckResult {
				<-release
				return []CheckResult{{Status: Healthy, State: "late"}}
			},
		}
		for state, run := range runs {
			for _, optional := range []bool{false, true} {
				h := healthOf(t, HealthConfig{Probe: codes(nil), Checks: []HealthCheck{
					{Name: "bad", Run: run, Optional: optional}, {Name: "good", Run: one(CheckResult{Status: Healthy})},
				}})
				want := map[bool]Status{false: Unhealthy, true: Unknown}[optional]
				h.Check(t.Context())
				time.Sleep(2 * time.Second)
				started := time.Now()
				for range 3 {
					r := h.Check(t.Context())
					require.Equal(t, state, r.Find("bad").State)
					require.Equal(t, want, r.Find("bad").Status, state)
					require.Equal(t, Healthy, r.Find("good").Status)
					require.Equal(t, max(want, Healthy), r.Status)
					require.Equal(t, max(want, Healthy) == Unhealthy, ask(h, "GET", "").Code == 503)
				}
				require.Zero(t, time.Since(started), "nobody waits for it")
				h.refresh(t.Context())
				require.Zero(t, time.Since(started), "nor does the background")
			}
		}
		close(release)
		synctest.Wait()
	})
}

func TestHealthStuckCheckIsNotStartedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		var runs atomic.Int32
		h := healthOf(t, HealthConfig{Checks: []HealthCheck{{Name: "db", Run: func(context.Context) []CheckResult {
			runs.Add(1)
			<-release
			return []CheckResult{{Status: Healthy}}
		}}}})
		for range 100 {
			h.Check(t.Context())
			time.Sleep(time.Second)
		}
		require.EqualValues(t, 1, runs.Load())
		require.Contains(t, h.Check(t.Context()).Find("db").Message, "not started again")
		close(release)
		synctest.Wait()
		h.Check(t.Context())
		synctest.Wait()
		require.Equal(t, Healthy, h.Check(t.Context()).Status)
		require.EqualValues(t, 2, runs.Load())
	})
}

func TestHealthRefreshKeepsTheChecksFresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		runs := map[string]int{}
		var mu sync.Mutex
		check := func(name string, every time.Duration) HealthCheck {
			return HealthCheck{Name: name, Every: every, Run: func(context.Context) []CheckResult {
				mu.Lock()
				defer mu.Unlock()
				runs[name]++
				return []CheckResult{{Status: Healthy}}
			}}
		}
		var changes []Status
		h := healthOf(t, HealthConfig{
			Checks: []HealthCheck{check("often", time.Second), check("seldom", 20*time.Second)}, ProbeEvery: 5 * time.Second,
			OnChange: func(_, r Report) { changes = append(changes, r.Status) },
		})
		for ends := time.Now().Add(time.Minute); time.Now().Before(ends); {
			time.Sleep(h.refresh(t.Context()))
		}
		synctest.Wait()
		require.Equal(t, map[string]int{"often": 60, "seldom": 3}, runs)
		require.Equal(t, []Status{Healthy}, changes, "the background waits for the answer, so nothing is unknown in between")
	})
}

func TestHealthRulesNameEveryFault(t *testing.T) {
	_, err := NewHealth(HealthConfig{
		Checks: []HealthCheck{{Name: "db"}},
		Rules: map[string]HealthRule{
			"circiut": {}, "dlq:leters": {}, "": {}, ":": {},
			"dlq":           {DegradedFrom: -2, UnhealthyFrom: -1},
			"keys:oldest":   {DegradedFrom: 10, UnhealthyFrom: 9},
			"circuit:state": {States: map[string]Status{"open": 9}},
			"db:whatever":   {DegradedFrom: -1, UnhealthyFrom: 1}, "db": {Mute: true}, "api": {}, "latency:p99": {DegradedFrom: 500},
		},
	})
	for _, want := range []string{
		`Rules["circiut"]`, `Rules["dlq:leters"]`, `Rules[""]`, `Rules[":"]`, `Rules["dlq"].DegradedFrom`, `Rules["dlq"].UnhealthyFrom`,
		`Rules["keys:oldest"].UnhealthyFrom`, `Rules["circuit:state"].States["open"]`,
	} {
		require.ErrorContains(t, err, "Health."+want+":")
	}
	for _, fine := range []string{`"db`, `"api`, `"latency`} {
		require.NotContains(t, err.Error(), fine)
	}
}

func TestHealthRulesHaveTheLastWord(t *testing.T) {
	open := CheckResult{Name: "circuit", Measure: "state", Status: Degraded, State: "open"}
	half := CheckResult{Name: "circuit", Measure: "state", Status: Degraded, State: "half-open"}
	count := func(status Status, value float64) CheckResult {
		return CheckResult{Name: "dlq", Measure: "letters", Status: status, State: "ok", Value: value, Unit: "letters"}
	}
	slow := CheckResult{Name: "api", Measure: "responseTime", Status: Degraded, State: "status 402", Value: 1, Unit: "ms"}
	unseen := CheckResult{Name: "db", Status: Unknown, State: "stale", Value: 5, Unit: "rows"}
	states := func(state string, s Status) HealthRule { return HealthRule{States: map[string]Status{state: s}} }
	for i, c := range []struct {
		rules map[string]HealthRule
		in    CheckResult
		want  Status
	}{
		{nil, open, Degraded},
		{map[string]HealthRule{"circuit:state": states("open", Unhealthy)}, open, Unhealthy},
		{map[string]HealthRule{"circuit": states("open", Unhealthy)}, open, Unhealthy},
		{map[string]HealthRule{"circuit": states("open", Unhealthy), "circuit:state": {}}, open, Degraded},
		{map[string]HealthRule{"circuit:state": states("open", Unhealthy)}, half, Degraded},
		{map[string]HealthRule{"circuit": {Mute: true}}, open, Unknown},
		{map[string]HealthRule{"dlq:letters": {DegradedFrom: 1000}}, count(Degraded, 999), Healthy},
		{map[string]HealthRule{"dlq:letters": {DegradedFrom: 1000}}, count(Degraded, 1000), Degraded},
		{map[string]HealthRule{"dlq:letters": {DegradedFrom: 10}}, count(Healthy, 10), Degraded},
		{map[string]HealthRule{"dlq:letters": {DegradedFrom: -1}}, count(Degraded, 1e6), Healthy},
		{map[string]HealthRule{"dlq:letters": {UnhealthyFrom: 50}}, count(Degraded, 49), Degraded},
		{map[string]HealthRule{"dlq:letters": {UnhealthyFrom: 50}}, count(Healthy, 50), Unhealthy},
		{map[string]HealthRule{"dlq:letters": {DegradedFrom: -1, UnhealthyFrom: 50}}, count(Degraded, 49), Healthy},
		{map[string]HealthRule{"api": {DegradedFrom: 100}}, slow, Degraded}, // its state has said what is wrong
		{map[string]HealthRule{"api": states("status 402", Unhealthy)}, slow, Unhealthy},
		{map[string]HealthRule{"db": {DegradedFrom: 1, States: map[string]Status{"stale": Healthy}}}, unseen, Unknown},
		{map[string]HealthRule{"db": states("stale", Unhealthy)}, unseen, Unhealthy},
		{map[string]HealthRule{"dlq:parked": {Mute: true}}, count(Degraded, 5), Degraded},
	} {
		h := healthOf(t, HealthConfig{Rules: c.rules, Checks: []HealthCheck{{Name: "db"}}})
		watchOne(h, c.in)
		got := h.Check(t.Context()).Find(c.in.Name)
		if c.in.Name == "api" {
			got = h.Check(t.Context()).Checks[1]
		}
		require.Equal(t, c.want, got.Status, i)
		require.Equal(t, c.in.Value, got.Value, "the number itself stays")
		if got.Status != c.in.Status {
			require.Contains(t, got.Message, "rule", i)
		}
	}
}

// The rules that hold unless the user says otherwise: where more of a reading is worse, more of it never looks better, and
// without a rule nothing is changed. A threshold of the user's keeps that.
func TestH10_MoreOfABadThingNeverImproves(t *testing.T) {
	status := func(s Status, _ string) Status { return s }
	judges := map[string]func(n int) Status{
		"letters":   func(n int) Status { return status(letterStatus(n, 100, 0, 150)) },
		"queue":     func(n int) Status { return status(queueStatus(n, 100)) },
		"shed":      func(n int) Status { return status(shedStatus(n)) },
		"abandoned": func(n int) Status { return status(abandonedStatus(n, 17)) },
		"oldest":    func(n int) Status { return status(doubtAgeStatus(time.Duration(n) * time.Minute)) },
		"disputed":  func(n int) Status { return status(disputedStatus(n)) },
		"unwritten": func(n int) Status { return status(unwrittenStatus(n)) },
	}
	for name, judge := range judges {
		for _, rule := range []HealthRule{{}, {DegradedFrom: 7}, {DegradedFrom: -1}, {UnhealthyFrom: 50}, {DegradedFrom: 9, UnhealthyFrom: 120}} {
			before := Unknown
			for n := range 200 {
				c := CheckResult{Status: judge(n), Value: float64(n), Unit: "things"}
				now := rule.judge(c)
				require.GreaterOrEqual(t, now.Status, before, "%s %d %+v", name, n, rule)
				before = now.Status
				if rule.DegradedFrom == 0 && rule.UnhealthyFrom == 0 {
					require.Equal(t, c, now)
				}
			}
		}
	}
}

func TestHealthRulesCannotBeChangedLater(t *testing.T) {
	rules := map[string]HealthRule{"circuit": {States: map[string]Status{"open": Unhealthy}}}
	h := healthOf(t, HealthConfig{Rules: rules})
	watchOne(h, CheckResult{Name: "circuit", Status: Degraded, State: "open"})
	rules["circuit"].States["open"] = Healthy
	delete(rules, "circuit")
	require.Equal(t, Unhealthy, h.Check(t.Context()).Status)
}

// Every reading of a whole stack can be named in a rule, and every name is one of a reading.
func TestHealthReadingsAreTheListedOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Health: HealthConfig{Probe: codes(errors.New("down"))}})
		resp, err := fetch(t.Context(), t, s.Wrap(slow(30*time.Millisecond)))
		require.NoError(t, err)
		require.Equal(t, 200, resp.StatusCode)
		r := s.Health().Check(t.Context())
		found := map[string]map[string]bool{}
		for _, c := range r.Checks {
			if found[c.Name] == nil {
				found[c.Name] = map[string]bool{}
			}
			found[c.Name][c.Measure] = true
			require.Contains(t, layerReadings[c.Name], c.Measure)
			require.True(t, c.State != "" || c.Unit != "", c)
		}
		for name, measures := range layerReadings {
			require.Len(t, found[name], len(measures), name)
		}
		for _, c := range r.Checks {
			if c.Name == "latency" && c.Unit == "ms" {
				require.Equal(t, "request", c.Instance)
				require.InDelta(t, 30, c.Value, 6)
			}
		}
	})
}
