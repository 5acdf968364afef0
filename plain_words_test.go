package resilience

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What is printed and logged shows no personal data, and what is said of an error is what a caller should do.

const secretURL = "https://api.example.com/x/+15555550123?token=SECRET"

func TestError_TheTextShowsNoURLOfACause(t *testing.T) {
	inner := &url.Error{Op: "Get", URL: secretURL, Err: io.ErrUnexpectedEOF}
	for _, cause := range []error{
		inner, fmt.Errorf("mine: %w", inner), errors.Join(ErrInDoubt, inner), fmt.Errorf("%w: %w", ErrInDoubt, inner),
		&url.Error{Op: "Post", URL: secretURL, Err: inner},
		errors.Join(&url.Error{Op: "Get", URL: secretURL + "&n=1", Err: io.EOF}, inner),
	} {
		e := &Error{Layer: "timeout", Operation: "get", Err: cause}
		require.NotContains(t, e.Error(), "example.com")
		require.NotContains(t, e.Error(), "5555550123")
		require.Contains(t, e.Error(), "EOF")
		require.ErrorIs(t, e, inner.Err, "it is still there")
	}
}

func TestError_TemporaryIsFalseOfWhatMayHaveHappened(t *testing.T) {
	for _, again := range []error{ErrOpen, ErrFull, ErrInFlight, ErrThrottled, ErrTimeout, context.DeadlineExceeded} {
		require.True(t, (&Error{Err: again}).Temporary(), again)
		require.False(t, (&Error{Err: errors.Join(ErrInDoubt, again)}).Temporary(), again)
		require.False(t, (&Error{Err: errors.Join(ErrParked, again)}).Temporary(), again)
	}
	require.False(t, (&Error{Err: ErrKeyReused}).Temporary())
}

func TestLettersAndRecords_InLogs(t *testing.T) {
	letter := Letter{
		ID: "letter-1", Operation: "create-phone-call", Key: "+15555550123", URL: secretURL, Body: []byte("SECRET"),
		Header: http.Header{"X-Token": {"SECRET"}}, Cause: "status", StatusCode: 500, Attempts: 3, Parked: true, ParkedReason: "attempts",
	}
	record := Record{ID: "key-1", Operation: "create-phone-call", State: KeyInDoubt, Sends: 2, Doubts: 1, Body: []byte("SECRET"), Reason: "+15555550123"}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "letter", letter, "pointer", &letter, "record", record)
	text := log.String() + fmt.Sprint(letter, &letter, record, &record) + fmt.Sprintf("%v %+v %s", letter, record, record)
	require.NotContains(t, text, "SECRET")
	require.NotContains(t, text, "5555550123")
	require.Contains(t, log.String(), "letter.state=parked")
	require.Contains(t, log.String(), "record.state=in_doubt")
	require.Contains(t, letter.String(), "letter-1 of create-phone-call: parked, 3 attempts, attempts")
	require.Contains(t, record.String(), "key-1 of create-phone-call: in_doubt, 2 sends, 1 in doubt")
}

func TestConfig_AForgottenUnitIsRefused(t *testing.T) {
	_, err := New(Config{
		Timeout: TimeoutConfig{Request: 30}, Breaker: BreakerConfig{OpenFor: 999},
		Idempotency: IdempotencyConfig{TTL: 24}, DLQ: DLQConfig{MaxAge: 3600 * time.Nanosecond},
	})
	require.ErrorContains(t, err, "Timeout.Request: must be at least 1µs (a number alone counts nanoseconds: write 30 * time.Second), got 30ns")
	require.ErrorContains(t, err, "Breaker.OpenFor")
	require.ErrorContains(t, err, "Idempotency.TTL")
	_, err = New(Config{Timeout: TimeoutConfig{Connect: time.Microsecond}})
	require.NoError(t, err)
}

// Each circuit that is not closed has a reading of its own, so that an operator knows where to look.
func TestHealth_NamesTheCircuitsThatAreNotClosed(t *testing.T) {
	s := newStack(t, Config{Breaker: BreakerConfig{MinCalls: 1, Key: byOperation}})
	defer closeStack(t, s)
	for n := range 30 {
		s.Breaker.Circuit(fmt.Sprintf("op-%02d", n)).ForceOpen()
	}
	require.Error(t, s.Breaker.refusal(Call{Operation: "op-03"}))
	var named []string
	for _, c := range s.Health().Check(t.Context()).Checks {
		if c.Name == "circuit" && c.Measure == "state" && c.Instance != "" {
			require.Equal(t, Degraded, c.Status)
			require.Equal(t, "open", c.State)
			named = append(named, c.Instance)
		}
	}
	require.Len(t, named, maxCircuitsShown)
	require.Equal(t, "op-00", named[0])
	require.Equal(t, Degraded, s.Health().Check(t.Context()).Status)
}
