package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

const (
	dial = `{"from_number":"+15550001000","to_number":"+15550001111","idempotency_key":"reminder-1"}`
	path = "/v2/create-phone-call"
)

// serve starts run and returns the server's URL.
func serve(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	in, out := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := run(ctx, args, out, io.Discard)
		_ = out.CloseWithError(io.EOF)
		done <- err
	}()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
	})
	line, err := bufio.NewReader(in).ReadString('\n')
	require.NoError(t, err)
	return strings.TrimSpace(line)
}

func post(t *testing.T, url, key string) (int, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+path, strings.NewReader(dial))
	require.NoError(t, err)
	req.Header.Set("Authorization", "Bearer "+key)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, resp.Body.Close()
}

func peek(t *testing.T, url, page string) (counts map[string]int) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/_/"+page, nil)
	require.NoError(t, err)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	require.NoError(t, json.NewDecoder(resp.Body).Decode(&counts))
	return counts
}

func TestCallsAndCounts(t *testing.T) {
	url := serve(t)
	for range 2 {
		status, err := post(t, url, "key_1")
		require.NoError(t, err)
		require.Equal(t, 201, status)
	}
	status, err := post(t, url, "secret")
	require.NoError(t, err)
	require.Equal(t, 401, status)
	require.Equal(t, map[string]int{"+15550001111": 1}, peek(t, url, "rings"))
	require.Equal(t, map[string]int{"create-phone-call": 3}, peek(t, url, "requests"))
}

func TestFlagsMakeFaults(t *testing.T) {
	for name, c := range map[string]struct {
		args   []string
		status int
		fails  bool
		rings  int
	}{
		"lost answer": {[]string{"-lost-answer", "1"}, 0, true, 1},
		"reset":       {[]string{"-reset", "1"}, 0, true, 0},
		"throttle":    {[]string{"-throttle", "1"}, 429, false, 0},
		"errors":      {[]string{"-errors", "1"}, 500, false, 0},
		"full":        {[]string{"-concurrency", "1", "-no-server-keys"}, 201, false, 1},
	} {
		t.Run(name, func(t *testing.T) {
			url := serve(t, append(c.args, "-seed", "3")...)
			status, err := post(t, url, "key_1")
			require.Equal(t, c.status, status)
			require.Equal(t, c.fails, err != nil)
			require.Equal(t, c.rings, peek(t, url, "rings")["+15550001111"])
			if name == "full" {
				status, err := post(t, url, "key_1")
				require.NoError(t, err)
				require.Equal(t, 429, status, "an older deployment takes the same key for a second call")
			}
		})
	}
}

func TestBadFlags(t *testing.T) {
	for _, args := range [][]string{
		{"-lost-answer", "2"}, {"-reset", "-1"}, {"-hang", "NaN"}, {"-throttle", "0.6", "-errors", "0.6"}, {"-addr", "nonsense"}, {"-what"},
	} {
		require.Error(t, run(t.Context(), args, io.Discard, io.Discard), args)
	}
}

func TestProgramEndsOnSignals(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the program")
	}
	bin := filepath.Join(t.TempDir(), "fakeserver")
	build, err := exec.CommandContext(t.Context(), "go", "build", "-o", bin, ".").CombinedOutput()
	require.NoError(t, err, string(build))
	for _, signal := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		program := exec.CommandContext(t.Context(), bin, "-hang", "1")
		out, err := program.StdoutPipe()
		require.NoError(t, err)
		var messages bytes.Buffer
		program.Stderr = &messages
		require.NoError(t, program.Start())
		url, err := bufio.NewReader(out).ReadString('\n')
		require.NoError(t, err)
		hung := make(chan error, 1)
		go func() {
			_, err := post(t, strings.TrimSpace(url), "key_1")
			hung <- err
		}()
		for len(peek(t, strings.TrimSpace(url), "rings")) == 0 {
			continue // until the call hangs
		}
		require.NoError(t, program.Process.Signal(signal))
		require.NoError(t, program.Wait(), messages.String())
		require.Error(t, <-hung)
	}
}
