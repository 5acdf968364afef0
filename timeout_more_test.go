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

func TestTimeout_EveryFieldIsChecked(t *testing.T) {
	_, err := NewTimeout(TimeoutConfig{
		Connect: -2, Request: -2, Upload: -2, LongPoll: -2, Total: -2, MaxResponseBytes: -2, MaxRequestBytes: -2,
	})
	for _, field := range []string{"Connect", "Request", "Upload", "LongPoll", "Total", "MaxResponseBytes", "MaxRequestBytes"} {
		require.ErrorContains(t, err, "Timeout."+field+":")
	}
}

func TestTimeout_ABudgetThatNoLimitBoundsIsNone(t *testing.T) {
	l := newTime(t, TimeoutConfig{})
	for limit, want := range map[time.Duration]time.Duration{
		-1: -1, time.Second: 2 * time.Second, maxDuration / 2: maxDuration - 1, maxDuration/2 + 1: -1, maxDuration: -1,
	} {
		require.Equal(t, want, l.BudgetOf(Call{Limit: limit}), limit)
	}
}

// Each door used alone, and of a layer that was left out.
func TestTimeout_TheDoorsAlone(t *testing.T) {
	var none *Timeout
	for name, layer := range map[string]Layer{"budget": none.Budget(), "attempt": none.Attempt()} {
		resp, err := fetch(t.Context(), t, layer.Wrap(answering(204)))
		require.NoError(t, err, name)
		require.Equal(t, 204, resp.StatusCode, name)
	}
	l := newTime(t, TimeoutConfig{MaxRequestBytes: 4})
	for name, layer := range map[string]Layer{"budget": l.Budget(), "attempt": l.Attempt()} {
		for content, kept := range map[string]bool{"1234": true, "12345": false} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://server.test/", strings.NewReader(content))
			require.NoError(t, err)
			_, err = layer.Wrap(RoundTripFunc(func(out *http.Request) (*http.Response, error) {
				require.Equal(t, kept, out.GetBody != nil, "%s %s", name, content)
				b, err := io.ReadAll(out.Body)
				require.NoError(t, err)
				require.Equal(t, content, string(b))
				return ok(""), nil
			})).RoundTrip(req)
			require.NoError(t, err)
		}
	}
}

// A context tells of the first of all the times that bound it.
func TestContext_TheEarliestDeadlineCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		for _, theirs := range []time.Duration{0, time.Second, 20 * time.Second, time.Hour} {
			for _, budget := range []time.Duration{0, 2 * time.Second, 30 * time.Second} {
				ctx := t.Context()
				want := 10 * time.Second // the attempt's own
				if theirs != 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, theirs)
					defer cancel()
				}
				tr := newTrip()
				call := tr.begin(ctx)
				if budget != 0 {
					call.limit(tr.now(), budget)
				}
				outer := theirs
				if budget != 0 && (theirs == 0 || budget < theirs) {
					outer = budget
				}
				deadline, ok := call.Deadline()
				require.Equal(t, outer != 0, ok)
				if ok {
					require.Equal(t, outer, deadline.Sub(began))
				}
				require.Equal(t, budget != 0 && outer == budget, call.budgetIsFirst())
				ofBudget := budget != 0 && budget < want
				for _, bound := range []time.Duration{theirs, budget} {
					if bound != 0 {
						want = min(want, bound)
					}
				}
				c := &attemptContext{layer: newTime(t, TimeoutConfig{Request: 10 * time.Second}), trip: tr}
				require.True(t, c.start(call))
				deadline, ok = c.Deadline()
				require.True(t, ok)
				require.Equal(t, want, deadline.Sub(began), "theirs %v, budget %v", theirs, budget)
				require.Equal(t, ofBudget, c.kind == limitBudget)
				c.close()
				call.end(finished)
			}
		}
	})
}

// Work that looks why its context ended sees that it was the budget.
func TestAttemptContext_TheBudgetIsTheCause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := newTrip()
		call := tr.begin(t.Context())
		call.limit(tr.now(), time.Second)
		c := &attemptContext{layer: newTime(t, TimeoutConfig{}), trip: tr}
		require.True(t, c.start(call))
		<-c.Done()
		require.Equal(t, errBudget, context.Cause(c))
		require.ErrorIs(t, c.Err(), context.DeadlineExceeded)
		late := &attemptContext{layer: c.layer, trip: tr}
		require.False(t, late.start(call), "exactly when the budget is used up there is nothing left")
		require.Equal(t, errBudget, causeOf(late.parent))
		require.ErrorIs(t, call.Err(), context.DeadlineExceeded)
		c.close()
	})
}
