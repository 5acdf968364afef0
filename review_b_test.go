package resilience

import (
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Who asks without a condition is not given the 304 of somebody who has the answer already.
func TestReviewB_A304IsForWhoAskedWithACondition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, err := NewFallback(FallbackConfig{})
		require.NoError(t, err)
		asked := 0
		rt := f.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			asked++
			time.Sleep(time.Second)
			if req.Header.Get("If-None-Match") != "" {
				return reply(304, ""), nil
			}
			return reply(200, "whole"), nil
		}))
		read := func(status int, condition string) {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://api.test/get-agent/a", nil)
			require.NoError(t, err)
			if condition != "" {
				req.Header.Set("If-None-Match", condition)
			}
			resp, err := rt.RoundTrip(req)
			require.NoError(t, err)
			require.Equal(t, status, resp.StatusCode)
		}
		var all sync.WaitGroup
		all.Go(func() { read(304, `"1"`) })
		time.Sleep(time.Millisecond)
		all.Go(func() { read(304, `"1"`) })
		all.Go(func() { read(200, "") })
		all.Wait()
		require.Equal(t, 2, asked, "who asks the same still shares a call")
	})
}
