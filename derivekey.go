package resilience

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/retell-resilience/resilience/internal/canonical"
)

// DeriveKey makes an idempotency key from what a call is meant to do, for [WithIdempotencyKey]. The same operation,
// params and scope give the same key: in the next try, after a restart, on another machine, with a later version of this
// library. Anything else gives another key.
//
// # Scope
//
// Two calls that are meant to be two, but look the same, need different scopes. Without one, the reminder for the second
// appointment of the same patient has the key of the first, and is answered from its record instead of being made:
//
//	DeriveKey("create-phone-call", params)                                        // one call to this patient
//	DeriveKey("create-phone-call", params, "reminder", appointment.ID)            // one call for each appointment
//	DeriveKey("create-phone-call", params, "daily check", day.Format(time.DateOnly)) // one call a day
//
// A scope is what makes the intent one of its kind and is found again by whoever tries it again: the id of an
// appointment, order or task, a date, the number of the step. An empty part counts as a part, so make sure that the id is
// filled in.
//
// Neither params nor scope must hold what changes between two tries of one intent, or each try gets a key of its own and
// the phone rings again: the current time, also inside dynamic variables; random and request or trace ids; counters of
// attempts; host names. Leave out credentials as well: a new API key must not make a new call.
//
// # Form
//
// params are compared as JSON: the order of members, space and escapes do not matter, and a struct and a map with the
// same JSON are the same. Every digit of a number counts (1 and 1.0 differ), an absent member is not null, and strings
// are compared byte by byte (a composed é is not a decomposed one). A []byte or [json.RawMessage] is taken as a JSON
// document, anything else is encoded with encoding/json. Nil is null.
//
// The key has 43 characters of A-Z, a-z, 0-9, - and _, so Retell takes it too. It is a hash: it shows nothing of the
// params, but who knows all of them but a phone number can try the numbers out.
//
// An empty operation is an error, and so are params without one clear meaning as JSON: NaN and infinite numbers, types
// that cannot be encoded, strings that are not UTF-8, members with the same name, nesting deeper than 256. The error
// does not quote them. DeriveKey is safe for concurrent use.
func DeriveKey(operation string, params any, scope ...string) (string, error) {
	if strings.TrimSpace(operation) == "" {
		return "", errors.New("deriving a key: the operation is empty")
	}
	doc, err := canonicalParams(params)
	if err != nil {
		return "", fmt.Errorf("deriving a key for %s: params: %w", operation, err)
	}
	// Changing a byte of this makes every running program ring twice for what it has done already. Each part goes with
	// its length before it, so that no two lists of parts are the same bytes.
	b := appendPart(appendPart(nil, "resilience.DeriveKey/1"), operation)
	b = appendPart(b, doc)
	for _, s := range scope {
		b = appendPart(b, s)
	}
	sum := sha256.Sum256(b)
	return base64.RawURLEncoding.EncodeToString(sum[:]), nil
}

func canonicalParams(params any) ([]byte, error) {
	switch p := params.(type) {
	case []byte:
		return canonical.JSON(p)
	case json.RawMessage:
		return canonical.JSON(p)
	default:
		return canonical.Marshal(p)
	}
}
