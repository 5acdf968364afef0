package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
	"github.com/retell-resilience/resilience/internal/leak"
	"github.com/retell-resilience/resilience/retell"
	"github.com/retell-resilience/resilience/retell/retelltest"
)

func TestMain(m *testing.M) { leak.Main(m) }

func nothingSet(string) string { return "" }

func settings(baseURL string) func(string) string {
	return func(name string) string {
		return map[string]string{"RETELL_API_KEY": "key_fake", "RETELL_BASE_URL": baseURL}[name]
	}
}

func TestStory(t *testing.T) {
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), nil, nothingSet, &out), "%s", &out)
	text := out.String()
	for _, line := range []string{
		"+1•••04  in doubt", "+1•••04 has rung once", "+1•••04  was called before", "the circuit opens", "a letter has it",
		"last known answer", "stale", "unhealthy (api:", "degraded (circuit:", "half open", "the circuit closes",
		"12 calls asked for, 12 phones rang, none twice.",
	} {
		require.Contains(t, text, line)
	}
	require.NotRegexp(t, `\+1[0-9]{4}`, text, "a whole number is shown")
}

func TestStoryEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, run(ctx, nil, nothingSet, io.Discard), context.Canceled)
}

func TestVerdict(t *testing.T) {
	server := retelltest.NewServer(retelltest.WithoutServerKeys())
	defer server.Close()
	client, err := retell.New("key_test", retell.WithTransport(server.Transport()))
	require.NoError(t, err)
	defer func() { require.NoError(t, client.Close(context.Background())) }()
	s := &story{teller: newTeller(io.Discard), server: server, client: client}
	number := s.next()
	require.ErrorContains(t, s.verdict(0, 0), "0 times")
	s.call(t.Context(), number)
	require.NoError(t, s.verdict(0, 0))
	require.ErrorContains(t, s.verdict(1, 2), "1 keys in doubt and 2 letters")
	require.NoError(t, client.Stack().Idempotency.Forget(t.Context(), keyFor(number)))
	s.call(t.Context(), number)
	require.ErrorContains(t, s.verdict(0, 0), "+1•••01 rang 2 times")
}

func TestTheRealAPIIsOnlyRead(t *testing.T) {
	server := retelltest.NewServer()
	defer server.Close()
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), nil, settings(server.URL()), &out), "%s", &out)
	require.Contains(t, out.String(), "talks to "+server.URL())
	require.Contains(t, out.String(), "20 calls under way")
	require.Contains(t, out.String(), "2 voices")
	for _, r := range server.Received() {
		require.Contains(t, []string{"get-api-key-info", "get-concurrency", "list-voices", "list-agents"}, r.Operation)
	}
	require.Empty(t, server.Calls())
	require.NotContains(t, out.String(), "key_fake")
}

func TestTheRealAPIRefusesTheKey(t *testing.T) {
	server := retelltest.NewServer(retelltest.WithKey("key_other"))
	defer server.Close()
	var out bytes.Buffer
	require.ErrorContains(t, run(t.Context(), nil, settings(server.URL()), &out), "4 of 4 reads failed")
	require.Contains(t, out.String(), "the API key was refused")
}

func TestOneCallOnly(t *testing.T) {
	server := retelltest.NewServer()
	defer server.Close()
	args := []string{"-from", "+15550001000", "-to", "+15555550123"}
	var out bytes.Buffer
	for range 2 { // the second program of the day sends the same key
		require.NoError(t, run(t.Context(), args, settings(server.URL()), &out), "%s", &out)
	}
	require.Equal(t, 1, server.Rings("+15555550123"))
	require.NotContains(t, out.String(), "5550123")
}

func TestOneCallWhoseAnswerIsLost(t *testing.T) {
	server := retelltest.NewServer()
	defer server.Close()
	server.Inject("create-phone-call", retelltest.LostAnswer())
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), []string{"-from", "+15550001000", "-to", "+15555550123"}, settings(server.URL()), &out), "%s", &out)
	require.Contains(t, out.String(), "was placed")
	require.Equal(t, 1, server.Rings("+15555550123"))
}

func TestNobodyIsCalledByMistake(t *testing.T) {
	for _, args := range [][]string{{"-to", "+15555550123"}, {"-from", "+15550001000"}} {
		require.ErrorContains(t, run(t.Context(), args, settings("http://127.0.0.1:1"), io.Discard), "go together")
	}
	both := []string{"-from", "+15550001000", "-to", "+15555550123"}
	require.ErrorContains(t, run(t.Context(), both, nothingSet, io.Discard), "need RETELL_API_KEY")
	require.ErrorIs(t, run(t.Context(), []string{"-h"}, nothingSet, io.Discard), flag.ErrHelp)
}

func TestErrorsInWords(t *testing.T) {
	for want, err := range map[string]error{
		"in doubt":                   &resilience.Error{Err: errors.Join(resilience.ErrParked, resilience.ErrInDoubt)},
		"a letter has it":            &resilience.Error{Err: errors.Join(resilience.ErrParked, resilience.ErrOpen)},
		"the circuit is open":        resilience.ErrOpen,
		"cannot pay":                 retell.ErrPaymentRequired,
		"no free call slot":          retell.ErrRateLimited,
		"no such thing":              retell.ErrNotFound,
		"Retell says no: status 418": &retell.Error{StatusCode: 418},
		"nothing was sent":           resilience.MarkNotSent(io.EOF),
		"failed: EOF":                io.EOF,
		"the API key was refused":    retell.ErrUnauthorized,
	} {
		require.Contains(t, inWords(err), want)
	}
	require.Equal(t, "•••", masked("+1555"))
}
