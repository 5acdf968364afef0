package resilience

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// An import says so when a letter of it finds no room on arrival.
func TestDLQ_AnImportThatFindsNoRoomWhenItArrivesSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		other := mustDLQ(t, DLQConfig{})
		require.NoError(t, other.Add(Letter{ID: "slow", Operation: "op", Key: "slow"}))
		file := dlqExport(t, other)
		store := newShelf().open()
		store.set(func(_ context.Context, _, id string, effect func()) error {
			if id == "slow" {
				time.Sleep(2 * time.Second)
			}
			effect()
			return nil
		})
		d := mustDLQ(t, DLQConfig{Store: store, MaxLetters: 2, Overflow: OverflowDropOldest, OnDrop: func(Letter) {}})
		done := make(chan error)
		go func() { done <- d.Import(bytes.NewReader(file)) }()
		synctest.Wait()
		for _, id := range []string{"1", "2"} {
			require.NoError(t, d.Add(Letter{ID: id, Operation: "op", InDoubt: true}))
		}
		err := <-done
		_, here := d.Get("slow")
		require.NoError(t, d.close(t.Context()))
		require.True(t, err != nil || here, "lost without a word")
	})
}

// slowly lets writes take so long, by id; one that is not named takes no time.
func slowly(times map[string]time.Duration) func(context.Context, string, string, func()) error {
	return func(_ context.Context, _, id string, effect func()) error {
		time.Sleep(times[id])
		effect()
		return nil
	}
}

// fileOf is an export of these letters.
func fileOf(t testing.TB, letters ...Letter) *bytes.Reader {
	t.Helper()
	d := mustDLQ(t, DLQConfig{})
	for _, l := range letters {
		l.Operation = "op"
		require.NoError(t, d.Add(l))
	}
	return bytes.NewReader(dlqExport(t, d))
}

// An import waits until it is known whether a letter with one of its keys is here.
func TestDLQStore_ImportMeetsALetterThatArrives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newShelf().open()
		d := mustDLQ(t, DLQConfig{Store: p})
		p.set(slowly(map[string]time.Duration{"here": time.Second}))
		added := make(chan error, 1)
		go func() { added <- d.Add(Letter{ID: "here", Operation: "op", Key: "k"}) }()
		synctest.Wait()
		began := time.Now()
		require.NoError(t, d.Import(fileOf(t, Letter{ID: "there", Key: "k"})))
		require.Equal(t, time.Second, time.Since(began))
		require.NoError(t, <-added)
		require.Equal(t, "here", dlqOnly(t, d).ID)
	})
}

// An import that brings nothing but a doubt returns when that is in the store.
func TestDLQStore_ImportWaitsForTheDoubtItBrings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		p := s.open()
		d := mustDLQ(t, DLQConfig{Store: p})
		require.NoError(t, d.Add(Letter{ID: "here", Operation: "op", Key: "k"}))
		onDisk(t, d)
		p.set(slowly(map[string]time.Duration{"here": time.Second}))
		require.NoError(t, d.Import(fileOf(t, Letter{ID: "there", Key: "k", InDoubt: true})))
		require.True(t, s.get("here").InDoubt)
	})
}

// A doubt that an import brings again is as old as its last import, and no younger import makes it older.
func TestD16_ADoubtIsAsOldAsItsLastImport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var merged int
		d := mustDLQ(t, DLQConfig{OnEvent: func(e Event) {
			if e.Kind == EventLetterAdded && e.Cause == "merged" {
				merged++
			}
		}})
		start := time.Now()
		require.NoError(t, d.Add(Letter{ID: "here", Operation: "op", Key: "k"}))
		for _, c := range []struct{ clock, want time.Duration }{{time.Hour, time.Hour}, {2 * time.Hour, 2 * time.Hour}, {time.Minute, 2 * time.Hour}} {
			d.keyClock = func() time.Time { return start.Add(c.clock) }
			require.NoError(t, d.Import(fileOf(t, Letter{ID: "there", Key: "k", InDoubt: true})))
			require.Equal(t, c.want, dlqOnly(t, d).DoubtSince.Sub(start))
		}
		require.NoError(t, d.events.drain(t.Context()))
		require.Equal(t, 1, merged, "later it is no news")
	})
}

// Letters whose room was taken while they were on their way are refused, to whoever brought them.
func TestDLQStore_RoomThatIsGoneOnArrival(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		p := s.open()
		d := mustDLQ(t, DLQConfig{Store: p, MaxLetters: 1, Overflow: OverflowDropOldest, OnDrop: func(Letter) {}})
		p.set(slowly(map[string]time.Duration{"first": time.Second, "added": 2 * time.Second, "imported": 2 * time.Second}))
		ends := make(chan error, 3)
		go func() { ends <- d.Import(fileOf(t, Letter{ID: "imported", InDoubt: true})) }()
		for _, id := range []string{"first", "added"} {
			go func() { ends <- d.Add(Letter{ID: id, Operation: "op", InDoubt: true}) }()
		}
		require.NoError(t, <-ends, "those in doubt do not go for another one")
		require.ErrorIs(t, <-ends, ErrLettersFull)
		require.ErrorIs(t, <-ends, ErrLettersFull)
		require.Equal(t, "first", dlqOnly(t, d).ID)
		onDisk(t, d)
		require.Equal(t, []string{"first"}, s.ids())
		dlqConserved(t, d)
	})
}

// A call with the key of a letter that an import brings may find out first that the store does not take it.
func TestDLQStore_ImportHearsThatALetterWasWithdrawn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		p := s.open()
		d := mustDLQ(t, DLQConfig{Store: p})
		puts := 0
		p.set(func(_ context.Context, op, id string, effect func()) error {
			time.Sleep(time.Second)
			if id == "y" && op == "put" {
				time.Sleep(2 * time.Second)
			}
			if id == "x" && op == "put" {
				if puts++; puts > 1 {
					return errShelf
				}
			}
			effect()
			return nil
		})
		imported := make(chan error, 1)
		go func() { imported <- d.Import(fileOf(t, Letter{ID: "x", Key: "k"}, Letter{ID: "y"})) }()
		time.Sleep(time.Second / 2)
		require.ErrorIs(t, d.Add(Letter{Operation: "op", Key: "k"}), errShelf)
		require.ErrorIs(t, <-imported, ErrLettersFull)
		require.Zero(t, d.Len())
		onDisk(t, d)
		require.Empty(t, s.ids(), "all or nothing")
	})
}

// Two callers wait for one letter, and one of them gives it up first.
func TestDLQStore_WhoeverWaitsForALetterThatIsGivenUpHearsOfIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newShelf().open()
		d := mustDLQ(t, DLQConfig{Store: p})
		p.set(func(ctx context.Context, op, _ string, effect func()) error {
			if op == "put" {
				<-ctx.Done()
				return ctx.Err()
			}
			effect()
			return nil
		})
		began := time.Now()
		added := make(chan error, 1)
		go func() { added <- d.Add(Letter{Operation: "op", Key: "k"}) }()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		l := Letter{Operation: "op", Key: "k", First: began, Last: began, Next: began}
		_, err := d.admit(ctx, l, nil, false)
		require.ErrorIs(t, err, ErrLettersFull)
		require.ErrorIs(t, <-added, ErrLettersFull)
		require.Equal(t, letterGrace, time.Since(began))
		require.EqualValues(t, 2, d.Stats().Refused)
		onDisk(t, d)
		dlqConserved(t, d)
	})
}

// What failed, changed meanwhile and waits for a writer is not written twice at a time when it is tried again.
func TestDLQStore_WhatIsInLineIsNotPutThereAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, _, release := stuckStore(t, letterWriters+1, DLQConfig{})
		p, _ := d.cfg.Store.(*shelfStore)
		hold, last := p.fault, fmt.Sprint(letterWriters)
		p.set(failing)
		require.NoError(t, d.Requeue(last))
		synctest.Wait()
		p.set(hold)
		for i := range letterWriters {
			require.NoError(t, d.Requeue(fmt.Sprint(i)))
		}
		synctest.Wait()
		require.NoError(t, d.Requeue(last))
		time.Sleep(2 * letterRetryFirst)
		d.next(time.Now()) // as Run does
		p.set(slowly(map[string]time.Duration{last: time.Second}))
		close(release)
		onDisk(t, d)
		require.False(t, p.twice.Load())
	})
}

// A letter that cannot be sealed is not stored, and who brings it hears why.
func TestDLQStore_ALetterThatCannotBeSealed(t *testing.T) {
	s := newShelf()
	broken := errors.New("no key")
	seal := func(l Letter) (Letter, error) { return l, broken }
	open := func(l Letter) (Letter, error) { return l, nil }
	d := mustDLQ(t, DLQConfig{Store: s.open(), Seal: seal, Open: open})
	err := d.Add(Letter{Operation: "op"})
	require.ErrorIs(t, err, broken)
	require.ErrorIs(t, err, ErrLettersFull)
	require.ErrorContains(t, err, broken.Error())
	require.Empty(t, s.ids())

	d = mustDLQ(t, DLQConfig{Seal: seal, Open: open})
	require.NoError(t, d.Add(Letter{Operation: "op"}))
	require.ErrorIs(t, d.Export(&bytes.Buffer{}), broken)
}

// Open may use its memory again for the next letter.
func TestDLQStore_OpenMayReuseItsMemory(t *testing.T) {
	s := newShelf()
	d := mustDLQ(t, DLQConfig{Store: s.open()})
	for _, id := range []string{"1", "2", "3"} {
		require.NoError(t, d.Add(Letter{ID: id, Operation: "op", Body: []byte(id)}))
	}
	var once [1]byte
	same := func(l Letter) (Letter, error) { return l, nil }
	open := func(l Letter) (Letter, error) {
		copy(once[:], l.Body)
		l.Body = once[:]
		return l, nil
	}
	d = mustDLQ(t, DLQConfig{Store: s.open(), Seal: same, Open: open})
	for _, l := range d.List(LetterFilter{}) {
		require.Equal(t, l.ID, string(l.Body))
	}
}

// A change while a redrive is at the letter is written, and the lease is not.
func TestDLQStore_AChangeUnderALeaseIsWrittenWithoutIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		d := mustDLQ(t, DLQConfig{Store: s.open()})
		require.NoError(t, d.Add(Letter{ID: "x", Operation: "op", Key: "k", Next: time.Now()}))
		ls, _ := d.take(t.Context())
		d.settle("k", keyNews{verdict: keyUnknown})
		onDisk(t, d)
		require.True(t, s.get("x").InDoubt)
		require.False(t, s.get("x").Leased)
		d.redrive(ls)
	})
}

// The event of a write that failed names what it was about.
func TestDLQStore_AWriteThatFailedIsReportedInFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var failed Event
		p := newShelf().open()
		d := mustDLQ(t, DLQConfig{Store: p, OnEvent: func(e Event) {
			mu.Lock()
			defer mu.Unlock()
			if e.Kind == EventLetterUnwritten {
				failed = e
			}
		}})
		require.NoError(t, d.Add(Letter{ID: "x", Operation: "op", Key: "k"}))
		p.set(failing)
		require.NoError(t, d.Requeue("x"))
		synctest.Wait()
		require.NoError(t, d.events.drain(t.Context()))
		mu.Lock()
		defer mu.Unlock()
		require.Equal(t, []any{"x", "op", d.keyHash("k"), "store", 1}, []any{failed.LetterID, failed.Operation, failed.KeyHash, failed.Cause, failed.Count})
	})
}

// Letters on their way into the store have their room in bytes, too, and only once.
func TestD05_LettersOnTheirWayCountTheirBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newShelf().open()
		d := mustDLQ(t, DLQConfig{Store: p, MaxBytes: 7 << 10})
		p.set(slowly(map[string]time.Duration{"1": time.Second, "2": time.Second}))
		ends := make(chan error, 2)
		for _, id := range []string{"1", "2"} {
			go func() { ends <- d.Add(Letter{ID: id, Operation: "op"}) }()
		}
		synctest.Wait()
		require.ErrorIs(t, d.Add(Letter{Operation: "op", Body: make([]byte, 1<<10)}), ErrLettersFull)
		require.NoError(t, <-ends)
		require.NoError(t, <-ends)
		require.NoError(t, d.Add(Letter{Operation: "op"}), "what has arrived is not on its way any more")
	})
}

// What is gone is counted nowhere, and found under no resource and no key, whatever it was.
func TestLetterBox_IsEmptyInTheEnd(t *testing.T) {
	d := mustDLQ(t, DLQConfig{Overflow: OverflowDropOldest, OnDrop: func(Letter) {}})
	for i, l := range []Letter{{}, {InDoubt: true}, {Parked: true}, {Superseded: true}} {
		l.ID, l.Operation, l.Key, l.Call.Resource = fmt.Sprint(i), "op", fmt.Sprint("k", i), "r"
		require.NoError(t, d.Add(l))
	}
	d.settle("k0", keyNews{verdict: keyUnknown}) // no more one that may go
	d.settle("k0", keyNews{verdict: keyNotApplied})
	d.box.keyID = letterKeyHash // it may become known later
	require.True(t, d.holds(letterKeyHash("k0")))
	require.False(t, d.holds("k0"))
	for i := range 4 {
		require.NoError(t, d.Delete(fmt.Sprint(i), ""))
	}
	b := d.box
	require.Zero(t, b.bytes)
	require.Zero(t, b.looseBytes)
	require.Zero(t, b.loose.Len())
	require.Zero(t, b.active.Len())
	require.Zero(t, b.states)
	require.Empty(t, b.byResource)
	require.Empty(t, b.byKey)
}
