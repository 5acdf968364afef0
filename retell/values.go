package retell

import (
	"bytes"
	"encoding/json"
	"math"
	"strconv"
	"time"

	"github.com/retell-resilience/resilience"
)

// Ptr returns a pointer to v, for the few request fields where a zero is not the same as nothing.
func Ptr[T any](v T) *T { return &v }

// Meta is in every answer: where it came from, and the JSON as it was received, which also has what the types here do not.
type Meta struct {
	// StatusCode of the HTTP answer; 0 on the items of a page.
	StatusCode int
	// Raw is the JSON that this value was decoded from. A field of the API that does not fit its type here is left zero
	// rather than failing the whole answer; it stands in Raw all the same.
	Raw json.RawMessage
	// FromFallback: Retell was not asked, or could not be, and this is the last good answer. Age is how old it is,
	// Staleness how far that is from fresh, and FallbackReason why it was served, see resilience.ServedReason. An answer of
	// [Fallback] or FallbackConfig.Func has no age.
	FromFallback   bool
	Age            time.Duration
	Staleness      resilience.Staleness
	FallbackReason string
	// Replayed: this is the answer to an earlier request with the same idempotency key.
	Replayed bool
}

func (m *Meta) meta() *Meta { return m }

// described is what every answer type is, by embedding Meta.
type described interface{ meta() *Meta }

// Empty is the answer of an operation that returns nothing.
type Empty struct {
	Meta `json:"-"`
}

// Metadata is a JSON object that Retell stores with a call or chat and gives back: in get-call, list-calls and webhooks.
// Values are whatever encoding/json encodes. In answers a number is a [json.Number], so that every digit of a long id
// survives. The member "rk_key" belongs to this package, see [Config].
type Metadata map[string]any

// UnmarshalJSON keeps the digits of numbers. Anything but an object leaves m nil: the API does not promise an object.
func (m *Metadata) UnmarshalJSON(data []byte) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	var out map[string]any
	_ = d.Decode(&out) // nil for anything else
	*m = out
	return nil
}

// Variables are dynamic variables or SIP headers: text by name. A value that is not text is kept as its JSON text.
type Variables map[string]string

// UnmarshalJSON never fails; older answers have values that are not text.
func (v *Variables) UnmarshalJSON(data []byte) error {
	var raw map[string]json.RawMessage
	if json.Unmarshal(data, &raw) != nil || raw == nil {
		*v = nil
		return nil // as lenient as every answer
	}
	out := make(Variables, len(raw))
	for name, value := range raw {
		var text string
		if json.Unmarshal(value, &text) != nil {
			text = string(value)
		}
		out[name] = text
	}
	*v = out
	return nil
}

// AgentVersion names a version of an agent, by number or by tag. The zero value names none and is not sent.
type AgentVersion struct {
	tag    string
	number int
	kind   versionKind
}

type versionKind uint8

const (
	noVersion versionKind = iota
	versionNumber
	versionTag
)

// The tags that always exist.
var (
	VersionLatest          = VersionTag("latest")
	VersionLatestPublished = VersionTag("latest_published")
)

// VersionNumber is the version with that number; 0 is a version.
func VersionNumber(n int) AgentVersion { return AgentVersion{number: n, kind: versionNumber} }

// VersionTag is the version that carries that tag, for example "prod".
func VersionTag(tag string) AgentVersion { return AgentVersion{tag: tag, kind: versionTag} }

// Number returns the number, if the version is named by one.
func (v AgentVersion) Number() (n int, ok bool) { return v.number, v.kind == versionNumber }

// Tag returns the tag, if the version is named by one.
func (v AgentVersion) Tag() (tag string, ok bool) { return v.tag, v.kind == versionTag }

// IsZero reports whether no version is named.
func (v AgentVersion) IsZero() bool { return v.kind == noVersion }

// String returns the number in digits, the tag, or "".
func (v AgentVersion) String() string {
	if v.kind == versionNumber {
		return strconv.Itoa(v.number)
	}
	return v.tag
}

// MarshalJSON encodes a number, a string, or null.
func (v AgentVersion) MarshalJSON() ([]byte, error) {
	switch v.kind {
	case versionNumber:
		return strconv.AppendInt(nil, int64(v.number), 10), nil
	case versionTag:
		return json.Marshal(v.tag)
	default:
		return []byte("null"), nil
	}
}

// UnmarshalJSON takes a number or a string; anything else names no version.
func (v *AgentVersion) UnmarshalJSON(data []byte) error {
	*v = AgentVersion{}
	var tag string
	if n, ok := integerOf(data); ok {
		*v = VersionNumber(int(n))
	} else if len(data) > 0 && data[0] == '"' && json.Unmarshal(data, &tag) == nil {
		*v = VersionTag(tag)
	}
	return nil
}

// Timestamp is a point in time in milliseconds since 1970, as the API counts. 0: none.
type Timestamp int64

// TimestampOf converts a time; the zero time gives 0.
func TimestampOf(t time.Time) Timestamp {
	if t.IsZero() {
		return 0
	}
	return Timestamp(t.UnixMilli())
}

// Time returns the time, in UTC; the zero time for 0.
func (t Timestamp) Time() time.Time {
	if t == 0 {
		return time.Time{}
	}
	return time.UnixMilli(int64(t)).UTC()
}

// UnmarshalJSON takes any JSON number, and 0 for anything else.
func (t *Timestamp) UnmarshalJSON(data []byte) error {
	n, _ := integerOf(data)
	*t = Timestamp(n)
	return nil
}

// Millis is a length of time in milliseconds.
type Millis int64

// Duration converts it.
func (m Millis) Duration() time.Duration { return time.Duration(m) * time.Millisecond }

// UnmarshalJSON takes any JSON number, and 0 for anything else.
func (m *Millis) UnmarshalJSON(data []byte) error {
	n, _ := integerOf(data)
	*m = Millis(n)
	return nil
}

// optional is nil unless there is a value of its type.
type optional[T any] struct{ value *T }

func (o *optional[T]) UnmarshalJSON(data []byte) error {
	if json.Unmarshal(data, &o.value) != nil {
		o.value = nil // not known, which is not the same as zero
	}
	return nil
}

// integerOf reads a JSON number, dropping a fraction.
func integerOf(data []byte) (int64, bool) {
	if n, err := strconv.ParseInt(string(data), 10, 64); err == nil {
		return n, true
	}
	f, err := strconv.ParseFloat(string(data), 64)
	if err != nil || math.IsNaN(f) || math.Abs(f) >= 1<<63 {
		return 0, false
	}
	return int64(f), true
}

// AgentOverride changes settings of the agent for one call. The settings are many: each part is JSON as the reference of
// the API describes it for the agent, its Retell LLM, or its conversation flow.
type AgentOverride struct {
	Agent            json.RawMessage `json:"agent,omitempty"`
	RetellLLM        json.RawMessage `json:"retell_llm,omitempty"`
	ConversationFlow json.RawMessage `json:"conversation_flow,omitempty"`
}
