package retelltest

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"time"
)

// maxLog is how many requests are remembered.
const maxLog = 10_000

// Received is what the server remembers of a request that it read as a whole. A refused connection is not there.
type Received struct {
	Operation string // "create-phone-call"; "unknown" for a path that Retell does not have
	Method    string
	Path      string
	Header    http.Header // as sent, credentials included
	Body      []byte      // as sent
	At        time.Time   // when it had been read
	Fault     string      // name of the fault that it met; empty: none
	Effect    bool        // it was carried out, perhaps later; a replay of an idempotency_key was not
	Status    int         // of the answer; 0: there was none (yet)
}

// Call is a call as the server has it: the truth behind what clients were told.
type Call struct {
	ID          string
	Type        string // "phone_call" or "web_call"
	Status      string // "registered", "ongoing", "ended", "not_connected", "error"
	Direction   string
	From, To    string
	BatchCallID string
	Reason      string          // of the disconnection
	Metadata    map[string]any  // numbers are json.Number
	Controls    []string        // additional_context of each call_control that update-live-call brought
	Made        time.Time       // when it was made
	Object      json.RawMessage // as get-call answers it
}

// note logs a request. The lock is held.
func (s *Server) note(entry *Received) {
	s.requests[entry.Operation]++
	if len(s.log) >= maxLog {
		s.log = slices.Delete(s.log, 0, maxLog/10)
	}
	s.log = append(s.log, entry)
}

// Rings returns how often a phone really rang: phone calls placed to a number, by create-phone-call and
// create-batch-call.
func (s *Server) Rings(number string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rings[number]
}

// AllRings returns [Server.Rings] of every number that rang.
func (s *Server) AllRings() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.rings)
}

// Texts returns how many texts were sent to a number by create-sms-chat.
func (s *Server) Texts(number string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.texts[number]
}

// Requests returns how many requests of an operation the server read, whatever became of them. With [Any] of all
// operations. Over real HTTP, net/http re-sends some requests by itself when a reused connection is lost; they count.
func (s *Server) Requests(operation string) int { return s.count(operation, s.requests) }

// Effects returns how many requests of an operation were carried out with success, whether or not the client heard of
// it. A replay of an idempotency_key is none. With [Any] of all operations.
func (s *Server) Effects(operation string) int { return s.count(operation, s.effects) }

// Refusals returns how many requests of an operation never got in: the connection was refused or did not come about.
// Those that the operating system refused are not known to the server. With [Any] of all operations.
func (s *Server) Refusals(operation string) int { return s.count(operation, s.refusals) }

func (s *Server) count(operation string, counts map[string]int) int {
	mustKnow(operation)
	s.mu.Lock()
	defer s.mu.Unlock()
	if operation != Any {
		return counts[operation]
	}
	sum := 0
	for _, n := range counts {
		sum += n
	}
	return sum
}

func (s *Server) allRequests() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.requests)
}

// Received returns the requests in the order of arrival: all of them, or the newest 9,000 to 10,000. Header and Body are shared: do
// not change them.
func (s *Server) Received() []Received {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Received, len(s.log))
	for i, entry := range s.log {
		out[i] = *entry
	}
	return out
}

// Calls returns all calls in the order in which they were made, deleted ones excepted.
func (s *Server) Calls() []Call {
	s.mu.Lock()
	defer s.mu.Unlock()
	items := slices.SortedFunc(maps.Values(s.calls.items), func(a, b *item) int { return a.seq - b.seq })
	out := make([]Call, len(items))
	for i, it := range items {
		out[i] = Call{
			ID: it.id, Type: text(it.obj, "call_type"), Status: text(it.obj, "call_status"),
			Direction: text(it.obj, "direction"), From: text(it.obj, "from_number"), To: text(it.obj, "to_number"),
			BatchCallID: text(it.obj, "batch_call_id"), Reason: text(it.obj, "disconnection_reason"),
			Metadata: maps.Clone(child(it.obj, "metadata")), Controls: slices.Clone(it.controls), Made: it.made,
			Object: encode(it.obj),
		}
	}
	return out
}
