package resilience_test

import (
	"encoding/json"
	"fmt"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
)

func deriveKey(t *testing.T, operation string, params any, scope ...string) string {
	t.Helper()
	key, err := resilience.DeriveKey(operation, params, scope...)
	require.NoError(t, err)
	require.Regexp(t, `^[A-Za-z0-9_-]{5,255}$`, key)
	return key
}

func TestI14_OneMeaningOneKey(t *testing.T) {
	type call struct {
		To   string         `json:"to_number"`
		From string         `json:"from_number"`
		Meta map[string]any `json:"metadata,omitempty"`
	}
	want := deriveKey(t, "op", call{To: "+15550100002", From: "+15550100001", Meta: map[string]any{"b": 1, "a": "é<"}})
	for name, params := range map[string]any{
		"pointer":    &call{To: "+15550100002", From: "+15550100001", Meta: map[string]any{"a": "é<", "b": 1}},
		"map":        map[string]any{"from_number": "+15550100001", "to_number": "+15550100002", "metadata": map[string]any{"a": "é<", "b": 1}},
		"raw":        json.RawMessage(`{"from_number":"+15550100001","metadata":{"a":"é<","b":1},"to_number":"+15550100002"}`),
		"bytes":      []byte(` {"metadata" : {"b":1, "a":"\u00e9\u003c"}, "to_number":"\u002b15550100002", "from_number":"+15550100001"} `),
		"raw inside": map[string]any{"from_number": "+15550100001", "to_number": "+15550100002", "metadata": json.RawMessage(`{"b":1,"a":"é<"}`)},
	} {
		require.Equal(t, want, deriveKey(t, "op", params), name)
	}
}

func TestI14_OtherMeaningOtherKey(t *testing.T) {
	seen := map[string]int{}
	all := []any{
		nil, []byte(`{}`), []byte(`[]`), []byte(`""`), []byte(`"null"`), []byte(`{"a":null}`), []byte(`{"a":{}}`), []byte(`{"a":1}`),
		[]byte(`{"a":1.0}`), []byte(`{"a":"1"}`), []byte(`{"a":9007199254740993}`), []byte(`{"a":9007199254740992}`),
		[]byte(`{"a":[1,2]}`), []byte(`{"a":[2,1]}`), []byte("{\"a\":\"\u00e9\"}"), []byte("{\"a\":\"e\u0301\"}"), []byte(`{"A":1}`),
	}
	for i, params := range all {
		key := deriveKey(t, "op", params)
		other, double := seen[key]
		require.False(t, double, "params %d and %d have the same key", i, other)
		seen[key] = i
	}
	require.NotEqual(t, deriveKey(t, "op", nil), deriveKey(t, "Op", nil))
}

func TestI14_NoClearMeaningNoKey(t *testing.T) {
	const secret = "+15550100002"
	for name, params := range map[string]any{
		"NaN":            map[string]float64{secret: math.NaN()},
		"infinite":       math.Inf(-1),
		"function":       func() {},
		"channel":        map[string]any{secret: make(chan int)},
		"same name":      []byte(`{"` + secret + `":1,"` + secret + `":1}`),
		"not UTF-8":      []byte("\"" + secret + "\xff\""),
		"string, bytes":  secret + "\xff",
		"half a pair":    []byte(`"` + secret + `\ud800"`),
		"two documents":  []byte(`1 "` + secret + `"`),
		"not JSON":       json.RawMessage(secret),
		"empty document": []byte{},
		"nil document":   json.RawMessage(nil),
		"bad number":     json.Number(secret),
	} {
		key, err := resilience.DeriveKey("op", params)
		require.Error(t, err, name)
		require.Empty(t, key, name)
		require.Contains(t, err.Error(), "op", name)
		require.NotContains(t, err.Error(), secret, name)
	}
	for _, operation := range []string{"", " \n"} {
		key, err := resilience.DeriveKey(operation, nil)
		require.ErrorContains(t, err, "operation is empty")
		require.Empty(t, key)
	}
}

func TestI15_TwoIntendedCallsAreToldApartByScope(t *testing.T) {
	params := map[string]string{"to_number": "+15550100002"}
	require.Equal(t, deriveKey(t, "op", params), deriveKey(t, "op", params), "another try of one intent")
	seen := map[string][]string{}
	for _, scope := range [][]string{
		nil, {""}, {"", ""}, {"2026-11-23"}, {"2026-11-24"}, {"reminder", "4711"}, {"4711", "reminder"}, {"reminder4711"}, {"reminder471", "1"},
		{"reminder", "4711", ""}, {"", "reminder", "4711"}, {"reminder:4711"}, {"reminder\x004711"},
	} {
		key := deriveKey(t, "op", params, scope...)
		require.Equal(t, key, deriveKey(t, "op", params, scope...))
		require.NotContains(t, seen, key, "scopes %q and %q have the same key", scope, seen[key])
		seen[key] = scope
	}
	require.NotEqual(t, deriveKey(t, "op", []byte(`"a"`)), deriveKey(t, `op"a"`, nil), "parts do not run together")
}

// A program that is updated must find the keys of what it has done already.
func TestI15_KeysStayTheSameAcrossVersions(t *testing.T) {
	params := []byte(`{"to_number":"+15550100002","from_number":"+15550100001","metadata":{"id":9007199254740993,"name":"é"}}`)
	require.Equal(t, "qwkT4155pozlNCpPIp3z-yAN6zXUwiN2HuZk1xThdjA", deriveKey(t, "create-phone-call", params, "reminder", "4711"))
	require.Equal(t, "7VvY2jTJE3XgoGe8QA-lXQ4sFnc90BSjd0PuJZPRZR4", deriveKey(t, "create-phone-call", nil))
}

func ExampleDeriveKey() {
	params := map[string]string{"from_number": "+15550100001", "to_number": "+15550100002"}
	monday, _ := resilience.DeriveKey("create-phone-call", params, "reminder", "2026-11-23")
	again, _ := resilience.DeriveKey("create-phone-call", params, "reminder", "2026-11-23")
	tuesday, _ := resilience.DeriveKey("create-phone-call", params, "reminder", "2026-11-24")
	fmt.Println(monday)
	fmt.Println("another try of Monday's call:", again == monday)
	fmt.Println("the call on Tuesday:", tuesday == monday)
	// Output:
	// Q8NXg3oe4RBCHqX1F4o4-tnjGNRn9o5RddY5slv6yzc
	// another try of Monday's call: true
	// the call on Tuesday: false
}

func FuzzDeriveKey(f *testing.F) {
	f.Add("create-phone-call", []byte(`{"a":1}`), "reminder", "4711")
	f.Add("", []byte(`{`), "", "")
	f.Fuzz(func(t *testing.T, operation string, params []byte, a, b string) {
		key, err := resilience.DeriveKey(operation, params, a, b)
		if err != nil {
			require.Empty(t, key)
			return
		}
		require.Regexp(t, `^[A-Za-z0-9_-]{43}$`, key)
		for _, scope := range [][]string{nil, {a}, {b, a}, {a + b}, {a, b, ""}, {a + "x", b}} {
			other, err := resilience.DeriveKey(operation, params, scope...)
			require.NoError(t, err)
			if len(scope) != 2 || scope[0] != a || scope[1] != b {
				require.NotEqual(t, key, other)
			}
		}
	})
}

func BenchmarkDeriveKey(b *testing.B) {
	params := map[string]any{"from_number": "+15550100001", "to_number": "+15550100002", "metadata": map[string]any{"id": 4711}}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := resilience.DeriveKey("create-phone-call", params, "reminder", "4711"); err != nil {
			b.Fatal(err)
		}
	}
}
