package revisions

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// Divergence is how the form that a version of the compiler made of a content
// was seen to answer otherwise than its sources; empty when it was not.
func (s *Store) Divergence(ctx context.Context, digest [32]byte, compiler string) (detail string, err error) {
	row := s.db.QueryRowContext(ctx, `SELECT detail FROM policy_divergences WHERE digest = ? AND compiler = ?`, digest[:], compiler)
	if err := row.Scan(&detail); err != nil && !errors.Is(err, sql.ErrNoRows) {
		return "", fmt.Errorf("read divergences of policy: %w", err)
	}
	return detail, nil
}

// NoteDivergence keeps that, for good. What was noted first stays. tx may be
// nil.
func (s *Store) NoteDivergence(ctx context.Context, tx *sql.Tx, digest [32]byte, compiler, detail string) error {
	exec := s.db.ExecContext
	if tx != nil {
		exec = tx.ExecContext
	}
	if _, err := exec(ctx, `INSERT INTO policy_divergences (digest, compiler, detail) VALUES (?, ?, ?) ON CONFLICT (digest, compiler) DO NOTHING`,
		digest[:], compiler, detail); err != nil {
		return fmt.Errorf("store divergence of policy: %w", err)
	}
	return nil
}
