package resilience

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"time"
)

// KeyState is where an idempotency key stands.
type KeyState uint8

// The states of a key. The documentation of the package shows the steps between them.
const (
	KeyFree       KeyState = iota // no record: the key was never used, or its record has passed its retention
	KeyClaimed                    // somebody holds the key, nothing was sent
	KeySending                    // about to send, recorded before the first byte: the request may exist
	KeyConfirmed                  // it happened, and the answer is known
	KeyNotApplied                 // it is proven that nothing happened; the key may be used again
	KeyInDoubt                    // it may have happened
	KeyDisputed                   // the evidence contradicts itself; a person has to look
)

// String returns "free", "claimed", "sending", "confirmed", "not_applied", "in_doubt" or "disputed".
func (s KeyState) String() string {
	return nameOf(int(s), "free", "claimed", "sending", "confirmed", "not_applied", "in_doubt", "disputed")
}

// Record is what a [KeyStore] keeps of one key. The key itself is not in it.
type Record struct {
	// ID is derived from the namespace and the key: 26 characters of lower-case base32. It is also the marker that a
	// request carries, where the API has a place for one.
	ID string
	// Version is the store's: it changes with every write. 0: there is no record.
	Version     uint64
	State       KeyState
	Operation   string
	Resource    string    // what the call changes, see Call
	Fingerprint string    // hash of the request that the key belongs to
	Owner       string    // the process that claimed it
	Token       string    // proves who may go on; a new one for each claim
	Epoch       uint64    // counts claims and proofs; it only grows
	Lease       time.Time // until when its owner may go on; nobody else does before, unless it cannot be alive
	// Doubts counts requests that may have been written and were not disproven.
	Doubts int
	// Sends counts requests in all.
	Sends int

	Claimed, Sent, Settled time.Time // when the key last entered these states
	Expires                time.Time // when a finished record may go; it means nothing for others

	CallID   string   // what the request created, once known
	CallIDs  []string // all that is known for a disputed key
	Accepted bool     // a success arrived whose body could not be read
	Status   int      // of the last answer; 0: none
	Header   http.Header
	Body     []byte // of the answer, for replays; nil when it was too large or never seen
	Evidence string // where the outcome is known from: "answer", "lookup", "webhook", "operator", "assumed"
	Cause    string // why the outcome is in doubt or was refused, one word
	Reason   string // the operator's, see Resolve

	Lookups    int       // look-ups made since the key came in doubt
	NextLookup time.Time // zero: none is planned
}

// String names a record and its state, without the answer that it keeps, which may hold personal data.
func (r Record) String() string {
	return fmt.Sprintf("key %s of %s: %v, %d sends, %d in doubt", r.ID, r.Operation, r.State, r.Sends, r.Doubts)
}

// LogValue is for log/slog, and shows as little as String.
func (r Record) LogValue() slog.Value {
	return slog.GroupValue(
		slog.String("id", r.ID), slog.String("operation", r.Operation), slog.String("state", r.State.String()),
		slog.Int("sends", r.Sends), slog.Int("doubts", r.Doubts), slog.Int("status", r.Status),
		slog.String("evidence", r.Evidence), slog.String("cause", r.Cause),
	)
}

// finished reports whether nothing further is expected for the record.
func (r *Record) finished() bool { return r.State == KeyConfirmed || r.State == KeyNotApplied }

// unclear reports whether it is not known what became of the key.
func (r *Record) unclear() bool { return r.State == KeyInDoubt || r.State == KeyDisputed }

// expired reports whether the record has passed its retention, though it may not have been swept yet.
func (r *Record) expired(now time.Time) bool { return r.finished() && !now.Before(r.Expires) }

// keyEvent is something that happens to a key. Exactly what it carries decides, with the record, what comes next: the
// transition function reads no clock and does no I/O.
type keyEvent struct {
	kind  keyEventKind
	now   time.Time
	token string // whose event it is

	claim    claimRequest  // claim; of others only who asks
	deadline time.Time     // intend, resend: the lease of the send
	answer   answerReceipt // answer
	next     time.Time     // looked: when to look again; zero: never
	failed   bool          // looked: it could not
	evidence Evidence      // evidence
	verdict  Resolution    // resolve
	keep     time.Duration // how long a finished record stays; 0: it goes at once
}

type keyEventKind uint8

const (
	eventClaim    keyEventKind = iota // somebody wants to execute
	eventRelease                      // the holder gives the key back
	eventIntend                       // the holder is about to send
	eventResend                       // the holder of a key in doubt sends again, in a mode the user chose
	eventAnswer                       // what became of one send
	eventExpire                       // a lease has run out
	eventEvidence                     // a look-up, a webhook, an object seen
	eventLooked                       // a look-up found nothing, or failed
	eventResolve                      // the operator's word
	eventAbsent                       // the user's choice to assume that nothing happened
	eventForget                       // the record is taken away
)

func (k keyEventKind) String() string {
	return nameOf(int(k), "claim", "release", "intend", "resend", "answer", "expire", "evidence", "looked", "resolve", "assume absent", "forget")
}

type claimRequest struct {
	fingerprint string
	operation   string
	resource    string
	owner       string
	lease       time.Time
	exclusive   bool // one process at a time uses the store: another owner cannot be alive
	pinned      bool // a dead letter refers to the key: its record does not expire
}

// answerKind is what one send's answer says about the world.
type answerKind uint8

const (
	answerDone    answerKind = iota // a readable success
	answerRefused                   // proof that this send had no effect
	answerUnknown                   // anything else
)

type answerReceipt struct {
	kind     answerKind
	epoch    uint64 // of the send
	callID   string
	status   int
	header   http.Header
	body     []byte
	cause    string
	accepted bool
	lease    time.Time // until when the holder may go on after a refusal
}

// Evidence is what somebody learned about a key from elsewhere: a look-up, a webhook, a call object seen in passing.
type Evidence struct {
	// ID is the id of the record, read back from the marker.
	ID string
	// Calls are the different things found for the key. None proves nothing.
	Calls []Found
	// Source says where it is from, as one word, for example "webhook".
	Source string
}

// Found is one thing that a request under the key created.
type Found struct {
	ID   string // for example the call id
	Body []byte // its JSON, for replays; may be nil
}

// Resolution is an operator's word on a key in doubt or disputed.
type Resolution struct {
	// State is KeyConfirmed or KeyNotApplied.
	State KeyState
	// CallID of what was created; required for KeyConfirmed when the API gives ids.
	CallID string
	// Reason is kept with the record; it must not be empty.
	Reason string
}

// What only the state machine and its callers say to each other: a claim has found the answer of an earlier call; an event
// has found the key in a state that it is not for.
var (
	errReplay   = errors.New("finished already")
	errConflict = errors.New("the key does not stand where the event expects it")
)

// transition is the whole state machine: the record after the event, or an error and the record as it is. It follows
// T1 to T13; the comment at each step names it.
func transition(r Record, e keyEvent) (Record, error) {
	switch e.kind {
	case eventClaim:
		return claimKey(r, e)
	case eventRelease:
		return releaseKey(r, e)
	case eventIntend:
		return intendKey(r, e)
	case eventResend:
		return resendKey(r, e)
	case eventAnswer:
		return answerKey(r, e)
	case eventExpire:
		return expireKey(r, e)
	case eventEvidence:
		return evidenceKey(r, e)
	case eventLooked:
		return lookedKey(r, e)
	case eventResolve:
		return resolveKey(r, e)
	case eventAbsent:
		return absentKey(r, e)
	case eventForget:
		return forgetKey(r, e)
	}
	return r, fmt.Errorf("%w: %v", errConflict, e.kind)
}

func claimKey(r Record, e keyEvent) (Record, error) {
	if r.expired(e.now) && !e.claim.pinned { // T13
		r = Record{ID: r.ID, Version: r.Version, Epoch: r.Epoch}
	}
	if r.State != KeyFree && r.State != KeyNotApplied && r.Fingerprint != e.claim.fingerprint {
		return r, ErrKeyReused
	}
	switch r.State {
	case KeyFree, KeyNotApplied: // T1, T10
	case KeyClaimed: // T2: nothing was sent, so another may go on when the lease is over
		if e.now.Before(r.Lease) && !r.orphaned(e.claim) {
			return r, ErrInFlight
		}
	case KeySending:
		if e.now.Before(r.Lease) && !r.orphaned(e.claim) {
			return r, ErrInFlight
		}
		return r, ErrInDoubt // the caller expires the record
	case KeyConfirmed:
		return r, errReplay
	case KeyInDoubt:
		return r, ErrInDoubt
	case KeyDisputed:
		return r, ErrDisputed
	}
	next := Record{
		ID: r.ID, Version: r.Version, Epoch: r.Epoch + 1, State: KeyClaimed, Token: e.token,
		Operation: e.claim.operation, Resource: e.claim.resource, Fingerprint: e.claim.fingerprint, Owner: e.claim.owner,
		Lease: e.claim.lease, Claimed: e.now,
	}
	if r.State == KeyNotApplied || r.State == KeyClaimed { // what is known of earlier sends, for who gives the key back
		next.Settled, next.Evidence = r.Settled, r.Evidence
	}
	return next, nil
}

// orphaned reports whether the record's owner cannot be alive, so that its lease counts for nothing.
func (r *Record) orphaned(by claimRequest) bool {
	return by.exclusive && r.Owner != "" && r.Owner != by.owner
}

// holds reports whether the event is by the one who holds the key now.
func (r *Record) holds(e keyEvent) bool { return r.Token != "" && r.Token == e.token }

func releaseKey(r Record, e keyEvent) (Record, error) {
	if r.State != KeyClaimed || !r.holds(e) {
		return r, errConflict
	}
	r.Token, r.Lease = "", time.Time{}
	switch {
	case r.Sends > 0: // T6
		r.Settled = e.now
	case r.Settled.IsZero(): // T3
		r.State = KeyFree
		return r, nil
	}
	r.State, r.Expires = KeyNotApplied, e.now.Add(e.keep) // or as it was before the claim: evidence to the contrary may come yet
	return r, nil
}

func intendKey(r Record, e keyEvent) (Record, error) {
	if r.State != KeyClaimed || !r.holds(e) { // T4: the loser must not send
		return r, errConflict
	}
	r.State, r.Sent, r.Lease = KeySending, e.now, e.deadline // of the first send that is not disproven
	r.Settled, r.Evidence = time.Time{}, ""
	r.Sends++
	r.Doubts++
	return r, nil
}

func resendKey(r Record, e keyEvent) (Record, error) {
	if r.State != KeyInDoubt || e.token == "" {
		return r, errConflict
	}
	r.State, r.Lease, r.Token, r.Owner = KeySending, e.deadline, e.token, e.claim.owner
	r.Epoch++
	r.Sends++
	r.Doubts++
	return r, nil
}

// answerKey takes the answer of a send in the epoch it was made in. One that comes late, when the key has moved on,
// counts as evidence about its own send and as nothing else.
func answerKey(r Record, e keyEvent) (Record, error) {
	a := e.answer
	current := r.State == KeySending && r.holds(e) && r.Epoch == a.epoch
	late := !current && r.Epoch >= a.epoch
	switch {
	case a.kind == answerDone && current:
		return confirm(r, e), nil // T5
	case a.kind == answerDone && late:
		return lateDone(r, e)
	case a.kind == answerRefused && current:
		return refusedKey(r, e), nil
	case a.kind == answerRefused && r.State == KeyInDoubt && r.Epoch == a.epoch && r.holds(e): // a forgotten key counts anew
		return lateRefused(r, e), nil // T9
	case a.kind == answerUnknown && current:
		r = doubt(r, e, a.cause) // T7
		r.Accepted, r.Status = r.Accepted || a.accepted, a.status
		return r, nil
	}
	return r, errConflict
}

func confirm(r Record, e keyEvent) Record {
	a := e.answer
	r.State, r.CallID, r.Evidence = KeyConfirmed, a.callID, "answer"
	r.Status, r.Header, r.Body = a.status, a.header, a.body
	return finish(r, e)
}

func finish(r Record, e keyEvent) Record {
	r.Settled, r.Expires = e.now, e.now.Add(e.keep)
	r.Token, r.Lease, r.NextLookup = "", time.Time{}, time.Time{}
	return r
}

func doubt(r Record, e keyEvent, cause string) Record {
	r.State, r.Settled, r.Cause = KeyInDoubt, e.now, cause
	r.Lookups, r.NextLookup = 0, e.now.Add(lookupDelay(0))
	return r
}

// lateDone is a success that arrives after the key has moved on.
func lateDone(r Record, e keyEvent) (Record, error) {
	a := e.answer
	switch r.State {
	case KeyInDoubt, KeySending: // T8
		return confirm(r, e), nil
	case KeyConfirmed:
		if a.callID != "" && r.CallID != "" && a.callID != r.CallID {
			return dispute(r, e, a.callID), nil // T11
		}
		if r.Body == nil { // T8a: evidence came first, the answer fills in the rest
			r.CallID = or(r.CallID, a.callID)
			r.Status, r.Header, r.Body = a.status, a.header, a.body
			return r, nil
		}
		return r, errConflict
	case KeyNotApplied, KeyClaimed:
		return dispute(r, e, a.callID), nil // T11: it did happen after all
	case KeyDisputed:
		return dispute(r, e, a.callID), nil
	case KeyFree:
	}
	return r, errConflict
}

func refusedKey(r Record, e keyEvent) Record {
	r.Doubts--
	r.Epoch++ // so that it counts once, though it may be recorded again after a store that did not say what it did
	r.Status, r.Cause = e.answer.status, e.answer.cause
	if r.Doubts > 0 { // the refusal of a re-send proves nothing about the first send
		return doubt(r, e, e.answer.cause)
	}
	r.State, r.Lease = KeyClaimed, e.answer.lease // T6a; T6 follows by release
	return r
}

func lateRefused(r Record, e keyEvent) Record {
	r.Doubts--
	r.Epoch++ // as in refusedKey
	if r.Doubts > 0 {
		return r
	}
	r.State, r.Status, r.Cause = KeyNotApplied, e.answer.status, e.answer.cause
	return finish(r, e)
}

// expireKey is what others see when the process that sent has died.
func expireKey(r Record, e keyEvent) (Record, error) {
	if r.State != KeySending || (e.now.Before(r.Lease) && !r.orphaned(e.claim)) {
		return r, errConflict
	}
	return doubt(r, e, "lease"), nil // T7
}

func evidenceKey(r Record, e keyEvent) (Record, error) {
	ids := foundIDs(e.evidence)
	if r.State == KeyFree || len(ids) == 0 { // which proves nothing
		return r, errConflict
	}
	if len(ids) > 1 || r.State == KeyNotApplied || r.State == KeyDisputed {
		return disputeAll(r, e, ids)
	}
	switch r.State {
	case KeyConfirmed:
		if r.CallID == "" {
			r.CallID = ids[0]
			return r, nil
		}
		if r.CallID != ids[0] {
			return disputeAll(r, e, ids) // T11
		}
		return r, errConflict
	default: // T8, T8a; a claim that finds its call made already must not send
		found := e.evidence.Calls[slices.IndexFunc(e.evidence.Calls, func(c Found) bool { return c.ID != "" })]
		r.State, r.CallID, r.Evidence = KeyConfirmed, found.ID, or(e.evidence.Source, "evidence")
		r.Body, r.Header = found.Body, nil
		r.Status = http.StatusOK
		return finish(r, e), nil
	}
}

// lookedKey plans the next look-up: an empty one proves nothing.
func lookedKey(r Record, e keyEvent) (Record, error) {
	if r.State != KeyInDoubt {
		return r, errConflict
	}
	if !e.failed {
		r.Lookups++
	}
	r.NextLookup = e.next
	return r, nil
}

func foundIDs(e Evidence) []string {
	var ids []string
	for _, c := range e.Calls {
		if c.ID != "" && !slices.Contains(ids, c.ID) {
			ids = append(ids, c.ID)
		}
	}
	return ids
}

func dispute(r Record, e keyEvent, ids ...string) Record {
	all := slices.Clone(r.CallIDs)
	for _, id := range append([]string{r.CallID}, ids...) {
		if id != "" && !slices.Contains(all, id) {
			all = append(all, id)
		}
	}
	r.State, r.CallIDs, r.Settled, r.Expires = KeyDisputed, all, e.now, time.Time{}
	r.Token, r.Lease, r.NextLookup = "", time.Time{}, time.Time{}
	return r
}

func disputeAll(r Record, e keyEvent, ids []string) (Record, error) {
	next := dispute(r, e, ids...)
	if r.State == KeyDisputed && len(next.CallIDs) == len(r.CallIDs) {
		return r, errConflict
	}
	return next, nil // T11
}

func resolveKey(r Record, e keyEvent) (Record, error) {
	if r.State != KeyInDoubt && r.State != KeyDisputed {
		return r, errConflict
	}
	v := e.verdict
	r.State, r.Reason, r.Evidence = v.State, v.Reason, "operator" // T12
	if v.State == KeyConfirmed {
		if v.CallID != "" && v.CallID != r.CallID { // the answer that is kept is another call's
			r.CallID, r.Header, r.Body = v.CallID, nil, nil
		}
		if !isSuccess(r.Status) { // but that of the failure which left the key in doubt
			r.Status = http.StatusOK
		}
	} else {
		r.CallID, r.Doubts = "", 0
	}
	return finish(r, e), nil
}

func absentKey(r Record, e keyEvent) (Record, error) {
	if r.State != KeyInDoubt {
		return r, errConflict
	}
	r.State, r.Evidence, r.Doubts = KeyNotApplied, "assumed", 0 // T9, by the user's choice
	return finish(r, e), nil
}

func forgetKey(r Record, e keyEvent) (Record, error) {
	if !r.expired(e.now) { // T13
		return r, errConflict
	}
	r.State = KeyFree
	return r, nil
}

// lookupDelay is the wait before look-up number n (from 0) of a key in doubt: soon at first, then hourly for a day. It is
// negative when no further one is planned.
func lookupDelay(n int) time.Duration {
	steps := [...]time.Duration{
		time.Second, 3 * time.Second, 10 * time.Second, 30 * time.Second, 2 * time.Minute, 10 * time.Minute,
	}
	switch {
	case n < len(steps):
		return steps[n]
	case n < len(steps)+24:
		return time.Hour
	}
	return -1
}
