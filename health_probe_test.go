package resilience

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
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

type statusError int

func (e statusError) Error() string { return "+15555550100 at https://api.example/x?token=secret" }

func (e statusError) HTTPStatus() int { return int(e) }

type slowError struct{}

func (slowError) Error() string { return "slow" }

func (slowError) Timeout() bool { return true }

func TestH04_ProbeErrorIsInsideTheReportWithoutItsText(t *testing.T) {
	wrapped := func(err error) error {
		return &url.Error{Op: "Get", URL: "https://api.example/v2/+15555550100?token=secret", Err: err}
	}
	for _, c := range []struct {
		err   error
		want  Status
		state string
	}{
		{errors.New("not connected"), Unhealthy, "error"},
		{wrapped(syscall.ECONNREFUSED), Unhealthy, "refused"},
		{wrapped(&net.OpError{Op: "read", Err: syscall.ECONNRESET}), Unhealthy, "reset"},
		{wrapped(&net.OpError{Op: "dial", Err: errors.New("odd")}), Unhealthy, "network"},
		{wrapped(&net.DNSError{Name: "secret", IsTimeout: true}), Unhealthy, "dns"},
		{wrapped(context.DeadlineExceeded), Unhealthy, "timeout"},
		{wrapped(context.Canceled), Unhealthy, "canceled"},
		{slowError{}, Unhealthy, "timeout"},
		{&Error{Err: ErrTimeout, Limit: "request"}, Unhealthy, "timeout"},
		{&Error{Err: errors.New("x"), StatusCode: 503}, Unhealthy, "status 503"},
		{wrapped(statusError(401)), Unhealthy, "status 401"},
		{statusError(403), Unhealthy, "status 403"},
		{statusError(404), Unhealthy, "status 404"},
		{statusError(402), Degraded, "status 402"},
		{statusError(429), Degraded, "status 429"},
		{fmt.Errorf("probe: %w", &Error{Err: ErrFull}), Unknown, "not probed"},
		{&Error{Err: ErrClosed}, Unknown, "not probed"},
		{(*Error)(nil), Unhealthy, "panic"},
	} {
		r := healthOf(t, HealthConfig{Probe: codes(c.err)}).Check(t.Context())
		require.Equal(t, c.want, r.Status, c.state)
		api := r.Find("api")
		require.Equal(t, c.state, api.State)
		require.NotEmpty(t, api.Message)
		for _, private := range []string{"+1415", "secret", "api.example"} {
			require.NotContains(t, fmt.Sprintf("%+v", api), private)
		}
	}
}

func TestH05_StaleIsNeverShownAsHealthy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var pause time.Duration
		h := healthOf(t, HealthConfig{Probe: func(context.Context) error { time.Sleep(pause); return nil }})
		require.Equal(t, Healthy, h.Check(t.Context()).Status)
		time.Sleep(10 * time.Second)
		pause = time.Second
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		r := h.Check(gone)
		require.Equal(t, Unknown, r.Status)
		require.Equal(t, "stale", r.Find("api").State)
		require.Equal(t, 10*time.Second, r.Find("api").Age)
		require.Zero(t, r.FreshFor)
		require.Equal(t, Healthy, h.Check(t.Context()).Status, "who waits gets the fresh answer")
	})
}

func TestHealthOldFailureStandsUntilRefuted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		err := errors.New("down")
		h := healthOf(t, HealthConfig{Probe: func(context.Context) error { time.Sleep(time.Second); return err }})
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		require.Equal(t, Unknown, h.Check(gone).Status, "the first answer is due")
		require.Equal(t, Unhealthy, h.Check(t.Context()).Status)
		time.Sleep(10 * time.Second)
		require.Equal(t, Unhealthy, h.Check(gone).Status)
		time.Sleep(time.Second)
	})
}

func TestH09_ManyReadsOneProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var probes atomic.Int32
		h := healthOf(t, HealthConfig{Probe: func(context.Context) error {
			probes.Add(1)
			time.Sleep(100 * time.Millisecond)
			return nil
		}})
		var wg sync.WaitGroup
		for i := range 1000 {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * time.Millisecond)
				r := h.Check(t.Context())
				require.Equal(t, Healthy, r.Status)
				age := max(0, time.Duration(i-100)*time.Millisecond)
				require.Equal(t, age, r.Find("api").Age)
				require.Equal(t, 10*time.Second-age, r.FreshFor)
			})
		}
		wg.Wait()
		require.EqualValues(t, 1, probes.Load())
		time.Sleep(10*time.Second - 899*time.Millisecond - time.Nanosecond)
		h.Check(t.Context())
		require.EqualValues(t, 1, probes.Load())
		time.Sleep(time.Nanosecond)
		h.Check(t.Context())
		require.EqualValues(t, 2, probes.Load())
	})
}

func TestHealthStuckProbeIsBoundedAndNotStartedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var probes atomic.Int32
		release := make(chan struct{})
		h := healthOf(t, HealthConfig{Probe: func(context.Context) error { probes.Add(1); <-release; return nil }})
		started := time.Now()
		r := h.Check(t.Context())
		require.Equal(t, 2*time.Second, time.Since(started))
		require.Equal(t, Unhealthy, r.Status)
		require.Equal(t, "timeout", r.Find("api").State)

		time.Sleep(time.Minute)
		asked := time.Now()
		r = h.Check(t.Context())
		require.Zero(t, time.Since(asked), "nobody waits for a probe that is stuck")
		require.Equal(t, Unhealthy, r.Status)
		require.Equal(t, time.Minute, r.Find("api").Age)
		require.Contains(t, r.Find("api").Message, "has not returned")
		require.EqualValues(t, 1, probes.Load())

		close(release)
		synctest.Wait()
		require.Equal(t, Healthy, h.Check(t.Context()).Status, "the late answer does not count, a new one does")
		require.EqualValues(t, 2, probes.Load())
	})
}

func TestHealthProbeRunsUnderItsOwnDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := healthOf(t, HealthConfig{ProbeTimeout: time.Second, Probe: func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		}})
		hurried, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		started := time.Now()
		require.Equal(t, Unknown, h.Check(hurried).Status, "the caller's own end says nothing about the other side")
		require.Equal(t, 300*time.Millisecond, time.Since(started))
		require.Equal(t, Unhealthy, h.Check(t.Context()).Status)
		require.Equal(t, time.Second, time.Since(started), "it joined the run that was under way")
		synctest.Wait()
	})
}

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
