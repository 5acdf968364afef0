package retell

import "context"

// Calls are the operations on phone calls and web calls.
type Calls struct{ c *Client }

// CreatePhoneCallParams say whom to call. A zero field is not sent.
type CreatePhoneCallParams struct {
	// FromNumber is a number of yours, bought from or imported into Retell, as in "+15555550100". Required.
	FromNumber string `json:"from_number"`
	// ToNumber is the number to call, in the same form. Required.
	ToNumber string `json:"to_number"`
	// IdempotencyKey is Retell's own guard: within one hour, the same key makes no second call. Leave it empty: it is
	// filled in from the key of the call, see [IdempotencyKey]. 5 to 255 of A-Z, a-z, 0-9, _ and -.
	IdempotencyKey string `json:"idempotency_key,omitempty"`
	// HonorInternalDNC refuses the call when the contact with that number is marked do_not_call.
	HonorInternalDNC bool `json:"honor_internal_dnc,omitempty"`
	// OverrideAgentID is the agent that speaks, instead of the one bound to FromNumber.
	OverrideAgentID      string         `json:"override_agent_id,omitempty"`
	OverrideAgentVersion AgentVersion   `json:"override_agent_version,omitzero"`
	AgentOverride        *AgentOverride `json:"agent_override,omitempty"`
	Metadata             Metadata       `json:"metadata,omitempty"`
	// RetellLLMDynamicVariables are put into the prompt.
	RetellLLMDynamicVariables Variables `json:"retell_llm_dynamic_variables,omitempty"`
	CustomSIPHeaders          Variables `json:"custom_sip_headers,omitempty"`
	// IgnoreE164Validation is for custom telephony: FromNumber is not checked.
	IgnoreE164Validation bool `json:"ignore_e164_validation,omitempty"`
}

// CreatePhoneCall calls somebody. It returns when Retell has taken the call on, not when somebody answers the phone.
//
// Name the call's intent with [IdempotencyKey]. All calls with one key are one: whatever happens, the phone is not rung
// by a second request while the outcome of the first is unknown. If the error is resilience.InDoubt, the phone may ring:
// do not call again under another key. If it is resilience.ErrParked, the call will still be made. If it is
// resilience.NotSent, or an [*Error] that is neither, nothing happened.
//
// POST /v2/create-phone-call
func (s Calls) CreatePhoneCall(ctx context.Context, p CreatePhoneCallParams, opts ...CallOption) (*PhoneCall, error) {
	const operation = "create-phone-call"
	if err := missing(operation, field{"from_number", p.FromNumber}, field{"to_number", p.ToNumber}); err != nil {
		return nil, err
	}
	if k := p.IdempotencyKey; k != "" && !fitsServerKey(k) {
		return nil, invalid(operation, "idempotency_key", "must be 5 to 255 of A-Z, a-z, 0-9, _ and -")
	}
	call, err := Do[Call](ctx, s.c, "POST", "/v2/create-phone-call", p, opts...)
	return identified(operation, call, err)
}

// identified refuses an answer without an id: nobody could find the call again by it.
func identified(operation string, call *Call, err error) (*Call, error) {
	if err == nil && call.CallID == "" {
		return nil, withoutID(operation, call.Meta)
	}
	return call, err
}

// CreateWebCallParams say with whom the browser speaks. A zero field is not sent.
type CreateWebCallParams struct {
	AgentID                   string         `json:"agent_id"` // required
	AgentVersion              AgentVersion   `json:"agent_version,omitzero"`
	AgentOverride             *AgentOverride `json:"agent_override,omitempty"`
	Metadata                  Metadata       `json:"metadata,omitempty"`
	RetellLLMDynamicVariables Variables      `json:"retell_llm_dynamic_variables,omitempty"`
	// CurrentNodeID starts a conversation flow elsewhere than at its start.
	CurrentNodeID string `json:"current_node_id,omitempty"`
	// CurrentState starts a Retell LLM in another state.
	CurrentState string `json:"current_state,omitempty"`
}

// WebCall is what a browser needs to join.
type WebCall struct {
	Meta `json:"-"`

	CallID      string      `json:"call_id"`
	AccessToken string      `json:"access_token"`
	ExpiresAt   Timestamp   `json:"expires_at,omitempty"` // of the token
	Transport   string      `json:"transport,omitempty"`
	ICEServers  []ICEServer `json:"ice_servers,omitempty"`
}

// CreateWebCall makes a call for a browser. It rings nowhere; one that nobody joins ends by itself.
//
// POST /v3/create-web-call
func (s Calls) CreateWebCall(ctx context.Context, p CreateWebCallParams, opts ...CallOption) (*WebCall, error) {
	const operation = "create-web-call"
	if err := missing(operation, field{"agent_id", p.AgentID}); err != nil {
		return nil, err
	}
	call, err := Do[WebCall](ctx, s.c, "POST", "/v3/create-web-call", p, opts...)
	switch {
	case err != nil:
		return nil, err
	case call.CallID == "":
		return nil, withoutID(operation, call.Meta)
	case call.AccessToken == "": // known from a look-up: the answer with the token was lost
		return nil, &Error{
			Operation: operation, StatusCode: call.StatusCode, Message: capped(string(call.Raw)),
			text: "the access token is lost, make another call under a new key", kinds: []error{ErrBadAnswer},
		}
	}
	return call, nil
}

// RegisterPhoneCallParams describe a call that your own telephony makes. A zero field is not sent.
type RegisterPhoneCallParams struct {
	AgentID                   string         `json:"agent_id"` // required
	AgentVersion              AgentVersion   `json:"agent_version,omitzero"`
	AgentOverride             *AgentOverride `json:"agent_override,omitempty"`
	FromNumber                string         `json:"from_number,omitempty"`
	ToNumber                  string         `json:"to_number,omitempty"`
	Direction                 Direction      `json:"direction,omitempty"`
	Metadata                  Metadata       `json:"metadata,omitempty"`
	RetellLLMDynamicVariables Variables      `json:"retell_llm_dynamic_variables,omitempty"`
}

// RegisterPhoneCall makes the id under which a call of your own telephony reaches the agent. It rings nowhere.
//
// POST /v2/register-phone-call
func (s Calls) RegisterPhoneCall(ctx context.Context, p RegisterPhoneCallParams, opts ...CallOption) (*PhoneCall, error) {
	const operation = "register-phone-call"
	if err := missing(operation, field{"agent_id", p.AgentID}); err != nil {
		return nil, err
	}
	call, err := Do[Call](ctx, s.c, "POST", "/v2/register-phone-call", p, opts...)
	return identified(operation, call, err)
}

// Get returns a call. Transcript, recording and cost are there after its end, the analysis some time later.
//
// GET /v2/get-call/{call_id}
func (s Calls) Get(ctx context.Context, callID string, opts ...CallOption) (*Call, error) {
	path, err := byID("/v2/get-call", "call_id", callID)
	if err != nil {
		return nil, err
	}
	return Do[Call](ctx, s.c, "GET", path, nil, opts...)
}

// UpdateCallParams change a call that exists. A zero field is not sent and stays as it is.
type UpdateCallParams struct {
	// Metadata replaces all of it, at most 50 kB; empty but not nil, it takes all away. Keep the member "rk_key" while
	// the outcome of the call is in doubt.
	Metadata Metadata `json:"metadata,omitzero"`
	// DataStorageSetting can only become stricter.
	DataStorageSetting DataStorageSetting `json:"data_storage_setting,omitempty"`
	// CustomAttributes are text, numbers or booleans, by names that the dashboard defines; others are dropped by Retell.
	CustomAttributes map[string]any `json:"custom_attributes,omitempty"`
}

// Update changes what is stored with a call.
//
// PATCH /v2/update-call/{call_id}
func (s Calls) Update(ctx context.Context, callID string, p UpdateCallParams, opts ...CallOption) (*Call, error) {
	path, err := byID("/v2/update-call", "call_id", callID)
	if err != nil {
		return nil, err
	}
	return Do[Call](ctx, s.c, "PATCH", path, p, opts...)
}

// Delete removes a call and all that is stored with it.
//
// DELETE /v2/delete-call/{call_id}
func (s Calls) Delete(ctx context.Context, callID string, opts ...CallOption) error {
	return s.c.empty(ctx, "DELETE", "/v2/delete-call", "call_id", callID, opts)
}
