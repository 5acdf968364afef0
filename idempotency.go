package resilience

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/retell-resilience/resilience/internal/body"
	"github.com/retell-resilience/resilience/internal/canonical"
)

// IdempotencyConfig says where keys are kept and how a lost outcome is found again.
type IdempotencyConfig struct {
	// Store keeps the records. nil: a [MemoryStore], whose promises end with the process.
	Store KeyStore
	// TTL is how long a finished record is kept for replays. Default 24 h; -1: for ever. A key that a dead letter refers
	// to stays longer, a key in doubt for ever.
	TTL time.Duration
	// Namespace keeps the keys of programs that share a store apart. Default: none.
	Namespace string
	// Reconcile marks requests and looks lost ones up. nil: a key in doubt is settled by Observe or Resolve only.
	Reconcile Reconciler
	// ServerKeys says whether the API's own idempotency keys are relied upon. Default: they are sent, and that is all.
	ServerKeys ServerKeys
	// AssumeAbsentAfter settles a key in doubt as "nothing happened" when so much time has passed since it was sent and
	// several look-ups found nothing. 0: never, and that is the default, since it is a guess: nothing can prove from
	// outside that a request will not take effect yet. It turns "at most one request" into "at least one": a person may
	// be called twice. At least 10 minutes; each use is counted in Stats().Assumed.
	AssumeAbsentAfter time.Duration
	// OnEvent hears this layer alone: the kinds that begin with "key.".
	OnEvent func(Event)
	// Off leaves the layer out of a [Stack]. An effect-once call is then never repeated, and nothing remembers it.
	Off bool
}

// minAbsent is the least time after which absence may be assumed, and minLookups the least number of empty look-ups.
const (
	minAbsent  = 10 * time.Minute
	minLookups = 3
)

// ServerKeys says how far the API's own idempotency keys are trusted.
type ServerKeys uint8

const (
	// ServerKeysSend sends the key where the API has a place for it and relies on nothing: a deployment that does not
	// know the field would ignore it without a sign.
	ServerKeysSend ServerKeys = iota
	// ServerKeysTrust lets a call in doubt be sent again under the same key, by its caller or a redrive, for as long as
	// the [Reconciler] says that the API honours it. It is the user's choice: where the API does not, a person is called
	// twice.
	ServerKeysTrust
)

// KeyHonorer is implemented by a [Reconciler] whose API honours keys of its own for some operations: for how long after
// the first send the same request under the same key is not executed again; 0: it does not.
type KeyHonorer interface {
	HonorsKey(operation string) time.Duration
}

func (c IdempotencyConfig) withDefaults() IdempotencyConfig {
	if c.Store == nil {
		c.Store = NewMemoryStore(0)
	}
	c.TTL = or(c.TTL, 24*time.Hour)
	if c.TTL < 0 {
		c.TTL = maxDuration / 4
	}
	return c
}

func (c IdempotencyConfig) validate() error {
	f := faults{prefix: "Idempotency"}
	f.duration("TTL", c.TTL)
	if c.AssumeAbsentAfter != 0 && c.AssumeAbsentAfter < minAbsent {
		f.add("AssumeAbsentAfter", "at least "+minAbsent.String()+" or 0 for never", c.AssumeAbsentAfter)
	}
	if c.ServerKeys > ServerKeysTrust {
		f.add("ServerKeys", "ServerKeysSend or ServerKeysTrust", c.ServerKeys)
	}
	if len(c.Namespace) > 255 {
		f.add("Namespace", "at most 255 bytes long", len(c.Namespace))
	}
	return f.err()
}

// Reconciler knows one API's ways of marking a request with its key and of finding out later what became of it. It must
// be safe for concurrent use.
type Reconciler interface {
	// Mark puts the key, or what stands for it, into a request that will be sent: the API's own idempotency field, a
	// marker in metadata. It works on a clone, whose body it may replace, and must do the same to the same request each
	// time. [RecordID] of the request's context is the marker to find the record by. An error refuses the call before
	// anything is sent.
	Mark(req *http.Request, key string) error
	// Find looks for what a request with the marker r.ID created. Nothing found is no error and proves nothing.
	Find(ctx context.Context, r Record) (Evidence, error)
}

type recordIDKey struct{}

// RecordID returns the id of the record of the call that a [Reconciler] marks; "" outside of Mark.
func RecordID(ctx context.Context) string {
	id, _ := ctx.Value(recordIDKey{}).(string)
	return id
}

// Idempotency makes sure that for one key at most one request that may have taken effect is let through while its outcome
// is unknown. It has two doors. The claim belongs outside of everything that refuses, waits or repeats: there a second
// call with the same key joins the first, or gets its answer replayed. The intent belongs just above the attempt: there
// "about to send" is recorded, durably if the store is durable, before the first byte leaves. Between the doors an open
// circuit or a full bulkhead gives the key back; past the intent only an answer, a proof, evidence or a person settles it.
//
// The promise is one request, not "exactly once": what the other side does with that request is its own affair. Reads
// pass untouched; for idempotent writes a named key deduplicates finished results.
//
// It is safe for concurrent use. A nil Idempotency passes everything.
type Idempotency struct {
	cfg    IdempotencyConfig
	store  KeyStore
	owner  string
	tokens atomic.Uint64 // given out; with the owner they are unique
	events *events

	mu      sync.Mutex
	flights map[string]*flight // by record id
	active  sync.WaitGroup     // flights under way, counted for Close
	shut    bool

	doubts    doubts
	unwritten unwritten     // outcomes that the store would not take
	wake      chan struct{} // something is in doubt: Run looks at its plan again

	// wired by the stack; nil when used alone
	closing  <-chan struct{}
	limitOf  func(Call) time.Duration // how long one attempt may take; -1: no limit
	pinned   func(id string) bool
	onSettle func(key string, r Record)

	counts idempotencyCounts
}

type idempotencyCounts struct {
	executed, replayed, joined, inFlight, reused, refused, inDoubt, disputed, storeErrors atomic.Uint64
	resent, assumed                                                                       atomic.Uint64
	lookups, found, lookupErrors                                                          atomic.Uint64
	flights                                                                               atomic.Int64
}

// NewIdempotency checks the config; its error names every field that is wrong.
func NewIdempotency(cfg IdempotencyConfig) (*Idempotency, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	return &Idempotency{
		cfg: cfg, store: cfg.Store, owner: uuid.NewString(), events: newEvents("idempotency", cfg.OnEvent),
		flights: map[string]*flight{}, wake: make(chan struct{}, 1),
	}, nil
}

// Wrap puts both doors around next.
func (i *Idempotency) Wrap(next http.RoundTripper) http.RoundTripper {
	return Chain(i.Claim(), i.Intent()).Wrap(next)
}

// Claim is the outer door. It needs Intent somewhere below.
func (i *Idempotency) Claim() Layer {
	return LayerFunc(func(next http.RoundTripper) http.RoundTripper {
		if i == nil {
			return next
		}
		return newWriteDoor(next, i.claim)
	})
}

// Intent is the inner door. It refuses an effect-once call that did not come through Claim.
func (i *Idempotency) Intent() Layer {
	return LayerFunc(func(next http.RoundTripper) http.RoundTripper {
		if i == nil {
			return next
		}
		return newWriteDoor(next, i.intent)
	})
}

// ID returns the id under which the store keeps a key: the marker that its requests carry.
func (i *Idempotency) ID(key string) string {
	b := make([]byte, 0, 600)
	b = appendPart(appendPart(b, i.cfg.Namespace), strings.TrimSpace(key))
	sum := sha256.Sum256(b)
	return idEncoding.EncodeToString(sum[:17])[:26]
}

// idEncoding is base32 in lower case.
var idEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// appendPart adds a part with its length, so that no two lists of parts look the same.
func appendPart[T string | []byte](b []byte, part T) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(len(part)))
	return append(b, part...)
}

// fingerprint tells one request from another: operation, host, path with query, and body, but no credentials.
func fingerprint(t *trip, req *http.Request) string {
	b := make([]byte, 0, 1024)
	for _, part := range [...]string{t.call.Operation, req.Method, req.URL.Host, req.URL.RequestURI()} {
		b = appendPart(b, part)
	}
	data, whole := t.payload.Bytes()
	b = appendPart(b, canonicalBody(data))
	if !whole {
		b = appendPart(b, "cut")
	}
	sum := sha256.Sum256(b)
	return "f1:" + hex.EncodeToString(sum[:])
}

func (i *Idempotency) claim(ctx context.Context, t *trip, req *http.Request, next leg) (*http.Response, error) {
	switch t.call.Effect {
	case EffectOnce:
		return i.once(ctx, t, req, next)
	case EffectIdempotent:
		if t.named {
			return i.deduplicate(ctx, t, req, next)
		}
	}
	return next.travel(ctx, t, req)
}

// once executes the call in a flight of its own, which outlives a caller who leaves, or joins the flight that is under way.
func (i *Idempotency) once(ctx context.Context, t *trip, req *http.Request, next leg) (*http.Response, error) {
	key := t.key
	if !t.named {
		key = uuid.NewString()
	}
	if ctx.Err() != nil { // its flight might be off before anybody sees that nobody waits for it
		return nil, t.gone(ctx, "idempotency")
	}
	id, print := i.ID(key), fingerprint(t, req)
	f, leader, err := i.board(ctx, t, key, id, print)
	if err != nil {
		return nil, err
	}
	if leader {
		go i.fly(f, detached(f.ctx, req), next)
	}
	return i.await(f, t, ctx, leader)
}

// board joins the flight of the key, or opens one. A flight that is ending cannot be joined: the new one waits for it.
func (i *Idempotency) board(ctx context.Context, t *trip, key, id, print string) (f *flight, leader bool, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.shut {
		return nil, false, t.refuse("idempotency", ErrClosed)
	}
	old := i.flights[id]
	if old != nil && old.join(ctx, print) {
		if old.print != print {
			return nil, false, i.reused(t, id)
		}
		i.counts.joined.Add(1)
		i.events.emit(Event{Kind: EventKeyJoined, Operation: t.call.Operation, KeyHash: keyHash(id)})
		return old, false, nil
	}
	f = newFlight(t, ctx, key, id, print)
	f.token = i.owner + "." + strconv.FormatUint(i.tokens.Add(1), 36)
	if old != nil {
		f.previous = old.landed
	}
	i.flights[id] = f
	i.active.Add(1)
	i.counts.flights.Add(1)
	return f, true, nil
}

func (i *Idempotency) reused(t *trip, id string) error {
	i.counts.reused.Add(1)
	i.events.emit(Event{Kind: EventKeyReused, Operation: t.call.Operation, KeyHash: keyHash(id)})
	return t.refuse("idempotency", ErrKeyReused)
}

// await is the caller's side of a flight: its answer, or the caller's own end.
func (i *Idempotency) await(f *flight, t *trip, ctx context.Context, leader bool) (*http.Response, error) {
	select {
	case <-f.done:
		return f.hand(t, ctx, leader)
	default:
	}
	select {
	case <-f.done:
	case <-ctx.Done():
		if err := i.leave(f, t, t.gone(ctx, "idempotency"), byTime(ctx), leader); err != nil {
			return nil, err
		}
	}
	return f.hand(t, ctx, leader)
}

// leave gives up waiting. Past the intent the outcome is in doubt for this caller, though the flight goes on; and a letter
// that owns the write by now will see to it.
func (i *Idempotency) leave(f *flight, t *trip, why *Error, byTime, leader bool) error {
	p := f.leave(why, byTime, leader)
	if p.over {
		return nil
	}
	if !p.sent && p.letter == "" {
		if !p.last { // somebody else may still have it sent
			why.verdict = undecided
		}
		return why
	}
	e := t.fail("idempotency", why.Err)
	e.Key, e.Limit, e.LetterID = f.key, why.Limit, p.letter
	if p.letter != "" {
		e.Err = errors.Join(ErrParked, e.Err)
	}
	if p.sent {
		e.Err = errors.Join(ErrInDoubt, e.Err)
	}
	return e
}

// fly is the flight itself, from the claim to the record of its outcome. It must be the whole body of a goroutine.
func (i *Idempotency) fly(f *flight, req *http.Request, next leg) {
	capture(func() (*http.Response, error) {
		if err := f.waitForPrevious(); err != nil {
			return nil, err
		}
		if replayed, err := i.take(f); replayed != nil || err != nil {
			return replayed, err
		}
		if err := i.mark(f, req); err != nil {
			return nil, err
		}
		resp, err := next.travel(f.ctx, f.trip, req)
		f.waitForSend()
		if err != nil && f.rec.State == KeyConfirmed { // an attempt that the layer between has not waited for
			return i.replayed(f.rec), nil
		}
		if err != nil && f.rec.State == KeyInDoubt && f.letter == "" && !InDoubt(err) {
			e := f.trip.fail("idempotency", errors.Join(ErrInDoubt, err)) // of the first send nothing is known
			e.Key = f.key
			err = e
		}
		return resp, err
	}, func(r result) {
		f.waitForSend() // a panic may have passed one by
		i.giveBack(f)
		i.land(f) // first, so that whoever has the answer finds nothing of the flight left
		f.publish(r)
		i.remember(f)
	})
}

// remember keeps the outcome of a call whose caller left, with the key, while it was being recorded.
func (i *Idempotency) remember(f *flight) {
	now := i.store.Now()
	if f.named || !f.isTold() || !f.rec.finished() || now.Before(f.rec.Expires) {
		return
	}
	rec := f.rec
	rec.Expires = now.Add(i.cfg.TTL)
	if _, _, err := i.swap(context.WithoutCancel(f.ctx), rec.Version, rec); err != nil {
		i.counts.storeErrors.Add(1)
	}
}

// land takes a finished flight off the list.
func (i *Idempotency) land(f *flight) {
	i.mu.Lock()
	if i.flights[f.id] == f {
		delete(i.flights, f.id)
	}
	i.mu.Unlock()
	f.trip.payload.Release()
	close(f.landed)
	i.counts.flights.Add(-1)
	i.active.Done()
}

// take claims the key in the store. It returns the answer of a finished record for a replay.
func (i *Idempotency) take(f *flight) (*http.Response, error) {
	for {
		e := keyEvent{kind: eventClaim, token: f.token, claim: i.claimRequest(f)}
		rec, err := i.apply(f.ctx, f.id, e)
		switch {
		case err == nil:
			f.rec = rec
			return nil, nil
		case errors.Is(err, errReplay):
			return i.replayed(rec), nil
		case errors.Is(err, ErrInDoubt) && i.mayResend(rec):
			f.rec = rec
			f.owe()
			return nil, nil
		case errors.Is(err, ErrInDoubt) && rec.State == KeySending:
			// Its owner is gone: what it sent is in doubt from now on.
			expire := keyEvent{kind: eventExpire, claim: e.claim}
			if _, err := i.apply(f.ctx, f.id, expire); err != nil && !errors.Is(err, errConflict) {
				return nil, i.storeFailed(f, err)
			}
		default:
			return nil, i.refuseClaim(f, rec, err)
		}
	}
}

// mayResend reports whether the user's choice lets a call in doubt be sent again under the API's own key.
func (i *Idempotency) mayResend(rec Record) bool {
	if i == nil || i.cfg.ServerKeys != ServerKeysTrust || rec.State != KeyInDoubt {
		return false
	}
	h, ok := i.cfg.Reconcile.(KeyHonorer)
	return ok && i.store.Now().Sub(rec.Sent) < h.HonorsKey(rec.Operation)
}

func (i *Idempotency) claimRequest(f *flight) claimRequest {
	lease := 5 * time.Second
	if deadline, ok := f.deadline(); ok {
		lease += max(0, time.Until(deadline))
	} else {
		lease += i.attemptLimit(f.trip.call)
	}
	c := i.identity()
	c.fingerprint, c.operation, c.resource = f.print, f.trip.call.Operation, f.trip.call.Resource
	c.lease, c.pinned = i.store.Now().Add(lease), f.named && i.isPinned()(f.id)
	return c
}

// attemptLimit bounds leases, and flights where no layer below bounds them; a call without any limit gets a generous one.
func (i *Idempotency) attemptLimit(c Call) time.Duration {
	limit := c.Limit
	if i.limitOf != nil {
		limit = i.limitOf(c)
	}
	if limit <= 0 {
		return 10 * time.Minute
	}
	return limit
}

// refuseClaim is what a caller gets whose key is taken.
func (i *Idempotency) refuseClaim(f *flight, rec Record, err error) error {
	t := f.trip
	switch {
	case errors.Is(err, ErrInFlight):
		i.counts.inFlight.Add(1)
		e := t.refuse("idempotency", ErrInFlight)
		e.RetryAfter = max(0, rec.Lease.Sub(i.store.Now()))
		return e
	case errors.Is(err, ErrKeyReused):
		return i.reused(t, f.id)
	case errors.Is(err, ErrInDoubt):
		e := t.fail("idempotency", ErrInDoubt)
		e.Key, e.StatusCode = f.key, rec.Status
		e.RetryAfter = max(0, rec.NextLookup.Sub(i.store.Now()))
		return e
	case errors.Is(err, ErrDisputed):
		e := t.fail("idempotency", ErrDisputed)
		e.Key, e.CallIDs = f.key, rec.CallIDs
		return e
	}
	return i.storeFailed(f, err)
}

func (i *Idempotency) storeFailed(f *flight, err error) error {
	i.counts.storeErrors.Add(1)
	i.events.emit(Event{Kind: EventStoreFailed, Operation: f.trip.call.Operation, KeyHash: keyHash(f.id)})
	if errors.Is(err, ErrStoreFull) {
		return f.trip.refuse("idempotency", err)
	}
	if f.ctx.Err() != nil {
		return f.trip.gone(f.ctx, "idempotency")
	}
	return f.trip.refuse("idempotency", errors.Join(ErrStore, err))
}

// mark lets the reconciler write the key into the request that will go out; letters and fingerprints keep the original.
func (i *Idempotency) mark(f *flight, req *http.Request) error {
	b, whole := f.trip.payload.Bytes()
	if i.cfg.Reconcile == nil || !whole {
		return nil
	}
	clone := req.Clone(context.WithValue(f.ctx, recordIDKey{}, f.id))
	if len(b) > 0 {
		clone.Body, _, clone.ContentLength, _ = body.Of(b).Open() // a body in memory always opens
	}
	if err := i.callMark(clone, f.key); err != nil {
		return f.trip.refuse("idempotency", fmt.Errorf("marking the request: %w", err))
	}
	f.trip.marked = markedAs(req, clone, body.Read(clone.Body, clone.ContentLength, -1))
	return nil
}

func (i *Idempotency) callMark(req *http.Request, key string) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic: %T", v)
		}
	}()
	return i.cfg.Reconcile.Mark(req, key)
}

// giveBack releases a key that is still only claimed at the end of its flight: nothing was sent, or what was sent was
// refused and nobody retries.
func (i *Idempotency) giveBack(f *flight) {
	if f.rec.State != KeyClaimed {
		return
	}
	i.counts.refused.Add(1)
	e := keyEvent{kind: eventRelease, token: f.token, keep: i.retention(f.named)}
	rec, err := i.advance(context.WithoutCancel(f.ctx), f.rec, e)
	if err != nil && !errors.Is(err, errConflict) {
		i.counts.storeErrors.Add(1) // the lease frees the key
		return
	}
	f.rec = rec
}

// retention of a finished record: a key that nobody named will not be asked for again.
func (i *Idempotency) retention(named bool) time.Duration {
	if named {
		return i.cfg.TTL
	}
	return 0
}

// deduplicate serves idempotent writes: a finished result is replayed, everything else just runs.
func (i *Idempotency) deduplicate(ctx context.Context, t *trip, req *http.Request, next leg) (*http.Response, error) {
	id, print := i.ID(t.key), fingerprint(t, req)
	rec, err := i.load(ctx, id)
	if rec.expired(i.store.Now()) && !i.isPinned()(id) {
		rec = Record{ID: id, Version: rec.Version}
	}
	switch {
	case err != nil:
		i.counts.storeErrors.Add(1)
		return nil, t.refuse("idempotency", errors.Join(ErrStore, err))
	case rec.State != KeyFree && rec.Fingerprint != print:
		return nil, i.reused(t, id)
	case rec.State == KeyConfirmed:
		return i.replayed(rec), nil
	}
	resp, err := next.travel(ctx, t, req)
	if err == nil && isSuccess(resp.StatusCode) && tailOf(resp, nil) == nil {
		i.keepResult(context.WithoutCancel(ctx), t, rec.Version, id, print, resp)
	}
	return resp, err
}

// keepResult remembers a finished result; failing to is counted, and costs only the replay.
func (i *Idempotency) keepResult(ctx context.Context, t *trip, version uint64, id, print string, resp *http.Response) {
	now := i.store.Now()
	a := receiptOf(resp)
	rec := Record{
		ID: id, State: KeyConfirmed, Operation: t.call.Operation, Fingerprint: print, Owner: i.owner, Epoch: 1, Sends: 1,
		Claimed: now, Sent: now, Settled: now, Expires: now.Add(i.cfg.TTL), CallID: a.callID, Status: a.status,
		Header: a.header, Body: a.body, Evidence: "answer",
	}
	if _, _, err := i.swap(ctx, version, rec); err != nil {
		i.counts.storeErrors.Add(1)
	}
}

// canonicalBody makes equal documents equal: JSON in any order of members, everything else byte for byte.
func canonicalBody(b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	if c, err := canonical.JSON(b); err == nil {
		return c
	}
	return b
}
