package retell

import (
	"container/list"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
)

// WebhookConfig configures a [WebhookHandler].
type WebhookConfig struct {
	// APIKey is the key with the "webhook" badge. Required.
	APIKey string
	// Handle gets each event once. Required. It must be quick: Retell waits ten seconds, then sends the event again. When it
	// returns nil, the event is Retell's no more: store it, or put it in a queue, before that. An error makes Retell send
	// the event again, three times at most. It may be called for several events at the same time.
	Handle func(ctx context.Context, e *WebhookEvent) error
	// MaxBytes bounds a body; a call_ended has the whole transcript in it. 0 or less: 8 MiB.
	MaxBytes int64
	// Remember is how long an event is recognised that comes again. 0 or less: 24 h.
	Remember time.Duration
	// MaxRemembered bounds how many events are remembered; the oldest go first. 0 or less: 10,000.
	MaxRemembered int
	// OnError hears of webhooks that were refused and of errors of Handle; a bad signature, a body that cannot be read. Its
	// argument has no personal data unless Handle put it there. nil: nobody.
	OnError func(error)
}

func (c WebhookConfig) withDefaults() WebhookConfig {
	if c.MaxBytes <= 0 {
		c.MaxBytes = 8 << 20
	}
	if c.Remember <= 0 {
		c.Remember = 24 * time.Hour
	}
	if c.MaxRemembered <= 0 {
		c.MaxRemembered = 10_000
	}
	return c
}

// WebhookHandler serves the webhooks of a workspace. It verifies each, hands it to Handle once, and answers 2xx only after
// Handle returned nil. Retell sends events more than once, even without an error: a second delivery is answered like the
// first, and while the first is being handled it waits for it. What is remembered lives in this process; several processes
// behind one address need a check of their own, by [WebhookEvent.Key].
//
// transcript_updated is a stream of which only the newest counts: one that was signed before the newest handled is dropped.
// Inbound webhooks (call_inbound, chat_inbound) are answered with no override; to answer them with more, use
// [VerifyWebhook] and [ParseWebhook] in a handler of your own.
//
// It answers 204, or 401 for a bad signature, 400 or 413 for a body that cannot be used, 405 for another method than POST,
// and 500 when Handle failed. It panics when APIKey or Handle is missing: at the start of the program, not at the first call.
func WebhookHandler(cfg WebhookConfig) http.Handler {
	if strings.TrimSpace(cfg.APIKey) == "" || cfg.Handle == nil {
		panic("retell: WebhookConfig needs APIKey and Handle")
	}
	cfg = cfg.withDefaults()
	return &webhookHandler{cfg: cfg, seen: newMemory(cfg.Remember, cfg.MaxRemembered)}
}

type webhookHandler struct {
	cfg  WebhookConfig
	seen *memory
}

func (h *webhookHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	e, status, err := h.receive(w, r)
	if err == nil {
		err = h.handle(r.Context(), e)
		status = http.StatusInternalServerError
	}
	switch {
	case err != nil:
		if h.cfg.OnError != nil {
			h.cfg.OnError(err)
		}
		w.WriteHeader(status)
	case e.Event == EventCallInbound, e.Event == EventChatInbound:
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"`+string(e.Event)+`":{}}`) // the caller may have hung up
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}

// receive reads and checks a webhook. status is what to answer if it cannot be taken.
func (h *webhookHandler) receive(w http.ResponseWriter, r *http.Request) (e *WebhookEvent, status int, err error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, h.cfg.MaxBytes))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, http.StatusRequestEntityTooLarge, errors.New("retell: webhook is larger than allowed")
	case err != nil:
		return nil, http.StatusBadRequest, errors.New("retell: webhook cannot be read")
	}
	signed, err := verify(body, h.cfg.APIKey, r.Header.Get(SignatureHeader), time.Now())
	if err != nil {
		return nil, http.StatusUnauthorized, err
	}
	if e, err = ParseWebhook(body); err != nil {
		return nil, http.StatusBadRequest, err
	}
	e.Signed = signed
	return e, 0, nil
}

// handle calls the user's function for the first delivery of an event; the others share its outcome.
func (h *webhookHandler) handle(ctx context.Context, e *WebhookEvent) error {
	stream := ""
	if e.Event == EventTranscriptUpdated {
		stream = e.ID()
	}
	d, first := h.seen.begin(e.identity(), stream, e.Signed, time.Now())
	if !first {
		select {
		case <-d.done:
			return d.err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	err := errors.New("retell: the webhook function panicked") // stands if it does not return
	defer func() { h.seen.end(d, err, time.Now()) }()
	err = h.cfg.Handle(ctx, e)
	return err
}

// memory knows which events were handled, and which are being handled now.
type memory struct {
	ttl time.Duration
	max int

	mu     sync.Mutex
	byID   map[string]*delivery
	newest map[string]time.Time // signing time of the newest handled, by stream
	order  *list.List           // of handled deliveries, the oldest in front
}

// delivery is one event. err may be read once done is closed.
type delivery struct {
	id, stream string
	signed     time.Time
	ended      time.Time
	done       chan struct{}
	err        error
}

func newMemory(ttl time.Duration, max int) *memory {
	return &memory{ttl: ttl, max: max, byID: map[string]*delivery{}, newest: map[string]time.Time{}, order: list.New()}
}

// begin returns the delivery of an event, and whether it is the caller who has to handle it.
func (m *memory) begin(id, stream string, signed, now time.Time) (d *delivery, first bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forget(now)
	if known := m.byID[id]; known != nil {
		return known, false
	}
	d = &delivery{id: id, stream: stream, signed: signed, done: make(chan struct{})}
	if newest, ok := m.newest[stream]; ok && stream != "" && signed.Before(newest) {
		close(d.done) // overtaken: as good as handled
		return d, false
	}
	m.byID[id] = d
	return d, true
}

// end keeps a delivery that was handled, and lets one that failed be tried again.
func (m *memory) end(d *delivery, err error, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d.err, d.ended = err, now
	close(d.done)
	if err != nil {
		delete(m.byID, d.id)
		return
	}
	if d.stream != "" && d.signed.After(m.newest[d.stream]) {
		m.newest[d.stream] = d.signed
	}
	m.order.PushBack(d)
	m.forget(now)
}

// forget drops what is too old or too much.
func (m *memory) forget(now time.Time) {
	for front := m.order.Front(); front != nil; front = m.order.Front() {
		d, _ := front.Value.(*delivery) // nothing else is in it
		if m.order.Len() <= m.max && now.Sub(d.ended) < m.ttl {
			return
		}
		m.order.Remove(front)
		delete(m.byID, d.id)
		if d.stream != "" && !m.newest[d.stream].After(d.signed) {
			delete(m.newest, d.stream)
		}
	}
}
