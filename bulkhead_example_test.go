package resilience_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"sync"
	"time"

	"github.com/retell-resilience/resilience"
)

// Bulk work may use every slot that nobody else wants. A call that is more urgent gets the next one that comes free.
func ExampleBulkhead_Acquire() {
	bulkhead, err := resilience.NewBulkhead(resilience.BulkheadConfig{
		Critical: 1, Normal: -1, Bulk: 1, Queue: -1,
	})
	if err != nil {
		panic(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()

	first, _ := bulkhead.Acquire(ctx, resilience.PriorityBulk)
	second, _ := bulkhead.Acquire(ctx, resilience.PriorityBulk) // borrowed from the critical tier
	_, err = bulkhead.Acquire(ctx, resilience.PriorityBulk)
	fmt.Println(errors.Is(err, resilience.ErrFull), resilience.NotSent(err))

	second()
	release, err := bulkhead.Acquire(ctx, resilience.PriorityCritical)
	fmt.Println(err)
	s := bulkhead.Stats()
	fmt.Println(s.InUse, "of", s.Total, "in use,", s.Bulk.Rejected, "rejected")

	release()
	first()
	first() // harmless
	fmt.Println(bulkhead.Stats().InUse)
	// Output:
	// true true
	// <nil>
	// 2 of 2 in use, 1 rejected
	// 0
}

// The workspace may have more calls at once from now on, and later fewer. Nobody who is on the wire is disturbed.
func ExampleBulkhead_Resize() {
	bounds := resilience.BulkheadConfig{Critical: 1, Normal: -1, Bulk: 1, Queue: -1}
	bulkhead, err := resilience.NewBulkhead(bounds)
	if err != nil {
		fmt.Println(err)
		return
	}
	call := func() {
		_, err := bulkhead.Acquire(context.Background(), resilience.PriorityCritical) // never given back: a long call
		s := bulkhead.Stats()
		fmt.Println(s.InUse, "of", s.Total, "- refused:", errors.Is(err, resilience.ErrFull))
	}
	call()
	call()
	call()

	bounds.Critical = 2 // start from what you had: a field left zero is the default, not "as before"
	fmt.Println("resize:", bulkhead.Resize(bounds))
	call()

	bounds.Critical = 1
	fmt.Println("resize:", bulkhead.Resize(bounds))
	call()
	// Output:
	// 1 of 2 - refused: false
	// 2 of 2 - refused: false
	// 2 of 2 - refused: true
	// resize: <nil>
	// 3 of 3 - refused: false
	// resize: <nil>
	// 3 of 2 - refused: true
}

// While the only slot is taken, three calls come to wait. The most urgent one goes first, though it came last.
func ExampleWithPriority() {
	bulkhead, err := resilience.NewBulkhead(resilience.BulkheadConfig{Total: 1})
	if err != nil {
		fmt.Println(err)
		return
	}
	client := &http.Client{Transport: bulkhead.Wrap(resilience.RoundTripFunc(func(req *http.Request) (*http.Response, error) {
		fmt.Println(req.URL.Path)
		return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: http.NoBody}, nil
	}))}
	release, _ := bulkhead.Acquire(context.Background(), resilience.PriorityNormal)
	var calls sync.WaitGroup
	get := func(path string, p resilience.Priority) {
		waiting := bulkhead.Stats().Waiting
		calls.Go(func() {
			ctx := resilience.WithPriority(context.Background(), p)
			req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "https://api.example.com"+path, nil)
			if resp, err := client.Do(req); err == nil {
				_ = resp.Body.Close()
			}
		})
		for bulkhead.Stats().Waiting == waiting { // so that they come in this order
			runtime.Gosched()
		}
	}
	get("/nightly-report", resilience.PriorityBulk)
	get("/settings", resilience.PriorityNormal)
	get("/somebody-is-on-the-line", resilience.PriorityCritical)
	release()
	calls.Wait()
	// Output:
	// /somebody-is-on-the-line
	// /settings
	// /nightly-report
}
