package retell

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
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

	apiKey    string
	base      string // no slash at the end
	prefix    string // the escaped path of base
	userAgent string
	transport http.RoundTripper
}

// Option changes what [New] makes.
type Option func(*options)

type options struct {
	baseURL   string
	userAgent string
	transport http.RoundTripper
}

// WithBaseURL sends requests to another address than [DefaultBaseURL], such as a test server or a proxy. A path in it stands
// before the path of every request.
func WithBaseURL(u string) Option { return func(o *options) { o.baseURL = u } }

// WithTransport puts the layers around rt instead of a fresh HTTP/1.1 transport.
func WithTransport(rt http.RoundTripper) Option { return func(o *options) { o.transport = rt } }

// WithUserAgent sets the User-Agent header.
func WithUserAgent(s string) Option { return func(o *options) { o.userAgent = s } }

// New makes a client for the workspace of the API key. It starts nothing and sends nothing.
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
	case strings.ContainsAny(apiKey, "\r\n\x00"):
		return nil, errors.New("retell: the API key has characters that no header can carry")
	case err != nil || base.Host == "" || base.RawQuery != "" || base.Fragment != "" || base.User != nil:
		return nil, errors.New("retell: the base URL must be scheme, host and at most a path") // its text may hold secrets
	}
	c := &Client{
		apiKey: strings.TrimSpace(apiKey), userAgent: o.userAgent, transport: o.transport,
		base: strings.TrimRight(base.String(), "/"), prefix: strings.TrimRight(base.EscapedPath(), "/"),
	}
	if c.transport == nil {
		c.transport = http.DefaultTransport
	}
	c.attach()
	return c, nil
}

func (c *Client) attach() {
	c.Calls, c.BatchCalls, c.Chats = Calls{c}, BatchCalls{c}, Chats{c}
	c.Agents, c.PhoneNumbers, c.Voices = Agents{c}, PhoneNumbers{c}, Voices{c}
	c.Concurrency, c.APIKey = Concurrency{c}, APIKey{c}
}

// Close is a placeholder until the stack is there.
func (c *Client) Close(context.Context) error { return nil }
