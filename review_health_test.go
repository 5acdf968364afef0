package resilience

import (
	"context"
	"runtime"
	"testing"
	"time"
)

// A reader who looks at the very moment of the answer sees the one before or the new one, never a timeout.
func TestHealthNoTimeoutAtTheMomentOfTheAnswer(t *testing.T) {
	p := probesOf([]HealthCheck{{
		Name: "db", Every: time.Hour, Timeout: time.Hour,
		Run: func(context.Context) []CheckResult { return []CheckResult{{Status: Healthy}} },
	}})[0]
	for range 2000 {
		p.run = nil
		run := p.current()
		for looks := 1; ; looks++ {
			returned := run.returned()
			seen, _ := p.result(run, time.Now())
			if seen[0].State == "timeout" {
				t.Fatal("the hour is not over")
			}
			if returned {
				break
			}
			if looks%200 == 0 { // where there is one processor, it is the run's turn
				runtime.Gosched()
			}
		}
	}
}
