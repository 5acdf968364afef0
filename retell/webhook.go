package retell

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// SignatureHeader is where a webhook has its signature.
const SignatureHeader = "X-Retell-Signature"

// signatureTolerance is how far the time in a signature may be from ours, either way, to the millisecond.
const signatureTolerance = 5 * time.Minute

var (
	// ErrBadSignature: the webhook was not signed with this API key, or changed on its way.
	ErrBadSignature = errors.New("retell: webhook signature is wrong")
	// ErrStaleSignature: the signature is right, but more than five minutes old or ahead. Check the clock.
	ErrStaleSignature = errors.New("retell: webhook signature is too old or too new")
)

// VerifyWebhook checks that body was signed by Retell with the API key, within the last five minutes. body must be the
// bytes as they were received: JSON that was decoded and encoded again has another signature. The key is the one that
// carries the "webhook" badge in the dashboard; no other key of the workspace works. signature is the header
// X-Retell-Signature.
//
// The error is [ErrBadSignature] or [ErrStaleSignature]. A signature holds for five minutes for whoever has seen it:
// [WebhookHandler] also recognises what was delivered before.
func VerifyWebhook(body []byte, apiKey, signature string) error {
	_, err := verify(body, apiKey, signature, time.Now())
	return err
}

// verify returns when the webhook was signed.
func verify(body []byte, apiKey, signature string, now time.Time) (time.Time, error) {
	stamp, digest, ok := parseSignature(signature)
	apiKey = strings.TrimSpace(apiKey) // as New does
	if !ok || apiKey == "" {
		return time.Time{}, ErrBadSignature
	}
	mac := hmac.New(sha256.New, []byte(apiKey))
	mac.Write(body)
	mac.Write([]byte(stamp)) // as it was written, not as a number
	if !hmac.Equal(mac.Sum(nil), digest) {
		return time.Time{}, ErrBadSignature
	}
	ms, err := strconv.ParseInt(stamp, 10, 64)
	if err != nil {
		return time.Time{}, ErrBadSignature
	}
	distance := now.UnixMilli() - ms
	if distance > signatureTolerance.Milliseconds() || distance < -signatureTolerance.Milliseconds() {
		return time.Time{}, ErrStaleSignature
	}
	return time.UnixMilli(ms), nil
}

// parseSignature reads "v=1767225600000,d=a798…", in upper or lower case, as Retell's own SDK does.
func parseSignature(s string) (stamp string, digest []byte, ok bool) {
	v, d, ok := strings.Cut(s, ",")
	if !ok || len(v) < 3 || !strings.EqualFold(v[:2], "v=") || len(d) != 2+2*sha256.Size || !strings.EqualFold(d[:2], "d=") {
		return "", nil, false
	}
	stamp = v[2:]
	for _, r := range []byte(stamp) {
		if r < '0' || r > '9' {
			return "", nil, false
		}
	}
	digest, err := hex.DecodeString(d[2:])
	return stamp, digest, err == nil
}

// Event is what a webhook is about. Retell may add more.
type Event string

// The events.
const (
	EventCallStarted       Event = "call_started"
	EventCallEnded         Event = "call_ended" // also of a call that never connected
	EventCallAnalyzed      Event = "call_analyzed"
	EventTranscriptUpdated Event = "transcript_updated"
	EventTransferStarted   Event = "transfer_started"
	EventTransferBridged   Event = "transfer_bridged"
	EventTransferCancelled Event = "transfer_cancelled"
	EventTransferEnded     Event = "transfer_ended"
	EventChatStarted       Event = "chat_started"
	EventChatEnded         Event = "chat_ended"
	EventChatAnalyzed      Event = "chat_analyzed"
	EventCallInbound       Event = "call_inbound"
	EventChatInbound       Event = "chat_inbound"
)

// WebhookEvent is a webhook. Events can come twice, and in another order than things happened: [WebhookHandler] takes care
// of the first.
type WebhookEvent struct {
	Event Event `json:"event"`
	// Call is set for the events of calls and transfers, Chat for those of chats, Inbound for call_inbound and chat_inbound.
	Call    *Call        `json:"call,omitempty"`
	Chat    *Chat        `json:"chat,omitempty"`
	Inbound *InboundCall `json:"-"`

	// Of a transfer.
	TransferDestination *TransferDestination `json:"transfer_destination,omitempty"`
	TransferOption      json.RawMessage      `json:"transfer_option,omitempty"`

	// Signed is when Retell signed it; the zero time from [ParseWebhook].
	Signed time.Time `json:"-"`
	// Raw is the whole body.
	Raw json.RawMessage `json:"-"`
}

// TransferDestination is where a call goes.
type TransferDestination struct {
	Number    string `json:"number,omitempty"`
	Extension string `json:"extension,omitempty"`
}

// InboundCall is a call or text that came in and waits to be told what to do.
type InboundCall struct {
	CallID           string       `json:"call_id,omitempty"`
	ChatID           string       `json:"chat_id,omitempty"`
	AgentID          string       `json:"agent_id,omitempty"`
	AgentVersion     AgentVersion `json:"agent_version,omitzero"`
	FromNumber       string       `json:"from_number"`
	ToNumber         string       `json:"to_number"`
	CustomSIPHeaders Variables    `json:"custom_sip_headers,omitempty"`
}

// ParseWebhook reads a webhook that was verified. Its error says nothing of the body.
func ParseWebhook(body []byte) (*WebhookEvent, error) {
	var shape struct {
		Event       Event                `json:"event"`
		Call        json.RawMessage      `json:"call"`
		Chat        json.RawMessage      `json:"chat"`
		CallInbound *InboundCall         `json:"call_inbound"`
		ChatInbound *InboundCall         `json:"chat_inbound"`
		Destination *TransferDestination `json:"transfer_destination"`
		Option      json.RawMessage      `json:"transfer_option"`
	}
	if err := decodeLenient(body, &shape); err != nil || shape.Event == "" {
		return nil, errors.New("retell: webhook is not JSON with an event")
	}
	e := &WebhookEvent{
		Event: shape.Event, Inbound: shape.CallInbound, TransferDestination: shape.Destination,
		TransferOption: shape.Option, Raw: append(json.RawMessage(nil), body...),
	}
	if e.Inbound == nil {
		e.Inbound = shape.ChatInbound
	}
	var err error
	if e.Call, err = partOf[Call](shape.Call); err != nil {
		return nil, fmt.Errorf("retell: webhook %w", err)
	}
	if e.Chat, err = partOf[Chat](shape.Chat); err != nil {
		return nil, fmt.Errorf("retell: webhook %w", err)
	}
	return e, nil
}

func partOf[T any](raw json.RawMessage) (*T, error) {
	if len(raw) == 0 || string(raw) == "null" {
		return nil, nil
	}
	out := new(T)
	if decodeLenient(raw, out) != nil {
		return nil, errors.New("has a call or chat that is not an object")
	}
	return out, nil
}

// ID is the call or chat that the event is about; "" if there is none.
func (e *WebhookEvent) ID() string {
	switch {
	case e.Call != nil:
		return e.Call.CallID
	case e.Chat != nil:
		return e.Chat.ChatID
	case e.Inbound != nil && e.Inbound.CallID != "":
		return e.Inbound.CallID
	case e.Inbound != nil:
		return e.Inbound.ChatID
	}
	return ""
}

// Key names the event: it is the same for every delivery of it, and another one for every other event. It holds no phone
// number and fits [resilience.WithIdempotencyKey], so a queue or a table can tell by it what was there before. It is
// "call_ended:" and the call id for events that happen once in the life of a call or chat.
func (e *WebhookEvent) Key() string {
	id := e.ID()
	key := string(e.Event) + ":" + id
	if e.once() && id != "" && len(key) <= maxEventKey && !strings.ContainsFunc(key, unicode.IsControl) {
		return key
	}
	sum := sha256.Sum256([]byte(e.identity()))
	return "event:" + hex.EncodeToString(sum[:])
}

// maxEventKey leaves room for a prefix of the user's.
const maxEventKey = 200

// once reports whether the event happens once in the life of what it is about.
func (e *WebhookEvent) once() bool {
	switch e.Event {
	case EventCallStarted, EventCallEnded, EventCallAnalyzed, EventChatStarted, EventChatEnded, EventChatAnalyzed,
		EventCallInbound, EventChatInbound:
		return true
	}
	return false
}

// identity is the same for deliveries of one event. Retell sends no id with it: the events in the life of a call happen
// once for each; transfers may happen again, at another time or to another place; anything else is told by its content.
func (e *WebhookEvent) identity() string {
	id := e.ID()
	if e.once() && id != "" {
		return joined(string(e.Event), id)
	}
	switch e.Event {
	case EventTransferStarted, EventTransferBridged, EventTransferCancelled, EventTransferEnded:
		if id != "" {
			to := e.destination()
			return joined(string(e.Event), id, strconv.FormatInt(int64(e.started()), 10), to.Number, to.Extension)
		}
	}
	sum := sha256.Sum256(e.Raw)
	return joined(string(e.Event), id, hex.EncodeToString(sum[:]))
}

func (e *WebhookEvent) destination() TransferDestination {
	if e.TransferDestination == nil {
		return TransferDestination{}
	}
	return *e.TransferDestination
}

func (e *WebhookEvent) started() Timestamp {
	if e.Call == nil {
		return 0
	}
	return e.Call.StartTimestamp
}

// joined keeps parts apart whatever they hold.
func joined(parts ...string) string {
	var b strings.Builder
	for _, p := range parts {
		fmt.Fprintf(&b, "%d:%s,", len(p), p)
	}
	return b.String()
}
