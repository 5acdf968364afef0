package retell

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/retell-resilience/resilience"
)

// CallOption says something about one call. It only sets the context, so what it says holds just as well for hand-written
// requests under resilience.WithIdempotencyKey and the like.
type CallOption func(context.Context) context.Context

// IdempotencyKey names the intent behind the call, for example "reminder:4711:2026-11-23": see
// resilience.WithIdempotencyKey. Without it a lost answer cannot be recognised by another try, and nothing is parked.
//
// Retell remembers the key of a phone call for an hour. Within it a key that was made free here, by Idempotency.Forget or a
// restart without a durable store, gets the earlier call as its answer, and nobody is called.
func IdempotencyKey(key string) CallOption {
	return func(ctx context.Context) context.Context { return resilience.WithIdempotencyKey(ctx, key) }
}

// Priority sets the tier the call waits in, instead of the operation's own.
func Priority(p resilience.Priority) CallOption {
	return func(ctx context.Context) context.Context { return resilience.WithPriority(ctx, p) }
}

// Budget bounds the caller's wait in total, retries included. -1: no bound but the context's.
func Budget(d time.Duration) CallOption {
	return func(ctx context.Context) context.Context { return resilience.WithBudget(ctx, d) }
}

// Fallback answers a read when Retell does not, in place of the last good answer: for a caller who has a better one. T is
// what the method returns. See resilience.WithFallback; an answer that is nil is no answer.
//
//	agent, err := client.Agents.Get(ctx, id, retell.AgentVersion{}, retell.Fallback(func(context.Context, error) (*retell.Agent, error) {
//		return agentFromFile(id)
//	}))
func Fallback[T any](f func(context.Context, error) (*T, error)) CallOption {
	return func(ctx context.Context) context.Context {
		return resilience.WithFallback(ctx, func(ctx context.Context, err error) (*T, error) {
			v, err := f(ctx, err)
			if err == nil && v == nil {
				err = errors.New("retell: the fallback returned neither an answer nor an error")
			}
			return v, err
		})
	}
}

// Expiry says until when a late success still helps: a call that failed and waits in the dead-letter queue is not made
// after t.
func Expiry(t time.Time) CallOption {
	return func(ctx context.Context) context.Context { return resilience.WithExpiry(ctx, t) }
}

// Body is a request body that is not JSON, such as a multipart form for an upload.
type Body struct {
	ContentType string
	Data        []byte
}

// Do sends a request that has no method of its own here by the same road: every endpoint of the catalogue, and those that
// came later. The path starts with a slash, has its ids escaped by [PathID], and may have a query. in is encoded as JSON; nil
// sends no body, and a [Body] goes as it is. T is what the answer is decoded into: a struct of yours, [Page], [List],
// [Empty] if there is no answer, or json.RawMessage.
//
//	agent, err := retell.Do[retell.Agent](ctx, client, "PATCH", "/update-agent/"+retell.PathID(id), settings)
//
// The errors are those of every method of the client: an [*Error] for an answer outside 2xx, else an error of the layers or
// the transport, for resilience.NotSent and resilience.InDoubt. None holds a URL, a body or a credential, but for what the
// transport says itself: net/http quotes a line of an answer that is not HTTP.
func Do[T any](ctx context.Context, c *Client, method, path string, in any, opts ...CallOption) (*T, error) {
	a, err := c.send(ctx, method, path, in, wants[T](), opts)
	if err != nil {
		return nil, err
	}
	out := new(T)
	if err := a.decode(out); err != nil {
		return nil, err
	}
	return out, nil
}

// wants is the Accept header for an answer of type T.
func wants[T any]() string {
	if _, nothing := any((*T)(nil)).(*Empty); nothing {
		return "*/*"
	}
	return "application/json"
}

// PathID escapes an id for a path: a phone number keeps its plus, a slash does not cut the path. A path with an empty id, or
// one of dots, is refused by [Do].
func PathID(id string) string { return url.PathEscape(id) }

// checkPath refuses a path that would reach something else than it says: "/delete-agent/" with its id lost, or dots that
// somebody on the way resolves.
func checkPath(path string) bool {
	if !strings.HasPrefix(path, "/") {
		return false
	}
	for segment := range strings.SplitSeq(path[1:], "/") {
		raw, err := url.PathUnescape(segment)
		if err != nil || raw == "" || raw == "." || raw == ".." {
			return false
		}
	}
	return true
}

// answer is a success as it was received.
type answer struct {
	call resilience.Call
	resp *http.Response // its body is read
	body []byte
}

// send does one exchange. It calls the transport itself, without an http.Client: that would follow redirects, and put the
// URL, with the ids in it, into the text of errors.
func (c *Client) send(ctx context.Context, method, path string, in any, accept string, opts []CallOption) (*answer, error) {
	req, err := c.newRequest(withOptions(ctx, opts), method, path, in, accept)
	if err != nil {
		return nil, err
	}
	escaped := strings.TrimPrefix(req.URL.EscapedPath(), c.prefix)
	call := describePath(method, escaped)
	resp, err := c.transport.RoundTrip(req)
	if err != nil {
		return nil, named(call.Operation, err)
	}
	body, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close() // it is read, or broken
	switch {
	case err != nil && resp.StatusCode/100 == 2:
		return nil, badAnswer(call, resp.StatusCode, nil)
	case resp.StatusCode/100 != 2:
		r, _ := routeOf(method, escaped)
		return nil, errorOf(call, r, resp.StatusCode, resp.Header, body)
	}
	return &answer{call, resp, body}, nil
}

func withOptions(ctx context.Context, opts []CallOption) context.Context {
	if ctx == nil {
		return nil // refused below
	}
	for _, opt := range opts {
		if opt != nil {
			ctx = opt(ctx)
		}
	}
	return ctx
}

func (c *Client) newRequest(ctx context.Context, method, path string, in any, accept string) (*http.Request, error) {
	plain, _, _ := strings.Cut(path, "?")
	operation := describePath(method, plain).Operation
	if ctx == nil {
		return nil, invalid(operation, "ctx", "is nil")
	}
	if !checkPath(plain) || strings.Contains(path, "#") { // what follows # is never sent
		return nil, invalid(operation, "path", "needs a slash first, no segment that is empty or dots, and no #")
	}
	var body Body
	switch in := in.(type) {
	case nil:
	case Body:
		body = in
	default:
		data, err := encode(in)
		if err != nil {
			return nil, invalid(operation, "body", fmt.Sprintf("does not encode as JSON: %T", err))
		}
		body = Body{"application/json", data}
	}
	var reader io.Reader
	if in != nil {
		reader = bytes.NewReader(body.Data)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, reader)
	if err != nil { // its text has the URL
		return nil, invalid(operation, "method or path", "is not valid in HTTP")
	}
	req.Header.Set("Authorization", "Bearer "+c.apiKey)
	req.Header.Set("Accept", accept)
	req.Header.Set("User-Agent", c.userAgent)
	if in != nil {
		req.Header.Set("Content-Type", body.ContentType)
	}
	return req, nil
}

// encode is deterministic: the same value always gives the same bytes.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}

// named puts the operation before an error that does not say it, and takes off *url.Error, which prints the URL.
func named(operation string, err error) error {
	if withURL, ok := err.(*url.Error); ok { //nolint:errorlint // only the outermost can be taken off
		err = withURL.Err
	}
	said := &quietError{err: err, text: withoutURLs(err, err.Error())}
	var ours *resilience.Error
	if errors.As(err, &ours) {
		return fmt.Errorf("retell: %w", said)
	}
	return fmt.Errorf("retell: %s: %w", operation, said)
}

// quietError is an error of which the text names no URL.
type quietError struct {
	err  error
	text string
}

func (e *quietError) Error() string { return e.text }
func (e *quietError) Unwrap() error { return e.err }

// withoutURLs takes out of a text what each *url.Error inside err put before its cause.
func withoutURLs(err error, text string) string {
	switch e := err.(type) { //nolint:errorlint // it visits every node itself
	case *url.Error:
		return withoutURLs(e.Err, strings.ReplaceAll(text, e.Error(), e.Err.Error()))
	case interface{ Unwrap() error }:
		return withoutURLs(e.Unwrap(), text)
	case interface{ Unwrap() []error }:
		for _, inner := range e.Unwrap() {
			text = withoutURLs(inner, text)
		}
	}
	return text
}

// decode fills out and its Meta.
func (a *answer) decode(out any) error {
	if raw, ok := out.(*json.RawMessage); ok {
		*raw = a.body
		return nil
	}
	if empty, ok := out.(*Empty); ok {
		a.fill(empty.meta())
		return nil
	}
	d, ours := out.(described)
	if ours && isNull(a.body) || decodeLenient(a.body, out) != nil {
		return badAnswer(a.call, a.resp.StatusCode, a.body)
	}
	if ours {
		a.fill(d.meta())
	}
	return nil
}

// isNull: it would decode as a thing without an id.
func isNull(data []byte) bool { return string(bytes.TrimSpace(data)) == "null" }

// decodeLenient decodes what fits. A field of another type than expected costs that field, not the answer: after a call
// was placed, its id must not be lost because a price became text.
func decodeLenient(data []byte, out any) error {
	err := json.Unmarshal(data, out)
	var mismatch *json.UnmarshalTypeError
	if errors.As(err, &mismatch) && mismatch.Field != "" {
		err = nil
	}
	if err == nil {
		if d, ok := out.(described); ok {
			d.meta().Raw = bytes.Clone(data)
		}
	}
	return err
}

// empty does an operation on one thing that answers nothing.
func (c *Client) empty(ctx context.Context, method, path, name, id string, opts []CallOption) error {
	path, err := byID(path, name, id)
	if err != nil {
		return err
	}
	_, err = Do[Empty](ctx, c, method, path, nil, opts...)
	return err
}
