package resilience

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// The event of a rejection says how long the call waited, whenever it came.
func TestBulkhead_ARejectionSaysHowLongTheCallWaited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h heard
		c := oneSlot()
		c.MaxWait, c.OnEvent = 2*time.Second, h.listen
		b := newTestBulkhead(t, c)
		time.Sleep(time.Hour)
		release, err := b.Acquire(t.Context(), PriorityNormal)
		require.NoError(t, err)
		_, err = b.Acquire(t.Context(), PriorityNormal)
		requireShed(t, err, ErrFull)
		synctest.Wait()
		require.Len(t, h.all, 1)
		require.Equal(t, "max-wait", h.all[0].Cause)
		require.Equal(t, 2*time.Second, h.all[0].Duration)
		require.Equal(t, 1, b.Stats().RecentSheds, "it was lost for lack of a slot")
		release()
	})
}

// Waits are measured from where they began, on a bulkhead of any age.
func TestBulkhead_QueueTimeOnAnOldBulkhead(t *testing.T) {
	inCrew(t, oneSlot(), func(t *testing.T, c *crew) {
		time.Sleep(time.Hour)
		first, second := c.come("1", PriorityBulk), c.come("2", PriorityBulk)
		time.Sleep(time.Second)
		require.Equal(t, time.Second, c.b.Stats().OldestWait)
		first.end()
		require.Equal(t, time.Second, c.b.Stats().Bulk.WaitMax)
		require.Equal(t, time.Second, c.b.Stats().Bulk.WaitTotal)
		second.end()
	})
}

// Whichever way the last one who waits goes, the timer that watches the share stops.
func TestBulkhead_NobodyWatchesTheShareForNobody(t *testing.T) {
	ends := map[string]func(c *crew, w *slotTaker, p Priority){
		"sent home": func(c *crew, _ *slotTaker, p Priority) {
			c.b.refusal = func(call Call) error {
				if call.Priority == p {
					return (&trip{}).refuse("breaker", ErrOpen)
				}
				return nil
			}
			c.b.sendHome()
		},
		"hangs up": func(_ *crew, w *slotTaker, _ Priority) { w.cancel(errors.New("enough")) },
	}
	for name, end := range ends {
		c := oneSlot()
		c.Total = 10
		inCrew(t, c, func(t *testing.T, c *crew) {
			c.b.share = func() float64 { return 0.1 }
			first, second := c.come("1", PriorityNormal), c.come("2", PriorityNormal)
			third := c.come("3", PriorityCritical)
			require.True(t, c.b.armed)
			end(c, second, PriorityNormal)
			synctest.Wait()
			require.True(t, c.b.armed, name)
			end(c, third, PriorityCritical)
			synctest.Wait()
			require.False(t, c.b.armed, name)
			require.False(t, c.b.recheck.Stop(), "%s: the timer runs on", name)
			first.end()
		})
	}
}

// AgeAfter is 5 s where nothing else is said.
func TestBulkhead_TheDefaultAge(t *testing.T) {
	inCrew(t, BulkheadConfig{Critical: -1, Normal: -1, Bulk: -1, Total: 1}, func(t *testing.T, c *crew) {
		holder := c.come("holder", PriorityCritical)
		bulk := c.come("bulk", PriorityBulk)
		time.Sleep(5*time.Second - 1)
		urgent := c.come("urgent", PriorityCritical)
		holder.end()
		require.True(t, urgent.flies(), "a moment before")
		time.Sleep(1)
		later := c.come("later", PriorityCritical)
		urgent.end()
		require.True(t, bulk.flies())
		bulk.end()
		later.end()
	})
}

// The page shows what happened on the road, though the program listens to nothing.
func TestStack_ThePageShowsEventsWithoutAListener(t *testing.T) {
	s := newStack(t, Config{})
	s.Breaker.ForceOpen()
	events := docOf(t, ask(s.Health(), "GET", ""))["events"].([]any)
	require.NotEmpty(t, events)
	require.Equal(t, "circuit.open", events[len(events)-1].(map[string]any)["kind"], "the oldest comes last")
}

type closer struct {
	http.RoundTripper
	closed int
}

func (c *closer) CloseIdleConnections() { c.closed++ }

func TestDoor_CloseIdleConnectionsReachesTheTransport(t *testing.T) {
	c := &closer{RoundTripper: answering(200)}
	rt := Chain(newTestBreaker(t, BreakerConfig{}), newTestBulkhead(t, BulkheadConfig{})).Wrap(c)
	(&http.Client{Transport: rt}).CloseIdleConnections()
	require.Equal(t, 1, c.closed)
	(&http.Client{Transport: newTestBreaker(t, BreakerConfig{}).Wrap(answering(200))}).CloseIdleConnections() // has none
}

func TestNewTransport_SpeaksHTTP1(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Proto", r.Proto)
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	tr := NewTransport()
	defer tr.CloseIdleConnections()
	require.Equal(t, 30*time.Second, tr.IdleConnTimeout)
	tr.TLSClientConfig = server.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	tr.TLSClientConfig.NextProtos = nil
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, server.URL, nil)
	require.NoError(t, err)
	resp, err := tr.RoundTrip(req)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, "HTTP/1.1", resp.Header.Get("X-Proto"))
}
