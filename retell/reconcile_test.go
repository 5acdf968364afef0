package retell_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
	"github.com/retell-resilience/resilience/retell"
	"github.com/retell-resilience/resilience/retell/retelltest"
)

// A text cannot be looked up, so no look-up ever found that it is absent.
func TestNoTextIsTakenForAbsentWithoutALookUp(t *testing.T) {
	cfg := retell.Config()
	cfg.Idempotency.AssumeAbsentAfter = 10 * time.Minute
	cfg.DLQ.Off = true
	configured(t, cfg, func(t *testing.T, c *retell.Client, srv *retelltest.Server) {
		srv.Inject("create-sms-chat", retelltest.LostAnswer())
		text := func() error {
			_, err := c.Chats.CreateSMSChat(t.Context(), retell.CreateSMSChatParams{FromNumber: ours, ToNumber: theirs}, retell.IdempotencyKey("text:4711"))
			return err
		}
		require.True(t, resilience.InDoubt(text()))
		time.Sleep(2 * time.Hour)
		require.Zero(t, srv.Requests("list-chats")+srv.Requests("list-calls"), "nobody was asked")
		err := text()
		require.True(t, resilience.InDoubt(err), err)
		require.Equal(t, 1, srv.Texts(theirs))
	})
}

// Layers without a client look nothing up, so no look-up ever found that the call is absent.
func TestNoCallIsTakenForAbsentByLayersThatCannotLook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := retelltest.NewServer(retelltest.WithoutServerKeys())
		defer srv.Close()
		cfg := retell.Config()
		cfg.Idempotency.AssumeAbsentAfter = 10 * time.Minute
		cfg.DLQ.Off = true
		stack, err := resilience.New(cfg)
		require.NoError(t, err)
		rt := stack.Wrap(srv.Transport())
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- stack.Run(ctx) }()
		srv.Inject("create-phone-call", retelltest.LostAnswer())
		call := func() error {
			ctx := resilience.WithIdempotencyKey(t.Context(), "reminder:4711")
			req, err := http.NewRequestWithContext(ctx, "POST", "https://api.retellai.com/v2/create-phone-call",
				strings.NewReader(`{"from_number":"`+ours+`","to_number":"`+theirs+`"}`))
			require.NoError(t, err)
			req.Header.Set("Authorization", "Bearer key_test")
			resp, err := rt.RoundTrip(req)
			if err == nil {
				_ = resp.Body.Close()
			}
			return err
		}
		require.True(t, resilience.InDoubt(call()))
		time.Sleep(2 * time.Hour)
		require.Zero(t, srv.Requests("list-calls"), "nobody was asked")
		err = call()
		stop()
		require.NoError(t, <-ended)
		require.NoError(t, stack.Close(context.Background()))
		require.True(t, resilience.InDoubt(err), err)
		require.Equal(t, 1, srv.Rings(theirs))
	})
}

// The documented call object has no batch_call_id. Calls with the batch's marker still show that the batch was made.
func TestABatchWhoseCallsDoNotNameItIsNotTakenForAbsent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := retelltest.NewServer()
		defer srv.Close()
		inner := srv.Transport()
		rt := resilience.RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			resp, err := inner.RoundTrip(req)
			if err != nil || !strings.HasSuffix(req.URL.Path, "/list-calls") {
				return resp, err
			}
			body, _ := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			return answer(200, strings.ReplaceAll(string(body), `"batch_call_id":`, `"something_else":`)), nil
		})
		cfg := retell.Config()
		cfg.Idempotency.AssumeAbsentAfter = 10 * time.Minute
		cfg.DLQ.Off = true
		c, err := retell.New("key_test", retell.WithTransport(rt), retell.WithConfig(cfg))
		require.NoError(t, err)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- c.Stack().Run(ctx) }()
		srv.Inject("create-batch-call", retelltest.LostAnswer())
		batch := func() error {
			_, err := c.BatchCalls.CreateBatchCall(t.Context(), retell.CreateBatchCallParams{
				FromNumber: ours, Tasks: []retell.BatchCallTask{{ToNumber: theirs}},
			}, retell.IdempotencyKey("campaign:1"))
			return err
		}
		require.True(t, resilience.InDoubt(batch()))
		time.Sleep(2 * time.Hour)
		require.Positive(t, srv.Requests("list-calls"))
		_ = batch()
		stop()
		require.NoError(t, <-ended)
		require.NoError(t, c.Close(context.Background()))
		require.Equal(t, 1, srv.Rings(theirs), "its calls were listed, with the marker")
	})
}

// null is no key, as null is no metadata.
func TestNoServerKeyThatIsNull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var keys []any
		rings := map[any]int{}
		rt := resilience.RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			body, _ := io.ReadAll(req.Body)
			var in map[string]any
			_ = json.Unmarshal(body, &in)
			if strings.HasSuffix(req.URL.Path, "list-calls") {
				return answer(200, `{"items":[],"has_more":false}`), nil
			}
			keys = append(keys, in["idempotency_key"])
			rings[in["idempotency_key"]]++
			return nil, errors.New("reset")
		})
		cfg := retell.Config()
		cfg.Idempotency.ServerKeys = resilience.ServerKeysTrust
		cfg.DLQ.Off = true
		c, err := retell.New("key_test", retell.WithTransport(rt), retell.WithConfig(cfg))
		require.NoError(t, err)
		for range 2 {
			_, err = retell.Do[retell.Call](t.Context(), c, "POST", "/v2/create-phone-call",
				map[string]any{"from_number": ours, "to_number": theirs, "idempotency_key": nil}, retell.IdempotencyKey("reminder:4711"))
			require.Error(t, err)
		}
		require.NotContains(t, keys, nil, "a call without a key was sent, and sent again")
		require.NoError(t, c.Close(t.Context()))
	})
}

// Only create-phone-call has a key of Retell's: a text is never sent again on its strength.
func TestOnlyPhoneCallsAreSentAgainUnderRetellsKey(t *testing.T) {
	cfg := retell.Config()
	cfg.Idempotency.ServerKeys = resilience.ServerKeysTrust
	cfg.DLQ.Off = true
	configured(t, cfg, func(t *testing.T, c *retell.Client, srv *retelltest.Server) {
		srv.Inject("create-sms-chat", retelltest.LostAnswer())
		srv.Inject("create-phone-call", retelltest.LostAnswer())
		for range 2 {
			_, err := c.Chats.CreateSMSChat(t.Context(), retell.CreateSMSChatParams{FromNumber: ours, ToNumber: theirs}, retell.IdempotencyKey("text:4711"))
			require.True(t, resilience.InDoubt(err), err)
		}
		require.Equal(t, 1, srv.Texts(theirs))
		_, err := c.Calls.CreatePhoneCall(t.Context(), reminder, retell.IdempotencyKey("call:4711"))
		require.True(t, resilience.InDoubt(err), err)
		_, err = c.Calls.CreatePhoneCall(t.Context(), reminder, retell.IdempotencyKey("call:4711"))
		require.NoError(t, err)
		require.Equal(t, 2, srv.Requests("create-phone-call"), "sent again")
		require.Equal(t, 1, srv.Rings(theirs))
	})
}

// What create-sms-chat, create-web-call, register-phone-call answer names what was created, and a lost one is looked for.
func TestEveryCreateIsNamedByItsAnswerAndLookedFor(t *testing.T) {
	configured(t, retell.Config(), func(t *testing.T, c *retell.Client, srv *retelltest.Server) {
		chat, err := c.Chats.CreateSMSChat(t.Context(), retell.CreateSMSChatParams{FromNumber: ours, ToNumber: theirs}, retell.IdempotencyKey("text:1"))
		require.NoError(t, err)
		rec, err := c.Stack().Idempotency.Lookup(t.Context(), "text:1")
		require.NoError(t, err)
		require.Equal(t, chat.ChatID, rec.CallID)

		srv.Inject("register-phone-call", retelltest.LostAnswer())
		srv.Inject("create-web-call", retelltest.LostAnswer())
		_, err = c.Calls.RegisterPhoneCall(t.Context(), retell.RegisterPhoneCallParams{AgentID: "agent_test"}, retell.IdempotencyKey("register:1"))
		require.True(t, resilience.InDoubt(err), err)
		_, err = c.Calls.CreateWebCall(t.Context(), retell.CreateWebCallParams{AgentID: "agent_test"}, retell.IdempotencyKey("web:1"))
		require.True(t, resilience.InDoubt(err), err)
		time.Sleep(time.Minute)
		for _, key := range []string{"register:1", "web:1"} {
			rec, err = c.Stack().Idempotency.Lookup(t.Context(), key)
			require.NoError(t, err)
			require.Equal(t, resilience.KeyConfirmed, rec.State, key)
		}
	})
}

// Forgetting a key makes it new to us, and not to Retell, for an hour: IdempotencyKey says so.
func TestAForgottenKeyIsRememberedByRetell(t *testing.T) {
	configured(t, retell.Config(), func(t *testing.T, c *retell.Client, srv *retelltest.Server) {
		call := func() *retell.PhoneCall {
			call, err := c.Calls.CreatePhoneCall(t.Context(), reminder, retell.IdempotencyKey("call:4711"))
			require.NoError(t, err)
			require.NoError(t, c.Stack().Idempotency.Forget(t.Context(), "call:4711"))
			require.False(t, call.Replayed, "not by us")
			return call
		}
		first := call()
		require.Equal(t, first.CallID, call().CallID)
		require.Equal(t, 1, srv.Rings(theirs))
		time.Sleep(time.Hour)
		require.NotEqual(t, first.CallID, call().CallID)
		require.Equal(t, 2, srv.Rings(theirs))
	})
}

// A listed call with the marker was made, also if its answer is so odd that the id or the next page is not to be read: it is
// never taken for absent, and nobody is called twice.
func TestNoCallIsTakenForAbsentByAnOddLookUp(t *testing.T) {
	for name, odd := range map[string]func(string) string{
		"an id that is no text":             func(body string) string { return strings.ReplaceAll(body, `"call_id":"`, `"call_id":7,"x":"`) },
		"more, in another type":             func(string) string { return `{"items":[],"has_more":"true","pagination_key":"p2"}` },
		"the next page, and not that it is": func(string) string { return `{"items":[],"pagination_key":"p2"}` },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := retelltest.NewServer(retelltest.WithoutServerKeys())
				defer srv.Close()
				inner := srv.Transport()
				rt := resilience.RoundTripFunc(func(req *http.Request) (*http.Response, error) {
					resp, err := inner.RoundTrip(req)
					if err != nil || !strings.HasSuffix(req.URL.Path, "/list-calls") {
						return resp, err
					}
					body, _ := io.ReadAll(resp.Body)
					_ = resp.Body.Close()
					return answer(200, odd(string(body))), nil
				})
				cfg := retell.Config()
				cfg.Idempotency.AssumeAbsentAfter = 10 * time.Minute
				cfg.DLQ.Off = true
				c, err := retell.New("key_test", retell.WithTransport(rt), retell.WithConfig(cfg))
				require.NoError(t, err)
				ctx, stop := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				go func() { ended <- c.Stack().Run(ctx) }()
				srv.Inject("create-phone-call", retelltest.LostAnswer())
				_, err = c.Calls.CreatePhoneCall(t.Context(), reminder, retell.IdempotencyKey("reminder:4711"))
				require.True(t, resilience.InDoubt(err), err)
				time.Sleep(2 * time.Hour)
				require.Positive(t, srv.Requests("list-calls"))
				_, _ = c.Calls.CreatePhoneCall(t.Context(), reminder, retell.IdempotencyKey("reminder:4711"))
				stop()
				require.NoError(t, <-ended)
				require.NoError(t, c.Close(context.Background()))
				require.Equal(t, 1, srv.Rings(theirs))
			})
		})
	}
}
