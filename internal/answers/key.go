package answers

import (
	"crypto/sha256"
	"encoding/binary"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
)

// Key is what one read by one caller is known by: the text of the request where it is short, hashes of what is long, and
// one of the headers, which may be secrets. Whatever is hashed is so by SHA-256: with anything that can be made to collide,
// one tenant could be served what belongs to another.
type Key []byte

// longestKey is how long a key may get before it is hashed as a whole.
const longestKey = 512

// Keys makes keys. It is safe for concurrent use.
type Keys struct {
	headers []string
	seen    atomic.Pointer[headersSeen]
}

// headersSeen are those of the last request, and what they add to a key. Most programs say the same in all of their
// requests. This is the one place where secrets are kept as they are, until the next request; the program that made it has
// them anyway.
type headersSeen struct {
	fields []fieldSeen
	part   string
}

// fieldSeen is one header. The values matter only of those that the answer depends on.
type fieldSeen struct {
	name    string
	values  []string
	matters bool
}

// NewKeys returns a maker of keys for answers that depend on these headers, in canonical form, the caller's credentials
// among them.
func NewKeys(headers []string) *Keys { return &Keys{headers: headers} }

// Headers are those that the answers depend on.
func (k *Keys) Headers() []string { return k.headers }

// Of returns the key of a read, in space if it fits. Parameters of the query may come in any order; those of one name must
// not.
func (k *Keys) Of(space []byte, operation, method string, req *http.Request, body []byte) Key {
	u, b := req.URL, space[:0]
	b = append(b, rarities(req))
	b = appendPart(b, operation)
	b = appendPart(b, method)
	b = appendPart(b, u.Scheme)
	b = appendPart(b, u.Host)
	b = appendPart(b, u.Path)
	if b[0]&hasOddities != 0 {
		b = appendPart(b, req.Host)
		b = appendPart(b, u.Opaque)
		b = appendPart(b, u.RawPath)
	}
	b = appendQuery(b, u.RawQuery)
	b = k.appendHeaders(b, req)
	if len(body) <= inlineBody {
		b = append(append(b, 0), body...)
	} else {
		sum := sha256.Sum256(body)
		b = append(append(b, 1), sum[:]...)
	}
	return shortened(b)
}

// OfWork is Of for what is no request: an operation and its parameters are all there is to know.
func (k *Keys) OfWork(space []byte, operation string, params []byte) Key {
	b := space[:0]
	b = append(b, isWork)
	b = appendPart(b, operation)
	return shortened(append(b, params...))
}

func shortened(b []byte) Key {
	if len(b) > longestKey {
		sum := sha256.Sum256(b)
		b = append(append(b[:0], b[0]|isHashed), sum[:]...)
	}
	return b
}

// The bits of the first byte of a key, which say what is in it. Most requests have none of this, and each byte less in a key
// is time less.
const (
	hasOddities = 1 << iota
	hasUser
	isWork
	isHashed
)

func rarities(req *http.Request) (bits byte) {
	if u := req.URL; req.Host != u.Host || u.Opaque != "" || u.RawPath != "" {
		bits |= hasOddities
	}
	if req.URL.User != nil {
		bits |= hasUser
	}
	return bits
}

// inlineBody is the longest body that takes part as it is.
const inlineBody = 256

// appendHeaders adds the hash of what the request says besides its address: the headers of the list, and the user of its
// URL, which becomes one.
func (k *Keys) appendHeaders(b []byte, req *http.Request) []byte {
	start, user := len(b), req.URL.User
	switch {
	case user != nil:
		b = appendPart(b, user.String())
	case len(req.Header) == 0:
		return append(b, 0)
	default:
		if seen := k.seen.Load(); seen != nil && seen.says(req.Header) {
			return append(b, seen.part...)
		}
	}
	if b = appendFields(b, req.Header, k.headers); len(b) == start {
		b = append(b, 0)
	} else {
		sum := sha256.Sum256(b[start:])
		b = append(append(b[:start], 1), sum[:]...)
	}
	if user == nil {
		k.seen.Store(k.see(req.Header, string(b[start:])))
	}
	return b
}

func (k *Keys) see(h http.Header, part string) *headersSeen {
	seen := &headersSeen{fields: make([]fieldSeen, 0, len(h)), part: part}
	for name, values := range h {
		f := fieldSeen{name: name, matters: slices.Contains(k.headers, http.CanonicalHeaderKey(name))}
		if f.matters {
			f.values = slices.Clone(values)
		}
		seen.fields = append(seen.fields, f)
	}
	return seen
}

// says reports whether these are the same headers, as far as they matter: no other names, and no other values.
func (s *headersSeen) says(h http.Header) bool {
	if len(h) != len(s.fields) {
		return false
	}
	for i := range s.fields {
		f := &s.fields[i]
		if values, ok := h[f.name]; !ok || f.matters && !slices.Equal(values, f.values) {
			return false
		}
	}
	return true
}

// appendFields adds the place of each header in the list and its values, those only that are there. It walks the request's
// headers rather than look for each name, because most of the names are not among them.
func appendFields(b []byte, h http.Header, names []string) []byte {
	if len(h) == 0 {
		return b
	}
	type place struct {
		at     int
		values []string
	}
	var space [8]place
	found := space[:0]
	for name, values := range h {
		i := slices.Index(names, http.CanonicalHeaderKey(name))
		if i < 0 || len(values) == 0 {
			continue
		}
		found = append(found, place{i, values})
		for j := len(found) - 1; j > 0 && found[j].at < found[j-1].at; j-- { // they are few
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
	return b
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
	if len(pairs) <= len(space) {
		insertionSort(pairs)
	} else {
		slices.SortStableFunc(pairs, func(x, y string) int { return strings.Compare(nameOf(x), nameOf(y)) })
	}
	b = binary.AppendUvarint(b, uint64(len(pairs)))
	for _, pair := range pairs {
		b = appendPart(b, pair)
	}
	return b
}

// insertionSort is the quickest for a few.
func insertionSort(pairs []string) {
	for i := 1; i < len(pairs); i++ {
		for j := i; j > 0 && nameOf(pairs[j]) < nameOf(pairs[j-1]); j-- {
			pairs[j], pairs[j-1] = pairs[j-1], pairs[j]
		}
	}
}

func nameOf(pair string) string {
	name, _, _ := strings.Cut(pair, "=")
	return name
}
