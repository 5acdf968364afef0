package resilience

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"encoding/hex"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

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
	// several look-ups found nothing; without Reconcile the time alone counts, see also [Finder]. 0: never, the default,
	// since it is a guess: nothing can prove from outside that a request will not take effect yet. It turns "at most one
	// request" into "at least one": a person may be called twice. At least 10 minutes; each use is counted in Stats().Assumed.
	AssumeAbsentAfter time.Duration
	// OnEvent hears this layer alone: the kinds that begin with "key.".
	OnEvent func(Event)
	// Off leaves the layer out: [NewIdempotency] returns nil. An effect-once call is then never repeated, and nothing remembers it.
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

// Finder is implemented by a [Reconciler] that cannot look for everything. Where Finds is false, that Find found nothing
// says nothing at all, and AssumeAbsentAfter does not apply: such a key stays in doubt until evidence or a person settles it.
type Finder interface {
	Finds(operation string) bool
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

// Answerer may be implemented by a [Reconciler]. Answer returns, as JSON, what the API's answer says of the id of what an
// operation created; nil: it cannot say. It is asked for a replay where the answer itself was never seen, or was too long to
// keep: the call was found by a look-up, or confirmed by [Idempotency.Resolve]. It must be quick and safe for concurrent use.
type Answerer interface {
	Answer(operation, callID string) []byte
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
	recall   func(letter string, redrive bool) error // why the write of a letter must not be sent after all; nil: it may go
	onSettle func(key string, r Record)

	counts idempotencyCounts
}

type idempotencyCounts struct {
	executed, replayed, joined, inFlight, reused, givenBack, inDoubt, disputed, storeErrors atomic.Uint64
	resent, assumed                                                                         atomic.Uint64
	lookups, found, lookupErrors                                                            atomic.Uint64
	flights                                                                                 atomic.Int64
}

// NewIdempotency checks the config; its error names every field that is wrong. With Off it returns nil.
func NewIdempotency(cfg IdempotencyConfig) (*Idempotency, error) {
	if err := cfg.validate(); err != nil || cfg.Off {
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

// ID returns the id under which the store keeps a key: the marker that its requests carry. It is "" for a nil Idempotency.
func (i *Idempotency) ID(key string) string {
	if i == nil {
		return ""
	}
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
	b = appendPart(b, canonical.Body(data))
	if !whole {
		b = appendPart(b, uuid.NewString()) // what is not at hand cannot be compared: it is like no other
	}
	if req.Host != "" && req.Host != req.URL.Host { // behind one address there may be many
		b = appendPart(b, req.Host)
	}
	sum := sha256.Sum256(b)
	return "f1:" + hex.EncodeToString(sum[:])
}
