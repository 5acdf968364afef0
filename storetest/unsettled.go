package storetest

import (
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
)

func (s *suite) unsettledStates(t *testing.T) {
	st := s.start(t)
	require.Empty(t, st.pages(10))
	rec := st.put(0, claim("key", "a"))
	states := append(slices.Clone(unsettled), finished...)
	for _, from := range states { // every way from one state to another
		for _, to := range states {
			rec.State, rec.Expires = from, time.Time{}
			rec = st.put(rec.Version, rec)
			rec.State = to
			if slices.Contains(finished, to) {
				rec.Expires = st.Now().Add(time.Hour)
			}
			rec = st.put(rec.Version, rec)
			if slices.Contains(unsettled, to) {
				require.Equal(t, []string{"key"}, st.pages(10), "%v, then %v", from, to)
			} else {
				require.Empty(t, st.pages(10), "%v, then %v", from, to)
			}
		}
	}
	st.remove(rec)
	require.Empty(t, st.pages(10))
}

func (s *suite) unsettledPages(t *testing.T) {
	st := s.start(t)
	var want []string
	for i := range 60 {
		id := name("key", (i*37)%60) // not in order
		state := append(unsettled, finished...)[i%6]
		st.put(0, resilience.Record{ID: id, State: state, Expires: st.Now().Add(time.Hour)})
		if slices.Contains(unsettled, state) {
			want = append(want, id)
		}
	}
	slices.Sort(want)
	for _, limit := range []int{1, 2, 3, 7, len(want) - 1, len(want), len(want) + 1, 1000, 0, -1} {
		require.Equal(t, want, st.pages(limit), "in pages of %d", limit)
	}
	page, next, err := st.Unsettled(t.Context(), "", 0) // which is no limit
	require.NoError(t, err)
	require.Equal(t, want, ids(page))
	require.Empty(t, next)
	page, _, err = st.Unsettled(t.Context(), "key-0030x", 1000) // a cursor need not be an id that exists
	require.NoError(t, err)
	for _, rec := range page {
		require.Greater(t, rec.ID, "key-0030x")
	}
	page, next, err = st.Unsettled(t.Context(), want[len(want)-1], 5)
	require.NoError(t, err)
	require.Empty(t, page)
	require.Empty(t, next)
}

// unsettledUnderWrites: a record that is unsettled all the time is in every complete walk, whatever happens around it.
func (s *suite) unsettledUnderWrites(t *testing.T) {
	const stable, writers, walks = 60, 4, 8
	st := s.start(t)
	var want []string
	for i := range stable {
		id := name("key", i*10)
		st.put(0, claim(id, "a"))
		want = append(want, id)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var failed sync.Once
	var failure error
	for w := range writers {
		wg.Go(func() {
			for n := w; ; n += writers {
				select {
				case <-stop:
					return
				default:
				}
				if err := churn(t, st, n, stable); err != nil {
					failed.Do(func() { failure = err })
					return
				}
			}
		})
	}
	var walked [][]string
	var err error
	for range walks {
		var ids []string
		if ids, err = walk(t.Context(), st, 7); err != nil {
			break
		}
		walked = append(walked, ids)
	}
	close(stop)
	wg.Wait()
	require.NoError(t, err)
	require.NoError(t, failure)
	for _, ids := range walked {
		seen := map[string]bool{}
		for _, id := range ids {
			seen[id] = true
		}
		for _, id := range want {
			require.True(t, seen[id], "a walk in pages missed %s, which was unsettled all the time", id)
		}
	}
}

// churn rewrites a record that stays unsettled, and makes, settles and removes one beside it.
func churn(t *testing.T, st store, n, stable int) error {
	ctx := t.Context()
	rec, err := st.Load(ctx, name("key", n%stable*10))
	if err != nil {
		return err
	}
	rec.State = unsettled[n%len(unsettled)]
	if _, _, err := st.CompareAndSwap(ctx, rec.Version, rec); err != nil {
		return err
	}
	passing := claim(name("key", n%stable*10+1+n%9), "b")
	old, err := st.Load(ctx, passing.ID)
	if err != nil {
		return err
	}
	if old.Version != 0 {
		passing.State = []resilience.KeyState{resilience.KeyFree, resilience.KeyConfirmed}[n%2]
	}
	_, _, err = st.CompareAndSwap(ctx, old.Version, passing)
	return err
}
