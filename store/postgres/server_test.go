package pgstore_test

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	pgstore "github.com/retell-resilience/resilience/store/postgres"

	_ "github.com/jackc/pgx/v5/stdlib"
	_ "github.com/lib/pq"
)

// server is a PostgreSQL of the tests' own, on a socket in a folder of theirs.
type server struct {
	bin, dir string
	as       *syscall.Credential // it refuses to run as root
	options  string
}

// shared is the server that tests use which leave it as it is.
var shared = sync.OnceValues(func() (*server, error) { return newServer("") })

func TestMain(m *testing.M) {
	if dsn := os.Getenv(workerEnv); dsn != "" {
		os.Exit(work(dsn))
	}
	code := m.Run()
	if s, err := shared(); err == nil {
		s.end()
	}
	os.Exit(code)
}

// needServer skips where there is no PostgreSQL; .ci/run sees to it that there is one.
func needServer(t *testing.T) *server {
	t.Helper()
	s, err := shared()
	if s == nil && err == nil {
		if os.Getenv("POSTGRES") == "required" {
			t.Fatal("no PostgreSQL is installed")
		}
		t.Skip("no PostgreSQL is installed (initdb and postgres, in PATH or where Debian puts them)")
	}
	require.NoError(t, err)
	return s
}

// newServer starts one with these settings, as in "-c fsync=off"; nil: there is none to start.
func newServer(options string) (*server, error) {
	bin, found := programs()
	if !found {
		return nil, nil
	}
	dir, err := os.MkdirTemp("", "pgstore")
	if err != nil {
		return nil, err
	}
	s := &server{bin: bin, dir: dir, options: options}
	if os.Getuid() == 0 {
		if err := s.becomeSomebody(); err != nil {
			return nil, err
		}
	}
	if err := s.run("initdb", "-D", s.data(), "-U", "tester", "--auth=trust", "--no-sync", "-E", "UTF8"); err != nil {
		return nil, err
	}
	return s, s.start()
}

func programs() (dir string, found bool) {
	candidates, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if path, err := exec.LookPath("initdb"); err == nil {
		candidates = append(candidates, path)
	}
	if len(candidates) == 0 {
		return "", false
	}
	return filepath.Dir(candidates[len(candidates)-1]), true
}

func (s *server) becomeSomebody() error {
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, _ := strconv.ParseUint(u.Uid, 10, 32)
		gid, _ := strconv.ParseUint(u.Gid, 10, 32)
		s.as = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		return os.Chown(s.dir, int(uid), int(gid))
	}
	return fmt.Errorf("there is nobody to run PostgreSQL as")
}

func (s *server) data() string { return filepath.Join(s.dir, "data") }

func (s *server) run(program string, args ...string) error {
	cmd := exec.CommandContext(context.Background(), filepath.Join(s.bin, program), args...) //nolint:gosec // of the machine's
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.as}
	cmd.Dir = s.dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", program, err, out)
	}
	return nil
}

func (s *server) start() error {
	return s.run("pg_ctl", "-D", s.data(), "-w", "-l", filepath.Join(s.dir, "log"), "-o",
		fmt.Sprintf("-c listen_addresses= -c unix_socket_directories=%s -c max_connections=200 %s", s.dir, s.options), "start")
}

// crash ends it as a loss of power would, but for what the disk has.
func (s *server) crash() error {
	return s.run("pg_ctl", "-D", s.data(), "-w", "-m", "immediate", "stop")
}

func (s *server) end() {
	_ = s.crash()
	_ = os.RemoveAll(s.dir)
}

// dsn with further settings, as in "synchronous_commit=off".
func (s *server) dsn(settings ...string) string {
	text := fmt.Sprintf("host=%s user=tester dbname=postgres sslmode=disable", s.dir)
	for _, setting := range settings {
		text += " " + setting
	}
	return text
}

// drivers are those that the store is tested with, and ways to use them.
var drivers = map[string]struct {
	driver   string
	settings []string
}{
	"pgx":        {"pgx", nil},
	"pgx-simple": {"pgx", []string{"default_query_exec_mode=simple_protocol"}}, // as behind a pooler
	"pq":         {"postgres", nil},
}

// connect opens a pool; driver is "pgx" or "postgres", which is lib/pq's.
func connect(t testing.TB, driver, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open(driver, dsn)
	require.NoError(t, err)
	t.Cleanup(func() { _ = db.Close() })
	db.SetMaxIdleConns(20)
	return db
}

var tables struct {
	mu sync.Mutex
	n  int
}

// tableName is one that no other test has.
func tableName() string {
	tables.mu.Lock()
	defer tables.mu.Unlock()
	tables.n++
	return fmt.Sprintf("keys_%d", tables.n)
}

func open(t testing.TB, db *sql.DB, table string) *pgstore.Store {
	t.Helper()
	store, err := pgstore.Open(context.Background(), db, pgstore.Options{Table: table})
	require.NoError(t, err)
	return store
}
