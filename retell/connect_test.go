package retell_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
	"github.com/retell-resilience/resilience/retell"
	"github.com/retell-resilience/resilience/retell/retelltest"
)

// A connection that hangs in the box ends by the connect limit, as it does on the network.
func TestConnectLimitInTheBox(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := retelltest.NewServer()
		defer srv.Close()
		cfg := retell.Config()
		cfg.Retry.Max = -1
		client, err := retell.New(retelltest.DefaultKey, retell.WithTransport(srv.Transport()), retell.WithConfig(cfg))
		require.NoError(t, err)
		defer client.Close(t.Context())
		srv.Inject("get-agent", retelltest.HangConnecting())
		start := time.Now()
		_, err = client.Agents.Get(t.Context(), "agent_test", retell.AgentVersion{})
		var e *resilience.Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, "connect", e.Limit)
		require.True(t, resilience.NotSent(err))
		require.Equal(t, 5*time.Second, time.Since(start))
	})
}
