package resilience

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/retell-resilience/resilience/internal/answers"
	"github.com/retell-resilience/resilience/internal/canonical"
)

// FallbackConfig configures a [Fallback]. The zero value is the documented default. A default gives way to a value that
// is set: with MaxAge at 30 s, nothing is older than that, whatever the default of Stale.
type FallbackConfig struct {
	// Fresh is the age from which an answer is [Stale]. 0: 60 s; -1: no answer is fresh.
	Fresh time.Duration
	// Stale is the age from which an answer is [VeryStale]. It must not be less than Fresh. 0: 10 min; -1: none is merely stale.
	Stale time.Duration
	// MaxAge is the age at which an answer is gone. It must not be less than Stale. 0: 24 h; -1: never.
	MaxAge time.Duration
	// MaxBytes bounds the memory of all answers; those not used for longest make room. An answer that is larger alone is
	// not kept. 0: 64 MiB; -1: no bound. What is counted is what an answer takes in memory, key and bookkeeping included,
	// and up to a tenth more: ten thousand answers of 1 KB with twelve headers count 31.8 MB and take 31.3 MB, of which the
	// bodies are 11.5 MB, since a body is kept in the memory it was read into. 64 MiB have room for some 21,000 of them.
	MaxBytes int64
	// Vary names request headers that change the answer, besides the credentials (Authorization, Cookie,
	// Proxy-Authorization, X-Api-Key) and Accept, Accept-Encoding, Accept-Language, Content-Type, Origin and Range. An
	// answer whose own Vary names any other header is not kept.
	Vary []string
	// Cacheable says of which reads answers are kept. It must be quick; one that panics says no. nil: of all.
	Cacheable func(Call) bool
	// Func makes a substitute where no answer is kept. It gets a copy of the request, and the error, or an [*Error] with
	// the StatusCode of a 5xx answer. It runs on the caller's goroutine and must mind the request's context, which has
	// ended when the budget is used up. nil: none. For one call, and before the kept answers, there is [WithFallback].
	Func func(*http.Request, error) (*http.Response, error)
	// ServeFresh answers from a fresh answer without asking, unless the request says Cache-Control: no-cache.
	ServeFresh bool
	// Refresh is ServeFresh for stale answers too, which it renews in the background, at bulk priority: one call for each
	// at a time, four in all. A failure keeps the old answer and is followed by a growing wait.
	Refresh bool
	// OnEvent listens to this layer. It is called in order, never under a lock.
	OnEvent func(Event)
	// Off leaves the layer out: [NewFallback] returns nil, which passes everything on.
	Off bool
}

const (
	defaultFresh         = 60 * time.Second
	defaultStale         = 10 * time.Minute
	defaultMaxAge        = 24 * time.Hour
	defaultFallbackBytes = 64 << 20
	maxRefreshes         = 4
	refreshBudget        = 60 * time.Second // for calls that say none
)

// ages works out the three bounds: a default bends to what is set, what is set must agree. maxAge < 0: none.
func (c FallbackConfig) ages(wrong *faults) (fresh, stale, maxAge time.Duration) {
	wrong.duration("Fresh", c.Fresh)
	wrong.duration("Stale", c.Stale)
	wrong.duration("MaxAge", c.MaxAge)
	if c.Stale > 0 && c.Stale < c.Fresh {
		wrong.add("Stale", "at least Fresh", c.Stale)
	}
	if c.MaxAge > 0 && c.MaxAge < max(c.Fresh, c.Stale) {
		wrong.add("MaxAge", "at least Fresh and Stale", c.MaxAge)
	}
	fresh, stale, maxAge = or(c.Fresh, defaultFresh), or(c.Stale, defaultStale), or(c.MaxAge, defaultMaxAge)
	if c.MaxAge == 0 {
		maxAge = max(maxAge, c.Fresh, c.Stale)
	}
	if c.Fresh == 0 && stale > 0 {
		fresh = min(fresh, stale)
	}
	if maxAge > 0 {
		fresh, stale = min(fresh, maxAge), min(stale, maxAge)
	}
	fresh = max(fresh, 0)
	return fresh, max(fresh, stale), maxAge
}

// shapingHeaders commonly change an answer, and so are part of every key, as the credentials are.
var shapingHeaders = [...]string{"Accept", "Accept-Encoding", "Accept-Language", "Content-Type", "Origin", "Range"}

func (c FallbackConfig) headers(wrong *faults) []string {
	names := slices.Concat(credentialHeaders[:], shapingHeaders[:])
	for _, name := range c.Vary {
		if name == "" || name == "*" || strings.ContainsAny(name, " ,:\t\r\n") {
			wrong.add("Vary", "a list of header names", strconv.Quote(name))
		}
		if name = http.CanonicalHeaderKey(name); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// Fallback answers reads when everything below it failed, with the last good answer and its age, and lets concurrent
// identical reads share one call. It promises:
//
//   - Only reads are answered, only when the call failed (an error of the transport or of a layer of ours, the budget used
//     up, a status of 500 and more), never for a caller who has left, for a 4xx, a panic, or a write. An answer of 404, 410, 401
//     or 403 also ends the time of the good answer before it.
//   - Nobody is served what was given to other credentials. They are compared as they are in the request, so a Fallback above a
//     transport that adds credentials must serve one tenant.
//   - What is served says so: see [Served]. It is never kept again and does not get younger. (A chain should have one Fallback:
//     a second one above takes the mark of the first for forged.)
//   - A write that succeeded, or may have, invalidates its [Call.Resource].
//   - Kept are complete answers with status 200, unless they or their request say Cache-Control: no-store.
//
// A Fallback is safe for concurrent use, and state is shared by all its Wraps. A nil Fallback does nothing.
type Fallback struct {
	config       FallbackConfig
	fresh, stale time.Duration
	keys         *answers.Keys
	store        *answers.Store[callID, *trip]
	events       *events
	closing      <-chan struct{} // sends home who waits; nil: never
	refreshing   callCount       // answers that are being renewed in the background
	sheets       sync.Pool       // of *strings.Builder; see marks

	served        [VeryStale + 1]atomic.Uint64
	misses        atomic.Uint64
	coalesced     atomic.Uint64
	refreshes     atomic.Uint64
	refreshFailed atomic.Uint64
	funcCalls     atomic.Uint64
	funcFailed    atomic.Uint64
}

// NewFallback returns a Fallback, nil with Off. The error names every field that is wrong.
func NewFallback(c FallbackConfig) (*Fallback, error) {
	wrong := &faults{prefix: "Fallback"}
	f := &Fallback{config: c, events: newEvents("fallback", c.OnEvent), refreshing: callCount{empty: make(chan struct{})}}
	var maxAge time.Duration
	f.fresh, f.stale, maxAge = c.ages(wrong)
	f.keys = answers.NewKeys(c.headers(wrong))
	wrong.count("MaxBytes", c.MaxBytes)
	f.store = answers.New[callID, *trip](or(c.MaxBytes, defaultFallbackBytes), maxAge)
	if err := wrong.err(); err != nil || c.Off {
		return nil, err
	}
	return f, nil
}

// Wrap puts the fallback around next; nil is a fresh HTTP/1.1 transport.
func (f *Fallback) Wrap(next http.RoundTripper) http.RoundTripper {
	if f == nil {
		return next
	}
	return newDoor(next, func(ctx context.Context, t *trip, req *http.Request, next leg) (*http.Response, error) {
		if t.call.Effect != EffectRead {
			return f.write(ctx, t, req, next)
		}
		return f.read(ctx, t, req, next)
	})
}

// Invalidate drops the answers about a resource. "call/abc" is about itself, about what lies below it ("call/abc/log"),
// and about the collection that lists it ("call"), but not about "call/abcd". Reads under way that began before are not
// kept and not joined any more. Writes that pass through the layer do this themselves. The empty resource is everything.
func (f *Fallback) Invalidate(resource string) {
	if f != nil {
		f.store.Invalidate(resource)
	}
}

// FallbackStats counts what a [Fallback] did, and says what it keeps.
type FallbackStats struct {
	Entries int   // answers kept now
	Bytes   int64 // their memory, as FallbackConfig.MaxBytes counts it

	Fresh, Stale, VeryStale uint64 // answers served, by age
	Misses                  uint64 // failures for which no answer was kept
	Coalesced               uint64 // reads that shared the call of another

	Stored      uint64
	Evicted     uint64 // to make room
	Expired     uint64
	Invalidated uint64 // dropped or not kept because of a write, or of a newer answer such as 404

	Refreshes, RefreshFailures uint64
	Refreshing                 int // under way now
	FuncCalls, FuncFailures    uint64

	Delivery DeliveryStats // of OnEvent
}

// Stats returns the counts so far. It changes nothing.
func (f *Fallback) Stats() FallbackStats {
	if f == nil {
		return FallbackStats{}
	}
	kept := f.store.Stats()
	return FallbackStats{
		Entries: kept.Entries, Bytes: kept.Bytes, Stored: kept.Stored,
		Evicted: kept.Evicted, Expired: kept.Expired, Invalidated: kept.Invalidated,
		Fresh: f.served[Fresh].Load(), Stale: f.served[Stale].Load(), VeryStale: f.served[VeryStale].Load(),
		Misses: f.misses.Load(), Coalesced: f.coalesced.Load(),
		Refreshes: f.refreshes.Load(), RefreshFailures: f.refreshFailed.Load(), Refreshing: f.refreshing.underWay(),
		FuncCalls: f.funcCalls.Load(), FuncFailures: f.funcFailed.Load(), Delivery: f.events.stats(),
	}
}

// sweep drops what has expired. Without it that happens on reads and as other answers are kept.
func (f *Fallback) sweep() {
	if f != nil {
		f.store.Sweep(time.Now())
	}
}

// write passes a write on and invalidates what it may have changed. Doing so when it is over is enough: a read that
// began before that is not kept, and until the write is over its old answer is as good as any. Doing it before as well
// would cost the answers of an outage in which the write is refused.
func (f *Fallback) write(ctx context.Context, t *trip, req *http.Request, next leg) (resp *http.Response, err error) {
	changed := true // a panic leaves it open
	defer func() {
		if changed && t.call.Resource != "" {
			f.store.Invalidate(t.call.Resource)
		}
	}()
	resp, err = fromBelow(ctx, t, req, next)
	changed = mayHaveChanged(resp, err)
	if tl := tailOf(resp, err); tl != nil && changed && t.call.Resource != "" {
		tl.after(func() { f.store.Invalidate(t.call.Resource) }) // it may change things until it really ends
	}
	return resp, err
}

// fromBelow asks below, and takes off what looks like a mark of ours. It looks before it writes: a fake transport may hand
// the same header to many.
func fromBelow(ctx context.Context, t *trip, req *http.Request, next leg) (*http.Response, error) {
	resp, err := next.travel(ctx, t, req)
	if err != nil {
		return nil, err
	}
	if _, forged := resp.Header[markHeader]; forged { //nolint:staticcheck // see above
		delete(resp.Header, markHeader)
	}
	return resp, nil
}

// read answers a read: without asking where that was chosen, else by asking, alone or together with others.
func (f *Fallback) read(ctx context.Context, t *trip, req *http.Request, next leg) (*http.Response, error) {
	if t.fresh() {
		return fromBelow(ctx, t, req, next)
	}
	var space [keySpace]byte
	key := f.keyOf(space[:0], t, req)
	if key == nil {
		resp, err := fromBelow(ctx, t, req, next)
		return f.settle(ctx, t, req, nil, resp, err)
	}
	if resp := f.unasked(ctx, t, req, next, key); resp != nil {
		return resp, nil
	}
	resp, err := f.ask(ctx, t, req, next, key)
	return f.settle(ctx, t, req, key, resp, err)
}

// keySpace is room for most keys, so that they are made without allocating.
const keySpace = 256

// keyOf returns the key of a read whose answer may be kept; nil, under which nothing is kept, of any other.
func (f *Fallback) keyOf(space []byte, t *trip, req *http.Request) answers.Key {
	data, whole := t.payload.Bytes()
	if !whole || !f.cacheable(&t.call) || answers.Says(req.Header, "no-store") {
		return nil
	}
	if t.run != nil {
		return f.keys.OfWork(space, t.call.Operation, data) // which have their canonical form already
	}
	return f.keys.Of(space, t.call.Operation, methodOf(req), req, bodyKey(data))
}

// bodyKey is the body as it takes part in the key: JSON whose members stand in another order is the same.
func bodyKey(data []byte) []byte {
	if !bytes.ContainsAny(data[:min(len(data), 1)], "{[ \t\r\n") {
		return data // it has no members
	}
	return canonical.Body(data)
}

func (f *Fallback) cacheable(c *Call) bool {
	if f.config.Cacheable == nil {
		return true
	}
	defer func() {
		if v := recover(); v != nil { // which says no
			f.events.emit(Event{Kind: EventPanic, Operation: c.Operation, Cause: "cacheable"})
		}
	}()
	return f.config.Cacheable(*c)
}

// unasked returns the answer that may be served without asking, or nil.
func (f *Fallback) unasked(ctx context.Context, t *trip, req *http.Request, next leg, key answers.Key) *http.Response {
	if !f.config.ServeFresh && !f.config.Refresh || answers.Says(req.Header, "no-cache") {
		return nil
	}
	a, age, ok := f.store.Get(key, t.clock.at(t.lately()))
	switch {
	case !ok:
		return nil
	case age < f.fresh:
		return f.serve(t, req, a, age, "fresh")
	case age < f.stale && f.config.Refresh:
		f.refresh(ctx, t, req, next, key)
		return f.serve(t, req, a, age, "refresh")
	}
	return nil
}

// settle puts a substitute in the place of a failure: the caller's own, else the kept answer, else the user's. Where there
// is none, the failure stays what it is.
func (f *Fallback) settle(ctx context.Context, t *trip, req *http.Request, key answers.Key, resp *http.Response, err error) (*http.Response, error) {
	why := needsSubstitute(ctx, resp, err)
	if why == "" {
		return resp, err
	}
	made, ownErr := f.substitute(ctx, t, req, t.ownFallback(ctx), why, resp, err)
	if made != nil {
		return made, nil
	}
	if a, age, ok := f.store.Get(key, t.clock.at(t.lately())); ok {
		discard(resp)
		return f.serve(t, req, a, age, why), nil
	}
	f.misses.Add(1)
	made, funcErr := f.substitute(ctx, t, req, f.config.Func, why, resp, err)
	if made != nil {
		return made, nil
	}
	failed := Event{Kind: EventFallbackFailed, Operation: t.call.Operation, Cause: why}
	if resp != nil {
		failed.StatusCode = resp.StatusCode
	}
	f.events.emit(failed)
	if err != nil && (ownErr != nil || funcErr != nil) {
		err = errors.Join(err, ownErr, funcErr)
	}
	return resp, err
}

// serve makes the response of an answer that is kept.
func (f *Fallback) serve(t *trip, req *http.Request, a *answers.Answer, age time.Duration, why string) *http.Response {
	s := VeryStale
	switch {
	case age < f.fresh:
		s = Fresh
	case age < f.stale:
		s = Stale
	}
	f.served[s].Add(1)
	f.events.emit(Event{Kind: EventFallbackServed, Operation: t.call.Operation, To: s.String(), Duration: age, Cause: why})
	mark, seconds := f.marks(s, why, age)
	return a.Response(req, true, answers.Field{Name: "Age", Value: seconds}, answers.Field{Name: markHeader, Value: mark})
}
