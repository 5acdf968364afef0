package main

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

func TestOutage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "timeline.svg")
	var out bytes.Buffer
	synctest.Test(t, func(t *testing.T) { // two hours in no time
		require.NoError(t, run(t.Context(), []string{"-minute", "1m", "-o", path}, &out), "%s", &out)
	})
	require.Contains(t, out.String(), "none twice")
	require.NotContains(t, out.String(), "+1555")
	drawing, err := os.ReadFile(path)
	require.NoError(t, err)
	texts := wellFormed(t, drawing)
	for _, label := range []string{"requests", "letters", "circuit", "minute", "Retell cannot be reached", "from the cache"} {
		require.Contains(t, texts, label)
	}
}

func wellFormed(t *testing.T, document []byte) (texts []string) {
	t.Helper()
	d := xml.NewDecoder(bytes.NewReader(document))
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return texts
		}
		require.NoError(t, err)
		if text, ok := token.(xml.CharData); ok {
			texts = append(texts, strings.TrimSpace(string(text)))
		}
	}
}

func TestTotalsAddUp(t *testing.T) {
	synctest.Test(t, totalsAddUp)
}

func totalsAddUp(t *testing.T) {
	tl, err := play(t.Context(), io.Discard, time.Minute)
	require.NoError(t, err)
	for n, m := range tl.minutes {
		require.Equal(t, agentReads+callReads+phoneCalls, m.ok+m.served+m.refused+m.parked, "minute %d", n)
	}
	all := tl.total()
	require.Equal(t, len(tl.minutes)*phoneCalls, tl.asked)
	require.Len(t, tl.rings, tl.asked)
	require.EqualValues(t, all.parked, tl.stats.DLQ.Admitted)
	require.EqualValues(t, all.parked, tl.stats.DLQ.Acked)
	require.EqualValues(t, all.served, tl.stats.Fallback.Fresh+tl.stats.Fallback.Stale+tl.stats.Fallback.VeryStale)
	require.NotZero(t, tl.stats.Breaker.Opened)
	for _, m := range tl.minutes[outageFrom:outageUntil] {
		require.GreaterOrEqual(t, m.served, agentReads)
	}
}

func TestSumFindsASecondRing(t *testing.T) {
	tl := &timeline{minutes: []minute{{ok: 12}}, asked: 2, rings: map[string]int{"+15555550001": 1, "+15555550002": 2}}
	require.ErrorContains(t, tl.sum(io.Discard, ""), "…02) rang 2 times")
	tl.rings = map[string]int{"+15555550001": 1}
	require.ErrorContains(t, tl.sum(io.Discard, ""), "2 calls were asked for, and 1 phones rang")
}

func TestBadFlagsAndEnds(t *testing.T) {
	require.ErrorIs(t, run(t.Context(), []string{"-h"}, io.Discard), flag.ErrHelp)
	require.ErrorContains(t, run(t.Context(), []string{"-minute", "1ms"}, io.Discard), "-minute")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, run(ctx, nil, io.Discard), context.Canceled)
}
