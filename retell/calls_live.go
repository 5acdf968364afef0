package retell

import (
	"context"
	"encoding/json"
)

// Stop ends an ongoing call. Stopping one that is over may be refused.
//
// POST /v2/stop-call/{call_id}
func (s Calls) Stop(ctx context.Context, callID string, opts ...CallOption) error {
	return s.c.empty(ctx, "POST", "/v2/stop-call", "call_id", callID, opts)
}

// UpdateLiveParams change an ongoing call. At least one must be set.
type UpdateLiveParams struct {
	FieldsToOverride *LiveFields  `json:"fields_to_override,omitempty"`
	CallControl      *CallControl `json:"call_control,omitempty"`
}

// LiveFields replace what the call was started with. A zero field stays as it is.
type LiveFields struct {
	// OverrideDynamicVariables: an empty, non-nil map clears the override.
	OverrideDynamicVariables Variables          `json:"override_dynamic_variables,omitzero"`
	Metadata                 Metadata           `json:"metadata,omitzero"` // replaces, at most 50 kB; empty, not nil: takes all away
	DataStorageSetting       DataStorageSetting `json:"data_storage_setting,omitempty"`
}

// CallControl acts on the conversation. It acts again each time it is sent.
type CallControl struct {
	AdditionalContext string `json:"additional_context,omitempty"`
	// TriggerResponse makes the agent speak now. nil leaves it to the API.
	TriggerResponse *bool `json:"trigger_response,omitempty"`
}

// Success is the answer of operations that only say that they worked.
type Success struct {
	Meta    `json:"-"`
	Success bool `json:"success"`
}

// UpdateLive changes an ongoing call.
//
// PATCH /v2/update-live-call/{call_id}
func (s Calls) UpdateLive(ctx context.Context, callID string, p UpdateLiveParams, opts ...CallOption) (*Success, error) {
	path, err := byID("/v2/update-live-call", "call_id", callID)
	if err != nil {
		return nil, err
	}
	if p.FieldsToOverride == nil && p.CallControl == nil {
		return nil, invalid("update-live-call", "fields_to_override or call_control", "is missing")
	}
	return Do[Success](ctx, s.c, "PATCH", path, p, opts...)
}

// LiveAccess lets somebody listen to an ongoing call.
type LiveAccess struct {
	Meta `json:"-"`

	AccessToken   string      `json:"access_token"`
	ExpiresAt     Timestamp   `json:"expires_at,omitempty"`
	ParticipantID string      `json:"participant_id"`
	RoomName      string      `json:"room_name"`
	Transport     string      `json:"transport,omitempty"` // "livekit" or "gateway"; empty means livekit
	URL           string      `json:"url,omitempty"`
	ICEServers    []ICEServer `json:"ice_servers,omitempty"`
	GatewayIP     string      `json:"gateway_ip,omitempty"`
}

// ListenLive makes a token with which somebody can listen to an ongoing call.
//
// POST /v2/listen-live-call/{call_id}
func (s Calls) ListenLive(ctx context.Context, callID string, opts ...CallOption) (*LiveAccess, error) {
	path, err := byID("/v2/listen-live-call", "call_id", callID)
	if err != nil {
		return nil, err
	}
	return Do[LiveAccess](ctx, s.c, "POST", path, nil, opts...)
}

// TakeOverLiveParams name who takes over: the participant of a [LiveAccess].
type TakeOverLiveParams struct {
	ParticipantID string `json:"participant_id"` // required
}

// TakeOverLive hands an ongoing call from the agent to a listener.
//
// POST /v2/take-over-live-call/{call_id}
func (s Calls) TakeOverLive(ctx context.Context, callID string, p TakeOverLiveParams, opts ...CallOption) (*Success, error) {
	path, err := byID("/v2/take-over-live-call", "call_id", callID)
	if err != nil {
		return nil, err
	}
	if err := missing("take-over-live-call", field{"participant_id", p.ParticipantID}); err != nil {
		return nil, err
	}
	return Do[Success](ctx, s.c, "POST", path, p, opts...)
}

// RerunAnalysis analyses a call again. Every run is billed.
//
// PUT /rerun-call-analysis/{call_id}
func (s Calls) RerunAnalysis(ctx context.Context, callID string, opts ...CallOption) (*Call, error) {
	path, err := byID("/rerun-call-analysis", "call_id", callID)
	if err != nil {
		return nil, err
	}
	return Do[Call](ctx, s.c, "PUT", path, nil, opts...)
}

// ICEServer is how a browser finds its way to the call.
type ICEServer struct {
	URLs       []string `json:"urls"`
	Username   string   `json:"username,omitempty"`
	Credential string   `json:"credential,omitempty"`
}

// UnmarshalJSON takes one URL or several.
func (s *ICEServer) UnmarshalJSON(data []byte) error {
	var shape struct {
		URLs       json.RawMessage `json:"urls"`
		Username   string          `json:"username"`
		Credential string          `json:"credential"`
	}
	if decodeLenient(data, &shape) != nil {
		return nil // as lenient as every answer
	}
	*s = ICEServer{Username: shape.Username, Credential: shape.Credential}
	var one string
	if json.Unmarshal(shape.URLs, &one) == nil && one != "" {
		s.URLs = []string{one}
	} else {
		_ = json.Unmarshal(shape.URLs, &s.URLs) // neither form: no URLs
	}
	return nil
}
