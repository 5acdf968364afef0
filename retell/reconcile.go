package retell

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/retell-resilience/resilience"
)

// reconciler marks requests with their key and finds calls again by it. See [Client.Reconciler].
type reconciler struct {
	client *Client // nil: marks, and finds nothing
	prefix string  // the path of the base URL
}

var (
	_ resilience.Reconciler = (*reconciler)(nil)
	_ resilience.Identifier = (*reconciler)(nil)
	_ resilience.KeyHonorer = (*reconciler)(nil)
	_ resilience.Finder     = (*reconciler)(nil)
)

// honored is how long Retell honours an idempotency_key, with room for a slow request: it says one hour.
const honored = 55 * time.Minute

// HonorsKey implements [resilience.KeyHonorer]: only create-phone-call takes a key.
func (r *reconciler) HonorsKey(operation string) time.Duration {
	if operation == "create-phone-call" {
		return honored
	}
	return 0
}

// Reconciler is how a call whose answer was lost is found again: every call that creates something for a person carries
// a marker in its metadata (the member "rk_key"), and create-phone-call the key as Retell's own idempotency_key. A look-up
// asks list-calls for the marker and checks it in each call that comes back. Nothing found proves nothing: Retell does
// not say whether a call that is still ringing is listed.
//
// A client made by [New] has it already. It is here for a stack around hand-written requests:
//
//	cfg := retell.Config()
//	cfg.Idempotency.Reconcile = client.Reconciler()
//
// Chats and texts carry the marker too. Retell has no way to look for them by it, but their webhooks bring it back: see
// [Client.Observe].
func (c *Client) Reconciler() resilience.Reconciler { return &reconciler{c, c.prefix} }

// Mark implements [resilience.Reconciler].
func (r *reconciler) Mark(req *http.Request, key string) error {
	call := describePath(req.Method, strings.TrimPrefix(req.URL.EscapedPath(), r.prefix))
	if _, ok := marked[call.Operation]; !ok {
		return nil
	}
	var body []byte
	if req.Body != nil {
		var err error
		if body, err = io.ReadAll(req.Body); err != nil {
			return fmt.Errorf("%w: its body cannot be read", errBody)
		}
		_ = req.Body.Close() // it is read
	}
	plain := plainID(key)
	id := resilience.RecordID(req.Context())
	switch {
	case id == "":
		id = plain
	case id != plain: // a namespace keeps keys apart; at Retell it must too
		key = id + ":" + key
	}
	out, err := markBody(call.Operation, body, id, key)
	if err != nil {
		return err
	}
	req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(out)), int64(len(out))
	req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(out)), nil }
	req.Header.Del("Content-Length")
	return nil
}

// plainID is the id of a key's record where no namespace is set.
func plainID(key string) string { return new(resilience.Idempotency).ID(key) }

// createdIDs are the ids in an answer about something created.
type createdIDs struct {
	CallID      string `json:"call_id,omitempty"`
	ChatID      string `json:"chat_id,omitempty"`
	BatchCallID string `json:"batch_call_id,omitempty"`
}

// of is the id that an operation is about.
func (ids *createdIDs) of(operation string) *string {
	switch operation {
	case "create-chat", "create-sms-chat":
		return &ids.ChatID
	case "create-batch-call":
		return &ids.BatchCallID
	}
	return &ids.CallID
}

// CallID implements [resilience.Identifier].
func (r *reconciler) CallID(operation string, body []byte) (id string, ok bool) {
	if _, creates := marked[operation]; !creates {
		return "", true
	}
	var ids createdIDs
	if decodeLenient(body, &ids) != nil {
		return "", false
	}
	id = *ids.of(operation)
	return id, id != ""
}

// Answer implements [resilience.Answerer].
func (r *reconciler) Answer(operation, id string) []byte {
	if _, creates := marked[operation]; !creates {
		return nil
	}
	var ids createdIDs
	*ids.of(operation) = id
	text, err := json.Marshal(ids)
	if err != nil {
		return nil
	}
	return text
}

// Find implements [resilience.Reconciler].
func (r *reconciler) Find(ctx context.Context, rec resilience.Record) (resilience.Evidence, error) {
	ev := resilience.Evidence{ID: rec.ID, Source: "lookup"}
	if r.client == nil || !listed(rec.Operation) {
		return ev, nil
	}
	calls, err := findCalls(markerOf(rec.Operation, rec.ID), func(p ListCallsParams) (*Page[Call], error) {
		return r.client.Calls.ListPage(ctx, p)
	})
	if err != nil {
		return ev, err
	}
	for _, call := range calls {
		found, ok := foundIn(call)
		switch {
		case ok:
			ev.Calls = append(ev.Calls, found)
		case !marked[rec.Operation].tasks: // it was made, whatever its id: not absent
			return ev, errors.New("retell: list-calls: a call of the key has no id")
		}
	}
	return ev, nil
}

// Finds implements [resilience.Finder]. Chats and texts cannot be looked for. The calls of a batch need not say which
// batch they are of, so that one that was made may look as if it was not.
func (r *reconciler) Finds(operation string) bool {
	return r.client != nil && listed(operation) && !marked[operation].tasks
}

// listed reports whether list-calls shows what an operation creates.
func listed(operation string) bool {
	switch operation {
	case "create-phone-call", "create-web-call", "register-phone-call", "create-batch-call":
		return true
	}
	return false
}

// foundIn says what a marked call proves. One of a batch proves the batch, if it says which it is of; the calls of a batch
// are many and would look like a dispute.
func foundIn(call *Call) (resilience.Found, bool) {
	_, batch, ok := parseMarker(call.Metadata)
	switch {
	case !ok:
		return resilience.Found{}, false
	case !batch:
		body, err := json.Marshal(asCreated(call))
		return resilience.Found{ID: call.CallID, Body: body}, err == nil && call.CallID != ""
	}
	var of struct {
		BatchCallID string `json:"batch_call_id"`
	}
	if decodeLenient(call.Raw, &of) != nil || of.BatchCallID == "" {
		return resilience.Found{}, false
	}
	body, err := json.Marshal(of)
	return resilience.Found{ID: of.BatchCallID, Body: body}, err == nil
}

// createdCall is what the answer to a create would have said of a call: no transcript, no recording, no token.
type createdCall struct {
	CallID       string       `json:"call_id"`
	CallType     CallType     `json:"call_type"`
	CallStatus   CallStatus   `json:"call_status"`
	AgentID      string       `json:"agent_id"`
	AgentVersion AgentVersion `json:"agent_version,omitzero"`
	FromNumber   string       `json:"from_number,omitempty"`
	ToNumber     string       `json:"to_number,omitempty"`
	Direction    Direction    `json:"direction,omitempty"`
	Metadata     Metadata     `json:"metadata,omitempty"`
}

func asCreated(c *Call) createdCall {
	return createdCall{
		CallID: c.CallID, CallType: c.CallType, CallStatus: c.CallStatus, AgentID: c.AgentID, AgentVersion: c.AgentVersion,
		FromNumber: c.FromNumber, ToNumber: c.ToNumber, Direction: c.Direction, Metadata: c.Metadata,
	}
}

const (
	findLimit    = 100
	findMaxPages = 100
)

// findCalls returns every call that carries the marker, from all pages. It does not trust the filter: a server that does not
// know it would answer with a page of strangers. It sets no bound on start_timestamp, which a call has only once it started.
func findCalls(marker string, list func(ListCallsParams) (*Page[Call], error)) ([]*Call, error) {
	p := ListCallsParams{
		FilterCriteria: &CallFilter{Metadata: []*Filter{Equals(marker).On(markerKey)}},
		SortOrder:      SortDescending,
		Limit:          findLimit,
	}
	var found []*Call
	pages := 0
	tooMany := errors.New("retell: list-calls: a look-up does not come to its end")
	for call, err := range all("list-calls", "", func(key string) (*Page[Call], error) {
		if pages++; pages > findMaxPages {
			return nil, tooMany
		}
		p.PaginationKey = key
		return list(p)
	}) {
		if err != nil {
			return nil, err
		}
		if text, _ := call.Metadata[markerKey].(string); text == marker {
			found = append(found, call)
		}
	}
	return found, nil
}

// evidenceOf is what a call from a webhook proves about the key that made it.
func evidenceOf(call *Call) (resilience.Evidence, bool) {
	if call == nil {
		return resilience.Evidence{}, false
	}
	id, _, ok := parseMarker(call.Metadata)
	if !ok {
		return resilience.Evidence{}, false
	}
	found, ok := foundIn(call)
	return resilience.Evidence{ID: id, Calls: []resilience.Found{found}, Source: "webhook"}, ok
}

// evidenceOfChat is the same for a chat or a text, which no look-up finds.
func evidenceOfChat(chat *Chat) (resilience.Evidence, bool) {
	if chat == nil {
		return resilience.Evidence{}, false
	}
	id, batch, ok := parseMarker(chat.Metadata)
	if !ok || batch || chat.ChatID == "" {
		return resilience.Evidence{}, false
	}
	body, err := json.Marshal(createdChat{
		ChatID: chat.ChatID, AgentID: chat.AgentID, ChatStatus: chat.ChatStatus, ChatType: chat.ChatType, Version: chat.Version,
		Metadata: chat.Metadata,
	})
	found := resilience.Found{ID: chat.ChatID, Body: body}
	return resilience.Evidence{ID: id, Calls: []resilience.Found{found}, Source: "webhook"}, err == nil
}

// createdChat is what the answer to a create would have said of a chat: no transcript.
type createdChat struct {
	ChatID     string       `json:"chat_id"`
	AgentID    string       `json:"agent_id"`
	ChatStatus ChatStatus   `json:"chat_status"`
	ChatType   ChatType     `json:"chat_type,omitempty"`
	Version    AgentVersion `json:"version,omitzero"`
	Metadata   Metadata     `json:"metadata,omitempty"`
}
