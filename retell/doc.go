// Package retell is a client for the Retell AI API that does not ring twice.
//
//	client, err := retell.New(os.Getenv("RETELL_API_KEY"))
//	if err != nil { … }
//	call, err := client.Calls.CreatePhoneCall(ctx, retell.CreatePhoneCallParams{
//		FromNumber: "+15555550100", ToNumber: "+15555550123",
//	}, retell.IdempotencyKey("reminder:4711:2026-11-23"))
//
// It is typed where it matters: calls, batches, chats, agents, numbers, voices. [Do] reaches every other endpoint by the
// same road, and hand-written requests may go on as they are behind the layers of package resilience, with [Config].
//
// # What an error means
//
// Ask three questions, in this order:
//
//	resilience.InDoubt(err)               // it may have happened: do not call again under another key
//	errors.Is(err, resilience.ErrParked)  // it will be tried again without you
//	resilience.NotSent(err)               // nothing was sent: call again when you like, with the same key
//
// An [*Error] is what Retell answered; its Message may quote phone numbers and is therefore not in its text.
//
// # Requests and answers
//
// A field of a request that is zero is not sent. Where a zero means something else than nothing the field is a pointer,
// see [Ptr], or for maps an empty map that is not nil. In answers what is absent is zero, or nil where a zero would be news.
// All answers embed [Meta], with the JSON as it came: what Retell adds tomorrow is in Raw today. Enums are open strings.
//
// # The catalogue
//
// [Describe] knows of each endpoint whether a repeat does harm, how urgent it is, and how long it may take. See endpoints.go.
package retell
