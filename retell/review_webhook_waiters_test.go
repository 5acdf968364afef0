package retell

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

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
