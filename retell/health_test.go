package retell

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
	"github.com/retell-resilience/resilience/retell/retelltest"
)

// asked is a fake API that answers get-concurrency, and all else with an empty object.
type asked struct {
	count  atomic.Int32
	answer func(*http.Request) (*http.Response, error)
}

func (a *asked) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Path != "/get-concurrency" {
		return answered(200, "{}"), nil
	}
	a.count.Add(1)
	return a.answer(req)
}

func answered(code int, body string) *http.Response {
	return &http.Response{
		StatusCode: code, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(body)),
	}
}

func saying(code int, body string) *asked {
	return &asked{answer: func(*http.Request) (*http.Response, error) {
		time.Sleep(time.Millisecond) // so that who does not wait for it cannot have it
		return answered(code, body), nil
	}}
}

// lookAt makes a client, has its health ask once, and returns the report that knows the answer.
func lookAt(t *testing.T, a *asked, cfg resilience.Config) resilience.Report {
	t.Helper()
	c, err := New("key_test", WithTransport(a), WithConfig(cfg))
	require.NoError(t, err)
	h := c.Stack().Health()
	require.Equal(t, resilience.Unknown, h.Check(t.Context()).Find("concurrency").Status, "nobody waits for it")
	time.Sleep(time.Second)
	synctest.Wait()
	return h.Check(t.Context())
}

func TestConcurrencyInHealth(t *testing.T) {
	for _, c := range []struct {
		body           string
		want           resilience.Status
		headroom, used float64
	}{
		{`{"current_concurrency":5,"concurrency_limit":20,"reserved_inbound_concurrency":2}`, resilience.Healthy, 13, 27.8},
		{`{"current_concurrency":0,"concurrency_limit":20}`, resilience.Healthy, 20, 0},
		{`{"current_concurrency":19,"concurrency_limit":20}`, resilience.Healthy, 1, 95},
		{`{"current_concurrency":20,"concurrency_limit":20}`, resilience.Degraded, 0, 100},
		{`{"current_concurrency":96,"concurrency_limit":100}`, resilience.Degraded, 4, 96},
		{`{"current_concurrency":30,"concurrency_limit":20,"reserved_inbound_concurrency":25}`, resilience.Degraded, 0, 100},
		{`{"current_concurrency":30,"concurrency_limit":20,"concurrency_burst_enabled":true,"concurrency_burst_limit":60}`, resilience.Healthy, 30, 50},
		{`{"current_concurrency":1,"concurrency_limit":20,"concurrency_burst_enabled":false,"concurrency_burst_limit":60}`, resilience.Healthy, 19, 5},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := lookAt(t, saying(200, c.body), Config())
			headroom := r.Find("concurrency")
			require.Equal(t, c.want, headroom.Status, c.body)
			require.Equal(t, "headroom", headroom.Measure)
			require.Equal(t, c.headroom, headroom.Value, c.body)
			require.Equal(t, c.want == resilience.Degraded, headroom.Message != "")
			require.Equal(t, c.want, r.Status)
			got := map[string]float64{}
			for _, check := range r.Checks {
				if check.Name == "concurrency" {
					got[check.Measure] = check.Value
				}
			}
			require.Len(t, got, 4)
			require.Equal(t, c.used, got["used"], c.body)
		})
	}
}

func TestConcurrencyIsUnknownWhereTheAPIDoesNotSay(t *testing.T) {
	for name, a := range map[string]*asked{
		"no":            saying(404, `{"message":"+15550001111"}`),
		"credentials":   saying(401, `{}`),
		"busy":          saying(429, `{}`),
		"not JSON":      saying(200, `hello`),
		"nothing":       saying(200, `{}`),
		"half":          saying(200, `{"concurrency_limit":20}`),
		"other half":    saying(200, `{"current_concurrency":20}`),
		"null":          saying(200, `{"current_concurrency":null,"concurrency_limit":20}`),
		"another type":  saying(200, `{"current_concurrency":"5","concurrency_limit":20}`),
		"no connection": {answer: func(*http.Request) (*http.Response, error) { return nil, io.ErrUnexpectedEOF }},
		"panic":         {answer: func(*http.Request) (*http.Response, error) { panic("+15550001111") }},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := lookAt(t, a, Config())
			require.Equal(t, resilience.Unknown, r.Find("concurrency").Status, name)
			require.NotEmpty(t, r.Find("concurrency").Message)
			require.Equal(t, resilience.Healthy, r.Status, "the probe is what judges Retell")
			require.NotContains(t, fmt.Sprintf("%+v", r), "+1555")
		})
	}
}

func TestConcurrencyNeverHoldsAReaderUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var limit time.Duration
		a := &asked{answer: func(req *http.Request) (*http.Response, error) {
			deadline, ok := req.Context().Deadline()
			require.True(t, ok)
			limit = time.Until(deadline)
			<-req.Context().Done()
			return nil, req.Context().Err()
		}}
		cfg := Config()
		cfg.Health.ProbeEvery, cfg.Health.ProbeTimeout = time.Minute, 3*time.Second
		c, err := New("key_test", WithTransport(a), WithConfig(cfg))
		require.NoError(t, err)
		started := time.Now()
		for range 1000 {
			require.Equal(t, resilience.Unknown, c.Stack().Health().Check(t.Context()).Find("concurrency").Status)
		}
		require.Zero(t, time.Since(started))
		time.Sleep(4 * time.Second)
		r := c.Stack().Health().Check(t.Context())
		require.Equal(t, "timeout", r.Find("concurrency").State)
		require.Equal(t, resilience.Healthy, r.Status)
		require.EqualValues(t, 1, a.count.Load())
		require.Equal(t, 3*time.Second, limit)
		time.Sleep(time.Minute)
		c.Stack().Health().Check(t.Context())
		synctest.Wait()
		require.EqualValues(t, 2, a.count.Load())
		time.Sleep(3 * time.Second)
	})
}

func TestConcurrencyIsTheUsersToChange(t *testing.T) {
	full := `{"current_concurrency":20,"concurrency_limit":20}`
	synctest.Test(t, func(t *testing.T) {
		cfg := Config()
		cfg.Health.Rules = map[string]resilience.HealthRule{
			"concurrency:headroom": {DegradedFrom: -1}, "concurrency:used": {DegradedFrom: 50, UnhealthyFrom: 100},
		}
		a := saying(200, full)
		r := lookAt(t, a, cfg)
		require.Equal(t, resilience.Healthy, r.Find("concurrency").Status)
		require.Equal(t, resilience.Unhealthy, r.Status)
	})
	for _, run := range []func(context.Context) []resilience.CheckResult{
		nil, func(context.Context) []resilience.CheckResult { return nil },
	} {
		synctest.Test(t, func(t *testing.T) {
			cfg := Config()
			cfg.Health.Checks = []resilience.HealthCheck{{Name: "concurrency", Run: run}}
			a := saying(200, full)
			require.Equal(t, resilience.Healthy, lookAt(t, a, cfg).Status)
			require.Zero(t, a.count.Load(), "Retell is not asked")
		})
	}
}

// A probe sees a key that was revoked, but never that the workspace cannot pay: reads go on working. The calls see both.
func TestHealthTellsAccountTroubleFromAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := retelltest.NewServer()
		defer srv.Close()
		c, err := New(retelltest.DefaultKey, WithTransport(srv.Transport()))
		require.NoError(t, err)
		call := func() error {
			_, err := c.Calls.CreatePhoneCall(t.Context(), CreatePhoneCallParams{FromNumber: "+15550001000", ToNumber: "+15555550123"})
			return err
		}
		look := func() resilience.Report {
			time.Sleep(10 * time.Second)
			return c.Stack().Health().Check(t.Context())
		}
		require.NoError(t, call())
		require.Equal(t, resilience.Healthy, look().Status)

		srv.Inject("create-phone-call", retelltest.Status(402))
		require.ErrorIs(t, call(), ErrPaymentRequired)
		_, err = c.Concurrency.Get(t.Context())
		require.NoError(t, err)
		r := look()
		require.Equal(t, resilience.Degraded, r.Status)
		require.Equal(t, resilience.Healthy, r.Find("api").Status, "the probe is answered")
		require.Equal(t, "closed", r.Find("circuit").State)
		text, err := json.Marshal(r)
		require.NoError(t, err)
		require.Contains(t, string(text), `"output":"account: status 402: create-phone-call: payment required"`)
		require.NotContains(t, string(text), "+1555")
		require.NoError(t, call())
		require.Equal(t, resilience.Healthy, look().Status)

		srv.Inject("create-phone-call", retelltest.Status(401))
		require.ErrorIs(t, call(), ErrUnauthorized)
		require.Equal(t, resilience.Unhealthy, look().Find("account").Status)
		require.NoError(t, c.Close(t.Context()))
	})
}
