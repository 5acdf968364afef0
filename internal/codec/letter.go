package codec

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/retell-resilience/resilience"
)

// A letter is encoded as a record is, with numbers of its own. See record.go for what that promises.
const letterEncoding = 1

const (
	letterOperation = iota + 1
	letterKey
	letterNamed
	letterCallOperation
	letterEffect
	letterPriority
	letterClass
	letterLimit
	letterBudget
	letterResource
	letterMethod
	letterURL
	letterHost
	letterHeader
	letterBody
	letterNeedsAuth
	letterCause
	letterDetail
	letterStatus
	letterAttempts
	letterRedrives
	letterFirst
	letterLast
	letterNext
	letterExpires
	letterNotAfter
	letterInDoubt
	letterParked
	letterParkedReason
	letterSuperseded
	letterRedacted
	letterHistory
	letterDoubtSince
)

const (
	attemptTime = iota + 1
	attemptCause
	attemptDetail
	attemptStatus
)

// EncodeLetter makes bytes of a letter. Its id is not in them, but they fit no other.
func EncodeLetter(l resilience.Letter) []byte {
	w := writer{buf: make([]byte, 1, 1024+len(l.Body))}
	w.buf[0] = letterEncoding
	w.text(letterOperation, l.Operation)
	w.text(letterKey, l.Key)
	w.bool(letterNamed, l.Named)
	w.text(letterCallOperation, l.Call.Operation)
	w.uint(letterEffect, uint64(l.Call.Effect))
	w.uint(letterPriority, uint64(l.Call.Priority))
	w.uint(letterClass, uint64(l.Call.Class))
	w.duration(letterLimit, l.Call.Limit)
	w.duration(letterBudget, l.Call.Budget)
	w.text(letterResource, l.Call.Resource)
	w.text(letterMethod, l.Method)
	w.text(letterURL, l.URL)
	w.text(letterHost, l.Host)
	if l.Header != nil {
		w.field(letterHeader, appendHeader(nil, l.Header))
	}
	if l.Body != nil {
		w.field(letterBody, l.Body)
	}
	w.bool(letterNeedsAuth, l.NeedsAuth)
	w.text(letterCause, l.Cause)
	w.text(letterDetail, l.Detail)
	w.int(letterStatus, l.StatusCode)
	w.int(letterAttempts, l.Attempts)
	w.int(letterRedrives, l.Redrives)
	w.time(letterFirst, l.First)
	w.time(letterLast, l.Last)
	w.time(letterNext, l.Next)
	w.time(letterExpires, l.Expires)
	w.time(letterNotAfter, l.NotAfter)
	w.bool(letterInDoubt, l.InDoubt)
	w.bool(letterParked, l.Parked)
	w.text(letterParkedReason, l.ParkedReason)
	w.bool(letterSuperseded, l.Superseded)
	w.bool(letterRedacted, l.Redacted)
	if l.History != nil {
		w.field(letterHistory, appendHistory(nil, l.History))
	}
	w.time(letterDoubtSince, l.DoubtSince)
	return binary.BigEndian.AppendUint32(w.buf, checksum(l.ID, w.buf))
}

func appendHistory(b []byte, list []resilience.LetterAttempt) []byte {
	b = binary.AppendUvarint(b, uint64(len(list)))
	for _, a := range list {
		var w writer // fields as in a letter, so that one more can come
		w.time(attemptTime, a.Time)
		w.text(attemptCause, a.Cause)
		w.text(attemptDetail, a.Detail)
		w.int(attemptStatus, a.StatusCode)
		b = append(binary.AppendUvarint(b, uint64(len(w.buf))), w.buf...)
	}
	return b
}

// DecodeLetter makes a letter that shares nothing with b. It knows all of it or fails.
func DecodeLetter(id string, b []byte) (resilience.Letter, error) {
	l := resilience.Letter{ID: id}
	if len(b) < 5 {
		return l, fmt.Errorf("%w: a letter is too short", ErrDamaged)
	}
	b, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if sum != checksum(id, b) {
		return l, fmt.Errorf("%w: a letter does not fit its checksum", ErrDamaged)
	}
	if b[0] != letterEncoding {
		return l, fmt.Errorf("%w: letter encoding %d", ErrNewer, b[0])
	}
	var newer error
	r := reader{buf: b[1:]}
	r.fields(func(number int, v *reader) bool {
		known := decodeRequest(&l, number, v) || decodeFate(&l, number, v, &newer)
		if !known {
			newer = fmt.Errorf("%w: letter field %d", ErrNewer, number)
		}
		return known
	})
	switch {
	case newer != nil:
		return resilience.Letter{}, newer
	case r.bad:
		return resilience.Letter{}, fmt.Errorf("%w: a letter makes no sense", ErrDamaged)
	case l.Call.Effect > resilience.EffectOnce || l.Call.Priority > resilience.PriorityBulk || l.Call.Class > resilience.ClassLongPoll:
		return resilience.Letter{}, fmt.Errorf("%w: an effect, priority or class", ErrNewer)
	}
	return l, nil
}

func decodeRequest(l *resilience.Letter, number int, v *reader) (known bool) {
	switch number {
	case letterOperation:
		l.Operation = v.rest()
	case letterKey:
		l.Key = v.rest()
	case letterNamed:
		l.Named = true
	case letterCallOperation:
		l.Call.Operation = v.rest()
	case letterEffect:
		l.Call.Effect = resilience.Effect(min(v.uint(), 255))
	case letterPriority:
		l.Call.Priority = resilience.Priority(min(v.uint(), 255))
	case letterClass:
		l.Call.Class = resilience.Class(min(v.uint(), 255))
	case letterLimit:
		l.Call.Limit = time.Duration(v.signed())
	case letterBudget:
		l.Call.Budget = time.Duration(v.signed())
	case letterResource:
		l.Call.Resource = v.rest()
	case letterMethod:
		l.Method = v.rest()
	case letterURL:
		l.URL = v.rest()
	case letterHost:
		l.Host = v.rest()
	case letterHeader:
		l.Header = v.header()
	case letterBody:
		l.Body = []byte(v.rest())
	case letterNeedsAuth:
		l.NeedsAuth = true
	default:
		return false
	}
	return true
}

func decodeFate(l *resilience.Letter, number int, v *reader, newer *error) (known bool) {
	switch number {
	case letterCause:
		l.Cause = v.rest()
	case letterDetail:
		l.Detail = v.rest()
	case letterStatus:
		l.StatusCode = v.int()
	case letterAttempts:
		l.Attempts = v.int()
	case letterRedrives:
		l.Redrives = v.int()
	case letterFirst:
		l.First = v.time()
	case letterLast:
		l.Last = v.time()
	case letterNext:
		l.Next = v.time()
	case letterExpires:
		l.Expires = v.time()
	case letterNotAfter:
		l.NotAfter = v.time()
	case letterInDoubt:
		l.InDoubt = true
	case letterParked:
		l.Parked = true
	case letterParkedReason:
		l.ParkedReason = v.rest()
	case letterSuperseded:
		l.Superseded = true
	case letterRedacted:
		l.Redacted = true
	case letterHistory:
		l.History = v.history(newer)
	case letterDoubtSince:
		l.DoubtSince = v.time()
	default:
		return false
	}
	return true
}

func (r *reader) history(newer *error) []resilience.LetterAttempt {
	n := r.many()
	list := make([]resilience.LetterAttempt, 0, n)
	for range n {
		var a resilience.LetterAttempt
		one := reader{buf: r.bytes()}
		one.fields(func(number int, v *reader) bool {
			switch number {
			case attemptTime:
				a.Time = v.time()
			case attemptCause:
				a.Cause = v.rest()
			case attemptDetail:
				a.Detail = v.rest()
			case attemptStatus:
				a.StatusCode = v.int()
			default:
				*newer = fmt.Errorf("%w: attempt field %d", ErrNewer, number)
				return false
			}
			return true
		})
		r.bad = r.bad || one.bad
		list = append(list, a)
	}
	return list
}
