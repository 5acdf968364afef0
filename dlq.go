package resilience

import (
	"context"
	"maps"
	"math"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"
)

// DLQConfig configures a [DLQ]. The zero value is the documented default.
type DLQConfig struct {
	// Keep says which failed writes become letters: those whose late success still helps. nil: every write. It is asked
	// only about calls that failed. One that panics says no.
	Keep func(Call) bool
	// KeepUnnamed lets writes become letters whose key the library made, not the caller. Without it such a write belongs
	// to the caller, who cannot find it again by a key.
	KeepUnnamed bool
	// MaxLetters bounds the letters, parked and superseded ones included. So many phone calls take about 17 MB, and 24 MB
	// when all of them have failed nine times or more. 0: 10,000; -1: unlimited.
	MaxLetters int
	// MaxBytes bounds their size in memory. Counted are the bytes of the request and the names, about 100 more for each
	// header, and 2 KiB for the rest; that is not less than what a letter takes, and seldom twice as much: a phone call with
	// a body of 280 bytes counts 2.75 KB, takes 1.7 KB, and 2.4 KB when it has failed nine times. A redrive copies its
	// letter, which is not counted. 0: 64 MiB; -1: unlimited.
	MaxBytes int64
	// Base is the upper end of the first random delay. It doubles with each attempt. 0: 1 s.
	Base time.Duration
	// Cap bounds the delay. A Retry-After of the other side may be longer. 0: 5 min, or Base if that is longer.
	Cap time.Duration
	// MaxAge ends redriving that long after the first try began, or after the last requeue: then the letter is parked and
	// reported. See [WithExpiry] for one call. 0: 1 h; -1: never.
	MaxAge time.Duration
	// MaxAges is MaxAge for single operations, by name: nobody wants a phone call hours late, but an update of an agent is
	// as good the next day. 0: MaxAge; -1: never. NewDLQ copies it.
	MaxAges map[string]time.Duration
	// Attempts is how many redrives may fail before the letter is parked. 0: 5; -1: unlimited.
	Attempts int
	// Overflow says what happens to a letter that does not fit. Zero: OverflowRejectNew.
	Overflow Overflow
	// OnDrop is told about each letter dropped by OverflowDropOldest, which requires it, as OnParked is.
	OnDrop func(Letter)
	// Spill takes letters that do not fit, under OverflowSpill, which requires it. Once it returns nil the letter is its
	// own. It runs on the caller's time; an error or panic gives the write back to the caller.
	Spill func(Letter) error
	// Concurrency is how many redrives may run at a time. 0: 2.
	Concurrency int
	// Rate is how many redrives may begin in a second. 0: 10; -1: unlimited.
	Rate float64
	// Store keeps the letters beyond the life of the process. nil: they are in memory only. NewDLQ loads it; see [DLQ].
	Store LetterStore
	// Seal changes the request of each letter on its way into the Store and into an export, and Open changes it back; for
	// encryption. Of what they return only URL, Host, Header and Body count. What Seal returns must be whole without
	// anything kept elsewhere, and Open is also given what was stored before there was a Seal. Both or none are set; they
	// run on several goroutines at once. An error or panic of Seal is a failed write, one of Open fails NewDLQ or Import.
	Seal func(Letter) (Letter, error)
	Open func(Letter) (Letter, error)
	// Authorize puts the current credentials on a redrive; letters hold none. It is called before each send. While it
	// fails, or is missing though the request had credentials, redriving waits without spending attempts.
	Authorize func(context.Context, Letter, *http.Request) error
	// OnParked is told once each time redriving gives a letter up (Letter.Parked; a write that is [ErrParked] is a new letter,
	// and will be redriven), one after the other, on the goroutine of the events: it holds up no call, but the events behind
	// it. One that panics is counted. The letter holds the request: log its ID, Operation and ParkedReason, not the whole.
	OnParked func(Letter)
	// Redact changes letters on their way into an export, for example to take personal data out. A letter whose request
	// it changed is marked Redacted, parked when it is imported, and never sent.
	Redact func(*Letter)
	// OnEvent listens to this layer alone.
	OnEvent func(Event)
	// Off leaves the layer out: [NewDLQ] returns nil.
	Off bool
}

// Overflow says what happens to a letter that does not fit into the queue.
type Overflow uint8

// The overflow policies.
const (
	OverflowRejectNew  Overflow = iota // the write stays with its caller: the error is ErrLettersFull joined to the cause
	OverflowBlock                      // the failed call waits for room until its context ends; Add does not wait
	OverflowDropOldest                 // the oldest letter goes, never one in doubt or being redriven; OnDrop is told
	OverflowSpill                      // the new letter goes to Spill
)

// String returns "reject-new", "block", "drop-oldest" or "spill".
func (o Overflow) String() string {
	return nameOf(int(o), "reject-new", "block", "drop-oldest", "spill")
}

const (
	defaultMaxLetters = 10_000
	defaultLetterMem  = 64 << 20
)

func (c DLQConfig) validate() error {
	f := faults{prefix: "DLQ"}
	f.count("MaxLetters", int64(c.MaxLetters))
	f.count("MaxBytes", c.MaxBytes)
	f.count("Attempts", int64(c.Attempts))
	f.positive("Base", c.Base)
	f.positive("Cap", c.Cap)
	if c.Cap > 0 && c.Cap < or(c.Base, time.Second) {
		f.add("Cap", "at least Base", c.Cap)
	}
	f.duration("MaxAge", c.MaxAge)
	for _, operation := range slices.Sorted(maps.Keys(c.MaxAges)) {
		f.duration("MaxAges["+strconv.Quote(operation)+"]", c.MaxAges[operation])
	}
	if c.Concurrency < 0 {
		f.add("Concurrency", "positive or 0 for the default", c.Concurrency)
	}
	if math.IsNaN(c.Rate) || math.IsInf(c.Rate, 0) || c.Rate < 0 && c.Rate != -1 {
		f.add("Rate", "positive, 0 for the default or -1 for none", c.Rate)
	}
	switch {
	case c.Overflow > OverflowSpill:
		f.add("Overflow", "one of the Overflow constants", c.Overflow)
	case c.Overflow == OverflowDropOldest && c.OnDrop == nil:
		f.add("OnDrop", "set when Overflow is OverflowDropOldest", "nil")
	case c.Overflow == OverflowSpill && c.Spill == nil:
		f.add("Spill", "set when Overflow is OverflowSpill", "nil")
	}
	if (c.Seal == nil) != (c.Open == nil) {
		f.add("Seal", "set together with Open", "one of them")
	}
	return f.err()
}

func (c DLQConfig) withDefaults() DLQConfig {
	c.MaxLetters = or(c.MaxLetters, defaultMaxLetters)
	c.MaxBytes = or(c.MaxBytes, defaultLetterMem)
	c.Base = or(c.Base, time.Second)
	c.Cap = or(c.Cap, max(5*time.Minute, c.Base))
	c.MaxAge = or(c.MaxAge, time.Hour)
	c.MaxAges = maps.Clone(c.MaxAges)
	c.Attempts = or(c.Attempts, 5)
	c.Concurrency = or(c.Concurrency, 2)
	c.Rate = or(c.Rate, 10)
	return c
}

// maxAge is for how long letters of the operation are redriven; negative: for ever.
func (c *DLQConfig) maxAge(operation string) time.Duration { return or(c.MaxAges[operation], c.MaxAge) }

// A DLQ keeps writes that failed for good and redrives them, with their idempotency key, until they succeed, their time
// is over, or they are given up. A write that became a letter belongs to the queue, and its caller is told so
// ([ErrParked]); every other one belongs to its caller. Nothing leaves the queue without an event and a counter.
//
// A write has failed when it ends in an error or in a status of 500 or more; a caller who cancelled, or whose own deadline
// passed before it was sent, has taken it back. Other answers are the caller's, a 429 too; a call that was refused because
// others were answered so ([ErrThrottled]) is a failure. No letter is made of what was refused for its key, by the store of
// the keys or by Close, nor of a body larger than TimeoutConfig.MaxRequestBytes, nor, in a [Stack], of a call that must
// happen once when its caller runs out of time: one that still waits is not sent, one on the wire goes on and settles its key.
//
// A write that may have taken effect (in doubt) is looked up, never sent again.
//
// Without DLQConfig.Store letters are in memory: they survive a restart only through Export, after Stack.Close, and Import.
// With one, a caller is told ErrParked when the letter is in the store, and not before. A letter that does not get there in
// time is not kept, and the write stays with its caller, as with a queue that is full. In time is within 5 s, or within the
// time that the caller has, if that is less, but at least 1 s. Every later change is written behind: attempts, doubt, due times, parking and removal. What the store
// does not take is counted, reported and tried again by Stack.Run and once more by Close. So after a crash every letter is
// there whose caller was told so, as it was a moment before at worst: an attempt may be made again, and a letter whose
// removal was not written yet comes back, and so may one that the store took after its caller was told that it did not.
// The idempotency key absorbs all of this, if keys are durable too. A lease ends with the process: the letter waits again.
//
// All methods are safe for concurrent use and on a nil *DLQ, which keeps nothing. Redriving happens in Stack.Run, or when
// Redrive is called.
type DLQ struct {
	cfg    DLQConfig
	events *events

	// Set by the stack before use, each may be nil. reenter sends a redrive in by the stack's own way; reconcile finds out
	// what became of a key; keyClock is the clock of what it finds out; paused says that redriving makes no sense now, and
	// for how long.
	reenter   func(req *http.Request, road leg) (*http.Response, error)
	reconcile func(ctx context.Context, key string) keyNews
	keyClock  func() time.Time
	paused    func() (bool, time.Duration)
	closing   <-chan struct{} // closed: nobody waits for room any more

	journal *letterJournal // nil: letters are in memory only

	mu       sync.Mutex
	box      *letterBox
	handlers map[string]func(context.Context, Letter) error
	road     leg // for letters that came by no road of this process
	ownDoor  leg // the same, for a queue without a stack
	closed   bool
	blocked  []chan struct{}                    // callers that wait for room, first come first
	changed  chan struct{}                      // closed when what a runner waits for has changed; nil: nobody waits
	running  map[uint64]context.CancelCauseFunc // redrives under way, by lease
	writes   map[string]*writes                 // calls under way, by resource
	nextSend time.Time                          // when the rate allows the next redrive
	counters DLQCounters
}

// keyVerdict is what is known about an idempotency key.
type keyVerdict uint8

const (
	keyUnknown    keyVerdict = iota // it may have taken effect
	keyDone                         // it has
	keyNotApplied                   // it has not, and never will by what was sent so far
)

// keyNews is a verdict, and how far it reaches.
type keyNews struct {
	verdict keyVerdict
	// asOf is for keyNotApplied, by keyClock: nothing that anybody sent before has taken effect. Zero: it says so only of
	// what this process sent, because that was refused, and nothing of what another process sent under the same key.
	asOf time.Time
}

// NewDLQ makes a queue. It reports every fault of the config at once, and returns nil for one that is Off. With a Store it
// reads all letters there are before it returns, which takes as long as that takes, at most a minute; what cannot be read
// is an error. All of them are taken, even if there are more than MaxLetters; then none is admitted until there is room.
func NewDLQ(cfg DLQConfig) (*DLQ, error) {
	if err := cfg.validate(); err != nil || cfg.Off {
		return nil, err
	}
	d := &DLQ{
		cfg:      cfg.withDefaults(),
		events:   newEvents("dlq", cfg.OnEvent),
		box:      newLetterBox(),
		handlers: map[string]func(context.Context, Letter) error{},
		running:  map[uint64]context.CancelCauseFunc{},
		writes:   map[string]*writes{},
	}
	d.box.drops = d.cfg.Overflow == OverflowDropOldest
	if d.cfg.Store == nil {
		return d, nil
	}
	d.journal = d.newJournal()
	if err := d.load(); err != nil {
		return nil, err
	}
	d.box.note = d.journal.note
	return d, nil
}

// Wrap makes letters of writes that fail below it. Put it outside of retries, so that only a final failure becomes a letter.
func (d *DLQ) Wrap(next http.RoundTripper) http.RoundTripper {
	if d == nil {
		return legOf(next)
	}
	own := newWriteDoor(next, d.pass)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ownDoor == nil {
		d.ownDoor = own
	}
	return own
}

// addRoad names a way in for letters that came by none of this process. The first one counts; it goes before the door
// that Wrap returned.
func (d *DLQ) addRoad(road leg) {
	if d == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.road == nil {
		d.road = road
	}
}
