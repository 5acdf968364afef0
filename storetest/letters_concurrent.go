package storetest

import (
	"bytes"
	"fmt"
	"reflect"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
)

// concurrent: writes of different letters do not disturb each other, nor a Load meanwhile.
func (s *letterSuite) concurrent(t *testing.T) {
	st := s.start(t)
	const writers, rounds = 16, 20
	steady := fullLetter(t, 9999)
	st.put(steady)
	var mu sync.Mutex
	want := map[string]resilience.Letter{steady.ID: steady}
	letters := make([]resilience.Letter, writers)
	for w := range writers {
		letters[w] = fullLetter(t, w)
	}
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			l := letters[w]
			for n := range rounds {
				l.Attempts = n
				if err := st.Put(t.Context(), l); err != nil {
					t.Errorf("Put: %v", err)
				}
				if n%3 == 2 || n == rounds-1 && w%2 == 0 {
					if err := st.Remove(t.Context(), l.ID); err != nil {
						t.Errorf("Remove: %v", err)
					}
				}
			}
			if w%2 == 1 {
				mu.Lock()
				defer mu.Unlock()
				want[l.ID] = l
			}
		})
	}
	for range 2 {
		wg.Go(func() {
			for range 10 {
				all, err := loadAll(t.Context(), st)
				if err != nil {
					t.Error(err)
				} else if _, ok := all[steady.ID]; !ok {
					t.Error("a Load under writes lost a letter that was there all the time")
				}
			}
		})
	}
	wg.Wait()
	s.requireAll(st, want)
}

// atomic: a letter that is being replaced is the old one or the new one.
func (s *letterSuite) atomic(t *testing.T) {
	st := s.start(t)
	version := func(n int) resilience.Letter {
		return resilience.Letter{ID: "x", Attempts: n, Cause: fmt.Sprint(n), Body: bytes.Repeat([]byte{byte(n)}, 20_000)}
	}
	st.put(version(0))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n := range 60 {
			if err := st.Put(t.Context(), version(n)); err != nil {
				t.Errorf("Put: %v", err)
			}
		}
	}()
	defer func() { <-done }() // whatever becomes of the rest
	for last, over := 0, false; !over; {
		select {
		case <-done:
			over = true
		default:
		}
		l, ok := st.all()["x"]
		require.True(t, ok, "it is gone while it is replaced")
		require.GreaterOrEqual(t, l.Attempts, last, "an older state came back")
		last = l.Attempts
		s.requireSame(t, "Letter", reflect.ValueOf(version(l.Attempts)), reflect.ValueOf(l))
	}
	s.requireAll(st, map[string]resilience.Letter{"x": version(59)})
}
