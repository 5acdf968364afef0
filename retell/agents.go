package retell

import (
	"context"
	"encoding/json"
	"iter"
	"net/url"
)

// Agents are the operations on voice and chat agents.
type Agents struct{ c *Client }

// Agent is a voice agent. It has some sixty settings; those that are not here are in Raw.
type Agent struct {
	Meta `json:"-"`

	AgentID                   string             `json:"agent_id"`
	AgentName                 string             `json:"agent_name,omitempty"`
	Version                   AgentVersion       `json:"version,omitzero"`
	BaseVersion               AgentVersion       `json:"base_version,omitzero"`
	IsPublished               bool               `json:"is_published,omitempty"`
	AssignedTags              []string           `json:"assigned_tags,omitempty"`
	LastModificationTimestamp Timestamp          `json:"last_modification_timestamp,omitempty"`
	ResponseEngine            ResponseEngine     `json:"response_engine"`
	VoiceID                   string             `json:"voice_id,omitempty"`
	FallbackVoiceIDs          []string           `json:"fallback_voice_ids,omitempty"`
	Language                  json.RawMessage    `json:"language,omitempty"` // text, or several in an array
	Timezone                  string             `json:"timezone,omitempty"`
	WebhookURL                string             `json:"webhook_url,omitempty"`
	WebhookEvents             []string           `json:"webhook_events,omitempty"`
	WebhookTimeoutMS          Millis             `json:"webhook_timeout_ms,omitempty"`
	MaxCallDurationMS         Millis             `json:"max_call_duration_ms,omitempty"`
	RingDurationMS            Millis             `json:"ring_duration_ms,omitempty"`
	EndCallAfterSilenceMS     Millis             `json:"end_call_after_silence_ms,omitempty"`
	VoicemailOption           json.RawMessage    `json:"voicemail_option,omitempty"`
	DataStorageSetting        DataStorageSetting `json:"data_storage_setting,omitempty"`
	DataStorageRetentionDays  int                `json:"data_storage_retention_days,omitempty"`
	OptInSignedURL            bool               `json:"opt_in_signed_url,omitempty"`
	SignedURLExpirationMS     Millis             `json:"signed_url_expiration_ms,omitempty"`
}

// ResponseEngine is what makes up an agent's answers. Which id is set follows from Type.
type ResponseEngine struct {
	Type               string       `json:"type"` // "retell-llm", "conversation-flow" or "custom-llm"
	LLMID              string       `json:"llm_id,omitempty"`
	ConversationFlowID string       `json:"conversation_flow_id,omitempty"`
	LLMWebsocketURL    string       `json:"llm_websocket_url,omitempty"`
	Version            AgentVersion `json:"version,omitzero"`
}

// AgentSummary is an agent as lists have it.
type AgentSummary struct {
	Meta `json:"-"`

	AgentID               string              `json:"agent_id"`
	AgentName             string              `json:"agent_name"`
	Channel               Channel             `json:"channel"`
	Tags                  map[string]AgentTag `json:"tags,omitempty"`
	UserModifiedTimestamp Timestamp           `json:"user_modified_timestamp,omitempty"`
}

// AgentTag is what a tag stands for.
type AgentTag struct {
	Version          AgentVersion `json:"version,omitzero"`
	DynamicVariables Variables    `json:"dynamic_variables,omitempty"`
}

// Channel is how an agent talks.
type Channel string

// The channels.
const (
	ChannelVoice Channel = "voice"
	ChannelChat  Channel = "chat"
)

// ListAgentsParams select agents. The zero value lists all.
type ListAgentsParams struct {
	PageParams
	// Channel to list; empty lists both.
	Channel Channel
	// Query is part of a name, in upper or lower case, or part of an id.
	Query string
}

// body leaves out what is not asked for, nil if that is everything.
func (p ListAgentsParams) body() any {
	type criteria struct {
		Channel *Filter `json:"channel,omitempty"`
		Query   string  `json:"query,omitempty"`
	}
	c := criteria{Query: p.Query}
	if p.Channel != "" {
		c.Channel = Equals(string(p.Channel))
	}
	if c == (criteria{}) {
		return struct{}{}
	}
	return struct {
		FilterCriteria criteria `json:"filter_criteria"`
	}{c}
}

// ListPage returns one page of agents.
//
// POST /v2/list-agents
func (s Agents) ListPage(ctx context.Context, p ListAgentsParams, opts ...CallOption) (*Page[AgentSummary], error) {
	return getPage[AgentSummary](ctx, s.c, "POST", "/v2/list-agents", p.PageParams, p.body(), opts)
}

// List returns all agents that match, page by page as the loop over it goes on. It ends at the first error.
//
// POST /v2/list-agents
func (s Agents) List(ctx context.Context, p ListAgentsParams, opts ...CallOption) iter.Seq2[*AgentSummary, error] {
	return all("list-agents", p.PaginationKey, func(key string) (*Page[AgentSummary], error) {
		next := p
		next.PaginationKey = key
		return s.ListPage(ctx, next, opts...)
	})
}

// Get returns a voice agent, in the version named or, for the zero AgentVersion, the latest.
//
// GET /get-agent/{agent_id}
func (s Agents) Get(ctx context.Context, agentID string, version AgentVersion, opts ...CallOption) (*Agent, error) {
	path, err := byID("/get-agent", "agent_id", agentID)
	if err != nil {
		return nil, err
	}
	if !version.IsZero() {
		path += "?" + url.Values{"version": {version.String()}}.Encode()
	}
	return Do[Agent](ctx, s.c, "GET", path, nil, opts...)
}
