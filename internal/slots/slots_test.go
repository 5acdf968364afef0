package slots

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func book(b Bounds) *Book[string] {
	var k Book[string]
	k.SetBounds(b)
	return &k
}

func now() time.Duration { return time.Duration(time.Now().UnixNano()) }

func join(b *Book[string], name string, t Tier) *Waiter[string] {
	w := &Waiter[string]{Value: name, Tier: t, Since: now()}
	b.Join(w)
	return w
}

// drain gives everybody a slot in turn; one and the same slot, of the tier given.
func drain(b *Book[string], from Tier) []string {
	var order []string
	for b.Waiting() > 0 {
		b.GiveBack(from)
		w := b.Next(now(), 1)
		order, from = append(order, w.Value), w.Tier
	}
	return order
}

func TestIdleSlotsAreLent(t *testing.T) {
	b := book(Bounds{Guaranteed: [3]int{10, 5, 2}, Total: 17})
	for range 17 {
		require.True(t, b.Take(Bulk, 1))
	}
	require.False(t, b.Take(Critical, 1))
	require.Equal(t, 17, b.Numbers(Bulk).InUse)
}

func TestUrgencyOrdersThoseWhoBorrow(t *testing.T) {
	b := book(Bounds{Total: 1, Places: 9})
	require.True(t, b.Take(Normal, 1))
	for name, tier := range map[string]Tier{"c": Critical, "n": Normal, "b": Bulk} {
		join(b, name, tier)
	}
	require.Equal(t, []string{"c", "n", "b"}, drain(b, Normal))
}

func TestGuaranteeGoesBeforeUrgency(t *testing.T) {
	b := book(Bounds{Guaranteed: [3]int{1, 0, 1}, Total: 2, Places: 9})
	require.True(t, b.Take(Critical, 1))
	require.True(t, b.Take(Critical, 1))
	join(b, "c", Critical)
	join(b, "b", Bulk)
	b.GiveBack(Critical)
	require.Equal(t, "b", b.Next(now(), 1).Value)
	require.Nil(t, b.Next(now(), 1), "the total holds")
}

func TestAgeGoesBeforeUrgency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := book(Bounds{Total: 1, Places: 9, AgeAfter: time.Second})
		require.True(t, b.Take(Critical, 1))
		join(b, "b1", Bulk)
		time.Sleep(time.Millisecond)
		join(b, "n1", Normal)
		time.Sleep(time.Second - time.Millisecond)
		join(b, "c1", Critical)
		b.GiveBack(Critical)
		require.Equal(t, "b1", b.Next(now(), 1).Value, "exactly AgeAfter is aged")
		require.Equal(t, []string{"c1", "n1"}, drain(b, Bulk), "one millisecond less is not")
	})
}

func TestACrowdOfAgedGetsEverySecondSlotOfAGuarantee(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := book(Bounds{Guaranteed: [3]int{9, 0, 0}, Total: 1, Places: 9, AgeAfter: time.Second})
		require.True(t, b.Take(Bulk, 1))
		for _, name := range []string{"b1", "b2", "b3"} {
			join(b, name, Bulk)
		}
		time.Sleep(time.Minute)
		for _, name := range []string{"c1", "c2", "c3"} {
			join(b, name, Critical)
		}
		require.Equal(t, []string{"c1", "b1", "c2", "b2", "c3", "b3"}, drain(b, Bulk))
	})
}

func TestLimit(t *testing.T) {
	b := book(Bounds{Total: 10})
	for share, want := range map[float64]int{1: 10, 2: 10, 0.31: 4, 0.01: 1, 0: 1, -1: 1} {
		require.Equal(t, want, b.Limit(share), share)
	}
}

func TestWhatCriticalOnesTookOverStaysTaken(t *testing.T) {
	b := book(Bounds{Total: 1, Places: 2})
	require.True(t, b.Take(Critical, 1))
	for range 2 {
		join(b, "c", Critical)
		join(b, "b", Bulk)
	}
	require.False(t, b.HasPlace(Critical))
	require.Nil(t, b.Victim(Bulk))
	require.Nil(t, b.Victim(Normal))
	require.True(t, b.Leave(b.Victim(Critical)))
	join(b, "c", Critical)
	require.False(t, b.HasPlace(Bulk), "or the queues would grow without bound")
	join(b, "n", Normal)
	require.True(t, b.HasPlace(Normal), "which takes nothing from normal ones")
}

func TestNobodyTakesTheSlotThatSomebodyWaitsFor(t *testing.T) {
	b := book(Bounds{Total: 1, Places: 1})
	require.True(t, b.Take(Normal, 1))
	waiting := join(b, "n", Normal)
	b.GiveBack(Normal)
	require.False(t, b.Take(Critical, 1))
	require.Same(t, waiting, b.Next(now(), 1))
	require.False(t, b.Leave(waiting), "it waits no longer")
	require.Equal(t, 1, b.InUse())
}

// A model that sorts everybody who waits by the rule as it is written agrees with every choice over random histories,
// and no history breaks the bounds.
func TestAgainstTheRule(t *testing.T) {
	for seed := range uint64(40) {
		synctest.Test(t, func(t *testing.T) { againstTheRule(t, rand.New(rand.NewPCG(seed, 7))) })
	}
}

func againstTheRule(t *testing.T, rng *rand.Rand) {
	bounds := func() Bounds {
		return Bounds{
			Guaranteed: [3]int{rng.IntN(4), rng.IntN(3), rng.IntN(3)},
			Total:      1 + rng.IntN(8), Places: 1 + rng.IntN(5),
			AgeAfter: time.Duration(rng.IntN(3)) * time.Second,
		}
	}
	b := book(bounds())
	var waiting []*Waiter[string]
	var held [3]int
	passed, inUse := false, 0
	expected := func() *Waiter[string] {
		age := b.Bounds().AgeAfter
		aged := func(w *Waiter[string]) bool { return age > 0 && now()-w.Since >= age }
		best := func(among func(Tier) bool) *Waiter[string] {
			var all []*Waiter[string]
			for _, w := range waiting {
				if among(w.Tier) {
					all = append(all, w)
				}
			}
			if len(all) == 0 {
				return nil
			}
			return slices.MinFunc(all, func(x, y *Waiter[string]) int {
				switch ax, ay := aged(x), aged(y); {
				case ax != ay && ax:
					return -1
				case ax != ay:
					return 1
				case ax && x.Since != y.Since:
					return cmp.Compare(x.Since, y.Since)
				default:
					return int(x.Tier) - int(y.Tier) // MinFunc keeps the first of equals: arrival
				}
			})
		}
		first := best(func(Tier) bool { return true })
		owed := best(func(t Tier) bool { return held[t] < b.Bounds().Guaranteed[t] })
		if owed == nil || owed.Tier == first.Tier || aged(first) && passed {
			passed = false
			return first
		}
		passed = aged(first)
		return owed
	}
	settle := func() {
		for {
			var want *Waiter[string]
			if len(waiting) > 0 && inUse < b.Bounds().Total {
				want = expected()
			}
			got := b.Next(now(), 1)
			require.Same(t, want, got)
			if got == nil {
				return
			}
			waiting = slices.DeleteFunc(waiting, func(w *Waiter[string]) bool { return w == got })
			held[got.Tier]++
			inUse++
		}
	}
	for range 2000 {
		tier := Tier(rng.IntN(3))
		switch op := rng.IntN(20); {
		case op < 9: // somebody comes
			free := len(waiting) == 0 && inUse < b.Bounds().Total
			if got := b.Take(tier, 1); got {
				held[tier]++
				inUse++
				require.True(t, free)
				break
			}
			require.False(t, free, "an idle slot is never kept back")
			if !b.HasPlace(tier) {
				victim := b.Victim(tier)
				if victim == nil {
					break
				}
				require.True(t, b.Leave(victim))
				waiting = slices.DeleteFunc(waiting, func(w *Waiter[string]) bool { return w == victim })
			}
			waiting = append(waiting, join(b, "", tier))
		case op < 16: // somebody ends
			if held[tier] > 0 {
				b.GiveBack(tier)
				held[tier]--
				inUse--
			}
		case op < 18: // somebody gives up
			if len(waiting) > 0 {
				i := rng.IntN(len(waiting))
				require.True(t, b.Leave(waiting[i]))
				waiting = slices.Delete(waiting, i, i+1)
			}
		case op < 19:
			time.Sleep(time.Duration(rng.IntN(1500)) * time.Millisecond)
		default:
			b.SetBounds(bounds())
		}
		settle()
		require.Equal(t, inUse, b.InUse())
		require.Equal(t, len(waiting), b.Waiting())
		for i := range held {
			require.Equal(t, held[i], b.Numbers(Tier(i)).InUse)
		}
	}
}
