package retell

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
)

func TestErrorsTellWhatRetellSaidAndPrintNoneOfIt(t *testing.T) {
	long := strings.Repeat("é", maxMessage)
	for _, c := range []struct {
		status  int
		body    string
		kind    error
		message string
	}{
		{400, `{"status":"error","message":"bad number +15555550123"}`, ErrInvalid, "bad number +15555550123"},
		{401, `{"error_message":"Authorization header required"}`, ErrUnauthorized, "Authorization header required"},
		{403, `{}`, ErrUnauthorized, "{}"},
		{402, `{"message":""}`, ErrPaymentRequired, `{"message":""}`},
		{404, `nothing here`, ErrNotFound, "nothing here"},
		{422, `{"message":{"a":1}}`, ErrNotFound, `{"a":1}`},
		{429, ``, ErrRateLimited, ""},
		{422, long, ErrNotFound, long[:maxMessage]},
		{422, "\xff\xfe", ErrNotFound, ""},
		{404, `{"message":null,"error_message":" said\n"}`, ErrNotFound, "said"},
		{404, " \n", ErrNotFound, ""},
	} {
		_, err := bare(t, answering(c.status, c.body, nil)).Calls.Get(t.Context(), "call_secret")
		var e *Error
		require.ErrorAs(t, err, &e)
		require.ErrorIs(t, err, c.kind)
		require.Equal(t, c.status, e.HTTPStatus())
		require.Equal(t, "get-call", e.Operation)
		require.Equal(t, c.message, e.Message)
		require.Equal(t, c.status == 404 || c.status == 422, IsNotFound(err))
		for _, private := range []string{"555", "secret", "nothing", "key_test"} {
			require.NotContains(t, err.Error(), private)
		}
	}
	_, err := bare(t, answering(422, `{}`, nil)).Calls.CreatePhoneCall(t.Context(), somebody)
	require.False(t, IsNotFound(err), "here 422 is not about an id")
	require.ErrorIs(t, err, ErrInvalid)
}

func TestAnEffectOnceStatusThatProvesNothingIsInDoubt(t *testing.T) {
	synctest.Test(t, statusesAndDoubt) // where a budget of a millisecond is not used up by a busy machine
}

func statusesAndDoubt(t *testing.T) {
	for status, want := range map[int]bool{307: true, 408: true, 409: true, 425: true, 499: true, 500: true, 503: true, 400: false, 402: false, 405: false, 412: false, 429: false} {
		for name, c := range map[string]*Client{"with layers": newClient(t, answering(status, `{}`, nil)), "without": bare(t, answering(status, `{}`, nil))} {
			_, err := c.Calls.CreatePhoneCall(t.Context(), somebody, Budget(time.Millisecond))
			require.Error(t, err)
			require.Equal(t, want, resilience.InDoubt(err), "%s %d: %v", name, status, err)
		}
	}
	_, err := bare(t, answering(500, `{}`, nil)).Calls.Get(t.Context(), "x")
	require.False(t, resilience.InDoubt(err))
}

func TestAnErrorSaysHowLongToWait(t *testing.T) {
	for value, want := range map[string]time.Duration{"7": 7 * time.Second, "soon": 0, "1e300": 24 * time.Hour} {
		_, err := bare(t, resilience.RoundTripFunc(func(*http.Request) (*http.Response, error) {
			resp := response(429, `{}`)
			resp.Header = http.Header{"Retry-After": {value}}
			return resp, nil
		})).Calls.Get(t.Context(), "call_1")
		var e *Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, want, e.RetryAfter, value)
	}
}

func TestTransportErrorsHoldNoURL(t *testing.T) {
	inner := resilience.MarkNotSent(errors.New("refused"))
	c := bare(t, resilience.RoundTripFunc(func(req *http.Request) (*http.Response, error) {
		return nil, &url.Error{Op: "Post", URL: req.URL.String(), Err: inner}
	}))
	_, err := c.PhoneNumbers.Get(t.Context(), from)
	require.True(t, resilience.NotSent(err))
	require.EqualError(t, err, "retell: get-phone-number: refused")

	c = newClient(t, resilience.RoundTripFunc(func(*http.Request) (*http.Response, error) { return nil, inner }))
	c.Stack().Breaker.ForceOpen()
	_, err = c.Calls.CreatePhoneCall(t.Context(), somebody)
	require.ErrorIs(t, err, resilience.ErrOpen)
	require.True(t, resilience.NotSent(err))
}

func TestWhatIsMissingIsNamedAndNothingIsSent(t *testing.T) {
	var seen []sent
	c := bare(t, answering(200, `{}`, &seen))
	ctx := t.Context()
	for want, do := range map[string]func() error{
		"from_number is missing": func() error { _, err := c.Calls.CreatePhoneCall(ctx, CreatePhoneCallParams{ToNumber: to}); return err },
		"to_number is missing": func() error {
			_, err := c.Calls.CreatePhoneCall(ctx, CreatePhoneCallParams{FromNumber: from})
			return err
		},
		"idempotency_key must be": func() error {
			_, err := c.Calls.CreatePhoneCall(ctx, CreatePhoneCallParams{FromNumber: from, ToNumber: to, IdempotencyKey: "a:b:c"})
			return err
		},
		"create-web-call: agent_id is missing": func() error { _, err := c.Calls.CreateWebCall(ctx, CreateWebCallParams{}); return err },
		"call_id is missing":                   func() error { return c.Calls.Delete(ctx, "") },
		"call_id is not an id":                 func() error { return c.Calls.Delete(ctx, "..") },
		"tasks is missing": func() error {
			_, err := c.BatchCalls.CreateBatchCall(ctx, CreateBatchCallParams{FromNumber: from})
			return err
		},
		"tasks[1].to_number is missing": func() error {
			_, err := c.BatchCalls.CreateBatchCall(ctx, CreateBatchCallParams{FromNumber: from, Tasks: []BatchCallTask{{ToNumber: to}, {}}})
			return err
		},
		"participant_id is missing":          func() error { _, err := c.Calls.TakeOverLive(ctx, "x", TakeOverLiveParams{}); return err },
		"fields_to_override or call_control": func() error { _, err := c.Calls.UpdateLive(ctx, "x", UpdateLiveParams{}); return err },
		"content is missing": func() error {
			_, err := c.Chats.CreateChatCompletion(ctx, CreateChatCompletionParams{ChatID: "x"})
			return err
		},
		"skip and pagination_key": func() error {
			_, err := c.Calls.ListPage(ctx, ListCallsParams{Skip: 1, PaginationKey: "x"})
			return err
		},
		"phone_number is missing":            func() error { _, err := c.PhoneNumbers.Get(ctx, ""); return err },
		"DELETE: path needs":                 func() error { _, err := Do[Empty](ctx, c, "DELETE", "/delete-agent/", nil); return err },
		"get-agent: path needs":              func() error { _, err := Do[Empty](ctx, c, "GET", "/get-agent/%2e%2E", nil); return err },
		"POST: path needs":                   func() error { _, err := Do[Empty](ctx, c, "POST", "create-agent", nil); return err },
		"create-agent: body does not encode": func() error { _, err := Do[Empty](ctx, c, "POST", "/create-agent", func() {}); return err },
		"other: method or path is not valid": func() error { _, err := Do[Empty](ctx, c, "GE T", "/x", nil); return err },
	} {
		err := do()
		require.ErrorContains(t, err, want)
		require.ErrorIs(t, err, ErrInvalid)
		require.True(t, resilience.NotSent(err))
		require.NotContains(t, err.Error(), "555")
	}
	require.Empty(t, seen)
}
