package retell

import (
	"bytes"
	"encoding/csv"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
)

// column of testdata/endpoints.tsv.
const (
	colMethod   = 2
	colPath     = 3
	colEffect   = 8
	colClass    = 9
	colPriority = 10
	colTimeout  = 11
	colStatuses = 12
)

func rows(t testing.TB) [][]string {
	t.Helper()
	data, err := os.ReadFile("../testdata/endpoints.tsv")
	require.NoError(t, err)
	r := csv.NewReader(bytes.NewReader(data))
	r.Comma, r.LazyQuotes = '\t', true
	all, err := r.ReadAll()
	require.NoError(t, err)
	require.Len(t, all, 115)
	return all[1:]
}

// fill puts ids in the place of the names in braces.
func fill(path string) string {
	var b strings.Builder
	for i, part := range strings.Split(path, "{") {
		if i > 0 {
			_, part, _ = strings.Cut(part, "}")
			b.WriteString("id_1")
		}
		b.WriteString(part)
	}
	return b.String()
}

func newRequest(method, target string) *http.Request {
	req, err := http.NewRequest(method, "https://api.retellai.com"+target, nil)
	if err != nil {
		panic(err)
	}
	return req
}

func TestCatalogueIsTheOneInTheData(t *testing.T) {
	named := map[string]string{} // method and path, by operation
	for _, row := range rows(t) {
		method, path := row[colMethod], row[colPath]
		call := Describe(newRequest(method, fill(path)))
		at := method + " " + path

		words := strings.Split(path[1:], "/")
		if words[0] == "v2" || words[0] == "v3" {
			words = words[1:]
		}
		require.Equal(t, words[0], call.Operation, at)
		if before, ok := named[call.Operation]; ok {
			require.Equal(t, before, at, "two endpoints with one operation")
		}
		named[call.Operation] = at

		require.Equal(t, row[colEffect], call.Effect.String(), at)
		require.Equal(t, row[colClass], map[resilience.Class]string{
			resilience.ClassRequest: "request", resilience.ClassUpload: "upload", resilience.ClassLongPoll: "longPoll",
		}[call.Class], at)
		require.Equal(t, row[colPriority], call.Priority.String(), at)
		require.Equal(t, row[colTimeout] == "300", call.Class == resilience.ClassLongPoll, at)
		require.Equal(t, row[colTimeout] == "120", call.Limit != 0, at)
		require.False(t, call.Effect == resilience.EffectRead && keepLetter(call), at)
		require.False(t, call.Effect != resilience.EffectRead && cacheable(call), at)
	}
	require.Len(t, endpoints, len(named)+2, "rows of the catalogue that the data does not have, besides the two older forms")
}

func TestNotFoundIs422WhereThereIsNo404(t *testing.T) {
	for _, row := range rows(t) {
		method, path, statuses := row[colMethod], row[colPath], strings.Fields(row[colStatuses])
		r, _ := routeOf(method, fill(path))
		require.NotNil(t, r, path)
		bodiless := method == "GET" || method == "DELETE" || path == "/v2/stop-call/{call_id}" || path == "/end-chat/{chat_id}"
		want := bodiless && strings.Contains(path, "{") && slices.Contains(statuses, "422") && !slices.Contains(statuses, "404")
		require.Equal(t, want, r.traits&absent422 != 0, method+" "+path)
	}
}

func TestDescribe(t *testing.T) {
	for _, c := range []struct {
		method, target, operation, resource string
		effect                              resilience.Effect
	}{
		{"POST", "/v2/create-phone-call", "create-phone-call", "", once},
		{"", "/v2/get-call/abc?x=1", "get-call", "call/abc", read},
		{"GET", "/v2/get-call/a%2Fb", "get-call", "call/a%2Fb", read},
		{"GET", "/get-phone-number/+15555550100", "get-phone-number", "phone-number/+15555550100", read},
		{"GET", "/get-phone-number/%2B15555550100", "get-phone-number", "phone-number/+15555550100", read},
		{"POST", "/v3/list-calls", "list-calls", "call", read},
		{"POST", "/v2/list-calls", "list-calls", "call", read},
		{"POST", "/v2/stop-call/abc", "stop-call", "call/abc/live", idempotent},
		{"PUT", "/rerun-call-analysis/abc", "rerun-call-analysis", "call/abc/analysis", once},
		{"DELETE", "/delete-knowledge-base-source/kb/source/s1", "delete-knowledge-base-source", "knowledge-base/kb/source", idempotent},
		{"GET", "/get-contact-by-phone/+15555550100", "get-contact-by-phone", "contact", read},
		// Unknown, or not quite what is known.
		{"GET", "/v2/get-call", "GET", "", read},
		{"GET", "/v2/get-call/", "GET", "", read},
		{"GET", "/v2/get-call/a/b", "GET", "", read},
		{"POST", "/v2/create-phone-call/", "POST", "", once},
		{"DELETE", "/delete-knowledge-base-source/kb/sauce/s1", "DELETE", "", idempotent},
		{"GET", "/v2/create-phone-call", "GET", "", read},
		{"POST", "/create-phone-call", "POST", "", once},
		{"PATCH", "/v9/new-thing/+15555550100", "PATCH", "", once},
		{"BREW", "/v2/get-call/abc", "other", "", once},
		{"GET", "", "GET", "", read},
		{"GET", "/", "GET", "", read},
		{"GET", "/v2", "GET", "", read},
		{"GET", "/v2/", "GET", "", read},
	} {
		req := newRequest(c.method, c.target)
		got := Describe(req)
		require.Equal(t, c.operation, got.Operation, c.target)
		require.Equal(t, c.resource, got.Resource, c.target)
		require.Equal(t, c.effect, got.Effect, c.target)
	}
	require.Equal(t, "GET", Describe(&http.Request{URL: &url.URL{Opaque: "x"}}).Operation)
	require.NotPanics(t, func() { Describe(nil) })
}

func TestPhoneCallsMayTakeLongerThanTheCallerWaits(t *testing.T) {
	call := Describe(newRequest("POST", "/v2/create-phone-call"))
	require.Equal(t, 120*time.Second, call.Limit)
	require.Equal(t, 60*time.Second, call.Budget)
}

func TestWhatIsKeptAndWhatIsCached(t *testing.T) {
	of := func(operation string) resilience.Call { return resilience.Call{Operation: operation} }
	for _, operation := range []string{"create-phone-call", "create-sms-chat", "create-batch-call", "update-call", "delete-call", "update-agent"} {
		require.True(t, keepLetter(of(operation)), operation)
	}
	for _, operation := range []string{
		"create-web-call", "create-chat", "create-chat-completion", "stop-call", "update-live-call", "listen-live-call",
		"take-over-live-call", "register-phone-call", "create-phone-number", "rerun-call-analysis", "POST", "",
	} {
		require.False(t, keepLetter(of(operation)), operation)
	}
	for _, operation := range []string{"get-agent", "list-agents", "list-voices", "get-concurrency", "get-phone-number"} {
		require.True(t, cacheable(of(operation)), operation)
	}
	for _, operation := range []string{
		"get-call", "list-calls", "get-chat", "list-chats", "get-contact", "list-contacts", "get-contact-by-phone",
		"list-export-requests", "get-sync-job-status", "GET", "",
	} {
		require.False(t, cacheable(of(operation)), operation)
	}
}

// Letters for one resource supersede each other, so no two that are kept may share one and mean different things.
func TestNoLetterIsSupersededByAnotherPersonsCall(t *testing.T) {
	for _, e := range endpoints {
		if e.traits&keep != 0 && e.effect == once {
			require.Empty(t, e.resource, e.path)
		}
		if e.traits&keep != 0 {
			require.LessOrEqual(t, strings.Count(e.path, "{"), 1, e.path)
		}
	}
}

func FuzzDescribe(f *testing.F) {
	for _, e := range endpoints {
		f.Add(e.method, fill(e.path))
	}
	f.Add("GET", "/v2/get-call/%zz")
	f.Add("POST", "//v3/list-calls//")
	known := map[string]bool{"other": true}
	for _, m := range []string{"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "POST", "PATCH", "CONNECT"} {
		known[m] = true
	}
	for _, e := range endpoints {
		known[e.operation()] = true
	}
	f.Fuzz(func(t *testing.T, method, path string) {
		for _, u := range []*url.URL{{Path: path}, {Path: path, RawPath: path}, {Opaque: path}} {
			got := Describe(&http.Request{Method: method, URL: u})
			if !known[got.Operation] {
				t.Fatalf("operation %q is not of the closed set", got.Operation)
			}
			if got.Effect == resilience.EffectUnset {
				t.Fatal("no effect")
			}
		}
	})
}

func BenchmarkDescribe(b *testing.B) {
	req := newRequest("GET", "/v2/get-call/call_0123456789abcdef")
	b.ReportAllocs()
	for b.Loop() {
		Describe(req)
	}
}
