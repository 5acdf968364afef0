package resilience

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// letterSeeds is how many schedules the simulation goes through; SIM_SEEDS sets it.
func letterSeeds(t *testing.T) uint64 {
	if n, err := strconv.ParseUint(os.Getenv("SIM_SEEDS"), 10, 64); err == nil && n > 0 {
		return n
	}
	if testing.Short() {
		return 5
	}
	return 20
}

// ledger is what the events and callbacks of a queue say. After each step it must agree with the queue.
type ledger struct {
	done, deleted, dropped int
	parked                 map[string]int // OnParked, by letter
	givenUp                int            // events that say so
	live                   map[string]bool
}

func (b *ledger) listen(e Event) {
	switch e.Kind {
	case EventLetterDone:
		b.done++
	case EventLetterDeleted:
		b.deleted++
	case EventLetterDropped:
		b.dropped++
	case EventLetterParked:
		if e.Cause != "superseded" {
			b.givenUp++
		}
		return
	case EventLetterAdded:
		if e.LetterID != "" && e.Cause != "merged" && e.Cause != "requeued" {
			b.live[e.LetterID] = true
		}
		return
	default:
		return
	}
	delete(b.live, e.LetterID)
}

// Conservation: whatever happens to letters, what came in is there or has left by a door that was counted and reported.
func TestSim_NoLetterIsLostWithoutAWord(t *testing.T) {
	for seed := range letterSeeds(t) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { simulateLetters(t, rand.New(rand.NewPCG(seed, 1))) })
		})
	}
}

// letterSim is one queue under one schedule of faults.
type letterSim struct {
	t       *testing.T
	rng     *rand.Rand
	d       *DLQ
	rt      http.RoundTripper
	books   *ledger
	drops   int
	adds    int
	exports []string
}

func simulateLetters(t *testing.T, rng *rand.Rand) {
	s := &letterSim{t: t, rng: rng, books: &ledger{parked: map[string]int{}, live: map[string]bool{}}}
	cfg := DLQConfig{MaxLetters: 1 + rng.IntN(12), Attempts: 1 + rng.IntN(3), MaxAge: time.Duration(1+rng.IntN(60)) * time.Minute, OnEvent: s.books.listen}
	cfg.OnParked = func(l Letter) { s.books.parked[l.ID]++ }
	cfg.Overflow = []Overflow{OverflowRejectNew, OverflowDropOldest}[rng.IntN(2)]
	cfg.OnDrop = func(Letter) { s.drops++ }
	s.d = newLetters(t, cfg)
	s.d.Handle("work", s.work)
	s.rt = s.d.Wrap(RoundTripFunc(s.answer))
	for range 300 {
		s.step()
		synctest.Wait()
		s.check()
	}
	require.NoError(t, s.d.close(context.Background()))
	s.check()
}

// work and answer end in every way there is.
func (s *letterSim) work(_ context.Context, l Letter) error {
	if l.InDoubt || l.Parked || l.Superseded || !l.Leased {
		s.t.Errorf("it must not be sent: %+v", l)
	}
	switch s.rng.IntN(7) {
	case 0:
		return ErrPoison
	case 1:
		return ErrInDoubt
	case 2:
		panic("work")
	case 3:
		return errors.New("down")
	case 4:
		return &Error{Err: ErrFull, verdict: refused}
	}
	return nil
}

func (s *letterSim) answer(*http.Request) (*http.Response, error) {
	switch s.rng.IntN(6) {
	case 0:
		return nil, errRefused
	case 1:
		return nil, errors.New("reset")
	case 2:
		return reply(503, ""), nil
	case 3:
		return reply([]int{400, 401, 404, 409, 429}[s.rng.IntN(5)], ""), nil
	}
	return reply(200, ""), nil
}

func (s *letterSim) step() {
	switch s.rng.IntN(9) {
	case 0:
		s.adds++
		_ = s.d.Add(Letter{
			ID: fmt.Sprint("id", s.rng.IntN(40)), Key: fmt.Sprint("k", s.rng.IntN(20)), Operation: "work",
			Call: Call{Effect: Effect(s.rng.IntN(4))}, InDoubt: s.rng.IntN(6) == 0, //nolint:gosec // small
		})
	case 1, 2:
		call := Call{Effect: EffectIdempotent, Resource: fmt.Sprint("r", s.rng.IntN(3))}
		if s.rng.IntN(3) == 0 {
			call.Effect = EffectOnce
		}
		_, _ = dial(WithCall(s.t.Context(), call), s.t, s.rt, fmt.Sprint("k", s.rng.IntN(20)), dialBody)
	case 3:
		s.d.Redrive(s.t.Context())
	case 4:
		drive(s.t, s.d, time.Duration(s.rng.IntN(120))*time.Second)
	case 5:
		s.pick(func(id string) { _ = s.d.Delete(id, "sim") })
	case 6:
		s.pick(func(id string) { _ = s.d.Requeue(id) })
	case 7:
		s.exports = append(s.exports, export(s.t, s.d))
	case 8:
		s.importOne()
	}
	time.Sleep(time.Duration(s.rng.IntN(30)) * time.Second)
}

func (s *letterSim) pick(f func(id string)) {
	if all := s.d.List(LetterFilter{}); len(all) > 0 {
		f(all[s.rng.IntN(len(all))].ID)
	}
}

// importOne takes an earlier file in, sometimes a spoiled one, which changes nothing.
func (s *letterSim) importOne() {
	if len(s.exports) == 0 {
		return
	}
	file := s.exports[s.rng.IntN(len(s.exports))]
	before := s.d.Stats()
	if s.rng.IntN(3) == 0 {
		require.Error(s.t, s.d.Import(strings.NewReader(file[:s.rng.IntN(len(file))])))
		require.Equal(s.t, before, s.d.Stats())
		return
	}
	if err := s.d.Import(strings.NewReader(file)); err != nil {
		require.ErrorIs(s.t, err, ErrLettersFull)
		require.Equal(s.t, before, s.d.Stats())
		return
	}
	synctest.Wait() // for the events
	for _, l := range s.d.List(LetterFilter{}) {
		s.books.live[l.ID] = true // one event told of all
	}
}

// check compares the queue with its indexes, its counters and its reports.
func (s *letterSim) check() {
	t, d := s.t, s.d
	requireSum(t, d)
	st := d.Stats()
	require.Equal(t, []uint64{st.Acked, st.Deleted, st.Dropped}, []uint64{uint64(s.books.done), uint64(s.books.deleted), uint64(s.books.dropped)}) //nolint:gosec // counts
	require.EqualValues(t, st.Dropped, s.drops)
	require.EqualValues(t, st.GivenUp, s.books.givenUp)
	told := 0
	for _, n := range s.books.parked {
		told += n
	}
	require.EqualValues(t, st.GivenUp, told, "each letter given up was reported once each time")
	live, size, oldest := map[string]bool{}, int64(0), time.Time{}
	for _, l := range d.List(LetterFilter{}) {
		live[l.ID] = true
		size += l.size()
		if !l.Parked && !l.Superseded && oldest.IsZero() {
			oldest = l.First
		}
		require.LessOrEqual(t, l.Attempts, max(d.cfg.Attempts, 1))
		require.False(t, l.Leased)
	}
	require.Equal(t, live, s.books.live, "a letter that is gone was reported, by its id")
	require.Equal(t, size, st.Bytes)
	require.LessOrEqual(t, st.Letters, d.cfg.MaxLetters)
	require.Equal(t, oldest.IsZero(), st.OldestAge == 0 && st.Waiting+st.InDoubt == 0)
	require.Zero(t, st.Running)
	require.Zero(t, st.Delivery.Panics)
	require.Len(t, d.box.byKey, st.Letters)
}

func newLetters(t testing.TB, cfg DLQConfig) *DLQ {
	t.Helper()
	d, err := NewDLQ(cfg)
	require.NoError(t, err)
	return d
}

func drive(t testing.TB, d *DLQ, long time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), long)
	defer cancel()
	d.run(ctx)
	synctest.Wait() // for callbacks
}

// requireSum is conservation: what came in went out by a counted door, or is there.

func requireSum(t testing.TB, d *DLQ) {
	t.Helper()
	s := d.Stats()
	require.Equal(t, s.Admitted, s.Acked+s.Deleted+s.Dropped+uint64(s.Letters)) //nolint:gosec // not negative
	require.Equal(t, s.Letters, s.Waiting+s.InDoubt+s.Leased+s.Parked+s.Superseded)
	require.Equal(t, s.Letters, d.Len())
}

var errRefused = MarkNotSent(errors.New("connection refused"))

func export(t testing.TB, d *DLQ) string {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, d.Export(&b))
	return b.String()
}
