package answers

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
)

// The leader of a call that a write has overtaken goes on, and takes only its own call with it.
func TestACallThatWasOvertakenLeavesTheNewerOneAlone(t *testing.T) {
	s := New(-1, -1)
	calls := NewCalls[string, int](s)
	join := func(leader int) (*Call[string, int], bool) { return calls.Join("id", keyFor(1), "call/a", leader) }
	first, leads := join(1)
	require.True(t, leads)
	follower, leads := join(2)
	require.False(t, leads)
	require.Same(t, first, follower)
	s.Invalidate("call/a")
	second, leads := join(3)
	require.True(t, leads, "who asks after the write must see it")
	require.Equal(t, 2, s.Reads())
	require.True(t, calls.Leave(first))
	require.Equal(t, 1, s.Reads())
	calls.End(first)
	<-follower.Done()
	third, leads := join(4)
	require.False(t, leads)
	require.Same(t, second, third)
	require.True(t, calls.Leave(second))
	calls.End(second)
	require.Zero(t, calls.Len())
	require.Zero(t, s.Reads())
	requireEmpty(t, s)
}

func TestACallThatNobodySawIsUsedAgain(t *testing.T) {
	s := New(-1, -1)
	calls := NewCalls[string, int](s)
	for range 100 {
		call, leads := calls.Join("id", keyFor(1), "call/a", 1)
		require.True(t, leads)
		require.Equal(t, Call[string, int]{ID: "id", Leader: 1, Read: call.Read}, *call, "nothing is left of an earlier one")
		call.Ending, call.Err = Failed, errors.New("x")
		require.False(t, calls.Leave(call))
		calls.End(call)
	}
}
