package retell_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/retell-resilience/resilience"
	"github.com/retell-resilience/resilience/retell"
	"github.com/retell-resilience/resilience/retell/retelltest"
	"github.com/stretchr/testify/require"
)

// configured is against with a config.
func configured(t *testing.T, cfg resilience.Config, test func(*testing.T, *retell.Client, *retelltest.Server), opts ...retelltest.Option) {
	synctest.Test(t, func(t *testing.T) {
		srv := retelltest.NewServer(opts...)
		defer srv.Close()
		c, err := retell.New("key_test", retell.WithTransport(srv.Transport()), retell.WithConfig(cfg))
		require.NoError(t, err)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- c.Stack().Run(ctx) }()
		test(t, c, srv)
		stop()
		require.NoError(t, <-ended)
		require.NoError(t, c.Close(context.Background()))
	})
}

func answer(status int, body string) *http.Response {
	return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body))}
}
