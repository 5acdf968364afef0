package retelltest_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience/retell/retelltest"
)

func ask(t *testing.T, srv *retelltest.Server, method, path, auth, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://retell.test"+path, strings.NewReader(body))
	require.NoError(t, err)
	req.Header.Set("Authorization", auth)
	resp, err := srv.Transport().RoundTrip(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, string(text)
}

func TestAnEmptyKeyIsRefused(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	status, _ := ask(t, srv, "GET", "/list-voices", "Bearer ", "")
	require.Equal(t, 401, status)
}

func TestAnIDMayHoldAnEscapedSlash(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	status, _ := ask(t, srv, "GET", "/v2/get-call/a%2Fb", "Bearer key_x", "")
	require.Equal(t, 422, status)
	require.Equal(t, 1, srv.Requests("get-call"))
}

const (
	base = "http://retell.test"
	from = "+15550001000"
	to   = "+15550001111"
)

// newRequest makes an authenticated request.
func newRequest(ctx context.Context, t testing.TB, method, url, body string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	require.NoError(t, err)
	req.Header.Set("Authorization", "Bearer key_abc")
	req.Header.Set("Content-Type", "application/json")
	return req
}

// send makes an in-process request and returns status and body.
func send(t testing.TB, srv *retelltest.Server, method, path, body string) (int, map[string]any) {
	t.Helper()
	resp, err := srv.Client().Do(newRequest(context.Background(), t, method, base+path, body))
	require.NoError(t, err)
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	var out map[string]any
	if len(raw) > 0 && raw[0] == '{' {
		require.NoError(t, json.Unmarshal(raw, &out))
	}
	return resp.StatusCode, out
}

// dial makes an in-process phone call and returns its id.
func dial(t testing.TB, srv *retelltest.Server, fields string) string {
	t.Helper()
	status, call := send(t, srv, "POST", "/v2/create-phone-call", dialBody(fields))
	require.Equal(t, 201, status, call)
	return call["call_id"].(string)
}

// dialBody is a body for create-phone-call, with fields like `,"metadata":{}`.
func dialBody(fields string) string {
	return `{"from_number":"` + from + `","to_number":"` + to + `"` + fields + `}`
}

func ids(t testing.TB, page map[string]any, field string) []string {
	t.Helper()
	out := []string{}
	for _, e := range page["items"].([]any) {
		out = append(out, e.(map[string]any)[field].(string))
	}
	return out
}

func TestAuthorization(t *testing.T) {
	for name, c := range map[string]struct {
		opts   []retelltest.Option
		header string
		status int
		body   string
	}{
		"any key":     {nil, "Bearer key_whatever", 200, ""},
		"none":        {nil, "", 401, `{"error_message":"Authorization header required"}`},
		"wrong start": {nil, "Bearer sk_1", 401, `{"message":"Invalid API Key.","status":"error"}`},
		"no bearer":   {nil, "key_1", 401, `{"message":"Invalid API Key.","status":"error"}`},
		"the one":     {[]retelltest.Option{retelltest.WithKey("k1")}, "Bearer k1", 200, ""},
		"another":     {[]retelltest.Option{retelltest.WithKey("k1")}, "Bearer key_2", 401, `{"message":"Invalid API Key.","status":"error"}`},
	} {
		t.Run(name, func(t *testing.T) {
			srv := retelltest.NewServer(c.opts...)
			defer srv.Close()
			req := newRequest(t.Context(), t, "GET", base+"/get-concurrency", "")
			req.Header.Del("Authorization")
			if c.header != "" {
				req.Header.Set("Authorization", c.header)
			}
			resp, err := srv.Client().Do(req)
			require.NoError(t, err)
			defer resp.Body.Close()
			raw, err := io.ReadAll(resp.Body)
			require.NoError(t, err)
			require.Equal(t, c.status, resp.StatusCode)
			if c.body != "" {
				require.Equal(t, c.body, string(raw))
				require.Zero(t, srv.Effects("get-concurrency"))
			}
		})
	}
}

func TestUnknownPathIs404(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	for _, path := range []string{"/", "/nothing", "/v2/get-call", "/v2/get-call/", "/v3/get-call/x", "/v2/get-call/a/b"} {
		status, body := send(t, srv, "GET", path, "")
		require.Equal(t, 404, status, path)
		require.Equal(t, "error", body["status"])
	}
	require.Equal(t, 6, srv.Requests("unknown"))
}

func TestBadBodyIs400(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	for _, body := range []string{"{", "[]", `"x"`, "{} {}"} {
		status, _ := send(t, srv, "POST", "/v2/create-phone-call", body)
		require.Equal(t, 400, status, body)
	}
}

func TestMisspeltOperationPanics(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	require.PanicsWithValue(t,
		`retelltest: no operation "create-fone-call"; it is named by the words of its path, like "create-phone-call"`,
		func() { srv.Requests("create-fone-call") })
	require.Panics(t, func() { srv.Inject("x", retelltest.Refuse()) })
	require.Panics(t, func() { srv.Rate(retelltest.Any, 1.5, retelltest.Refuse()) })
	require.Contains(t, retelltest.Operations(), "create-phone-call")
}

func TestIDsComeFromTheSeed(t *testing.T) {
	id := func(seed int64) string {
		srv := retelltest.NewServer(retelltest.WithSeed(seed))
		defer srv.Close()
		return dial(t, srv, "")
	}
	require.Equal(t, id(1), id(1))
	require.NotEqual(t, id(1), id(2))
	require.Regexp(t, `^call_[0-9a-f]{32}$`, id(1))
}

func TestCreatedThingsCanBeReadListedChangedDeleted(t *testing.T) {
	for _, c := range []struct{ create, get, update, list, remove, id string }{
		{"/create-agent", "/get-agent/", "PATCH /update-agent/", "POST /v2/list-agents", "/delete-agent/", "agent_id"},
		{"/create-chat-agent", "/get-chat-agent/", "PATCH /update-chat-agent/", "POST /v2/list-agents", "/delete-chat-agent/", "agent_id"},
		{"/create-retell-llm", "/get-retell-llm/", "PATCH /update-retell-llm/", "GET /v2/list-retell-llms", "/delete-retell-llm/", "llm_id"},
		{"/create-phone-number", "/get-phone-number/", "PATCH /update-phone-number/", "GET /v2/list-phone-numbers", "/delete-phone-number/", "phone_number"},
		{"/create-contact", "/get-contact/", "PATCH /update-contact/", "POST /list-contacts", "/delete-contact/", "contact_id"},
		{"/create-app", "/get-app/", "PATCH /update-app/", "GET /list-apps", "/delete-app/", "app_id"},
		{"/create-test-case-definition", "/get-test-case-definition/", "PUT /update-test-case-definition/", "GET /v2/list-test-case-definitions", "/delete-test-case-definition/", "test_case_definition_id"},
	} {
		t.Run(c.create, func(t *testing.T) {
			srv := retelltest.NewServer()
			defer srv.Close()
			status, made := send(t, srv, "POST", c.create, `{"nickname":"a"}`)
			require.Equal(t, 201, status)
			id := made[c.id].(string)

			method, path, _ := strings.Cut(c.update, " ")
			status, _ = send(t, srv, method, path+id, `{"nickname":"b"}`)
			require.Equal(t, 200, status)
			status, got := send(t, srv, "GET", c.get+id, "")
			require.Equal(t, 200, status)
			require.Equal(t, "b", got["nickname"])

			method, path, _ = strings.Cut(c.list, " ")
			status, page := send(t, srv, method, path, "")
			require.Equal(t, 200, status)
			require.Contains(t, ids(t, page, c.id), id)

			status, _ = send(t, srv, "DELETE", c.remove+id, "")
			require.Equal(t, 204, status)
			status, _ = send(t, srv, "GET", c.get+id, "")
			require.Contains(t, []int{404, 422}, status)
		})
	}
}

func TestPhoneNumbersAreBoughtOncePerRequest(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	_, a := send(t, srv, "POST", "/create-phone-number", `{"area_code":415}`)
	_, b := send(t, srv, "POST", "/create-phone-number", `{"area_code":415}`)
	require.NotEqual(t, a["phone_number"], b["phone_number"])
	require.Equal(t, 2, srv.Effects("create-phone-number"))

	status, _ := send(t, srv, "POST", "/import-phone-number", `{"phone_number":"`+from+`"}`)
	require.Equal(t, 400, status, "it is there already")
}

func TestUploadsAreForms(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	req := newRequest(t.Context(), t, "POST", base+"/create-knowledge-base", "--b\r\n"+
		"Content-Disposition: form-data; name=\"knowledge_base_name\"\r\n\r\nhours\r\n--b\r\n"+
		"Content-Disposition: form-data; name=\"knowledge_base_files\"; filename=\"a.txt\"\r\n\r\nopen\r\n--b--\r\n")
	req.Header.Set("Content-Type", "multipart/form-data; boundary=b")
	resp, err := srv.Client().Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	var made map[string]any
	require.NoError(t, json.NewDecoder(resp.Body).Decode(&made))
	require.Equal(t, 201, resp.StatusCode)
	require.Equal(t, "hours", made["knowledge_base_name"])
	require.Equal(t, []any{"a.txt"}, made["knowledge_base_files"])
}

func TestBareArrays(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	resp, err := srv.Client().Do(newRequest(t.Context(), t, "GET", base+"/list-voices", ""))
	require.NoError(t, err)
	defer resp.Body.Close()
	var voices []map[string]any
	require.NoError(t, json.NewDecoder(resp.Body).Decode(&voices))
	require.Len(t, voices, 2)
	require.Equal(t, "11labs-Adrian", voices[0]["voice_id"])
}

func TestListAgentsFilters(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	send(t, srv, "POST", "/create-agent", `{"agent_name":"Night Shift"}`)
	send(t, srv, "POST", "/create-chat-agent", `{"agent_name":"Chat Shift"}`)
	count := func(body string) int {
		status, page := send(t, srv, "POST", "/v2/list-agents", body)
		require.Equal(t, 200, status)
		return len(page["items"].([]any))
	}
	require.Equal(t, 3, count(``))
	require.Equal(t, 2, count(`{"filter_criteria":{"query":"shift"}}`))
	require.Equal(t, 1, count(`{"filter_criteria":{"channel":{"type":"string","op":"eq","value":"chat"}}}`))
}

// A webhook that a timer delivers runs on a goroutine of the server's: none is left behind Close.
func TestCloseAwaitsAWebhookOfATimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := retelltest.NewServer(retelltest.WithCallLife(time.Second, time.Hour))
		heard := false
		srv.OnWebhook(func([]byte, string) { time.Sleep(time.Minute); heard = true })
		dial(t, srv, "")
		time.Sleep(2 * time.Second)
		srv.Close()
		require.True(t, heard)
	})
}
