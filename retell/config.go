package retell

import "github.com/retell-resilience/resilience"

// Config is the layers tuned for Retell; change any field, then give it to resilience.New or [WithConfig].
//
//   - Describe is [Describe].
//   - Fallback keeps the last good answer only of reads about the owner's own configuration: agents, numbers, voices, flows
//     and so on. Calls, chats and contacts hold transcripts, recordings and other people's numbers; say yes in Cacheable to
//     keep them.
//   - Timeout is the default of package resilience. [Describe] gives create-phone-call 120 s for one try and its caller 60 s;
//     list-calls, list-chats, create-batch-call, create-chat-completion and agent-playground-completion 300 s for one try, as
//     Retell's own SDKs do, and so their callers 10 minutes, unless [Budget] or the context says less; uploads 120 s.
//   - DLQ keeps phone calls, texts, batches, updates and deletes, if their caller named a key. Web calls, chats, completions and
//     the control of live calls are of no use later.
//   - Idempotency marks what it sends, so that a lost call can be found: the metadata of calls and chats gets the member
//     "rk_key", create-phone-call gets Retell's own idempotency_key. A phone call whose metadata is not a JSON object is
//     refused. To look lost calls up it needs a client: see [Client.Reconciler].
//
// [New] adds what needs the API key: that look-up, DLQ.Authorize, Health.Probe, which asks get-api-key-info, and to
// Health.Checks "concurrency", which asks get-concurrency once per Health.ProbeEvery, past all layers, while health is read
// or the stack's Run is running. Its readings are "headroom" (how many more outbound calls fit: degraded when none does, or
// less than a twentieth of what may be used), "current", "limit" (the burst limit where burst is on) and "used" in percent;
// they are unknown where Retell does not say. A check of your own with that name takes its place, one without Run
// leaves it out.
func Config() resilience.Config {
	return resilience.Config{
		Describe:    Describe,
		Fallback:    resilience.FallbackConfig{Cacheable: cacheable},
		Idempotency: resilience.IdempotencyConfig{Reconcile: &reconciler{}},
		DLQ:         resilience.DLQConfig{Keep: keepLetter},
	}
}

// byOperation finds an endpoint by the name of its operation.
var byOperation = func() map[string]endpoint {
	m := make(map[string]endpoint, len(endpoints))
	for _, e := range endpoints {
		m[e.operation()] = e
	}
	return m
}()

// keepLetter says which failed writes the dead-letter queue takes: see the trait keep. One that the catalogue does not know
// stays with its caller.
func keepLetter(c resilience.Call) bool { return byOperation[c.Operation].traits&keep != 0 }

// cacheable says of which reads the last good answer is kept: see the trait cached.
func cacheable(c resilience.Call) bool { return byOperation[c.Operation].traits&cached != 0 }
