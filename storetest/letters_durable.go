package storetest

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
)

// durable: everything that was acknowledged is there, and nothing else.
func (s *letterSuite) durable(t *testing.T) {
	require.NotNil(t, s.reopen, "run it with ReopenLetters")
	st := s.start(t)
	want := map[string]resilience.Letter{}
	for round := range 4 {
		for n := range 20 {
			l := fullLetter(t, 20*round+n)
			l.ID = name("letter", n)
			switch (n + round) % 3 {
			case 0:
				st.remove(l.ID)
				delete(want, l.ID)
			default:
				st.put(l)
				want[l.ID] = l
			}
		}
		st.LetterStore = s.reopen(t, st.LetterStore)
		s.requireAll(st, want)
	}
	for id := range want {
		st.remove(id)
	}
	st.LetterStore = s.reopen(t, st.LetterStore)
	require.Empty(t, st.all(), "removed letters came back")
}

// durableUnderWrites: what one writer was told is there, whatever others do at the same time.
func (s *letterSuite) durableUnderWrites(t *testing.T) {
	require.NotNil(t, s.reopen, "run it with ReopenLetters")
	st := s.start(t)
	var mu sync.Mutex
	var acked []string
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for n := range 8 {
				l := resilience.Letter{ID: name(fmt.Sprint("letter", w), n), Body: make([]byte, 1000*n)}
				if err := st.Put(t.Context(), l); err != nil {
					t.Errorf("Put: %v", err)
					return
				}
				mu.Lock()
				acked = append(acked, l.ID)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	st.LetterStore = s.reopen(t, st.LetterStore)
	all := st.all()
	for _, id := range acked {
		require.Contains(t, all, id)
	}
	require.Len(t, all, len(acked))
	require.True(t, slices.ContainsFunc(acked, func(id string) bool { return len(all[id].Body) > 0 }))
}
