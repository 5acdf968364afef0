package retell

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
)

// exchange is a golden file, written from the description of the API: what has to be sent, and an answer.
type exchange struct {
	Method string          `json:"method"`
	Path   string          `json:"path"`
	Accept string          `json:"accept"`
	Body   json.RawMessage `json:"body"`
	Status int             `json:"status"`
	Answer json.RawMessage `json:"answer"`
}

func golden(t *testing.T, operation string) exchange {
	t.Helper()
	data, err := os.ReadFile("../testdata/retell/" + operation + ".json")
	require.NoError(t, err)
	var e exchange
	require.NoError(t, json.Unmarshal(data, &e))
	return e
}

// sent is what a client gave to its transport.
type sent struct {
	*http.Request
	body []byte
}

// answering is a transport that always gives the same answer and remembers what it was asked.
func answering(status int, body string, seen *[]sent) http.RoundTripper {
	return resilience.RoundTripFunc(func(req *http.Request) (*http.Response, error) {
		var got []byte
		if req.Body != nil {
			got, _ = io.ReadAll(req.Body)
			_ = req.Body.Close()
		}
		if seen != nil {
			*seen = append(*seen, sent{req, got})
		}
		return response(status, body), nil
	})
}

func response(status int, body string) *http.Response {
	return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body))}
}

func newClient(t testing.TB, rt http.RoundTripper, opts ...Option) *Client {
	t.Helper()
	c, err := New("key_test", append([]Option{WithTransport(rt)}, opts...)...)
	require.NoError(t, err)
	return c
}

const (
	from = "+15555550100"
	to   = "+15555550123"
)

// operations does each operation of the client as its golden file has it, and returns its answer, nil if there is none.
var operations = map[string]func(context.Context, *Client) (any, error){
	"create-phone-call": func(ctx context.Context, c *Client) (any, error) {
		return c.Calls.CreatePhoneCall(ctx, CreatePhoneCallParams{
			FromNumber: from, ToNumber: to, HonorInternalDNC: true, IgnoreE164Validation: true,
			OverrideAgentID: "agent_1", OverrideAgentVersion: VersionNumber(3),
			AgentOverride:             &AgentOverride{RetellLLM: json.RawMessage(`{"model":"m"}`)},
			Metadata:                  Metadata{"order": int64(9007199254740993)},
			RetellLLMDynamicVariables: Variables{"name": "Ada <3"}, CustomSIPHeaders: Variables{"X-A": "b"},
		})
	},
	"create-web-call": func(ctx context.Context, c *Client) (any, error) {
		return c.Calls.CreateWebCall(ctx, CreateWebCallParams{
			AgentID: "agent_1", AgentVersion: VersionTag("prod"), Metadata: Metadata{"a": "b"}, CurrentNodeID: "node_1",
		})
	},
	"register-phone-call": func(ctx context.Context, c *Client) (any, error) {
		return c.Calls.RegisterPhoneCall(ctx, RegisterPhoneCallParams{
			AgentID: "agent_1", FromNumber: from, ToNumber: to, Direction: DirectionInbound,
		})
	},
	"get-call": func(ctx context.Context, c *Client) (any, error) { return c.Calls.Get(ctx, "call_1") },
	"update-call": func(ctx context.Context, c *Client) (any, error) {
		return c.Calls.Update(ctx, "call_1", UpdateCallParams{
			Metadata: Metadata{}, DataStorageSetting: StoreBasicAttributesOnly, CustomAttributes: map[string]any{"vip": true},
		})
	},
	"delete-call": func(ctx context.Context, c *Client) (any, error) { return nil, c.Calls.Delete(ctx, "call_1") },
	"stop-call":   func(ctx context.Context, c *Client) (any, error) { return nil, c.Calls.Stop(ctx, "call_1") },
	"update-live-call": func(ctx context.Context, c *Client) (any, error) {
		return c.Calls.UpdateLive(ctx, "call_1", UpdateLiveParams{
			FieldsToOverride: &LiveFields{OverrideDynamicVariables: Variables{}},
			CallControl:      &CallControl{AdditionalContext: "He is a doctor", TriggerResponse: Ptr(false)},
		})
	},
	"listen-live-call": func(ctx context.Context, c *Client) (any, error) { return c.Calls.ListenLive(ctx, "call_1") },
	"take-over-live-call": func(ctx context.Context, c *Client) (any, error) {
		return c.Calls.TakeOverLive(ctx, "call_1", TakeOverLiveParams{ParticipantID: "p_1"})
	},
	"rerun-call-analysis": func(ctx context.Context, c *Client) (any, error) { return c.Calls.RerunAnalysis(ctx, "call_1") },
	"list-calls": func(ctx context.Context, c *Client) (any, error) {
		return c.Calls.ListPage(ctx, ListCallsParams{
			FilterCriteria: &CallFilter{
				Agent:      []AgentFilter{{AgentID: "agent_1", Version: []int{1, 2}}},
				CallStatus: OneOf(CallStatusOngoing, CallStatusEnded), Direction: OneOf(DirectionOutbound),
				ToNumber: Equals(to), DurationMS: Between(0, 60000),
				Metadata: []*Filter{Equals("3f0c9a1e").On("op_id")},
			},
			SortOrder: SortDescending, Limit: 2, IncludeTotal: true,
		})
	},
	"create-batch-call": func(ctx context.Context, c *Client) (any, error) {
		return c.BatchCalls.CreateBatchCall(ctx, CreateBatchCallParams{
			FromNumber: from, Name: "June", TriggerTimestamp: 1767225600000, ReservedConcurrency: Ptr(0),
			Tasks: []BatchCallTask{
				{ToNumber: to, Metadata: Metadata{"n": 1}}, {ToNumber: "+15555550124", OverrideAgentVersion: VersionLatest},
			},
			CallTimeWindow: &CallTimeWindow{Windows: []TimeWindow{{540, 1020}}, Day: []string{"Monday"}, Timezone: "Europe/Berlin"},
		})
	},
	"create-chat": func(ctx context.Context, c *Client) (any, error) {
		return c.Chats.CreateChat(ctx, CreateChatParams{AgentID: "agent_1", Metadata: Metadata{"a": "b"}})
	},
	"create-sms-chat": func(ctx context.Context, c *Client) (any, error) {
		return c.Chats.CreateSMSChat(ctx, CreateSMSChatParams{FromNumber: from, ToNumber: to, HonorInternalDNC: true})
	},
	"create-chat-completion": func(ctx context.Context, c *Client) (any, error) {
		return c.Chats.CreateChatCompletion(ctx, CreateChatCompletionParams{ChatID: "chat_1", Content: "Hello"})
	},
	"get-chat": func(ctx context.Context, c *Client) (any, error) { return c.Chats.Get(ctx, "chat_1") },
	"update-chat": func(ctx context.Context, c *Client) (any, error) {
		return c.Chats.Update(ctx, "chat_1", UpdateChatParams{Metadata: Metadata{"a": "c"}})
	},
	"end-chat":            func(ctx context.Context, c *Client) (any, error) { return nil, c.Chats.End(ctx, "chat_1") },
	"delete-chat":         func(ctx context.Context, c *Client) (any, error) { return nil, c.Chats.Delete(ctx, "chat_1") },
	"rerun-chat-analysis": func(ctx context.Context, c *Client) (any, error) { return c.Chats.RerunAnalysis(ctx, "chat_1") },
	"list-chats":          func(ctx context.Context, c *Client) (any, error) { return c.Chats.ListPage(ctx, ListChatsParams{}) },
	"list-agents": func(ctx context.Context, c *Client) (any, error) {
		return c.Agents.ListPage(ctx, ListAgentsParams{
			PageParams: PageParams{Limit: 10, SortOrder: SortAscending}, Channel: ChannelVoice, Query: "rem",
		})
	},
	"get-agent": func(ctx context.Context, c *Client) (any, error) {
		return c.Agents.Get(ctx, "agent_1", VersionNumber(0))
	},
	"get-phone-number":   func(ctx context.Context, c *Client) (any, error) { return c.PhoneNumbers.Get(ctx, from) },
	"list-phone-numbers": func(ctx context.Context, c *Client) (any, error) { return c.PhoneNumbers.ListPage(ctx, PageParams{}) },
	"get-voice":          func(ctx context.Context, c *Client) (any, error) { return c.Voices.Get(ctx, "voice_1") },
	"list-voices":        func(ctx context.Context, c *Client) (any, error) { return c.Voices.List(ctx) },
	"get-concurrency":    func(ctx context.Context, c *Client) (any, error) { return c.Concurrency.Get(ctx) },
	"get-api-key-info":   func(ctx context.Context, c *Client) (any, error) { return c.APIKey.Get(ctx) },
}

func TestEachOperationSendsWhatTheAPIDescribes(t *testing.T) {
	files, err := filepath.Glob("../testdata/retell/*.json")
	require.NoError(t, err)
	require.Len(t, operations, len(files), "each golden file has its operation")
	for operation, do := range operations {
		t.Run(operation, func(t *testing.T) {
			want := golden(t, operation)
			var seen []sent
			// Without the layers: what the client itself sends.
			c := bare(t, answering(want.Status, string(want.Answer), &seen))
			got, err := do(t.Context(), c)
			require.NoError(t, err)

			require.Len(t, seen, 1)
			req := seen[0]
			require.Equal(t, want.Method, req.Method)
			require.Equal(t, DefaultBaseURL+want.Path, req.URL.String())
			require.Equal(t, "Bearer key_test", req.Header.Get("Authorization"))
			require.Equal(t, want.Accept, req.Header.Get("Accept"))
			if want.Body == nil {
				require.Empty(t, req.body)
				require.Empty(t, req.Header.Get("Content-Type"))
			} else {
				require.Equal(t, "application/json", req.Header.Get("Content-Type"))
				require.Equal(t, compact(t, want.Body), compact(t, req.body))
				require.Equal(t, int64(len(req.body)), req.ContentLength)
			}
			require.Equal(t, operation, Describe(req.Request).Operation)
			if want.Answer != nil {
				m := got.(described).meta()
				require.Equal(t, want.Status, m.StatusCode)
				require.Equal(t, string(want.Answer), string(m.Raw))
			}
		})
	}
}

// compact makes JSON comparable, members sorted, without touching a digit.
func compact(t *testing.T, data []byte) string {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	var v any
	require.NoError(t, d.Decode(&v))
	out, err := json.Marshal(v)
	require.NoError(t, err)
	return string(out)
}

// bare is a client without layers.
func bare(t testing.TB, rt http.RoundTripper) *Client {
	t.Helper()
	c := newClient(t, rt)
	c.transport = rt
	return c
}

func TestAnswersAreDecoded(t *testing.T) {
	answer := func(operation string) any {
		want := golden(t, operation)
		got, err := operations[operation](t.Context(), bare(t, answering(want.Status, string(want.Answer), nil)))
		require.NoError(t, err)
		return got
	}
	call := answer("get-call").(*Call)
	require.Equal(t, "call_1", call.CallID)
	require.Equal(t, CallStatusEnded, call.CallStatus)
	require.True(t, call.CallStatus.Terminal())
	require.Equal(t, VersionNumber(3), call.AgentVersion)
	require.Empty(t, call.AgentTag, "null is nothing")
	require.Equal(t, json.Number("9007199254740993"), call.Metadata["order"], "every digit")
	require.Equal(t, "2026-01-01 00:00:00 +0000 UTC", call.StartTimestamp.Time().String())
	require.Equal(t, "1m0s", call.DurationMS.Duration().String())
	require.True(t, *call.CallAnalysis.CallSuccessful)
	require.Equal(t, SentimentPositive, call.CallAnalysis.UserSentiment)
	require.InDelta(t, 7.5, call.CallCost.CombinedCost, 0)
	require.InDelta(t, 800, call.Latency.E2E.P50, 0)
	require.Equal(t, RoleAgent, call.TranscriptObject[0].Role)
	require.Contains(t, string(call.Raw), "brand_new_field")

	web := answer("create-web-call").(*WebCall)
	require.Equal(t, []string{"stun:example.com"}, web.ICEServers[0].URLs)
	require.Len(t, web.ICEServers[1].URLs, 2)

	page := answer("list-calls").(*Page[Call])
	require.Equal(t, 1, *page.Total)
	require.Contains(t, string(page.Items[0].Raw), `"call_1"`)

	messages := answer("create-chat-completion").(*ChatCompletion).Messages
	require.Equal(t, "Hi", messages[0].Content)
	require.Contains(t, string(messages[1].Raw), "successful")

	require.Equal(t, "voice_1", answer("list-voices").(*List[Voice]).Items[0].VoiceID, "a bare array")
	require.Equal(t, VersionNumber(0), answer("get-agent").(*Agent).Version)
	require.Equal(t, VersionNumber(3), answer("list-agents").(*Page[AgentSummary]).Items[0].Tags["prod"].Version)
	require.Equal(t, VersionLatest, answer("get-phone-number").(*PhoneNumber).OutboundAgents[0].AgentVersion)
	require.Equal(t, 13, answer("get-concurrency").(*ConcurrencyInfo).OutboundHeadroom())
	require.Equal(t, 2, answer("create-batch-call").(*BatchCall).TotalTaskCount)
}
