package resilience

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// shop is an upstream whose behaviour a test changes as it goes.
type shop struct {
	mu     sync.Mutex
	calls  int
	answer func(n int, req *http.Request) (*http.Response, error)
}

func (s *shop) RoundTrip(req *http.Request) (*http.Response, error) {
	s.mu.Lock()
	s.calls++
	n, answer := s.calls, s.answer
	s.mu.Unlock()
	return answer(n, req)
}

func (s *shop) set(answer func(n int, req *http.Request) (*http.Response, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

func (s *shop) says(status int, text string, header ...string) {
	s.set(func(int, *http.Request) (*http.Response, error) { return said(status, text, header...), nil })
}

func (s *shop) fails(err error) {
	s.set(func(int, *http.Request) (*http.Response, error) { return nil, err })
}

func (s *shop) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls
}

func said(status int, text string, header ...string) *http.Response {
	h := http.Header{}
	for i := 0; i < len(header); i += 2 {
		h.Add(header[i], header[i+1])
	}
	return &http.Response{
		StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: h, Body: io.NopCloser(strings.NewReader(text)), ContentLength: int64(len(text)),
	}
}

var errDown = errors.New("connection refused")

func newShop(t *testing.T, c FallbackConfig) (*Fallback, *shop, http.RoundTripper) {
	t.Helper()
	f, err := NewFallback(c)
	require.NoError(t, err)
	s := &shop{}
	s.says(http.StatusOK, "good")
	return f, s, f.Wrap(s)
}

func readOf(ctx context.Context, t *testing.T, url string, header ...string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	require.NoError(t, err)
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	return req
}

const callURL = "https://api.example/v2/get-call/abc"

// get makes a read and returns status and text; it fails the test on an error.
func get(t *testing.T, rt http.RoundTripper, header ...string) (*http.Response, string) {
	t.Helper()
	resp, err := rt.RoundTrip(readOf(t.Context(), t, callURL, header...))
	require.NoError(t, err)
	return resp, textOf(t, resp)
}

func textOf(t *testing.T, resp *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	return string(b)
}

func requireServed(t *testing.T, resp *http.Response, s Staleness, age time.Duration, reason string) {
	t.Helper()
	gotAge, got, ok := Served(resp)
	require.True(t, ok, "not marked as served")
	require.Equal(t, s, got)
	require.Equal(t, age, gotAge)
	require.Equal(t, fmt.Sprint(int64(age/time.Second)), resp.Header.Get("Age"))
	require.Contains(t, resp.Header.Get("Resilience-Fallback"), "reason="+reason)
}

func requireUpstream(t *testing.T, resp *http.Response) {
	t.Helper()
	age, s, ok := Served(resp)
	require.False(t, ok)
	require.Zero(t, age)
	require.Equal(t, StalenessUnset, s)
}

func TestF01_SuccessIsPassedOnUnmarked(t *testing.T) {
	f, s, rt := newShop(t, FallbackConfig{Func: func(*http.Request, error) (*http.Response, error) {
		panic("not to be called")
	}})
	s.says(http.StatusOK, "good", "X-Request-Id", "1")
	resp, text := get(t, rt)
	require.Equal(t, "good", text)
	require.Equal(t, "1", resp.Header.Get("X-Request-Id"))
	requireUpstream(t, resp)
	require.Equal(t, uint64(1), f.Stats().Stored)
	require.Zero(t, f.Stats().FuncCalls)
}

func TestF02_FailureIsAnsweredFromTheCacheWithReason(t *testing.T) {
	truncated := func(int, *http.Request) (*http.Response, error) {
		resp := said(http.StatusOK, "")
		resp.Body, resp.ContentLength = io.NopCloser(io.MultiReader(strings.NewReader("go"), broken{})), 4
		return resp, nil
	}
	fail := func(err error) func(int, *http.Request) (*http.Response, error) {
		return func(int, *http.Request) (*http.Response, error) { return nil, err }
	}
	for reason, answer := range map[string]func(int, *http.Request) (*http.Response, error){
		"transport": fail(errDown),
		"open":      fail(&Error{Layer: "breaker", Err: ErrOpen, verdict: refused}),
		"full":      fail(&Error{Layer: "bulkhead", Err: ErrFull, verdict: refused}),
		"timeout":   fail(&Error{Layer: "timeout", Limit: "request", Err: ErrTimeout}),
		"truncated": truncated,
		"status":    func(int, *http.Request) (*http.Response, error) { return said(http.StatusBadGateway, "bad"), nil },
	} {
		t.Run(reason, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				seen := make(chan Event, 1)
				f, s, rt := newShop(t, FallbackConfig{OnEvent: func(e Event) { seen <- e }})
				s.says(http.StatusOK, "good", "Content-Type", "text/plain", "Set-Cookie", "a=b")
				get(t, rt)
				time.Sleep(90*time.Second + 250*time.Millisecond)
				s.set(answer)
				resp, text := get(t, rt)
				require.Equal(t, http.StatusOK, resp.StatusCode)
				require.Equal(t, "good", text)
				require.Equal(t, "text/plain", resp.Header.Get("Content-Type"))
				require.Empty(t, resp.Header.Get("Set-Cookie"), "an old cookie would undo a newer one")
				require.NotNil(t, resp.Request)
				requireServed(t, resp, Stale, 90*time.Second+250*time.Millisecond, reason)
				require.Equal(t, uint64(1), f.Stats().Stale)
				e := <-seen
				require.Equal(t, EventFallbackServed, e.Kind)
				require.Equal(t, reason, e.Cause)
				require.Equal(t, 90*time.Second+250*time.Millisecond, e.Duration)
				require.Equal(t, "GET", e.Operation)
			})
		})
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestF02_FuncGetsTheRequestAndTheError(t *testing.T) {
	var asked *http.Request
	var body string
	var cause error
	f, s, rt := newShop(t, FallbackConfig{Func: func(req *http.Request, err error) (*http.Response, error) {
		asked, cause = req, err
		b, _ := io.ReadAll(req.Body)
		body = string(b)
		return said(http.StatusOK, "made up"), nil
	}})
	request := func() *http.Request {
		ctx := WithCall(t.Context(), Call{Operation: "list-calls", Effect: EffectRead})
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://api.example/v2/list-calls", strings.NewReader(`{"limit":1}`))
		require.NoError(t, err)
		req.Header.Set("Authorization", "Bearer x")
		return req
	}
	s.fails(errDown)
	resp, err := rt.RoundTrip(request())
	require.NoError(t, err)
	require.Equal(t, "made up", textOf(t, resp))
	require.ErrorIs(t, cause, errDown)
	require.Equal(t, `{"limit":1}`, body)
	require.Equal(t, "Bearer x", asked.Header.Get("Authorization"))
	age, staleness, ok := Served(resp)
	require.True(t, ok)
	require.Zero(t, age)
	require.Equal(t, StalenessUnset, staleness)
	require.Equal(t, "func; reason=transport", resp.Header.Get("Resilience-Fallback"))
	require.Zero(t, f.Stats().Entries, "what Func makes is not kept")

	s.says(http.StatusServiceUnavailable, "busy")
	resp, err = rt.RoundTrip(request())
	require.NoError(t, err)
	require.Equal(t, "made up", textOf(t, resp))
	var ours *Error
	require.ErrorAs(t, cause, &ours)
	require.Equal(t, http.StatusServiceUnavailable, ours.StatusCode)
	require.Equal(t, uint64(2), f.Stats().FuncCalls)
}

func TestF03_BothFail(t *testing.T) {
	errFunc := errors.New("no substitute either")
	for name, fn := range map[string]func(*http.Request, error) (*http.Response, error){
		"error":   func(*http.Request, error) (*http.Response, error) { return nil, errFunc },
		"panic":   func(*http.Request, error) (*http.Response, error) { panic("secret") },
		"neither": func(*http.Request, error) (*http.Response, error) { return nil, nil },
		"cut": func(*http.Request, error) (*http.Response, error) {
			return &http.Response{StatusCode: 200, Body: io.NopCloser(broken{})}, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			f, s, rt := newShop(t, FallbackConfig{Func: fn})
			s.fails(errDown)
			resp, err := rt.RoundTrip(readOf(t.Context(), t, callURL))
			require.Nil(t, resp)
			require.ErrorIs(t, err, errDown)
			require.NotContains(t, err.Error(), "secret")
			if name == "error" {
				require.ErrorIs(t, err, errFunc)
			}
			s.says(http.StatusBadGateway, "bad")
			resp, text := get(t, rt)
			require.Equal(t, http.StatusBadGateway, resp.StatusCode)
			require.Equal(t, "bad", text)
			requireUpstream(t, resp)
			require.Equal(t, uint64(2), f.Stats().FuncFailures)
		})
	}
}

func TestF04_NoFallbackForTheCallersOwnEnd(t *testing.T) {
	errMine := errors.New("changed my mind")
	for name, end := range map[string]func(context.Context) (context.Context, func()){
		"cancel": func(ctx context.Context) (context.Context, func()) {
			ctx, cancel := context.WithCancelCause(ctx)
			time.AfterFunc(time.Second, func() { cancel(errMine) })
			return ctx, func() { cancel(nil) }
		},
		"deadline": func(ctx context.Context) (context.Context, func()) {
			return context.WithTimeout(ctx, time.Second)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, s, rt := newShop(t, FallbackConfig{Func: func(*http.Request, error) (*http.Response, error) { panic("not to be called") }})
				get(t, rt)
				s.set(func(_ int, req *http.Request) (*http.Response, error) {
					<-req.Context().Done()
					return nil, context.Cause(req.Context())
				})
				ctx, stop := end(t.Context())
				defer stop()
				_, err := rt.RoundTrip(readOf(ctx, t, callURL))
				require.ErrorIs(t, err, context.Cause(ctx))
				require.Zero(t, f.Stats().Misses)
			})
		})
	}
}

func TestF04_BudgetUsedUpIsServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, s, rt := newShop(t, FallbackConfig{})
		get(t, rt)
		s.set(func(_ int, req *http.Request) (*http.Response, error) {
			<-req.Context().Done()
			return nil, context.Cause(req.Context())
		})
		ctx, stop := context.WithTimeoutCause(t.Context(), time.Second, errBudget)
		defer stop()
		resp, err := rt.RoundTrip(readOf(ctx, t, callURL))
		require.NoError(t, err)
		requireServed(t, resp, Fresh, time.Second, "timeout")
	})
}

func TestF04_NoFallbackForAnAnswer(t *testing.T) {
	for _, status := range []int{201, 204, 304, 400, 401, 404, 408, 409, 422, 429, 499} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			f, s, rt := newShop(t, FallbackConfig{Func: func(*http.Request, error) (*http.Response, error) { panic("not to be called") }})
			get(t, rt)
			s.says(status, "no")
			resp, text := get(t, rt)
			require.Equal(t, status, resp.StatusCode)
			require.Equal(t, "no", text)
			requireUpstream(t, resp)
			s.fails(&Error{Layer: "retry", StatusCode: 429, Err: errors.New("throttled")})
			_, err := rt.RoundTrip(readOf(t.Context(), t, callURL))
			require.Error(t, err)
			require.Zero(t, f.Stats().Misses)
		})
	}
}

func TestF04_NoFallbackForPanicAndClose(t *testing.T) {
	f, s, rt := newShop(t, FallbackConfig{})
	get(t, rt)
	s.set(func(int, *http.Request) (*http.Response, error) { panic("bug") })
	require.PanicsWithValue(t, "bug", func() { _, _ = rt.RoundTrip(readOf(t.Context(), t, callURL)) })
	s.fails(&Error{Layer: "bulkhead", Err: ErrClosed, verdict: refused})
	_, err := rt.RoundTrip(readOf(t.Context(), t, callURL))
	require.ErrorIs(t, err, ErrClosed)
	require.Zero(t, f.Stats().Fresh)
}

func TestF04_NoFallbackForWrites(t *testing.T) {
	f, s, rt := newShop(t, FallbackConfig{Func: func(*http.Request, error) (*http.Response, error) { panic("not to be called") }})
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
		s.says(http.StatusOK, "done")
		write := func() (*http.Response, error) {
			req, err := http.NewRequestWithContext(t.Context(), method, callURL, strings.NewReader("x"))
			require.NoError(t, err)
			return rt.RoundTrip(req)
		}
		_, err := write()
		require.NoError(t, err)
		s.fails(errDown)
		_, err = write()
		require.ErrorIs(t, err, errDown)
	}
	require.Zero(t, f.Stats().Entries)
}

// A newer answer that says no ends the time of the good one before it: neither a deleted call nor what a revoked
// credential could see comes back in the next outage.
func TestF04_ANewerNoEndsTheGoodAnswer(t *testing.T) {
	for status, kept := range map[int]bool{401: false, 403: false, 404: false, 410: false, 400: true, 429: true, 503: true} {
		f, s, rt := newShop(t, FallbackConfig{})
		get(t, rt)
		s.says(status, "no")
		get(t, rt)
		require.Equal(t, kept, f.Stats().Entries == 1, status)
		s.fails(errDown)
		_, err := rt.RoundTrip(readOf(t.Context(), t, callURL))
		require.Equal(t, kept, err == nil, status)
	}
}

func TestF05_NobodyIsServedWhatBelongsToAnother(t *testing.T) {
	base := func() *http.Request { return readOf(t.Context(), t, callURL+"?a=1&b=2", "Authorization", "Bearer A") }
	with := func(change func(*http.Request)) *http.Request {
		req := base()
		change(req)
		return req
	}
	others := map[string]*http.Request{
		"authorization":       with(func(r *http.Request) { r.Header.Set("Authorization", "Bearer B") }),
		"no authorization":    with(func(r *http.Request) { r.Header.Del("Authorization") }),
		"cookie":              with(func(r *http.Request) { r.Header.Set("Cookie", "s=1") }),
		"proxy authorization": with(func(r *http.Request) { r.Header.Set("Proxy-Authorization", "x") }),
		"api key":             with(func(r *http.Request) { r.Header.Set("X-Api-Key", "x") }),
		"two values":          with(func(r *http.Request) { r.Header.Add("Authorization", "Bearer B") }),
		"vary":                with(func(r *http.Request) { r.Header.Set("X-Tenant", "2") }),
		"accept":              with(func(r *http.Request) { r.Header.Set("Accept", "text/csv") }),
		"encoding":            with(func(r *http.Request) { r.Header.Set("Accept-Encoding", "gzip") }),
		"query":               with(func(r *http.Request) { r.URL.RawQuery = "a=1&b=3" }),
		"query moved":         with(func(r *http.Request) { r.URL.RawQuery = "a=1%26b=2" }),
		"path":                with(func(r *http.Request) { r.URL.Path += "d" }),
		"raw path":            with(func(r *http.Request) { r.URL.RawPath = "/v2/get%2dcall/abc" }),
		"host":                with(func(r *http.Request) { r.Host = "other.example" }),
		"url host":            with(func(r *http.Request) { r.URL.Host = "other.example" }),
		"scheme":              with(func(r *http.Request) { r.URL.Scheme = "http" }),
		"user":                with(func(r *http.Request) { r.URL.User = url.UserPassword("u", "p") }),
		"method":              with(func(r *http.Request) { r.Method = http.MethodHead }),
		"operation":           base().WithContext(WithCall(t.Context(), Call{Operation: "other"})),
		"body":                with(func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader("x")) }),
	}
	for name, other := range others {
		t.Run(name, func(t *testing.T) {
			f, s, rt := newShop(t, FallbackConfig{Vary: []string{"x-tenant"}})
			_, err := rt.RoundTrip(base())
			require.NoError(t, err)
			s.fails(errDown)
			_, err = rt.RoundTrip(other)
			require.ErrorIs(t, err, errDown)
			resp, err := rt.RoundTrip(with(func(r *http.Request) { r.URL.RawQuery = "b=2&a=1" }))
			require.NoError(t, err, "the order of parameters is no difference")
			_, _, ok := Served(resp)
			require.True(t, ok)
			require.Equal(t, 1, f.Stats().Entries)
		})
	}
}

func TestF05_ConcurrentReadsOfTwoTenantsAreNotShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, s, rt := newShop(t, FallbackConfig{})
		s.set(func(_ int, req *http.Request) (*http.Response, error) {
			time.Sleep(time.Second)
			return said(http.StatusOK, req.Header.Get("Authorization")), nil
		})
		for i := range 20 {
			go func() {
				tenant := fmt.Sprint("Bearer ", i%2)
				_, text := get(t, rt, "Authorization", tenant)
				require.Equal(t, tenant, text)
			}()
		}
		time.Sleep(time.Minute)
		require.Equal(t, 2, s.count())
	})
}

func TestF05_AnswersThatDependOnUnknownHeadersAreNotReused(t *testing.T) {
	for name, c := range map[string]struct {
		header []string
		kept   bool
	}{
		"known":    {[]string{"Vary", "accept-encoding, Origin", "Vary", "x-tenant"}, true},
		"unknown":  {[]string{"Vary", "Accept, User-Agent"}, false},
		"any":      {[]string{"Vary", "*"}, false},
		"no-store": {[]string{"Cache-Control", "private, No-Store"}, false},
		"private":  {[]string{"Cache-Control", "private, max-age=0"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, s, rt := newShop(t, FallbackConfig{Vary: []string{"X-Tenant"}})
				s.set(func(int, *http.Request) (*http.Response, error) {
					time.Sleep(time.Second)
					return said(http.StatusOK, "good", c.header...), nil
				})
				for range 3 {
					go func() { get(t, rt) }()
				}
				time.Sleep(time.Minute)
				require.Equal(t, c.kept, f.Stats().Entries == 1)
				require.Equal(t, c.kept, s.count() == 1, "shared")
			})
		})
	}
	t.Run("the request says no-store", func(t *testing.T) {
		f, _, rt := newShop(t, FallbackConfig{})
		get(t, rt, "Cache-Control", "no-store")
		require.Zero(t, f.Stats().Entries)
	})
}

func TestF06_Classes(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		age  time.Duration
		want Staleness
	}{
		{0, Fresh},
		{60*time.Second - ms, Fresh},
		{60 * time.Second, Stale},
		{10*time.Minute - ms, Stale},
		{10 * time.Minute, VeryStale},
		{24*time.Hour - ms, VeryStale},
		{24 * time.Hour, StalenessUnset},
		{48 * time.Hour, StalenessUnset},
	} {
		t.Run(c.age.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, s, rt := newShop(t, FallbackConfig{})
				get(t, rt)
				s.fails(errDown)
				time.Sleep(c.age)
				resp, err := rt.RoundTrip(readOf(t.Context(), t, callURL))
				if c.want == StalenessUnset {
					require.ErrorIs(t, err, errDown)
					require.Zero(t, f.Stats().Entries)
					require.Equal(t, uint64(1), f.Stats().Expired)
					return
				}
				require.NoError(t, err)
				requireServed(t, resp, c.want, c.age, "transport")
			})
		})
	}
	require.Equal(t, []string{"unset", "fresh", "stale", "very_stale"},
		[]string{StalenessUnset.String(), Fresh.String(), Stale.String(), VeryStale.String()})
}

func TestF06_AnAnswerThatComesOldIsNotFresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, s, rt := newShop(t, FallbackConfig{})
		s.says(http.StatusOK, "good", "Age", "55")
		get(t, rt)
		s.fails(errDown)
		time.Sleep(5 * time.Second)
		resp, _ := get(t, rt)
		requireServed(t, resp, Stale, time.Minute, "transport")
	})
}

func TestF07_PastMaxAgeTheFailureStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, s, rt := newShop(t, FallbackConfig{MaxAge: time.Minute})
		get(t, rt)
		time.Sleep(time.Minute)
		s.says(http.StatusBadGateway, "bad")
		resp, text := get(t, rt)
		require.Equal(t, http.StatusBadGateway, resp.StatusCode)
		require.Equal(t, "bad", text)
		s.fails(errDown)
		_, err := rt.RoundTrip(readOf(t.Context(), t, callURL))
		require.ErrorIs(t, err, errDown)
	})
}

func TestF09_WhatIsServedIsNotKeptAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, s, rt := newShop(t, FallbackConfig{})
		get(t, rt)
		s.fails(errDown)
		for i := 1; i < 24; i++ {
			time.Sleep(time.Hour)
			resp, _ := get(t, rt)
			requireServed(t, resp, VeryStale, time.Duration(i)*time.Hour, "transport")
		}
		time.Sleep(time.Hour)
		_, err := rt.RoundTrip(readOf(t.Context(), t, callURL))
		require.ErrorIs(t, err, errDown)
		require.Equal(t, uint64(1), f.Stats().Stored)
	})
}

func TestF09_TheMarkCannotBeForged(t *testing.T) {
	f, s, rt := newShop(t, FallbackConfig{})
	forged := []string{"Resilience-Fallback", "stale; reason=open; age=5s", "Age", "5"}
	s.says(http.StatusOK, "good", forged...)
	resp, _ := get(t, rt)
	requireUpstream(t, resp)
	resp, _ = get(t, rt, "Cache-Control", "no-store")
	requireUpstream(t, resp)
	s.says(http.StatusNotFound, "no", forged...)
	resp, err := rt.RoundTrip(readOf(t.Context(), t, callURL+"d"))
	require.NoError(t, err)
	requireUpstream(t, resp)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, callURL, nil)
	require.NoError(t, err)
	resp, err = rt.RoundTrip(req)
	require.NoError(t, err)
	requireUpstream(t, resp)
	require.Equal(t, 1, f.Stats().Entries)

	for _, text := range []string{"", "unset; reason=x; age=1s", "stale", "stale; reason=x; age=soon", "nonsense"} {
		_, _, ok := Served(&http.Response{Header: http.Header{"Resilience-Fallback": {text}}})
		require.False(t, ok, text)
	}
	_, _, ok := Served(nil)
	require.False(t, ok)
}

func TestF09_EachReaderGetsTheirOwnCopy(t *testing.T) {
	_, s, rt := newShop(t, FallbackConfig{})
	s.says(http.StatusOK, "good", "X", "1", "X", "2")
	resp, _ := get(t, rt)
	resp.Header["X"][0] = "changed"
	s.fails(errDown)
	for range 3 {
		resp, text := get(t, rt)
		require.Equal(t, "good", text)
		require.Equal(t, []string{"1", "2"}, resp.Header["X"])
		resp.Header["X"][0] = "changed"
		resp.Header.Add("X", "3")
		resp.Header.Set("Age", "x")
	}
}

func TestF09_TheMarkSurvivesHTTPClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, s, rt := newShop(t, FallbackConfig{})
		client := &http.Client{Transport: rt, Timeout: time.Minute}
		_, err := client.Get(callURL)
		require.NoError(t, err)
		s.fails(errDown)
		time.Sleep(2 * time.Second)
		resp, err := client.Get(callURL)
		require.NoError(t, err)
		requireServed(t, resp, Fresh, 2*time.Second, "transport")
		require.Equal(t, "good", textOf(t, resp))
	})
}
