package resilience

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func mustDLQ(t testing.TB, cfg DLQConfig) *DLQ {
	t.Helper()
	d, err := NewDLQ(cfg)
	require.NoError(t, err)
	return d
}

// dlqWorld is a fake other side that answers as it is told, and counts.
type dlqWorld struct {
	mu     sync.Mutex
	answer func(n int, req *http.Request) (*http.Response, error)
	seen   []dlqSeen
}

type dlqSeen struct {
	at       time.Time
	url      string
	body     string
	header   http.Header
	key      string
	priority Priority
	letter   string
}

func (w *dlqWorld) RoundTrip(req *http.Request) (*http.Response, error) {
	s := dlqSeen{at: time.Now(), url: req.URL.String(), header: req.Header.Clone()}
	if t := tripOf(req.Context()); t != nil {
		s.key, s.priority, s.letter = t.key, t.call.Priority, t.letter
	}
	if req.Body != nil {
		b, _ := io.ReadAll(req.Body)
		_ = req.Body.Close()
		s.body = string(b)
	}
	w.mu.Lock()
	w.seen = append(w.seen, s)
	n, answer := len(w.seen), w.answer
	w.mu.Unlock()
	return answer(n, req)
}

func (w *dlqWorld) set(answer func(int, *http.Request) (*http.Response, error)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answer = answer
}

func (w *dlqWorld) calls() []dlqSeen {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]dlqSeen(nil), w.seen...)
}

func dlqStatus(code int, header ...string) func(int, *http.Request) (*http.Response, error) {
	return func(int, *http.Request) (*http.Response, error) {
		r := httptest.NewRecorder()
		for i := 0; i+1 < len(header); i += 2 {
			r.Header().Set(header[i], header[i+1])
		}
		r.WriteHeader(code)
		return r.Result(), nil
	}
}

func dlqError(err error) func(int, *http.Request) (*http.Response, error) {
	return func(int, *http.Request) (*http.Response, error) { return nil, err }
}

var errDLQRefused = MarkNotSent(fmt.Errorf("dial: %w", syscall.ECONNREFUSED))

// dlqCall makes one write through rt. key "": none.
func dlqCall(ctx context.Context, rt http.RoundTripper, method, key string, header ...string) (*http.Response, error) {
	if key != "" {
		ctx = WithIdempotencyKey(ctx, key)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://api.test/v2/things?x=1", strings.NewReader(`{"n":1}`))
	if err != nil {
		return nil, err
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	return rt.RoundTrip(req)
}

// dlqOnly is the single letter of a queue.
func dlqOnly(t testing.TB, d *DLQ) Letter {
	t.Helper()
	list := d.List(LetterFilter{})
	require.Len(t, list, 1)
	return list[0]
}

// dlqConserved checks that nothing got lost without a word.
func dlqConserved(t testing.TB, d *DLQ) {
	t.Helper()
	s := d.Stats()
	require.Equal(t, s.Admitted, s.Acked+s.Deleted+s.Dropped+uint64(s.Letters), "%+v", s)
	require.Equal(t, s.Letters, s.Waiting+s.InDoubt+s.Leased+s.Parked+s.Superseded, "%+v", s)
	var bytes int64
	for _, l := range d.List(LetterFilter{}) {
		bytes += l.size()
	}
	require.Equal(t, bytes, s.Bytes)
}

func TestDLQConfigFaultsAllAtOnce(t *testing.T) {
	_, err := NewDLQ(DLQConfig{
		MaxLetters: -2, MaxBytes: -2, Attempts: -2, Base: -1, Cap: -time.Second, MaxAge: -2, Concurrency: -1,
		Rate: math.NaN(), Overflow: OverflowDropOldest,
	})
	for _, field := range []string{"MaxLetters", "MaxBytes", "Attempts", "Base", "Cap", "MaxAge", "Concurrency", "Rate", "OnDrop"} {
		require.ErrorContains(t, err, "DLQ."+field+":")
	}
	for field, cfg := range map[string]DLQConfig{
		"Spill": {Overflow: OverflowSpill}, "Overflow": {Overflow: 9}, "Cap": {Base: time.Minute, Cap: time.Second},
		"Rate": {Rate: math.Inf(1)},
	} {
		_, err := NewDLQ(cfg)
		require.ErrorContains(t, err, "DLQ."+field+":")
	}
	_, err = NewDLQ(DLQConfig{MaxLetters: -1, MaxBytes: -1, Attempts: -1, MaxAge: -1, Rate: -1, Base: time.Hour})
	require.NoError(t, err)
}

func TestDLQNilAndOff(t *testing.T) {
	off, err := NewDLQ(DLQConfig{Off: true})
	require.NoError(t, err)
	require.Nil(t, off)
	w := &dlqWorld{answer: dlqStatus(503)}
	resp, err := dlqCall(t.Context(), off.Wrap(w), http.MethodPut, "k")
	require.NoError(t, err)
	require.Equal(t, 503, resp.StatusCode)
	require.ErrorIs(t, off.Add(Letter{Operation: "a"}), ErrLettersFull)
	require.Zero(t, off.Len())
	require.Zero(t, off.Stats())
	require.Empty(t, off.List(LetterFilter{}))
	require.ErrorIs(t, off.Requeue("a"), ErrNoLetter)
	require.ErrorIs(t, off.Delete("a", ""), ErrNoLetter)
	require.Zero(t, off.RequeueAll())
	require.Equal(t, RedriveEmpty, off.Redrive(t.Context()).Status)
	off.Handle("a", nil)
	off.addRoad(nil)
	off.settle("k", keyNews{verdict: keyDone})
	_, ok := off.Get("a")
	require.False(t, ok)
}

func TestD01_ALetterKeepsWhatARedriveNeeds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := mustDLQ(t, DLQConfig{})
		w := &dlqWorld{answer: dlqStatus(503, "Retry-After", "7")}
		began := time.Now()
		ctx := WithCall(t.Context(), Call{Operation: "update-thing", Resource: "thing/1", Class: ClassUpload, Limit: time.Minute})
		header := []string{"Authorization", "secret", "cookie", "c=1", "X-Api-Key", "s", "Proxy-Authorization", "p", "Accept", "a"}
		resp, err := dlqCall(ctx, d.Wrap(w), http.MethodPut, "key-1", header...)
		require.Nil(t, resp)
		var e *Error
		require.ErrorAs(t, err, &e)
		require.ErrorIs(t, err, ErrParked)
		require.False(t, NotSent(err))
		require.False(t, InDoubt(err))

		l := dlqOnly(t, d)
		require.Equal(t, []any{"dlq", "update-thing", "key-1", l.ID, 503}, []any{e.Layer, e.Operation, e.Key, e.LetterID, e.StatusCode})
		require.Equal(t, "http://api.test/v2/things?x=1", l.URL)
		require.Equal(t, http.Header{"Accept": {"a"}}, l.Header)
		require.True(t, l.NeedsAuth)
		require.Equal(t, `{"n":1}`, string(l.Body))
		require.Equal(t, Call{
			Operation: "update-thing", Effect: EffectIdempotent, Priority: PriorityNormal, Class: ClassUpload,
			Limit: time.Minute, Resource: "thing/1",
		}, l.Call)
		require.Equal(t, "status", l.Cause)
		require.Equal(t, 503, l.StatusCode)
		require.Zero(t, l.Attempts)
		require.Len(t, l.History, 1)
		require.True(t, l.First.Equal(began))
		require.True(t, l.Named)
		require.GreaterOrEqual(t, l.Next.Sub(began), 7*time.Second, "Retry-After is the floor")
		require.Equal(t, time.Hour, l.Expires.Sub(began))

		l.Body[0], l.Header["Accept"][0], l.History[0].Cause = 'X', "changed", "changed"
		again, ok := d.Get(l.ID)
		require.True(t, ok)
		require.Equal(t, `{"n":1}`, string(again.Body))
		require.Equal(t, "a", again.Header.Get("Accept"))
		require.Equal(t, "status", again.History[0].Cause)
		require.NotContains(t, err.Error(), "key-1")
	})
}

func TestD01_AddKeepsADeepCopyWithoutCredentials(t *testing.T) {
	d := mustDLQ(t, DLQConfig{})
	body, header := []byte("abc"), http.Header{"authorization": {"x"}, "A": {"1"}, "Idempotency-Key": {"k"}}
	require.NoError(t, d.Add(Letter{Operation: "op", Method: "POST", URL: "http://u:p@h/", Body: body, Header: header}))
	body[0], header["A"][0] = 'X', "changed"
	l := dlqOnly(t, d)
	require.Equal(t, "abc", string(l.Body))
	require.Equal(t, http.Header{"A": {"1"}}, l.Header)
	require.Equal(t, "http://h/", l.URL)
	require.True(t, l.NeedsAuth)
	require.NotEmpty(t, l.Key)
	require.NotEmpty(t, l.ID)
	require.Equal(t, http.Header{"authorization": {"x"}, "A": {"changed"}, "Idempotency-Key": {"k"}}, header)

	require.Error(t, d.Add(Letter{}))
	require.Error(t, d.Add(Letter{Operation: "op", ID: l.ID}))
	require.ErrorIs(t, d.Add(Letter{Operation: "op", Key: strings.Repeat("x", 256)}), ErrBadKey)
	require.Error(t, d.Add(Letter{Operation: "op", Next: time.Date(20000, 1, 1, 0, 0, 0, 0, time.UTC)}))
	dlqConserved(t, d)
}

// The table of who owns a failed write.
func TestD14_WhoOwnsAFailedWrite(t *testing.T) {
	reset := errors.New("connection reset")
	refusedBy := func(err error) error { return &Error{Layer: "test", Err: err, verdict: refused} }
	for name, tc := range map[string]struct {
		cfg    DLQConfig
		method string
		key    string
		answer func(int, *http.Request) (*http.Response, error)
		parked bool
		doubt  bool
	}{
		"idempotent, 5xx":          {method: "PUT", key: "k", answer: dlqStatus(500), parked: true},
		"idempotent, reset":        {method: "PUT", key: "k", answer: dlqError(reset), parked: true},
		"once, 5xx":                {method: "POST", key: "k", answer: dlqStatus(500), parked: true, doubt: true},
		"once, reset":              {method: "POST", key: "k", answer: dlqError(reset), parked: true, doubt: true},
		"once, in doubt":           {method: "POST", key: "k", answer: dlqError(&Error{Layer: "t", Err: ErrInDoubt}), parked: true, doubt: true},
		"once, connection refused": {method: "POST", key: "k", answer: dlqError(errDLQRefused), parked: true},
		"open circuit":             {method: "POST", key: "k", answer: dlqError(refusedBy(ErrOpen)), parked: true},
		"full":                     {method: "POST", key: "k", answer: dlqError(refusedBy(ErrFull)), parked: true},
		"budget":                   {method: "POST", key: "k", answer: dlqError(refusedBy(errBudget)), parked: true},
		"closed":                   {method: "PUT", key: "k", answer: dlqError(refusedBy(ErrClosed))},
		"store":                    {method: "PUT", key: "k", answer: dlqError(refusedBy(ErrStore))},
		"store full":               {method: "PUT", key: "k", answer: dlqError(refusedBy(ErrStoreFull))},
		"key reused":               {method: "PUT", key: "k", answer: dlqError(refusedBy(ErrKeyReused))},
		"disputed":                 {method: "POST", key: "k", answer: dlqError(&Error{Layer: "t", Err: ErrDisputed})},
		"no key":                   {method: "PUT", answer: dlqStatus(500)},
		"no key, though all kept":  {method: "PUT", answer: dlqStatus(500), cfg: DLQConfig{KeepUnnamed: true}},
		"read":                     {method: "GET", key: "k", answer: dlqStatus(500)},
		"a 4xx is settled":         {method: "PUT", key: "k", answer: dlqStatus(404)},
		"a 429 is settled":         {method: "POST", key: "k", answer: dlqStatus(429)},
		"success":                  {method: "PUT", key: "k", answer: dlqStatus(204)},
		"not kept":                 {method: "PUT", key: "k", answer: dlqStatus(500), cfg: DLQConfig{Keep: func(Call) bool { return false }}},
		"kept":                     {method: "PUT", key: "k", answer: dlqStatus(500), cfg: DLQConfig{Keep: func(c Call) bool { return c.Operation == "PUT" }}, parked: true},
		"Keep panics":              {method: "PUT", key: "k", answer: dlqStatus(500), cfg: DLQConfig{Keep: func(Call) bool { panic("x") }}},
		"Keep exits its goroutine": {method: "PUT", key: "k", answer: dlqStatus(500), cfg: DLQConfig{Keep: func(Call) bool { runtime.Goexit(); return true }}},
		"another queue owns it":    {method: "PUT", key: "k", answer: dlqError(&Error{Layer: "dlq", Err: ErrParked})},
	} {
		t.Run(name, func(t *testing.T) {
			d := mustDLQ(t, tc.cfg)
			w := &dlqWorld{answer: tc.answer}
			resp, err := dlqCall(t.Context(), d.Wrap(w), tc.method, tc.key)
			require.NotEqual(t, resp == nil, err == nil)
			require.Len(t, w.calls(), 1)
			if !tc.parked {
				require.Zero(t, d.Len())
				var e *Error
				require.False(t, errors.As(err, &e) && e.LetterID != "")
				return
			}
			l := dlqOnly(t, d)
			require.ErrorIs(t, err, ErrParked)
			require.False(t, NotSent(err))
			require.Equal(t, tc.doubt, InDoubt(err))
			require.Equal(t, tc.doubt, l.InDoubt)
			dlqConserved(t, d)
		})
	}
}

func TestD14_UnnamedKeysOnlyOnRequest(t *testing.T) {
	for _, keep := range []bool{false, true} {
		d := mustDLQ(t, DLQConfig{KeepUnnamed: keep})
		rt := d.Wrap(&dlqWorld{answer: dlqStatus(500)})
		made := LayerFunc(func(next http.RoundTripper) http.RoundTripper { // what a layer that makes keys does
			return newDoor(next, func(ctx context.Context, t *trip, req *http.Request, next leg) (*http.Response, error) {
				t.key = "made"
				return next.travel(ctx, t, req)
			})
		})
		_, err := dlqCall(t.Context(), made.Wrap(rt), http.MethodPut, "")
		require.Equal(t, keep, errors.Is(err, ErrParked))
		require.Equal(t, keep, d.holds("made"))
	}
}

func TestD14_ACallerWhoEndsTheCallKeepsTheWrite(t *testing.T) {
	own := errors.New("my own reason")
	gone := func(_ int, req *http.Request) (*http.Response, error) { // a layer that made the call wait
		<-req.Context().Done()
		return nil, tripOf(req.Context()).gone(req.Context(), "test")
	}
	interrupted := func(_ int, req *http.Request) (*http.Response, error) {
		<-req.Context().Done()
		return nil, req.Context().Err()
	}
	for name, tc := range map[string]struct {
		ctx    func(context.Context) (context.Context, func())
		answer func(int, *http.Request) (*http.Response, error)
		parked bool
	}{
		"cancelled before the wire": {cancelWith(own), gone, false},
		"deadline before the wire":  {deadlineWith(nil), gone, false},
		"budget before the wire":    {deadlineWith(errBudget), gone, true},
		"cancelled on the wire":     {cancelWith(own), interrupted, false},
		"deadline on the wire":      {deadlineWith(nil), interrupted, true},
		"budget on the wire":        {deadlineWith(errBudget), interrupted, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := mustDLQ(t, DLQConfig{})
				ctx, stop := tc.ctx(t.Context())
				defer stop()
				_, err := dlqCall(ctx, d.Wrap(&dlqWorld{answer: tc.answer}), http.MethodPut, "k")
				require.Equal(t, tc.parked, errors.Is(err, ErrParked))
				require.Equal(t, tc.parked, d.holds("k"))
			})
		})
	}
}

func cancelWith(cause error) func(context.Context) (context.Context, func()) {
	return func(ctx context.Context) (context.Context, func()) {
		ctx, cancel := context.WithCancelCause(ctx)
		timer := time.AfterFunc(time.Second, func() { cancel(cause) })
		return ctx, func() { timer.Stop(); cancel(nil) }
	}
}

func deadlineWith(cause error) func(context.Context) (context.Context, func()) {
	return func(ctx context.Context) (context.Context, func()) {
		ctx, cancel := context.WithTimeoutCause(ctx, time.Second, cause)
		return ctx, cancel
	}
}

func TestD09_OneLetterForEachKey(t *testing.T) {
	d := mustDLQ(t, DLQConfig{})
	w := &dlqWorld{answer: dlqStatus(500)}
	rt := d.Wrap(w)
	ids := map[string]bool{}
	for range 12 {
		_, err := dlqCall(t.Context(), rt, http.MethodPut, "k")
		var e *Error
		require.ErrorAs(t, err, &e)
		ids[e.LetterID] = true
	}
	require.Len(t, ids, 1)
	l := dlqOnly(t, d)
	require.Len(t, l.History, 9, "the first and the last eight")
	require.Equal(t, 4, l.Attempts, "a caller's failures never give a letter up")
	require.False(t, l.Parked)
	require.NoError(t, d.Add(Letter{Operation: "x", Key: "k", Cause: "again", InDoubt: true}))
	l = dlqOnly(t, d)
	require.Equal(t, "again", l.Cause)
	require.True(t, l.InDoubt)
	require.EqualValues(t, 12, d.Stats().Merged)
	dlqConserved(t, d)
}

func TestD09_ACallWithTheKeySettlesTheLetter(t *testing.T) {
	d := mustDLQ(t, DLQConfig{})
	w := &dlqWorld{answer: dlqError(errDLQRefused)}
	rt := d.Wrap(w)
	_, err := dlqCall(t.Context(), rt, http.MethodPost, "k")
	require.ErrorIs(t, err, ErrParked)
	_, err = dlqCall(t.Context(), rt, http.MethodPost, "k")
	require.ErrorIs(t, err, ErrParked)
	w.set(dlqStatus(201))
	resp, err := dlqCall(t.Context(), rt, http.MethodPost, "k")
	require.NoError(t, err)
	require.Equal(t, 201, resp.StatusCode)
	require.Zero(t, d.Len())
	require.EqualValues(t, 1, d.Stats().Acked)
	dlqConserved(t, d)
}

func TestD09_ACallRevivesALetterThatWasGivenUp(t *testing.T) {
	d, _, rt := dlqParked(t, DLQConfig{})
	id := dlqOnly(t, d).ID
	d.mu.Lock()
	d.park(d.box.byID[id], "attempts", func(l *Letter) { l.Attempts = 5 })
	d.mu.Unlock()
	_, err := dlqCall(WithCall(t.Context(), Call{Operation: "op"}), rt, http.MethodPost, "k")
	require.ErrorIs(t, err, ErrParked)
	l := dlqOnly(t, d)
	require.Equal(t, []any{id, LetterWaiting, "", 1}, []any{l.ID, l.State(), l.ParkedReason, l.Attempts})
	dlqConserved(t, d)
}

func TestD14_ACallDoesNotRepeatWhatIsInDoubt(t *testing.T) {
	d := mustDLQ(t, DLQConfig{})
	w := &dlqWorld{answer: dlqStatus(500)}
	rt := d.Wrap(w)
	_, err := dlqCall(t.Context(), rt, http.MethodPost, "k")
	require.True(t, InDoubt(err))
	_, err = dlqCall(t.Context(), rt, http.MethodPost, "k")
	require.True(t, InDoubt(err))
	require.ErrorIs(t, err, ErrParked)
	require.Len(t, w.calls(), 1, "one ring")
}

func TestDLQAPanicBelowGivesTheLeaseBack(t *testing.T) {
	d := mustDLQ(t, DLQConfig{})
	w := &dlqWorld{answer: dlqError(errDLQRefused)}
	rt := d.Wrap(w)
	_, err := dlqCall(t.Context(), rt, http.MethodPost, "k")
	require.ErrorIs(t, err, ErrParked)
	w.set(func(int, *http.Request) (*http.Response, error) { panic("transport") })
	require.PanicsWithValue(t, "transport", func() { _, _ = dlqCall(t.Context(), rt, http.MethodPost, "k") })
	l := dlqOnly(t, d)
	require.False(t, l.Leased)
	require.True(t, l.InDoubt, "it may have rung")
	dlqConserved(t, d)
}

func TestDLQABodyThatCannotBeHeldIsNoLetter(t *testing.T) {
	d := mustDLQ(t, DLQConfig{})
	rt := d.Wrap(&dlqWorld{answer: dlqStatus(500)})
	req, err := http.NewRequestWithContext(WithIdempotencyKey(t.Context(), "k"), http.MethodPut, "http://api.test/",
		io.LimitReader(dlqZeros{}, defaultMaxRequestBytes+1))
	require.NoError(t, err)
	resp, err := rt.RoundTrip(req)
	require.NoError(t, err)
	require.Equal(t, 500, resp.StatusCode)
	require.Zero(t, d.Len())
}

type dlqZeros struct{}

func (dlqZeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

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

// What Add is not told it says itself, and what it is given it does not change.
func TestDLQ_WhatAddMakesOfALetter(t *testing.T) {
	d := mustDLQ(t, DLQConfig{})
	require.NoError(t, d.Add(Letter{Operation: "op", Detail: "why", StatusCode: 7, Leased: true}))
	l := dlqOnly(t, d)
	require.Equal(t, []any{"caller", LetterWaiting}, []any{l.Cause, l.State()})
	require.Equal(t, []LetterAttempt{{Time: l.Last, Cause: "caller", Detail: "why", StatusCode: 7}}, l.History)
	require.NoError(t, d.Delete(l.ID, ""))

	var given []LetterAttempt
	for i := range 12 {
		given = append(given, LetterAttempt{StatusCode: i})
	}
	mine := slices.Clone(given)
	require.NoError(t, d.Add(Letter{Operation: "op", History: mine}))
	require.Equal(t, given, mine)
	require.Equal(t, append(given[:1:1], given[4:]...), dlqOnly(t, d).History, "the first and the last eight")
	for _, bad := range []Call{{Effect: EffectOnce + 1}, {Priority: PriorityBulk + 1}, {Class: ClassLongPoll + 1}} {
		require.Error(t, d.Add(Letter{Operation: "op", Call: bad}))
	}
	require.NoError(t, d.Add(Letter{Operation: "op", Call: Call{Effect: EffectOnce, Priority: PriorityBulk, Class: ClassLongPoll}}))
}
