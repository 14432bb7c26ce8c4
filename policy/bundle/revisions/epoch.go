package revisions

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"time"

	"github.com/writ-dev/writ/internal/sqldb"
	"github.com/writ-dev/writ/policy"
)

//go:embed migrations_epoch/*.sql
var epochMigrations embed.FS

// ErrEpoch is returned for an epoch that is not higher than the present one.
var ErrEpoch = errors.New("the epoch can only be raised")

// EpochRaise is the act that raised the epoch.
type EpochRaise struct {
	Epoch uint64
	// From is what was in force before, zero for nothing.
	From   policy.Revision
	Raised time.Time
	Actor  string
	Reason string
	// Statement is what the decision key signed; see bundle.EpochStatement.
	Statement string
}

func migrateEpoch(ctx context.Context, db *sql.DB) error {
	return sqldb.Migrate(ctx, db, "policy_epoch", epochMigrations, "migrations_epoch")
}

// Epoch is the epoch of the next revision.
func (s *Store) Epoch(ctx context.Context) (epoch uint64, err error) {
	if err := s.db.QueryRowContext(ctx, `SELECT epoch FROM policy_epoch`).Scan(&epoch); err != nil {
		return 0, fmt.Errorf("read policy epoch: %w", err)
	}
	return epoch, nil
}

// Newest is the newest revision there ever was, in force or not; zero for none.
func (s *Store) Newest(ctx context.Context) (r policy.Revision, err error) {
	var digest []byte
	err = s.db.QueryRowContext(ctx, `SELECT epoch, number, digest FROM policy_revisions ORDER BY epoch DESC, number DESC LIMIT 1`).
		Scan(&r.Epoch, &r.Number, &digest)
	if errors.Is(err, sql.ErrNoRows) {
		return policy.Revision{}, nil
	}
	if err != nil {
		return policy.Revision{}, fmt.Errorf("read policy revisions: %w", err)
	}
	copy(r.Digest[:], digest)
	return r, nil
}

// RaiseEpoch puts the next revision into the epoch, which is higher than the
// present one: ErrEpoch otherwise. before is as in Add.
func (s *Store) RaiseEpoch(ctx context.Context, r EpochRaise, before func() error) error {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("raise policy epoch: %w", err)
	}
	defer tx.Rollback()
	done, err := tx.ExecContext(ctx, `UPDATE policy_epoch SET epoch = ? WHERE epoch < ?`, r.Epoch, r.Epoch)
	if err != nil {
		return fmt.Errorf("raise policy epoch: %w", err)
	}
	if n, err := done.RowsAffected(); err != nil || n != 1 {
		return errors.Join(ErrEpoch, err)
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO policy_epoch_raises
		(epoch, from_epoch, from_number, from_digest, raised, actor, reason, statement) VALUES (?, ?, ?, ?, ?, ?, ?, ?)`,
		r.Epoch, r.From.Epoch, r.From.Number, r.From.Digest[:], r.Raised.UnixNano(), r.Actor, r.Reason, r.Statement); err != nil {
		return fmt.Errorf("raise policy epoch: %w", err)
	}
	if err := before(); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("raise policy epoch: %w", err)
	}
	return nil
}

// EpochRaises returns each raise of the epoch, newest first.
func (s *Store) EpochRaises(ctx context.Context) ([]EpochRaise, error) {
	rows, err := s.db.QueryContext(ctx, `SELECT epoch, from_epoch, from_number, from_digest, raised, actor, reason, statement
		FROM policy_epoch_raises ORDER BY epoch DESC`)
	if err != nil {
		return nil, fmt.Errorf("list epochs: %w", err)
	}
	defer rows.Close()
	var all []EpochRaise
	for rows.Next() {
		var r EpochRaise
		var digest []byte
		var raised int64
		if err := rows.Scan(&r.Epoch, &r.From.Epoch, &r.From.Number, &digest, &raised, &r.Actor, &r.Reason, &r.Statement); err != nil {
			return nil, fmt.Errorf("list epochs: %w", err)
		}
		copy(r.From.Digest[:], digest)
		r.Raised = time.Unix(0, raised).UTC()
		all = append(all, r)
	}
	return all, rows.Err()
}

// Took reports whether the content of the digest was taken from the source
// before, and whether it is what was taken last.
func (s *Store) Took(ctx context.Context, source string, digest [32]byte) (ever, last bool, err error) {
	err = s.db.QueryRowContext(ctx, `SELECT taken = (SELECT MAX(taken) FROM policy_taken WHERE source = ?)
		FROM policy_taken WHERE source = ? AND digest = ?`, source, source, digest[:]).Scan(&last)
	if errors.Is(err, sql.ErrNoRows) {
		return false, false, nil
	}
	if err != nil {
		return false, false, fmt.Errorf("read what was taken from %s: %w", source, err)
	}
	return true, last, nil
}

// Take notes what was taken from the source.
func (s *Store) Take(ctx context.Context, source string, digest [32]byte) error {
	_, err := s.db.ExecContext(ctx, `INSERT INTO policy_taken (source, digest, taken)
		VALUES (?, ?, (SELECT COALESCE(MAX(taken), 0) + 1 FROM policy_taken WHERE source = ?)) ON CONFLICT DO NOTHING`, source, digest[:], source)
	if err != nil {
		return fmt.Errorf("note what was taken from %s: %w", source, err)
	}
	return nil
}
