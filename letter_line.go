package resilience

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"time"
	"unicode/utf8"
)

// decodeLine decodes one line. Its errors show nothing of what is in it.
func decodeLine(line []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return errors.New("not what an export holds")
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one value on a line")
	}
	return nil
}

// letterLine is a letter in an export. Names here are promised; those of [Letter] may change.
type letterLine struct {
	ID           exactText              `json:"id"`
	Operation    exactText              `json:"operation"`
	Key          exactText              `json:"key"`
	Named        bool                   `json:"named,omitempty"`
	Call         callLine               `json:"call"`
	Method       string                 `json:"method,omitempty"`
	URL          exactText              `json:"url,omitzero"`
	Host         exactText              `json:"host,omitzero"`
	Header       map[string][]exactText `json:"header,omitempty"`
	Body         []byte                 `json:"body,omitempty"`
	NeedsAuth    bool                   `json:"needs_auth,omitempty"`
	Cause        string                 `json:"cause,omitempty"`
	Detail       string                 `json:"detail,omitempty"`
	StatusCode   int                    `json:"status,omitempty"`
	Attempts     int                    `json:"attempts"`
	Redrives     int                    `json:"redrives,omitempty"`
	First        time.Time              `json:"first"`
	Last         time.Time              `json:"last"`
	Next         time.Time              `json:"next"`
	Expires      time.Time              `json:"expires,omitzero"`
	NotAfter     time.Time              `json:"not_after,omitzero"`
	InDoubt      bool                   `json:"in_doubt,omitempty"`
	DoubtSince   time.Time              `json:"doubt_since,omitzero"`
	Parked       bool                   `json:"parked,omitempty"`
	ParkedReason string                 `json:"parked_reason,omitempty"`
	Superseded   bool                   `json:"superseded,omitempty"`
	Redacted     bool                   `json:"redacted,omitempty"`
	History      []letterAttemptLine    `json:"history,omitempty"`
}

type callLine struct {
	Operation exactText     `json:"operation,omitzero"`
	Effect    string        `json:"effect"`
	Priority  string        `json:"priority"`
	Class     string        `json:"class"`
	Limit     time.Duration `json:"limit_ns,omitempty"`
	Budget    time.Duration `json:"budget_ns,omitempty"`
	Resource  exactText     `json:"resource,omitzero"`
}

type letterAttemptLine struct {
	Time       time.Time `json:"time"`
	Cause      string    `json:"cause"`
	Detail     string    `json:"detail,omitempty"`
	StatusCode int       `json:"status,omitempty"`
}

func lineOf(l *Letter) letterLine {
	line := letterLine{
		ID: exactText(l.ID), Operation: exactText(l.Operation), Key: exactText(l.Key), Named: l.Named,
		Call: callLine{
			Operation: exactText(l.Call.Operation), Effect: l.Call.Effect.String(), Priority: l.Call.Priority.String(),
			Class: l.Call.Class.String(), Limit: l.Call.Limit, Budget: l.Call.Budget, Resource: exactText(l.Call.Resource),
		},
		Method: l.Method, URL: exactText(l.URL), Host: exactText(l.Host), Body: l.Body, NeedsAuth: l.NeedsAuth,
		Cause: l.Cause, Detail: l.Detail, StatusCode: l.StatusCode, Attempts: l.Attempts, Redrives: l.Redrives,
		First: l.First.UTC(), Last: l.Last.UTC(), Next: l.Next.UTC(), Expires: l.Expires.UTC(), NotAfter: l.NotAfter.UTC(),
		InDoubt: l.InDoubt, DoubtSince: l.DoubtSince.UTC(),
		Parked: l.Parked, ParkedReason: l.ParkedReason, Superseded: l.Superseded, Redacted: l.Redacted,
	}
	for name, values := range l.Header {
		if line.Header == nil {
			line.Header = map[string][]exactText{}
		}
		line.Header[name] = []exactText{} // without a value it says something, too: User-Agent, that there shall be none
		for _, v := range values {
			line.Header[name] = append(line.Header[name], exactText(v))
		}
	}
	for _, a := range l.History {
		a.Time = a.Time.UTC()
		line.History = append(line.History, letterAttemptLine(a))
	}
	return line
}

// letter checks what a redrive will rely on.
func (w letterLine) letter() (*Letter, error) {
	l := &Letter{
		ID: string(w.ID), Operation: string(w.Operation), Key: string(w.Key), Named: w.Named,
		Method: w.Method, URL: string(w.URL), Host: string(w.Host), Body: w.Body, NeedsAuth: w.NeedsAuth,
		Cause: w.Cause, Detail: w.Detail, StatusCode: w.StatusCode, Attempts: w.Attempts, Redrives: w.Redrives,
		First: w.First.UTC(), Last: w.Last.UTC(), Next: w.Next.UTC(), Expires: w.Expires.UTC(), NotAfter: w.NotAfter.UTC(),
		InDoubt: w.InDoubt, DoubtSince: w.DoubtSince.UTC(),
		Parked: w.Parked, ParkedReason: w.ParkedReason, Superseded: w.Superseded, Redacted: w.Redacted,
	}
	l.Call.Operation, l.Call.Resource = string(w.Call.Operation), string(w.Call.Resource)
	l.Call.Limit, l.Call.Budget = w.Call.Limit, w.Call.Budget
	effect, okEffect := byName(w.Call.Effect, EffectOnce)
	priority, okPriority := byName(w.Call.Priority, PriorityBulk)
	class, okClass := byName(w.Call.Class, ClassLongPoll)
	l.Call.Effect, l.Call.Priority, l.Call.Class = effect, priority, class
	switch {
	case l.ID == "" || l.Operation == "":
		return nil, errors.New("id or operation is missing")
	case (&trip{key: l.Key, named: true}).checkKey() != nil:
		return nil, errors.New("the key is none")
	case !okEffect || !okPriority || !okClass:
		return nil, errors.New("an effect, priority or class that is not known")
	case !l.countable() || len(w.History) > maxLetterHistory:
		return nil, errors.New("a number is out of bounds")
	}
	for name, values := range w.Header {
		if l.Header == nil {
			l.Header = http.Header{}
		}
		l.Header[name] = []string{}
		for _, v := range values {
			l.Header[name] = append(l.Header[name], string(v))
		}
	}
	for _, a := range w.History {
		a.Time = a.Time.UTC()
		l.History = append(l.History, LetterAttempt(a))
	}
	if l.First.IsZero() || l.Next.IsZero() || !l.writable() || !writable(l.Expires) || !writable(l.NotAfter) {
		return nil, errors.New("a time is missing or out of bounds")
	}
	return l, nil
}

// tidy holds for every letter that comes from a file or a store, whatever the file says.
func (l *Letter) tidy() {
	l.Leased = false
	l.setDoubt(l.InDoubt, l.DoubtSince)
	l.strip()
	l.cut()
	if l.Redacted && !l.Parked {
		l.Parked, l.ParkedReason = true, "redacted"
	}
}

// byName is the inverse of String, for the values up to last.
func byName[T interface {
	~uint8
	String() string
}](name string, last T) (v T, ok bool) {
	for v = range last + 1 {
		if v.String() == name {
			return v, true
		}
	}
	return 0, false
}

// exactText is a string that comes back as it was, also when it is not UTF-8, which JSON would alter.
type exactText string

type rawText struct {
	Base64 []byte `json:"base64"`
}

// MarshalJSON writes a string, or an object where that would not be exact.
func (t exactText) MarshalJSON() ([]byte, error) {
	if utf8.ValidString(string(t)) {
		return json.Marshal(string(t))
	}
	return json.Marshal(rawText{[]byte(t)})
}

// UnmarshalJSON reads either form.
func (t *exactText) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '{' {
		var raw rawText
		if err := decodeLine(b, &raw); err != nil {
			return err
		}
		*t = exactText(raw.Base64)
		return nil
	}
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	*t = exactText(s)
	return nil
}
