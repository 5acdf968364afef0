package resilience

import (
	"errors"
	"io"
	"net/http"
	"runtime"
	"sync"

	"github.com/retell-resilience/resilience/internal/body"
)

func isSuccess(code int) bool { return code >= 200 && code < 300 }

// isRefusalStatus names the answers that prove that nothing happened: a 4xx, except those that are also given when the
// request was being worked on.
func isRefusalStatus(code int) bool {
	switch code {
	case http.StatusRequestTimeout, http.StatusConflict, http.StatusTooEarly, 499:
		return false
	}
	return code >= 400 && code < 500
}

// doubtfulStatus: an answer after which an effect-once request may still have taken effect.
func doubtfulStatus(code int) bool { return code >= 300 && !isRefusalStatus(code) }

// mayHaveChanged reports whether an exchange that ended so may have changed something on the other side.
func mayHaveChanged(resp *http.Response, err error) bool {
	if err != nil {
		return !NotSent(err)
	}
	return !isRefusalStatus(resp.StatusCode)
}

// notYet names the refusals that a letter outlives: they say nothing against its request. Whoever took such a letter over,
// or shared a redrive of it, leaves it to the queue, for its caller was told that the queue will send it.
func notYet(status int) bool {
	switch status {
	case http.StatusTooManyRequests, http.StatusUnauthorized, http.StatusPaymentRequired, http.StatusForbidden:
		return true
	}
	return status >= 400 && doubtfulStatus(status)
}

// statusOf is the status in a tree of errors, 0 for none.
func statusOf(err error) (status int) {
	walk(err, func(e error) {
		if ours, ok := e.(*Error); ok && status == 0 { //nolint:errorlint // walk visits every node itself
			status = ours.StatusCode
		}
	})
	return status
}

// unreadRefusal is the status of an answer that refused a call which must happen once, and could not be read to its end; 0:
// err is no such answer.
func unreadRefusal(err error) int {
	if code := statusOf(err); isRefusalStatus(code) && NotSent(err) && !isRefusal(err) {
		return code
	}
	return 0
}

// discard closes an answer that nobody will read.
func discard(resp *http.Response) {
	if resp != nil && resp.Body != nil {
		_ = resp.Body.Close() // nobody could do anything about it
	}
}

// tail is the rest of an exchange that goes on after its answer was handed up: a stream being read, or a transport that
// has not returned though its time was up. A layer that holds something for the exchange gives it back then.
type tail struct {
	mu    sync.Mutex
	ended bool
	then  []func()
}

// after runs f when the exchange has ended, now if it has.
func (tl *tail) after(f func()) {
	tl.mu.Lock()
	if !tl.ended {
		tl.then = append(tl.then, f)
		tl.mu.Unlock()
		return
	}
	tl.mu.Unlock()
	f()
}

func (tl *tail) end() {
	tl.mu.Lock()
	then := tl.then
	tl.ended, tl.then = true, nil
	tl.mu.Unlock()
	for _, f := range then {
		f()
	}
}

// tailOf returns the tail of an exchange, nil if the exchange is over.
func tailOf(resp *http.Response, err error) *tail {
	if err != nil {
		var l *lingering
		if errors.As(err, &l) {
			return &l.tail
		}
		return nil
	}
	if resp == nil || body.InMemory(resp) { // as nearly always; quicker than to ask for a method that is not there
		return nil
	}
	if s, ok := resp.Body.(interface{ rest() *tail }); ok {
		return s.rest()
	}
	return nil
}

// afterExchange runs f when the exchange has really ended, which is now for all but streams and abandoned work.
func afterExchange(resp *http.Response, err error, f func()) {
	if tl := tailOf(resp, err); tl != nil {
		tl.after(f)
		return
	}
	f()
}

// stream is the body of an answer that is passed through as it comes.
type stream struct {
	io.ReadCloser
	tail tail
}

// newStream keeps what a connection that switched protocols can do: be written to.
func newStream(rc io.ReadCloser) io.ReadCloser {
	s := &stream{ReadCloser: rc}
	if w, ok := rc.(io.Writer); ok {
		return &duplex{s, w}
	}
	return s
}

type duplex struct {
	*stream
	io.Writer
}

func (s *stream) rest() *tail { return &s.tail }

// Read ends the exchange at the end of the stream, however that comes.
func (s *stream) Read(p []byte) (int, error) {
	n, err := s.ReadCloser.Read(p)
	if err != nil {
		s.tail.end()
	}
	return n, err
}

// Close ends the exchange.
func (s *stream) Close() error {
	err := s.ReadCloser.Close()
	s.tail.end()
	return err
}

// lingering is inside the error of an attempt whose transport has not returned yet. late is set before the tail ends.
type lingering struct {
	err  error
	tail tail
	late result
}

func (l *lingering) Error() string { return l.err.Error() }
func (l *lingering) Unwrap() error { return l.err }

// result is how a function ended: with values, a panic, or runtime.Goexit.
type result struct {
	resp     *http.Response
	err      error
	panicked bool
	value    any // of the panic
	exited   bool
}

// capture runs f to whatever end, and gives the result to done. It must be the whole body of a goroutine.
func capture(f func() (*http.Response, error), done func(result)) {
	r := result{exited: true}
	defer func() {
		if v := recover(); v != nil {
			r = result{panicked: true, value: v}
		}
		done(r)
	}()
	resp, err := f()
	r = result{resp: resp, err: err}
}

// cause is one word for an event.
func (r result) cause() string {
	switch {
	case r.panicked:
		return "panic"
	case r.exited:
		return "goexit"
	case r.err != nil:
		return "error"
	}
	return "answer"
}

// deliver ends the calling goroutine's call as f ended.
func (r result) deliver() (*http.Response, error) {
	switch {
	case r.panicked:
		panic(r.value)
	case r.exited:
		runtime.Goexit()
	}
	return r.resp, r.err
}
