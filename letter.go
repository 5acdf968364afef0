package resilience

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/retell-resilience/resilience/internal/canonical"
)

// A Letter is a write that failed and that the dead-letter queue now owns. It holds all that is needed to send the request
// again, except credentials: Authorization, Cookie, Proxy-Authorization, X-Api-Key and a user in the URL are taken out,
// and DLQConfig.Authorize puts the current ones on a redrive. Body, Header and URL are the caller's and may hold personal
// data; Cause, Detail, ParkedReason and History do not. Letters that the queue hands out are copies.
type Letter struct {
	// ID names the letter; ids sort by time. Add makes one where it is empty.
	ID string
	// Operation as in [Call]; it picks the function given to [DLQ.Handle].
	Operation string
	// Key is the idempotency key that every redrive carries. Add makes one where it is empty.
	Key string
	// Named: the caller named the key.
	Named bool
	// Call describes the request for its redrives, which run at bulk priority and with the default budget. Params are not kept.
	Call Call

	// Method, URL, Host, Header and Body are the request. A letter without Method needs a [DLQ.Handle] function. Host is
	// empty unless it differs from the URL's. For work run by Do, Body is Call.Params as JSON.
	Method string
	URL    string
	Host   string
	Header http.Header
	Body   []byte
	// NeedsAuth: the request carried credentials, so a redrive needs DLQConfig.Authorize.
	NeedsAuth bool

	// Cause of the last failure, one word of a closed set: "status", "transport", "timeout", "open", "full", "closed",
	// "store", "in-flight", "canceled", "panic", "throttled", "credentials", "authorize", "no-authorize", "no-road",
	// "in-doubt", "disputed", "key", "poison", "unknown-operation", "undecodable", "redacted", "overtaken", "superseded",
	// "caller" (Add without one).
	Cause string
	// Detail is a short text beside Cause. What is longer than 256 bytes is cut, here and in the words beside it.
	Detail string
	// StatusCode of the last answer; 0: there was none.
	StatusCode int

	// Attempts counts the redrives that failed since the letter came, or was requeued; refusals of our own do not count.
	Attempts int
	// Redrives counts every time the letter was taken up, look-ups of its key and refused ones included.
	Redrives int
	// First is when the first try began, Last when the last one ended, Next when the next is due.
	First, Last, Next time.Time
	// Expires is when redriving ends: DLQConfig.MaxAge, or that of the operation, after First or after the last requeue; at
	// NotAfter if that is earlier. Zero: never. Add takes it as NotAfter where that is zero.
	Expires time.Time
	// NotAfter is what [WithExpiry] said; requeueing does not move it. Zero: nothing.
	NotAfter time.Time

	// InDoubt: the request may have taken effect. Such a letter is looked up, never sent. It ends when it is found out what
	// became of its key, by [Idempotency.Resolve] of a key that is in doubt here, or when the letter is deleted and added
	// with InDoubt false.
	InDoubt bool
	// DoubtSince is when a doubt last came with an import, by the clock of the keys. What this process knows of its own
	// sends, and what was settled here before, says nothing about what another process sent: only what is said of the key
	// as a whole, and later, ends such a doubt. Zero: the doubt, if any, is about sends of this process. Add keeps it.
	DoubtSince time.Time
	// Parked: redriving has given the letter up (which is not what [ErrParked] says), see ParkedReason. It stays until it is
	// requeued, deleted, or settled.
	Parked bool
	// ParkedReason is "attempts", "poison", "expired", "disputed" or "redacted".
	ParkedReason string
	// Superseded: a later write to the same resource succeeded, so the letter is kept and never sent: it would undo that. A
	// PATCH that changes other members is not such a write; one that changes some of the same is.
	Superseded bool
	// Redacted: DLQConfig.Redact changed the request before it was exported, so it is never sent.
	Redacted bool
	// Leased: a redrive, or a call with the same key, is at it now.
	Leased bool

	// History is the first failure and the last eight.
	History []LetterAttempt
}

// LetterAttempt is one failure in the life of a [Letter].
type LetterAttempt struct {
	Time       time.Time
	Cause      string
	Detail     string
	StatusCode int
}

// LetterState is what a [Letter] is doing; each letter is in exactly one.
type LetterState uint8

// The states of a letter. LetterAny is for filters only.
const (
	LetterAny        LetterState = iota
	LetterWaiting                // for its due time
	LetterInDoubt                // waiting for its next look-up
	LetterLeased                 // a redrive, or a call with the same key, is at it
	LetterParked                 // given up, a person has to look
	LetterSuperseded             // a later write made it pointless
	letterStates
)

// String returns "any", "waiting", "in-doubt", "leased", "parked" or "superseded".
func (s LetterState) String() string {
	return nameOf(int(s), "any", "waiting", "in-doubt", "leased", "parked", "superseded")
}

// String names a letter and its fate, without its request and key, which may hold personal data.
func (l Letter) String() string {
	return fmt.Sprintf("letter %s of %s: %v, %d attempts, %s", l.ID, l.Operation, l.state(), l.Attempts, or(l.ParkedReason, l.Cause))
}

// LogValue is for log/slog, and shows as little as String.
func (l Letter) LogValue() slog.Value {
	return slog.GroupValue(
		slog.String("id", l.ID), slog.String("operation", l.Operation), slog.String("state", l.state().String()),
		slog.Int("attempts", l.Attempts), slog.String("cause", l.Cause), slog.Int("status", l.StatusCode),
		slog.String("parked_reason", l.ParkedReason),
	)
}

// State says what the letter is doing.
func (l Letter) State() LetterState { return l.state() }

func (l *Letter) state() LetterState {
	switch {
	case l.Leased:
		return LetterLeased
	case l.Superseded:
		return LetterSuperseded
	case l.Parked:
		return LetterParked
	case l.InDoubt:
		return LetterInDoubt
	}
	return LetterWaiting
}

// LetterFilter chooses letters; zero fields choose all.
type LetterFilter struct {
	State     LetterState
	Operation string
	Resource  string
	Limit     int          // at most this many, the first in the order of List; 0 or negative: no limit
	After     LetterCursor // only those behind this place; zero: from the beginning
}

// LetterCursor is a place in the order of [DLQ.List]: that of a letter, which need not be there. [Letter.Cursor] makes one.
// It is comparable, and as JSON it comes back the same, unless its ID is not UTF-8.
type LetterCursor struct {
	First time.Time `json:"first,omitzero"`
	ID    string    `json:"id,omitempty"`
}

// Cursor is the letter's place in the order of [DLQ.List], which goes on behind it when it is given as LetterFilter.After.
func (l Letter) Cursor() LetterCursor { return l.cursor() }

func (l *Letter) cursor() LetterCursor { return LetterCursor{l.First.Round(0).UTC(), l.ID} }

// compare goes by the wall clock, which is all that a cursor has.
func (c LetterCursor) compare(other LetterCursor) int {
	return cmp.Or(c.First.Round(0).Compare(other.First.Round(0)), cmp.Compare(c.ID, other.ID))
}

func (f LetterFilter) matches(l *Letter) bool {
	return (f.State == LetterAny || f.State == l.state()) &&
		(f.Operation == "" || f.Operation == l.Operation) &&
		(f.Resource == "" || f.Resource == l.Call.Resource)
}

// ErrPoison is for functions given to [DLQ.Handle]: an error that is ErrPoison says that the letter can never succeed, so
// it is parked at once.
var ErrPoison = errors.New("letter can never succeed")

// ErrNoLetter: there is no letter with that id.
var ErrNoLetter = errors.New("no such letter")

// ErrLetterBusy: a redrive, or a call with the same key, is at the letter now. Try again when it is over.
var ErrLetterBusy = errors.New("letter is being redriven")

// clone shares nothing with l.
func (l *Letter) clone() Letter {
	c := *l
	c.Call.Params = nil
	c.Header = l.Header.Clone()
	c.Body = bytes.Clone(l.Body)
	c.History = slices.Clone(l.History)
	return c
}

// strip takes credentials out of a letter whose header is its own, and notes that there were some.
func (l *Letter) strip() {
	for name := range l.Header {
		known := http.CanonicalHeaderKey(name)
		if slices.Contains(credentialHeaders[:], known) {
			l.NeedsAuth = true
			delete(l.Header, name)
		}
		if slices.Contains(keyHeaders[:], known) {
			delete(l.Header, name) // the key travels in the context
		}
	}
	if u, err := url.Parse(l.URL); err == nil && u.User != nil {
		l.NeedsAuth = true
		u.User = nil
		l.URL = u.String()
	}
}

// sameWrite reports whether the letter does what another one asks for; of a redacted letter nobody can say. Headers do not
// count, nor the order of members in JSON. whole: the other's body is at hand.
func (l *Letter) sameWrite(other Letter, whole bool) bool {
	if l.Redacted || other.Redacted {
		return true
	}
	other.Header = nil
	other.strip() // as l is
	return whole && l.Operation == other.Operation && l.Method == other.Method && l.URL == other.URL && l.host() == other.host() &&
		(bytes.Equal(l.Body, other.Body) || bytes.Equal(canonical.Body(l.Body), canonical.Body(other.Body)))
}

// host is what the request says whom it is for, where one address serves many.
func (l *Letter) host() string {
	if u, err := url.Parse(l.URL); l.Host == "" && err == nil {
		return u.Host
	}
	return l.Host
}

// clearedBy reports whether the news end a doubt of the letter.
func (l *Letter) clearedBy(news keyNews) bool {
	return news.verdict == keyNotApplied && (l.DoubtSince.IsZero() || news.asOf.After(l.DoubtSince))
}

// outlives reports whether the letter stays when a call with its key gets an answer: a refusal says nothing about what
// another process sent, and some say nothing at all.
func (l *Letter) outlives(status int) bool {
	return notYet(status) || !l.DoubtSince.IsZero() && status/100 != 2
}

// setDoubt says whether the letter is in doubt, and since which import; without doubt there is no such time.
func (l *Letter) setDoubt(doubt bool, since time.Time) {
	l.InDoubt, l.DoubtSince = doubt, time.Time{}
	if doubt {
		l.DoubtSince = since
	}
}

// effect is unset only for work that is not HTTP and whose effect nobody named.
func (l *Letter) effect() Effect {
	if l.Call.Effect == EffectUnset && l.Method != "" {
		return effectOf(l.Method)
	}
	return l.Call.Effect
}

// Charged for what is not counted byte by byte: the struct, its history, its places in the indexes; a place in a map.
const (
	letterOverhead = 2 << 10
	headerOverhead = 96
)

func (l *Letter) size() int64 {
	n := letterOverhead + len(l.ID) + len(l.Operation) + len(l.Key) + len(l.Method) + len(l.URL) + len(l.Host) + len(l.Body)
	n += len(l.Call.Operation) + len(l.Call.Resource)
	for name, values := range l.Header {
		n += len(name) + headerOverhead
		for _, v := range values {
			n += len(v) + 16
		}
	}
	return int64(n)
}

const maxLetterHistory = 9 // the first failure and the last eight

// note adds a failure to a copy of the history, for copies of the letter may share the old one.
func (l *Letter) note(a LetterAttempt) {
	l.Cause, l.Detail, l.StatusCode, l.Last = a.Cause, a.Detail, a.StatusCode, a.Time
	h := make([]LetterAttempt, 0, min(len(l.History)+1, maxLetterHistory))
	if len(l.History) < maxLetterHistory {
		h = append(h, l.History...)
	} else {
		h = append(h, l.History[0])
		h = append(h, l.History[len(l.History)-maxLetterHistory+2:]...)
	}
	h = append(h, a)
	l.History = h
}

// bound works out Expires from the time at which MaxAge begins. maxAge < 0: none.
func (l *Letter) bound(begin time.Time, maxAge time.Duration) {
	if !writable(l.NotAfter) {
		l.NotAfter = time.Time{} // so far away that it is no bound
	}
	l.Expires = l.NotAfter
	if maxAge < 0 {
		return
	}
	if end := begin.Add(maxAge); writable(end) && (l.NotAfter.IsZero() || end.Before(l.NotAfter)) {
		l.Expires = end
	}
}

const maxLetterText = 256

// cut shortens the words that size does not count, in a letter whose history is its own.
func (l *Letter) cut() {
	l.Cause, l.Detail, l.ParkedReason = cutText(l.Cause), cutText(l.Detail), cutText(l.ParkedReason)
	for i := range l.History {
		a := &l.History[i]
		a.Cause, a.Detail = cutText(a.Cause), cutText(a.Detail)
	}
}

func cutText(s string) string {
	if len(s) <= maxLetterText {
		return s
	}
	return strings.Clone(strings.ToValidUTF8(s[:maxLetterText], "")) // not within a character, nor as a part of the long one
}

// countable reports whether its counters are numbers that can be counted on from.
func (l *Letter) countable() bool {
	return min(l.Attempts, l.Redrives) >= 0 && max(l.Attempts, l.Redrives) <= math.MaxInt32/2
}

func (l *Letter) writable() bool {
	ok := writable(l.First) && writable(l.Last) && writable(l.Next)
	for _, a := range l.History {
		ok = ok && writable(a.Time)
	}
	return ok && writable(l.DoubtSince)
}

// writable reports whether a time can be exported: JSON knows four digits for a year.
func writable(t time.Time) bool { return t.UTC().Year() >= 0 && t.UTC().Year() <= 9999 }
