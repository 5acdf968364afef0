package resilience

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

const correctedBody = `{"from_number":"+15550009999","to_number":"+15550003333"}`

// Another request under the key of a waiting letter is refused, whether it would work or not; the letter's own is sent.
func TestLetter_AnotherRequestUnderTheKeyOfALetter(t *testing.T) {
	for name, c := range map[string]struct{ first, method, path, body string }{
		"another body":   {http.MethodPost, http.MethodPost, "/a", correctedBody},
		"another path":   {http.MethodPut, http.MethodPut, "/b", dialBody},
		"another method": {http.MethodPut, http.MethodPatch, "/a", dialBody},
	} {
		for _, down := range []bool{true, false} {
			t.Run(fmt.Sprint(name, " down ", down), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { anotherUnderTheKey(t, c.first, c.method, c.path, c.body, down) })
			})
		}
	}
}

func anotherUnderTheKey(t *testing.T, first, method, path, body string, down bool) {
	broken := true
	s := newStack(t, Config{Retry: RetryConfig{Off: true}})
	var sent []string
	rt := s.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
		if broken {
			return nil, MarkNotSent(io.EOF)
		}
		b, err := io.ReadAll(req.Body)
		sent = append(sent, req.Method+" "+req.URL.Path+" "+string(b))
		return reply(200, "{}"), err
	}))
	send := func(method, path, body string) error {
		req, err := http.NewRequestWithContext(WithIdempotencyKey(t.Context(), "k"), method, "http://h"+path, strings.NewReader(body))
		require.NoError(t, err)
		_, err = rt.RoundTrip(req)
		return err
	}
	require.ErrorIs(t, send(first, "/a", dialBody), ErrParked)
	broken = down
	err := send(method, path, body)
	require.ErrorIs(t, err, ErrKeyReused)
	require.True(t, NotSent(err))
	require.Empty(t, sent)
	broken = false
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	require.NoError(t, s.Run(ctx))
	closeStack(t, s)
	require.Equal(t, []string{first + " /a " + dialBody}, sent)
}

// Two writes of one key that are under way together, and differ.
func TestLetter_TwoWritesOfOneKeyUnderWayTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down := true
		sent := map[string]int{}
		s := newStack(t, Config{Retry: RetryConfig{Off: true}})
		rt := s.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			if down {
				time.Sleep(time.Second)
				return nil, MarkNotSent(io.EOF)
			}
			b, _ := io.ReadAll(req.Body)
			sent[string(b)]++
			return reply(200, "{}"), nil
		}))
		put := func(body string) error {
			req, _ := http.NewRequestWithContext(WithIdempotencyKey(t.Context(), "k"), http.MethodPut, "http://h/agent/1", strings.NewReader(body))
			_, err := rt.RoundTrip(req)
			return err
		}
		errs := map[string]chan error{"a": make(chan error), "b": make(chan error)}
		for body := range errs {
			go func() { errs[body] <- put(body) }()
		}
		a, b := <-errs["a"], <-errs["b"]
		down = false
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		require.NoError(t, s.Run(ctx))
		closeStack(t, s)
		for body, err := range map[string]error{"a": a, "b": b} {
			if sent[body] == 0 {
				require.NotErrorIs(t, err, ErrParked)
				require.ErrorIs(t, err, ErrKeyReused)
			}
		}
		require.Len(t, sent, 1)
	})
}

// A call with the key of a letter, to another of the hosts that share an address, is another write.
func TestLetter_IsNotTakenForAWriteToAnotherHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down := true
		var hosts []string
		s := newStack(t, Config{Retry: RetryConfig{Off: true}})
		rt := s.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			if down {
				return nil, MarkNotSent(io.EOF)
			}
			hosts = append(hosts, req.Host)
			return reply(201, "{}"), nil
		}))
		post := func(host string) error {
			req, _ := http.NewRequestWithContext(WithIdempotencyKey(t.Context(), "k"), http.MethodPost, "http://gateway/v2/calls", strings.NewReader("{}"))
			req.Host = host
			_, err := rt.RoundTrip(req)
			return err
		}
		require.ErrorIs(t, post("one"), ErrParked)
		down = false
		err := post("two")
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		require.NoError(t, s.Run(ctx))
		closeStack(t, s)
		require.ErrorIs(t, err, ErrKeyReused)
		require.Equal(t, []string{"one"}, hosts, "the caller was told that a letter owns this write")
	})
}

func letterOfAll() Letter {
	return Letter{
		ID: "id", Operation: "op", Key: "k", First: time.Now(), Last: time.Now(), Next: time.Now(), Method: "POST", URL: "http://h/x", Host: "v", Body: []byte(`{"a":1,"b":2}`),
		Header: http.Header{"A": {"1"}},
	}
}

// What makes a call another write than that of the letter with its key.
func TestLetter_IsTheSameWriteAsACall(t *testing.T) {
	for name, c := range map[string]struct {
		edit  func(*Letter)
		whole bool
		want  bool
	}{
		"nothing":               {func(*Letter) {}, true, true},
		"its body is not whole": {func(*Letter) {}, false, false},
		"operation":             {func(l *Letter) { l.Operation = "other" }, true, false},
		"method":                {func(l *Letter) { l.Method = "PUT" }, true, false},
		"URL":                   {func(l *Letter) { l.URL = "http://h/y" }, true, false},
		"a user in the URL":     {func(l *Letter) { l.URL = "http://u:p@h/x" }, true, true},
		"host":                  {func(l *Letter) { l.Host = "w" }, true, false},
		"body":                  {func(l *Letter) { l.Body = []byte(`{"a":1,"b":3}`) }, true, false},
		"order of members":      {func(l *Letter) { l.Body = []byte(`{"b":2,"a":1}`) }, true, true},
		"not JSON":              {func(l *Letter) { l.Body = []byte(`{"a":1`) }, true, false},
		"header":                {func(l *Letter) { l.Header = http.Header{"Authorization": {"x"}} }, true, true},
		"redacted":              {func(l *Letter) { l.Redacted, l.Body = true, nil }, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			l, other := letterOfAll(), letterOfAll()
			c.edit(&other)
			before := other.Header.Clone()
			require.Equal(t, c.want, l.sameWrite(other, c.whole))
			require.Equal(t, before, other.Header, "it is the caller's")
			if other.Redacted {
				require.Equal(t, c.want, other.sameWrite(l, true))
			}
		})
	}
	a, b := Letter{Body: []byte("x")}, Letter{Body: []byte("y")}
	require.False(t, a.sameWrite(b, true), "neither is JSON")
}

// A letter whose request Redact has changed in any part of it is not sent by whoever imports it.
func TestLetter_IsRedactedByAnyChangeOfItsRequest(t *testing.T) {
	for name, edit := range map[string]func(*Letter){
		"key":          func(l *Letter) { l.Key = "" },
		"operation":    func(l *Letter) { l.Operation = "other" },
		"method":       func(l *Letter) { l.Method = "PUT" },
		"URL":          func(l *Letter) { l.URL = "http://h/" },
		"host":         func(l *Letter) { l.Host = "" },
		"body":         func(l *Letter) { l.Body = nil },
		"header":       func(l *Letter) { l.Header = http.Header{"A": {"2"}} },
		"header name":  func(l *Letter) { l.Header = http.Header{"B": {"1"}} },
		"header, more": func(l *Letter) { l.Header.Set("B", "1") },
	} {
		t.Run(name, func(t *testing.T) {
			d := mustDLQ(t, DLQConfig{Redact: edit})
			l := letterOfAll()
			require.NoError(t, d.redact(&l))
			require.True(t, l.Redacted)
			require.NotEmpty(t, l.Key)
		})
	}
	d := mustDLQ(t, DLQConfig{Redact: func(l *Letter) { l.ID, l.Cause = "other", "" }})
	l := letterOfAll()
	require.NoError(t, d.redact(&l))
	require.Equal(t, []any{"id", "k", false}, []any{l.ID, l.Key, l.Redacted})
}

func TestLetter_AHeaderThatTookThePlaceOfOneWithoutAValueIsAnotherRequest(t *testing.T) {
	with := func(h http.Header) *Letter { return &Letter{Key: "k", Operation: "op", Header: h} }
	before := with(http.Header{"User-Agent": {}})
	require.True(t, sameRequest(before, with(http.Header{"User-Agent": {}})))
	require.False(t, sameRequest(before, with(http.Header{"X-Tenant": {"b"}})))
	require.False(t, sameRequest(with(http.Header{"X-Tenant": {"a"}}), with(http.Header{"X-Tenant": {"b"}})))
}
