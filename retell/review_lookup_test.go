package retell_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/retell-resilience/resilience"
	"github.com/retell-resilience/resilience/retell"
	"github.com/retell-resilience/resilience/retell/retelltest"
	"github.com/stretchr/testify/require"
)

// A listed call with the marker was made, also if its answer is so odd that the id or the next page is not to be read: it is
// never taken for absent, and nobody is called twice.
func TestNoCallIsTakenForAbsentByAnOddLookUp(t *testing.T) {
	for name, odd := range map[string]func(string) string{
		"an id that is no text":             func(body string) string { return strings.ReplaceAll(body, `"call_id":"`, `"call_id":7,"x":"`) },
		"more, in another type":             func(string) string { return `{"items":[],"has_more":"true","pagination_key":"p2"}` },
		"the next page, and not that it is": func(string) string { return `{"items":[],"pagination_key":"p2"}` },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := retelltest.NewServer(retelltest.WithoutServerKeys())
				defer srv.Close()
				inner := srv.Transport()
				rt := resilience.RoundTripFunc(func(req *http.Request) (*http.Response, error) {
					resp, err := inner.RoundTrip(req)
					if err != nil || !strings.HasSuffix(req.URL.Path, "/list-calls") {
						return resp, err
					}
					body, _ := io.ReadAll(resp.Body)
					_ = resp.Body.Close()
					return answer(200, odd(string(body))), nil
				})
				cfg := retell.Config()
				cfg.Idempotency.AssumeAbsentAfter = 10 * time.Minute
				cfg.DLQ.Off = true
				c, err := retell.New("key_test", retell.WithTransport(rt), retell.WithConfig(cfg))
				require.NoError(t, err)
				ctx, stop := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				go func() { ended <- c.Stack().Run(ctx) }()
				srv.Inject("create-phone-call", retelltest.LostAnswer())
				_, err = c.Calls.CreatePhoneCall(t.Context(), reminder, retell.IdempotencyKey("reminder:4711"))
				require.True(t, resilience.InDoubt(err), err)
				time.Sleep(2 * time.Hour)
				require.Positive(t, srv.Requests("list-calls"))
				_, _ = c.Calls.CreatePhoneCall(t.Context(), reminder, retell.IdempotencyKey("reminder:4711"))
				stop()
				require.NoError(t, <-ended)
				require.NoError(t, c.Close(context.Background()))
				require.Equal(t, 1, srv.Rings(theirs))
			})
		})
	}
}
