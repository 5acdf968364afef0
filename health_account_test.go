package resilience

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// workspace is an API that answers each operation, which is the path, with the code that was set for it; 0: with 200.
type workspace struct {
	mu    sync.Mutex
	codes map[string]int
	asked int
}

func (g *workspace) set(operation string, code int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.codes == nil {
		g.codes = map[string]int{}
	}
	g.codes[operation] = code
}

func (g *workspace) RoundTrip(req *http.Request) (*http.Response, error) {
	closeBody(req)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.asked++
	code := g.codes[strings.TrimPrefix(req.URL.Path, "/")]
	if code < 0 {
		return nil, errors.New("down")
	}
	return reply(or(code, 200), "{}"), nil
}

// byPath takes the path for the operation.
func byPath(req *http.Request) Call { return Call{Operation: strings.TrimPrefix(req.URL.Path, "/")} }

// asks makes a call; its outcome is the account's to judge.
func asks(t *testing.T, rt http.RoundTripper, method, operation string) (*http.Response, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://api.test/"+operation, http.NoBody)
	require.NoError(t, err)
	return rt.RoundTrip(req)
}

// words are the states of key, payment and permission.
func words(s *Stack) string {
	var list []string
	for _, c := range s.Health().Check(context.Background()).Checks {
		if c.Name == "account" {
			list = append(list, c.State)
		}
	}
	return strings.Join(list, "/")
}

func TestHealthAccountIsJudgedFromTrafficWithoutAProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &workspace{}
		s := newStack(t, Config{Describe: byPath})
		rt := s.Wrap(g)
		require.Equal(t, "unseen/unseen/unseen", words(s))
		for _, c := range []struct {
			code   int
			want   Status
			words  string
			within string
		}{
			{401, Unhealthy, "status 401/ok/ok", "dial: credentials refused"},
			{402, Degraded, "ok/status 402/ok", "dial: payment required"},
			{403, Degraded, "ok/ok/status 403", "other operations may be"},
		} {
			g.set("dial", 0)
			_, _ = asks(t, rt, "GET", "dial")
			require.Equal(t, Healthy, s.Health().Check(t.Context()).Status)
			require.Equal(t, "ok/ok/ok", words(s))
			g.set("dial", c.code)
			for range 30 {
				resp, err := asks(t, rt, "GET", "dial")
				require.NoError(t, err)
				require.Equal(t, c.code, resp.StatusCode)
			}
			time.Sleep(2 * time.Second)
			r := s.Health().Check(t.Context())
			require.Equal(t, c.want, r.Status)
			require.Equal(t, "account", r.worst().Name)
			require.Contains(t, r.worst().Message, c.within)
			require.Equal(t, 2*time.Second, r.worst().Age)
			require.Equal(t, c.words, words(s))
			require.Equal(t, BreakerClosed, s.Breaker.State(), "it is no outage: somebody answers")
		}
		g.set("dial", 500)
		for range 30 {
			_, _ = asks(t, rt, "GET", "dial")
		}
		require.Equal(t, BreakerOpen, s.Breaker.State())
		require.Equal(t, "ok/ok/status 403", words(s), "and an outage is no trouble with the account, nor does it end one")
		closeStack(t, s)
	})
}

func TestHealthAccountWhatASuccessRefutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &workspace{}
		s := newStack(t, Config{Describe: byPath})
		rt := s.Wrap(g)
		for operation, code := range map[string]int{"a": 401, "b": 402, "c": 403} {
			g.set(operation, code)
			_, _ = asks(t, rt, "GET", operation)
		}
		require.Equal(t, "status 401/status 402/status 403", words(s))
		for _, code := range []int{301, 404, 422, 429, 503} { // from a proxy, for all anybody knows
			g.set("other", code)
			_, _ = asks(t, rt, "GET", "other")
			require.Equal(t, "status 401/status 402/status 403", words(s), code)
		}
		g.set("other", 0)
		_, _ = asks(t, rt, "GET", "other")
		require.Equal(t, "ok/status 402/status 403", words(s), "the key is good; reads work also where nobody can pay")
		g.set("b", 0)
		_, _ = asks(t, rt, "GET", "b")
		require.Equal(t, "ok/ok/status 403", words(s))
		g.set("c", 0)
		_, _ = asks(t, rt, "GET", "c")
		require.Equal(t, "ok/ok/ok", words(s))
		require.Equal(t, accountFine, s.account.mood.Load())
		closeStack(t, s)
	})
}

// What was answered from memory says nothing about now.
func TestHealthAccountOnlyFreshAnswersCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &workspace{}
		s := newStack(t, Config{Describe: byPath, Fallback: FallbackConfig{ServeFresh: true, Refresh: true}})
		rt := s.Wrap(g)
		_, err := dial(t.Context(), t, rt, "k", "{}")
		require.NoError(t, err)
		_, err = asks(t, rt, "GET", "get")
		require.NoError(t, err)
		g.set("v2/create-phone-call", 402)
		_, err = dial(t.Context(), t, rt, "another", "{}")
		require.NoError(t, err)
		require.Equal(t, "ok/status 402/ok", words(s))
		g.set("gone", 401)
		_, _ = asks(t, rt, "GET", "gone")
		before := g.asked
		resp, err := asks(t, rt, "GET", "get")
		require.NoError(t, err)
		_, s1, served := Served(resp)
		require.True(t, served && s1 == Fresh)
		resp, err = dial(t.Context(), t, rt, "k", "{}")
		require.NoError(t, err)
		require.Equal(t, 200, resp.StatusCode)
		require.Equal(t, before, g.asked, "both from memory")
		require.Equal(t, "status 401/status 402/ok", words(s))
		closeStack(t, s)
	})
}

func TestHealthAccountRefusalsGrowOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &workspace{}
		s := newStack(t, Config{Describe: byPath})
		rt := s.Wrap(g)
		for operation, code := range map[string]int{"a": 401, "b": 402, "c": 403} {
			g.set(operation, code)
			_, _ = asks(t, rt, "GET", operation)
		}
		time.Sleep(refusalCounts - 1)
		require.Equal(t, "status 401/status 402/status 403", words(s))
		time.Sleep(1)
		require.Equal(t, "stale/stale/stale", words(s))
		r := s.Health().Check(t.Context())
		require.Equal(t, Healthy, r.Status, "of the rest: unknown does not win")
		require.Equal(t, Unknown, r.Find("account").Status)
		require.Equal(t, "a was answered with 401, and nobody has seen it succeed since", r.Find("account").Message)
		require.Equal(t, refusalCounts, r.Find("account").Age)
		_, _ = asks(t, rt, "GET", "b")
		require.Equal(t, "stale/status 402/stale", words(s))
		closeStack(t, s)
	})
}

func TestHealthAccountOfWorkThatIsNotHTTP(t *testing.T) {
	s := newStack(t, Config{})
	do := func(err error) {
		_, _ = Do(t.Context(), s, Call{Operation: "work", Effect: EffectRead}, func(context.Context) (int, error) { return 1, err })
	}
	do(statusError(402))
	require.Equal(t, "unseen/status 402/unseen", words(s))
	do((*nilStatus)(nil)) // a method of it panics
	do(errors.New("no answer in it"))
	require.Equal(t, "unseen/status 402/unseen", words(s))
	do(nil)
	require.Equal(t, "ok/ok/ok", words(s))
	closeStack(t, s)
}

type nilStatus struct{ code int }

func (e *nilStatus) Error() string   { return "x" }
func (e *nilStatus) HTTPStatus() int { return e.code }

func TestHealthAccountHearsOfACallWhoseCallerHasLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Describe: byPath})
		p := &phone{before: func(*http.Request, int) (*http.Response, error) {
			time.Sleep(10 * time.Second)
			return reply(401, "{}"), nil
		}}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := dial(ctx, t, s.Wrap(p), "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		require.Equal(t, "unseen/unseen/unseen", words(s))
		time.Sleep(time.Minute)
		require.Equal(t, "status 401/unseen/unseen", words(s))
		closeStack(t, s)
	})
}

func TestHealthAccountHearsOfAResendThatStaysInDoubt(t *testing.T) {
	a := new(account)
	err := &Error{Layer: "idempotency", StatusCode: 401, Err: ErrInDoubt}
	rt := a.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) { return nil, err }))
	_, _ = asks(t, rt, "POST", "dial")
	require.Equal(t, "status 401", a.readings()[0].State)
	require.Equal(t, "POST", a.refusals[accountKey].operation)
}

func TestHealthAccountIsTheUsersToChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &workspace{}
		g.set("dial", 402)
		g.set("listen", 403)
		s := newStack(t, Config{Describe: byPath, Health: HealthConfig{Rules: map[string]HealthRule{
			"account:payment":    {States: map[string]Status{"status 402": Unhealthy}, WorseAfter: 10 * time.Second},
			"account:permission": {Mute: true},
		}}})
		rt := s.Wrap(g)
		_, _ = asks(t, rt, "GET", "get")
		require.Equal(t, Healthy, s.Health().Check(t.Context()).Status)
		_, _ = asks(t, rt, "GET", "dial")
		_, _ = asks(t, rt, "GET", "listen")
		require.Equal(t, Healthy, s.Health().Check(t.Context()).Status)
		time.Sleep(10 * time.Second)
		require.Equal(t, Unhealthy, s.Health().Check(t.Context()).Status)
		closeStack(t, s)
	})
}

func TestHealthAccountUnderConcurrentTraffic(t *testing.T) {
	g, wg := &workspace{}, sync.WaitGroup{}
	g.set("bad", 401)
	s := newStack(t, Config{Describe: byPath})
	rt := s.Wrap(g)
	for i := range 8 {
		wg.Go(func() {
			for range 50 {
				_, _ = asks(t, rt, "GET", []string{"good", "bad"}[i%2])
				words(s)
			}
		})
	}
	wg.Wait()
	_, _ = asks(t, rt, "GET", "good")
	require.Equal(t, "ok/ok/ok", words(s))
	require.Equal(t, accountFine, s.account.mood.Load())
	closeStack(t, s)
}

// BenchmarkHealthAccount is what looking at a good answer costs a call.
func BenchmarkHealthAccount(b *testing.B) {
	a := new(account)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			a.answered("get", http.StatusOK)
		}
	})
}
