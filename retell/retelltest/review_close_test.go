package retelltest_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience/retell/retelltest"
)

// A webhook that a timer delivers runs on a goroutine of the server's: none is left behind Close.
func TestCloseAwaitsAWebhookOfATimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := retelltest.NewServer(retelltest.WithCallLife(time.Second, time.Hour))
		heard := false
		srv.OnWebhook(func([]byte, string) { time.Sleep(time.Minute); heard = true })
		dial(t, srv, "")
		time.Sleep(2 * time.Second)
		srv.Close()
		require.True(t, heard)
	})
}
