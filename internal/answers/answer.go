// Package answers keeps answers to reads: so many bytes of them, the most recently used, none longer than it may be
// served, and none that a write has overtaken.
package answers

import (
	"bytes"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/retell-resilience/resilience/internal/body"
)

// Answer is a response that can be handed out any number of times. It never changes; a nil Answer is none.
type Answer struct {
	resp   http.Response // without what belongs to one caller: the body reader, the request, the connection
	body   []byte
	value  any // that body encodes, if it is a constant
	header []header
	values int           // of all headers
	age    time.Duration // when it came
	size   int64         // in memory, about
}

// header is a list of them rather than a map, because it is walked for every copy.
type header struct {
	name   string
	values []string
}

// What an answer costs beyond its text and its key, measured by BenchmarkFallbackMemory and rounded up: the response, its
// resource and its places in the store; and for each header its place in two lists.
const (
	perAnswer = 960
	perHeader = 56
)

// Take makes an answer of a response that may be handed to others who ask the same: it is complete and in memory, it
// allows it, and depends on no request header but the known ones.
func Take(resp *http.Response, known []string) (a *Answer, ok bool) {
	data, ok := body.BytesOf(resp)
	if !ok || Says(resp.Header, "no-store") || varies(resp.Header, known) {
		return nil, false
	}
	a = &Answer{resp: *resp, body: data, age: ageOf(resp.Header), size: perAnswer + int64(cap(data))}
	a.resp.Body, a.resp.Request, a.resp.TLS = nil, nil, nil
	a.resp.Header, a.resp.Trailer = nil, resp.Trailer.Clone()
	a.header = make([]header, 0, len(resp.Header))
	all := make([]string, 0, len(resp.Header)) // most have one value
	for name, values := range resp.Header {
		start := len(all)
		all = append(all, values...)
		a.header = append(a.header, header{name: name, values: all[start:]})
		a.size += perHeader
		for _, v := range values {
			a.size += int64(len(name) + len(v))
		}
	}
	a.values = len(all)
	if v, ok := body.Constant(resp); ok {
		a.keep(v)
	}
	return a, true
}

// keep keeps a constant. A string may be part of a long text, which would stay with it.
func (a *Answer) keep(v any) {
	if s, ok := v.(string); ok {
		v = strings.Clone(s)
		a.size += int64(len(s))
	}
	a.value = v
}

// is reports whether a response says what the answer says, to the last header.
func (a *Answer) is(resp *http.Response) bool {
	if len(resp.Header) != len(a.header) || !a.looksLike(resp) || !a.says(resp) {
		return false
	}
	for i := range a.header {
		h := &a.header[i]
		values, ok := resp.Header[h.name]
		if !ok || !slices.Equal(values, h.values) {
			return false
		}
	}
	return true
}

// says compares bodies, constants without encoding them.
func (a *Answer) says(resp *http.Response) bool {
	if a.value != nil {
		if v, ok := body.Constant(resp); ok && v == a.value {
			return true
		}
	}
	data, ok := body.BytesOf(resp)
	return ok && bytes.Equal(data, a.body)
}

// looksLike compares what is neither header nor body. Trailers, which are rare, are not compared: they are different.
func (a *Answer) looksLike(resp *http.Response) bool {
	b := &a.resp
	return b.StatusCode == resp.StatusCode && b.Status == resp.Status && b.ContentLength == resp.ContentLength &&
		b.Proto == resp.Proto && b.ProtoMajor == resp.ProtoMajor && b.ProtoMinor == resp.ProtoMinor &&
		b.Close == resp.Close && b.Uncompressed == resp.Uncompressed &&
		slices.Equal(b.TransferEncoding, resp.TransferEncoding) && b.Trailer == nil && resp.Trailer == nil
}

// Says reports whether Cache-Control has a directive.
func Says(h http.Header, directive string) bool {
	for _, line := range h["Cache-Control"] {
		for d := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.TrimSpace(d), directive) {
				return true
			}
		}
	}
	return false
}

// varies reports whether an answer depends on a request header besides the known ones; "*" is any.
func varies(h http.Header, known []string) bool {
	for _, line := range h["Vary"] {
		for name := range strings.SplitSeq(line, ",") {
			name = strings.TrimSpace(name)
			if name != "" && !slices.ContainsFunc(known, func(s string) bool { return strings.EqualFold(s, name) }) {
				return true
			}
		}
	}
	return false
}

// ageOf is how old an answer was when it came, if a cache on the way said so.
func ageOf(h http.Header) time.Duration {
	lines := h["Age"]
	if len(lines) == 0 {
		return 0
	}
	seconds, err := strconv.ParseUint(lines[0], 10, 31)
	if err != nil && !errors.Is(err, strconv.ErrRange) { // one that is too large counts as the largest, RFC 9111 section 1.2.2
		return 0
	}
	return time.Duration(seconds) * time.Second
}

// Size is about how many bytes the answer takes up in memory.
func (a *Answer) Size() int64 { return a.size }

// Field is a header of a response.
type Field struct{ Name, Value string }

// room is how many header values a copy has space for without another allocation. With it a reader has just under 512
// bytes, up to which the allocator is quicker.
const room = 16

// reader is one copy of an answer, in one piece of memory.
type reader struct {
	resp   http.Response
	body   body.Held
	values [room]string
}

// Response returns a copy for one reader, who may change it and read its body. The fields replace what the answer says.
// Replay leaves out what must not be said twice: a cookie that is set again would undo newer ones.
func (a *Answer) Response(req *http.Request, replay bool, fields ...Field) *http.Response {
	r := &reader{resp: a.resp, body: *body.NewHeld(a.body)}
	values := r.values[:0]
	if need := a.values + len(fields); need > room {
		values = make([]string, 0, need)
	}
	h := make(http.Header, len(a.header)+len(fields))
	for i := range a.header {
		from := &a.header[i]
		if replay && from.name == "Set-Cookie" {
			continue
		}
		start := len(values)
		if len(from.values) == 1 { // as nearly always; quicker than to copy a list
			values = append(values, from.values[0])
		} else {
			values = append(values, from.values...)
		}
		h[from.name] = values[start:len(values):len(values)]
	}
	for _, f := range fields {
		values = append(values, f.Value)
		h[f.Name] = values[len(values)-1 : len(values) : len(values)]
	}
	r.resp.Header, r.resp.Body, r.resp.Request = h, &r.body, req
	if a.resp.Trailer != nil {
		r.resp.Trailer = a.resp.Trailer.Clone()
	}
	return &r.resp
}
