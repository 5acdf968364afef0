package resilience

import (
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
)

// A write that is answered 503 is in doubt, and yet it is the status that opened the circuit.
func TestB19_ARefusalNamesTheStatusOfWritesToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var events heard
		s := newStack(t, Config{DLQ: DLQConfig{Off: true}, Breaker: BreakerConfig{OnEvent: events.listen}})
		rt := s.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) { return reply(503, ""), nil }))
		for i := range 10 {
			_, err := dial(t.Context(), t, rt, fmt.Sprint("k", i), dialBody)
			require.ErrorIs(t, err, ErrInDoubt)
		}
		_, err := dial(t.Context(), t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrOpen)
		require.ErrorContains(t, err, "last failure: status 503")
		synctest.Wait()
		require.Equal(t, "status", events.all[0].Cause)
		require.Equal(t, 503, events.all[0].StatusCode)
		closeStack(t, s)
	})
}
