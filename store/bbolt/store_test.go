package boltstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
	"github.com/retell-resilience/resilience/storetest"
)

func open(t testing.TB, path string, opts Options) *Store {
	t.Helper()
	s, err := Open(path, opts)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

func TestConformance(t *testing.T) {
	paths := map[resilience.KeyStore]string{}
	start := func(opts Options) func(t *testing.T) resilience.KeyStore {
		return func(t *testing.T) resilience.KeyStore {
			path := filepath.Join(t.TempDir(), "keys.db")
			s := open(t, path, opts)
			paths[s] = path
			return s
		}
	}
	reopen := func(t *testing.T, old resilience.KeyStore) resilience.KeyStore {
		s, _ := old.(*Store)
		require.NoError(t, s.Close())
		next := open(t, paths[old], Options{})
		paths[next] = paths[old]
		return next
	}
	storetest.Run(t, start(Options{}), storetest.Reopen(reopen), storetest.Bounded(24, start(Options{MaxKeys: 24})))
}

func claim(id, token string) resilience.Record {
	return resilience.Record{ID: id, State: resilience.KeyClaimed, Token: token, Owner: "owner", Epoch: 1}
}

func swap(t testing.TB, s *Store, old uint64, rec resilience.Record) uint64 {
	t.Helper()
	version, swapped, err := s.CompareAndSwap(context.Background(), old, rec)
	require.NoError(t, err)
	require.True(t, swapped)
	return version
}

func keysFile(t testing.TB) string { return filepath.Join(t.TempDir(), "keys.db") }

func TestOpen_OptionsAreChecked(t *testing.T) {
	_, err := Open(keysFile(t), Options{MaxKeys: -2, LockTimeout: -2, Mode: fs.ModeDir | 0o600})
	require.ErrorContains(t, err, "MaxKeys")
	require.ErrorContains(t, err, "LockTimeout")
	require.ErrorContains(t, err, "Mode")
	_, err = Open(keysFile(t), Options{Mode: 0o400})
	require.ErrorContains(t, err, "Mode")
	_, err = Open(filepath.Join(t.TempDir(), "missing", "keys.db"), Options{})
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = Open(t.TempDir(), Options{})
	require.ErrorIs(t, err, ErrCorrupt)
}

func TestOpen_FileIsTheOwnersAlone(t *testing.T) {
	path := keysFile(t)
	open(t, path, Options{})
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o600), info.Mode())
	entries, err := os.ReadDir(filepath.Dir(path))
	require.NoError(t, err)
	require.Len(t, entries, 1, "nothing is left over from making the file")
}

func TestOpen_SecondStoreIsRefused(t *testing.T) {
	path := keysFile(t)
	s := open(t, path, Options{})
	for _, timeout := range []time.Duration{-1, time.Millisecond, 100 * time.Millisecond} {
		_, err := Open(path, Options{LockTimeout: timeout})
		require.ErrorIs(t, err, ErrLocked)
		require.ErrorContains(t, err, path, "which file it is")
	}
	require.NoError(t, s.Close())
	open(t, path, Options{LockTimeout: -1})
}

// Whoever says nothing about it waits a second for another process to close the file.
func TestOpen_WaitsASecondByDefault(t *testing.T) {
	path := keysFile(t)
	synctest.Test(t, func(t *testing.T) {
		s, err := Open(path, Options{})
		require.NoError(t, err)
		began := time.Now()
		_, err = Open(path, Options{})
		require.ErrorIs(t, err, ErrLocked)
		require.InDelta(t, time.Second, time.Since(began), float64(100*time.Millisecond))
		time.AfterFunc(900*time.Millisecond, func() { _ = s.Close() })
		s, err = Open(path, Options{})
		require.NoError(t, err)
		require.NoError(t, s.Close())
	})
}

// Of several that create the file at once one has it, and no half of a file is seen.
func TestOpen_CreatedOnce(t *testing.T) {
	for range 10 {
		path := keysFile(t)
		var wins atomic.Int64
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				s, err := Open(path, Options{LockTimeout: -1})
				if err == nil {
					wins.Add(1)
					defer func() { _ = s.Close() }()
					_, _, err = s.CompareAndSwap(context.Background(), 0, claim("key", "a"))
				}
				if err != nil && !errors.Is(err, ErrLocked) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if wins.Load() == 0 {
			continue // each met another one's look at the file
		}
		rec, err := open(t, path, Options{}).Load(t.Context(), "key")
		require.NoError(t, err)
		require.Equal(t, "a", rec.Token)
	}
}

func TestClose_EverythingFailsAfterwards(t *testing.T) {
	s := open(t, keysFile(t), Options{})
	swap(t, s, 0, claim("key", "a"))
	require.NoError(t, s.Close())
	require.NoError(t, s.Close())
	ctx := t.Context()
	_, swapped, err := s.CompareAndSwap(ctx, 0, claim("other", "a"))
	require.ErrorIs(t, err, resilience.ErrClosed)
	require.False(t, swapped)
	_, err = s.Load(ctx, "key")
	require.ErrorIs(t, err, resilience.ErrClosed)
	_, _, err = s.Unsettled(ctx, "", 1)
	require.ErrorIs(t, err, resilience.ErrClosed)
	_, err = s.Sweep(ctx, 1, func(string) bool { return false })
	require.ErrorIs(t, err, resilience.ErrClosed)
	require.EqualValues(t, 1, s.Stats().Keys)
}

// Writers queue behind a commit; a context that ends takes its write out of the queue, and Close ends the others.
func TestQueue_WithdrawAndClose(t *testing.T) {
	path := keysFile(t)
	synctest.Test(t, func(t *testing.T) {
		s, err := Open(path, Options{})
		require.NoError(t, err)
		s.turn <- struct{}{} // a commit is under way
		gone := errors.New("the caller is gone")
		ctx, cancel := context.WithCancelCause(t.Context())
		results := make(chan error, 3)
		write := func(ctx context.Context, id string) {
			_, swapped, err := s.CompareAndSwap(ctx, 0, claim(id, "a"))
			if swapped {
				err = errors.Join(err, errors.New("swapped"))
			}
			results <- err
		}
		go write(ctx, "withdrawn")
		synctest.Wait()
		go write(t.Context(), "waiting")
		synctest.Wait()
		require.Equal(t, 2, s.Stats().Queued)
		cancel(gone)
		require.ErrorIs(t, <-results, gone)
		synctest.Wait()
		require.Equal(t, 1, s.Stats().Queued)

		closed := make(chan error)
		go func() { closed <- s.Close() }()
		require.ErrorIs(t, <-results, resilience.ErrClosed)
		synctest.Wait()
		require.Zero(t, s.Stats().Queued)
		select {
		case <-closed:
			t.Fatal("Close did not wait for the commit under way")
		default:
		}
		<-s.turn
		require.NoError(t, <-closed)
	})
	s := open(t, path, Options{})
	require.Zero(t, s.Stats().Keys, "what was withdrawn or refused was written")
}

// All that queue while a commit is under way share the next one, and a write whose commit has begun is waited for.
func TestQueue_OneCommitForMany(t *testing.T) {
	const writers = 64
	path := keysFile(t)
	synctest.Test(t, func(t *testing.T) {
		s, err := Open(path, Options{})
		require.NoError(t, err)
		s.turn <- struct{}{}
		var wg sync.WaitGroup
		for i := range writers {
			wg.Go(func() {
				if _, swapped, err := s.CompareAndSwap(t.Context(), 0, claim(fmt.Sprint(i), "a")); err != nil || !swapped {
					t.Error(swapped, err)
				}
			})
		}
		synctest.Wait()
		<-s.turn
		wg.Wait()
		st := s.Stats()
		require.Equal(t, int64(1), st.Commits)
		require.Equal(t, int64(writers), st.Writes)
		require.Equal(t, int64(writers), st.LargestCommit)
		require.Equal(t, int64(writers), st.Keys)
		require.Equal(t, int64(writers), st.Unsettled)
		require.NoError(t, s.Close())
	})
}

// A context that ends when the commit has begun changes nothing: only the end of the commit tells whether the key is held.
func TestQueue_ACommitThatHasBegunIsWaitedFor(t *testing.T) {
	path := keysFile(t)
	synctest.Test(t, func(t *testing.T) {
		s, err := Open(path, Options{})
		require.NoError(t, err)
		s.turn <- struct{}{}
		release := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() { // the first in line commits for both
			if err := s.do(t.Context(), 0, func(*batch) error { <-release; return nil }); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		told := make(chan bool, 1)
		wg.Go(func() {
			_, swapped, err := s.CompareAndSwap(ctx, 0, claim("key", "a"))
			if err != nil {
				t.Error(err)
			}
			told <- swapped
		})
		synctest.Wait()
		<-s.turn
		synctest.Wait()
		cancel()
		synctest.Wait()
		require.Empty(t, told)
		close(release)
		wg.Wait()
		require.True(t, <-told)
		require.NoError(t, s.Close())
	})
}

// Who commits for those before it withdraws its own write, too, when its context ends before the write's turn has come.
func TestQueue_WhoCommitsForOthersWithdrawsToo(t *testing.T) {
	path := keysFile(t)
	synctest.Test(t, func(t *testing.T) {
		s, err := Open(path, Options{})
		require.NoError(t, err)
		release := make(chan struct{})
		before := &work{size: maxBatchBytes, run: func(*batch) error { <-release; return nil }, done: make(chan struct{})}
		s.queue = append(s.queue, before) // its writer has not come to ask for the turn yet
		ctx, cancel := context.WithCancel(t.Context())
		result := make(chan error)
		go func() {
			rec := claim("key", "a")
			rec.Body = []byte("too much for the commit of the other")
			_, swapped, err := s.CompareAndSwap(ctx, 0, rec)
			if swapped {
				err = errors.Join(err, errors.New("swapped"))
			}
			result <- err
		}()
		synctest.Wait()
		cancel()
		close(release)
		require.EqualError(t, <-result, context.Canceled.Error())
		<-before.done
		require.NoError(t, before.err)
		require.Zero(t, s.Stats().Queued)
		swap(t, s, 0, claim("key", "b")) // the turn was given back
		require.NoError(t, s.Close())
	})
}

// A single writer commits at once, by itself: there is nobody to hand the work to, and no timer.
func TestQueue_SingleWriterWaitsForNobody(t *testing.T) {
	path := keysFile(t)
	synctest.Test(t, func(t *testing.T) {
		s, err := Open(path, Options{})
		require.NoError(t, err)
		began := time.Now()
		version := uint64(0)
		for range 20 {
			version = swap(t, s, version, claim("key", "a"))
		}
		require.Zero(t, time.Since(began), "it waited for a timer")
		require.NoError(t, s.Close())
	})
}

func TestQueue_LargeBodiesAreSpreadOverCommits(t *testing.T) {
	path := keysFile(t)
	synctest.Test(t, func(t *testing.T) {
		s, err := Open(path, Options{})
		require.NoError(t, err)
		s.turn <- struct{}{}
		var wg sync.WaitGroup
		for i := range 5 {
			wg.Go(func() {
				rec := claim(fmt.Sprint(i), "a")
				rec.Body = make([]byte, maxBatchBytes/2)
				swap(t, s, 0, rec)
			})
		}
		synctest.Wait()
		<-s.turn
		wg.Wait()
		require.Equal(t, int64(3), s.Stats().Commits)
		require.NoError(t, s.Close())
	})
}

// However many wait, a commit takes so many at most, and the next one the rest.
func TestQueue_ManyAreSpreadOverCommits(t *testing.T) {
	path := keysFile(t)
	synctest.Test(t, func(t *testing.T) {
		s, err := Open(path, Options{})
		require.NoError(t, err)
		s.turn <- struct{}{}
		var wg sync.WaitGroup
		for i := range maxBatch + 1 {
			wg.Go(func() { swap(t, s, 0, claim(fmt.Sprint(i), "a")) })
		}
		synctest.Wait()
		<-s.turn
		wg.Wait()
		require.Equal(t, int64(2), s.Stats().Commits)
		require.Equal(t, int64(maxBatch), s.Stats().LargestCommit)
		require.NoError(t, s.Close())
	})
}

// Of many that come for one key at once, one wins; the others hear so and count as nothing written.
func TestQueue_LosersOfACommitWroteNothing(t *testing.T) {
	path := keysFile(t)
	synctest.Test(t, func(t *testing.T) {
		s, err := Open(path, Options{})
		require.NoError(t, err)
		s.turn <- struct{}{}
		var wins atomic.Int64
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				_, swapped, err := s.CompareAndSwap(t.Context(), 0, claim("key", fmt.Sprint(i)))
				if err != nil {
					t.Error(err)
				}
				if swapped {
					wins.Add(1)
				}
			})
		}
		synctest.Wait()
		<-s.turn
		wg.Wait()
		require.EqualValues(t, 1, wins.Load())
		require.Equal(t, int64(1), s.Stats().Commits)
		require.Equal(t, int64(1), s.Stats().Writes)
		require.Equal(t, int64(1), s.Stats().LargestCommit)
		require.NoError(t, s.Close())
	})
}

// Losing costs no sync, and neither does a sweep that finds nothing.
func TestCommit_NothingChangedNothingWritten(t *testing.T) {
	s := open(t, keysFile(t), Options{})
	swap(t, s, 0, claim("key", "a"))
	require.NoError(t, s.do(t.Context(), 0, func(b *batch) error {
		_, swapped, own, failure := b.swap(0, claim("key", "b"))
		require.False(t, swapped)
		return errors.Join(own, failure)
	}))
	_, swapped, err := s.CompareAndSwap(t.Context(), 0, claim("key", "b"))
	require.NoError(t, err)
	require.False(t, swapped)
	_, err = s.Sweep(t.Context(), 10, func(string) bool { return false })
	require.NoError(t, err)
	require.Equal(t, int64(1), s.Stats().Commits)
}

// To free a key that nobody has is no error, and changes neither the counts nor the file.
func TestCommit_FreeingWhatIsFree(t *testing.T) {
	path := keysFile(t)
	s := open(t, path, Options{})
	free := resilience.Record{ID: "nobody's", State: resilience.KeyFree}
	_, swapped, err := s.CompareAndSwap(t.Context(), 0, free)
	require.NoError(t, err)
	require.True(t, swapped)
	swap(t, s, 0, claim("key", "a"))
	require.EqualValues(t, 1, s.Stats().Keys)
	require.EqualValues(t, 1, s.Stats().Unsettled)
	require.EqualValues(t, 1, s.Stats().Commits)
	require.NoError(t, s.Close())
	require.EqualValues(t, 1, open(t, path, Options{}).Stats().Keys)
}

// A commit that may have got half way ends the store: what it remembers need not be what the disk holds.
func TestCommit_UnknownFateEndsTheStore(t *testing.T) {
	path := keysFile(t)
	s := open(t, path, Options{})
	version := swap(t, s, 0, claim("key", "a"))
	fault := errors.New("the sync failed")
	require.ErrorIs(t, s.commitFailed(s.lastCommit()+1, fault), fault)
	_, _, err := s.CompareAndSwap(t.Context(), version, claim("key", "b"))
	require.ErrorIs(t, err, fault)
	require.ErrorContains(t, err, "opened anew")
	_, err = s.Load(t.Context(), "key")
	require.ErrorIs(t, err, fault)
	require.ErrorIs(t, s.Stats().Broken, fault)
	require.NoError(t, s.Close())
	rec, err := open(t, path, Options{}).Load(t.Context(), "key")
	require.NoError(t, err)
	require.Equal(t, "a", rec.Token)
}

// Nor does a store that has ended go on with what is queued.
func TestCommit_WhatIsQueuedEndsWithTheStore(t *testing.T) {
	path := keysFile(t)
	synctest.Test(t, func(t *testing.T) {
		s, err := Open(path, Options{})
		require.NoError(t, err)
		s.turn <- struct{}{} // a commit is under way
		result := make(chan error)
		go func() {
			_, _, err := s.CompareAndSwap(t.Context(), 0, claim("queued", "a"))
			result <- err
		}()
		synctest.Wait()
		fault := errors.New("the sync failed")
		require.ErrorIs(t, s.commitFailed(s.lastCommit()+1, fault), fault)
		<-s.turn
		require.ErrorIs(t, <-result, fault)
		require.NoError(t, s.Close())
	})
	require.Zero(t, open(t, path, Options{}).Stats().Keys, "it was written")
}

// A store goes on after a write that failed, as on a full disk, if the file shows that nothing of the commit arrived.
func TestCommit_GoesOnIfTheFileIsAsItWas(t *testing.T) {
	full := &fs.PathError{Op: "write", Path: "keys.db", Err: errors.New("no space left on device")}
	resize := errors.New("file resize error: truncate keys.db: file too large")
	for name, c := range map[string]struct {
		err    error
		later  int // by how much the commit is later than the last that the file knows
		broken bool
	}{
		"a page was not written":                  {err: full, later: 1},
		"the file did not grow":                   {err: resize, later: 1},
		"a page was not written, but it arrived":  {err: full, broken: true},
		"the file did not grow, but it arrived":   {err: resize, broken: true},
		"something else failed than a write":      {err: &fs.PathError{Op: "sync", Err: errors.New("input/output error")}, later: 1, broken: true},
		"a panic over a page that makes no sense": {err: fmt.Errorf("%w: page 7", ErrCorrupt), later: 1, broken: true},
		"nobody knows what":                       {err: errors.New("unknown"), later: 1, broken: true},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := Open(keysFile(t), Options{})
			require.NoError(t, err)
			version := swap(t, s, 0, claim("key", "a"))
			require.ErrorIs(t, s.commitFailed(s.lastCommit()+c.later, c.err), c.err)
			_, swapped, err := s.CompareAndSwap(t.Context(), version, claim("key", "b"))
			require.Equal(t, !c.broken, swapped)
			if c.broken {
				require.ErrorIs(t, err, c.err)
				require.ErrorIs(t, s.Stats().Broken, c.err)
			} else {
				require.NoError(t, err)
				require.NoError(t, s.Stats().Broken)
			}
			if errors.Is(c.err, ErrCorrupt) {
				require.ErrorIs(t, s.Close(), ErrCorrupt)
			} else {
				require.NoError(t, s.Close())
			}
			_ = s.db.Close() // which Close leaves open after a panic, for its locks may be held
		})
	}
}

// A file that cannot be looked at after a commit that failed is not taken for one that is as it was.
func TestCommit_AFileThatCannotBeReadEndsTheStore(t *testing.T) {
	s, err := Open(keysFile(t), Options{})
	require.NoError(t, err)
	require.NoError(t, s.db.Close())
	full := &fs.PathError{Op: "write", Path: "keys.db", Err: errors.New("no space left on device")}
	require.ErrorIs(t, s.commitFailed(7, full), full)
	require.ErrorIs(t, s.Stats().Broken, full)
}

func TestMaxKeys(t *testing.T) {
	path := keysFile(t)
	s := open(t, path, Options{MaxKeys: -1})
	for i := range 10 {
		swap(t, s, 0, claim(fmt.Sprint(i), "a"))
	}
	require.NoError(t, s.Close())
	s = open(t, path, Options{MaxKeys: 5})
	_, _, err := s.CompareAndSwap(t.Context(), 0, claim("new", "a"))
	require.ErrorIs(t, err, resilience.ErrStoreFull)
	rec, err := s.Load(t.Context(), "3")
	require.NoError(t, err)
	swap(t, s, rec.Version, claim("3", "b"))
}

// A caller who has gone is told with its own cause, and nothing is read or written for it.
func TestContext_ItsCauseIsReturned(t *testing.T) {
	s := open(t, keysFile(t), Options{})
	gone := errors.New("the caller is gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(gone)
	_, swapped, err := s.CompareAndSwap(ctx, 0, claim("key", "a"))
	require.ErrorIs(t, err, gone)
	require.False(t, swapped)
	_, err = s.Load(ctx, "key")
	require.ErrorIs(t, err, gone)
	require.ErrorIs(t, s.Letters().Put(ctx, resilience.Letter{ID: "x"}), gone)
	require.ErrorIs(t, s.Letters().Remove(ctx, "x"), gone)
	require.ErrorIs(t, s.Letters().Load(ctx, func(resilience.Letter) error { return nil }), gone)
	require.Zero(t, s.Stats().Commits)
}

func TestIDs(t *testing.T) {
	s := open(t, keysFile(t), Options{})
	for _, id := range []string{"", strings.Repeat("x", maxID+1), strings.Repeat("x", 100_000)} {
		_, swapped, err := s.CompareAndSwap(t.Context(), 0, claim(id, "a"))
		require.ErrorContains(t, err, "Record.ID")
		require.False(t, swapped)
		rec, err := s.Load(t.Context(), id)
		require.NoError(t, err)
		require.Zero(t, rec.Version)
	}
	swap(t, s, 0, claim(strings.Repeat("x", maxID), "a"))
}

// What bbolt cannot hold is refused to who brings it, and ends nobody else's writes.
func TestBodies_TooLarge(t *testing.T) {
	s := open(t, keysFile(t), Options{})
	huge := make([]byte, maxBody+1) // nothing touches it, so it costs nothing
	rec := claim("key", "a")
	rec.Body = huge
	_, swapped, err := s.CompareAndSwap(t.Context(), 0, rec)
	require.ErrorContains(t, err, "Record.Body")
	require.False(t, swapped)
	require.ErrorContains(t, s.Letters().Put(t.Context(), resilience.Letter{ID: "x", Body: huge}), "Letter.Body")
	require.NoError(t, s.Stats().Broken)
	swap(t, s, 0, claim("key", "a"))
}

// Nothing that was given to the store waits in a goroutine of it.
func TestNoGoroutines(t *testing.T) {
	path := keysFile(t)
	synctest.Test(t, func(t *testing.T) { // it fails if one is left
		for range 3 {
			s, err := Open(path, Options{})
			require.NoError(t, err)
			var wg sync.WaitGroup
			for i := range 16 {
				wg.Go(func() {
					for {
						rec, err := s.Load(t.Context(), "key")
						if err != nil {
							t.Error(err)
							return
						}
						if _, swapped, err := s.CompareAndSwap(t.Context(), rec.Version, claim("key", fmt.Sprint(i))); swapped || err != nil {
							return
						}
					}
				})
			}
			wg.Wait()
			require.NoError(t, s.Close())
		}
	})
}

// A sweep does not hold up a write that comes while it asks about pins.
func TestSweep_PinnedIsAskedWithoutALock(t *testing.T) {
	s := open(t, keysFile(t), Options{})
	for i := range 10 {
		rec := claim(fmt.Sprint("due", i), "a")
		rec.State, rec.Expires = resilience.KeyConfirmed, s.Now()
		swap(t, s, 0, rec)
	}
	n, err := s.Sweep(t.Context(), 100, func(id string) bool {
		swap(t, s, 0, claim("beside "+id, "a"))
		return false
	})
	require.NoError(t, err)
	require.Equal(t, 10, n)
	require.EqualValues(t, 10, s.Stats().Keys)
}

// What expires now is due, and what expired before there was a Unix time, by a clock that was wrong, is due as well.
func TestSweep_DueAtTheMoment(t *testing.T) {
	path := keysFile(t)
	synctest.Test(t, func(t *testing.T) {
		s, err := Open(path, Options{})
		require.NoError(t, err)
		for id, at := range map[string]time.Time{
			"now": s.Now(), "before 1970": time.Date(1960, 1, 1, 0, 0, 0, 0, time.UTC), "soon": s.Now().Add(1),
		} {
			rec := claim(id, "a")
			rec.State, rec.Expires = resilience.KeyConfirmed, at
			swap(t, s, 0, rec)
		}
		n, err := s.Sweep(t.Context(), 100, nil)
		require.NoError(t, err)
		require.Equal(t, 2, n)
		rec, err := s.Load(t.Context(), "soon")
		require.NoError(t, err)
		require.NotZero(t, rec.Version)
		time.Sleep(1)
		n, err = s.Sweep(t.Context(), 100, nil)
		require.NoError(t, err)
		require.Equal(t, 1, n)
		require.NoError(t, s.Close())
	})
}

func TestNow_ClockDoesNotJump(t *testing.T) {
	path := keysFile(t)
	synctest.Test(t, func(t *testing.T) {
		s, err := Open(path, Options{})
		require.NoError(t, err)
		began := s.Now()
		time.Sleep(time.Hour)
		require.Equal(t, time.Hour, s.Now().Sub(began))
		require.Equal(t, s.Now(), s.Now().Round(0), "it must not depend on a clock that ends with the process")
		require.NoError(t, s.Close())
	})
}
