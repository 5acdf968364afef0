package resilience

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A call with the key of a letter, to another of the hosts that share an address, is another write.
func TestLetter_IsNotTakenForAWriteToAnotherHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down := true
		var hosts []string
		s := newStack(t, Config{Retry: RetryConfig{Off: true}})
		rt := s.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			if down {
				return nil, MarkNotSent(io.EOF)
			}
			hosts = append(hosts, req.Host)
			return reply(201, "{}"), nil
		}))
		post := func(host string) error {
			req, _ := http.NewRequestWithContext(WithIdempotencyKey(t.Context(), "k"), http.MethodPost, "http://gateway/v2/calls", strings.NewReader("{}"))
			req.Host = host
			_, err := rt.RoundTrip(req)
			return err
		}
		require.ErrorIs(t, post("one"), ErrParked)
		down = false
		err := post("two")
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		require.NoError(t, s.Run(ctx))
		closeStack(t, s)
		require.ErrorIs(t, err, ErrKeyReused)
		require.Equal(t, []string{"one"}, hosts, "the caller was told that a letter owns this write")
	})
}

