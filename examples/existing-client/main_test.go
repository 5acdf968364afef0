package main

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience/internal/leak"
	"github.com/retell-resilience/resilience/retell/retelltest"
)

func TestMain(m *testing.M) { leak.Main(m) }

func TestBeforeAndAfter(t *testing.T) {
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), &out), "%s", &out)
	text := out.String()
	require.Contains(t, text, "registered; the phone has rung 2×")
	require.Contains(t, text, "in doubt, so it was not sent again; the phone has rung 1×")
	require.Contains(t, text, "registered; the phone has rung 1×")
	require.NotContains(t, text, "+1555")
}

func TestItEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.Error(t, run(ctx, io.Discard))
	require.ErrorIs(t, after(ctx, io.Discard), context.Canceled)
}

func TestPhoneSaysWhatRetellAnswers(t *testing.T) {
	server := retelltest.NewServer()
	defer server.Close()
	p := &phone{http: server.Client(), baseURL: "https://api.retellai.com", apiKey: "key_1"}
	_, err := p.get(t.Context(), "call_nobody")
	require.ErrorContains(t, err, "422")
	server.Inject("create-phone-call", retelltest.Status(http.StatusTooManyRequests))
	_, err = p.dial(t.Context(), "id", ours, theirs)
	require.ErrorContains(t, err, "429")
}
