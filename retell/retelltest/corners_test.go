package retelltest_test

import (
	"context"
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

// A client that gives up while the server dawdles: the effect comes, once, if the fault does not prevent it.
func TestGivingUpDuringADelay(t *testing.T) {
	for name, c := range map[string]struct {
		fault  retelltest.Fault
		closed bool
		rings  int
	}{
		"nothing more":        {retelltest.Fault{}, false, 1},
		"lost answer":         {retelltest.LostAnswer(), false, 1},
		"hang after effect":   {retelltest.HangAfterEffect(), false, 1},
		"late effect":         {retelltest.LateEffect(time.Minute, retelltest.Status(500)), false, 1},
		"reset before effect": {retelltest.ResetBeforeEffect(), false, 0},
		"status":              {retelltest.Status(500), false, 0},
		"hang before effect":  {retelltest.HangBeforeEffect(), false, 0},
		"server closed":       {retelltest.Fault{}, true, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			srv := retelltest.NewServer()
			defer srv.Close()
			srv.Inject("create-phone-call", retelltest.Delayed(10*time.Second, c.fault))
			if c.closed {
				time.AfterFunc(time.Second, srv.Close)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			req, err := http.NewRequestWithContext(ctx, "POST", "http://retell.test/v2/create-phone-call",
				strings.NewReader(`{"from_number":"+15550001000","to_number":"+15550001111"}`))
			require.NoError(t, err)
			req.Header.Set("Authorization", "Bearer key_x")
			_, err = srv.Transport().RoundTrip(req) //nolint:bodyclose // there is none
			require.Error(t, err, name)
			require.Zero(t, srv.Rings("+15550001111"), name)
			time.Sleep(5*time.Second - time.Nanosecond)
			require.Zero(t, srv.Rings("+15550001111"), name)
			time.Sleep(2 * time.Nanosecond)
			if c.fault.Late == 0 {
				require.Equal(t, c.rings, srv.Rings("+15550001111"), name)
			}
			time.Sleep(time.Hour)
			require.Equal(t, c.rings, srv.Rings("+15550001111"), name)
		})
	}
}
