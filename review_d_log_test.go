package resilience

import (
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"
)

// A store that fails is an error, whichever store it is.
func TestLogEvents_AStoreOfLettersThatFailsIsAnErrorToo(t *testing.T) {
	require.Equal(t, slog.LevelError, Event{Kind: EventLetterUnwritten}.Level())
}
