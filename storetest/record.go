package storetest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"reflect"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
)

func name(prefix string, i int) string { return fmt.Sprintf("%s-%04d", prefix, i) }

// full is a record in which no field is zero.
func full(t *testing.T, n int) resilience.Record {
	t.Helper()
	var rec resilience.Record
	fill(t, reflect.ValueOf(&rec).Elem(), "Record", n)
	rec.ID = name("full", n)
	return rec
}

// requireSame compares field by field, and names the field that got lost.
func (s *suite) requireSame(t *testing.T, want, got resilience.Record) {
	t.Helper()
	w, g := reflect.ValueOf(want), reflect.ValueOf(got)
	for i := range w.NumField() {
		field := "Record." + w.Type().Field(i).Name
		a, b := w.Field(i).Interface(), g.Field(i).Interface()
		at, ok := a.(time.Time)
		if !ok {
			require.Equal(t, a, b, field)
			continue
		}
		bt, _ := b.(time.Time)
		require.Equal(t, at.IsZero(), bt.IsZero(), "%s: the zero time", field)
		require.LessOrEqual(t, bt.Sub(at).Abs(), s.precision, "%s: %v became %v", field, at, bt)
	}
}

func (s *suite) fields(t *testing.T) {
	st := s.start(t)
	for n, state := range append(unsettled, finished...) {
		rec := full(t, n)
		rec.State = state
		rec = st.put(0, rec)
		s.requireSame(t, rec, st.load(rec.ID))

		other := full(t, n+100) // every field changes
		other.ID, other.State = rec.ID, rec.State
		other = st.put(rec.Version, other)
		s.requireSame(t, other, st.load(rec.ID))

		empty := resilience.Record{ID: rec.ID, State: state} // no field stays behind
		empty = st.put(other.Version, empty)
		s.requireSame(t, empty, st.load(rec.ID))
		s.requireSame(t, st.put(empty.Version, rec), st.load(rec.ID))
	}
	page, _, err := st.Unsettled(t.Context(), "", 100)
	require.NoError(t, err)
	require.Len(t, page, len(unsettled))
	for _, rec := range page {
		s.requireSame(t, st.load(rec.ID), rec) // a page has whole records
	}
}

// absence: a body that was never seen is not an empty one, nor is a header.
func (s *suite) absence(t *testing.T) {
	st := s.start(t)
	rec := settled("key", st.Now().Add(time.Hour))
	rec = st.put(0, rec)
	require.Nil(t, st.load("key").Body, "no body became one")
	require.Nil(t, st.load("key").Header, "no header became one")
	rec.Body, rec.Header = []byte{}, http.Header{}
	rec = st.put(rec.Version, rec)
	require.Equal(t, []byte{}, st.load("key").Body, "an empty body became none")
	require.Equal(t, http.Header{}, st.load("key").Header, "an empty header became none")
	rec.Body, rec.Header = nil, nil
	st.put(rec.Version, rec)
	require.Nil(t, st.load("key").Body)
	require.Nil(t, st.load("key").Header)
}

func (s *suite) largeBodies(t *testing.T) {
	st := s.start(t)
	random := rand.NewChaCha8([32]byte{1})
	for i, size := range []int{1, 4095, 4096, 4097, 64 << 10, 64<<10 + 1, 1 << 20} {
		rec := settled(name("key", i), st.Now().Add(time.Hour))
		rec.Body = make([]byte, size)
		_, _ = random.Read(rec.Body) // it never fails
		rec = st.put(0, rec)
		require.True(t, bytes.Equal(rec.Body, st.load(rec.ID).Body), "a body of %d bytes", size)
		rec.Body = rec.Body[:size/2]
		rec = st.put(rec.Version, rec)
		require.True(t, bytes.Equal(rec.Body, st.load(rec.ID).Body), "a body of %d bytes", size/2)
	}
}

// scribble changes everything in a record that is shared with its copies.
func scribble(rec resilience.Record) {
	v := reflect.ValueOf(rec)
	for i := range v.NumField() {
		switch f := v.Field(i); f.Kind() {
		case reflect.Slice:
			for k := range f.Len() {
				f.Index(k).SetZero()
			}
		case reflect.Map:
			for _, key := range f.MapKeys() {
				if values := f.MapIndex(key); values.Kind() == reflect.Slice {
					for k := range values.Len() {
						values.Index(k).SetZero()
					}
				}
				f.SetMapIndex(key, reflect.Value{})
			}
		}
	}
}

func (s *suite) copiesIn(t *testing.T) {
	st := s.start(t)
	passed := st.put(0, full(t, 1))
	scribble(passed)
	want := full(t, 1)
	want.Version = passed.Version
	s.requireSame(t, want, st.load(want.ID))
}

func (s *suite) copiesOut(t *testing.T) {
	st := s.start(t)
	want := full(t, 1)
	want.Version = st.put(0, full(t, 1)).Version
	scribble(st.load(want.ID))
	s.requireSame(t, want, st.load(want.ID))
	page, _, err := st.Unsettled(t.Context(), "", 10)
	require.NoError(t, err)
	require.Len(t, page, 1)
	scribble(page[0])
	s.requireSame(t, want, st.load(want.ID))

	kept := st.load(want.ID)
	next := full(t, 2) // of the same size
	next.ID = want.ID
	st.remove(st.put(want.Version, next))
	for n := range 50 { // what was loaded does not change under whoever has it
		st.put(0, full(t, n+10))
	}
	s.requireSame(t, want, kept)
}

// atomic: a record that is being replaced is the old one or the new one, whole.
func (s *suite) atomic(t *testing.T) {
	st := s.start(t)
	version := func(n int) resilience.Record {
		rec := claim("key", fmt.Sprint(n))
		rec.Body = bytes.Repeat([]byte{byte(n)}, 20_000)
		return rec
	}
	rec := st.put(0, version(0))
	done := make(chan struct{})
	go func() {
		defer close(done)
		at := rec.Version
		for n := range 60 {
			next, swapped, err := st.CompareAndSwap(t.Context(), at, version(n))
			if err != nil || !swapped {
				t.Errorf("CompareAndSwap: %v, %v", swapped, err)
				return
			}
			at = next
		}
	}()
	defer func() { <-done }() // whatever becomes of the rest
	for over := false; !over; {
		select {
		case <-done:
			over = true
		default:
		}
		page, _, err := st.Unsettled(t.Context(), "", 10)
		require.NoError(t, err)
		require.Len(t, page, 1, "it is gone while it is replaced")
		for _, got := range append(page, st.load("key")) {
			n, err := strconv.Atoi(got.Token)
			require.NoError(t, err, "it is gone while it is replaced")
			require.True(t, bytes.Equal(version(n).Body, got.Body), "half of it is another one's")
		}
	}
}
