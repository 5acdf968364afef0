package pgstore_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/retell-resilience/resilience"
	pgstore "github.com/retell-resilience/resilience/store/postgres"
	"github.com/retell-resilience/resilience/storetest"
)

func lettersOf(t testing.TB, store *pgstore.Store) *pgstore.Letters {
	t.Helper()
	letters, err := store.Letters(context.Background())
	require.NoError(t, err)
	t.Cleanup(func() { _ = letters.Close() })
	return letters
}

// The server is ended as by a loss of power, and whoever opens the letters next takes them over.
func TestLetters_Conformance(t *testing.T) {
	needServer(t)
	for name, c := range drivers {
		t.Run(name, func(t *testing.T) {
			s, err := newServer("")
			require.NoError(t, err)
			t.Cleanup(s.end)
			names := map[resilience.LetterStore]string{}
			start := func(t *testing.T, table string) resilience.LetterStore {
				letters := lettersOf(t, open(t, connect(t, c.driver, s.dsn(c.settings...)), table))
				names[letters] = table
				return letters
			}
			storetest.RunLetters(t, func(t *testing.T) resilience.LetterStore { return start(t, tableName()) },
				storetest.ReopenLetters(func(t *testing.T, old resilience.LetterStore) resilience.LetterStore {
					require.NoError(t, s.crash())
					require.NoError(t, s.start())
					return start(t, names[old])
				}))
		})
	}
}

// instance is one of several that share a table.
type instance struct {
	db      *sql.DB
	letters *pgstore.Letters
	queue   *resilience.DLQ
}

func newInstance(t *testing.T, table string, cfg resilience.DLQConfig) *instance {
	t.Helper()
	db := connect(t, "pgx", needServer(t).dsn())
	i := &instance{db: db, letters: lettersOf(t, open(t, db, table))}
	cfg.Store = i.letters
	var err error
	i.queue, err = resilience.NewDLQ(cfg)
	require.NoError(t, err)
	return i
}

func (i *instance) add(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		require.NoError(t, i.queue.Add(resilience.Letter{
			ID: "id-" + name, Operation: "create-phone-call", Method: http.MethodPost, URL: "https://api.test/v2/create-phone-call",
			Key: "key-" + name, Body: []byte(`{"n":"` + name + `"}`), Attempts: 2, Cause: "status", StatusCode: 503,
		}))
	}
}

func (i *instance) names() (names []string) {
	for _, l := range i.queue.List(resilience.LetterFilter{}) {
		names = append(names, strings.TrimPrefix(l.ID, "id-"))
	}
	return names
}

func (i *instance) takeOver(t *testing.T) int {
	t.Helper()
	n, err := i.letters.TakeOver(t.Context(), i.queue)
	require.NoError(t, err)
	return n
}

func TestTakeOver_LettersOfAnInstanceThatIsGone(t *testing.T) {
	needServer(t)
	table := tableName()
	a, b := newInstance(t, table, resilience.DLQConfig{}), newInstance(t, table, resilience.DLQConfig{})
	a.add(t, "1", "2")
	b.add(t, "3")
	require.Zero(t, b.takeOver(t), "it lives")
	require.Equal(t, []string{"3"}, b.names())

	require.NoError(t, a.letters.Close())
	require.Equal(t, 1, b.takeOver(t))
	require.ElementsMatch(t, []string{"1", "2", "3"}, b.names())
	l, ok := b.queue.Get("id-1")
	require.True(t, ok)
	require.Equal(t, "key-1", l.Key)
	require.JSONEq(t, `{"n":"1"}`, string(l.Body))
	require.Equal(t, 2, l.Attempts)
	require.Equal(t, 503, l.StatusCode)
	require.Zero(t, b.takeOver(t))
	require.ErrorIs(t, a.letters.Put(t.Context(), l), resilience.ErrClosed)
	require.ErrorIs(t, a.letters.Remove(t.Context(), l.ID), resilience.ErrClosed)
	require.ErrorIs(t, a.letters.Load(t.Context(), func(resilience.Letter) error { return nil }), resilience.ErrClosed)
	_, err := a.letters.TakeOver(t.Context(), a.queue)
	require.ErrorIs(t, err, resilience.ErrClosed)

	c := newInstance(t, table, resilience.DLQConfig{})
	require.Empty(t, c.names(), "each letter is one instance's")
	require.NoError(t, b.letters.Close())
	d := newInstance(t, table, resilience.DLQConfig{})
	require.Len(t, d.names(), 3, "whoever opens the letters finds them")
	require.Zero(t, c.takeOver(t))
}

// What is sealed in the table is so on its way, too.
func TestTakeOver_Sealed(t *testing.T) {
	needServer(t)
	flip := func(l resilience.Letter) (resilience.Letter, error) {
		for i := range l.Body {
			l.Body[i] ^= 0xff
		}
		return l, nil
	}
	cfg := resilience.DLQConfig{Seal: flip, Open: flip}
	table := tableName()
	a, b := newInstance(t, table, cfg), newInstance(t, table, cfg)
	a.add(t, "1")
	var clear int
	require.NoError(t, a.db.QueryRowContext(t.Context(),
		fmt.Sprintf(`SELECT count(*) FROM %s_letters WHERE position('"n"'::bytea IN letter) > 0`, table)).Scan(&clear))
	require.Zero(t, clear)
	require.NoError(t, a.letters.Close())
	require.Equal(t, 1, b.takeOver(t))
	l, _ := b.queue.Get("id-1")
	require.True(t, json.Valid(l.Body), "%q", l.Body)
}

// Letters for which there is no room stay where they are, for another instance or another time.
func TestTakeOver_NoRoom(t *testing.T) {
	needServer(t)
	table := tableName()
	a, b := newInstance(t, table, resilience.DLQConfig{}), newInstance(t, table, resilience.DLQConfig{MaxLetters: 2})
	a.add(t, "1", "2")
	b.add(t, "3")
	require.NoError(t, a.letters.Close())
	n, err := b.letters.TakeOver(t.Context(), b.queue)
	require.ErrorIs(t, err, resilience.ErrLettersFull)
	require.Zero(t, n)
	require.Len(t, b.names(), 2)
	require.NoError(t, b.queue.Delete("id-3", "not wanted"))
	require.Equal(t, 1, b.takeOver(t))
	require.ElementsMatch(t, []string{"1", "2"}, b.names())
}

// A session that is cut is replaced: the letters of an instance that lives are its own.
func TestTakeOver_TheLockIsLost(t *testing.T) {
	needServer(t)
	table := tableName()
	a, b := newInstance(t, table, resilience.DLQConfig{}), newInstance(t, table, resilience.DLQConfig{})
	a.add(t, "1")
	_, err := b.db.ExecContext(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid()`)
	require.NoError(t, err)
	require.Zero(t, a.takeOver(t), "which gets the lock back")
	require.Zero(t, b.takeOver(t))
	require.Equal(t, []string{"1"}, a.names())
	require.Empty(t, b.names())
	a.add(t, "2")
}

// Of many who take over at the same time each letter comes to one.
func TestTakeOver_Together(t *testing.T) {
	needServer(t)
	table := tableName()
	var alive []*instance
	for range 4 {
		alive = append(alive, newInstance(t, table, resilience.DLQConfig{}))
	}
	var want []string
	var gone []*instance
	for n := range 6 {
		i := newInstance(t, table, resilience.DLQConfig{})
		for k := range 5 {
			want = append(want, fmt.Sprintf("%d-%d", n, k))
			i.add(t, want[len(want)-1])
		}
		gone = append(gone, i)
	}
	for _, i := range gone {
		require.NoError(t, i.letters.Close())
	}
	var wg sync.WaitGroup
	for _, i := range alive {
		wg.Go(func() {
			if _, err := i.letters.TakeOver(t.Context(), i.queue); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	var got []string
	for _, i := range alive {
		got = append(got, i.names()...)
	}
	require.ElementsMatch(t, want, got)
}

// The lock would hold the only connection, and every call would wait for it.
func TestLetters_NeedMoreThanOneConnection(t *testing.T) {
	db := connect(t, "pgx", needServer(t).dsn())
	db.SetMaxOpenConns(1)
	store := open(t, db, tableName())
	_, swapped, err := store.CompareAndSwap(t.Context(), 0, claimed("a"))
	require.NoError(t, err)
	require.True(t, swapped, "keys need no more")
	_, err = store.Letters(t.Context())
	require.ErrorContains(t, err, "MaxOpenConns")
	db.SetMaxOpenConns(2)
	require.NoError(t, lettersOf(t, store).Put(t.Context(), resilience.Letter{ID: "x"}))
}

// Who calls TakeOver off keeps the lock: the instance lives.
func TestTakeOver_CalledOff(t *testing.T) {
	needServer(t)
	table := tableName()
	gone := newInstance(t, table, resilience.DLQConfig{})
	a, b := newInstance(t, table, resilience.DLQConfig{}), newInstance(t, table, resilience.DLQConfig{})
	gone.add(t, "1")
	a.add(t, "2")
	require.NoError(t, gone.letters.Close())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := a.letters.TakeOver(ctx, a.queue)
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, 1, b.takeOver(t))
	require.Equal(t, []string{"1"}, b.names())
	require.Equal(t, []string{"2"}, a.names())
}
