package retelltest

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"time"
)

// exchange is one request on its way through the server, by whichever wire it came.
type exchange struct {
	op     *operation // nil: no such path
	params []string
	fault  Fault

	query  url.Values
	header http.Header
	raw    []byte
	ctx    context.Context // done: the client gave up
	cancel <-chan struct{} // the same, the old way
	entry  *Received       // its line in the log
}

// ending says how an exchange ends for the client.
type ending uint8

const (
	answered ending = iota
	reset           // the connection is dropped
	gone            // the client gave up first
)

// reply is what goes back over the wire.
type reply struct {
	ending ending
	answer answer
}

func (x *exchange) name() string {
	if x.op == nil {
		return unknownOperation
	}
	return x.op.name
}

// arrive is the first thing that happens to a request: it chooses its fault.
func (s *Server) arrive(method, escapedPath string) *exchange {
	x := &exchange{}
	x.op, x.params = find(method, escapedPath)
	s.mu.Lock()
	defer s.mu.Unlock()
	x.fault = s.pick(x.name())
	return x
}

// refuse counts a request that never got in.
func (s *Server) refuse(x *exchange) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refusals[x.name()]++
}

// read logs a request that has been read as a whole.
func (s *Server) read(x *exchange, req *http.Request, raw []byte) {
	x.raw, x.header, x.query = raw, req.Header.Clone(), req.URL.Query()
	x.entry = &Received{
		Operation: x.name(), Method: req.Method, Path: req.URL.Path,
		Header: x.header, Body: raw, At: time.Now(), Fault: x.fault.Name,
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.note(x.entry)
}

// exchange carries a request out, with its fault, and says how it ends.
func (s *Server) exchange(x *exchange) reply {
	f := x.fault
	if f.Late > 0 {
		s.later(x, f.Late)
	}
	if f.Delay > 0 {
		start := time.Now()
		if end := s.pause(x, f.Delay); end != answered {
			if end == gone && !f.Skip && f.Late <= 0 && f.Hang != HangBefore {
				s.later(x, f.Delay-time.Since(start))
			}
			return reply{ending: end}
		}
	}
	if f.Hang == HangBefore {
		if end := s.hang(x); end != answered {
			return reply{ending: end}
		}
	}
	a := fail(http.StatusInternalServerError, "unexpected error").answer()
	if !f.Skip && f.Late <= 0 {
		a = s.perform(x)
	}
	if f.Hang == HangAfter {
		if end := s.hang(x); end != answered {
			return reply{ending: end}
		}
	}
	if f.Reset {
		return reply{ending: reset}
	}
	a = f.disguise(a)
	s.mu.Lock()
	x.entry.Status = a.status
	s.mu.Unlock()
	return reply{answer: a}
}

// disguise puts what the fault wants said in the place of the answer.
func (f Fault) disguise(a answer) answer {
	if f.Status != 0 {
		message := http.StatusText(f.Status)
		if message == "" {
			message = "fault"
		}
		a = fail(f.Status, "%s", message).answer()
		if f.Body != "" {
			a.body = []byte(f.Body)
			a.header.Del("Content-Type")
		}
	}
	for name, values := range f.Header {
		a.header[http.CanonicalHeaderKey(name)] = slices.Clone(values) // the answer belongs to who gets it
	}
	return a
}

// perform carries the operation out and returns its real answer.
func (s *Server) perform(x *exchange) (a answer) {
	if refused := unauthorized(x.header, s.key); refused != nil {
		return *refused
	}
	if x.op == nil {
		return fail(http.StatusNotFound, "there is no such path").answer()
	}
	body, malformed := decode(x.header, x.raw)
	if malformed != nil {
		return malformed.answer()
	}
	r := &request{params: x.params, query: x.query, body: body, now: time.Now()}
	s.locked(func() {
		result, failed := x.op.do(s, r)
		if failed != nil {
			a = failed.answer()
			return
		}
		a = answerJSON(x.op.status, result)
		if !r.repeated {
			s.effects[x.op.name]++
			x.entry.Effect = true
		}
	})
	return a
}

// later carries the operation out when the request itself is over and done.
func (s *Server) later(x *exchange, d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.schedule(d, func() { s.perform(x) })
}

// pause waits.
func (s *Server) pause(x *exchange, d time.Duration) ending {
	t := time.NewTimer(d)
	defer t.Stop()
	return s.await(x, t.C, nil)
}

// hang waits until the request is released.
func (s *Server) hang(x *exchange) ending {
	s.mu.Lock()
	s.hanging++
	released := s.released
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.hanging--
		s.mu.Unlock()
	}()
	return s.await(x, nil, released)
}

func (s *Server) await(x *exchange, elapsed <-chan time.Time, released <-chan struct{}) ending {
	select {
	case <-elapsed:
		return answered
	case <-released:
		return answered
	case <-x.ctx.Done():
		return gone
	case <-x.cancel:
		return gone
	case <-s.done:
		return reset
	}
}
