package retelltest_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

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
