// Package pgtest runs a PostgreSQL server of a test's own: a cluster in a
// temporary directory, reachable by a Unix socket only. A package that uses it
// has func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }.
package pgtest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/writ-dev/writ/internal/sqldb"
)

// Server is a PostgreSQL server that can be stopped and started.
type Server struct {
	bin  string // directory of the programs
	dir  string
	cred *syscall.Credential

	mu   sync.Mutex
	proc *process
}

type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
}

var shared struct {
	sync.Mutex
	server    *Server
	err       error
	databases atomic.Int64
}

// Main runs the tests and stops the server that they used.
func Main(m *testing.M) int {
	code := m.Run()
	if s := shared.server; s != nil {
		s.kill()
		os.RemoveAll(s.dir)
	}
	return code
}

// DSN makes an empty database on the server of this test's program, which it
// starts when it is the first, and names it. Without PostgreSQL on the machine
// the test is skipped, but not in CI.
func DSN(t testing.TB) string {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.server == nil && shared.err == nil {
		shared.server, shared.err = start()
	}
	if errors.Is(shared.err, errMissing) && os.Getenv("CI") != "true" {
		t.Skip(shared.err)
	} else if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.server.Database(t)
}

// Open is DSN, opened.
func Open(t testing.TB) *sql.DB {
	t.Helper()
	db, err := sqldb.OpenPostgres(context.Background(), DSN(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// New starts a server for one test alone, to be stopped and started.
func New(t testing.TB) *Server {
	t.Helper()
	s, err := start()
	if errors.Is(err, errMissing) && os.Getenv("CI") != "true" {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.kill()
		os.RemoveAll(s.dir)
	})
	return s
}

// Database makes an empty database and returns its DSN.
func (s *Server) Database(t testing.TB) string {
	t.Helper()
	name := fmt.Sprintf("t%d", shared.databases.Add(1))
	db, err := sqldb.OpenPostgres(context.Background(), s.dsn("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(`CREATE DATABASE ` + name); err != nil {
		t.Fatal(err)
	}
	return s.dsn(name)
}

func (s *Server) dsn(database string) string {
	return fmt.Sprintf("host=%s user=postgres dbname=%s", s.dir, database)
}

var errMissing = errors.New("PostgreSQL is not installed (Debian: postgresql)")

// start makes a cluster and runs it. PostgreSQL refuses to run as root, so that
// root runs it as the user postgres, whom the package makes.
func start() (*Server, error) {
	programs, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	slices.Sort(programs)
	if len(programs) == 0 {
		path, err := exec.LookPath("initdb")
		if err != nil {
			return nil, errMissing
		}
		programs = []string{path}
	}
	s := &Server{bin: filepath.Dir(programs[len(programs)-1])}
	var err error
	// Not below the test's directory: a socket's path is short.
	if s.dir, err = os.MkdirTemp("/tmp", "writ-pg"); err != nil {
		return nil, err
	}
	if os.Getuid() == 0 {
		if s.cred, err = postgresUser(); err == nil {
			err = os.Chown(s.dir, int(s.cred.Uid), int(s.cred.Gid))
		}
	}
	if err == nil {
		initdb := s.command("initdb", "-D", s.data(), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
		var out []byte
		if out, err = initdb.CombinedOutput(); err != nil {
			err = fmt.Errorf("initdb: %w: %s", err, out)
		}
	}
	if err == nil {
		err = s.start()
	}
	if err != nil {
		os.RemoveAll(s.dir)
		return nil, err
	}
	return s, nil
}

func postgresUser() (*syscall.Credential, error) {
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errMissing, err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

func (s *Server) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.bin, name), args...)
	cmd.Dir = s.dir
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "TZ=UTC"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.cred}
	return cmd
}

// Start runs a server that was stopped, and returns when it answers.
func (s *Server) Start(t testing.TB) {
	t.Helper()
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
}

// Stop ends the server at once: open connections break.
func (s *Server) Stop(t testing.TB) {
	t.Helper()
	s.kill()
}

func (s *Server) start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := s.command("postgres", "-D", s.data(), "-k", s.dir, "-c", "listen_addresses=", "-c", "shared_buffers=32MB", "-c", "max_connections=100")
	cmd.Stdout, cmd.Stderr = log, log
	// It ends with the test's program, however that ends. The signal comes when
	// the thread that started it is gone, so a thread is kept for that.
	cmd.SysProcAttr.Pdeathsig = syscall.SIGQUIT
	p := &process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(p.done)
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // how it ended is in its log
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	s.proc = p
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for {
		db, err := sqldb.OpenPostgres(ctx, s.dsn("postgres"))
		if err == nil {
			return db.Close()
		}
		select {
		case <-ctx.Done():
		case <-p.done:
		case <-time.After(20 * time.Millisecond): // it tells nobody when it is up
			continue
		}
		text, _ := os.ReadFile(log.Name())
		return fmt.Errorf("postgres does not come up: %w\n%s", err, text)
	}
}

// kill is an immediate shutdown: the next start recovers from the log.
func (s *Server) kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil {
		return
	}
	_ = s.proc.cmd.Process.Signal(syscall.SIGQUIT)
	<-s.proc.done
	s.proc = nil
}
