package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"time"

	"github.com/retell-resilience/resilience"
	"github.com/retell-resilience/resilience/retell"
	"github.com/retell-resilience/resilience/retell/retelltest"
)

const (
	from = "+15550001000"
	to   = "+15555550123"
)

// story is a program that makes phone calls and books what becomes of them, and what happens to it.
type story struct {
	*teller
	server *retelltest.Server
	client *retell.Client
	events *resilience.Stack
	books  *books
	post   *postman
}

// tell runs the story from the first line to the last, and leaves nothing running.
func tell(ctx context.Context, out io.Writer) (err error) {
	t := &teller{out: out, start: time.Now()}
	box := retelltest.NewServer()
	defer box.Close()
	client, err := retell.New(retelltest.DefaultKey, retell.WithTransport(box.Transport()))
	if err != nil {
		return err
	}
	cfg := eventLayers(t.hear)
	cfg.DLQ.MaxLetters = 2 // so that the story gets to the end of the room
	// Times that suit a demonstration; a real program leaves the defaults alone.
	cfg.DLQ.Base, cfg.DLQ.Cap = 100*time.Millisecond, 200*time.Millisecond
	cfg.Retry.Base = 10 * time.Millisecond
	cfg.Breaker.OpenFor = 300 * time.Millisecond
	events, err := resilience.New(cfg)
	if err != nil {
		return errors.Join(err, client.Close(ctx))
	}
	s := &story{teller: t, server: box, client: client, events: events, books: &books{times: map[string]int{}}}
	receiver := newReceiver(client, events, s.books.enter)
	s.post = &postman{teller: t, handler: receiver.handler(retelltest.DefaultKey, func(err error) { t.sayf("refused", "%v", err) })}
	box.OnWebhook(s.post.deliver)

	stop := inBackground(ctx, client.Stack().Run, events.Run)
	defer func() {
		box.OnWebhook(nil)
		s.post.home.Wait()
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		err = errors.Join(err, stop(), client.Close(closing), events.Close(closing))
	}()
	for _, chapter := range []func(context.Context) error{s.lostAnswer, s.forged, s.databaseAway, s.noRoom, s.databaseBack, s.sum} {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := chapter(ctx); err != nil {
			return err
		}
	}
	return nil
}

func inBackground(ctx context.Context, runs ...func(context.Context) error) (stop func() error) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, len(runs))
	for _, run := range runs {
		go func() { done <- run(ctx) }()
	}
	return func() (err error) {
		cancel()
		for range runs {
			err = errors.Join(err, <-done)
		}
		return err
	}
}

// lostAnswer: the phone rings, the answer is lost, and the first webhook of the call says what became of it.
func (s *story) lostAnswer(ctx context.Context) error {
	s.chapter("An answer gets lost, a webhook brings the news")
	s.server.Inject("create-phone-call", retelltest.LostAnswer())
	if err := s.call(ctx); !resilience.InDoubt(err) {
		return fmt.Errorf("the lost call should be in doubt: %w", err)
	}
	s.sayf("call", "in doubt: it may ring, so it is not sent again")
	s.server.WebhookCopies(2) // Retell is known to send events twice
	if err := s.server.Answer(s.server.Calls()[0].ID); err != nil {
		return err
	}
	err := await(ctx, "the key", func() bool {
		rec, err := s.client.Stack().Idempotency.Lookup(ctx, callKey)
		return err == nil && rec.State == resilience.KeyConfirmed
	})
	if err != nil {
		return err
	}
	if err := s.call(ctx); err != nil {
		return err
	}
	s.sayf("call", "the same call once more is answered with what is known: it has rung %d time", s.server.Rings(to))
	return nil
}

const callKey = "reminder:4711"

func (s *story) call(ctx context.Context) error {
	_, err := s.client.Calls.CreatePhoneCall(ctx, retell.CreatePhoneCallParams{FromNumber: from, ToNumber: to}, retell.IdempotencyKey(callKey))
	return err
}

// forged: what Retell did not sign goes no further.
func (s *story) forged(context.Context) error {
	s.chapter("Somebody else posts an event")
	status := s.post.once([]byte(`{"event":"call_ended","call":{"call_id":"call_forged"}}`), "v=1,d=00")
	s.sayf("post", "%d", status)
	if status != http.StatusUnauthorized {
		return errors.New("a forged event was taken")
	}
	return nil
}

// databaseAway: what cannot be processed is parked, and Retell need not know.
func (s *story) databaseAway(ctx context.Context) error {
	s.chapter("The database goes away")
	s.books.close()
	if err := s.server.Hangup(s.server.Calls()[0].ID, "user_hangup"); err != nil {
		return err
	}
	return await(ctx, "a letter", func() bool { return s.events.DLQ.Len() == 1 })
}

// noRoom: what cannot be parked either stays with Retell.
func (s *story) noRoom(ctx context.Context) error {
	s.chapter("The queue has room for one more letter, and two events come")
	for range 2 {
		call, err := s.client.Calls.CreatePhoneCall(ctx, retell.CreatePhoneCallParams{FromNumber: from, ToNumber: to})
		if err != nil {
			return err
		}
		if err := s.server.Hangup(call.CallID, "dial_no_answer"); err != nil {
			return err
		}
	}
	return await(ctx, "an event that is sent back", func() bool { return s.post.sentBack() > 0 })
}

// databaseBack: letters are redriven, and Retell sends again what it still has.
func (s *story) databaseBack(ctx context.Context) error {
	s.chapter("The database is back: nobody has to do anything")
	s.books.open()
	return await(ctx, "the last event", func() bool { return s.events.DLQ.Len() == 0 && s.books.count() == 4 })
}

func (s *story) sum(context.Context) error {
	s.chapter("What happened")
	s.post.home.Wait()
	n, twice := s.books.count(), s.books.twice()
	q := s.events.Stats().DLQ
	s.writef("%d events were posted %d times; %d of them waited as letters; all %d are in the books, %d twice.\n",
		n, s.post.posted(), q.Admitted, n, twice)
	if twice > 0 || s.server.Rings(to) != 3 {
		return errors.New("something happened twice")
	}
	return nil
}

// books is what the program does with events, in a database that can be away.
type books struct {
	mu    sync.Mutex
	away  bool
	times map[string]int
}

var errAway = errors.New("the database is away")

func (b *books) enter(_ context.Context, e *retell.WebhookEvent) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.away {
		return errAway
	}
	b.times[e.Key()]++
	return nil
}

func (b *books) close() { b.set(true) }
func (b *books) open()  { b.set(false) }

func (b *books) set(away bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.away = away
}

func (b *books) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.times)
}

func (b *books) twice() (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, times := range b.times {
		if times > 1 {
			n++
		}
	}
	return n
}

// postman does what Retell does: it posts an event, and again after a while when the answer is no 2xx, three times at most.
type postman struct {
	*teller
	handler http.Handler
	home    sync.WaitGroup

	mu         sync.Mutex
	sent, back int
}

const again = 500 * time.Millisecond

func (p *postman) deliver(event []byte, signature string) {
	p.home.Go(func() {
		for range 4 {
			name, _ := retell.ParseWebhook(event)
			status := p.once(event, signature)
			p.sayf("post", "%s: %d", name.Event, status)
			if status/100 == 2 {
				return
			}
			time.Sleep(again)
		}
	})
}

func (p *postman) once(event []byte, signature string) int {
	req := httptest.NewRequest(http.MethodPost, "/retell/webhook", strings.NewReader(string(event)))
	req.Header.Set(retell.SignatureHeader, signature)
	w := httptest.NewRecorder()
	p.handler.ServeHTTP(w, req)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sent++
	if w.Code >= 500 {
		p.back++
	}
	return w.Code
}

func (p *postman) posted() int   { p.mu.Lock(); defer p.mu.Unlock(); return p.sent }
func (p *postman) sentBack() int { p.mu.Lock(); defer p.mu.Unlock(); return p.back }

// teller writes lines with the time at which things happened.
type teller struct {
	mu    sync.Mutex
	out   io.Writer
	start time.Time
}

func (t *teller) writef(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, _ = fmt.Fprintf(t.out, format, args...) // a closed terminal is no reason to lose an event
}

func (t *teller) chapter(title string) { t.writef("\n%s\n", title) }

func (t *teller) sayf(who, format string, args ...any) {
	t.writef("%6.2f s  %-8s %s\n", time.Since(t.start).Seconds(), who, fmt.Sprintf(format, args...))
}

// hear is the OnEvent of the layers around the database.
func (t *teller) hear(e resilience.Event) {
	switch e.Kind {
	case resilience.EventLetterAdded:
		t.sayf("letter", "keeps an event (%s)", e.Cause)
	case resilience.EventLetterDone:
		t.sayf("letter", "done: its event is in the books")
	case resilience.EventLetterRefused:
		t.sayf("letter", "no room: the event stays with Retell")
	case resilience.EventCircuitOpen:
		t.sayf("circuit", "of the database opens")
	case resilience.EventCircuitClose:
		t.sayf("circuit", "of the database closes")
	}
}

// await looks every few milliseconds, for ten seconds.
func await(ctx context.Context, what string, ok func() bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 10*time.Second, fmt.Errorf("%s did not come", what))
	defer cancel()
	for !ok() {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil
}
