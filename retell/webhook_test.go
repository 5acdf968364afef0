package retell

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// The vector was checked with Retell's own SDK and with openssl.
const (
	vectorKey       = "key_test_secret"
	vectorBody      = `{"event":"call_ended","call":{"call_id":"call_test"}}`
	vectorTime      = 1767225600000
	vectorDigest    = "a7981c04317078047b5c00fe1e8b07f5a77b1e2ccf9e959d4983372d8400ef14"
	vectorSignature = "v=1767225600000,d=" + vectorDigest
)

func TestVerifyTakesTheVector(t *testing.T) {
	at := time.UnixMilli(vectorTime)
	signed, err := verify([]byte(vectorBody), vectorKey, vectorSignature, at)
	require.NoError(t, err)
	require.True(t, signed.Equal(at))
	_, err = verify([]byte(vectorBody), vectorKey, "V=1767225600000,D="+strings.ToUpper(vectorDigest), at)
	require.NoError(t, err, "the SDK reads upper case")
}

func TestVerifyWindowIsFiveMinutesToTheMillisecond(t *testing.T) {
	for shift, want := range map[time.Duration]error{
		0:                                 nil,
		5 * time.Minute:                   nil,
		-5 * time.Minute:                  nil,
		5*time.Minute + time.Millisecond:  ErrStaleSignature,
		-5*time.Minute - time.Millisecond: ErrStaleSignature,
		24 * time.Hour:                    ErrStaleSignature,
	} {
		_, err := verify([]byte(vectorBody), vectorKey, vectorSignature, time.UnixMilli(vectorTime).Add(shift))
		require.ErrorIs(t, err, want, shift)
		if want == nil {
			require.NoError(t, err, shift)
		}
	}
}

func TestVerifyRefuses(t *testing.T) {
	for name, c := range map[string]struct{ body, key, signature string }{
		"another body":      {vectorBody + " ", vectorKey, vectorSignature},
		"another key":       {vectorBody, "key_other", vectorSignature},
		"no key":            {vectorBody, "", vectorSignature},
		"nothing":           {vectorBody, vectorKey, ""},
		"another time":      {vectorBody, vectorKey, "v=1767225600001,d=" + vectorDigest},
		"a leading zero":    {vectorBody, vectorKey, "v=01767225600000,d=" + vectorDigest},
		"a sign":            {vectorBody, vectorKey, "v=+" + vectorSignature[2:]},
		"a signed sign":     {vectorBody, vectorKey, sign(vectorBody, vectorKey, "+"+"1767225600000")},
		"no time":           {vectorBody, vectorKey, "v=,d=" + vectorDigest},
		"a short digest":    {vectorBody, vectorKey, vectorSignature[:len(vectorSignature)-2]},
		"a long digest":     {vectorBody, vectorKey, vectorSignature + "00"},
		"not hex":           {vectorBody, vectorKey, vectorSignature[:len(vectorSignature)-1] + "g"},
		"something behind":  {vectorBody, vectorKey, vectorSignature + ",x=1"},
		"other order":       {vectorBody, vectorKey, "d=" + vectorDigest + ",v=1767225600000"},
		"the digest alone":  {vectorBody, vectorKey, vectorDigest},
		"spaces":            {vectorBody, vectorKey, " " + vectorSignature},
		"a time past int64": {vectorBody, vectorKey, sign(vectorBody, vectorKey, strings.Repeat("9", 30))},
	} {
		_, err := verify([]byte(c.body), c.key, c.signature, time.UnixMilli(vectorTime))
		require.ErrorIs(t, err, ErrBadSignature, name)
	}
}

func sign(body, key, stamp string) string {
	mac := hmac.New(sha256.New, []byte(key))
	mac.Write([]byte(body + stamp))
	return "v=" + stamp + ",d=" + hex.EncodeToString(mac.Sum(nil))
}

func FuzzVerify(f *testing.F) {
	f.Add([]byte(vectorBody), vectorSignature)
	f.Add([]byte("{}"), "v=1,d=2")
	f.Fuzz(func(t *testing.T, body []byte, signature string) {
		_, err := verify(body, vectorKey, signature, time.UnixMilli(vectorTime))
		if err == nil && string(body) != vectorBody {
			t.Fatalf("forged: %q %q", body, signature)
		}
		_, _ = ParseWebhook(body)
	})
}

// deliver is one delivery, signed as of now.
func deliver(h http.Handler, body string) int {
	return deliverAt(h, body, time.Now()).Code
}

func deliverAt(h http.Handler, body string, signed time.Time) *httptest.ResponseRecorder {
	req := httptest.NewRequest("POST", "/webhook", strings.NewReader(body))
	req.Header.Set(SignatureHeader, sign(body, vectorKey, strconv.FormatInt(signed.UnixMilli(), 10)))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	return w
}

// heard is a handler that writes down what it is given, and fails as often as it is told.
type heard struct {
	mu     sync.Mutex
	events []string
	fail   int
}

func (l *heard) handle(_ context.Context, e *WebhookEvent) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, string(e.Event)+" "+e.ID())
	if l.fail > 0 {
		l.fail--
		return errors.New("the database is away")
	}
	return nil
}

func TestWebhookIsHandledOnce(t *testing.T) {
	l := &heard{}
	h := WebhookHandler(WebhookConfig{APIKey: vectorKey, Handle: l.handle})
	event := func(name, id, rest string) string {
		return fmt.Sprintf(`{"event":%q,"call":{"call_id":%q%s}}`, name, id, rest)
	}
	for _, body := range []string{
		event("call_ended", "c1", ""),
		event("call_ended", "c1", `,"duration_ms":5`), // the same, with more in it
		event("call_ended", "c2", ""),
		event("call_analyzed", "c1", ""),
		event("call_analyzed", "c1", ""),
		event("transfer_started", "c1", `,"start_timestamp":1`),
		event("transfer_started", "c1", `,"start_timestamp":1`),
		event("transfer_started", "c1", `,"start_timestamp":2`),
		`{"event":"chat_ended","chat":{"chat_id":"c1"}}`,
		`{"event":"brand_new","call":{"call_id":"c1"},"x":1}`,
		`{"event":"brand_new","call":{"call_id":"c1"},"x":1}`,
		`{"event":"brand_new","call":{"call_id":"c1"},"x":2}`,
	} {
		require.Equal(t, http.StatusNoContent, deliver(h, body), body)
	}
	require.Equal(t, []string{
		"call_ended c1", "call_ended c2", "call_analyzed c1", "transfer_started c1", "transfer_started c1", "chat_ended c1",
		"brand_new c1", "brand_new c1",
	}, l.events)
}

func TestWebhookThatFailedComesAgain(t *testing.T) {
	l := &heard{fail: 2}
	var told []error
	h := WebhookHandler(WebhookConfig{APIKey: vectorKey, Handle: l.handle, OnError: func(err error) { told = append(told, err) }})
	require.Equal(t, http.StatusInternalServerError, deliver(h, vectorBody))
	require.Equal(t, http.StatusInternalServerError, deliver(h, vectorBody))
	require.Equal(t, http.StatusNoContent, deliver(h, vectorBody))
	require.Equal(t, http.StatusNoContent, deliver(h, vectorBody))
	require.Len(t, l.events, 3)
	require.Len(t, told, 2)
}

func TestWebhookFunctionThatPanicsHasNotHandled(t *testing.T) {
	first := true
	h := WebhookHandler(WebhookConfig{APIKey: vectorKey, Handle: func(context.Context, *WebhookEvent) error {
		if first {
			first = false
			panic("bug")
		}
		return nil
	}})
	require.Panics(t, func() { deliver(h, vectorBody) })
	require.Equal(t, http.StatusNoContent, deliver(h, vectorBody))
}

func TestSecondDeliveryWaitsForTheFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan error)
		handled := 0
		h := WebhookHandler(WebhookConfig{APIKey: vectorKey, Handle: func(context.Context, *WebhookEvent) error {
			handled++
			return <-release
		}})
		codes := make(chan int, 3)
		for range 3 {
			go func() { codes <- deliver(h, vectorBody) }()
		}
		synctest.Wait()
		require.Empty(t, codes, "nobody is told that it is done before it is")
		release <- nil
		for range 3 {
			require.Equal(t, http.StatusNoContent, <-codes)
		}
		require.Equal(t, 1, handled)
	})
}

func TestOnlyTheNewestTranscriptCounts(t *testing.T) {
	l := &heard{}
	h := WebhookHandler(WebhookConfig{APIKey: vectorKey, Handle: l.handle})
	now := time.Now()
	update := func(n int, after time.Duration) {
		body := fmt.Sprintf(`{"event":"transcript_updated","call":{"call_id":"c1","transcript":"%d"}}`, n)
		require.Equal(t, http.StatusNoContent, deliverAt(h, body, now.Add(after)).Code)
	}
	update(1, 0)
	update(3, 2*time.Second)
	update(2, time.Second) // overtaken
	update(3, 3*time.Second)
	update(4, 4*time.Second)
	require.Len(t, l.events, 3)
}

func TestWebhookMemoryIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &heard{}
		handler := WebhookHandler(WebhookConfig{APIKey: vectorKey, Handle: l.handle, MaxRemembered: 3, Remember: time.Hour})
		h := handler.(*webhookHandler)
		for i := range 100 {
			deliver(h, fmt.Sprintf(`{"event":"transcript_updated","call":{"call_id":"c%d"}}`, i))
			deliver(h, fmt.Sprintf(`{"event":"call_ended","call":{"call_id":"c%d"}}`, i))
			require.LessOrEqual(t, len(h.seen.byID), 3)
			require.LessOrEqual(t, len(h.seen.newest), 3)
		}
		require.Len(t, l.events, 200)
		deliver(h, `{"event":"call_ended","call":{"call_id":"c99"}}`)
		require.Len(t, l.events, 200)
		time.Sleep(time.Hour)
		deliver(h, `{"event":"call_ended","call":{"call_id":"c99"}}`)
		require.Len(t, l.events, 201, "forgotten")
		require.Len(t, h.seen.byID, 1)
	})
}

func TestWebhookHandlerRefuses(t *testing.T) {
	l := &heard{}
	h := WebhookHandler(WebhookConfig{APIKey: vectorKey, Handle: l.handle, MaxBytes: 64})
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	require.Equal(t, http.StatusMethodNotAllowed, w.Code)
	w = httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("POST", "/", strings.NewReader(vectorBody)))
	require.Equal(t, http.StatusUnauthorized, w.Code)
	require.Equal(t, http.StatusUnauthorized, deliverAt(h, vectorBody, time.Now().Add(-6*time.Minute)).Code)
	require.Equal(t, http.StatusBadRequest, deliver(h, `not JSON`))
	require.Equal(t, http.StatusBadRequest, deliver(h, `{}`))
	require.Equal(t, http.StatusBadRequest, deliver(h, `{"event":"call_ended","call":7}`))
	require.Equal(t, http.StatusRequestEntityTooLarge, deliver(h, `{"event":"`+strings.Repeat("x", 64)+`"}`))
	require.Empty(t, l.events)
	require.Panics(t, func() { WebhookHandler(WebhookConfig{APIKey: vectorKey}) })
	require.Panics(t, func() { WebhookHandler(WebhookConfig{Handle: l.handle}) })
}

func TestInboundWebhookIsAnsweredWithNoOverride(t *testing.T) {
	var got *WebhookEvent
	h := WebhookHandler(WebhookConfig{APIKey: vectorKey, Handle: func(_ context.Context, e *WebhookEvent) error {
		got = e
		return nil
	}})
	w := deliverAt(h, `{"event":"call_inbound","call_inbound":{"call_id":"c1","from_number":"+15555550100","to_number":"+15555550123"}}`, time.Now())
	require.Equal(t, 200, w.Code)
	require.JSONEq(t, `{"call_inbound":{}}`, w.Body.String())
	require.Equal(t, "+15555550100", got.Inbound.FromNumber)
}

func TestParseWebhook(t *testing.T) {
	e, err := ParseWebhook([]byte(`{"event":"transfer_started","call":{"call_id":"c1","metadata":{"n":9007199254740993}},
		"transfer_destination":{"number":"+15555550123","extension":"7"},"transfer_option":{"type":"warm"}}`))
	require.NoError(t, err)
	require.Equal(t, EventTransferStarted, e.Event)
	require.Equal(t, "9007199254740993", fmt.Sprint(e.Call.Metadata["n"]))
	require.Equal(t, "7", e.TransferDestination.Extension)
	require.NotEmpty(t, e.Raw)
	require.Contains(t, string(e.Call.Raw), "c1")
}

func TestWebhookKeyNamesTheEvent(t *testing.T) {
	key := func(body string) string {
		e, err := ParseWebhook([]byte(body))
		require.NoError(t, err)
		require.LessOrEqual(t, len(e.Key()), maxEventKey)
		return e.Key()
	}
	require.Equal(t, "call_ended:c1", key(`{"event":"call_ended","call":{"call_id":"c1"}}`))
	require.Equal(t, "call_ended:c1", key(`{"event":"call_ended","call":{"call_id":"c1","duration_ms":5}}`))
	require.Equal(t, "chat_ended:c1", key(`{"event":"chat_ended","chat":{"chat_id":"c1"}}`))
	seen := map[string]bool{}
	for _, body := range []string{
		`{"event":"call_ended"}`,
		`{"event":"call_ended","call":{"call_id":"` + strings.Repeat("x", 300) + `"}}`,
		`{"event":"call_ended","call":{"call_id":"a\nb"}}`,
		`{"event":"transfer_started","call":{"call_id":"c1"},"transfer_destination":{"number":"+15555550123"}}`,
		`{"event":"transfer_started","call":{"call_id":"c1","start_timestamp":1},"transfer_destination":{"number":"+15555550123"}}`,
		`{"event":"transfer_ended","call":{"call_id":"c1"},"transfer_destination":{"number":"+15555550123"}}`,
		`{"event":"brand_new","call":{"call_id":"c1"},"x":1}`,
		`{"event":"brand_new","call":{"call_id":"c1"},"x":2}`,
	} {
		k := key(body)
		require.False(t, seen[k], body)
		require.Equal(t, k, key(body))
		require.NotContains(t, k, "5555550123")
		require.Regexp(t, `^event:[0-9a-f]{64}$`, k)
		seen[k] = true
	}
}

// A key from a file ends in a newline. New takes it off; webhooks under the same key must not all be refused.
func TestTheKeyOfAWebhookIsTrimmedAsThatOfAClient(t *testing.T) {
	c, err := New(vectorKey+"\n", WithTransport(answering(200, `{}`, nil)))
	require.NoError(t, err)
	require.NoError(t, c.Close(t.Context()))
	handle := func(context.Context, *WebhookEvent) error { return nil }
	require.Equal(t, http.StatusNoContent, deliver(WebhookHandler(WebhookConfig{APIKey: vectorKey + "\n", Handle: handle}), vectorBody))
	require.Panics(t, func() { WebhookHandler(WebhookConfig{APIKey: " \n", Handle: handle}) })
	_, err = verify([]byte(vectorBody), " ", sign(vectorBody, "", "1767225600000"), time.UnixMilli(vectorTime))
	require.ErrorIs(t, err, ErrBadSignature, "no key is still no key")
}

// Whoever waits for a delivery that ends badly must not be told that it is done: then nobody would send it again.
func TestSecondDeliverySharesThePanicOfTheFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		handled := 0
		h := WebhookHandler(WebhookConfig{APIKey: vectorKey, Handle: func(context.Context, *WebhookEvent) error {
			if handled++; handled == 1 {
				<-release
				panic("bug")
			}
			return nil
		}})
		codes, panicked := make(chan int, 1), make(chan any, 1)
		go func() {
			defer func() { panicked <- recover() }()
			deliver(h, vectorBody)
		}()
		synctest.Wait()
		go func() { codes <- deliver(h, vectorBody) }()
		synctest.Wait()
		close(release)
		require.Equal(t, "bug", <-panicked)
		require.Equal(t, http.StatusInternalServerError, <-codes)
		require.Equal(t, http.StatusNoContent, deliver(h, vectorBody))
		require.Equal(t, 2, handled)
	})
}

// A sender that hangs up while it waits does not hold the handler, and ends nothing for the one that is handled.
func TestSecondDeliveryMayHangUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		handled := 0
		var told []error
		h := WebhookHandler(WebhookConfig{
			APIKey: vectorKey, OnError: func(err error) { told = append(told, err) },
			Handle: func(ctx context.Context, _ *WebhookEvent) error {
				handled++
				<-release
				return ctx.Err()
			},
		})
		first := make(chan int, 1)
		go func() { first <- deliver(h, vectorBody) }()
		synctest.Wait()
		gone := errors.New("hung up")
		ctx, hangUp := context.WithCancelCause(t.Context())
		second := make(chan int, 1)
		go func() {
			req := httptest.NewRequest("POST", "/", strings.NewReader(vectorBody)).WithContext(ctx)
			req.Header.Set(SignatureHeader, sign(vectorBody, vectorKey, strconv.FormatInt(time.Now().UnixMilli(), 10)))
			w := httptest.NewRecorder()
			h.ServeHTTP(w, req)
			second <- w.Code
		}()
		synctest.Wait()
		hangUp(gone)
		require.Equal(t, http.StatusInternalServerError, <-second)
		require.ErrorIs(t, told[0], gone)
		close(release)
		require.Equal(t, http.StatusNoContent, <-first)
		require.Equal(t, 1, handled)
	})
}
