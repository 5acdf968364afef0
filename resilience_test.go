package resilience

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"testing"

	"github.com/stretchr/testify/require"
)

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
