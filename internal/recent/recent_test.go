package recent_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience/internal/recent"
)

func TestCounter(t *testing.T) {
	start := time.Now()
	at := func(d time.Duration) time.Time { return start.Add(d) }
	c := recent.New(start)
	require.Zero(t, c.Sum(start))

	c.Add(at(0))
	c.Add(at(900 * time.Millisecond))
	c.Add(at(5 * time.Second))
	require.Equal(t, 3, c.Sum(at(9*time.Second)))
	require.Equal(t, 1, c.Sum(at(10*time.Second)), "the first second is over ten seconds ago")
	require.Zero(t, c.Sum(at(15*time.Second)))

	c.Add(at(20 * time.Second)) // takes the place of second 0
	require.Equal(t, 1, c.Sum(at(20*time.Second)))
	require.Zero(t, c.Sum(at(time.Hour)))
}
