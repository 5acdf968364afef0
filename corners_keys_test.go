package resilience

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Corners of keys and letters: each was found broken or unguarded once.

// The outcome that the store would not take is lost when the lease of the send is over.
type answerRefusingStore struct {
	*MemoryStore
	failing atomic.Int64 // so many writes fail
}

func (s *answerRefusingStore) CompareAndSwap(ctx context.Context, old uint64, r Record) (uint64, bool, error) {
	if r.State == KeyConfirmed && s.failing.Add(-1) >= 0 {
		return 0, false, errBroken
	}
	return s.MemoryStore.CompareAndSwap(ctx, old, r)
}

func TestCorner_AnUnwrittenAnswerOutlastsTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &phone{}
		store := &answerRefusingStore{MemoryStore: NewMemoryStore(0)}
		store.failing.Store(2) // the answer, and the first time that Run repeats it
		i := newIdem(t, IdempotencyConfig{Store: store})
		rt := i.Wrap(p)
		_, err := dial(t.Context(), t, rt, "k", dialBody)
		require.NoError(t, err)
		time.Sleep(time.Hour) // the store is down for longer than the lease
		i.tend(t.Context())
		i.tend(t.Context())
		require.Equal(t, KeyConfirmed, stateOf(t, i, "k"), "its answer is known")
		again, err := dial(t.Context(), t, rt, "k", dialBody)
		require.NoError(t, err)
		require.True(t, Replayed(again))
	})
}

// Absence is assumed though nobody has looked for a long time.
type lateIndex struct {
	finder
	visible time.Time
	last    time.Time
}

func (f *lateIndex) Find(context.Context, Record) (Evidence, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last = time.Now()
	if time.Now().Before(f.visible) {
		return Evidence{}, nil
	}
	return Evidence{Calls: []Found{{ID: "call_1"}}}, nil
}

func TestCorner_AbsenceIsAssumedAfterALastLook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &lateIndex{visible: time.Now().Add(5*time.Minute + 10*time.Second)} // it rang for five minutes before it was listed
		s := newStack(t, Config{DLQ: DLQConfig{Off: true}, Idempotency: IdempotencyConfig{Reconcile: f, AssumeAbsentAfter: 10 * time.Minute}})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		p := &phone{answer: lostAnswer}
		_, err := dial(t.Context(), t, s.Wrap(p), "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		time.Sleep(12 * time.Minute)
		f.mu.Lock()
		t.Log("last look", time.Since(f.last), "ago; state", stateOf(t, s.Idempotency, "k"))
		f.mu.Unlock()
		cancel()
		require.NoError(t, <-done)
		state := stateOf(t, s.Idempotency, "k")
		closeStack(t, s)
		require.NotEqual(t, KeyNotApplied, state, "a look would have found it")
	})
}

// The last look finds the call, and the store does not take that.
func TestCorner_AbsenceIsNotAssumedOfWhatWasFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &lateIndex{visible: time.Now().Add(5*time.Minute + 10*time.Second)}
		store := &answerRefusingStore{MemoryStore: NewMemoryStore(0)}
		store.failing.Store(1)
		s := newStack(t, Config{
			DLQ:         DLQConfig{Off: true},
			Idempotency: IdempotencyConfig{Store: store, Reconcile: f, AssumeAbsentAfter: 10 * time.Minute},
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		_, err := dial(t.Context(), t, s.Wrap(&phone{answer: lostAnswer}), "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		time.Sleep(time.Hour)
		cancel()
		require.NoError(t, <-done)
		require.Negative(t, store.failing.Load(), "it was refused once, and then taken")
		require.Equal(t, KeyConfirmed, stateOf(t, s.Idempotency, "k"))
		closeStack(t, s)
	})
}

// A look-up that hangs stops all tending.
func TestCorner_AHangingLookUpDoesNotStopTheRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &hangingFinder{}
		i := newIdem(t, IdempotencyConfig{Reconcile: f})
		f.hung = i.ID("k0")
		rt := i.Wrap(&phone{answer: lostAnswer})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- i.run(ctx) }()
		_, err := dial(t.Context(), t, rt, "k0", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		time.Sleep(5 * time.Second) // its look-up hangs
		_, err = dial(t.Context(), t, rt, "k1", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		time.Sleep(time.Hour)
		state := stateOf(t, i, "k1")
		cancel()
		require.NoError(t, <-done)
		require.Equal(t, KeyConfirmed, state)
	})
}

// A third caller gets ErrInFlight in the same process.
func TestCorner_TheThirdWaitsForTheFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIdem(t, IdempotencyConfig{})
		release := make(chan struct{})
		var n atomic.Int64
		between := LayerFunc(func(next http.RoundTripper) http.RoundTripper {
			return RoundTripFunc(func(req *http.Request) (*http.Response, error) {
				if n.Add(1) == 1 {
					<-release // a layer that is slow to hear of the end
					return nil, errors.New("gone")
				}
				return next.RoundTrip(req)
			})
		})
		rt := Chain(i.Claim(), between, i.Intent()).Wrap(&phone{})
		for range 2 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			_, err := dial(ctx, t, rt, "k", dialBody)
			cancel()
			require.ErrorIs(t, err, context.DeadlineExceeded)
			synctest.Wait()
		}
		time.AfterFunc(time.Second, func() { close(release) })
		_, err := dial(t.Context(), t, rt, "k", dialBody)
		if err != nil {
			time.Sleep(2 * time.Second)
		}
		require.NoError(t, err)
	})
}

// hungCall is a stack with a call under key "k" that hangs on the wire, of which evidence from elsewhere says that it was made.
func hungCall(t *testing.T) (s *Stack, rt http.RoundTripper, p *phone, letGo func()) {
	s = newStack(t, Config{})
	release := make(chan struct{})
	p = &phone{before: func(*http.Request, int) (*http.Response, error) { <-release; return nil, nil }}
	rt = s.Wrap(p)
	go func() { _, _ = dial(t.Context(), t, rt, "k", dialBody) }()
	synctest.Wait()
	id := s.Idempotency.ID("k")
	require.NoError(t, s.Idempotency.Observe(t.Context(), Evidence{ID: id, Calls: []Found{{ID: "call_1"}}}))
	synctest.Wait()
	return s, rt, p, func() { close(release) }
}

func TestCorner_AKnownOutcomeDoesNotWaitForTheWire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, rt, p, letGo := hungCall(t)
		asked := time.Now()
		resp, err := dial(t.Context(), t, rt, "k", dialBody)
		took := time.Since(asked)
		letGo()
		closeStack(t, s)
		require.NoError(t, err)
		require.Equal(t, 200, resp.StatusCode)
		require.Zero(t, took)
		require.Equal(t, 1, p.rang())
	})
}

func TestCorner_CloseCountsACallWhoseOutcomeCameFromElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, rt, _, letGo := hungCall(t)
		_, _ = dial(t.Context(), t, rt, "k", dialBody)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := s.Close(ctx)
		letGo()
		require.ErrorContains(t, err, "1 calls were still under way, 0 of them are in doubt now")
	})
}

// Header names that are not in canonical form.
func TestCorner_CredentialsInLowerCase(t *testing.T) {
	_, s, rt := newShop(t, FallbackConfig{})
	a := readOf(t.Context(), t, callURL)
	a.Header["authorization"] = []string{"Bearer A"}
	_, err := rt.RoundTrip(a)
	require.NoError(t, err)
	s.fails(errDown)
	b := readOf(t.Context(), t, callURL)
	b.Header["authorization"] = []string{"Bearer B"}
	_, err = rt.RoundTrip(b)
	require.ErrorIs(t, err, errDown, "B is served what belongs to A")
}

// FF: evidence about an imported doubt whose key is not known here.
func TestCorner_EvidenceEndsAnImportedDoubtOfAFreeKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := doubtOf(t)
		f := &finder{found: []Found{{ID: "call_1"}}}
		r := receive(t, Config{Idempotency: IdempotencyConfig{Reconcile: f}})
		r.take(file)
		time.Sleep(30 * time.Minute)
		asked := f.asked
		err := r.Idempotency.Observe(t.Context(), Evidence{ID: r.Idempotency.ID("k"), Calls: []Found{{ID: "call_1"}}})
		left := r.DLQ.Len()
		r.stop()
		require.NoError(t, err)
		t.Log("asked", asked)
		require.Zero(t, left)
	})
}

func TestCorner_TwoCallsForAnImportedDoubtAreADispute(t *testing.T) {
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

// Bodies that are too large to be held.
func TestCorner_LargeBodiesThatDiffer(t *testing.T) {
	s := newStack(t, Config{Timeout: TimeoutConfig{MaxRequestBytes: 1024}})
	p := &phone{}
	rt := s.Wrap(p)
	long := strings.Repeat("x", 10<<10)
	_, err := dial(t.Context(), t, rt, "k", long+"A")
	require.NoError(t, err)
	resp, err := dial(t.Context(), t, rt, "k", long+"B")
	t.Log(resp, err)
	closeStack(t, s)
	require.ErrorIs(t, err, ErrKeyReused, "it is another request")
}

// Who joins a redrive that fails.
func TestCorner_WhoJoinsARedriveIsToldWhoseItIs(t *testing.T) {
	for name, out := range map[string]struct {
		resp func() *http.Response
		err  error
	}{
		"not sent": {err: errDLQRefused},
		"429":      {resp: func() *http.Response { return reply(429, "{}") }},
		"401":      {resp: func() *http.Response { return reply(401, "{}") }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStack(t, Config{Retry: RetryConfig{Off: true}})
				answer := func() (*http.Response, error) { return nil, errDLQRefused }
				rt := s.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) { return answer() }))
				_, err := dial(t.Context(), t, rt, "k", dialBody)
				require.ErrorIs(t, err, ErrParked)
				release := make(chan struct{})
				answer = func() (*http.Response, error) {
					<-release
					if out.resp != nil {
						return out.resp(), nil
					}
					return nil, out.err
				}
				time.Sleep(2 * time.Second)
				result := make(chan RedriveResult)
				go func() { result <- s.DLQ.Redrive(t.Context()) }()
				synctest.Wait()
				time.AfterFunc(time.Second, func() { close(release) })
				resp, err := dial(t.Context(), t, rt, "k", dialBody)
				r := <-result
				t.Log(resp, err, NotSent(err), r.Status, s.DLQ.Len())
				l := dlqOnly(t, s.DLQ)
				closeStack(t, s)
				require.Equal(t, LetterWaiting, l.State(), "the queue will send it")
				require.ErrorIs(t, err, ErrParked)
				require.False(t, NotSent(err))
			})
		})
	}
}

// A redrive that joins a call which meets its letter's lease.
type slowWrites struct{ *MemoryStore }

func (s slowWrites) CompareAndSwap(ctx context.Context, old uint64, r Record) (uint64, bool, error) {
	time.Sleep(10 * time.Millisecond)
	return s.MemoryStore.CompareAndSwap(ctx, old, r)
}

func TestCorner_ARedriveThatMeetsACall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{
			Idempotency: IdempotencyConfig{Store: slowWrites{NewMemoryStore(0)}},
			DLQ: DLQConfig{Authorize: func(context.Context, Letter, *http.Request) error {
				time.Sleep(100 * time.Millisecond)
				return nil
			}},
		})
		var down atomic.Bool
		down.Store(true)
		p := &phone{before: func(*http.Request, int) (*http.Response, error) {
			if down.Load() {
				return nil, errDLQRefused
			}
			return nil, nil
		}}
		rt := s.Wrap(p)
		_, err := dial(t.Context(), t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrParked)
		down.Store(false)
		time.Sleep(5 * time.Second)
		result := make(chan RedriveResult)
		go func() { result <- s.DLQ.Redrive(t.Context()) }()
		time.Sleep(95 * time.Millisecond)
		_, err = dial(t.Context(), t, rt, "k", dialBody)
		r := <-result
		t.Log("caller:", err)
		t.Log("redrive:", r.Status, r.Err)
		l := s.DLQ.List(LetterFilter{})
		for _, l := range l {
			t.Log(l.State(), l.Attempts, l.Cause)
		}
		closeStack(t, s)
		for _, l := range l {
			require.False(t, l.InDoubt, "nothing was sent")
		}
	})
}

// Whoever believes NotSent rings twice.
func TestCorner_NotSentIsTrueOfAJoinedRedrive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Retry: RetryConfig{Off: true}})
		var mu sync.Mutex
		rang, answer := 0, func() (*http.Response, error) { return nil, errDLQRefused }
		set := func(f func() (*http.Response, error)) { mu.Lock(); defer mu.Unlock(); answer = f }
		rt := s.Wrap(RoundTripFunc(func(*http.Request) (*http.Response, error) {
			mu.Lock()
			f := answer
			mu.Unlock()
			return f()
		}))
		_, err := dial(t.Context(), t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrParked)
		set(func() (*http.Response, error) { time.Sleep(time.Second); return nil, errDLQRefused })
		time.Sleep(2 * time.Second)
		go s.DLQ.Redrive(context.Background())
		synctest.Wait()
		_, err = dial(t.Context(), t, rt, "k", dialBody) // joins the redrive
		set(func() (*http.Response, error) { rang++; return reply(201, `{"call_id":"c"}`), nil })
		if NotSent(err) { // "provably nothing happened: safe to try again", and nobody said that a letter owns it
			_, err = dial(t.Context(), t, rt, "another key", dialBody)
			require.NoError(t, err)
		}
		time.Sleep(10 * time.Minute)
		s.DLQ.Redrive(context.Background())
		closeStack(t, s)
		require.Equal(t, 1, rang)
	})
}

// A letter falls due while the call that made it still gives its key back, which takes 10 ms.
func TestCorner_ALetterThatIsDueAtOnceIsNotInDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{
			Idempotency: IdempotencyConfig{Store: slowWrites{NewMemoryStore(0)}},
			DLQ:         DLQConfig{Base: time.Millisecond}, // the default's random delay may be as short
			Bulkhead:    BulkheadConfig{Total: 1, Queue: -1},
		})
		p := &phone{}
		rt := s.Wrap(p)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		release, err := s.Bulkhead.Acquire(t.Context(), PriorityCritical)
		require.NoError(t, err)
		_, err = dial(t.Context(), t, rt, "k", dialBody) // no slot, no queue: nothing is sent
		require.ErrorIs(t, err, ErrParked)
		require.ErrorIs(t, err, ErrFull)
		require.NotErrorIs(t, err, ErrInDoubt)
		release()
		time.Sleep(30 * time.Minute)
		letters := s.DLQ.List(LetterFilter{})
		for _, l := range letters {
			t.Log(l.State(), l.Attempts, l.Redrives, l.Cause)
		}
		cancel()
		require.NoError(t, <-done)
		closeStack(t, s)
		require.Empty(t, letters, "nothing was ever sent for it, and the other side is back")
		require.Equal(t, 1, p.rang())
	})
}

// The look-ups of a letter use up the plan of the key.
func TestCorner_AKeyInDoubtIsLookedUpForADay(t *testing.T) {
	for name, off := range map[string]bool{"without letters": true, "with a letter": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &lateIndex{visible: time.Now().Add(6 * time.Hour)}
				s := newStack(t, Config{DLQ: DLQConfig{Off: off}, Idempotency: IdempotencyConfig{Reconcile: f}})
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- s.Run(ctx) }()
				_, err := dial(t.Context(), t, s.Wrap(&phone{answer: lostAnswer}), "k", dialBody)
				require.ErrorIs(t, err, ErrInDoubt)
				time.Sleep(2 * time.Hour)
				rec, _ := s.Idempotency.Lookup(t.Context(), "k")
				t.Log(rec.State, rec.Lookups, rec.NextLookup)
				time.Sleep(10 * time.Hour)
				state := stateOf(t, s.Idempotency, "k")
				f.mu.Lock()
				t.Log("last look", time.Since(f.last))
				f.mu.Unlock()
				cancel()
				require.NoError(t, <-done)
				closeStack(t, s)
				require.Equal(t, KeyConfirmed, state, "it was listed six hours ago")
			})
		})
	}
}

// A queue that is full by bytes.
func TestCorner_AQueueFullByBytesIsDegraded(t *testing.T) {
	s := newStack(t, Config{DLQ: DLQConfig{MaxBytes: 20 << 10}})
	var err error
	for err == nil {
		err = s.DLQ.Add(Letter{Operation: "op"})
	}
	require.ErrorIs(t, err, ErrLettersFull)
	c := s.Health().Check(t.Context()).Find("dlq")
	closeStack(t, s)
	require.Equal(t, Degraded, c.Status, "the next failed write goes back to its caller")
}

// A doubt that comes while Authorize is at work.
func TestCorner_ADoubtThatComesBeforeTheSend(t *testing.T) {
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

// The store takes no answer, and then says nothing at all.
func TestCorner_AnUnwrittenAnswerIsReplayedThoughTheStoreCannotBeRead(t *testing.T) {
	st := &cornerStore{KeyStore: NewMemoryStore(0)}
	i := newIdem(t, IdempotencyConfig{Store: st})
	rt := i.Wrap(&phone{answer: func(*http.Request, int) (*http.Response, error) {
		st.noCAS.Store(true)
		return reply(201, `{"call_id":"c"}`), nil
	}})
	_, err := dial(t.Context(), t, rt, "k", dialBody)
	require.NoError(t, err)
	st.noLoad.Store(true)
	resp, err := dial(t.Context(), t, rt, "k", dialBody)
	require.NoError(t, err, "this process answers from memory")
	require.True(t, Replayed(resp))
}

// Absence is assumed so long after the attempt is over, not after it began.
func TestCorner_AbsenceCountsFromTheEndOfTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIdem(t, IdempotencyConfig{AssumeAbsentAfter: 20 * time.Minute})
		_, err := dial(t.Context(), t, i.Wrap(&phone{answer: lostAnswer}), "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		time.Sleep(29 * time.Minute) // the lease of a call without a limit is ten
		i.tend(t.Context())
		require.Equal(t, KeyInDoubt, stateOf(t, i, "k"))
	})
}

// A key that nobody named leaves nothing behind.
func TestCorner_AnUnnamedKeyIsNotKept(t *testing.T) {
	store := NewMemoryStore(0)
	i := newIdem(t, IdempotencyConfig{Store: store})
	rt := i.Wrap(&phone{})
	for range 10 {
		_, err := dial(t.Context(), t, rt, "", dialBody)
		require.NoError(t, err)
	}
	i.active.Wait()
	require.NoError(t, i.sweep(t.Context()))
	require.Zero(t, store.Len())
}

// A sweep does not take what was claimed anew while it asked whether it may.
func TestCorner_ASweepLeavesWhatMovedOn(t *testing.T) {
	s := NewMemoryStore(0)
	v, ok, err := s.CompareAndSwap(t.Context(), 0, Record{ID: "a", State: KeyNotApplied, Expires: s.Now()})
	require.True(t, ok)
	require.NoError(t, err)
	n, err := s.Sweep(t.Context(), 10, func(string) bool {
		_, ok, err := s.CompareAndSwap(t.Context(), v, Record{ID: "a", State: KeySending})
		require.True(t, ok)
		require.NoError(t, err)
		return false
	})
	require.NoError(t, err)
	require.Zero(t, n)
	rec, err := s.Load(t.Context(), "a")
	require.NoError(t, err)
	require.Equal(t, KeySending, rec.State)
}

// Nobody else gets the key while its holder waits to try again.
func TestCorner_AKeyStaysClaimedBetweenTwoTries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &sharedStore{NewMemoryStore(0)}
		a := newStack(t, Config{Idempotency: IdempotencyConfig{Store: store}})
		b := newStack(t, Config{Idempotency: IdempotencyConfig{Store: store}})
		p := &phone{before: func(_ *http.Request, n int) (*http.Response, error) {
			if n == 1 {
				return reply(429, "{}", "Retry-After", "10"), nil
			}
			return nil, nil
		}}
		first := make(chan error, 1)
		go func() { _, err := dial(context.Background(), t, a.Wrap(p), "k", dialBody); first <- err }()
		time.Sleep(5 * time.Second)
		_, err := dial(t.Context(), t, b.Wrap(p), "k", dialBody)
		require.ErrorIs(t, err, ErrInFlight)
		require.NoError(t, <-first)
		require.Equal(t, 1, p.rang())
		closeStack(t, a)
		closeStack(t, b)
	})
}

// A write that turns out to have happened invalidates what was read before it did.
func TestCorner_ALostWriteThatIsFoundInvalidates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{DLQ: DLQConfig{Off: true}})
		down := false
		rt := s.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			if req.Method == http.MethodPost || down {
				return nil, errors.New("reset")
			}
			return said(200, "old"), nil
		}))
		ctx := WithCall(t.Context(), Call{Resource: "call/abc"})
		_, err := dial(ctx, t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		resp, err := rt.RoundTrip(readOf(ctx, t, callURL)) // it has not happened yet
		require.NoError(t, err)
		require.Equal(t, "old", wholeText(t, resp))
		require.NoError(t, s.Idempotency.Observe(t.Context(), Evidence{ID: s.Idempotency.ID("k"), Calls: []Found{{ID: "c"}}}))
		down = true
		_, err = rt.RoundTrip(readOf(ctx, t, callURL))
		require.Error(t, err, "the answer from before the write")
		closeStack(t, s)
	})
}

// A redrive that ends in the queue for a slot while a caller with its key still waits there.
func TestCorner_ARedriveThatLeavesAJoinerBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Bulkhead: BulkheadConfig{Total: 1}})
		p := &phone{}
		rt := s.Wrap(p)
		s.Breaker.ForceOpen()
		_, err := dial(t.Context(), t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrParked)
		s.Breaker.Reset()
		release, err := s.Bulkhead.Acquire(t.Context(), PriorityCritical)
		require.NoError(t, err)
		time.Sleep(5 * time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		result := make(chan RedriveResult, 1)
		go func() { result <- s.DLQ.Redrive(ctx) }()
		synctest.Wait()
		patient, cancel2 := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel2()
		_, err = dial(patient, t, rt, "k", dialBody)
		r := <-result
		t.Log("joiner:", err)
		t.Log("redrive:", r.Status, r.Err)
		release()
		for range 20 {
			time.Sleep(time.Minute)
			s.DLQ.Redrive(t.Context())
		}
		left := s.DLQ.List(LetterFilter{})
		for _, l := range left {
			t.Log(l.State(), l.Attempts, l.Cause)
		}
		closeStack(t, s)
		require.Empty(t, left, "nothing was sent, and there is a slot")
		require.Equal(t, 1, p.rang())
	})
}
