package resilience

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"
)

// A body that breaks off while it is read up front reaches the wire as one that breaks off, once, and never as a shorter one.
func TestBody_OneThatBreaksOffIsNeverSentAsAWholeOne(t *testing.T) {
	broken := errors.New("broken")
	s := newStack(t, Config{})
	sent := 0
	rt := s.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
		sent++
		defer req.Body.Close()
		got, err := io.ReadAll(req.Body)
		require.Equal(t, "begin", string(got))
		if err != nil {
			return nil, err
		}
		return &http.Response{StatusCode: 200, Body: http.NoBody, Request: req}, nil
	}))
	for _, method := range []string{"POST", "PUT"} {
		req, err := http.NewRequestWithContext(t.Context(), method, "http://retell.test/x",
			io.MultiReader(strings.NewReader("begin"), iotest.ErrReader(broken)))
		require.NoError(t, err)
		_, err = rt.RoundTrip(req) //nolint:bodyclose // there is none
		require.ErrorIs(t, err, broken)
	}
	require.Equal(t, 2, sent)
	closeStack(t, s)
}
