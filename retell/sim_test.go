package retell_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
	"github.com/retell-resilience/resilience/retell"
	"github.com/retell-resilience/resilience/retell/retelltest"
)

// simSeeds is how many schedules of faults a simulation goes through; SIM_SEEDS sets it.
func simSeeds(t *testing.T) int64 {
	if n, err := strconv.ParseInt(os.Getenv("SIM_SEEDS"), 10, 64); err == nil && n > 0 {
		return n
	}
	if testing.Short() {
		return 5
	}
	return 10
}

const fromNumber = "+15550001000"

func number(i int) string { return fmt.Sprintf("+1555100%04d", i) }

// faulty is a day on which everything goes wrong.
func faulty(s *retelltest.Server, rng *rand.Rand) {
	share := func(most float64) float64 { return most * rng.Float64() }
	const op = "create-phone-call"
	s.Rate(op, share(0.25), retelltest.LostAnswer())
	s.Rate(op, share(0.1), retelltest.ResetBeforeEffect())
	s.Rate(op, share(0.1), retelltest.Refuse())
	s.Rate(op, share(0.05), retelltest.HangBeforeEffect())
	s.Rate(op, share(0.05), retelltest.HangAfterEffect())
	s.Rate(op, share(0.1), retelltest.Throttle(time.Second))
	s.Rate(op, share(0.1), retelltest.Status(500))
	s.Rate(op, share(0.05), retelltest.StatusAfterEffect(502))
	s.Rate(op, share(0.05), retelltest.TruncateBody(10))
	s.Rate(op, share(0.05), retelltest.LateEffect(20*time.Second, retelltest.ResetBeforeEffect()))
	s.Rate("list-calls", share(0.5), retelltest.Status(503))
	s.ListLag(time.Duration(rng.IntN(60)) * time.Second)
}

// asked is what one caller was told.
type asked struct {
	call *retell.PhoneCall
	err  error
}

// TestSim_OneKeyOneRing compares what the library claims with what rang, under random faults.
func TestSim_OneKeyOneRing(t *testing.T) {
	for seed := int64(1); seed <= simSeeds(t); seed++ {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { oneKeyOneRing(t, seed) })
		})
	}
}

func oneKeyOneRing(t *testing.T, seed int64) {
	const calls = 60
	rng := rand.New(rand.NewPCG(uint64(seed), 1))
	options := []retelltest.Option{retelltest.WithSeed(seed), retelltest.WithConcurrency(-1)}
	if seed%2 == 0 {
		options = append(options, retelltest.WithoutServerKeys()) // our promise must not depend on theirs
	}
	server := retelltest.NewServer(options...)
	defer server.Close()
	faulty(server, rng)
	client, err := retell.New("key_test", retell.WithTransport(server.Transport()))
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- client.Stack().Run(ctx) }()

	var mu sync.Mutex
	told := map[int][]asked{}
	var wg sync.WaitGroup
	for i := range calls {
		callers, patience := 1+rng.IntN(2), time.Duration(1+rng.IntN(90))*time.Second
		for range callers {
			start := time.Duration(rng.IntN(120)) * time.Second
			wg.Go(func() {
				time.Sleep(start)
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				call, err := client.Calls.CreatePhoneCall(ctx, retell.CreatePhoneCallParams{FromNumber: fromNumber, ToNumber: number(i)},
					retell.IdempotencyKey(fmt.Sprint("sim-", i)))
				mu.Lock()
				told[i] = append(told[i], asked{call, err})
				mu.Unlock()
			})
		}
	}
	wg.Wait()
	server.ClearFaults()
	server.Release()
	time.Sleep(3 * time.Hour) // look-ups and redrives have done their work
	stop()
	require.NoError(t, <-ended)

	letters := map[string]resilience.Letter{}
	for _, l := range client.Stack().DLQ.List(resilience.LetterFilter{}) {
		letters[l.Key] = l
	}
	for i := range calls {
		judge(t, client.Stack(), server, i, told[i], letters)
	}
	require.NoError(t, client.Close(context.Background()))
}

// judge holds one call's claims against the truth.
func judge(t *testing.T, stack *resilience.Stack, server *retelltest.Server, i int, told []asked, letters map[string]resilience.Letter) {
	key := fmt.Sprint("sim-", i)
	rings := server.Rings(number(i))
	require.LessOrEqual(t, rings, 1, "%s rang more than once", key)
	rec, err := stack.Idempotency.Lookup(context.Background(), key)
	require.NoError(t, err)
	letter, parked := letters[key]
	switch rec.State {
	case resilience.KeyConfirmed:
		require.Equal(t, 1, rings, "I2: confirmed means that it rang")
		require.False(t, parked, "a call that happened has no letter")
	case resilience.KeyNotApplied, resilience.KeyFree:
		require.Zero(t, rings, "I3, I4: a call that the record does not know")
	case resilience.KeyInDoubt:
		require.Zero(t, rings, "a call that can be found is not in doubt for ever")
	default:
		t.Errorf("%s ended as %v", key, rec.State)
	}
	for _, a := range told {
		switch {
		case a.err == nil:
			require.Equal(t, 1, rings, "a caller was told that it rang")
			require.NotEmpty(t, a.call.CallID)
		case resilience.NotSent(a.err):
			require.False(t, resilience.InDoubt(a.err))
		case errors.Is(a.err, resilience.ErrParked):
			require.True(t, rings == 1 || parked, "a letter is sent or kept: %v, %+v", a.err, letter)
		}
	}
}

// The same faults through a client that retries as SDKs do: it must ring somebody twice, or the simulation shows nothing.
func TestSim_APlainRetryingClientRingsTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		twice := 0
		for seed := int64(1); seed <= 5; seed++ {
			server := retelltest.NewServer(retelltest.WithSeed(seed), retelltest.WithConcurrency(-1))
			faulty(server, rand.New(rand.NewPCG(uint64(seed), 1)))
			for i := range 60 {
				plainRetry(t, server.Transport(), number(i))
			}
			for _, n := range server.AllRings() {
				if n > 1 {
					twice++
				}
			}
			server.Close()
		}
		require.Positive(t, twice)
		t.Logf("%d of 300 people were called more than once", twice)
	})
}

func plainRetry(t *testing.T, rt http.RoundTripper, to string) {
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://retell.test/v2/create-phone-call",
			strings.NewReader(fmt.Sprintf(`{"from_number":%q,"to_number":%q}`, fromNumber, to)))
		require.NoError(t, err)
		req.Header.Set("Authorization", "Bearer key_test")
		req.Header.Set("Content-Type", "application/json")
		resp, err := rt.RoundTrip(req)
		done := err == nil && resp.StatusCode < 500 && resp.StatusCode != 429
		if resp != nil {
			_ = resp.Body.Close()
		}
		cancel()
		if done {
			return
		}
	}
}
