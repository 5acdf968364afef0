package pgstore_test

import (
	"context"
	"database/sql"
	"log"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/retell-resilience/resilience/retell"
	pgstore "github.com/retell-resilience/resilience/store/postgres"
)

// Every instance of a service does this, with the same database.
func Example() { //nolint:testableexamples // it needs a database
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	db, err := sql.Open("pgx", os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = db.Close() }() // last
	store, err := pgstore.Open(ctx, db, pgstore.Options{})
	if err != nil {
		log.Print(err)
		return
	}
	letters, err := store.Letters(ctx)
	if err != nil {
		log.Print(err)
		return
	}
	defer func() { _ = letters.Close() }()
	config := retell.Config()
	config.Idempotency.Store = store
	config.DLQ.Store = letters
	client, err := retell.New(os.Getenv("RETELL_API_KEY"), retell.WithConfig(config))
	if err != nil {
		log.Print(err)
		return
	}
	ended := make(chan error, 1)
	go func() { ended <- client.Stack().Run(ctx) }() // redrives letters; looks lost calls up, of all instances
	go func() {
		for ctx.Err() == nil { // what instances left that are gone
			if _, err := letters.TakeOver(ctx, client.Stack().DLQ); err != nil {
				log.Print(err)
			}
			select {
			case <-time.After(time.Minute):
			case <-ctx.Done():
			}
		}
	}()
	defer func() { _ = client.Close(context.Background()); <-ended }()

	_, err = client.Calls.CreatePhoneCall(ctx, retell.CreatePhoneCallParams{
		FromNumber: "+15555550100", ToNumber: "+15555550123",
	}, retell.IdempotencyKey("reminder:4711:2026-11-23")) // whichever instance is asked, and however often: one call
	if err != nil {
		log.Print(err)
	}
}
