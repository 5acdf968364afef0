package retelltest

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/http"
	"sync"
	"time"
)

// DefaultConcurrency is how many calls may be under way at once unless [WithConcurrency] says otherwise.
const DefaultConcurrency = 20

// DefaultKey signs webhooks unless [WithKey] says otherwise. It is also a key that the server accepts.
const DefaultKey = "key_test"

// Server is the Retell server. All methods are safe for concurrent use. Make one with [NewServer]; in a testing/synctest
// bubble make it inside the bubble.
type Server struct {
	seed       int64
	key        string // the only key accepted; empty: all that start with key_
	limit      int    // calls at once; negative: no limit
	serverKeys bool   // create-phone-call knows idempotency_key
	life       *life  // nil: calls move only when told to

	done    chan struct{} // closed by Close
	net     network
	working sync.WaitGroup // requests under way over HTTP, and timers that have struck

	mu sync.Mutex // never held while anything waits or a webhook is delivered

	// Faults.
	scripts        map[string][]Fault
	rates          map[string][]rate
	draws          map[string]int
	released       chan struct{}
	hanging        int
	outage         bool
	lag            time.Duration
	ignoreFilters  bool
	hideRegistered bool

	// What was seen.
	log      []*Received
	requests map[string]int
	refusals map[string]int
	effects  map[string]int
	rings    map[string]int
	texts    map[string]int

	// What is kept.
	ids    map[string]int // counters, by prefix
	calls  *shelf
	active map[string]bool // ids of calls that count towards the limit
	keys   map[string]keyed
	chats  *shelf
	stock  map[string]*shelf // everything else, by kind

	// Webhooks and timers.
	webhook func(event []byte, signature string)
	copies  int
	outbox  []event
	timers  map[*time.Timer]struct{}
	closed  bool
}

// Option changes a new [Server].
type Option func(*Server)

// WithSeed sets the seed of all ids and random decisions; default 0.
func WithSeed(seed int64) Option { return func(s *Server) { s.seed = seed } }

// WithKey makes the server accept this API key only, and sign webhooks with it. Default: every key that starts with
// "key_" is accepted.
func WithKey(key string) Option { return func(s *Server) { s.key = key } }

// WithConcurrency sets how many calls may be under way at once; a phone or web call more is refused with 429. 0: the
// default, [DefaultConcurrency]; -1: no limit.
func WithConcurrency(limit int) Option {
	return func(s *Server) {
		if limit == 0 {
			limit = DefaultConcurrency
		}
		s.limit = limit
	}
}

// WithoutServerKeys makes the server an older deployment: create-phone-call ignores idempotency_key, without a word, and
// dials for every request.
func WithoutServerKeys() Option { return func(s *Server) { s.serverKeys = false } }

// WithCallLife makes phone calls move by themselves: answered after ring, hung up by the other side after talk more.
// Default: calls stay registered until [Server.Answer] and [Server.Hangup].
func WithCallLife(ring, talk time.Duration) Option {
	return func(s *Server) { s.life = &life{ring: ring, talk: talk} }
}

// NewServer makes a server. It holds one agent ("agent_test"), one phone number ("+15550001000") and two voices. It
// starts no goroutine and opens no socket before [Server.URL] or [Server.Listen] is called.
func NewServer(opts ...Option) *Server {
	s := &Server{
		limit: DefaultConcurrency, serverKeys: true, copies: 1,
		done: make(chan struct{}), released: make(chan struct{}),
		scripts: make(map[string][]Fault), rates: make(map[string][]rate), draws: make(map[string]int),
		requests: make(map[string]int), refusals: make(map[string]int), effects: make(map[string]int),
		rings: make(map[string]int), texts: make(map[string]int),
		ids: make(map[string]int), calls: newShelf(), active: make(map[string]bool), keys: make(map[string]keyed),
		chats: newShelf(), stock: make(map[string]*shelf), timers: make(map[*time.Timer]struct{}),
	}
	for _, o := range opts {
		o(s)
	}
	s.furnish(time.Now())
	return s
}

// Client returns an http.Client over [Server.Transport]. It adds no credentials.
func (s *Server) Client() *http.Client { return &http.Client{Transport: s.Transport()} }

// Close ends everything: hanging requests lose their connection, timers and scheduled effects are dropped, the listener
// and its connections are closed, and requests served over HTTP are awaited, as is a webhook that a timer delivers. A
// request after it is refused. Close twice is harmless. Do not call it from a webhook.
func (s *Server) Close() {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.done)
		for t := range s.timers {
			t.Stop()
		}
		clear(s.timers)
	}
	s.mu.Unlock()
	s.net.mu.Lock()
	s.net.stop()
	s.net.mu.Unlock()
	s.working.Wait()
}

// schedule runs do, without the lock, d from now, unless the server is closed by then. The lock is held by the caller.
func (s *Server) schedule(d time.Duration, do func()) {
	if s.closed {
		return
	}
	var t *time.Timer
	t = time.AfterFunc(d, func() {
		s.mu.Lock()
		_, live := s.timers[t]
		if live {
			delete(s.timers, t)
			s.working.Add(1)
		}
		s.mu.Unlock()
		if live {
			defer s.working.Done()
			do()
		}
	})
	s.timers[t] = struct{}{}
}

// after is schedule for what needs the lock.
func (s *Server) after(d time.Duration, do func()) {
	s.schedule(d, func() { s.locked(do) })
}

// locked runs do with the lock held, then delivers the webhooks that it caused.
func (s *Server) locked(do func()) {
	s.mu.Lock()
	do()
	events := s.outbox
	s.outbox = nil
	webhook, copies := s.webhook, s.copies
	s.mu.Unlock()
	s.deliver(events, webhook, copies)
}

// newID makes the next id of a kind. The lock is held.
func (s *Server) newID(prefix string) string {
	s.ids[prefix]++
	sum := s.hash(prefix, s.ids[prefix])
	return prefix + hex.EncodeToString(sum[:16])
}

// draw returns a number from 0 up to 1 that depends on the seed, a name and a counter only.
func (s *Server) draw(name string, n int) float64 {
	sum := s.hash("draw "+name, n)
	return float64(binary.BigEndian.Uint64(sum[:8])>>11) / (1 << 53)
}

func (s *Server) hash(name string, n int) [sha256.Size]byte {
	return sha256.Sum256(fmt.Appendf(nil, "%d %s %d", s.seed, name, n))
}
