package canonical_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience/internal/canonical"
)

func TestJSON(t *testing.T) {
	for name, tt := range map[string]struct{ in, want string }{
		"null":                 {`null`, `null`},
		"booleans":             {` [ true , false ] `, `[true,false]`},
		"empty":                {` [ { } , [ ] , "" ] `, `[{},[],""]`},
		"space":                {"\t{\r\n \"a\" : 1 }\n", `{"a":1}`},
		"sorted":               {`{"b":1,"a":2,"":3}`, `{"":3,"a":2,"b":1}`},
		"sorted inside":        {`[{"b":{"d":1,"c":[{"z":0,"y":0}]},"a":2}]`, `[{"a":2,"b":{"c":[{"y":0,"z":0}],"d":1}}]`},
		"sorted by bytes":      {`{"é":1,"z":2,"Z":3,"aa":4,"a":5}`, `{"Z":3,"a":5,"aa":4,"z":2,"é":1}`},
		"sorted by meaning":    {`{"\u0062":1,"a":2,"\n":3,"!":4}`, `{"\n":3,"!":4,"a":2,"b":1}`},
		"arrays keep order":    {`[3,1,2]`, `[3,1,2]`},
		"every digit":          {`9007199254740993`, `9007199254740993`},
		"numbers as written":   {`[1,1.0,1e0,-0,0,10,1E+2,0.10]`, `[1,1.0,1e0,-0,0,10,1E+2,0.10]`},
		"beyond float64":       {`[1e400,-1e-400,123456789012345678901234567890]`, `[1e400,-1e-400,123456789012345678901234567890]`},
		"escapes do not count": {`"\u0041\/\u00e9\u003c"`, `"A/é<"`},
		"escapes that stay":    {`"\u0022\\\b\f\n\r\t\u000B\u001f\u0000"`, `"\"\\\b\f\n\r\t\u000b\u001f\u0000"`},
		"pairs":                {`"\ud83d\uDE00"`, `"😀"`},
		"NFC stays":            {`"\u00e9"`, "\"\u00e9\""},
		"NFD stays":            {`"e\u0301"`, "\"e\u0301\""},
		"U+FFFD is a letter":   {`"\ufffd"`, `"�"`},
		"no HTML":              {`"<&>"`, `"<&>"`},
		"line separators":      {`"\u2028"`, "\"\u2028\""},
		"names as values":      {`{"a":"a","b":"a"}`, `{"a":"a","b":"a"}`},
		"same name apart":      {`[{"a":1},{"a":1}]`, `[{"a":1},{"a":1}]`},
		"deep":                 {strings.Repeat("[", 256) + strings.Repeat("]", 256), strings.Repeat("[", 256) + strings.Repeat("]", 256)},
	} {
		t.Run(name, func(t *testing.T) {
			in := []byte(tt.in)
			got, err := canonical.JSON(in)
			require.NoError(t, err)
			require.Equal(t, tt.want, string(got))
			require.Equal(t, tt.in, string(in), "the document must not be changed")
			got, err = canonical.JSON(got)
			require.NoError(t, err)
			require.Equal(t, tt.want, string(got))
		})
	}
}

func TestJSONRefuses(t *testing.T) {
	for name, tt := range map[string]struct{ in, want string }{
		"nothing":                {``, "too early"},
		"only space":             {" \n", "too early"},
		"two documents":          {`1 2`, "follows"},
		"text after":             {`{} x`, "follows"},
		"a byte order mark":      {"\ufeff{}", "not JSON"},
		"same name":              {`{"a":1,"b":2,"a":1}`, "same name"},
		"same name, escaped":     {`{"a":1,"\u0061":1}`, "same name"},
		"same name inside":       {`[{"x":{"a":1,"a":2}}]`, "same name"},
		"same empty name":        {`{"":1,"":1}`, "same name"},
		"not UTF-8":              {"\"\xff\"", "UTF-8"},
		"not UTF-8, in a name":   {"{\"\xc3\x28\":1}", "UTF-8"},
		"surrogate as UTF-8":     {"\"\xed\xa0\x80\"", "UTF-8"},
		"cut UTF-8":              {"\"\xe2\x82", "UTF-8"},
		"half a pair":            {`"\ud83d"`, "surrogate"},
		"the other half":         {`"\ude00"`, "surrogate"},
		"two first halves":       {`"\ud83d\ud83d"`, "surrogate"},
		"half, then something":   {`"\ud83dA"`, "surrogate"},
		"half, then an escape":   {`"\ud83d\n"`, "surrogate"},
		"half, then a letter":    {`"\ud83d\u0041"`, "surrogate"},
		"too deep":               {strings.Repeat("[", 257) + strings.Repeat("]", 257), "deeper"},
		"too deep, in objects":   {strings.Repeat(`{"a":`, 1<<20), "deeper"},
		"NaN":                    {`NaN`, "not JSON"},
		"infinite":               {`-Infinity`, "not JSON"},
		"leading zero":           {`01`, "follows"},
		"leading plus":           {`+1`, "not JSON"},
		"hexadecimal":            {`0x1`, "follows"},
		"no digit":               {`-`, "too early"},
		"no digit after a point": {`1.`, "too early"},
		"no digit before it":     {`.5`, "not JSON"},
		"no exponent":            {`1e+`, "too early"},
		"control character":      {"\"a\nb\"", "control"},
		"NUL":                    {"\x00", "not JSON"},
		"NUL in a string":        {"\"\x00\"", "control"},
		"bad escape":             {`"\x41"`, "not JSON"},
		"bad hex":                {`"\u00g0"`, "not JSON"},
		"cut escape":             {`"\`, "too early"},
		"cut hex":                {`"\u00`, "too early"},
		"open string":            {`"a`, "too early"},
		"open string, escaped":   {`"\na`, "too early"},
		"open array":             {`[1`, "too early"},
		"open object":            {`{"a":1`, "too early"},
		"comma at the end":       {`[1,]`, "not JSON"},
		"comma at the start":     {`[,1]`, "not JSON"},
		"no comma":               {`[1 2]`, "not JSON"},
		"object, no comma":       {`{"a":1 "b":2}`, "not JSON"},
		"object, last comma":     {`{"a":1,}`, "not JSON"},
		"no colon":               {`{"a" 1}`, "not JSON"},
		"no value":               {`{"a":}`, "not JSON"},
		"no name":                {`{1:1}`, "not JSON"},
		"bare name":              {`{a:1}`, "not JSON"},
		"wrong bracket":          {`[1}`, "not JSON"},
		"cut word":               {`tru`, "not JSON"},
		"long word":              {`nullx`, "follows"},
		"capital word":           {`True`, "not JSON"},
		"comment":                {`1 // one`, "follows"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := canonical.JSON([]byte(tt.in))
			require.ErrorContains(t, err, tt.want)
			require.Nil(t, got)
		})
	}
}

func TestErrorsDoNotQuoteTheDocument(t *testing.T) {
	const secret = "Rosalind"
	for _, in := range []string{
		`{"` + secret + `":1,"` + secret + `":2}`, `"` + secret, secret, `{"a":` + secret + `}`, `"` + secret + "\xff\"", `"` + secret + `\ud83d"`, `"x" ` + secret,
	} {
		_, err := canonical.JSON([]byte(in))
		require.Error(t, err)
		require.NotContains(t, err.Error(), secret)
	}
	for _, v := range []any{json.Number(secret), failing{errors.New(secret)}, json.RawMessage(secret), secret + "\xff"} {
		_, err := canonical.Marshal(v)
		require.Error(t, err)
		require.NotContains(t, err.Error(), secret)
	}
}

type failing struct{ err error }

func (f failing) MarshalJSON() ([]byte, error) { return nil, f.err }

func TestMarshal(t *testing.T) {
	type inner struct {
		Z int    `json:"z"`
		A string `json:"a,omitempty"`
	}
	same := []any{
		inner{Z: 1}, &inner{Z: 1}, map[string]int{"z": 1}, map[string]any{"z": int64(1)}, json.RawMessage(` { "z" : 1 } `), map[int]int(nil),
	}
	for _, v := range same[:5] {
		got, err := canonical.Marshal(v)
		require.NoError(t, err)
		require.Equal(t, `{"z":1}`, string(got))
	}
	for want, v := range map[string]any{
		`null`:                   nil,
		`9007199254740993`:       int64(9007199254740993),
		`18446744073709551615`:   uint64(math.MaxUint64),
		`"<&> é"`:                "<&> é",
		`"�"`:                    "�",
		`"\\ufffd"`:              `\ufffd`,
		`"AQI="`:                 []byte{1, 2},
		`"2026-11-23T14:00:00Z"`: time.Date(2026, 11, 23, 14, 0, 0, 0, time.UTC),
		`{"a":null}`:             map[string]*int{"a": nil},
		`1.0`:                    json.Number("1.0"),
	} {
		got, err := canonical.Marshal(v)
		require.NoError(t, err)
		require.Equal(t, want, string(got))
	}
}

func TestMarshalRefuses(t *testing.T) {
	type node struct{ Next *node }
	cycle := &node{}
	cycle.Next = cycle
	for name, tt := range map[string]struct {
		in   any
		want string
	}{
		"NaN":                  {math.NaN(), "no form for a value"},
		"+Inf":                 {[]any{math.Inf(1)}, "no form for a value"},
		"-Inf":                 {map[string]float32{"a": float32(math.Inf(-1))}, "no form for a value"},
		"a cycle":              {cycle, "no form for a value"},
		"a function":           {func() {}, "type func()"},
		"a channel":            {map[string]any{"a": make(chan int)}, "type chan int"},
		"a complex number":     {complex(1, 2), "type complex128"},
		"not UTF-8":            {"a\xff", "not UTF-8"},
		"not UTF-8, in a name": {map[string]int{"a\xff": 1}, "not UTF-8"},
		"not UTF-8, raw":       {json.RawMessage("\"\xff\""), "not UTF-8"},
		"the same name, raw":   {[]any{json.RawMessage(`{"a":1,"a":2}`)}, "same name"},
		"an error":             {failing{errors.New("x")}, "encoding as JSON failed"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := canonical.Marshal(tt.in)
			require.ErrorContains(t, err, tt.want)
			require.Nil(t, got)
		})
	}
	cause := errors.New("cause")
	_, err := canonical.Marshal(failing{cause})
	require.ErrorIs(t, err, cause)
}

// body is what a call to create a phone call looks like.
var body = []byte(`{"from_number":"+15550100001","to_number":"+15550100002","override_agent_id":"agent_7f3a","metadata":{"patient":"p-4711","appointment":{"id":90071992547409931,"at":"2026-11-23T14:00:00+01:00","notes":"Please be on time \u2013 the door\nis on the left"}},"retell_llm_dynamic_variables":{"name":"Ms. Example","doctor":"Dr. \"No\" Example","place":"Main Street 1","language":"en-US","practice":"Example Practice","reason":"yearly check","slot":"14:00","weekday":"Monday"},"custom_sip_headers":{"X-Trace":"abc","X-Account":"def"},"ignore_e164_validation":false}`)

func BenchmarkJSON(b *testing.B) {
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := canonical.JSON(body); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDecodeAndEncode is the way through the standard library, for comparison.
func BenchmarkDecodeAndEncode(b *testing.B) {
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		d := json.NewDecoder(bytes.NewReader(body))
		d.UseNumber()
		var v any
		if err := d.Decode(&v); err != nil {
			b.Fatal(err)
		}
		if _, err := json.Marshal(v); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMarshal(b *testing.B) {
	v := map[string]any{"from_number": "+15550100001", "to_number": "+15550100002", "metadata": map[string]any{"id": 4711}}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := canonical.Marshal(v); err != nil {
			b.Fatal(err)
		}
	}
}
