package resilience

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// What is exported can be imported, whatever was added and however it is redacted.
func TestLetter_WhatIsExportedCanBeImported(t *testing.T) {
	for name, l := range map[string]Letter{
		"long history":      {History: make([]LetterAttempt, 12)},
		"negative attempts": {Attempts: -1},
		"unknown effect":    {Call: Call{Effect: 9}},
		"bad method":        {Method: "\xff"},
		"first zero next":   {},
	} {
		t.Run(name, func(t *testing.T) {
			d := mustDLQ(t, DLQConfig{})
			l.Operation = "op"
			if err := d.Add(l); err != nil {
				return // said so
			}
			require.NoError(t, d.Add(Letter{Operation: "innocent"}))
			file := dlqExport(t, d)
			require.NoError(t, mustDLQ(t, DLQConfig{}).Import(bytes.NewReader(file)))
		})
	}
	for name, redact := range map[string]func(*Letter){
		"key away":       func(l *Letter) { l.Key = "" },
		"key the same":   func(l *Letter) { l.Key = "redacted" },
		"operation away": func(l *Letter) { l.Operation = "" },
		"all away":       func(l *Letter) { *l = Letter{} },
	} {
		t.Run("redact "+name, func(t *testing.T) {
			d := mustDLQ(t, DLQConfig{Redact: redact})
			require.NoError(t, d.Add(Letter{Operation: "a", Key: "call +15550001111"}))
			require.NoError(t, d.Add(Letter{Operation: "b", Key: "call +15550002222"}))
			var file bytes.Buffer
			if err := d.Export(&file); err != nil {
				return // said so
			}
			require.NoError(t, mustDLQ(t, DLQConfig{}).Import(&file))
		})
	}
}

// Keys that differ in the space around them are one, and so is their letter, in doubt if either is.
func TestLetter_TwoLettersOfOneKeyAreOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		alone := mustDLQ(t, DLQConfig{})
		require.NoError(t, alone.Add(Letter{Method: "POST", URL: "http://h/", Key: "k", InDoubt: true}))
		require.NoError(t, alone.Add(Letter{Method: "POST", URL: "http://h/", Key: "k "}))
		p := &phone{}
		s := newStack(t, Config{})
		s.Wrap(p)
		require.NoError(t, s.DLQ.Import(bytes.NewReader(dlqExport(t, alone))))
		require.Equal(t, 1, s.DLQ.Len())
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		require.NoError(t, s.Run(ctx))
		closeStack(t, s)
		require.Zero(t, p.rang(), "the key is in doubt")
	})
}

func TestLetter_ANilQueueExportsNothing(t *testing.T) {
	var d *DLQ
	var file bytes.Buffer
	require.NoError(t, d.Export(&file))
	into := mustDLQ(t, DLQConfig{})
	require.NoError(t, into.Import(&file))
	require.Zero(t, into.Len())
}

// What these hold was right, and nothing else would have noticed if it had not been.

func TestDLQ_WorkOnItsWayIsExportedAsInDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := mustDLQ(t, DLQConfig{})
		release := make(chan struct{})
		d.Handle("op", func(context.Context, Letter) error { <-release; return nil })
		require.NoError(t, d.Add(Letter{Operation: "op", Call: Call{Effect: EffectOnce}, Next: time.Now()}))
		go d.Redrive(context.Background())
		synctest.Wait()
		file := dlqExport(t, d)
		close(release)
		synctest.Wait()
		into := mustDLQ(t, DLQConfig{})
		require.NoError(t, into.Import(bytes.NewReader(file)))
		require.True(t, dlqOnly(t, into).InDoubt)
	})
}

func TestDLQ_ARedactedLetterIsNotSentHoweverItCame(t *testing.T) {
	d := mustDLQ(t, DLQConfig{})
	w := &dlqWorld{answer: dlqStatus(200)}
	_ = d.Wrap(w)
	require.NoError(t, d.Add(Letter{Method: "PUT", URL: "http://h/", Redacted: true, Next: time.Now()}))
	require.Equal(t, RedriveParked, d.Redrive(t.Context()).Status)
	require.Equal(t, "redacted", dlqOnly(t, d).ParkedReason)
	require.Empty(t, w.calls())
}

func dlqExport(t testing.TB, d *DLQ) []byte {
	t.Helper()
	var file bytes.Buffer
	require.NoError(t, d.Export(&file))
	return file.Bytes()
}

// dlqVaried is a queue with letters of every kind, and bytes that JSON would not keep.
func dlqVaried(t testing.TB) *DLQ {
	t.Helper()
	d := mustDLQ(t, DLQConfig{})
	now := time.Now()
	bad := "\xff\xfe"
	for i, l := range []Letter{
		{
			ID: "full", Operation: "op", Key: "k<&>" + bad, Named: true, Method: "PUT", URL: "http://h/?q=" + bad, Host: "other",
			Call:   Call{Operation: "op", Effect: EffectIdempotent, Priority: PriorityCritical, Class: ClassUpload, Limit: -1, Resource: "r/" + bad},
			Header: http.Header{"A": {"1", bad}, "Authorization": {"x"}}, Body: []byte{0, 1, 255}, Cause: "status", StatusCode: 503,
			Attempts: 3, Redrives: 7, NotAfter: now.Add(time.Minute),
			History: []LetterAttempt{{now, "status", "status 503", 503}, {now.Add(1), "timeout", "", 0}},
		},
		{ID: "doubt", InDoubt: true, DoubtSince: now}, {ID: "parked", Parked: true, ParkedReason: "attempts"}, {ID: "old", Superseded: true},
	} {
		l.Operation = or(l.Operation, "op")
		l.First = now.Add(time.Duration(-i) * time.Second)
		l.Next = now.Add(time.Duration(i) * time.Hour)
		require.NoError(t, d.Add(l))
	}
	return d
}

// dlqPlain takes out of letters what no file can keep: the monotonic clock and the zone.
func dlqPlain(list []Letter) []Letter {
	for i := range list {
		l := &list[i]
		for _, at := range []*time.Time{&l.First, &l.Last, &l.Next, &l.Expires, &l.NotAfter, &l.DoubtSince} {
			*at = at.Round(0).UTC()
		}
		for j := range l.History {
			l.History[j].Time = l.History[j].Time.Round(0).UTC()
		}
	}
	return list
}

func TestD16_ExportAndImportKeepEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // doubts come with an import at the same moment
		d := dlqVaried(t)
		file := dlqExport(t, d)
		require.NotContains(t, string(file), "Authorization")
		into := mustDLQ(t, DLQConfig{})
		require.NoError(t, into.Import(bytes.NewReader(file)))
		require.Equal(t, dlqPlain(d.List(LetterFilter{})), dlqPlain(into.List(LetterFilter{})))
		require.Equal(t, file, dlqExport(t, into))
		require.NoError(t, into.Import(bytes.NewReader(file)), "a second time changes nothing")
		require.Equal(t, file, dlqExport(t, into))
		dlqConserved(t, into)

		var header, trailer map[string]any
		lines := bytes.Split(bytes.TrimSpace(file), []byte("\n"))
		require.Len(t, lines, 6)
		require.NoError(t, json.Unmarshal(lines[0], &header))
		require.Equal(t, map[string]any{"format": "resilience.letters", "version": 1.0, "count": 4.0}, header)
		require.NoError(t, json.Unmarshal(lines[5], &trailer))
		require.Contains(t, trailer, "sha256")

		empty := dlqExport(t, mustDLQ(t, DLQConfig{}))
		require.NoError(t, mustDLQ(t, DLQConfig{}).Import(bytes.NewReader(empty)))
	})
}

func TestD16_AfterARestartRedrivingGoesOnInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := mustDLQ(t, DLQConfig{Attempts: -1})
		_ = d.Wrap(&dlqWorld{answer: dlqStatus(500)})
		now := time.Now()
		for i := range 20 {
			require.NoError(t, d.Add(Letter{Key: fmt.Sprint("k", i), Method: "PUT", URL: "http://h/", First: now, Next: now}))
		}
		block := make(chan struct{})
		d.Handle("blocks", func(context.Context, Letter) error { <-block; return nil })
		require.NoError(t, d.Add(Letter{ID: "leased", Operation: "blocks", First: now.Add(-1), Next: now}))
		go d.Redrive(t.Context())
		synctest.Wait()
		file := dlqExport(t, d) // and the process dies here
		close(block)

		next := mustDLQ(t, DLQConfig{Rate: -1, Concurrency: 1})
		w := &dlqWorld{answer: dlqStatus(200)}
		_ = next.Wrap(w)
		handled := 0
		next.Handle("blocks", func(context.Context, Letter) error { handled++; return nil })
		require.NoError(t, next.Import(bytes.NewReader(file)))
		l, _ := next.Get("leased")
		require.Equal(t, LetterWaiting, l.State())
		stop := dlqRun(t, next)
		time.Sleep(time.Second)
		stop()
		require.Equal(t, 1, handled)
		for i, c := range w.calls() {
			require.Equal(t, fmt.Sprint("k", i), c.key)
		}
		require.Zero(t, next.Len())
		dlqConserved(t, next)
	})
}

func TestD16_RedactedLettersAreNeverSent(t *testing.T) {
	d := mustDLQ(t, DLQConfig{Redact: func(l *Letter) {
		if l.ID == "private" {
			l.Body = nil
		}
		l.Detail = ""
	}})
	for _, id := range []string{"private", "other"} {
		require.NoError(t, d.Add(Letter{ID: id, Key: id, Method: "PUT", URL: "http://h/", Body: []byte("555"), Next: time.Now()}))
	}
	file := dlqExport(t, d)
	l, _ := d.Get("private")
	require.Equal(t, "555", string(l.Body), "the queue itself is whole")

	into := mustDLQ(t, DLQConfig{})
	w := &dlqWorld{answer: dlqStatus(200)}
	_ = into.Wrap(w)
	require.NoError(t, into.Import(bytes.NewReader(file)))
	l, _ = into.Get("private")
	require.Equal(t, []any{true, true, "redacted"}, []any{l.Redacted, l.Parked, l.ParkedReason})
	require.Error(t, into.Requeue("private"))
	require.Equal(t, RedriveDone, into.Redrive(t.Context()).Status)
	require.Equal(t, RedriveEmpty, into.Redrive(t.Context()).Status)
	require.Len(t, w.calls(), 1)

	d.cfg.Redact = func(*Letter) { panic("x") }
	require.Error(t, d.Export(io.Discard))
}

func TestD16_ImportLeavesTheLetterOfAKeyAlone(t *testing.T) {
	d := mustDLQ(t, DLQConfig{})
	require.NoError(t, d.Add(Letter{ID: "here", Operation: "op", Key: "k"}))
	other := mustDLQ(t, DLQConfig{})
	require.NoError(t, other.Add(Letter{ID: "there", Operation: "op", Key: "k"}))
	require.NoError(t, d.Import(bytes.NewReader(dlqExport(t, other))))
	require.Equal(t, "here", dlqOnly(t, d).ID)
	dlqConserved(t, d)
}

// inDoubtFile is an export with a letter in doubt for the key k, after one for another key.
func inDoubtFile(t testing.TB) []byte {
	t.Helper()
	from := mustDLQ(t, DLQConfig{})
	at := time.Now()
	require.NoError(t, from.Add(Letter{ID: "new", Operation: "op", Key: "other", First: at}))
	require.NoError(t, from.Add(Letter{ID: "there", Operation: "op", Key: "k", First: at.Add(1), InDoubt: true}))
	return dlqExport(t, from)
}

// What another process saw of a key is true here: a letter that may have taken effect there is not sent here.
func TestD16_ImportPassesDoubtOnToTheLetterOfTheKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := inDoubtFile(t)
		var sent, known atomic.Int64
		d := mustDLQ(t, DLQConfig{Rate: -1})
		d.reconcile = func(context.Context, string) keyNews {
			return newsNow([]keyVerdict{keyUnknown, keyNotApplied}[known.Load()])
		}
		d.Handle("op", func(_ context.Context, l Letter) error {
			if l.Key == "k" {
				sent.Add(1)
			}
			return nil
		})
		stop := dlqRun(t, d)
		defer stop()
		require.NoError(t, d.Add(Letter{ID: "here", Operation: "op", Key: "k", Next: time.Now().Add(time.Minute)}))
		before, _ := d.Get("here")
		require.NoError(t, d.Import(bytes.NewReader(file)))
		l, _ := d.Get("here")
		require.Equal(t, LetterInDoubt, l.State())
		require.Equal(t, time.Now(), l.DoubtSince)
		l.InDoubt, l.DoubtSince, l.Next = false, time.Time{}, before.Next
		require.Equal(t, before, l, "the rest is as it was")
		_, there := d.Get("there")
		require.False(t, there)
		require.EqualValues(t, 1, d.Stats().Merged)
		require.NoError(t, d.Import(bytes.NewReader(file)))
		require.EqualValues(t, 1, d.Stats().Merged, "it is no news any more")

		require.NoError(t, d.Requeue("here"))
		time.Sleep(30 * time.Minute)
		require.Zero(t, sent.Load(), "nobody knows what became of it")
		known.Store(1)
		time.Sleep(10 * time.Minute)
		require.EqualValues(t, 1, sent.Load())
		dlqConserved(t, d)
	})
}

// A letter may be parked, or on its way, when the news of its doubt comes.
func TestD16_ImportedDoubtMeetsLettersInEveryState(t *testing.T) {
	file := inDoubtFile(t)
	t.Run("parked", func(t *testing.T) {
		d := mustDLQ(t, DLQConfig{})
		d.Handle("op", func(context.Context, Letter) error { return ErrPoison })
		require.NoError(t, d.Add(Letter{ID: "here", Operation: "op", Key: "k", Next: time.Now()}))
		require.Equal(t, RedriveParked, d.Redrive(t.Context()).Status)
		require.NoError(t, d.Import(bytes.NewReader(file)))
		l, _ := d.Get("here")
		require.True(t, l.Parked && l.InDoubt)
		require.NoError(t, d.Requeue("here"))
		require.Equal(t, RedriveInDoubt, d.Redrive(t.Context()).Status)
	})
	t.Run("leased", func(t *testing.T) {
		d := mustDLQ(t, DLQConfig{})
		d.Handle("op", func(context.Context, Letter) error {
			require.NoError(t, d.Import(bytes.NewReader(file)))
			return MarkNotSent(errors.New("down")) // this send has not happened, but another one may have
		})
		require.NoError(t, d.Add(Letter{ID: "here", Operation: "op", Key: "k", Next: time.Now(), Call: Call{Effect: EffectOnce}}))
		require.Equal(t, RedriveFailed, d.Redrive(t.Context()).Status)
		l, _ := d.Get("here")
		require.Equal(t, LetterInDoubt, l.State())
	})
	t.Run("refused as a whole", func(t *testing.T) {
		d := mustDLQ(t, DLQConfig{MaxLetters: 1})
		require.NoError(t, d.Add(Letter{ID: "here", Operation: "op", Key: "k"}))
		before, _ := d.Get("here")
		require.ErrorIs(t, d.Import(bytes.NewReader(file)), ErrLettersFull)
		l, _ := d.Get("here")
		require.Equal(t, before, l)
	})
}

func TestD16_AFailingWriterIsReported(t *testing.T) {
	d := dlqVaried(t)
	require.Error(t, d.Export(dlqBrokenWriter{}))
}

type dlqBrokenWriter struct{}

func (dlqBrokenWriter) Write([]byte) (int, error) { return 0, errors.New("disk full") }

func TestD16_ImportRefusesAsAWhole(t *testing.T) {
	file := dlqExport(t, dlqVaried(t))
	for name, tc := range map[string]struct {
		cfg  DLQConfig
		edit func(string) string
	}{
		"other version": {edit: func(s string) string { return dlqReseal(strings.Replace(s, `"version":1`, `"version":2`, 1)) }},
		"other format":  {edit: func(s string) string { return dlqReseal(strings.Replace(s, "resilience.letters", "else", 1)) }},
		"fewer letters": {edit: func(s string) string { return dlqReseal(strings.Replace(s, `"count":4`, `"count":5`, 1)) }},
		"more letters":  {edit: func(s string) string { return dlqReseal(strings.Replace(s, `"count":4`, `"count":3`, 1)) }},
		"negative":      {edit: func(s string) string { return dlqReseal(strings.Replace(s, `"count":4`, `"count":-1`, 1)) }},
		"unknown field": {edit: func(s string) string { return dlqReseal(strings.Replace(s, `"attempts"`, `"tries"`, 1)) }},
		"id twice":      {edit: func(s string) string { return dlqReseal(strings.Replace(s, `"id":"doubt"`, `"id":"full"`, 1)) }},
		"no id":         {edit: func(s string) string { return dlqReseal(strings.Replace(s, `"id":"doubt"`, `"id":""`, 1)) }},
		"bad effect":    {edit: func(s string) string { return dlqReseal(strings.Replace(s, `"idempotent"`, `"often"`, 1)) }},
		"negative tries": {edit: func(s string) string {
			return dlqReseal(strings.Replace(s, `"attempts":3`, `"attempts":-3`, 1))
		}},
		"something follows": {edit: func(s string) string { return s + "\n" }},
		"altered":           {edit: func(s string) string { return strings.Replace(s, `"attempts":3`, `"attempts":4`, 1) }},
		"too many":          {cfg: DLQConfig{MaxLetters: 3, Overflow: OverflowDropOldest, OnDrop: func(Letter) {}}},
		"too large":         {cfg: DLQConfig{MaxBytes: 8 << 10}},
	} {
		t.Run(name, func(t *testing.T) {
			d := mustDLQ(t, tc.cfg)
			in := string(file)
			if tc.edit != nil {
				in = tc.edit(in)
				require.NotEqual(t, string(file), in)
			}
			err := d.Import(strings.NewReader(in))
			require.Error(t, err)
			require.Equal(t, tc.edit == nil, errors.Is(err, ErrLettersFull))
			require.Zero(t, d.Stats())
		})
	}
	d := mustDLQ(t, DLQConfig{MaxBytes: 3 << 10})
	require.ErrorContains(t, d.Import(dlqZeros{}), "too long", "an endless line takes no memory")
	require.NoError(t, d.close(t.Context()))
	require.ErrorIs(t, d.Import(bytes.NewReader(dlqExport(t, mustDLQ(t, DLQConfig{})))), ErrClosed)
}

// dlqReseal puts the right checksum under an edited file.
func dlqReseal(s string) string {
	s = s[:strings.LastIndex(strings.TrimSuffix(s, "\n"), "\n")+1]
	sum := sha256.New()
	sum.Write([]byte(s))
	return s + string(trailerOf(sum))
}

func TestD16_EveryPrefixAndEveryFlippedByteIsRefused(t *testing.T) {
	d := mustDLQ(t, DLQConfig{})
	require.NoError(t, d.Add(Letter{Operation: "op", Key: "k"}))
	file := dlqExport(t, d)
	into := mustDLQ(t, DLQConfig{})
	for i := range file {
		require.Error(t, into.Import(bytes.NewReader(file[:i])))
		for bit := range 8 {
			bad := bytes.Clone(file)
			bad[i] ^= 1 << bit
			require.Error(t, into.Import(bytes.NewReader(bad)), "byte %d bit %d", i, bit)
		}
	}
	require.Zero(t, into.Stats())
}

func FuzzDLQImport(f *testing.F) {
	f.Add(dlqExport(f, dlqVaried(f)))
	f.Add([]byte("{\"format\":\"resilience.letters\",\"version\":1,\"count\":1}\n{}\n"))
	noon := func() time.Time { return time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC) } // an import dates doubts
	f.Fuzz(func(t *testing.T, file []byte) {
		for _, in := range [][]byte{file, []byte(dlqReseal(string(file) + "\n\n"))} {
			d := mustDLQ(t, DLQConfig{})
			d.keyClock = noon
			if err := d.Import(bytes.NewReader(in)); err != nil {
				require.Zero(t, d.Stats())
				continue
			}
			dlqConserved(t, d)
			again := mustDLQ(t, DLQConfig{})
			again.keyClock = noon
			require.NoError(t, again.Import(bytes.NewReader(dlqExport(t, d))))
			require.Equal(t, dlqPlain(d.List(LetterFilter{})), dlqPlain(again.List(LetterFilter{})))
		}
	})
}

// A letter that is merged into another brings no time that no export can hold.
func TestDLQ_AMergedLetterCanBeExported(t *testing.T) {
	d := mustDLQ(t, DLQConfig{Base: time.Hour, Cap: time.Hour})
	require.NoError(t, d.Add(Letter{Operation: "op", Key: "k", Parked: true}))
	require.NoError(t, d.Add(Letter{Operation: "op", Key: "k", Last: time.Date(9999, 12, 31, 23, 59, 59, 999999999, time.UTC)}))
	require.NoError(t, mustDLQ(t, DLQConfig{}).Import(bytes.NewReader(dlqExport(t, d))))
}

// fullDisk takes so many bytes.
type fullDisk int

func (f *fullDisk) Write(p []byte) (int, error) {
	n := min(len(p), int(*f))
	*f -= fullDisk(n)
	if n < len(p) {
		return n, errShelf
	}
	return n, nil
}

// An export that did not get onto the disk whole is none, at whichever byte that was.
func TestD16_AnExportThatDoesNotFitOntoTheDiskIsAnError(t *testing.T) {
	d := mustDLQ(t, DLQConfig{})
	for range 3 {
		require.NoError(t, d.Add(Letter{Operation: "op", Body: make([]byte, 5<<10)}))
	}
	whole := len(export(t, d))
	for room := 0; room < whole; room += 1 + min(1000, whole-room-2) {
		disk := fullDisk(room)
		require.ErrorIs(t, d.Export(&disk), errShelf, "%d of %d bytes", room, whole)
		if room == whole-1 {
			return
		}
	}
	t.Fatal("the last byte was never tried")
}
