package retelltest_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience/retell/retelltest"
)

func TestListCallsFilters(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	srv.AddCall(map[string]any{
		"call_id": "call_a", "start_timestamp": 1000, "duration_ms": 10, "to_number": "+15550000001", "agent_version": 3,
		"metadata":                     map[string]any{"op_id": "x1", "n": 17, "flag": true, "nested": map[string]any{"k": "v"}},
		"call_analysis":                map[string]any{"call_successful": true, "user_sentiment": "Positive", "custom_analysis_data": map[string]any{"score": 5}},
		"call_cost":                    map[string]any{"combined_cost": 7.5},
		"latency":                      map[string]any{"e2e": map[string]any{"p50": 800}},
		"retell_llm_dynamic_variables": map[string]any{"name": "Ann"},
		"transcript_with_tool_calls": []any{
			map[string]any{"role": "tool_call_invocation", "tool_call_id": "t1", "name": "book"},
			map[string]any{"role": "tool_call_result", "tool_call_id": "t1", "successful": true},
		},
	})
	srv.AddCall(map[string]any{
		"call_id": "call_b", "start_timestamp": 2000, "duration_ms": 20, "direction": "inbound", "call_status": "error",
		"disconnection_reason": "error_retell", "to_number": "+15550000002", "agent_id": "agent_b",
		"metadata":                    map[string]any{"op_id": "x2", "n": "17"},
		"collected_dynamic_variables": map[string]any{"name": "Bob"},
		"custom_attributes":           map[string]any{"tier": "gold"},
	})
	srv.AddCall(map[string]any{
		"call_id": "call_c", "start_timestamp": 3000, "call_type": "web_call", "call_status": "ongoing",
		"batch_call_id": "batch_1", "data_storage_setting": "basic_attributes_only",
	})
	for filter, want := range map[string][]string{
		``: {"call_a", "call_b", "call_c"},
		`"metadata":[{"key":"op_id","type":"string","op":"eq","value":"x1"}]`:                                                           {"call_a"},
		`"metadata":[{"key":"op_id","type":"string","op":"ne","value":"x1"}]`:                                                           {"call_b"},
		`"metadata":[{"key":"op_id","type":"string","op":"sw","value":"x"},{"key":"n","type":"string","op":"eq","value":"17"}]`:         {"call_b"},
		`"metadata":[{"key":"op_id","type":"enum","op":"in","value":["x1","x2","x3"]}]`:                                                 {"call_a", "call_b"},
		`"metadata":[{"key":"op_id","type":"present","op":"pr"}]`:                                                                       {"call_a", "call_b"},
		`"metadata":[{"key":"op_id","type":"present","op":"np"}]`:                                                                       {"call_c"},
		`"metadata":[{"key":"n","type":"number","op":"ge","value":17}]`:                                                                 {"call_a"},
		`"metadata":[{"key":"flag","type":"boolean","op":"eq","value":true}]`:                                                           {"call_a"},
		`"metadata":[{"key":"nested.k","type":"string","op":"eq","value":"v"}]`:                                                         {},
		`"dynamic_variables":[{"key":"name","type":"string","op":"co","value":"o"}]`:                                                    {"call_b"},
		`"dynamic_variables":[{"key":"name","type":"string","op":"ew","value":"nn"}]`:                                                   {"call_a"},
		`"custom_attributes":[{"key":"tier","type":"string","op":"eq","value":"gold"}]`:                                                 {"call_b"},
		`"custom_analysis_data":[{"key":"score","type":"range","op":"bt","value":[5,9]}]`:                                               {"call_a"},
		`"call_id":{"type":"string","op":"eq","value":"call_b"}`:                                                                        {"call_b"},
		`"call_id":{"type":"enum","op":"in","value":["call_b","call_c"]}`:                                                               {"call_b", "call_c"},
		`"batch_call_id":{"type":"string","op":"eq","value":"batch_1"}`:                                                                 {"call_c"},
		`"call_status":{"type":"enum","op":"in","value":["ongoing","error"]}`:                                                           {"call_b", "call_c"},
		`"call_type":{"type":"enum","op":"in","value":["web_call"]}`:                                                                    {"call_c"},
		`"direction":{"type":"enum","op":"in","value":["inbound"]}`:                                                                     {"call_b"},
		`"disconnection_reason":{"type":"enum","op":"in","value":["error_retell"]}`:                                                     {"call_b"},
		`"data_storage_setting":{"type":"enum","op":"in","value":["basic_attributes_only"]}`:                                            {"call_c"},
		`"user_sentiment":{"type":"enum","op":"in","value":["Positive"]}`:                                                               {"call_a"},
		`"call_successful":{"type":"boolean","op":"eq","value":true}`:                                                                   {"call_a"},
		`"in_voicemail":{"type":"boolean","op":"eq","value":false}`:                                                                     {},
		`"to_number":{"type":"string","op":"eq","value":"+15550000002"}`:                                                                {"call_b"},
		`"from_number":{"type":"string","op":"sw","value":"+1555"}`:                                                                     {"call_a", "call_b", "call_c"},
		`"start_timestamp":{"type":"range","op":"bt","value":[1000,2000]}`:                                                              {"call_a", "call_b"},
		`"start_timestamp":{"type":"number","op":"gt","value":1000}`:                                                                    {"call_b", "call_c"},
		`"duration_ms":{"type":"number","op":"le","value":10}`:                                                                          {"call_a"},
		`"combined_cost":{"type":"number","op":"eq","value":7.5}`:                                                                       {"call_a"},
		`"e2e_latency_p50":{"type":"number","op":"lt","value":801}`:                                                                     {"call_a"},
		`"agent":[{"agent_id":"agent_b"},{"agent_id":"agent_test","version":[3]}]`:                                                      {"call_a", "call_b"},
		`"tool_calls":[{"name":"book","success":{"type":"boolean","op":"eq","value":true}}]`:                                            {"call_a"},
		`"tool_calls":[{"name":"cancel"}]`:                                                                                              {},
		`"direction":{"type":"enum","op":"in","value":["inbound"]},"metadata":[{"key":"op_id","type":"string","op":"eq","value":"x1"}]`: {},
	} {
		status, page := send(t, srv, "POST", "/v3/list-calls", `{"sort_order":"ascending","filter_criteria":{`+filter+`}}`)
		require.Equal(t, 200, status, "%s: %v", filter, page)
		require.Equal(t, want, ids(t, page, "call_id"), filter)
		for _, item := range page["items"].([]any) {
			require.NotContains(t, item, "transcript_with_tool_calls")
		}
	}

	bad := []string{
		`"call_status":{"type":"enum","op":"in","value":["registered"]}`,
		`"nonsense":{"type":"string","op":"eq","value":"x"}`,
		`"metadata":{"key":"op_id","type":"string","op":"eq","value":"x1"}`,
		`"metadata":[{"type":"string","op":"eq","value":"x1"}]`,
		`"metadata":[{"key":"n","type":"string","op":"eq","value":17}]`,
		`"metadata":[{"key":"n","type":"number","op":"sw","value":17}]`,
		`"to_number":{"type":"number","op":"eq","value":1}`,
		`"start_timestamp":{"type":"range","op":"bt","value":[1]}`,
		`"agent":[{}]`,
		`"tool_calls":[{"success":{"type":"string","op":"eq","value":"x"}}]`,
	}
	for _, filter := range bad {
		status, _ := send(t, srv, "POST", "/v3/list-calls", `{"filter_criteria":{`+filter+`}}`)
		require.Equal(t, 400, status, filter)
	}

	srv.IgnoreFilters(true)
	for _, filter := range append(bad, `"call_id":{"type":"string","op":"eq","value":"none"}`) {
		status, page := send(t, srv, "POST", "/v3/list-calls", `{"filter_criteria":{`+filter+`}}`)
		require.Equal(t, 200, status)
		require.Len(t, page["items"], 3, "strangers")
	}
}

func TestListCallsPaging(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	for i := range 5 {
		srv.AddCall(map[string]any{"call_id": fmt.Sprint(i), "start_timestamp": 1000 + i/2})
	}
	walk := func(order string) (all []string) {
		key := ""
		for {
			status, page := send(t, srv, "POST", "/v3/list-calls", fmt.Sprintf(`{"limit":2,"include_total":true%s%s}`, order, key))
			require.Equal(t, 200, status)
			require.EqualValues(t, 5, page["total"])
			all = append(all, ids(t, page, "call_id")...)
			if page["has_more"] != true {
				require.NotContains(t, page, "pagination_key")
				return all
			}
			key = fmt.Sprintf(`,"pagination_key":%q`, page["pagination_key"])
			if order == "" && len(all) == 2 {
				send(t, srv, "DELETE", "/v2/delete-call/"+all[1], "")
				srv.AddCall(map[string]any{"call_id": all[1], "start_timestamp": 900})
			}
		}
	}
	require.Equal(t, []string{"4", "3", "2", "1", "0", "3"}, walk(""), "the newest first; the key outlives its call")
	require.Equal(t, []string{"3", "0", "1", "2", "4"}, walk(`,"sort_order":"ascending"`)[:5])
	_, page := send(t, srv, "POST", "/v3/list-calls", `{"sort_order":"ascending","skip":3}`)
	require.Equal(t, []string{"2", "4"}, ids(t, page, "call_id"))
	require.NotContains(t, page, "total")
	_, page = send(t, srv, "POST", "/v3/list-calls", `{"skip":30}`)
	require.Empty(t, page["items"])

	for _, body := range []string{
		`{"skip":1,"pagination_key":"MS4x"}`, `{"limit":0}`, `{"limit":1001}`, `{"limit":1.5}`, `{"skip":-1}`,
		`{"pagination_key":"!"}`, `{"sort_order":"up"}`, `{"filter_criteria":[]}`,
	} {
		status, _ := send(t, srv, "POST", "/v3/list-calls", body)
		require.Equal(t, 400, status, body)
	}
	_, page = send(t, srv, "GET", "/v2/list-phone-numbers?limit=1", "")
	require.Equal(t, []string{from}, ids(t, page, "phone_number"))
}

func TestListLag(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := retelltest.NewServer()
		defer srv.Close()
		srv.ListLag(time.Minute)
		id := dial(t, srv, "")
		count := func() int {
			_, page := send(t, srv, "POST", "/v3/list-calls", "{}")
			return len(page["items"].([]any))
		}
		time.Sleep(time.Minute - 1)
		require.Zero(t, count())
		status, _ := send(t, srv, "GET", "/v2/get-call/"+id, "")
		require.Equal(t, 200, status)
		time.Sleep(1)
		require.Equal(t, 1, count())

		srv.HideRegistered(true)
		require.Zero(t, count())
		require.NoError(t, srv.Answer(id))
		require.Equal(t, 1, count())
	})
}

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
