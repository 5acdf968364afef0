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
	"maps"
	"math"
	"slices"
	"time"

	"github.com/google/uuid"
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
	if d == nil {
		return (&DLQ{box: newLetterBox()}).Export(w) // no letters, which is what an empty queue exports
	}
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
	if l.Key != before.Key {
		l.Key = uuid.NewString() // nobody will send it, but a file wants a key for each, and no two alike
	}
	if _, err := lineOf(l).letter(); err != nil {
		return fmt.Errorf("dlq: redact: no import would take letter %s: %w", l.ID, err)
	}
	return nil
}

func sameRequest(a, b *Letter) bool {
	return a.Key == b.Key && a.Operation == b.Operation && a.Method == b.Method && a.URL == b.URL && a.Host == b.Host &&
		maps.EqualFunc(a.Header, b.Header, slices.Equal) && bytes.Equal(a.Body, b.Body)
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
	return d.bringIn(letters)
}

// bringIn returns when letters from elsewhere are in the queue and its store, all or none of them.
func (d *DLQ) bringIn(letters []*Letter) error {
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
	lost := 0
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
		case !d.land(p.slot, "import"):
			lost++ // all that may go went meanwhile, and what came instead may not
		}
	}
	if lost > 0 {
		return fmt.Errorf("dlq: import of %d letters, %d did not get in: %w", len(all), lost, ErrLettersFull)
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
		key := d.box.idOf(l.Key)
		if ids[l.ID] || keys[key] {
			return nil, fmt.Errorf("letter %d of %d: id or key is there twice", n+1, h.Count)
		}
		ids[l.ID], keys[key] = true, true
		l.tidy()
		letters = append(letters, l)
	}
	return letters, in.end()
}

// lineLimit bounds a line: no letter that fits is longer.
func (d *DLQ) lineLimit() int64 {
	if d.cfg.MaxBytes < 0 || d.cfg.MaxBytes > math.MaxInt64/16 {
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
