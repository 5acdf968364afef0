package resilience

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience/internal/body"
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

// readText makes a read and returns status and text; it fails the test on an error.
func readText(t *testing.T, rt http.RoundTripper, header ...string) (*http.Response, string) {
	t.Helper()
	resp, err := rt.RoundTrip(readOf(t.Context(), t, callURL, header...))
	require.NoError(t, err)
	return resp, wholeText(t, resp)
}

func wholeText(t *testing.T, resp *http.Response) string {
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
	resp, text := readText(t, rt)
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
				readText(t, rt)
				time.Sleep(90*time.Second + 250*time.Millisecond)
				s.set(answer)
				resp, text := readText(t, rt)
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

func TestF02_TheReasonIsFoundWhereverItIsInTheError(t *testing.T) {
	for err, reason := range map[error]string{
		&Error{Layer: "timeout", StatusCode: 200, Err: fmt.Errorf("%w: more than 9 bytes", ErrTooLarge)}: "truncated",
		fmt.Errorf("retry: %w", errors.Join(errDown, &Error{Err: ErrFull})):                              "full",
		slowAsADeadline{}: "timeout",
		&Error{Layer: "retry", Err: errors.Join(ErrThrottled, context.DeadlineExceeded)}: "throttled",
	} {
		_, s, rt := newShop(t, FallbackConfig{})
		readText(t, rt)
		s.fails(err)
		resp, _ := readText(t, rt)
		require.Contains(t, resp.Header.Get("Resilience-Fallback"), "; reason="+reason+"; ")
	}
}

// slowAsADeadline is a deadline by its own word, like some errors of net/http.
type slowAsADeadline struct{}

func (slowAsADeadline) Error() string        { return "slow" }
func (slowAsADeadline) Is(target error) bool { return target == context.DeadlineExceeded }

// Marks share a piece of memory: each must stay what it was, and the piece must not grow.
func TestFallbackMarksStayWhatTheyAre(t *testing.T) {
	f, err := NewFallback(FallbackConfig{})
	require.NoError(t, err)
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			var kept [][2]string
			age := func(i int) time.Duration { return time.Duration(worker*1000+i)*time.Second + time.Millisecond }
			for i := range 500 {
				mark, seconds := f.marks(Stale, "open", age(i))
				kept = append(kept, [2]string{mark, seconds})
				if sheet, ok := f.sheets.Get().(*strings.Builder); ok {
					assert.LessOrEqual(t, sheet.Cap(), sheetSize)
					f.sheets.Put(sheet)
				}
			}
			for i, k := range kept {
				assert.Equal(t, "stale; reason=open; age="+age(i).String(), k[0])
				assert.Equal(t, strconv.Itoa(worker*1000+i), k[1])
			}
		})
	}
	wg.Wait()
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
	require.Equal(t, "made up", wholeText(t, resp))
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
	require.Equal(t, "made up", wholeText(t, resp))
	var ours *Error
	require.ErrorAs(t, cause, &ours)
	require.Equal(t, http.StatusServiceUnavailable, ours.StatusCode)
	require.Equal(t, uint64(2), f.Stats().FuncCalls)
}

// closeWatch is a body that tells whether it was closed.
type closeWatch struct {
	io.Reader
	closed atomic.Bool
}

func (c *closeWatch) Close() error { c.closed.Store(true); return nil }

func TestF02_AFailedStreamIsClosedWhenAnotherAnswerTakesItsPlace(t *testing.T) {
	_, s, rt := newShop(t, FallbackConfig{})
	readText(t, rt)
	watch := &closeWatch{Reader: strings.NewReader("data: x")}
	s.set(func(int, *http.Request) (*http.Response, error) {
		resp := said(http.StatusBadGateway, "", "Content-Type", "text/event-stream")
		resp.Body = watch
		return resp, nil
	})
	_, text := readText(t, rt)
	require.Equal(t, "good", text)
	require.True(t, watch.closed.Load())
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
			resp, text := readText(t, rt)
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
				readText(t, rt)
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
		readText(t, rt)
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
			readText(t, rt)
			s.says(status, "no")
			resp, text := readText(t, rt)
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
	readText(t, rt)
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
		readText(t, rt)
		s.says(status, "no")
		readText(t, rt)
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
		"content type":        with(func(r *http.Request) { r.Header.Set("Content-Type", "text/csv") }),
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

func TestF05_TheOrderOfJSONMembersIsNoDifference(t *testing.T) {
	f, s, rt := newShop(t, FallbackConfig{})
	ask := func(text string) error {
		req, err := http.NewRequestWithContext(WithCall(t.Context(), Call{Effect: EffectRead}), http.MethodPost, callURL, strings.NewReader(text))
		require.NoError(t, err)
		_, err = rt.RoundTrip(req)
		return err
	}
	require.NoError(t, ask(`{"limit": 10, "filter": {"a": 1, "b": 2}}`))
	require.NoError(t, ask(`{"filter":{"b":2,"a":1},"limit":10}`))
	require.Equal(t, 1, f.Stats().Entries)
	s.fails(errDown)
	require.NoError(t, ask(`{"filter":{"b":2,"a":1},"limit":10}`))
	require.ErrorIs(t, ask(`{"filter":{"b":2,"a":1},"limit":11}`), errDown)
	require.ErrorIs(t, ask(`not JSON`), errDown)
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
				_, text := readText(t, rt, "Authorization", tenant)
				assert.Equal(t, tenant, text)
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
					go func() { readText(t, rt) }()
				}
				time.Sleep(time.Minute)
				require.Equal(t, c.kept, f.Stats().Entries == 1)
				require.Equal(t, c.kept, s.count() == 1, "shared")
			})
		})
	}
	t.Run("the request says no-store", func(t *testing.T) {
		f, _, rt := newShop(t, FallbackConfig{})
		readText(t, rt, "Cache-Control", "no-store")
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
				readText(t, rt)
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
		readText(t, rt)
		s.fails(errDown)
		time.Sleep(5 * time.Second)
		resp, _ := readText(t, rt)
		requireServed(t, resp, Stale, time.Minute, "transport")
	})
}

// An answer that is the kept one again begins a new life, as any other would.
func TestF06_TheSameAnswerAgainIsYoung(t *testing.T) {
	for name, c := range map[string]struct {
		age   string
		again time.Duration
	}{"fresh": {"", 5 * time.Second}, "came old": {"30", 35 * time.Second}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, s, rt := newShop(t, FallbackConfig{MaxAge: 2 * time.Minute})
				says := func() {
					s.says(http.StatusOK, "good", "Content-Type", "text/plain", "X", "1", "X", "2")
					if c.age != "" {
						s.says(http.StatusOK, "good", "Age", c.age)
					}
				}
				says()
				readText(t, rt)
				kept := f.Stats()
				for range 5 {
					time.Sleep(80 * time.Second)
					resp, text := readText(t, rt)
					require.Equal(t, "good", text)
					requireUpstream(t, resp)
				}
				require.Equal(t, kept.Bytes, f.Stats().Bytes)
				require.Equal(t, 1, f.Stats().Entries)
				require.Equal(t, uint64(6), f.Stats().Stored)
				s.fails(errDown)
				time.Sleep(5 * time.Second)
				resp, _ := readText(t, rt)
				requireServed(t, resp, Fresh, c.again, "transport")
				says()
				readText(t, rt)
				s.fails(errDown)
				time.Sleep(2*time.Minute - 5*time.Second)
				require.Equal(t, 1, f.Stats().Entries)
				time.Sleep(5 * time.Second)
				f.sweep()
				require.Zero(t, f.Stats().Entries)
				require.Zero(t, f.Stats().Bytes)
			})
		})
	}
}

// What is served is what came last, however little of it is new.
func TestF06_AnAnswerThatDiffersTakesThePlace(t *testing.T) {
	for name, change := range map[string]func(*http.Response){
		"body":    func(resp *http.Response) { resp.Body = io.NopCloser(strings.NewReader("gone")) },
		"longer":  func(resp *http.Response) { resp.Body = io.NopCloser(strings.NewReader("good!")) },
		"header":  func(resp *http.Response) { resp.Header.Set("X", "2") },
		"added":   func(resp *http.Response) { resp.Header.Add("X", "2") },
		"another": func(resp *http.Response) { resp.Header.Set("Y", "1") },
		"removed": func(resp *http.Response) { resp.Header.Del("X") },
		"trailer": func(resp *http.Response) { resp.Trailer = http.Header{"T": {"1"}} },
	} {
		t.Run(name, func(t *testing.T) {
			f, s, rt := newShop(t, FallbackConfig{})
			s.says(http.StatusOK, "good", "X", "1")
			readText(t, rt)
			changed := func(int, *http.Request) (*http.Response, error) {
				resp := said(http.StatusOK, "good", "X", "1")
				change(resp)
				return resp, nil
			}
			s.set(changed)
			want, text := readText(t, rt)
			once := f.Stats()
			s.fails(errDown)
			resp, served := readText(t, rt)
			_, _, ok := Served(resp)
			require.True(t, ok)
			resp.Header.Del("Age")
			resp.Header.Del("Resilience-Fallback")
			require.Equal(t, text, served)
			require.Equal(t, want.Header, resp.Header)
			require.Equal(t, want.Trailer, resp.Trailer)
			require.Equal(t, 1, once.Entries)

			alone, s, rt := newShop(t, FallbackConfig{})
			s.set(changed)
			readText(t, rt)
			require.Equal(t, alone.Stats().Bytes, once.Bytes, "the old one takes up nothing any more")
		})
	}
}

// An age that is too large to be read is the largest (RFC 9111 section 1.2.2); one that is none says nothing.
func TestF07_AnAnswerOfUnreadableAge(t *testing.T) {
	for age, served := range map[string]bool{"99999999999": false, "-1": true, "old": true} {
		_, s, rt := newShop(t, FallbackConfig{})
		s.says(http.StatusOK, "good", "Age", age)
		readText(t, rt)
		s.fails(errDown)
		_, err := rt.RoundTrip(readOf(t.Context(), t, callURL))
		require.Equal(t, served, err == nil, age)
	}
}

func TestF07_PastMaxAgeTheFailureStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, s, rt := newShop(t, FallbackConfig{MaxAge: time.Minute})
		readText(t, rt)
		time.Sleep(time.Minute)
		s.says(http.StatusBadGateway, "bad")
		resp, text := readText(t, rt)
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
		readText(t, rt)
		s.fails(errDown)
		for i := 1; i < 24; i++ {
			time.Sleep(time.Hour)
			resp, _ := readText(t, rt)
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
	resp, _ := readText(t, rt)
	requireUpstream(t, resp)
	resp, _ = readText(t, rt, "Cache-Control", "no-store")
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
	resp, _ := readText(t, rt)
	resp.Header["X"][0] = "changed"
	s.fails(errDown)
	for range 3 {
		resp, text := readText(t, rt)
		require.Equal(t, "good", text)
		require.Equal(t, []string{"1", "2"}, resp.Header["X"])
		resp.Header["X"][0] = "changed"
		for name := range resp.Header {
			before := resp.Header.Clone()
			resp.Header.Add(name, "more") // must not write over a neighbour
			for other, values := range before {
				require.Equal(t, values, resp.Header[other][:len(values)])
			}
		}
	}
}

func TestF09_TheMarkSurvivesHTTPClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, s, rt := newShop(t, FallbackConfig{})
		client := &http.Client{Transport: rt, Timeout: time.Minute}
		resp, err := client.Get(callURL)
		require.NoError(t, err)
		require.Equal(t, "good", wholeText(t, resp))
		s.fails(errDown)
		time.Sleep(2 * time.Second)
		resp, err = client.Get(callURL)
		require.NoError(t, err)
		requireServed(t, resp, Fresh, 2*time.Second, "transport")
		require.Equal(t, "good", wholeText(t, resp))
	})
}

// A look-up that must see the other side gets neither a cached answer, nor somebody else's, nor a substitute.
func TestF04_ALookUpAsksForItself(t *testing.T) {
	f, s, rt := newShop(t, FallbackConfig{ServeFresh: true, Func: func(*http.Request, error) (*http.Response, error) { panic("not to be called") }})
	readText(t, rt)
	s.fails(errDown)
	req := readOf(context.WithValue(t.Context(), overridesKey{}, &overrides{fresh: true}), t, callURL)
	_, err := rt.RoundTrip(req)
	require.ErrorIs(t, err, errDown)
	require.Zero(t, f.Stats().Misses)
}

func TestF10_OneCallForAllWhoAskAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, s, rt := newShop(t, FallbackConfig{})
		s.set(func(int, *http.Request) (*http.Response, error) {
			time.Sleep(time.Second)
			return said(http.StatusOK, "good", "X", "1"), nil
		})
		var done sync.WaitGroup
		for range 200 {
			done.Go(func() {
				resp, text := readText(t, rt)
				assert.Equal(t, "good", text)
				requireUpstream(t, resp)
				assert.NotNil(t, resp.Request)
				resp.Header.Set("X", "mine") // nobody else's
			})
		}
		done.Wait()
		require.Equal(t, 1, s.count())
		require.Equal(t, uint64(199), f.Stats().Coalesced)
		requireNothingUnderWay(t, f)
	})
}

// requireNothingUnderWay looks for what a read could have left behind.
func requireNothingUnderWay(t *testing.T, f *Fallback) {
	t.Helper()
	synctest.Wait()
	require.Zero(t, f.store.Calls())
	require.Zero(t, f.refreshing.underWay())
}

// lead starts a read that ends as the test says, and returns how it ended.
func lead(ctx context.Context, t *testing.T, rt http.RoundTripper, how func(func())) {
	t.Helper()
	req := readOf(ctx, t, callURL)
	go how(func() { _, _ = rt.RoundTrip(req) })
	synctest.Wait()
}

func TestF10_WhenTheLeaderEndsAFollowerLeads(t *testing.T) {
	for name, c := range map[string]struct {
		ctx   func(context.Context) (context.Context, context.CancelFunc)
		first func(req *http.Request) (*http.Response, error)
		how   func(func())
	}{
		"cancel": {
			ctx: func(ctx context.Context) (context.Context, context.CancelFunc) {
				ctx, cancel := context.WithCancel(ctx)
				time.AfterFunc(time.Second, cancel)
				return ctx, cancel
			},
		},
		"deadline": {
			ctx: func(ctx context.Context) (context.Context, context.CancelFunc) {
				return context.WithTimeout(ctx, time.Second)
			},
		},
		"budget": {
			ctx: func(ctx context.Context) (context.Context, context.CancelFunc) {
				return context.WithTimeoutCause(ctx, time.Second, errBudget)
			},
		},
		"panic": {
			first: func(*http.Request) (*http.Response, error) { time.Sleep(time.Second); panic("bug") },
			how:   func(f func()) { defer func() { _ = recover() }(); f() },
		},
		"goexit": {
			first: func(*http.Request) (*http.Response, error) {
				time.Sleep(time.Second)
				runtime.Goexit()
				return nil, nil
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, s, rt := newShop(t, FallbackConfig{})
				s.set(func(n int, req *http.Request) (*http.Response, error) {
					switch {
					case n == 1 && c.first != nil:
						return c.first(req)
					case n == 1:
						<-req.Context().Done()
						return nil, req.Context().Err()
					}
					time.Sleep(time.Second)
					return said(http.StatusOK, "good"), nil
				})
				ctx, stop := t.Context(), func() {}
				if c.ctx != nil {
					ctx, stop = c.ctx(t.Context())
				}
				defer stop()
				how := c.how
				if how == nil {
					how = func(f func()) { f() }
				}
				lead(ctx, t, rt, how)
				var followers sync.WaitGroup
				for range 50 {
					followers.Go(func() {
						_, text := readText(t, rt)
						assert.Equal(t, "good", text)
					})
				}
				followers.Wait()
				require.Equal(t, 2, s.count(), "one of them leads, the others follow again")
				requireNothingUnderWay(t, f)
			})
		})
	}
}

func TestF10_EachFollowerHonoursTheirOwnContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, s, rt := newShop(t, FallbackConfig{})
		readText(t, rt)
		s.set(func(int, *http.Request) (*http.Response, error) {
			time.Sleep(time.Minute)
			return said(http.StatusOK, "newer"), nil
		})
		lead(t.Context(), t, rt, func(f func()) { f() })
		start := time.Now()

		errMine := errors.New("changed my mind")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(errMine) })
		_, err := rt.RoundTrip(readOf(ctx, t, callURL))
		require.ErrorIs(t, err, errMine)
		require.ErrorIs(t, err, context.Canceled)
		require.True(t, NotSent(err))
		require.Equal(t, time.Second, time.Since(start))

		ctx, stop := context.WithTimeout(t.Context(), time.Second)
		defer stop()
		_, err = rt.RoundTrip(readOf(ctx, t, callURL))
		var ours *Error
		require.ErrorAs(t, err, &ours)
		require.Equal(t, "caller", ours.Limit)
		require.Equal(t, 2*time.Second, time.Since(start))

		ctx, stop = context.WithTimeoutCause(t.Context(), time.Second, errBudget)
		defer stop()
		resp, err := rt.RoundTrip(readOf(ctx, t, callURL))
		require.NoError(t, err, "the budget was used up, and there is an answer")
		requireServed(t, resp, Fresh, 3*time.Second, "timeout")

		_, text := readText(t, rt)
		require.Equal(t, "newer", text)
		require.Equal(t, 2, s.count())
		requireNothingUnderWay(t, f)
	})
}

func TestF10_CloseSendsFollowersHome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, s, rt := newShop(t, FallbackConfig{})
		closing := make(chan struct{})
		f.closing = closing
		readText(t, rt)
		s.set(func(int, *http.Request) (*http.Response, error) { time.Sleep(time.Minute); return nil, errDown })
		lead(t.Context(), t, rt, func(f func()) { f() })
		time.AfterFunc(time.Second, func() { close(closing) })
		start := time.Now()
		_, err := rt.RoundTrip(readOf(t.Context(), t, callURL))
		require.ErrorIs(t, err, ErrClosed)
		require.True(t, NotSent(err))
		require.Equal(t, time.Second, time.Since(start))
		time.Sleep(time.Hour)
		requireNothingUnderWay(t, f)
	})
}

func TestF10_WhatIsNotShared(t *testing.T) {
	for name, c := range map[string]struct {
		config FallbackConfig
		header []string
		call   func(i int) Call
		want   int
	}{
		"streams":       {header: []string{"Content-Type", "text/event-stream"}, want: 3},
		"not cacheable": {config: FallbackConfig{Cacheable: func(Call) bool { return false }}, want: 3},
		"panics":        {config: FallbackConfig{Cacheable: func(Call) bool { panic("bug") }}, want: 3},
		"by priority":   {call: func(i int) Call { return Call{Priority: Priority(1 + i)} }, want: 3},
		"by limit":      {call: func(i int) Call { return Call{Limit: time.Duration(i) * time.Minute} }, want: 3},
		"shared":        {want: 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, s, rt := newShop(t, c.config)
				s.set(func(int, *http.Request) (*http.Response, error) {
					time.Sleep(time.Second)
					return said(http.StatusOK, "good", c.header...), nil
				})
				var done sync.WaitGroup
				for i := range 3 {
					done.Go(func() {
						ctx := t.Context()
						if c.call != nil {
							ctx = WithCall(ctx, c.call(i))
						}
						resp, err := rt.RoundTrip(readOf(ctx, t, callURL))
						assert.NoError(t, err)
						assert.Equal(t, "good", wholeText(t, resp))
					})
				}
				done.Wait()
				require.Equal(t, c.want, s.count())
				require.Equal(t, c.header == nil && c.config.Cacheable == nil, f.Stats().Entries == 1)
				requireNothingUnderWay(t, f)
			})
		})
	}
}

func TestF10_ARefusalIsSharedToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, s, rt := newShop(t, FallbackConfig{})
		s.set(func(int, *http.Request) (*http.Response, error) {
			time.Sleep(time.Second)
			return said(http.StatusTooManyRequests, "slow down", "Retry-After", "7"), nil
		})
		var done sync.WaitGroup
		for range 5 {
			done.Go(func() {
				resp, text := readText(t, rt)
				assert.Equal(t, http.StatusTooManyRequests, resp.StatusCode)
				assert.Equal(t, "7", resp.Header.Get("Retry-After"))
				assert.Equal(t, "slow down", text)
			})
		}
		done.Wait()
		require.Equal(t, 1, s.count())
	})
}

// A chain with the same layer twice, and a transport that asks the same through it, must not wait for themselves.
func TestF10_NoReadWaitsForItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, s, _ := newShop(t, FallbackConfig{})
		_, text := readText(t, Chain(f, f).Wrap(s))
		require.Equal(t, "good", text)

		var rt http.RoundTripper
		rt = f.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			if req.Header.Get("X-Inner") != "" {
				return said(http.StatusOK, "inner"), nil
			}
			inner := req.Clone(req.Context())
			inner.URL.Fragment = "x" // another request, the same answer
			inner.Header.Set("X-Inner", "1")
			return rt.RoundTrip(inner)
		}))
		_, text = readText(t, rt)
		require.Equal(t, "inner", text)
		requireNothingUnderWay(t, f)
	})
}

func TestF11_AnErrorIsSharedButNotReplayed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, s, rt := newShop(t, FallbackConfig{})
		s.set(func(int, *http.Request) (*http.Response, error) { time.Sleep(time.Second); return nil, errDown })
		var done sync.WaitGroup
		for range 10 {
			done.Go(func() {
				_, err := rt.RoundTrip(readOf(t.Context(), t, callURL))
				assert.ErrorIs(t, err, errDown)
			})
		}
		done.Wait()
		require.Equal(t, 1, s.count())
		s.says(http.StatusOK, "good")
		_, text := readText(t, rt)
		require.Equal(t, "good", text)
		require.Equal(t, uint64(10), f.Stats().Misses)
		requireNothingUnderWay(t, f)
	})
}

// readAt makes a read of one of many resources.
func readAt(t *testing.T, rt http.RoundTripper, id string) (*http.Response, error) {
	t.Helper()
	ctx := WithCall(t.Context(), Call{Resource: "call/" + id})
	return rt.RoundTrip(readOf(ctx, t, "https://api.example/v2/get-call/"+id))
}

func TestF12_TheBoundHoldsAndTheLeastRecentlyUsedGoes(t *testing.T) {
	one := func() int64 {
		f, _, rt := newShop(t, FallbackConfig{})
		_, err := readAt(t, rt, "0")
		require.NoError(t, err)
		return f.Stats().Bytes
	}()
	f, s, rt := newShop(t, FallbackConfig{MaxBytes: 10 * one})
	for i := range 10 {
		_, err := readAt(t, rt, fmt.Sprint(i))
		require.NoError(t, err)
	}
	require.Equal(t, 10, f.Stats().Entries)
	_, err := readAt(t, rt, "0") // an update saves it
	require.NoError(t, err)
	s.fails(errDown)
	_, err = readAt(t, rt, "1") // and so does being served
	require.NoError(t, err)
	s.says(http.StatusOK, "good")
	_, err = readAt(t, rt, "x")
	require.NoError(t, err)
	require.Equal(t, 10, f.Stats().Entries)
	require.Equal(t, 10*one, f.Stats().Bytes)
	require.Equal(t, uint64(1), f.Stats().Evicted)
	s.fails(errDown)
	for id, kept := range map[string]bool{"0": true, "1": true, "2": false, "3": true, "x": true} {
		_, err := readAt(t, rt, id)
		require.Equal(t, kept, err == nil, id)
	}
	s.says(http.StatusOK, strings.Repeat("x", int(10*one)))
	_, err = readAt(t, rt, "huge")
	require.NoError(t, err)
	require.Equal(t, 10, f.Stats().Entries, "an answer larger than the bound pushes nothing out")
}

func TestF13_ExpiredAnswersLeaveMemory(t *testing.T) {
	const maxAge = 100 * time.Millisecond
	t.Run("on read", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f, s, rt := newShop(t, FallbackConfig{MaxAge: maxAge})
			_, err := readAt(t, rt, "a")
			require.NoError(t, err)
			time.Sleep(maxAge + time.Millisecond)
			s.fails(errDown)
			_, err = readAt(t, rt, "a")
			require.ErrorIs(t, err, errDown)
			require.Zero(t, f.Stats().Entries)
		})
	})
	t.Run("as others come", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f, _, rt := newShop(t, FallbackConfig{MaxAge: maxAge})
			for i := range 10 {
				_, err := readAt(t, rt, fmt.Sprint(i))
				require.NoError(t, err)
			}
			time.Sleep(maxAge)
			for range 5 {
				_, err := readAt(t, rt, "x")
				require.NoError(t, err)
			}
			require.Equal(t, 1, f.Stats().Entries)
			require.Equal(t, uint64(10), f.Stats().Expired)
		})
	})
	t.Run("by the sweep", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f, _, rt := newShop(t, FallbackConfig{MaxAge: maxAge})
			for i := range 1000 {
				_, err := readAt(t, rt, fmt.Sprint(i))
				require.NoError(t, err)
			}
			time.Sleep(maxAge - 1)
			f.sweep()
			require.Equal(t, 1000, f.Stats().Entries)
			time.Sleep(1)
			require.Equal(t, 1000, f.Stats().Entries, "reading the stats changes nothing")
			f.sweep()
			require.Zero(t, f.Stats().Entries)
			require.Zero(t, f.Stats().Bytes)
		})
	})
	t.Run("never", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			_, s, rt := newShop(t, FallbackConfig{MaxAge: -1})
			_, err := readAt(t, rt, "a")
			require.NoError(t, err)
			time.Sleep(1000 * time.Hour)
			s.fails(errDown)
			resp, err := readAt(t, rt, "a")
			require.NoError(t, err)
			requireServed(t, resp, VeryStale, 1000*time.Hour, "transport")
		})
	})
}

func TestF14_AColdCacheInAnOutage(t *testing.T) {
	seen := make(chan Event, 2)
	f, s, rt := newShop(t, FallbackConfig{OnEvent: func(e Event) { seen <- e }})
	s.fails(errDown)
	_, err := rt.RoundTrip(readOf(t.Context(), t, callURL))
	require.ErrorIs(t, err, errDown)
	require.Equal(t, EventFallbackFailed, (<-seen).Kind)
	s.says(http.StatusServiceUnavailable, "busy", "Retry-After", "3")
	resp, text := readText(t, rt)
	require.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
	require.Equal(t, "3", resp.Header.Get("Retry-After"))
	require.Equal(t, "busy", text)
	require.Equal(t, http.StatusServiceUnavailable, (<-seen).StatusCode)
	require.Equal(t, uint64(2), f.Stats().Misses)
}

func TestF14_ACutAnswerIsNeverKept(t *testing.T) {
	f, s, rt := newShop(t, FallbackConfig{})
	s.set(func(int, *http.Request) (*http.Response, error) {
		resp := said(http.StatusOK, "")
		resp.Body = io.NopCloser(io.MultiReader(strings.NewReader("half"), broken{}))
		return resp, nil
	})
	_, err := rt.RoundTrip(readOf(t.Context(), t, callURL))
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.Zero(t, f.Stats().Entries)
}

// The answer of work may come without headers.
func TestF16_AnAnswerWithoutHeadersIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, err := NewFallback(FallbackConfig{})
		require.NoError(t, err)
		var fails atomic.Bool
		rt := f.Wrap(legFunc(func(*trip, *http.Request) (*http.Response, error) {
			time.Sleep(time.Second)
			if fails.Load() {
				return nil, errDown
			}
			return &http.Response{StatusCode: http.StatusOK, Body: body.NewHeld([]byte("good"))}, nil
		}))
		for range 2 {
			var done sync.WaitGroup
			for range 3 { // one leads, two share
				done.Go(func() {
					_, text := readText(t, rt)
					assert.Equal(t, "good", text)
				})
			}
			done.Wait()
		}
		require.Equal(t, uint64(4), f.Stats().Coalesced)
		require.Equal(t, uint64(2), f.Stats().Stored)
		fails.Store(true)
		resp, text := readText(t, rt)
		require.Equal(t, "good", text)
		requireServed(t, resp, Fresh, time.Second, "transport")
		resp.Header.Set("X", "1")
	})
}

func TestF16_ZeroValuesAreKept(t *testing.T) {
	for _, text := range []string{"", "0", "false", "[]", "null", `""`} {
		_, s, rt := newShop(t, FallbackConfig{})
		s.says(http.StatusOK, text)
		readText(t, rt)
		s.fails(errDown)
		resp, got := readText(t, rt)
		require.Equal(t, text, got)
		require.Equal(t, http.StatusOK, resp.StatusCode)
	}
}

// writeTo makes a write to a resource.
func writeTo(t *testing.T, rt http.RoundTripper, resource string) (*http.Response, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(WithCall(t.Context(), Call{Resource: resource}), http.MethodPatch, callURL, strings.NewReader("x"))
	require.NoError(t, err)
	return rt.RoundTrip(req)
}

func TestF17_AWriteInvalidatesWhatItMayHaveChanged(t *testing.T) {
	answers := func(status int) func(int, *http.Request) (*http.Response, error) {
		return func(int, *http.Request) (*http.Response, error) { return said(status, ""), nil }
	}
	errs := func(err error) func(int, *http.Request) (*http.Response, error) {
		return func(int, *http.Request) (*http.Response, error) { return nil, err }
	}
	for name, c := range map[string]struct {
		answer func(int, *http.Request) (*http.Response, error)
		kept   bool
	}{
		"200":          {answers(200), false},
		"204":          {answers(204), false},
		"302":          {answers(302), false},
		"400":          {answers(400), true},
		"404":          {answers(404), true},
		"408":          {answers(408), false},
		"409":          {answers(409), false},
		"422":          {answers(422), true},
		"429":          {answers(429), true},
		"500":          {answers(500), false},
		"in doubt":     {errs(&Error{Layer: "idempotency", Err: ErrInDoubt}), false},
		"lost":         {errs(io.ErrUnexpectedEOF), false},
		"circuit open": {errs(&Error{Layer: "breaker", Err: ErrOpen, verdict: refused}), true},
		"not sent":     {errs(MarkNotSent(errDown)), true},
		"panic":        {func(int, *http.Request) (*http.Response, error) { panic("bug") }, false},
	} {
		t.Run(name, func(t *testing.T) {
			f, s, rt := newShop(t, FallbackConfig{})
			_, err := readAt(t, rt, "abc")
			require.NoError(t, err)
			s.set(c.answer)
			func() {
				defer func() { _ = recover() }()
				_, _ = writeTo(t, rt, "call/abc")
			}()
			require.Equal(t, c.kept, f.Stats().Entries == 1)
		})
	}
}

func TestF17_WhatAResourceIsAbout(t *testing.T) {
	all := []string{"call", "call/abc", "call/abc/log", "call/abcd", "agent/abc", ""}
	for resource, gone := range map[string][]string{
		"call/abc":   {"call", "call/abc", "call/abc/log"},
		"/call/abc/": {"call", "call/abc", "call/abc/log"},
		"call":       {"call", "call/abc", "call/abc/log", "call/abcd"},
		"call/new":   {"call"},
		"call/abc/x": {"call", "call/abc"},
		"chat":       nil,
		"":           all,
	} {
		f, s, rt := newShop(t, FallbackConfig{})
		read := func(r string) error {
			ctx := WithCall(t.Context(), Call{Resource: r})
			_, err := rt.RoundTrip(readOf(ctx, t, "https://api.example/"+r))
			return err
		}
		for _, r := range all {
			require.NoError(t, read(r))
		}
		f.Invalidate(resource)
		require.Equal(t, len(all)-len(gone), f.Stats().Entries, resource)
		require.Equal(t, uint64(len(gone)), f.Stats().Invalidated, resource)
		s.fails(errDown)
		for _, r := range all {
			if read(r) != nil {
				require.Contains(t, gone, r, "gone by %q", resource)
			}
		}
	}
}

func TestF17_AWriteOfNoResourceInvalidatesNothing(t *testing.T) {
	f, _, rt := newShop(t, FallbackConfig{})
	readText(t, rt)
	_, err := writeTo(t, rt, "")
	require.NoError(t, err)
	require.Equal(t, 1, f.Stats().Entries)
}

func TestF17_AReadThatAWriteOvertookIsNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, s, rt := newShop(t, FallbackConfig{})
		var written atomic.Bool
		s.set(func(_ int, req *http.Request) (*http.Response, error) {
			if req.Method == http.MethodPatch {
				time.Sleep(time.Second)
				written.Store(true)
				return said(http.StatusOK, ""), nil
			}
			seen := "old"
			if written.Load() {
				seen = "new"
			}
			time.Sleep(10 * time.Second)
			return said(http.StatusOK, seen), nil
		})
		old := make(chan string, 2)
		read := func() {
			resp, err := readAt(t, rt, "abc")
			require.NoError(t, err)
			old <- wholeText(t, resp)
		}
		go read()
		time.Sleep(time.Millisecond)
		go read() // follows the first
		time.Sleep(time.Millisecond)
		_, err := writeTo(t, rt, "call/abc")
		require.NoError(t, err)
		resp, err := readAt(t, rt, "abc")
		require.NoError(t, err)
		require.Equal(t, "new", wholeText(t, resp), "who asks after the write must not join a read from before it")
		require.Equal(t, "old", <-old)
		require.Equal(t, "old", <-old)
		require.Equal(t, 3, s.count())
		s.fails(errDown)
		resp, err = readAt(t, rt, "abc")
		require.NoError(t, err)
		require.Equal(t, "new", wholeText(t, resp))
		requireNothingUnderWay(t, f)
	})
}

// That a read which a write overtook came back with what was kept before makes it no more true.
func TestF17_TheSameAnswerAgainIsNotKeptWhenAWriteOvertookIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, s, rt := newShop(t, FallbackConfig{})
		for _, overtake := range []func(){
			func() { f.Invalidate("call/abc") },
			func() { f.Invalidate("call/abc/log") },
			func() { f.Invalidate("call") },
			func() { f.Invalidate("") },
			func() { // somebody has kept the same again since
				f.Invalidate("call/abc")
				s.says(http.StatusOK, "good")
				_, err := readAt(t, rt, "abc")
				require.NoError(t, err)
				f.Invalidate("call/abc")
			},
		} {
			s.says(http.StatusOK, "good")
			_, err := readAt(t, rt, "abc")
			require.NoError(t, err)
			s.set(func(int, *http.Request) (*http.Response, error) {
				time.Sleep(time.Second)
				return said(http.StatusOK, "good"), nil
			})
			require.Equal(t, 1, f.Stats().Entries)
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				_, err := readAt(t, rt, "abc")
				assert.NoError(t, err)
			}()
			synctest.Wait()
			overtake()
			stored := f.Stats().Stored
			<-ended
			s.fails(errDown)
			_, err = readAt(t, rt, "abc")
			require.ErrorIs(t, err, errDown)
			require.Equal(t, stored, f.Stats().Stored)
			require.Zero(t, f.Stats().Entries)
			require.Zero(t, f.Stats().Bytes)
			requireNothingUnderWay(t, f)
		}
	})
}

// A write that was given up while its transport still worked on it may change things later: what was read meanwhile goes
// when it has really ended. One of no resource takes nothing with it.
func TestF17_AWriteThatIsAbandonedInvalidatesAgainAtItsEnd(t *testing.T) {
	for resource, left := range map[string]int{"call/abc": 0, "": 1} {
		f, _, _ := newShop(t, FallbackConfig{})
		l := &lingering{err: errDown}
		rt := f.Wrap(legFunc(func(_ *trip, req *http.Request) (*http.Response, error) {
			if req.Method == http.MethodPatch {
				return nil, l
			}
			resp := said(http.StatusOK, "old")
			return resp, body.Hold(resp, -1)
		}))
		_, err := writeTo(t, rt, resource)
		require.ErrorIs(t, err, errDown)
		_, err = readAt(t, rt, "abc")
		require.NoError(t, err)
		require.Equal(t, 1, f.Stats().Entries)
		l.tail.end()
		require.Equal(t, left, f.Stats().Entries, resource)
	}
}

func TestF19_AClockThatGoesBackMakesNothingYounger(t *testing.T) {
	f, _, rt := newShop(t, FallbackConfig{})
	req := readOf(t.Context(), t, callURL)
	_, err := rt.RoundTrip(req)
	require.NoError(t, err)
	key := f.keyOf(nil, &trip{call: Call{Operation: http.MethodGet}}, req)
	require.NotNil(t, key)
	_, age, ok := f.store.Get(key, time.Now().Add(-time.Hour))
	require.True(t, ok)
	require.Zero(t, age, "never negative")
	_, age, ok = f.store.Get(key, time.Now().Round(0).Add(time.Hour)) // a wall clock alone still works
	require.True(t, ok)
	require.Equal(t, time.Hour, age.Round(time.Minute))
	_, _, ok = f.store.Get(key, time.Now().Add(24*time.Hour))
	require.False(t, ok, "the maximum age holds")
}

func TestF20_ServeFreshDoesNotAsk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, s, rt := newShop(t, FallbackConfig{ServeFresh: true})
		resp, _ := readText(t, rt)
		requireUpstream(t, resp)
		time.Sleep(59 * time.Second)
		resp, _ = readText(t, rt)
		requireServed(t, resp, Fresh, 59*time.Second, "fresh")
		require.Equal(t, 1, s.count())
		resp, _ = readText(t, rt, "Cache-Control", "max-age=0, no-cache")
		requireUpstream(t, resp)
		require.Equal(t, 2, s.count())
		time.Sleep(60 * time.Second)
		resp, _ = readText(t, rt)
		requireUpstream(t, resp)
		require.Equal(t, 3, s.count())
	})
}

func TestF20_AVeryStaleAnswerIsNotServedWithoutAsking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, s, rt := newShop(t, FallbackConfig{Refresh: true})
		readText(t, rt)
		s.set(func(int, *http.Request) (*http.Response, error) { return nil, errDown })
		time.Sleep(10*time.Minute - 1)
		resp, _ := readText(t, rt)
		requireServed(t, resp, Stale, 10*time.Minute-1, "refresh")
		synctest.Wait()
		require.Equal(t, uint64(1), f.Stats().RefreshFailures)
		time.Sleep(1)
		resp, _ = readText(t, rt)
		requireServed(t, resp, VeryStale, 10*time.Minute, "transport")
		require.Equal(t, 3, s.count(), "it was asked")
	})
}

func TestF20_AStaleAnswerIsRenewedInTheBackground(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, s, rt := newShop(t, FallbackConfig{Refresh: true})
		readText(t, rt, "Authorization", "Bearer x")
		s.set(func(_ int, req *http.Request) (*http.Response, error) {
			require.Equal(t, PriorityBulk, tripOf(req.Context()).call.Priority)
			require.Equal(t, "Bearer x", req.Header.Get("Authorization"))
			select {
			case <-time.After(time.Second):
				return said(http.StatusOK, "newer"), nil
			case <-req.Context().Done():
				return nil, req.Context().Err()
			}
		})
		ctx, cancel := context.WithCancel(t.Context())
		time.Sleep(time.Minute)
		before := s.count()
		for range 5 {
			req := readOf(ctx, t, callURL, "Authorization", "Bearer x")
			resp, err := rt.RoundTrip(req)
			require.NoError(t, err)
			requireServed(t, resp, Stale, time.Minute, "refresh")
			req.Header.Set("Authorization", "Bearer of another request") // the caller may use theirs again
			req.URL.Path = "/other"
		}
		cancel() // the refresh is not the caller's
		require.Equal(t, 1, f.Stats().Refreshing)
		time.Sleep(2 * time.Second)
		require.Equal(t, before+1, s.count())
		resp, text := readText(t, rt, "Authorization", "Bearer x")
		require.Equal(t, "newer", text)
		requireServed(t, resp, Fresh, time.Second, "fresh")
		require.Equal(t, uint64(1), f.Stats().Refreshes)
		require.Zero(t, f.Stats().RefreshFailures)
		requireNothingUnderWay(t, f)
	})
}

func TestF20_ARefreshThatFailsKeepsTheOldAnswerAndBacksOff(t *testing.T) {
	for name, answer := range map[string]func(int, *http.Request) (*http.Response, error){
		"error":  func(int, *http.Request) (*http.Response, error) { return nil, errDown },
		"status": func(int, *http.Request) (*http.Response, error) { return said(http.StatusBadGateway, ""), nil },
		"panic":  func(int, *http.Request) (*http.Response, error) { panic("bug") },
		"goexit": func(int, *http.Request) (*http.Response, error) { runtime.Goexit(); return nil, nil },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, s, rt := newShop(t, FallbackConfig{Refresh: true})
				readText(t, rt)
				time.Sleep(time.Minute)
				s.set(answer)
				var asked []time.Duration
				start := time.Now()
				for time.Since(start) < 30*time.Second {
					before := s.count()
					_, text := readText(t, rt)
					require.Equal(t, "good", text)
					synctest.Wait()
					if s.count() > before {
						asked = append(asked, time.Since(start))
					}
					time.Sleep(100 * time.Millisecond)
				}
				require.Equal(t, []time.Duration{0, time.Second, 3 * time.Second, 7 * time.Second, 15 * time.Second}, asked)
				require.Equal(t, uint64(5), f.Stats().RefreshFailures)
				requireNothingUnderWay(t, f)
			})
		})
	}
}

// An answer that a read renews while a refresh of it is under way gets no second refresh when it is stale again.
func TestF20_OneRefreshThoughTheAnswerIsRenewedMeanwhile(t *testing.T) {
	for name, text := range map[string]string{"the same": "good", "another": "better"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, s, rt := newShop(t, FallbackConfig{Refresh: true, Fresh: time.Second})
				readText(t, rt)
				time.Sleep(time.Second)
				s.set(func(_ int, req *http.Request) (*http.Response, error) {
					if tripOf(req.Context()).call.Priority == PriorityBulk {
						time.Sleep(10 * time.Second)
					}
					return said(http.StatusOK, text), nil
				})
				for range 3 {
					resp, _ := readText(t, rt)
					requireServed(t, resp, Stale, time.Second, "refresh")
					synctest.Wait()
					require.Equal(t, uint64(1), f.Stats().Refreshes)
					readText(t, rt, "Cache-Control", "no-cache")
					time.Sleep(time.Second)
				}
				time.Sleep(10 * time.Second)
				readText(t, rt)
				synctest.Wait()
				require.Equal(t, uint64(2), f.Stats().Refreshes)
				time.Sleep(10 * time.Second)
				requireNothingUnderWay(t, f)
			})
		})
	}
}

func TestF20_RefreshesAreBoundedAndEndAtClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, s, rt := newShop(t, FallbackConfig{Refresh: true})
		closing := make(chan struct{})
		f.closing = closing
		for i := range 10 {
			_, err := readAt(t, rt, fmt.Sprint(i))
			require.NoError(t, err)
		}
		time.Sleep(time.Minute)
		s.set(func(_ int, req *http.Request) (*http.Response, error) {
			<-req.Context().Done()
			return nil, context.Cause(req.Context())
		})
		for i := range 10 {
			_, err := readAt(t, rt, fmt.Sprint(i))
			require.NoError(t, err)
		}
		require.Equal(t, maxRefreshes, f.Stats().Refreshing)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := f.drain(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, "fallback: 4 answers were still being renewed", "which wait of Close it was")
		require.Equal(t, maxRefreshes, f.Stats().Refreshing)
		close(closing)
		now := time.Now()
		require.NoError(t, f.drain(t.Context()))
		require.Equal(t, now, time.Now(), "at once")
		before, begun := s.count(), f.Stats().Refreshes
		_, err = readAt(t, rt, "5") // of which no refresh has failed lately
		require.NoError(t, err)
		synctest.Wait()
		require.Equal(t, before, s.count(), "closed: no refresh begins")
		require.Equal(t, begun, f.Stats().Refreshes)
	})
	synctest.Test(t, func(t *testing.T) {
		f, s, rt := newShop(t, FallbackConfig{Refresh: true})
		readText(t, rt)
		time.Sleep(time.Minute)
		s.set(func(_ int, req *http.Request) (*http.Response, error) {
			<-req.Context().Done()
			return nil, context.Cause(req.Context())
		})
		readText(t, rt)
		time.Sleep(refreshBudget)
		requireNothingUnderWay(t, f)
	})
}

func TestFallbackConfigFaults(t *testing.T) {
	_, err := NewFallback(FallbackConfig{
		Fresh: time.Hour, Stale: time.Minute, MaxAge: time.Second, MaxBytes: -2, Vary: []string{"", "*", "X Y", "ok"},
	})
	for _, field := range []string{"Fallback.Stale: must be at least Fresh", "Fallback.MaxAge", "Fallback.MaxBytes", "Fallback.Vary"} {
		require.ErrorContains(t, err, field)
	}
	require.NotContains(t, err.Error(), "Fallback.Fresh")
	for _, name := range []string{"", "*", "X Y", "X:Y", "X,Y", "X\n"} {
		_, err = NewFallback(FallbackConfig{Vary: []string{name}})
		require.ErrorContains(t, err, "Fallback.Vary: must be a list of header names", "%q", name)
	}
	_, err = NewFallback(FallbackConfig{Fresh: -2, Stale: -2, MaxAge: -2})
	for _, field := range []string{"Fallback.Fresh", "Fallback.Stale", "Fallback.MaxAge"} {
		require.ErrorContains(t, err, field)
	}
	const m, h = time.Minute, time.Hour
	for _, c := range []struct{ set, want [3]time.Duration }{
		{[3]time.Duration{0, 0, 0}, [3]time.Duration{m, 10 * m, 24 * h}},
		{[3]time.Duration{h, 0, 0}, [3]time.Duration{h, h, 24 * h}},
		{[3]time.Duration{48 * h, 0, 0}, [3]time.Duration{48 * h, 48 * h, 48 * h}},
		{[3]time.Duration{0, time.Second, 0}, [3]time.Duration{time.Second, time.Second, 24 * h}},
		{[3]time.Duration{0, 0, 2 * m}, [3]time.Duration{m, 2 * m, 2 * m}},
		{[3]time.Duration{0, 0, time.Second}, [3]time.Duration{time.Second, time.Second, time.Second}},
		{[3]time.Duration{-1, 0, 0}, [3]time.Duration{0, 10 * m, 24 * h}},
		{[3]time.Duration{0, -1, 0}, [3]time.Duration{m, m, 24 * h}},
		{[3]time.Duration{-1, -1, -1}, [3]time.Duration{0, 0, -1}},
		{[3]time.Duration{h, h, h}, [3]time.Duration{h, h, h}},
	} {
		wrong := &faults{}
		fresh, stale, maxAge := FallbackConfig{Fresh: c.set[0], Stale: c.set[1], MaxAge: c.set[2]}.ages(wrong)
		require.NoError(t, wrong.err())
		require.Equal(t, c.want, [3]time.Duration{fresh, stale, maxAge}, "%v", c.set)
	}
}

func TestFallbackLeftOut(t *testing.T) {
	var none *Fallback
	s := &shop{}
	require.Same(t, s, none.Wrap(s))
	none.Invalidate("call")
	none.sweep()
	require.Zero(t, none.Stats())
	off, err := NewFallback(FallbackConfig{Off: true})
	require.NoError(t, err)
	require.Same(t, s, off.Wrap(s))
}

// The body of a read that cannot be held takes no part in a key, so its answer cannot be kept.
func TestFallbackBodyThatIsNotWhole(t *testing.T) {
	f, s, _ := newShop(t, FallbackConfig{})
	d := f.Wrap(s).(*door)
	ctx := WithCall(t.Context(), Call{Effect: EffectRead})
	for _, size := range []int{10, 11} {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, callURL, strings.NewReader(strings.Repeat("x", size)))
		require.NoError(t, err)
		_, err = enter(req, d, entry{maxBody: 10})
		require.NoError(t, err)
		require.Equal(t, 1, f.Stats().Entries)
	}
	require.Equal(t, 2, s.count())
}

// Many callers, writes, contexts that end, failures: whatever they do, nobody gets another's answer, nothing is left.
func TestFallbackEverythingAtOnce(t *testing.T) {
	f, err := NewFallback(FallbackConfig{MaxBytes: 20 << 10, Refresh: true, Fresh: 1, Stale: time.Hour})
	require.NoError(t, err)
	rt := f.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
		switch n := rand.IntN(10); {
		case n < 2:
			return nil, errDown
		case n == 2:
			return said(http.StatusBadGateway, ""), nil
		case n == 3:
			panic("bug")
		case req.Context().Err() != nil:
			return nil, req.Context().Err()
		}
		runtime.Gosched()
		return said(http.StatusOK, req.URL.Path+req.Header.Get("Authorization")), nil
	}))
	one := func() {
		defer func() { _ = recover() }()
		id := fmt.Sprint(rand.IntN(30))
		ctx, cancel := context.WithCancel(WithCall(t.Context(), Call{Resource: "call/" + id}))
		defer cancel()
		tenant := fmt.Sprint(rand.IntN(3))
		req := readOf(ctx, t, "https://api.example/"+id, "Authorization", tenant)
		switch rand.IntN(10) {
		case 0:
			req.Method = http.MethodPatch
		case 1:
			go cancel()
		}
		resp, err := rt.RoundTrip(req)
		if err == nil && resp.StatusCode == http.StatusOK {
			require.Equal(t, "/"+id+tenant, wholeText(t, resp))
		}
		if n := f.Stats().Bytes; n > 20<<10 {
			t.Errorf("%d bytes", n)
		}
	}
	var done sync.WaitGroup
	for range 8 {
		done.Go(func() {
			for range 500 {
				one()
			}
		})
	}
	done.Wait()
	require.NoError(t, f.drain(t.Context()))
	require.Zero(t, f.store.Calls())
}

// What Cacheable says of an operation is what happens to it; one that panics says no, and is reported.
func TestFallbackKeepsWhatCacheableSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var causes []string
		f, s, rt := newShop(t, FallbackConfig{
			Cacheable: func(c Call) bool {
				if c.Operation == "faulty" {
					panic("bug")
				}
				return c.Operation == "yes"
			},
			OnEvent: func(e Event) {
				if e.Kind == EventPanic {
					mu.Lock()
					defer mu.Unlock()
					causes = append(causes, e.Operation+" "+e.Cause)
				}
			},
		})
		s.set(func(int, *http.Request) (*http.Response, error) { return said(http.StatusOK, "good"), nil })
		for operation, kept := range map[string]int{"no": 0, "faulty": 0, "yes": 1} {
			before := f.Stats().Entries
			resp, err := rt.RoundTrip(readOf(WithCall(t.Context(), Call{Operation: operation}), t, callURL))
			require.NoError(t, err)
			require.Equal(t, "good", wholeText(t, resp))
			require.Equal(t, kept, f.Stats().Entries-before, operation)
		}
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		require.Equal(t, []string{"faulty cacheable"}, causes)
	})
}

func TestF10_OnlyConditionsKeepReadsApart(t *testing.T) {
	require.Empty(t, conditionsOf(nil))
	require.Empty(t, conditionsOf(http.Header{"X-If-Match": {"a"}, "If": {"a"}, "Accept": {"a"}, "Iffy": {"a"}}))
	for range 50 { // a map is walked in another order each time
		require.Equal(t, "if-match\na\nb\nif-none-match\nc", conditionsOf(http.Header{"If-None-Match": {"c"}, "if-match": {"a", "b"}, "Accept": {"x"}}))
	}
}

func TestF10_WhoseTimeWasUp(t *testing.T) {
	for err, own := range map[error]bool{
		&Error{Limit: limitBudget.String(), Err: ErrTimeout}: true,
		&Error{Limit: "caller", Err: ErrTimeout}:             true,
		&Error{Limit: "request", Err: ErrTimeout}:            false,
		ErrThrottled: true,
		errDown:      false,
	} {
		require.Equal(t, own, outOfOwnTime(fmt.Errorf("read: %w", err)), err)
	}
}

func TestF10_AFailureThatIsSharedIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, s, rt := newShop(t, FallbackConfig{})
		s.set(func(int, *http.Request) (*http.Response, error) {
			time.Sleep(time.Second)
			return nil, errDown
		})
		var done sync.WaitGroup
		for range 3 {
			done.Go(func() {
				_, err := readAt(t, rt, "abc")
				assert.ErrorIs(t, err, errDown)
			})
		}
		done.Wait()
		require.Equal(t, 1, s.count())
		require.Equal(t, uint64(2), f.Stats().Coalesced)
	})
}

// A leader who leaves just as the answer comes has it for the others all the same, its cookies too.
func TestF10_AnAnswerThatCameIsSharedWhoeverLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, s, rt := newShop(t, FallbackConfig{})
		ctx, leave := context.WithCancel(t.Context())
		s.set(func(int, *http.Request) (*http.Response, error) {
			time.Sleep(time.Second)
			leave()
			return said(http.StatusOK, "good", "Set-Cookie", "a=1"), nil
		})
		go func() {
			if resp, err := rt.RoundTrip(readOf(ctx, t, callURL)); err == nil {
				_ = resp.Body.Close()
			}
		}()
		synctest.Wait()
		resp, text := readText(t, rt)
		require.Equal(t, "good", text)
		require.Equal(t, []string{"a=1"}, resp.Header["Set-Cookie"])
		require.Equal(t, 1, s.count())
	})
}

func TestF02_WhatIsAFailure(t *testing.T) {
	for status, want := range map[int]string{200: "", 404: "", 499: "", 500: "status", 503: "status"} {
		require.Equal(t, want, needsSubstitute(t.Context(), said(status, ""), nil), status)
	}
	for status, want := range map[int]string{0: "transport", 302: "transport", 399: "transport", 400: "", 404: "", 499: "", 500: "transport", 503: "transport"} {
		require.Equal(t, want, needsSubstitute(t.Context(), nil, &Error{StatusCode: status, Err: errDown}), status)
	}
}

// What a refresh came to is told; nothing that it needed is left (a bubble fails by itself when a goroutine is), and the stream that it does not want is closed.
func TestF20_ARefreshIsToldAndLeavesNothingBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var told []string
		f, s, rt := newShop(t, FallbackConfig{Refresh: true, OnEvent: func(e Event) {
			if e.Kind == EventRefresh {
				mu.Lock()
				defer mu.Unlock()
				told = append(told, fmt.Sprint(e.Operation, " ", e.Cause, " ", e.StatusCode))
			}
		}})
		f.closing = make(chan struct{})
		readText(t, rt)
		time.Sleep(time.Minute)
		var asked context.Context
		stream := &closingBody{Reader: strings.NewReader("data: 1\n\n")}
		for _, answer := range []func() (*http.Response, error){
			func() (*http.Response, error) { return nil, errDown },
			func() (*http.Response, error) { return said(http.StatusBadGateway, ""), nil },
			func() (*http.Response, error) { panic("bug") },
			func() (*http.Response, error) {
				resp := said(http.StatusOK, "", "Content-Type", "text/event-stream")
				resp.Body, resp.ContentLength = stream, -1
				return resp, nil
			},
		} {
			s.set(func(_ int, req *http.Request) (*http.Response, error) {
				asked = req.Context()
				return answer()
			})
			synctest.Wait()
			readText(t, rt)
			synctest.Wait()
			require.Error(t, asked.Err(), "it is over")
			require.Zero(t, f.Stats().Refreshing)
			time.Sleep(time.Minute) // past the wait after a failure
		}
		require.True(t, stream.closed.Load())
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		require.Equal(t, []string{"GET transport 0", "GET status 502", "GET panic 0", "GET  0"}, told)
	})
}

// What Func does is told as well, and the answer that its own takes the place of is closed.
func TestF02_WhatFuncDoesIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var told []string
		faulty := false
		_, s, rt := newShop(t, FallbackConfig{
			Func: func(*http.Request, error) (*http.Response, error) {
				if faulty {
					panic("bug")
				}
				return said(http.StatusOK, "mine"), nil
			},
			OnEvent: func(e Event) {
				mu.Lock()
				defer mu.Unlock()
				told = append(told, fmt.Sprint(e.Kind, " ", e.To, " ", e.Cause, " ", e.StatusCode))
			},
		})
		stream := &closingBody{Reader: strings.NewReader("data: 1\n\n")}
		s.set(func(int, *http.Request) (*http.Response, error) {
			resp := said(http.StatusBadGateway, "", "Content-Type", "text/event-stream")
			resp.Body, resp.ContentLength = stream, -1
			return resp, nil
		})
		_, text := readText(t, rt)
		require.Equal(t, "mine", text)
		require.True(t, stream.closed.Load())
		faulty = true
		readText(t, rt)
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		require.Equal(t, []string{
			fmt.Sprint(EventFallbackServed, " func status 0"), fmt.Sprint(EventPanic, "  func 0"), fmt.Sprint(EventFallbackFailed, "  status 502"),
		}, told)
	})
}

type closingBody struct {
	io.Reader
	closed atomic.Bool
}

func (b *closingBody) Close() error { b.closed.Store(true); return nil }
