package resilience

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// steadied is a Health with one rule, for the check "db", and a way to say what that check reads now.
func steadied(t *testing.T, worse, better time.Duration) (h *Health, now func(...Status)) {
	t.Helper()
	h = healthOf(t, HealthConfig{
		Checks: []HealthCheck{{Name: "db"}}, Rules: map[string]HealthRule{"db": {WorseAfter: worse, BetterAfter: better}},
	})
	var list []CheckResult
	h.watch("db", func(context.Context) []CheckResult { return list })
	return h, func(statuses ...Status) {
		list = nil
		for i, s := range statuses {
			list = append(list, CheckResult{Measure: "rows", Instance: strconv.Itoa(i), Status: s, State: "seen", Message: "why"})
		}
	}
}

func TestHealthSteadyNamesEveryFault(t *testing.T) {
	_, err := NewHealth(HealthConfig{Rules: map[string]HealthRule{"api": {WorseAfter: -1}, "dlq": {BetterAfter: -time.Second}}})
	require.ErrorContains(t, err, `Health.Rules["api"].WorseAfter: must be positive or 0`)
	require.ErrorContains(t, err, `Health.Rules["dlq"].BetterAfter: must be positive or 0`)
}

func TestHealthWithoutSteadinessOneFailedProbeCountsAndSoDoesTheNextGoodOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var err error
		h := healthOf(t, HealthConfig{Probe: func(context.Context) error { return err }, Rules: map[string]HealthRule{"api": {}}})
		for i := range 6 {
			want := Healthy
			if err = nil; i%2 == 1 {
				err, want = errors.New("down"), Unhealthy
			}
			r := h.Check(t.Context())
			require.Equal(t, want, r.Status)
			require.Equal(t, want, r.Find("api").Seen)
			require.Zero(t, r.Find("api").SeenSince)
			time.Sleep(10 * time.Second)
		}
	})
}

func TestHealthWorseMustLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, set := steadied(t, 30*time.Second, 0)
		look := func() CheckResult { return h.Check(t.Context()).Find("db") }
		set(Healthy)
		require.Equal(t, Healthy, look().Status)
		set(Unhealthy)
		began := time.Now()
		c := look()
		require.Equal(t, Healthy, c.Status)
		require.Equal(t, Unhealthy, c.Seen)
		require.Equal(t, began, c.SeenSince)
		time.Sleep(20 * time.Second)
		set(Healthy)
		require.Equal(t, Healthy, look().Status)
		require.Zero(t, look().SeenSince, "it has not lasted")
		set(Unhealthy)
		look()
		time.Sleep(30*time.Second - 1)
		c = look()
		require.Equal(t, Healthy, c.Status)
		require.Equal(t, "unhealthy for 30s, which counts after 30s: why", c.Message)
		time.Sleep(1)
		c = look()
		require.Equal(t, Unhealthy, c.Status)
		require.Equal(t, Unhealthy, c.Seen)
		require.Zero(t, c.SeenSince)
		require.Equal(t, "why", c.Message)
		set(Healthy)
		require.Equal(t, Healthy, look().Status, "BetterAfter is 0: at once")
	})
}

func TestHealthBetterMustLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, set := steadied(t, 0, 15*time.Second)
		look := func() Report { return h.Check(t.Context()) }
		set(Healthy, Unhealthy)
		require.Equal(t, Unhealthy, look().Status, "the first reading counts at once")
		set(Healthy, Healthy)
		look()
		time.Sleep(15*time.Second - 1)
		r := look()
		require.Equal(t, Unhealthy, r.Status)
		require.Equal(t, Healthy, r.Checks[1].Status)
		bad := r.Checks[2]
		require.Equal(t, "1", bad.Instance, "the one that was bad keeps it")
		require.Equal(t, Unhealthy, bad.Status)
		require.Equal(t, Healthy, bad.Seen)
		require.Equal(t, "healthy for 15s, which counts after 15s: why", bad.Message)
		set(Healthy, Degraded)
		require.Equal(t, Unhealthy, look().Status, "better than unhealthy for as long, but not for long enough")
		time.Sleep(1)
		require.Equal(t, Degraded, look().Status)
		set(Healthy)
		look()
		time.Sleep(15*time.Second - 1)
		r = look()
		require.Equal(t, Degraded, r.Checks[1].Status, "that one is gone: the main reading has it")
		time.Sleep(1)
		require.Equal(t, Healthy, look().Status)
	})
}

func TestHealthBackAndForthBetweenTwoBadStatesIsTheMilderOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, set := steadied(t, 10*time.Second, 10*time.Second)
		set(Healthy)
		h.Check(t.Context())
		var last Status
		for i := range 40 {
			set([]Status{Degraded, Unhealthy}[i/5%2])
			r := h.Check(t.Context())
			if last = r.Status; i%10 >= 5 {
				require.Equal(t, time.Duration(i%5)*time.Second, time.Since(r.Find("db").SeenSince), "unhealthy only since then")
			}
			if i < 10 {
				require.Equal(t, Healthy, last, i)
			} else {
				require.Equal(t, Degraded, last, i)
			}
			time.Sleep(time.Second)
		}
		set(Unhealthy)
		h.Check(t.Context())
		time.Sleep(10 * time.Second)
		require.Equal(t, Unhealthy, h.Check(t.Context()).Status)
	})
}

func TestHealthUnknownProvesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, set := steadied(t, 30*time.Second, 15*time.Second)
		look := func(s Status) CheckResult { set(s); return h.Check(t.Context()).Find("db") }
		require.Equal(t, Unknown, look(Unknown).Status)
		require.Equal(t, Degraded, look(Degraded).Status, "the first that was seen counts at once")

		h, set = steadied(t, 30*time.Second, 15*time.Second)
		require.Equal(t, Unknown, look(Unknown).Status)
		require.Equal(t, Healthy, look(Healthy).Status, "the first that was seen counts at once")
		require.Equal(t, Unknown, look(Unknown).Status, "never shown as healthy")
		require.Zero(t, look(Unknown).SeenSince)

		look(Unhealthy)
		time.Sleep(20 * time.Second)
		require.Equal(t, Unknown, look(Unknown).Status)
		time.Sleep(9 * time.Second)
		require.Equal(t, Healthy, look(Unhealthy).Status)
		time.Sleep(time.Second)
		require.Equal(t, Unknown, look(Unknown).Status, "it is the bad reading that counts, not the time")
		require.Equal(t, Unhealthy, look(Unhealthy).Status, "unknown in between does not end it")

		c := look(Unknown)
		require.Equal(t, Unhealthy, c.Status)
		require.Equal(t, Unknown, c.Seen)
		time.Sleep(15 * time.Second)
		require.Equal(t, Unknown, look(Unknown).Status, "but it is not bad either")
	})
}

func TestHealthWhatNobodyLookedAtGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, set := steadied(t, 30*time.Second, 30*time.Second)
		look := func(s Status) Status { set(s); return h.Check(t.Context()).Status }
		look(Healthy)
		time.Sleep(time.Hour)
		require.Equal(t, Healthy, look(Unhealthy), "it was healthy for that hour, as far as anybody knows")
		time.Sleep(time.Hour)
		require.Equal(t, Unhealthy, look(Unhealthy), "and unhealthy for this one")
	})
}

// Read a thousand times per second or once: the same statuses at the same times.
func TestHealthHowOftenItIsReadMakesNoDifference(t *testing.T) {
	random := rand.New(rand.NewPCG(7, 7))
	var course []Status // one for each second
	for range 30 {
		s := Status(random.IntN(4))
		for range 1 + random.IntN(9) {
			course = append(course, s)
		}
	}
	seldom, often := courseOf(t, course, time.Second), courseOf(t, course, time.Millisecond)
	require.Equal(t, seldom, often)
	found := map[Status]int{}
	for _, s := range seldom {
		found[s]++
	}
	require.Len(t, found, 4, "all of them occur")
}

// courseOf returns what counts at each full second of a course.
func courseOf(t *testing.T, course []Status, every time.Duration) (counts []Status) {
	synctest.Test(t, func(t *testing.T) {
		h, set := steadied(t, 6*time.Second, 4*time.Second)
		for _, s := range course {
			set(s)
			for at := time.Duration(0); at < time.Second; at += every {
				status := h.Check(t.Context()).Find("db").Status
				if at == 0 {
					counts = append(counts, status)
				}
				time.Sleep(every)
			}
		}
	})
	return counts
}

// Making what is seen worse at any time never makes what counts better, whatever the times.
func TestH10_SteadyReadingsAreMonotone(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 9))
	for range 60 {
		worse, better := time.Duration(random.IntN(5))*time.Second, time.Duration(random.IntN(5))*time.Second
		one := steadyRule{worseAfter: worse, betterAfter: better}
		two := one
		now := time.Now()
		for range 60 {
			seen := Healthy + Status(random.IntN(3)) // unknown is not better and not worse
			up := seen + Status(random.IntN(int(Unhealthy-seen)+1))
			one.look(&CheckResult{Status: seen}, now)
			two.look(&CheckResult{Status: up}, now)
			require.GreaterOrEqual(t, two.counts(), one.counts())
			require.False(t, one.unhealthy.reached && !one.degraded.reached)
			now = now.Add(time.Duration(random.IntN(3)) * time.Second)
		}
	}
}

func TestHealthInstancesThatComeAndGoLeaveNothingBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, _ := steadied(t, 10*time.Second, 10*time.Second)
		n := 0
		h.watchers[0].look = func(context.Context) []CheckResult {
			n++
			return []CheckResult{{Measure: "of " + strconv.Itoa(n), Instance: strconv.Itoa(n), Status: Degraded}}
		}
		h.watch("db", func(context.Context) []CheckResult { return []CheckResult{{Measure: "main", Status: Healthy}} })
		for range 2000 {
			h.Check(t.Context())
		}
		require.Len(t, h.steady.rules, 1)
		require.Equal(t, Degraded, h.Check(t.Context()).Status)
		h.watchers[0].look = func(context.Context) []CheckResult { return []CheckResult{{Measure: "main", Status: Healthy}} }
		require.Equal(t, Degraded, h.Check(t.Context()).Find("db").Status)
	})
}

func TestHealthEachRuleHasItsOwnTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := healthOf(t, HealthConfig{Rules: map[string]HealthRule{
			"dlq": {WorseAfter: time.Minute}, "dlq:letters": {WorseAfter: 10 * time.Second}, "keys:store": {Mute: true, WorseAfter: time.Second},
		}})
		bad := Healthy
		h.watch("dlq", func(context.Context) []CheckResult {
			return []CheckResult{{Measure: "letters", Status: bad}, {Measure: "parked", Status: bad}, {Measure: "oldest", Status: bad}}
		})
		h.watch("keys", func(context.Context) []CheckResult {
			return []CheckResult{{Measure: "oldest", Status: bad}, {Measure: "store", Status: bad}}
		})
		h.Check(t.Context())
		bad = Degraded
		statuses := func() (list []Status) {
			for _, c := range h.Check(t.Context()).Checks[1:] {
				list = append(list, c.Status)
			}
			return list
		}
		require.Equal(t, []Status{Healthy, Healthy, Healthy, Degraded, Unknown}, statuses(), "the rest counts at once; muted is muted")
		time.Sleep(10 * time.Second)
		require.Equal(t, []Status{Degraded, Healthy, Healthy, Degraded, Unknown}, statuses())
		time.Sleep(50 * time.Second)
		require.Equal(t, []Status{Degraded, Degraded, Degraded, Degraded, Unknown}, statuses())
	})
}

func TestHealthAHurriedOrLateReaderMovesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pause := time.Duration(0)
		h := healthOf(t, HealthConfig{
			Probe:  func(context.Context) error { time.Sleep(pause); return nil },
			Checks: []HealthCheck{{Name: "db"}}, Rules: map[string]HealthRule{"db": {WorseAfter: time.Minute}},
		})
		status := Healthy
		h.watch("db", func(context.Context) []CheckResult { return []CheckResult{{Status: status}} })
		h.Check(t.Context())
		time.Sleep(10 * time.Second)
		pause, status = time.Second, Unhealthy
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		c := h.Check(gone).Find("db")
		require.Equal(t, Healthy, c.Status)
		require.Equal(t, Unhealthy, c.Seen, "shown as well as it can be")
		require.Equal(t, time.Now(), c.SeenSince)
		require.Zero(t, h.steady.rules["db"].unhealthy.since, "but not noted")
		time.Sleep(time.Second)
		h.Check(t.Context())
		since := h.steady.rules["db"].unhealthy.since
		require.Equal(t, time.Now(), since)
		old := []CheckResult{{Name: "db", Status: Healthy}}
		h.judge(old, 1, true) // a look that began before that one
		require.Equal(t, since, h.steady.rules["db"].unhealthy.since)
	})
}

func TestHealthChangeIsToldWhenItCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down atomic.Bool
		var changes []string
		began := time.Now()
		h := healthOf(t, HealthConfig{
			Probe: func(context.Context) error {
				if down.Load() {
					return errors.New("down")
				}
				return nil
			},
			Rules: map[string]HealthRule{"api": {WorseAfter: 25 * time.Second, BetterAfter: 15 * time.Second}},
			OnChange: func(old, new Report) {
				changes = append(changes, fmt.Sprint(time.Since(began), " ", old.Status, " ", new.Status))
			},
			OnEvent: func(e Event) { changes = append(changes, e.From+">"+e.To+" "+e.Cause) },
		})
		for time.Since(began) < 4*time.Minute {
			since := time.Since(began)
			down.Store(since >= 10*time.Second && since < 20*time.Second || since >= time.Minute && since < 2*time.Minute)
			time.Sleep(h.refresh(t.Context())) // as Stack.Run does
		}
		synctest.Wait()
		require.Equal(t, []string{
			"unknown>healthy api", "0s unknown healthy",
			"healthy>unhealthy api", "1m25s healthy unhealthy", // not at 1m30s, when the probe is asked again
			"unhealthy>healthy api", "2m15s unhealthy healthy",
		}, changes)
	})
}

func TestHealthManyReadersOfASteadyReading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var bad atomic.Bool
		changes := 0
		h := healthOf(t, HealthConfig{
			Checks: []HealthCheck{{Name: "db"}}, Rules: map[string]HealthRule{"db": {WorseAfter: 2 * time.Second, BetterAfter: 2 * time.Second}},
			OnChange: func(_, _ Report) { changes++ },
		})
		h.watch("db", func(context.Context) []CheckResult {
			if bad.Load() {
				return []CheckResult{{Status: Unhealthy}}
			}
			return []CheckResult{{Status: Healthy}}
		})
		h.Check(t.Context())
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				for range 2000 {
					h.Check(t.Context())
					time.Sleep(5 * time.Millisecond)
				}
			})
		}
		for i := range 10 { // it flaps for a while, is bad for a while, flaps again
			time.Sleep(time.Second - time.Microsecond)
			bad.Store(i%2 == 0 || i > 3 && i < 8)
		}
		wg.Wait()
		synctest.Wait()
		require.Equal(t, 2, changes, "healthy at first, unhealthy once; the end was too short to count")
	})
}

func TestH12_ReadinessIsSteadyWhereARuleSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var err error
		h := healthOf(t, HealthConfig{
			Probe: func(context.Context) error { return err },
			Rules: map[string]HealthRule{"api": {WorseAfter: 30 * time.Second, BetterAfter: 15 * time.Second}},
		})
		var codes []int
		for i := range 14 { // an orchestrator asks every ten seconds
			err = nil
			if i == 2 || i >= 5 && i < 10 {
				err = errors.New("down")
			}
			codes = append(codes, ask(h.Ready(), "GET", "").Code)
			if i == 6 {
				var doc struct {
					Checks map[string][]struct{ Status, Health, Seen, SeenSince, Note string }
				}
				require.NoError(t, json.Unmarshal(ask(h, "GET", "").Body.Bytes(), &doc))
				api := doc.Checks["api:responseTime"][0]
				require.Equal(t, "pass", api.Status)
				require.Equal(t, "unhealthy", api.Seen)
				require.Equal(t, "2000-01-01T00:00:50Z", api.SeenSince)
				require.Equal(t, "unhealthy for 10s, which counts after 30s: the probe failed", api.Note)
			}
			time.Sleep(10 * time.Second)
		}
		require.Equal(t, []int{200, 200, 200, 200, 200, 200, 200, 200, 503, 503, 503, 503, 200, 200}, codes)
	})
}
