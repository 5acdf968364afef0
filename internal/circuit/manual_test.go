package circuit

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Whoever asked Refuse a moment before the circuit was forced open is refused by Enter.
func TestEnter_ForcedOpenRefusesWhateverTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(testConfig(), "")
		time.Sleep(time.Hour)
		g.ForceOpen()
		_, wait, err := g.Enter()
		require.Error(t, err)
		require.Zero(t, wait)
		g.ForceClose()
		_, _, err = g.Enter()
		require.NoError(t, err)
	})
}
