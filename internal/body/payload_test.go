package body

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"
)

// source counts how often it is closed.
type source struct {
	io.Reader
	closed int
}

func (s *source) Close() error { s.closed++; return nil }

// A body that breaks off must reach nobody as a shorter one that is whole.
func TestRead_ABodyThatBreaksOffIsNeverWhole(t *testing.T) {
	broken := errors.New("broken")
	for _, begin := range []string{"", "begin"} {
		rc := &source{Reader: io.MultiReader(strings.NewReader(begin), iotest.ErrReader(broken))}
		p := Read(rc, -1, 1<<10)
		_, whole := p.Bytes()
		require.False(t, whole)
		body, again, size, err := p.Open()
		require.NoError(t, err)
		require.Nil(t, again)
		require.EqualValues(t, -1, size)
		got, err := io.ReadAll(body)
		require.ErrorIs(t, err, broken)
		require.Equal(t, begin, string(got))
		_, _, _, err = p.Open()
		require.ErrorIs(t, err, ErrSpent)
		p.Release()
		require.Equal(t, 1, rc.closed)
	}
}

func TestRead_AWholeBodyIsClosedAtOnce(t *testing.T) {
	rc := &source{Reader: strings.NewReader("text")}
	p := Read(rc, 4, 4)
	require.Equal(t, 1, rc.closed)
	b, whole := p.Bytes()
	require.True(t, whole)
	require.Equal(t, "text", string(b))
	p.Release()
	require.Equal(t, 1, rc.closed)
}

func TestRead_WhatDoesNotFitIsSentOnce(t *testing.T) {
	for _, limit := range []int64{0, 3} {
		rc := &source{Reader: iotest.OneByteReader(strings.NewReader("text"))}
		p := Read(rc, 4, limit)
		require.Zero(t, rc.closed)
		_, whole := p.Bytes()
		require.False(t, whole)
		body, _, size, err := p.Open()
		require.NoError(t, err)
		require.EqualValues(t, 4, size)
		got, err := io.ReadAll(body)
		require.NoError(t, err)
		require.Equal(t, "text", string(got))
		require.NoError(t, body.Close())
		require.Equal(t, 1, rc.closed)
		_, _, _, err = p.Open()
		require.ErrorIs(t, err, ErrSpent)
	}
	whole := Read(&source{Reader: bytes.NewReader(make([]byte, 1<<20))}, -1, -1)
	b, ok := whole.Bytes()
	require.True(t, ok, "without a limit everything fits")
	require.Len(t, b, 1<<20)
}

func TestRead_NoBody(t *testing.T) {
	require.Nil(t, Read(nil, 0, 1))
	require.Nil(t, Read(http.NoBody, 0, 1))
}

// A response body that stays open holds a connection.
func TestHold_ClosesWhateverBecomesOfIt(t *testing.T) {
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		from io.Reader
		want error
	}{
		"read":      {strings.NewReader("text"), nil},
		"too large": {strings.NewReader("texts"), ErrTooLarge},
		"broken":    {iotest.ErrReader(broken), broken},
	} {
		rc := &source{Reader: c.from}
		err := Hold(&http.Response{Body: rc, ContentLength: -1}, 4)
		require.ErrorIs(t, err, c.want, name)
		require.Equal(t, 1, rc.closed, name)
	}
}

// brief takes two bytes of whatever it gets.
type brief struct{ got []byte }

func (w *brief) Write(p []byte) (int, error) {
	n := min(2, len(p))
	w.got = append(w.got, p[:n]...)
	return n, nil
}

func TestHeld_WriteToGoesOnWhereItWas(t *testing.T) {
	h, w := NewHeld([]byte("text!")), new(brief)
	for range 2 {
		n, err := h.WriteTo(w)
		require.EqualValues(t, 2, n)
		require.ErrorIs(t, err, io.ErrShortWrite)
	}
	n, err := h.WriteTo(w)
	require.EqualValues(t, 1, n)
	require.NoError(t, err)
	n, err = h.WriteTo(w)
	require.Zero(t, n)
	require.NoError(t, err)
	require.Equal(t, "text!", string(w.got))
}

func TestCopy_HasATrailerOfItsOwn(t *testing.T) {
	resp := &http.Response{Body: NewHeld([]byte("text")), Header: http.Header{"A": {"1"}}, Trailer: http.Header{"B": {"2"}}}
	c := Copy(resp)
	c.Header.Set("A", "changed")
	c.Trailer.Set("B", "changed")
	_, err := io.ReadAll(c.Body)
	require.NoError(t, err)
	require.Equal(t, http.Header{"A": {"1"}}, resp.Header)
	require.Equal(t, http.Header{"B": {"2"}}, resp.Trailer)
	left, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, "text", string(left))
}
