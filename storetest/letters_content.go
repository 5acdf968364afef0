package storetest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
)

// fullLetter is a letter in which no field is zero that is stored.
func fullLetter(t *testing.T, n int) resilience.Letter {
	t.Helper()
	var l resilience.Letter
	fill(t, reflect.ValueOf(&l).Elem(), "Letter", n)
	l.ID = name("letter", n)
	return l
}

// requireSame compares field by field, and names the one that got lost.
func (s *letterSuite) requireSame(t *testing.T, path string, want, got reflect.Value) {
	t.Helper()
	if at, ok := want.Interface().(time.Time); ok {
		bt, _ := got.Interface().(time.Time)
		require.Equal(t, at.IsZero(), bt.IsZero(), "%s: the zero time", path)
		require.LessOrEqual(t, bt.Sub(at).Abs(), s.precision, "%s: %v became %v", path, at, bt)
		return
	}
	switch want.Kind() {
	case reflect.Struct:
		for i := range want.NumField() {
			s.requireSame(t, path+"."+want.Type().Field(i).Name, want.Field(i), got.Field(i))
		}
	case reflect.Slice:
		if want.Type().Elem().Kind() == reflect.Uint8 {
			require.True(t, bytes.Equal(want.Bytes(), got.Bytes()), "%s: %d bytes became %d others", path, want.Len(), got.Len())
			return
		}
		require.Equal(t, want.Len(), got.Len(), path)
		for i := range want.Len() {
			s.requireSame(t, fmt.Sprintf("%s[%d]", path, i), want.Index(i), got.Index(i))
		}
	case reflect.Map:
		if want.Len() > 0 || got.Len() > 0 {
			require.Equal(t, want.Interface(), got.Interface(), path)
		}
	default:
		require.Equal(t, want.Interface(), got.Interface(), path)
	}
}

func (s *letterSuite) fields(t *testing.T) {
	st := s.start(t)
	for n := range 3 {
		l := fullLetter(t, n)
		st.put(l)
		s.requireAll(st, map[string]resilience.Letter{l.ID: l})
		other := fullLetter(t, n+100) // every field changes
		other.ID = l.ID
		st.put(other)
		s.requireAll(st, map[string]resilience.Letter{l.ID: other})
		least := resilience.Letter{ID: l.ID} // no field stays behind
		st.put(least)
		s.requireAll(st, map[string]resilience.Letter{l.ID: least})
		st.put(l)
		s.requireAll(st, map[string]resilience.Letter{l.ID: l})
		st.remove(l.ID)
	}
	for i := range reflect.TypeFor[resilience.Letter]().NumField() { // each field alone
		var l resilience.Letter
		v := reflect.ValueOf(&l).Elem().Field(i)
		fill(t, v, "Letter."+reflect.TypeFor[resilience.Letter]().Field(i).Name, i)
		l.ID = "alone"
		st.put(l)
		s.requireAll(st, map[string]resilience.Letter{l.ID: l})
	}
}

// scribbleLetter changes everything in a letter that is shared with its copies.
func scribbleLetter(l resilience.Letter) {
	clear(l.Body)
	clear(l.History)
	for name, values := range l.Header {
		clear(values)
		delete(l.Header, name)
	}
}

func (s *letterSuite) copiesIn(t *testing.T) {
	st := s.start(t)
	l := fullLetter(t, 1)
	st.put(l)
	s.requireSame(t, "the letter that was put", reflect.ValueOf(fullLetter(t, 1)), reflect.ValueOf(l))
	scribbleLetter(l)
	s.requireAll(st, map[string]resilience.Letter{l.ID: fullLetter(t, 1)})
}

func (s *letterSuite) copiesOut(t *testing.T) {
	st := s.start(t)
	want := fullLetter(t, 1)
	st.put(fullLetter(t, 1))
	for range 2 {
		require.NoError(t, st.Load(t.Context(), func(l resilience.Letter) error {
			scribbleLetter(l)
			return nil
		}))
		s.requireAll(st, map[string]resilience.Letter{want.ID: want})
	}
	kept := st.all()[want.ID]
	st.put(fullLetter(t, 2))
	st.remove(want.ID)
	for n := range 50 { // what was loaded does not change under whoever has it
		st.put(fullLetter(t, n+10))
	}
	s.requireSame(t, "Letter", reflect.ValueOf(want), reflect.ValueOf(kept))
}

func (s *letterSuite) ids(t *testing.T) {
	st := s.start(t)
	want := map[string]resilience.Letter{}
	for _, id := range []string{
		"a", "A", "ab", "a ", " a", "a\x00", "a\x00b", "\x00", "ü", "u\u0308", "日本", "\xff\xfe", "../a", "a/b", "a\\b", "%61", "a%00",
		"'", `"`, "a\nb", "*", "a?", "-", "_", ".", "..", "nil", "null", "0", "00", strings.Repeat("x", 255), strings.Repeat("x", 256),
		strings.Repeat("x", 1023) + "y", strings.Repeat("x", 1023) + "z",
	} {
		l := resilience.Letter{ID: id, Key: "key of " + id}
		st.put(l)
		want[id] = l
	}
	s.requireAll(st, want)
	for id := range want {
		st.remove(id)
		delete(want, id)
		if len(want)%5 == 0 {
			s.requireAll(st, want)
		}
	}
}

// oddBytes: what is sent again is what was to be sent, byte by byte.
func (s *letterSuite) oddBytes(t *testing.T) {
	st := s.start(t)
	want := map[string]resilience.Letter{}
	for i, text := range []string{"\xff\xfe", "\x00", "<&>\u2028", "a\x00b", "\r\n", "\ufffd", "\xc3(", "{\"a\":1}", strings.Repeat("é", 5000)} {
		l := fullLetter(t, i)
		l.Operation, l.Key, l.Method, l.URL, l.Host, l.Cause, l.Detail, l.ParkedReason = text, text, text, text, text, text, text, text
		l.Call.Operation, l.Call.Resource = text, text
		l.Header = http.Header{"X": {text, "", text}, text: {text}, "Y": {}}
		l.Header["Y"] = []string{""}
		l.Body = []byte(text)
		l.History[1].Cause, l.History[1].Detail = text, text
		st.put(l)
		want[l.ID] = l
	}
	s.requireAll(st, want)
}

func (s *letterSuite) largeBodies(t *testing.T) {
	st := s.start(t)
	random := rand.NewChaCha8([32]byte{1})
	want := map[string]resilience.Letter{}
	for i, size := range []int{1, 4095, 4096, 4097, 64 << 10, 64<<10 + 1, 1 << 20, 8<<20 + 1} {
		l := resilience.Letter{ID: name("letter", i), Body: make([]byte, size)}
		_, _ = random.Read(l.Body) // it never fails
		st.put(l)
		want[l.ID] = l
	}
	s.requireAll(st, want)
	for id, l := range want {
		l.Body = l.Body[:len(l.Body)/2]
		st.put(l)
		want[id] = l
	}
	s.requireAll(st, want)
}
