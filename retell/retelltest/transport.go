package retelltest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/retell-resilience/resilience"
)

// Transport returns the in-process way into the server: an http.RoundTripper without sockets and goroutines. It keeps
// the RoundTripper contract, ends with the cause of the request's context when that is done, honours Request.Cancel, and
// fires the httptrace hooks that net/http would: GetConn always, ConnectStart where a connection hangs, GotConn,
// WroteHeaders, WroteRequest and GotFirstResponseByte only once there is something to report. An error for which nothing was sent carries
// [resilience.MarkNotSent]: a refused or hanging connection, a context that was done before, a server that is closed or
// not listening.
func (s *Server) Transport() http.RoundTripper { return transport{s} }

type transport struct{ s *Server }

func (t transport) RoundTrip(req *http.Request) (*http.Response, error) {
	body := &onceCloser{body: req.Body}
	defer body.Close()
	if req.URL == nil {
		return nil, resilience.MarkNotSent(errors.New("retelltest: nil Request.URL"))
	}
	if err := gaveUp(req); err != nil {
		return nil, resilience.MarkNotSent(err)
	}
	trace := httptrace.ContextClientTrace(req.Context())
	if trace == nil {
		trace = &httptrace.ClientTrace{}
	}
	x, err := t.connect(req, trace)
	if err != nil {
		return nil, resilience.MarkNotSent(err)
	}
	raw, err := readBody(req, body)
	if err != nil {
		return nil, err
	}
	wrote(trace)
	t.s.read(x, req, raw)
	r := t.s.exchange(x)
	switch r.ending {
	case gone:
		return nil, gaveUp(req)
	case reset:
		return nil, &net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", syscall.ECONNRESET)}
	}
	if trace.GotFirstResponseByte != nil {
		trace.GotFirstResponseByte()
	}
	return t.response(req, x, r.answer), nil
}

// connect plays the part before anything is sent.
func (t transport) connect(req *http.Request, trace *httptrace.ClientTrace) (*exchange, error) {
	if trace.GetConn != nil {
		trace.GetConn(req.URL.Host)
	}
	if t.s.down() {
		x := &exchange{}
		x.op, x.params = find(methodOf(req), req.URL.EscapedPath())
		t.s.refuse(x)
		return nil, refusedConnection()
	}
	x := t.s.arrive(methodOf(req), req.URL.EscapedPath())
	x.ctx, x.cancel = req.Context(), req.Cancel //nolint:staticcheck // http.Client still sets it for foreign transports
	switch x.fault.Connect {
	case ConnectRefused:
		t.s.refuse(x)
		return nil, refusedConnection()
	case ConnectHangs:
		if trace.ConnectStart != nil { // a connection that is being made, as connect limits need to know
			trace.ConnectStart("tcp", req.URL.Host)
		}
		switch t.s.hang(x) {
		case gone:
			t.s.refuse(x)
			return nil, gaveUp(req)
		case reset:
			t.s.refuse(x)
			return nil, refusedConnection()
		}
	}
	if trace.GotConn != nil {
		conn, _ := net.Pipe()
		trace.GotConn(httptrace.GotConnInfo{Conn: conn})
	}
	return x, nil
}

func methodOf(req *http.Request) string {
	if req.Method == "" {
		return http.MethodGet
	}
	return req.Method
}

func refusedConnection() error {
	return &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
}

var errCanceled = errors.New("retelltest: request canceled")

// gaveUp returns why the client no longer waits; nil: it does.
func gaveUp(req *http.Request) error {
	if req.Context().Err() != nil {
		return context.Cause(req.Context())
	}
	select {
	case <-req.Cancel: //nolint:staticcheck // as above
		return errCanceled
	default:
		return nil
	}
}

// readBody reads the request's body. A context that ends closes it, which frees a read that is stuck.
func readBody(req *http.Request, body *onceCloser) ([]byte, error) {
	if req.Body == nil {
		return nil, nil
	}
	stop := context.AfterFunc(req.Context(), func() { _ = body.Close() })
	defer stop()
	raw, err := io.ReadAll(req.Body)
	if ended := gaveUp(req); ended != nil {
		return nil, ended
	}
	return raw, err
}

func wrote(trace *httptrace.ClientTrace) {
	if trace.WroteHeaders != nil {
		trace.WroteHeaders()
	}
	if trace.WroteRequest != nil {
		trace.WroteRequest(httptrace.WroteRequestInfo{})
	}
}

func (t transport) response(req *http.Request, x *exchange, a answer) *http.Response {
	resp := &http.Response{
		StatusCode: a.status, Status: strconv.Itoa(a.status) + " " + http.StatusText(a.status),
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: a.header, Request: req, Body: http.NoBody, ContentLength: int64(len(a.body)),
	}
	if len(a.body) == 0 {
		return resp
	}
	resp.Header.Set("Content-Length", strconv.Itoa(len(a.body)))
	pace := x.fault.pace(a.body)
	resp.Body = &bodyReader{s: t.s, x: x, req: req, pace: pace, closed: make(chan struct{})}
	return resp
}

// pace is how an answer's body goes out.
type pace struct {
	rest  []byte // what is still to be sent
	chunk int
	every time.Duration
	cut   bool // the end is missing
}

func (f Fault) pace(body []byte) pace {
	p := pace{rest: body, chunk: len(body), every: f.Every}
	if f.Every > 0 {
		p.chunk = 16
		if f.Chunk > 0 {
			p.chunk = f.Chunk
		}
	}
	if f.Truncate && len(body) > 0 {
		p.cut, p.rest = true, body[:max(0, min(f.Keep, len(body)-1))]
	}
	return p
}

// next takes the next chunk.
func (p *pace) next() []byte {
	n := min(p.chunk, len(p.rest))
	chunk := p.rest[:n]
	p.rest = p.rest[n:]
	return chunk
}

// bodyReader is the body of an in-process answer.
type bodyReader struct {
	s      *Server
	x      *exchange
	req    *http.Request
	pace   pace
	now    bytes.Reader // the chunk being read
	once   sync.Once
	closed chan struct{}
}

var errReadAfterClose = errors.New("retelltest: read on closed response body")

func (b *bodyReader) Read(p []byte) (int, error) {
	select {
	case <-b.closed:
		return 0, errReadAfterClose
	default:
	}
	if err := gaveUp(b.req); err != nil {
		return 0, err
	}
	if len(p) == 0 {
		return 0, nil
	}
	if b.now.Len() == 0 {
		if len(b.pace.rest) == 0 {
			if b.pace.cut {
				return 0, io.ErrUnexpectedEOF
			}
			return 0, io.EOF
		}
		if err := b.wait(); err != nil {
			return 0, err
		}
		b.now.Reset(b.pace.next())
	}
	return b.now.Read(p)
}

// wait is the wait before a chunk.
func (b *bodyReader) wait() error {
	if b.pace.every <= 0 {
		return nil
	}
	t := time.NewTimer(b.pace.every)
	defer t.Stop()
	switch b.s.await(b.x, t.C, b.closed) {
	case gone:
		return gaveUp(b.req)
	case reset:
		return io.ErrUnexpectedEOF
	}
	select {
	case <-b.closed:
		return errReadAfterClose
	default:
		return nil
	}
}

func (b *bodyReader) Close() error {
	b.once.Do(func() { close(b.closed) })
	return nil
}

// onceCloser closes a request body once, from whichever side comes first.
type onceCloser struct {
	body io.Closer
	once sync.Once
}

func (c *onceCloser) Close() error {
	c.once.Do(func() {
		if c.body != nil {
			_ = c.body.Close()
		}
	})
	return nil
}
