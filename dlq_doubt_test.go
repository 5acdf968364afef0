package resilience

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Evidence about an imported doubt whose key is not known here.
func TestDLQ_EvidenceEndsAnImportedDoubtOfAFreeKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := doubtOf(t)
		f := &finder{found: []Found{{ID: "call_1"}}}
		r := receive(t, Config{Idempotency: IdempotencyConfig{Reconcile: f}})
		r.take(file)
		time.Sleep(30 * time.Minute)
		err := r.Idempotency.Observe(t.Context(), Evidence{ID: r.Idempotency.ID("k"), Calls: []Found{{ID: "call_1"}}})
		left := r.DLQ.Len()
		r.stop()
		require.NoError(t, err)
		require.Zero(t, left)
	})
}

func TestDLQ_TwoCallsForAnImportedDoubtAreADispute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := doubtOf(t)
		var disputes []Event
		r := receive(t, Config{
			Idempotency: IdempotencyConfig{Reconcile: &finder{}},
			OnEvent: func(e Event) {
				if e.Kind == EventKeyDisputed {
					disputes = append(disputes, e)
				}
			},
		})
		r.take(file)
		ev := Evidence{ID: r.Idempotency.ID("k"), Calls: []Found{{ID: "call_1"}, {ID: "call_2"}}}
		require.NoError(t, r.Idempotency.Observe(t.Context(), ev))
		l := dlqOnly(t, r.DLQ)
		r.stop()
		require.True(t, l.InDoubt, "two calls were made: it is not done, and it is never sent")
		require.Len(t, disputes, 1)
		require.EqualValues(t, 1, r.Idempotency.Stats().Disputed)
	})
}

// A doubt that comes while Authorize is at work.
func TestDLQ_ADoubtThatComesBeforeTheSend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := doubtOf(t)
		var s *Stack
		taken := false
		s = newStack(t, Config{Retry: RetryConfig{Off: true}, DLQ: DLQConfig{Authorize: func(context.Context, Letter, *http.Request) error {
			if !taken {
				taken = true
				return s.DLQ.Import(bytes.NewReader(file))
			}
			return nil
		}}})
		p := &phone{before: func(_ *http.Request, n int) (*http.Response, error) {
			if n == 1 {
				return nil, errDLQRefused
			}
			return nil, nil
		}}
		_, err := dial(t.Context(), t, s.Wrap(p), "k", dialBody)
		require.ErrorIs(t, err, ErrParked)
		time.Sleep(2 * time.Second)
		s.DLQ.Redrive(t.Context())
		require.True(t, taken)
		require.Zero(t, p.rang(), "it may have rung for another process")
		require.True(t, dlqOnly(t, s.DLQ).InDoubt)
		closeStack(t, s)
	})
}

// An import says that a letter is in doubt while its redrive waits for a slot.
func TestDLQ_ADoubtThatComesWhileARedriveWaitsForASlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := doubtOf(t)
		p := &phone{before: func(*http.Request, int) (*http.Response, error) { return nil, MarkNotSent(io.EOF) }}
		s := newStack(t, Config{Retry: RetryConfig{Off: true}, Bulkhead: BulkheadConfig{Critical: 1, Normal: -1, Bulk: -1, Total: 1}})
		_, err := dial(t.Context(), t, s.Wrap(p), "k", dialBody)
		require.ErrorIs(t, err, ErrParked)
		p.before = nil
		release, err := s.Bulkhead.Acquire(t.Context(), PriorityCritical)
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		time.Sleep(10 * time.Second)
		require.Equal(t, 1, s.DLQ.Stats().Leased)
		require.NoError(t, s.DLQ.Import(bytes.NewReader(file)))
		require.True(t, s.DLQ.List(LetterFilter{})[0].InDoubt)
		release()
		time.Sleep(time.Hour)
		cancel()
		<-done
		closeStack(t, s)
		require.Zero(t, p.rang(), "it was known to be in doubt before anything was sent")
	})
}

// newsNow is a verdict that speaks of whatever anybody has sent so far.
func newsNow(v keyVerdict) keyNews { return keyNews{v, time.Now()} }

// ringing is what the phone of a receiver does, and whether it rings then.
type ringing func() (rings bool, resp *http.Response, err error)

func picksUp() (bool, *http.Response, error) {
	return true, reply(http.StatusCreated, `{"call_id":"call_1"}`), nil
}

func getsLost() (bool, *http.Response, error) { return true, nil, errors.New("reset") }

func isDown() (bool, *http.Response, error) { return false, nil, MarkNotSent(errors.New("down")) }

func refuses() (bool, *http.Response, error) { return false, reply(http.StatusBadRequest, "{}"), nil }

// doubtOf is the export of a process whose call for the key k may have rung.
func doubtOf(t testing.TB) []byte {
	t.Helper()
	s := newStack(t, Config{})
	_, err := dial(t.Context(), t, s.Wrap(&phone{answer: lostAnswer}), "k", dialBody)
	require.ErrorIs(t, err, ErrInDoubt)
	file := dlqExport(t, s.DLQ)
	closeStack(t, s)
	return file
}

// receiver is a process into which somebody else's doubt is imported.
type receiver struct {
	*Stack
	t    testing.TB
	rt   http.RoundTripper
	stop func()

	mu          sync.Mutex
	phone       ringing
	sends, rang int
}

func receive(t testing.TB, cfg Config) *receiver {
	t.Helper()
	cfg.Retry.Off = true
	r := &receiver{Stack: newStack(t, cfg), t: t, phone: picksUp}
	r.rt = r.Wrap(RoundTripFunc(r.send))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- r.Run(ctx) }()
	r.stop = func() {
		cancel()
		require.NoError(t, <-done)
		dlqConserved(t, r.DLQ)
		closeStack(t, r.Stack)
	}
	return r
}

func (r *receiver) send(*http.Request) (*http.Response, error) {
	r.mu.Lock()
	phone := r.phone
	r.sends++
	r.mu.Unlock()
	rings, resp, err := phone()
	r.mu.Lock()
	defer r.mu.Unlock()
	if rings {
		r.rang++
	}
	return resp, err
}

// set says what the phone does from now on.
func (r *receiver) set(phone ringing) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.phone = phone
}

func (r *receiver) counts() (sends, rang int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sends, r.rang
}

func (r *receiver) dial() error {
	_, err := dial(context.Background(), r.t, r.rt, "k", dialBody)
	return err
}

func (r *receiver) take(file []byte) { require.NoError(r.t, r.DLQ.Import(bytes.NewReader(file))) }

// silent waits, and nothing is sent meanwhile.
func (r *receiver) silent(d time.Duration) {
	r.t.Helper()
	before, _ := r.counts()
	time.Sleep(d)
	sends, _ := r.counts()
	require.Equal(r.t, before, sends, "it may have rung for somebody else")
	require.True(r.t, dlqOnly(r.t, r.DLQ).InDoubt)
}

// rings waits, and meanwhile it rings, once.
func (r *receiver) rings(d time.Duration) {
	r.t.Helper()
	r.set(picksUp)
	_, before := r.counts()
	time.Sleep(d)
	_, rang := r.counts()
	require.Equal(r.t, before+1, rang)
	require.Zero(r.t, r.DLQ.Len())
	require.Equal(r.t, KeyConfirmed, stateOf(r.t, r.Idempotency, "k"))
}

func (r *receiver) resolve() {
	r.t.Helper()
	require.NoError(r.t, r.Idempotency.Resolve(context.Background(), "k", Resolution{State: KeyNotApplied, Reason: "looked"}))
}

// addAnew is the operator's last way out.
func (r *receiver) addAnew() {
	r.t.Helper()
	l := dlqOnly(r.t, r.DLQ)
	require.NoError(r.t, r.DLQ.Delete(l.ID, "looked"))
	l.InDoubt, l.Parked, l.ParkedReason = false, false, ""
	l.First, l.Next, l.Expires = time.Time{}, time.Time{}, time.Time{} // its time was over
	require.NoError(r.t, r.DLQ.Add(l))
	require.Zero(r.t, dlqOnly(r.t, r.DLQ).DoubtSince)
}

// That a send of this process was refused says nothing about what another process sent under the same key.
func TestImportedDoubt_OutlastsOurOwnRefusals(t *testing.T) {
	for name, meet := range map[string]func(r *receiver, file []byte){
		"the letter is there": func(r *receiver, file []byte) {
			r.take(file)
		},
		"the letter comes with it": func(r *receiver, file []byte) {
			require.NoError(r.t, r.DLQ.Delete(dlqOnly(r.t, r.DLQ).ID, ""))
			r.take(file)
		},
		"a redrive is under way, and not sent": func(r *receiver, file []byte) {
			r.set(func() (bool, *http.Response, error) {
				r.set(isDown)
				r.take(file)
				time.Sleep(time.Second)
				return isDown()
			})
			time.Sleep(20 * time.Second)
		},
		"a call is under way, and refused": func(r *receiver, file []byte) {
			require.NoError(r.t, r.DLQ.Delete(dlqOnly(r.t, r.DLQ).ID, ""))
			r.set(func() (bool, *http.Response, error) {
				r.take(file)
				time.Sleep(time.Second)
				return refuses()
			})
			require.NoError(r.t, r.dial())
		},
		"a call has taken the letter over, and is refused": func(r *receiver, file []byte) {
			r.set(func() (bool, *http.Response, error) {
				r.take(file)
				return refuses()
			})
			err := r.dial()
			require.ErrorIs(r.t, err, ErrParked)
			require.ErrorIs(r.t, err, ErrInDoubt)
		},
		"it is in doubt here, and a late refusal ends that": func(r *receiver, file []byte) {
			r.set(func() (bool, *http.Response, error) {
				time.Sleep(50 * time.Second) // longer than it may take
				return refuses()
			})
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			_, err := dial(ctx, r.t, r.rt, "k", dialBody)
			require.ErrorIs(r.t, err, ErrInDoubt)
			time.Sleep(45 * time.Second)
			require.Equal(r.t, KeyInDoubt, stateOf(r.t, r.Idempotency, "k"))
			r.take(file)
			time.Sleep(time.Minute)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				file := doubtOf(t)
				r := receive(t, Config{})
				r.set(isDown)
				require.ErrorIs(t, r.dial(), ErrParked)
				meet(r, file)
				require.False(t, dlqOnly(t, r.DLQ).DoubtSince.IsZero())
				require.Equal(t, KeyNotApplied, stateOf(t, r.Idempotency, "k"), "what we sent ourselves")
				r.set(picksUp)
				r.silent(5 * time.Hour)
				require.NoError(t, r.DLQ.Requeue(dlqOnly(t, r.DLQ).ID))
				r.silent(30 * time.Minute)
				require.ErrorIs(t, r.dial(), ErrInDoubt)
				_, rang := r.counts()
				require.Zero(t, rang)
				r.addAnew()
				r.rings(time.Minute)
				r.stop()
			})
		})
	}
}

// The operator speaks of the key, and of what was known when he spoke.
func TestImportedDoubt_TheOperatorEndsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := doubtOf(t)
		r := receive(t, Config{})
		r.set(getsLost)
		require.ErrorIs(t, r.dial(), ErrInDoubt)
		r.take(file)
		r.silent(time.Minute)
		r.resolve()
		r.rings(time.Minute)
		r.stop()
	})
	synctest.Test(t, func(t *testing.T) {
		file := doubtOf(t)
		r := receive(t, Config{})
		r.set(getsLost)
		require.ErrorIs(t, r.dial(), ErrInDoubt)
		r.resolve()
		require.False(t, dlqOnly(t, r.DLQ).InDoubt)
		time.Sleep(1) // which is too short for the letter to be due
		r.take(file)
		r.silent(5 * time.Hour)
		r.addAnew()
		r.rings(time.Minute)
		r.stop()
	})
}

// Evidence about the call of another process is evidence.
func TestImportedDoubt_EndsWhenItIsFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := doubtOf(t)
		r := receive(t, Config{})
		r.set(getsLost)
		require.ErrorIs(t, r.dial(), ErrInDoubt)
		r.take(file)
		id := r.Idempotency.ID("k")
		require.NoError(t, r.Idempotency.Observe(t.Context(), Evidence{ID: id, Calls: []Found{{ID: "call_1"}}}))
		require.Zero(t, r.DLQ.Len())
		r.stop()
	})
}

// What the user chose counts: an API that knows the key again, or that nothing happened which nobody found for so long. So
// long after the import, that is.
func TestImportedDoubt_TheUsersChoiceEndsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := doubtOf(t)
		r := receive(t, Config{Idempotency: IdempotencyConfig{Reconcile: &idReader{}, ServerKeys: ServerKeysTrust}})
		r.set(getsLost)
		require.ErrorIs(t, r.dial(), ErrInDoubt)
		r.take(file)
		r.rings(10 * time.Minute)
		r.stop()
	})
	synctest.Test(t, func(t *testing.T) {
		file := doubtOf(t)
		r := receive(t, Config{Idempotency: IdempotencyConfig{AssumeAbsentAfter: 10 * time.Minute}, DLQ: DLQConfig{MaxAge: -1}})
		r.set(getsLost)
		require.ErrorIs(t, r.dial(), ErrInDoubt)
		time.Sleep(9 * time.Minute)
		r.take(file)
		r.silent(10 * time.Minute)
		require.Equal(t, KeyNotApplied, stateOf(t, r.Idempotency, "k"), "what we sent ourselves")
		r.rings(20 * time.Minute)
		r.stop()
	})
}

// What was sent by this process alone is sent again as soon as it is known that it had no effect.
func TestDoubtOfOurOwn_EndsWithEveryProof(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := mustDLQ(t, DLQConfig{})
		require.NoError(t, d.Add(Letter{ID: "a", Operation: "op", Key: "k", InDoubt: true}))
		d.settle("k", keyNews{verdict: keyNotApplied})
		require.False(t, dlqOnly(t, d).InDoubt)
		d.settle("k", keyNews{})
		require.True(t, dlqOnly(t, d).InDoubt)
		d.reconcile = func(context.Context, string) keyNews { return keyNews{verdict: keyNotApplied} }
		d.Handle("op", func(context.Context, Letter) error { return nil })
		time.Sleep(time.Minute)
		require.Equal(t, RedriveDone, d.Redrive(t.Context()).Status)
	})
}

// Only what was settled after the import counts, whether the queue is told or asks.
func TestImportedDoubt_OlderNewsDoNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, push := range []bool{true, false} {
			for after, counts := range map[time.Duration]bool{-time.Hour: false, -1: false, 0: false, 1: true} {
				d := mustDLQ(t, DLQConfig{})
				d.Handle("op", func(context.Context, Letter) error { return nil })
				require.NoError(t, d.Import(bytes.NewReader(inDoubtFile(t))))
				require.NoError(t, d.Delete("new", ""))
				news := keyNews{keyNotApplied, dlqOnly(t, d).DoubtSince.Add(after)}
				if push {
					d.settle("k", news)
					require.Equal(t, !counts, dlqOnly(t, d).InDoubt)
					require.Equal(t, !counts, !dlqOnly(t, d).DoubtSince.IsZero())
					continue
				}
				d.reconcile = func(context.Context, string) keyNews { return news }
				time.Sleep(time.Minute)
				require.Equal(t, map[bool]RedriveStatus{true: RedriveDone, false: RedriveInDoubt}[counts], d.Redrive(t.Context()).Status)
			}
		}
	})
}

// A second import, of what a third process sent, reaches further than the first; nothing makes it reach less far.
func TestImportedDoubt_TheLatestCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		d := mustDLQ(t, DLQConfig{Store: s.open()})
		file := inDoubtFile(t)
		require.NoError(t, d.Add(Letter{ID: "here", Operation: "op", Key: "k", InDoubt: true}))
		for range 2 {
			time.Sleep(time.Minute)
			before, _ := d.Get("here")
			require.NoError(t, d.Import(bytes.NewReader(file)))
			l, _ := d.Get("here")
			require.Equal(t, time.Now(), l.DoubtSince)
			require.Equal(t, l, s.get("here"), "it is in the store when Import returns")
			l.DoubtSince = before.DoubtSince
			require.Equal(t, before, l, "the rest is as it was")
		}
		far := time.Now().Add(time.Hour).UTC()
		from := mustDLQ(t, DLQConfig{})
		require.NoError(t, from.Add(Letter{Operation: "op", Key: "k", InDoubt: true, DoubtSince: far}))
		require.NoError(t, d.Import(bytes.NewReader(dlqExport(t, from))))
		require.NoError(t, d.Import(bytes.NewReader(file)))
		require.NoError(t, d.Add(Letter{Operation: "op", Key: "k", InDoubt: true, DoubtSince: far.Add(-1)}))
		l, _ := d.Get("here")
		require.Equal(t, far, l.DoubtSince.UTC(), "by a clock that was ahead")
		require.NoError(t, d.Add(Letter{Operation: "op", Key: "k", InDoubt: true, DoubtSince: far.Add(1)}))
		l, _ = d.Get("here")
		require.Equal(t, far.Add(1), l.DoubtSince.UTC())

		require.NoError(t, d.Add(Letter{ID: "sure", Operation: "op", Key: "sure", DoubtSince: far}))
		l, _ = d.Get("sure")
		require.Zero(t, l.DoubtSince, "there is no doubt")
		require.ErrorContains(t, d.Add(Letter{Operation: "op", InDoubt: true, DoubtSince: time.Unix(1<<60, 0)}), "years")
	})
}

// The keys' clock may be another one than this machine's.
func TestImportedDoubt_GoesByTheClockOfTheKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Idempotency: IdempotencyConfig{Store: aheadStore{NewMemoryStore(0)}}})
		require.NoError(t, s.DLQ.Import(bytes.NewReader(doubtOf(t))))
		require.Equal(t, time.Now().Add(time.Minute), dlqOnly(t, s.DLQ).DoubtSince)
		closeStack(t, s)
	})
}

// aheadStore has a clock of its own.
type aheadStore struct{ *MemoryStore }

func (aheadStore) Now() time.Time { return time.Now().Add(time.Minute) }

// A queue that is loaded keeps what it knew, also where two letters of one key become one.
func TestImportedDoubt_SurvivesARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, order := range [][]string{{"a", "b"}, {"b", "a"}} {
			s := newShelf()
			at := time.Now()
			for i, l := range []Letter{{ID: order[0], InDoubt: true, DoubtSince: at}, {ID: order[1]}, {ID: "sure", Key: "sure", DoubtSince: at}} {
				l.Operation, l.Key = "op", or(l.Key, "k")
				l.First, l.Last, l.Next = at, at.Add(time.Duration(i)), at
				s.letters[l.ID] = l
			}
			d := mustDLQ(t, DLQConfig{Store: s.open()})
			l, _ := d.Get(order[1])
			require.True(t, l.InDoubt)
			require.Equal(t, at, l.DoubtSince)
			l, _ = d.Get("sure")
			require.Zero(t, l.DoubtSince)
		}
	})
}

// A file from before there was the field is read as ever, and one with it keeps it.
func TestImportedDoubt_InTheFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old := inDoubtFile(t)
		require.NotContains(t, string(old), "doubt_since")
		d := mustDLQ(t, DLQConfig{})
		require.NoError(t, d.Import(bytes.NewReader(old)))
		lines := bytes.Split(dlqExport(t, d), []byte("\n"))
		i := slices.IndexFunc(lines, func(line []byte) bool { return bytes.Contains(line, []byte(`"there"`)) })
		var line map[string]any
		require.NoError(t, json.Unmarshal(lines[i], &line))
		require.Equal(t, time.Now().UTC().Format(time.RFC3339Nano), line["doubt_since"])
	})
}

func TestDLQ_WhatWasTriedEnoughIsNotSentAfterItsDoubt(t *testing.T) {
	for attempts, want := range map[int]RedriveStatus{-1: RedriveDone, 3: RedriveDone, 2: RedriveParked} {
		d := mustDLQ(t, DLQConfig{Attempts: attempts})
		w := &dlqWorld{answer: dlqStatus(200)}
		_ = d.Wrap(w)
		d.reconcile = func(context.Context, string) keyNews { return keyNews{verdict: keyNotApplied} }
		require.NoError(t, d.Add(Letter{Method: "POST", URL: "http://h/", InDoubt: true, Attempts: 2, Next: time.Now()}))
		require.Equal(t, want, d.Redrive(t.Context()).Status)
		if want == RedriveParked {
			l := dlqOnly(t, d)
			require.Equal(t, []any{"attempts", false}, []any{l.ParkedReason, l.InDoubt})
		}
	}
}

// A write that may be repeated is in doubt when somebody below says so.
func TestDLQ_AnErrorThatSaysInDoubtPutsItsLetterInDoubt(t *testing.T) {
	d := mustDLQ(t, DLQConfig{})
	rt := d.Wrap(&dlqWorld{answer: dlqError(&Error{Layer: "inner", Err: ErrInDoubt})})
	_, err := dlqCall(t.Context(), rt, http.MethodPut, "k")
	require.ErrorIs(t, err, ErrParked)
	require.True(t, dlqOnly(t, d).InDoubt)
}

// Work that must happen once may have happened when its answer does not decode. Whoever requeues it has it looked up first.
func TestD05_OnceWorkWhoseAnswerDoesNotDecodeIsInDoubt(t *testing.T) {
	var v int
	for _, undecodable := range []error{json.Unmarshal([]byte("<html>"), &v), json.Unmarshal([]byte(`"text"`), &v)} {
		d := mustDLQ(t, DLQConfig{})
		did := 0
		d.Handle("op", func(context.Context, Letter) error { did++; return fmt.Errorf("answer: %w", undecodable) })
		require.NoError(t, d.Add(Letter{ID: "id", Operation: "op", Key: "k", Call: Call{Effect: EffectOnce}, Next: time.Now()}))
		require.Equal(t, RedriveParked, d.Redrive(t.Context()).Status)
		l := dlqOnly(t, d)
		require.Equal(t, []any{"poison", true}, []any{l.ParkedReason, l.InDoubt})
		require.NoError(t, d.Requeue("id"))
		require.Equal(t, RedriveInDoubt, d.Redrive(t.Context()).Status)
		require.Equal(t, 1, did)
	}
}

// Of two words of a function the one that keeps from doing it twice counts; that it can never succeed is the user's to say.
func TestD05_InDoubtWinsOverPoison(t *testing.T) {
	var v int
	undecodable := json.Unmarshal([]byte("<html>"), &v)
	for name, c := range map[string]struct {
		err     error
		effect  Effect
		want    RedriveStatus
		inDoubt bool
	}{
		"both":                      {errors.Join(ErrPoison, ErrInDoubt), EffectOnce, RedriveInDoubt, true},
		"poison":                    {ErrPoison, EffectOnce, RedriveParked, false},
		"poison, for what it reads": {errors.Join(ErrPoison, undecodable), EffectOnce, RedriveParked, false},
		"no key":                    {ErrBadKey, EffectOnce, RedriveParked, false},
		"may be repeated":           {undecodable, EffectIdempotent, RedriveParked, false},
		"nothing is known of it":    {undecodable, EffectUnset, RedriveParked, false},
	} {
		t.Run(name, func(t *testing.T) {
			d := mustDLQ(t, DLQConfig{})
			d.Handle("op", func(context.Context, Letter) error { return c.err })
			require.NoError(t, d.Add(Letter{Operation: "op", Call: Call{Effect: c.effect}, Next: time.Now()}))
			require.Equal(t, c.want, d.Redrive(t.Context()).Status)
			require.Equal(t, c.inDoubt, dlqOnly(t, d).InDoubt)
		})
	}
}

// A doubt that an import brings while a redrive is under way stays, also where that one is refused for good.
func TestD16_ADoubtOutlivesTheRefusalOfARedrive(t *testing.T) {
	d := mustDLQ(t, DLQConfig{})
	_ = d.Wrap(&dlqWorld{answer: func(n int, req *http.Request) (*http.Response, error) {
		require.NoError(t, d.Import(fileOf(t, Letter{ID: "there", Key: "k", InDoubt: true})))
		return dlqStatus(422)(n, req)
	}})
	require.NoError(t, d.Add(Letter{Method: http.MethodPost, URL: "http://h/", Key: "k", Next: time.Now()}))
	require.Equal(t, RedriveParked, d.Redrive(t.Context()).Status)
	require.True(t, dlqOnly(t, d).InDoubt)
}

// Where a redirect leads nobody has followed, and nobody knows what was done before it was given: a letter that must be sent
// once is in doubt, any other gets the same answer again.
func TestDLQ_ARedirectLeavesALetterThatIsSentOnceInDoubt(t *testing.T) {
	for effect, want := range map[Effect]letterVerdict{EffectOnce: letterDoubt, EffectIdempotent: letterPoison} {
		a := answer{resp: reply(http.StatusTemporaryRedirect, "", "Location", "/elsewhere")}
		verdict, _ := judge(t.Context(), &Letter{Method: http.MethodPost, Call: Call{Effect: effect}}, a, false)
		require.Equal(t, want, verdict)
	}
}
