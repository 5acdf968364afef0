package retell

import (
	"context"
	"encoding/json"
	"iter"
)

// Chats are the operations on chats, by API and by text message.
type Chats struct{ c *Client }

// Chat is a conversation in text.
type Chat struct {
	Meta `json:"-"`

	ChatID                    string            `json:"chat_id"`
	AgentID                   string            `json:"agent_id"`
	ChatStatus                ChatStatus        `json:"chat_status"`
	ChatType                  ChatType          `json:"chat_type,omitempty"`
	Version                   AgentVersion      `json:"version,omitzero"`
	AgentTag                  string            `json:"agent_tag,omitempty"`
	StartTimestamp            Timestamp         `json:"start_timestamp,omitempty"`
	EndTimestamp              Timestamp         `json:"end_timestamp,omitempty"`
	Transcript                string            `json:"transcript,omitempty"`
	MessageWithToolCalls      []json.RawMessage `json:"message_with_tool_calls,omitempty"`
	Metadata                  Metadata          `json:"metadata,omitempty"`
	RetellLLMDynamicVariables Variables         `json:"retell_llm_dynamic_variables,omitempty"`
	CollectedDynamicVariables Variables         `json:"collected_dynamic_variables,omitempty"`
	CustomAttributes          map[string]any    `json:"custom_attributes,omitempty"`
	ChatCost                  *CallCost         `json:"chat_cost,omitempty"`
	ChatAnalysis              *ChatAnalysis     `json:"chat_analysis,omitempty"`
}

// ChatStatus is how far a chat has come.
type ChatStatus string

// The chat statuses.
const (
	ChatStatusOngoing ChatStatus = "ongoing"
	ChatStatusEnded   ChatStatus = "ended"
	ChatStatusError   ChatStatus = "error"
)

// ChatType is the way a chat goes.
type ChatType string

// The chat types.
const (
	ChatTypeAPI ChatType = "api_chat"
	ChatTypeSMS ChatType = "sms_chat"
)

// ChatAnalysis is what Retell found in a chat after its end.
type ChatAnalysis struct {
	ChatSummary        string          `json:"chat_summary,omitempty"`
	ChatSuccessful     *bool           `json:"chat_successful,omitempty"`
	UserSentiment      Sentiment       `json:"user_sentiment,omitempty"`
	CustomAnalysisData json.RawMessage `json:"custom_analysis_data,omitempty"`
}

// UnmarshalJSON leaves a truth value nil that is none: encoding/json would make it false.
func (a *ChatAnalysis) UnmarshalJSON(data []byte) error {
	type plain ChatAnalysis
	shape := struct {
		*plain
		ChatSuccessful optional[bool] `json:"chat_successful"`
	}{plain: (*plain)(a)}
	_ = decodeLenient(data, &shape) // an error here would end the decoding of all that follows
	a.ChatSuccessful = shape.ChatSuccessful.value
	return nil
}

// CreateChatParams say with which agent to chat. A zero field is not sent.
type CreateChatParams struct {
	AgentID                   string       `json:"agent_id"` // required
	AgentVersion              AgentVersion `json:"agent_version,omitzero"`
	Metadata                  Metadata     `json:"metadata,omitempty"`
	RetellLLMDynamicVariables Variables    `json:"retell_llm_dynamic_variables,omitempty"`
}

// CreateChat begins a chat.
//
// POST /create-chat
func (s Chats) CreateChat(ctx context.Context, p CreateChatParams, opts ...CallOption) (*Chat, error) {
	const operation = "create-chat"
	if err := missing(operation, field{"agent_id", p.AgentID}); err != nil {
		return nil, err
	}
	chat, err := Do[Chat](ctx, s.c, "POST", "/create-chat", p, opts...)
	return chatWithID(operation, chat, err)
}

// CreateSMSChatParams say whom to text. A zero field is not sent.
type CreateSMSChatParams struct {
	FromNumber                string       `json:"from_number"` // required
	ToNumber                  string       `json:"to_number"`   // required
	OverrideAgentID           string       `json:"override_agent_id,omitempty"`
	OverrideAgentVersion      AgentVersion `json:"override_agent_version,omitzero"`
	Metadata                  Metadata     `json:"metadata,omitempty"`
	RetellLLMDynamicVariables Variables    `json:"retell_llm_dynamic_variables,omitempty"`
	// HonorInternalDNC refuses the text when the contact with that number is marked do_not_call.
	HonorInternalDNC bool `json:"honor_internal_dnc,omitempty"`
}

// CreateSMSChat begins a chat by text message: the first message goes out at once. Retell has no key for it, and no way
// to find a chat by its metadata, so an outcome in doubt stays so until a webhook names the chat, see [Client.Observe], or
// a person looks.
//
// POST /create-sms-chat
func (s Chats) CreateSMSChat(ctx context.Context, p CreateSMSChatParams, opts ...CallOption) (*Chat, error) {
	const operation = "create-sms-chat"
	if err := missing(operation, field{"from_number", p.FromNumber}, field{"to_number", p.ToNumber}); err != nil {
		return nil, err
	}
	chat, err := Do[Chat](ctx, s.c, "POST", "/create-sms-chat", p, opts...)
	return chatWithID(operation, chat, err)
}

// CreateChatCompletionParams are what the user says.
type CreateChatCompletionParams struct {
	ChatID  string `json:"chat_id"` // required
	Content string `json:"content"` // required
}

// ChatCompletion is what the agent answered: only the new messages.
type ChatCompletion struct {
	Meta     `json:"-"`
	Messages []Message `json:"messages"`
}

// Message of a chat. Of the kinds that have no content, such as tool calls, Raw has the rest.
type Message struct {
	Meta `json:"-"`

	Role             string    `json:"role"`
	Content          string    `json:"content,omitempty"`
	MessageID        string    `json:"message_id,omitempty"`
	CreatedTimestamp Timestamp `json:"created_timestamp,omitempty"`
}

// UnmarshalJSON keeps what the fields do not hold.
func (m *Message) UnmarshalJSON(data []byte) error {
	type plain Message
	_ = json.Unmarshal(data, (*plain)(m)) // what does not fit is in Raw
	m.Raw = append(json.RawMessage(nil), data...)
	return nil
}

// CreateChatCompletion says something in a chat and waits for the answer. Saying it twice says it twice, and may run the
// agent's tools again.
//
// POST /create-chat-completion
func (s Chats) CreateChatCompletion(ctx context.Context, p CreateChatCompletionParams, opts ...CallOption) (*ChatCompletion, error) {
	if err := missing("create-chat-completion", field{"chat_id", p.ChatID}, field{"content", p.Content}); err != nil {
		return nil, err
	}
	return Do[ChatCompletion](ctx, s.c, "POST", "/create-chat-completion", p, opts...)
}

// Get returns a chat.
//
// GET /get-chat/{chat_id}
func (s Chats) Get(ctx context.Context, chatID string, opts ...CallOption) (*Chat, error) {
	path, err := byID("/get-chat", "chat_id", chatID)
	if err != nil {
		return nil, err
	}
	return Do[Chat](ctx, s.c, "GET", path, nil, opts...)
}

// UpdateChatParams change a chat that exists. A zero field is not sent and stays as it is.
type UpdateChatParams struct {
	Metadata           Metadata           `json:"metadata,omitzero"` // replaces, at most 50 kB
	DataStorageSetting DataStorageSetting `json:"data_storage_setting,omitempty"`
	CustomAttributes   map[string]any     `json:"custom_attributes,omitempty"`
}

// Update changes what is stored with a chat.
//
// PATCH /update-chat/{chat_id}
func (s Chats) Update(ctx context.Context, chatID string, p UpdateChatParams, opts ...CallOption) (*Chat, error) {
	path, err := byID("/update-chat", "chat_id", chatID)
	if err != nil {
		return nil, err
	}
	return Do[Chat](ctx, s.c, "PATCH", path, p, opts...)
}

// End ends a chat.
//
// PATCH /end-chat/{chat_id}
func (s Chats) End(ctx context.Context, chatID string, opts ...CallOption) error {
	return s.c.empty(ctx, "PATCH", "/end-chat", "chat_id", chatID, opts)
}

// Delete removes a chat and all that is stored with it.
//
// DELETE /delete-chat/{chat_id}
func (s Chats) Delete(ctx context.Context, chatID string, opts ...CallOption) error {
	return s.c.empty(ctx, "DELETE", "/delete-chat", "chat_id", chatID, opts)
}

// RerunAnalysis analyses a chat again. Every run is billed.
//
// PUT /rerun-chat-analysis/{chat_id}
func (s Chats) RerunAnalysis(ctx context.Context, chatID string, opts ...CallOption) (*Chat, error) {
	path, err := byID("/rerun-chat-analysis", "chat_id", chatID)
	if err != nil {
		return nil, err
	}
	return Do[Chat](ctx, s.c, "PUT", path, nil, opts...)
}

// ListChatsParams select chats and the order they come in. The zero value lists all, the newest first.
type ListChatsParams struct {
	FilterCriteria *ChatFilter `json:"filter_criteria,omitempty"`
	SortOrder      SortOrder   `json:"sort_order,omitempty"`
	Limit          int         `json:"limit,omitempty"` // of a page. 0: 50; at most 1000
	PaginationKey  string      `json:"pagination_key,omitempty"`
	Skip           int         `json:"skip,omitempty"` // not together with PaginationKey
	IncludeTotal   bool        `json:"include_total,omitempty"`
}

// ListPage returns one page of chats.
//
// POST /v3/list-chats
func (s Chats) ListPage(ctx context.Context, p ListChatsParams, opts ...CallOption) (*Page[Chat], error) {
	if p.Skip != 0 && p.PaginationKey != "" {
		return nil, invalid("list-chats", "skip", "and pagination_key exclude each other")
	}
	return Do[Page[Chat]](ctx, s.c, "POST", "/v3/list-chats", p, opts...)
}

// List returns all chats that match, page by page as the loop over it goes on. It ends at the first error.
//
// POST /v3/list-chats
func (s Chats) List(ctx context.Context, p ListChatsParams, opts ...CallOption) iter.Seq2[*Chat, error] {
	return all("list-chats", p.PaginationKey, func(key string) (*Page[Chat], error) {
		next := p
		if next.PaginationKey = key; key != p.PaginationKey {
			next.Skip = 0 // it was done on the first page
		}
		return s.ListPage(ctx, next, opts...)
	})
}

func chatWithID(operation string, chat *Chat, err error) (*Chat, error) {
	if err == nil && chat.ChatID == "" {
		return nil, withoutID(operation, chat.Meta)
	}
	return chat, err
}
