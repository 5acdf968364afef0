package resilience

import (
	"errors"
	"time"
)

// How a newer write of a resource keeps older ones from undoing it.

// writes are the calls under way for one resource. One that fails after a newer one has worked is too late to be a letter
// that the newer one could have superseded, and as old.
type writes struct {
	n      int
	worked time.Time // when the newest that worked began
}

func (d *DLQ) begin(resource string) {
	if resource == "" {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	w := d.writes[resource]
	if w == nil {
		w = &writes{}
		d.writes[resource] = w
	}
	w.n++
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

// overtaken reports whether a write to resource that began later than that has worked, as far as it can have met it.
func (d *DLQ) overtaken(resource string, began time.Time) bool {
	w := d.writes[resource]
	return w != nil && !w.worked.IsZero() && d.box.elapsed(began) < d.box.elapsed(w.worked)
}

// errSuperseded is the cause with which a redrive is called off whose letter was superseded while it waited.
var errSuperseded = errors.New("a newer write of the same resource worked")

// supersede marks the letters for resource that are older than a write that worked. A redrive of one that still waits for
// its turn goes home; one on the wire can only hope to be too late.
func (d *DLQ) supersede(resource string, began time.Time) {
	if resource == "" {
		return
	}
	if w := d.writes[resource]; w != nil && (w.worked.IsZero() || w.worked.Before(began)) {
		w.worked = began
	}
	for s := d.box.olderThan(resource, began); s != nil; s = d.box.olderThan(resource, began) {
		d.box.change(s, func(l *Letter) { l.Superseded = true })
		if callOff := d.running[s.token]; callOff != nil {
			callOff(errSuperseded)
		}
		d.counters.Overtaken++
		d.tell(EventLetterParked, s.letter, "superseded")
	}
}
