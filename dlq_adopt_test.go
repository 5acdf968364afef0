package resilience

import (
	"context"
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// orphans is a shelf whose process has died with these letters on it.
func orphans(t *testing.T, letters ...Letter) *shelf {
	t.Helper()
	sh := newShelf()
	d := mustDLQ(t, DLQConfig{Store: sh.open()})
	for _, l := range letters {
		l.Method, l.URL = http.MethodPost, "http://h/"
		require.NoError(t, d.Add(l))
	}
	require.NoError(t, d.close(t.Context()))
	return sh
}

func TestAdopt_LettersOfAStoreWhoseQueueIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		parked := Letter{ID: "parked", Key: "k3", Attempts: 5, Parked: true, ParkedReason: "attempts", Cause: "status", StatusCode: 503}
		gone := orphans(t, Letter{ID: "a", Key: "k1", Attempts: 2}, Letter{ID: "doubt", Key: "k2", InDoubt: true}, parked)
		time.Sleep(time.Minute)
		own := newShelf()
		d := mustDLQ(t, DLQConfig{Store: own.open()})
		require.NoError(t, d.Adopt(t.Context(), gone.open()))
		require.Empty(t, gone.ids())
		require.Equal(t, []string{"a", "doubt", "parked"}, own.ids())
		a, _ := d.Get("a")
		require.Equal(t, 2, a.Attempts)
		require.False(t, a.InDoubt)
		doubt, _ := d.Get("doubt")
		require.True(t, doubt.InDoubt)
		require.Equal(t, time.Now(), doubt.DoubtSince, "it is about what another process sent")
		p, _ := d.Get("parked")
		require.True(t, p.Parked)
		require.Equal(t, parked.Attempts, p.Attempts)
		require.NoError(t, d.Adopt(t.Context(), gone.open()))
		require.Equal(t, 3, d.Len())
		dlqConserved(t, d)
	})
}

// What is here already stays, and learns of a doubt.
func TestAdopt_ALetterThatIsHere(t *testing.T) {
	gone := orphans(t, Letter{ID: "a", Key: "k1", InDoubt: true}, Letter{ID: "b", Key: "k2"}, Letter{ID: "c", Key: "k2 "}, Letter{ID: "d", Key: "k3"})
	d := mustDLQ(t, DLQConfig{})
	require.NoError(t, d.Add(Letter{ID: "own", Key: "k1", Method: http.MethodPost, URL: "http://h/", Attempts: 1}))
	require.NoError(t, d.Adopt(t.Context(), gone.open()))
	require.Empty(t, gone.ids())
	own, _ := d.Get("own")
	require.True(t, own.InDoubt)
	require.Equal(t, 1, own.Attempts)
	_, there := d.Get("a")
	require.False(t, there)
	require.NotNil(t, d.box.ofKey("k2"))
	require.NotNil(t, d.box.ofKey("k3"))
	dlqConserved(t, d)
}

func TestAdopt_WhatHasNoRoomStaysWhereItIs(t *testing.T) {
	gone := orphans(t, Letter{ID: "a", Key: "k1"}, Letter{ID: "b", Key: "k2"}, Letter{ID: "c", Key: "k3"})
	d := mustDLQ(t, DLQConfig{MaxLetters: 2})
	require.ErrorIs(t, d.Adopt(t.Context(), gone.open()), ErrLettersFull)
	require.Equal(t, 2, d.Len())
	require.Len(t, gone.ids(), 1)
	for _, l := range d.List(LetterFilter{}) {
		require.NotContains(t, gone.ids(), l.ID)
		require.NoError(t, d.Delete(l.ID, "not wanted"))
	}
	require.NoError(t, d.Adopt(t.Context(), gone.open()))
	require.Equal(t, 1, d.Len())
	require.Empty(t, gone.ids())
}

// Whatever goes wrong, a letter is in one of the two places at least, and the next time it is brought over.
func TestAdopt_Faults(t *testing.T) {
	for name, c := range map[string]struct {
		there, here func(ctx context.Context, op, id string, effect func()) error
		moved       int
	}{
		"it cannot be removed there":         {there: failing, moved: 1},
		"the store there panics":             {there: func(context.Context, string, string, func()) error { panic("no") }, moved: 1},
		"it does not get into the store":     {here: failing},
		"it got there, and that is not said": {here: func(_ context.Context, _, _ string, effect func()) error { effect(); return errShelf }},
	} {
		t.Run(name, func(t *testing.T) {
			gone, own := orphans(t, Letter{ID: "a", Key: "k1"}, Letter{ID: "b", Key: "k2"}), newShelf()
			from, to := gone.open(), own.open()
			d := mustDLQ(t, DLQConfig{Store: to})
			from.set(c.there)
			to.set(c.here)
			require.Error(t, d.Adopt(t.Context(), from))
			require.Equal(t, c.moved, d.Len())
			require.Len(t, gone.ids(), 2)
			from.set(nil)
			to.set(nil)
			require.NoError(t, d.Adopt(t.Context(), from))
			require.Empty(t, gone.ids())
			onDisk(t, d)
			require.Equal(t, []string{"a", "b"}, own.ids())
			require.Equal(t, 2, d.Len())
			dlqConserved(t, d)
		})
	}
}

func TestAdopt_OpensWhatWasSealed(t *testing.T) {
	flip := func(l Letter) (Letter, error) {
		slices.Reverse(l.Body)
		return l, nil
	}
	gone := newShelf()
	old := mustDLQ(t, DLQConfig{Store: gone.open(), Seal: flip, Open: flip})
	require.NoError(t, old.Add(Letter{ID: "a", Method: http.MethodPost, URL: "http://h/", Body: []byte("abc")}))
	require.Equal(t, "cba", string(gone.get("a").Body))
	own := newShelf()
	d := mustDLQ(t, DLQConfig{Store: own.open(), Seal: flip, Open: flip})
	require.NoError(t, d.Adopt(t.Context(), gone.open()))
	a, _ := d.Get("a")
	require.Equal(t, "abc", string(a.Body))
	require.Equal(t, "cba", string(own.get("a").Body))

	broken := mustDLQ(t, DLQConfig{Seal: flip, Open: func(Letter) (Letter, error) { return Letter{}, errShelf }})
	require.ErrorIs(t, broken.Adopt(t.Context(), own.open()), errShelf)
	require.Equal(t, []string{"a"}, own.ids())
	require.Zero(t, broken.Len())
}

func TestAdopt_NobodyCan(t *testing.T) {
	gone := orphans(t, Letter{ID: "a", Key: "k1"})
	var none *DLQ
	require.ErrorIs(t, none.Adopt(t.Context(), gone.open()), ErrLettersFull)
	closed := mustDLQ(t, DLQConfig{})
	require.NoError(t, closed.close(t.Context()))
	require.ErrorIs(t, closed.Adopt(t.Context(), gone.open()), ErrClosed)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	d := mustDLQ(t, DLQConfig{})
	require.ErrorIs(t, d.Adopt(ctx, gone.open()), context.Canceled)
	require.Equal(t, []string{"a"}, gone.ids())
	require.Zero(t, d.Len())
}

// Who is called off in the middle leaves the rest where it is, and no letter in two places.
func TestAdopt_IsCalledOff(t *testing.T) {
	gone := orphans(t, Letter{ID: "a", Key: "k1"}, Letter{ID: "b", Key: "k2"}, Letter{ID: "c", Key: "k3"})
	ctx, cancel := context.WithCancel(t.Context())
	from := gone.open()
	from.set(func(_ context.Context, _, _ string, effect func()) error { effect(); cancel(); return nil })
	d := mustDLQ(t, DLQConfig{})
	require.ErrorIs(t, d.Adopt(ctx, from), context.Canceled)
	require.Equal(t, 1, d.Len())
	require.Len(t, gone.ids(), 2)
	require.NotContains(t, gone.ids(), dlqOnly(t, d).ID)
}
