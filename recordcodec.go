package resilience

import (
	"encoding/binary"
	"errors"
	"net/http"
	"time"
)

// recordCodec writes finished records as bytes, for a store that must not cost the garbage collector anything. Times are
// written as the distance from its start, so that they stay monotonic.
type recordCodec struct{ start time.Time }

func (c recordCodec) encode(b []byte, r *Record) []byte {
	b = binary.AppendUvarint(b, r.Version) // what a sweep asks for comes first
	b = c.appendTime(b, r.Expires)
	b = appendText(b, r.ID)
	b = append(b, byte(r.State))
	b = binary.AppendUvarint(b, r.Epoch)
	for _, s := range []string{r.Operation, r.Resource, r.Fingerprint, r.Owner, r.Token, r.CallID, r.Evidence, r.Cause, r.Reason} {
		b = appendText(b, s)
	}
	for _, t := range []time.Time{r.Lease, r.Claimed, r.Sent, r.Settled, r.NextLookup} {
		b = c.appendTime(b, t)
	}
	for _, n := range []int{r.Doubts, r.Sends, r.Status, r.Lookups} {
		b = binary.AppendVarint(b, int64(n))
	}
	b = append(b, flag(r.Accepted), flag(r.Body != nil), flag(r.Header != nil), flag(r.CallIDs != nil))
	b = appendList(b, r.CallIDs)
	b = binary.AppendUvarint(b, uint64(len(r.Header)))
	for name, values := range r.Header {
		b = appendList(appendText(b, name), values)
	}
	return appendText(b, string(r.Body))
}

func flag(yes bool) byte {
	if yes {
		return 1
	}
	return 0
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendList(b []byte, list []string) []byte {
	b = binary.AppendUvarint(b, uint64(len(list)))
	for _, s := range list {
		b = appendText(b, s)
	}
	return b
}

func (c recordCodec) appendTime(b []byte, t time.Time) []byte {
	if t.IsZero() {
		return append(b, 0)
	}
	return binary.AppendVarint(append(b, 1), int64(t.Sub(c.start)))
}

var errRecordCut = errors.New("a kept record is cut short")

// recordReader reads back; after an error everything is zero.
type recordReader struct {
	b   []byte
	err error
}

func (c recordCodec) decode(b []byte) (Record, error) {
	in := &recordReader{b: b}
	var r Record
	r.Version, r.Expires, r.ID = in.uint(), c.time(in), in.text()
	r.State, r.Epoch = KeyState(in.byte()), in.uint()
	for _, s := range []*string{&r.Operation, &r.Resource, &r.Fingerprint, &r.Owner, &r.Token, &r.CallID, &r.Evidence, &r.Cause, &r.Reason} {
		*s = in.text()
	}
	for _, t := range []*time.Time{&r.Lease, &r.Claimed, &r.Sent, &r.Settled, &r.NextLookup} {
		*t = c.time(in)
	}
	for _, n := range []*int{&r.Doubts, &r.Sends, &r.Status, &r.Lookups} {
		*n = int(in.int())
	}
	r.Accepted = in.byte() == 1
	hasBody, hasHeader, hasIDs := in.byte() == 1, in.byte() == 1, in.byte() == 1
	if ids := in.list(); hasIDs {
		r.CallIDs = ids
	}
	if hasHeader {
		r.Header = http.Header{}
	}
	for n := in.uint(); n > 0 && in.err == nil; n-- {
		name := in.text()
		if values := in.list(); hasHeader {
			r.Header[name] = values
		}
	}
	if body := in.text(); hasBody {
		r.Body = []byte(body)
	}
	if in.err != nil {
		return Record{}, in.err
	}
	return r, nil
}

// expiresOf reads only what a record begins with.
func (c recordCodec) expiresOf(b []byte) (id string, version uint64, expires time.Time) {
	in := &recordReader{b: b}
	version, expires, id = in.uint(), c.time(in), in.text()
	return id, version, expires
}

func (c recordCodec) time(in *recordReader) time.Time {
	if in.byte() == 0 {
		return time.Time{}
	}
	return c.start.Add(time.Duration(in.int()))
}

func (in *recordReader) byte() byte {
	if len(in.b) == 0 {
		in.err = errRecordCut
		return 0
	}
	c := in.b[0]
	in.b = in.b[1:]
	return c
}

func (in *recordReader) uint() uint64 {
	v, n := binary.Uvarint(in.b)
	return in.take(v, n)
}

func (in *recordReader) int() int64 {
	v, n := binary.Varint(in.b)
	return int64(in.take(uint64(v), n)) //nolint:gosec // there and back
}

func (in *recordReader) take(v uint64, n int) uint64 {
	if n <= 0 {
		in.err, in.b = errRecordCut, nil
		return 0
	}
	in.b = in.b[n:]
	return v
}

func (in *recordReader) text() string {
	n := in.uint()
	if n > uint64(len(in.b)) {
		in.err, in.b = errRecordCut, nil
		return ""
	}
	s := string(in.b[:n])
	in.b = in.b[n:]
	return s
}

func (in *recordReader) list() []string {
	n := in.uint()
	if n == 0 || n > uint64(len(in.b)) {
		return nil
	}
	list := make([]string, 0, n)
	for range n {
		list = append(list, in.text())
	}
	return list
}
