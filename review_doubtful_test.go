package resilience

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"
)

// Where a redirect leads nobody has followed, and nobody knows what was done before it was given: a letter that must be sent
// once is in doubt, any other gets the same answer again.
func TestDLQ_ARedirectLeavesALetterThatIsSentOnceInDoubt(t *testing.T) {
	for effect, want := range map[Effect]letterVerdict{EffectOnce: letterDoubt, EffectIdempotent: letterPoison} {
		a := answer{resp: reply(http.StatusTemporaryRedirect, "", "Location", "/elsewhere")}
		verdict, _ := judge(t.Context(), &Letter{Method: http.MethodPost, Call: Call{Effect: effect}}, a, false)
		require.Equal(t, want, verdict)
	}
}
