package resilience

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// This checker walks every interleaving of two workers on one key, against the real transition function: crashes at every
// step, leases that run out, requests that take effect late or never, answers that are lost, look-ups that lag. In each
// state it reaches it checks the invariants I1 to I7, along each step I9 and I10.

// design is the protocol as it is, or a wrong variant of it, which the checker must find out.
type design struct {
	name        string
	step        func(Record, keyEvent) (Record, error)
	noIntent    bool // the request is sent without a record of the intent
	emptyFrees  bool // an empty look-up frees the key
	forgetful   bool // the store may lose an acknowledged write
	timeoutFree bool // a timeout frees the key
}

const (
	claimsPerRun = 3
	sendsPerRun  = 3
)

// world is one state of the model. It is comparable: a state is visited once.
type world struct {
	rec     modelRecord
	workers [2]worker
	sent    [sendsPerRun]request
	sends   uint8
	claims  uint8
}

// modelRecord is a Record as far as the model needs it.
type modelRecord struct {
	state         KeyState
	epoch         uint64
	token         uint8 // 0: none
	doubts, sends int8
	callID        uint8 // 0: none; otherwise the send that made it, from 1
	callIDs       [sendsPerRun]bool
}

type worker struct {
	at    phase
	token uint8
	epoch uint64
	send  uint8 // its request, from 1
}

type phase uint8

const (
	idle     phase = iota
	claimed        // holds the key
	intended       // may write at any moment
	waiting        // its request is out
)

// request is one POST on its way.
type request struct {
	life  life
	token uint8
	epoch uint64
	told  bool // its answer has been taken in
}

type life uint8

const (
	unsent  life = iota
	flying       // it may still take effect
	applied      // it did
	refusedLife
	lost // it never will
)

var (
	modelStart = time.Unix(1000, 0)
	modelLease = modelStart.Add(time.Minute)
	modelLate  = modelLease.Add(time.Minute)
)

func (m modelRecord) record() Record {
	r := Record{
		ID: "k", State: m.state, Epoch: m.epoch, Doubts: int(m.doubts), Sends: int(m.sends), Fingerprint: "f",
		Lease: modelLease, CallID: callName(m.callID),
	}
	if m.token > 0 {
		r.Token = fmt.Sprint(m.token)
	}
	for i, known := range m.callIDs {
		if known {
			r.CallIDs = append(r.CallIDs, callName(uint8(i+1)))
		}
	}
	if m.state == KeyConfirmed {
		r.Body = []byte("{}")
	}
	if r.finished() {
		r.Expires = modelLate.Add(time.Hour) // retention is not what this model is about
	}
	return r
}

func modelOf(r Record) modelRecord {
	if r.State == KeyFree {
		return modelRecord{}
	}
	m := modelRecord{state: r.State, epoch: r.Epoch, doubts: int8(r.Doubts), sends: int8(r.Sends)}
	if r.Token != "" {
		m.token = r.Token[0] - '0'
	}
	m.callID = callNumber(r.CallID)
	for _, id := range r.CallIDs {
		m.callIDs[callNumber(id)-1] = true
	}
	return m
}

func callName(n uint8) string {
	if n == 0 {
		return ""
	}
	return "call" + fmt.Sprint(n)
}

func callNumber(id string) uint8 {
	if id == "" {
		return 0
	}
	return id[4] - '0'
}

// checker explores one design.
type checker struct {
	design design
	seen   map[world]int32
	order  []world
	next   [][]int32
	broken map[string]string // invariant → how
}

func (c *checker) run() {
	c.seen, c.broken = map[world]int32{}, map[string]string{}
	c.visit(world{})
	for i := 0; i < len(c.order); i++ { //nolint:intrange // the list grows on the way
		w := c.order[i]
		c.invariants(w)
		for _, n := range c.successors(w) {
			c.next[i] = append(c.next[i], c.visit(n))
		}
	}
	c.traps()
}

func (c *checker) visit(w world) int32 {
	if i, ok := c.seen[w]; ok {
		return i
	}
	i := int32(len(c.order))
	c.seen[w] = i
	c.order = append(c.order, w)
	c.next = append(c.next, nil)
	return i
}

func (c *checker) breaks(id string, w world, why string) {
	if c.broken[id] == "" {
		c.broken[id] = fmt.Sprintf("%s: %+v", why, w)
	}
}

func (w world) calls() (n int) {
	for _, r := range w.sent {
		if r.life == applied {
			n++
		}
	}
	return n
}

func (w world) mayWrite() (workers int, somebody bool) {
	for _, k := range w.workers {
		if k.at == intended {
			workers++
		}
	}
	somebody = workers > 0
	for _, r := range w.sent {
		somebody = somebody || r.life == flying
	}
	return workers, somebody
}

func (c *checker) invariants(w world) {
	calls := w.calls()
	writers, somebody := w.mayWrite()
	s := w.rec.state
	guarded := s == KeySending || s == KeyInDoubt || s == KeyConfirmed || s == KeyDisputed
	if calls > 1 {
		c.breaks("I1", w, "two calls for one key")
	}
	if s == KeyConfirmed && calls == 0 {
		c.breaks("I2", w, "confirmed without a call")
	}
	if s == KeyNotApplied && (calls > 0 || somebody) {
		c.breaks("I3", w, "not applied, and yet")
	}
	if calls > 0 && !guarded {
		c.breaks("I4", w, "a call that the record does not know")
	}
	if writers > 1 {
		c.breaks("I5", w, "two may write")
	}
	if somebody && !guarded {
		c.breaks("I6", w, "somebody may write unguarded")
	}
}

// traps looks for I7: from every state with a call, Confirmed or Disputed must stay reachable.
func (c *checker) traps() {
	back := make([][]int32, len(c.order))
	var queue []int32
	good := make([]bool, len(c.order))
	for i, next := range c.next {
		for _, n := range next {
			back[n] = append(back[n], int32(i))
		}
		if s := c.order[i].rec.state; s == KeyConfirmed || s == KeyDisputed {
			good[i] = true
			queue = append(queue, int32(i))
		}
	}
	for len(queue) > 0 {
		n := queue[0]
		queue = queue[1:]
		for _, p := range back[n] {
			if !good[p] {
				good[p] = true
				queue = append(queue, p)
			}
		}
	}
	for i, w := range c.order {
		if w.calls() > 0 && !good[i] {
			c.breaks("I7", w, "a trap")
			return
		}
	}
}

// apply feeds an event to the transition function and checks the step.
func (c *checker) apply(w world, e keyEvent) (world, bool) {
	e.keep = time.Hour
	r, err := c.design.step(w.rec.record(), e)
	if err != nil {
		return w, false
	}
	before := w.rec
	w.rec = modelOf(r)
	if w.rec.state != KeyFree && w.rec.epoch < before.epoch {
		c.breaks("I9", w, "the epoch went back")
	}
	if before.state == KeyConfirmed && w.rec.state != KeyDisputed && (w.rec.state != KeyConfirmed || w.rec.callID != before.callID && before.callID != 0) {
		c.breaks("I10", w, "confirmed went back")
	}
	return w, true
}

func (c *checker) successors(w world) []world {
	var out []world
	add := func(n world, ok bool) {
		if ok {
			out = append(out, n)
		}
	}
	for i := range w.workers {
		for _, n := range c.work(w, i) {
			add(n, true)
		}
	}
	for i := range w.sent {
		r := w.sent[i]
		if r.life == flying {
			for _, l := range []life{applied, refusedLife, lost} {
				n := w
				n.sent[i].life = l
				add(n, true)
			}
		}
		if r.life != unsent && !r.told { // its answer may arrive whenever, whoever still listens
			add(c.answer(w, i))
		}
	}
	for _, n := range c.look(w) {
		add(n, true)
	}
	if c.design.forgetful {
		n := w
		n.rec = modelRecord{}
		add(n, true)
	}
	return out
}

func (c *checker) work(w world, i int) []world {
	var out []world
	k := w.workers[i]
	if k.at != idle { // it dies here
		n := w
		n.workers[i] = worker{}
		out = append(out, n)
	}
	switch k.at {
	case idle:
		if w.claims == claimsPerRun {
			break
		}
		for _, now := range []time.Time{modelStart, modelLate} {
			token := w.claims + 1
			e := keyEvent{kind: eventClaim, now: now, token: fmt.Sprint(token), claim: claimRequest{fingerprint: "f", lease: modelLease}}
			if n, ok := c.apply(w, e); ok {
				n.claims++
				n.workers[i] = worker{at: claimed, token: token, epoch: n.rec.epoch}
				out = append(out, n)
			}
		}
		if n, ok := c.apply(w, keyEvent{kind: eventExpire, now: modelLate}); ok {
			out = append(out, n)
		}
	case claimed:
		if n, ok := c.apply(w, keyEvent{kind: eventRelease, now: modelStart, token: fmt.Sprint(k.token)}); ok {
			n.workers[i] = worker{}
			out = append(out, n)
		}
		if w.sends == sendsPerRun {
			break
		}
		if c.design.noIntent {
			n := w
			n.workers[i].at = intended
			out = append(out, n)
			break
		}
		n, ok := c.apply(w, keyEvent{kind: eventIntend, now: modelStart, token: fmt.Sprint(k.token), deadline: modelLease})
		if ok {
			n.workers[i].at, n.workers[i].epoch = intended, n.rec.epoch
		} else {
			n.workers[i] = worker{} // the loser must not send
		}
		out = append(out, n)
	case intended:
		if w.sends == sendsPerRun {
			break
		}
		n := w
		n.sent[w.sends] = request{life: flying, token: k.token, epoch: k.epoch}
		n.sends++
		n.workers[i].at, n.workers[i].send = waiting, n.sends
		out = append(out, n)
	case waiting: // its time is up
		n := w
		n.workers[i] = worker{}
		e := keyEvent{kind: eventAnswer, now: modelStart, token: fmt.Sprint(k.token), answer: answerReceipt{kind: answerUnknown, epoch: k.epoch}}
		if c.design.timeoutFree {
			n.rec = modelRecord{epoch: n.rec.epoch}
			out = append(out, n)
			break
		}
		n, _ = c.apply(n, e)
		out = append(out, n)
	}
	return out
}

// answer is what becomes of the answer to request i: it is recorded by whoever receives it, at once or late.
func (c *checker) answer(w world, i int) (world, bool) {
	r := w.sent[i]
	a := answerReceipt{epoch: r.epoch, lease: modelLease}
	switch r.life {
	case applied:
		a.kind, a.callID, a.body = answerDone, callName(uint8(i+1)), []byte("{}")
	case refusedLife:
		a.kind = answerRefused
	default:
		return w, false
	}
	w.sent[i].told = true
	n, _ := c.apply(w, keyEvent{kind: eventAnswer, now: modelStart, token: fmt.Sprint(r.token), answer: a})
	for j, k := range n.workers {
		if k.at == waiting && int(k.send) == i+1 {
			n.workers[j] = worker{}
			if n.rec.state == KeyClaimed && n.rec.token == k.token { // it may try again
				n.workers[j] = worker{at: claimed, token: k.token, epoch: n.rec.epoch}
			}
		}
	}
	return n, true
}

// look is a look-up or a webhook: it shows every subset of the calls there are, since the index may lag.
func (c *checker) look(w world) []world {
	var out []world
	for subset := range 1 << sendsPerRun {
		var ev Evidence
		for i, r := range w.sent {
			if subset>>i&1 == 1 {
				if r.life != applied {
					ev.Calls = nil
					break
				}
				ev.Calls = append(ev.Calls, Found{ID: callName(uint8(i + 1)), Body: []byte("{}")})
			}
		}
		if len(ev.Calls) > 0 {
			if n, ok := c.apply(w, keyEvent{kind: eventEvidence, now: modelStart, evidence: ev}); ok {
				out = append(out, n)
			}
		}
	}
	if c.design.emptyFrees && w.rec.state == KeyInDoubt {
		n := w
		n.rec = modelRecord{epoch: w.rec.epoch}
		out = append(out, n)
	}
	return out
}

func TestKeyState_EveryInterleavingKeepsTheInvariants(t *testing.T) {
	c := &checker{design: design{name: "as built", step: transition}}
	c.run()
	t.Logf("%d states", len(c.order))
	require.Greater(t, len(c.order), 1000)
	require.Empty(t, c.broken)
	reached := map[KeyState]bool{}
	for _, w := range c.order {
		reached[w.rec.state] = true
	}
	for _, s := range []KeyState{KeyFree, KeyClaimed, KeySending, KeyConfirmed, KeyNotApplied, KeyInDoubt} {
		require.True(t, reached[s], "%v is reached", s)
	}
}

// The checker must be able to fail: each of these designs rings twice, and it has to say so.
func TestKeyState_WrongDesignsAreFoundOut(t *testing.T) {
	rerun := func(r Record, e keyEvent) (Record, error) { // a lease that runs out frees the key, whatever was sent
		if e.kind == eventClaim && r.State == KeySending && !e.now.Before(r.Lease) {
			r.State = KeyClaimed
		}
		return transition(r, e)
	}
	for _, d := range []design{
		{name: "lease and run again", step: rerun, timeoutFree: true},
		{name: "no intent before sending", step: transition, noIntent: true},
		{name: "an empty look-up frees the key", step: transition, emptyFrees: true},
		{name: "a store that forgets", step: transition, forgetful: true},
		{name: "a key in doubt is claimed again", step: func(r Record, e keyEvent) (Record, error) {
			if e.kind == eventClaim && r.State == KeyInDoubt {
				r.State, r.Lease = KeyClaimed, modelStart
			}
			return transition(r, e)
		}},
	} {
		t.Run(d.name, func(t *testing.T) {
			c := &checker{design: d}
			c.run()
			require.Contains(t, c.broken, "I1", "the double ring is found; it broke %v", slices.Sorted(maps.Keys(c.broken)))
			t.Logf("%d states, broken: %s", len(c.order), strings.Join(slices.Sorted(maps.Keys(c.broken)), " "))
		})
	}
}

func TestKeyState_StaleTokensChangeNothing(t *testing.T) {
	r := Record{ID: "k", State: KeyClaimed, Token: "a", Epoch: 3, Lease: modelLease}
	for _, kind := range []keyEventKind{eventRelease, eventIntend} {
		_, err := transition(r, keyEvent{kind: kind, token: "b", now: modelStart})
		require.ErrorIs(t, err, errConflict)
	}
	_, err := transition(Record{State: KeySending, Token: "a", Epoch: 3}, keyEvent{kind: eventAnswer, token: "b", answer: answerReceipt{kind: answerUnknown, epoch: 3}})
	require.ErrorIs(t, err, errConflict)
}
