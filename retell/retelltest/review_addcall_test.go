package retelltest_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience/retell/retelltest"
)

// A call that is put in place of one that was under way is not under way twice.
func TestAddCallInPlaceOfALiveOne(t *testing.T) {
	srv := retelltest.NewServer()
	defer srv.Close()
	id := dial(t, srv, "")
	srv.AddCall(map[string]any{"call_id": id})
	_, now := send(t, srv, "GET", "/get-concurrency", "")
	require.EqualValues(t, 0, now["current_concurrency"])
}
