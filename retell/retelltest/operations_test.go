package retelltest

import (
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Every endpoint is found by its path and answers: with its documented success, or with a refusal in Retell's shape
// because the made-up id or the empty body is wrong.
func TestEveryOperationAnswers(t *testing.T) {
	srv := NewServer()
	defer srv.Close()
	for _, o := range catalogue {
		path := "/" + strings.Join(o.path, "/")
		found, params := find(o.method, path)
		require.Same(t, o, found, path)
		require.Equal(t, strings.Count(path, "{"), len(params), path)
		req, err := http.NewRequestWithContext(t.Context(), o.method, "http://retell.test"+path, strings.NewReader("{}"))
		require.NoError(t, err)
		req.Header.Set("Authorization", "Bearer "+DefaultKey)
		resp, err := srv.Client().Do(req)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Contains(t, []int{o.status, 400, 404, 422}, resp.StatusCode, path)
		require.Equal(t, 1, srv.Requests(o.name)-before(o), path)
	}
}

// before returns how many rows of the catalogue with the same name come before o.
func before(o *operation) (n int) {
	for _, other := range byName[o.name] {
		if other == o {
			break
		}
		n++
	}
	return n
}
