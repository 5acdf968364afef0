package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/retell-resilience/resilience"
	"github.com/retell-resilience/resilience/retell"
)

// workName is the name of the work in letters and events.
const workName = "webhook:event"

// receiver takes events from Retell, and gives each to a function of the program.
type receiver struct {
	client *retell.Client
	// events are layers of their own for what the program does with an event. Its database is another place than Retell:
	// an outage of one must not open the circuit of the other, nor hold up its letters.
	events *resilience.Stack
	// process stores an event or acts on it. It may see one again after a crash, so it should know what it has done by
	// WebhookEvent.Key, a unique column for example.
	process func(context.Context, *retell.WebhookEvent) error
	// safe is called after an event was parked and before Retell is told so. nil: a letter in memory is safe enough.
	safe func() error
}

// eventLayers is the config of the layers around process.
func eventLayers(onEvent func(resilience.Event)) resilience.Config {
	return resilience.Config{
		OnEvent: onEvent,
		// What happened in a call is worth knowing a day later, unlike the call itself.
		DLQ: resilience.DLQConfig{MaxAge: 24 * time.Hour, Attempts: -1},
		// Retell waits for ten seconds. What takes longer goes on as a letter.
		Timeout: resilience.TimeoutConfig{Request: 5 * time.Second, Total: 8 * time.Second},
	}
}

// newReceiver ties everything together. Use handler, and run the stacks of client and events.
func newReceiver(client *retell.Client, events *resilience.Stack, process func(context.Context, *retell.WebhookEvent) error) *receiver {
	r := &receiver{client: client, events: events, process: process}
	events.DLQ.Handle(workName, r.redrive)
	return r
}

// handler verifies signatures, and hands over each event once, however often it comes.
func (r *receiver) handler(apiKey string, onError func(error)) http.Handler {
	return retell.WebhookHandler(retell.WebhookConfig{APIKey: apiKey, Handle: r.receive, OnError: onError})
}

// receive returns nil once the event is processed or safe. With any other result Retell sends the event again.
func (r *receiver) receive(ctx context.Context, e *retell.WebhookEvent) error {
	if err := r.client.Observe(ctx, e); err != nil { // a call whose answer was lost is found again here
		return err
	}
	switch e.Event {
	case retell.EventTranscriptUpdated, retell.EventCallInbound, retell.EventChatInbound:
		return nil // of no use later, so nothing to keep
	}
	err := r.work(ctx, e)
	if errors.Is(err, resilience.ErrParked) && r.safe != nil {
		return r.safe() // if this fails, the event comes again, finds its letter and takes it over
	}
	if errors.Is(err, resilience.ErrParked) {
		return nil
	}
	return err // for example ErrLettersFull: Retell keeps it
}

// work processes an event on the road of r.events. A second delivery shares or replays the result of the first.
func (r *receiver) work(ctx context.Context, e *retell.WebhookEvent) error {
	ctx = resilience.WithIdempotencyKey(ctx, "webhook:"+e.Key())
	call := resilience.Call{
		Operation: workName,
		Effect:    resilience.EffectIdempotent, // process knows what it has done
		Params:    letterBody{Event: e.Raw},
	}
	_, err := resilience.Do(ctx, r.events, call, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, r.process(ctx, e)
	})
	return err
}

// letterBody is what a letter keeps of an event: its bytes, whatever they are.
type letterBody struct {
	Event []byte `json:"event"`
}

// redrive processes the event of a letter. The key in ctx makes the work a part of that letter.
func (r *receiver) redrive(ctx context.Context, l resilience.Letter) error {
	var kept letterBody
	if err := json.Unmarshal(l.Body, &kept); err != nil {
		return fmt.Errorf("%w: %w", resilience.ErrPoison, err)
	}
	e, err := retell.ParseWebhook(kept.Event)
	if err != nil {
		return fmt.Errorf("%w: %w", resilience.ErrPoison, err)
	}
	return r.work(ctx, e)
}
