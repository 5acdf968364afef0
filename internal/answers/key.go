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
	var space [512]byte // most keys fit, and are made without allocating
	u := req.URL
	b := append(space[:0], rarities(req))
	b = appendPart(b, operation)
	b = appendPart(b, method)
	b = appendPart(b, u.Scheme)
	b = appendPart(b, u.Host)
	b = appendPart(b, u.Path)
	if b[0]&1 != 0 {
		b = appendPart(b, req.Host)
		b = appendPart(b, u.Opaque)
		b = appendPart(b, u.RawPath)
	}
	if b[0]&2 != 0 { // becomes an Authorization header
		b = appendPart(b, u.User.String())
	}
	b = appendQuery(b, u.RawQuery)
	b = appendHeaders(b, req.Header, headers)
	if len(body) <= inlineBody {
		b = append(append(b, 0), body...)
	} else {
		sum := sha256.Sum256(body)
		b = append(append(b, 1), sum[:]...)
	}
	return sha256.Sum256(b)
}

// rarities says what a request has that most do not have: each byte less in a key is time less.
func rarities(req *http.Request) (bits byte) {
	if u := req.URL; req.Host != u.Host || u.Opaque != "" || u.RawPath != "" {
		bits |= 1
	}
	if req.URL.User != nil {
		bits |= 2
	}
	return bits
}

// inlineBody is the longest body that is hashed together with the rest.
const inlineBody = 256

// appendHeaders adds the place of each header in the list and its values, those only that are there. It walks the
// request's headers rather than look for each name, because most of the names are not among them.
func appendHeaders(b []byte, h http.Header, names []string) []byte {
	if len(h) == 0 {
		return append(b, 0)
	}
	type place struct {
		at     int
		values []string
	}
	var space [8]place
	found := space[:0]
	for name, values := range h {
		if i := slices.Index(names, name); i >= 0 && len(values) > 0 {
			found = append(found, place{i, values})
		}
	}
	for i := 1; i < len(found); i++ { // they are few
		for j := i; j > 0 && found[j].at < found[j-1].at; j-- {
			found[j], found[j-1] = found[j-1], found[j]
		}
	}
	for _, p := range found {
		b = binary.AppendVarint(b, int64(p.at)+1)
		b = binary.AppendUvarint(b, uint64(len(p.values)))
		for _, v := range p.values {
			b = appendPart(b, v)
		}
	}
	return append(b, 0)
}

// appendPart adds s with its length in front, so that no two lists of parts look the same.
func appendPart(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

func appendQuery(b []byte, raw string) []byte {
	switch {
	case raw == "":
		return append(b, 0)
	case strings.IndexByte(raw, '&') < 0: // one parameter
		return appendPart(append(b, 1), raw)
	}
	var space [16]string
	pairs := space[:0]
	rest, more := raw, true
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
