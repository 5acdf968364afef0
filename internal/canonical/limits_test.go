package canonical

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestJSON_EveryHexDigitAndNoOther(t *testing.T) {
	for _, digit := range "0123456789abcdefABCDEF" {
		_, err := JSON([]byte(`"\u004` + string(digit) + `"`))
		require.NoError(t, err, string(digit))
	}
	for _, digit := range "/:@G`g \"" {
		_, err := JSON([]byte(`"\u004` + string(digit) + `"`))
		require.Error(t, err, string(digit))
	}
}

// Depth is how deep, not how many.
func TestJSON_ManySideBySideAreNotDeep(t *testing.T) {
	wide := "[" + strings.Repeat(`{},[],`, maxDepth) + "0]"
	got, err := JSON([]byte(wide))
	require.NoError(t, err)
	require.Equal(t, wide, string(got))
}
