package resilience

import (
	"context"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A letter that comes too late, or is superseded on its way into the store, is reported as such when it is there, and not at
// all where it does not get there: then its caller has the write.
func TestDLQStore_ALetterIsSupersededWhenItIsThere(t *testing.T) {
	for name, c := range map[string]struct {
		fails, writes time.Duration // how long the call and the store take
		err           error         // of the store
		events        []EventKind
	}{
		"too late":               {fails: 10 * time.Second, events: []EventKind{EventLetterAdded, EventLetterParked}},
		"on its way":             {writes: 3 * time.Second, events: []EventKind{EventLetterAdded, EventLetterParked}},
		"too late, not stored":   {fails: 10 * time.Second, err: errShelf, events: []EventKind{EventLetterUnwritten, EventLetterRefused}},
		"on its way, not stored": {writes: 3 * time.Second, err: errShelf, events: []EventKind{EventLetterUnwritten, EventLetterRefused}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var events []EventKind
				p := newShelf().open()
				p.set(func(_ context.Context, op, _ string, effect func()) error {
					if op != "put" {
						return nil
					}
					time.Sleep(c.writes)
					if c.err == nil {
						effect()
					}
					return c.err
				})
				d := mustDLQ(t, DLQConfig{Store: p, OnEvent: func(e Event) { events = append(events, e.Kind) }})
				w := &dlqWorld{}
				w.set(func(n int, _ *http.Request) (*http.Response, error) {
					if n == 1 {
						time.Sleep(c.fails)
						return nil, errDLQRefused
					}
					return dlqStatus(200)(n, nil)
				})
				rt := d.Wrap(w)
				late := make(chan error)
				go func() { late <- dlqChange(t, rt, http.MethodPut, "older", "{}") }()
				time.Sleep(time.Second)
				require.NoError(t, dlqChange(t, rt, http.MethodPut, "newer", "{}"))
				if err := <-late; c.err == nil {
					require.ErrorIs(t, err, ErrParked)
					require.True(t, dlqOnly(t, d).Superseded)
				} else {
					require.ErrorIs(t, err, ErrLettersFull)
				}
				synctest.Wait()
				require.Equal(t, c.events, events)
				require.Equal(t, uint64(len(d.List(LetterFilter{}))), d.Stats().Overtaken)
				dlqConserved(t, d)
				require.NoError(t, d.close(t.Context()))
			})
		})
	}
}
