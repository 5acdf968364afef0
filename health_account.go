package resilience

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// account remembers that the other side turned the account down: its credentials (401), its payment (402), one of its
// operations (403). To the circuit such an answer is one of a living server, and a probe asks a question that others may
// still get answered; so this looks at ordinary traffic. It stands where every answer is one that came from the other side
// just now, below what is cached, replayed and parked.
type account struct {
	mood atomic.Uint32 // all that a call that went well looks at

	mu       sync.Mutex
	worked   bool // an operation succeeded once
	refusals [accountKinds]refusal
}

// The moods.
const (
	accountUnseen uint32 = iota
	accountFine
	accountRefused // or was, and nobody has seen it succeed since
)

// The kinds of refusals, in the order in which they are reported.
const (
	accountKey = iota
	accountPayment
	accountPermission
	accountKinds
)

// refusal is the last one of a kind that no success has refuted. The zero refusal is none.
type refusal struct {
	operation string
	at        time.Time
}

// refusalCounts is how long a refusal says something about now. A program that has stopped asking would otherwise never
// see that all is well again.
const refusalCounts = 15 * time.Minute

// Wrap makes account a [Layer]. It changes nothing on the road.
func (a *account) Wrap(next http.RoundTripper) http.RoundTripper {
	return newDoor(next, func(ctx context.Context, t *trip, req *http.Request, next leg) (*http.Response, error) {
		resp, err := next.travel(ctx, t, req)
		if err == nil {
			a.answered(t.call.Operation, resp.StatusCode)
		} else { // work that is not HTTP has its answer in there, and so has a re-send that stays in doubt
			a.answered(t.call.Operation, safeAnswerIn(err))
		}
		return resp, err
	})
}

// safeAnswerIn is the status in an error that may be one of a user's, whose methods may panic; 0: none.
func safeAnswerIn(err error) (code int) {
	defer func() {
		if recover() != nil {
			code = 0
		}
	}()
	code, _ = answerIn(err)
	return code
}

func (a *account) answered(operation string, code int) {
	switch {
	case isSuccess(code):
		if a.mood.Load() != accountFine {
			a.succeeded(operation)
		}
	case code == http.StatusUnauthorized:
		a.refused(accountKey, operation)
	case code == http.StatusPaymentRequired:
		a.refused(accountPayment, operation)
	case code == http.StatusForbidden:
		a.refused(accountPermission, operation)
	}
}

func (a *account) refused(kind int, operation string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refusals[kind] = refusal{operation, time.Now()}
	a.mood.Store(accountRefused)
}

// succeeded clears what a success refutes. Any success shows that the key is good. That a workspace cannot pay, or may not
// do one thing, shows in some operations only, so there only a success of the same one counts.
func (a *account) succeeded(operation string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.worked = true
	mood := accountFine
	for kind := range a.refusals {
		r := &a.refusals[kind]
		if kind == accountKey || r.operation == operation {
			*r = refusal{}
		}
		if !r.at.IsZero() {
			mood = accountRefused
		}
	}
	a.mood.Store(mood)
}

// readings reports on each kind.
func (a *account) readings() []CheckResult {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	var out [accountKinds]CheckResult
	for kind := range out {
		out[kind] = accountReading(kind, a.refusals[kind], a.worked, now)
	}
	return out[:]
}

func accountReading(kind int, r refusal, worked bool, now time.Time) CheckResult {
	names := [...]string{accountKey: "key", accountPayment: "payment", accountPermission: "permission"}
	codes := [...]int{accountKey: http.StatusUnauthorized, accountPayment: http.StatusPaymentRequired, accountPermission: http.StatusForbidden}
	c := CheckResult{Measure: names[kind], Time: now}
	switch {
	case !r.at.IsZero() && now.Sub(r.at) >= refusalCounts:
		c.Time, c.State = r.at, "stale"
		c.Message = fmt.Sprintf("%s was answered with %d, and nobody has seen it succeed since", r.operation, codes[kind])
	case !r.at.IsZero():
		c.Time, c.State = r.at, fmt.Sprintf("status %d", codes[kind])
		c.Status, c.Message = accountStatus(codes[kind])
		c.Message = r.operation + ": " + c.Message
	case !worked:
		c.State, c.Message = "unseen", "no call has succeeded yet"
	default:
		c.Status, c.State = Healthy, "ok"
	}
	return c
}

// accountStatus judges a refusal as the probe does, but for a 403: an operation that is not allowed says nothing about the
// others, while one of the probe says that the probe is not allowed to look.
func accountStatus(code int) (Status, string) {
	if code == http.StatusForbidden {
		return Degraded, "not allowed with these credentials; other operations may be"
	}
	return judgeCode(code)
}
