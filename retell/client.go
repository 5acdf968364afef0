package retell

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/retell-resilience/resilience"
)

// DefaultBaseURL is where Retell's API is.
const DefaultBaseURL = "https://api.retellai.com"

const defaultUserAgent = "retell-resilience-go"

// Client is a client for Retell's API, all layers included. Make one with [New] and share it: it is safe for concurrent use,
// and its circuits, slots and keys only work if everybody uses the same ones.
type Client struct {
	Calls        Calls
	BatchCalls   BatchCalls
	Chats        Chats
	Agents       Agents
	PhoneNumbers PhoneNumbers
	Voices       Voices
	Concurrency  Concurrency
	APIKey       APIKey

	apiKey       string
	scheme, host string
	base         string // no slash at the end
	prefix       string // the escaped path of base
	userAgent    string
	transport    http.RoundTripper
	stack        *resilience.Stack
	owns         bool            // the stack was made here
	idle         *http.Transport // made here; nil: the user's
}

// Option changes what [New] makes.
type Option func(*options)

type options struct {
	baseURL   string
	userAgent string
	transport http.RoundTripper
	config    *resilience.Config
	stack     *resilience.Stack
}

// WithBaseURL sends requests to another address than [DefaultBaseURL], such as a test server or a proxy. A path in it stands
// before the path of every request.
func WithBaseURL(u string) Option { return func(o *options) { o.baseURL = u } }

// WithTransport puts the layers around rt. nil, the default, is a fresh HTTP/1.1 transport. All that the client sends goes
// through it: look-ups, the health probe, and redrives of letters from an earlier run as well. What Stack().Wrap is given
// serves only the requests that come through that Wrap.
func WithTransport(rt http.RoundTripper) Option { return func(o *options) { o.transport = rt } }

// WithUserAgent sets the User-Agent header. Default: "retell-resilience-go".
func WithUserAgent(s string) Option { return func(o *options) { o.userAgent = s } }

// WithConfig builds the layers by cfg instead of [Config]. Functions that are nil in it (Describe, Fallback.Cacheable,
// DLQ.Keep, DLQ.Authorize, Idempotency.Reconcile, Health.Probe) are Retell's.
func WithConfig(cfg resilience.Config) Option { return func(o *options) { o.config = &cfg } }

// WithStack uses layers that exist, which several clients may share. They are used as they are: for all that [WithConfig]
// fills in, their own config counts, and for a base URL with a path their Describe must know it: without DLQ.Authorize
// letters wait, without Idempotency.Reconcile keys in doubt are not looked up. Close leaves them open.
//
// Clients that share layers share keys, too. Clients of different workspaces must not name the same key for two calls: the
// second gets the answer of the first. Put the workspace into the key, or give each workspace layers of its own.
func WithStack(s *resilience.Stack) Option { return func(o *options) { o.stack = s } }

// New makes a client for the workspace of the API key. It starts nothing and sends nothing. Its error names every field of
// the config that is wrong.
//
// Dead letters are redriven, and calls in doubt looked up, only while the stack's Run is running:
//
//	go client.Stack().Run(ctx)
func New(apiKey string, opts ...Option) (*Client, error) {
	o := options{baseURL: DefaultBaseURL, userAgent: defaultUserAgent}
	for _, opt := range opts {
		if opt != nil {
			opt(&o)
		}
	}
	base, err := url.Parse(o.baseURL)
	switch {
	case strings.TrimSpace(apiKey) == "":
		return nil, errors.New("retell: the API key is empty")
	case strings.ContainsFunc(strings.TrimSpace(apiKey), unfitForHeader) || strings.ContainsFunc(o.userAgent, unfitForHeader):
		return nil, errors.New("retell: the API key or the user agent has characters that no header can carry")
	case err != nil || base.Host == "" || (base.Scheme != "http" && base.Scheme != "https") ||
		base.RawQuery != "" || base.ForceQuery || base.Fragment != "" || base.User != nil:
		return nil, errors.New("retell: the base URL must be http or https, a host and at most a path") // its text may hold secrets
	case o.config != nil && o.stack != nil:
		return nil, errors.New("retell: WithConfig and WithStack exclude each other")
	}
	c := &Client{
		apiKey: strings.TrimSpace(apiKey), userAgent: o.userAgent, host: base.Host, scheme: base.Scheme,
		base: strings.TrimRight(base.String(), "/"), prefix: strings.TrimRight(base.EscapedPath(), "/"),
	}
	c.Calls, c.BatchCalls, c.Chats = Calls{c}, BatchCalls{c}, Chats{c}
	c.Agents, c.PhoneNumbers, c.Voices = Agents{c}, PhoneNumbers{c}, Voices{c}
	c.Concurrency, c.APIKey = Concurrency{c}, APIKey{c}
	if err := c.build(o); err != nil {
		return nil, fmt.Errorf("retell: %w", err)
	}
	return c, nil
}

func unfitForHeader(r rune) bool { return r < 0x20 && r != '\t' || r == 0x7f }

// build makes the layers, or takes those that were given.
func (c *Client) build(o options) (err error) {
	c.stack = o.stack
	if o.transport == nil {
		c.idle = resilience.NewTransport() // the probe uses it, too
		o.transport = c.idle
	}
	if c.stack == nil {
		cfg := Config()
		if o.config != nil {
			cfg = *o.config
		}
		c.stack, err = resilience.New(c.complete(cfg, o.transport))
		if err != nil {
			return err
		}
		c.owns = true
	}
	c.transport = c.stack.Wrap(o.transport)
	return nil
}

// complete fills in what only a client knows.
func (c *Client) complete(cfg resilience.Config, base http.RoundTripper) resilience.Config {
	def := Config()
	if cfg.Describe == nil {
		cfg.Describe = def.Describe
	}
	if c.prefix != "" {
		cfg.Describe = c.below(cfg.Describe)
	}
	if cfg.Fallback.Cacheable == nil {
		cfg.Fallback.Cacheable = def.Fallback.Cacheable
	}
	if cfg.DLQ.Keep == nil {
		cfg.DLQ.Keep = def.DLQ.Keep
	}
	if cfg.DLQ.Authorize == nil {
		cfg.DLQ.Authorize = c.authorize
	}
	if r, ok := cfg.Idempotency.Reconcile.(*reconciler); cfg.Idempotency.Reconcile == nil || ok && r.client == nil {
		cfg.Idempotency.Reconcile = c.Reconciler()
	}
	if cfg.Health.Probe == nil {
		cfg.Health.Probe = c.prober(base)
	}
	cfg.Health = c.withConcurrency(cfg.Health, base)
	return cfg
}

// below lets describe see requests without the path of the base URL.
func (c *Client) below(describe func(*http.Request) resilience.Call) func(*http.Request) resilience.Call {
	return func(req *http.Request) resilience.Call {
		path, ok := strings.CutPrefix(req.URL.EscapedPath(), c.prefix)
		if !ok {
			return describe(req)
		}
		u := *req.URL
		u.RawPath = path
		u.Path, _ = url.PathUnescape(path) // it was unescaped before
		inner := *req
		inner.URL = &u
		return describe(&inner)
	}
}

// authorize puts the key on the redrive of a letter, but gives it to no other host: letters can be imported.
func (c *Client) authorize(_ context.Context, _ resilience.Letter, req *http.Request) error {
	if req.URL.Host != c.host || req.URL.Scheme != c.scheme {
		return errors.New("retell: the letter is for another host than the client")
	}
	req.Header.Set("Authorization", "Bearer "+c.apiKey)
	return nil
}

// prober asks for the API key's own data, past all layers: an open circuit or a cached answer says nothing of Retell.
func (c *Client) prober(base http.RoundTripper) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := c.read(ctx, base, "/get-api-key-info")
		if errors.Is(err, ErrRateLimited) {
			return nil // busy is alive
		}
		return err
	}
}

// Stack is the layers, to read their state, to steer them, and to Run them.
func (c *Client) Stack() *resilience.Stack { return c.stack }

// String names the client without its API key, which fmt would print.
func (c *Client) String() string { return "retell client of " + c.host }

// GoString is String.
func (c *Client) GoString() string { return c.String() }

// Transport is what the client sends through, all layers included. Hand-written requests may use it too, as the Transport of
// an http.Client: they share circuits, slots and keys.
func (c *Client) Transport() http.RoundTripper { return c.transport }

// Close ends the client: see Stack.Close, which it calls unless the stack came by [WithStack].
func (c *Client) Close(ctx context.Context) error {
	var err error
	if c.owns {
		err = c.stack.Close(ctx)
	}
	if c.idle != nil {
		c.idle.CloseIdleConnections()
	}
	return err
}

// Observe tells the layers of a call or chat that a webhook is about. One that a request with an idempotency key made settles
// that key: it is the fastest way out of doubt, and for chats and texts the only one. It is harmless for all other events.
func (c *Client) Observe(ctx context.Context, e *WebhookEvent) error {
	if e == nil {
		return nil
	}
	ev, ok := evidenceOf(e.Call)
	if !ok {
		ev, ok = evidenceOfChat(e.Chat)
	}
	if !ok {
		return nil
	}
	return c.stack.Idempotency.Observe(ctx, ev)
}
