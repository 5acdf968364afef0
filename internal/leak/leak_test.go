package leak

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
)

type runner func() int

func (r runner) Run() int { return r() }

func TestALeftGoroutineIsFound(t *testing.T) {
	var out bytes.Buffer
	stop := make(chan struct{})
	defer close(stop)
	code := run(runner(func() int { go wait(stop); return 0 }), &out)
	require.Equal(t, 1, code)
	require.Contains(t, out.String(), "leak.wait")
}

func wait(stop chan struct{}) { <-stop }

func TestNoneIsLeft(t *testing.T) {
	var out bytes.Buffer
	require.Equal(t, 0, run(runner(func() int { return 0 }), &out))
	require.Equal(t, 3, run(runner(func() int { return 3 }), &out))
	require.Empty(t, out.String())
}
