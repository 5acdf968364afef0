package body

import (
	"bytes"
	"io"
	"net/http"
	"slices"
	"strconv"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"
)

var readers = map[string]func(io.Reader) io.Reader{
	"as much as there is room for": func(r io.Reader) io.Reader { return r },
	"the end with the last bytes":  iotest.DataErrReader,
	"byte by byte":                 iotest.OneByteReader,
	"by halves":                    iotest.HalfReader,
}

func TestHold_TheWholeBodyWhateverWasAnnounced(t *testing.T) {
	for name, slice := range readers {
		for _, n := range []int{0, 1, 98, 511, 512, 513, 1024, 5000} {
			text := bytes.Repeat([]byte("x"), n)
			for _, announced := range []int{-1, 0, 1, n - 1, n, n + 1, 3 * n, maxTrusted + 1} {
				for _, limit := range []int{-1, n, n + 1} {
					resp := &http.Response{ContentLength: int64(announced), Body: io.NopCloser(slice(bytes.NewReader(text)))}
					require.NoError(t, Hold(resp, int64(limit)))
					held, ok := BytesOf(resp)
					require.True(t, ok)
					require.True(t, bytes.Equal(text, held), "%s: %d bytes, announced as %d, limited to %d", name, n, announced, limit)
				}
				if n > 0 {
					resp := &http.Response{ContentLength: int64(announced), Body: io.NopCloser(slice(bytes.NewReader(text)))}
					require.ErrorIs(t, Hold(resp, int64(n-1)), ErrTooLarge)
				}
			}
		}
	}
}

// Answers are kept in the memory they were read into, and counted by its capacity: a body of the length that was announced
// takes what the allocator gives for one byte more, all of which counts.
func TestHold_AnAnnouncedBodyTakesOneByteMore(t *testing.T) {
	for name, slice := range readers {
		for _, n := range []int{1, 98, 1024, 5000, 100_000} {
			t.Run(name+" "+strconv.Itoa(n), func(t *testing.T) {
				resp := &http.Response{ContentLength: int64(n), Body: io.NopCloser(slice(bytes.NewReader(make([]byte, n))))}
				require.NoError(t, Hold(resp, -1))
				held, _ := BytesOf(resp)
				require.Equal(t, cap(slices.Grow([]byte(nil), n+1)), cap(held))
			})
		}
	}
}
