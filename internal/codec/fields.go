package codec

import (
	"encoding/binary"
	"hash/crc32"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/retell-resilience/resilience"
)

func checksum(id string, b []byte) uint32 {
	castagnoli := crc32.MakeTable(crc32.Castagnoli) // which is made once
	return crc32.Update(crc32.Checksum([]byte(id), castagnoli), castagnoli, b)
}

type writer struct{ buf []byte }

func (w *writer) field(number int, b []byte) {
	w.buf = append(w.buf, byte(number)) //nolint:gosec // the numbers are constants below 256
	w.buf = binary.AppendUvarint(w.buf, uint64(len(b)))
	w.buf = append(w.buf, b...)
}

func (w *writer) text(number int, s string) {
	if s != "" {
		w.field(number, []byte(s))
	}
}

func (w *writer) uint(number int, n uint64) {
	if n != 0 {
		w.field(number, binary.AppendUvarint(nil, n))
	}
}

func (w *writer) int(number, n int) {
	if n != 0 {
		w.field(number, binary.AppendVarint(nil, int64(n)))
	}
}

func (w *writer) time(number int, t time.Time) {
	if !t.IsZero() {
		w.field(number, binary.AppendUvarint(binary.AppendVarint(nil, t.Unix()), uint64(t.Nanosecond()))) //nolint:gosec // not negative
	}
}

func (w *writer) bool(number int, b bool) {
	if b {
		w.field(number, nil)
	}
}

func (w *writer) duration(number int, d time.Duration) {
	if d != 0 {
		w.field(number, binary.AppendVarint(nil, int64(d)))
	}
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendTexts(b []byte, list []string) []byte {
	b = binary.AppendUvarint(b, uint64(len(list)))
	for _, s := range list {
		b = appendText(b, s)
	}
	return b
}

func appendHeader(b []byte, h http.Header) []byte {
	b = binary.AppendUvarint(b, uint64(len(h)))
	for _, name := range slices.Sorted(maps.Keys(h)) {
		b = appendTexts(appendText(b, name), h[name])
	}
	return b
}

// reader takes a buffer apart; what does not fit makes it bad, and everything it returns from then on is zero.
type reader struct {
	buf []byte
	bad bool
}

func (r *reader) take(n uint64) []byte {
	if r.bad || n > uint64(len(r.buf)) {
		r.bad = true
		return nil
	}
	b := r.buf[:n]
	r.buf = r.buf[n:]
	return b
}

func (r *reader) byte() byte {
	if b := r.take(1); len(b) == 1 {
		return b[0]
	}
	return 0
}

func (r *reader) bytes() []byte { return r.take(r.uint()) }

func (r *reader) rest() string { return string(r.take(uint64(len(r.buf)))) }

func (r *reader) uint() uint64 {
	n, size := binary.Uvarint(r.buf)
	if size <= 0 || r.bad {
		r.bad = true
		return 0
	}
	r.buf = r.buf[size:]
	return n
}

func (r *reader) signed() int64 {
	n, size := binary.Varint(r.buf)
	if size <= 0 || r.bad {
		r.bad = true
		return 0
	}
	r.buf = r.buf[size:]
	return n
}

func (r *reader) int() int {
	n := r.signed()
	if int64(int(n)) != n {
		r.bad = true
	}
	return int(n)
}

func (r *reader) state() resilience.KeyState {
	return resilience.KeyState(min(r.uint(), 255))
}

func (r *reader) time() time.Time {
	seconds, nanos := r.signed(), r.uint()
	if r.bad || nanos >= uint64(time.Second) {
		r.bad = true
		return time.Time{}
	}
	return time.Unix(seconds, int64(nanos)).UTC()
}

// many reads how many things follow, none of which can be shorter than a byte.
func (r *reader) many() int {
	n := r.uint()
	if n > uint64(len(r.buf)) {
		r.bad = true
		return 0
	}
	return int(n) //nolint:gosec // bounded
}

func (r *reader) texts() []string {
	n := r.many()
	list := make([]string, 0, n)
	for range n {
		list = append(list, string(r.bytes()))
	}
	return list
}

func (r *reader) header() http.Header {
	n := r.many()
	h := make(http.Header, n)
	for range n {
		name := string(r.bytes())
		h[name] = r.texts()
	}
	return h
}

// fields hands over field by field, in rising order of numbers, until one is not known.
func (r *reader) fields(field func(number int, v *reader) (known bool)) {
	for last := 0; len(r.buf) > 0 && !r.bad; {
		number := int(r.byte())
		value := reader{buf: r.bytes()}
		if r.bad || number <= last {
			r.bad = true
			return
		}
		last = number
		if !field(number, &value) {
			return
		}
		r.bad = value.bad || len(value.buf) > 0
	}
}
