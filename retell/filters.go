package retell

import "encoding/json"

// Filter is one condition of a list. Make it with [Equals], [OneOf], [Between] and so on, and [Filter.On] where the
// condition is about a named member, as in metadata.
type Filter struct {
	Key   string          `json:"key,omitempty"`
	Type  string          `json:"type"`
	Op    string          `json:"op"`
	Value json.RawMessage `json:"value,omitempty"`
}

// On returns the filter for the member of that name, of metadata, dynamic variables and the like.
func (f Filter) On(key string) *Filter { f.Key = key; return &f }

// Equals holds for one text.
func Equals(text string) *Filter { return newFilter("string", "eq", text) }

// Text compares a text by "eq", "ne", "sw" (starts with), "ew" (ends with) or "co" (contains).
func Text(op, text string) *Filter { return newFilter("string", op, text) }

// Number compares a number by "eq", "ne", "gt", "ge", "lt" or "le".
func Number(op string, n float64) *Filter { return newFilter("number", op, n) }

// Is holds for one truth value.
func Is(b bool) *Filter { return newFilter("boolean", "eq", b) }

// Between holds for numbers in a range.
func Between(lower, upper float64) *Filter {
	return newFilter("range", "bt", [...]float64{lower, upper})
}

// OneOf holds for any of several texts.
func OneOf[T ~string](values ...T) *Filter { return newFilter("enum", "in", values) }

// Present holds where there is a value; Absent where there is none.
func Present() *Filter { return &Filter{Type: "present", Op: "pr"} }

// Absent holds where there is no value.
func Absent() *Filter { return &Filter{Type: "present", Op: "np"} }

func newFilter(kind, op string, value any) *Filter {
	data, err := encode(value)
	if err != nil { // a number that JSON does not have: the API refuses null
		data = []byte("null")
	}
	return &Filter{Type: kind, Op: op, Value: data}
}

// AgentFilter holds for calls of an agent, in any of the versions or, without versions, in all.
type AgentFilter struct {
	AgentID string `json:"agent_id"`
	Version []int  `json:"version,omitempty"`
}

// ToolCallFilter holds for calls in which a tool was called like that.
type ToolCallFilter struct {
	Name      string  `json:"name,omitempty"`
	Type      string  `json:"type,omitempty"`
	LatencyMS *Filter `json:"latency_ms,omitempty"`
	Success   *Filter `json:"success,omitempty"`
}

// CallFilter selects calls: all conditions must hold. nil fields are no condition. There is no way to ask for the status
// registered, and the API does not say whether such a call is listed: an empty answer does not prove that there is none.
type CallFilter struct {
	Agent               []AgentFilter    `json:"agent,omitempty"` // any of them
	AgentTag            *Filter          `json:"agent_tag,omitempty"`
	CallID              *Filter          `json:"call_id,omitempty"`
	BatchCallID         *Filter          `json:"batch_call_id,omitempty"`
	CallStatus          *Filter          `json:"call_status,omitempty"`
	CallType            *Filter          `json:"call_type,omitempty"`
	Direction           *Filter          `json:"direction,omitempty"`
	DisconnectionReason *Filter          `json:"disconnection_reason,omitempty"`
	DataStorageSetting  *Filter          `json:"data_storage_setting,omitempty"`
	UserSentiment       *Filter          `json:"user_sentiment,omitempty"`
	CallSuccessful      *Filter          `json:"call_successful,omitempty"`
	InVoicemail         *Filter          `json:"in_voicemail,omitempty"`
	FromNumber          *Filter          `json:"from_number,omitempty"`
	ToNumber            *Filter          `json:"to_number,omitempty"`
	StartTimestamp      *Filter          `json:"start_timestamp,omitempty"` // milliseconds since 1970
	EndTimestamp        *Filter          `json:"end_timestamp,omitempty"`
	DurationMS          *Filter          `json:"duration_ms,omitempty"`
	CombinedCost        *Filter          `json:"combined_cost,omitempty"` // cents
	E2ELatencyP50       *Filter          `json:"e2e_latency_p50,omitempty"`
	Metadata            []*Filter        `json:"metadata,omitempty"` // each with On(key), of the top level
	DynamicVariables    []*Filter        `json:"dynamic_variables,omitempty"`
	CustomAttributes    []*Filter        `json:"custom_attributes,omitempty"`
	CustomAnalysisData  []*Filter        `json:"custom_analysis_data,omitempty"`
	ToolCalls           []ToolCallFilter `json:"tool_calls,omitempty"` // all of them
}

// ChatFilter selects chats: all conditions must hold. There is no filter for metadata.
type ChatFilter struct {
	Agent               []AgentFilter `json:"agent,omitempty"` // any of them
	AgentTag            *Filter       `json:"agent_tag,omitempty"`
	ChatID              *Filter       `json:"chat_id,omitempty"`
	ChatStatus          *Filter       `json:"chat_status,omitempty"`
	ChatType            *Filter       `json:"chat_type,omitempty"`
	ChatSuccessful      *Filter       `json:"chat_successful,omitempty"`
	Direction           *Filter       `json:"direction,omitempty"`
	AgentNumber         *Filter       `json:"agent_number,omitempty"`
	UserNumber          *Filter       `json:"user_number,omitempty"`
	DisconnectionReason *Filter       `json:"disconnection_reason,omitempty"`
	DataStorageSetting  *Filter       `json:"data_storage_setting,omitempty"`
	UserSentiment       *Filter       `json:"user_sentiment,omitempty"`
	StartTimestamp      *Filter       `json:"start_timestamp,omitempty"`
	EndTimestamp        *Filter       `json:"end_timestamp,omitempty"`
	DurationMS          *Filter       `json:"duration_ms,omitempty"`
	CombinedCost        *Filter       `json:"combined_cost,omitempty"`
	CustomAttributes    []*Filter     `json:"custom_attributes,omitempty"`
	CustomAnalysisData  []*Filter     `json:"custom_analysis_data,omitempty"`
}
