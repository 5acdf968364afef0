package retelltest

import (
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// Fault is what goes wrong with one request. It is plain data: use a constructor, or set the fields. The zero Fault is
// a request that goes well, which is useful between others in [Server.Inject].
//
// A request goes through these stages: it connects, its body is read, the operation is carried out (the effect), the
// answer is given. The fields say what happens at which stage.
type Fault struct {
	// Name is shown in [Received].
	Name string
	// Connect says whether there is a connection at all.
	Connect Connect
	// Delay is a wait between reading the request and the effect. A client that gives up meanwhile does not prevent
	// the effect: it comes when the delay is over.
	Delay time.Duration
	// Hang keeps the request hanging until the client gives up, [Server.Release] or [Server.Close]. After a release it
	// goes on as if nothing had been; a client that gives up before the effect prevents it.
	Hang Hang
	// Skip leaves the effect out. Without Status, Reset or Hang the answer is then a 500.
	Skip bool
	// Late moves the effect to that long after the request was read, whatever is answered and whether or not the client
	// still waits. Without Status, Reset or Hang the answer is a 500.
	Late time.Duration
	// Reset drops the connection instead of an answer.
	Reset bool
	// Status is answered instead of the real answer; 0: the real one. It does not change the effect: see Skip.
	Status int
	// Header is added to the answer.
	Header http.Header
	// Body is answered with Status; empty: Retell's error shape.
	Body string
	// Truncate cuts the answer's body after Keep bytes, though its Content-Length is whole.
	Truncate bool
	// Keep is how many bytes Truncate leaves; at most one less than the whole.
	Keep int
	// Every is the wait before each chunk of the body, of Chunk bytes; 0: no wait.
	Every time.Duration
	// Chunk is the size of a chunk in bytes; 0: 16.
	Chunk int
}

// Connect says how far connecting gets.
type Connect uint8

// The ways to connect. Over real HTTP the connection is there before the server sees the request: there both faults
// drop it unread, and no client can prove that nothing was sent. A real refusal over HTTP is [Server.StopListening].
const (
	ConnectOK      Connect = iota
	ConnectRefused         // connection refused: nothing is sent, and the in-process transport says so
	ConnectHangs           // never connects, until the client gives up: nothing is sent
)

// Hang says where a request hangs.
type Hang uint8

// The places to hang.
const (
	HangNever Hang = iota
	HangBefore
	HangAfter
)

// Refuse is a refused connection: nothing is sent. See [ConnectRefused] for what it is over real HTTP.
func Refuse() Fault { return Fault{Name: "refuse", Connect: ConnectRefused} }

// HangConnecting is a connection that is never established: nothing is sent. See [ConnectHangs].
func HangConnecting() Fault { return Fault{Name: "hang connecting", Connect: ConnectHangs} }

// ResetBeforeEffect reads the request and drops the connection; nothing is done.
func ResetBeforeEffect() Fault { return Fault{Name: "reset before effect", Skip: true, Reset: true} }

// LostAnswer carries the request out and drops the connection instead of answering: the phone rings and the caller gets
// an error.
func LostAnswer() Fault { return Fault{Name: "lost answer", Reset: true} }

// HangBeforeEffect reads the request and does nothing until it is released.
func HangBeforeEffect() Fault { return Fault{Name: "hang before effect", Hang: HangBefore} }

// HangAfterEffect carries the request out and does not answer until it is released.
func HangAfterEffect() Fault { return Fault{Name: "hang after effect", Hang: HangAfter} }

// Status answers with a status and Retell's error body; nothing is done. Headers are pairs of name and value.
func Status(code int, headers ...string) Fault {
	return Fault{Name: fmt.Sprintf("status %d", code), Skip: true, Status: code, Header: pairs(headers)}
}

// StatusAfterEffect carries the request out and answers with a status all the same: a 500 after the phone rang.
func StatusAfterEffect(code int, headers ...string) Fault {
	return Fault{Name: fmt.Sprintf("status %d after effect", code), Status: code, Header: pairs(headers)}
}

// Throttle is a 429. A positive retryAfter is sent as Retry-After, in whole seconds rounded up.
func Throttle(retryAfter time.Duration) Fault {
	f := Status(http.StatusTooManyRequests)
	f.Name = "throttle"
	if retryAfter > 0 {
		f.Header = pairs([]string{"Retry-After", strconv.Itoa(int((retryAfter + time.Second - 1) / time.Second))})
	}
	return f
}

// TruncateBody carries the request out and cuts the answer's body after keep bytes.
func TruncateBody(keep int) Fault { return Fault{Name: "truncated body", Truncate: true, Keep: keep} }

// SlowBody carries the request out and sends the answer's head at once, then its body in chunks of 16 bytes with a wait
// before each.
func SlowBody(every time.Duration) Fault { return Fault{Name: "slow body", Every: every} }

// Delayed waits before the effect, then goes on as f.
func Delayed(d time.Duration, f Fault) Fault {
	f.Name, f.Delay = join("delayed", f.Name), d
	return f
}

// LateEffect moves the effect of f: it happens d after the request was read although the answer was an error, or none.
// LateEffect(time.Minute, Status(500)) says 500 and dials a minute later.
func LateEffect(d time.Duration, f Fault) Fault {
	f.Name, f.Late, f.Skip = join("late effect", f.Name), d, false
	return f
}

func join(a, b string) string {
	if b == "" {
		return a
	}
	return a + ", " + b
}

func pairs(nameValue []string) http.Header {
	if len(nameValue)%2 != 0 {
		panic("retelltest: headers are pairs of name and value")
	}
	h := make(http.Header)
	for i := 0; i < len(nameValue); i += 2 {
		h.Add(nameValue[i], nameValue[i+1])
	}
	return h
}

// rate is a fault that strikes now and then.
type rate struct {
	share float64
	fault Fault
}

// Inject makes the next requests of an operation meet the given faults, one each, in order of arrival. Faults injected
// earlier come first. With [Any] they strike whatever comes next and has no fault of its own waiting.
func (s *Server) Inject(operation string, faults ...Fault) {
	mustKnow(operation)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.scripts[operation] = append(s.scripts[operation], faults...)
}

// Rate makes a share of the requests of an operation, from 0 to 1, meet a fault, once the injected ones are used up.
// Several rates for one operation, those of [Any] included, exclude each other: their shares add up, and what is beyond
// 1 never strikes. It panics when the share is not between 0 and 1.
func (s *Server) Rate(operation string, share float64, fault Fault) {
	mustKnow(operation)
	if !(share >= 0 && share <= 1) {
		panic(fmt.Sprintf("retelltest: share %v is not between 0 and 1", share))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rates[operation] = append(s.rates[operation], rate{share, fault})
}

// ClearFaults forgets all injected faults and rates. Requests that hang go on hanging; see [Server.Release].
func (s *Server) ClearFaults() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.scripts, s.rates = make(map[string][]Fault), make(map[string][]rate)
}

// Injected returns how many injected faults of an operation have not been met yet, with [Any] those injected for Any.
func (s *Server) Injected(operation string) int {
	mustKnow(operation)
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.scripts[operation])
}

// Release lets all requests that hang at this moment go on.
func (s *Server) Release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.released)
	s.released = make(chan struct{})
}

// Hanging returns how many requests hang at this moment.
func (s *Server) Hanging() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hanging
}

// Outage makes every request fail with a 503, without effect, until it is called with false. Injected faults wait
// meanwhile.
func (s *Server) Outage(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.outage = on
}

// ListLag makes list-calls and list-chats show what is new only after d. 0, the default: at once.
func (s *Server) ListLag(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lag = d
}

// IgnoreFilters makes list-calls and list-chats answer as if no filter had been given: with strangers.
func (s *Server) IgnoreFilters(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ignoreFilters = on
}

// HideRegistered leaves calls that are still registered out of list-calls. Retell's documentation does not say whether
// they are listed; a client must cope with both.
func (s *Server) HideRegistered(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hideRegistered = on
}

// pick chooses the fault that the next request of an operation meets. The lock is held.
func (s *Server) pick(operation string) Fault {
	if s.outage {
		f := Status(http.StatusServiceUnavailable)
		f.Name = "outage"
		return f
	}
	for _, name := range [...]string{operation, Any} {
		if script := s.scripts[name]; len(script) > 0 {
			s.scripts[name] = script[1:]
			return script[0]
		}
	}
	s.draws[operation]++
	drawn := s.draw(operation, s.draws[operation])
	for _, name := range [...]string{operation, Any} {
		for _, r := range s.rates[name] {
			if drawn -= r.share; drawn < 0 {
				return r.fault
			}
		}
	}
	return Fault{}
}
