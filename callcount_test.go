package resilience

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
)

func TestCallCount_AnyNumberMayWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := callCount{empty: make(chan struct{})}
		require.True(t, c.begin())
		require.True(t, c.beginUpTo(2))
		require.False(t, c.beginUpTo(2))
		require.Equal(t, 2, c.underWay())
		require.False(t, c.closed())
		var waiting sync.WaitGroup
		for range 10 {
			waiting.Go(func() {
				c.close()
				require.Zero(t, c.wait(context.Background()))
			})
		}
		synctest.Wait()
		require.True(t, c.closed())
		require.False(t, c.begin())
		require.False(t, c.beginUpTo(100))
		over, cancel := context.WithCancel(t.Context())
		cancel()
		require.Equal(t, 2, c.wait(over))
		c.end()
		require.Equal(t, 1, c.wait(over))
		c.end()
		waiting.Wait()
		require.Zero(t, c.wait(over), "what is over needs no time")
		require.Zero(t, c.underWay())
	})
}

func TestCallCount_NothingUnderWayAtClose(t *testing.T) {
	c := callCount{empty: make(chan struct{})}
	c.close()
	c.close()
	require.Zero(t, c.wait(t.Context()))
	require.False(t, c.begin())
}

// atItsEnd is a context that ends at the moment when something else does, too.
type atItsEnd struct {
	context.Context
	too func()
}

func (c atItsEnd) Done() <-chan struct{} {
	c.too()
	return c.Context.Done()
}

// The last call ends at the moment at which nobody waits for it any longer: then none is left.
func TestCallCount_NoneIsLeftWhereTheLastEndsWithTheWait(t *testing.T) {
	over, cancel := context.WithCancel(t.Context())
	cancel()
	for range 100 {
		c := callCount{empty: make(chan struct{})}
		require.True(t, c.begin())
		c.close()
		require.Zero(t, c.wait(atItsEnd{over, c.end}))
	}
}
