package resilience

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// What is being asked when the stack is closed is called off: no goroutine is left, and nobody calls the API unhealthy for it.
func TestX06_NoProbeOutlivesClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		ask := func(ctx context.Context) error { asked++; <-ctx.Done(); return ctx.Err() }
		done := make(chan struct{})
		s := newStack(t, Config{Health: HealthConfig{
			Probe: ask,
			Checks: []HealthCheck{{Name: "database", Run: func(ctx context.Context) []CheckResult {
				_ = ask(ctx)
				return []CheckResult{{Status: Unhealthy}}
			}}},
		}})
		reader, leave := context.WithCancel(t.Context())
		go func() { defer close(done); s.Health().Check(reader) }()
		synctest.Wait()
		leave()
		<-done // it has left, having started what others may want to know
		synctest.Wait()
		began := time.Now()
		closeStack(t, s)
		require.Zero(t, time.Since(began))
		require.Equal(t, 2, asked)
		require.NotEqual(t, Unhealthy, s.Health().Check(t.Context()).Status)
		time.Sleep(time.Hour)
		for _, c := range s.Health().Check(t.Context()).Checks {
			if c.Name == "api" || c.Name == "database" {
				require.Equal(t, "closed", c.State)
			}
		}
		require.Equal(t, 2, asked, "nobody is asked after Close")
	})
}

func TestX06_CloseSaysThatAProbeHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		s := newStack(t, Config{Health: HealthConfig{Probe: func(context.Context) error { <-hang; return nil }}})
		go s.Health().Check(t.Context())
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := s.Close(ctx)
		require.ErrorContains(t, err, "a check had not returned")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		close(hang)
		closeStack(t, s)
	})
}
