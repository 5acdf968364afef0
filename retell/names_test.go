package retell_test

import (
	"context"
	"net/http"
	"time"

	"github.com/retell-resilience/resilience"
	"github.com/retell-resilience/resilience/retell"
	"github.com/retell-resilience/resilience/retell/retelltest"
)

// Programs outside of this repository are written against these names and signatures: this file compiles, or they do not.

var (
	_ func(string, ...retell.Option) (*retell.Client, error) = retell.New
	_ func(string) retell.Option                             = retell.WithBaseURL
	_ func(resilience.Config) retell.Option                  = retell.WithConfig
	_ func(*resilience.Stack) retell.Option                  = retell.WithStack
	_ func(http.RoundTripper) retell.Option                  = retell.WithTransport
	_ func(string) retell.Option                             = retell.WithUserAgent
	_ func() resilience.Config                               = retell.Config
	_ func(*http.Request) resilience.Call                    = retell.Describe
	_ func(string) retell.CallOption                         = retell.IdempotencyKey
	_ func(resilience.Priority) retell.CallOption            = retell.Priority
	_ func(time.Duration) retell.CallOption                  = retell.Budget
	_ func([]byte, string, string) error                     = retell.VerifyWebhook
	_ func(retell.WebhookConfig) http.Handler                = retell.WebhookHandler
	_ func(...retelltest.Option) *retelltest.Server          = retelltest.NewServer

	_ = retell.Error{Operation: "", StatusCode: 0, Message: "", RetryAfter: time.Duration(0)}
	_ = retell.WebhookEvent{}

	_ interface {
		Stack() *resilience.Stack
		Close(ctx context.Context) error
	} = (*retell.Client)(nil)
	_ interface {
		CreatePhoneCall(context.Context, retell.CreatePhoneCallParams, ...retell.CallOption) (*retell.PhoneCall, error)
	} = retell.Calls{}
	_ interface {
		URL() string
		Transport() http.RoundTripper
		Rings(number string) int
		Requests(operation string) int
		Close()
	} = (*retelltest.Server)(nil)
)
