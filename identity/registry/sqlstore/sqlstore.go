// Package sqlstore makes the registry durable in a SQL database. Reads are
// answered by a registry.Index in memory; writes are transactions that reach
// the Index once they are committed. SQLite has one process; on PostgreSQL
// there may be several, each of which follows what the others commit.
package sqlstore

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/identity/revocation"
	"github.com/writ-dev/writ/internal/sqldb"
)

//go:embed migrations/*.sql
var migrations embed.FS

// patience is how long a transaction may take, with what its caller records in
// it. A database that does not answer at all must not hold everything up.
const patience = 30 * time.Second

// Store is a registry in a SQL database.
type Store struct {
	db      *sql.DB
	shared  bool // there may be other processes
	clock   func() time.Time
	index   *registry.Index
	revoked revocation.Set
	// confirmed is when the index last was what the database holds.
	confirmed atomic.Pointer[time.Time]
	// confirming is closed when it is set, where somebody waits for that.
	confirmMu  sync.Mutex
	confirming chan struct{}
	// replicaSignal is closed when the replicas change.
	replicaMu     sync.Mutex
	replicaSignal chan struct{}
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
	s := &Store{db: db, shared: sqldb.Shared(db), clock: clock, replicaSignal: make(chan struct{})}
	asked := time.Now()
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
	s.confirm(asked)
	return s, nil
}

// Index is the content of the store, kept current.
func (s *Store) Index() *registry.Index { return s.index }

// Update runs fn in a transaction and commits what it did. When fn returns an
// error nothing is kept. Transactions follow each other, those of other
// processes too, and the index holds all that was committed before; so what fn
// reads there does not change until it is done. Once begun, a transaction does
// not heed ctx's end: fn may already have told others what is being done.
func (s *Store) Update(ctx context.Context, fn func(*Tx) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	if err := s.mend(ctx); err != nil {
		return err
	}
	begun := time.Now()
	sqlTx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin registry transaction: %w", err)
	}
	defer sqlTx.Rollback()
	tx := &Tx{ctx: ctx, tx: sqlTx, now: s.clock()}
	if err := s.takeTurn(tx); err != nil {
		return fmt.Errorf("begin registry transaction: %w", err)
	}
	if err := fn(tx); err != nil {
		return err
	}
	changed := !tx.change.Empty() || len(tx.revoked) > 0 || tx.replicasChanged
	if changed {
		if err := tx.exec(`UPDATE registry_revision SET revision = ?`, int64(tx.change.Revision)); err != nil {
			return fmt.Errorf("write registry revision: %w", err)
		}
		if s.shared {
			if err := tx.announce(); err != nil {
				return err
			}
		}
	}
	if err := sqlTx.Commit(); err != nil {
		failed := &CommitError{Err: err}
		s.broken = failed // until mended; what is returned is the failure in any case
		return errors.Join(failed, s.mend(ctx))
	}
	if changed {
		s.index.Apply(tx.change)
	}
	if tx.replicasChanged {
		s.tellReplicas()
	}
	s.confirm(begun)
	// With nothing new, this forgets what has expired.
	_, err = s.revoked.Merge(tx.revoked, tx.now)
	return err
}

// takeTurn makes the transaction the only one that writes, and numbers it. The
// numbers are in the order of the commits: on SQLite by the write lock that the
// transaction began with, on PostgreSQL by the lock on the one row that has the
// number, which is held until the commit.
func (s *Store) takeTurn(tx *Tx) error {
	suffix := ""
	if s.shared {
		suffix = ` FOR UPDATE`
	}
	revision, floor, err := s.revision(tx, suffix)
	if err != nil {
		return err
	}
	tx.change.Revision = revision + 1
	if !s.shared {
		return nil
	}
	return s.catchUp(tx, revision, floor)
}

// CommitError is a commit that failed: nobody knows whether the change was
// kept. The store reads its content again before it does anything else.
type CommitError struct{ Err error }

func (e *CommitError) Error() string { return "commit registry transaction: " + e.Err.Error() }

// Unwrap returns the database's error.
func (e *CommitError) Unwrap() error { return e.Err }

// mend reads the content again after a commit of unknown outcome. A commit that
// a lost server is still about is found later, as one of another process would
// be.
func (s *Store) mend(ctx context.Context) error {
	if s.broken == nil {
		return nil
	}
	if s.shared {
		return s.refresh(ctx)
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
