// Package canonical gives a JSON document one form, so that equal documents have equal bytes and equal hashes.
//
// It keeps every digit of a number. RFC 8785 does not: it goes through float64, where 9007199254740993 and
// 9007199254740992 are the same, and two customers with such ids would share one phone call. The price is that 1 and 1.0
// differ here, which is the safe side: nothing is dialled for a mismatch.
package canonical

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"unicode/utf16"
	"unicode/utf8"
)

// maxDepth bounds the nesting of objects and arrays, far above what any API uses. It bounds the work too: an object is
// put in order after what is in it.
const maxDepth = 256

// JSON returns the canonical form of one JSON document: members sorted by the bytes of their names, no space, no escapes
// but the necessary ones, numbers as they were written. Strings are not normalised: an accent that is a rune of its own
// stays one. It refuses what two readers could understand differently: members with the same name, bytes that are not
// UTF-8, half a surrogate pair, anything after the document; and a nesting of more than 256. Errors say where, never
// what: documents hold personal data. data is not changed and not kept.
func JSON(data []byte) ([]byte, error) {
	p := parser{data: data}
	return p.document()
}

// Body is JSON for what may be no JSON, or none with one clear meaning: that comes back as it is.
func Body(data []byte) []byte {
	if same, err := JSON(data); err == nil {
		return same
	}
	return data
}

// Marshal returns the canonical form of what [json.Marshal] makes of v, so that a struct and a map with the same JSON are
// the same. Unlike json.Marshal, it refuses strings that are not UTF-8, which would come out alike. An escaped U+FFFD in a
// json.RawMessage inside v is refused with them, because it looks the same.
func Marshal(v any) ([]byte, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, &encodeError{err}
	}
	p := parser{data: data, marshaled: true}
	return p.document()
}

// encodeError hides the text of an error that may quote the value.
type encodeError struct{ err error }

func (e *encodeError) Error() string {
	var badType *json.UnsupportedTypeError
	var badValue *json.UnsupportedValueError
	switch {
	case errors.As(e.err, &badType):
		return "JSON has no form for the type " + badType.Type.String()
	case errors.As(e.err, &badValue):
		return "JSON has no form for a value: NaN, infinite or cyclic"
	default:
		return fmt.Sprintf("encoding as JSON failed (%T)", e.err)
	}
}

func (e *encodeError) Unwrap() error { return e.err }

type parser struct {
	data      []byte
	marshaled bool // by json.Marshal, which writes \ufffd for bytes that are not UTF-8, and for nothing else
	pos       int
	depth     int

	out     []byte
	members []member // of all objects that are open, innermost last
	scratch []byte
}

// member is one member of an open object, in its canonical form out[start:end].
type member struct {
	name       []byte
	start, end int
}

func (p *parser) document() ([]byte, error) {
	p.out = make([]byte, 0, len(p.data))
	if err := p.value(); err != nil {
		return nil, err
	}
	p.space()
	if p.pos < len(p.data) {
		return nil, p.fault("something follows the JSON document")
	}
	return p.out, nil
}

func (p *parser) fault(what string) error {
	return fmt.Errorf("%s at byte %d", what, p.pos)
}

func (p *parser) unexpected() error {
	if p.pos >= len(p.data) {
		return p.fault("the JSON document ends too early")
	}
	return p.fault("not JSON")
}

// peek returns the next byte, 0 at the end: a NUL is never JSON outside a string.
func (p *parser) peek() byte {
	if p.pos < len(p.data) {
		return p.data[p.pos]
	}
	return 0
}

func (p *parser) space() {
	for p.pos < len(p.data) {
		switch p.data[p.pos] {
		case ' ', '\t', '\n', '\r':
			p.pos++
		default:
			return
		}
	}
}

// accept takes b if it is the next byte that is not space.
func (p *parser) accept(b byte) bool {
	p.space()
	if p.peek() != b {
		return false
	}
	p.pos++
	return true
}

func (p *parser) value() error {
	p.space()
	switch p.peek() {
	case '{':
		return p.object()
	case '[':
		return p.array()
	case '"':
		s, err := p.str()
		if err != nil {
			return err
		}
		p.out = appendString(p.out, s)
		return nil
	case 't':
		return p.literal("true")
	case 'f':
		return p.literal("false")
	case 'n':
		return p.literal("null")
	default:
		return p.number()
	}
}

func (p *parser) literal(word string) error {
	if !bytes.HasPrefix(p.data[p.pos:], []byte(word)) {
		return p.fault("not JSON")
	}
	p.pos += len(word)
	p.out = append(p.out, word...)
	return nil
}

// open takes the bracket that begins an object or an array.
func (p *parser) open() error {
	if p.depth++; p.depth > maxDepth {
		return p.fault(fmt.Sprintf("JSON nested deeper than %d", maxDepth))
	}
	p.out = append(p.out, p.data[p.pos])
	p.pos++
	return nil
}

func (p *parser) shut(bracket byte) {
	p.depth--
	p.out = append(p.out, bracket)
}

func (p *parser) array() error {
	if err := p.open(); err != nil {
		return err
	}
	for first := true; !p.accept(']'); first = false {
		if !first {
			if !p.accept(',') {
				return p.unexpected()
			}
			p.out = append(p.out, ',')
		}
		if err := p.value(); err != nil {
			return err
		}
	}
	p.shut(']')
	return nil
}

func (p *parser) object() error {
	at := p.pos
	if err := p.open(); err != nil {
		return err
	}
	begin, base := len(p.out), len(p.members)
	for first := true; !p.accept('}'); first = false {
		if !first {
			if !p.accept(',') {
				return p.unexpected()
			}
			p.out = append(p.out, ',')
		}
		if err := p.member(); err != nil {
			return err
		}
	}
	if !p.sort(begin, base) {
		p.pos = at
		return p.fault("two members with the same name in the object")
	}
	p.members = p.members[:base]
	p.shut('}')
	return nil
}

func (p *parser) member() error {
	p.space()
	if p.peek() != '"' {
		return p.unexpected()
	}
	start := len(p.out)
	name, err := p.str()
	if err != nil {
		return err
	}
	p.out = appendString(p.out, name)
	if !p.accept(':') {
		return p.unexpected()
	}
	p.out = append(p.out, ':')
	if err := p.value(); err != nil {
		return err
	}
	p.members = append(p.members, member{name: name, start: start, end: len(p.out)})
	return nil
}

// sort puts the members from base on, which were written to out[begin:], in order. It is false if two names are equal.
func (p *parser) sort(begin, base int) bool {
	members := p.members[base:]
	inOrder := true
	for i := 1; i < len(members); i++ {
		inOrder = inOrder && bytes.Compare(members[i-1].name, members[i].name) < 0
	}
	if inOrder {
		return true
	}
	slices.SortFunc(members, func(a, b member) int { return bytes.Compare(a.name, b.name) })
	p.scratch = append(p.scratch[:0], p.out[begin:]...)
	p.out = p.out[:begin]
	for i, m := range members {
		if i > 0 {
			if bytes.Equal(members[i-1].name, m.name) {
				return false
			}
			p.out = append(p.out, ',')
		}
		p.out = append(p.out, p.scratch[m.start-begin:m.end-begin]...)
	}
	return true
}

// number takes -?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)? as it stands.
func (p *parser) number() error {
	start := p.pos
	if p.peek() == '-' {
		p.pos++
	}
	if p.peek() == '0' {
		p.pos++
	} else if !p.digits() {
		return p.unexpected()
	}
	if p.peek() == '.' {
		p.pos++
		if !p.digits() {
			return p.unexpected()
		}
	}
	if c := p.peek(); c == 'e' || c == 'E' {
		p.pos++
		if c := p.peek(); c == '+' || c == '-' {
			p.pos++
		}
		if !p.digits() {
			return p.unexpected()
		}
	}
	p.out = append(p.out, p.data[start:p.pos]...)
	return nil
}

func (p *parser) digits() bool {
	start := p.pos
	for c := p.peek(); '0' <= c && c <= '9'; c = p.peek() {
		p.pos++
	}
	return p.pos > start
}

// str takes a string and returns what it means, as a part of data if it has no escapes.
func (p *parser) str() ([]byte, error) {
	p.pos++
	start := p.pos
	for p.pos < len(p.data) {
		switch c := p.data[p.pos]; {
		case c == '"':
			s := p.data[start:p.pos]
			p.pos++
			return s, nil
		case c == '\\':
			return p.escaped(bytes.Clone(p.data[start:p.pos]))
		default:
			if err := p.char(); err != nil {
				return nil, err
			}
		}
	}
	return nil, p.unexpected()
}

// escaped takes the rest of a string that begins with s and has escapes.
func (p *parser) escaped(s []byte) ([]byte, error) {
	for p.pos < len(p.data) {
		switch p.data[p.pos] {
		case '"':
			p.pos++
			return s, nil
		case '\\':
			r, err := p.escape()
			if err != nil {
				return nil, err
			}
			s = utf8.AppendRune(s, r)
		default:
			start := p.pos
			if err := p.char(); err != nil {
				return nil, err
			}
			s = append(s, p.data[start:p.pos]...)
		}
	}
	return nil, p.unexpected()
}

// char takes one character that stands for itself.
func (p *parser) char() error {
	switch c := p.data[p.pos]; {
	case c < ' ':
		return p.fault("a control character in a JSON string")
	case c < utf8.RuneSelf:
		p.pos++
		return nil
	}
	r, size := utf8.DecodeRune(p.data[p.pos:])
	if r == utf8.RuneError && size <= 1 {
		return p.fault("a JSON string that is not UTF-8")
	}
	p.pos += size
	return nil
}

func (p *parser) escape() (rune, error) {
	p.pos++
	c := p.peek()
	p.pos++
	switch c {
	case '"', '\\', '/':
		return rune(c), nil
	case 'b':
		return '\b', nil
	case 'f':
		return '\f', nil
	case 'n':
		return '\n', nil
	case 'r':
		return '\r', nil
	case 't':
		return '\t', nil
	case 'u':
		return p.unicode()
	default:
		p.pos--
		return 0, p.unexpected()
	}
}

// unicode takes what follows \u, and the second half of a surrogate pair.
func (p *parser) unicode() (rune, error) {
	r, err := p.hex()
	switch {
	case err != nil:
		return 0, err
	case r == utf8.RuneError && p.marshaled:
		return 0, errors.New("a string that is not UTF-8")
	case !utf16.IsSurrogate(r):
		return r, nil
	}
	if bytes.HasPrefix(p.data[p.pos:], []byte(`\u`)) {
		p.pos += 2
		low, err := p.hex()
		if err != nil {
			return 0, err
		}
		if r = utf16.DecodeRune(r, low); r != utf8.RuneError {
			return r, nil
		}
	}
	return 0, p.fault("half a surrogate pair in a JSON string")
}

func (p *parser) hex() (rune, error) {
	var r rune
	for range 4 {
		c := p.peek()
		switch {
		case '0' <= c && c <= '9':
			r = r<<4 | rune(c-'0')
		case 'a' <= c && c <= 'f':
			r = r<<4 | rune(c-'a'+10)
		case 'A' <= c && c <= 'F':
			r = r<<4 | rune(c-'A'+10)
		default:
			return 0, p.unexpected()
		}
		p.pos++
	}
	return r, nil
}

// appendString escapes what JSON wants escaped, each in one way.
func appendString(out, s []byte) []byte {
	const digits = "0123456789abcdef"
	out = append(out, '"')
	done := 0
	for i, c := range s {
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		out = append(out, s[done:i]...)
		done = i + 1
		switch c {
		case '"', '\\':
			out = append(out, '\\', c)
		case '\b':
			out = append(out, '\\', 'b')
		case '\f':
			out = append(out, '\\', 'f')
		case '\n':
			out = append(out, '\\', 'n')
		case '\r':
			out = append(out, '\\', 'r')
		case '\t':
			out = append(out, '\\', 't')
		default:
			out = append(out, '\\', 'u', '0', '0', digits[c>>4], digits[c&0xf])
		}
	}
	out = append(out, s[done:]...)
	return append(out, '"')
}
