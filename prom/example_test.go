package prom_test

import (
	"context"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/retell-resilience/resilience/prom"
	"github.com/retell-resilience/resilience/retell"
	"github.com/retell-resilience/resilience/retell/retelltest"
)

func ExampleNewCollector() {
	ctx := context.Background()
	srv := retelltest.NewServer()
	defer srv.Close()
	client, err := retell.New(retelltest.DefaultKey, retell.WithTransport(srv.Transport()))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = client.Close(ctx) }()
	registry := prometheus.NewRegistry()
	registry.MustRegister(prom.NewCollector(client.Stack()))

	for range 2 { // the second one is answered from the record of the first
		_, err = client.Calls.CreatePhoneCall(ctx, retell.CreatePhoneCallParams{
			FromNumber: "+15550001000", ToNumber: "+15555550123",
		}, retell.IdempotencyKey("reminder:4711"))
		if err != nil {
			fmt.Println(err)
		}
	}
	families, err := registry.Gather()
	if err != nil {
		fmt.Println(err)
	}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			if m.GetCounter().GetValue() > 0 && len(m.GetLabel()) > 0 {
				fmt.Printf("%s{%s} %v\n", family.GetName(), m.GetLabel()[0].GetValue(), m.GetCounter().GetValue())
			}
		}
	}
	// Output:
	// resilience_breaker_calls_total{success} 1
	// resilience_bulkhead_granted_total{critical} 1
	// resilience_idempotency_calls_total{executed} 1
	// resilience_idempotency_calls_total{replayed} 1
}
