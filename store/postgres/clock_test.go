package pgstore

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestClock_IsTheServersAndNeverGoesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c clock
		server := time.Date(2026, 11, 23, 14, 0, 0, 0, time.FixedZone("", 3600))
		asked := time.Now()
		time.Sleep(20 * time.Millisecond) // the answer takes as long back as the question took there
		c.set(asked, server)
		require.Equal(t, server.Add(10*time.Millisecond).UTC(), c.now())
		time.Sleep(time.Second)
		require.Equal(t, server.Add(1010*time.Millisecond).UTC(), c.now())

		c.set(time.Now(), server.Add(-time.Hour)) // it was set back
		require.Equal(t, server.Add(1010*time.Millisecond).UTC(), c.now())
		time.Sleep(time.Hour)
		require.Equal(t, server.Add(1010*time.Millisecond).UTC(), c.now())
		time.Sleep(time.Minute)
		require.Equal(t, server.Add(time.Minute).UTC(), c.now())

		c.set(time.Now(), server.Add(time.Hour))
		require.Equal(t, server.Add(time.Hour).UTC(), c.now())
	})
}

func TestClock_IsMeasuredByOneAtATimeOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c clock
		c.set(time.Now(), time.Now())
		time.Sleep(measureEvery - 1)
		require.False(t, c.begin())
		time.Sleep(1)
		require.True(t, c.begin())
		require.False(t, c.begin(), "somebody does")
		c.end()
		require.True(t, c.begin(), "it failed")
		c.set(time.Now(), time.Now())
		c.end()
		require.False(t, c.begin())
	})
}
