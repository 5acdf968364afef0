package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
	"github.com/retell-resilience/resilience/internal/leak"
	"github.com/retell-resilience/resilience/retell"
	"github.com/retell-resilience/resilience/retell/retelltest"
)

func TestMain(m *testing.M) { leak.Main(m) }

func nothingSet(string) string { return "" }

func TestStory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		require.NoError(t, run(t.Context(), nil, nothingSet, &out), "%s", &out)
		text := out.String()
		for _, line := range []string{
			"in doubt", "it has rung 1 time", "401", "keeps an event", "no room", "call_ended: 500", "done: its event",
			"2 of them waited as letters; all 4 are in the books, 0 twice.",
		} {
			require.Contains(t, text, line)
		}
		require.NotContains(t, text, "+1555")
	})
}

func TestStoryEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, run(ctx, nil, nothingSet, io.Discard), context.Canceled)
	})
}

func TestBadFlags(t *testing.T) {
	require.ErrorIs(t, run(t.Context(), []string{"-h"}, nothingSet, io.Discard), flag.ErrHelp)
	require.ErrorContains(t, run(t.Context(), []string{"-addr", "127.0.0.1:0"}, nothingSet, io.Discard), "RETELL_API_KEY")
}

// desk is a receiver under test, with a database that fails as told.
type desk struct {
	*receiver
	handler http.Handler
	fail    atomic.Bool
	done    atomic.Int64
}

func newDesk(t *testing.T, change func(*resilience.Config)) *desk {
	t.Helper()
	client, err := retell.New(retelltest.DefaultKey, retell.WithTransport(resilience.RoundTripFunc(func(*http.Request) (*http.Response, error) {
		return nil, errors.New("nobody is called here")
	})))
	require.NoError(t, err)
	cfg := eventLayers(nil)
	if change != nil {
		change(&cfg)
	}
	events, err := resilience.New(cfg)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, errors.Join(client.Close(context.Background()), events.Close(context.Background())))
	})
	d := &desk{}
	d.receiver = newReceiver(client, events, func(ctx context.Context, _ *retell.WebhookEvent) error {
		if d.fail.Load() {
			return errAway
		}
		d.done.Add(1)
		return ctx.Err()
	})
	d.handler = d.receiver.handler(retelltest.DefaultKey, nil)
	return d
}

const ended = `{"event":"call_ended","call":{"call_id":"call_1"}}`

func (d *desk) post(body string) int {
	p := &postman{teller: &teller{out: io.Discard}, handler: d.handler}
	return p.once([]byte(body), retelltest.Sign([]byte(body), retelltest.DefaultKey, time.Now()))
}

func (d *desk) runFor(t *testing.T, how time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), how)
	defer cancel()
	require.NoError(t, d.events.Run(ctx))
}

func TestAnEventIsAcknowledgedOnceItIsSafe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, nil)
		d.fail.Store(true)
		require.Equal(t, http.StatusNoContent, d.post(ended))
		letters := d.events.DLQ.List(resilience.LetterFilter{})
		require.Len(t, letters, 1)
		require.Equal(t, "webhook:call_ended:call_1", letters[0].Key)
		require.Equal(t, http.StatusNoContent, d.post(ended), "a second delivery")
		d.runFor(t, 10*time.Hour)
		require.Equal(t, 1, d.events.DLQ.Len(), "not given up")
		d.fail.Store(false)
		d.runFor(t, time.Hour)
		require.Zero(t, d.events.DLQ.Len())
		require.EqualValues(t, 1, d.done.Load())
		require.Equal(t, http.StatusNoContent, d.post(ended))
		require.EqualValues(t, 1, d.done.Load())
	})
}

func TestWhatCannotBeParkedStaysWithRetell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, func(c *resilience.Config) { c.DLQ.MaxBytes = 1 })
		d.fail.Store(true)
		require.Equal(t, http.StatusInternalServerError, d.post(ended))
		d.fail.Store(false)
		require.Equal(t, http.StatusNoContent, d.post(ended))
		require.EqualValues(t, 1, d.done.Load())
	})
}

func TestWhatCannotBeWrittenDownIsNotAcknowledged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, nil)
		full := true
		d.safe = func() error {
			if full {
				return errors.New("disk full")
			}
			return nil
		}
		d.fail.Store(true)
		require.Equal(t, http.StatusInternalServerError, d.post(ended))
		full = false
		require.Equal(t, http.StatusNoContent, d.post(ended), "merged into its letter")
		require.Equal(t, 1, d.events.DLQ.Len())
		d.fail.Store(false)
		d.runFor(t, time.Hour)
		require.EqualValues(t, 1, d.done.Load())
		require.Zero(t, d.events.DLQ.Len())
	})
}

// A database that hangs must not make Retell wait for longer than it does.
func TestAHangingDatabaseIsParkedInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, nil)
		hang := true
		d.process = func(ctx context.Context, _ *retell.WebhookEvent) error {
			if hang {
				<-ctx.Done()
				return ctx.Err()
			}
			d.done.Add(1)
			return nil
		}
		start := time.Now()
		require.Equal(t, http.StatusNoContent, d.post(ended))
		require.Less(t, time.Since(start), 10*time.Second)
		hang = false
		d.runFor(t, time.Hour)
		require.EqualValues(t, 1, d.done.Load())
	})
}

func TestWhatIsOfNoUseLaterIsNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, nil)
		d.fail.Store(true)
		require.Equal(t, http.StatusNoContent, d.post(`{"event":"transcript_updated","call":{"call_id":"call_1"}}`))
		require.Equal(t, http.StatusOK, d.post(`{"event":"call_inbound","call_inbound":{"call_id":"call_2"}}`))
		require.Zero(t, d.events.DLQ.Len())
	})
}

func TestALetterThatIsNoEventIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, nil)
		require.NoError(t, d.events.DLQ.Add(resilience.Letter{Operation: workName, Body: []byte("?")}))
		require.NoError(t, d.events.DLQ.Add(resilience.Letter{Operation: workName, Body: []byte(`{"event":"e30="}`)}))
		d.runFor(t, time.Minute)
		require.Equal(t, 2, d.events.Stats().DLQ.Parked)
	})
}

// lines lets a test read what a server writes.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// start serves until stop is called.
func start(t *testing.T, s server) (url string, stop func() string) {
	t.Helper()
	out := &lines{}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, out, s) }()
	listening := regexp.MustCompile(`http://\S+`)
	require.NoError(t, await(t.Context(), "the address", func() bool { return listening.MatchString(out.String()) }))
	return listening.FindString(out.String()), func() string {
		cancel()
		require.NoError(t, <-ended)
		return out.String()
	}
}

func postTo(t *testing.T, url, body string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
	require.NoError(t, err)
	req.Header.Set(retell.SignatureHeader, retelltest.Sign([]byte(body), "key_web", time.Now()))
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	return resp.StatusCode
}

func TestEventsSurviveARestart(t *testing.T) {
	box := retelltest.NewServer()
	defer box.Close()
	file := filepath.Join(t.TempDir(), "events.letters")
	s := server{addr: "127.0.0.1:0", key: "key_web", baseURL: box.URL(), letters: file}
	s.process = func(context.Context, *retell.WebhookEvent) error { return errAway }
	url, stop := start(t, s)
	require.Equal(t, http.StatusNoContent, postTo(t, url, ended))
	kept, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Contains(t, string(kept), "webhook:call_ended:call_1", "it is in the file when Retell has its answer")
	stop()

	var done atomic.Int64
	s.process = func(_ context.Context, e *retell.WebhookEvent) error {
		done.Add(1)
		return nil
	}
	_, stop = start(t, s)
	require.NoError(t, await(t.Context(), "the event", func() bool { return done.Load() == 1 }))
	stop()
	kept, err = os.ReadFile(file)
	require.NoError(t, err)
	require.NotContains(t, string(kept), "call_1")
}

func TestServeSaysWhatItDoes(t *testing.T) {
	box := retelltest.NewServer()
	defer box.Close()
	url, stop := start(t, server{addr: "127.0.0.1:0", key: "key_web", baseURL: box.URL()})
	require.Equal(t, http.StatusNoContent, postTo(t, url, ended))
	require.Equal(t, http.StatusBadRequest, postTo(t, url, `{}`))
	text := stop()
	require.Contains(t, text, "msg=processed event=call_ended")
	require.Contains(t, text, "not taken")
}

func TestServeRefusesWhatCannotWork(t *testing.T) {
	require.Error(t, serve(t.Context(), io.Discard, server{addr: "127.0.0.1:0", key: "key_web", baseURL: "ftp://x"}))
	file := filepath.Join(t.TempDir(), "letters")
	require.NoError(t, os.WriteFile(file, []byte("not letters"), 0o600))
	require.Error(t, serve(t.Context(), io.Discard, server{addr: "127.0.0.1:0", key: "key_web", letters: file}))
	require.Error(t, serve(t.Context(), io.Discard, server{addr: "nowhere:-1", key: "key_web"}))
	left, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, "not letters", string(left), "what could not be read is not written over")
}
