package resilience

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Of two in a store neither is sent while the one is in doubt.
func TestDLQ_TwoLettersOfOneKeyInAStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sh := newShelf()
		alone := mustDLQ(t, DLQConfig{Store: sh.open()})
		require.NoError(t, alone.Add(Letter{ID: "a", Method: "POST", URL: "http://h/", Key: "k", InDoubt: true}))
		require.NoError(t, alone.Add(Letter{ID: "b", Method: "POST", URL: "http://h/", Key: "k "}))
		require.NoError(t, alone.close(t.Context()))
		p := &phone{}
		s := newStack(t, Config{DLQ: DLQConfig{Store: sh.open()}})
		s.Wrap(p)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		require.NoError(t, s.Run(ctx))
		closeStack(t, s)
		require.Zero(t, p.rang(), "the key is in doubt")
	})
}

// shelf is what a store has on its disk. Processes have it open one after the other.
type shelf struct {
	mu      sync.Mutex
	letters map[string]Letter
}

func newShelf() *shelf {
	return &shelf{letters: map[string]Letter{}}
}

// open is a process that has the shelf open; once it is dead nothing of it has an effect.
func (s *shelf) open() *shelfStore { return &shelfStore{shelf: s, busy: map[string]bool{}} }

func (s *shelf) ids() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.letters))
}

func (s *shelf) get(id string) Letter {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.letters[id]
}

type shelfStore struct {
	*shelf
	// fault says what goes wrong with a write: nil, or a function that gets the effect and decides.
	fault func(ctx context.Context, op, id string, effect func()) error
	dead  bool
	busy  map[string]bool // ids that are being written now
	twice atomic.Bool     // one was written twice at a time
}

var errShelf = errors.New("the disk is gone")

func (p *shelfStore) set(fault func(ctx context.Context, op, id string, effect func()) error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = fault
}

func (p *shelfStore) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dead = true
}

func (p *shelfStore) do(ctx context.Context, op, id string, effect func()) error {
	p.mu.Lock()
	fault, busy := p.fault, p.busy[id]
	p.busy[id] = true
	p.mu.Unlock()
	if busy {
		p.twice.Store(true)
	}
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.busy, id)
	}()
	guarded := func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if !p.dead {
			effect()
		}
	}
	if fault != nil {
		return fault(ctx, op, id, guarded)
	}
	guarded()
	return nil
}

func (p *shelfStore) Put(ctx context.Context, l Letter) error {
	return p.do(ctx, "put", l.ID, func() { p.letters[l.ID] = l.clone() })
}

func (p *shelfStore) Remove(ctx context.Context, id string) error {
	return p.do(ctx, "remove", id, func() { delete(p.letters, id) })
}

func (p *shelfStore) Load(_ context.Context, each func(Letter) error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.letters {
		if err := each(l.clone()); err != nil {
			return err
		}
	}
	return nil
}

// failing fails every write before it has an effect.
func failing(context.Context, string, string, func()) error { return errShelf }

// onDisk waits until the store has everything.
func onDisk(t testing.TB, d *DLQ) {
	t.Helper()
	left, err := d.journal.drain(t.Context())
	require.NoError(t, err)
	require.Zero(t, left)
}

func TestDLQStore_InTheStoreBeforeTheCallerIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		p := s.open()
		release := make(chan struct{})
		p.set(func(_ context.Context, _, _ string, effect func()) error { <-release; effect(); return nil })
		d := mustDLQ(t, DLQConfig{Store: p})
		w := &dlqWorld{answer: dlqError(errDLQRefused)}
		rt := d.Wrap(w)
		told := make(chan error, 1)
		go func() {
			_, err := dlqCall(t.Context(), rt, http.MethodPost, "k")
			told <- err
		}()
		synctest.Wait()
		require.Empty(t, told)
		require.Zero(t, d.Len(), "it is not in the queue before it is in the store")
		require.Empty(t, d.List(LetterFilter{}))
		require.True(t, d.holds("k"), "its key is pinned all the same")
		time.Sleep(time.Second)
		require.Equal(t, RedriveEmpty, d.Redrive(t.Context()).Status, "and is not sent")
		dlqConserved(t, d)

		// A second call with the key waits until it is known whose the write is.
		second := make(chan error, 1)
		go func() {
			_, err := dlqCall(t.Context(), rt, http.MethodPost, "k")
			second <- err
		}()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := dlqCall(ctx, rt, http.MethodPost, "k")
		require.ErrorIs(t, err, context.Canceled)
		require.True(t, NotSent(err))
		synctest.Wait()
		require.Len(t, w.calls(), 1)
		close(release)
		require.ErrorIs(t, <-told, ErrParked)
		require.ErrorIs(t, <-second, ErrParked)
		require.Equal(t, dlqOnly(t, d).ID, s.ids()[0])
		onDisk(t, d)
		dlqConserved(t, d)
	})
}

func TestDLQStore_AFailedPutLeavesTheWriteWithItsCaller(t *testing.T) {
	for name, fault := range map[string]func(ctx context.Context, op, id string, effect func()) error{
		"fails": failing,
		"fails after the effect": func(_ context.Context, op, _ string, effect func()) error {
			effect()
			if op == "put" {
				return errShelf
			}
			return nil
		},
		"panics": func(context.Context, string, string, func()) error { panic("store") },
		"hangs until its context ends": func(ctx context.Context, _, _ string, _ func()) error {
			<-ctx.Done()
			return ctx.Err()
		},
		"hangs for an hour": func(_ context.Context, _, _ string, effect func()) error {
			time.Sleep(time.Hour)
			effect()
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newShelf()
				p := s.open()
				d := mustDLQ(t, DLQConfig{Store: p})
				p.set(fault)
				rt := d.Wrap(&dlqWorld{answer: dlqError(errDLQRefused)})
				for limit, most := range map[time.Duration]time.Duration{0: 5 * time.Second, 2 * time.Second: 2 * time.Second, time.Millisecond: time.Second} {
					ctx, cancel := t.Context(), func() {}
					if limit > 0 {
						ctx, cancel = context.WithTimeout(ctx, limit)
					}
					began := time.Now()
					_, err := dlqCall(ctx, rt, http.MethodPost, "k"+limit.String())
					cancel()
					require.LessOrEqual(t, time.Since(began), most)
					require.ErrorIs(t, err, ErrLettersFull)
					require.NotErrorIs(t, err, ErrParked)
					require.True(t, NotSent(err), "the cause keeps its verdict")
					require.Zero(t, d.Len())
					dlqConserved(t, d)
				}
				began := time.Now()
				err := d.Add(Letter{Operation: "op", Key: "added", Method: "PUT", URL: "http://h/"})
				require.LessOrEqual(t, time.Since(began), 5*time.Second)
				require.ErrorIs(t, err, ErrLettersFull)
				require.EqualValues(t, 4, d.Stats().Refused)
				require.False(t, d.holds("added"))
				p.set(nil)
				stop := dlqRun(t, d)
				time.Sleep(2 * time.Hour)
				stop()
				require.Empty(t, s.ids(), "nothing is kept")
				require.Zero(t, d.Stats().Unwritten)
				require.NoError(t, d.Add(Letter{Operation: "op", Key: "added"}))
				require.Len(t, s.ids(), 1)
				dlqConserved(t, d)
			})
		})
	}
}

// A caller whose time is over is why there is a letter: the store gets a second all the same. One who hangs up has taken
// the write back.
func TestDLQStore_GraceForACallerWhoseTimeIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		p := s.open()
		p.set(func(_ context.Context, _, _ string, effect func()) error {
			time.Sleep(900 * time.Millisecond)
			effect()
			return nil
		})
		d := mustDLQ(t, DLQConfig{Store: p})
		w := &dlqWorld{answer: func(_ int, req *http.Request) (*http.Response, error) {
			<-req.Context().Done()
			return nil, req.Context().Err()
		}}
		rt := d.Wrap(w)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		_, err := dlqCall(ctx, rt, http.MethodPut, "k1")
		require.ErrorIs(t, err, ErrParked)
		require.Equal(t, 1900*time.Millisecond, time.Since(began))

		w.set(dlqError(errDLQRefused))
		ctx, cancel = context.WithCancel(t.Context())
		time.AfterFunc(300*time.Millisecond, cancel)
		began = time.Now()
		_, err = dlqCall(ctx, rt, http.MethodPut, "k2")
		require.NotErrorIs(t, err, ErrParked)
		require.ErrorIs(t, err, ErrLettersFull)
		require.Equal(t, 300*time.Millisecond, time.Since(began))
		onDisk(t, d)
		require.Len(t, s.ids(), 1)
	})
}

func TestDLQStore_EveryChangeIsWrittenAndTheLastStateWins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		p := s.open()
		p.set(func(_ context.Context, _, _ string, effect func()) error {
			time.Sleep(10 * time.Millisecond)
			effect()
			return nil
		})
		d, w, rt := dlqParked(t, DLQConfig{Store: p, Attempts: 2})
		id := dlqOnly(t, d).ID
		same := func() Letter {
			t.Helper()
			onDisk(t, d)
			l, _ := d.Get(id)
			require.Equal(t, l, s.get(id))
			return l
		}
		same()
		w.set(dlqStatus(503))
		_, err := dlqCall(WithCall(t.Context(), Call{Operation: "op", Effect: EffectIdempotent}), rt, http.MethodPost, "k")
		require.ErrorIs(t, err, ErrParked)
		require.Equal(t, 503, s.get(id).StatusCode, "the caller is told when it is written")
		time.Sleep(time.Minute)
		ls, _ := d.take(t.Context())
		onDisk(t, d)
		require.False(t, s.get(id).Leased, "leases are not stored")
		d.redrive(ls)
		require.True(t, same().InDoubt || same().Attempts > 0)
		require.NoError(t, d.Requeue(id))
		for range 20 {
			d.settle("k", keyNews{verdict: keyUnknown})
			d.settle("k", keyNews{verdict: keyNotApplied})
		}
		require.False(t, same().InDoubt)
		d.supersede("", "", time.Now())
		require.NoError(t, d.Delete(id, ""))
		require.Empty(t, s.ids(), "Delete returns when it is gone")
		require.Zero(t, d.Stats().Unwritten)
	})
}

func TestDLQStore_WhatFailedIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		p := s.open()
		var mu sync.Mutex
		var unwritten []Event
		d, _, _ := dlqParked(t, DLQConfig{Store: p, MaxLetters: 2, OnEvent: func(e Event) {
			mu.Lock()
			defer mu.Unlock()
			if e.Kind == EventLetterUnwritten {
				unwritten = append(unwritten, e)
			}
		}})
		id := dlqOnly(t, d).ID
		p.set(failing)
		require.NoError(t, d.Requeue(id))
		require.ErrorIs(t, d.Delete(id, ""), ErrStore)
		require.Zero(t, d.Len())
		require.Equal(t, []string{id}, s.ids())
		st := d.Stats()
		require.Equal(t, 1, st.Unwritten)
		require.NotZero(t, st.StoreFailures)
		require.ErrorContains(t, d.writeRest(t.Context()), "1 letters")

		// Removals that are owed need room, or there would be no end of them.
		require.ErrorIs(t, d.Add(Letter{Operation: "a"}), ErrLettersFull)
		synctest.Wait()
		require.ErrorIs(t, d.Add(Letter{Operation: "b"}), ErrLettersFull)
		synctest.Wait()
		require.ErrorIs(t, d.Add(Letter{Operation: "c"}), ErrLettersFull)
		require.Equal(t, 2, d.Stats().Unwritten)

		stop := dlqRun(t, d)
		time.Sleep(10 * time.Minute)
		before := d.Stats().StoreFailures
		require.Less(t, before, uint64(100), "it backs off")
		p.set(nil)
		time.Sleep(time.Minute)
		stop()
		require.Empty(t, s.ids())
		require.Zero(t, d.Stats().Unwritten)
		require.NoError(t, d.close(t.Context()))
		mu.Lock()
		defer mu.Unlock()
		require.NotEmpty(t, unwritten)
		require.Equal(t, id, unwritten[0].LetterID)
	})
}

func TestDLQStore_CloseBringsTheRestThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		p := s.open()
		d, _, _ := dlqParked(t, DLQConfig{Store: p})
		id := dlqOnly(t, d).ID
		p.set(failing)
		require.NoError(t, d.Requeue(id))
		synctest.Wait()
		require.ErrorIs(t, d.close(t.Context()), ErrStore)
		p.set(nil)
		require.NoError(t, d.close(t.Context()), "a second one tries again")
		require.Equal(t, dlqOnly(t, d), s.get(id))

		p.set(func(context.Context, string, string, func()) error { time.Sleep(time.Hour); return nil })
		d.settle("k", keyNews{verdict: keyUnknown})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.ErrorIs(t, d.close(ctx), context.DeadlineExceeded)
		time.Sleep(2 * time.Hour) // it must have ended before the bubble does
	})
}

func TestDLQStore_ANewQueueGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		first := s.open()
		old := mustDLQ(t, DLQConfig{Store: first})
		for _, l := range dlqVaried(t).List(LetterFilter{}) {
			require.NoError(t, old.Add(l))
		}
		leased, _ := old.take(t.Context())
		want := old.List(LetterFilter{})
		for i := range want {
			want[i].Leased = false
		}
		first.kill()
		d := mustDLQ(t, DLQConfig{Store: s.open(), MaxLetters: 2})
		require.Equal(t, want, d.List(LetterFilter{}))
		require.EqualValues(t, len(want), d.Stats().Loaded)
		dlqConserved(t, d)
		require.ErrorIs(t, d.Add(Letter{Operation: "x"}), ErrLettersFull, "more than fit were loaded")
		if leased != nil {
			old.finish(leased)
		}

		// Importing an old export of the same letters changes nothing.
		require.NoError(t, d.Import(bytes.NewReader(dlqExport(t, old))))
		require.Equal(t, want, d.List(LetterFilter{}))

		// How ids of keys are made may become known later.
		d.box.keyID = letterKeyHash
		require.True(t, d.holds(letterKeyHash(want[0].Key)))
		d.settle(letterKeyHash(want[0].Key), keyNews{verdict: keyDone})
		require.Len(t, d.List(LetterFilter{}), len(want)-1)
		dlqConserved(t, d)
	})
}

// A removal that got lost with the process leaves two letters of one key.
func TestDLQStore_OneLetterForAKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 20 { // in whatever order they are loaded
			s := newShelf()
			now := time.Now()
			for i, l := range []Letter{{ID: "a", InDoubt: true}, {ID: "b"}, {ID: "c"}, {ID: "other", Key: "other"}} {
				l.Operation, l.Key = "op", or(l.Key, "k")
				l.First, l.Last, l.Next = now, now.Add(time.Duration(i)*time.Second), now.Add(time.Hour)
				s.letters[l.ID] = l
			}
			d := mustDLQ(t, DLQConfig{Store: s.open()})
			require.Equal(t, 2, d.Len())
			l, ok := d.Get("c")
			require.True(t, ok)
			require.True(t, l.InDoubt, "what the older one knew")
			dlqConserved(t, d)
			require.Len(t, s.ids(), 4, "making a queue writes nothing")
			stop := dlqRun(t, d)
			time.Sleep(time.Second)
			stop()
			require.Equal(t, []string{"c", "other"}, s.ids())
			require.True(t, s.get("c").InDoubt)
		}
	})
}

type badLoad struct {
	LetterStore
	load func(context.Context, func(Letter) error) error
}

func (b badLoad) Load(ctx context.Context, each func(Letter) error) error { return b.load(ctx, each) }

func TestDLQStore_NewFailsWhereLettersCannotBeRead(t *testing.T) {
	for name, load := range map[string]func(context.Context, func(Letter) error) error{
		"error":  func(context.Context, func(Letter) error) error { return errShelf },
		"panic":  func(context.Context, func(Letter) error) error { panic("store") },
		"no id":  func(_ context.Context, each func(Letter) error) error { return each(Letter{}) },
		"hangs":  func(context.Context, func(Letter) error) error { time.Sleep(time.Hour); return nil },
		"slow":   func(ctx context.Context, _ func(Letter) error) error { <-ctx.Done(); return ctx.Err() },
		"sealed": func(_ context.Context, each func(Letter) error) error { return each(Letter{ID: "x", URL: "bad"}) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				same := func(l Letter) (Letter, error) { return l, nil }
				open := func(l Letter) (Letter, error) {
					if l.URL == "bad" {
						return l, errors.New("wrong key")
					}
					return l, nil
				}
				d, err := NewDLQ(DLQConfig{Store: badLoad{load: load}, Seal: same, Open: open})
				require.ErrorContains(t, err, "loading the letters")
				require.Nil(t, d)
				time.Sleep(2 * time.Hour)
			})
		})
	}
}

// sealer encrypts requests as a program may do it.
func sealer(t testing.TB) (seal, open func(Letter) (Letter, error)) {
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	block, err := aes.NewCipher(key)
	require.NoError(t, err)
	gcm, err := cipher.NewGCMWithRandomNonce(block)
	require.NoError(t, err)
	type request struct {
		URL, Host string
		Header    http.Header
		Body      []byte
	}
	seal = func(l Letter) (Letter, error) {
		plain, err := json.Marshal(request{l.URL, l.Host, l.Header, l.Body})
		l.URL, l.Host, l.Header = "", "", nil
		l.Body = gcm.Seal(nil, nil, plain, []byte(l.ID))
		return l, err
	}
	open = func(l Letter) (Letter, error) {
		plain, err := gcm.Open(nil, nil, l.Body, []byte(l.ID))
		if err != nil {
			return l, err
		}
		var r request
		err = json.Unmarshal(plain, &r)
		l.URL, l.Host, l.Header, l.Body = r.URL, r.Host, r.Header, r.Body
		return l, err
	}
	return seal, open
}

func TestDLQStore_Sealed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		seal, open := sealer(t)
		cfg := DLQConfig{Store: s.open(), Seal: seal, Open: open}
		d := mustDLQ(t, cfg)
		const secret = "+15550100"
		require.NoError(t, d.Add(Letter{
			ID: "x", Operation: "op", Method: "POST", URL: "http://h/" + secret, Host: secret,
			Header: http.Header{"X-To": {secret}, "Authorization": {"x"}}, Body: []byte(secret),
		}))
		require.NotContains(t, fmt.Sprintf("%+v %s", s.get("x"), s.get("x").Body), secret)
		want := d.List(LetterFilter{})
		require.Contains(t, string(want[0].Body), secret, "in memory it is as it was")
		file := dlqExport(t, d)
		require.NotContains(t, string(file), secret)

		again := mustDLQ(t, cfg)
		require.Equal(t, want, again.List(LetterFilter{}))
		cfg.Store = nil
		into := mustDLQ(t, cfg)
		require.NoError(t, into.Import(bytes.NewReader(file)))
		require.Equal(t, dlqPlain(want), dlqPlain(into.List(LetterFilter{})))
		require.ErrorContains(t, mustDLQ(t, DLQConfig{}).Import(bytes.NewReader(file)), "sealed")
		require.NoError(t, into.Delete("x", ""))
		require.NoError(t, into.Import(bytes.NewReader(dlqExport(t, dlqVaried(t)))), "one that is not sealed is taken all the same")

		otherSeal, otherOpen := sealer(t)
		_, err := NewDLQ(DLQConfig{Store: s.open(), Seal: otherSeal, Open: otherOpen})
		require.Error(t, err)
		require.Error(t, mustDLQ(t, DLQConfig{Seal: otherSeal, Open: otherOpen}).Import(bytes.NewReader(file)))
		_, err = NewDLQ(DLQConfig{Seal: seal})
		require.ErrorContains(t, err, "DLQ.Seal")

		d.cfg.Seal = func(Letter) (Letter, error) { panic("seal") }
		require.ErrorIs(t, d.Add(Letter{Operation: "op"}), ErrLettersFull)
		require.Error(t, d.Export(&bytes.Buffer{}))
		require.Len(t, s.ids(), 1)
	})
}

func TestDLQStore_ImportIsAllOrNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		p := s.open()
		d := mustDLQ(t, DLQConfig{Store: p})
		file := dlqExport(t, dlqVaried(t))
		p.set(func(_ context.Context, op, id string, effect func()) error {
			if id == "old" && op == "put" {
				return errShelf
			}
			effect()
			return nil
		})
		err := d.Import(bytes.NewReader(file))
		require.ErrorIs(t, err, ErrLettersFull)
		require.ErrorIs(t, err, errShelf)
		require.Zero(t, d.Len())
		onDisk(t, d)
		require.Empty(t, s.ids())
		p.set(nil)
		require.NoError(t, d.Import(bytes.NewReader(file)))
		require.Equal(t, 4, d.Len())
		require.Len(t, s.ids(), 4)
		require.Equal(t, dlqExport(t, d), dlqExport(t, mustDLQ(t, DLQConfig{Store: s.open()})))
		dlqConserved(t, d)
	})
}

// The doubt that an import brings is in the store when Import returns: the file may be gone then, and the process too.
func TestDLQStore_ImportedDoubtIsWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		p := s.open()
		d := mustDLQ(t, DLQConfig{Store: p})
		require.NoError(t, d.Add(Letter{ID: "here", Operation: "op", Key: "k"}))
		slow := func(_ context.Context, _, _ string, effect func()) error {
			time.Sleep(time.Second)
			effect()
			return nil
		}
		p.set(slow)
		require.NoError(t, d.Import(bytes.NewReader(inDoubtFile(t))))
		require.True(t, s.get("here").InDoubt)
		require.Equal(t, []string{"here", "new"}, s.ids())
		p.kill()
		again := mustDLQ(t, DLQConfig{Store: s.open()})
		l, _ := again.Get("here")
		require.Equal(t, LetterInDoubt, l.State())
	})
}

// Where the store does not take the doubt, Import says so; here it counts all the same, and it is written later.
func TestDLQStore_ImportedDoubtCountsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		p := s.open()
		d := mustDLQ(t, DLQConfig{Store: p})
		require.NoError(t, d.Add(Letter{ID: "here", Operation: "op", Key: "k"}))
		stop := dlqRun(t, d)
		p.set(failing)
		require.ErrorIs(t, d.Import(bytes.NewReader(inDoubtFile(t))), ErrLettersFull)
		require.Equal(t, LetterInDoubt, dlqOnly(t, d).State())
		p.set(nil)
		time.Sleep(time.Minute)
		require.True(t, s.get("here").InDoubt)
		stop()
		dlqConserved(t, d)
	})
}

// The news of a key may come while its letter is on its way into the store.
func TestDLQStore_SettledWhileItArrives(t *testing.T) {
	for _, verdict := range []keyVerdict{keyDone, keyUnknown, keyNotApplied} {
		synctest.Test(t, func(t *testing.T) {
			s := newShelf()
			p := s.open()
			d := mustDLQ(t, DLQConfig{Store: p})
			p.set(func(_ context.Context, _, _ string, effect func()) error {
				time.Sleep(time.Second)
				effect()
				return nil
			})
			rt := d.Wrap(&dlqWorld{answer: dlqError(errors.New("reset"))})
			told := make(chan error, 1)
			go func() {
				_, err := dlqCall(WithCall(t.Context(), Call{Effect: EffectOnce}), rt, http.MethodPost, "k")
				told <- err
			}()
			synctest.Wait()
			d.settle("k", keyNews{verdict: verdict})
			require.ErrorIs(t, <-told, ErrParked)
			onDisk(t, d)
			dlqConserved(t, d)
			if verdict == keyDone {
				require.Zero(t, d.Len())
				require.Empty(t, s.ids())
				require.EqualValues(t, 1, d.Stats().Acked)
				return
			}
			require.Equal(t, verdict == keyUnknown, dlqOnly(t, d).InDoubt)
			require.Equal(t, dlqOnly(t, d), s.get(s.ids()[0]))
		})
	}
}

// Under OverflowDropOldest nothing is dropped for a letter that does not get into the store.
func TestDLQStore_DropsOnlyForWhatArrives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		p := s.open()
		var dropped []string
		d := mustDLQ(t, DLQConfig{Store: p, MaxLetters: 2, Overflow: OverflowDropOldest, OnDrop: func(l Letter) { dropped = append(dropped, l.ID) }})
		require.NoError(t, d.Add(Letter{ID: "1", Operation: "op"}))
		time.Sleep(time.Second)
		require.NoError(t, d.Add(Letter{ID: "2", Operation: "op"}))
		p.set(failing)
		require.ErrorIs(t, d.Add(Letter{ID: "3", Operation: "op"}), ErrLettersFull)
		require.Equal(t, 2, d.Len())
		p.set(nil)
		require.NoError(t, d.Add(Letter{ID: "4", Operation: "op"}))
		require.NoError(t, d.events.drain(t.Context()))
		require.Equal(t, []string{"1"}, dropped)
		stop := dlqRun(t, d)
		time.Sleep(time.Second)
		stop()
		require.Equal(t, []string{"2", "4"}, s.ids())
		dlqConserved(t, d)
	})
}

// Room that is not used after all goes to who waits for it.
func TestDLQStore_RoomComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newShelf().open()
		d := mustDLQ(t, DLQConfig{Store: p, MaxLetters: 1, Overflow: OverflowBlock})
		p.set(func(ctx context.Context, op, _ string, effect func()) error {
			time.Sleep(time.Second)
			if op == "put" && d.Stats().StoreFailures == 0 {
				return errShelf
			}
			effect()
			return nil
		})
		rt := d.Wrap(&dlqWorld{answer: dlqError(errDLQRefused)})
		errs := make(chan error, 2)
		for i := range 2 {
			go func() {
				_, err := dlqCall(t.Context(), rt, http.MethodPost, fmt.Sprint("k", i))
				errs <- err
			}()
			synctest.Wait()
		}
		require.Equal(t, 1, d.Stats().Blocked)
		require.ErrorIs(t, <-errs, ErrLettersFull)
		require.ErrorIs(t, <-errs, ErrParked)
		require.Equal(t, 1, d.Len())
		dlqConserved(t, d)
	})
}

// Many letters at once: few writers, no write of one letter beside another.
func TestDLQStore_WritersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		p := s.open()
		d := mustDLQ(t, DLQConfig{Store: p, Rate: -1})
		var mu sync.Mutex
		now, most := 0, 0
		p.set(func(_ context.Context, _, _ string, effect func()) error {
			mu.Lock()
			now++
			most = max(most, now)
			mu.Unlock()
			time.Sleep(time.Millisecond)
			effect()
			mu.Lock()
			now--
			mu.Unlock()
			return nil
		})
		var wg sync.WaitGroup
		for i := range 500 {
			wg.Go(func() {
				require.NoError(t, d.Add(Letter{ID: fmt.Sprint(i), Operation: "op", Call: Call{Resource: "r"}}))
			})
		}
		wg.Wait()
		d.mu.Lock()
		d.supersede("r", "", time.Now().Add(time.Hour))
		d.mu.Unlock()
		onDisk(t, d)
		require.Equal(t, letterWriters, most)
		for _, l := range d.List(LetterFilter{}) {
			require.Equal(t, l, s.get(l.ID))
			require.True(t, l.Superseded)
		}
		require.Zero(t, d.Stats().Unwritten)
		require.Empty(t, d.journal.entries)
		require.Nil(t, d.journal.queue)
	})
}

// letterKeyHash makes ids of keys, as the layer for keys does.
func letterKeyHash(key string) string {
	sum := sha256.Sum256([]byte(key))
	return hex.EncodeToString(sum[:])
}
