package retell_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"github.com/retell-resilience/resilience"
	"github.com/retell-resilience/resilience/retell"
	"github.com/retell-resilience/resilience/retell/retelltest"
)

// fakeAPI stands in for Retell in the examples.
func fakeAPI(status int, answer string) retell.Option {
	return retell.WithTransport(resilience.RoundTripFunc(func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(answer))}, nil
	}))
}

func Example() {
	client, err := retell.New("key_0123", fakeAPI(201, `{"call_id":"call_1","call_status":"registered"}`))
	if err != nil {
		panic(err)
	}
	call, err := client.Calls.CreatePhoneCall(context.Background(), retell.CreatePhoneCallParams{
		FromNumber: "+15555550100", ToNumber: "+15555550123",
	}, retell.IdempotencyKey("reminder:4711:2026-11-23"))
	if err != nil {
		panic(err)
	}
	fmt.Println(call.CallID, call.CallStatus)
	// Output: call_1 registered
}

func ExampleCalls_CreatePhoneCall_errors() {
	lost := retell.WithTransport(resilience.RoundTripFunc(func(*http.Request) (*http.Response, error) {
		return nil, errors.New("connection reset by peer")
	}))
	client, err := retell.New("key_0123", lost)
	if err != nil {
		panic(err)
	}
	_, err = client.Calls.CreatePhoneCall(context.Background(), retell.CreatePhoneCallParams{
		FromNumber: "+15555550100", ToNumber: "+15555550123",
	})
	switch {
	case resilience.InDoubt(err):
		fmt.Println("the phone may ring: look the key up, do not call again")
	case errors.Is(err, resilience.ErrParked):
		fmt.Println("the queue will make the call")
	case resilience.NotSent(err):
		fmt.Println("nothing happened: call again later")
	}
	// Output: the phone may ring: look the key up, do not call again
}

func ExampleError() {
	client, err := retell.New("key_0123", fakeAPI(422, `{"status":"error","message":"cannot find call_7"}`))
	if err != nil {
		panic(err)
	}
	_, err = client.Calls.Get(context.Background(), "call_7")
	var said *retell.Error
	if errors.As(err, &said) {
		fmt.Println(err)
		fmt.Println(retell.IsNotFound(err), said.StatusCode, said.Message)
	}
	// Output:
	// retell: get-call: status 422: not found
	// true 422 cannot find call_7
}

func ExampleCalls_List() {
	client, err := retell.New("key_0123", fakeAPI(200, `{"items":[{"call_id":"call_1"},{"call_id":"call_2"}],"has_more":false}`))
	if err != nil {
		panic(err)
	}
	params := retell.ListCallsParams{FilterCriteria: &retell.CallFilter{
		CallStatus: retell.OneOf(retell.CallStatusEnded, retell.CallStatusError),
		Metadata:   []*retell.Filter{retell.Equals("4711").On("order")},
	}}
	for call, err := range client.Calls.List(context.Background(), params) {
		if err != nil {
			panic(err)
		}
		fmt.Println(call.CallID)
	}
	// Output:
	// call_1
	// call_2
}

func ExampleDo() {
	client, err := retell.New("key_0123", fakeAPI(200, `{"llm_id":"llm_1","model":"m"}`))
	if err != nil {
		panic(err)
	}
	type llm struct {
		retell.Meta `json:"-"`
		Model       string `json:"model"`
	}
	got, err := retell.Do[llm](context.Background(), client, "GET", "/get-retell-llm/"+retell.PathID("llm_1"), nil)
	if err != nil {
		panic(err)
	}
	fmt.Println(got.Model, got.StatusCode)
	// Output: m 200
}

// Hand-written requests keep their code and change their transport.
func ExampleConfig() {
	stack, err := resilience.New(retell.Config())
	if err != nil {
		panic(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Println(strings.Contains(string(body), `"idempotency_key":"order-4711"`))
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, `{"call_id":"call_1"}`)
	}))
	defer server.Close()
	client := http.Client{Transport: stack.Wrap(nil)}

	ctx := resilience.WithIdempotencyKey(context.Background(), "order-4711")
	body := strings.NewReader(`{"from_number":"+15555550100","to_number":"+15555550123"}`)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, server.URL+"/v2/create-phone-call", body)
	if err != nil {
		panic(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		panic(err)
	}
	_ = resp.Body.Close()
	fmt.Println(resp.StatusCode)
	_ = stack.Close(context.Background())
	// Output:
	// true
	// 201
}

func ExampleDescribe() {
	req, _ := http.NewRequest(http.MethodPost, "https://api.retellai.com/v2/create-phone-call", nil)
	call := retell.Describe(req)
	fmt.Println(call.Operation, call.Effect, call.Priority, call.Limit)
	// Output: create-phone-call once critical 2m0s
}

func ExampleWebhookHandler() {
	handler := retell.WebhookHandler(retell.WebhookConfig{
		APIKey: "key_0123",
		Handle: func(ctx context.Context, e *retell.WebhookEvent) error {
			fmt.Println(e.Event, e.ID())
			return nil // it is stored: Retell need not send it again
		},
	})
	unsigned := httptest.NewRequest(http.MethodPost, "/webhook", strings.NewReader(`{"event":"call_ended","call":{"call_id":"call_1"}}`))
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, unsigned)
	fmt.Println(w.Code)
	// Output: 401
}

func ExampleBudget() {
	client, err := retell.New("key_0123", fakeAPI(200, `{"current_concurrency":5,"concurrency_limit":20}`))
	if err != nil {
		panic(err)
	}
	now, err := client.Concurrency.Get(context.Background(), retell.Budget(2*time.Second), retell.Priority(resilience.PriorityBulk))
	if err != nil {
		panic(err)
	}
	fmt.Println(now.OutboundHeadroom(), "more calls fit")
	// Output: 15 more calls fit
}

// A webhook by hand, where WebhookHandler does not fit. Verify the bytes as they came, then read them.
func ExampleVerifyWebhook() {
	const key = "key_0123" // the one with the webhook badge
	body := []byte(`{"event":"call_ended","call":{"call_id":"call_1"}}`)
	signature := retelltest.Sign(body, key, time.Now()) // stands for the header X-Retell-Signature
	if err := retell.VerifyWebhook(body, key, signature); err != nil {
		panic(err)
	}
	event, err := retell.ParseWebhook(body)
	if err != nil {
		panic(err)
	}
	fmt.Println(event.Event, event.ID())

	forged := bytes.Replace(body, []byte("call_1"), []byte("call_2"), 1)
	fmt.Println(errors.Is(retell.VerifyWebhook(forged, key, signature), retell.ErrBadSignature))
	old := retelltest.Sign(body, key, time.Now().Add(-time.Hour))
	fmt.Println(errors.Is(retell.VerifyWebhook(body, key, old), retell.ErrStaleSignature))
	// Output:
	// call_ended call_1
	// true
	// true
}

// The answer is lost, and nobody knows whether the phone rings. The first webhook of the call says so.
func ExampleClient_Observe() {
	srv := retelltest.NewServer()
	defer srv.Close()
	client, err := retell.New(retelltest.DefaultKey, retell.WithTransport(srv.Transport()))
	if err != nil {
		panic(err)
	}
	defer client.Close(context.Background())
	handler := retell.WebhookHandler(retell.WebhookConfig{APIKey: retelltest.DefaultKey, Handle: client.Observe})
	srv.OnWebhook(func(event []byte, signature string) {
		req := httptest.NewRequest(http.MethodPost, "/webhook", bytes.NewReader(event))
		req.Header.Set(retell.SignatureHeader, signature)
		handler.ServeHTTP(httptest.NewRecorder(), req)
	})

	remind := func() (*retell.Call, error) {
		return client.Calls.CreatePhoneCall(context.Background(), retell.CreatePhoneCallParams{
			FromNumber: "+15555550100", ToNumber: "+15555550123",
		}, retell.IdempotencyKey("reminder:4711"))
	}
	srv.Inject("create-phone-call", retelltest.LostAnswer())
	_, err = remind()
	fmt.Println("in doubt:", resilience.InDoubt(err))
	_ = srv.Answer(srv.Calls()[0].ID) // somebody picks up, and Retell posts call_started
	call, err := remind()
	if err != nil {
		panic(err)
	}
	fmt.Println(call.CallID == srv.Calls()[0].ID, "replayed:", call.Replayed, "rings:", srv.Rings("+15555550123"))
	// Output:
	// in doubt: true
	// true replayed: true rings: 1
}

// Two workspaces, one Retell: what the calls of one find out about an outage spares the other its own tries. A shared stack
// does not know whose a write is: name the workspace in each key, or the second call under "reminder:4711" is answered with the
// first and never made. Nor does it have an API key for redrives and look-ups, so letters are off, and webhooks end a doubt.
func ExampleWithStack() {
	cfg := retell.Config()
	cfg.Breaker.MinCalls = 1
	cfg.Retry.Max = -1
	cfg.DLQ.Off = true
	stack, err := resilience.New(cfg)
	if err != nil {
		panic(err)
	}
	defer stack.Close(context.Background()) // a client's Close leaves it open
	for _, key := range []string{"key_clinic", "key_shop"} {
		client, err := retell.New(key, retell.WithStack(stack), fakeAPI(503, ""))
		if err != nil {
			panic(err)
		}
		_, err = client.Voices.Get(context.Background(), "voice_1")
		fmt.Println(key, "- circuit open:", errors.Is(err, resilience.ErrOpen), "- not sent:", resilience.NotSent(err))
		_ = client.Close(context.Background())
	}
	// Output:
	// key_clinic - circuit open: false - not sent: false
	// key_shop - circuit open: true - not sent: true
}

// Retell is down. An agent that is kept in a file is better than none.
func ExampleFallback() {
	cfg := retell.Config()
	cfg.Retry.Max = -1
	client, err := retell.New("key_0123", retell.WithConfig(cfg), fakeAPI(503, ""))
	if err != nil {
		panic(err)
	}
	fromFile := func(context.Context, error) (*retell.Agent, error) {
		return &retell.Agent{AgentID: "agent_1", AgentName: "Front desk"}, nil
	}
	agent, err := client.Agents.Get(context.Background(), "agent_1", retell.AgentVersion{}, retell.Fallback(fromFile))
	if err != nil {
		panic(err)
	}
	fmt.Println(agent.AgentName, agent.FromFallback, agent.FallbackReason)
	// Output: Front desk true status
}
