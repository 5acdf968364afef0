package resilience

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// pager goes through a queue while others change it, and keeps books of what it was shown.
type pager struct {
	t      *testing.T
	rng    *rand.Rand
	d      *DLQ
	start  time.Time
	shown  []Letter
	steady map[string]bool // there since the first page
}

// add makes letters of few times, so that ids have to tell them apart.
func (p *pager) add() string {
	id := fmt.Sprint(p.rng.Uint64())
	first := p.start.Add(time.Duration(p.rng.IntN(40)) * time.Second)
	require.NoError(p.t, p.d.Add(Letter{ID: id, Operation: "work", First: first, Next: first}))
	return id
}

func (p *pager) change() {
	for range p.rng.IntN(8) {
		switch p.rng.IntN(4) {
		case 0, 1:
			p.add()
		case 2:
			all := p.d.List(LetterFilter{})
			id := all[p.rng.IntN(len(all))].ID
			require.NoError(p.t, p.d.Delete(id, "test"))
			delete(p.steady, id)
		case 3:
			if r := p.d.Redrive(p.t.Context()); r.Status == RedriveDone {
				delete(p.steady, r.LetterID)
			}
		}
	}
}

func (p *pager) read(f LetterFilter, change func()) {
	for page := p.d.List(f); len(page) > 0; page = p.d.List(f) {
		require.LessOrEqual(p.t, len(page), f.Limit)
		p.shown = append(p.shown, page...)
		f.After = page[len(page)-1].Cursor()
		change()
	}
}

func (p *pager) requireOrder() {
	p.t.Helper()
	require.True(p.t, slices.IsSortedFunc(p.shown, func(a, b Letter) int { return a.Cursor().compare(b.Cursor()) }))
	ids := map[string]bool{}
	for _, l := range p.shown {
		require.False(p.t, ids[l.ID], "%s was shown twice", l.ID)
		ids[l.ID] = true
	}
	for id := range p.steady {
		require.True(p.t, ids[id], "%s was there all the time and was not shown", id)
	}
}

func TestD03_PagesSkipNoLetterAndShowNoneTwice(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		d := mustDLQ(t, DLQConfig{Attempts: -1})
		d.Handle("work", func(context.Context, Letter) error {
			return []error{nil, ErrPoison, ErrInDoubt}[rng.IntN(3)]
		})
		p := &pager{t: t, rng: rng, d: d, start: time.Now().Add(-time.Minute), steady: map[string]bool{}}
		for range 100 + rng.IntN(3*listStep) {
			p.steady[p.add()] = true
		}
		p.read(LetterFilter{Limit: 1 + rng.IntN(60)}, p.change)
		p.requireOrder()
	}
}

// A filter that passes nearly everything over still finds the rest, across many steps.
func TestD03_PagesOfAFewAmongMany(t *testing.T) {
	d := mustDLQ(t, DLQConfig{})
	p := &pager{t: t, rng: rand.New(rand.NewPCG(1, 1)), d: d, start: time.Now().Add(-time.Minute), steady: map[string]bool{}}
	for i := range 5 * listStep {
		id := p.add()
		if i%100 == 0 {
			p.steady[id] = true
			d.mu.Lock()
			d.park(d.box.ofID(id), "attempts", func(*Letter) {})
			d.mu.Unlock()
		}
	}
	p.read(LetterFilter{State: LetterParked, Limit: 3}, func() {})
	p.requireOrder()
	require.Len(t, p.shown, len(p.steady))
	require.Len(t, d.List(LetterFilter{}), 5*listStep)
	require.Len(t, d.List(LetterFilter{Limit: -1}), 5*listStep)
	require.Empty(t, d.List(LetterFilter{After: p.shown[len(p.shown)-1].Cursor(), State: LetterParked}))
	require.Equal(t, d.List(LetterFilter{})[7:9], d.List(LetterFilter{After: d.List(LetterFilter{})[6].Cursor(), Limit: 2}))
}

// Looking moves nothing: neither the letter, nor its turn, nor its lease.
func TestD03_FiltersAndPeeking(t *testing.T) {
	d := mustDLQ(t, DLQConfig{})
	at := time.Now()
	for i, l := range []Letter{
		{Operation: "a"}, {Operation: "a", Call: Call{Resource: "r"}}, {Operation: "b", Call: Call{Resource: "r"}}, {Operation: "b", InDoubt: true},
	} {
		l.ID, l.First = fmt.Sprint(i), at.Add(time.Duration(i))
		require.NoError(t, d.Add(l))
	}
	before := d.Stats()
	for want, f := range map[string]LetterFilter{
		"[0 1 2 3]": {}, "[0]": {Limit: 1}, "[0 1]": {Operation: "a"}, "[1 2]": {Resource: "r"}, "[2]": {Operation: "b", Resource: "r"},
		"[3]": {State: LetterInDoubt}, "[0 1 2]": {State: LetterWaiting}, "[]": {State: LetterParked}, "[1]": {State: LetterWaiting, Resource: "r", Limit: 1},
	} {
		require.Equal(t, want, fmt.Sprint(idsOf(d.List(f))))
	}
	l, ok := d.Get("3")
	require.True(t, ok)
	require.Equal(t, LetterInDoubt, l.State())
	after := d.Stats()
	before.OldestAge, after.OldestAge = 0, 0
	require.Equal(t, before, after)
}

// A cursor can be kept as JSON, and goes on over a restart, and where its letter has gone.
func TestD03_ACursorOutlivesTheProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newShelf()
		d := mustDLQ(t, DLQConfig{Store: p.open()})
		now := time.Now()
		for i, first := range []time.Time{now, now, now.Add(1), now.Add(1), time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC).Add(1), time.Time{}.AddDate(-1, 0, 0)} {
			first = first.In(time.FixedZone("", 3600*(i-3)))
			require.NoError(t, d.Add(Letter{ID: fmt.Sprint("id", 9-i), Operation: "op", First: first}))
		}
		order := []string{"id4", "id5", "id8", "id9", "id6", "id7"}
		require.Equal(t, order, idsOf(d.List(LetterFilter{})))
		require.NoError(t, d.close(t.Context()))

		again := mustDLQ(t, DLQConfig{Store: p.open()})
		imported := mustDLQ(t, DLQConfig{})
		require.NoError(t, imported.Import(bytes.NewReader(dlqExport(t, d))))
		for i, l := range d.List(LetterFilter{}) {
			text, err := json.Marshal(l.Cursor())
			require.NoError(t, err)
			var kept LetterCursor
			require.NoError(t, json.Unmarshal(text, &kept))
			require.True(t, kept == l.Cursor(), "%s", text)
			for _, q := range []*DLQ{d, again, imported} {
				require.Equal(t, order[i+1:], idsOf(q.List(LetterFilter{After: kept})), "%s", text)
			}
		}
		middle := d.List(LetterFilter{})[2]
		require.NoError(t, again.Delete(middle.ID, ""))
		require.Equal(t, order[3:], idsOf(again.List(LetterFilter{After: middle.Cursor()})))
	})
}

func idsOf(list []Letter) []string {
	ids := []string{}
	for _, l := range list {
		ids = append(ids, l.ID)
	}
	return ids
}
