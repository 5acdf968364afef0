package resilience

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Run and Close in every order, with contexts that have ended and that have not: nothing hangs, nothing is asked of anybody
// under a context that has ended, nothing is left.
func TestStack_RunAndCloseInEveryOrder(t *testing.T) {
	for name, steps := range map[string]string{
		"close, run": "CR", "close, run under an ended context": "Cr", "run under an ended context, close": "rC",
		"close under an ended context, twice": "cC", "run, run again, close": "rrC", "close, close": "CC", "only run": "r",
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ended, end := context.WithCancel(t.Context())
				end()
				probes := 0
				s := newStack(t, Config{Health: HealthConfig{Probe: func(context.Context) error { probes++; return nil }}})
				s.DLQ.Handle("work", func(context.Context, Letter) error { t.Error("it was redriven"); return nil })
				require.NoError(t, s.DLQ.Add(Letter{Operation: "work", Next: time.Now()}))
				began := time.Now()
				for _, step := range steps {
					switch step {
					case 'R':
						require.NoError(t, s.Run(t.Context()))
					case 'r':
						require.NoError(t, s.Run(ended))
					case 'C':
						require.NoError(t, s.Close(t.Context()))
					case 'c':
						require.NoError(t, s.Close(ended), "there is nothing to wait for")
					}
				}
				synctest.Wait()
				require.Zero(t, time.Since(began))
				require.Zero(t, probes)
				require.Equal(t, 1, s.DLQ.Len())
			})
		})
	}
}

// Many at once: one Run works, the others say so, and all of them and all of Close return.
func TestStack_ManyRunsAndClosesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Retry: RetryConfig{Off: true}})
		rt := s.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) { return nil, MarkNotSent(io.EOF) }))
		var runs, all sync.WaitGroup
		var mu sync.Mutex
		refused := 0
		for range 20 {
			runs.Go(func() {
				if err := s.Run(t.Context()); err != nil {
					mu.Lock()
					defer mu.Unlock()
					refused++
				}
			})
			all.Go(func() { _, _ = dial(t.Context(), t, rt, "k", dialBody) })
		}
		synctest.Wait()
		require.Equal(t, 19, refused)
		for range 20 {
			all.Go(func() { require.NoError(t, s.Close(t.Context())) })
		}
		all.Wait()
		runs.Wait()
		_, err := dial(t.Context(), t, rt, "k2", dialBody)
		require.True(t, errors.Is(err, ErrClosed) && NotSent(err))
		require.NoError(t, s.Run(t.Context()), "it ends at once")
	})
}
