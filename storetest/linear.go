package storetest

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
)

// What a client asked of a register, and what it was told. The register of a key holds a version and a token; version 0
// and no token: there is no record.
type (
	question struct {
		key    string
		write  bool
		old    uint64
		token  string
		remove bool
	}
	reply struct {
		version uint64
		token   string
		swapped bool
	}
	register struct {
		version uint64
		token   string
	}
)

// model is a compare-and-swap register for each key.
var model = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byKey := map[string][]porcupine.Operation{}
		for _, op := range history {
			q, _ := op.Input.(question)
			byKey[q.key] = append(byKey[q.key], op)
		}
		var parts [][]porcupine.Operation
		for _, part := range byKey {
			parts = append(parts, part)
		}
		return parts
	},
	Init: func() any { return register{} },
	Step: func(state, input, output any) (bool, any) {
		at, _ := state.(register)
		q, _ := input.(question)
		r, _ := output.(reply)
		switch {
		case !q.write:
			return r.version == at.version && r.token == at.token, at
		case !r.swapped:
			return q.old != at.version, at
		case q.old != at.version:
			return false, at
		case q.remove:
			return r.version == 0, register{}
		}
		return r.version != 0 && r.version != at.version, register{r.version, q.token}
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v: %+v", input, output) },
}

// linearizable looks at what many clients saw, and asks whether it can have come from one register after another.
func (s *suite) linearizable(t *testing.T) {
	const clients, keys, steps = 8, 3, 60
	st := s.start(t)
	began := time.Now()
	var mu sync.Mutex
	var history []porcupine.Operation
	var failure error
	together(clients, func(c int) {
		random := rand.New(rand.NewPCG(uint64(c), 1)) //nolint:gosec // a test that can be repeated
		known := map[string]uint64{}                  // what this client saw last; it may be stale
		for n := range steps {
			q := question{key: name("key", random.IntN(keys)), token: fmt.Sprintf("%d/%d", c, n)}
			q.write = random.IntN(3) > 0
			q.remove = q.write && random.IntN(4) == 0
			q.old = known[q.key]
			call := time.Since(began).Nanoseconds()
			r, err := ask(t, st, q)
			back := time.Since(began).Nanoseconds()
			mu.Lock()
			if err != nil {
				failure = err
			}
			history = append(history, porcupine.Operation{ClientId: c, Input: q, Call: call, Output: r, Return: back})
			mu.Unlock()
			switch {
			case err != nil:
				return
			case !q.write, r.swapped:
				known[q.key] = r.version
			}
		}
	})
	require.NoError(t, failure)
	switch result := porcupine.CheckOperationsTimeout(model, history, time.Minute); result {
	case porcupine.Ok:
	case porcupine.Unknown:
		t.Skip("too much for the checker on this machine")
	default:
		t.Fatalf("what %d clients saw of %d keys cannot have come from one register for each", clients, keys)
	}
}

func ask(t *testing.T, st resilience.KeyStore, q question) (reply, error) {
	if !q.write {
		rec, err := st.Load(t.Context(), q.key)
		return reply{version: rec.Version, token: rec.Token}, err
	}
	rec := claim(q.key, q.token)
	if q.remove {
		rec.State = resilience.KeyFree
	}
	version, swapped, err := st.CompareAndSwap(t.Context(), q.old, rec)
	return reply{version: version, swapped: swapped}, err
}
