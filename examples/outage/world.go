package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/retell-resilience/resilience"
	"github.com/retell-resilience/resilience/retell"
	"github.com/retell-resilience/resilience/retell/retelltest"
)

// The story: Retell works for ten minutes, cannot be reached for an hour, and is back.
const (
	outageFrom  = 10
	outageUntil = 70
	endsAfter   = 80 // at the earliest: when no letter is left
	givesUp     = 120
)

// What the program wants in each minute. Reads of the agent are kept for outages; reads of a call are not, they hold
// transcripts.
const (
	agentReads = 8
	callReads  = 2
	phoneCalls = 2
)

// minute is what became of the requests of one minute: each is counted once in the first four.
type minute struct {
	ok, served, refused, parked int

	letters int // waiting at its end
	circuit string
	health  string
}

// change is a change of the circuit's state, at a minute and its fraction.
type change struct {
	at float64
	to string
}

// timeline is all that there is to draw and to add up.
type timeline struct {
	minutes []minute
	asked   int            // phone calls
	rings   map[string]int // by number, as the server counted them
	stats   resilience.Stats

	start  time.Time
	length time.Duration // of a minute

	mu      sync.Mutex
	circuit []change
}

// scaled is Retell's config with all times shortened as the minute is. In two places it differs from the default: the
// window is a minute, since this program makes a dozen calls in one, and letters are good for two hours.
func (tl *timeline) scaled() resilience.Config {
	of := func(d time.Duration) time.Duration {
		return max(time.Millisecond, time.Duration(float64(d)*tl.length.Minutes()))
	}
	faster := 1 / tl.length.Minutes()
	cfg := retell.Config()
	cfg.OnEvent = tl.hear
	cfg.Fallback.Fresh, cfg.Fallback.Stale = of(time.Minute), of(10*time.Minute)
	cfg.Breaker.Window = max(10*time.Millisecond, of(time.Minute))
	cfg.Breaker.OpenFor, cfg.Breaker.MaxOpenFor, cfg.Breaker.Ramp = of(30*time.Second), of(5*time.Minute), of(5*time.Second)
	cfg.Retry.Base, cfg.Retry.Cap, cfg.Retry.RatioPerSecond = of(500*time.Millisecond), of(8*time.Second), 10*faster
	cfg.DLQ.Base, cfg.DLQ.Cap, cfg.DLQ.MaxAge, cfg.DLQ.Rate = of(time.Second), of(5*time.Minute), of(2*time.Hour), 10*faster
	cfg.Health.ProbeEvery = of(10 * time.Second)
	return cfg
}

// hear keeps what the drawing needs of the circuit.
func (tl *timeline) hear(e resilience.Event) {
	states := map[resilience.EventKind]resilience.BreakerState{
		resilience.EventCircuitOpen: resilience.BreakerOpen, resilience.EventCircuitHalfOpen: resilience.BreakerHalfOpen,
		resilience.EventCircuitClose: resilience.BreakerClosed,
	}
	state, about := states[e.Kind]
	if !about {
		return
	}
	tl.mu.Lock()
	defer tl.mu.Unlock()
	tl.circuit = append(tl.circuit, change{e.Time.Sub(tl.start).Minutes() / tl.length.Minutes(), state.String()})
}

// play lets the story happen, and leaves nothing running.
func play(ctx context.Context, out io.Writer, length time.Duration) (tl *timeline, err error) {
	server := retelltest.NewServer(retelltest.WithConcurrency(-1))
	defer server.Close()
	tl = &timeline{start: time.Now(), length: length}
	client, err := retell.New("key_outage", retell.WithTransport(server.Transport()), retell.WithConfig(tl.scaled()))
	if err != nil {
		return nil, err
	}
	running, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- client.Stack().Run(running) }()
	defer func() {
		stop()
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		err = errors.Join(err, <-done, client.Close(closing))
	}()

	earlier := server.AddCall(nil)
	_, _ = fmt.Fprintln(out, "minute  retell     ok  served  refused  parked  letters  circuit    health")
	for n := 0; ; n++ {
		switch n {
		case outageFrom:
			server.Rate(retelltest.Any, 1, retelltest.Refuse())
		case outageUntil:
			server.ClearFaults()
		}
		m := tl.pass(ctx, client, earlier, n)
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		tl.minutes = append(tl.minutes, m)
		_, _ = fmt.Fprintf(out, "%6d  %-8s %4d %7d %8d %7d %8d  %-9s  %s\n", n, reachable(n), m.ok, m.served, m.refused, m.parked, m.letters, m.circuit, m.health)
		switch {
		case n >= endsAfter && m.letters == 0 && m.health == resilience.Healthy.String():
			tl.stats, tl.rings = client.Stack().Stats(), server.AllRings()
			return tl, nil
		case n > givesUp:
			return nil, fmt.Errorf("%d letters are left, and health is %s, long after the outage", m.letters, m.health)
		}
	}
}

func reachable(n int) string {
	if n >= outageFrom && n < outageUntil {
		return "down"
	}
	return "up"
}

// pass does what the program wants in a minute, and waits for its end. earlier is a call of the day before.
func (tl *timeline) pass(ctx context.Context, client *retell.Client, earlier string, n int) minute {
	end := time.NewTimer(time.Until(tl.start.Add(time.Duration(n+1) * tl.length)))
	defer end.Stop()
	var m minute
	for range agentReads {
		agent, err := client.Agents.Get(ctx, "agent_test", retell.AgentVersion{})
		m.count(err, err == nil && agent.FromFallback)
	}
	for range phoneCalls {
		tl.asked++
		number := fmt.Sprintf("+1555555%04d", tl.asked)
		_, err := client.Calls.CreatePhoneCall(ctx, retell.CreatePhoneCallParams{
			FromNumber: "+15550001000", ToNumber: number,
		}, retell.IdempotencyKey("reminder:"+number))
		m.count(err, false)
	}
	for range callReads {
		_, err := client.Calls.Get(ctx, earlier)
		m.count(err, false)
	}
	select {
	case <-end.C:
	case <-ctx.Done():
	}
	m.letters = client.Stack().DLQ.Len()
	m.circuit = client.Stack().Breaker.State().String()
	m.health = client.Stack().Health().Check(ctx).Status.String()
	return m
}

func (m *minute) count(err error, fromCache bool) {
	switch {
	case errors.Is(err, resilience.ErrParked):
		m.parked++
	case err != nil:
		m.refused++
	case fromCache:
		m.served++
	default:
		m.ok++
	}
}

func (tl *timeline) total() (sum minute) {
	for _, m := range tl.minutes {
		sum.ok += m.ok
		sum.served += m.served
		sum.refused += m.refused
		sum.parked += m.parked
		sum.letters = max(sum.letters, m.letters)
	}
	return sum
}

// sum writes the table, and is an error unless each phone rang once.
func (tl *timeline) sum(out io.Writer, path string) error {
	all := tl.total()
	_, _ = fmt.Fprintln(out)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, row := range []struct {
		what  string
		value any
	}{
		{"requests", len(tl.minutes) * (agentReads + callReads + phoneCalls)},
		{"  answered by Retell", all.ok},
		{"  answered from the cache", all.served},
		{"  parked as letters", all.parked},
		{"  failed (nothing kept to answer from)", all.refused},
		{"most letters waiting", all.letters},
		{"letters settled", tl.stats.DLQ.Acked},
		{"circuit opened", tl.stats.Breaker.Opened},
		{"attempts it refused", tl.stats.Breaker.Rejected},
		{"timeline", path},
	} {
		_, _ = fmt.Fprintf(w, "%s\t%v\n", row.what, row.value)
	}
	_ = w.Flush() // to the same place as all other lines
	for number, n := range tl.rings {
		if n != 1 {
			return fmt.Errorf("a phone (…%s) rang %d times", number[len(number)-2:], n)
		}
	}
	if len(tl.rings) != tl.asked {
		return fmt.Errorf("%d calls were asked for, and %d phones rang", tl.asked, len(tl.rings))
	}
	_, _ = fmt.Fprintf(out, "\n%d calls asked for, %d phones rang, none twice, %d of them after the outage.\n", tl.asked, len(tl.rings), all.parked)
	return nil
}
