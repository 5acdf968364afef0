package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/retell-resilience/resilience"
	"github.com/retell-resilience/resilience/retell"
)

// server is what -addr runs.
type server struct {
	addr, key, baseURL, letters string
	process                     func(context.Context, *retell.WebhookEvent) error // nil: write a line
}

// serve runs until ctx ends. Then it answers what is under way, and writes down the letters that are left.
func serve(ctx context.Context, out io.Writer, s server) (err error) {
	log := slog.New(slog.NewTextHandler(out, nil))
	if s.process == nil {
		s.process = func(_ context.Context, e *retell.WebhookEvent) error {
			log.Info("processed", "event", e.Event, "key", e.Key()) // a real program stores it
			return nil
		}
	}
	var opts []retell.Option
	if s.baseURL != "" {
		opts = append(opts, retell.WithBaseURL(s.baseURL))
	}
	client, err := retell.New(s.key, opts...)
	if err != nil {
		return err
	}
	cfg := eventLayers(nil)
	cfg.DLQ.OnParked = func(l resilience.Letter) {
		log.Error("an event was given up", "letter", l.ID, "reason", l.ParkedReason)
	}
	events, err := resilience.New(cfg)
	if err != nil {
		return err
	}
	r := newReceiver(client, events, s.process)
	if s.letters != "" {
		file := &letterFile{path: s.letters, queue: events.DLQ}
		if err := file.load(); err != nil {
			return err
		}
		r.safe = file.save
		defer func() { err = errors.Join(err, file.save()) }() // after Close, when nothing changes any more
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		err = errors.Join(err, client.Close(closing), events.Close(closing))
	}()
	mux := http.NewServeMux()
	mux.Handle("/retell/webhook", r.handler(s.key, func(err error) { log.Warn("not taken", "error", err) }))
	mux.Handle("/health", client.Stack().Health())
	return listen(ctx, out, s.addr, mux, client.Stack().Run, events.Run)
}

// listen serves, and runs what has to run meanwhile, until ctx ends or one of them fails.
func listen(ctx context.Context, out io.Writer, addr string, h http.Handler, background ...func(context.Context) error) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 30 * time.Second, WriteTimeout: 30 * time.Second}
	if _, err := fmt.Fprintf(out, "listening on http://%s/retell/webhook\n", l.Addr()); err != nil {
		return errors.Join(err, l.Close())
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, run := range background {
		g.Go(func() error { return run(ctx) })
	}
	g.Go(func() error {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		return srv.Shutdown(ending)
	})
	return g.Wait()
}

// letterFile keeps the letters of a queue in a file that is whole at all times. It is written for each event that is
// parked: fine for the few of a bad hour, not for thousands in a second. A letter that was processed since is in it until
// the next time, and is then processed again after a crash.
type letterFile struct {
	path  string
	queue *resilience.DLQ
	mu    sync.Mutex
}

func (f *letterFile) load() error {
	in, err := os.Open(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(f.queue.Import(in), in.Close())
}

func (f *letterFile) save() (err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	tmp, err := os.CreateTemp(filepath.Dir(f.path), filepath.Base(f.path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(tmp.Name()) // it may not be there any more
		}
	}()
	if err = errors.Join(f.queue.Export(tmp), tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), f.path)
}
