// Package browsertest looks at the status page in a real browser. Its tests need the path of a Chromium in BROWSER and are
// skipped without; .ci/run sees to it.
package browsertest

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// patience bounds every wait for the browser. It decides only how soon a failure is noticed.
const patience = 30 * time.Second

// tab is one page of a headless Chromium, steered by the DevTools protocol over a pipe: messages of JSON that end with a
// zero byte.
type tab struct {
	t       *testing.T
	in      *os.File
	session string
	silent  bool // it gave no answer

	mu      sync.Mutex
	last    int
	waiting map[int]chan message
	// what the page did since it was opened
	requests []string // addresses it asked for
	faults   []string // errors on the console, exceptions, blocked requests
}

type message struct {
	ID        int             `json:"id,omitempty"`
	SessionID string          `json:"sessionId,omitempty"`
	Method    string          `json:"method,omitempty"`
	Params    json.RawMessage `json:"params,omitempty"`
	Result    json.RawMessage `json:"result,omitempty"`
	Error     json.RawMessage `json:"error,omitempty"`
}

// openTab starts a browser that ends with the test.
func openTab(t *testing.T) *tab {
	t.Helper()
	browser := os.Getenv("BROWSER")
	if browser == "" {
		t.Skip("set BROWSER to the path of a Chromium to look at the page in it, or run .ci/run page")
	}
	theirIn, in, err := os.Pipe()
	require.NoError(t, err)
	out, theirOut, err := os.Pipe()
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
		"--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
		"--disable-dev-shm-usage", "--hide-scrollbars", "--lang=en-GB", "--remote-debugging-pipe", "--user-data-dir="+t.TempDir())
	cmd.ExtraFiles = []*os.File{theirIn, theirOut} // 3 and 4
	var said bytes.Buffer
	cmd.Stderr = &said
	cmd.WaitDelay = time.Second
	require.NoError(t, cmd.Start())
	require.NoError(t, theirIn.Close())
	require.NoError(t, theirOut.Close())

	b := &tab{t: t, in: in, waiting: map[int]chan message{}}
	ended := make(chan struct{})
	go func() { defer close(ended); b.listen(out) }()
	t.Cleanup(func() {
		_ = in.Close() // it ends when nobody steers it
		if !within(ended) {
			_ = cmd.Process.Kill()
			<-ended
		}
		_ = cmd.Wait()
		_ = out.Close()
		if b.silent {
			t.Logf("the browser said: %s", said.String())
		}
	})

	var target struct {
		TargetID string `json:"targetId"`
	}
	b.do("Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	var attached struct {
		SessionID string `json:"sessionId"`
	}
	b.do("Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &attached)
	b.session = attached.SessionID
	for _, domain := range []string{"Page", "Runtime", "Network", "Log"} {
		b.do(domain+".enable", nil, nil)
	}
	return b
}

func within(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	case <-time.After(patience):
		return false
	}
}

// listen reads what the browser says until it ends.
func (b *tab) listen(out *os.File) {
	r := bufio.NewReader(out)
	for {
		data, err := r.ReadBytes(0)
		if err != nil {
			return
		}
		var m message
		if json.Unmarshal(bytes.TrimSuffix(data, []byte{0}), &m) != nil {
			continue
		}
		b.mu.Lock()
		if c := b.waiting[m.ID]; m.ID != 0 && c != nil {
			c <- m
			delete(b.waiting, m.ID)
		}
		b.note(m)
		b.mu.Unlock()
	}
}

func (b *tab) note(m message) {
	var p struct {
		Request struct {
			URL string `json:"url"`
		} `json:"request"`
		Type      string          `json:"type"`
		Args      json.RawMessage `json:"args"`
		Exception json.RawMessage `json:"exceptionDetails"`
		Entry     struct {
			Level string `json:"level"`
			Text  string `json:"text"`
			URL   string `json:"url"`
		} `json:"entry"`
	}
	if m.Method == "" || json.Unmarshal(m.Params, &p) != nil {
		return
	}
	switch m.Method {
	case "Network.requestWillBeSent":
		b.requests = append(b.requests, p.Request.URL)
	case "Runtime.consoleAPICalled":
		b.faults = append(b.faults, fmt.Sprintf("console.%s %s", p.Type, p.Args))
	case "Runtime.exceptionThrown":
		b.faults = append(b.faults, fmt.Sprintf("exception %s", p.Exception))
	case "Log.entryAdded":
		b.faults = append(b.faults, strings.Join([]string{p.Entry.Level, p.Entry.Text, p.Entry.URL}, " "))
	}
}

// do sends a command and waits for its result.
func (b *tab) do(method string, params map[string]any, result any) {
	b.t.Helper()
	if params == nil {
		params = map[string]any{}
	}
	given, err := json.Marshal(params)
	require.NoError(b.t, err)
	b.mu.Lock()
	b.last++
	answer := make(chan message, 1)
	b.waiting[b.last] = answer
	data, err := json.Marshal(message{ID: b.last, SessionID: b.session, Method: method, Params: given})
	b.mu.Unlock()
	require.NoError(b.t, err)
	_, err = b.in.Write(append(data, 0))
	require.NoError(b.t, err)
	select {
	case m := <-answer:
		require.Empty(b.t, string(m.Error), method)
		if result != nil {
			require.NoError(b.t, json.Unmarshal(m.Result, result))
		}
	case <-time.After(patience):
		b.silent = true
		require.FailNow(b.t, "no answer from the browser", method)
	}
}

// run evaluates an expression in the page.
func (b *tab) run(expression string, value any) {
	b.t.Helper()
	var out struct {
		Result struct {
			Value json.RawMessage `json:"value"`
		} `json:"result"`
		Exception json.RawMessage `json:"exceptionDetails"`
	}
	b.do("Runtime.evaluate", map[string]any{"expression": expression, "returnByValue": true}, &out)
	require.Empty(b.t, string(out.Exception), expression)
	if value != nil {
		require.NoError(b.t, json.Unmarshal(out.Result.Value, value))
	}
}

// until waits for an expression to be true.
func (b *tab) until(expression string) {
	b.t.Helper()
	for ends := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		var yes bool
		b.run("Boolean("+expression+")", &yes)
		if yes {
			return
		}
		if time.Now().After(ends) {
			var text string
			b.run("document.body.innerText", &text)
			_, faults := b.did()
			require.FailNow(b.t, "the page never got there", "%s\n%s\n%s", expression, text, faults)
		}
	}
}

// look sets the size of the window and the colours.
func (b *tab) look(width int, scheme string) {
	b.t.Helper()
	b.do("Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false}, nil)
	b.do("Emulation.setEmulatedMedia", map[string]any{"features": []map[string]string{{"name": "prefers-color-scheme", "value": scheme}}}, nil)
}

// photograph writes a picture of the whole page and returns its size in bytes.
func (b *tab) photograph(dir, name string) int {
	b.t.Helper()
	var shot struct {
		Data string `json:"data"`
	}
	b.do("Page.captureScreenshot", map[string]any{"format": "png", "captureBeyondViewport": true}, &shot)
	data, err := base64.StdEncoding.DecodeString(shot.Data)
	require.NoError(b.t, err)
	require.NoError(b.t, os.WriteFile(filepath.Join(dir, name), data, 0o600))
	return len(data)
}

func (b *tab) did() (requests, faults []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]string(nil), b.requests...), append([]string(nil), b.faults...)
}
