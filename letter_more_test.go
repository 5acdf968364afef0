package resilience

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// After a start there may be more letters than MaxLetters. None of them goes for one that does not fit even then.
func TestDLQStore_NothingIsDroppedInVain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf()
		d := mustDLQ(t, DLQConfig{Store: s.open()})
		for _, id := range []string{"1", "2", "3"} {
			require.NoError(t, d.Add(Letter{ID: id, Operation: "op", InDoubt: true}))
		}
		require.NoError(t, d.Add(Letter{ID: "4", Operation: "op"}))
		d = mustDLQ(t, DLQConfig{Store: s.open(), MaxLetters: 2, Overflow: OverflowDropOldest, OnDrop: func(Letter) {}})
		require.ErrorIs(t, d.Add(Letter{Operation: "op"}), ErrLettersFull)
		require.Equal(t, 4, d.Len())
		require.Zero(t, d.Stats().Dropped)
	})
}

// A number that cannot be counted on from would be negative one failure later, and no delay is worked out from that.
func TestDLQ_NumbersThatHaveNoNextOneAreRefused(t *testing.T) {
	d := mustDLQ(t, DLQConfig{})
	require.Error(t, d.Add(Letter{Operation: "op", Attempts: math.MaxInt}))
	require.Error(t, d.Add(Letter{Operation: "op", Redrives: math.MaxInt}))
	require.NoError(t, d.Add(Letter{Operation: "op", Attempts: 77, Redrives: 88}))
	file := string(dlqExport(t, d))
	for _, number := range []string{`"attempts":77`, `"redrives":88`} {
		name, _, _ := strings.Cut(number, ":")
		bad := dlqReseal(strings.Replace(file, number, name+fmt.Sprintf(":%d", math.MaxInt), 1))
		require.ErrorContains(t, mustDLQ(t, DLQConfig{}).Import(strings.NewReader(bad)), "out of bounds")
	}
	require.NoError(t, mustDLQ(t, DLQConfig{}).Import(bytes.NewReader([]byte(file))))
}

// Two calls with one key fail one after the other; what the other side says last of when to come again counts.
func TestDLQ_ASecondFailureSaysWhenToComeAgain(t *testing.T) {
	for name, edit := range map[string]func(*DLQ){
		"waiting": func(*DLQ) {},
		"given up": func(d *DLQ) {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.park(d.box.ofKey("k"), "attempts", func(*Letter) {})
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := mustDLQ(t, DLQConfig{})
				rt := d.Wrap(&dlqWorld{answer: func(n int, _ *http.Request) (*http.Response, error) {
					time.Sleep(time.Duration(n) * time.Second)
					if n == 1 {
						return nil, errDLQRefused
					}
					return reply(503, "", "Retry-After", "60"), nil
				}})
				ends := make(chan error, 2)
				for range cap(ends) {
					go func() {
						_, err := dlqCall(t.Context(), rt, http.MethodPut, "k")
						ends <- err
					}()
				}
				require.ErrorIs(t, <-ends, ErrParked)
				edit(d)
				require.ErrorIs(t, <-ends, ErrParked)
				require.EqualValues(t, 1, d.Stats().Merged)
				require.Equal(t, LetterWaiting, dlqOnly(t, d).State())
				require.GreaterOrEqual(t, time.Until(dlqOnly(t, d).Next), time.Minute)
			})
		})
	}
}

// A letter that is merged into another brings no time that no export can hold.
func TestDLQ_AMergedLetterCanBeExported(t *testing.T) {
	d := mustDLQ(t, DLQConfig{Base: time.Hour, Cap: time.Hour})
	require.NoError(t, d.Add(Letter{Operation: "op", Key: "k", Parked: true}))
	require.NoError(t, d.Add(Letter{Operation: "op", Key: "k", Last: time.Date(9999, 12, 31, 23, 59, 59, 999999999, time.UTC)}))
	require.NoError(t, mustDLQ(t, DLQConfig{}).Import(bytes.NewReader(dlqExport(t, d))))
}

// Any MaxBytes that is not too small has room for the lines of its letters.
func TestD16_ALineMayBeAsLongAsItsLetter(t *testing.T) {
	from := mustDLQ(t, DLQConfig{MaxBytes: -1})
	require.NoError(t, from.Add(Letter{Operation: "op", URL: strings.Repeat("<", 1<<20)})) // JSON takes six bytes for it
	file := dlqExport(t, from)
	require.Greater(t, len(file), 6<<20)
	for _, most := range []int64{math.MaxInt64, 1<<20 + 4<<10, -1} {
		require.NoError(t, mustDLQ(t, DLQConfig{MaxBytes: most}).Import(bytes.NewReader(file)))
	}
}

// The words of a letter are short, for they are not counted byte by byte, whoever brings it.
func TestD05_TheWordsOfALetterAreCut(t *testing.T) {
	long := strings.Repeat("x", 255) + "é" + strings.Repeat("x", 2<<20)
	l := Letter{
		ID: "x", Operation: "op", Cause: long, Detail: long, ParkedReason: long,
		History: []LetterAttempt{{Time: time.Now(), Cause: long, Detail: long}},
	}
	cut := long[:255]
	check := func(d *DLQ) {
		t.Helper()
		got := dlqOnly(t, d)
		require.Equal(t, []string{cut, cut, cut}, []string{got.Cause, got.Detail, got.ParkedReason})
		require.Equal(t, []string{cut, cut}, []string{got.History[0].Cause, got.History[0].Detail})
	}
	added := mustDLQ(t, DLQConfig{MaxBytes: 8 << 10})
	require.NoError(t, added.Add(l))
	check(added)
	require.Equal(t, long, l.History[0].Detail, "the caller's is as it was")
	added.cfg.Redact = func(l *Letter) { l.Detail, l.History[0].Detail = long[:1<<19], long[:1<<19] }
	imported := mustDLQ(t, DLQConfig{MaxBytes: 8 << 10})
	require.NoError(t, imported.Import(bytes.NewReader(dlqExport(t, added))))
	check(imported)
	s := newShelf()
	l.First, l.Last, l.Next = time.Now(), time.Now(), time.Now()
	s.letters["x"] = l
	check(mustDLQ(t, DLQConfig{Store: s.open()}))
	require.Equal(t, cut+"x", cutText(cut+"x"))
}

// A header without a value comes back as well: net/http sends no User-Agent where that one is empty, and its own where it is missing.
func TestD16_AHeaderWithoutAValueIsKept(t *testing.T) {
	d := mustDLQ(t, DLQConfig{})
	header := http.Header{"User-Agent": {}, "A": {"1", "2"}}
	require.NoError(t, d.Add(Letter{Method: "PUT", URL: "http://h/", Header: header}))
	into := mustDLQ(t, DLQConfig{})
	require.NoError(t, into.Import(bytes.NewReader(dlqExport(t, d))))
	require.Equal(t, header, dlqOnly(t, into).Header)
}

// The smallest rate is no redrive any more but the first, and not one without a limit.
func TestDLQ_TheSmallestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := mustDLQ(t, DLQConfig{Rate: math.SmallestNonzeroFloat64, MaxAge: -1})
		d.Handle("op", func(context.Context, Letter) error { return nil })
		for range 3 {
			require.NoError(t, d.Add(Letter{Operation: "op", Next: time.Now()}))
		}
		stop := dlqRun(t, d)
		time.Sleep(365 * 24 * time.Hour)
		stop()
		require.Equal(t, 2, d.Len())
	})
}
