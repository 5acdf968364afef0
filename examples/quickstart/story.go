package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/retell-resilience/resilience"
	"github.com/retell-resilience/resilience/retell"
	"github.com/retell-resilience/resilience/retell/retelltest"
)

// impatient is retell.Config with times that suit a demonstration. A real program leaves the defaults, given here as
// comments, alone.
func impatient(listen func(resilience.Event)) resilience.Config {
	cfg := retell.Config()
	cfg.OnEvent = listen
	cfg.Fallback.Fresh = 500 * time.Millisecond  // 60 s
	cfg.Breaker.OpenFor = 2 * time.Second        // 30 s
	cfg.Breaker.Ramp = time.Second               // 5 s
	cfg.DLQ.Base = 200 * time.Millisecond        // 1 s
	cfg.Retry.Base = 50 * time.Millisecond       // 500 ms
	cfg.Health.ProbeEvery = 2 * time.Millisecond // 10 s
	return cfg
}

// story is a program that reminds people of their appointments, and what happens to it.
type story struct {
	*teller
	server  *retelltest.Server
	client  *retell.Client
	numbers []string // that were asked for, each once
}

// tell runs the story from the first line to the last, and leaves nothing running.
func tell(ctx context.Context, out io.Writer) (err error) {
	server := retelltest.NewServer()
	defer server.Close()
	t := newTeller(out)
	client, err := retell.New("key_quickstart", retell.WithBaseURL(server.URL()), retell.WithConfig(impatient(t.hear)))
	if err != nil {
		return err
	}
	stop := runInBackground(ctx, client)
	defer func() { err = errors.Join(err, stop()) }()

	s := &story{teller: t, server: server, client: client}
	t.sayf("start", "a Retell server in a box listens on %s", server.URL())
	t.sayf("start", "each request goes %s", client.Stack())
	for _, chapter := range []func(context.Context) error{s.ordinaryDay, s.lostAnswer, s.outage, s.recovery, s.end} {
		if err := chapter(ctx); err != nil {
			return err
		}
	}
	return nil
}

// runInBackground starts what a program that uses the stack starts once: it redrives letters and looks lost calls up.
// stop ends it, and the client.
func runInBackground(ctx context.Context, client *retell.Client) (stop func() error) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- client.Stack().Run(ctx) }()
	return func() error {
		cancel()
		err := <-done
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		return errors.Join(err, client.Close(closing))
	}
}

func (s *story) ordinaryDay(ctx context.Context) error {
	s.chapter("An ordinary day")
	for range 3 {
		s.call(ctx, s.next())
	}
	s.readAgent(ctx)
	return s.health(ctx, resilience.Healthy)
}

// lostAnswer: the server dials, and the connection breaks before it can say so. The official SDKs would send the call again.
func (s *story) lostAnswer(ctx context.Context) error {
	s.chapter("An answer gets lost: the phone rings, and nobody tells us")
	s.server.Inject("create-phone-call", retelltest.LostAnswer())
	number := s.next()
	s.call(ctx, number)
	s.sayf("again", "the program tries the same reminder once more, with the same key")
	s.call(ctx, number)
	s.sayf("truth", "%s has rung %s", masked(number), times(s.server.Rings(number)))
	err := await(ctx, "the look-up", func() bool {
		rec, err := s.client.Stack().Idempotency.Lookup(ctx, keyFor(number))
		return err == nil && rec.State == resilience.KeyConfirmed
	})
	if err != nil {
		return err
	}
	s.call(ctx, number)
	return nil
}

// outage: nothing listens any more. Reads go on with the last good answer, writes wait in the queue.
func (s *story) outage(ctx context.Context) error {
	s.chapter("Retell cannot be reached")
	s.server.StopListening()
	for range 20 {
		s.readAgent(ctx)
		if s.client.Stack().Breaker.State() == resilience.BreakerOpen { // the quick circuit check
			break
		}
	}
	for range 6 {
		s.call(ctx, s.next())
	}
	s.sayf("again", "the program tries the last one once more, with the same key")
	s.call(ctx, s.numbers[len(s.numbers)-1])
	if err := s.health(ctx, resilience.Unhealthy); err != nil {
		return err
	}
	s.sayf("time", "passes, and what is known of the agent grows old")
	if err := pause(ctx, 600*time.Millisecond); err != nil {
		return err
	}
	s.readAgent(ctx)
	return nil
}

func (s *story) recovery(ctx context.Context) error {
	s.chapter("Retell is back: nobody has to do anything")
	if err := s.server.StartListening(); err != nil {
		return err
	}
	if err := s.health(ctx, resilience.Degraded); err != nil { // it answers, but the circuit does not know yet
		return err
	}
	stack := s.client.Stack()
	err := await(ctx, "the letters", func() bool {
		return stack.DLQ.Len() == 0 && stack.Breaker.State() == resilience.BreakerClosed
	})
	if err != nil {
		return err
	}
	for range 2 {
		s.call(ctx, s.next())
	}
	s.readAgent(ctx)
	return s.health(ctx, resilience.Healthy)
}

// end asks the server for the truth.
func (s *story) end(ctx context.Context) error {
	stack := s.client.Stack()
	unsettled, err := stack.Idempotency.Unsettled(ctx, 100)
	if err != nil {
		return err
	}
	st := stack.Stats()
	s.chapter("What the server and the layers counted")
	s.table([]row{
		{"calls asked for", len(s.numbers)},
		{"phones that rang", fmt.Sprintf("%d, %s", len(s.server.AllRings()), s.ringsPerNumber())},
		{"requests to dial that arrived", s.server.Requests("create-phone-call")},
		{"refused by the open circuit", st.Breaker.Rejected},
		{"reads served from the cache", fmt.Sprintf("%d fresh, %d stale", st.Fallback.Fresh, st.Fallback.Stale+st.Fallback.VeryStale)},
		{"letters", fmt.Sprintf("%d written, %d settled, %d left", st.DLQ.Admitted, st.DLQ.Acked, st.DLQ.Letters)},
		{"times the circuit opened", st.Breaker.Opened},
		{"keys in doubt", fmt.Sprintf("%d, found by look-up %d, left %d", st.Idempotency.InDoubt, st.Idempotency.Found, len(unsettled))},
	})
	if err := s.verdict(len(unsettled), st.DLQ.Letters); err != nil {
		return err
	}
	s.writef("\n%d calls asked for, %d phones rang, none twice.\n", len(s.numbers), len(s.server.AllRings()))
	return nil
}

// verdict is what makes this program a test: an error unless all is well.
func (s *story) verdict(unsettled, letters int) error {
	var errs []error
	for _, number := range s.numbers {
		if n := s.server.Rings(number); n != 1 {
			errs = append(errs, fmt.Errorf("%s rang %s", masked(number), times(n)))
		}
	}
	if unsettled != 0 || letters != 0 {
		errs = append(errs, fmt.Errorf("%d keys in doubt and %d letters are left", unsettled, letters))
	}
	return errors.Join(errs...)
}

func (s *story) ringsPerNumber() string {
	least, most := 1<<30, 0
	for _, number := range s.numbers {
		n := s.server.Rings(number)
		least, most = min(least, n), max(most, n)
	}
	if least == most {
		return "each " + times(most)
	}
	return fmt.Sprintf("%d to %d times", least, most)
}

// next is somebody who has not been called yet.
func (s *story) next() string {
	number := fmt.Sprintf("+155555501%02d", len(s.numbers)+1)
	s.numbers = append(s.numbers, number)
	return number
}

// keyFor names the intent: this reminder of this person. Whoever asks for it again finds the same key.
func keyFor(number string) string { return "reminder:" + number + ":2026-11-23" }

func (s *story) call(ctx context.Context, number string) {
	call, err := s.client.Calls.CreatePhoneCall(ctx, retell.CreatePhoneCallParams{
		FromNumber: "+15550001000", ToNumber: number,
	}, retell.IdempotencyKey(keyFor(number)))
	switch {
	case err != nil:
		s.sayf("call", "%s  %s", masked(number), inWords(err))
	case call.Replayed:
		s.sayf("call", "%s  was called before: the answer is that of the first request", masked(number))
	default:
		s.sayf("call", "%s  rings", masked(number))
	}
}

func (s *story) readAgent(ctx context.Context) {
	agent, err := s.client.Agents.Get(ctx, "agent_test", retell.AgentVersion{})
	switch {
	case err != nil:
		s.sayf("read", "agent: %s", inWords(err))
	case agent.FromFallback:
		s.sayf("read", "agent %q, last known answer, %.1f s old: %s", agent.AgentName, agent.Age.Seconds(), agent.Staleness)
	default:
		s.sayf("read", "agent %q", agent.AgentName)
	}
}

// health waits until the one view of everything says what it must, and shows it.
func (s *story) health(ctx context.Context, want resilience.Status) error {
	var report resilience.Report
	err := await(ctx, "health to be "+want.String(), func() bool {
		report = s.client.Stack().Health().Check(ctx)
		return report.Status == want
	})
	s.sayf("health", "%s", reportInWords(report))
	return err
}

type row struct {
	what  string
	value any
}

func (s *story) table(rows []row) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := tabwriter.NewWriter(s.out, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		_, _ = fmt.Fprintf(w, "  %s\t%v\n", r.what, r.value)
	}
	_ = w.Flush() // to the same place as all other lines
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// await looks again and again until done, for half a minute at most.
func await(ctx context.Context, what string, done func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for !done() {
		select {
		case <-again.C:
		case <-ctx.Done():
			return fmt.Errorf("waited too long for %s: %w", what, ctx.Err())
		}
	}
	return nil
}
