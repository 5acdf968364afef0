package retell_test

import (
	"testing"
	"time"

	"github.com/retell-resilience/resilience"
	"github.com/retell-resilience/resilience/retell"
	"github.com/retell-resilience/resilience/retell/retelltest"
	"github.com/stretchr/testify/require"
)

// A new draft says nothing about the version that waits to be published.
func TestANewVersionDoesNotSupersedeAPublish(t *testing.T) {
	configured(t, retell.Config(), func(t *testing.T, c *retell.Client, srv *retelltest.Server) {
		srv.Inject("publish-agent-version", retelltest.Refuse(), retelltest.Refuse(), retelltest.Refuse())
		_, err := retell.Do[retell.Empty](t.Context(), c, "POST", "/publish-agent-version/agent_test", map[string]any{"version": 0}, retell.IdempotencyKey("publish:0"))
		require.ErrorIs(t, err, resilience.ErrParked)
		_, err = retell.Do[retell.Agent](t.Context(), c, "POST", "/create-agent-version/agent_test", map[string]any{"base_version": 0})
		require.NoError(t, err)
		time.Sleep(30 * time.Minute)
		for _, l := range c.Stack().DLQ.List(resilience.LetterFilter{}) {
			t.Log(l, l.Superseded)
		}
		require.Equal(t, 1, srv.Effects("publish-agent-version"), "accepted, and never done")
	})
}

// Two updates of one agent that change different settings do not stand in for each other; one that would undo a newer one does.
func TestAnUpdateIsSupersededByOneOfTheSameSettingsOnly(t *testing.T) {
	for newer, effects := range map[string]int{"interruption_sensitivity": 2, "voice_id": 1} {
		configured(t, retell.Config(), func(t *testing.T, c *retell.Client, srv *retelltest.Server) {
			update := func(setting, key string) error {
				_, err := retell.Do[retell.Agent](t.Context(), c, "PATCH", "/update-agent/agent_test", map[string]any{setting: nil}, retell.IdempotencyKey(key))
				return err
			}
			srv.Inject("update-agent", retelltest.Refuse(), retelltest.Refuse(), retelltest.Refuse())
			require.ErrorIs(t, update("voice_id", "older"), resilience.ErrParked)
			require.NoError(t, update(newer, "newer"))
			time.Sleep(30 * time.Minute)
			require.Equal(t, effects, srv.Effects("update-agent"))
		})
	}
}
