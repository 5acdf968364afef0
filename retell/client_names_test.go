package retell

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
)

func TestEveryListGoesOnWhereThePageBeforeItEnded(t *testing.T) {
	const first, second = `{"items":[{}],"has_more":true,"pagination_key":"p2"}`, `{"items":[{}],"has_more":false}`
	ctx := t.Context()
	for operation, list := range map[string]func(*Client) (int, error){
		"list-calls":         func(c *Client) (int, error) { return walk(c.Calls.List(ctx, ListCallsParams{Skip: 3})) },
		"list-chats":         func(c *Client) (int, error) { return walk(c.Chats.List(ctx, ListChatsParams{Skip: 3})) },
		"list-agents":        func(c *Client) (int, error) { return walk(c.Agents.List(ctx, ListAgentsParams{})) },
		"list-phone-numbers": func(c *Client) (int, error) { return walk(c.PhoneNumbers.List(ctx, PageParams{})) },
	} {
		var asked []string
		pages := []string{first, second}
		c := bare(t, resilience.RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			var body struct {
				PaginationKey string `json:"pagination_key"`
				Skip          int    `json:"skip"`
			}
			if req.Body != nil {
				_ = json.NewDecoder(req.Body).Decode(&body)
			}
			require.True(t, body.PaginationKey == "" || body.Skip == 0, "they exclude each other")
			asked = append(asked, req.URL.Query().Get("pagination_key")+body.PaginationKey)
			page := pages[0]
			pages = pages[1:]
			return response(200, page), nil
		}))
		n, err := list(c)
		require.NoError(t, err, operation)
		require.Equal(t, 2, n)
		require.Equal(t, []string{"", "p2"}, asked, operation)

		_, err = list(bare(t, answering(200, `{"items":[],"has_more":true}`, nil)))
		require.ErrorIs(t, err, ErrBadAnswer, "it is not complete")
		require.EqualError(t, err, "retell: "+operation+": status 200: there is more, but no new key for the next page: "+ErrBadAnswer.Error())
	}
}

func walk[T any](items func(func(*T, error) bool)) (n int, err error) {
	for _, e := range items {
		if e != nil {
			return n, e
		}
		n++
	}
	return n, nil
}

func TestEachRequiredFieldIsNamed(t *testing.T) {
	ctx := t.Context()
	c := bare(t, resilience.RoundTripFunc(func(*http.Request) (*http.Response, error) {
		t.Error("it was sent")
		return response(200, `{}`), nil
	}))
	for want, do := range map[string]func() error{
		"register-phone-call: agent_id": func() error { return second(c.Calls.RegisterPhoneCall(ctx, RegisterPhoneCallParams{})) },
		"create-chat: agent_id":         func() error { return second(c.Chats.CreateChat(ctx, CreateChatParams{})) },
		"create-sms-chat: from_number":  func() error { return second(c.Chats.CreateSMSChat(ctx, CreateSMSChatParams{ToNumber: to})) },
		"create-sms-chat: to_number":    func() error { return second(c.Chats.CreateSMSChat(ctx, CreateSMSChatParams{FromNumber: from})) },
		"create-chat-completion: chat_id": func() error {
			return second(c.Chats.CreateChatCompletion(ctx, CreateChatCompletionParams{Content: "x"}))
		},
		"create-batch-call: from_number": func() error {
			return second(c.BatchCalls.CreateBatchCall(ctx, CreateBatchCallParams{Tasks: []BatchCallTask{{ToNumber: to}}}))
		},
		"take-over-live-call: participant_id": func() error { return second(c.Calls.TakeOverLive(ctx, "x", TakeOverLiveParams{})) },
		"take-over-live-call: call_id":        func() error { return second(c.Calls.TakeOverLive(ctx, "", TakeOverLiveParams{ParticipantID: "p"})) },
		"get-call: call_id":                   func() error { return second(c.Calls.Get(ctx, "")) },
		"update-call: call_id":                func() error { return second(c.Calls.Update(ctx, "", UpdateCallParams{})) },
		"delete-call: call_id":                func() error { return c.Calls.Delete(ctx, "") },
		"stop-call: call_id":                  func() error { return c.Calls.Stop(ctx, "") },
		"update-live-call: call_id": func() error {
			return second(c.Calls.UpdateLive(ctx, "", UpdateLiveParams{CallControl: &CallControl{}}))
		},
		"listen-live-call: call_id":      func() error { return second(c.Calls.ListenLive(ctx, "")) },
		"rerun-call-analysis: call_id":   func() error { return second(c.Calls.RerunAnalysis(ctx, "")) },
		"get-chat: chat_id":              func() error { return second(c.Chats.Get(ctx, "")) },
		"update-chat: chat_id":           func() error { return second(c.Chats.Update(ctx, "", UpdateChatParams{})) },
		"end-chat: chat_id":              func() error { return c.Chats.End(ctx, "") },
		"delete-chat: chat_id":           func() error { return c.Chats.Delete(ctx, "") },
		"rerun-chat-analysis: chat_id":   func() error { return second(c.Chats.RerunAnalysis(ctx, "")) },
		"get-agent: agent_id":            func() error { return second(c.Agents.Get(ctx, "", VersionLatest)) },
		"get-phone-number: phone_number": func() error { return second(c.PhoneNumbers.Get(ctx, "")) },
		"get-voice: voice_id":            func() error { return second(c.Voices.Get(ctx, "")) },
	} {
		err := do()
		require.EqualError(t, err, "retell: "+want+" is missing: "+ErrInvalid.Error())
		require.True(t, resilience.NotSent(err))
	}
	for _, err := range []error{
		second(c.Calls.ListPage(ctx, ListCallsParams{Skip: 1, PaginationKey: "x"})), second(c.Chats.ListPage(ctx, ListChatsParams{Skip: 1, PaginationKey: "x"})),
	} {
		require.ErrorContains(t, err, "skip and pagination_key exclude each other")
	}
}

func second[T any](_ T, err error) error { return err }

// A key that Retell takes is taken as it is, in the body too.
func TestAKeyOfRetellsFormIsSentAsItIs(t *testing.T) {
	var seen []sent
	p := somebody
	p.IdempotencyKey = "order_4711"
	_, err := newClient(t, answering(201, `{"call_id":"call_1"}`, &seen)).Calls.CreatePhoneCall(t.Context(), p)
	require.NoError(t, err)
	require.Contains(t, string(seen[0].body), `"idempotency_key":"order_4711"`)
}

func TestAServerForTheBrowserInEachOfItsForms(t *testing.T) {
	for text, want := range map[string]ICEServer{
		`{"urls":"stun:a","username":"u","credential":"c"}`: {URLs: []string{"stun:a"}, Username: "u", Credential: "c"},
		`{"urls":["a","b"]}`:           {URLs: []string{"a", "b"}},
		`{"urls":null,"username":"u"}`: {Username: "u"},
		`{"urls":""}`:                  {},
		`{"urls":7,"username":"u"}`:    {Username: "u"},
		`{}`:                           {},
		`{"username":7}`:               {},
	} {
		var got ICEServer
		require.NoError(t, json.Unmarshal([]byte(text), &got))
		require.Equal(t, want, got, text)
	}
}

func TestWhatABaseURLAndAHeaderMayHold(t *testing.T) {
	for _, base := range []string{"https://", "https:///x", "https://x#part", "https://x?", "http:x"} {
		_, err := New("key", WithBaseURL(base))
		require.Error(t, err, base)
	}
	for agent, ok := range map[string]bool{"a\tb": true, "a b": true, "a\x1fb": false, "a\x7fb": false} {
		_, err := New("key", WithUserAgent(agent))
		require.Equal(t, ok, err == nil, "%q", agent)
	}
}

// Without a transport of the user's the client brings one, for what it sends through the layers and past them, and closes its
// connections.
func TestAClientBringsATransport(t *testing.T) {
	var asked []string
	closed := make(chan struct{}, 10)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.Path)
		_, _ = io.WriteString(w, `{}`)
	}))
	srv.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateClosed {
			closed <- struct{}{}
		}
	}
	srv.Start()
	defer srv.Close()
	cfg := Config()
	cfg.Health.Checks = []resilience.HealthCheck{{
		Name: concurrencyCheck, Run: func(context.Context) []resilience.CheckResult { return nil },
	}}
	c, err := New("key", WithBaseURL(srv.URL), WithConfig(cfg))
	require.NoError(t, err)
	_, err = c.APIKey.Get(t.Context())
	require.NoError(t, err)
	require.Equal(t, resilience.Healthy, c.Stack().Health().Check(t.Context()).Find("api").Status)
	require.Equal(t, []string{"/get-api-key-info", "/get-api-key-info"}, asked)
	require.NoError(t, c.Close(t.Context()))
	<-closed
}

// A client closes the layers that it made, and no others.
func TestCloseEndsWhatTheClientMade(t *testing.T) {
	rt := answering(200, `{}`, nil)
	c := newClient(t, rt)
	require.NoError(t, c.Close(t.Context()))
	_, err := c.APIKey.Get(t.Context())
	require.ErrorIs(t, err, resilience.ErrClosed)

	stack, err := resilience.New(Config())
	require.NoError(t, err)
	c = newClient(t, rt, WithStack(stack))
	require.Same(t, stack, c.Stack())
	require.NoError(t, c.Close(t.Context()))
	_, err = c.APIKey.Get(t.Context())
	require.NoError(t, err)
	require.NoError(t, stack.Close(t.Context()))
}

// What a config says stays; only what it leaves open is filled in.
func TestAConfigOfTheUsersStays(t *testing.T) {
	other := newClient(t, answering(200, `{}`, nil)).Reconciler()
	cfg := resilience.Config{
		Describe:    func(*http.Request) resilience.Call { return resilience.Call{Operation: "mine"} },
		Fallback:    resilience.FallbackConfig{Cacheable: func(c resilience.Call) bool { return c.Operation == "mine" }},
		DLQ:         resilience.DLQConfig{Keep: func(c resilience.Call) bool { return c.Operation == "mine" }},
		Idempotency: resilience.IdempotencyConfig{Reconcile: other},
		Health:      resilience.HealthConfig{Probe: func(context.Context) error { return io.EOF }},
	}
	cfg.DLQ.Authorize = func(context.Context, resilience.Letter, *http.Request) error { return io.EOF }
	c := newClient(t, answering(200, `{}`, nil))
	got := c.complete(cfg, nil)
	mine, theirs := resilience.Call{Operation: "mine"}, resilience.Call{Operation: "update-agent"}
	require.Equal(t, "mine", got.Describe(newRequest("GET", "/get-agent/x")).Operation)
	require.True(t, got.Fallback.Cacheable(mine) && got.DLQ.Keep(mine))
	require.False(t, got.Fallback.Cacheable(theirs) || got.DLQ.Keep(theirs))
	require.Same(t, other, got.Idempotency.Reconcile)
	require.Equal(t, io.EOF, got.DLQ.Authorize(t.Context(), resilience.Letter{}, nil))
	require.Equal(t, io.EOF, got.Health.Probe(t.Context()))

	foreign := struct{ resilience.Reconciler }{other}
	got = c.complete(resilience.Config{Idempotency: resilience.IdempotencyConfig{Reconcile: foreign}}, nil)
	require.Equal(t, foreign, got.Idempotency.Reconcile)

	got = c.complete(resilience.Config{}, nil)
	require.True(t, got.Fallback.Cacheable(resilience.Call{Operation: "get-agent"}) && got.DLQ.Keep(theirs))
	require.False(t, got.Fallback.Cacheable(resilience.Call{Operation: "get-call"}) || got.DLQ.Keep(resilience.Call{Operation: "create-chat"}))
	require.Same(t, c, got.Idempotency.Reconcile.(*reconciler).client)
	require.Same(t, c, c.complete(Config(), nil).Idempotency.Reconcile.(*reconciler).client, "Retell's, with its client")
}

// What is asked past the layers gives its connection back.
func TestAReadPastTheLayersClosesItsBody(t *testing.T) {
	for _, status := range []int{200, 503} {
		body := &closed{}
		c := bare(t, nil)
		_, _ = c.read(t.Context(), resilience.RoundTripFunc(func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: status, Header: http.Header{}, Body: body}, nil
		}), "/get-concurrency")
		require.True(t, body.yes)
	}
}

type closed struct{ yes bool }

func (*closed) Read([]byte) (int, error) { return 0, io.EOF }
func (c *closed) Close() error           { c.yes = true; return nil }

func TestARequestWithoutAURLIsDescribed(t *testing.T) {
	require.Equal(t, resilience.Call{Operation: "other", Effect: once}, Describe(&http.Request{Method: "GET"}))
}

// An error of the transport's is told without URLs, wherever in it they are, and whoever walks it does not come to the one
// around it.
func TestAnErrorIsToldWithoutURLs(t *testing.T) {
	around := &url.Error{Op: "Get", URL: "https://api.retellai.com/get-phone-number/" + from, Err: io.ErrUnexpectedEOF}
	var inside *url.Error
	err := named("get-phone-number", around)
	require.EqualError(t, err, "retell: get-phone-number: unexpected EOF")
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.NotErrorAs(t, err, &inside)
	err = named("get-phone-number", errors.Join(io.EOF, fmt.Errorf("gateway: %w", around)))
	require.EqualError(t, err, "retell: get-phone-number: EOF\ngateway: unexpected EOF")
}

// An answer outside 2xx is what its status says, also if its body breaks off: nothing was accepted.
func TestARefusalWhoseBodyBreaksOffIsARefusal(t *testing.T) {
	c := bare(t, resilience.RoundTripFunc(func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: 404, Header: http.Header{}, Body: io.NopCloser(iotest.ErrReader(io.ErrUnexpectedEOF))}, nil
	}))
	_, err := c.Calls.Get(t.Context(), "call_1")
	require.ErrorIs(t, err, ErrNotFound)
	require.NotErrorIs(t, err, ErrBadAnswer)
}

func TestWhatIsSentSaysWhoSendsIt(t *testing.T) {
	var seen []sent
	_, err := bare(t, answering(200, `{}`, &seen)).APIKey.Get(t.Context())
	require.NoError(t, err)
	require.Equal(t, "retell-resilience-go", seen[0].Header.Get("User-Agent"))
	c := newClient(t, answering(200, `{}`, &seen), WithUserAgent("mine/1"))
	answer, err := Do[Empty](t.Context(), c, "POST", "/create-agent", map[string]string{"agent_name": "<&>"})
	require.NoError(t, err)
	require.Equal(t, 200, answer.StatusCode)
	require.Equal(t, "mine/1", seen[1].Header.Get("User-Agent"))
	require.Equal(t, `{"agent_name":"<&>"}`, string(seen[1].body), "as it is, not escaped for a page")
}

// What a fallback says is wrong with it is not replaced.
func TestTheErrorOfAFallbackIsItsOwn(t *testing.T) {
	mine := errors.New("no such file")
	c := newClient(t, answering(503, `{}`, nil), WithConfig(resilience.Config{Retry: resilience.RetryConfig{Off: true}}))
	called := 0
	own := Fallback(func(context.Context, error) (*Agent, error) { called++; return nil, mine })
	_, err := c.Agents.Get(t.Context(), "agent_1", AgentVersion{}, own)
	require.Error(t, err)
	require.Equal(t, 1, called)
	down := errors.New("down")
	c = newClient(t, resilience.RoundTripFunc(func(*http.Request) (*http.Response, error) { return nil, down }),
		WithConfig(resilience.Config{Retry: resilience.RetryConfig{Off: true}}))
	_, err = c.Agents.Get(t.Context(), "agent_1", AgentVersion{}, own)
	require.ErrorIs(t, err, mine)
	require.ErrorIs(t, err, down)
	require.NotContains(t, err.Error(), "neither an answer nor an error")
}

// Values of another kind than expected leave nothing behind of what was there before.
func TestAValueThatIsDecodedAgainIsReplaced(t *testing.T) {
	version := VersionLatest
	vars, meta, page := Variables{"a": "b"}, Metadata{"a": "b"}, Page[Call]{Items: []*Call{{CallID: "old"}}}
	for _, again := range []string{`null`, `[1]`, `7.5.`} {
		_ = version.UnmarshalJSON([]byte(again))
		_ = vars.UnmarshalJSON([]byte(again))
		_ = meta.UnmarshalJSON([]byte(again))
		require.True(t, version.IsZero() && vars == nil && meta == nil, again)
		version, vars, meta = VersionLatest, Variables{"a": "b"}, Metadata{"a": "b"}
	}
	require.NoError(t, page.UnmarshalJSON([]byte(` [{"call_id":"new"}]`)))
	require.Len(t, page.Items, 1)
	require.Equal(t, "new", page.Items[0].CallID)
	require.Error(t, page.UnmarshalJSON(nil))
}

// A page that says there is more, and not where, does not lead back to the first.
func TestAListDoesNotBeginAnew(t *testing.T) {
	rt, asked := pagesOf(`{"items":[{}],"has_more":true,"pagination_key":"p2"}`, `{"items":[{}],"has_more":true}`)
	n, err := walk(bare(t, rt).Calls.List(t.Context(), ListCallsParams{}))
	require.Equal(t, 2, n)
	require.ErrorIs(t, err, ErrBadAnswer)
	require.Len(t, *asked, 2)
}

// Nor does one whose keys lead round in a circle go on for ever.
func TestAListDoesNotGoRoundInACircle(t *testing.T) {
	page := func(next string) string { return `{"items":[{}],"has_more":true,"pagination_key":"` + next + `"}` }
	rt, asked := pagesOf(page("p2"), page("p3"), page("p2"), page("p3"), page("p2"))
	n, err := walk(bare(t, rt).Calls.List(t.Context(), ListCallsParams{}))
	require.Equal(t, 3, n)
	require.ErrorIs(t, err, ErrBadAnswer)
	require.Len(t, *asked, 3)
}

// null is not a thing of which nothing is known.
func TestAnAnswerOfNullIsNone(t *testing.T) {
	for _, null := range []string{"null", " null\n"} {
		c := bare(t, answering(200, null, nil))
		_, err := c.Agents.Get(t.Context(), "agent_1", AgentVersion{})
		require.ErrorIs(t, err, ErrBadAnswer)
		require.False(t, resilience.InDoubt(err))
		_, err = Do[Agent](t.Context(), c, "POST", "/create-agent", nil)
		require.ErrorIs(t, err, ErrBadAnswer)
		require.True(t, resilience.InDoubt(err), "something was created")
		none, err := Do[*Agent](t.Context(), c, "GET", "/get-agent/agent_1", nil)
		require.NoError(t, err, "who asks for what may be null gets it")
		require.Nil(t, *none)
	}
}

func TestAnAnswerWithoutAnIDSaysSo(t *testing.T) {
	_, err := bare(t, answering(201, `{"call_id":""}`, nil)).Calls.CreatePhoneCall(t.Context(), somebody)
	require.ErrorContains(t, err, "create-phone-call: status 201: the id is missing: "+ErrBadAnswer.Error())
}

func TestWhichKeysRetellTakes(t *testing.T) {
	allowed := regexp.MustCompile(`^[A-Za-z0-9_-]{5,255}$`)
	for b := range 256 {
		key := "order" + string([]byte{byte(b)})
		require.Equal(t, allowed.MatchString(key), fitsServerKey(key), "%q", key)
	}
	for n, fits := range map[int]bool{0: false, 4: false, 5: true, 255: true, 256: false} {
		require.Equal(t, fits, fitsServerKey(strings.Repeat("k", n)), n)
	}
}

// What is marked is read and closed, and no header says how long it was.
func TestMarkTakesTheBodyOver(t *testing.T) {
	body := &watched{Reader: strings.NewReader(`{}`)}
	req := newRequest("POST", "/create-chat")
	req.Body = body
	req.Header.Set("Content-Length", "2")
	require.NoError(t, new(reconciler).Mark(req, "order_4711"))
	require.True(t, body.yes)
	require.Empty(t, req.Header.Get("Content-Length"))
	data, err := io.ReadAll(req.Body)
	require.NoError(t, err)
	require.Equal(t, int64(len(data)), req.ContentLength)
	again, err := req.GetBody()
	require.NoError(t, err)
	same, err := io.ReadAll(again)
	require.NoError(t, err)
	require.Equal(t, data, same)
}

type watched struct {
	io.Reader
	closed
}

func (w *watched) Read(p []byte) (int, error) { return w.Reader.Read(p) }

// Without a client nothing is looked for, and a call without an id proves nothing.
func TestNothingIsFoundWithoutAClientOrAnID(t *testing.T) {
	ev, err := new(reconciler).Find(t.Context(), resilience.Record{ID: testID, Operation: "create-phone-call"})
	require.NoError(t, err)
	require.Empty(t, ev.Calls)
	_, ok := foundIn(&Call{Metadata: Metadata{"rk_key": testID}})
	require.False(t, ok)
}

func TestNumbersOfTheAPIAreTakenAsFarAsTheyGo(t *testing.T) {
	for text, want := range map[string]int64{
		`3`: 3, `3.0`: 3, `-1.9`: -1, `1.7e12`: 1_700_000_000_000, `9223372036854775807`: math.MaxInt64, `9223372036854775808`: 0,
		`1e30`: 0, `-1e30`: 0, `"3"`: 0, `null`: 0,
	} {
		var at Timestamp
		var long Millis
		require.NoError(t, json.Unmarshal([]byte(text), &at))
		require.NoError(t, json.Unmarshal([]byte(text), &long))
		require.Equal(t, want, int64(at), text)
		require.Equal(t, want, int64(long), text)
	}
	var v AgentVersion
	require.NoError(t, json.Unmarshal([]byte(`3.0`), &v))
	require.Equal(t, VersionNumber(3), v)
}
