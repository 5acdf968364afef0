// Package codec makes bytes of records and letters for stores that keep them, and the same things of the bytes again, for
// ever: what was written once can be read by every later version, and what a later version wrote is refused by an earlier
// one, never read without what it does not know.
package codec

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/retell-resilience/resilience"
)

var (
	// ErrDamaged means that the bytes are not what was written.
	ErrDamaged = errors.New("the stored data is damaged")
	// ErrNewer means that whoever wrote the bytes knew more.
	ErrNewer = errors.New("written by a newer version of this library")
)

// A record is a version byte, then each field that is not zero as its number, its length and its bytes, in rising order of
// numbers, then four bytes of CRC-32C over the id and everything before. JSON would not do: it changes bytes in headers
// that are not UTF-8, and makes bodies a third larger. A number is never given to another field. A new field gets a new
// number; older versions then refuse records that have it, which is why the version byte stays 1.
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

// EncodeRecord makes bytes of a record. The id is not in them, but they fit no other.
func EncodeRecord(r resilience.Record) []byte {
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

// DecodeRecord makes a record that shares nothing with b. It knows all of it or fails.
func DecodeRecord(id string, b []byte) (resilience.Record, error) {
	if len(b) < 5 {
		return resilience.Record{}, fmt.Errorf("%w: a record is too short", ErrDamaged)
	}
	b, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if sum != checksum(id, b) {
		return resilience.Record{}, fmt.Errorf("%w: a record does not fit its checksum", ErrDamaged)
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
		return resilience.Record{}, fmt.Errorf("%w: a record makes no sense", ErrDamaged)
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
