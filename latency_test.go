package resilience

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Percentiles by class, each with its own number.
func TestLatency_PercentilesOfEachClass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Bulkhead: BulkheadConfig{Off: true}})
		rt := s.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			d, err := time.ParseDuration(req.Header.Get("Takes"))
			if err != nil {
				return nil, err
			}
			return slow(d)(req)
		}))
		call := func(c Class, takes time.Duration) {
			req, err := http.NewRequestWithContext(WithCall(t.Context(), Call{Class: c}), http.MethodGet, "http://api.test/"+takes.String(), nil)
			require.NoError(t, err)
			req.Header.Set("Takes", takes.String())
			_, err = rt.RoundTrip(req) //nolint:bodyclose // in memory
			require.NoError(t, err)
		}
		for i := range 100 { // 80 quick ones, 15 slow ones, 5 very slow ones
			takes := 10 * time.Millisecond
			if i >= 80 {
				takes = 100 * time.Millisecond
			}
			if i >= 95 {
				takes = 2 * time.Second
			}
			call(ClassUnset, takes)
		}
		call(ClassUpload, 40*time.Second)
		call(ClassLongPoll, 200*time.Second)
		l := s.Stats().Latency
		within := func(want, got time.Duration) {
			t.Helper()
			require.GreaterOrEqual(t, got, want)
			require.LessOrEqual(t, got, want*5/4)
		}
		all := Latency{}
		for _, class := range []string{"unset", "request"} {
			if c, ok := l[class]; ok {
				all = c
			}
		}
		require.EqualValues(t, 100, all.Count)
		within(10*time.Millisecond, all.P50)
		within(100*time.Millisecond, all.P90)
		within(2*time.Second, all.P99)
		require.Equal(t, 2*time.Second, all.Max)
		require.Equal(t, 40*time.Second, l["upload"].P50)
		require.Equal(t, 200*time.Second, l["long-poll"].P50)
		require.Len(t, l, 3)
		closeStack(t, s)
	})
}

// What the documentation says of the bounds.
func TestLatency_BoundsAreAtMostAQuarterTooHigh(t *testing.T) {
	var l latencies
	for range 9 {
		l.observe(ClassRequest, 4096*time.Microsecond)
	}
	l.observe(ClassRequest, time.Hour)
	s := l.snapshot()["request"]
	require.Equal(t, 5120*time.Microsecond, s.P50)
}

func TestLatency_Percentiles(t *testing.T) {
	var l latencies
	for range 50 {
		l.observe(ClassRequest, time.Millisecond)
	}
	for range 40 {
		l.observe(ClassRequest, 100*time.Millisecond)
	}
	for range 9 {
		l.observe(ClassRequest, time.Second)
	}
	l.observe(ClassRequest, 10*time.Second)
	l.observe(ClassUpload, 3*time.Microsecond)
	s := l.snapshot()
	require.Len(t, s, 2)
	got := s[ClassRequest.String()]
	require.EqualValues(t, 100, got.Count)
	require.Equal(t, (50*time.Millisecond+40*100*time.Millisecond+9*time.Second+10*time.Second)/100, got.Mean)
	require.Equal(t, 10*time.Second, got.Max)
	for _, p := range []struct{ got, want time.Duration }{
		{got.P50, time.Millisecond}, {got.P90, 100 * time.Millisecond}, {got.P99, time.Second},
	} {
		require.Greater(t, p.got, p.want)
		require.LessOrEqual(t, p.got, p.want*5/4)
	}
	one := s[ClassUpload.String()]
	require.Equal(t, Latency{Count: 1, Mean: 3000, P50: 3000, P90: 3000, P99: 3000, Max: 3000}, one)
}

// A bucket ends where the next begins, and its end is at most a quarter above its beginning.
func TestLatency_BucketsMeet(t *testing.T) {
	for b := range buckets - 1 {
		require.Equal(t, b, bucketOf(upper(b)-1), "the last instant of %d", b)
		require.Equal(t, b+1, bucketOf(upper(b)), "the first instant behind %d", b)
		if b >= 4 {
			require.LessOrEqual(t, upper(b), upper(b-1)*5/4)
		}
	}
}

func TestStack_StatsShowLatencyByClass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{})
		rt := s.Wrap(slow(100 * time.Millisecond))
		for range 10 {
			_, err := fetch(t.Context(), t, rt)
			require.NoError(t, err)
		}
		l := s.Stats().Latency["request"]
		require.EqualValues(t, 10, l.Count)
		require.Equal(t, 100*time.Millisecond, l.Mean)
		require.Equal(t, 100*time.Millisecond, l.P99)
		closeStack(t, s)
	})
}

func TestLatency_BucketsAreOrderedAndTight(t *testing.T) {
	last := -1
	for us := int64(0); us < 1<<36; us = us + us/7 + 1 {
		d := time.Duration(us) * time.Microsecond
		b := bucketOf(d)
		require.GreaterOrEqual(t, b, last)
		last = b
		require.Greater(t, upper(b), d)
		require.LessOrEqual(t, float64(upper(b)), 1.26*float64(d)+float64(2*time.Microsecond))
	}
	require.Equal(t, buckets-1, bucketOf(maxDuration))
	require.Equal(t, 0, bucketOf(-1))
}
