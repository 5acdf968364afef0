package pgstore

import (
	"context"
	"database/sql"
	_ "embed"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// Options of [Open]. The zero value is the documented default.
type Options struct {
	// Table is the name of the table of keys, "resilience_keys" if empty: lower-case letters, digits and _, at most 40 of them. That of
	// letters has "_letters" behind it. They lie in the first schema of the connections' search_path. Services that share a database need a table or a schema each:
	// each looks after all keys that it finds.
	Table string
	// AllowLoss accepts a server that may lose what it has acknowledged (fsync or synchronous_commit is off), for tests and
	// development. Capabilities then says that the store is not durable.
	AllowLoss bool
}

const defaultTable = "resilience_keys"

func (o Options) table() (string, error) {
	if o.Table == "" {
		return defaultTable, nil
	}
	if !regexp.MustCompile(`^[a-z_][a-z0-9_]{0,39}$`).MatchString(o.Table) {
		return "", fmt.Errorf("pgstore: Options.Table: must be 1 to 40 lower-case letters, digits and _, not beginning with a digit, got %q", o.Table)
	}
	return o.Table, nil
}

//go:embed schema.sql
var schema string

// Schema returns what [Open] creates, for programs that may not: run it as somebody who may. It does nothing where the table is
// there already.
func (o Options) Schema() (string, error) {
	table, err := o.table()
	if err != nil {
		return "", err
	}
	return strings.ReplaceAll(schema, defaultTable, table), nil
}

// Open returns the store in a table, which it creates if it is not there. It refuses, with an error that says which setting
// and what it should be, a server on which the promises do not hold: a standby, one that acknowledges what is not on its
// disk, one whose transactions are not READ COMMITTED by default. ctx is for Open alone.
func Open(ctx context.Context, db *sql.DB, opts Options) (*Store, error) {
	table, err := opts.table()
	if err != nil {
		return nil, err
	}
	if db == nil {
		return nil, errors.New("pgstore: a database is needed")
	}
	durable, err := check(ctx, db)
	if err == nil && !durable && !opts.AllowLoss {
		err = errors.New("pgstore: fsync or synchronous_commit is off: what was acknowledged may be lost; turn them on, or say AllowLoss")
	}
	if err != nil {
		return nil, err
	}
	if err := create(ctx, db, table, opts); err != nil {
		return nil, err
	}
	s := &Store{db: db, table: table, durable: durable, sql: newStatements(table)}
	if _, err := db.ExecContext(ctx, s.sql.probe); err != nil {
		return nil, fmt.Errorf("pgstore: table %s is not what Options.Schema describes: %w", table, err)
	}
	if err := s.readClock(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// check asks what connections of this pool get from the server.
func check(ctx context.Context, db *sql.DB) (durable bool, err error) {
	var readOnly, fsync, commit, isolation string
	err = db.QueryRowContext(ctx, `SELECT current_setting('transaction_read_only'), current_setting('fsync'),
		current_setting('synchronous_commit'), current_setting('default_transaction_isolation')`).Scan(&readOnly, &fsync, &commit, &isolation)
	switch {
	case err != nil:
		return false, fmt.Errorf("pgstore: %w", err)
	case readOnly == "on": // as on every standby
		return false, errors.New("pgstore: nothing can be written: connect to the primary (target_session_attrs=read-write)")
	case isolation != "read committed": // a write that lost a race would be an error there
		return false, fmt.Errorf("pgstore: default_transaction_isolation is %q: it must be read committed", isolation)
	}
	return fsync == "on" && commit != "off", nil
}

// create makes the tables and their indexes. Who finds them there needs no right to make any; of several who do not, one goes first.
func create(ctx context.Context, db *sql.DB, table string, opts Options) error {
	if there, err := exist(ctx, db, table, lettersTable(table)); there || err != nil {
		return err
	}
	statements, err := opts.Schema()
	if err != nil {
		return err
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("pgstore: %w", err)
	}
	defer func() { _ = tx.Rollback() }() // after Commit it does nothing
	if _, err := tx.ExecContext(ctx, `SELECT pg_advisory_xact_lock(hashtext($1))`, "pgstore:"+table); err != nil {
		return fmt.Errorf("pgstore: %w", err)
	}
	for _, statement := range strings.Split(statements, ";\n") {
		if strings.TrimSpace(statement) == "" {
			continue
		}
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("pgstore: creating table %s, which Options.Schema describes: %w", table, err)
		}
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("pgstore: %w", err)
	}
	return nil
}

func exist(ctx context.Context, db *sql.DB, keys, letters string) (both bool, err error) {
	err = db.QueryRowContext(ctx, `SELECT to_regclass($1) IS NOT NULL AND to_regclass($2) IS NOT NULL`, keys, letters).Scan(&both)
	if err != nil {
		return false, fmt.Errorf("pgstore: %w", err)
	}
	return both, nil
}
