package pgstore_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
	pgstore "github.com/retell-resilience/resilience/store/postgres"
)

func benchStore(b *testing.B) *pgstore.Store {
	b.Helper()
	s, err := shared()
	require.NoError(b, err)
	if s == nil {
		b.Skip("no PostgreSQL is installed")
	}
	return open(b, connect(b, "pgx", s.dsn()), tableName())
}

// life is what a call writes: claimed, about to send, answered.
func life(b *testing.B, store *pgstore.Store, id string) {
	version := uint64(0)
	for _, state := range []resilience.KeyState{resilience.KeyClaimed, resilience.KeySending, resilience.KeyConfirmed} {
		rec := claimed(id)
		rec.State, rec.Expires = state, store.Now()
		if state == resilience.KeyConfirmed {
			rec.Body = make([]byte, 800)
		}
		next, swapped, err := store.CompareAndSwap(b.Context(), version, rec)
		if err != nil || !swapped {
			b.Errorf("%v, %v", swapped, err)
			return
		}
		version = next
	}
}

func BenchmarkCall(b *testing.B) {
	for _, writers := range []int{1, 16} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			store := benchStore(b)
			var n atomic.Int64
			b.ReportAllocs()
			if writers == 1 {
				for b.Loop() {
					life(b, store, fmt.Sprint(n.Add(1)))
				}
				return
			}
			b.SetParallelism(writers / 2) // for each of two cores
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					life(b, store, fmt.Sprint(n.Add(1)))
				}
			})
		})
	}
}

func BenchmarkLoad(b *testing.B) {
	store := benchStore(b)
	life(b, store, "a")
	b.ReportAllocs()
	for b.Loop() {
		if rec, err := store.Load(b.Context(), "a"); err != nil || rec.Version == 0 {
			b.Fatal(rec, err)
		}
	}
}
