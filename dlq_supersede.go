package resilience

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// How a newer write of a resource keeps older ones from undoing it.

// parts are the members of its resource that a write changes, one a line; "": all of it, as far as anybody can tell. Of two
// writes that change different members neither undoes the other, and neither has done what the other was to do.
type parts string

// partsOf reads them off a PATCH whose body is a JSON object. Without a resource nobody asks.
func partsOf(resource, method string, body []byte) parts {
	var members map[string]json.RawMessage
	if resource == "" || method != http.MethodPatch || json.Unmarshal(body, &members) != nil {
		return ""
	}
	names := make([]string, 0, len(members))
	for name := range members {
		names = append(names, strconv.Quote(name))
	}
	slices.Sort(names)
	return parts(strings.Join(names, "\n"))
}

// meet reports whether two writes may change the same thing.
func (p parts) meet(q parts) bool {
	if p == "" || q == "" {
		return true
	}
	names := strings.Split(string(q), "\n")
	return slices.ContainsFunc(strings.Split(string(p), "\n"), func(name string) bool { return slices.Contains(names, name) })
}

// writes are the calls and redrives under way for one resource, by what they change. One that fails after a newer one has
// worked is too late to be a letter that the newer one could have superseded, and as old. A redrive is as old as its letter.
type writes struct {
	n    int
	seen map[parts]span
}

// span is when the newest write of something began, ended ones included, and the newest of those that worked.
type span struct{ begun, worked time.Time }

func (d *DLQ) begin(resource string, changes parts, began time.Time) {
	if resource == "" {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	w := d.writes[resource]
	if w == nil {
		w = &writes{seen: map[parts]span{}}
		d.writes[resource] = w
	}
	w.n++
	s := w.seen[changes]
	s.begun = later(s.begun, began)
	w.seen[changes] = s
}

func (w *writes) works(changed parts, began time.Time) {
	if w == nil { // nobody is under way who could have met it
		return
	}
	s := w.seen[changed]
	s.worked = later(s.worked, began)
	w.seen[changed] = s
}

func (d *DLQ) end(resource string) {
	if resource == "" {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if w := d.writes[resource]; w.n > 1 {
		w.n--
		return
	}
	delete(d.writes, resource)
}

// overtaken reports whether a write to resource that began later than that has worked and meets it, as far as both can have
// been under way together.
func (d *DLQ) overtaken(resource string, changes parts, began time.Time) bool {
	return d.met(resource, changes, began, func(s span) time.Time { return s.worked })
}

// newerUnderWay reports the same of one that need not have ended.
func (d *DLQ) newerUnderWay(s *letterSlot) bool {
	return d.met(s.letter.Call.Resource, s.parts, s.letter.First, func(s span) time.Time { return s.begun })
}

func (d *DLQ) met(resource string, changes parts, began time.Time, by func(span) time.Time) bool {
	w := d.writes[resource]
	if w == nil {
		return false
	}
	for of, seen := range w.seen {
		if d.box.elapsed(began) < d.box.elapsed(by(seen)) && of.meet(changes) {
			return true
		}
	}
	return false
}

var (
	// errSuperseded is the cause with which a redrive is called off whose letter was superseded while it waited.
	errSuperseded = errors.New("a newer write of the same resource worked")
	// errAnswered is the cause where a call with the key of the letter did its write meanwhile.
	errAnswered  = errors.New("a call with the same key worked")
	errOvertaken = errors.New("a newer write of the same resource is under way")
)

// recall is asked below the slots, at the last moment before the write of a letter is sent, and says why it must not be; nil:
// it may go. redrive: the letter's own write, and not that of a call with its key. While a newer write of the resource is
// under way it waits: that one gives its slot back before it is known here to have worked.
func (d *DLQ) recall(id string, redrive bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.box.ofID(id)
	switch {
	case s == nil:
		return nil
	case s.letter.InDoubt:
		return ErrInDoubt
	case redrive && s.letter.Superseded:
		return errSuperseded
	case redrive && d.newerUnderWay(s):
		return errOvertaken
	}
	return nil
}

// supersede marks the letters for resource that are older than a write that worked, and meet it.
func (d *DLQ) supersede(resource string, changed parts, began time.Time) {
	if resource == "" {
		return
	}
	d.writes[resource].works(changed, began)
	for of, q := range d.box.byResource[resource] {
		if !of.meet(changed) {
			continue
		}
		for s := d.box.olderThan(q, began); s != nil; s = d.box.olderThan(q, began) {
			d.giveWay(s)
		}
	}
}

// giveWay marks a letter as superseded. A redrive of one that still waits for its turn goes home at once; one on the wire can
// only hope to be too late.
func (d *DLQ) giveWay(s *letterSlot) {
	d.box.change(s, func(l *Letter) { l.Superseded = true })
	d.callOff(s, errSuperseded)
	if s.arrival != nil {
		s.arrival.late = true // it is told when the letter is there
		return
	}
	d.tellSuperseded(s)
}

// callOff ends the redrive of a letter, if one is under way.
func (d *DLQ) callOff(s *letterSlot, why error) {
	if end := d.running[s.token]; end != nil {
		end(why)
	}
}

func (d *DLQ) tellSuperseded(s *letterSlot) {
	d.counters.Overtaken++
	d.tell(EventLetterParked, s.letter, "superseded")
}
