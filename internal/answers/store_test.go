package answers

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience/internal/body"
)

func response(size int) *http.Response {
	return &http.Response{StatusCode: http.StatusOK, Body: body.NewHeld(make([]byte, size))}
}

func answerOf(t *testing.T, size int) *Answer {
	t.Helper()
	a, ok := Take(response(size), nil)
	require.True(t, ok)
	return a
}

func keyFor(i int) Key { return Key{byte(i), byte(i >> 8), 1} }

// testStore is a store whose calls are told apart by a word, and led by a number.
type testStore = Store[string, int]

func newStore(maxBytes int64, maxAge time.Duration) *testStore {
	return New[string, int](maxBytes, maxAge)
}

// finish ends a call and reports whether its answer is kept.
func finish(s *testStore, call *Call[string, int], a *Answer, now time.Time) (kept bool) {
	before := s.Stats().Stored
	s.Leave(call, a, now)
	s.End(call)
	return s.Stats().Stored > before
}

// model is a store written the slow way.
type model struct {
	maxBytes int64
	maxAge   time.Duration
	list     []modelEntry // the least recently used first
}

type modelEntry struct {
	key      string
	resource string
	answer   *Answer
	at       time.Time
}

func (m *model) find(k Key) int {
	return slices.IndexFunc(m.list, func(e modelEntry) bool { return e.key == string(k) })
}

func (m *model) drop(which func(modelEntry) bool) { m.list = slices.DeleteFunc(m.list, which) }

func (m *model) bytes() (n int64) {
	for _, e := range m.list {
		n += e.size()
	}
	return n
}

func (e modelEntry) size() int64 { return e.answer.Size() + int64(len(e.key)) }

func (m *model) put(k Key, resource string, a *Answer, now time.Time) {
	e := modelEntry{string(k), resource, a, now}
	if e.size() > m.maxBytes {
		return
	}
	m.drop(func(old modelEntry) bool { return old.key == e.key })
	for m.bytes()+e.size() > m.maxBytes {
		m.list = m.list[1:]
	}
	m.list = append(m.list, e)
}

func (m *model) get(k Key, now time.Time) *Answer {
	i := m.find(k)
	if i < 0 {
		return nil
	}
	e := m.list[i]
	m.list = slices.Delete(m.list, i, i+1)
	if now.Sub(e.at) >= m.maxAge {
		return nil
	}
	m.list = append(m.list, e)
	return e.answer
}

// covers is what Invalidate promises: the resource, what is below it, and the collections above it.
func covers(resource, about string) bool {
	return resource == "" || about == resource || strings.HasPrefix(about, resource+"/") ||
		about != "" && strings.HasPrefix(resource, about+"/")
}

func TestStoreBehavesLikeTheModel(t *testing.T) {
	resources := []string{"", "call", "call/a", "call/a/log", "call/b", "call/ab", "agent/a", "agent"}
	renewed := 0
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // repeatable on purpose
		const maxBytes, maxAge = 20 << 10, time.Minute
		s, m := newStore(maxBytes, maxAge), &model{maxBytes: maxBytes, maxAge: maxAge}
		now := time.Now()
		type open struct {
			call      *Call[string, int]
			key       Key
			resource  string
			overtaken bool
		}
		var calls []*open
		for range 300 {
			k := keyFor(r.IntN(30))
			switch r.IntN(9) {
			case 0, 1, 2:
				resource := resources[r.IntN(len(resources))]
				calls = append(calls, &open{call: s.Begin(k, resource), key: k, resource: resource})
			case 3, 4, 5:
				if len(calls) == 0 {
					continue
				}
				i := r.IntN(len(calls))
				o, size := calls[i], 700*r.IntN(4)
				if r.IntN(20) == 0 {
					size = maxBytes
				}
				a, ok := o.call.Take(response(size), nil)
				require.True(t, ok)
				require.Equal(t, answerOf(t, size), a)
				if a == o.call.last {
					renewed++
				}
				calls = slices.Delete(calls, i, i+1)
				m.drop(func(e modelEntry) bool { return now.Sub(e.at) >= maxAge }) // the store has lost them at the next read, at the latest
				s.Sweep(now)
				require.Equal(t, o.overtaken, o.call.overtaken())
				kept := finish(s, o.call, a, now)
				require.Equal(t, !o.overtaken && a.Size()+int64(len(o.key)) <= maxBytes, kept)
				if !o.overtaken {
					m.put(o.key, o.resource, a, now)
				}
			case 6:
				got, age, ok := s.Get(k, now)
				want := m.get(k, now)
				require.Equal(t, want != nil, ok)
				require.Same(t, want, got)
				require.Less(t, age, maxAge)
			case 7:
				resource := resources[r.IntN(len(resources))]
				if resource == "" && r.IntN(4) > 0 {
					s.Drop(k)
					m.drop(func(e modelEntry) bool { return e.key == string(k) })
					continue
				}
				s.Invalidate(resource)
				m.drop(func(e modelEntry) bool { return covers(resource, e.resource) })
				for _, o := range calls {
					o.overtaken = o.overtaken || covers(resource, o.resource)
				}
			case 8:
				now = now.Add(time.Duration(r.IntN(10)) * time.Second)
			}
			m.drop(func(e modelEntry) bool { return now.Sub(e.at) >= maxAge })
			s.Sweep(now)
			st := s.Stats()
			require.Equal(t, len(m.list), st.Entries)
			require.Equal(t, m.bytes(), st.Bytes)
			require.LessOrEqual(t, st.Bytes, int64(maxBytes))
			require.Equal(t, len(calls), s.Calls())
		}
		for _, o := range calls {
			finish(s, o.call, nil, now)
		}
		s.Invalidate("")
		requireEmpty(t, s)
	}
	require.Greater(t, renewed, 100, "the same answer came again")
}

// requireEmpty looks for anything that a store may have kept of what is gone.
func requireEmpty(t *testing.T, s *testStore) {
	t.Helper()
	require.Zero(t, s.Stats().Entries)
	require.Zero(t, s.Stats().Bytes)
	require.Empty(t, s.entries)
	require.Zero(t, s.recent.Len())
	require.Zero(t, s.order.Len())
	require.Empty(t, s.root.children)
	require.Zero(t, s.root.entries.Len())
	require.Zero(t, s.root.calls)
}

func TestResourcesAreForgottenWithWhatIsAboutThem(t *testing.T) {
	s := newStore(-1, time.Minute)
	now := time.Now()
	for i := range 100 {
		r := s.Begin(keyFor(i), fmt.Sprintf("a/%d/b/%d", i%7, i))
		require.True(t, finish(s, r, answerOf(t, 1), now))
	}
	require.Len(t, s.root.children, 1)
	s.Sweep(now.Add(time.Minute))
	requireEmpty(t, s)
	s.Invalidate("a/1/b/1")
	requireEmpty(t, s)
}

func TestTheSameAnswerIsNotCopied(t *testing.T) {
	now := time.Now()
	full := func() *http.Response {
		resp := response(10)
		resp.Header = http.Header{"A": {"1", "2"}, "B": {"3"}}
		return resp
	}
	s := newStore(-1, time.Minute)
	first := s.Begin(keyFor(1), "call/abc")
	a, ok := first.Take(full(), nil)
	require.True(t, ok)
	require.True(t, finish(s, first, a, now))
	before := s.Stats()

	r := s.Begin(keyFor(1), "call/abc")
	same, ok := r.Take(full(), nil)
	require.True(t, ok)
	require.Same(t, a, same)
	require.True(t, finish(s, r, same, now.Add(time.Second)))
	_, age, ok := s.Get(keyFor(1), now.Add(3*time.Second))
	require.True(t, ok)
	require.Equal(t, 2*time.Second, age)
	require.Equal(t, before.Bytes, s.Stats().Bytes)
	require.Equal(t, before.Entries, s.Stats().Entries)

	r = s.Begin(keyFor(1), "call/abc")
	for name, change := range map[string]func(*http.Response){
		"value":       func(resp *http.Response) { resp.Header["B"][0] = "4" },
		"more values": func(resp *http.Response) { resp.Header.Add("B", "4") },
		"order":       func(resp *http.Response) { resp.Header["A"] = []string{"2", "1"} },
		"name":        func(resp *http.Response) { delete(resp.Header, "B"); resp.Header["C"] = []string{"3"} },
		"fewer":       func(resp *http.Response) { delete(resp.Header, "B") },
		"more":        func(resp *http.Response) { resp.Header["C"] = nil },
		"nil":         func(resp *http.Response) { resp.Header = nil },
		"body":        func(resp *http.Response) { resp.Body = body.NewHeld([]byte("0123456789")) },
		"length":      func(resp *http.Response) { resp.Body = body.NewHeld(make([]byte, 11)) },
		"status":      func(resp *http.Response) { resp.StatusCode = http.StatusAccepted },
		"text":        func(resp *http.Response) { resp.Status = "200 fine" },
		"protocol":    func(resp *http.Response) { resp.Proto = "HTTP/2.0" },
		"major":       func(resp *http.Response) { resp.ProtoMajor = 2 },
		"minor":       func(resp *http.Response) { resp.ProtoMinor = 1 },
		"said length": func(resp *http.Response) { resp.ContentLength = 10 },
		"unpacked":    func(resp *http.Response) { resp.Uncompressed = true },
		"close":       func(resp *http.Response) { resp.Close = true },
		"encoding":    func(resp *http.Response) { resp.TransferEncoding = []string{"chunked"} },
		"trailer":     func(resp *http.Response) { resp.Trailer = http.Header{"T": {"1"}} },
	} {
		resp := full()
		change(resp)
		other, ok := r.Take(resp, nil)
		require.True(t, ok, name)
		require.NotSame(t, a, other, name)
	}
	for name, change := range map[string]func(*http.Response){
		"no-store": func(resp *http.Response) { resp.Header["Cache-Control"] = []string{"no-store"} },
		"vary":     func(resp *http.Response) { resp.Header["Vary"] = []string{"X"} },
		"stream":   func(resp *http.Response) { resp.Body = http.NoBody },
	} {
		resp := full()
		change(resp)
		_, ok := r.Take(resp, nil)
		require.False(t, ok, name)
	}
	finish(s, r, nil, now)
}

// An answer is about the resource that its read named last.
func TestAnAnswerFollowsTheResourceOfItsRead(t *testing.T) {
	s := newStore(-1, time.Minute)
	for _, resource := range []string{"call/a", "agent", "/agent/", "", "call", "call//a"} {
		for range 2 {
			r := s.Begin(keyFor(1), resource)
			a, ok := r.Take(response(1), nil)
			require.True(t, ok)
			require.True(t, finish(s, r, a, time.Now()))
		}
		require.Equal(t, 1, s.Stats().Entries)
		if resource != "" {
			s.Invalidate("other")
			require.Equal(t, 1, s.Stats().Entries, resource)
			s.Invalidate(resource)
			require.Zero(t, s.Stats().Entries, resource)
			requireEmpty(t, s)
		}
	}
}

// keyOf makes a key that can be compared, with a maker of its own and with one that has made others before.
func keyOf(operation, method string, req *http.Request, headers []string, body []byte) string {
	keys := NewKeys(headers)
	k := keys.Of(nil, operation, method, req, body)
	if again := keys.Of(make([]byte, 7, 300), operation, method, req, body); !bytes.Equal(k, again) {
		panic("the same read has two keys")
	}
	return string(k)
}

func TestKeysOfDifferentRequestsDiffer(t *testing.T) {
	request := func(url string) *http.Request {
		req, err := http.NewRequest(http.MethodGet, url, nil)
		require.NoError(t, err)
		return req
	}
	seen := map[string]string{}
	for _, url := range []string{
		"http://h/p", "http://h/p?a", "http://h/p?a=", "http://h/p?a=1", "http://h/p?a=1&a=2", "http://h/p?a=2&a=1", "http://h/p?a=1&b=2",
		"http://h/p?a=1&b=2&", "http://h/p?a=1%26b=2", "http://h/p%2f", "http://h/p/", "http://h/pa", "http://u@h/p", "http://u:@h/p", "https://h/p",
	} {
		k := keyOf("op", "GET", request(url), nil, nil)
		require.Empty(t, seen[k], url)
		seen[k] = url
	}
	one := func(op, method, body string) string {
		return keyOf(op, method, request("http://h/p"), nil, []byte(body))
	}
	require.NotEqual(t, one("ab", "c", ""), one("a", "bc", ""))
	require.NotEqual(t, one("a", "b", "1"), one("a", "b", "2"))
	long := strings.Repeat("x", inlineBody+1)
	sum := sha256.Sum256([]byte(long))
	bodies := map[string]bool{}
	for _, text := range []string{"", "x", "\x00", "\x01", long[1:], long, long + "x", string(sum[:]), "\x01" + string(sum[:])} {
		bodies[one("a", "b", text)] = true
	}
	require.Len(t, bodies, 9)
	rare := map[string]bool{}
	for _, change := range []func(*http.Request){
		func(*http.Request) {},
		func(req *http.Request) { req.Host = "other" },
		func(req *http.Request) { req.Host = "" },
		func(req *http.Request) { req.URL.Host = "other" },
		func(req *http.Request) { req.URL.Opaque = "p" },
		func(req *http.Request) { req.URL.RawPath = "/%70" },
		func(req *http.Request) { req.URL.User = url.User("") },
		func(req *http.Request) { req.URL.User, req.Host = url.User("other"), "" },
	} {
		req := request("http://h/p")
		change(req)
		rare[keyOf("op", "GET", req, nil, nil)] = true
	}
	require.Len(t, rare, 8)
	require.Equal(t, keyOf("", "", request("http://h/p?b=1&a=1&c=3"), nil, nil), keyOf("", "", request("http://h/p?c=3&a=1&b=1"), nil, nil))

	many := make([]string, 100)
	for i := range many {
		many[i] = fmt.Sprintf("p%d=%s", i, strings.Repeat("x", 50))
	}
	sorted := keyOf("", "", request("http://h/p?"+strings.Join(many, "&")), nil, nil)
	rand.Shuffle(len(many), func(i, j int) { many[i], many[j] = many[j], many[i] })
	require.Equal(t, sorted, keyOf("", "", request("http://h/p?"+strings.Join(many, "&")), nil, nil))
}

func TestHeadersOfTheKeyCannotRunIntoEachOther(t *testing.T) {
	key := func(h http.Header) string {
		req, err := http.NewRequest(http.MethodGet, "http://h/p", nil)
		require.NoError(t, err)
		req.Header = h
		return keyOf("", "", req, []string{"A", "B"}, nil)
	}
	keys := map[string]bool{}
	for _, h := range []http.Header{
		{}, {"A": {""}}, {"B": {""}}, {"A": {"x"}}, {"B": {"x"}}, {"A": {"x", "y"}}, {"A": {"y", "x"}}, {"A": {"x"}, "B": {"y"}}, {"A": {"xy"}}, {"A": {"", ""}},
	} {
		keys[key(h)] = true
	}
	require.Len(t, keys, 10)
	require.Equal(t, key(http.Header{}), key(nil))
	require.Equal(t, key(http.Header{}), key(http.Header{"A": nil}))
	require.Equal(t, key(http.Header{"A": {"x"}}), key(http.Header{"A": {"x"}, "C": {"z"}}))
}

func TestManyHeadersOfTheKey(t *testing.T) {
	names := make([]string, 40)
	h := http.Header{}
	for i := range names {
		names[i] = fmt.Sprintf("X-%d", i)
		h[names[i]] = []string{fmt.Sprint(i)}
	}
	key := func(h http.Header) string {
		return keyOf("", "", &http.Request{URL: &url.URL{}, Header: h}, names, nil)
	}
	for range 20 { // a map is walked in another order each time
		require.Equal(t, key(h), key(h.Clone()))
	}
	for _, name := range names {
		without := h.Clone()
		delete(without, name)
		require.NotEqual(t, key(h), key(without))
	}
}

func TestAnAnswerWithManyHeadersIsCopiedWhole(t *testing.T) {
	h, trailer := http.Header{}, http.Header{"T": {"1"}}
	for i := range 3 * room {
		h.Add(fmt.Sprintf("X-%d", i/2), fmt.Sprint(i))
	}
	a, ok := Take(&http.Response{Header: h, Trailer: trailer, Body: body.NewHeld([]byte("x"))}, nil)
	require.True(t, ok)
	resp := a.Response(nil, true, Field{"Age", "1"}, Field{"X-0", "replaced"})
	require.Equal(t, "1", resp.Header.Get("Age"))
	require.Equal(t, []string{"replaced"}, resp.Header["X-0"])
	resp.Header.Del("Age")
	resp.Header["X-0"] = h["X-0"]
	require.Equal(t, h, resp.Header)
	require.Equal(t, trailer, resp.Trailer)
	resp.Header["X-1"][0], resp.Trailer["T"][0] = "changed", "changed"
	again := a.Response(nil, false)
	require.Equal(t, h, again.Header)
	require.Equal(t, trailer, again.Trailer)
}

// What work returns is encoded only when it is not what it was last time, and always when that cannot be told.
func TestTheSameValueIsNotEncodedAgain(t *testing.T) {
	type word string
	encoded := 0
	respond := func(v any) *http.Response {
		held := body.OfValue(v, func(v any) ([]byte, error) {
			encoded++
			return json.Marshal(v)
		})
		return &http.Response{Body: &held}
	}
	for _, c := range []struct {
		v     any
		again int // times that it is encoded when it comes again
	}{
		{1, 0}, {uint8(1), 0}, {"one", 0}, {word("one"), 1}, {true, 0},
		{0.0, 1}, {[]int{1}, 1}, {[1]int{1}, 1}, {struct{ A int }{1}, 1}, {new(int), 1}, {nil, 1},
	} {
		s := newStore(-1, -1)
		call := s.Begin(keyFor(1), "")
		a, ok := call.Take(respond(c.v), nil)
		require.True(t, ok)
		require.True(t, finish(s, call, a, time.Now()))
		call, encoded = s.Begin(keyFor(1), ""), 0
		same, ok := call.Take(respond(c.v), nil)
		require.True(t, ok)
		require.Same(t, a, same, "%T", c.v)
		require.Equal(t, c.again, encoded, "%T", c.v)
		for _, other := range []any{2, uint16(1), "two", word("two"), "1", false, math.Copysign(0, -1)} {
			got, ok := call.Take(respond(other), nil)
			require.True(t, ok)
			want, err := json.Marshal(other)
			require.NoError(t, err)
			require.Equal(t, string(want), string(got.body), "%T after %T", other, c.v)
		}
		_, ok = call.Take(respond(math.NaN()), nil)
		require.False(t, ok, "it does not encode")
		finish(s, call, nil, time.Time{})
	}
}

func TestAnAnswerThatFillsTheStoreIsKept(t *testing.T) {
	now, a := time.Now(), answerOf(t, 100)
	for room, kept := range map[int64]bool{0: true, -1: false} {
		s := newStore(a.Size()+int64(len(keyFor(1)))+room, time.Hour)
		require.Equal(t, kept, finish(s, s.Begin(keyFor(1), "call"), a, now))
	}
}

func TestAnAnswerThatAWriteHasOvertakenIsCounted(t *testing.T) {
	s := newStore(-1, time.Hour)
	call := s.Begin(keyFor(1), "call/abc")
	s.Invalidate("call/abc")
	require.False(t, finish(s, call, answerOf(t, 1), time.Now()))
	require.Equal(t, uint64(1), s.Stats().Invalidated)
}

// The wait after failures is that of failures in a row, and there is nothing to renew where nothing is kept.
func TestARefreshThatWorkedForgetsTheFailuresBefore(t *testing.T) {
	s, now, k := newStore(-1, time.Hour), time.Now(), keyFor(1)
	require.False(t, s.BeginRefresh(k, now))
	s.EndRefresh(k, now, true)
	renew := func() { finish(s, s.Begin(k, "call"), answerOf(t, 1), now) }
	renew()
	fail := func() (wait time.Duration) {
		require.True(t, s.BeginRefresh(k, now))
		require.False(t, s.BeginRefresh(k, now), "one at a time")
		s.EndRefresh(k, now, true)
		for !s.BeginRefresh(k, now.Add(wait)) {
			wait += time.Second
		}
		s.EndRefresh(k, now.Add(wait), false)
		now = now.Add(wait)
		return wait
	}
	for _, seconds := range []float64{1, 2, 4, 8, 16, 32, 60, 60} {
		require.Equal(t, seconds, fail().Seconds()) //nolint:testifylint // whole numbers
	}
	require.True(t, s.BeginRefresh(k, now))
	renew() // by the refresh
	require.False(t, s.BeginRefresh(k, now), "it is not over")
	s.EndRefresh(k, now, false)
	require.Equal(t, time.Second, fail())
}

func TestWhatAnAnswerVariesBy(t *testing.T) {
	for vary, ok := range map[string]bool{"": true, "Accept": true, "accept, ,": true, "Accept, X-Other": false, "*": false, " , ": true} {
		resp := response(1)
		resp.Header = http.Header{"Vary": {vary}}
		_, got := Take(resp, []string{"Accept"})
		require.Equal(t, ok, got, vary)
	}
}

// Who shares a call gets the cookie that it brought; later it would undo newer ones.
func TestACookieIsSetOnce(t *testing.T) {
	resp := response(1)
	resp.Header = http.Header{"Set-Cookie": {"a=1"}}
	a, ok := Take(resp, nil)
	require.True(t, ok)
	require.Equal(t, []string{"a=1"}, a.Response(nil, false).Header["Set-Cookie"])
	require.Empty(t, a.Response(nil, true).Header["Set-Cookie"])
}

// An answer that is dropped counts, and its resource is forgotten with it, also by a write below that nobody has read.
func TestADroppedAnswerLeavesNothingBehind(t *testing.T) {
	s, now := newStore(-1, time.Hour), time.Now()
	require.True(t, finish(s, s.Begin(keyFor(1), "call"), answerOf(t, 1), now))
	s.Invalidate("call/abc")
	require.Equal(t, uint64(1), s.Stats().Invalidated)
	requireEmpty(t, s)
	require.True(t, finish(s, s.Begin(keyFor(1), "call"), answerOf(t, 1), now))
	s.Drop(keyFor(1))
	s.Drop(keyFor(1))
	require.Equal(t, uint64(2), s.Stats().Invalidated)
	requireEmpty(t, s)
}
