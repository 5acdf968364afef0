package resilience

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"sort"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// I1 to I7 are checked in every reachable state by TestKeyState_EveryInterleavingKeepsTheInvariants, I9 and I10 along every
// step; I14 has tests of its own in idempotency_test.go. The others follow.

// I8: requests written for a key ≤ 1 + proofs that one had no effect; at most one for each epoch.
func TestInvariantI8_SendsAreBoundedByProofs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for seed := range uint64(50) {
			rng := rand.New(rand.NewPCG(seed, 0))
			proofs, sends := 0, 0
			p := &phone{before: func(*http.Request, int) (*http.Response, error) {
				sends++
				switch rng.IntN(5) {
				case 0:
					return nil, io.EOF
				case 1:
					proofs++
					return nil, MarkNotSent(io.EOF)
				case 2:
					proofs++
					return reply(429, "", "Retry-After", "1"), nil
				case 3:
					proofs++
					return reply(400, ""), nil
				}
				return nil, nil
			}}
			i := newIdem(t, IdempotencyConfig{})
			rt := Chain(i.Claim(), newRe(t, RetryConfig{Ratio: -1}), i.Intent()).Wrap(p)
			for range 6 {
				_, _ = dial(t.Context(), t, rt, "k", dialBody)
			}
			rec, err := i.Lookup(t.Context(), "k")
			require.NoError(t, err)
			require.LessOrEqual(t, sends, 1+proofs)
			require.LessOrEqual(t, rec.Doubts, 1)
		}
	})
}

// I9: a token that is not the holder's changes nothing; the epoch only grows.
func TestInvariantI9_EpochOnlyGrowsAndStaleTokensAreInert(t *testing.T) {
	i := newIdem(t, IdempotencyConfig{})
	p := &phone{before: func(_ *http.Request, n int) (*http.Response, error) {
		if n < 4 {
			return reply(400, ""), nil
		}
		return nil, nil
	}}
	var last uint64
	for range 4 {
		_, err := dial(t.Context(), t, i.Wrap(p), "k", dialBody)
		require.NoError(t, err)
		rec, _ := i.Lookup(t.Context(), "k")
		require.Greater(t, rec.Epoch, last)
		last = rec.Epoch
	}
	for _, e := range []keyEvent{
		{kind: eventRelease, token: "stale"}, {kind: eventIntend, token: "stale"},
		{kind: eventAnswer, token: "stale", answer: answerReceipt{kind: answerUnknown, epoch: last}},
		{kind: eventAnswer, token: "stale", answer: answerReceipt{kind: answerRefused, epoch: last}},
	} {
		_, err := i.apply(t.Context(), i.ID("k"), e)
		require.ErrorIs(t, err, errConflict)
	}
	require.Equal(t, KeyConfirmed, stateOf(t, i, "k"))
}

// I10: the id of what was created does not change, and confirmed stays confirmed until its retention is over.
func TestInvariantI10_AConfirmedCallKeepsItsID(t *testing.T) {
	i := newIdem(t, IdempotencyConfig{Reconcile: &idReader{}})
	_, err := dial(t.Context(), t, i.Wrap(&phone{}), "k", dialBody)
	require.NoError(t, err)
	rec, _ := i.Lookup(t.Context(), "k")
	require.Equal(t, "call_1", rec.CallID)
	require.NoError(t, i.Observe(t.Context(), Evidence{ID: i.ID("k"), Calls: []Found{{ID: "call_1"}}}))
	require.Error(t, i.Resolve(t.Context(), "k", Resolution{State: KeyNotApplied, Reason: "no"}))
	again, _ := i.Lookup(t.Context(), "k")
	require.Equal(t, rec.CallID, again.CallID)
	require.Equal(t, KeyConfirmed, again.State)
	require.NoError(t, i.Observe(t.Context(), Evidence{ID: i.ID("k"), Calls: []Found{{ID: "call_2"}}}))
	require.Equal(t, KeyDisputed, stateOf(t, i, "k"), "another id is a dispute, not a change")
}

// idReader reads call ids out of answers.
type idReader struct{ finder }

func (*idReader) CallID(_ string, b []byte) (string, bool) {
	_, id, ok := strings.Cut(string(b), `"call_id":"`)
	id, _, _ = strings.Cut(id, `"`)
	return id, ok
}

func (*idReader) HonorsKey(string) time.Duration { return 55 * time.Minute }

func TestIdempotency_ASuccessWithoutAnIDIsInDoubt(t *testing.T) {
	i := newIdem(t, IdempotencyConfig{Reconcile: &idReader{}})
	p := &phone{answer: func(*http.Request, int) (*http.Response, error) { return reply(201, "<html>"), nil }}
	_, err := dial(t.Context(), t, i.Wrap(p), "k", dialBody)
	require.ErrorIs(t, err, ErrInDoubt)
	rec, _ := i.Lookup(t.Context(), "k")
	require.True(t, rec.Accepted)
}

// I11: a mismatch never sends and never returns another request's result, in any state but free and not applied.
func TestInvariantI11_AMismatchNeverSends(t *testing.T) {
	other := claimRequest{fingerprint: "other", lease: modelLease}
	for _, s := range []KeyState{KeyClaimed, KeySending, KeyConfirmed, KeyInDoubt, KeyDisputed} {
		r := Record{ID: "k", State: s, Fingerprint: "f", Lease: modelStart, Expires: modelLate.Add(time.Hour)}
		after, err := transition(r, keyEvent{kind: eventClaim, now: modelLate, token: "t", claim: other})
		require.ErrorIs(t, err, ErrKeyReused, s)
		require.Equal(t, r, after)
	}
	for _, s := range []KeyState{KeyFree, KeyNotApplied} {
		_, err := transition(Record{ID: "k", State: s, Fingerprint: "f", Expires: modelLate.Add(time.Hour)}, keyEvent{kind: eventClaim, now: modelLate, token: "t", claim: other})
		require.NoError(t, err, s)
	}
}

// I12: what is not finished is never swept.
func TestInvariantI12_NothingUnfinishedIsSwept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := NewMemoryStore(0)
		for n, s := range []KeyState{KeyClaimed, KeySending, KeyInDoubt, KeyDisputed, KeyConfirmed, KeyNotApplied} {
			_, ok, err := store.CompareAndSwap(t.Context(), 0, Record{ID: fmt.Sprint("id", n), State: s, Expires: time.Now()})
			require.NoError(t, err)
			require.True(t, ok)
		}
		time.Sleep(10000 * time.Hour)
		n, err := store.Sweep(t.Context(), 100, func(string) bool { return false })
		require.NoError(t, err)
		require.Equal(t, 2, n)
		require.Equal(t, 4, store.Len())
	})
}

// I13: every call ends as exactly one of result, replay and typed error; in doubt is never nil and never "not sent".
func TestInvariantI13_EveryCallEndsInOneWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(7, 7))
		s := newStack(t, Config{Retry: RetryConfig{Base: time.Millisecond}})
		var mu sync.Mutex
		rt := s.Wrap(RoundTripFunc(func(req *http.Request) (*http.Response, error) {
			mu.Lock()
			dice := rng.IntN(8)
			mu.Unlock()
			switch dice {
			case 0:
				return nil, io.EOF
			case 1:
				return nil, MarkNotSent(io.EOF)
			case 2:
				return reply(500, ""), nil
			case 3:
				return reply(422, ""), nil
			case 4:
				<-req.Context().Done()
				return nil, req.Context().Err()
			case 5:
				return reply(429, ""), nil
			}
			return reply(201, "{}"), nil
		}))
		var wg sync.WaitGroup
		for n := range 300 {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(n%50)*time.Second+time.Millisecond)
				defer cancel()
				resp, err := dial(ctx, t, rt, fmt.Sprint("k", n%100), dialBody)
				if (resp == nil) == (err == nil) {
					t.Errorf("both or neither: %v %v", resp, err)
				}
				if NotSent(err) && InDoubt(err) {
					t.Errorf("not sent and in doubt: %v", err)
				}
				if errors.Is(err, ErrInDoubt) {
					var e *Error
					if !errors.As(err, &e) || e.Key == "" {
						t.Errorf("in doubt without a key: %v", err)
					}
				}
			})
		}
		wg.Wait()
		require.NoError(t, s.Close(context.Background()))
	})
}

func TestI20_ClockJumpsDoNotMoveRecords(t *testing.T) {
	// Every instant that decides in memory carries a monotonic reading, which a jump of the wall clock does not touch. In a
	// bubble times have none, so this test runs outside of one.
	i := newIdem(t, IdempotencyConfig{})
	_, err := dial(t.Context(), t, i.Wrap(&phone{}), "k", dialBody)
	require.NoError(t, err)
	rec, _ := i.Lookup(t.Context(), "k")
	for name, at := range map[string]time.Time{"claimed": rec.Claimed, "settled": rec.Settled, "expires": rec.Expires} {
		require.Contains(t, at.String(), "m=", "%s is monotonic", name)
	}
}

func TestIdempotency_TrustedServerKeysLetACallInDoubtGoAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIdem(t, IdempotencyConfig{Reconcile: &idReader{}, ServerKeys: ServerKeysTrust})
		p := &phone{answer: lostAnswer}
		rt := i.Wrap(p)
		_, err := dial(t.Context(), t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		time.Sleep(54 * time.Minute)
		p.answer, p.before = nil, func(*http.Request, int) (*http.Response, error) { return reply(400, ""), nil }
		_, err = dial(t.Context(), t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt, "the refusal of a re-send proves nothing about the first send")
		p.before = nil
		resp, err := dial(t.Context(), t, rt, "k", dialBody)
		require.NoError(t, err)
		require.Equal(t, 201, resp.StatusCode)
		require.EqualValues(t, 2, i.Stats().Resent)
		require.Equal(t, KeyConfirmed, stateOf(t, i, "k"))

		p.answer = lostAnswer
		_, err = dial(t.Context(), t, rt, "late", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		sends := p.sends
		time.Sleep(55 * time.Minute)
		_, err = dial(t.Context(), t, rt, "late", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		require.Equal(t, sends, p.sends, "the hour is nearly over")
	})
}

func TestStack_TrustedServerKeysRedriveLettersInDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{Idempotency: IdempotencyConfig{Reconcile: &idReader{}, ServerKeys: ServerKeysTrust}})
		p := &phone{answer: lostAnswer}
		_, err := dial(t.Context(), t, s.Wrap(p), "k", dialBody)
		require.ErrorIs(t, err, ErrParked)
		require.ErrorIs(t, err, ErrInDoubt)
		p.answer = nil
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute)
		defer cancel()
		require.NoError(t, s.Run(ctx))
		require.Equal(t, KeyConfirmed, stateOf(t, s.Idempotency, "k"))
		require.Zero(t, s.DLQ.Len())
		require.Equal(t, 2, p.sends)
		closeStack(t, s)
	})
}

func TestIdempotency_AbsenceIsAssumedOnlyByChoice(t *testing.T) {
	_, err := NewIdempotency(IdempotencyConfig{AssumeAbsentAfter: time.Minute, ServerKeys: 9, TTL: -3})
	require.ErrorContains(t, err, "Idempotency.AssumeAbsentAfter")
	require.ErrorContains(t, err, "Idempotency.ServerKeys")
	require.ErrorContains(t, err, "Idempotency.TTL")
	synctest.Test(t, func(t *testing.T) {
		f := &finder{}
		i := newIdem(t, IdempotencyConfig{Reconcile: f, AssumeAbsentAfter: 20 * time.Minute})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go i.run(ctx)
		p := &phone{answer: lostAnswer}
		rt := i.Wrap(p)
		_, err := dial(t.Context(), t, rt, "k", dialBody)
		require.ErrorIs(t, err, ErrInDoubt)
		time.Sleep(19 * time.Minute)
		require.Equal(t, KeyInDoubt, stateOf(t, i, "k"))
		time.Sleep(15 * time.Minute) // the attempt's own lease counts, too
		require.Equal(t, KeyNotApplied, stateOf(t, i, "k"))
		require.GreaterOrEqual(t, f.asked, minLookups)
		require.EqualValues(t, 1, i.Stats().Assumed)
		p.answer = nil
		_, err = dial(t.Context(), t, rt, "k", dialBody)
		require.NoError(t, err, "at least once: it rang twice")
		require.Equal(t, 2, p.rang())
	})
}

func TestStack_ALetterPinsItsKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStack(t, Config{DLQ: DLQConfig{MaxAge: -1}})
		p := &phone{answer: lostAnswer}
		_, err := dial(t.Context(), t, s.Wrap(p), "k", dialBody)
		require.ErrorIs(t, err, ErrParked)
		require.NoError(t, s.Idempotency.Resolve(t.Context(), "k", Resolution{State: KeyNotApplied, Reason: "checked"}))
		require.Error(t, s.Idempotency.Forget(t.Context(), "k"), "a letter refers to it")
		time.Sleep(30 * time.Hour)
		s.Idempotency.tend(t.Context())
		require.Equal(t, KeyNotApplied, stateOf(t, s.Idempotency, "k"))
		closeStack(t, s)
	})
}

// The diagram in the documentation is what the transition function does.
func TestKeyState_TheDocumentationShowsTheTransitions(t *testing.T) {
	edges := map[string]bool{}
	for from := KeyFree; from <= KeyDisputed; from++ {
		for _, r := range sampleRecords(from) {
			for _, e := range sampleEvents() {
				if next, err := transition(r, e); err == nil {
					edges[fmt.Sprintf("%v → %v: %v", from, next.State, e.kind)] = true
				}
			}
		}
	}
	var want []string
	for e := range edges {
		want = append(want, e)
	}
	sort.Strings(want)
	text, err := os.ReadFile("doc.go")
	require.NoError(t, err)
	var drawn []string
	for _, line := range strings.Split(string(text), "\n") {
		if line = strings.TrimSpace(strings.TrimPrefix(line, "//")); strings.Contains(line, " → ") && strings.Contains(line, ": ") {
			line, _, _ = strings.Cut(line, "  (") // the reason
			drawn = append(drawn, line)
		}
	}
	sort.Strings(drawn)
	require.Equal(t, want, drawn, "doc.go should say:\n//\t%s", strings.Join(want, "\n//\t"))
}

func sampleRecords(s KeyState) []Record {
	base := Record{ID: "k", State: s, Token: "t", Epoch: 2, Fingerprint: "f", Lease: modelLease, Expires: modelLate, Doubts: 1, Sends: 1}
	fresh, twice, known := base, base, base
	fresh.Sends, fresh.Doubts = 0, 0
	twice.Doubts = 2
	known.CallID, known.Body = "a", []byte("{}")
	return []Record{base, fresh, twice, known}
}

func sampleEvents() []keyEvent {
	claim := claimRequest{fingerprint: "f", lease: modelLease}
	var out []keyEvent
	for _, now := range []time.Time{modelStart, modelLate} {
		out = append(out,
			keyEvent{kind: eventClaim, now: now, token: "u", claim: claim},
			keyEvent{kind: eventExpire, now: now}, keyEvent{kind: eventForget, now: now})
	}
	for _, kind := range []keyEventKind{eventRelease, eventIntend, eventResend, eventLooked, eventAbsent} {
		out = append(out, keyEvent{kind: kind, now: modelStart, token: "t"})
	}
	for _, kind := range []answerKind{answerDone, answerRefused, answerUnknown} {
		for _, epoch := range []uint64{1, 2} {
			out = append(out, keyEvent{kind: eventAnswer, now: modelStart, token: "t", answer: answerReceipt{kind: kind, epoch: epoch, callID: "b", body: []byte("{}")}})
		}
	}
	for _, calls := range [][]Found{{{ID: "a"}}, {{ID: "b"}}, {{ID: "a"}, {ID: "b"}}} {
		out = append(out, keyEvent{kind: eventEvidence, now: modelStart, evidence: Evidence{Calls: calls}})
	}
	for _, s := range []KeyState{KeyConfirmed, KeyNotApplied} {
		out = append(out, keyEvent{kind: eventResolve, now: modelStart, verdict: Resolution{State: s}})
	}
	return out
}
