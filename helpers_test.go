package resilience

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// The outcome that the store would not take is lost when the lease of the send is over.
type answerRefusingStore struct {
	*MemoryStore
	failing atomic.Int64 // so many writes fail
}

func (s *answerRefusingStore) CompareAndSwap(ctx context.Context, old uint64, r Record) (uint64, bool, error) {
	if r.State == KeyConfirmed && s.failing.Add(-1) >= 0 {
		return 0, false, errBroken
	}
	return s.MemoryStore.CompareAndSwap(ctx, old, r)
}

// hungCall is a stack with a call under key "k" that hangs on the wire, of which evidence from elsewhere says that it was made.
func hungCall(t *testing.T) (s *Stack, rt http.RoundTripper, p *phone, letGo func()) {
	s = newStack(t, Config{})
	release := make(chan struct{})
	p = &phone{before: func(*http.Request, int) (*http.Response, error) { <-release; return nil, nil }}
	rt = s.Wrap(p)
	go func() { _, _ = dial(t.Context(), t, rt, "k", dialBody) }()
	synctest.Wait()
	id := s.Idempotency.ID("k")
	require.NoError(t, s.Idempotency.Observe(t.Context(), Evidence{ID: id, Calls: []Found{{ID: "call_1"}}}))
	synctest.Wait()
	return s, rt, p, func() { close(release) }
}

// A redrive that joins a call which meets its letter's lease.
type slowWrites struct{ *MemoryStore }

func (s slowWrites) CompareAndSwap(ctx context.Context, old uint64, r Record) (uint64, bool, error) {
	time.Sleep(10 * time.Millisecond)
	return s.MemoryStore.CompareAndSwap(ctx, old, r)
}

// agent is an object that is overwritten as a whole, behind a stack. What it is made "old" by fails after ten seconds.
type agent struct {
	*Stack
	t     *testing.T
	rt    http.RoundTripper
	state string
	well  atomic.Bool // nothing fails any more
}

func (a *agent) put(key, body string) error {
	ctx := WithCall(WithIdempotencyKey(a.t.Context(), key), Call{Resource: "agent/1"})
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://h/agent/1", strings.NewReader(body))
	require.NoError(a.t, err)
	_, err = a.rt.RoundTrip(req)
	return err
}

// writes is of how many resources there are writes under way.
func (a *agent) writes() int {
	a.DLQ.mu.Lock()
	defer a.DLQ.mu.Unlock()
	return len(a.DLQ.writes)
}

func (a *agent) requireNewAfterAnHour() {
	a.well.Store(true)
	ctx, cancel := context.WithTimeout(a.t.Context(), time.Hour)
	defer cancel()
	require.NoError(a.t, a.Run(ctx))
	closeStack(a.t, a.Stack)
	require.Equal(a.t, "new", a.state)
}

func postCall(ctx context.Context, rt http.RoundTripper, body string) (*http.Response, error) {
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	req, _ := http.NewRequestWithContext(ctx, http.MethodPost, "http://api.test/v2/create-phone-call", r)
	return rt.RoundTrip(req)
}

type faultyStore struct {
	KeyStore
	noCAS, noLoad atomic.Bool
	lostAck       func(Record) bool
}

func (s *faultyStore) Load(ctx context.Context, id string) (Record, error) {
	if s.noLoad.Load() {
		return Record{}, errors.New("load")
	}
	return s.KeyStore.Load(ctx, id)
}

func (s *faultyStore) CompareAndSwap(ctx context.Context, old uint64, r Record) (uint64, bool, error) {
	if s.noCAS.Load() {
		return 0, false, errors.New("cas")
	}
	v, ok, err := s.KeyStore.CompareAndSwap(ctx, old, r)
	if s.lostAck != nil && s.lostAck(r) {
		return 0, false, errors.New("ack lost")
	}
	return v, ok, err
}

type trustedFinder struct{ n atomic.Int64 }

func (*trustedFinder) Mark(*http.Request, string) error { return nil }

func (f *trustedFinder) Find(context.Context, Record) (Evidence, error) {
	f.n.Add(1)
	return Evidence{}, nil
}

func (*trustedFinder) HonorsKey(string) time.Duration { return 55 * time.Minute }

const secretURL = "https://api.example.com/x/+15555550123?token=SECRET"

// failedAnswer answers a call that took effect with a status that says nothing about it.
func failedAnswer(*http.Request, int) (*http.Response, error) {
	return reply(500, `{"error":"oops"}`), nil
}

// doubtful is a key in doubt for a 500.
func doubtful(t *testing.T, i *Idempotency) (rt http.RoundTripper) {
	t.Helper()
	rt = i.Wrap(&phone{answer: failedAnswer})
	_, err := dial(t.Context(), t, rt, "k", dialBody)
	require.ErrorIs(t, err, ErrInDoubt)
	rec, _ := i.Lookup(t.Context(), "k")
	require.Equal(t, 500, rec.Status)
	require.Equal(t, "status", rec.Cause)
	return rt
}

func notice(t *testing.T, i *Idempotency, calls ...Found) {
	t.Helper()
	require.NoError(t, i.Observe(t.Context(), Evidence{ID: i.ID("k"), Calls: calls, Source: "webhook"}))
}

func lookUp(t *testing.T, i *Idempotency, key string) Record {
	t.Helper()
	rec, err := i.Lookup(t.Context(), key)
	require.NoError(t, err)
	return rec
}

// heldBack is a transport that keeps its first request until it hears what to answer to it.
func heldBack(then func(int, *http.Request) (*http.Response, error)) (w *dlqWorld, first chan func() (*http.Response, error)) {
	first = make(chan func() (*http.Response, error))
	return &dlqWorld{answer: func(n int, req *http.Request) (*http.Response, error) {
		if n == 1 {
			return (<-first)()
		}
		return then(n, req)
	}}, first
}

type ownerEnd struct {
	resp *http.Response
	err  error
}

// calling makes a call on the side.
func calling(ctx context.Context, rt http.RoundTripper, method, key string) chan ownerEnd {
	done := make(chan ownerEnd, 1)
	go func() {
		resp, err := dlqCall(ctx, rt, method, key)
		done <- ownerEnd{resp, err}
	}()
	synctest.Wait()
	return done
}

// letterEvents keeps the events of a queue.
type letterEvents struct {
	mu     sync.Mutex
	events []Event
}

func (h *letterEvents) listen(e Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = append(h.events, e)
}

// of is what was heard so far of a kind, by cause.
func (h *letterEvents) of(t testing.TB, d *DLQ, kind EventKind) (causes []string) {
	t.Helper()
	require.NoError(t, d.events.drain(t.Context()))
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.events {
		if e.Kind == kind {
			causes = append(causes, e.Cause)
		}
	}
	return causes
}
