package resilience

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

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
