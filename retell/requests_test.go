package retell_test

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/retell-resilience/resilience"
	"github.com/retell-resilience/resilience/retell"
	"github.com/stretchr/testify/require"
)

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
