package pgstore_test

import (
	"context"
	"database/sql"
	"log"
	"os"

	"github.com/retell-resilience/resilience/retell"
	pgstore "github.com/retell-resilience/resilience/store/postgres"
)

// Every instance of a service does this, with the same database.
func Example() { //nolint:testableexamples // it needs a database
	ctx := context.Background()
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
	config := retell.Config()
	config.Idempotency.Store = store
	client, err := retell.New(os.Getenv("RETELL_API_KEY"), retell.WithConfig(config))
	if err != nil {
		log.Print(err)
		return
	}
	ended := make(chan error, 1)
	go func() { ended <- client.Stack().Run(ctx) }() // looks lost calls up, of all instances
	defer func() { _ = client.Close(ctx); <-ended }()

	_, err = client.Calls.CreatePhoneCall(ctx, retell.CreatePhoneCallParams{
		FromNumber: "+15555550100", ToNumber: "+15555550123",
	}, retell.IdempotencyKey("reminder:4711:2026-11-23")) // whichever instance is asked, and however often: one call
	if err != nil {
		log.Print(err)
	}
}
