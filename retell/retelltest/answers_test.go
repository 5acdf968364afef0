package retelltest_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience/retell/retelltest"
)

// asked is one request and what comes back.
type asked struct {
	method, path, body string
	status             int
}

func askAll(t *testing.T, srv *retelltest.Server, list []asked) {
	t.Helper()
	for _, a := range list {
		status, body := send(t, srv, a.method, a.path, a.body)
		require.Equal(t, a.status, status, "%s %s %.100s: %v", a.method, a.path, a.body, body)
	}
}

func TestWhatARequestMayLeaveOut(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	send(t, srv, "POST", "/create-contact", `{"phone_number":"`+to+`","do_not_call":true}`)
	another := `{"from_number":"` + from + `","to_number":"+15550002222","honor_internal_dnc":true}`
	id := dial(t, srv, `,"metadata":null,"retell_llm_dynamic_variables":null`)
	askAll(t, srv, []asked{
		{"POST", "/v2/create-phone-call", `{"from_number":"sip-line","to_number":"` + to + `","ignore_e164_validation":true}`, 201},
		{"POST", "/v2/create-phone-call", `{"from_number":"` + from + `","to_number":"555","ignore_e164_validation":true}`, 400},
		{"POST", "/v2/create-phone-call", another, 201},
		{"POST", "/create-sms-chat", another, 200},
		{"POST", "/create-sms-chat", dialBody(`,"honor_internal_dnc":true`), 400},
		{"POST", "/create-sms-chat", dialBody(""), 200},
		{"POST", "/create-batch-call", `{"from_number":"` + from + `"}`, 400},
		{"POST", "/create-batch-call", `{"from_number":"` + from + `","tasks":[]}`, 400},
		{"POST", "/create-batch-call", `{"tasks":[{"to_number":"` + to + `"}]}`, 400},
		{"POST", "/v3/list-calls", `{"filter_criteria":null}`, 200},
		{"POST", "/v3/list-calls", `{"filter_criteria":[]}`, 400},
		{"PATCH", "/v2/update-call/" + id, `{"metadata":null,"data_storage_setting":"everything"}`, 200},
		{"PATCH", "/v2/update-call/" + id, `{"metadata":{"x":"` + strings.Repeat("x", 50_000-len(`{"x":""}`)) + `"}}`, 200},
		{"PATCH", "/v2/update-call/" + id, `{"metadata":{"x":"` + strings.Repeat("x", 50_001-len(`{"x":""}`)) + `"}}`, 400},
		{"GET", "/v2", "", 404},
		{"GET", "/v2/create-phone-call", "", 404},
	})
}

func TestAStrangersCallHasNoStorageSettingToBecomeStricterThan(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	id := srv.AddCall(nil)
	require.NotEmpty(t, id)
	askAll(t, srv, []asked{
		{"PATCH", "/v2/update-call/" + id, `{"data_storage_setting":"whatever"}`, 400},
		{"PATCH", "/v2/update-call/" + id, `{"data_storage_setting":"everything"}`, 200},
	})
}

func TestCallsThatCountTowardsTheLimit(t *testing.T) {
	srv := retelltest.NewServer(retelltest.WithConcurrency(-1))
	defer srv.Close()
	current := func() any {
		_, now := send(t, srv, "GET", "/get-concurrency", "")
		require.Greater(t, now["concurrency_limit"], 1000.0, "without a limit there is room for any program")
		return now["current_concurrency"]
	}
	srv.AddCall(nil)
	require.EqualValues(t, 0, current(), "it is over")
	srv.AddCall(map[string]any{"call_status": "ongoing"})
	require.EqualValues(t, 1, current())
	_, web := send(t, srv, "POST", "/v3/create-web-call", `{"agent_id":"agent_test"}`)
	require.EqualValues(t, 1, current(), "nobody has joined yet")
	require.NoError(t, srv.Answer(web["call_id"].(string)))
	require.EqualValues(t, 2, current())
	status, _ := send(t, srv, "DELETE", "/v2/delete-call/"+web["call_id"].(string), "")
	require.Equal(t, 204, status)
	require.EqualValues(t, 1, current())

	full := retelltest.NewServer(retelltest.WithConcurrency(1))
	defer full.Close()
	dial(t, full, "")
	askAll(t, full, []asked{
		{"POST", "/v3/create-web-call", `{"agent_id":"agent_test"}`, 429},
		{"POST", "/v2/create-web-call", `{"agent_id":"agent_test"}`, 429},
		{"POST", "/v2/create-web-call", `{}`, 400},
	})
}

func TestWhatACallIsMadeOf(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	_, call := send(t, srv, "POST", "/v2/create-phone-call", dialBody(""))
	require.Contains(t, call, "telephony_identifier")
	_, web := send(t, srv, "POST", "/v2/create-web-call", `{"agent_id":"agent_test"}`)
	require.NotEmpty(t, web["access_token"])
	for given, want := range map[string]string{"": "inbound", `,"direction":"outbound"`: "outbound"} {
		_, call = send(t, srv, "POST", "/v2/register-phone-call", `{"agent_id":"agent_test"`+given+`}`)
		require.Equal(t, want, call["direction"])
	}
	window := `{"windows":[{"start":540,"end":1020}]}`
	_, batch := send(t, srv, "POST", "/create-batch-call",
		`{"from_number":"`+from+`","tasks":[{"to_number":"`+to+`"}],"call_time_window":`+window+`}`)
	require.Contains(t, batch, "call_time_window")
	_, batch = send(t, srv, "POST", "/create-batch-call", `{"from_number":"`+from+`","tasks":[{"to_number":"`+to+`"}]}`)
	require.NotContains(t, batch, "call_time_window")
	_, sms := send(t, srv, "POST", "/create-sms-chat", dialBody(`,"metadata":{"a":"b"}`))
	require.Equal(t, map[string]any{"a": "b"}, sms["metadata"])
	require.NotContains(t, sms, "retell_llm_dynamic_variables")
}

func TestAnAgentsVersions(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	_, made := send(t, srv, "POST", "/create-agent-version/agent_test", "{}")
	require.EqualValues(t, 1, made["version"])
	require.EqualValues(t, 0, made["base_version"])
	_, again := send(t, srv, "GET", "/get-agent/agent_test", "")
	require.Equal(t, made, again)
	_, page := send(t, srv, "GET", "/list-agent-versions/agent_test", "")
	require.Equal(t, []any{made}, page["items"])
	askAll(t, srv, []asked{
		{"POST", "/create-agent-version/agent_none", "{}", 422},
		{"GET", "/list-agent-versions/agent_none", "", 422},
	})

	_, page = send(t, srv, "POST", "/v2/list-agents", `{"filter_criteria":{"query":"t_test"}}`)
	require.Equal(t, []string{"agent_test"}, ids(t, page, "agent_id"), "by a part of the id")
	send(t, srv, "POST", "/create-chat-agent", `{"agent_name":"b"}`)
	send(t, srv, "POST", "/create-agent", `{"agent_name":"c"}`)
	_, all := send(t, srv, "POST", "/v2/list-agents", "")
	var seen []string
	for path := "/v2/list-agents?limit=1"; path != ""; {
		_, page := send(t, srv, "POST", path, "")
		seen = append(seen, ids(t, page, "agent_id")...)
		next, more := page["pagination_key"].(string)
		path = "/v2/list-agents?limit=1&pagination_key=" + next
		if !more {
			path = ""
		}
	}
	require.Equal(t, ids(t, all, "agent_id"), seen)
}

func TestAnIDIsUnescaped(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	askAll(t, srv, []asked{
		{"GET", "/get-phone-number/%2B15550001000", "", 200},
		{"GET", "/get-phone-number/+15550001000", "", 200},
	})
}

func TestControlOfALiveCall(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	id := dial(t, srv, "")
	askAll(t, srv, []asked{
		{"PATCH", "/v2/update-live-call/" + id, `{"fields_to_override":{"override_dynamic_variables":{"a":"1"}}}`, 200},
		{"PATCH", "/v2/update-live-call/" + id, `{"call_control":{"trigger_response":true}}`, 200},
		{"POST", "/v2/listen-live-call/" + id, "", 200},
		{"POST", "/v2/listen-live-call/call_none", "", 404},
		{"POST", "/v2/take-over-live-call/" + id, `{"participant_id":"p"}`, 200},
		{"POST", "/v2/take-over-live-call/" + id, "", 400},
		{"POST", "/v2/take-over-live-call/call_none", `{"participant_id":"p"}`, 404},
		{"PUT", "/rerun-call-analysis/" + id, "", 400},
	})
	_, call := send(t, srv, "GET", "/v2/get-call/"+id, "")
	require.Equal(t, map[string]any{"a": "1"}, call["retell_llm_dynamic_variables"])
}

func TestAnalysisIsRunAgain(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	id := srv.AddCall(nil)
	heard := hear(t, srv)
	status, call := send(t, srv, "PUT", "/rerun-call-analysis/"+id, "")
	require.Equal(t, 201, status)
	require.NotEmpty(t, call["call_analysis"])
	require.NoError(t, srv.Analyze(id, map[string]any{"call_summary": "short"}))
	_, call = send(t, srv, "PUT", "/rerun-call-analysis/"+id, "")
	require.Equal(t, map[string]any{"call_summary": "short"}, call["call_analysis"], "what a test has said stands")
	require.Equal(t, []string{"call_analyzed ended", "call_analyzed ended", "call_analyzed ended"}, *heard)
}

func TestAConnectedCallEndsWithATranscriptAndACost(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	id := dial(t, srv, "")
	require.NoError(t, srv.Answer(id))
	require.NoError(t, srv.Hangup(id, ""))
	_, call := send(t, srv, "GET", "/v2/get-call/"+id, "")
	require.Equal(t, "user_hangup", call["disconnection_reason"])
	require.Contains(t, call, "transcript")
	require.Contains(t, call, "call_cost")
	require.ErrorContains(t, srv.Answer(id), "ended")
}

func TestChatsHaveWebhooks(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	var heard []string
	srv.OnWebhook(func(event []byte, _ string) {
		heard = append(heard, strings.Join(strings.Split(string(event), `"event":`)[1:], ""))
	})
	_, chat := send(t, srv, "POST", "/create-chat", `{"agent_id":"agent_test"}`)
	id := chat["chat_id"].(string)
	askAll(t, srv, []asked{
		{"PATCH", "/update-chat/" + id, `{"metadata":{"a":"b"}}`, 200},
		{"PATCH", "/update-chat/" + id, `{"nonsense":1}`, 400},
		{"PATCH", "/update-chat/chat_none", `{}`, 422},
		{"PATCH", "/end-chat/" + id, "", 204},
		{"PATCH", "/end-chat/chat_none", "", 422},
	})
	require.Equal(t, []string{`"chat_started"}`, `"chat_ended"}`}, heard)
}

func TestACallThatIsDeletedDoesNotMoveOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := retelltest.NewServer(retelltest.WithCallLife(time.Second, time.Second))
		defer srv.Close()
		heard := hear(t, srv)
		for _, wait := range []time.Duration{0, time.Second} {
			id := dial(t, srv, "")
			time.Sleep(wait)
			synctest.Wait()
			status, _ := send(t, srv, "DELETE", "/v2/delete-call/"+id, "")
			require.Equal(t, 204, status)
			time.Sleep(time.Minute)
		}
		require.Equal(t, []string{"call_started ongoing"}, *heard)
	})
}

func TestTheLogIsBounded(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	for range 10_001 {
		send(t, srv, "GET", "/get-api-key-info", "")
	}
	require.Len(t, srv.Received(), 9001)
	require.Equal(t, 10_001, srv.Requests("get-api-key-info"))
}
