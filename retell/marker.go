package retell

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// A call is found again by a marker: one member of its metadata, the same for every request under one key. Metadata comes
// back from get-call, list-calls and webhooks, and list-calls can filter by it. The marker is the id of the key's record;
// the calls of a batch have a suffix, since they are not themselves what the key stands for.
const (
	markerKey    = "rk_key"
	markerLength = 26
	batchSuffix  = "-batch"
)

// markerOf is the marker of what an operation creates under the record with that id.
func markerOf(operation, recordID string) string {
	if marked[operation].tasks {
		return recordID + batchSuffix
	}
	return recordID
}

// parseMarker reads a record's id back from metadata.
func parseMarker(metadata Metadata) (recordID string, batch, ok bool) {
	text, _ := metadata[markerKey].(string)
	recordID, batch = strings.CutSuffix(text, batchSuffix)
	if len(recordID) != markerLength {
		return "", false, false
	}
	for _, r := range []byte(recordID) {
		if (r < 'a' || r > 'z') && (r < '2' || r > '7') {
			return "", false, false
		}
	}
	return recordID, batch, true
}

// fitsServerKey reports whether Retell takes text as an idempotency_key.
func fitsServerKey(text string) bool {
	if len(text) < 5 || len(text) > 255 {
		return false
	}
	for _, r := range []byte(text) {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r == '_', r == '-':
		default:
			return false
		}
	}
	return true
}

// mappedPrefix begins a key of ours that Retell would not take as it is.
const mappedPrefix = "rk_"

// serverKey maps a key to one that Retell takes, always to the same.
func serverKey(key string) string {
	if fitsServerKey(key) {
		return key
	}
	sum := sha256.Sum256([]byte(key))
	return mappedPrefix + base64.RawURLEncoding.EncodeToString(sum[:])
}

// marked says where the marker goes in the body of an operation.
var marked = map[string]struct{ tasks, serverKey bool }{
	"create-phone-call":   {serverKey: true},
	"create-web-call":     {},
	"register-phone-call": {},
	"create-chat":         {},
	"create-sms-chat":     {},
	"create-batch-call":   {tasks: true},
}

// errBody is inside the errors of markBody. Their text holds nothing of the body.
var errBody = errors.New("the request cannot be marked")

// markBody adds the marker to the metadata of a request, and Retell's own idempotency_key where the operation takes one. All
// other bytes stay as they are; the same input always gives the same output, because Retell compares what is sent under
// one key. Other operations pass unchanged.
func markBody(operation string, body []byte, recordID, key string) ([]byte, error) {
	how, ok := marked[operation]
	if !ok {
		return body, nil
	}
	top, err := scanObject(body, 0)
	if err != nil {
		return nil, err
	}
	var edits []edit
	if how.tasks {
		edits, err = markTasks(body, top, markerOf(operation, recordID))
	} else {
		edits, err = markMetadata(body, top, markerOf(operation, recordID))
	}
	if err != nil {
		return nil, err
	}
	if how.serverKey {
		edits = append(edits, markServerKey(body, top, serverKey(key))...)
	}
	return splice(body, edits), nil
}

// markServerKey adds Retell's own key unless the caller has one. null and "" are the same as none, as what encodes a struct
// without omitempty sends them: with ServerKeysTrust the call is sent again on the strength of this key.
func markServerKey(body []byte, top *object, key string) []edit {
	at, ok := top.find("idempotency_key")
	switch {
	case !ok:
		return []edit{top.insert("idempotency_key", jsonText(key))}
	case string(body[at.start:at.end]) == "null", string(body[at.start:at.end]) == `""`:
		return []edit{{at, jsonText(key)}}
	}
	return nil
}

// markTasks marks each call of a batch. A body without tasks is left for the API to refuse.
func markTasks(body []byte, top *object, marker string) ([]edit, error) {
	tasks, ok := top.find("tasks")
	if !ok || body[tasks.start] != '[' {
		return nil, nil
	}
	elements, err := scanArray(body, tasks.start)
	if err != nil {
		return nil, err
	}
	var edits []edit
	for i, at := range elements {
		if body[at.start] != '{' {
			continue // as above
		}
		task, err := scanObject(body[:at.end], at.start)
		if err != nil {
			return nil, err
		}
		more, err := markMetadata(body, task, marker)
		if err != nil {
			return nil, fmt.Errorf("tasks[%d]: %w", i, err)
		}
		edits = append(edits, more...)
	}
	return edits, nil
}

// markMetadata puts the marker into the metadata of one object. null is the same as none.
func markMetadata(body []byte, in *object, marker string) ([]edit, error) {
	value := jsonText(marker)
	at, ok := in.find("metadata")
	switch {
	case !ok:
		return []edit{in.insert("metadata", `{"`+markerKey+`":`+value+`}`)}, nil
	case string(body[at.start:at.end]) == "null":
		return []edit{{at, `{"` + markerKey + `":` + value + `}`}}, nil
	case body[at.start] != '{':
		return nil, fmt.Errorf("%w: metadata is not a JSON object", errBody)
	}
	metadata, err := scanObject(body[:at.end], at.start)
	if err != nil {
		return nil, err
	}
	if old, ok := metadata.find(markerKey); ok { // copied from an older call
		return []edit{{old, value}}, nil
	}
	return []edit{metadata.insert(markerKey, value)}, nil
}

// span is a stretch of bytes of a body.
type span struct{ start, end int }

// edit puts text in the place of a span.
type edit struct {
	span
	text string
}

// splice applies edits that do not overlap, in any order.
func splice(body []byte, edits []edit) []byte {
	out := make([]byte, 0, len(body)+len(edits)*64)
	from := 0
	slices.SortStableFunc(edits, func(a, b edit) int { return cmp.Compare(a.start, b.start) })
	for _, e := range edits {
		out = append(out, body[from:e.start]...)
		out = append(out, e.text...)
		from = e.end
	}
	return append(out, body[from:]...)
}

// object is where the members of a JSON object are.
type object struct {
	members map[string]span // of the values
	close   int             // of the brace
	comma   string          // before the next member
}

func (o *object) find(name string) (span, bool) {
	s, ok := o.members[name]
	return s, ok
}

// insert puts a member last.
func (o *object) insert(name, value string) edit {
	e := edit{span{o.close, o.close}, o.comma + jsonText(name) + ":" + value}
	o.comma = ","
	return e
}

// scanObject finds the members of the object that starts at an offset and goes to the end of body. A name that occurs twice
// is refused: nobody can say which of the two the other side takes.
func scanObject(body []byte, start int) (*object, error) {
	d := json.NewDecoder(bytes.NewReader(body[start:]))
	open, err := d.Token()
	if err != nil || open != json.Delim('{') {
		return nil, fmt.Errorf("%w: its body is not a JSON object", errBody)
	}
	o := &object{members: map[string]span{}}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return nil, fmt.Errorf("%w: its body is not valid JSON", errBody)
		}
		at, err := nextValue(d, start)
		if err != nil {
			return nil, err
		}
		text, _ := name.(string) // names are text
		if _, twice := o.members[text]; twice {
			return nil, fmt.Errorf("%w: its body has a member twice", errBody)
		}
		o.members[text], o.comma = at, ","
	}
	if _, err := d.Token(); err != nil {
		return nil, fmt.Errorf("%w: its body is not valid JSON", errBody)
	}
	o.close = start + int(d.InputOffset()) - 1
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: its body has something after the JSON object", errBody)
	}
	return o, nil
}

// scanArray finds the elements of an array that is known to be valid.
func scanArray(body []byte, start int) ([]span, error) {
	d := json.NewDecoder(bytes.NewReader(body[start:]))
	if _, err := d.Token(); err != nil {
		return nil, fmt.Errorf("%w: its body is not valid JSON", errBody)
	}
	var elements []span
	for d.More() {
		at, err := nextValue(d, start)
		if err != nil {
			return nil, err
		}
		elements = append(elements, at)
	}
	return elements, nil
}

// nextValue reads one value and says where it is.
func nextValue(d *json.Decoder, offset int) (span, error) {
	var raw json.RawMessage
	if err := d.Decode(&raw); err != nil {
		return span{}, fmt.Errorf("%w: its body is not valid JSON", errBody)
	}
	end := offset + int(d.InputOffset())
	return span{end - len(raw), end}, nil
}

// jsonText quotes text that needs no escaping.
func jsonText(text string) string { return `"` + text + `"` }
