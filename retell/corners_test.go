package retell_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
	"github.com/retell-resilience/resilience/retell"
	"github.com/retell-resilience/resilience/retell/retelltest"
)

// configured is against with a config.
func configured(t *testing.T, cfg resilience.Config, test func(*testing.T, *retell.Client, *retelltest.Server), opts ...retelltest.Option) {
	synctest.Test(t, func(t *testing.T) {
		srv := retelltest.NewServer(opts...)
		defer srv.Close()
		c, err := retell.New("key_test", retell.WithTransport(srv.Transport()), retell.WithConfig(cfg))
		require.NoError(t, err)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- c.Stack().Run(ctx) }()
		test(t, c, srv)
		stop()
		require.NoError(t, <-ended)
		require.NoError(t, c.Close(context.Background()))
	})
}

func answer(status int, body string) *http.Response {
	return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body))}
}

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

// A new draft says nothing about the version that waits to be published.
func TestANewVersionDoesNotSupersedeAPublish(t *testing.T) {
	configured(t, retell.Config(), func(t *testing.T, c *retell.Client, srv *retelltest.Server) {
		srv.Inject("publish-agent-version", retelltest.Refuse(), retelltest.Refuse(), retelltest.Refuse())
		_, err := retell.Do[retell.Empty](t.Context(), c, "POST", "/publish-agent-version/agent_test", map[string]any{"version": 0}, retell.IdempotencyKey("publish:0"))
		require.ErrorIs(t, err, resilience.ErrParked)
		_, err = retell.Do[retell.Agent](t.Context(), c, "POST", "/create-agent-version/agent_test", map[string]any{"base_version": 0})
		require.NoError(t, err)
		time.Sleep(30 * time.Minute)
		for _, l := range c.Stack().DLQ.List(resilience.LetterFilter{}) {
			t.Log(l, l.Superseded)
		}
		require.Equal(t, 1, srv.Effects("publish-agent-version"), "accepted, and never done")
	})
}

// Two updates of one agent that change different settings do not stand in for each other; one that would undo a newer one does.
func TestAnUpdateIsSupersededByOneOfTheSameSettingsOnly(t *testing.T) {
	for newer, effects := range map[string]int{"interruption_sensitivity": 2, "voice_id": 1} {
		configured(t, retell.Config(), func(t *testing.T, c *retell.Client, srv *retelltest.Server) {
			update := func(setting, key string) error {
				_, err := retell.Do[retell.Agent](t.Context(), c, "PATCH", "/update-agent/agent_test", map[string]any{setting: nil}, retell.IdempotencyKey(key))
				return err
			}
			srv.Inject("update-agent", retelltest.Refuse(), retelltest.Refuse(), retelltest.Refuse())
			require.ErrorIs(t, update("voice_id", "older"), resilience.ErrParked)
			require.NoError(t, update(newer, "newer"))
			time.Sleep(30 * time.Minute)
			require.Equal(t, effects, srv.Effects("update-agent"))
		})
	}
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

func TestNoURLInsideAnotherError(t *testing.T) {
	c, err := retell.New("key_test", retell.WithTransport(resilience.RoundTripFunc(func(req *http.Request) (*http.Response, error) {
		return nil, fmt.Errorf("gateway: %w", &url.Error{Op: "Get", URL: req.URL.String(), Err: io.EOF})
	})))
	require.NoError(t, err)
	_, err = c.PhoneNumbers.Get(t.Context(), theirs, retell.Budget(time.Second))
	require.Error(t, err)
	require.NotContains(t, err.Error(), "555")
}

func TestAPathThatLosesItsIDBehindAHashIsRefused(t *testing.T) {
	var paths []string
	c, err := retell.New("key_test", retell.WithTransport(resilience.RoundTripFunc(func(req *http.Request) (*http.Response, error) {
		paths = append(paths, req.URL.RequestURI())
		return answer(200, `{}`), nil
	})))
	require.NoError(t, err)
	for _, path := range []string{"/delete-agent/#agent_1", "/delete-agent/..#", "/delete-agent/agent_1#/x"} {
		_, err = retell.Do[retell.Empty](t.Context(), c, "DELETE", path, nil)
		require.ErrorIs(t, err, retell.ErrInvalid, fmt.Sprint(path, paths))
	}
	require.Empty(t, paths)
}

func TestLiveMetadataCanBeTakenAway(t *testing.T) {
	var body []byte
	c, err := retell.New("key_test", retell.WithTransport(resilience.RoundTripFunc(func(req *http.Request) (*http.Response, error) {
		body, _ = io.ReadAll(req.Body)
		return answer(200, `{"success":true}`), nil
	})))
	require.NoError(t, err)
	_, err = c.Calls.UpdateLive(t.Context(), "call_1", retell.UpdateLiveParams{FieldsToOverride: &retell.LiveFields{Metadata: retell.Metadata{}}})
	require.NoError(t, err)
	require.JSONEq(t, `{"fields_to_override":{"metadata":{}}}`, string(body))
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

func TestBaseURLWithAQuestionMark(t *testing.T) {
	_, err := retell.New("key_test", retell.WithBaseURL("https://api.retellai.com?"))
	require.Error(t, err)
}

func TestClientPrintsNoKey(t *testing.T) {
	c, err := retell.New("key_very_secret")
	require.NoError(t, err)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		require.NotContains(t, fmt.Sprintf(verb, c), "key_very_secret", verb)
	}
}

// A text that came in waits for an answer like a call that came in.
func TestInboundTextIsAnsweredWithNoOverride(t *testing.T) {
	h := retell.WebhookHandler(retell.WebhookConfig{APIKey: "key_test", Handle: func(context.Context, *retell.WebhookEvent) error { return nil }})
	body := `{"event":"chat_inbound","chat_inbound":{"chat_id":"c1","from_number":"` + theirs + `","to_number":"` + ours + `"}}`
	req := httptest.NewRequest("POST", "/", strings.NewReader(body))
	req.Header.Set(retell.SignatureHeader, retelltest.Sign([]byte(body), "key_test", time.Now()))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	require.Equal(t, 200, w.Code)
	require.Equal(t, "application/json", w.Header().Get("Content-Type"))
	require.JSONEq(t, `{"chat_inbound":{}}`, w.Body.String())
}

// An older transcript that was slow to handle does not make what came between it and the newest new again.
func TestASlowOldTranscriptIsNotTheNewest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := make(chan struct{})
		var handled []string
		h := retell.WebhookHandler(retell.WebhookConfig{APIKey: "key_test", Handle: func(_ context.Context, e *retell.WebhookEvent) error {
			if e.Call.Transcript == "1" {
				<-slow
			}
			handled = append(handled, e.Call.Transcript)
			return nil
		}})
		deliver := func(n int) {
			body := fmt.Sprintf(`{"event":"transcript_updated","call":{"call_id":"c1","transcript":"%d"}}`, n)
			req := httptest.NewRequest("POST", "/", strings.NewReader(body))
			req.Header.Set(retell.SignatureHeader, retelltest.Sign([]byte(body), "key_test", time.Now().Add(time.Duration(n)*time.Second)))
			h.ServeHTTP(httptest.NewRecorder(), req)
		}
		go deliver(1)
		synctest.Wait()
		deliver(3)
		close(slow)
		synctest.Wait()
		deliver(2)
		require.Equal(t, []string{"3", "1"}, handled)
	})
}

// Whoever forgot to set the key has no key: everybody could sign with it.
func TestNothingIsSignedWithoutAKey(t *testing.T) {
	body := []byte(`{"event":"call_ended","call":{"call_id":"c1"}}`)
	require.NoError(t, retell.VerifyWebhook(body, "key_test", retelltest.Sign(body, "key_test", time.Now())))
	require.ErrorIs(t, retell.VerifyWebhook(body, "", retelltest.Sign(body, "", time.Now())), retell.ErrBadSignature)
}

func TestNoSignatureIsTakenOrPanickedAtThatOnlyLooksLikeOne(t *testing.T) {
	body := []byte(`{"event":"call_ended","call":{"call_id":"c1"}}`)
	stamp, digest, _ := strings.Cut(retelltest.Sign(body, "key_test", time.Now()), ",")
	for _, signature := range []string{
		",", "v,", "v=,", "v=1,", "v=1,d", "v=1,d=", stamp + ",", stamp + ",d", "," + digest, "v," + digest,
		"x" + stamp[1:] + "," + digest, stamp + ",x" + digest[1:], stamp + ", " + digest[1:], stamp + "," + digest[:len(digest)-1],
	} {
		require.ErrorIs(t, retell.VerifyWebhook(body, "key_test", signature), retell.ErrBadSignature, signature)
	}
}

// Forgetting an older transcript does not forget which was the newest.
func TestTheNewestTranscriptOutlivesOlderOnes(t *testing.T) {
	var handled []string
	h := retell.WebhookHandler(retell.WebhookConfig{APIKey: "key_test", MaxRemembered: 1, Handle: func(_ context.Context, e *retell.WebhookEvent) error {
		handled = append(handled, e.Call.Transcript)
		return nil
	}})
	now := time.Now()
	for _, n := range []int{1, 3, 2} {
		body := fmt.Sprintf(`{"event":"transcript_updated","call":{"call_id":"c1","transcript":"%d"}}`, n)
		req := httptest.NewRequest("POST", "/", strings.NewReader(body))
		req.Header.Set(retell.SignatureHeader, retelltest.Sign([]byte(body), "key_test", now.Add(time.Duration(n)*time.Second)))
		h.ServeHTTP(httptest.NewRecorder(), req)
	}
	require.Equal(t, []string{"1", "3"}, handled)
}

func TestEachEventOfALifeIsNamedByItsID(t *testing.T) {
	for want, body := range map[string]string{
		"call_started:c1":  `{"event":"call_started","call":{"call_id":"c1"}}`,
		"call_analyzed:c1": `{"event":"call_analyzed","call":{"call_id":"c1"},"chat":null}`,
		"chat_started:h1":  `{"event":"chat_started","call":null,"chat":{"chat_id":"h1"}}`,
		"chat_ended:h1":    `{"event":"chat_ended","chat":{"chat_id":"h1"}}`,
		"chat_analyzed:h1": `{"event":"chat_analyzed","chat":{"chat_id":"h1"}}`,
		"call_inbound:c1":  `{"event":"call_inbound","call_inbound":{"call_id":"c1","from_number":"` + theirs + `"}}`,
		"chat_inbound:h1":  `{"event":"chat_inbound","chat_inbound":{"chat_id":"h1","from_number":"` + theirs + `"}}`,
	} {
		e, err := retell.ParseWebhook([]byte(body))
		require.NoError(t, err)
		require.Equal(t, want, e.Key())
	}
}

// A transfer that is delivered again need not have the same bytes; one to another place or of another time is another.
func TestATransferIsNamedByItsCallItsTimeAndItsPlace(t *testing.T) {
	for _, event := range []string{"transfer_started", "transfer_bridged", "transfer_cancelled", "transfer_ended"} {
		key := func(start int, number, rest string) string {
			e, err := retell.ParseWebhook(fmt.Appendf(nil,
				`{"event":%q,"call":{"call_id":"c1","start_timestamp":%d%s},"transfer_destination":{"number":%q}}`, event, start, rest, number))
			require.NoError(t, err)
			return e.Key()
		}
		require.Equal(t, key(1, ours, ""), key(1, ours, `,"transcript":"more"`))
		require.NotEqual(t, key(1, ours, ""), key(2, ours, ""))
		require.NotEqual(t, key(1, ours, ""), key(1, theirs, ""))
	}
}

// An endpoint that came later than the catalogue may say 422 too.
func TestAnEndpointThatIsNotKnownIsRefusedLikeAnother(t *testing.T) {
	c, err := retell.New("key_test", retell.WithTransport(resilience.RoundTripFunc(
		func(*http.Request) (*http.Response, error) { return answer(422, `{"message":"x"}`), nil })))
	require.NoError(t, err)
	_, err = retell.Do[retell.Empty](t.Context(), c, "GET", "/v9/brand-new/x", nil)
	require.ErrorIs(t, err, retell.ErrInvalid)
	require.NotErrorIs(t, err, retell.ErrNotFound)
}

func TestOneDotIsNoID(t *testing.T) {
	var sent int
	c, err := retell.New("key_test", retell.WithTransport(resilience.RoundTripFunc(
		func(*http.Request) (*http.Response, error) {
			sent++
			return answer(400, `{"message":null,"error_message":"said"}`), nil
		})))
	require.NoError(t, err)
	require.ErrorIs(t, c.Calls.Delete(t.Context(), "."), retell.ErrInvalid)
	_, err = retell.Do[retell.Empty](t.Context(), c, "DELETE", "/delete-agent/.", nil)
	require.ErrorIs(t, err, retell.ErrInvalid)
	require.Zero(t, sent)
	var said *retell.Error
	require.ErrorAs(t, c.Calls.Delete(t.Context(), "call_1"), &said)
	require.Equal(t, "said", said.Message)
}

// What a config leaves out is Retell's, behind a proxy with a path as well.
func TestAConfigIsCompletedBehindAPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := retelltest.NewServer()
		defer srv.Close()
		rt := resilience.RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			inner := req.Clone(req.Context())
			inner.URL.Path = strings.TrimPrefix(req.URL.Path, "/retell")
			return srv.Transport().RoundTrip(inner)
		})
		c, err := retell.New("key_test", retell.WithBaseURL("https://proxy.example.com/retell"), retell.WithTransport(rt), retell.WithConfig(resilience.Config{}))
		require.NoError(t, err)
		srv.Inject("create-phone-call", retelltest.Refuse(), retelltest.Refuse(), retelltest.Refuse())
		_, err = c.Calls.CreatePhoneCall(t.Context(), reminder, retell.IdempotencyKey("call:1"))
		require.ErrorIs(t, err, resilience.ErrParked)
		letters := c.Stack().DLQ.List(resilience.LetterFilter{})
		require.Equal(t, "create-phone-call", letters[0].Operation)

		srv.Inject("create-chat", retelltest.Refuse(), retelltest.Refuse(), retelltest.Refuse())
		_, err = c.Chats.CreateChat(t.Context(), retell.CreateChatParams{AgentID: "agent_test"}, retell.IdempotencyKey("chat:1"))
		require.True(t, resilience.NotSent(err), err)
		require.Len(t, c.Stack().DLQ.List(resilience.LetterFilter{}), 1, "a chat is of no use later")

		_, err = c.Calls.CreatePhoneCall(t.Context(), reminder, retell.IdempotencyKey("call:2"))
		require.NoError(t, err)
		require.Equal(t, c.Stack().Idempotency.ID("call:2"), srv.Calls()[0].Metadata["rk_key"])
		require.NoError(t, c.Close(t.Context()))
	})
}
