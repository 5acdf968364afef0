package retelltest_test

import (
	"encoding/json"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience/retell/retelltest"
)

// hear collects the names of webhooks.
func hear(t *testing.T, srv *retelltest.Server) *[]string {
	t.Helper()
	names := &[]string{}
	srv.OnWebhook(func(event []byte, signature string) {
		var e struct {
			Event string
			Call  struct {
				ID     string `json:"call_id"`
				Status string `json:"call_status"`
			}
		}
		require.NoError(t, json.Unmarshal(event, &e))
		require.Regexp(t, `^v=\d+,d=[0-9a-f]{64}$`, signature)
		_ = srv.Calls() // a webhook may use the server
		*names = append(*names, e.Event+" "+e.Call.Status)
	})
	return names
}

func TestSignatureVector(t *testing.T) {
	require.Equal(t, "v=1767225600000,d=a7981c04317078047b5c00fe1e8b07f5a77b1e2ccf9e959d4983372d8400ef14",
		retelltest.Sign([]byte(`{"event":"call_ended","call":{"call_id":"call_test"}}`), "key_test_secret", time.UnixMilli(1767225600000)))
}

func TestWebhooksAreSignedWithTheKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for key, opts := range map[string][]retelltest.Option{
			retelltest.DefaultKey: nil, "key_abc": {retelltest.WithKey("key_abc")},
		} {
			srv := retelltest.NewServer(opts...)
			defer srv.Close()
			id := dial(t, srv, "")
			heard := 0
			srv.OnWebhook(func(event []byte, signature string) {
				heard++
				require.Equal(t, retelltest.Sign(event, key, time.Now()), signature)
			})
			require.NoError(t, srv.Answer(id))
			require.Equal(t, 1, heard)
		}
	})
}

func TestCallLifeByHand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := retelltest.NewServer()
		defer srv.Close()
		heard := hear(t, srv)
		id := dial(t, srv, `,"metadata":{"a":"b"}`)
		require.ErrorIs(t, srv.Answer("call_none"), retelltest.ErrNoCall)
		require.ErrorIs(t, srv.Analyze(id, nil), retelltest.ErrCallState)
		require.NoError(t, srv.Answer(id))
		require.ErrorIs(t, srv.Answer(id), retelltest.ErrCallState)
		time.Sleep(90 * time.Second)
		require.NoError(t, srv.Hangup(id, "agent_hangup"))
		require.ErrorIs(t, srv.Hangup(id, ""), retelltest.ErrCallState)
		require.NoError(t, srv.Analyze(id, map[string]any{"call_successful": true}))
		require.Equal(t, []string{"call_started ongoing", "call_ended ended", "call_analyzed ended"}, *heard)

		_, call := send(t, srv, "GET", "/v2/get-call/"+id, "")
		require.EqualValues(t, 90_000, call["duration_ms"])
		require.Equal(t, "agent_hangup", call["disconnection_reason"])
		require.Equal(t, map[string]any{"call_successful": true}, call["call_analysis"])
	})
}

func TestHangupReasonsDecideTheStatus(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	for reason, want := range map[string]string{
		"": "not_connected", "dial_busy": "not_connected", "user_declined": "not_connected",
		"error_retell": "error", "concurrency_limit_reached": "ended",
	} {
		id := dial(t, srv, "")
		require.NoError(t, srv.Hangup(id, reason))
		_, call := send(t, srv, "GET", "/v2/get-call/"+id, "")
		require.Equal(t, want, call["call_status"], reason)
		require.NotContains(t, call, "duration_ms")
	}
	_, now := send(t, srv, "GET", "/get-concurrency", "")
	require.EqualValues(t, 0, now["current_concurrency"])
}

func TestWebhooksAreLostAndDuplicated(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	heard := hear(t, srv)
	for _, copies := range []int{0, 1, 3} {
		srv.WebhookCopies(copies)
		*heard = nil
		status, _ := send(t, srv, "POST", "/v2/stop-call/"+dial(t, srv, ""), "")
		require.Equal(t, 204, status)
		require.Len(t, *heard, copies)
	}
}

func TestCallsMoveByThemselves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := retelltest.NewServer(retelltest.WithCallLife(10*time.Second, time.Minute), retelltest.WithConcurrency(2))
		defer srv.Close()
		heard := hear(t, srv)
		dial(t, srv, "")
		busy := dial(t, srv, "")
		require.NoError(t, srv.Hangup(busy, "dial_busy"))
		time.Sleep(10 * time.Second)
		synctest.Wait()
		require.Equal(t, "ongoing", srv.Calls()[0].Status)
		require.Equal(t, "not_connected", srv.Calls()[1].Status)
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, "ended", srv.Calls()[0].Status)
		require.Equal(t, []string{"call_ended not_connected", "call_started ongoing", "call_ended ended"}, *heard)

		last := dial(t, srv, "")
		srv.Close()
		time.Sleep(time.Hour)
		synctest.Wait()
		require.Equal(t, "registered", srv.Calls()[2].Status, "a closed server stands still")
		require.Equal(t, last, srv.Calls()[2].ID)
	})
}

// A call that is put in place of one that was under way is not under way twice.
func TestAddCallInPlaceOfALiveOne(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	id := dial(t, srv, "")
	srv.AddCall(map[string]any{"call_id": id})
	_, now := send(t, srv, "GET", "/get-concurrency", "")
	require.EqualValues(t, 0, now["current_concurrency"])
}
