package retelltest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// object is a JSON object. Values inside one are replaced, never changed in place, so a shallow copy is a snapshot.
type object = map[string]any

// request is what a handler sees of a request.
type request struct {
	params   []string // path parameters, in order
	query    url.Values
	body     object
	now      time.Time
	repeated bool // set by a handler that answered from memory and did nothing
}

// failure is an answer in Retell's error shape.
type failure struct {
	status  int
	message string
}

func fail(status int, format string, args ...any) *failure {
	return &failure{status: status, message: fmt.Sprintf(format, args...)}
}

// answer is a whole response.
type answer struct {
	status int
	header http.Header
	body   []byte
}

func (f *failure) answer() answer {
	return answerJSON(f.status, object{"status": "error", "message": f.message})
}

func answerJSON(status int, v any) answer {
	a := answer{status: status, header: make(http.Header)}
	if v == nil || status == http.StatusNoContent || status == http.StatusNotModified {
		return a
	}
	a.header.Set("Content-Type", "application/json; charset=utf-8")
	a.body = encode(v)
	return a
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil { // everything here came from JSON or is built of plain values
		panic("retelltest: " + err.Error())
	}
	return b
}

// unauthorized checks the Authorization header; nil: it is good.
func unauthorized(h http.Header, key string) *answer {
	value := h.Get("Authorization")
	if value == "" {
		a := answerJSON(http.StatusUnauthorized, object{"error_message": "Authorization header required"})
		return &a
	}
	got, ok := strings.CutPrefix(value, "Bearer ")
	if ok && (key != "" && got == key || key == "" && strings.HasPrefix(got, "key_")) {
		return nil
	}
	a := fail(http.StatusUnauthorized, "Invalid API Key.").answer()
	return &a
}

// decode reads a request body: JSON, or a form with files, of which the names are kept.
func decode(h http.Header, raw []byte) (object, *failure) {
	kind, params, _ := mime.ParseMediaType(h.Get("Content-Type"))
	if kind == "multipart/form-data" {
		return decodeForm(raw, params["boundary"])
	}
	if len(bytes.TrimSpace(raw)) == 0 {
		return object{}, nil
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber() // what is echoed keeps every digit
	var body object
	if err := d.Decode(&body); err != nil {
		return nil, fail(http.StatusBadRequest, "request format is wrong: the body is not a JSON object")
	}
	if _, err := d.Token(); err != io.EOF { //nolint:errorlint // json.Decoder returns io.EOF itself
		return nil, fail(http.StatusBadRequest, "request format is wrong: something follows the JSON object")
	}
	if body == nil {
		body = object{}
	}
	return body, nil
}

func decodeForm(raw []byte, boundary string) (object, *failure) {
	body := object{}
	parts := multipart.NewReader(bytes.NewReader(raw), boundary)
	for {
		part, err := parts.NextPart()
		if err == io.EOF { //nolint:errorlint // documented to be io.EOF itself
			return body, nil
		}
		if err != nil {
			return nil, fail(http.StatusBadRequest, "request format is wrong: bad form")
		}
		value, err := io.ReadAll(part)
		if err != nil {
			return nil, fail(http.StatusBadRequest, "request format is wrong: bad form")
		}
		if part.FileName() == "" {
			body[part.FormName()] = string(value)
			continue
		}
		files, _ := body[part.FormName()].([]any)
		body[part.FormName()] = append(files, part.FileName())
	}
}

// text returns a string field; empty when it is absent or something else.
func text(o object, field string) string {
	s, _ := o[field].(string)
	return s
}

// child returns an object field; nil when it is absent or something else.
func child(o object, field string) object {
	c, _ := o[field].(object)
	return c
}

// number returns v as a number.
func number(v any) (float64, bool) {
	switch n := v.(type) {
	case json.Number:
		f, err := n.Float64()
		return f, err == nil
	case float64:
		return n, true
	case int64:
		return float64(n), true
	case int:
		return float64(n), true
	}
	return 0, false
}

// plain turns what a test gives us into what decoding JSON would have given: the two must not differ in filters.
func plain(o object) object {
	b, err := json.Marshal(o)
	if err != nil {
		panic("retelltest: not JSON: " + err.Error())
	}
	out, f := decode(http.Header{}, b)
	if f != nil {
		panic("retelltest: " + f.message)
	}
	return out
}

func millis(t time.Time) int64 { return t.UnixMilli() }
