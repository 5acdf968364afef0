package answers

import (
	"crypto/sha256"
	"encoding/binary"
	"net/http"
	"slices"
	"strings"
)

// Key stands for one read by one caller. It is a SHA-256: with anything that can be made to collide, one tenant could be
// served what belongs to another.
type Key [sha256.Size]byte

// KeyOf returns the key of a read. headers, in canonical form, are those that the answer depends on, the caller's
// credentials among them. Parameters of the query may come in any order; those of one name must not.
func KeyOf(operation, method string, req *http.Request, headers []string, body []byte) Key {
	var space [1024]byte // most keys fit, and are made without allocating
	b := appendPart(space[:0], operation)
	b = appendPart(b, method)
	b = appendPart(b, req.Host)
	u := req.URL
	b = appendPart(b, u.Scheme)
	b = appendPart(b, u.Host)
	b = appendPart(b, u.Opaque)
	b = appendPart(b, u.Path)
	b = appendPart(b, u.RawPath)
	b = appendQuery(b, u.RawQuery)
	if u.User != nil { // becomes an Authorization header
		b = append(b, 1)
		b = appendPart(b, u.User.String())
	} else {
		b = append(b, 0)
	}
	for _, name := range headers {
		values := req.Header[name]
		b = binary.AppendUvarint(b, uint64(len(values)))
		for _, v := range values {
			b = appendPart(b, v)
		}
	}
	if len(body) > 0 {
		sum := sha256.Sum256(body)
		b = append(b, sum[:]...)
	}
	return sha256.Sum256(b)
}

// appendPart adds s with its length in front, so that no two lists of parts look the same.
func appendPart(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

func appendQuery(b []byte, raw string) []byte {
	var space [16]string
	pairs := space[:0]
	rest, more := raw, raw != ""
	for more {
		var pair string
		pair, rest, more = strings.Cut(rest, "&")
		pairs = append(pairs, pair)
	}
	slices.SortStableFunc(pairs, func(x, y string) int { return strings.Compare(nameOf(x), nameOf(y)) })
	b = binary.AppendUvarint(b, uint64(len(pairs)))
	for _, pair := range pairs {
		b = appendPart(b, pair)
	}
	return b
}

func nameOf(pair string) string {
	name, _, _ := strings.Cut(pair, "=")
	return name
}
