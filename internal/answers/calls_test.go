package answers

import (
	"errors"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The leader of a call that a write has overtaken goes on, and takes only its own call with it.
func TestACallThatWasOvertakenLeavesTheNewerOneAlone(t *testing.T) {
	s := newStore(-1, -1)
	join := func(leader int) (*Call[string, int], bool) { return s.Join(keyFor(1), "id", "call/a", leader) }
	first, leads := join(1)
	require.True(t, leads)
	follower, leads := join(2)
	require.False(t, leads)
	require.Same(t, first, follower)
	s.Invalidate("call/a")
	second, leads := join(3)
	require.True(t, leads, "who asks after the write must see it")
	require.Equal(t, 2, s.Calls())
	require.True(t, s.Leave(first, answerOf(t, 1), time.Now()))
	require.Equal(t, 1, s.Calls())
	require.Zero(t, s.Stats().Entries, "what the first brings is old")
	s.End(first)
	<-follower.Done()
	third, leads := join(4)
	require.False(t, leads)
	require.Same(t, second, third)
	require.True(t, s.Leave(second, nil, time.Time{}))
	s.End(second)
	require.Zero(t, s.Calls())
	requireEmpty(t, s)
}

func TestCallsForOneKeyThatMustNotWaitForEachOther(t *testing.T) {
	s := newStore(-1, -1)
	ids := []string{"a", "b", "c"}
	calls := map[string]*Call[string, int]{}
	alone := s.Begin(keyFor(1), "call/a")
	for i, id := range ids {
		call, leads := s.Join(keyFor(1), id, "call/a", i)
		require.True(t, leads)
		calls[id] = call
	}
	for i, id := range ids {
		call, leads := s.Join(keyFor(1), id, "call/a", 9)
		require.False(t, leads)
		require.Same(t, calls[id], call)
		require.Equal(t, i, call.Leader)
	}
	require.Len(t, s.entries, 1)
	require.Equal(t, 4, s.Calls())
	for _, id := range []string{"b", "c", "a"} { // from the middle, the end and the beginning of the list
		require.True(t, s.Leave(calls[id], nil, time.Time{}))
		other, leads := s.Join(keyFor(1), id, "call/a", 9)
		require.True(t, leads)
		finish(s, other, nil, time.Time{})
		s.End(calls[id])
	}
	require.False(t, s.Leave(alone, nil, time.Time{}), "nobody joins a call that was begun alone")
	s.End(alone)
	requireEmpty(t, s)
}

// An answer that goes while a call for its key is on its way leaves the call where others find it.
func TestACallOutlastsTheAnswerOfItsKey(t *testing.T) {
	now := time.Now()
	for name, drop := range map[string]func(*testStore){
		"dropped": func(s *testStore) { s.Drop(keyFor(1)) },
		"expired": func(s *testStore) { s.Sweep(now.Add(time.Minute)) },
		"evicted": func(s *testStore) {
			require.True(t, finish(s, s.Begin(keyFor(2), ""), answerOf(t, 2500), now))
		},
	} {
		s := newStore(4000, time.Minute)
		require.True(t, finish(s, s.Begin(keyFor(1), "call/a"), answerOf(t, 1000), now))
		first, leads := s.Join(keyFor(1), "id", "call/a", 1)
		require.True(t, leads)
		drop(s)
		_, _, ok := s.Get(keyFor(1), now)
		require.False(t, ok, name)
		_, leads = s.Join(keyFor(1), "id", "call/a", 2)
		require.False(t, leads, name)
		a := answerOf(t, 1)
		require.True(t, finish(s, first, a, now), name)
		got, _, ok := s.Get(keyFor(1), now)
		require.True(t, ok, name)
		require.Same(t, a, got)
		s.Invalidate("")
		requireEmpty(t, s)
	}
}

func TestACallThatNobodySawIsUsedAgain(t *testing.T) {
	s := newStore(-1, -1)
	for range 100 {
		call, leads := s.Join(keyFor(1), "id", "call/a", 1)
		require.True(t, leads)
		require.Equal(t, Call[string, int]{ID: "id", Leader: 1, entry: call.entry, node: call.node}, *call, "nothing is left of an earlier one")
		call.Ending, call.Err = Failed, errors.New("x")
		require.False(t, s.Leave(call, nil, time.Time{}))
		s.End(call)
	}
}

// BenchmarkCallsForOneKey is a call that begins and ends while others for its key, which nobody may share, are on their way.
func BenchmarkCallsForOneKey(b *testing.B) {
	for _, n := range []int{1, 10_000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			s := newStore(-1, -1)
			calls := make([]*Call[string, int], n)
			for i := range calls {
				calls[i] = s.Begin(keyFor(1), "call/a")
				if i%2 == 0 {
					s.Join(keyFor(1), strconv.Itoa(i), "call/a", i)
				}
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				i = (i + 1) % n
				s.Leave(calls[i], nil, time.Time{})
				s.End(calls[i])
				calls[i] = s.Begin(keyFor(1), "call/a")
				call, _ := s.Join(keyFor(1), "one more", "call/a", 1)
				s.Leave(call, nil, time.Time{})
				s.End(call)
			}
		})
	}
}

// A call that takes the place of one that was overtaken can be joined in its stead, whichever of the key's it is.
func TestTheCallAfterAnOvertakenOneIsJoined(t *testing.T) {
	s, k := newStore(-1, time.Hour), keyFor(1)
	var calls []*Call[string, int]
	lead := func(id string) {
		call, leads := s.Join(k, id, "call", len(calls))
		require.True(t, leads)
		calls = append(calls, call)
	}
	for range 3 {
		lead("a")
		lead("b")
		for i, id := range []string{"a", "b"} {
			call, leads := s.Join(k, id, "call", -1)
			require.False(t, leads)
			require.Same(t, calls[len(calls)-2+i], call)
		}
		s.Invalidate("call")
	}
	for _, call := range calls {
		finish(s, call, nil, time.Now())
	}
	requireEmpty(t, s)
}
