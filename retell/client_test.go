package retell

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
)

var somebody = CreatePhoneCallParams{FromNumber: from, ToNumber: to}

// phone is a Retell that makes calls. The answers to the first ones can get lost.
type phone struct {
	lose  int
	rings []string // bodies
	calls []json.RawMessage
}

func (p *phone) RoundTrip(req *http.Request) (*http.Response, error) {
	var body []byte
	if req.Body != nil {
		body, _ = io.ReadAll(req.Body)
		_ = req.Body.Close()
	}
	switch req.URL.Path {
	case "/v2/create-phone-call":
		p.rings = append(p.rings, string(body))
		var call map[string]json.RawMessage
		_ = json.Unmarshal(body, &call)
		call["call_id"], call["call_type"] = json.RawMessage(`"call_1"`), json.RawMessage(`"phone_call"`)
		answer, _ := json.Marshal(call)
		p.calls = append(p.calls, answer)
		if p.lose > 0 {
			p.lose--
			return nil, errors.New("connection reset by peer")
		}
		return response(201, string(answer)), nil
	case "/v3/list-calls":
		page, _ := json.Marshal(map[string]any{"items": p.calls, "has_more": false})
		return response(200, string(page)), nil
	}
	return response(404, `{"status":"error","message":"no such path"}`), nil
}

func TestALostAnswerDoesNotRingTwiceAndIsFoundAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &phone{lose: 1}
		cfg := Config()
		cfg.DLQ.Off = true // the caller keeps the call
		cfg.Health.Probe = func(context.Context) error { return nil }
		c := newClient(t, p, WithConfig(cfg))
		_, err := c.Calls.CreatePhoneCall(t.Context(), somebody, IdempotencyKey("reminder:4711"))
		require.True(t, resilience.InDoubt(err), err)
		require.False(t, resilience.NotSent(err))
		var e *resilience.Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, "reminder:4711", e.Key)
		require.NotContains(t, err.Error(), "555")

		_, err = c.Calls.CreatePhoneCall(t.Context(), somebody, IdempotencyKey("reminder:4711"))
		require.True(t, resilience.InDoubt(err), err)
		require.Len(t, p.rings, 1)
		require.Contains(t, p.rings[0], `"rk_key":"`+c.Stack().Idempotency.ID("reminder:4711")+`"`)
		require.Contains(t, p.rings[0], `"idempotency_key":"`+serverKey("reminder:4711")+`"`)

		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- c.Stack().Run(ctx) }()
		time.Sleep(time.Minute)
		call, err := c.Calls.CreatePhoneCall(t.Context(), somebody, IdempotencyKey("reminder:4711"))
		require.NoError(t, err)
		require.Equal(t, "call_1", call.CallID)
		require.True(t, call.Replayed)
		require.Len(t, p.rings, 1)
		stop()
		require.NoError(t, <-ended)
		require.NoError(t, c.Close(context.Background()))
	})
}

func TestAWebhookEndsTheDoubt(t *testing.T) {
	p := &phone{lose: 1}
	cfg := Config()
	cfg.DLQ.Off = true
	c := newClient(t, p, WithConfig(cfg))
	_, err := c.Calls.CreatePhoneCall(t.Context(), somebody, IdempotencyKey("k:1"))
	require.True(t, resilience.InDoubt(err), err)

	e, err := ParseWebhook([]byte(`{"event":"call_started","call":` + string(p.calls[0]) + `}`))
	require.NoError(t, err)
	require.NoError(t, c.Observe(t.Context(), e))
	require.NoError(t, c.Observe(t.Context(), nil))
	call, err := c.Calls.CreatePhoneCall(t.Context(), somebody, IdempotencyKey("k:1"))
	require.NoError(t, err)
	require.Equal(t, "call_1", call.CallID)
	require.Len(t, p.rings, 1)
	require.NoError(t, c.Close(t.Context()))
}

// Two programs in one workspace may use the same key for different things; their namespaces keep them apart at Retell too.
func TestNamespaceReachesRetell(t *testing.T) {
	p := &phone{}
	for _, namespace := range []string{"", "a", "b"} {
		cfg := Config()
		cfg.Idempotency.Namespace = namespace
		c := newClient(t, p, WithConfig(cfg))
		_, err := c.Calls.CreatePhoneCall(t.Context(), somebody, IdempotencyKey("order-1"))
		require.NoError(t, err)
	}
	keys := map[any]bool{}
	for _, ring := range p.rings {
		var body map[string]any
		require.NoError(t, json.Unmarshal([]byte(ring), &body))
		keys[body["idempotency_key"]] = true
	}
	require.Len(t, keys, 3)
	require.True(t, keys["order-1"])
}

func TestMetadataThatCannotBeMarkedIsRefusedUnsent(t *testing.T) {
	var seen []sent
	c := newClient(t, answering(201, `{}`, &seen))
	_, err := Do[Call](t.Context(), c, "POST", "/v2/create-phone-call", map[string]any{"to_number": to, "metadata": "x"})
	require.True(t, resilience.NotSent(err), err)
	require.ErrorContains(t, err, "metadata is not a JSON object")
	require.Empty(t, seen)
}

func TestAnAnswerWithoutAnIDIsInDoubt(t *testing.T) {
	for _, answer := range []string{`{}`, `<html>`, ``, `{"call_id":null}`} {
		for name, c := range map[string]*Client{
			"with layers": newClient(t, answering(201, answer, nil)), "without": bare(t, answering(201, answer, nil)),
		} {
			_, err := c.Calls.CreatePhoneCall(t.Context(), somebody)
			require.True(t, resilience.InDoubt(err), name+answer)
			require.False(t, resilience.NotSent(err), name+answer)
		}
	}
}

func TestAnswersOfAnotherShapeCostOnlyTheField(t *testing.T) {
	c := bare(t, answering(201, `{"call_id":"call_1","call_cost":"free","agent_version":{},"duration_ms":1.5,"start_timestamp":"x",
		"metadata":[1],"transcript_object":{"a":1},"retell_llm_dynamic_variables":{"n":5},"from_number":7}`, nil))
	call, err := c.Calls.CreatePhoneCall(t.Context(), somebody)
	require.NoError(t, err)
	require.Equal(t, "call_1", call.CallID)
	require.True(t, call.AgentVersion.IsZero())
	require.Equal(t, Millis(1), call.DurationMS)
	require.Nil(t, call.Metadata)
	require.Equal(t, Variables{"n": "5"}, call.RetellLLMDynamicVariables)
}

func TestListFollowsItsPages(t *testing.T) {
	rt, asked := pagesOf(`{"items":[{"call_id":"a"},{"call_id":"b"}],"has_more":true,"pagination_key":"p2"}`, `{"items":[{"call_id":"c"}],"has_more":false}`)
	var ids []string
	for call, err := range bare(t, rt).Calls.List(t.Context(), ListCallsParams{Skip: 3, Limit: 2}) {
		require.NoError(t, err)
		ids = append(ids, call.CallID)
	}
	require.Equal(t, []string{"a", "b", "c"}, ids)
	require.Equal(t, []string{
		`POST /v3/list-calls {"limit":2,"skip":3}`, `POST /v3/list-calls {"limit":2,"pagination_key":"p2"}`,
	}, *asked)

	rt, asked = pagesOf(`{"items":[{"agent_id":"a"},{"agent_id":"b"}],"has_more":true,"pagination_key":"p2"}`)
	for _, err := range bare(t, rt).Agents.List(t.Context(), ListAgentsParams{}) {
		require.NoError(t, err)
		break
	}
	require.Len(t, *asked, 1, "no page that nobody wants")

	rt, _ = pagesOf(`{"items":[{"chat_id":"a"}],"has_more":true,"pagination_key":"p2"}`)
	var last error
	n := 0
	for _, err := range bare(t, rt).Chats.List(t.Context(), ListChatsParams{}) {
		n++
		last = err
	}
	require.Equal(t, 2, n)
	require.ErrorContains(t, last, "one page too many")
}

func TestBaseURLWithAPath(t *testing.T) {
	var seen []sent
	c := newClient(t, answering(200, `{"call_id":"a/b"}`, &seen), WithBaseURL("http://localhost:8080/proxy/"))
	_, err := c.Calls.Get(t.Context(), "a/b")
	require.NoError(t, err)
	require.Equal(t, "http://localhost:8080/proxy/v2/get-call/a%2Fb", seen[0].URL.String())
	call := c.below(Describe)(seen[0].Request)
	require.Equal(t, "get-call", call.Operation)
	require.Equal(t, "call/a%2Fb", call.Resource)
	require.Equal(t, "GET", c.below(Describe)(newRequest("GET", "/elsewhere")).Operation)
}

func TestNewRefuses(t *testing.T) {
	for name, opts := range map[string][]Option{
		"relative": {WithBaseURL("api.retellai.com")}, "user": {WithBaseURL("https://u:secret@x")}, "scheme": {WithBaseURL("ftp://x")},
		"query": {WithBaseURL("https://x?secret=1")}, "broken": {WithBaseURL("https://secret\x7f")},
		"agent":  {WithUserAgent("a\nb")},
		"both":   {WithConfig(Config()), WithStack(new(resilience.Stack))},
		"config": {WithConfig(resilience.Config{Breaker: resilience.BreakerConfig{FailureRate: 7}})},
	} {
		_, err := New("key", opts...)
		require.Error(t, err, name)
		require.NotContains(t, err.Error(), "secret")
	}
	for _, key := range []string{"", " ", "a\r\nb"} {
		_, err := New(key)
		require.Error(t, err)
	}
	c, err := New(" key \n", nil)
	require.NoError(t, err)
	require.Equal(t, "key", c.apiKey)
}

func TestCredentialsGoToNoOtherHost(t *testing.T) {
	c := newClient(t, answering(200, `{}`, nil))
	for target, want := range map[string]string{
		DefaultBaseURL + "/v2/create-phone-call": "Bearer key_test", "https://evil.example.com/v2/create-phone-call": "",
		"http://api.retellai.com/v2/create-phone-call": "",
	} {
		req, err := http.NewRequest("POST", target, nil)
		require.NoError(t, err)
		err = c.authorize(t.Context(), resilience.Letter{}, req)
		require.Equal(t, want, req.Header.Get("Authorization"))
		require.Equal(t, want == "", err != nil)
	}
}

func TestProbeAsksPastTheLayers(t *testing.T) {
	for status, healthy := range map[int]bool{200: true, 429: true, 401: false, 500: false} {
		var seen []sent
		rt := answering(status, `{}`, &seen)
		c := newClient(t, rt)
		c.Stack().Breaker.ForceOpen()
		err := c.prober(rt)(t.Context())
		require.Equal(t, healthy, err == nil, status)
		require.Equal(t, "/get-api-key-info", seen[0].URL.Path)
		require.Equal(t, "Bearer key_test", seen[0].Header.Get("Authorization"))
	}
}

// Health shows the text, also for a client whose requests go by a proxy with a path of its own.
func TestAProbeThatFailedNamesTheOperation(t *testing.T) {
	for _, base := range []string{DefaultBaseURL, "http://localhost:8080/proxy"} {
		rt := answering(503, `{"message":"to +15555550123"}`, nil)
		c := newClient(t, rt, WithBaseURL(base))
		require.EqualError(t, c.prober(rt)(t.Context()), "retell: get-api-key-info: status 503")
	}
}

func TestAnAnswerFromTheCacheSaysSo(t *testing.T) {
	up := true
	c := newClient(t, resilience.RoundTripFunc(func(*http.Request) (*http.Response, error) {
		if !up {
			return nil, errors.New("down")
		}
		return response(200, `[{"voice_id":"voice_1"}]`), nil
	}))
	voices, err := c.Voices.List(t.Context())
	require.NoError(t, err)
	require.False(t, voices.FromFallback)
	up = false
	voices, err = c.Voices.List(t.Context(), Budget(50*time.Millisecond))
	require.NoError(t, err)
	require.True(t, voices.FromFallback)
	require.Equal(t, resilience.Fresh, voices.Staleness)
	require.Equal(t, "transport", voices.FallbackReason)
	require.Equal(t, "voice_1", voices.Items[0].VoiceID)
}

func TestAnAnswerOfTheCallersOwn(t *testing.T) {
	c := newClient(t, resilience.RoundTripFunc(func(*http.Request) (*http.Response, error) { return nil, errors.New("down") }))
	get := func(f func(context.Context, error) (*Agent, error)) (*Agent, error) {
		return c.Agents.Get(t.Context(), "agent_1", AgentVersion{}, Budget(50*time.Millisecond), Fallback(f))
	}
	agent, err := get(func(_ context.Context, err error) (*Agent, error) {
		require.Error(t, err)
		return &Agent{AgentID: "agent_1", VoiceID: "from a file", FallbackVoiceIDs: []string{"a"}}, nil
	})
	require.NoError(t, err)
	require.Equal(t, "from a file", agent.VoiceID)
	require.Equal(t, []string{"a"}, agent.FallbackVoiceIDs)
	require.True(t, agent.FromFallback)
	require.Equal(t, "transport", agent.FallbackReason)
	require.Zero(t, agent.Age)
	require.Equal(t, resilience.StalenessUnset, agent.Staleness)
	_, err = get(func(context.Context, error) (*Agent, error) { return nil, nil }) //nolint:nilnil // a faulty one
	require.ErrorContains(t, err, "neither an answer nor an error")
}

func TestBodyThatIsNotJSON(t *testing.T) {
	var seen []sent
	c := bare(t, answering(201, `{"x":1}`, &seen))
	got, err := Do[json.RawMessage](t.Context(), c, "POST", "/create-asset", Body{ContentType: "multipart/form-data; boundary=b", Data: []byte("--b")})
	require.NoError(t, err)
	require.JSONEq(t, `{"x":1}`, string(*got))
	require.True(t, bytes.Equal([]byte("--b"), seen[0].body))
	require.Equal(t, "multipart/form-data; boundary=b", seen[0].Header.Get("Content-Type"))
}

func TestUnionsSurviveARoundTrip(t *testing.T) {
	for _, text := range []string{`3`, `0`, `"prod"`, `""`, `null`} {
		var v AgentVersion
		require.NoError(t, json.Unmarshal([]byte(text), &v))
		out, err := json.Marshal(v)
		require.NoError(t, err)
		require.Equal(t, text, string(out))
	}
	var m Metadata
	require.NoError(t, json.Unmarshal([]byte(`{"n":9007199254740993,"f":1.0}`), &m))
	out, err := json.Marshal(m)
	require.NoError(t, err)
	require.Equal(t, `{"f":1.0,"n":9007199254740993}`, string(out))
	require.Zero(t, TimestampOf(time.Time{}))
	require.True(t, Timestamp(0).Time().IsZero())
	require.Equal(t, Timestamp(1767225600000), TimestampOf(time.UnixMilli(1767225600000)))
}
