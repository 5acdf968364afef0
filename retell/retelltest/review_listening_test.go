package retelltest_test

import (
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience/retell/retelltest"
)

// A program that starts while Retell is down asks for the address then.
func TestStopListeningHoldsForAnAddressThatIsAskedForLater(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	srv.StopListening()
	url := srv.URL()
	_, err := dialHTTP(t.Context(), t, url)
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
	require.Zero(t, srv.Rings(to))
	require.NoError(t, srv.StartListening())
	require.Equal(t, url, srv.URL())
	status, err := dialHTTP(t.Context(), t, url)
	require.NoError(t, err)
	require.Equal(t, 201, status)
}
