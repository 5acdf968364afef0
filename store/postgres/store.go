// Package pgstore keeps idempotency keys in a PostgreSQL table: a durable [resilience.KeyStore] for a service that runs as
// several processes, on one machine or many. Whichever of them a request reaches, a key that another holds is not sent. With
// [Store.Letters] it keeps their dead letters as well, which outlive the process that wrote them.
//
//	db, err := sql.Open("pgx", os.Getenv("DATABASE_URL")) // or any other driver for PostgreSQL
//	…
//	store, err := pgstore.Open(ctx, db, pgstore.Options{})
//	…
//	config.Idempotency.Store = store
//
// # What it promises
//
// A write that was acknowledged is committed: it survives the process, and the server as far as that keeps its word. Each
// write is one statement on one row, compared and swapped there, so that writes are atomic and linearizable however many
// processes there are. Versions come from a sequence, and never come again. Leases and expiry go by the server's clock.
//
// The promises are the server's. After a failover to a replica that did not have the last commits, keys are as the replica
// has them, and a call whose record was lost may be made again: let commits wait for the replica (synchronous_standby_names).
// What a connection reaches must be the primary: say target_session_attrs=read-write where the address has several hosts.
//
// # Why not Redis
//
// A store of keys must not forget what it has acknowledged, or a phone rings twice. Redis acknowledges a write before its disk has
// it, unless each write is synced (appendfsync always), and a failover loses what the replica had not got. Whoever has a Redis that
// keeps its word writes a store for it with package storetest.
//
// # What it stores
//
// A row has the id (a hash; the key itself is not there), a version, what people who look into the table want to see, what
// the two indexes need, and the record as bytes. Answers of calls, with what they say about people, are in those bytes in
// clear. A row that was written by a newer version of this library, with what this one does not know, is an error that
// wraps [ErrNewer]; one that was changed by somebody else wraps [ErrCorrupt].
//
// It starts no goroutine. Keys hold no connection between calls, [Letters] hold one; the pool is the program's, and so is its size.
package pgstore

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/retell-resilience/resilience"
	"github.com/retell-resilience/resilience/internal/codec"
)

var (
	// ErrCorrupt means that a row does not hold what this package wrote.
	ErrCorrupt = codec.ErrDamaged
	// ErrNewer means that a row was written by a version of this library that knows more than this one.
	ErrNewer = codec.ErrNewer
)

// Store is a key store in a table. It is safe for concurrent use, and needs no closing: the database is the program's.
type Store struct {
	db      *sql.DB
	table   string
	durable bool
	sql     statements
	clock   clock
}

var _ resilience.KeyStore = (*Store)(nil)

// statements with the name of the table in them.
type statements struct {
	probe, load, insert, update, remove, unsettled, due, sweep string
}

func newStatements(table string) statements {
	with := func(text string) string { return strings.ReplaceAll(text, "KEYS", table) }
	return statements{
		probe: with(`SELECT id, version, state, operation, unsettled, expires, record FROM KEYS LIMIT 0`),
		load:  with(`SELECT version, record FROM KEYS WHERE id = $1`),
		insert: with(`INSERT INTO KEYS (id, state, operation, unsettled, expires, record) VALUES ($1, $2, $3, $4, $5, $6)
			ON CONFLICT (id) DO NOTHING RETURNING version`),
		update: with(`UPDATE KEYS SET version = DEFAULT, state = $2, operation = $3, unsettled = $4, expires = $5, record = $6
			WHERE id = $1 AND version = $7 RETURNING version`),
		remove:    with(`DELETE FROM KEYS WHERE id = $1 AND version = $2 RETURNING version`),
		unsettled: with(`SELECT id, version, record FROM KEYS WHERE unsettled AND id > $1 ORDER BY id LIMIT $2`),
		due: with(`SELECT id, version, expires FROM KEYS
			WHERE expires <= $1 AND (expires, id) > ($2, $3) ORDER BY expires, id LIMIT $4`),
		sweep: with(`DELETE FROM KEYS USING json_to_recordset($1::json) AS due (id text, version bigint)
			WHERE KEYS.id = due.id AND KEYS.version = due.version`),
	}
}

// Load implements [resilience.KeyStore].
func (s *Store) Load(ctx context.Context, id string) (resilience.Record, error) {
	if id == "" || !storable(id) { // no record can have it
		return resilience.Record{}, nil
	}
	s.measure(ctx)
	var version uint64
	var record []byte
	err := s.db.QueryRowContext(ctx, s.sql.load, id).Scan(&version, &record)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return resilience.Record{}, nil
	case err != nil:
		return resilience.Record{}, failed(err)
	}
	return decode(id, version, record)
}

func decode(id string, version uint64, record []byte) (resilience.Record, error) {
	rec, err := codec.DecodeRecord(id, record)
	if err != nil {
		return resilience.Record{}, failed(err)
	}
	rec.Version = version
	return rec, nil
}

// storable says whether an id can be a text in PostgreSQL. The library's own have 26 plain characters.
func storable(id string) bool {
	return utf8.ValidString(id) && !strings.Contains(id, "\x00") && len(id) <= maxID
}

// maxID bounds ids: an index takes no longer ones than 2,700 bytes.
const maxID = 1024

// CompareAndSwap implements [resilience.KeyStore]. An error proves nothing about the write, except one about the id.
func (s *Store) CompareAndSwap(ctx context.Context, old uint64, rec resilience.Record) (version uint64, swapped bool, err error) {
	if rec.ID == "" || !storable(rec.ID) {
		return 0, false, fmt.Errorf("key store: Record.ID: must be 1 to %d bytes of UTF-8 without a zero, has %d", maxID, len(rec.ID))
	}
	if old > math.MaxInt64 { // no record has it
		return 0, false, ctx.Err()
	}
	s.measure(ctx)
	removal := rec.State == resilience.KeyFree
	var row *sql.Row
	switch {
	case old == 0 && removal: // there must be none, and then there is nothing to do
		rec, err := s.Load(ctx, rec.ID)
		return 0, err == nil && rec.Version == 0, err
	case removal:
		row = s.db.QueryRowContext(ctx, s.sql.remove, rec.ID, int64(old))
	case old == 0:
		row = s.db.QueryRowContext(ctx, s.sql.insert, columns(rec)...)
	default:
		row = s.db.QueryRowContext(ctx, s.sql.update, append(columns(rec), int64(old))...)
	}
	err = row.Scan(&version)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return 0, false, nil
	case err != nil:
		return 0, false, failed(err)
	case removal:
		return 0, true, nil
	}
	return version, true, nil
}

// columns are the values of a row but for its version, which is the server's: that in the bytes means nothing.
func columns(rec resilience.Record) []any {
	rec.Version = 1
	finished := rec.State == resilience.KeyConfirmed || rec.State == resilience.KeyNotApplied
	expires := sql.NullTime{Time: roundUp(rec.Expires), Valid: finished}
	return []any{rec.ID, rec.State.String(), plain(rec.Operation), !finished, expires, codec.EncodeRecord(rec)}
}

// plain is a text without what PostgreSQL cannot hold.
func plain(text string) string { return strings.ToValidUTF8(strings.ReplaceAll(text, "\x00", ""), "") }

// roundUp is the first moment that PostgreSQL can tell which is not before t: it keeps microseconds.
func roundUp(t time.Time) time.Time {
	t = t.UTC()
	if down := t.Truncate(time.Microsecond); !down.Equal(t) {
		return down.Add(time.Microsecond)
	}
	return t
}

// Unsettled implements [resilience.KeyStore]. It reads the records that it returns, and no others.
func (s *Store) Unsettled(ctx context.Context, cursor string, limit int) (page []resilience.Record, next string, err error) {
	if !storable(cursor) {
		return nil, "", errors.New("key store: the cursor is none that this store gave")
	}
	s.measure(ctx)
	ask := sql.NullInt64{Int64: int64(limit) + 1, Valid: limit > 0 && limit < math.MaxInt} // one more shows whether this is the end
	rows, err := s.db.QueryContext(ctx, s.sql.unsettled, cursor, ask)
	if err != nil {
		return nil, "", failed(err)
	}
	defer func() { _ = rows.Close() }() // rows.Err has said it
	for rows.Next() {
		if ask.Valid && len(page) == limit {
			return page, page[limit-1].ID, nil
		}
		var id string
		var version uint64
		var record []byte
		if err := rows.Scan(&id, &version, &record); err != nil {
			return nil, "", failed(err)
		}
		rec, err := decode(id, version, record)
		if err != nil {
			return nil, "", err
		}
		page = append(page, rec)
	}
	if err := rows.Err(); err != nil {
		return nil, "", failed(err)
	}
	return page, "", nil
}

// sweepChunk bounds what one statement removes, so that nobody waits long behind it.
const sweepChunk = 500

// dueKey is an expired record as it was when it was looked at.
type dueKey struct {
	ID      string `json:"id"`
	Version int64  `json:"version"`
	expires time.Time
}

// Sweep implements [resilience.KeyStore], 500 at a time. It reads what has expired and nothing else; what is pinned it looks
// at in each sweep again. A record that was claimed or settled anew meanwhile has another version, and stays. Several
// processes may sweep at once.
func (s *Store) Sweep(ctx context.Context, limit int, pinned func(id string) bool) (removed int, err error) {
	s.measure(ctx)
	now := s.Now().Truncate(time.Microsecond)
	at := dueKey{expires: time.Time{}.Add(-time.Microsecond)} // before all
	for removed < limit {
		due, err := s.due(ctx, now, at)
		if err != nil || len(due) == 0 {
			return removed, err
		}
		at = due[len(due)-1]
		victims := make([]dueKey, 0, len(due))
		for _, k := range due {
			if len(victims) < limit-removed && (pinned == nil || !pinned(k.ID)) {
				victims = append(victims, k)
			}
		}
		n, err := s.removeAll(ctx, victims)
		removed += n
		if err != nil {
			return removed, err
		}
	}
	return removed, nil
}

// due returns the next expired ones after the one at which the last chunk ended.
func (s *Store) due(ctx context.Context, now time.Time, at dueKey) (due []dueKey, err error) {
	rows, err := s.db.QueryContext(ctx, s.sql.due, now, at.expires, at.ID, sweepChunk)
	if err != nil {
		return nil, failed(err)
	}
	defer func() { _ = rows.Close() }() // rows.Err has said it
	for rows.Next() {
		var k dueKey
		if err := rows.Scan(&k.ID, &k.Version, &k.expires); err != nil {
			return nil, failed(err)
		}
		due = append(due, k)
	}
	if err := rows.Err(); err != nil {
		return nil, failed(err)
	}
	return due, nil
}

func (s *Store) removeAll(ctx context.Context, keys []dueKey) (removed int, err error) {
	if len(keys) == 0 {
		return 0, nil
	}
	list, err := json.Marshal(keys) // every driver knows a text; what they make of an array differs
	if err != nil {
		return 0, failed(err)
	}
	result, err := s.db.ExecContext(ctx, s.sql.sweep, string(list))
	if err != nil {
		return 0, failed(err)
	}
	n, err := result.RowsAffected()
	if err != nil {
		return 0, failed(err)
	}
	return int(n), nil
}

// Capabilities implements [resilience.KeyStore].
func (s *Store) Capabilities() resilience.Capabilities {
	return resilience.Capabilities{Durable: s.durable, Shared: true, Linearizable: true}
}

func failed(err error) error { return fmt.Errorf("key store: %w", err) }
