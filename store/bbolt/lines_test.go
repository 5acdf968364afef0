package boltstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/bbolt"

	"github.com/retell-resilience/resilience"
)

func putDue(t *testing.T, s *Store, n int) (versions map[string]uint64) {
	t.Helper()
	versions = map[string]uint64{}
	for i := range n {
		rec := claim(fmt.Sprintf("due-%04d", i), "a")
		rec.State, rec.Expires = resilience.KeyConfirmed, s.Now()
		versions[rec.ID] = swap(t, s, 0, rec)
	}
	return versions
}

// A sweep takes so many at a time, in one commit each.
func TestSweep_InChunks(t *testing.T) {
	s := open(t, keysFile(t), Options{})
	putDue(t, s, 2*sweepChunk)
	before := s.Stats().Commits
	n, err := s.Sweep(t.Context(), 1000, nil)
	require.NoError(t, err)
	require.Equal(t, 2*sweepChunk, n)
	require.EqualValues(t, 2, s.Stats().Commits-before)
}

// What has moved on while it was asked about is not removed, and costs no sync.
func TestSweep_WhatMovedOnCostsNothing(t *testing.T) {
	s := open(t, keysFile(t), Options{})
	versions := putDue(t, s, 3)
	before := s.Stats().Commits
	n, err := s.Sweep(t.Context(), 1000, func(id string) bool {
		swap(t, s, versions[id], claim(id, "again"))
		return false
	})
	require.NoError(t, err)
	require.Zero(t, n)
	require.EqualValues(t, 3, s.Stats().Commits-before)
	require.EqualValues(t, 3, s.Stats().Keys)
}

// A commit of a sweep that fails is the sweep's error, and removed nothing.
func TestSweep_SaysThatItFailed(t *testing.T) {
	s := open(t, keysFile(t), Options{})
	putDue(t, s, 3)
	fault := errors.New("the sync failed")
	n, err := s.Sweep(t.Context(), 1000, func(string) bool {
		s.fail(fault)
		return false
	})
	require.ErrorIs(t, err, fault)
	require.Zero(t, n)
}

// Who comes too late need not wait for a commit to hear it.
func TestQueue_WhoIsTooLateDoesNotWait(t *testing.T) {
	path := keysFile(t)
	synctest.Test(t, func(t *testing.T) {
		s, err := Open(path, Options{})
		require.NoError(t, err)
		swap(t, s, 0, claim("key", "a"))
		s.turn <- struct{}{} // a commit is under way
		told := make(chan bool, 1)
		go func() {
			_, swapped, err := s.CompareAndSwap(t.Context(), 0, claim("key", "b"))
			told <- swapped || err != nil
		}()
		synctest.Wait()
		require.Len(t, told, 1)
		require.False(t, <-told)
		<-s.turn
		require.NoError(t, s.Close())
	})
}

func TestStats_SizesAndCounts(t *testing.T) {
	path := keysFile(t)
	s := open(t, path, Options{})
	version := uint64(0)
	for n := range 20 {
		rec := claim("key", "a")
		rec.Body = make([]byte, 10_000*n)
		version = swap(t, s, version, rec)
	}
	swap(t, s, 0, claim("other", "a"))
	free := s.Stats().FreeBytes
	swap(t, s, version, resilience.Record{ID: "key", State: resilience.KeyFree})
	require.Greater(t, s.Stats().FreeBytes, free)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, info.Size(), s.Stats().FileBytes)
	require.LessOrEqual(t, s.Stats().FreeBytes, info.Size())
	require.NoError(t, s.Close())
	require.EqualValues(t, 1, open(t, path, Options{}).Stats().Unsettled)
}

// A file that was cut off is refused without the check, too: the end of a map cannot be read.
func TestOpen_CutFileWithoutTheCheck(t *testing.T) {
	path := keysFile(t)
	s := open(t, path, Options{})
	for i := range 20 {
		rec := claim(fmt.Sprint(i), "a")
		rec.Body = make([]byte, 10_000)
		swap(t, s, 0, rec)
	}
	var used int64
	require.NoError(t, s.db.View(func(tx *bbolt.Tx) error { used = tx.Size(); return nil }))
	require.NoError(t, s.Close())
	require.NoError(t, os.Truncate(path, used))
	require.NoError(t, open(t, path, Options{SkipCheck: true}).Close())
	require.NoError(t, os.Truncate(path, used-1))
	_, err := Open(path, Options{SkipCheck: true})
	require.ErrorIs(t, err, ErrCorrupt)
	require.ErrorContains(t, err, "cut off")
}

// Damage to both pages that say what the file is, is damage.
func TestOpen_BothMetaPages(t *testing.T) {
	for name, change := range map[string]func(meta []byte){
		"checksum": func(meta []byte) { meta[metaSize]++ },
		"version": func(meta []byte) {
			native.PutUint32(meta[4:], 77)
			sum := fnv.New64a()
			_, _ = sum.Write(meta[:metaSize])
			binary.NativeEndian.PutUint64(meta[metaSize:], sum.Sum64())
		},
	} {
		content, _ := soundFile(t)
		page := os.Getpagesize()
		for _, at := range []int{pageHead, page + pageHead} {
			change(content[at:])
		}
		path := keysFile(t)
		require.NoError(t, os.WriteFile(path, content, 0o600))
		_, err := Open(path, Options{LockTimeout: time.Millisecond})
		require.ErrorIs(t, err, ErrCorrupt, name)
	}
}
