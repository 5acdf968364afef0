package resilience_test

import (
	"context"
	"io"
	"net/http"
	"time"

	"github.com/retell-resilience/resilience"
)

// Programs outside of this repository are written against these names, fields and signatures: this file compiles, or they do
// not. It has no test function, since there is nothing to run.

var (
	_ func(...resilience.Layer) resilience.Layer                                                                 = resilience.Chain
	_ func(context.Context, resilience.Call) context.Context                                                     = resilience.WithCall
	_ func(context.Context, resilience.Priority) context.Context                                                 = resilience.WithPriority
	_ func(context.Context, time.Duration) context.Context                                                       = resilience.WithBudget
	_ func(context.Context, string) context.Context                                                              = resilience.WithIdempotencyKey
	_ func(context.Context, time.Time) context.Context                                                           = resilience.WithExpiry
	_ func(string, any, ...string) (string, error)                                                               = resilience.DeriveKey
	_ func(error) bool                                                                                           = resilience.NotSent
	_ func(error) bool                                                                                           = resilience.InDoubt
	_ func(error) error                                                                                          = resilience.MarkNotSent
	_ func(resilience.Config) (*resilience.Stack, error)                                                         = resilience.New
	_ func(*http.Response) (time.Duration, resilience.Staleness, bool)                                           = resilience.Served
	_ func(resilience.TimeoutConfig) (*resilience.Timeout, error)                                                = resilience.NewTimeout
	_ func(resilience.IdempotencyConfig) (*resilience.Idempotency, error)                                        = resilience.NewIdempotency
	_ func(resilience.BreakerConfig) (*resilience.Breaker, error)                                                = resilience.NewBreaker
	_ func(resilience.BulkheadConfig) (*resilience.Bulkhead, error)                                              = resilience.NewBulkhead
	_ func(resilience.DLQConfig) (*resilience.DLQ, error)                                                        = resilience.NewDLQ
	_ func(resilience.FallbackConfig) (*resilience.Fallback, error)                                              = resilience.NewFallback
	_ func(resilience.RetryConfig) (*resilience.Retry, error)                                                    = resilience.NewRetry
	_ func(resilience.HealthConfig) (*resilience.Health, error)                                                  = resilience.NewHealth
	_ func(context.Context, *resilience.Stack, resilience.Call, func(context.Context) (int, error)) (int, error) = resilience.Do[int]

	_ resilience.Layer  = resilience.LayerFunc(func(next http.RoundTripper) http.RoundTripper { return next })
	_ http.RoundTripper = resilience.RoundTripFunc(nil)
	_ error             = (*resilience.Error)(nil)

	_ = []error{
		resilience.ErrOpen, resilience.ErrFull, resilience.ErrTimeout, resilience.ErrInFlight, resilience.ErrKeyReused,
		resilience.ErrInDoubt, resilience.ErrDisputed, resilience.ErrParked, resilience.ErrLettersFull, resilience.ErrStore,
		resilience.ErrStoreFull, resilience.ErrRetryBudget, resilience.ErrClosed,
	}
	_ = [...]resilience.Effect{resilience.EffectUnset, resilience.EffectRead, resilience.EffectIdempotent, resilience.EffectOnce}
	_ = [...]resilience.Class{resilience.ClassUnset, resilience.ClassRequest, resilience.ClassUpload, resilience.ClassLongPoll}
	_ = [...]resilience.Priority{
		resilience.PriorityUnset, resilience.PriorityNormal, resilience.PriorityCritical, resilience.PriorityBulk,
	}
	_ = [...]resilience.Outcome{resilience.OutcomeSuccess, resilience.OutcomeFailure, resilience.OutcomeIgnored}
	_ = [...]resilience.BreakerState{resilience.BreakerClosed, resilience.BreakerHalfOpen, resilience.BreakerOpen}
	_ = [...]resilience.Staleness{resilience.Fresh, resilience.Stale, resilience.VeryStale}
	_ = resilience.Report{Status: resilience.Unknown, Checks: nil}
	_ = []any{resilience.Healthy, resilience.Degraded, resilience.Unhealthy, resilience.ServerKeysTrust}
)

// What each layer and the whole can do.
type (
	timeouts interface {
		resilience.Layer
		Budget() resilience.Layer
		Attempt() resilience.Layer
		Stats() resilience.TimeoutStats
	}
	keys interface {
		resilience.Layer
		Claim() resilience.Layer
		Intent() resilience.Layer
		Lookup(ctx context.Context, key string) (resilience.Record, error)
		Resolve(ctx context.Context, key string, v resilience.Resolution) error
		Observe(ctx context.Context, ev resilience.Evidence) error
		Forget(ctx context.Context, key string) error
		Stats() resilience.IdempotencyStats
	}
	breaker interface {
		resilience.Layer
		Allow() (done func(resilience.Outcome), err error)
		State() resilience.BreakerState
		ForceOpen()
		ForceClose()
		Reset()
		Circuit(key string) *resilience.Breaker
		Stats() resilience.BreakerStats
	}
	bulkhead interface {
		resilience.Layer
		Acquire(ctx context.Context, p resilience.Priority) (release func(), err error)
		Resize(c resilience.BulkheadConfig) error
		Stats() resilience.BulkheadStats
	}
	letters interface { //nolint:interfacebloat // the contract names as many
		resilience.Layer
		Add(l resilience.Letter) error
		Len() int
		List(f resilience.LetterFilter) []resilience.Letter
		Get(id string) (resilience.Letter, bool)
		Requeue(id string) error
		RequeueAll() int
		Delete(id, reason string) error
		Redrive(ctx context.Context) resilience.RedriveResult
		Export(w io.Writer) error
		Import(r io.Reader) error
		Handle(operation string, fn func(context.Context, resilience.Letter) error)
		Stats() resilience.DLQStats
	}
	answers interface {
		resilience.Layer
		Invalidate(resource string)
		Stats() resilience.FallbackStats
	}
	retries interface {
		resilience.Layer
		Stats() resilience.RetryStats
	}
	health interface {
		http.Handler
		Check(ctx context.Context) resilience.Report
		Live() http.Handler
		Ready() http.Handler
	}
	whole interface {
		resilience.Layer
		Health() *resilience.Health
		Stats() resilience.Stats
		Run(ctx context.Context) error
		Close(ctx context.Context) error
		String() string
	}
	reconciler interface {
		Mark(req *http.Request, key string) error
		Find(ctx context.Context, r resilience.Record) (resilience.Evidence, error)
	}
)

var (
	_ timeouts              = (*resilience.Timeout)(nil)
	_ keys                  = (*resilience.Idempotency)(nil)
	_ breaker               = (*resilience.Breaker)(nil)
	_ bulkhead              = (*resilience.Bulkhead)(nil)
	_ letters               = (*resilience.DLQ)(nil)
	_ answers               = (*resilience.Fallback)(nil)
	_ retries               = (*resilience.Retry)(nil)
	_ health                = (*resilience.Health)(nil)
	_ whole                 = (*resilience.Stack)(nil)
	_ resilience.Reconciler = reconciler(nil)
	_ resilience.KeyStore   = (*resilience.MemoryStore)(nil)
)

var _ = resilience.Stack{
	Fallback: (*resilience.Fallback)(nil), Idempotency: (*resilience.Idempotency)(nil), DLQ: (*resilience.DLQ)(nil),
	Timeout: (*resilience.Timeout)(nil), Retry: (*resilience.Retry)(nil), Bulkhead: (*resilience.Bulkhead)(nil),
	Breaker: (*resilience.Breaker)(nil),
}

var _ = resilience.Config{
	Describe: func(*http.Request) resilience.Call {
		return resilience.Call{
			Operation: "", Effect: 0, Priority: 0, Class: 0, Limit: time.Duration(0), Budget: time.Duration(0), Resource: "", Params: any(nil),
		}
	},
	Fallback: resilience.FallbackConfig{
		Fresh: time.Duration(0), Stale: time.Duration(0), MaxAge: time.Duration(0), MaxBytes: int64(0), Vary: []string(nil),
		Cacheable: func(resilience.Call) bool { return true }, Func: func(*http.Request, error) (*http.Response, error) { return nil, io.EOF },
		OnEvent: func(resilience.Event) {}, Off: false,
	},
	Idempotency: resilience.IdempotencyConfig{
		Store: resilience.KeyStore(nil), TTL: time.Duration(0), Namespace: "", Reconcile: resilience.Reconciler(nil),
		AssumeAbsentAfter: time.Duration(0), OnEvent: func(resilience.Event) {}, Off: false,
	},
	DLQ: resilience.DLQConfig{
		Keep: func(resilience.Call) bool { return true }, KeepUnnamed: false, MaxLetters: 0, MaxBytes: int64(0), Base: time.Duration(0),
		Cap: time.Duration(0), MaxAge: time.Duration(0), Attempts: 0, Overflow: resilience.Overflow(0),
		Authorize: func(context.Context, resilience.Letter, *http.Request) error { return nil }, OnParked: func(resilience.Letter) {},
		OnEvent: func(resilience.Event) {}, Off: false,
	},
	Timeout: resilience.TimeoutConfig{
		Connect: time.Duration(0), Request: time.Duration(0), Upload: time.Duration(0), LongPoll: time.Duration(0), Total: time.Duration(0),
		MaxResponseBytes: int64(0), MaxRequestBytes: int64(0), OnEvent: func(resilience.Event) {}, Off: false,
	},
	Retry: resilience.RetryConfig{
		Max: 0, Base: time.Duration(0), Cap: time.Duration(0), MaxRetryAfter: time.Duration(0), Ratio: float64(0), RatioPerSecond: float64(0),
		OnEvent: func(resilience.Event) {}, Off: false,
	},
	Bulkhead: resilience.BulkheadConfig{
		Critical: 0, Normal: 0, Bulk: 0, Total: 0, Queue: 0, MaxWait: time.Duration(0), AgeAfter: time.Duration(0),
		OnEvent: func(resilience.Event) {}, Off: false,
	},
	Breaker: resilience.BreakerConfig{
		FailureRate: float64(0), MinCalls: 0, Window: time.Duration(0), OpenFor: time.Duration(0), MaxOpenFor: time.Duration(0),
		TrialLimit: time.Duration(0), Ramp: time.Duration(0), Trials: 0, SlowCall: time.Duration(0), SlowRate: float64(0),
		MetricsOnly: false, Key: func(resilience.Call) string { return "" }, MaxKeys: 0, OnEvent: func(resilience.Event) {}, Off: false,
	},
	Health: resilience.HealthConfig{
		Probe: func(context.Context) error { return nil }, ProbeEvery: time.Duration(0), ProbeTimeout: time.Duration(0), WarnLetters: 0,
	},
	OnEvent: func(resilience.Event) {},
}

var _ = resilience.Error{
	Layer: "", Operation: "", Key: "", Limit: "", LetterID: "", StatusCode: 0, CallIDs: []string(nil), RetryAfter: time.Duration(0), Err: error(nil),
}

var _ = resilience.Letter{
	ID: "", Operation: "", Key: "", Method: "", URL: "", Header: http.Header(nil), Body: []byte(nil), Cause: "", Attempts: 0,
	First: time.Time{}, Last: time.Time{}, Next: time.Time{}, Expires: time.Time{}, InDoubt: false, Parked: false,
}
