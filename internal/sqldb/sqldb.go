// Package sqldb opens the database of a control plane and brings its schema up
// to date. Each component owns its tables and its numbered migrations.
package sqldb

import (
	"context"
	"database/sql"
	"fmt"
	"io/fs"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"

	_ "modernc.org/sqlite" // the pure Go driver "sqlite"
)

// OpenSQLite opens, or creates, the SQLite database in file. Writes are
// durable when a transaction returns (synchronous=FULL), transactions take the
// write lock at their start, and a locked database is waited for five seconds.
func OpenSQLite(ctx context.Context, file string) (*sql.DB, error) {
	q := url.Values{"_pragma": {"journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(1)", "busy_timeout(5000)"}, "_txlock": {"immediate"}}
	db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: file}).EscapedPath()+"?"+q.Encode())
	if err != nil {
		return nil, fmt.Errorf("open database %s: %w", file, err)
	}
	db.SetMaxOpenConns(4)
	if err := db.PingContext(ctx); err != nil {
		db.Close()
		return nil, fmt.Errorf("open database %s: %w", file, err)
	}
	return db, nil
}

// Migrate applies the migrations of component that db has not seen: files
// NNN_name.sql in dir, in the order of their numbers, each in a transaction.
// A schema newer than this build is an error, and nothing is touched.
func Migrate(ctx context.Context, db *sql.DB, component string, files fs.FS, dir string) error {
	names, err := fs.Glob(files, path.Join(dir, "*.sql"))
	if err != nil {
		return err
	}
	slices.Sort(names)
	if _, err := db.ExecContext(ctx, `CREATE TABLE IF NOT EXISTS schema_versions (component TEXT PRIMARY KEY, version INTEGER NOT NULL)`); err != nil {
		return fmt.Errorf("migrate %s: %w", component, err)
	}
	var have int
	err = db.QueryRowContext(ctx, `SELECT version FROM schema_versions WHERE component = ?`, component).Scan(&have)
	if err != nil && err != sql.ErrNoRows {
		return fmt.Errorf("migrate %s: %w", component, err)
	}
	if have > len(names) {
		return fmt.Errorf("database schema of %s is version %d, this build knows %d: run a newer build", component, have, len(names))
	}
	for i, name := range names {
		number, _, _ := strings.Cut(path.Base(name), "_")
		if n, err := strconv.Atoi(number); err != nil || n != i+1 {
			return fmt.Errorf("migrate %s: %s is not migration number %d", component, name, i+1)
		}
		if i < have {
			continue
		}
		if err := apply(ctx, db, component, i+1, files, name); err != nil {
			return fmt.Errorf("migrate %s: %s: %w", component, name, err)
		}
	}
	return nil
}

func apply(ctx context.Context, db *sql.DB, component string, version int, files fs.FS, name string) error {
	text, err := fs.ReadFile(files, name)
	if err != nil {
		return err
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, string(text)); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO schema_versions (component, version) VALUES (?, ?) ON CONFLICT (component) DO UPDATE SET version = excluded.version`, component, version); err != nil {
		return err
	}
	return tx.Commit()
}
