package resilience

import (
	"context"
	"encoding/json"
	"net/http/httptest"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func (w *stackSim) health(p *simProcess) {
	w.callers.Go(func() {
		began := time.Now()
		rec := httptest.NewRecorder()
		p.stack.Health().ServeHTTP(rec, httptest.NewRequest("GET", "/", nil))
		if took := time.Since(began); took > 2*time.Second {
			w.failf("health took %s", took)
		}
		if !json.Valid(rec.Body.Bytes()) || rec.Code != 200 && rec.Code != 503 {
			w.failf("health: %d %s", rec.Code, rec.Body)
		}
		p.stack.Stats()
	})
}

// check is what holds at every moment.
func (w *stackSim) check(p *simProcess) {
	st := p.stack.Stats()
	if d := st.DLQ; d.Admitted != d.Acked+d.Deleted+d.Dropped+uint64(d.Letters) { //nolint:gosec // not negative
		w.failf("letters: %+v", d)
	}
	b := st.Bulkhead
	if b.InUse != b.Critical.InUse+b.Normal.InUse+b.Bulk.InUse || b.InUse < b.Abandoned {
		w.failf("slots: %+v", b)
	}
}

// end lets everything come to rest and looks at what is left.
func (w *stackSim) end() {
	w.mu.Lock()
	w.calm = true
	w.mu.Unlock()
	for _, p := range w.all {
		p.stack.Breaker.Reset()
	}
	w.callers.Wait()
	time.Sleep(20 * time.Minute) // the slowest transport has returned
	synctest.Wait()
	for _, p := range w.all {
		p.stop()
	}
	for _, p := range w.all {
		w.endOf(p)
	}
}

func (w *stackSim) endOf(p *simProcess) {
	st := p.stack.Stats()
	w.check(p)
	if st.Calls != 0 || st.Idempotency.Flights != 0 || st.Bulkhead.InUse != 0 || st.Bulkhead.Waiting != 0 || st.Bulkhead.Abandoned != 0 ||
		st.Timeout.Lingering != 0 || st.DLQ.Running != 0 || st.DLQ.Blocked != 0 || st.DLQ.Leased != 0 {
		w.failf("left: %+v", st)
	}
	granted := st.Bulkhead.Critical.Granted + st.Bulkhead.Normal.Granted + st.Bulkhead.Bulk.Granted
	refused := granted - st.Breaker.Successes - st.Breaker.Failures - st.Breaker.Ignored
	if p.stack.Breaker.config.Key == nil && (int64(refused) < 0 || refused > st.Breaker.Rejected) { //nolint:gosec // small
		w.failf("slots %d, completed %d %d %d, rejected %d", granted, st.Breaker.Successes, st.Breaker.Failures, st.Breaker.Ignored, st.Breaker.Rejected)
	}
	if st.Retry.Attempts > st.Retry.Calls+st.Retry.Retries || st.Retry.Attempts < granted {
		w.failf("retry: %+v, granted %d", st.Retry, granted)
	}
	w.keysTellTheTruth(p)
	require.NoError(w.t, p.stack.Close(context.Background()))
	time.Sleep(time.Minute) // a probe may be under way
	w.eventsAreLegal(p)
}

func (w *stackSim) keysTellTheTruth(p *simProcess) {
	w.mu.Lock()
	ids := map[string]truth{}
	for id, t := range w.truth {
		ids[id] = *t
	}
	w.mu.Unlock()
	for id, t := range ids {
		rec, err := p.stack.Idempotency.load(context.Background(), id)
		if err != nil {
			w.failf("load: %v", err)
		}
		switch rec.State {
		case KeyConfirmed:
			if t.rings != 1 {
				w.failf("%s is confirmed and rang %d times", id[:10], t.rings)
			}
		case KeyNotApplied:
			if t.rings != 0 {
				w.failf("%s is %v, and it rang", id[:10], rec.State)
			}
		case KeyClaimed, KeySending:
			w.failf("%s is still %v: %+v", id[:10], rec.State, rec)
		case KeyFree, KeyInDoubt:
		case KeyDisputed:
			w.failf("%s is disputed: %+v", id[:10], rec)
		}
	}
	for _, l := range p.stack.DLQ.List(LetterFilter{}) {
		if l.effect() == EffectOnce && ids[p.stack.Idempotency.ID(l.Key)].rings > 0 && !l.Superseded {
			rec, _ := p.stack.Idempotency.Lookup(context.Background(), l.Key)
			if rec.State == KeyConfirmed && !w.shared && !w.moved {
				w.failf("a letter of a call that is known to have happened: %+v", l.String())
			}
		}
	}
}

func (w *stackSim) eventsAreLegal(p *simProcess) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for layer, list := range p.events {
		var last time.Time
		for _, e := range list {
			if e.Time.Before(last) {
				w.t.Errorf("%s: events out of order: %+v", layer, e)
			}
			last = e.Time
		}
	}
	state := map[string]string{}
	for _, e := range p.events["breaker"] {
		if e.From == e.To && e.Kind != EventCircuitReset && e.Kind != EventCircuitExceeded {
			w.t.Errorf("circuit: %+v", e)
		}
		at := e.Operation
		if was, ok := state[at]; p.stack.Breaker.config.Key == nil && ok && was != e.From {
			w.t.Errorf("circuit %q was %s: %+v", at, was, e)
		}
		state[at] = e.To
	}
	health := "unknown"
	for _, e := range p.events["health"] {
		if e.Kind == EventHealthChanged {
			if e.From != health || e.To == health {
				w.t.Errorf("health was %s: %+v", health, e)
			}
			health = e.To
		}
	}
}
