package resilience

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// The cost of each step must not grow with what is stored, beyond the depth of a tree and what it costs to look at memory
// that no cache holds: the letters of the last step are those that nobody has touched for as long as there are others.
func BenchmarkDLQ(b *testing.B) {
	for _, n := range []int{1_000, 1_000_000} {
		d := dlqOf(b, n)
		b.Run(fmt.Sprintf("letters=%d/add+delete", n), func(b *testing.B) {
			l := Letter{ID: "x", Key: "x", Operation: "op", Call: Call{Resource: "r1"}}
			for b.Loop() {
				if d.Add(l) != nil || d.Delete("x", "") != nil {
					b.Fatal("it did not go in and out")
				}
			}
		})
		b.Run(fmt.Sprintf("letters=%d/lease+return", n), func(b *testing.B) {
			for b.Loop() {
				ls, _ := d.take(b.Context())
				d.conclude(ls, letterReturned, failure{})
				d.finish(ls)
			}
		})
		b.Run(fmt.Sprintf("letters=%d/add+lease+ack", n), func(b *testing.B) {
			for i := n; b.Loop(); i++ { // a new one comes, the oldest goes
				id := strconv.Itoa(i)
				if err := d.Add(Letter{ID: id, Key: id, Operation: "op", Next: time.Now()}); err != nil {
					b.Fatal(err)
				}
				ls, _ := d.take(b.Context())
				d.conclude(ls, letterDone, failure{status: 200})
				d.finish(ls)
			}
		})
		b.Run(fmt.Sprintf("letters=%d/stats", n), func(b *testing.B) {
			for b.Loop() {
				d.Stats()
			}
		})
	}
}

// The same where a store has to agree: one that takes no time, so this is what the queue adds to the time of the store's.
func BenchmarkDLQDurable(b *testing.B) {
	for _, callers := range []int{1, 64} {
		for _, n := range []int{1_000, 100_000} {
			b.Run(fmt.Sprintf("letters=%d/callers=%d/add+delete", n, callers), func(b *testing.B) {
				disk := newShelf()
				for i := range n {
					l := callLetter(i)
					disk.letters[l.ID] = l
				}
				d := mustDLQ(b, DLQConfig{MaxLetters: -1, MaxBytes: -1, Store: disk.open()})
				var next atomic.Int64
				next.Store(int64(n))
				byMany(b, callers, func() error {
					l := callLetter(int(next.Add(1)))
					return errors.Join(d.Add(l), d.Delete(l.ID, ""))
				})
			})
		}
	}
}

// byMany has so many callers at a time do it again and again.
func byMany(b *testing.B, callers int, do func() error) {
	b.Helper()
	if callers == 1 {
		for b.Loop() {
			if err := do(); err != nil {
				b.Fatal(err)
			}
		}
		return
	}
	b.SetParallelism(callers / 2) // for each of two cores
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := do(); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// callLetter is the i-th letter of a usual kind: a phone call.
func callLetter(i int) Letter {
	key := fmt.Sprintf("appointment-2026-11-24-%016d", i)
	return Letter{
		ID: fmt.Sprintf("019ab1f0-0000-7000-8000-%012d", i), Operation: "create-phone-call", Key: key, Named: true,
		Call:   Call{Operation: "create-phone-call", Effect: EffectOnce, Priority: PriorityCritical, Class: ClassRequest},
		Method: http.MethodPost, URL: "https://api.example.com/v2/" + strings.Clone("create-phone-call"),
		Header: http.Header{"Content-Type": {"application/json"}, "User-Agent": {"retell-go"}}, NeedsAuth: true,
		Body: fmt.Appendf(nil, `{"from_number":"+15550001111","to_number":"+15550002222","override_agent_id":"agent_0123456789abcdef0123456789",`+
			`"retell_llm_dynamic_variables":{"name":"Ann Example","time":"Tuesday at three","street":"1 Example Road"},"idempotency_key":"%s"}`, key),
		Cause: "status", Detail: fmt.Sprintf("status %d", 503), StatusCode: 503, First: time.Now(),
	}
}

// What a call pays that succeeds.
func BenchmarkDLQPass(b *testing.B) {
	d := dlqOf(b, 1_000)
	resp := &http.Response{StatusCode: 200}
	next := newDoor(nil, func(context.Context, *trip, *http.Request, leg) (*http.Response, error) { return resp, nil })
	t := &trip{call: Call{Operation: "op", Effect: EffectOnce, Resource: "none"}, key: "none", named: true}
	req, _ := http.NewRequestWithContext(context.Background(), http.MethodPost, "http://h/", nil)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := d.pass(context.Background(), t, req, next); err != nil {
			b.Fatal(err)
		}
	}
}

// dlqOf is a queue with n letters that came one after the other in the last hour and are due.
func dlqOf(b *testing.B, n int) *DLQ {
	d := mustDLQ(b, DLQConfig{MaxLetters: -1, MaxBytes: -1, MaxAge: 24 * time.Hour, Attempts: -1})
	begin := time.Now().Add(-time.Hour)
	for i := range n {
		id, first := strconv.Itoa(i), begin.Add(time.Hour/time.Duration(n)*time.Duration(i))
		l := &Letter{
			ID: id, Key: id, Operation: "op", Call: Call{Resource: "r" + strconv.Itoa(i%1000)},
			First: first, Next: first, Expires: first.Add(24 * time.Hour),
		}
		d.box.insert(l, nil)
	}
	d.box.oldestDue(time.Now()) // somebody has looked
	return d
}

// A page costs the same wherever it begins, and however many letters there are.
func BenchmarkDLQList(b *testing.B) {
	for _, n := range []int{1_000, 1_000_000} {
		d := dlqOf(b, n)
		all := d.view()
		for _, at := range []int{0, n / 2, n - 101} {
			f := LetterFilter{Limit: 100, After: all[at].letter.cursor()}
			b.Run(fmt.Sprintf("letters=%d/at=%d", n, at), func(b *testing.B) {
				for b.Loop() {
					if len(d.List(f)) != 100 {
						b.Fatal("that is no page")
					}
				}
			})
		}
	}
}

// What a letter takes, once it is alone with its first failure and once it has been redriven often, beside what is counted
// against MaxBytes.
func BenchmarkDLQMemory(b *testing.B) {
	const n = 100_000
	for _, failures := range []int{1, maxLetterHistory} {
		b.Run(fmt.Sprintf("failures=%d", failures), func(b *testing.B) {
			for b.Loop() {
				took, counted := letterMemory(b, n, failures, 0)
				b.ReportMetric(took, "B/letter")
				b.ReportMetric(counted, "counted-B/letter")
			}
		})
	}
}
