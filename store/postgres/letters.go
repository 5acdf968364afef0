package pgstore

import (
	"context"
	"crypto/rand"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/retell-resilience/resilience"
	"github.com/retell-resilience/resilience/internal/codec"
)

// Letters keep the dead letters of one instance: a [resilience.LetterStore], for resilience.DLQConfig.Store of one queue.
// They are safe for concurrent use.
//
// The letters of an instance lie in the table under a name of its own, and a connection holds a lock on that name as long as the
// instance lives. So those of an instance that is gone can be told, and are taken over: by the next one that opens its
// Letters, and by those who call [Letters.TakeOver]. Should that lock be lost while the instance lives (the connection was cut, and
// the server noticed first), its letters may be in two queues for a while; their keys, which lie in the same database, see
// to it that none is sent twice.
type Letters struct {
	store *Store
	name  string // of the queue
	sql   letterStatements

	closed atomic.Bool
	mu     sync.Mutex // guards the use of lock; no letter waits for it
	lock   *sql.Conn  // its session holds the lock on the name; nil: none does
}

var _ resilience.LetterStore = (*Letters)(nil)

// letterStatements with the name of the table in them.
type letterStatements struct {
	put, remove, ids, load, orphans, move string
}

func newLetterStatements(table string) letterStatements {
	with := func(text string) string { return strings.ReplaceAll(text, "LETTERS", lettersTable(table)) }
	return letterStatements{
		put: with(`INSERT INTO LETTERS (queue, id, operation, parked, letter) VALUES ($1, $2, $3, $4, $5)
			ON CONFLICT (queue, id) DO UPDATE SET operation = EXCLUDED.operation, parked = EXCLUDED.parked, letter = EXCLUDED.letter`),
		remove:  with(`DELETE FROM LETTERS WHERE queue = $1 AND id = $2`),
		ids:     with(`SELECT id FROM LETTERS WHERE queue = $1 AND id > $2 ORDER BY id LIMIT $3`),
		load:    with(`SELECT letter FROM LETTERS WHERE queue = $1 AND id = $2`),
		orphans: with(`SELECT DISTINCT queue FROM LETTERS WHERE queue <> $1`),
		move: with(`WITH gone AS (DELETE FROM LETTERS WHERE queue = $1 RETURNING id, operation, parked, letter)
			INSERT INTO LETTERS (queue, id, operation, parked, letter) SELECT $2, id, operation, parked, letter FROM gone ON CONFLICT DO NOTHING`),
	}
}

func lettersTable(table string) string { return table + "_letters" }

// Letters opens the letters of this instance, with those of instances that are gone. It takes one connection of the pool until
// Close, for the lock, which must be a session of its own: not one of a pooler that gives connections out by the transaction. A pool
// of one connection is refused. ctx is for the opening alone.
func (s *Store) Letters(ctx context.Context) (*Letters, error) {
	if s.db.Stats().MaxOpenConnections == 1 {
		return nil, errors.New("letter store: MaxOpenConns of the database is 1, and the lock holds one for good: allow more")
	}
	l := &Letters{store: s, name: rand.Text(), sql: newLetterStatements(s.table)}
	err := l.eachOrphan(ctx, func(orphan string) error {
		_, err := s.db.ExecContext(ctx, l.sql.move, orphan, l.name)
		return err
	})
	if err != nil {
		l.letGo()
		return nil, failedLetters(err)
	}
	return l, nil
}

// Close gives the lock back: the letters are anybody's from then on. Call it after the stack was closed. Later calls end with
// resilience.ErrClosed; closing twice is no error. An error means that the lock is free when the server notices that the
// session has ended.
func (l *Letters) Close() error {
	l.closed.Store(true)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lock == nil {
		return nil
	}
	defer l.letGo()
	ctx, cancel := sessionContext(context.Background())
	defer cancel()
	if _, err := l.lock.ExecContext(ctx, `SELECT pg_advisory_unlock_all()`); err != nil {
		return failedLetters(err)
	}
	return nil
}

// TakeOver brings the letters of instances that are gone into queue, which must be the one that has this store, and returns of how
// many instances there were some. Call it now and then, once a minute for example: after a rolling update nobody starts any more who
// would find the last ones. It also sees to it that the lock is held. Letters for which queue has no room stay where they are: the
// error is resilience.ErrLettersFull then.
func (l *Letters) TakeOver(ctx context.Context, queue *resilience.DLQ) (instances int, err error) {
	err = l.eachOrphan(ctx, func(orphan string) error {
		if err := queue.Adopt(ctx, &Letters{store: l.store, name: orphan, sql: l.sql}); err != nil {
			return err
		}
		instances++
		return nil
	})
	if err != nil {
		return instances, failedLetters(err)
	}
	return instances, nil
}

// eachOrphan hands over the names of queues that nobody holds, one after the other, and holds each meanwhile. What goes wrong with
// one does not keep it from the others.
func (l *Letters) eachOrphan(ctx context.Context, take func(name string) error) error {
	if err := l.hold(ctx); err != nil {
		return err
	}
	orphans, err := column(ctx, l.store.db, l.sql.orphans, l.name)
	if err != nil {
		return err
	}
	for _, orphan := range orphans {
		got, lockErr := l.tryLock(ctx, orphan)
		err = errors.Join(err, lockErr)
		if !got {
			continue
		}
		err = errors.Join(err, take(orphan))
		l.unlock(ctx, orphan)
	}
	return err
}

// hold sees to it that a session has the lock. One that was cut is replaced; until the server has noticed that, it has to wait.
func (l *Letters) hold(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed.Load():
		return resilience.ErrClosed
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	ctx, cancel := sessionContext(ctx)
	defer cancel()
	if l.lock != nil && l.lock.PingContext(ctx) == nil {
		return nil
	}
	l.letGo()
	conn, err := l.store.db.Conn(ctx)
	if err != nil {
		return err
	}
	l.lock = conn
	if _, err := conn.ExecContext(ctx, `SELECT pg_advisory_lock(hashtextextended($1, 0))`, l.lockName(l.name)); err != nil {
		l.letGo()
		return err
	}
	return nil
}

func (l *Letters) lockName(queue string) string { return lettersTable(l.store.table) + ":" + queue }

// letGo ends the session, and with it its locks: in the pool it would hold them for ever.
func (l *Letters) letGo() {
	if l.lock == nil {
		return
	}
	_ = l.lock.Raw(func(any) error { return driver.ErrBadConn }) // which is how one says that it is not to be used again
	_ = l.lock.Close()
	l.lock = nil
}

func (l *Letters) tryLock(ctx context.Context, queue string) (got bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lock == nil {
		return false, resilience.ErrClosed
	}
	ctx, cancel := sessionContext(ctx)
	defer cancel()
	err = l.lock.QueryRowContext(ctx, `SELECT pg_try_advisory_lock(hashtextextended($1, 0))`, l.lockName(queue)).Scan(&got)
	return got && err == nil, err
}

// unlock lets others take a queue over. Where it fails the session goes, and with it
// all locks; hold will get the one on the name back.
func (l *Letters) unlock(ctx context.Context, queue string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lock == nil {
		return
	}
	ctx, cancel := sessionContext(ctx)
	defer cancel()
	if _, err := l.lock.ExecContext(ctx, `SELECT pg_advisory_unlock(hashtextextended($1, 0))`, l.lockName(queue)); err != nil {
		l.letGo()
	}
}

// sessionLimit bounds what is asked of the session with the lock: somebody else may wait for it, Close above all.
const sessionLimit = 5 * time.Second

// sessionContext is for what is asked of the session: a context that ends in the middle would end the session, and the lock with it.
func sessionContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), sessionLimit)
}

// Put implements [resilience.LetterStore]: when it returns nil the letter is committed.
func (l *Letters) Put(ctx context.Context, letter resilience.Letter) error {
	return l.write(ctx, letter.ID, l.sql.put, l.name, []byte(letter.ID), plain(letter.Operation), letter.Parked, codec.EncodeLetter(letter))
}

// Remove implements [resilience.LetterStore]: when it returns nil the removal is committed.
func (l *Letters) Remove(ctx context.Context, id string) error {
	return l.write(ctx, id, l.sql.remove, l.name, []byte(id))
}

func (l *Letters) write(ctx context.Context, id, statement string, args ...any) error {
	if n := len(id); n == 0 || n > maxID {
		return fmt.Errorf("letter store: Letter.ID: must have 1 to %d bytes, got %d", maxID, n)
	}
	if err := l.open(); err != nil {
		return err
	}
	if _, err := l.store.db.ExecContext(ctx, statement, args...); err != nil {
		return failedLetters(err)
	}
	return nil
}

func (l *Letters) open() error {
	if l.closed.Load() {
		return failedLetters(resilience.ErrClosed)
	}
	return nil
}

const loadPage = 1000

// Load implements [resilience.LetterStore], in the order of ids. One letter at a time is in memory. Letters that are put meanwhile
// may be among them or not.
func (l *Letters) Load(ctx context.Context, each func(resilience.Letter) error) error {
	if err := l.open(); err != nil {
		return err
	}
	for at := ""; ; {
		ids, err := column(ctx, l.store.db, l.sql.ids, l.name, []byte(at), loadPage)
		if err != nil || len(ids) == 0 {
			return err
		}
		for _, id := range ids {
			if err := l.loadOne(ctx, id, each); err != nil {
				return err
			}
		}
		at = ids[len(ids)-1]
	}
}

func (l *Letters) loadOne(ctx context.Context, id string, each func(resilience.Letter) error) error {
	var value []byte
	err := l.store.db.QueryRowContext(ctx, l.sql.load, l.name, []byte(id)).Scan(&value)
	switch {
	case errors.Is(err, sql.ErrNoRows): // removed meanwhile
		return nil
	case err != nil:
		return failedLetters(err)
	}
	letter, err := codec.DecodeLetter(id, value)
	if err != nil {
		return failedLetters(err)
	}
	return each(letter)
}

// column is what a query of one column finds.
func column(ctx context.Context, db *sql.DB, query string, args ...any) (texts []string, err error) {
	rows, err := db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, failedLetters(err)
	}
	defer func() { _ = rows.Close() }() // rows.Err has said it
	for rows.Next() {
		var text string
		if err := rows.Scan(&text); err != nil {
			return nil, failedLetters(err)
		}
		texts = append(texts, text)
	}
	if err := rows.Err(); err != nil {
		return nil, failedLetters(err)
	}
	return texts, nil
}

func failedLetters(err error) error { return fmt.Errorf("letter store: %w", err) }
