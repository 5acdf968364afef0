package resilience

import (
	"context"
	"fmt"
	"net/http"
	"testing"
	"time"
)

// The cost of each step must not grow with what is stored, beyond the depth of a heap.
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
				d.conclude(ls, letterReturned, failure{}, 0)
				d.finish(ls)
			}
		})
		b.Run(fmt.Sprintf("letters=%d/add+lease+ack", n), func(b *testing.B) {
			old := time.Now().Add(-time.Minute) // the oldest, so the next
			l := Letter{ID: "x", Key: "x", Operation: "op", First: old, Next: old}
			for b.Loop() {
				if err := d.Add(l); err != nil {
					b.Fatal(err)
				}
				ls, _ := d.take(b.Context())
				d.conclude(ls, letterDone, failure{}, 200)
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

// What a call pays that succeeds.
func BenchmarkDLQPass(b *testing.B) {
	d := dlqOf(b, 1_000)
	resp := &http.Response{StatusCode: 200}
	next := newDoor(nil, func(*trip, *http.Request, leg) (*http.Response, error) { return resp, nil })
	t := &trip{call: Call{Operation: "op", Effect: EffectOnce, Resource: "none"}, key: "none", named: true}
	req, _ := http.NewRequestWithContext(context.Background(), http.MethodPost, "http://h/", nil)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := d.pass(t, req, next); err != nil {
			b.Fatal(err)
		}
	}
}

func dlqOf(b *testing.B, n int) *DLQ {
	d := mustDLQ(b, DLQConfig{MaxLetters: -1, MaxBytes: -1, MaxAge: 24 * time.Hour, Attempts: -1})
	now := time.Now()
	for i := range n {
		id := fmt.Sprint(i)
		l := &Letter{
			ID: id, Key: id, Operation: "op", Call: Call{Resource: fmt.Sprint("r", i%1000)},
			First: now, Next: now, Expires: now.Add(24 * time.Hour),
		}
		d.box.insert(l, nil)
	}
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
