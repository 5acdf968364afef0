package resilience

import (
	"errors"
	"time"
)

// How a newer write of a resource keeps older ones from undoing it.

// writes are the calls and redrives under way for one resource. One that fails after a newer one has worked is too late to be
// a letter that the newer one could have superseded, and as old. A redrive is as old as its letter.
type writes struct {
	n      int
	newest time.Time // when the newest of them began, ended ones included
	worked time.Time // when the newest that worked began
}

func (d *DLQ) begin(resource string, began time.Time) {
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
	w.newest = later(w.newest, began)
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

var (
	// errSuperseded is the cause with which a redrive is called off whose letter was superseded while it waited.
	errSuperseded = errors.New("a newer write of the same resource worked")
	errOvertaken  = errors.New("a newer write of the same resource is under way")
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
	case redrive && d.newerUnderWay(s.letter):
		return errOvertaken
	}
	return nil
}

func (d *DLQ) newerUnderWay(l *Letter) bool {
	w := d.writes[l.Call.Resource]
	return w != nil && d.box.elapsed(l.First) < d.box.elapsed(w.newest)
}

// supersede marks the letters for resource that are older than a write that worked. A redrive of one that still waits for
// its turn goes home at once; one on the wire can only hope to be too late.
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
