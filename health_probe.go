package resilience

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"syscall"
	"time"
)

// healthProbe asks something outside this process, one question at a time, and keeps the answer while it counts. Nothing
// runs unless somebody reads: the age of an answer, and that a run has taken too long, are worked out when asked.
type healthProbe struct {
	name, measure  string
	ask            func(context.Context) []CheckResult // nil: nobody asks
	every, timeout time.Duration
	keep           time.Duration // how old a good answer may be while the next is due
	silent         Status        // what it means that no answer comes

	mu       sync.Mutex
	closed   bool      // nothing is asked any more
	run      *probeRun // the newest; nil: none yet
	previous *probeRun // the one before, which has returned
}

// probeRun is one question. ended and answer may be read once done is closed.
type probeRun struct {
	started time.Time
	callOff context.CancelCauseFunc
	done    chan struct{}
	ended   time.Time
	answer  []CheckResult // RetryAfter counts from ended
}

// await returns the run whose answer counts, having started one if the last is too old and has returned. It waits for the
// run to be settled: answered, or out of time. waited is false if the caller's context ended before that.
func (p *healthProbe) await(ctx context.Context) (run *probeRun, waited bool) {
	if p.ask == nil {
		return nil, true
	}
	run = p.current()
	left := p.timeout - time.Since(run.started)
	if run.returned() || left <= 0 {
		return run, true
	}
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case <-run.done:
		return run, true
	case <-timer.C:
		return run, true
	case <-ctx.Done():
		return run, run.returned()
	}
}

func (p *healthProbe) current() *probeRun {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.run == nil || p.run.returned() && p.freshFor(p.run, time.Now()) <= 0 {
		p.previous = p.run
		if p.closed {
			p.run = p.notAsked()
			return p.run
		}
		ctx, callOff := context.WithCancelCause(context.Background())
		p.run = &probeRun{started: time.Now(), callOff: callOff, done: make(chan struct{})}
		go p.run.execute(ctx, p)
	}
	return p.run
}

// notAsked is a run of a probe that is closed.
func (p *healthProbe) notAsked() *probeRun {
	now, done := time.Now(), make(chan struct{})
	close(done)
	return &probeRun{started: now, ended: now, done: done, answer: p.closedAnswer()}
}

func (p *healthProbe) closedAnswer() []CheckResult {
	return []CheckResult{{Measure: p.measure, State: "closed", Message: "the stack was closed before there was an answer"}}
}

// drain lets nothing be asked any more, calls off the run under way and waits for its end, or that of ctx.
func (p *healthProbe) drain(ctx context.Context) error {
	p.mu.Lock()
	p.closed = true
	run := p.run
	p.mu.Unlock()
	if run == nil || run.returned() {
		return nil
	}
	run.callOff(ErrClosed)
	select {
	case <-run.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("health: a check had not returned: %w", context.Cause(ctx))
	}
}

// settled reports whether the outcome of any run is known.
func (p *healthProbe) settled() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.previous != nil || p.run != nil && (p.run.returned() || time.Since(p.run.started) >= p.timeout)
}

// execute runs the user's code on a goroutine of its own, where a panic or Goexit takes nobody with it.
func (r *probeRun) execute(ctx context.Context, p *healthProbe) {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	fault := func(state, message string) []CheckResult {
		return []CheckResult{{Measure: p.measure, Status: p.silent, State: state, Message: message}}
	}
	r.answer = fault("exited", "the check ended its goroutine without an answer") // after Goexit
	defer func() {
		if recover() != nil {
			r.answer = fault("panic", "the check panicked")
		}
		r.ended = time.Now()
		cancel()
		r.callOff(nil)
		close(r.done)
	}()
	r.answer = slices.Clone(p.ask(ctx)) // what it returned may be changed later
	switch {
	case errors.Is(context.Cause(ctx), ErrClosed):
		r.answer = p.closedAnswer()
	case len(r.answer) == 0:
		r.answer = []CheckResult{{Measure: p.measure, Message: "no reading"}}
	}
}

func (r *probeRun) returned() bool { return isClosed(r.done) }

// settledAt is when the outcome was known: when it answered, or when its time was up, whichever came first.
func (p *healthProbe) settledAt(r *probeRun) time.Time {
	if p.inTime(r) {
		return r.ended
	}
	return r.started.Add(p.timeout)
}

// inTime reports whether the run has answered within its bound. An answer that came later is no answer.
func (p *healthProbe) inTime(r *probeRun) bool {
	return r.returned() && r.ended.Sub(r.started) < p.timeout
}

func (p *healthProbe) freshFor(r *probeRun, now time.Time) time.Duration {
	return max(0, p.every-now.Sub(p.settledAt(r)))
}

// result says what the run found, and for how long that counts. A run still under way leaves what was known before.
func (p *healthProbe) result(r *probeRun, now time.Time) ([]CheckResult, time.Duration) {
	switch {
	case p.ask == nil:
		return []CheckResult{{Name: p.name, Measure: p.measure, State: "not probed", Message: "no probe is configured"}}, 0
	case !r.returned() && now.Sub(r.started) < p.timeout: // asked first: a run that returns meanwhile has not timed out
		return p.underWay(now), 0
	case p.inTime(r):
		return p.answerOf(r, now), p.freshFor(r, now)
	}
	return p.timedOut(r), p.freshFor(r, now)
}

func (p *healthProbe) answerOf(r *probeRun, now time.Time) []CheckResult {
	out := slices.Clone(r.answer)
	for i := range out {
		c := &out[i]
		c.Name = p.name
		c.RetryAfter = max(0, c.RetryAfter-now.Sub(r.ended))
		c.Time, c.Duration = or(c.Time, r.ended), or(c.Duration, r.ended.Sub(r.started))
	}
	return out
}

func (p *healthProbe) timedOut(r *probeRun) []CheckResult {
	message := fmt.Sprintf("no answer within %s", p.timeout)
	if !r.returned() {
		message += "; it has not returned and is not started again before it does"
	}
	return []CheckResult{{
		Name: p.name, Measure: p.measure, Status: p.silent, State: "timeout", Message: message,
		Time: p.settledAt(r), Duration: p.timeout,
	}}
}

// underWay is for a reader who does not wait for the answer: an old failure stands until it is refuted, an old success
// only so long.
func (p *healthProbe) underWay(now time.Time) []CheckResult {
	p.mu.Lock()
	before := p.previous
	p.mu.Unlock()
	switch {
	case before == nil:
		return []CheckResult{{Name: p.name, Measure: p.measure, State: "asking", Message: "the first answer is still due"}}
	case !p.inTime(before):
		return p.timedOut(before)
	}
	out := p.answerOf(before, now)
	for i := range out {
		c := &out[i]
		if c.Status == Healthy && now.Sub(before.ended) >= p.keep {
			c.Status, c.State, c.Message = Unknown, "stale", "the last answer is too old and the next is still due"
		}
	}
	return out
}

// askProbe has a probe's error judged where the probe ran, since that runs the user's code too: an Unwrap, a method of a
// nil error.
func askProbe(probe func(context.Context) error) func(context.Context) []CheckResult {
	if probe == nil {
		return nil
	}
	return func(ctx context.Context) []CheckResult {
		started := time.Now()
		c := judgeProbe(probe(ctx))
		c.Measure = "responseTime"
		c.Value, c.Unit = float64(time.Since(started))/float64(time.Millisecond), "ms"
		return []CheckResult{c}
	}
}

// judgeProbe turns the error of a probe into a status, a word from a closed set, and a sentence. It shows nothing of the
// error's text.
func judgeProbe(err error) CheckResult {
	if err == nil {
		return CheckResult{Status: Healthy, State: "ok"}
	}
	code, retryAfter := answerIn(err)
	if code != 0 {
		status, message := judgeCode(code)
		return CheckResult{Status: status, State: fmt.Sprintf("status %d", code), Message: message, RetryAfter: retryAfter}
	}
	for _, local := range []error{ErrOpen, ErrFull, ErrClosed} {
		if errors.Is(err, local) { // our own refusal says nothing about the other side
			return CheckResult{State: "not probed", Message: "the probe was refused on our side: " + local.Error(), RetryAfter: retryAfter}
		}
	}
	state, message := probeClass(err)
	return CheckResult{Status: Unhealthy, State: state, Message: message, RetryAfter: retryAfter}
}

// answerIn finds the status of an answer inside an error, and how long the other side asks to wait.
func answerIn(err error) (code int, retryAfter time.Duration) {
	var ours *Error
	if errors.As(err, &ours) {
		code, retryAfter = ours.StatusCode, ours.RetryAfter
	}
	var theirs interface{ HTTPStatus() int }
	if code == 0 && errors.As(err, &theirs) {
		code = theirs.HTTPStatus()
	}
	return code, retryAfter
}

func judgeCode(code int) (Status, string) {
	switch {
	case code == http.StatusUnauthorized || code == http.StatusForbidden:
		return Unhealthy, "credentials refused: this will not heal by itself"
	case code == http.StatusPaymentRequired:
		return Degraded, "payment required"
	case code == http.StatusTooManyRequests:
		return Degraded, "throttled"
	case code >= http.StatusInternalServerError:
		return Unhealthy, "the other side answers with an error"
	}
	return Unhealthy, "the probe was answered with an error"
}

// probeClass names the kind of a failure that came without an answer.
func probeClass(err error) (class, message string) {
	var (
		dns  *net.DNSError
		cert *tls.CertificateVerificationError
		rec  tls.RecordHeaderError
		op   *net.OpError
	)
	switch {
	case errors.As(err, &dns):
		return "dns", "the host name could not be looked up"
	case errors.As(err, &cert), errors.As(err, &rec):
		return "tls", "no trusted connection could be made"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused", "the connection was refused"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "reset", "the connection was cut"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return "unreachable", "there is no way to the host"
	case probeTimedOut(err):
		return "timeout", "no answer in time"
	case errors.Is(err, context.Canceled):
		return "canceled", "the probe was canceled"
	case errors.As(err, &op):
		return "network", "the network failed"
	}
	return "error", "the probe failed"
}

func probeTimedOut(err error) bool {
	var t interface{ Timeout() bool }
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &t) && t.Timeout()
}
