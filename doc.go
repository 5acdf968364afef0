// Package resilience keeps a Go service's calls to a remote HTTP API from doing harm: to the people at the other end, to
// the API, and to the service itself. It is made for Retell AI, whose API dials real phones, and knows nothing of it:
// that is package retell.
//
//	stack, err := resilience.New(resilience.Config{}) // every default is documented
//	if err != nil {
//		return err
//	}
//	client := &http.Client{Transport: stack.Wrap(nil)} // all requests take the road below
//	go stack.Run(ctx)                                  // redrives letters, settles keys in doubt
//	defer stack.Close(context.Background())
//
// # The road
//
// A request passes these doors from the top down, and its answer passes them from the bottom up:
//
//	caller
//	  └ budget        the total time for the call; every wait below obeys it
//	    └ fallback      the last good answer for reads, with its age, when everything below failed
//	      └ claim         one key, one execution: replay, join, refuse, or go on
//	        └ dlq           a write that failed for good is parked here
//	          └ retry         again, only if that cannot do harm
//	            └ bulkhead      a slot, by priority; a slot means "on the wire"
//	              └ breaker       is the other side alive?
//	                └ intent        "about to send" is recorded
//	                  └ attempt       connect and request limits for one try; the answer is read here
//	                    └ transport     net/http, or a fake
//
// Time and idempotency have two doors each. Everything local lies between them, so an open circuit or a full bulkhead never
// leaves a key in doubt. [Stack.String] prints the order; [Chain] is for programs with other wishes. Each layer can be used
// alone: make it with its New function and Wrap a transport.
//
// # What comes back
//
// A settled outcome is a response, whatever its status. An error comes back for a failure of the transport, for a refusal
// of ours, for a write that a dead letter owns now ([ErrParked]), and for one whose outcome is unknown. Two questions tell
// what to do with it:
//
//   - [NotSent]: it is proven that nothing happened. Try again when you like.
//   - [InDoubt]: it may have happened. Never send it again under another key; [Idempotency.Lookup] says how it stands, and
//     Run goes on finding out.
//
// When neither is true, nothing is known about the effect, and for a read or an idempotent write that does no harm.
//
// # Effects
//
// [Call] says what a repeat of a request would do. A read is retried, shared between callers who ask at the same time, and
// answered from the cache in an outage. An idempotent write is retried. A call that must happen once is sent again only
// when it is proven that it did not happen; once it is on the wire it goes on when its caller leaves, keeps its slot, and
// settles its key. Config.Describe tells the stack which is which; without it the HTTP method decides, and every POST happens
// once.
//
// # The states of a key
//
// Each line is a step that a key can take, and why. A test compares them with what the state machine does. A key that is
// sending, in doubt or disputed never expires.
//
//	free → claimed: claim
//
//	claimed → claimed: claim  (the lease is over, nothing was sent)
//	claimed → sending: intend  (written before the first byte leaves)
//	claimed → free: release  (a refusal of ours)
//	claimed → not_applied: release  (all that was sent was refused)
//	claimed → confirmed: evidence
//	claimed → disputed: answer  (late, after a person said that nothing happened)
//	claimed → disputed: evidence
//
//	sending → confirmed: answer
//	sending → claimed: answer  (a proof that it had no effect; a retry may follow)
//	sending → in_doubt: answer  (timeout, reset, 5xx, panic)
//	sending → in_doubt: expire  (its process died)
//	sending → confirmed: evidence  (a webhook was faster than the answer)
//	sending → disputed: evidence
//
//	in_doubt → confirmed: answer  (late)
//	in_doubt → not_applied: answer  (a late refusal of the only send)
//	in_doubt → in_doubt: answer
//	in_doubt → in_doubt: looked  (an empty look-up proves nothing)
//	in_doubt → confirmed: evidence
//	in_doubt → disputed: evidence
//	in_doubt → confirmed: resolve
//	in_doubt → not_applied: resolve
//	in_doubt → sending: resend  (only with ServerKeysTrust)
//	in_doubt → not_applied: assume absent  (only with AssumeAbsentAfter)
//
//	confirmed → confirmed: answer
//	confirmed → confirmed: evidence
//	confirmed → disputed: answer
//	confirmed → disputed: evidence  (another call under the same key)
//	confirmed → free: forget
//	confirmed → claimed: claim  (its retention is over)
//
//	not_applied → claimed: claim
//	not_applied → free: forget
//	not_applied → disputed: answer
//	not_applied → disputed: evidence
//
//	disputed → confirmed: resolve
//	disputed → not_applied: resolve
//	disputed → disputed: answer
//	disputed → disputed: evidence
//
// # What it does not promise
//
// One key, one request that may have taken effect: that is at most one request, not exactly one call. With the
// [MemoryStore] the promise ends with the process. Answers and bodies are held in memory, within bounds. Streams pass
// through unbounded.
package resilience
