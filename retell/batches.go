package retell

import (
	"context"
	"fmt"
)

// BatchCalls are the operations on campaigns of phone calls.
type BatchCalls struct{ c *Client }

// CreateBatchCallParams describe a campaign. A zero field is not sent.
type CreateBatchCallParams struct {
	FromNumber string          `json:"from_number"` // required
	Tasks      []BatchCallTask `json:"tasks"`       // required, one for each call
	Name       string          `json:"name,omitempty"`
	// TriggerTimestamp is when to begin. 0: now.
	TriggerTimestamp Timestamp `json:"trigger_timestamp,omitempty"`
	// ReservedConcurrency keeps so many slots from the batch, for other calls. nil leaves it to the API.
	ReservedConcurrency *int            `json:"reserved_concurrency,omitempty"`
	CallTimeWindow      *CallTimeWindow `json:"call_time_window,omitempty"`
}

// BatchCallTask is one call of a batch.
type BatchCallTask struct {
	ToNumber                  string         `json:"to_number"` // required
	OverrideAgentID           string         `json:"override_agent_id,omitempty"`
	OverrideAgentVersion      AgentVersion   `json:"override_agent_version,omitzero"`
	AgentOverride             *AgentOverride `json:"agent_override,omitempty"`
	Metadata                  Metadata       `json:"metadata,omitempty"`
	RetellLLMDynamicVariables Variables      `json:"retell_llm_dynamic_variables,omitempty"`
	CustomSIPHeaders          Variables      `json:"custom_sip_headers,omitempty"`
	IgnoreE164Validation      bool           `json:"ignore_e164_validation,omitempty"`
}

// CallTimeWindow says when calls may be made.
type CallTimeWindow struct {
	Windows  []TimeWindow `json:"windows"`            // required
	Day      []string     `json:"day,omitempty"`      // "Monday" to "Sunday"
	Timezone string       `json:"timezone,omitempty"` // as in "Europe/Berlin"; empty: America/Los_Angeles
}

// TimeWindow is from Start to just before End, in minutes since midnight.
type TimeWindow struct {
	Start int `json:"start"`
	End   int `json:"end"`
}

// BatchCall is a campaign that was taken on.
type BatchCall struct {
	Meta `json:"-"`

	BatchCallID        string          `json:"batch_call_id"`
	Name               string          `json:"name"`
	FromNumber         string          `json:"from_number"`
	ScheduledTimestamp Timestamp       `json:"scheduled_timestamp"`
	TotalTaskCount     int             `json:"total_task_count"`
	CallTimeWindow     *CallTimeWindow `json:"call_time_window,omitempty"`
}

// CreateBatchCall makes many calls. Retell knows no idempotency key here and no way to take a batch back, so one whose
// outcome is in doubt is never sent again; its calls are found by Calls.List, with BatchCallID or by the marker in their
// metadata. Send batches in small chunks.
//
// POST /create-batch-call
func (s BatchCalls) CreateBatchCall(ctx context.Context, p CreateBatchCallParams, opts ...CallOption) (*BatchCall, error) {
	const operation = "create-batch-call"
	if err := missing(operation, field{"from_number", p.FromNumber}); err != nil {
		return nil, err
	}
	if len(p.Tasks) == 0 {
		return nil, invalid(operation, "tasks", "is missing")
	}
	for i, task := range p.Tasks {
		if err := missing(operation, field{fmt.Sprintf("tasks[%d].to_number", i), task.ToNumber}); err != nil {
			return nil, err
		}
	}
	batch, err := Do[BatchCall](ctx, s.c, "POST", "/create-batch-call", p, opts...)
	if err == nil && batch.BatchCallID == "" {
		return nil, withoutID(operation, batch.Meta)
	}
	return batch, err
}
