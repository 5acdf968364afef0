package retell

import "encoding/json"

// Call is a phone call or a web call, as get-call returns it. Which fields are there depends on how far the call has come:
// what is absent is zero, or nil where a zero would say something.
type Call struct {
	Meta `json:"-"`

	CallID       string       `json:"call_id"`
	CallType     CallType     `json:"call_type"`
	CallStatus   CallStatus   `json:"call_status"`
	AgentID      string       `json:"agent_id"`
	AgentVersion AgentVersion `json:"agent_version,omitzero"`
	AgentName    string       `json:"agent_name,omitempty"`
	AgentTag     string       `json:"agent_tag,omitempty"`

	// Of a phone call.
	FromNumber          string               `json:"from_number,omitempty"`
	ToNumber            string               `json:"to_number,omitempty"`
	Direction           Direction            `json:"direction,omitempty"`
	TelephonyIdentifier *TelephonyIdentifier `json:"telephony_identifier,omitempty"`

	// Of a web call.
	AccessToken string `json:"access_token,omitempty"`

	Metadata                  Metadata           `json:"metadata,omitempty"`
	RetellLLMDynamicVariables Variables          `json:"retell_llm_dynamic_variables,omitempty"`
	CollectedDynamicVariables Variables          `json:"collected_dynamic_variables,omitempty"` // after the end
	CustomSIPHeaders          Variables          `json:"custom_sip_headers,omitempty"`
	DataStorageSetting        DataStorageSetting `json:"data_storage_setting,omitempty"`
	OptInSignedURL            *bool              `json:"opt_in_signed_url,omitempty"` // links below expire

	StartTimestamp       Timestamp           `json:"start_timestamp,omitempty"` // 0 until the call starts
	EndTimestamp         Timestamp           `json:"end_timestamp,omitempty"`
	TransferEndTimestamp Timestamp           `json:"transfer_end_timestamp,omitempty"`
	DurationMS           Millis              `json:"duration_ms,omitempty"` // after the end
	DisconnectionReason  DisconnectionReason `json:"disconnection_reason,omitempty"`
	TransferDestination  string              `json:"transfer_destination,omitempty"`

	// After the end; not in the items of a list. The union types of the entries with tools are left as JSON.
	Transcript                        string            `json:"transcript,omitempty"`
	TranscriptObject                  []Utterance       `json:"transcript_object,omitempty"`
	TranscriptWithToolCalls           []json.RawMessage `json:"transcript_with_tool_calls,omitempty"`
	ScrubbedTranscriptWithToolCalls   []json.RawMessage `json:"scrubbed_transcript_with_tool_calls,omitempty"`
	RecordingURL                      string            `json:"recording_url,omitempty"`
	RecordingMultiChannelURL          string            `json:"recording_multi_channel_url,omitempty"`
	ScrubbedRecordingURL              string            `json:"scrubbed_recording_url,omitempty"`
	ScrubbedRecordingMultiChannelURL  string            `json:"scrubbed_recording_multi_channel_url,omitempty"`
	PublicLogURL                      string            `json:"public_log_url,omitempty"`
	KnowledgeBaseRetrievedContentsURL string            `json:"knowledge_base_retrieved_contents_url,omitempty"`
	Latency                           *CallLatency      `json:"latency,omitempty"`
	CallCost                          *CallCost         `json:"call_cost,omitempty"`
	CallAnalysis                      *CallAnalysis     `json:"call_analysis,omitempty"`
	LLMTokenUsage                     *LLMTokenUsage    `json:"llm_token_usage,omitempty"`
}

// PhoneCall is a [Call] with CallType phone_call.
type PhoneCall = Call

// TelephonyIdentifier names the call at the carrier.
type TelephonyIdentifier struct {
	TwilioCallSID string `json:"twilio_call_sid,omitempty"`
}

// CallType tells the two kinds of calls apart.
type CallType string

// The call types. An API may add values to any of the enums here: treat one you do not know as such.
const (
	CallTypePhone CallType = "phone_call"
	CallTypeWeb   CallType = "web_call"
)

// Direction of a phone call.
type Direction string

// The directions.
const (
	DirectionInbound  Direction = "inbound"
	DirectionOutbound Direction = "outbound"
)

// CallStatus is how far a call has come.
type CallStatus string

// The call statuses.
const (
	CallStatusRegistered   CallStatus = "registered"    // there is an id; the call is being made
	CallStatusNotConnected CallStatus = "not_connected" // outbound, and never connected
	CallStatusOngoing      CallStatus = "ongoing"
	CallStatusEnded        CallStatus = "ended"
	CallStatusError        CallStatus = "error"
)

// Terminal reports whether nothing more will happen to the call.
func (s CallStatus) Terminal() bool {
	return s == CallStatusNotConnected || s == CallStatusEnded || s == CallStatusError
}

// DataStorageSetting is what Retell keeps of a call.
type DataStorageSetting string

// The data storage settings.
const (
	StoreEverything          DataStorageSetting = "everything"
	StoreEverythingExceptPII DataStorageSetting = "everything_except_pii"
	StoreBasicAttributesOnly DataStorageSetting = "basic_attributes_only"
)

// Role is who speaks.
type Role string

// The roles.
const (
	RoleAgent          Role = "agent"
	RoleUser           Role = "user"
	RoleTransferTarget Role = "transfer_target"
)

// Utterance is one turn of a transcript.
type Utterance struct {
	Role    Role   `json:"role"`
	Content string `json:"content"`
	Words   []Word `json:"words,omitempty"`
}

// Word has its time in seconds of the recording.
type Word struct {
	Word  string  `json:"word,omitempty"`
	Start float64 `json:"start,omitempty"`
	End   float64 `json:"end,omitempty"`
}

// CallLatency is how long the parts of an answer took, in milliseconds.
type CallLatency struct {
	E2E                    *Percentiles `json:"e2e,omitempty"`
	ASR                    *Percentiles `json:"asr,omitempty"`
	LLM                    *Percentiles `json:"llm,omitempty"`
	LLMWebsocketNetworkRTT *Percentiles `json:"llm_websocket_network_rtt,omitempty"`
	TTS                    *Percentiles `json:"tts,omitempty"`
	KnowledgeBase          *Percentiles `json:"knowledge_base,omitempty"`
	S2S                    *Percentiles `json:"s2s,omitempty"`
}

// Percentiles of a measurement.
type Percentiles struct {
	P50    float64   `json:"p50,omitempty"`
	P90    float64   `json:"p90,omitempty"`
	P95    float64   `json:"p95,omitempty"`
	P99    float64   `json:"p99,omitempty"`
	Max    float64   `json:"max,omitempty"`
	Min    float64   `json:"min,omitempty"`
	Num    float64   `json:"num,omitempty"`
	Values []float64 `json:"values,omitempty"`
}

// CallCost is in cents; unit prices are cents per second.
type CallCost struct {
	CombinedCost           float64       `json:"combined_cost"`
	ProductCosts           []ProductCost `json:"product_costs,omitempty"`
	TotalDurationSeconds   float64       `json:"total_duration_seconds"`
	TotalDurationUnitPrice float64       `json:"total_duration_unit_price"`
}

// ProductCost is one item of a bill, in cents.
type ProductCost struct {
	Product           string  `json:"product"`
	Cost              float64 `json:"cost"`
	UnitPrice         float64 `json:"unit_price,omitempty"`
	IsTransferLegCost bool    `json:"is_transfer_leg_cost,omitempty"`
}

// CallAnalysis is what Retell found in the transcript, some time after the end of the call.
type CallAnalysis struct {
	CallSummary        string          `json:"call_summary,omitempty"`
	CallSuccessful     *bool           `json:"call_successful,omitempty"`
	InVoicemail        *bool           `json:"in_voicemail,omitempty"`
	UserSentiment      Sentiment       `json:"user_sentiment,omitempty"`
	CustomAnalysisData json.RawMessage `json:"custom_analysis_data,omitempty"`
}

// UnmarshalJSON leaves a truth value nil that is none: encoding/json would make it false.
func (a *CallAnalysis) UnmarshalJSON(data []byte) error {
	type plain CallAnalysis
	shape := struct {
		*plain
		CallSuccessful optional[bool] `json:"call_successful"`
		InVoicemail    optional[bool] `json:"in_voicemail"`
	}{plain: (*plain)(a)}
	_ = decodeLenient(data, &shape) // an error here would end the decoding of all that follows
	a.CallSuccessful, a.InVoicemail = shape.CallSuccessful.value, shape.InVoicemail.value
	return nil
}

// Sentiment of the user.
type Sentiment string

// The sentiments.
const (
	SentimentNegative Sentiment = "Negative"
	SentimentPositive Sentiment = "Positive"
	SentimentNeutral  Sentiment = "Neutral"
	SentimentUnknown  Sentiment = "Unknown"
)

// LLMTokenUsage counts tokens.
type LLMTokenUsage struct {
	Average     float64   `json:"average"`
	NumRequests float64   `json:"num_requests"`
	Values      []float64 `json:"values,omitempty"`
}
