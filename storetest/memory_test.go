package storetest

import (
	"testing"

	"github.com/retell-resilience/resilience"
)

func TestMemoryStore(t *testing.T) {
	Run(t, func(*testing.T) resilience.KeyStore { return resilience.NewMemoryStore(0) },
		Bounded(32, func(*testing.T) resilience.KeyStore { return resilience.NewMemoryStore(32) }))
}
