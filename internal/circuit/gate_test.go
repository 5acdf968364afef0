package circuit

import (
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
)

func testConfig() *Config {
	return &Config{
		Epoch:       time.Now(),
		FailureRate: 0.5, MinCalls: 1, Window: 10 * time.Second, OpenFor: 50 * time.Millisecond,
		MaxOpenFor: time.Minute, Trials: 1, TrialLimit: time.Minute,
		Changed: func(Change) {}, Opened: func() {},
		Refusal: func(string, Result) error { return errors.New("open") },
	}
}

func fail(t *testing.T, g *Gate) {
	t.Helper()
	ticket, _, err := g.Enter()
	require.NoError(t, err)
	g.Leave(ticket, Result{Outcome: Failure})
}

func TestB26_OnlyElapsedTimeMatters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(testConfig(), "")
		fail(t, g)
		time.Sleep(50*time.Millisecond - 1)
		_, wait, err := g.Enter()
		require.Error(t, err)
		require.Equal(t, time.Duration(1), wait)
		time.Sleep(1)
		_, _, err = g.Enter()
		require.NoError(t, err)
	})
}

func TestB18_CircuitMemoryIsSmall(t *testing.T) {
	require.LessOrEqual(t, unsafe.Sizeof(Gate{}), uintptr(1024))
}

func TestBreakerMarks_AreSetOnce(t *testing.T) {
	var m marks
	for range 130 {
		one := m.next()
		require.True(t, one.set())
		require.False(t, one.set())
	}
	var zero mark
	require.True(t, zero.set())
	require.True(t, zero.set())
}

func TestBreakerSet_IsSafeWhileGatesComeAndGo(t *testing.T) {
	s := NewSet(testConfig(), 8)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 300 {
				g := s.Get(string(rune('a' + (i*7+j)%20)))
				if ticket, _, err := g.Enter(); err == nil {
					g.Leave(ticket, Result{Outcome: Outcome(j % 3)})
				}
				switch j % 50 {
				case 10:
					s.Each((*Gate).ForceOpen)
				case 20:
					s.Each((*Gate).Reset)
				case 30:
					s.Troubled()
				}
			}
		})
	}
	wg.Wait()
	require.LessOrEqual(t, s.Len(), 8)
	s.Each((*Gate).ForceOpen)
	for _, g := range s.All() {
		require.Equal(t, Open, g.State())
	}
	require.Equal(t, Open, s.Peek("unused").State())
}

func TestBreakerSet_ForgetsTheOneUnusedForLongest(t *testing.T) {
	s := NewSet(testConfig(), 2)
	a, b := s.Get("a"), s.Get("b")
	require.Same(t, a, s.Get("a"))
	s.Get("c")
	require.Same(t, a, s.Peek("a"))
	require.NotSame(t, b, s.Peek("b"))
	require.Same(t, s.blank, s.Peek("b"))
}

// A circuit that has recovered costs its calls no look at the clock any more.
func TestRefuse_NothingIsLeftAfterRecovery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(testConfig(), "")
		fail(t, g)
		_, err := g.Refuse()
		require.Error(t, err)
		time.Sleep(50 * time.Millisecond)
		ticket, _, err := g.Enter()
		require.NoError(t, err)
		require.Nil(t, g.shut.Load())
		g.Leave(ticket, Result{Outcome: Success})
		_, err = g.Refuse()
		require.NoError(t, err)
	})
}

// Who reports late what they saw earlier does not move the end of an open period: for a trial the gate looks itself.
func TestLeaveAt_ATrialEndsWhenItIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		cfg.MaxOpenFor = cfg.OpenFor
		g := New(cfg, "")
		fail(t, g)
		time.Sleep(cfg.OpenFor)
		trial, _, err := g.Enter()
		require.NoError(t, err)
		seen := time.Now()
		time.Sleep(time.Second)
		g.LeaveAt(trial, Result{Outcome: Failure}, seen)
		wait, err := g.Refuse()
		require.Error(t, err)
		require.Equal(t, cfg.OpenFor, wait)
	})
}

func TestLeaveAt_AResultCountsWhenItCame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		cfg.MinCalls = 2
		g := New(cfg, "")
		first, _, err := g.Enter()
		require.NoError(t, err)
		second, _, err := g.Enter()
		require.NoError(t, err)
		came := time.Now()
		time.Sleep(cfg.Window)
		g.LeaveAt(first, Result{Outcome: Failure}, came)
		g.LeaveAt(second, Result{Outcome: Failure}, came.Add(cfg.Window))
		_, err = g.Refuse()
		require.NoError(t, err, "they were a window apart")
	})
}
