package boltstore

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
	"github.com/retell-resilience/resilience/storetest"
)

func open(t testing.TB, path string, opts Options) *Store {
	t.Helper()
	s, err := Open(path, opts)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

func TestConformance(t *testing.T) {
	paths := map[resilience.KeyStore]string{}
	start := func(opts Options) func(t *testing.T) resilience.KeyStore {
		return func(t *testing.T) resilience.KeyStore {
			path := filepath.Join(t.TempDir(), "keys.db")
			s := open(t, path, opts)
			paths[s] = path
			return s
		}
	}
	reopen := func(t *testing.T, old resilience.KeyStore) resilience.KeyStore {
		s, _ := old.(*Store)
		require.NoError(t, s.Close())
		next := open(t, paths[old], Options{})
		paths[next] = paths[old]
		return next
	}
	storetest.Run(t, start(Options{}), storetest.Reopen(reopen), storetest.Bounded(24, start(Options{MaxKeys: 24})))
}
