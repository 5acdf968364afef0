package retryafter

import (
	"testing"

	"github.com/retell-resilience/resilience/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }
