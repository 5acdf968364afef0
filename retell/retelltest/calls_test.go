package retelltest_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience/retell/retelltest"
)

func TestCreatePhoneCall(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	status, call := send(t, srv, "POST", "/v2/create-phone-call",
		dialBody(`,"metadata":{"op_id":"a","n":12345678901234567890},"agent_id":"ignored by Retell","surprise":1`))
	require.Equal(t, 201, status)
	require.Equal(t, "registered", call["call_status"])
	require.Equal(t, "outbound", call["direction"])
	require.Equal(t, to, call["to_number"])
	require.NotContains(t, call, "start_timestamp")
	require.Equal(t, 1, srv.Rings(to))
	require.Equal(t, map[string]int{to: 1}, srv.AllRings())
	require.Equal(t, 1, srv.Requests("create-phone-call"))

	status, got := send(t, srv, "GET", "/v2/get-call/"+call["call_id"].(string), "")
	require.Equal(t, 200, status)
	require.Equal(t, call, got)
	require.Contains(t, string(srv.Calls()[0].Object), "12345678901234567890", "every digit")

	status, body := send(t, srv, "GET", "/v2/get-call/call_none", "")
	require.Equal(t, 422, status)
	require.Equal(t, "error", body["status"])
}

func TestCreatePhoneCallRefusesBadBodies(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	for _, body := range []string{
		`{}`, `{"from_number":"` + from + `"}`, `{"from_number":"555","to_number":"` + to + `"}`,
		`{"from_number":"` + from + `","to_number":"555"}`,
		dialBody(`,"metadata":"text"`), dialBody(`,"retell_llm_dynamic_variables":{"a":1}`),
		dialBody(`,"idempotency_key":"four"`), dialBody(`,"idempotency_key":"a:b:c"`), dialBody(`,"idempotency_key":12345`),
		dialBody(`,"idempotency_key":"` + strings.Repeat("k", 256) + `"`),
	} {
		status, _ := send(t, srv, "POST", "/v2/create-phone-call", body)
		require.Equal(t, 400, status, body)
	}
	require.Empty(t, srv.AllRings())
	require.Zero(t, srv.Effects("create-phone-call"))
}

func TestServerKeyRingsOnceForAnHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := retelltest.NewServer()
		defer srv.Close()
		key := `,"idempotency_key":"reminder-4711"`
		first := dial(t, srv, key)
		time.Sleep(time.Hour - time.Millisecond)
		require.Equal(t, first, dial(t, srv, key))
		require.Equal(t, 1, srv.Rings(to))
		require.Equal(t, 1, srv.Effects("create-phone-call"))
		require.Equal(t, 2, srv.Requests("create-phone-call"))

		time.Sleep(time.Millisecond)
		require.NotEqual(t, first, dial(t, srv, key), "the hour counts from the first use")
		require.NotEqual(t, first, dial(t, srv, `,"idempotency_key":"reminder-4712"`))
		require.Equal(t, 3, srv.Rings(to))
	})
}

func TestOlderDeploymentIgnoresServerKeys(t *testing.T) {
	srv := retelltest.NewServer(retelltest.WithoutServerKeys())
	defer srv.Close()
	require.NotEqual(t, dial(t, srv, `,"idempotency_key":"reminder"`), dial(t, srv, `,"idempotency_key":"reminder"`))
	dial(t, srv, `,"idempotency_key":"!"`)
	require.Equal(t, 3, srv.Rings(to))
}

func TestConcurrencyLimit(t *testing.T) {
	srv := retelltest.NewServer(retelltest.WithConcurrency(2))
	defer srv.Close()
	a, b := dial(t, srv, ""), dial(t, srv, `,"idempotency_key":"key_b"`)
	status, body := send(t, srv, "POST", "/v2/create-phone-call", dialBody(""))
	require.Equal(t, 429, status)
	require.Equal(t, "error", body["status"])
	require.Equal(t, b, dial(t, srv, `,"idempotency_key":"key_b"`), "a replay is no new call")
	_, now := send(t, srv, "GET", "/get-concurrency", "")
	require.EqualValues(t, 2, now["current_concurrency"])
	require.EqualValues(t, 2, now["concurrency_limit"])

	require.NoError(t, srv.Answer(a))
	require.NoError(t, srv.Hangup(a, ""))
	dial(t, srv, "")
	require.Equal(t, 3, srv.Rings(to))
}

func TestDefaultConcurrencyAndNone(t *testing.T) {
	srv := retelltest.NewServer(retelltest.WithConcurrency(0))
	defer srv.Close()
	for range retelltest.DefaultConcurrency {
		dial(t, srv, "")
	}
	status, _ := send(t, srv, "POST", "/v2/create-phone-call", dialBody(""))
	require.Equal(t, 429, status)

	free := retelltest.NewServer(retelltest.WithConcurrency(-1))
	defer free.Close()
	for range 2 * retelltest.DefaultConcurrency {
		dial(t, free, "")
	}
}

func TestUpdateCall(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	id := dial(t, srv, `,"metadata":{"a":"1","b":"2"}`)
	status, call := send(t, srv, "PATCH", "/v2/update-call/"+id, `{"metadata":{"c":"3"}}`)
	require.Equal(t, 200, status)
	require.Equal(t, map[string]any{"c": "3"}, call["metadata"], "replaced, not merged")

	for _, bad := range []string{
		`{"nonsense":1,"metadata":{"d":"4"}}`, `{"metadata":{"x":"` + strings.Repeat("x", 50_000) + `"}}`,
		`{"data_storage_setting":"whatever"}`,
	} {
		status, _ := send(t, srv, "PATCH", "/v2/update-call/"+id, bad)
		require.Equal(t, 400, status)
	}
	status, _ = send(t, srv, "PATCH", "/v2/update-call/"+id, `{"data_storage_setting":"basic_attributes_only"}`)
	require.Equal(t, 200, status)
	status, _ = send(t, srv, "PATCH", "/v2/update-call/"+id, `{"data_storage_setting":"everything"}`)
	require.Equal(t, 400, status, "it only becomes stricter")
	status, _ = send(t, srv, "PATCH", "/v2/update-call/call_none", `{}`)
	require.Equal(t, 422, status)
	require.Equal(t, map[string]any{"c": "3"}, srv.Calls()[0].Metadata)
}

func TestStopAndDeleteCall(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	id := dial(t, srv, "")
	require.NoError(t, srv.Answer(id))
	status, _ := send(t, srv, "POST", "/v2/stop-call/"+id, "")
	require.Equal(t, 204, status)
	require.Equal(t, "ended", srv.Calls()[0].Status)
	require.Equal(t, "manual_stopped", srv.Calls()[0].Reason)
	status, _ = send(t, srv, "POST", "/v2/stop-call/"+id, "")
	require.Equal(t, 422, status)
	status, _ = send(t, srv, "DELETE", "/v2/delete-call/"+id, "")
	require.Equal(t, 204, status)
	require.Empty(t, srv.Calls())
	status, _ = send(t, srv, "DELETE", "/v2/delete-call/"+id, "")
	require.Equal(t, 422, status)
	require.Equal(t, 1, srv.Rings(to), "what rang has rung")
}

func TestUpdateLiveCall(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	id := dial(t, srv, `,"retell_llm_dynamic_variables":{"a":"1","b":"2"}`)
	path := "/v2/update-live-call/" + id
	for range 2 {
		status, body := send(t, srv, "PATCH", path, `{"call_control":{"additional_context":"hurry"},
			"fields_to_override":{"override_dynamic_variables":{"b":"3"},"metadata":{"m":"n"}}}`)
		require.Equal(t, 200, status)
		require.Equal(t, true, body["success"])
	}
	require.Equal(t, []string{"hurry", "hurry"}, srv.Calls()[0].Controls)
	_, call := send(t, srv, "GET", "/v2/get-call/"+id, "")
	require.Equal(t, map[string]any{"a": "1", "b": "3"}, call["retell_llm_dynamic_variables"])
	require.Equal(t, map[string]any{"m": "n"}, call["metadata"])

	status, _ := send(t, srv, "PATCH", path, `{"call_control":{"additional_context":""}}`)
	require.Equal(t, 400, status)
	require.NoError(t, srv.Hangup(id, "dial_busy"))
	status, _ = send(t, srv, "PATCH", path, `{}`)
	require.Equal(t, 422, status)
	status, _ = send(t, srv, "PATCH", "/v2/update-live-call/call_none", `{}`)
	require.Equal(t, 404, status)
}

func TestWebAndRegisteredCallsRingNowhere(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	status, web := send(t, srv, "POST", "/v3/create-web-call", `{"agent_id":"agent_test"}`)
	require.Equal(t, 201, status)
	require.Equal(t, "gateway", web["transport"])
	require.NotContains(t, web, "call_status")
	status, call := send(t, srv, "GET", "/v2/get-call/"+web["call_id"].(string), "")
	require.Equal(t, 200, status)
	require.Equal(t, "web_call", call["call_type"])
	require.NotContains(t, call, "to_number")

	status, call = send(t, srv, "POST", "/v2/register-phone-call", `{"agent_id":"agent_test","to_number":"`+to+`"}`)
	require.Equal(t, 201, status)
	require.Equal(t, to, call["to_number"])
	require.Empty(t, srv.AllRings())
}

func TestBatchCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := retelltest.NewServer()
		defer srv.Close()
		tasks := `"tasks":[{"to_number":"` + to + `","metadata":{"row":"1"}},{"to_number":"+15550002222","metadata":{"row":"2"}}]`
		status, batch := send(t, srv, "POST", "/create-batch-call", `{"from_number":"`+from+`",`+tasks+`}`)
		require.Equal(t, 201, status)
		require.EqualValues(t, 2, batch["total_task_count"])
		require.Equal(t, map[string]int{to: 1, "+15550002222": 1}, srv.AllRings())
		_, page := send(t, srv, "POST", "/v3/list-calls", fmt.Sprintf(
			`{"filter_criteria":{"batch_call_id":{"type":"string","op":"eq","value":%q},"metadata":[{"key":"row","type":"string","op":"eq","value":"2"}]}}`,
			batch["batch_call_id"]))
		require.Len(t, page["items"], 1)
		require.Equal(t, batch["batch_call_id"], srv.Calls()[1].BatchCallID)

		status, _ = send(t, srv, "POST", "/create-batch-call", fmt.Sprintf(`{"from_number":"%s","trigger_timestamp":%d,%s}`,
			from, time.Now().Add(time.Hour).UnixMilli(), tasks))
		require.Equal(t, 201, status)
		require.Equal(t, 1, srv.Rings(to))
		time.Sleep(time.Hour)
		synctest.Wait()
		require.Equal(t, 2, srv.Rings(to))

		status, _ = send(t, srv, "POST", "/create-batch-call", `{"from_number":"`+from+`","tasks":[{}]}`)
		require.Equal(t, 400, status)
	})
}

func TestDoNotCall(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	send(t, srv, "POST", "/create-contact", `{"phone_number":"`+to+`","do_not_call":true}`)
	status, _ := send(t, srv, "POST", "/v2/create-phone-call", dialBody(`,"honor_internal_dnc":true`))
	require.Equal(t, 400, status)
	require.Zero(t, srv.Rings(to))
	dial(t, srv, "")
}

func TestChats(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	status, sms := send(t, srv, "POST", "/create-sms-chat", dialBody(`,"metadata":{"a":"b"}`))
	require.Equal(t, 200, status)
	require.Equal(t, 1, srv.Texts(to))
	require.Zero(t, srv.Rings(to))
	status, chat := send(t, srv, "POST", "/create-chat", `{"agent_id":"agent_test"}`)
	require.Equal(t, 201, status)
	id := chat["chat_id"].(string)

	status, said := send(t, srv, "POST", "/create-chat-completion", `{"chat_id":"`+id+`","content":"hello"}`)
	require.Equal(t, 201, status)
	require.Len(t, said["messages"], 1)
	_, chat = send(t, srv, "GET", "/get-chat/"+id, "")
	require.Len(t, chat["message_with_tool_calls"], 2)

	_, page := send(t, srv, "POST", "/v3/list-chats", `{"filter_criteria":{"chat_type":{"type":"enum","op":"in","value":["sms_chat"]},"user_number":{"type":"string","op":"eq","value":"`+to+`"}}}`)
	require.Equal(t, []string{sms["chat_id"].(string)}, ids(t, page, "chat_id"))
	status, _ = send(t, srv, "POST", "/v3/list-chats", `{"filter_criteria":{"metadata":[{"key":"a","type":"string","op":"eq","value":"b"}]}}`)
	require.Equal(t, 400, status, "chats cannot be found by metadata")

	status, _ = send(t, srv, "PATCH", "/end-chat/"+id, "")
	require.Equal(t, 204, status)
	status, _ = send(t, srv, "PATCH", "/end-chat/"+id, "")
	require.Equal(t, 422, status)
	status, _ = send(t, srv, "POST", "/create-chat-completion", `{"chat_id":"`+id+`","content":"hello"}`)
	require.Equal(t, 422, status)
	status, _ = send(t, srv, "DELETE", "/delete-chat/"+id, "")
	require.Equal(t, 204, status)
	status, _ = send(t, srv, "GET", "/get-chat/"+id, "")
	require.Equal(t, 422, status)
}

// Who names the agent of a phone call by agent_id, a common mistake, gets the agent of the number and no error.
func TestWhichAgentSpeaks(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	for _, c := range []struct{ path, body, agent string }{
		{"/v2/create-phone-call", dialBody(""), "agent_test"},
		{"/v2/create-phone-call", dialBody(`,"agent_id":"agent_b"`), "agent_test"},
		{"/v2/create-phone-call", dialBody(`,"override_agent_id":"agent_b"`), "agent_b"},
		{"/v2/create-web-call", `{"agent_id":"agent_b"}`, "agent_b"},
		{"/v2/register-phone-call", `{"agent_id":"agent_b"}`, "agent_b"},
		{"/create-sms-chat", dialBody(""), "agent_test"},
		{"/create-sms-chat", dialBody(`,"agent_id":"agent_b"`), "agent_test"},
		{"/create-sms-chat", dialBody(`,"override_agent_id":"agent_b"`), "agent_b"},
		{"/create-chat", `{"agent_id":"agent_b"}`, "agent_b"},
	} {
		_, made := send(t, srv, "POST", c.path, c.body)
		require.Equal(t, c.agent, made["agent_id"], "%s %s", c.path, c.body)
	}
}
