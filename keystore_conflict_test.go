package resilience

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// torn says of one state of keys for ever that somebody else was faster, though nobody was.
type torn struct {
	*MemoryStore
	at KeyState
}

func (s torn) CompareAndSwap(ctx context.Context, old uint64, r Record) (uint64, bool, error) {
	if r.State == s.at {
		time.Sleep(10 * time.Millisecond)
		return 0, false, nil
	}
	return s.MemoryStore.CompareAndSwap(ctx, old, r)
}

// A store that is never done with a conflict has failed when its time is over, like one that hangs: nothing is left that
// asks it for ever.
func TestIdempotency_AConflictWithoutEndEndsWithThePatience(t *testing.T) {
	for _, at := range []KeyState{KeyClaimed, KeySending, KeyConfirmed} {
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStack(t, Config{Idempotency: IdempotencyConfig{Store: torn{NewMemoryStore(0), at}}})
				p := &phone{}
				_, err := dial(WithBudget(t.Context(), 20*time.Second), t, s.Wrap(p), "k", dialBody)
				switch at {
				case KeyConfirmed:
					require.NoError(t, err, "I14: the answer is returned")
				case KeySending:
					require.ErrorIs(t, err, ErrStore)
					require.True(t, NotSent(err))
				case KeyClaimed:
					require.ErrorIs(t, err, ErrTimeout)
					require.True(t, NotSent(err))
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				require.NoError(t, s.Close(ctx))
				if at == KeyConfirmed {
					require.Equal(t, 1, p.sends)
				} else {
					require.Zero(t, p.sends)
				}
			})
		})
	}
}
