package retell

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
)

const testID = "abcdefghijklmnopqrstuvwxyz"

func TestMarkBodyLeavesEveryOtherByte(t *testing.T) {
	const marker = `"rk_key":"` + testID + `"`
	for _, c := range []struct{ name, operation, body, want string }{
		{"no metadata", "create-web-call", `{"agent_id":"a"}`, `{"agent_id":"a","metadata":{` + marker + `}}`},
		{"empty object", "create-web-call", ` { } `, ` { "metadata":{` + marker + `}} `},
		{"metadata is null", "create-chat", `{"metadata":null,"n":1.0}`, `{"metadata":{` + marker + `},"n":1.0}`},
		{
			"digits, escapes, order and spaces stay", "create-chat",
			"{ \"metadata\" : {\"b\": 9007199254740993, \"a\": 1e400,\"\\u0041\":\"<é\\/>\" } ,\n\"x\":\"metadata\" }",
			"{ \"metadata\" : {\"b\": 9007199254740993, \"a\": 1e400,\"\\u0041\":\"<é\\/>\" ," + marker + "} ,\n\"x\":\"metadata\" }",
		},
		{"empty metadata", "create-sms-chat", `{"metadata":{}}`, `{"metadata":{` + marker + `}}`},
		{"nested members do not count", "create-chat", `{"a":{"metadata":1,"rk_key":2}}`, `{"a":{"metadata":1,"rk_key":2},"metadata":{` + marker + `}}`},
		{"an older call's marker", "create-chat", `{"metadata":{"rk_key":"old","a":1}}`, `{"metadata":{"rk_key":"` + testID + `","a":1}}`},
		{
			"a phone call gets Retell's key too", "create-phone-call", `{"to_number":"x"}`,
			`{"to_number":"x","metadata":{` + marker + `},"idempotency_key":"order_4711"}`,
		},
		{
			"the caller's own key stays", "create-phone-call", `{"idempotency_key":"mine!"}`,
			`{"idempotency_key":"mine!","metadata":{` + marker + `}}`,
		},
		{"into an empty body object", "create-phone-call", `{}`, `{"metadata":{` + marker + `},"idempotency_key":"order_4711"}`},
		{
			"every task of a batch", "create-batch-call", `{"tasks":[{"to_number":"1"},{"metadata":{"a":[{}]}}, 7]}`,
			`{"tasks":[{"to_number":"1","metadata":{"rk_key":"` + testID + `-batch"}},{"metadata":{"a":[{}],"rk_key":"` + testID + `-batch"}}, 7]}`,
		},
		{"a batch without tasks", "create-batch-call", `{"tasks":"none"}`, `{"tasks":"none"}`},
		{"a batch whose tasks are no list", "create-batch-call", `{"tasks":{"a":{"to_number":"1"}}}`, `{"tasks":{"a":{"to_number":"1"}}}`},
		{
			"a key that is null, and stands first", "create-phone-call", `{"idempotency_key":null,"to_number":"x"}`,
			`{"idempotency_key":"order_4711","to_number":"x","metadata":{` + marker + `}}`,
		},
		{"other operations", "update-call", `not JSON`, `not JSON`},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := markBody(c.operation, []byte(c.body), testID, "order_4711")
			require.NoError(t, err)
			require.Equal(t, c.want, string(got))
			again, err := markBody(c.operation, []byte(c.body), testID, "order_4711")
			require.NoError(t, err)
			require.Equal(t, got, again)
		})
	}
}

func TestMarkBodyRefuses(t *testing.T) {
	for body, why := range map[string]string{
		`{"metadata":"secret +15555550123"}`:      "metadata is not a JSON object",
		`{"metadata":[1]}`:                        "metadata is not a JSON object",
		`{"metadata":{},"metadata":{}}`:           "twice",
		`{"metadata":{"rk_key":1,"rk_key":2}}`:    "twice",
		`{"metadata":{},"metad\u0061ta":{"x":1}}`: "twice",
		``:              "not a JSON object",
		`[]`:            "not a JSON object",
		`{"a":}`:        "not valid JSON",
		`{"a":1`:        "not valid JSON",
		`{"a":1} {}`:    "something after",
		`{"a":1}}`:      "something after",
		`{"metadata":{`: "not valid JSON",
	} {
		_, err := markBody("create-chat", []byte(body), testID, "k")
		require.ErrorIs(t, err, errBody, body)
		require.ErrorContains(t, err, why, body)
		require.NotContains(t, err.Error(), "555")
	}
	_, err := markBody("create-batch-call", []byte(`{"tasks":[{},{"metadata":5}]}`), testID, "k")
	require.ErrorContains(t, err, "tasks[1]")
}

func TestServerKeyFitsAndStaysTheSame(t *testing.T) {
	require.Equal(t, "order_4711-A", serverKey("order_4711-A"))
	seen := map[string]bool{}
	for _, key := range []string{"", "abcd", "reminder:4711", "reminder.4711", "ключ", strings.Repeat("x", 256), "a b c d e"} {
		got := serverKey(key)
		require.True(t, fitsServerKey(got), key)
		require.Equal(t, got, serverKey(key))
		require.False(t, seen[got])
		seen[got] = true
	}
	require.Equal(t, strings.Repeat("x", 255), serverKey(strings.Repeat("x", 255)))
	require.Equal(t, "rk_-D7C11lLq-lbGdWrWTn18VTYBQZWp7sj8_vVBXrUIOs", serverKey("reminder:4711"), "restarts and releases must agree")
}

func FuzzMarkBody(f *testing.F) {
	for _, body := range []string{
		`{}`, `{"metadata":{"a":9007199254740993}}`, `{"metadata":null}`, `{"tasks":[{},{"metadata":{}}]}`, `{"idempotency_key":"x"}`,
		`{"metadata":{"rk_key":"x"}}`, ` {"a" : [1, {"metadata":2}]} `, `{"":""}`, `{"metadata":{}`, "{\"\xff\":1}",
	} {
		for operation := range marked {
			f.Add(operation, body, "key:1")
		}
	}
	f.Fuzz(func(t *testing.T, operation, body, key string) {
		before := bytes.Clone([]byte(body))
		out, err := markBody(operation, before, testID, key)
		if string(before) != body {
			t.Fatal("the caller's body was changed")
		}
		how, ok := marked[operation]
		if err != nil || !ok {
			return
		}
		if !json.Valid(out) {
			t.Fatalf("%q became %q", body, out)
		}
		if again, err := markBody(operation, out, testID, key); err != nil || !bytes.Equal(again, out) {
			t.Fatalf("marking twice is not marking once: %q %q %v", out, again, err)
		}
		if !how.tasks && !bytes.Contains(out, []byte(`"rk_key":`)) && !strings.Contains(body, `rk_key`) && !strings.Contains(body, `\u`) {
			t.Fatalf("no marker in %q", out)
		}
	})
}

func TestMarkReplacesTheBodyOfTheClone(t *testing.T) {
	c := newClient(t, answering(201, `{}`, nil), WithBaseURL("https://proxy.example.com/retell/"))
	req, err := http.NewRequest("POST", "https://proxy.example.com/retell/v2/create-phone-call", strings.NewReader(`{"to_number":"x"}`))
	require.NoError(t, err)
	require.NoError(t, c.Reconciler().Mark(req, "reminder:4711"))
	body, err := io.ReadAll(req.Body)
	require.NoError(t, err)
	require.Equal(t, int64(len(body)), req.ContentLength)
	require.Contains(t, string(body), `"rk_key":"`+plainID("reminder:4711")+`"`)
	require.Contains(t, string(body), `"idempotency_key":"`+serverKey("reminder:4711")+`"`)
	second, err := req.GetBody()
	require.NoError(t, err)
	again, err := io.ReadAll(second)
	require.NoError(t, err)
	require.Equal(t, body, again)

	other, err := http.NewRequest("GET", "https://proxy.example.com/retell/v2/get-call/x", nil)
	require.NoError(t, err)
	require.NoError(t, c.Reconciler().Mark(other, "k"))
	require.Nil(t, other.Body)
}

func TestANewCallIsNamedByItsAnswer(t *testing.T) {
	r := &reconciler{}
	for operation, body := range map[string]string{
		"create-phone-call": `{"call_id":"x","call_cost":"odd"}`, "create-chat": `{"chat_id":"x","call_id":"y"}`,
		"create-batch-call": `{"batch_call_id":"x"}`, "register-phone-call": `{"call_id":"x"}`,
	} {
		id, ok := r.CallID(operation, []byte(body))
		require.True(t, ok, operation)
		require.Equal(t, "x", id, operation)
		for _, bad := range []string{`{}`, ``, `[]`, `{"call_id":`, `{"call_id":7,"chat_id":7,"batch_call_id":7}`} {
			_, ok = r.CallID(operation, []byte(bad))
			require.False(t, ok, operation+bad)
		}
	}
	_, ok := r.CallID("create-agent", nil)
	require.True(t, ok)
}

// pagesOf answers list-calls page by page.
func pagesOf(pages ...string) (http.RoundTripper, *[]string) {
	var asked []string
	return resilience.RoundTripFunc(func(req *http.Request) (*http.Response, error) {
		body, _ := io.ReadAll(req.Body)
		asked = append(asked, req.Method+" "+req.URL.Path+" "+string(body))
		if len(asked) > len(pages) {
			return nil, errors.New("one page too many")
		}
		return response(200, pages[len(asked)-1]), nil
	}), &asked
}

func found(id, marker string) string {
	return fmt.Sprintf(`{"call_id":%q,"call_type":"phone_call","metadata":{"rk_key":%q}}`, id, marker)
}

func TestFindFollowsAllPagesAndTrustsNoFilter(t *testing.T) {
	rt, asked := pagesOf(
		`{"items":[`+found("stranger", "other")+`,{"call_id":"bare"}],"has_more":true,"pagination_key":"p2"}`,
		`{"items":[],"has_more":true,"pagination_key":"p3"}`,
		`{"items":[`+found("call_1", testID)+`,`+found("call_2", testID)+`],"has_more":false}`,
	)
	ev, err := bare(t, rt).Reconciler().Find(context.Background(), resilience.Record{ID: testID, Operation: "create-phone-call"})
	require.NoError(t, err)
	require.Equal(t, testID, ev.ID)
	require.Len(t, ev.Calls, 2, "both: that is a dispute")
	require.Equal(t, "call_1", ev.Calls[0].ID)
	require.JSONEq(t, `{"call_id":"call_1","call_type":"phone_call","call_status":"","agent_id":"","metadata":{"rk_key":"`+testID+`"}}`, string(ev.Calls[0].Body))
	const filter = `{"filter_criteria":{"metadata":[{"key":"rk_key","type":"string","op":"eq","value":"` + testID + `"}]},"sort_order":"descending","limit":100`
	require.Equal(t, []string{
		"POST /v3/list-calls " + filter + `}`,
		"POST /v3/list-calls " + filter + `,"pagination_key":"p2"}`,
		"POST /v3/list-calls " + filter + `,"pagination_key":"p3"}`,
	}, *asked)
}

func TestFindDoesNotTakeABrokenListForTheWhole(t *testing.T) {
	for name, page := range map[string]string{
		"more, and no key": `{"items":[` + found("call_1", testID) + `],"has_more":true}`,
		"no items":         `{"has_more":false}`,
		"not JSON":         `<html>`,
	} {
		rt, _ := pagesOf(page)
		ev, err := bare(t, rt).Reconciler().Find(context.Background(), resilience.Record{ID: testID, Operation: "create-phone-call"})
		require.Error(t, err, name)
		require.Empty(t, ev.Calls, name)
	}
	same := `{"items":[],"has_more":true,"pagination_key":"p"}`
	rt, asked := pagesOf(same, same, same)
	_, err := bare(t, rt).Reconciler().Find(context.Background(), resilience.Record{ID: testID, Operation: "create-phone-call"})
	require.ErrorIs(t, err, ErrBadAnswer)
	require.Len(t, *asked, 2, "it does not go round in circles")
}

func TestFindAsksOnlyWhereAskingHelps(t *testing.T) {
	rt, asked := pagesOf()
	for _, operation := range []string{"create-chat", "create-sms-chat", "create-agent", ""} {
		ev, err := bare(t, rt).Reconciler().Find(context.Background(), resilience.Record{ID: testID, Operation: operation})
		require.NoError(t, err)
		require.Empty(t, ev.Calls)
	}
	require.Empty(t, *asked)
}

func TestCallsOfABatchProveTheBatch(t *testing.T) {
	rt, _ := pagesOf(`{"items":[
		{"call_id":"c1","batch_call_id":"batch_1","metadata":{"rk_key":"` + testID + `-batch"}},
		{"call_id":"c2","batch_call_id":"batch_1","metadata":{"rk_key":"` + testID + `-batch"}},
		{"call_id":"c3","metadata":{"rk_key":"` + testID + `-batch"}}],"has_more":false}`)
	ev, err := bare(t, rt).Reconciler().Find(context.Background(), resilience.Record{ID: testID, Operation: "create-batch-call"})
	require.NoError(t, err)
	require.Len(t, ev.Calls, 2)
	for _, f := range ev.Calls {
		require.Equal(t, "batch_1", f.ID)
	}
}

func TestEvidenceFromAWebhook(t *testing.T) {
	ev, ok := evidenceOf(&Call{CallID: "call_1", Transcript: "private", Metadata: Metadata{"rk_key": testID}})
	require.True(t, ok)
	require.Equal(t, testID, ev.ID)
	require.NotContains(t, string(ev.Calls[0].Body), "private")
	for _, m := range []Metadata{nil, {"rk_key": 5}, {"rk_key": "short"}, {"rk_key": strings.Repeat("A", 26)}, {"rk_key": testID + "-batch"}} {
		_, ok = evidenceOf(&Call{CallID: "call_1", Metadata: m})
		require.False(t, ok, m)
	}
	_, ok = evidenceOf(nil)
	require.False(t, ok)
}

func TestEvidenceFromTheWebhookOfAChat(t *testing.T) {
	ev, ok := evidenceOfChat(&Chat{ChatID: "chat_1", Transcript: "private", Metadata: Metadata{"rk_key": testID}})
	require.True(t, ok)
	require.Equal(t, testID, ev.ID)
	require.Equal(t, "chat_1", ev.Calls[0].ID)
	require.NotContains(t, string(ev.Calls[0].Body), "private")
	for _, chat := range []*Chat{
		nil, {ChatID: "chat_1"}, {Metadata: Metadata{"rk_key": testID}}, {ChatID: "chat_1", Metadata: Metadata{"rk_key": testID + "-batch"}},
	} {
		_, ok = evidenceOfChat(chat)
		require.False(t, ok, chat)
	}
}
