package revisions

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// Running is the rollout that runs.
type Running struct {
	// Number of the revision whose stage is Canary.
	Number uint64
	// Threshold: followers whose hash is at most this have it, and those of
	// Chosen.
	Threshold uint64
	Chosen    []uint64
	// Settled is whether there was a follower to have it.
	Settled bool
}

// Has reports whether a follower with this hash has the revision.
func (r *Running) Has(hash uint64) bool {
	return hash <= r.Threshold || slices.Contains(r.Chosen, hash)
}

func (r *Running) encode() []byte {
	out := binary.BigEndian.AppendUint64(nil, r.Threshold)
	for _, hash := range r.Chosen {
		out = binary.BigEndian.AppendUint64(out, hash)
	}
	return out
}

// Running returns the rollout that runs, ErrNone for none.
func (s *Store) Running(ctx context.Context) (Running, error) {
	var r Running
	var threshold []byte
	err := s.db.QueryRowContext(ctx, `SELECT number, threshold, settled FROM policy_rollout`).Scan(&r.Number, &threshold, &r.Settled)
	if errors.Is(err, sql.ErrNoRows) {
		return Running{}, ErrNone
	}
	if err == nil && (len(threshold) == 0 || len(threshold)%8 != 0) {
		err = fmt.Errorf("its threshold has %d bytes", len(threshold))
	}
	if err != nil {
		return Running{}, fmt.Errorf("read policy rollout: %w", err)
	}
	r.Threshold = binary.BigEndian.Uint64(threshold)
	for rest := threshold[8:]; len(rest) > 0; rest = rest[8:] {
		r.Chosen = append(r.Chosen, binary.BigEndian.Uint64(rest))
	}
	return r, nil
}

// StartRollout notes that a revision is rolled out, in the transaction of Add.
func (s *Store) StartRollout(ctx context.Context, tx *sql.Tx, r Running) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO policy_rollout (id, number, threshold, settled) VALUES (1, ?, ?, ?)`,
		r.Number, r.encode(), r.Settled)
	if err != nil {
		return fmt.Errorf("start policy rollout: %w", err)
	}
	return nil
}

// SettleRollout notes who has the rollout that runs.
func (s *Store) SettleRollout(ctx context.Context, r Running) error {
	_, err := s.db.ExecContext(ctx, `UPDATE policy_rollout SET threshold = ?, settled = 1 WHERE number = ?`, r.encode(), r.Number)
	if err != nil {
		return fmt.Errorf("settle policy rollout: %w", err)
	}
	return nil
}

// EndRollout leaves the revision that was rolled out in the stage, which is All
// or Halted, in a transaction of its own or of Add. before is as in Add.
func (s *Store) EndRollout(ctx context.Context, tx *sql.Tx, stage string, before func() error) error {
	own := tx == nil
	if own {
		var err error
		if tx, err = s.db.BeginTx(ctx, nil); err != nil {
			return fmt.Errorf("end policy rollout: %w", err)
		}
		defer tx.Rollback()
	}
	if _, err := tx.ExecContext(ctx, `UPDATE policy_revisions SET stage = ? WHERE number = (SELECT number FROM policy_rollout)`, stage); err != nil {
		return fmt.Errorf("end policy rollout: %w", err)
	}
	if _, err := tx.ExecContext(ctx, `DELETE FROM policy_rollout`); err != nil {
		return fmt.Errorf("end policy rollout: %w", err)
	}
	if err := before(); err != nil || !own {
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("end policy rollout: %w", err)
	}
	return nil
}
