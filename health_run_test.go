package resilience

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Nothing else tells of a Run that was forgotten: calls work without it, and letters wait in silence.
func TestHealth_TellsOfAStackThatNobodyRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{})
		run := func() CheckResult { return s.Health().Check(t.Context()).Find("run") }

		require.Equal(t, "not running", run().State)
		require.Equal(t, Unknown, run().Status, "nothing waits for it")
		require.False(t, s.Stats().Running)
		require.NoError(t, s.DLQ.Add(Letter{Operation: "o", Method: "PUT", URL: "http://h/"}))
		due := time.Until(s.DLQ.Stats().NextDue)
		time.Sleep(due + longOverdue)
		require.Equal(t, Unknown, run().Status, "somebody may call Redrive now and then")
		time.Sleep(1)
		require.Equal(t, Degraded, run().Status)
		require.Contains(t, run().Message, "Stack.Run")

		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- s.Run(ctx) }()
		synctest.Wait()
		require.Equal(t, "running", run().State)
		require.Equal(t, Healthy, run().Status)
		require.Empty(t, run().Message)
		require.True(t, s.Stats().Running)
		cancel()
		require.NoError(t, <-ended)
		require.Equal(t, "not running", run().State)

		closeStack(t, s)
		require.Equal(t, "closed", run().State)
		require.Equal(t, Unknown, run().Status)
	})
}

func TestHealth_RunIsOfNoMatterWhereNothingWaitsForIt(t *testing.T) {
	for name, c := range map[string]struct {
		cfg  Config
		seen bool
	}{
		"neither": {Config{Idempotency: IdempotencyConfig{Off: true}, DLQ: DLQConfig{Off: true}}, false},
		"keys":    {Config{DLQ: DLQConfig{Off: true}}, true},
		"letters": {Config{Idempotency: IdempotencyConfig{Off: true}}, true},
	} {
		s := newStack(t, c.cfg)
		require.Equal(t, c.seen, s.Health().Check(t.Context()).Find("run").Name != "", name)
		closeStack(t, s)
	}
}

func TestHealth_TellsOfALongWaitForASlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Bulkhead: BulkheadConfig{Critical: -1, Normal: 1, Bulk: -1}})
		wait := func() CheckResult {
			for _, c := range s.Health().Check(t.Context()).Checks {
				if c.Measure == "wait" {
					return c
				}
			}
			return CheckResult{}
		}
		require.Equal(t, Healthy, wait().Status)
		release, err := s.Bulkhead.Acquire(t.Context(), PriorityNormal)
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		left := make(chan error)
		go func() {
			_, err := s.Bulkhead.Acquire(ctx, PriorityNormal)
			left <- err
		}()
		time.Sleep(30 * time.Second)
		require.Equal(t, Healthy, wait().Status)
		require.EqualValues(t, 30, wait().Value)
		time.Sleep(1)
		require.Equal(t, Degraded, wait().Status)
		require.Equal(t, "a call has waited 30s for a slot", wait().Message)
		cancel()
		require.Error(t, <-left)
		require.Equal(t, Healthy, wait().Status)
		release()
		closeStack(t, s)
	})
}
