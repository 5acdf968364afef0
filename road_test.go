package resilience

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The order has one home. The picture in the package documentation must show the same.
func TestX01_TheOrderIsOneAndThePictureShowsIt(t *testing.T) {
	s, err := New(Config{})
	require.NoError(t, err)
	require.Equal(t, "budget → fallback → claim → dlq → retry → bulkhead → breaker → intent → attempt → transport", s.String())
	for _, file := range []string{"doc.go", "README.md"} {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		var drawn []string
		for _, m := range regexp.MustCompile(`(?m)└ (\w+) `).FindAllStringSubmatch(string(text), -1) {
			drawn = append(drawn, m[1])
		}
		require.Equal(t, s.String(), strings.Join(drawn, " → "), file)
	}
}
