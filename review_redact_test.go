package resilience

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestExport_AHeaderThatTookThePlaceOfOneWithoutAValueIsAnotherRequest(t *testing.T) {
	with := func(h http.Header) *Letter { return &Letter{Key: "k", Operation: "op", Header: h} }
	before := with(http.Header{"User-Agent": {}})
	require.True(t, sameRequest(before, with(http.Header{"User-Agent": {}})))
	require.False(t, sameRequest(before, with(http.Header{"X-Tenant": {"b"}})))
	require.False(t, sameRequest(with(http.Header{"X-Tenant": {"a"}}), with(http.Header{"X-Tenant": {"b"}})))
}
