package resilience

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Whatever a program does at the same time, and wherever Close comes in: nobody is rung twice, everybody gets back, and
// nothing is left. The simulation beside this one takes a step at a time and knows more of what must be; here it is the
// steps themselves that meet.
func TestSim_EverythingAtOnce(t *testing.T) {
	seeds, err := strconv.Atoi(os.Getenv("SIM_SEEDS"))
	if err != nil {
		seeds = 4
	}
	first := rand.Uint64()
	for n := range seeds {
		seed := first + uint64(n) //nolint:gosec // a count
		if !t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { newChaos(t, seed).run() })
		}) {
			return
		}
	}
}

type chaos struct {
	*Stack
	t    *testing.T
	rt   http.RoundTripper
	seed uint64
	mu   sync.Mutex
	die  *rand.Rand
	rang map[string]int // by the text of the body, one for each key
	all  sync.WaitGroup
	over chan struct{}
}

func newChaos(t *testing.T, seed uint64) *chaos {
	c := &chaos{t: t, seed: seed, die: rand.New(rand.NewPCG(seed, 1)), rang: map[string]int{}, over: make(chan struct{})} //nolint:gosec // repeatable
	c.Stack = newStack(t, Config{
		Fallback: FallbackConfig{Refresh: true, Fresh: time.Second},
		DLQ:      DLQConfig{MaxLetters: 20, Overflow: []Overflow{OverflowRejectNew, OverflowBlock}[c.roll(2)], Base: 100 * time.Millisecond},
		Bulkhead: BulkheadConfig{Critical: 2, Normal: 1, Bulk: 1, Queue: 5, MaxWait: 10 * time.Second},
		Breaker:  BreakerConfig{OpenFor: time.Second, TrialLimit: 5 * time.Second},
		Timeout:  TimeoutConfig{Request: 5 * time.Second},
		Retry:    RetryConfig{Base: 50 * time.Millisecond},
		Health:   HealthConfig{Probe: func(context.Context) error { c.pause(3 * time.Second); return nil }, ProbeEvery: time.Second},
		OnEvent:  func(Event) { c.pause(time.Millisecond) },
	})
	c.rt = c.Wrap(RoundTripFunc(c.answer))
	return c
}

func (c *chaos) roll(n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.die.IntN(n)
}

func (c *chaos) pause(most time.Duration) { time.Sleep(time.Duration(c.roll(int(most)))) }

// answer is the other side, and the way there.
func (c *chaos) answer(req *http.Request) (*http.Response, error) {
	text := ""
	if req.Body != nil {
		all, err := io.ReadAll(req.Body)
		_ = req.Body.Close()
		if err != nil {
			return nil, err
		}
		text = string(all)
	}
	switch c.roll(10) {
	case 0:
		return nil, MarkNotSent(errors.New("refused"))
	case 1:
		return reply(429, "", "Retry-After", "1"), nil
	case 2:
		return reply(400, "{}"), nil
	case 3:
		<-req.Context().Done()
		return nil, req.Context().Err()
	}
	slowest, luck := 7*time.Second, 6 // sometimes beyond every limit
	switch req.Method {
	case http.MethodPost:
		c.mu.Lock()
		c.rang[text]++
		c.mu.Unlock()
	case http.MethodGet:
		slowest, luck = time.Second, 20
	}
	c.pause(slowest)
	switch c.roll(luck) {
	case 0:
		return nil, io.ErrUnexpectedEOF
	case 1:
		return reply(503, ""), nil
	case 2:
		panic("chaos")
	}
	return reply(200, `{"call_id":"call_1"}`), nil
}

func (c *chaos) run() {
	for range 3 {
		c.all.Go(func() { _ = c.Run(c.t.Context()) })
	}
	for range 10 {
		c.all.Go(func() { c.repeat(c.call) })
	}
	for range 4 {
		c.all.Go(func() { c.repeat(c.operate) })
	}
	c.pause(2 * time.Minute)
	for range 20 {
		c.all.Go(func() {
			c.pause(time.Second)
			if c.roll(2) == 0 {
				require.NoError(c.t, c.Close(context.Background()))
				return
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Duration(c.roll(int(20*time.Second))))
			defer cancel()
			_ = c.Close(ctx) // an error, if it was too short
		})
	}
	time.Sleep(time.Minute)
	close(c.over)
	c.all.Wait()
	require.NoError(c.t, c.Close(context.Background()), "seed %d", c.seed)
	c.require()
}

// require looks at what is left.
func (c *chaos) require() {
	for text, rang := range c.rang {
		require.Equal(c.t, 1, rang, "seed %d: %s", c.seed, text)
	}
	st := c.Stats()
	require.False(c.t, st.Running)
	for name, left := range map[string]int{
		"calls": st.Calls, "flights": st.Idempotency.Flights, "slots": st.Bulkhead.InUse, "waiting": st.Bulkhead.Waiting,
		"abandoned": st.Bulkhead.Abandoned, "lingering": st.Timeout.Lingering, "redrives": st.DLQ.Running,
		"leases": st.DLQ.Leased, "blocked": st.DLQ.Blocked, "refreshes": st.Fallback.Refreshing,
	} {
		require.Zero(c.t, left, "seed %d: %s", c.seed, name)
	}
	d := st.DLQ
	require.EqualValues(c.t, d.Admitted, int(d.Acked+d.Deleted+d.Dropped)+d.Letters, "seed %d: D1", c.seed) //nolint:gosec // small
}

// repeat goes on until the end, also after Close.
func (c *chaos) repeat(step func(ctx context.Context)) {
	for {
		select {
		case <-c.over:
			return
		default:
		}
		ctx, cancel := context.WithTimeout(c.t.Context(), time.Duration(c.roll(int(20*time.Second))))
		step(ctx)
		cancel()
		c.pause(500 * time.Millisecond)
	}
}

// call is one of a user's.
func (c *chaos) call(ctx context.Context) {
	defer func() {
		if v := recover(); v != nil && v != "chaos" {
			panic(v)
		}
	}()
	key := fmt.Sprintf("key-%d", c.roll(30))
	ctx = WithPriority(ctx, []Priority{PriorityCritical, PriorityNormal, PriorityBulk}[c.roll(3)])
	method, text := http.MethodGet, ""
	switch c.roll(4) {
	case 0:
		method, text = http.MethodPut, key
	case 1, 2:
		method, text = http.MethodPost, key
		ctx = WithIdempotencyKey(ctx, key)
	}
	if method == http.MethodGet || c.roll(40) == 0 {
		ctx = WithCall(ctx, Call{Resource: "thing"})
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://api.test/"+strconv.Itoa(c.roll(3)), strings.NewReader(text))
	if text != "" {
		req.URL.Path = "/calls"
	}
	require.NoError(c.t, err)
	resp, err := c.rt.RoundTrip(req)
	require.NotEqual(c.t, resp == nil, err == nil, "exactly one of response and error")
	require.False(c.t, NotSent(err) && InDoubt(err), "%v", err)
	if resp != nil {
		_ = resp.Body.Close()
	}
}

// operate is one thing that somebody does who runs the program.
func (c *chaos) operate(ctx context.Context) {
	key := fmt.Sprintf("key-%d", c.roll(30))
	switch c.roll(12) {
	case 0:
		require.NoError(c.t, c.Bulkhead.Resize(BulkheadConfig{Total: 1 + c.roll(6), Queue: c.roll(5) - 1}))
	case 1:
		c.Breaker.ForceOpen()
		c.pause(time.Second)
		c.Breaker.Reset()
	case 2:
		c.Breaker.ForceClose()
		c.pause(time.Second)
		c.Breaker.Reset()
	case 3:
		c.Health().Check(ctx)
	case 4:
		c.Health().ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, http.MethodGet, "/", nil))
	case 5:
		c.DLQ.Redrive(ctx)
	case 6:
		c.DLQ.RequeueAll()
	case 7:
		for _, l := range c.DLQ.List(LetterFilter{}) {
			if !l.InDoubt && c.roll(5) == 0 {
				_ = c.DLQ.Delete(l.ID, "chaos") // an error: it is at work, or gone
			}
		}
	case 8:
		var file bytes.Buffer
		require.NoError(c.t, c.DLQ.Export(&file))
		_ = c.DLQ.Import(&file) // an error: Close was here, or there is no room
	case 9:
		c.Fallback.Invalidate("thing")
	case 10:
		_, _ = c.Idempotency.Lookup(ctx, key)
		_, _ = c.Idempotency.Unsettled(ctx, 10)
	case 11:
		c.mu.Lock()
		rang := c.rang[key] > 0
		c.mu.Unlock()
		if rang {
			_ = c.Idempotency.Observe(ctx, Evidence{ID: c.Idempotency.ID(key), Calls: []Found{{ID: "call_1"}}})
		}
	}
}
