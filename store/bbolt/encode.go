package boltstore

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/retell-resilience/resilience"
)

// A record is a version byte, then each field that is not zero as its number, its length and its bytes, in rising order of
// numbers, then four bytes of CRC-32C over the id and everything before. JSON would not do: it changes bytes in headers
// that are not UTF-8, and makes bodies a third larger. A number is never given to another field. A new field gets a new
// number; older versions of this package then refuse records that have it, which is why the version byte stays 1.
const encoding = 1

const (
	fieldVersion = iota + 1
	fieldState
	fieldOperation
	fieldFingerprint
	fieldOwner
	fieldToken
	fieldEpoch
	fieldLease
	fieldDoubts
	fieldSends
	fieldClaimed
	fieldSent
	fieldSettled
	fieldExpires
	fieldCallID
	fieldCallIDs
	fieldAccepted
	fieldStatus
	fieldHeader
	fieldBody
	fieldEvidence
	fieldCause
	fieldReason
	fieldLookups
	fieldNextLookup
	fieldResource
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(id string, b []byte) uint32 {
	return crc32.Update(crc32.Checksum([]byte(id), castagnoli), castagnoli, b)
}

func encode(r resilience.Record) []byte {
	w := writer{buf: make([]byte, 1, 512+len(r.Body))}
	w.buf[0] = encoding
	w.uint(fieldVersion, r.Version)
	w.uint(fieldState, uint64(r.State))
	w.text(fieldOperation, r.Operation)
	w.text(fieldFingerprint, r.Fingerprint)
	w.text(fieldOwner, r.Owner)
	w.text(fieldToken, r.Token)
	w.uint(fieldEpoch, r.Epoch)
	w.time(fieldLease, r.Lease)
	w.int(fieldDoubts, r.Doubts)
	w.int(fieldSends, r.Sends)
	w.time(fieldClaimed, r.Claimed)
	w.time(fieldSent, r.Sent)
	w.time(fieldSettled, r.Settled)
	w.time(fieldExpires, r.Expires)
	w.text(fieldCallID, r.CallID)
	if r.CallIDs != nil {
		w.field(fieldCallIDs, appendTexts(nil, r.CallIDs))
	}
	if r.Accepted {
		w.field(fieldAccepted, nil)
	}
	w.int(fieldStatus, r.Status)
	if r.Header != nil {
		w.field(fieldHeader, appendHeader(nil, r.Header))
	}
	if r.Body != nil {
		w.field(fieldBody, r.Body)
	}
	w.text(fieldEvidence, r.Evidence)
	w.text(fieldCause, r.Cause)
	w.text(fieldReason, r.Reason)
	w.int(fieldLookups, r.Lookups)
	w.time(fieldNextLookup, r.NextLookup)
	w.text(fieldResource, r.Resource)
	return binary.BigEndian.AppendUint32(w.buf, checksum(r.ID, w.buf))
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

// decode makes a record that shares nothing with b. It knows all of it or fails.
func decode(id string, b []byte) (resilience.Record, error) {
	if len(b) < 5 {
		return resilience.Record{}, fmt.Errorf("%w: a record is too short", ErrCorrupt)
	}
	b, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if sum != checksum(id, b) {
		return resilience.Record{}, fmt.Errorf("%w: a record does not fit its checksum", ErrCorrupt)
	}
	if b[0] != encoding {
		return resilience.Record{}, fmt.Errorf("%w: record encoding %d", ErrNewer, b[0])
	}
	rec := resilience.Record{ID: id}
	r := reader{buf: b[1:]}
	for last := 0; len(r.buf) > 0; {
		number := int(r.byte())
		value := reader{buf: r.bytes()}
		if number <= last {
			r.bad = true
		}
		if r.bad {
			break
		}
		last = number
		known := decodeField(&rec, number, &value)
		if !known {
			return resilience.Record{}, fmt.Errorf("%w: record field %d", ErrNewer, number)
		}
		r.bad = value.bad || len(value.buf) > 0
	}
	if r.bad || rec.Version == 0 || rec.State == resilience.KeyFree {
		return resilience.Record{}, fmt.Errorf("%w: a record makes no sense", ErrCorrupt)
	}
	if rec.State > resilience.KeyDisputed {
		return resilience.Record{}, fmt.Errorf("%w: state %d", ErrNewer, rec.State)
	}
	return rec, nil
}

func decodeField(rec *resilience.Record, number int, v *reader) (known bool) {
	switch number {
	case fieldVersion:
		rec.Version = v.uint()
	case fieldState:
		rec.State = v.state()
	case fieldOperation:
		rec.Operation = v.rest()
	case fieldFingerprint:
		rec.Fingerprint = v.rest()
	case fieldOwner:
		rec.Owner = v.rest()
	case fieldToken:
		rec.Token = v.rest()
	case fieldEpoch:
		rec.Epoch = v.uint()
	case fieldLease:
		rec.Lease = v.time()
	case fieldDoubts:
		rec.Doubts = v.int()
	case fieldSends:
		rec.Sends = v.int()
	case fieldClaimed:
		rec.Claimed = v.time()
	case fieldSent:
		rec.Sent = v.time()
	case fieldSettled:
		rec.Settled = v.time()
	case fieldExpires:
		rec.Expires = v.time()
	default:
		return decodeAnswer(rec, number, v)
	}
	return true
}

func decodeAnswer(rec *resilience.Record, number int, v *reader) (known bool) {
	switch number {
	case fieldCallID:
		rec.CallID = v.rest()
	case fieldCallIDs:
		rec.CallIDs = v.texts()
	case fieldAccepted:
		rec.Accepted = true
	case fieldStatus:
		rec.Status = v.int()
	case fieldHeader:
		rec.Header = v.header()
	case fieldBody:
		rec.Body = []byte(v.rest())
	case fieldEvidence:
		rec.Evidence = v.rest()
	case fieldCause:
		rec.Cause = v.rest()
	case fieldReason:
		rec.Reason = v.rest()
	case fieldLookups:
		rec.Lookups = v.int()
	case fieldNextLookup:
		rec.NextLookup = v.time()
	case fieldResource:
		rec.Resource = v.rest()
	default:
		return false
	}
	return true
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
