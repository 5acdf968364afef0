// Package body reads request and response bodies once and hands them out as often as needed.
package body

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// ErrTooLarge says that a response body is larger than the limit.
var ErrTooLarge = errors.New("body too large")

// ErrSpent says that a body that could not be held in memory has been sent once already.
var ErrSpent = errors.New("the request body is larger than what is kept, and was sent already")

// Payload is a request body. It is safe for concurrent use. A nil Payload is no body.
type Payload struct {
	data []byte

	// What did not fit, or could not be read: such a body can be sent once.
	rest  io.Reader
	size  int64 // as announced, or -1
	spent atomic.Bool

	holders atomic.Int32
	once    sync.Once
	source  io.Closer
}

// Read takes rc into memory, up to limit bytes. It closes rc as soon as it has all of it, also when a read panics, and
// otherwise when the last holder releases the payload; the caller of Read is the first. size is the Content-Length, or -1.
// limit < 0: no limit.
func Read(rc io.ReadCloser, size, limit int64) *Payload {
	if rc == nil || rc == http.NoBody {
		return nil
	}
	p := &Payload{source: rc, size: size}
	if size <= 0 { // 0 is what a request says that does not know
		p.size = -1
	}
	p.holders.Store(1)
	ended := false
	defer func() {
		if !ended { // a panic or Goexit, after which nobody has the payload
			p.close()
		}
	}()
	data, err := readAll(rc, size, limit)
	ended = true
	switch {
	case err != nil:
		p.data, p.rest = data, failing{err}
	case limit >= 0 && int64(len(data)) > limit:
		p.data, p.rest = data, rc
	default:
		p.data = data
		p.close()
	}
	return p
}

// Of is a payload that is in memory already; b must not change afterwards. Empty b is no body.
func Of(b []byte) *Payload {
	if len(b) == 0 {
		return nil
	}
	return &Payload{data: b}
}

// maxTrusted is how much memory an announcement alone is worth.
const maxTrusted = 1 << 20

// readAll reads to the end, or until it has more than limit bytes. size is what was announced, or -1.
func readAll(r io.Reader, size, limit int64) ([]byte, error) {
	room := int64(bytes.MinRead)
	if size > 0 && (limit < 0 || size <= limit) {
		room = min(size, maxTrusted) + 1 // to find the end with
	}
	b := slices.Grow([]byte(nil), int(room)) // make would hide from cap what the allocator rounds up to
	for {
		n, err := r.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		switch {
		case err == io.EOF: // not one that is wrapped: that is a failure
			return b, nil
		case err != nil || limit >= 0 && int64(len(b)) > limit:
			return b, err
		case len(b) == cap(b):
			b = slices.Grow(b, bytes.MinRead)
		}
	}
}

// Bytes returns the body, and whether that is all of it. The caller must not change it.
func (p *Payload) Bytes() (b []byte, whole bool) {
	if p == nil {
		return nil, true
	}
	return p.data, p.rest == nil
}

// Open returns the body for one send, a function that returns it again, and its length (-1: unknown). A body that is not
// whole can be opened once.
func (p *Payload) Open() (rc io.ReadCloser, again func() (io.ReadCloser, error), size int64, err error) {
	if p.rest == nil {
		again = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(p.data)), nil }
		rc, _ = again()
		return rc, again, int64(len(p.data)), nil
	}
	if p.spent.Swap(true) {
		return nil, nil, 0, ErrSpent
	}
	return &struct { // which can be compared
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(p.data), p.rest), closer(p.close)}, nil, p.size, nil
}

// Hold says that somebody else needs the body as well, until they release it.
func (p *Payload) Hold() {
	if p != nil {
		p.holders.Add(1)
	}
}

// Release closes the source when the last holder lets go.
func (p *Payload) Release() {
	if p != nil && p.holders.Add(-1) == 0 {
		p.close()
	}
}

func (p *Payload) close() {
	if p.source == nil {
		return
	}
	p.once.Do(func() { _ = p.source.Close() }) // a request body that fails to close changes nothing for anybody
}

type closer func()

func (c closer) Close() error { c(); return nil }

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// Held is a response body in memory.
type Held struct {
	data []byte
	read int // so many bytes of it

	// Value is what the body encodes, for an answer that never was bytes on a wire. Copies do not have it: a value must
	// not be shared.
	Value any

	encode func(any) ([]byte, error) // nil: data is all there is
	unkept bool                      // the value does not encode: only the one who asked can have it
}

// OfValue returns the body of an answer that never was bytes. It is encoded when somebody first asks for the bytes, which
// must not happen on two goroutines at once.
func OfValue(v any, encode func(any) ([]byte, error)) Held {
	return Held{Value: v, encode: encode}
}

// NewHeld returns a body that reads b, which must not change afterwards.
func NewHeld(b []byte) *Held { return &Held{data: b} }

// Read implements io.Reader.
func (h *Held) Read(p []byte) (n int, err error) {
	rest := h.Bytes()[h.read:]
	if len(rest) == 0 {
		return 0, io.EOF
	}
	n = copy(p, rest)
	h.read += n
	return n, nil
}

// WriteTo implements io.WriterTo, which spares io.Copy a buffer.
func (h *Held) WriteTo(w io.Writer) (int64, error) {
	rest := h.Bytes()[h.read:]
	if len(rest) == 0 {
		return 0, nil
	}
	n, err := w.Write(rest)
	h.read += n
	if err == nil && n < len(rest) {
		err = io.ErrShortWrite
	}
	return int64(n), err
}

// Close does nothing: the exchange is over.
func (h *Held) Close() error { return nil }

// Bytes returns the whole body, also after it was read. The caller must not change it.
func (h *Held) Bytes() []byte {
	if h.encode != nil {
		data, err := h.encode(h.Value)
		h.data, h.encode, h.unkept = data, nil, err != nil
	}
	return h.data
}

// Constant returns the value that an answer encodes, if nobody can change it and equal ones encode alike: a whole number, a
// string, true or false. A type of a user's may encode as it likes.
func Constant(resp *http.Response) (v any, ok bool) {
	h, _ := resp.Body.(*Held)
	if h == nil {
		return nil, false
	}
	switch h.Value.(type) {
	case bool, string, int, int8, int16, int32, int64, uint, uint8, uint16, uint32, uint64:
		return h.Value, true
	}
	return nil, false
}

// InMemory reports whether the body of resp was held already.
func InMemory(resp *http.Response) bool {
	_, ok := resp.Body.(*Held)
	return ok
}

// BytesOf returns the body of a response that was held; ok is false for any other.
func BytesOf(resp *http.Response) (b []byte, ok bool) {
	h, ok := resp.Body.(*Held)
	if !ok {
		return nil, false
	}
	b = h.Bytes()
	return b, !h.unkept
}

// Hold reads the whole body of resp, closes it and puts a copy in memory in its place. limit < 0 means no limit. On an
// error the body is closed and resp must not be used further.
func Hold(resp *http.Response, limit int64) error {
	if resp.Body == nil || resp.Body == http.NoBody {
		resp.Body = NewHeld(nil)
		return nil
	}
	defer resp.Body.Close() //nolint:errcheck // it was read to its end, or failed already
	data, err := readAll(resp.Body, resp.ContentLength, limit)
	if err != nil {
		return err
	}
	if limit >= 0 && int64(len(data)) > limit {
		return ErrTooLarge
	}
	resp.Body = NewHeld(data)
	return nil
}

// IsStream reports whether an answer must be passed on as it comes.
func IsStream(resp *http.Response) bool {
	const stream = "text/event-stream"
	said := resp.Header["Content-Type"]
	if len(said) == 0 || len(said[0]) < len(stream) {
		return false
	}
	kind, _, _ := strings.Cut(said[0], ";")
	return strings.EqualFold(strings.TrimSpace(kind), stream)
}

// Copy returns resp for another reader: same status, its own headers, its own place in the body. resp must be held.
func Copy(resp *http.Response) *http.Response {
	c := *resp
	c.Header = resp.Header.Clone()
	c.Trailer = resp.Trailer.Clone()
	if h, ok := resp.Body.(*Held); ok {
		c.Body = NewHeld(h.Bytes())
	}
	return &c
}
