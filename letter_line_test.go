package resilience

import (
	"bytes"
	"errors"
	"io"
	"math"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/require"
)

// Header names that are not in canonical form.
func TestLetter_CredentialsInLowerCase(t *testing.T) {
	_, s, rt := newShop(t, FallbackConfig{})
	a := readOf(t.Context(), t, callURL)
	a.Header["authorization"] = []string{"Bearer A"}
	_, err := rt.RoundTrip(a)
	require.NoError(t, err)
	s.fails(errDown)
	b := readOf(t.Context(), t, callURL)
	b.Header["authorization"] = []string{"Bearer B"}
	_, err = rt.RoundTrip(b)
	require.ErrorIs(t, err, errDown, "B is served what belongs to A")
}

// letterFilled is a letter with every field set, all times in a zone of their own.
func letterFilled() Letter {
	zone := time.FixedZone("east", 3600)
	at := func(minute int) time.Time { return time.Date(2026, 11, 24, 12, minute, 0, 7, zone) }
	return Letter{
		ID: "id", Operation: "op", Key: "k", Named: true,
		Call: Call{
			Operation: "other", Effect: EffectOnce, Priority: PriorityCritical, Class: ClassUpload, Limit: 1, Budget: 2, Resource: "r",
		},
		Method: "PUT", URL: "http://h/", Host: "v", Header: http.Header{"A": {"1"}}, Body: []byte("b"), NeedsAuth: true,
		Cause: "status", Detail: "status 503", StatusCode: 503, Attempts: 1, Redrives: 2,
		First: at(1), Last: at(2), Next: at(3), Expires: at(4), NotAfter: at(5), InDoubt: true, DoubtSince: at(6),
		Parked: true, ParkedReason: "attempts", Superseded: true, Redacted: true,
		History: []LetterAttempt{{Time: at(7), Cause: "timeout", Detail: "slow", StatusCode: 408}},
	}
}

func TestD16_ALineHoldsEveryField(t *testing.T) {
	l := letterFilled()
	for _, part := range []any{l, l.Call, l.History[0]} {
		v := reflect.ValueOf(part)
		for i := range v.NumField() {
			if name := v.Type().Field(i).Name; name != "Leased" && name != "Params" {
				require.False(t, v.Field(i).IsZero(), "%s has to be filled for this test", name)
			}
		}
	}
	line := lineOf(&l)
	for _, a := range line.History {
		require.Equal(t, time.UTC, a.Time.Location())
	}
	line.History[0].Time = l.History[0].Time // a file may say it in any zone
	got, err := line.letter()
	require.NoError(t, err)
	require.Equal(t, dlqPlain([]Letter{l})[0], *got)
}

// A redrive relies on what a line says.
func TestD16_ALineIsChecked(t *testing.T) {
	far := time.Date(9999, 12, 31, 23, 59, 59, 0, time.FixedZone("west", -3600)) // in UTC it is the year 10000
	for name, edit := range map[string]func(*letterLine){
		"no operation": func(l *letterLine) { l.Operation = "" },
		"no key":       func(l *letterLine) { l.Key = "" },
		"priority":     func(l *letterLine) { l.Call.Priority = "highest" },
		"class":        func(l *letterLine) { l.Call.Class = "first" },
		"redrives":     func(l *letterLine) { l.Redrives = -1 },
		"history":      func(l *letterLine) { l.History = make([]letterAttemptLine, maxLetterHistory+1) },
		"no first":     func(l *letterLine) { l.First = time.Time{} },
		"no next":      func(l *letterLine) { l.Next = time.Time{} },
		"first":        func(l *letterLine) { l.First = far },
		"last":         func(l *letterLine) { l.Last = far },
		"next":         func(l *letterLine) { l.Next = far },
		"expires":      func(l *letterLine) { l.Expires = far },
		"not after":    func(l *letterLine) { l.NotAfter = far },
		"doubt since":  func(l *letterLine) { l.DoubtSince = far },
		"an attempt":   func(l *letterLine) { l.History[0].Time = far },
	} {
		t.Run(name, func(t *testing.T) {
			l := letterFilled()
			line := lineOf(&l)
			edit(&line)
			_, err := line.letter()
			require.Error(t, err)
		})
	}
	l := letterFilled()
	line := lineOf(&l)
	line.History = make([]letterAttemptLine, maxLetterHistory)
	_, err := line.letter()
	require.NoError(t, err)
}

func TestD16_ALineIsWhatAnExportHolds(t *testing.T) {
	d := mustDLQ(t, DLQConfig{})
	now := time.Now()
	require.NoError(t, d.Add(Letter{ID: "one", Operation: "op", Key: "k1", Host: "v", First: now}))
	require.NoError(t, d.Add(Letter{ID: "two", Operation: "op", Key: "k2", First: now.Add(1)}))
	file := string(dlqExport(t, d))
	for name, edit := range map[string][2]string{
		"two values":       {`"count":2}`, `"count":2} {}`},
		"a number as text": {`"host":"v"`, `"host":1`},
		"an unknown form":  {`"host":"v"`, `"host":{"base32":"AA=="}`},
		"a key twice":      {`"key":"k2"`, `"key":" k1 "`},
	} {
		t.Run(name, func(t *testing.T) {
			bad := strings.Replace(file, edit[0], edit[1], 1)
			require.NotEqual(t, file, bad)
			into := mustDLQ(t, DLQConfig{})
			require.Error(t, into.Import(strings.NewReader(dlqReseal(bad))))
			require.Zero(t, into.Stats())
		})
	}
	cut := strings.NewReader(file[:len(file)/2])
	require.ErrorIs(t, mustDLQ(t, DLQConfig{}).Import(cut), io.ErrUnexpectedEOF)
	broken := errors.New("the disk is gone")
	half := io.MultiReader(strings.NewReader(file[:len(file)/2]), iotest.ErrReader(broken))
	require.ErrorIs(t, mustDLQ(t, DLQConfig{}).Import(half), broken)
	require.ErrorIs(t, (*DLQ)(nil).Import(strings.NewReader(file)), ErrLettersFull)
}

// A line that is none is refused before anybody opens it.
func TestD16_ABadLineOfASealedExport(t *testing.T) {
	seal, open := sealer(t)
	d := mustDLQ(t, DLQConfig{Seal: seal, Open: open})
	require.NoError(t, d.Add(Letter{Operation: "op", Attempts: 77}))
	bad := strings.Replace(string(dlqExport(t, d)), `"attempts":77`, `"attempts":-77`, 1)
	require.ErrorContains(t, d.Import(strings.NewReader(dlqReseal(bad))), "out of bounds")
}

// An export with one letter that cannot be written is none, whichever it is.
func TestD16_AnExportFailsWithAnyOfItsLetters(t *testing.T) {
	d := mustDLQ(t, DLQConfig{})
	ids := []string{"1", "2", "3"}
	for i, id := range ids {
		require.NoError(t, d.Add(Letter{ID: id, Operation: "op", First: time.Now().Add(time.Duration(i))}))
	}
	for _, id := range ids {
		for _, edit := range []func(*Letter){
			func(*Letter) { panic("redact") },
			func(l *Letter) { l.First = time.Time{} }, // no import would take it
		} {
			d.cfg.Redact = func(l *Letter) {
				if l.ID == id {
					edit(l)
				}
			}
			require.Error(t, d.Export(io.Discard))
		}
	}
	require.Error(t, (*DLQ)(nil).Export(dlqBrokenWriter{}))
}

// What comes from a file or a store is put in order, whatever it says.
func TestD16_ALetterFromElsewhereIsTidied(t *testing.T) {
	l := letterFilled()
	l.Leased, l.InDoubt, l.NeedsAuth = true, false, false
	l.ParkedReason = "expired"
	l.Header = http.Header{"Authorization": {"x"}}
	l.tidy()
	require.False(t, l.Leased)
	require.Zero(t, l.DoubtSince, "there is no doubt")
	require.Empty(t, l.Header)
	require.True(t, l.NeedsAuth)
	require.Equal(t, "expired", l.ParkedReason, "it was parked before it was redacted")
}

// A letter that is here by its id, with another key, is left as it is, and no other one comes under that id.
func TestD16_AnIDThatIsHereWithAnotherKey(t *testing.T) {
	for _, doubt := range []bool{false, true} {
		other := mustDLQ(t, DLQConfig{})
		require.NoError(t, other.Add(Letter{ID: "x", Operation: "op", Key: "there", InDoubt: doubt}))
		d := mustDLQ(t, DLQConfig{MaxBytes: math.MaxInt32})
		require.NoError(t, d.Add(Letter{ID: "x", Operation: "op", Key: "here"}))
		want := dlqOnly(t, d)
		require.NoError(t, d.Import(bytes.NewReader(dlqExport(t, other))))
		require.Equal(t, want, dlqOnly(t, d))
		dlqConserved(t, d)
	}
}

// What a letter does not keep, what it says of credentials, whom it is for, and what an answer means for it.
func TestLetter_WhatItSays(t *testing.T) {
	l := Letter{URL: "http://user:x@h/", Call: Call{Params: 1}}
	require.Nil(t, l.clone().Call.Params)
	l.strip()
	require.True(t, l.NeedsAuth)
	require.Equal(t, "http://h/", l.URL)

	require.Equal(t, "h", l.host())
	require.True(t, l.sameWrite(Letter{URL: "http://h/", Host: "h"}, true), "it says the same twice")
	l.Host = "v"
	require.Equal(t, "v", l.host())

	require.False(t, l.outlives(404), "it was about this process alone")
	l.DoubtSince = time.Now()
	require.True(t, l.outlives(404))
	require.False(t, l.outlives(204))
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

// A time that no file can hold is no bound, and keeps nobody from exporting.
func TestD16_AnExpiryInTheFarFutureIsNone(t *testing.T) {
	d := mustDLQ(t, DLQConfig{MaxAge: -1})
	ctx := WithExpiry(t.Context(), time.Date(12000, 1, 1, 0, 0, 0, 0, time.UTC))
	_, err := dlqCall(ctx, d.Wrap(&dlqWorld{answer: dlqError(errDLQRefused)}), http.MethodPut, "k")
	require.ErrorIs(t, err, ErrParked)
	l := dlqOnly(t, d)
	require.True(t, l.Expires.IsZero() && l.NotAfter.IsZero())
	d = mustDLQ(t, DLQConfig{})
	require.NoError(t, d.Add(Letter{Operation: "op", First: time.Date(9999, 12, 31, 23, 59, 0, 0, time.UTC)}))
	require.True(t, dlqOnly(t, d).Expires.IsZero())
	require.NotEmpty(t, dlqExport(t, d))
}
