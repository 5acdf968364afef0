package retelltest

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"time"
)

// event is a webhook on its way out.
type event []byte

// OnWebhook sets the receiver of webhooks: the body that Retell would post, {"event":…,"call":…}, and its
// X-Retell-Signature (see [Sign]), signed with the key of [WithKey] or [DefaultKey]. It is called on the goroutine that
// caused the event (the request, [Server.Hangup], a timer of [WithCallLife]), before that returns, without any lock:
// it may use the server. nil, the default: webhooks are dropped.
func (s *Server) OnWebhook(receive func(event []byte, signature string)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.webhook = receive
}

// WebhookCopies says how often each webhook is delivered; default 1. 0 loses them, 2 and more duplicate them, which Retell
// is known to do.
func (s *Server) WebhookCopies(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.copies = n
}

// Sign returns the X-Retell-Signature of a webhook body: "v=<unix ms>,d=<hex HMAC-SHA256 of body and ms>".
func Sign(body []byte, apiKey string, at time.Time) string {
	ms := strconv.FormatInt(at.UnixMilli(), 10)
	mac := hmac.New(sha256.New, []byte(apiKey))
	mac.Write(body)
	mac.Write([]byte(ms))
	return fmt.Sprintf("v=%s,d=%s", ms, hex.EncodeToString(mac.Sum(nil)))
}

// emit queues a webhook about a call. The lock is held.
func (s *Server) emit(name string, call object) {
	if s.webhook != nil {
		s.outbox = append(s.outbox, encode(object{"event": name, "call": call}))
	}
}

// emitChat queues a webhook about a chat. The lock is held.
func (s *Server) emitChat(name string, chat object) {
	if s.webhook != nil {
		s.outbox = append(s.outbox, encode(object{"event": name, "chat": chat}))
	}
}

func (s *Server) deliver(events []event, receive func([]byte, string), copies int) {
	key := s.key
	if key == "" {
		key = DefaultKey
	}
	for _, e := range events {
		for range copies {
			if receive != nil {
				receive(e, Sign(e, key, time.Now()))
			}
		}
	}
}
