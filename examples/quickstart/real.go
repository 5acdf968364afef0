package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/retell-resilience/resilience"
	"github.com/retell-resilience/resilience/retell"
)

// visitor is who goes to the real API, and whom it may call there; nobody if from and to are empty.
type visitor struct{ key, baseURL, from, to string }

// visit reads a few things from the real API and, if told whom, calls one person.
func visit(ctx context.Context, out io.Writer, v visitor) (err error) {
	t := newTeller(out)
	if v.baseURL == "" {
		v.baseURL = retell.DefaultBaseURL
	}
	t.sayf("start", "RETELL_API_KEY is set, so this talks to %s, and not to a server in a box", v.baseURL)
	if v.to == "" {
		t.sayf("start", "it only reads, and calls nobody; -from and -to would change that")
	} else {
		t.sayf("start", "it will call %s from %s", masked(v.to), masked(v.from))
	}
	cfg := retell.Config()
	cfg.OnEvent = t.hear
	client, err := retell.New(v.key, retell.WithBaseURL(v.baseURL), retell.WithConfig(cfg))
	if err != nil {
		return err
	}
	stop := runInBackground(ctx, client)
	defer func() { err = errors.Join(err, stop()) }()

	t.chapter("Reading")
	if err := t.readAll(ctx, client); err != nil {
		return err
	}
	if v.to == "" {
		return nil
	}
	t.chapter("Calling")
	return t.callOne(ctx, client, v)
}

// readAll goes on after a failure, so that one look shows all that is wrong, and returns whether there was any.
func (t *teller) readAll(ctx context.Context, client *retell.Client) error {
	reads := []struct {
		name string
		read func() (string, error)
	}{
		{"get-api-key-info", func() (string, error) {
			info, err := client.APIKey.Get(ctx)
			return show(info, err, func() string { return fmt.Sprintf("workspace %q", info.OrgName) })
		}},
		{"get-concurrency", func() (string, error) {
			now, err := client.Concurrency.Get(ctx)
			return show(now, err, func() string {
				return fmt.Sprintf("%d of %d calls under way, %d more fit", now.CurrentConcurrency, now.ConcurrencyLimit, now.OutboundHeadroom())
			})
		}},
		{"list-voices", func() (string, error) {
			voices, err := client.Voices.List(ctx)
			return show(voices, err, func() string { return fmt.Sprintf("%d voices", len(voices.Items)) })
		}},
		{"list-agents", func() (string, error) {
			agents, err := client.Agents.ListPage(ctx, retell.ListAgentsParams{})
			return show(agents, err, func() string { return fmt.Sprintf("%d agents on the first page", len(agents.Items)) })
		}},
	}
	failed := 0
	for _, r := range reads {
		text, err := r.read()
		if err != nil {
			failed++
			text = inWords(err)
		}
		t.sayf("read", "%-17s %s", r.name, text)
	}
	t.sayf("health", "%s", reportInWords(client.Stack().Health().Check(ctx)))
	if failed > 0 {
		return fmt.Errorf("%d of %d reads failed", failed, len(reads))
	}
	return nil
}

// show puts an answer into words, if there is one.
func show[T any](_ *T, err error, words func() string) (string, error) {
	if err != nil {
		return "", err
	}
	return words(), nil
}

// callOne dials once. The key holds the day and the numbers: run again on the same day it asks for the same call, which
// Retell itself remembers for an hour. To remember longer than this program runs, give the stack a durable store.
func (t *teller) callOne(ctx context.Context, client *retell.Client, v visitor) error {
	params := retell.CreatePhoneCallParams{FromNumber: v.from, ToNumber: v.to}
	key, err := resilience.DeriveKey("create-phone-call", params, "quickstart", time.Now().Format(time.DateOnly))
	if err != nil {
		return err
	}
	call, err := client.Calls.CreatePhoneCall(ctx, params, retell.IdempotencyKey(key))
	if err == nil {
		t.sayf("call", "%s  taken on as %s", masked(v.to), call.CallID)
		return nil
	}
	t.sayf("call", "%s  %s", masked(v.to), inWords(err))
	if !resilience.InDoubt(err) {
		return errors.New("the call was not placed")
	}
	err = await(ctx, "the look-up", func() bool {
		rec, err := client.Stack().Idempotency.Lookup(ctx, key)
		return err == nil && rec.State == resilience.KeyConfirmed
	})
	if err != nil {
		return fmt.Errorf("the call may have been placed: look into the call history before you try again: %w", err)
	}
	t.sayf("call", "%s  was placed", masked(v.to))
	return nil
}
