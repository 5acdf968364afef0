package retell

import (
	"context"
	"iter"
)

// PhoneNumbers are the operations on the numbers of the workspace.
type PhoneNumbers struct{ c *Client }

// PhoneNumber is a number bought from or imported into Retell.
type PhoneNumber struct {
	Meta `json:"-"`

	PhoneNumber                string          `json:"phone_number"`
	PhoneNumberType            string          `json:"phone_number_type"` // "retell-twilio", "retell-telnyx" or "custom"
	PhoneNumberPretty          string          `json:"phone_number_pretty,omitempty"`
	Nickname                   string          `json:"nickname,omitempty"`
	AreaCode                   int             `json:"area_code,omitempty"`
	LastModificationTimestamp  Timestamp       `json:"last_modification_timestamp,omitempty"`
	InboundAgents              []WeightedAgent `json:"inbound_agents,omitempty"`
	OutboundAgents             []WeightedAgent `json:"outbound_agents,omitempty"`
	InboundSMSAgents           []WeightedAgent `json:"inbound_sms_agents,omitempty"`
	OutboundSMSAgents          []WeightedAgent `json:"outbound_sms_agents,omitempty"`
	InboundWebhookURL          string          `json:"inbound_webhook_url,omitempty"`
	InboundSMSWebhookURL       string          `json:"inbound_sms_webhook_url,omitempty"`
	AllowedInboundCountryList  []string        `json:"allowed_inbound_country_list,omitempty"`
	AllowedOutboundCountryList []string        `json:"allowed_outbound_country_list,omitempty"`
	FallbackNumber             string          `json:"fallback_number,omitempty"`
	SIPOutboundTrunkConfig     *SIPTrunk       `json:"sip_outbound_trunk_config,omitempty"`
}

// WeightedAgent gets its share of the calls; the weights of a number sum to 1.
type WeightedAgent struct {
	AgentID      string       `json:"agent_id"`
	Weight       float64      `json:"weight"`
	AgentVersion AgentVersion `json:"agent_version,omitzero"`
}

// SIPTrunk is how calls from an imported number leave.
type SIPTrunk struct {
	TerminationURI string `json:"termination_uri,omitempty"`
	AuthUsername   string `json:"auth_username,omitempty"`
	Transport      string `json:"transport,omitempty"`
}

// Get returns a number, named as in "+15555550100".
//
// GET /get-phone-number/{phone_number}
func (s PhoneNumbers) Get(ctx context.Context, phoneNumber string, opts ...CallOption) (*PhoneNumber, error) {
	path, err := byID("/get-phone-number", "phone_number", phoneNumber)
	if err != nil {
		return nil, err
	}
	return Do[PhoneNumber](ctx, s.c, "GET", path, nil, opts...)
}

// ListPage returns one page of numbers.
//
// GET /v2/list-phone-numbers
func (s PhoneNumbers) ListPage(ctx context.Context, p PageParams, opts ...CallOption) (*Page[PhoneNumber], error) {
	return getPage[PhoneNumber](ctx, s.c, "GET", "/v2/list-phone-numbers", p, nil, opts)
}

// List returns all numbers, page by page as the loop over it goes on. It ends at the first error.
//
// GET /v2/list-phone-numbers
func (s PhoneNumbers) List(ctx context.Context, p PageParams, opts ...CallOption) iter.Seq2[*PhoneNumber, error] {
	return all("list-phone-numbers", p.PaginationKey, func(key string) (*Page[PhoneNumber], error) {
		next := p
		next.PaginationKey = key
		return s.ListPage(ctx, next, opts...)
	})
}
