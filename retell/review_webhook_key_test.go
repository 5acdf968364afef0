package retell

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A key from a file ends in a newline. New takes it off; webhooks under the same key must not all be refused.
func TestTheKeyOfAWebhookIsTrimmedAsThatOfAClient(t *testing.T) {
	c, err := New(vectorKey+"\n", WithTransport(answering(200, `{}`, nil)))
	require.NoError(t, err)
	require.NoError(t, c.Close(t.Context()))
	handle := func(context.Context, *WebhookEvent) error { return nil }
	require.Equal(t, http.StatusNoContent, deliver(WebhookHandler(WebhookConfig{APIKey: vectorKey + "\n", Handle: handle}), vectorBody))
	require.Panics(t, func() { WebhookHandler(WebhookConfig{APIKey: " \n", Handle: handle}) })
	_, err = verify([]byte(vectorBody), " ", sign(vectorBody, "", "1767225600000"), time.UnixMilli(vectorTime))
	require.ErrorIs(t, err, ErrBadSignature, "no key is still no key")
}
