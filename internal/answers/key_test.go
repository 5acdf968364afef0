package answers

import (
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

func getOf(t *testing.T, link string, h http.Header) *http.Request {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, link, nil)
	require.NoError(t, err)
	req.Header = h
	return req
}

// What may be a secret is in no key as it is, whatever way it is said.
func TestNoSecretIsInAKey(t *testing.T) {
	const secret = "key_of_the_tenant"
	names := []string{"Authorization", "Cookie"}
	for _, req := range []*http.Request{
		getOf(t, "http://h/p", http.Header{"Authorization": {secret}}),
		getOf(t, "http://h/p", http.Header{"Cookie": {"a", secret}}),
		getOf(t, "http://user:"+secret+"@h/p", nil),
		getOf(t, "http://"+secret+"@h/p", http.Header{"Cookie": {"a"}}),
	} {
		require.NotContains(t, keyOf("op", "GET", req, names, nil), secret)
	}
}

func TestALongKeyIsHashedWhole(t *testing.T) {
	long := "http://h/" + strings.Repeat("p", longestKey)
	seen := map[string]bool{}
	for _, link := range []string{long, long + "p", long + "?a=1", long + "?a=2", "http://h/p"} {
		k := keyOf("op", "GET", getOf(t, link, nil), nil, nil)
		require.LessOrEqual(t, len(k), longestKey)
		seen[k] = true
	}
	require.Len(t, seen, 5)
	hashed := keyOf("op", "GET", getOf(t, long, nil), nil, nil)
	require.Len(t, hashed, 33)
	require.NotZero(t, hashed[0]&isHashed, "no text of a short key begins like this")
}

// The hash of the last headers is used again only for the same ones, however many tenants there are at once.
func TestTenantsWhoTakeTurnsHaveKeysOfTheirOwn(t *testing.T) {
	keys := NewKeys([]string{"Authorization"})
	req := func(tenant string) *http.Request {
		return &http.Request{URL: &url.URL{Host: "h"}, Header: http.Header{"Authorization": {tenant}}}
	}
	tenants := []string{"a", "b", "c", "ab"}
	want := map[string]string{}
	for _, name := range tenants {
		want[name] = string(keys.Of(nil, "op", "GET", req(name), nil))
	}
	distinct := map[string]bool{}
	for _, k := range want {
		distinct[k] = true
	}
	require.Len(t, distinct, len(tenants))
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			for n := range 1000 {
				name := tenants[(i+n)%len(tenants)]
				if got := string(keys.Of(nil, "op", "GET", req(name), nil)); got != want[name] {
					t.Errorf("the key of %s changed", name)
				}
			}
		})
	}
	all.Wait()
}

func TestWorkIsKnownByItsOperationAndParameters(t *testing.T) {
	keys := NewKeys(nil)
	long := strings.Repeat("p", longestKey)
	seen := map[string]bool{}
	for _, k := range []Key{
		keys.OfWork(nil, "a", nil), keys.OfWork(nil, "b", nil), keys.OfWork(nil, "a", []byte("1")), keys.OfWork(nil, "a1", nil),
		keys.OfWork(nil, "", []byte("a1")), keys.OfWork(nil, "a", []byte(long)), keys.OfWork(nil, "b", []byte(long)), keys.OfWork(nil, "a", []byte(long+"p")),
		keys.Of(nil, "a", "", &http.Request{URL: &url.URL{}}, nil),
	} {
		require.LessOrEqual(t, len(k), longestKey)
		seen[string(k)] = true
	}
	require.Len(t, seen, 9)
	require.Equal(t, keys.OfWork(nil, "a", []byte(long)), keys.OfWork(make([]byte, 3, 700), "a", []byte(long)))
}

// A request after another has the key that it would have alone, whatever the two have in common.
func TestTheHeadersOfTheLastRequestAreMistakenForNoOthers(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1)) //nolint:gosec // repeatable on purpose
	names := []string{"A", "B"}
	keys := NewKeys(names)
	again := 0
	for range 20_000 {
		req := &http.Request{URL: &url.URL{}, Header: http.Header{}}
		for _, name := range []string{"A", "B", "C", "D"} {
			switch r.IntN(5) {
			case 0:
				req.Header[name] = nil
			case 1, 2:
				for range r.IntN(3) {
					req.Header[name] = append(req.Header[name], string(rune('x'+r.IntN(2))))
				}
			}
		}
		if r.IntN(10) == 0 {
			req.URL.User = url.User("x")
		}
		seen := keys.seen.Load()
		require.Equal(t, string(NewKeys(names).Of(nil, "", "", req, nil)), string(keys.Of(nil, "", "", req, nil)), req.Header)
		if seen != nil && seen == keys.seen.Load() {
			again++
		}
		for _, values := range req.Header { // which are the caller's
			for i := range values {
				values[i] = "x"
			}
		}
	}
	require.Greater(t, again, 1000, "the same headers came again")
}

// Each part of a request counts, also where the others are the same.
func TestEachPartOfARequestCounts(t *testing.T) {
	names := []string{"Authorization"}
	part := func(method string, change func(*http.Request)) string {
		req := getOf(t, "http://h/p", nil)
		change(req)
		return keyOf("op", method, req, names, nil)
	}
	same := part("GET", func(*http.Request) {})
	require.NotEqual(t, same, part("HEAD", func(*http.Request) {}))
	require.NotEqual(t, same, part("GET", func(r *http.Request) { r.URL.Host, r.Host = "other", "other" }))
	odd := part("GET", func(r *http.Request) { r.Host = "odd" })
	require.NotEqual(t, odd, part("GET", func(r *http.Request) { r.Host = "odd"; r.URL.Opaque = "//x" }))
	require.NotEqual(t, odd, part("GET", func(r *http.Request) { r.Host = "odd"; r.URL.RawPath = "/%70" }))
	user := func(r *http.Request) { r.URL.User = url.User("u") }
	require.Zero(t, same[0]&hasUser)
	require.NotZero(t, part("GET", user)[0]&hasUser, "no header can be taken for the user")
}

// What one part holds cannot stand for the next: callers choose queries, bodies and parameters.
func TestAPartOfAKeyCannotStandForAnother(t *testing.T) {
	keys := NewKeys(nil)
	plain := keys.Of(nil, "", "GET", getOf(t, "http://h/p", nil), nil)
	require.NotEqual(t, string(plain), string(keys.OfWork(nil, "", plain[1:])), "parameters for a request")

	none := keyOf("", "", getOf(t, "http://h/p", nil), nil, []byte("\x00\x00\x00X"))
	for _, query := range []string{"?&", "?&&", "?&&&"} {
		for n := range 4 {
			k := keyOf("", "", getOf(t, "http://h/p"+query, nil), nil, []byte(strings.Repeat("\x00", n)+"X"))
			require.NotEqual(t, none, k, "a body for a query")
		}
	}

	names := []string{"Authorization", "Cookie"}
	header := func(h http.Header) string { return keyOf("", "", getOf(t, "http://h/p", h), names, nil) }
	require.NotEqual(t, header(http.Header{"Authorization": {"x"}, "Cookie": {"abc"}}),
		header(http.Header{"Authorization": {"x", "\x03abc"}}), "one header for two")
}
