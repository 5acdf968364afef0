package resilience

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"time"
	"unicode/utf8"
)

// The format of an export: one JSON value a line; a header, the letters with the oldest first, a trailer with the SHA-256
// of all lines before it.
const (
	letterFormat  = "resilience.letters"
	letterVersion = 1
)

type letterHeader struct {
	Format  string `json:"format"`
	Version int    `json:"version"`
	Count   int    `json:"count"`
	Sealed  bool   `json:"sealed,omitempty"` // by DLQConfig.Seal, each letter after Redact
}

type letterTrailer struct {
	SHA256 string `json:"sha256"`
}

// Export writes all letters to w, the oldest first, as JSON lines that Import reads. A letter being redriven is written as
// waiting, or as in doubt where it may be on its way and must happen once. DLQConfig.Redact is applied, then DLQConfig.Seal.
// Letters hold no credentials but may hold personal data: protect the file. The queue is not changed and works on meanwhile;
// what happens after the beginning is not in the export. So for a restart export after [Stack.Close]: a letter that is
// redriven after an earlier export is sent again by whoever imports it, unless the keys are durable.
func (d *DLQ) Export(w io.Writer) error {
	all := d.view()
	sum := sha256.New()
	out := bufio.NewWriter(w)
	err := writeLine(out, sum, letterHeader{letterFormat, letterVersion, len(all), d.cfg.Seal != nil})
	for _, v := range all {
		if err != nil {
			return err
		}
		l := v.letter.clone()
		l.InDoubt = l.InDoubt || v.flying && l.effect() == EffectOnce // whoever reads this cannot know how it ended
		if err = d.redact(&l); err == nil {
			err = d.guard(l.Operation, func() (err error) { l, err = d.seal(&l); return err })
		}
		if err == nil {
			err = writeLine(out, sum, lineOf(&l))
		}
	}
	if err != nil {
		return err
	}
	if _, err := out.Write(trailerOf(sum)); err != nil {
		return err
	}
	return out.Flush()
}

func writeLine(w io.Writer, sum hash.Hash, v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("dlq: export: %w", err)
	}
	line = append(line, '\n')
	sum.Write(line)
	_, err = w.Write(line)
	return err
}

func trailerOf(sum hash.Hash) []byte {
	line, _ := json.Marshal(letterTrailer{hex.EncodeToString(sum.Sum(nil))})
	return append(line, '\n')
}

// redact applies the user's redaction, and marks a letter whose request is no longer what it was.
func (d *DLQ) redact(l *Letter) error {
	if d.cfg.Redact == nil {
		return nil
	}
	before := l.clone()
	if err := d.guard(l.Operation, func() error { d.cfg.Redact(l); return nil }); err != nil {
		return fmt.Errorf("dlq: redact: %w", err)
	}
	l.ID = before.ID
	if !sameRequest(&before, l) {
		l.Redacted = true
	}
	return nil
}

func sameRequest(a, b *Letter) bool {
	if a.Key != b.Key || a.Operation != b.Operation || a.Method != b.Method || a.URL != b.URL || a.Host != b.Host ||
		len(a.Header) != len(b.Header) || !bytes.Equal(a.Body, b.Body) {
		return false
	}
	for name, values := range a.Header {
		if fmt.Sprintf("%q", values) != fmt.Sprintf("%q", b.Header[name]) {
			return false
		}
	}
	return true
}

// Import adds the letters of an export, with their attempts and due times; due ones are redriven in the order of the
// export. Letters that are here already, by id or by key, are left as they are, with one exception: where the one in the file
// is in doubt, the one here with its key is in doubt from then on, even if the rest does not get into the store. For what is
// known there about a key is true here: it may have taken effect.
//
// A doubt that an import brings (Letter.DoubtSince) is about what another process sent. It ends when the key is found to
// have taken effect; by [Idempotency.Resolve], from then on; by the user's choices, ServerKeysTrust while the API knows the
// key, and AssumeAbsentAfter when as much time has passed since the import; or when the letter is deleted and added with
// InDoubt false. It does not end because a send of this process was refused, nor by what was settled here before.
//
// Everything is read and checked before anything is changed: a file that is not whole, was altered, has another version,
// or holds more than fits ([ErrLettersFull], whatever the overflow policy) is refused as a whole; so is one that does not
// get into DLQConfig.Store within a minute (ErrLettersFull joined to the reason). A sealed export needs DLQConfig.Open; one
// that is not is taken all the same. Register functions with Handle before.
func (d *DLQ) Import(r io.Reader) error {
	if d == nil {
		return fmt.Errorf("%w: there is no queue", ErrLettersFull)
	}
	letters, err := d.readLetters(r)
	if err != nil {
		return fmt.Errorf("dlq: import: %w", err)
	}
	d.date(letters)
	for {
		all, coming, err := d.expectAll(letters)
		switch {
		case coming != nil:
			<-coming // whether one of the same key or id is here, is known then; it takes no longer than a write may
		case err != nil:
			return err
		default:
			return d.landAll(all)
		}
	}
}

// date notes since when the doubts of a file count here. A file that brings a later time keeps it: by a clock that was
// ahead, things may have been settled up to then.
func (d *DLQ) date(letters []*Letter) {
	now := time.Now()
	if d.keyClock != nil {
		now = d.keyClock()
	}
	for _, l := range letters {
		l.setDoubt(l.InDoubt, later(now, l.DoubtSince))
	}
}

// expectAll gives the letters that are not here yet their places, all or none.
func (d *DLQ) expectAll(letters []*Letter) (all []placed, coming <-chan struct{}, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, nil, ErrClosed
	}
	var fresh []*Letter
	var doubts []doubted
	var size int64
	for _, l := range letters {
		byID, byKey := d.box.byID[l.ID], d.box.ofKey(l.Key)
		for _, s := range []*letterSlot{byID, byKey} {
			if s != nil && s.arrival != nil {
				return nil, s.arrival.over, nil
			}
		}
		switch {
		case byID == nil && byKey == nil:
			fresh = append(fresh, l)
			size += l.size()
		case byKey != nil && l.InDoubt:
			doubts = append(doubts, doubted{byKey, l.DoubtSince})
		}
	}
	if len(fresh) > 0 && !d.fits(len(fresh), size) {
		return nil, nil, fmt.Errorf("dlq: import of %d letters: %w", len(fresh), ErrLettersFull)
	}
	for _, o := range doubts { // at once: it must not be sent while the others arrive
		d.passDoubt(o.slot, o.since)
		all = append(all, placed{o.slot, o.slot.letter, o.slot.noted})
	}
	for _, l := range fresh {
		s := d.box.expect(l, nil)
		all = append(all, placed{s, l, s.noted})
		if d.journal == nil {
			d.land(s, "import")
		}
	}
	return all, nil, nil
}

// doubted is a letter of the queue that an import says to be in doubt.
type doubted struct {
	slot  *letterSlot
	since time.Time
}

// passDoubt has a letter in doubt since an import. For one that is in doubt already this is no news, but it now is about
// what another process sent, too: less counts against it.
func (d *DLQ) passDoubt(s *letterSlot, since time.Time) {
	since = later(since, s.letter.DoubtSince)
	switch {
	case !s.letter.InDoubt:
		d.counters.Merged++
		d.doubt(s, true, since)
		d.tell(EventLetterAdded, s.letter, "merged")
	case !since.Equal(s.letter.DoubtSince):
		d.box.change(s, func(l *Letter) { l.DoubtSince = since })
	}
}

// landAll returns when all letters of an import are in the store, and in the queue; where one does not get there, none
// stays.
func (d *DLQ) landAll(all []placed) (err error) {
	if d.journal == nil {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), letterLoadLimit, errSlowStore)
	defer cancel()
	for _, p := range all {
		if err == nil {
			err = d.journal.await(ctx, p.letter.ID, p.seq)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range all {
		if err == nil && p.slot.withdrawn {
			err = errSlowStore // for a call with the same key, and for us
		}
	}
	for _, p := range all {
		switch {
		case p.slot.arrival == nil: // it was here before, or went its way already, with a call of the same key
		case err != nil:
			d.withdraw(p.slot)
		default:
			d.land(p.slot, "import")
		}
	}
	if err != nil {
		return fmt.Errorf("dlq: import of %d letters: %w", len(all), &notStored{err})
	}
	return nil
}

// readLetters reads a whole export, and believes none of it before the trailer has matched.
func (d *DLQ) readLetters(r io.Reader) ([]*Letter, error) {
	in := letterReader{in: bufio.NewReader(r), sum: sha256.New(), limit: d.lineLimit()}
	var h letterHeader
	err := in.value(&h)
	switch {
	case err != nil:
		return nil, fmt.Errorf("header: %w", err)
	case h.Format != letterFormat:
		return nil, errors.New("header: not an export of letters")
	case h.Version != letterVersion:
		return nil, fmt.Errorf("header: version %d is not known, only %d", h.Version, letterVersion)
	case h.Count < 0:
		return nil, errors.New("header: negative count")
	case h.Sealed && d.cfg.Open == nil:
		return nil, errors.New("header: the export is sealed, and DLQConfig.Open is missing")
	}
	var letters []*Letter
	ids, keys := map[string]bool{}, map[string]bool{}
	for n := range h.Count {
		l, err := in.letter()
		if err == nil && h.Sealed {
			l, err = d.opened(l)
		}
		if err != nil {
			return nil, fmt.Errorf("letter %d of %d: %w", n+1, h.Count, err)
		}
		if ids[l.ID] || keys[l.Key] {
			return nil, fmt.Errorf("letter %d of %d: id or key is there twice", n+1, h.Count)
		}
		ids[l.ID], keys[l.Key] = true, true
		l.tidy()
		letters = append(letters, l)
	}
	return letters, in.end()
}

// lineLimit bounds a line: no letter that fits is longer.
func (d *DLQ) lineLimit() int64 {
	if d.cfg.MaxBytes < 0 {
		return -1
	}
	return 8*d.cfg.MaxBytes + 1<<20 // JSON may need six bytes for one
}

type letterReader struct {
	in    *bufio.Reader
	sum   hash.Hash
	limit int64
}

// line returns the next line, its newline included.
func (r *letterReader) line() ([]byte, error) {
	var line []byte
	for {
		part, err := r.in.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case r.limit >= 0 && int64(len(line)) > r.limit:
			return nil, errors.New("line is too long")
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF):
			return nil, io.ErrUnexpectedEOF
		}
		return line, err
	}
}

// value decodes the next line, and counts it into the checksum.
func (r *letterReader) value(v any) error {
	line, err := r.line()
	if err != nil {
		return err
	}
	r.sum.Write(line)
	return decodeLine(line, v)
}

func (r *letterReader) letter() (*Letter, error) {
	var wire letterLine
	if err := r.value(&wire); err != nil {
		return nil, err
	}
	return wire.letter()
}

// end wants the trailer, byte by byte as it must be, and nothing after it.
func (r *letterReader) end() error {
	line, err := r.line()
	if err != nil {
		return fmt.Errorf("trailer: %w", err)
	}
	if !bytes.Equal(line, trailerOf(r.sum)) {
		return errors.New("trailer: the checksum does not match")
	}
	if _, err := r.in.ReadByte(); !errors.Is(err, io.EOF) {
		return errors.New("trailer: something follows")
	}
	return nil
}

// decodeLine decodes one line. Its errors show nothing of what is in it.
func decodeLine(line []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return errors.New("not what an export holds")
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one value on a line")
	}
	return nil
}

// letterLine is a letter in an export. Names here are promised; those of [Letter] may change.
type letterLine struct {
	ID           exactText              `json:"id"`
	Operation    exactText              `json:"operation"`
	Key          exactText              `json:"key"`
	Named        bool                   `json:"named,omitempty"`
	Call         callLine               `json:"call"`
	Method       string                 `json:"method,omitempty"`
	URL          exactText              `json:"url,omitzero"`
	Host         exactText              `json:"host,omitzero"`
	Header       map[string][]exactText `json:"header,omitempty"`
	Body         []byte                 `json:"body,omitempty"`
	NeedsAuth    bool                   `json:"needs_auth,omitempty"`
	Cause        string                 `json:"cause,omitempty"`
	Detail       string                 `json:"detail,omitempty"`
	StatusCode   int                    `json:"status,omitempty"`
	Attempts     int                    `json:"attempts"`
	Redrives     int                    `json:"redrives,omitempty"`
	First        time.Time              `json:"first"`
	Last         time.Time              `json:"last"`
	Next         time.Time              `json:"next"`
	Expires      time.Time              `json:"expires,omitzero"`
	NotAfter     time.Time              `json:"not_after,omitzero"`
	InDoubt      bool                   `json:"in_doubt,omitempty"`
	DoubtSince   time.Time              `json:"doubt_since,omitzero"`
	Parked       bool                   `json:"parked,omitempty"`
	ParkedReason string                 `json:"parked_reason,omitempty"`
	Superseded   bool                   `json:"superseded,omitempty"`
	Redacted     bool                   `json:"redacted,omitempty"`
	History      []letterAttemptLine    `json:"history,omitempty"`
}

type callLine struct {
	Operation exactText     `json:"operation,omitzero"`
	Effect    string        `json:"effect"`
	Priority  string        `json:"priority"`
	Class     string        `json:"class"`
	Limit     time.Duration `json:"limit_ns,omitempty"`
	Budget    time.Duration `json:"budget_ns,omitempty"`
	Resource  exactText     `json:"resource,omitzero"`
}

type letterAttemptLine struct {
	Time       time.Time `json:"time"`
	Cause      string    `json:"cause"`
	Detail     string    `json:"detail,omitempty"`
	StatusCode int       `json:"status,omitempty"`
}

func lineOf(l *Letter) letterLine {
	line := letterLine{
		ID: exactText(l.ID), Operation: exactText(l.Operation), Key: exactText(l.Key), Named: l.Named,
		Call: callLine{
			Operation: exactText(l.Call.Operation), Effect: l.Call.Effect.String(), Priority: l.Call.Priority.String(),
			Class: l.Call.Class.String(), Limit: l.Call.Limit, Budget: l.Call.Budget, Resource: exactText(l.Call.Resource),
		},
		Method: l.Method, URL: exactText(l.URL), Host: exactText(l.Host), Body: l.Body, NeedsAuth: l.NeedsAuth,
		Cause: l.Cause, Detail: l.Detail, StatusCode: l.StatusCode, Attempts: l.Attempts, Redrives: l.Redrives,
		First: l.First.UTC(), Last: l.Last.UTC(), Next: l.Next.UTC(), Expires: l.Expires.UTC(), NotAfter: l.NotAfter.UTC(),
		InDoubt: l.InDoubt, DoubtSince: l.DoubtSince.UTC(),
		Parked: l.Parked, ParkedReason: l.ParkedReason, Superseded: l.Superseded, Redacted: l.Redacted,
	}
	for name, values := range l.Header {
		if line.Header == nil {
			line.Header = map[string][]exactText{}
		}
		for _, v := range values {
			line.Header[name] = append(line.Header[name], exactText(v))
		}
	}
	for _, a := range l.History {
		a.Time = a.Time.UTC()
		line.History = append(line.History, letterAttemptLine(a))
	}
	return line
}

// letter checks what a redrive will rely on.
func (w letterLine) letter() (*Letter, error) {
	l := &Letter{
		ID: string(w.ID), Operation: string(w.Operation), Key: string(w.Key), Named: w.Named,
		Method: w.Method, URL: string(w.URL), Host: string(w.Host), Body: w.Body, NeedsAuth: w.NeedsAuth,
		Cause: w.Cause, Detail: w.Detail, StatusCode: w.StatusCode, Attempts: w.Attempts, Redrives: w.Redrives,
		First: w.First.UTC(), Last: w.Last.UTC(), Next: w.Next.UTC(), Expires: w.Expires.UTC(), NotAfter: w.NotAfter.UTC(),
		InDoubt: w.InDoubt, DoubtSince: w.DoubtSince.UTC(),
		Parked: w.Parked, ParkedReason: w.ParkedReason, Superseded: w.Superseded, Redacted: w.Redacted,
	}
	l.Call.Operation, l.Call.Resource = string(w.Call.Operation), string(w.Call.Resource)
	l.Call.Limit, l.Call.Budget = w.Call.Limit, w.Call.Budget
	effect, okEffect := byName(w.Call.Effect, EffectOnce)
	priority, okPriority := byName(w.Call.Priority, PriorityBulk)
	class, okClass := byName(w.Call.Class, ClassLongPoll)
	l.Call.Effect, l.Call.Priority, l.Call.Class = effect, priority, class
	switch {
	case l.ID == "" || l.Operation == "":
		return nil, errors.New("id or operation is missing")
	case (&trip{key: l.Key, named: true}).checkKey() != nil:
		return nil, errors.New("the key is none")
	case !okEffect || !okPriority || !okClass:
		return nil, errors.New("an effect, priority or class that is not known")
	case l.Attempts < 0 || l.Redrives < 0 || len(w.History) > maxLetterHistory:
		return nil, errors.New("a number is out of bounds")
	}
	for name, values := range w.Header {
		if l.Header == nil {
			l.Header = http.Header{}
		}
		for _, v := range values {
			l.Header[name] = append(l.Header[name], string(v))
		}
	}
	for _, a := range w.History {
		a.Time = a.Time.UTC()
		l.History = append(l.History, LetterAttempt(a))
	}
	if l.First.IsZero() || l.Next.IsZero() || !l.writable() || !writable(l.Expires) || !writable(l.NotAfter) {
		return nil, errors.New("a time is missing or out of bounds")
	}
	return l, nil
}

// tidy holds for every letter that comes from a file or a store, whatever the file says.
func (l *Letter) tidy() {
	l.Leased = false
	l.setDoubt(l.InDoubt, l.DoubtSince)
	l.strip()
	if l.Redacted && !l.Parked {
		l.Parked, l.ParkedReason = true, "redacted"
	}
}

// byName is the inverse of String, for the values up to last.
func byName[T interface {
	~uint8
	String() string
}](name string, last T) (v T, ok bool) {
	for v = range last + 1 {
		if v.String() == name {
			return v, true
		}
	}
	return 0, false
}

// exactText is a string that comes back as it was, also when it is not UTF-8, which JSON would alter.
type exactText string

type rawText struct {
	Base64 []byte `json:"base64"`
}

// MarshalJSON writes a string, or an object where that would not be exact.
func (t exactText) MarshalJSON() ([]byte, error) {
	if utf8.ValidString(string(t)) {
		return json.Marshal(string(t))
	}
	return json.Marshal(rawText{[]byte(t)})
}

// UnmarshalJSON reads either form.
func (t *exactText) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '{' {
		var raw rawText
		if err := decodeLine(b, &raw); err != nil {
			return err
		}
		*t = exactText(raw.Base64)
		return nil
	}
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	*t = exactText(s)
	return nil
}
