package retelltest_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience/retell/retelltest"
)

func TestFiltersThatAreNone(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	srv.AddCall(map[string]any{"metadata": map[string]any{"n": 1}})
	for _, filter := range []string{
		`"nonsense":[{}]`, `"call_id":{}`, `"call_id":"call_a"`, `"call_id":{"type":"number","op":"eq","value":1}`,
		`"call_id":{"type":"string","op":"gt","value":"a"}`, `"call_id":{"type":"string","op":"eq","value":1}`,
		`"call_id":{"type":"enum","op":"eq","value":["a"]}`, `"call_id":{"type":"enum","op":"in","value":"a"}`,
		`"call_id":{"type":"enum","op":"in","value":[1]}`,
		`"call_successful":{"type":"boolean","op":"ne","value":true}`, `"call_successful":{"type":"boolean","op":"eq","value":"true"}`,
		`"duration_ms":{"type":"number","op":"co","value":1}`, `"duration_ms":{"type":"number","op":"eq","value":"1"}`,
		`"duration_ms":{"type":"range","op":"eq","value":[1,2]}`, `"duration_ms":{"type":"range","op":"bt","value":[1]}`,
		`"duration_ms":{"type":"range","op":"bt","value":["1",2]}`, `"duration_ms":{"type":"range","op":"bt","value":[1,"2"]}`,
		`"metadata":[{"key":"n","type":"present","op":"eq"}]`,
		`"agent":[{}]`, `"agent":{}`, `"tool_calls":[{"latency_ms":{}}]`, `"tool_calls":[{"success":{}}]`, `"tool_calls":[1]`,
	} {
		status, body := send(t, srv, "POST", "/v3/list-calls", `{"filter_criteria":{`+filter+`}}`)
		require.Equal(t, 400, status, filter)
		require.Contains(t, body["message"], "filter_criteria.", filter)
	}
	status, _ := send(t, srv, "POST", "/v3/list-chats", `{"filter_criteria":{"tool_calls":[]}}`)
	require.Equal(t, 400, status, "calls have it, chats do not")
}

func TestFiltersByNumberAgentAndTool(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	turn := func(role, id string, more map[string]any) map[string]any {
		more["role"], more["tool_call_id"] = role, id
		return more
	}
	srv.AddCall(map[string]any{
		"call_id": "call_a", "start_timestamp": 1, "duration_ms": 10, "agent_version": 0,
		"transcript_with_tool_calls": []any{
			turn("tool_call_invocation", "t1", map[string]any{"name": "book", "type": "custom", "latency_ms": 300}),
			turn("tool_call_result", "t1", map[string]any{"successful": false}),
			turn("tool_call_invocation", "t2", map[string]any{"name": "cancel", "type": "custom", "latency_ms": 20}),
			turn("tool_call_result", "t2", map[string]any{"successful": true}),
			map[string]any{"role": "agent", "name": "spoken", "type": "custom"},
		},
	})
	srv.AddCall(map[string]any{"call_id": "call_b", "start_timestamp": 2, "duration_ms": 20, "agent_version": 3})
	srv.AddCall(map[string]any{"call_id": "call_c", "start_timestamp": 3, "agent_id": "agent_c"})
	duration := func(operator, value string) string {
		return `"duration_ms":{"type":"number","op":"` + operator + `","value":` + value + `}`
	}
	between := func(value string) string { return `"duration_ms":{"type":"range","op":"bt","value":` + value + `}` }
	all, none := []string{"call_a", "call_b", "call_c"}, []string{}
	for filter, want := range map[string][]string{
		`"call_id":null`: all, `"agent":[]`: all, `"tool_calls":[]`: all,
		duration("eq", "10"): {"call_a"}, duration("ne", "10"): {"call_b"},
		duration("gt", "10"): {"call_b"}, duration("ge", "10"): {"call_a", "call_b"},
		duration("lt", "20"): {"call_a"}, duration("le", "20"): {"call_a", "call_b"}, duration("lt", "1"): none,
		between("[11,20]"): {"call_b"}, between("[10,19]"): {"call_a"}, between("[0,30]"): {"call_a", "call_b"}, between("[-1,1]"): none,
		`"agent":[{"agent_id":"agent_test"}]`:                                                   {"call_a", "call_b"},
		`"agent":[{"agent_id":"agent_test","version":[3]}]`:                                     {"call_b"},
		`"agent":[{"agent_id":"agent_test","version":["0"]}]`:                                   none,
		`"agent":[{"agent_id":"agent_c"},{"agent_id":"x"}]`:                                     {"call_c"},
		`"tool_calls":[{"name":"book"}]`:                                                        {"call_a"},
		`"tool_calls":[{"name":"spoken"}]`:                                                      none,
		`"tool_calls":[{"type":"custom"}]`:                                                      {"call_a"},
		`"tool_calls":[{"type":"native"}]`:                                                      none,
		`"tool_calls":[{"name":"book"},{"name":"cancel"}]`:                                      {"call_a"},
		`"tool_calls":[{"name":"book"},{"name":"none"}]`:                                        none,
		`"tool_calls":[{"latency_ms":{"type":"number","op":"gt","value":250}}]`:                 {"call_a"},
		`"tool_calls":[{"name":"cancel","latency_ms":{"type":"number","op":"gt","value":250}}]`: none,
		`"tool_calls":[{"name":"cancel","success":{"type":"boolean","op":"eq","value":true}}]`:  {"call_a"},
		`"tool_calls":[{"name":"book","success":{"type":"boolean","op":"eq","value":true}}]`:    none,
		`"tool_calls":[{"success":{"type":"boolean","op":"eq","value":false}}]`:                 {"call_a"},
	} {
		status, page := send(t, srv, "POST", "/v3/list-calls", `{"sort_order":"ascending","filter_criteria":{`+filter+`}}`)
		require.Equal(t, 200, status, "%s: %v", filter, page)
		require.Equal(t, want, ids(t, page, "call_id"), filter)
	}
}
