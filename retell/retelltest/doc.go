// Package retelltest is a Retell server in a box, for tests of programs that call Retell's HTTP API. It keeps calls,
// chats, agents, numbers and the rest in memory, answers with the documented statuses and shapes, knows the truth (how
// often a phone really rang), and fails on demand: it refuses, resets, hangs, loses answers, throttles, lags.
//
//	srv := retelltest.NewServer()
//	defer srv.Close()
//	srv.Inject("create-phone-call", retelltest.LostAnswer())
//	// ... let the program under test dial through srv.Transport() or srv.URL() ...
//	// then ask srv.Rings("+15550001111") how often the phone rang.
//
// # Three ways in
//
//   - [Server.Transport], and [Server.Client] around it: in-process. No socket, no goroutine, every wait is on a channel
//     or a timer, so it works in a testing/synctest bubble, where a hanging request is durably blocked. Make the
//     server inside the bubble. The host of the URL does not matter.
//   - [Server.URL]: real HTTP on 127.0.0.1. The listener starts when URL or [Server.Listen] is first called.
//   - [Server.Handler]: to mount somewhere else, for example on an http.Server over net.Pipe.
//
// # Operations
//
// An operation is named by the words of its path, without version and parameters: "create-phone-call" is POST
// /v2/create-phone-call, "get-call" is GET /v2/get-call/{call_id}. [Operations] lists them. [Any] stands for all. A
// method that takes an operation panics when there is none of that name: a misspelt one would make a test pass for
// nothing.
//
// # What is known about Retell and what is assumed
//
// Statuses, bodies, filters, paging, and the one-hour idempotency_key of create-phone-call are as documented. Where the
// documentation is silent, the server does this:
//
//   - A call over the concurrency limit is refused with 429. A batch is not: all its calls start at once, and count.
//   - A replay of an idempotency_key answers the bytes of the first 201, also when the rest of the body differs. Only a
//     success is kept. The hour counts from the first use.
//   - Both ends of a "range" filter count. A value that is absent matches only "np". Unknown filters are a 400.
//   - Registered calls are listed (see [Server.HideRegistered]), sorted by the time of their making.
//   - stop-call of a call that is over, and end-chat of a chat that is over, answer 422.
//   - 50 kB of metadata are 50,000 bytes of JSON.
//   - Any E.164 number may be used as from_number, and any agent id as agent, whether it exists here or not.
//
// The less used operations have a plain in-memory behaviour: what was created can be read, listed, changed and deleted.
//
// # Determinism
//
// Ids and the decisions of [Server.Rate] come from the seed and a counter per operation (or per kind of id), not from a
// clock or a shared random source: the nth request of an operation meets the same fault in every run. Which of several
// concurrent requests is the nth is up to the scheduler.
package retelltest
