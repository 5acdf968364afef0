package retell

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/retell-resilience/resilience"
	"github.com/retell-resilience/resilience/internal/retryafter"
)

// What Retell said, for errors.Is. Errors of the layers (circuit open, in doubt, parked …) are those of package resilience.
var (
	// ErrUnauthorized: the API key is missing, wrong (401), or may not do this (403).
	ErrUnauthorized = errors.New("API key refused")
	// ErrPaymentRequired: the workspace cannot pay (402). No call will work until that is fixed.
	ErrPaymentRequired = errors.New("payment required")
	// ErrNotFound: there is nothing under that id for this API key: 404, or 422 where the API uses that.
	ErrNotFound = errors.New("not found")
	// ErrRateLimited: too many requests, or no free call slot (429).
	ErrRateLimited = errors.New("rate limited")
	// ErrInvalid: a request that can never work (400, 422), or one that this package refused to send.
	ErrInvalid = errors.New("invalid request")
	// ErrBadAnswer: Retell accepted the request (2xx), but the answer cannot be understood. Error.Message has it.
	ErrBadAnswer = errors.New("accepted, but the answer cannot be understood")
)

// Error is an answer of Retell that is not a success. Read it with [errors.As]; ask for a kind with [errors.Is].
//
// Its text is operation and status. Retell's message is not in it, because messages quote what was sent, and texts of
// errors end up in logs: read Message, knowing that it may hold phone numbers.
type Error struct {
	// Operation is Retell's name for what was asked, such as "create-phone-call".
	Operation string
	// StatusCode of the answer. 0: the request was refused here and never sent.
	StatusCode int
	// Message is what Retell said, or the start of a body that has no message. May hold personal data. At most 2 KiB.
	Message string
	// RetryAfter is how long Retell asks to wait, at most a day. 0: it did not say.
	RetryAfter time.Duration

	kinds []error
	text  string
}

// Error returns operation and status, for a refused field its name, and nothing that the other side wrote.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("retell: ")
	b.WriteString(e.Operation)
	if e.StatusCode != 0 {
		fmt.Fprintf(&b, ": status %d", e.StatusCode)
	}
	if e.text != "" {
		b.WriteString(": " + e.text)
	}
	for _, kind := range e.kinds {
		b.WriteString(": " + kind.Error())
	}
	return b.String()
}

// HTTPStatus returns StatusCode.
func (e *Error) HTTPStatus() int { return e.StatusCode }

// Unwrap returns the kinds of the error. An answer that leaves open whether a call was placed is a
// resilience.ErrInDoubt too.
func (e *Error) Unwrap() []error { return e.kinds }

// IsNotFound reports whether err says that there is nothing under that id, with whatever status.
func IsNotFound(err error) bool { return errors.Is(err, ErrNotFound) }

const maxMessage = 2 << 10

// errorOf makes an error of an answer outside 2xx.
func errorOf(c resilience.Call, r *route, status int, h http.Header, body []byte) *Error {
	after, _ := retryafter.Parse(h, time.Now())
	return &Error{
		Operation: c.Operation, StatusCode: status, Message: messageOf(body),
		RetryAfter: after, kinds: kindsOf(c, r, status),
	}
}

func kindsOf(c resilience.Call, r *route, status int) []error {
	switch {
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return []error{ErrUnauthorized}
	case status == http.StatusPaymentRequired:
		return []error{ErrPaymentRequired}
	case status == http.StatusNotFound,
		status == http.StatusUnprocessableEntity && r != nil && r.traits&absent422 != 0:
		return []error{ErrNotFound}
	case status == http.StatusTooManyRequests:
		return []error{ErrRateLimited}
	case status == http.StatusBadRequest, status == http.StatusUnprocessableEntity:
		return []error{ErrInvalid}
	case c.Effect == resilience.EffectOnce && leavesDoubt(status):
		return []error{resilience.ErrInDoubt}
	default:
		return nil
	}
}

// leavesDoubt mirrors what the layers call in doubt, for a stack in which they are off.
func leavesDoubt(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusConflict, http.StatusTooEarly, 499:
		return true
	}
	return status >= 500 || status < 400
}

// badAnswer is for a 2xx that cannot be understood: whatever was asked for has happened.
func badAnswer(c resilience.Call, status int, body []byte) *Error {
	kinds := []error{ErrBadAnswer}
	if c.Effect == resilience.EffectOnce {
		kinds = append(kinds, resilience.ErrInDoubt)
	}
	return &Error{Operation: c.Operation, StatusCode: status, Message: capped(string(body)), kinds: kinds}
}

// invalid is for a request that is refused here, before anything is sent.
func invalid(operation, field, why string) error {
	return resilience.MarkNotSent(&Error{Operation: operation, text: field + " " + why, kinds: []error{ErrInvalid}})
}

// field is a part of a request that must be there.
type field struct{ name, value string }

// missing names the first required field that is empty.
func missing(operation string, fields ...field) error {
	for _, f := range fields {
		if f.value == "" {
			return invalid(operation, f.name, "is missing")
		}
	}
	return nil
}

// byID checks an id and puts it behind the path of an operation.
func byID(path, name, id string) (string, error) {
	head, _ := splitName(path[1:])
	operation := head[strings.IndexByte(head, '/')+1:]
	switch id {
	case "":
		return "", invalid(operation, name, "is missing")
	case ".", "..":
		return "", invalid(operation, name, "is not an id")
	}
	return path + "/" + PathID(id), nil
}

// messageOf finds the message in either of the API's error shapes; other bodies (a proxy's HTML) are taken as text.
func messageOf(body []byte) string {
	var shape struct {
		Message      json.RawMessage `json:"message"`
		ErrorMessage json.RawMessage `json:"error_message"`
	}
	if json.Unmarshal(body, &shape) == nil {
		for _, raw := range []json.RawMessage{shape.Message, shape.ErrorMessage} {
			var text string
			switch {
			case len(raw) == 0:
			case json.Unmarshal(raw, &text) != nil:
				return capped(string(raw))
			case text != "":
				return capped(text)
			}
		}
	}
	return capped(string(body))
}

func capped(text string) string {
	text = strings.TrimSpace(text)
	if len(text) > maxMessage {
		text = text[:maxMessage]
	}
	return strings.ToValidUTF8(text, "")
}

// withoutID is for a create whose answer has no id.
func withoutID(operation string, m Meta) error {
	e := badAnswer(resilience.Call{Operation: operation, Effect: resilience.EffectOnce}, m.StatusCode, m.Raw)
	e.text = "the id is missing"
	return e
}
