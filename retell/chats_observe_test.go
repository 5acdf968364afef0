package retell_test

import (
	"context"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
	"github.com/retell-resilience/resilience/retell"
	"github.com/retell-resilience/resilience/retell/retelltest"
)

// Nobody can look for a text or a chat, but what is sent carries the marker, and the webhooks of chats bring it back.
func TestAWebhookEndsTheDoubtOfATextAndOfAChat(t *testing.T) {
	against(t, func(t *testing.T, c *retell.Client, srv *retelltest.Server) {
		h := retell.WebhookHandler(retell.WebhookConfig{APIKey: "key_test", Handle: func(ctx context.Context, e *retell.WebhookEvent) error {
			return c.Observe(ctx, e)
		}})
		var events []string
		srv.OnWebhook(func(event []byte, _ string) { events = append(events, string(event)) })
		text := func() (*retell.Chat, error) {
			return c.Chats.CreateSMSChat(t.Context(), retell.CreateSMSChatParams{FromNumber: ours, ToNumber: theirs}, retell.IdempotencyKey("text:4711"))
		}
		chat := func() (*retell.Chat, error) {
			return c.Chats.CreateChat(t.Context(), retell.CreateChatParams{AgentID: "agent_test"}, retell.IdempotencyKey("chat:4711"))
		}
		for operation, create := range map[string]func() (*retell.Chat, error){"create-sms-chat": text, "create-chat": chat} {
			events = nil
			srv.Inject(operation, retelltest.LostAnswer())
			_, err := create()
			require.True(t, resilience.InDoubt(err), err)
			require.Len(t, events, 1)
			req := httptest.NewRequest("POST", "/webhook", strings.NewReader(events[0]))
			req.Header.Set(retell.SignatureHeader, retelltest.Sign([]byte(events[0]), "key_test", time.Now()))
			h.ServeHTTP(httptest.NewRecorder(), req)

			known, err := create()
			require.NoError(t, err)
			require.True(t, known.Replayed)
			require.NotEmpty(t, known.ChatID)
			require.Equal(t, "agent_test", known.AgentID)
			require.Equal(t, retell.ChatStatusOngoing, known.ChatStatus)
			require.Equal(t, 1, srv.Requests(operation))
		}
		require.Equal(t, 1, srv.Texts(theirs))
	})
}
