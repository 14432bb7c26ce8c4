// Package sqldb opens the database of a control plane, SQLite or PostgreSQL, and
// brings its schema up to date. Each component owns its tables and its numbered
// migrations. Statements are written once, in what both databases have in
// common plus SQLite's names for parameters and types; dialect turns those into
// PostgreSQL's.
package sqldb

import (
	"context"
	"database/sql"
	"fmt"
	"hash/fnv"
	"io/fs"
	"net/url"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	_ "modernc.org/sqlite" // the pure Go driver "sqlite"
)

// OpenSQLite opens, or creates, the SQLite database in file. Writes are
// durable when a transaction returns (synchronous=FULL), transactions take the
// write lock at their start, and a locked database is waited for five seconds.
// Once file, or what SQLite has beside it, was removed or replaced, no transaction
// begins or is committed any more: the error is a *Trouble.
func OpenSQLite(ctx context.Context, file string) (*sql.DB, error) {
	q := url.Values{"_pragma": {"journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(1)", "busy_timeout(5000)"}, "_txlock": {"immediate"}}
	registered, err := sql.Open("sqlite", "") // which opens nothing
	if err != nil {
		return nil, fmt.Errorf("open database %s: %w", file, err)
	}
	defer registered.Close()
	db := sql.OpenDB(&sqliteFile{
		base: registered.Driver(), file: file, dsn: "file:" + (&url.URL{Path: file}).EscapedPath() + "?" + q.Encode(), was: map[string]os.FileInfo{},
	})
	db.SetMaxOpenConns(4)
	if err := db.PingContext(ctx); err != nil {
		db.Close()
		return nil, fmt.Errorf("open database %s: %w", file, err)
	}
	return db, nil
}

// Migrate applies the migrations of component that db has not seen: files
// NNN_name.sql in dir, in the order of their numbers, all in one transaction. A
// schema newer than this build is an error, and nothing is touched. Several
// processes may do it at once.
func Migrate(ctx context.Context, db *sql.DB, component string, files fs.FS, dir string) error {
	names, err := fs.Glob(files, path.Join(dir, "*.sql"))
	if err != nil {
		return err
	}
	slices.Sort(names)
	for i, name := range names {
		number, _, _ := strings.Cut(path.Base(name), "_")
		if n, err := strconv.Atoi(number); err != nil || n != i+1 {
			return fmt.Errorf("migrate %s: %s is not migration number %d", component, name, i+1)
		}
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("migrate %s: %w", component, err)
	}
	defer tx.Rollback()
	if err := migrate(ctx, tx, Shared(db), component, files, names); err != nil {
		return fmt.Errorf("migrate %s: %w", component, err)
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("migrate %s: %w", component, err)
	}
	return nil
}

func migrate(ctx context.Context, tx *sql.Tx, shared bool, component string, files fs.FS, names []string) error {
	if shared {
		// SQLite's transactions exclude each other by themselves.
		if err := lock(ctx, tx, "schema"); err != nil {
			return err
		}
	}
	if _, err := tx.ExecContext(ctx, `CREATE TABLE IF NOT EXISTS schema_versions (component TEXT PRIMARY KEY, version INTEGER NOT NULL)`); err != nil {
		return err
	}
	var have int
	err := tx.QueryRowContext(ctx, `SELECT version FROM schema_versions WHERE component = ?`, component).Scan(&have)
	if err != nil && err != sql.ErrNoRows {
		return err
	}
	if have > len(names) {
		return fmt.Errorf("database schema of %s is version %d, this build knows %d: run a newer build", component, have, len(names))
	}
	if have == len(names) {
		return nil
	}
	for _, name := range names[have:] {
		text, err := fs.ReadFile(files, name)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, string(text)); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO schema_versions (component, version) VALUES (?, ?) ON CONFLICT (component) DO UPDATE SET version = excluded.version`, component, len(names))
	return err
}

// Answers asks db something that it cannot know without looking.
func Answers(ctx context.Context, db *sql.DB) error {
	query := `SELECT 1`
	if !Shared(db) {
		query = `SELECT count(*) FROM sqlite_master` // in the file
	}
	var n int
	return db.QueryRowContext(ctx, query).Scan(&n)
}

// lock waits for a lock that tx then holds to its end, by a name of ours.
// PostgreSQL only.
func lock(ctx context.Context, tx *sql.Tx, name string) error {
	if _, err := tx.ExecContext(ctx, `SELECT pg_advisory_xact_lock(?)`, lockKey(name)); err != nil {
		return fmt.Errorf("lock %s: %w", name, err)
	}
	return nil
}

// lockKey is the number that PostgreSQL has in place of the name of a lock.
func lockKey(name string) int64 {
	h := fnv.New64a()
	h.Write([]byte("writ:" + name))
	return int64(h.Sum64())
}
