package resilience

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
)

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
