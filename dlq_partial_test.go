package resilience

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// dlqChange makes one write of a resource.
func dlqChange(t testing.TB, rt http.RoundTripper, method, key, body string) error {
	t.Helper()
	ctx := WithCall(WithIdempotencyKey(t.Context(), key), Call{Resource: "agent/1", Effect: EffectIdempotent})
	req, err := http.NewRequestWithContext(ctx, method, "http://h/agent/1", strings.NewReader(body))
	require.NoError(t, err)
	_, err = rt.RoundTrip(req)
	return err
}

var partialWrites = map[string]struct {
	older, newer string // method and body
	waits        bool   // the older one is still to be sent
}{
	"other members":           {`PATCH {"voice_id":"a"}`, `PATCH {"prompt":"b"}`, true},
	"names within names":      {`PATCH {"voice":"a"}`, `PATCH {"voice_id":"b","a\nvoice":1}`, true},
	"the same member":         {`PATCH {"voice_id":"a"}`, `PATCH { "voice_id" : "b" }`, false},
	"null is a change":        {`PATCH {"voice_id":"a"}`, `PATCH {"voice_id":null}`, false},
	"more members":            {`PATCH {"voice_id":"a"}`, `PATCH {"prompt":"b","voice_id":"b"}`, false},
	"some of its members":     {`PATCH {"voice_id":"a","prompt":"a"}`, `PATCH {"prompt":"b"}`, false},
	"all of it":               {`PATCH {"voice_id":"a"}`, `PUT {"prompt":"b"}`, false},
	"gone":                    {`PATCH {"voice_id":"a"}`, `DELETE `, false},
	"parts after all of it":   {`PUT {"voice_id":"a"}`, `PATCH {"prompt":"b"}`, false},
	"no members":              {`PATCH {"voice_id":"a"}`, `PATCH {}`, false},
	"an older one of nothing": {`PATCH null`, `PATCH {"prompt":"b"}`, false},
	"a list":                  {`PATCH {"voice_id":"a"}`, `PATCH [{"op":"add","path":"/prompt"}]`, false},
}

// A change of some members of a thing does not undo one of others, nor has it done that: the older one is still sent. Whatever
// may undo it, or may have done it, supersedes it.
func TestD13_APartialWriteIsSupersededByWhatMeetsIt(t *testing.T) {
	for name, c := range partialWrites {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := mustDLQ(t, DLQConfig{})
				w := &dlqWorld{answer: dlqStatus(503)}
				rt := d.Wrap(w)
				method, body, _ := strings.Cut(c.older, " ")
				require.ErrorIs(t, dlqChange(t, rt, method, "older", body), ErrParked)
				time.Sleep(time.Second)
				w.set(dlqStatus(200))
				method, body, _ = strings.Cut(c.newer, " ")
				require.NoError(t, dlqChange(t, rt, method, "newer", body))
				requireOlder(t, d, w, c.waits)
			})
		})
	}
}

// requireOlder checks that the older write is sent, or is a superseded letter.
func requireOlder(t *testing.T, d *DLQ, w *dlqWorld, sent bool) {
	t.Helper()
	stop := dlqRun(t, d)
	time.Sleep(time.Hour)
	stop()
	last := w.calls()[len(w.calls())-1]
	require.Equal(t, sent, last.letter != "" && last.key == "older")
	if !sent {
		require.Equal(t, LetterSuperseded, dlqOnly(t, d).State())
	}
	require.Equal(t, map[bool]uint64{true: 0, false: 1}[sent], d.Stats().Overtaken)
	require.Empty(t, d.box.byResource)
	require.Empty(t, d.writes)
	dlqConserved(t, d)
}

// The same where the older one fails only after the newer one has worked, under its own key or under that of its letter.
func TestD13_APartialWriteThatFailsLateIsSupersededByWhatMeetsIt(t *testing.T) {
	for name, c := range partialWrites {
		for _, again := range []bool{false, true} {
			t.Run(fmt.Sprint(name, ", again ", again), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { partialFailsLate(t, c.older, c.newer, again, c.waits) })
			})
		}
	}
}

func partialFailsLate(t *testing.T, older, newer string, again, waits bool) {
	d := mustDLQ(t, DLQConfig{})
	w := &dlqWorld{answer: dlqStatus(503)}
	rt := d.Wrap(w)
	method, body, _ := strings.Cut(older, " ")
	if again {
		require.ErrorIs(t, dlqChange(t, rt, method, "older", body), ErrParked)
	}
	w.set(func(int, *http.Request) (*http.Response, error) {
		time.Sleep(10 * time.Second)
		return dlqStatus(503)(0, nil)
	})
	late := make(chan error)
	go func() { late <- dlqChange(t, rt, method, "older", body) }()
	time.Sleep(time.Second)
	w.set(dlqStatus(200))
	method, body, _ = strings.Cut(newer, " ")
	require.NoError(t, dlqChange(t, rt, method, "newer", body))
	require.NoError(t, dlqChange(t, rt, http.MethodPatch, "another", `{"language":"en"}`)) // it meets nothing but whole writes
	require.ErrorIs(t, <-late, ErrParked)
	require.Equal(t, !waits, dlqOnly(t, d).Superseded)
	requireOlder(t, d, w, waits)
}

// What a redrive, or a look-up, brings about supersedes as a call does.
func TestD13_ALetterOfPartsSupersedesWhatItMeets(t *testing.T) {
	for _, found := range []bool{false, true} {
		t.Run(fmt.Sprint("found ", found), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := mustDLQ(t, DLQConfig{})
				_ = d.Wrap(&dlqWorld{answer: dlqStatus(200)})
				now := time.Now()
				for i, body := range []string{`{"a":1}`, `{"b":1}`, `{"c":1,"b":1}`, `{"b":2}`, `{"b":3}`} {
					next := now.Add(time.Minute)
					if i == 3 && !found {
						next = now
					}
					require.NoError(t, d.Add(Letter{
						ID: fmt.Sprint(i), Key: fmt.Sprint(i), Method: http.MethodPatch, URL: "http://h/", Body: []byte(body),
						Call: Call{Resource: "r"}, First: now.Add(time.Duration(i-9) * time.Second), Next: next,
					}))
				}
				if found {
					d.settle("3", keyNews{verdict: keyDone})
				} else {
					require.Equal(t, RedriveDone, d.Redrive(context.Background()).Status)
				}
				for id, state := range map[string]LetterState{"0": LetterWaiting, "1": LetterSuperseded, "2": LetterSuperseded, "4": LetterWaiting} {
					l, ok := d.Get(id)
					require.True(t, ok)
					require.Equal(t, state, l.State(), id)
				}
			})
		})
	}
}

// Of the writes that worked the newest counts, in whatever order they ended.
func TestD13_TheNewestWriteThatWorkedCounts(t *testing.T) {
	for _, method := range []string{http.MethodPatch, http.MethodPut} {
		for _, first := range []time.Duration{time.Millisecond, 5 * time.Second} {
			t.Run(fmt.Sprint(method, first), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					takes := map[string]time.Duration{"1": first, "2": 10 * time.Second, "3": time.Millisecond}
					d := mustDLQ(t, DLQConfig{})
					w := &dlqWorld{}
					w.set(func(n int, _ *http.Request) (*http.Response, error) {
						key := w.calls()[n-1].key
						time.Sleep(takes[key])
						return dlqStatus(map[bool]int{true: 503, false: 200}[key == "2"])(n, nil)
					})
					rt := d.Wrap(w)
					ends := make(chan error, 3)
					for _, key := range []string{"1", "2", "3"} {
						go func() { ends <- dlqChange(t, rt, method, key, `{"voice_id":"`+key+`"}`) }()
						time.Sleep(time.Second)
					}
					require.NoError(t, <-ends)
					require.NoError(t, <-ends)
					require.ErrorIs(t, <-ends, ErrParked)
					require.Equal(t, LetterSuperseded, dlqOnly(t, d).State())
				})
			})
		}
	}
}

func TestPartsOf_AreTheSameHoweverTheyAreWritten(t *testing.T) {
	want := partsOf("r", http.MethodPatch, []byte(`{"a":1,"b":2,"c":3,"d":4,"e":5}`))
	require.NotEmpty(t, want)
	for range 20 {
		require.Equal(t, want, partsOf("r", http.MethodPatch, []byte(`{"e":9, "d":9, "\u0063":9,"b":9,"a":9}`)))
	}
	require.Empty(t, partsOf("", http.MethodPatch, []byte(`{"a":1}`)), "nobody asks")
}

// Two calls with one key fail one after the other, and between them a newer write of other members has worked.
func TestD13_APartialWriteThatFailsTwiceWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := mustDLQ(t, DLQConfig{})
		w := &dlqWorld{}
		w.set(func(n int, _ *http.Request) (*http.Response, error) {
			time.Sleep([]time.Duration{2 * time.Second, 10 * time.Second, 0, 0, 0}[n-1])
			return dlqStatus([]int{503, 503, 200, 200, 200}[n-1])(n, nil)
		})
		rt := d.Wrap(w)
		ends := make(chan error, 2)
		for range 2 {
			go func() { ends <- dlqChange(t, rt, http.MethodPatch, "older", `{"voice_id":"a"}`) }()
			time.Sleep(time.Millisecond)
		}
		require.ErrorIs(t, <-ends, ErrParked)
		require.NoError(t, dlqChange(t, rt, http.MethodPatch, "newer", `{"prompt":"b"}`))
		require.ErrorIs(t, <-ends, ErrParked)
		require.Equal(t, uint64(1), d.Stats().Merged)
		requireOlder(t, d, w, true)
	})
}

// A newer write holds back the letter that it meets while it is under way, and no other.
func TestD13_APartialWriteIsHeldBackByWhatMeetsIt(t *testing.T) {
	for name, c := range partialWrites {
		d := mustDLQ(t, DLQConfig{})
		began := time.Now()
		method, body, _ := strings.Cut(c.older, " ")
		require.NoError(t, d.Add(Letter{
			ID: "older", Method: method, URL: "http://h/", Body: []byte(body), First: began, Call: Call{Resource: "agent/1"},
		}))
		method, body, _ = strings.Cut(c.newer, " ")
		d.begin("agent/1", partsOf("agent/1", method, []byte(body)), began.Add(time.Second))
		require.Equal(t, !c.waits, d.recall("older", true) != nil, name)
		d.end("agent/1")
		require.NoError(t, d.recall("older", true))
	}
}
