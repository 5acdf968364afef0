package resilience_test

import (
	"context"
	"errors"
	"fmt"
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
