package resilience

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Of two answers that ask to wait the longer wait holds, whichever comes first.
func TestRetry_AShorterWaitDoesNotOpenTheGateEarlier(t *testing.T) {
	now := time.Now()
	g := gates{list: map[string]*gate{}}
	g.closeFor("op", time.Minute, now, 0)
	g.closeFor("op", time.Second, now, 1)
	left, ok := g.wait("op", now)
	require.True(t, ok)
	require.Equal(t, time.Minute, left)
}

// A stack that closes renews no answer: nobody would wait for it.
func TestFallback_AStackThatClosesRenewsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _, rt := newShop(t, FallbackConfig{Refresh: true})
		_, err := rt.RoundTrip(readOf(t.Context(), t, callURL))
		require.NoError(t, err)
		time.Sleep(5 * time.Minute)
		closing := make(chan struct{})
		close(closing)
		f.closing = closing
		resp, err := rt.RoundTrip(readOf(t.Context(), t, callURL))
		require.NoError(t, err)
		_, s, served := Served(resp)
		require.True(t, served)
		require.Equal(t, Stale, s)
		synctest.Wait()
		require.Zero(t, f.Stats().Refreshes)
	})
}
