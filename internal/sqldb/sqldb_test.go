package sqldb_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/internal/pgtest"
	"github.com/writ-dev/writ/internal/sqldb"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

func onEach(t *testing.T, test func(t *testing.T, again func() *sql.DB)) {
	t.Run("sqlite", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "writ.db")
		test(t, func() *sql.DB { return opened(t)(sqldb.OpenSQLite(t.Context(), file)) })
	})
	t.Run("postgres", func(t *testing.T) {
		dsn := pgtest.DSN(t)
		test(t, func() *sql.DB { return opened(t)(sqldb.OpenPostgres(t.Context(), dsn)) })
	})
}

func opened(t *testing.T) func(*sql.DB, error) *sql.DB {
	return func(db *sql.DB, err error) *sql.DB {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Close() })
		return db
	}
}

func migrations(files ...string) fstest.MapFS {
	fs := fstest.MapFS{}
	for i, text := range files {
		fs[fmt.Sprintf("m/%03d_x.sql", i+1)] = &fstest.MapFile{Data: []byte(text)}
	}
	return fs
}

func TestMigrate(t *testing.T) { onEach(t, testMigrate) }

func testMigrate(t *testing.T, again func() *sql.DB) {
	db := again()
	ctx := t.Context()
	one := `CREATE TABLE a (id INTEGER PRIMARY KEY, doc BLOB NOT NULL, yes INTEGER NOT NULL) ; INSERT INTO a VALUES (1, '', 0);`
	two := `ALTER TABLE a ADD COLUMN more TEXT NOT NULL DEFAULT 'x';`
	if err := sqldb.Migrate(ctx, db, "c", migrations(one), "m"); err != nil {
		t.Fatal(err)
	}
	// All of it or nothing, and then from where it was.
	if err := sqldb.Migrate(ctx, db, "c", migrations(one, two, `CREATE NONSENSE`), "m"); err == nil || !strings.Contains(err.Error(), "003_x.sql") {
		t.Fatalf("nonsense: %v", err)
	}
	if _, err := db.Exec(`SELECT more FROM a`); err == nil {
		t.Error("a failed migration left something")
	}
	for range 2 {
		if err := sqldb.Migrate(ctx, db, "c", migrations(one, two), "m"); err != nil {
			t.Fatal(err)
		}
	}
	type row struct {
		ID   int64
		Doc  []byte
		Yes  bool
		More string
	}
	want := row{2, []byte{0, 0xff, '?'}, true, "it's ?"}
	if _, err := db.Exec(`INSERT INTO a (id, doc, yes, more) VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET doc = excluded.doc`, want.ID, want.Doc, want.Yes, want.More); err != nil {
		t.Fatal(err)
	}
	var got row
	if err := db.QueryRow(`SELECT id, doc, yes, more FROM a WHERE id = ?`, 2).Scan(&got.ID, &got.Doc, &got.Yes, &got.More); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	// Newer than this build: refused, and nothing is touched.
	err := sqldb.Migrate(ctx, db, "c", migrations(one), "m")
	if err == nil || !strings.Contains(err.Error(), "is version 2, this build knows 1: run a newer build") {
		t.Errorf("newer schema: %v", err)
	}
	var version int
	if err := db.QueryRow(`SELECT version FROM schema_versions WHERE component = ?`, "c").Scan(&version); err != nil || version != 2 {
		t.Errorf("version %d, %v", version, err)
	}
}

// Replicas that start together migrate once.
func TestMigrateTogether(t *testing.T) { onEach(t, testMigrateTogether) }

func testMigrateTogether(t *testing.T, again func() *sql.DB) {
	files := migrations(`CREATE TABLE a (n INTEGER); INSERT INTO a VALUES (1);`, `INSERT INTO a VALUES (2);`)
	var all sync.WaitGroup
	for range 4 {
		db := again()
		all.Go(func() {
			if err := sqldb.Migrate(t.Context(), db, "c", files, "m"); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	var n int
	if err := again().QueryRow(`SELECT count(*) FROM a`).Scan(&n); err != nil || n != 2 {
		t.Errorf("%d rows, %v", n, err)
	}
}

func TestPostgresRefusals(t *testing.T) {
	dsn := pgtest.DSN(t)
	for _, tt := range []struct{ dsn, want string }{
		{"host=/nowhere user=u password=hunter2 dbname=d connect_timeout=1", "/nowhere"},
		{"postgres://u:hunter2@127.0.0.1:1/d?connect_timeout=1", "127.0.0.1"},
		{"nonsense hunter2", "open database"},
		{dsn + " synchronous_commit=off password=hunter2", "synchronous_commit=off"},
	} {
		db, err := sqldb.OpenPostgres(t.Context(), tt.dsn)
		if err == nil {
			db.Close()
			t.Errorf("%s: opened", tt.dsn)
		} else if text := err.Error(); !strings.Contains(text, tt.want) || strings.Contains(text, "hunter2") {
			t.Errorf("%s: %v", tt.dsn, err)
		}
	}
}

// A listener is called after it lost its connection, too, since it may have
// missed something.
func TestListen(t *testing.T) {
	server := pgtest.New(t)
	dsn := server.Database(t)
	db := opened(t)(sqldb.OpenPostgres(t.Context(), dsn))
	ctx, cancel := context.WithCancel(t.Context())
	looked := make(chan struct{}, 100)
	var ended sync.WaitGroup
	ended.Go(func() {
		err := sqldb.Listen(ctx, db, "c", time.Hour, slog.New(slog.DiscardHandler), func(context.Context) error {
			looked <- struct{}{}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
	<-looked // it listens
	notify := func() {
		tx, err := db.Begin()
		// A connection of before the restart fails once, and is dropped.
		for range 5 {
			if err == nil {
				break
			}
			tx, err = db.Begin()
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := sqldb.Notify(t.Context(), tx, "c"); err != nil {
			t.Fatal(err)
		}
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	notify()
	<-looked
	server.Stop(t)
	server.Start(t)
	<-looked
	notify()
	<-looked
	cancel()
	ended.Wait()
}

// One process has a lock by name, until it or its connection ends.
func TestHold(t *testing.T) {
	dsn := pgtest.DSN(t)
	first := opened(t)(sqldb.OpenPostgres(t.Context(), dsn))
	second := opened(t)(sqldb.OpenPostgres(t.Context(), dsn))
	held, err := sqldb.Hold(t.Context(), first, "x")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sqldb.Hold(t.Context(), second, "x"); !errors.Is(err, sqldb.ErrHeld) {
		t.Fatalf("second: %v", err)
	}
	if _, err := sqldb.Hold(t.Context(), second, "y"); err != nil {
		t.Fatalf("another lock: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := held.Keep(ctx); err != nil {
		t.Error(err)
	}
	if _, err := sqldb.Hold(t.Context(), second, "x"); err != nil {
		t.Errorf("after release: %v", err)
	}
}
