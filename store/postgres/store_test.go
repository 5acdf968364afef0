package pgstore_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
	pgstore "github.com/retell-resilience/resilience/store/postgres"
	"github.com/retell-resilience/resilience/storetest"
)

// The server is ended as by a loss of power, and started again, wherever the suite reopens the store.
func TestKeys_Conformance(t *testing.T) {
	needServer(t)
	for name, c := range drivers {
		t.Run(name, func(t *testing.T) {
			s, err := newServer("")
			require.NoError(t, err)
			t.Cleanup(s.end)
			names := map[resilience.KeyStore]string{}
			start := func(t *testing.T, table string) resilience.KeyStore {
				store := open(t, connect(t, c.driver, s.dsn(c.settings...)), table)
				names[store] = table
				return store
			}
			storetest.Run(t, func(t *testing.T) resilience.KeyStore { return start(t, tableName()) },
				storetest.Reopen(func(t *testing.T, old resilience.KeyStore) resilience.KeyStore {
					require.NoError(t, s.crash())
					require.NoError(t, s.start())
					return start(t, names[old])
				}))
		})
	}
}

func TestOpen_Refuses(t *testing.T) {
	s := needServer(t)
	for name, c := range map[string]struct {
		setting, says string
	}{
		"not synced": {"synchronous_commit=off", "AllowLoss"},
		"isolation":  {"default_transaction_isolation=serializable", "read committed"},
		"read-only":  {"default_transaction_read_only=on", "primary"},
	} {
		t.Run(name, func(t *testing.T) {
			setting, value, _ := strings.Cut(c.setting, "=")
			db := connect(t, "pgx", s.dsn(fmt.Sprintf("options='-c %s=%s'", setting, value)))
			table := tableName()
			_, err := pgstore.Open(t.Context(), db, pgstore.Options{Table: table})
			require.ErrorContains(t, err, c.says)
			var there bool
			require.NoError(t, db.QueryRowContext(t.Context(), `SELECT to_regclass($1) IS NOT NULL`, table).Scan(&there))
			require.False(t, there, "whoever is refused makes no table")
		})
	}
	for _, table := range []string{"Keys", "1keys", "keys;", "ke ys", `"keys"`, "schlüssel", strings.Repeat("k", 41)} {
		_, err := pgstore.Open(t.Context(), connect(t, "pgx", s.dsn()), pgstore.Options{Table: table})
		require.ErrorContains(t, err, "Options.Table", table)
		_, err = pgstore.Options{Table: table}.Schema()
		require.ErrorContains(t, err, "Options.Table", table)
	}
	db, table := connect(t, "pgx", s.dsn()), tableName()
	open(t, db, table)
	_, err := db.ExecContext(t.Context(), `ALTER TABLE `+table+` DROP COLUMN unsettled`)
	require.NoError(t, err)
	_, err = pgstore.Open(t.Context(), db, pgstore.Options{Table: table})
	require.ErrorContains(t, err, "not what Options.Schema describes")
	_, err = pgstore.Open(t.Context(), nil, pgstore.Options{})
	require.ErrorContains(t, err, "a database is needed")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = pgstore.Open(ctx, connect(t, "pgx", s.dsn()), pgstore.Options{})
	require.ErrorIs(t, err, context.Canceled)
}

func TestOpen_AllowLoss(t *testing.T) {
	s := needServer(t)
	db := connect(t, "pgx", s.dsn("options='-c synchronous_commit=off'"))
	store, err := pgstore.Open(t.Context(), db, pgstore.Options{Table: tableName(), AllowLoss: true})
	require.NoError(t, err)
	require.Equal(t, resilience.Capabilities{Shared: true, Linearizable: true}, store.Capabilities())

	fast, err := newServer("-c fsync=off")
	require.NoError(t, err)
	t.Cleanup(fast.end)
	_, err = pgstore.Open(t.Context(), connect(t, "pgx", fast.dsn()), pgstore.Options{})
	require.ErrorContains(t, err, "fsync")

	store = open(t, connect(t, "pgx", s.dsn()), tableName())
	require.Equal(t, resilience.Capabilities{Durable: true, Shared: true, Linearizable: true}, store.Capabilities())
}

// All instances of a service start at the same time, on an empty database.
func TestOpen_Together(t *testing.T) {
	s := needServer(t)
	table := tableName()
	var wg sync.WaitGroup
	for range 8 {
		db := connect(t, "pgx", s.dsn())
		wg.Go(func() {
			if _, err := pgstore.Open(t.Context(), db, pgstore.Options{Table: table}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// A program that may not create tables uses one that somebody else created with Schema.
func TestOpen_WithoutTheRightToCreate(t *testing.T) {
	s := needServer(t)
	admin := connect(t, "pgx", s.dsn())
	opts := pgstore.Options{Table: tableName()}
	exec := func(text string) {
		t.Helper()
		for _, statement := range strings.Split(text, ";\n") {
			_, err := admin.ExecContext(t.Context(), statement)
			require.NoError(t, err, statement)
		}
	}
	role := "service_of_" + opts.Table
	exec("CREATE ROLE " + role + " LOGIN;\nREVOKE CREATE ON SCHEMA public FROM PUBLIC")
	db := connect(t, "pgx", strings.Replace(s.dsn(), "user=tester", "user="+role, 1))
	_, err := pgstore.Open(t.Context(), db, opts)
	require.ErrorContains(t, err, "Options.Schema")

	schema, err := opts.Schema()
	require.NoError(t, err)
	exec(schema + fmt.Sprintf(`GRANT SELECT, INSERT, UPDATE, DELETE ON %[1]s, %[1]s_letters TO %[2]s`, opts.Table, role))
	store, err := pgstore.Open(t.Context(), db, opts)
	require.NoError(t, err)
	version, swapped, err := store.CompareAndSwap(t.Context(), 0, claimed("a"))
	require.NoError(t, err)
	require.True(t, swapped)
	rec := claimed("a")
	rec.State = resilience.KeySending
	_, swapped, err = store.CompareAndSwap(t.Context(), version, rec)
	require.NoError(t, err)
	require.True(t, swapped)
	_, err = store.Sweep(t.Context(), 10, nil)
	require.NoError(t, err)
	letters := lettersOf(t, store)
	require.NoError(t, letters.Put(t.Context(), resilience.Letter{ID: "x"}))
	require.NoError(t, letters.Remove(t.Context(), "x"))
	exec(schema) // once more changes nothing
	rec, err = store.Load(t.Context(), "a")
	require.NoError(t, err)
	require.Equal(t, resilience.KeySending, rec.State)
}

func claimed(id string) resilience.Record {
	return resilience.Record{ID: id, State: resilience.KeyClaimed, Operation: "create-phone-call", Owner: "o", Token: "t", Epoch: 1}
}

// What somebody else wrote into a row is an error, never a record.
func TestLoad_DamageAndNewer(t *testing.T) {
	s := needServer(t)
	db, table := connect(t, "pgx", s.dsn()), tableName()
	store := open(t, db, table)
	for id, c := range map[string]struct {
		record string // an expression of SQL
		want   error
	}{
		"cut":   {`substr(record, 1, 10)`, pgstore.ErrCorrupt},
		"moved": {`(SELECT record FROM ` + table + ` WHERE id = 'other')`, pgstore.ErrCorrupt},
		"empty": {`''::bytea`, pgstore.ErrCorrupt},
		"newer": {`'\x02'::bytea || substr(record, 2)`, pgstore.ErrCorrupt}, // without a new checksum
	} {
		for _, id := range []string{id, "other"} {
			_, _, err := store.CompareAndSwap(t.Context(), 0, claimed(id))
			require.NoError(t, err)
		}
		_, err := db.ExecContext(t.Context(), fmt.Sprintf(`UPDATE %s SET record = %s WHERE id = $1`, table, c.record), id)
		require.NoError(t, err)
		_, err = store.Load(t.Context(), id)
		require.ErrorIs(t, err, c.want, id)
		_, _, err = store.Unsettled(t.Context(), "", 0)
		require.ErrorIs(t, err, c.want, id)
		_, err = db.ExecContext(t.Context(), `DELETE FROM `+table)
		require.NoError(t, err)
	}
}

// While the server is away every call is an error, and nothing is sent; when it is back, so is the store.
func TestStore_OutlivesTheServer(t *testing.T) {
	needServer(t)
	s, err := newServer("")
	require.NoError(t, err)
	t.Cleanup(s.end)
	store := open(t, connect(t, "pgx", s.dsn()), tableName())
	version, _, err := store.CompareAndSwap(t.Context(), 0, claimed("a"))
	require.NoError(t, err)

	require.NoError(t, s.crash())
	_, err = store.Load(t.Context(), "a")
	require.Error(t, err)
	_, swapped, err := store.CompareAndSwap(t.Context(), version, claimed("a"))
	require.Error(t, err)
	require.False(t, swapped)
	_, _, err = store.Unsettled(t.Context(), "", 10)
	require.Error(t, err)
	_, err = store.Sweep(t.Context(), 10, nil)
	require.Error(t, err)

	require.NoError(t, s.start())
	rec, err := store.Load(t.Context(), "a")
	require.NoError(t, err)
	require.Equal(t, version, rec.Version)
}

// More than one statement's worth is swept, and what is pinned is not in the way.
func TestSweep_InChunks(t *testing.T) {
	s := needServer(t)
	db, table := connect(t, "pgx", s.dsn()), tableName()
	store := open(t, db, table)
	_, err := db.ExecContext(t.Context(), fmt.Sprintf(`INSERT INTO %s (id, state, operation, unsettled, expires, record)
		SELECT 'key-' || n, 'confirmed', 'op', false, now() - interval '1 hour', '' FROM generate_series(1, 1700) n`, table))
	require.NoError(t, err)
	pinned := func(id string) bool { return strings.HasSuffix(id, "7") }
	n, err := store.Sweep(t.Context(), 1000, pinned)
	require.NoError(t, err)
	require.Equal(t, 1000, n)
	n, err = store.Sweep(t.Context(), 1000, pinned)
	require.NoError(t, err)
	require.Equal(t, 530, n, "all but the 170 pinned ones")
	n, err = store.Sweep(t.Context(), 1000, nil)
	require.NoError(t, err)
	require.Equal(t, 170, n)
}

// The bytes of a record are the truth; what people look at beside them must be able to hold what a program says.
func TestCompareAndSwap_OddOperation(t *testing.T) {
	s := needServer(t)
	store := open(t, connect(t, "pgx", s.dsn()), tableName())
	rec := claimed("a")
	rec.Operation = "op\x00\xff"
	_, swapped, err := store.CompareAndSwap(t.Context(), 0, rec)
	require.NoError(t, err)
	require.True(t, swapped)
	got, err := store.Load(t.Context(), "a")
	require.NoError(t, err)
	require.Equal(t, rec.Operation, got.Operation)
	for _, id := range []string{"", "a\x00", "\xff", strings.Repeat("a", 1025)} {
		_, swapped, err := store.CompareAndSwap(t.Context(), 0, claimed(id))
		require.ErrorContains(t, err, "Record.ID")
		require.False(t, swapped)
		got, err := store.Load(t.Context(), id)
		require.NoError(t, err)
		require.Zero(t, got.Version)
	}
	_, _, err = store.Unsettled(t.Context(), "\xff", 10)
	require.Error(t, err)
}

// What may go is never taken before its time: the index keeps less of it than the record.
func TestSweep_NotBeforeItsTime(t *testing.T) {
	s := needServer(t)
	store := open(t, connect(t, "pgx", s.dsn()), tableName())
	rec := claimed("a")
	rec.State, rec.Expires = resilience.KeyConfirmed, store.Now().Truncate(time.Microsecond).Add(time.Hour+time.Nanosecond)
	_, _, err := store.CompareAndSwap(t.Context(), 0, rec)
	require.NoError(t, err)
	got, err := store.Load(t.Context(), "a")
	require.NoError(t, err)
	require.True(t, rec.Expires.Equal(got.Expires))
	n, err := store.Sweep(t.Context(), 10, nil)
	require.NoError(t, err)
	require.Zero(t, n)
}
