package retelltest

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// network is the server's life on real sockets.
type network struct {
	mu      sync.Mutex
	address string // once known, for listening again
	live    *listening
	off     bool // told to stop listening
}

// listening is the time between a start and a stop.
type listening struct {
	listener net.Listener
	server   *http.Server
	over     chan struct{} // closed when nothing is accepted any more
}

// URL returns the address of the server for real HTTP, like "http://127.0.0.1:40123", without a slash at the end. The
// first call starts to listen on a free port; it panics when that fails. Do not use it in a testing/synctest bubble.
func (s *Server) URL() string {
	url, err := s.Listen("127.0.0.1:0")
	if err != nil {
		panic("retelltest: " + err.Error())
	}
	return url
}

// Listen starts to listen on an address of the user's choice and returns the server's URL. If the server has an address
// already it returns that one's URL.
func (s *Server) Listen(address string) (url string, err error) {
	s.net.mu.Lock()
	defer s.net.mu.Unlock()
	if s.isClosed() {
		return "", errors.New("server is closed")
	}
	if s.net.address == "" {
		if err := s.net.listen(address, s.Handler()); err != nil {
			return "", err
		}
		if s.net.off { // the address is known now, and nobody is there
			s.net.stop()
		}
	}
	return "http://" + s.net.address, nil
}

// StopListening makes the server unreachable: the listener and all its connections are closed, so that a new connection
// is refused by the operating system, which is the only refusal over real HTTP that proves that nothing was sent.
// Requests through [Server.Transport] are refused as well.
func (s *Server) StopListening() {
	s.net.mu.Lock()
	defer s.net.mu.Unlock()
	s.net.off = true
	s.net.stop()
}

// StartListening ends what [Server.StopListening] began. If there was an address, it is the same again; the error says
// that it has been taken by somebody else.
func (s *Server) StartListening() error {
	s.net.mu.Lock()
	defer s.net.mu.Unlock()
	if s.isClosed() {
		return errors.New("retelltest: server is closed")
	}
	if s.net.address != "" && s.net.live == nil {
		if err := s.net.listen(s.net.address, s.Handler()); err != nil {
			return err
		}
	}
	s.net.off = false
	return nil
}

// down reports whether nobody can connect.
func (s *Server) down() bool {
	s.net.mu.Lock()
	defer s.net.mu.Unlock()
	return s.net.off || s.isClosed()
}

func (s *Server) isClosed() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// listen begins to accept connections. The lock is held.
func (n *network) listen(address string, h http.Handler) error {
	var config net.ListenConfig
	l, err := config.Listen(context.Background(), "tcp", address)
	if err != nil {
		return err
	}
	n.address = l.Addr().String()
	live := &listening{
		listener: l, server: &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}, over: make(chan struct{}),
	}
	n.live = live
	go func() {
		defer close(live.over)
		_ = live.server.Serve(l)
	}()
	return nil
}

// stop closes listener and connections. When it returns, the operating system refuses. The lock is held.
func (n *network) stop() {
	live := n.live
	n.live = nil
	if live == nil {
		return
	}
	_ = live.listener.Close() // http.Server.Close misses it until Serve has begun
	_ = live.server.Close()
	<-live.over
	_ = live.server.Close() // for a connection that came in between
}

// Handler returns the server as an http.Handler. Besides Retell's paths it knows, without credentials, GET /_/rings (see
// [Server.AllRings]) and GET /_/requests (requests per operation). Faults that drop the connection hijack it, and panic
// with http.ErrAbortHandler where that is not possible.
func (s *Server) Handler() http.Handler { return http.HandlerFunc(s.serveHTTP) }

func (s *Server) serveHTTP(w http.ResponseWriter, req *http.Request) {
	if !s.begin() {
		drop(w)
		return
	}
	defer s.working.Done()
	if page, ok := strings.CutPrefix(req.URL.Path, "/_/"); ok {
		s.servePeek(w, page)
		return
	}
	x := s.arrive(req.Method, req.URL.EscapedPath())
	x.ctx = req.Context()
	if x.fault.Connect != ConnectOK {
		s.refuse(x)
		drop(w)
		return
	}
	raw, err := io.ReadAll(req.Body)
	if err != nil {
		return
	}
	s.read(x, req, raw)
	switch r := s.exchange(x); r.ending {
	case answered:
		s.write(w, x, r.answer)
	default:
		drop(w)
	}
}

// begin counts a request as under way; false: the server is closed.
func (s *Server) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.working.Add(1)
	return true
}

func (s *Server) servePeek(w http.ResponseWriter, page string) {
	var counts map[string]int
	switch page {
	case "rings":
		counts = s.AllRings()
	case "requests":
		counts = s.allRequests()
	default:
		http.NotFound(w, nil)
		return
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	_, _ = w.Write(encode(counts))
}

func (s *Server) write(w http.ResponseWriter, x *exchange, a answer) {
	header := w.Header()
	for name, values := range a.header {
		header[name] = values
	}
	if a.status != http.StatusNoContent {
		header.Set("Content-Length", strconv.Itoa(len(a.body)))
	}
	w.WriteHeader(a.status)
	p := x.fault.pace(a.body)
	if p.cut || p.every > 0 {
		_ = http.NewResponseController(w).Flush()
	}
	for len(p.rest) > 0 {
		if p.every > 0 && s.pause(x, p.every) != answered {
			panic(http.ErrAbortHandler)
		}
		_, _ = w.Write(p.next())
		if p.cut || p.every > 0 {
			_ = http.NewResponseController(w).Flush()
		}
	}
	if p.cut {
		panic(http.ErrAbortHandler)
	}
}

// drop closes the connection without an answer, hard where that is possible.
func drop(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}
