package resilience

import (
	"context"
	"errors"
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// What a user's function does for a failed read can see that the budget is spent.
func TestFallback_TheFunctionSeesTheSpentBudget(t *testing.T) {
	onEitherGoroutine(t, func(t *testing.T, cooperative bool) {
		s := newStack(t, Config{Timeout: TimeoutConfig{Cooperative: cooperative}, Retry: RetryConfig{Off: true}})
		asked := false
		ctx := WithFallback(t.Context(), func(ctx context.Context, _ error) (int, error) {
			asked = true
			require.ErrorIs(t, ctx.Err(), context.DeadlineExceeded)
			return 1, nil
		})
		call := Call{Effect: EffectRead, Budget: time.Second, Limit: time.Minute}
		v, err := Do(ctx, s, call, func(ctx context.Context) (int, error) { <-ctx.Done(); return 0, ctx.Err() })
		require.NoError(t, err)
		require.Equal(t, 1, v)
		require.True(t, asked)
		closeStack(t, s)
	})
}

// A substitute is for the call that it was given to, not for those that are made inside of it.
func TestFallback_ASubstituteStaysWithItsCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newStack(t, Config{}), newStack(t, Config{Retry: RetryConfig{Off: true}})
		ctx := WithFallback(t.Context(), func(context.Context, error) (int, error) { return 42, nil })
		for _, effect := range []Effect{EffectRead, EffectOnce} {
			_, err := Do(ctx, a, Call{Operation: "outer", Effect: effect}, func(ctx context.Context) (int, error) {
				_, err := Do(ctx, b, Call{Operation: "token", Effect: EffectRead}, func(context.Context) (int, error) { return 0, io.EOF })
				require.ErrorIs(t, err, io.EOF)
				return 1, nil
			})
			require.NoError(t, err)
		}
		closeStack(t, a)
		closeStack(t, b)
	})
}

type settings struct{ Voice string }

// readWith reads under a substitute of the caller's own.
func readWith(t *testing.T, rt http.RoundTripper, f func(context.Context, error) (settings, error)) (*http.Response, error) {
	t.Helper()
	return rt.RoundTrip(readOf(WithFallback(t.Context(), f), t, callURL))
}

func TestF02_TheCallersOwnSubstituteComesBeforeTheKeptAnswer(t *testing.T) {
	f, s, rt := newShop(t, FallbackConfig{})
	var cause error
	own := func(_ context.Context, err error) (settings, error) { cause = err; return settings{"mine"}, nil }
	resp, err := readWith(t, rt, own)
	require.NoError(t, err)
	require.Equal(t, "good", wholeText(t, resp), "nothing failed")
	require.NoError(t, cause)
	require.Empty(t, ServedReason(resp))
	require.Empty(t, ServedReason(nil))
	require.Empty(t, ServedReason(&http.Response{Header: http.Header{"Resilience-Fallback": {"fine; reason=mine"}}}), "no mark of ours")

	s.fails(errDown)
	resp, err = readWith(t, rt, own)
	require.NoError(t, err)
	require.Equal(t, `{"Voice":"mine"}`, wholeText(t, resp))
	require.ErrorIs(t, cause, errDown)
	require.Equal(t, http.StatusOK, resp.StatusCode)
	require.Equal(t, "application/json", resp.Header.Get("Content-Type"))
	age, staleness, ok := Served(resp)
	require.True(t, ok)
	require.Zero(t, age)
	require.Equal(t, StalenessUnset, staleness)
	require.Equal(t, "transport", ServedReason(resp))

	resp, text := readText(t, rt)
	require.Equal(t, "good", text, "what is made for one caller is nobody else's, and not kept")
	require.Equal(t, "transport", ServedReason(resp))

	s.says(http.StatusServiceUnavailable, "busy")
	resp, err = readWith(t, rt, own)
	require.NoError(t, err)
	require.Equal(t, "status", ServedReason(resp))
	var e *Error
	require.ErrorAs(t, cause, &e)
	require.Equal(t, http.StatusServiceUnavailable, e.StatusCode)
	require.Equal(t, uint64(2), f.Stats().FuncCalls)
	require.Zero(t, f.Stats().FuncFailures)
	require.NoError(t, resp.Body.Close())
}

func TestF03_WhereTheCallersOwnFailsTheOthersAreNext(t *testing.T) {
	lost, noFile := errors.New("lost"), errors.New("no file")
	for name, own := range map[string]func(context.Context, error) (settings, error){
		"error": func(context.Context, error) (settings, error) { return settings{}, noFile },
		"panic": func(context.Context, error) (settings, error) { panic("+15555550100") },
	} {
		f, s, rt := newShop(t, FallbackConfig{Func: func(*http.Request, error) (*http.Response, error) { return nil, lost }})
		readText(t, rt)
		s.fails(errDown)
		resp, err := readWith(t, rt, own)
		require.NoError(t, err, name)
		require.Equal(t, "good", wholeText(t, resp))
		f.Invalidate("")
		_, err = readWith(t, rt, own) //nolint:bodyclose // there is none
		require.ErrorIs(t, err, errDown)
		require.ErrorIs(t, err, lost)
		require.Equal(t, name == "error", errors.Is(err, noFile))
		require.NotContains(t, err.Error(), "1555")
		require.Equal(t, uint64(3), f.Stats().FuncFailures)
	}
	_, s, rt := newShop(t, FallbackConfig{})
	s.fails(errDown)
	ctx := WithFallback(t.Context(), func(context.Context, error) (func(), error) { return nil, nil }) // does not encode
	_, err := rt.RoundTrip(readOf(ctx, t, callURL))                                                    //nolint:bodyclose // there is none
	require.ErrorIs(t, err, errDown)
	ctx = WithFallback[settings](WithFallback(t.Context(), func(context.Context, error) (int, error) { return 1, nil }), nil)
	_, err = rt.RoundTrip(readOf(ctx, t, callURL)) //nolint:bodyclose // there is none
	require.Equal(t, errDown, err, "it was taken away")
}

func TestF04_NoSubstituteOfTheCallersOwnForWritesAndRefusals(t *testing.T) {
	_, s, rt := newShop(t, FallbackConfig{})
	asked := false
	ctx := WithFallback(t.Context(), func(context.Context, error) (settings, error) { asked = true; return settings{}, nil })
	s.fails(errDown)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, callURL, nil)
	require.NoError(t, err)
	_, err = rt.RoundTrip(req) //nolint:bodyclose // there is none
	require.ErrorIs(t, err, errDown)
	gone, cancel := context.WithCancel(ctx)
	cancel()
	_, err = rt.RoundTrip(readOf(gone, t, callURL)) //nolint:bodyclose // there is none
	require.Error(t, err)
	s.says(http.StatusNotFound, "no")
	resp, err := rt.RoundTrip(readOf(ctx, t, callURL))
	require.NoError(t, err)
	require.Equal(t, http.StatusNotFound, resp.StatusCode)
	require.NoError(t, resp.Body.Close())
	require.False(t, asked)
}

// Reads whose answers must not be kept can still have a substitute, and so can work that is not HTTP.
func TestF02_TheCallersOwnSubstituteNeedsNoCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Retry: RetryConfig{Max: -1}, Fallback: FallbackConfig{Cacheable: func(Call) bool { return false }}})
		call := Call{Operation: "settings", Effect: EffectRead, Budget: time.Second}
		ctx := WithFallback(t.Context(), func(ctx context.Context, err error) (settings, error) {
			require.ErrorIs(t, err, errDown)
			require.NoError(t, ctx.Err())
			return settings{"mine"}, nil
		})
		got, err := Do(ctx, s, call, func(context.Context) (settings, error) { return settings{}, errDown })
		require.NoError(t, err)
		require.Equal(t, settings{"mine"}, got)
		require.Zero(t, s.Fallback.Stats().Entries)
		closeStack(t, s)
	})
}
