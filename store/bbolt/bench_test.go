package boltstore

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
	"github.com/retell-resilience/resilience/internal/codec"
)

// answered is a record of the usual size.
func answered(s *Store, id string) resilience.Record {
	now := s.Now()
	return resilience.Record{
		ID: id, State: resilience.KeyConfirmed, Operation: "create-phone-call", Fingerprint: "f1:0123456789abcdef0123456789abcdef",
		Owner: "owner", Token: "token", Epoch: 2, Lease: now, Sends: 1, Claimed: now, Sent: now, Settled: now, Expires: now,
		CallID: "call_0123456789abcdef", Status: 201, Header: http.Header{"Content-Type": {"application/json"}}, Body: make([]byte, 800),
	}
}

func benchmarkSwap(b *testing.B, writers int) {
	s := open(b, keysFile(b), Options{MaxKeys: -1})
	b.SetParallelism((writers + 1) / 2) // for each of two cores
	var id atomic.Int64
	if writers == 1 {
		version := uint64(0)
		for b.Loop() {
			version = swap(b, s, version, answered(s, "key"))
		}
	} else {
		b.RunParallel(func(pb *testing.PB) {
			key, version := fmt.Sprint(id.Add(1)), uint64(0)
			for pb.Next() {
				version = swap(b, s, version, answered(s, key))
			}
		})
	}
	st := s.Stats()
	b.ReportMetric(float64(st.Writes)/b.Elapsed().Seconds(), "writes/s")
	b.ReportMetric(float64(st.Writes)/float64(st.Commits), "writes/commit")
}

func BenchmarkCompareAndSwap1(b *testing.B)  { benchmarkSwap(b, 1) }
func BenchmarkCompareAndSwap64(b *testing.B) { benchmarkSwap(b, 64) }

// filled is a store with n records, in few commits.
func filled(b *testing.B, path string, n int, keep time.Duration) *Store {
	b.Helper()
	s := open(b, path, Options{MaxKeys: -1})
	for at := 0; at < n; at += 5000 {
		require.NoError(b, s.do(context.Background(), 0, func(bt *batch) error {
			for i := at; i < min(at+5000, n); i++ {
				rec := answered(s, fmt.Sprintf("%026d", (i*7919)%n))
				rec.Expires = rec.Expires.Add(keep)
				if _, _, _, err := bt.swap(0, rec); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	return s
}

func BenchmarkLoad(b *testing.B) {
	s := filled(b, keysFile(b), 100_000, 0)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			if rec, err := s.Load(context.Background(), fmt.Sprintf("%026d", i*7919%100_000)); err != nil || rec.Version == 0 {
				b.Fatal(err)
			}
		}
	})
}

// One sweep, of 1024 records, in a store with many that are due.
func BenchmarkSweep1024(b *testing.B) {
	const n = 100_000
	var s *Store
	left := 0
	for b.Loop() {
		if left < 1024 {
			b.StopTimer()
			s, left = filled(b, filepath.Join(b.TempDir(), "keys.db"), n, 0), n
			b.StartTimer()
		}
		removed, err := s.Sweep(context.Background(), 1024, func(string) bool { return false })
		require.NoError(b, err)
		left -= removed
	}
}

// A sweep among many records of which all are pinned, and one among as many that are not due.
func BenchmarkSweepPinned(b *testing.B) {
	benchmarkIdleSweep(b, 0)
}

func BenchmarkSweepNothing(b *testing.B) {
	benchmarkIdleSweep(b, time.Hour)
}

func benchmarkIdleSweep(b *testing.B, keep time.Duration) {
	b.Helper()
	s := filled(b, keysFile(b), 100_000, keep)
	all := func(string) bool { return true }
	for b.Loop() {
		if n, err := s.Sweep(context.Background(), 1024, all); n != 0 || err != nil {
			b.Fatal(n, err)
		}
	}
}

func BenchmarkOpen100k(b *testing.B)          { benchmarkOpen(b, Options{}) }
func BenchmarkOpen100kSkipCheck(b *testing.B) { benchmarkOpen(b, Options{SkipCheck: true}) }

func benchmarkOpen(b *testing.B, opts Options) {
	b.Helper()
	path := keysFile(b)
	require.NoError(b, filled(b, path, 100_000, 0).Close())
	for b.Loop() {
		s, err := Open(path, opts)
		require.NoError(b, err)
		require.NoError(b, s.Close())
	}
}

// A queue of letters over a file: what a caller waits for until a letter is on the disk, and until its removal is.
func benchmarkLetters(b *testing.B, callers int) {
	b.Helper()
	s := open(b, keysFile(b), Options{})
	queue, err := resilience.NewDLQ(resilience.DLQConfig{Store: s.Letters()})
	require.NoError(b, err)
	var n atomic.Int64
	inAndOut := func() error {
		l := sampleLetter()
		l.ID, l.Body = fmt.Sprint(n.Add(1)), make([]byte, 400)
		l.Key = l.ID
		return errors.Join(queue.Add(l), queue.Delete(l.ID, ""))
	}
	if callers == 1 {
		for b.Loop() {
			require.NoError(b, inAndOut())
		}
	} else {
		b.SetParallelism(callers / 2) // for each of two cores
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if err := inAndOut(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	st := s.Stats()
	b.ReportMetric(float64(n.Load())/b.Elapsed().Seconds(), "letters/s")
	b.ReportMetric(2*float64(n.Load())/float64(st.Commits), "writes/commit")
}

func BenchmarkLetters1(b *testing.B)  { benchmarkLetters(b, 1) }
func BenchmarkLetters64(b *testing.B) { benchmarkLetters(b, 64) }

// A process that starts over a file with many letters.
func BenchmarkLoadLetters100k(b *testing.B) {
	const n = 100_000
	s := open(b, keysFile(b), Options{})
	for at := 0; at < n; at += 5000 {
		require.NoError(b, s.do(context.Background(), 0, func(bt *batch) error {
			bucket, err := bt.tx.CreateBucketIfNotExists(bucketLetters)
			if err != nil {
				return err
			}
			bt.changed = true
			for i := at; i < at+5000; i++ {
				l := sampleLetter()
				l.ID, l.Body = fmt.Sprintf("%012d", i), make([]byte, 400)
				l.Key = l.ID
				if err := bucket.Put([]byte(l.ID), codec.EncodeLetter(l)); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	b.ResetTimer()
	for b.Loop() {
		queue, err := resilience.NewDLQ(resilience.DLQConfig{Store: s.Letters()})
		require.NoError(b, err)
		require.Equal(b, n, queue.Len())
	}
}
