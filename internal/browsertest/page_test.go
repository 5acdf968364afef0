package browsertest

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
	"github.com/retell-resilience/resilience/retell"
)

const (
	ours   = "+15550002222"
	theirs = "+15550001111"
)

// api is the other side: it answers, fails, loses answers, or hangs.
type api struct {
	mu      sync.Mutex
	mode    string
	hanging chan struct{} // closed to let go
	hung    sync.WaitGroup
}

func (a *api) set(mode string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mode = mode
}

func (a *api) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		_, _ = io.Copy(io.Discard, req.Body)
		_ = req.Body.Close()
	}
	a.mu.Lock()
	mode := a.mode
	a.mu.Unlock()
	answer := func(code int, body string) (*http.Response, error) {
		return &http.Response{
			StatusCode: code, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(body)), Request: req,
		}, nil
	}
	switch {
	case req.URL.Path == "/get-api-key-info":
		return answer(200, `{"org_name":"`+theirs+`"}`)
	case req.URL.Path == "/get-concurrency":
		return answer(200, `{"current_concurrency":17,"concurrency_limit":20}`)
	case mode == "hang":
		a.hung.Done()
		<-a.hanging
	case mode == "lose":
		return nil, io.ErrUnexpectedEOF
	case mode == "unpaid":
		return answer(402, `{"message":"`+theirs+`"}`)
	case mode == "fail":
		return answer(503, `{"message":"`+theirs+`"}`)
	}
	return answer(200, `{"call_id":"call_1","agent_id":"agent_1","phone_number":"`+theirs+`"}`)
}

// outage is a client in trouble: its circuit is open, a key is in doubt, a letter waits, calls were shed, slots are held.
type outage struct {
	t      *testing.T
	api    *api
	client *retell.Client
}

func newOutage(t *testing.T) *outage {
	t.Helper()
	cfg := retell.Config()
	cfg.Retry.Max = -1
	cfg.Breaker = resilience.BreakerConfig{MinCalls: 4, FailureRate: 0.1, OpenFor: time.Hour}
	cfg.Bulkhead = resilience.BulkheadConfig{Critical: 2, Normal: 1, Bulk: -1, Total: 3, Queue: -1}
	o := &outage{t: t, api: &api{hanging: make(chan struct{})}}
	var err error
	o.client, err = retell.New("key_secret", retell.WithTransport(o.api), retell.WithConfig(cfg))
	require.NoError(t, err)
	t.Cleanup(func() {
		close(o.api.hanging)
		require.NoError(t, o.client.Close(context.Background()))
	})

	for range 20 {
		_, err = o.client.PhoneNumbers.Get(t.Context(), theirs)
		require.NoError(t, err)
	}
	o.api.set("lose")
	require.True(t, resilience.InDoubt(o.call("secret-doubt:"+theirs)))

	o.api.set("unpaid")
	require.ErrorIs(t, o.call("secret-unpaid:"+theirs), retell.ErrPaymentRequired)

	o.api.set("hang")
	o.api.hung.Add(3)
	for range 3 {
		go o.read(t.Context(), resilience.PriorityNormal) // two of them borrow a slot of the critical tier
	}
	o.api.hung.Wait()
	for range 3 {
		require.ErrorIs(t, o.read(t.Context(), resilience.PriorityNormal), resilience.ErrFull)
	}

	o.api.set("fail")
	o.api.hanging <- struct{}{}
	o.api.hanging <- struct{}{}
	require.Eventually(t, func() bool {
		_ = o.read(t.Context(), resilience.PriorityCritical)
		return o.client.Stack().Breaker.State() == resilience.BreakerOpen
	}, patience, time.Millisecond)
	require.ErrorIs(t, o.call("secret-letter:"+theirs), resilience.ErrParked)
	o.client.Stack().Health().Check(t.Context()) // the concurrency is asked for in the background
	require.Eventually(t, func() bool {
		return o.client.Stack().Health().Check(t.Context()).Find("concurrency").State == "ok"
	}, patience, time.Millisecond)
	return o
}

func (o *outage) call(key string) error {
	_, err := o.client.Calls.CreatePhoneCall(o.t.Context(), retell.CreatePhoneCallParams{FromNumber: ours, ToNumber: theirs}, retell.IdempotencyKey(key))
	return err
}

func (o *outage) read(ctx context.Context, p resilience.Priority) error {
	_, err := retell.Do[retell.Empty](ctx, o.client, "GET", "/v2/get-call/"+retell.PathID("call_"+theirs), nil, retell.Priority(p))
	return err
}

// row is the text of the table row that begins with some words.
func row(begins string) string {
	return `[...document.querySelectorAll("tr")].map(r => [...r.children].map(c => c.textContent).join(" | ")).find(r => r.startsWith(` + strconv.Quote(begins) + `))`
}

func TestPageOfAnOutage(t *testing.T) {
	b := openTab(t)
	o := newOutage(t)
	srv := httptest.NewServer(o.client.Stack().Health())
	defer srv.Close()
	b.do("Page.navigate", map[string]any{"url": srv.URL + "/health"}, nil)
	b.until(`document.readyState === "complete" && document.querySelector("#cards")`)

	text := func(expression string) string {
		var s string
		b.run("("+expression+") || ''", &s)
		return s
	}
	require.Equal(t, "degraded", text(`document.querySelector("#whole").textContent`))
	require.Equal(t, "Health: degraded", text(`document.title`))
	for begins, want := range map[string]string{
		"all calls |":             `open \| degraded \| .*\d %.* \| in \d+ (min|h)$`, // the circuit
		"critical |":              `\| 0 of 2 \| 0 \| healthy$`,
		"normal |":                `\| 1 of 1 \| 0 \| healthy$`,
		"bulk |":                  `\| 0 \| 0 \| healthy$`,
		"request |":               `\| \d+ \| [\d.]+ (µs|ms|s) \| [\d.]+ (µs|ms|s) \| [\d.]+ (µs|ms|s)$`, // latency
		"keys: in doubt |":        `1 key \| healthy \| being looked up$`,
		"keys: oldest |":          `\| [\d.]+ (ms|s) \| healthy`,
		"keys: disputed |":        `\| 0 keys \| healthy`,
		"letters |":               `\| 2 of 10000 letters \| healthy`,
		"letters: in doubt |":     `\| 1 letter \| healthy`,
		"letters: oldest |":       `\| [\d.]+ (ms|s) \| healthy`,
		"bulkhead: shed |":        `\| [1-9]\d* calls? \| degraded \| calls were turned away lately$`,
		"bulkhead: abandoned |":   `\| 0 of 3 calls \| healthy`,
		"account: key |":          `\| ok \| healthy \|`,
		"account: payment |":      `\| status 402 \| degraded \| create-phone-call: payment required$`,
		"concurrency: headroom |": `\| 3 of 20 calls \| healthy`,
	} {
		require.Regexp(t, want, text(row(begins)), begins)
	}
	for _, event := range []string{"circuit.open", "letter.added", "slot.rejected", "key.changed"} {
		require.Contains(t, text(`document.querySelector("main").textContent`), event)
	}

	require.Equal(t, "bulkhead circuit account", text(`[...document.querySelectorAll(".card h3")].slice(0, 3).map(e => e.textContent).join(" ")`), "trouble comes first")

	pictures := os.Getenv("PICTURES") // kept there if somebody wants to look
	if pictures == "" {
		pictures = t.TempDir()
	}
	for _, scheme := range []string{"light", "dark"} {
		for _, width := range []int{1280, 400} {
			b.look(width, scheme)
			var wide []int
			b.run(`[document.documentElement.scrollWidth, document.documentElement.clientWidth]`, &wide)
			require.LessOrEqual(t, wide[0], wide[1], "nothing sticks out at %d", width)
			var pale []string
			b.run(pale45, &pale)
			require.Empty(t, pale, "%s at %d: text that is hard to read", scheme, width)
			require.Greater(t, b.photograph(pictures, "page-"+scheme+"-"+strconv.Itoa(width)+".png"), 10_000)
		}
	}

	// What changes later is seen without anybody's doing.
	require.ErrorIs(t, o.call("secret-other:"+theirs), resilience.ErrParked)
	b.until(row("letters |") + `.includes("3 of 10000")`)

	var html string
	b.run("document.documentElement.outerHTML", &html)
	for _, private := range []string{theirs, ours, "5550001111", "5550002222", "secret", "call_1", "call_+", "retellai"} {
		require.Zero(t, strings.Count(html, private), "the page holds %q", private)
	}
	requests, faults := b.did()
	require.Empty(t, faults, "nothing on the console")
	require.GreaterOrEqual(t, len(requests), 2, "the page and what it asked since")
	for _, address := range requests {
		u, err := url.Parse(address)
		require.NoError(t, err)
		require.True(t, u.Scheme == "data" || "http://"+u.Host == srv.URL, "asked another host: %s", address)
	}

	// The policy holds: even a script that found its way in could ask nobody else.
	b.run(`window.blocked = []; addEventListener("securitypolicyviolation", e => blocked.push(e.violatedDirective));
		fetch("http://127.0.0.1:9/").catch(() => {}); document.body.append(Object.assign(document.createElement("script"), { textContent: "window.evil = 1" })); 0`, nil)
	b.until(`blocked.length >= 2 && !window.evil`)

	// A process that is gone does not look well.
	srv.Close()
	b.until(`document.body.classList.contains("old") && document.querySelector("#whole").textContent === "unknown"`)
	require.Contains(t, text(`document.querySelector("#lost").innerText`), "No answer from this process")
}

// pale45 lists texts whose contrast with what lies behind them is below the 4.5 that WCAG AA asks for.
const pale45 = `(() => {
  const parse = c => c.match(/[\d.]+/g).map(Number);
  const light = c => c.slice(0, 3).map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4).reduce((s, v, i) => s + v * [.2126, .7152, .0722][i], 0);
  const behind = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] === 1) return c; } return [255, 255, 255]; };
  const bad = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    if (!own || !e.getClientRects().length || ["SCRIPT", "STYLE", "NOSCRIPT"].includes(e.tagName)) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) bad.push(ratio.toFixed(1) + ": " + e.textContent.slice(0, 40));
  }
  return bad;
})()`

func TestPageOfAHealthyProcessAndOfAReaderWithoutRights(t *testing.T) {
	b := openTab(t)
	for _, may := range []bool{true, false} {
		h, err := resilience.NewHealth(resilience.HealthConfig{
			Probe:       func(context.Context) error { return nil },
			ShowDetails: func(*http.Request) bool { return may },
			Checks: []resilience.HealthCheck{{Name: "database", Run: func(context.Context) []resilience.CheckResult {
				return []resilience.CheckResult{{Status: resilience.Healthy, State: "connected"}}
			}}},
		})
		require.NoError(t, err)
		h.Check(t.Context())
		require.Eventually(t, func() bool { return h.Check(t.Context()).Find("database").State == "connected" }, patience, time.Millisecond)
		srv := httptest.NewServer(h)
		b.do("Page.navigate", map[string]any{"url": srv.URL}, nil)
		b.until(`document.readyState === "complete" && document.querySelector("#cards") && document.querySelector("#whole").textContent === "healthy"`)
		var seen bool
		b.run(`document.body.innerText.includes("database")`, &seen)
		require.Equal(t, may, seen)
		srv.Close()
	}
	_, faults := b.did()
	require.Empty(t, faults)
}
