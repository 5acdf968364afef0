package resilience

import (
	"context"
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestDLQ_TheContextOfARedriveEndsWithIt(t *testing.T) {
	d := mustDLQ(t, DLQConfig{})
	var ctx context.Context
	d.Handle("op", func(c context.Context, _ Letter) error { ctx = c; return nil })
	require.NoError(t, d.Add(Letter{Operation: "op", Next: time.Now()}))
	require.Equal(t, RedriveDone, d.Redrive(t.Context()).Status)
	require.ErrorIs(t, ctx.Err(), context.Canceled)
}

// News of the key that come while a redrive is prepared keep it from being sent.
func TestDLQ_NewsThatComeWhileALetterIsAuthorized(t *testing.T) {
	for name, c := range map[string]struct {
		news keyVerdict
		want RedriveStatus
		left int
	}{
		"it happened":      {keyDone, RedriveDone, 0},
		"it may have done": {keyUnknown, RedriveReturned, 1},
	} {
		t.Run(name, func(t *testing.T) {
			var d *DLQ
			d = mustDLQ(t, DLQConfig{Authorize: func(context.Context, Letter, *http.Request) error {
				d.settle("k", keyNews{verdict: c.news})
				return nil
			}})
			w := &dlqWorld{answer: dlqStatus(200)}
			_ = d.Wrap(w)
			require.NoError(t, d.Add(Letter{Key: "k", Method: http.MethodPost, URL: "http://h/", Next: time.Now()}))
			require.Equal(t, c.want, d.Redrive(t.Context()).Status)
			require.Empty(t, w.calls())
			require.Equal(t, c.left, d.Len())
			dlqConserved(t, d)
		})
	}
}

func TestDLQ_ALookUpSettlesTheLetterAndWhatIsOlder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := mustDLQ(t, DLQConfig{})
		w := &dlqWorld{answer: dlqStatus(200)}
		_ = d.Wrap(w)
		d.reconcile = func(context.Context, string) keyNews { return newsNow(keyDone) }
		call := Call{Resource: "r"}
		require.NoError(t, d.Add(Letter{Method: http.MethodPatch, URL: "http://h/", Call: call, Next: time.Now().Add(time.Hour)}))
		time.Sleep(time.Second)
		require.NoError(t, d.Add(Letter{Method: http.MethodPatch, URL: "http://h/", Call: call, InDoubt: true, Next: time.Now()}))
		require.Equal(t, RedriveDone, d.Redrive(t.Context()).Status)
		require.Equal(t, LetterSuperseded, dlqOnly(t, d).State())
		require.Empty(t, w.calls())
	})
}

func TestDLQ_ALookUpThatFindsNothingSaysWhenTheNextOneIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := mustDLQ(t, DLQConfig{})
		require.NoError(t, d.Add(Letter{Method: http.MethodPost, URL: "http://h/", InDoubt: true, Next: time.Now()}))
		result := d.Redrive(t.Context())
		l := dlqOnly(t, d)
		require.Equal(t, RedriveInDoubt, result.Status)
		require.Equal(t, l.Next, result.Next)
		require.Greater(t, l.Next, time.Now())
		require.Equal(t, 1, l.Redrives)
		require.Equal(t, LetterInDoubt, l.State())
	})
}

type closeNoted struct {
	io.Reader
	closed bool
}

func (c *closeNoted) Close() error { c.closed = true; return nil }

func TestDLQ_TheAnswerToARedriveIsClosed(t *testing.T) {
	body := &closeNoted{Reader: http.NoBody}
	d := mustDLQ(t, DLQConfig{})
	_ = d.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"text/event-stream"}}, Body: body}, nil
	}))
	require.NoError(t, d.Add(Letter{Method: http.MethodPut, URL: "http://h/", Next: time.Now()}))
	require.Equal(t, RedriveDone, d.Redrive(t.Context()).Status)
	require.True(t, body.closed)
}

// What the account is refused waits until somebody has put that right, and the letter says why.
func TestDLQ_ALetterSaysWhyItWaits(t *testing.T) {
	for status, want := range map[int]string{401: "credentials", 402: "credentials", 403: "credentials", 429: "throttled", 400: "poison"} {
		d := mustDLQ(t, DLQConfig{})
		_ = d.Wrap(&dlqWorld{answer: dlqStatus(status)})
		require.NoError(t, d.Add(Letter{Method: http.MethodPut, URL: "http://h/", Next: time.Now()}))
		result := d.Redrive(t.Context())
		l := dlqOnly(t, d)
		require.Equal(t, want == "poison", result.Status == RedriveParked)
		require.Equal(t, want, l.Cause)
		require.Equal(t, 1, l.Redrives)
		require.Equal(t, l.Next, result.Next)
	}
}

func TestDLQ_NewsThatComeDuringALookUp(t *testing.T) {
	add := func(t *testing.T, during keyNews, l Letter) (*DLQ, *dlqWorld) {
		d := mustDLQ(t, DLQConfig{Attempts: 2})
		w := &dlqWorld{answer: dlqStatus(200)}
		_ = d.Wrap(w)
		d.reconcile = func(_ context.Context, key string) keyNews {
			d.settle(key, during)
			return keyNews{}
		}
		l.Method, l.URL, l.Key, l.InDoubt, l.Next = "POST", "http://h/", "k", true, time.Now()
		require.NoError(t, d.Add(l))
		return d, w
	}
	t.Run("it happened", func(t *testing.T) {
		d, w := add(t, keyNews{verdict: keyDone}, Letter{})
		require.Equal(t, RedriveDone, d.Redrive(t.Context()).Status)
		require.Equal(t, RedriveEmpty, d.Redrive(t.Context()).Status)
		require.Zero(t, d.Len())
		require.True(t, d.Stats().NextDue.IsZero())
		require.Empty(t, w.calls())
		dlqConserved(t, d)
	})
	t.Run("it did not", func(t *testing.T) {
		d, w := add(t, keyNews{verdict: keyNotApplied}, Letter{})
		require.Equal(t, RedriveDone, d.Redrive(t.Context()).Status)
		require.Len(t, w.calls(), 1)
	})
	t.Run("it did not, and was tried enough", func(t *testing.T) {
		d, w := add(t, keyNews{verdict: keyNotApplied}, Letter{Attempts: 2})
		require.Equal(t, RedriveParked, d.Redrive(t.Context()).Status)
		require.Empty(t, w.calls())
	})
}

// What was found out of a key changes a letter only where that is news for it.
func TestDLQ_NoNewsLeavesALetterAsItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := mustDLQ(t, DLQConfig{})
		require.NoError(t, d.Add(Letter{ID: "here", Operation: "op", Key: "k"}))
		waiting := dlqOnly(t, d)
		time.Sleep(time.Millisecond)
		d.settle("k", newsNow(keyNotApplied))
		require.Equal(t, waiting, dlqOnly(t, d), "it is not in doubt")
		require.NoError(t, d.Import(fileOf(t, Letter{ID: "there", Key: "k", InDoubt: true})))
		doubted := dlqOnly(t, d)
		require.False(t, doubted.DoubtSince.IsZero())
		time.Sleep(time.Millisecond)
		d.settle("k", newsNow(keyUnknown))
		require.Equal(t, doubted, dlqOnly(t, d), "that nothing is known takes nothing from what another process said")
	})
}
