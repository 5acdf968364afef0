package resilience

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed" // the status page
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// ServeHTTP answers with the report in the form of draft-inadarei-api-health-check-06 (application/health+json, words pass,
// warn and fail), or with a status page for a browser (a GET that prefers text/html). The status code is 200 while healthy,
// degraded or unknown and 503 when unhealthy. The draft has no word for unknown: the whole is then "warn", so that nothing
// unseen passes, and a single check has no "status"; the key "health" always holds the plain word, and "events" the
// last fifty of what happened on the road, the newest first. Cache-Control says how long the probe's answer still counts. A
// request that HealthConfig.ShowDetails turns down gets the one word alone.
//
// Once something is known of the other side, the answer waits at most half a second for the probe, however long that hangs:
// then what is known is shown, with its age. Only the first reads of all may wait for ProbeTimeout.
func (h *Health) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !readsOnly(w, r) {
		return
	}
	report := h.checkFor(r)
	doc := healthDoc{Status: draftWord(report.Status), Health: report.Status.String()}
	if h.mayShow(r) {
		doc = newHealthDoc(report)
		doc.Events = h.eventList()
	}
	w.Header().Set("Vary", "Accept")
	if r.Method == http.MethodGet && prefersHTML(r.Header) {
		answerHealthPage(w, r, report.Status, doc)
		return
	}
	w.Header().Set("Cache-Control", h.cacheFor(report.FreshFor))
	answerHealth(w, r, report.Status, doc)
}

// Live answers 200 as long as the process can answer at all. It looks at nothing else: restarting a process because the
// other side is down would only add harm. For a liveness probe.
func (h *Health) Live() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if readsOnly(w, r) {
			w.Header().Set("Cache-Control", "no-store")
			answerHealth(w, r, Healthy, healthDoc{Status: "pass", Health: Healthy.String()})
		}
	})
}

// Ready answers with the aggregate in one word: 200 while healthy, degraded or unknown, 503 when unhealthy. For a
// readiness probe of a process that is of no use without the other side; the others better use Live for both, since what
// all instances depend on takes all of them out of service at once.
func (h *Health) Ready() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if readsOnly(w, r) {
			status := h.checkFor(r).Status
			w.Header().Set("Cache-Control", "no-store")
			answerHealth(w, r, status, healthDoc{Status: draftWord(status), Health: status.String()})
		}
	})
}

// handlerPatience is how long a request waits for a probe once something is known. An orchestrator gives up after a second
// as a rule, and takes that for a failure, which a probe that hangs once need not be.
const handlerPatience = 500 * time.Millisecond

// checkFor is Check for a request.
func (h *Health) checkFor(r *http.Request) Report {
	ctx := r.Context()
	if h != nil && h.probe.settled() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, handlerPatience)
		defer cancel()
	}
	return h.Check(ctx)
}

func readsOnly(w http.ResponseWriter, r *http.Request) bool {
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return true
	}
	w.Header().Set("Allow", "GET, HEAD")
	http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
	return false
}

// mayShow asks the user; a ShowDetails that panics has not said yes.
func (h *Health) mayShow(r *http.Request) (may bool) {
	if h == nil || h.showDetails == nil {
		return true
	}
	defer func() {
		if recover() != nil {
			may = false
		}
	}()
	return h.showDetails(r)
}

// cacheFor keeps shared caches from handing one reader's details to another.
func (h *Health) cacheFor(fresh time.Duration) string {
	age := fmt.Sprintf("max-age=%d", int64(fresh/time.Second))
	if h != nil && h.showDetails != nil {
		return "private, " + age
	}
	return age
}

func healthCode(s Status) int {
	if s >= Unhealthy {
		return http.StatusServiceUnavailable
	}
	return http.StatusOK
}

func answerHealth(w http.ResponseWriter, r *http.Request, s Status, doc healthDoc) {
	body, _ := json.Marshal(doc) // made of strings and finite numbers: it cannot fail
	w.Header().Set("Content-Type", "application/health+json")
	answerBody(w, r, healthCode(s), append(body, '\n'))
}

func answerBody(w http.ResponseWriter, r *http.Request, code int, body []byte) {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(code)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body)
	}
}

// healthDoc is the document of the draft, with the keys the draft leaves to us: health and events.
type healthDoc struct {
	Status string        `json:"status"`
	Health string        `json:"health"`
	Time   string        `json:"time,omitempty"`
	Output string        `json:"output,omitempty"`
	Notes  []string      `json:"notes,omitempty"`
	Checks healthRows    `json:"checks,omitempty"`
	Events []healthEvent `json:"events,omitempty"`
}

// healthRows is the object "checks". It keeps the order of the report, where a map would put "disputed" before "in doubt".
type healthRows []healthRowsOf

type healthRowsOf struct {
	key  string
	rows []healthRow
}

func (l *healthRows) add(key string, row healthRow) {
	for i := range *l {
		if (*l)[i].key == key {
			(*l)[i].rows = append((*l)[i].rows, row)
			return
		}
	}
	*l = append(*l, healthRowsOf{key, []healthRow{row}})
}

// MarshalJSON writes an object with the keys in their order.
func (l healthRows) MarshalJSON() ([]byte, error) {
	out := []byte{'{'}
	for i, of := range l {
		if i > 0 {
			out = append(out, ',')
		}
		key, err := json.Marshal(of.key)
		if err != nil {
			return nil, err
		}
		rows, err := json.Marshal(of.rows)
		if err != nil {
			return nil, err
		}
		out = append(append(append(out, key...), ':'), rows...)
	}
	return append(out, '}'), nil
}

// healthRow is one entry under "component:measurement". The keys from health on are ours.
type healthRow struct {
	ComponentID   string  `json:"componentId,omitempty"`
	ObservedValue any     `json:"observedValue,omitempty"`
	ObservedUnit  string  `json:"observedUnit,omitempty"`
	Status        string  `json:"status,omitempty"`
	Time          string  `json:"time"`
	Output        string  `json:"output,omitempty"`
	Health        string  `json:"health"`
	Seen          string  `json:"seen,omitempty"`
	SeenSince     string  `json:"seenSince,omitempty"`
	State         string  `json:"state,omitempty"`
	Note          string  `json:"note,omitempty"`
	Limit         float64 `json:"limit,omitempty"`
	AgeSeconds    float64 `json:"ageSeconds"`
	DurationMs    float64 `json:"durationMs"`
	RetryAfter    float64 `json:"retryAfterSeconds,omitempty"`
}

type healthEvent struct {
	Time      string  `json:"time"`
	Kind      string  `json:"kind"`
	Layer     string  `json:"layer,omitempty"`
	Operation string  `json:"operation,omitempty"`
	KeyHash   string  `json:"keyHash,omitempty"`
	LetterID  string  `json:"letterId,omitempty"`
	From      string  `json:"from,omitempty"`
	To        string  `json:"to,omitempty"`
	Cause     string  `json:"cause,omitempty"`
	Status    int     `json:"statusCode,omitempty"`
	Attempt   int     `json:"attempt,omitempty"`
	Count     int     `json:"count,omitempty"`
	Seconds   float64 `json:"seconds,omitempty"`
}

// MarshalJSON writes the report in the form of draft-inadarei-api-health-check-06, see [Health.ServeHTTP].
func (r Report) MarshalJSON() ([]byte, error) { return json.Marshal(newHealthDoc(r)) }

func newHealthDoc(r Report) healthDoc {
	doc := healthDoc{Status: draftWord(r.Status), Health: r.Status.String(), Time: jsonTime(r.Time)}
	if r.Status > Healthy {
		doc.Output = checkLine(r.worst())
	}
	if r.Status == Unknown {
		doc.Notes = []string{"nothing is known yet"}
	}
	for _, c := range r.Checks {
		doc.Checks.add(draftKey(c), newHealthRow(c))
	}
	return doc
}

func newHealthRow(c CheckResult) healthRow {
	row := healthRow{
		ComponentID: c.Instance, Time: jsonTime(c.Time), Health: c.Status.String(), State: c.State,
		Limit: jsonNumber(c.Limit), AgeSeconds: c.Age.Seconds(), RetryAfter: c.RetryAfter.Seconds(),
		DurationMs: float64(c.Duration) / float64(time.Millisecond),
	}
	if !c.SeenSince.IsZero() {
		row.Seen, row.SeenSince = c.Seen.String(), jsonTime(c.SeenSince)
	}
	if c.Status != Unknown {
		row.Status = draftWord(c.Status)
	}
	if c.Status == Healthy {
		row.Note = c.Message // the draft wants no output beside a pass
	} else {
		row.Output = c.Message
	}
	switch {
	case c.Unit != "" && jsonNumber(c.Value) == c.Value:
		row.ObservedValue, row.ObservedUnit = c.Value, c.Unit
	case c.Unit == "" && c.State != "":
		row.ObservedValue = c.State
	}
	return row
}

func (h *Health) eventList() []healthEvent {
	if h == nil {
		return nil
	}
	list := h.recent.newestFirst()
	docs := make([]healthEvent, len(list))
	for i, e := range list {
		docs[i] = healthEvent{
			Time: jsonTime(e.Time), Kind: string(e.Kind), Layer: e.Layer, Operation: e.Operation, KeyHash: e.KeyHash,
			LetterID: e.LetterID, From: e.From, To: e.To, Cause: e.Cause, Status: e.StatusCode, Attempt: e.Attempt,
			Count: e.Count, Seconds: e.Duration.Seconds(),
		}
	}
	return docs
}

func draftWord(s Status) string {
	switch {
	case s >= Unhealthy:
		return "fail"
	case s == Healthy:
		return "pass"
	}
	return "warn"
}

// draftKey joins component and measurement with the colon that neither may hold.
func draftKey(c CheckResult) string {
	name, measure := strings.ReplaceAll(c.Name, ":", "_"), strings.ReplaceAll(c.Measure, ":", "_")
	if measure == "" {
		return name
	}
	return name + ":" + measure
}

func checkLine(c CheckResult) string {
	var parts []string
	for _, part := range []string{c.Name, c.Instance, c.State, c.Message} {
		if part != "" && part != "ok" {
			parts = append(parts, part)
		}
	}
	return strings.Join(parts, ": ")
}

func jsonTime(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// jsonNumber gives 0 for what JSON cannot hold.
func jsonNumber(v float64) float64 {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return 0
	}
	return v
}

// healthPage is one file that needs nothing else. It draws the same document that a monitor gets, so the two cannot differ;
// and it is not a template, because linking html/template would add a third to the size of a small server.
//
//go:embed health_page.html
var healthPage []byte

func answerHealthPage(w http.ResponseWriter, r *http.Request, s Status, doc healthDoc) {
	data, _ := json.Marshal(doc) // escapes <, > and &, and so cannot end the script element it stands in
	header := w.Header()
	header.Set("Content-Type", "text/html; charset=utf-8")
	header.Set("Cache-Control", "no-store")
	header.Set("Content-Security-Policy", healthPagePolicy())
	header.Set("Referrer-Policy", "no-referrer")
	answerBody(w, r, healthCode(s), bytes.Replace(healthPage, []byte("{{data}}"), data, 1))
}

// healthPagePolicy allows the page's own script and style, by their hashes, questions to its own server, and the empty icon
// that keeps browsers from asking for one; nothing else.
func healthPagePolicy() string {
	return fmt.Sprintf("default-src 'none'; style-src '%s'; script-src '%s'; connect-src 'self'; "+
		"img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
		hashBetween("<style>", "</style>"), hashBetween("<script>", "</script>"))
}

func hashBetween(start, end string) string {
	_, rest, _ := strings.Cut(string(healthPage), start)
	inside, _, _ := strings.Cut(rest, end)
	sum := sha256.Sum256([]byte(inside))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}

// prefersHTML reports whether the reader names text/html and likes it better than any JSON it names. A wildcard is no
// preference: curl and monitors get the JSON.
func prefersHTML(h http.Header) bool {
	var html, json float64
	for _, part := range strings.Split(strings.Join(h.Values("Accept"), ","), ",") {
		kind, params, _ := strings.Cut(part, ";")
		switch strings.ToLower(strings.TrimSpace(kind)) {
		case "text/html":
			html = max(html, acceptQuality(params))
		case "application/json", "application/health+json":
			json = max(json, acceptQuality(params))
		}
	}
	return html > json
}

func acceptQuality(params string) float64 {
	for _, param := range strings.Split(params, ";") {
		name, value, _ := strings.Cut(param, "=")
		if strings.EqualFold(strings.TrimSpace(name), "q") {
			q, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil || math.IsNaN(q) {
				return 0
			}
			return min(q, 1)
		}
	}
	return 1
}
