package resilience

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// A Layer puts one protection around an [http.RoundTripper]. The state of a layer lives in its value, not in what Wrap
// returns: two transports wrapped by the same layer share one circuit, one set of slots, one queue.
type Layer interface {
	Wrap(next http.RoundTripper) http.RoundTripper
}

// LayerFunc lets an ordinary function be a [Layer], for a user's own piece in a [Chain].
type LayerFunc func(next http.RoundTripper) http.RoundTripper

// Wrap calls f.
func (f LayerFunc) Wrap(next http.RoundTripper) http.RoundTripper { return f(next) }

// RoundTripFunc lets an ordinary function be an [http.RoundTripper], mostly for tests.
type RoundTripFunc func(*http.Request) (*http.Response, error)

// RoundTrip calls f.
func (f RoundTripFunc) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// Chain makes one layer of several. The first is the outermost: it sees the request first and the answer last. A nil
// layer is left out; Chain() adds nothing. [Stack] is a chain in the order that most programs want.
func Chain(layers ...Layer) Layer {
	return LayerFunc(func(next http.RoundTripper) http.RoundTripper {
		for i := len(layers) - 1; i >= 0; i-- {
			if layers[i] != nil {
				next = layers[i].Wrap(next)
			}
		}
		return next
	})
}

// Call says what a request is, as far as the layers need to know. Every field may be left zero.
type Call struct {
	// Operation names the call in errors, events, letters and per-operation state. It must come from a small closed
	// set, never hold an id or a phone number. Empty: the HTTP method ("do" for [Do]).
	Operation string
	// Effect says whether a repeat does harm. EffectUnset: by HTTP method, and once for [Do].
	Effect Effect
	// Priority picks the bulkhead tier. PriorityUnset: normal.
	Priority Priority
	// Class picks the attempt limit. ClassUnset: request.
	Class Class
	// Limit bounds one attempt, connecting and reading the answer included. 0: the class decides; -1, like all that is
	// negative: no limit.
	Limit time.Duration
	// Budget bounds the caller's wait in total, queueing, backing off and all attempts included. 0: twice the attempt
	// limit; -1, like all that is negative: no bound.
	Budget time.Duration
	// Resource names what the call reads or changes, for example "call/abc". A successful write to a resource
	// invalidates the cached answers for it and supersedes older letters for it; of two PATCHes whose bodies are JSON objects,
	// only where they have a member in common. Empty: none.
	Resource string
	// Params feeds the fingerprint and the cache key of a [Do]; it must encode as JSON. Not used for HTTP, where the
	// request itself is compared.
	Params any
}

// Effect says what a repeated request does to the world.
type Effect uint8

// The effects. The zero value leaves the choice to the HTTP method (GET, HEAD, OPTIONS and TRACE read, PUT and DELETE are
// idempotent, everything else happens once), see RFC 9110 section 9.2.
const (
	EffectUnset      Effect = iota
	EffectRead              // changes nothing
	EffectIdempotent        // a repeat ends in the same state
	EffectOnce              // a repeat does it twice: a second phone call, a second text
)

// String returns "unset", "read", "idempotent" or "once".
func (e Effect) String() string { return nameOf(int(e), "unset", "read", "idempotent", "once") }

// Priority is the bulkhead tier a call waits in.
type Priority uint8

// The priorities. The zero value means normal.
const (
	PriorityUnset    Priority = iota
	PriorityNormal            // the ordinary tier
	PriorityCritical          // the most urgent one: somebody waits
	PriorityBulk              // the least urgent one: what may as well happen later; redrives and look-ups run in it
)

// String returns "unset", "normal", "critical" or "bulk".
func (p Priority) String() string { return nameOf(int(p), "unset", "normal", "critical", "bulk") }

// Class says how long one attempt may take.
type Class uint8

// The classes. The zero value means request.
const (
	ClassUnset    Class = iota
	ClassRequest        // TimeoutConfig.Request, 30 s by default
	ClassUpload         // TimeoutConfig.Upload, 120 s by default
	ClassLongPoll       // TimeoutConfig.LongPoll, 300 s by default
)

// String returns "unset", "request", "upload" or "long-poll".
func (c Class) String() string { return nameOf(int(c), "unset", "request", "upload", "long-poll") }

func nameOf(i int, names ...string) string {
	if i < 0 || i >= len(names) {
		return fmt.Sprintf("unknown(%d)", i)
	}
	return names[i]
}

// overrides is what a caller said about one call through its context.
type overrides struct {
	call   Call
	key    string
	named  bool
	expiry time.Time
	fresh  bool   // ask the other side itself; see Idempotency
	letter string // id of the dead letter whose redrive this is, as long as the key is the letter's
}

type overridesKey struct{}

// overridesOf is nil where nothing was said.
func overridesOf(ctx context.Context) *overrides {
	o, _ := ctx.Value(overridesKey{}).(*overrides)
	return o
}

// override adds to what was said already.
func override(ctx context.Context, change func(*overrides)) context.Context {
	var o overrides
	if before := overridesOf(ctx); before != nil {
		o = *before
	}
	change(&o)
	return context.WithValue(ctx, overridesKey{}, &o)
}

// WithCall describes the calls made under the returned context. It is merged over what Config.Describe says and over an
// outer WithCall: a zero field leaves what was there.
func WithCall(ctx context.Context, c Call) context.Context {
	return override(ctx, func(o *overrides) { o.call = o.call.merge(c) })
}

// WithPriority sets only the priority of the calls made under the returned context. One that is none of the three is normal.
func WithPriority(ctx context.Context, p Priority) context.Context {
	return WithCall(ctx, Call{Priority: p})
}

// WithBudget sets only the total time a caller waits for a call made under the returned context. 0 leaves what Describe
// says; -1, like all that is negative, takes the bound away. A deadline of the context itself still holds.
func WithBudget(ctx context.Context, d time.Duration) context.Context {
	return WithCall(ctx, Call{Budget: d})
}

// WithIdempotencyKey names the intent behind one call, for example "reminder:4711:2026-11-23". All calls with the same
// key are one: the first is executed, the others share or replay its outcome. The key is trimmed; it must then have 1 to
// 255 bytes and no control characters, or the call is refused with [ErrBadKey] before anything is sent. Use a key that
// another try of the same intent will find again, and a new one for a new intent. It must hold no personal data: the text
// of [ErrInDoubt] shows it, and an API that knows idempotency keys is sent it.
//
// An Idempotency-Key or X-Idempotency-Key header of a request names its key too, where this function does not. Every layer
// takes it off, to whatever host the request goes: for it net/http's transport would repeat a POST by itself. Where the API
// honours such a header, [Reconciler].Mark puts it back.
func WithIdempotencyKey(ctx context.Context, key string) context.Context {
	key = strings.TrimSpace(key)
	return override(ctx, func(o *overrides) {
		if o.key != key {
			o.letter = ""
		}
		o.key, o.named = key, true
	})
}

// WithExpiry says until when a late success still helps: after t no dead letter of this call is redriven, it is parked
// and reported instead. The time is checked again just before a redrive is sent. The zero time takes the bound away.
func WithExpiry(ctx context.Context, t time.Time) context.Context {
	return override(ctx, func(o *overrides) { o.expiry = t })
}

// merge returns c with the non-zero fields of over put over it.
func (c Call) merge(over Call) Call {
	if over.Operation != "" {
		c.Operation = over.Operation
	}
	if over.Effect != EffectUnset {
		c.Effect = over.Effect
	}
	if over.Priority != PriorityUnset {
		c.Priority = over.Priority
	}
	if over.Class != ClassUnset {
		c.Class = over.Class
	}
	if over.Limit != 0 {
		c.Limit = over.Limit
	}
	if over.Budget != 0 {
		c.Budget = over.Budget
	}
	if over.Resource != "" {
		c.Resource = over.Resource
	}
	if over.Params != nil {
		c.Params = over.Params
	}
	return c
}

// resolve fills in what neither Describe nor the context said.
func (c *Call) resolve(method string, unset Effect) {
	if c.Operation == "" {
		c.Operation = method
	}
	if c.Effect == EffectUnset {
		c.Effect = unset
	}
	if c.Priority == PriorityUnset {
		c.Priority = PriorityNormal
	}
	if c.Class == ClassUnset {
		c.Class = ClassRequest
	}
}

func effectOf(method string) Effect {
	switch method {
	case "", http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return EffectRead
	case http.MethodPut, http.MethodDelete:
		return EffectIdempotent
	default:
		return EffectOnce
	}
}

// The errors a call can end in, besides the transport's own. Each arrives inside an [*Error]; test with [errors.Is].
// "Nothing was sent" below means that [NotSent] is true and the call may be made again, with the same key or none.
var (
	// ErrOpen: the circuit is open (or all trials are taken). Nothing was sent. Error.RetryAfter says when a trial is due; it
	// is 0 after [Breaker.ForceOpen].
	ErrOpen = errors.New("circuit open")
	// ErrFull: no slot came free and the queue of the tier is full, or the wait bound passed. Nothing was sent. When there
	// will be room nobody knows: Error.RetryAfter is 0.
	ErrFull = errors.New("bulkhead full")
	// ErrTimeout: a limit of ours fired; Error.Limit names it. It is also context.DeadlineExceeded.
	ErrTimeout = errors.New("time limit reached")
	// ErrInFlight: another process is executing this key. Nothing was sent by this call. Ask again after Error.RetryAfter.
	ErrInFlight = errors.New("same key in flight elsewhere")
	// ErrKeyReused: the key belongs to another request, which its record or a dead letter remembers. Nothing was sent,
	// unless it is joined to what the call ended in. It is a fault of the program: name a new key. A request whose body is
	// longer than TimeoutConfig.MaxRequestBytes cannot be compared and counts as another one.
	ErrKeyReused = errors.New("idempotency key used for another request")
	// ErrBadKey: the key named for the call is empty, too long, or has control characters. Nothing was sent.
	ErrBadKey = errors.New("bad idempotency key")
	// ErrInDoubt: the request may have taken effect and nobody knows. It is not sent again until the outcome is known.
	// Error.Key is the key to look it up with. Never submit the write again under another key. To submit it under the same
	// key does no harm: once the outcome is known, that returns the answer; until then it returns this error, and
	// Error.RetryAfter is the time to the next look-up (0: none is planned).
	ErrInDoubt = errors.New("outcome in doubt")
	// ErrDisputed: two different results are known for one key; Error.CallIDs names them. A person has to look.
	ErrDisputed = errors.New("outcome disputed")
	// ErrParked: the write failed and a dead letter owns it now: it will be redriven, or looked up where InDoubt is true as
	// well. Do not submit it again under another key. Letter.Parked is something else: there redriving has given up.
	ErrParked = errors.New("parked in the dead-letter queue")
	// ErrLettersFull: the write failed and the dead-letter queue could not take it. It is joined to the cause and says
	// nothing about whether the request was sent: ask NotSent and InDoubt. The write is the caller's.
	ErrLettersFull = errors.New("dead-letter queue full")
	// ErrStore: the key store failed before the request was sent. Nothing was sent.
	ErrStore = errors.New("key store failed")
	// ErrStoreFull: the key store holds as many unfinished keys as it may. Nothing was sent.
	ErrStoreFull = errors.New("key store full")
	// ErrRetryBudget: a retry would have been allowed but the retry budget is used up. It is joined to the last error.
	ErrRetryBudget = errors.New("retry budget used up")
	// ErrTooLarge: a response body is larger than TimeoutConfig.MaxResponseBytes. The answer counts as unreadable.
	ErrTooLarge = errors.New("response body larger than allowed")
	// ErrClosed: the stack is closed. Nothing was sent by this call.
	ErrClosed = errors.New("closed")
)

// Error is what a layer says when it ends a call. The layers put no key (except under [ErrInDoubt]), no URL, no body and no
// phone number into its text. The text of a transport's error, or of one from a function given to [Do], is part of it; only
// the URL of a *url.Error is left out.
//
// Read it with [errors.As]. http.Client puts a *url.Error around it, and the text of that one shows the whole URL, numbers
// in it included. Unwrap it before you log it.
type Error struct {
	// Layer that ended the call: "stack", "timeout", "fallback", "idempotency", "dlq", "retry", "bulkhead", "breaker".
	Layer string
	// Operation of the call, see [Call].
	Operation string
	// Key of the call, where one is needed to go on.
	Key string
	// Limit that fired: "connect", "request", "upload", "long-poll", "limit" (Call.Limit), "budget", or "caller" for a
	// deadline that the caller brought. Empty for other errors.
	Limit string
	// LetterID of the dead letter that owns the write now.
	LetterID string
	// StatusCode of the last answer; 0: there was none.
	StatusCode int
	// CallIDs known for a disputed key.
	CallIDs []string
	// RetryAfter is how long to wait before asking again; 0: not known.
	RetryAfter time.Duration
	// Err is the sentinel, joined with the cause where there is one.
	Err error

	verdict verdict
}

// verdict is what an *Error knows beyond its sentinels about whether anything was sent.
type verdict uint8

const (
	undecided verdict = iota
	refused           // a layer of ours ended the call before it was sent
	unproven          // an earlier attempt may have arrived: takes back any proof below
)

// Error says who ended the call and why.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Layer)
	if e.Operation != "" {
		b.WriteString(": " + e.Operation)
	}
	if e.Limit != "" {
		b.WriteString(": " + e.Limit)
	}
	if e.StatusCode != 0 {
		fmt.Fprintf(&b, ": status %d", e.StatusCode)
	}
	if inner := (*Error)(nil); e.Key != "" && errors.Is(e.Err, ErrInDoubt) && !(errors.As(e.Err, &inner) && inner.Key == e.Key) {
		fmt.Fprintf(&b, ": key %q", e.Key)
	}
	if e.Err != nil {
		b.WriteString(": " + strings.ReplaceAll(withoutURLs(e.Err), "\n", ": "))
	}
	return b.String()
}

// withoutURLs is the text of err without the URLs that a *url.Error puts before its cause: numbers and tokens are in them.
func withoutURLs(err error) string {
	text := err.Error()
	walk(err, func(inner error) {
		if u, ok := inner.(*url.Error); ok { //nolint:errorlint // walk visits every node itself
			text = strings.ReplaceAll(text, u.Error(), u.Err.Error())
		}
	})
	return text
}

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// Timeout reports whether a time limit ended the call. It makes Error a net.Error in that respect. The call may have taken
// effect all the same: see [InDoubt].
func (e *Error) Timeout() bool {
	return errors.Is(e.Err, ErrTimeout) || errors.Is(e.Err, context.DeadlineExceeded)
}

// Temporary reports whether the same call may work later without anybody changing anything. It is false for one that may
// have taken effect ([InDoubt]) and for one that a queue owns ([ErrParked]): those must not be made again.
func (e *Error) Temporary() bool {
	if InDoubt(e) || errors.Is(e.Err, ErrParked) {
		return false
	}
	return e.Timeout() || errors.Is(e.Err, ErrOpen) || errors.Is(e.Err, ErrFull) || errors.Is(e.Err, ErrInFlight) ||
		errors.Is(e.Err, ErrThrottled)
}

// Is makes a time limit of ours a context.DeadlineExceeded as well.
func (e *Error) Is(target error) bool {
	return target == context.DeadlineExceeded && errors.Is(e.Err, ErrTimeout)
}

// notSentError marks an error of a transport that proved that nothing was sent.
type notSentError struct{ err error }

func (e *notSentError) Error() string { return e.err.Error() }
func (e *notSentError) Unwrap() error { return e.err }

// MarkNotSent is for transports, and functions run by [Do], that know that their error left the world unchanged: not one
// byte of the request was written. Such a call may be made again, whatever its effect. MarkNotSent(nil) is nil.
func MarkNotSent(err error) error {
	if err == nil {
		return nil
	}
	return &notSentError{err}
}

// NotSent reports whether err proves that the request had no effect, so that it may be tried again. It looks at the whole
// tree of errors. False means "not proven", not "it was sent". It is false over [ErrParked], since the queue will send it.
func NotSent(err error) bool {
	proven := false
	walk(err, func(e error) {
		if _, ok := e.(*notSentError); ok { //nolint:errorlint // walk visits every node itself
			proven = true
		}
		if ours, ok := e.(*Error); ok && ours.verdict == refused { //nolint:errorlint // as above
			proven = true
		}
	})
	return proven && !vetoed(err)
}

func vetoed(err error) bool {
	veto := false
	walk(err, func(e error) {
		if e == ErrParked || e == ErrInDoubt || e == ErrDisputed { //nolint:errorlint // as above
			veto = true
		}
		if ours, ok := e.(*Error); ok && ours.verdict == unproven { //nolint:errorlint // as above
			veto = true
		}
	})
	return veto
}

// InDoubt reports whether err says that the request may have taken effect, [ErrDisputed] included. Such a request must not
// be sent again under another key: look its key up, or wait for the reconciler.
func InDoubt(err error) bool { return errors.Is(err, ErrInDoubt) || errors.Is(err, ErrDisputed) }

// isRefusal reports whether a layer of ours ended the call before it was sent.
func isRefusal(err error) bool {
	found := false
	walk(err, func(e error) {
		if ours, ok := e.(*Error); ok && ours.verdict == refused { //nolint:errorlint // walk visits every node itself
			found = true
		}
	})
	return found && !vetoed(err)
}

// walk visits every node of the tree of errors.
func walk(err error, visit func(error)) {
	if err == nil {
		return
	}
	visit(err)
	switch e := err.(type) { //nolint:errorlint // walking the tree is the point
	case interface{ Unwrap() error }:
		walk(e.Unwrap(), visit)
	case interface{ Unwrap() []error }:
		for _, inner := range e.Unwrap() {
			walk(inner, visit)
		}
	}
}
