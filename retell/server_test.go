package retell_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
	"github.com/retell-resilience/resilience/retell"
	"github.com/retell-resilience/resilience/retell/retelltest"
)

const (
	ours   = "+15555550100"
	theirs = "+15555550123"
)

var reminder = retell.CreatePhoneCallParams{FromNumber: ours, ToNumber: theirs, Metadata: retell.Metadata{"order": "4711"}}

// against runs a test in a bubble with a client and the server it talks to; background work runs.
func against(t *testing.T, test func(*testing.T, *retell.Client, *retelltest.Server)) {
	synctest.Test(t, func(t *testing.T) {
		srv := retelltest.NewServer()
		defer srv.Close()
		c, err := retell.New("key_test", retell.WithTransport(srv.Transport()))
		require.NoError(t, err)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- c.Stack().Run(ctx) }()
		test(t, c, srv)
		stop()
		require.NoError(t, <-ended)
		require.NoError(t, c.Close(context.Background()))
	})
}

func TestLifeOfACall(t *testing.T) {
	against(t, func(t *testing.T, c *retell.Client, srv *retelltest.Server) {
		ctx := t.Context()
		call, err := c.Calls.CreatePhoneCall(ctx, reminder, retell.IdempotencyKey("reminder:4711"))
		require.NoError(t, err)
		require.Equal(t, 1, srv.Rings(theirs))
		again, err := c.Calls.CreatePhoneCall(ctx, reminder, retell.IdempotencyKey("reminder:4711"))
		require.NoError(t, err)
		require.True(t, again.Replayed)
		require.Equal(t, call.CallID, again.CallID)
		require.Equal(t, 1, srv.Rings(theirs))

		found := 0
		filter := &retell.CallFilter{Metadata: []*retell.Filter{retell.Equals("4711").On("order")}}
		for item, err := range c.Calls.List(ctx, retell.ListCallsParams{FilterCriteria: filter, Limit: 1}) {
			require.NoError(t, err)
			require.Equal(t, call.CallID, item.CallID)
			found++
		}
		require.Equal(t, 1, found)

		require.NoError(t, srv.Answer(call.CallID))
		access, err := c.Calls.ListenLive(ctx, call.CallID)
		require.NoError(t, err)
		require.NotEmpty(t, access.AccessToken)
		_, err = c.Calls.UpdateLive(ctx, call.CallID, retell.UpdateLiveParams{CallControl: &retell.CallControl{AdditionalContext: "x"}})
		require.NoError(t, err)
		require.NoError(t, c.Calls.Stop(ctx, call.CallID))
		over, err := c.Calls.Get(ctx, call.CallID)
		require.NoError(t, err)
		require.True(t, over.CallStatus.Terminal(), over.CallStatus)
		_, err = c.Calls.Update(ctx, call.CallID, retell.UpdateCallParams{Metadata: retell.Metadata{"order": "4712"}})
		require.NoError(t, err)
		require.NoError(t, c.Calls.Delete(ctx, call.CallID))
		_, err = c.Calls.Get(ctx, call.CallID)
		require.True(t, retell.IsNotFound(err), err)
	})
}

func TestLostAnswerIsFoundAmongStrangers(t *testing.T) {
	against(t, func(t *testing.T, c *retell.Client, srv *retelltest.Server) {
		srv.IgnoreFilters(true)
		for range 250 {
			srv.AddCall(map[string]any{"metadata": map[string]any{"rk_key": "abcdefghijklmnopqrstuvwxyz"}})
		}
		srv.Inject("create-phone-call", retelltest.LostAnswer())
		_, err := c.Calls.CreatePhoneCall(t.Context(), reminder, retell.IdempotencyKey("reminder:4711"))
		require.True(t, resilience.InDoubt(err), err)
		time.Sleep(5 * time.Minute)
		call, err := c.Calls.CreatePhoneCall(t.Context(), reminder, retell.IdempotencyKey("reminder:4711"))
		require.NoError(t, err)
		require.True(t, call.Replayed)
		require.Equal(t, theirs, call.ToNumber)
		require.Equal(t, 1, srv.Rings(theirs))
		require.Equal(t, 1, srv.Requests("create-phone-call"))
	})
}

func TestARefusedCallIsParkedAndMadeLater(t *testing.T) {
	against(t, func(t *testing.T, c *retell.Client, srv *retelltest.Server) {
		srv.Inject("create-phone-call", retelltest.Refuse(), retelltest.Refuse(), retelltest.Refuse())
		_, err := c.Calls.CreatePhoneCall(t.Context(), reminder, retell.IdempotencyKey("reminder:4711"))
		require.ErrorIs(t, err, resilience.ErrParked)
		require.Zero(t, srv.Rings(theirs))
		time.Sleep(10 * time.Minute)
		require.Equal(t, 1, srv.Rings(theirs), "redriven, with the credentials of the client")
		for _, r := range srv.Received() {
			require.Equal(t, "Bearer key_test", r.Header.Get("Authorization"))
		}
		call, err := c.Calls.CreatePhoneCall(t.Context(), reminder, retell.IdempotencyKey("reminder:4711"))
		require.NoError(t, err)
		require.True(t, call.Replayed)
		require.Equal(t, 1, srv.Rings(theirs))
	})
}

func TestSignedWebhooksArriveOnceAndEndTheDoubt(t *testing.T) {
	against(t, func(t *testing.T, c *retell.Client, srv *retelltest.Server) {
		srv.HideRegistered(true)
		srv.WebhookCopies(3)
		var events []retell.Event
		h := retell.WebhookHandler(retell.WebhookConfig{APIKey: "key_test", Handle: func(ctx context.Context, e *retell.WebhookEvent) error {
			events = append(events, e.Event)
			return c.Observe(ctx, e)
		}})
		srv.OnWebhook(func(event []byte, signature string) {
			req := httptest.NewRequest(http.MethodPost, "/webhook", strings.NewReader(string(event)))
			req.Header.Set(retell.SignatureHeader, signature)
			w := httptest.NewRecorder()
			h.ServeHTTP(w, req)
			require.Equal(t, http.StatusNoContent, w.Code)
		})
		srv.Inject("create-phone-call", retelltest.LostAnswer())
		_, err := c.Calls.CreatePhoneCall(t.Context(), reminder, retell.IdempotencyKey("reminder:4711"))
		require.True(t, resilience.InDoubt(err), err)
		require.NoError(t, srv.Answer(srv.Calls()[0].ID))
		synctest.Wait()
		require.Equal(t, []retell.Event{retell.EventCallStarted}, events)
		call, err := c.Calls.CreatePhoneCall(t.Context(), reminder, retell.IdempotencyKey("reminder:4711"))
		require.NoError(t, err)
		require.True(t, call.Replayed)
		require.Equal(t, 1, srv.Rings(theirs))
	})
}
