// Package sqlstore makes the registry durable in a SQL database. Reads are
// answered by a registry.Index in memory, so one process owns the database;
// writes are transactions that reach the Index once they are committed.
package sqlstore

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/identity/revocation"
	"github.com/writ-dev/writ/internal/sqldb"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Store is a registry in a SQL database.
type Store struct {
	db      *sql.DB
	clock   func() time.Time
	index   *registry.Index
	revoked revocation.Set
	// mu makes transactions and their application to the index one step, so
	// that the index sees changes in the order of their revisions.
	mu sync.Mutex
	// broken is set when the outcome of a commit is not known and the content
	// could not be read again.
	broken error
}

// Open brings the schema up to date and loads the registry. The database stays
// the caller's to close.
func Open(ctx context.Context, db *sql.DB, clock func() time.Time) (*Store, error) {
	if err := sqldb.Migrate(ctx, db, "registry", migrations, "migrations"); err != nil {
		return nil, err
	}
	s := &Store{db: db, clock: clock}
	revision, entries, agents, err := s.load(ctx)
	if err != nil {
		return nil, err
	}
	s.index = registry.NewIndex(revision, entries, agents)
	if err := s.loadFederation(ctx); err != nil {
		return nil, err
	}
	if err := s.loadRevocations(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// Index is the content of the store, kept current.
func (s *Store) Index() *registry.Index { return s.index }

// Update runs fn in a transaction and commits what it did. When fn returns an
// error nothing is kept. Once begun, a transaction does not heed ctx's end: fn
// may already have told others what is being done.
func (s *Store) Update(ctx context.Context, fn func(*Tx) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	if err := s.mend(ctx); err != nil {
		return err
	}
	sqlTx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin registry transaction: %w", err)
	}
	defer sqlTx.Rollback()
	tx := &Tx{ctx: ctx, tx: sqlTx, now: s.clock()}
	if err := tx.queryRow(`SELECT revision + 1 FROM registry_revision`).Scan(&tx.change.Revision); err != nil {
		return fmt.Errorf("read registry revision: %w", err)
	}
	if err := fn(tx); err != nil {
		return err
	}
	changed := !tx.change.Empty() || len(tx.revoked) > 0
	if changed {
		if err := tx.exec(`UPDATE registry_revision SET revision = ?`, int64(tx.change.Revision)); err != nil {
			return fmt.Errorf("write registry revision: %w", err)
		}
	}
	if err := sqlTx.Commit(); err != nil {
		s.broken = &CommitError{Err: err}
		return errors.Join(s.broken, s.mend(ctx))
	}
	if changed {
		s.index.Apply(tx.change)
	}
	// With nothing new, this forgets what has expired.
	_, err = s.revoked.Merge(tx.revoked, tx.now)
	return err
}

// CommitError is a commit that failed: nobody knows whether the change was
// kept. The store reads its content again before it does anything else.
type CommitError struct{ Err error }

func (e *CommitError) Error() string { return "commit registry transaction: " + e.Err.Error() }

// Unwrap returns the database's error.
func (e *CommitError) Unwrap() error { return e.Err }

// mend reads the content again after a commit of unknown outcome.
func (s *Store) mend(ctx context.Context) error {
	if s.broken == nil {
		return nil
	}
	revision, entries, agents, err := s.load(ctx)
	if err != nil {
		return err
	}
	if err := s.loadFederation(ctx); err != nil {
		return err
	}
	s.index.Reload(revision, entries, agents)
	if err := s.loadRevocations(ctx); err != nil {
		return err
	}
	s.broken = nil
	return nil
}

// LoadJournal returns the document that SaveJournal kept, nil if there is none.
func (s *Store) LoadJournal(ctx context.Context) ([]byte, error) {
	var doc []byte
	err := s.db.QueryRowContext(ctx, `SELECT journal FROM registry_authorities`).Scan(&doc)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("load authorities: %w", err)
	}
	return doc, nil
}

// SaveJournal replaces the document that describes the authorities.
func (s *Store) SaveJournal(ctx context.Context, doc []byte) error {
	_, err := s.db.ExecContext(ctx, `INSERT INTO registry_authorities (only, journal) VALUES (1, ?) ON CONFLICT (only) DO UPDATE SET journal = excluded.journal`, doc)
	if err != nil {
		return fmt.Errorf("save authorities: %w", err)
	}
	return nil
}
