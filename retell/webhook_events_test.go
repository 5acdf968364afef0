package retell_test

import (
	"context"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/retell-resilience/resilience/retell"
	"github.com/retell-resilience/resilience/retell/retelltest"
	"github.com/stretchr/testify/require"
)

// A text that came in waits for an answer like a call that came in.
func TestInboundTextIsAnsweredWithNoOverride(t *testing.T) {
	h := retell.WebhookHandler(retell.WebhookConfig{APIKey: "key_test", Handle: func(context.Context, *retell.WebhookEvent) error { return nil }})
	body := `{"event":"chat_inbound","chat_inbound":{"chat_id":"c1","from_number":"` + theirs + `","to_number":"` + ours + `"}}`
	req := httptest.NewRequest("POST", "/", strings.NewReader(body))
	req.Header.Set(retell.SignatureHeader, retelltest.Sign([]byte(body), "key_test", time.Now()))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	require.Equal(t, 200, w.Code)
	require.Equal(t, "application/json", w.Header().Get("Content-Type"))
	require.JSONEq(t, `{"chat_inbound":{}}`, w.Body.String())
}

// An older transcript that was slow to handle does not make what came between it and the newest new again.
func TestASlowOldTranscriptIsNotTheNewest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := make(chan struct{})
		var handled []string
		h := retell.WebhookHandler(retell.WebhookConfig{APIKey: "key_test", Handle: func(_ context.Context, e *retell.WebhookEvent) error {
			if e.Call.Transcript == "1" {
				<-slow
			}
			handled = append(handled, e.Call.Transcript)
			return nil
		}})
		deliver := func(n int) {
			body := fmt.Sprintf(`{"event":"transcript_updated","call":{"call_id":"c1","transcript":"%d"}}`, n)
			req := httptest.NewRequest("POST", "/", strings.NewReader(body))
			req.Header.Set(retell.SignatureHeader, retelltest.Sign([]byte(body), "key_test", time.Now().Add(time.Duration(n)*time.Second)))
			h.ServeHTTP(httptest.NewRecorder(), req)
		}
		go deliver(1)
		synctest.Wait()
		deliver(3)
		close(slow)
		synctest.Wait()
		deliver(2)
		require.Equal(t, []string{"3", "1"}, handled)
	})
}

// Whoever forgot to set the key has no key: everybody could sign with it.
func TestNothingIsSignedWithoutAKey(t *testing.T) {
	body := []byte(`{"event":"call_ended","call":{"call_id":"c1"}}`)
	require.NoError(t, retell.VerifyWebhook(body, "key_test", retelltest.Sign(body, "key_test", time.Now())))
	require.ErrorIs(t, retell.VerifyWebhook(body, "", retelltest.Sign(body, "", time.Now())), retell.ErrBadSignature)
}

func TestNoSignatureIsTakenOrPanickedAtThatOnlyLooksLikeOne(t *testing.T) {
	body := []byte(`{"event":"call_ended","call":{"call_id":"c1"}}`)
	stamp, digest, _ := strings.Cut(retelltest.Sign(body, "key_test", time.Now()), ",")
	for _, signature := range []string{
		",", "v,", "v=,", "v=1,", "v=1,d", "v=1,d=", stamp + ",", stamp + ",d", "," + digest, "v," + digest,
		"x" + stamp[1:] + "," + digest, stamp + ",x" + digest[1:], stamp + ", " + digest[1:], stamp + "," + digest[:len(digest)-1],
	} {
		require.ErrorIs(t, retell.VerifyWebhook(body, "key_test", signature), retell.ErrBadSignature, signature)
	}
}

// Forgetting an older transcript does not forget which was the newest.
func TestTheNewestTranscriptOutlivesOlderOnes(t *testing.T) {
	var handled []string
	h := retell.WebhookHandler(retell.WebhookConfig{APIKey: "key_test", MaxRemembered: 1, Handle: func(_ context.Context, e *retell.WebhookEvent) error {
		handled = append(handled, e.Call.Transcript)
		return nil
	}})
	now := time.Now()
	for _, n := range []int{1, 3, 2} {
		body := fmt.Sprintf(`{"event":"transcript_updated","call":{"call_id":"c1","transcript":"%d"}}`, n)
		req := httptest.NewRequest("POST", "/", strings.NewReader(body))
		req.Header.Set(retell.SignatureHeader, retelltest.Sign([]byte(body), "key_test", now.Add(time.Duration(n)*time.Second)))
		h.ServeHTTP(httptest.NewRecorder(), req)
	}
	require.Equal(t, []string{"1", "3"}, handled)
}

func TestEachEventOfALifeIsNamedByItsID(t *testing.T) {
	for want, body := range map[string]string{
		"call_started:c1":  `{"event":"call_started","call":{"call_id":"c1"}}`,
		"call_analyzed:c1": `{"event":"call_analyzed","call":{"call_id":"c1"},"chat":null}`,
		"chat_started:h1":  `{"event":"chat_started","call":null,"chat":{"chat_id":"h1"}}`,
		"chat_ended:h1":    `{"event":"chat_ended","chat":{"chat_id":"h1"}}`,
		"chat_analyzed:h1": `{"event":"chat_analyzed","chat":{"chat_id":"h1"}}`,
		"call_inbound:c1":  `{"event":"call_inbound","call_inbound":{"call_id":"c1","from_number":"` + theirs + `"}}`,
		"chat_inbound:h1":  `{"event":"chat_inbound","chat_inbound":{"chat_id":"h1","from_number":"` + theirs + `"}}`,
	} {
		e, err := retell.ParseWebhook([]byte(body))
		require.NoError(t, err)
		require.Equal(t, want, e.Key())
	}
}

// A transfer that is delivered again need not have the same bytes; one to another place or of another time is another.
func TestATransferIsNamedByItsCallItsTimeAndItsPlace(t *testing.T) {
	for _, event := range []string{"transfer_started", "transfer_bridged", "transfer_cancelled", "transfer_ended"} {
		key := func(start int, number, rest string) string {
			e, err := retell.ParseWebhook(fmt.Appendf(nil,
				`{"event":%q,"call":{"call_id":"c1","start_timestamp":%d%s},"transfer_destination":{"number":%q}}`, event, start, rest, number))
			require.NoError(t, err)
			return e.Key()
		}
		require.Equal(t, key(1, ours, ""), key(1, ours, `,"transcript":"more"`))
		require.NotEqual(t, key(1, ours, ""), key(2, ours, ""))
		require.NotEqual(t, key(1, ours, ""), key(1, theirs, ""))
	}
}
