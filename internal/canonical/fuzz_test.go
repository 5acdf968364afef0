package canonical_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience/internal/canonical"
)

func addSeeds(add func(string)) {
	for _, s := range []string{
		`null`, `{"b":[1,1.0,{"y":null,"x":"\u0041\n"}],"a":9007199254740993}`, `{"a":1,"a":2}`, `"\ud83d\ude00"`, `"\ud83d"`, "\"\xff\"",
		`[[[]]]`, `{"":{"":""}}`, ` 1 `, `-0.0e-0`, `1 2`, `{"é":"e\u0301"}`, `"\u2028<>&\u007f"`, `[1e400,true,false]`, `"\`, `{"a"`,
	} {
		add(s)
	}
}

// FuzzJSON compares with a decoder of the standard library that keeps numbers as they are written.
func FuzzJSON(f *testing.F) {
	addSeeds(func(s string) { f.Add([]byte(s)) })
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := canonical.JSON(data)
		want, ok := reference(data)
		require.Equal(t, ok, err == nil, "%v", err)
		if err != nil {
			require.Nil(t, got)
			return
		}
		require.Equal(t, want, string(got))
		again, err := canonical.JSON(got)
		require.NoError(t, err)
		require.Equal(t, want, string(again))
	})
}

// FuzzDifferentValues holds that two documents are equal in canonical form exactly if they decode to the same value.
func FuzzDifferentValues(f *testing.F) {
	addSeeds(func(s string) { f.Add([]byte(s), []byte(s+" ")) })
	f.Add([]byte(`1`), []byte(`1.0`))
	f.Add([]byte(`{"a":null}`), []byte(`{}`))
	f.Add([]byte("\"\u00e9\""), []byte("\"e\u0301\""))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		ca, err := canonical.JSON(a)
		if err != nil {
			return
		}
		cb, err := canonical.JSON(b)
		if err != nil {
			return
		}
		va, err := decode(a)
		require.NoError(t, err)
		vb, err := decode(b)
		require.NoError(t, err)
		require.Equal(t, reflect.DeepEqual(va, vb), bytes.Equal(ca, cb))
	})
}

// FuzzOrder writes a document again with its members shuffled, other space and other escapes.
func FuzzOrder(f *testing.F) {
	addSeeds(func(s string) { f.Add([]byte(s), uint64(1)) })
	f.Fuzz(func(t *testing.T, data []byte, seed uint64) {
		want, err := canonical.JSON(data)
		if err != nil {
			return
		}
		v, err := decode(data)
		require.NoError(t, err)
		var b strings.Builder
		disorder(&b, v, rand.New(rand.NewPCG(seed, 0)))
		got, err := canonical.JSON([]byte(b.String()))
		require.NoError(t, err)
		require.Equal(t, string(want), string(got))
	})
}

// FuzzMarshal holds that different strings never meet, also those that are not UTF-8.
func FuzzMarshal(f *testing.F) {
	f.Add("a", "b", 0.0)
	f.Add("\xff", "\xfe", 1.5)
	f.Add("\ufffd", `\ufffd`, 1e21)
	f.Fuzz(func(t *testing.T, a, b string, n float64) {
		ca, errA := canonical.Marshal(map[string]any{a: n})
		cb, errB := canonical.Marshal(map[string]any{b: n})
		if utf8.ValidString(a) && utf8.ValidString(b) && n-n == 0 {
			require.NoError(t, errA)
			require.NoError(t, errB)
		}
		if errA == nil && errB == nil {
			require.Equal(t, a == b, bytes.Equal(ca, cb))
		}
	})
}

func decode(data []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	var v any
	err := d.Decode(&v)
	return v, err
}

// reference is the slow way to the canonical form; ok is false if there is none.
func reference(data []byte) (form string, ok bool) {
	if !json.Valid(data) || !utf8.Valid(data) || halfPair(data) {
		return "", false
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	if deep, doubled := inspect(d, 0); deep || doubled {
		return "", false
	}
	v, err := decode(data)
	if err != nil {
		return "", false
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return "", false
	}
	form = strings.TrimSuffix(b.String(), "\n")
	for _, r := range []rune{0x2028, 0x2029} { // which the standard library escapes, for JavaScript
		form = replaceEscape(form, fmt.Sprintf(`\u%04x`, r), string(r))
	}
	return form, true
}

// replaceEscape puts something in the place of an escape like \u2028, in a document that is JSON.
func replaceEscape(s, escape, with string) string {
	var b strings.Builder
	for i := 0; i < len(s); {
		switch {
		case i+len(escape) <= len(s) && strings.EqualFold(s[i:i+len(escape)], escape):
			b.WriteString(with)
			i += len(escape)
		case s[i] == '\\':
			b.WriteString(s[i : i+2])
			i += 2
		default:
			b.WriteByte(s[i])
			i++
		}
	}
	return b.String()
}

// halfPair finds an escaped surrogate without its other half: it is what the standard library turns into U+FFFD.
func halfPair(data []byte) bool {
	s := strings.ReplaceAll(replaceEscape(string(data), `\ufffd`, "x"), "\ufffd", "x")
	d := json.NewDecoder(strings.NewReader(s))
	d.UseNumber()
	for {
		token, err := d.Token()
		if err == io.EOF {
			return false
		}
		if err != nil {
			return true
		}
		if text, ok := token.(string); ok && strings.ContainsRune(text, utf8.RuneError) {
			return true
		}
	}
}

// inspect walks one value and looks for what canonical JSON refuses.
func inspect(d *json.Decoder, depth int) (deep, doubled bool) {
	token, err := d.Token()
	if err != nil {
		return true, true
	}
	bracket, ok := token.(json.Delim)
	if !ok {
		return false, false
	}
	if depth++; depth > 256 {
		return true, false
	}
	names := map[string]bool{}
	for d.More() {
		if bracket == '{' {
			name, _ := d.Token()
			text, _ := name.(string)
			doubled = doubled || names[text]
			names[text] = true
		}
		innerDeep, innerDoubled := inspect(d, depth)
		if innerDeep {
			return true, false
		}
		doubled = doubled || innerDoubled
	}
	_, _ = d.Token()
	return false, doubled
}

func disorder(b *strings.Builder, v any, r *rand.Rand) {
	space := func() { b.WriteString([]string{"", " ", "\n\t"}[r.IntN(3)]) }
	space()
	switch v := v.(type) {
	case map[string]any:
		names := make([]string, 0, len(v))
		for name := range v {
			names = append(names, name)
		}
		r.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
		b.WriteByte('{')
		for i, name := range names {
			if i > 0 {
				b.WriteByte(',')
			}
			disorder(b, name, r)
			b.WriteByte(':')
			disorder(b, v[name], r)
		}
		b.WriteByte('}')
	case []any:
		b.WriteByte('[')
		for i, item := range v {
			if i > 0 {
				b.WriteByte(',')
			}
			disorder(b, item, r)
		}
		b.WriteByte(']')
	case string:
		b.WriteByte('"')
		for _, c := range v {
			if c >= ' ' && c != '"' && c != '\\' && r.IntN(2) == 0 {
				b.WriteRune(c)
				continue
			}
			if c > 0xffff {
				b.WriteRune(c)
				continue
			}
			fmt.Fprintf(b, `\u%04X`, c)
		}
		b.WriteByte('"')
	default:
		text, _ := json.Marshal(v)
		b.Write(text)
	}
	space()
}
