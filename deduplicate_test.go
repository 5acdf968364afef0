package resilience

import (
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Idempotent writes: an expired result is none, unless a letter refers to it; a stream is no result; a store that fails costs the replay alone.
func TestDeduplicate_WhatIsReplayed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &flakyStore{MemoryStore: NewMemoryStore(0), fail: 99}
		i := newIdem(t, IdempotencyConfig{Store: store, TTL: time.Hour})
		pinned := false
		i.pinned = func(string) bool { return pinned }
		p := &phone{}
		rt := i.Wrap(p)
		ctx := WithCall(t.Context(), Call{Effect: EffectIdempotent})
		put := func(want int) {
			t.Helper()
			_, err := dial(ctx, t, rt, "k", dialBody)
			require.NoError(t, err)
			require.Equal(t, want, p.sends)
		}
		put(1)
		time.Sleep(time.Hour - 1)
		put(1)
		pinned = true
		time.Sleep(time.Hour)
		put(1)
		pinned = false
		put(2) // expired, and in its place a new one
		put(2)
		time.Sleep(2 * time.Hour)
		_, err := dial(ctx, t, rt, "k", `{"other":1}`)
		require.NoError(t, err, "an expired record is no other request")
		store.set(KeyConfirmed)
		for n := range 2 {
			_, err = dial(ctx, t, rt, "bad", dialBody)
			require.NoError(t, err)
			require.EqualValues(t, n+1, i.Stats().StoreErrors)
		}
		require.Equal(t, 5, p.sends)
	})
}

func TestIdempotency_IdempotentWriteDeduplicatesFinishedResults(t *testing.T) {
	i := newIdem(t, IdempotencyConfig{})
	p := &phone{before: func(_ *http.Request, n int) (*http.Response, error) {
		if n == 1 {
			return reply(500, ""), nil
		}
		return nil, nil
	}}
	rt := i.Wrap(p)
	put := func() (*http.Response, error) {
		ctx := WithIdempotencyKey(t.Context(), "k")
		req, _ := http.NewRequestWithContext(ctx, http.MethodPut, "http://api.test/x", strings.NewReader("{}"))
		return rt.RoundTrip(req)
	}
	resp, err := put()
	require.NoError(t, err)
	require.Equal(t, 500, resp.StatusCode)
	_, err = put()
	require.NoError(t, err)
	resp, err = put()
	require.NoError(t, err)
	require.True(t, Replayed(resp))
	require.Equal(t, 2, p.sends)
}

// Only a key that the caller named makes two idempotent writes one.
func TestDeduplicate_WritesWithoutAKeyAreAllMade(t *testing.T) {
	i := newIdem(t, IdempotencyConfig{})
	p := &phone{}
	rt := i.Wrap(p)
	ctx := WithCall(t.Context(), Call{Effect: EffectIdempotent})
	for _, text := range []string{dialBody, dialBody, `{}`} {
		resp, err := dial(ctx, t, rt, "", text)
		require.NoError(t, err)
		require.False(t, Replayed(resp))
	}
	require.Equal(t, 3, p.sends)
}
