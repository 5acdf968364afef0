package resilience

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A call with the key of a letter, to another of the hosts that share an address, is another write.
func TestLetter_IsNotTakenForAWriteToAnotherHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down := true
		var hosts []string
		s := newStack(t, Config{Retry: RetryConfig{Off: true}})
		rt := s.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			if down {
				return nil, MarkNotSent(io.EOF)
			}
			hosts = append(hosts, req.Host)
			return reply(201, "{}"), nil
		}))
		post := func(host string) error {
			req, _ := http.NewRequestWithContext(WithIdempotencyKey(t.Context(), "k"), http.MethodPost, "http://gateway/v2/calls", strings.NewReader("{}"))
			req.Host = host
			_, err := rt.RoundTrip(req)
			return err
		}
		require.ErrorIs(t, post("one"), ErrParked)
		down = false
		err := post("two")
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		require.NoError(t, s.Run(ctx))
		closeStack(t, s)
		require.ErrorIs(t, err, ErrKeyReused)
		require.Equal(t, []string{"one"}, hosts, "the caller was told that a letter owns this write")
	})
}

// Two calls with one key fail one after the other, and between them a newer write of the same resource has worked.
func TestLetter_StaysSupersededWhenAnOlderCallWithItsKeyFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := mustDLQ(t, DLQConfig{})
		fail := map[string]chan struct{}{"first": make(chan struct{}), "second": make(chan struct{})}
		rt := d.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			if wait := fail[req.Header.Get("Call")]; wait != nil {
				<-wait
				return nil, io.EOF
			}
			return reply(200, "{}"), nil
		}))
		put := func(key, call, body string) error {
			ctx := WithCall(WithIdempotencyKey(t.Context(), key), Call{Resource: "agent/1"})
			req, _ := http.NewRequestWithContext(ctx, http.MethodPut, "http://h/agent/1", strings.NewReader(body))
			req.Header.Set("Call", call)
			_, err := rt.RoundTrip(req)
			return err
		}
		ends := make(chan error, 2)
		for _, call := range []string{"first", "second"} {
			go func() { ends <- put("old", call, "old") }()
		}
		time.Sleep(time.Second)
		close(fail["first"])
		require.ErrorIs(t, <-ends, ErrParked)
		require.NoError(t, put("new", "", "new"))
		require.Equal(t, 1, d.Stats().Superseded)
		close(fail["second"])
		require.ErrorIs(t, <-ends, ErrParked)
		require.Equal(t, 1, d.Stats().Superseded, "the older write would undo the newer one")
	})
}

// A redrive under a context that describes other calls goes as its letter says.
func TestLetter_IsRedrivenAsItSaysWhateverTheContextOfTheRedriveSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sent := 0
		s := newStack(t, Config{Idempotency: IdempotencyConfig{Off: true}})
		s.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			sent++
			return nil, io.EOF
		}))
		require.NoError(t, s.DLQ.Add(Letter{Key: "k", Method: http.MethodPost, URL: "http://h/calls", Next: time.Now()}))
		ctx := WithCall(t.Context(), Call{Effect: EffectRead, Resource: "list"})
		require.Equal(t, RedriveInDoubt, s.DLQ.Redrive(ctx).Status)
		closeStack(t, s)
		require.Equal(t, 1, sent, "it happens once at most, however often the context says it may")
	})
}

// The budget of whoever redrives is not the letter's, and neither is the one that its call had.
func TestLetter_IsRedrivenWithTheDefaultBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{})
		s.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			time.Sleep(10 * time.Second)
			return reply(201, "{}"), nil
		}))
		for _, method := range []string{http.MethodPost, http.MethodPut} {
			call := Call{Budget: time.Second}
			require.NoError(t, s.DLQ.Add(Letter{Key: method, Method: method, URL: "http://h/calls", Next: time.Now(), Call: call}))
			result := s.DLQ.Redrive(WithBudget(t.Context(), time.Second))
			time.Sleep(time.Minute)
			require.Equal(t, RedriveDone, result.Status)
		}
		closeStack(t, s)
	})
}

// A write that is found to have worked is as good a reason to leave an older one as one that was seen to work.
func TestLetter_IsSupersededByANewerOneThatIsFoundToHaveWorked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		state, mode := "", "refuse"
		s := newStack(t, Config{Retry: RetryConfig{Off: true}})
		rt := s.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			b, _ := io.ReadAll(req.Body)
			switch mode {
			case "refuse":
				return nil, MarkNotSent(io.EOF)
			case "lose":
				state = string(b)
				return nil, io.EOF
			}
			state = string(b)
			return reply(200, "{}"), nil
		}))
		patch := func(key, body string) error {
			ctx := WithCall(WithIdempotencyKey(t.Context(), key), Call{Resource: "agent/1"})
			req, _ := http.NewRequestWithContext(ctx, http.MethodPatch, "http://h/agent/1", strings.NewReader(body))
			_, err := rt.RoundTrip(req)
			return err
		}
		require.ErrorIs(t, patch("1", "old"), ErrParked)
		time.Sleep(time.Second)
		mode = "lose"
		require.ErrorIs(t, patch("2", "new"), ErrInDoubt)
		mode = "work"
		require.NoError(t, s.Idempotency.Resolve(t.Context(), "2", Resolution{State: KeyConfirmed, Reason: "seen"}))
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		require.NoError(t, s.Run(ctx))
		closeStack(t, s)
		require.Equal(t, "new", state)
	})
}
