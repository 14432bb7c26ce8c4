package sqlstore

import (
	"fmt"
	"time"

	"github.com/writ-dev/writ/identity/revocation"
)

// Revocations is what is revoked, kept current.
func (s *Store) Revocations() *revocation.Set { return &s.revoked }

// mergeRevocations adds what was revoked after a revision.
func (s *Store) mergeRevocations(t *Tx, after uint64) error {
	all, err := t.revocationsSince(after)
	if err != nil {
		return fmt.Errorf("load revocations: %w", err)
	}
	if _, err := s.revoked.Merge(all, s.clock()); err != nil {
		return fmt.Errorf("load revocations: %w", err)
	}
	return nil
}

func (t *Tx) revocationsSince(revision uint64) ([]*revocation.Revocation, error) {
	rows, err := t.tx.QueryContext(t.ctx, `SELECT kind, subject, number, issued_before, backdate, revoked_at, expires_at, actor, reason FROM registry_revocations WHERE number > ?`, int64(revision))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []*revocation.Revocation
	for rows.Next() {
		var r revocation.Revocation
		var number, before, backdate, revoked, expires int64
		if err := rows.Scan(&r.Kind, &r.Subject, &number, &before, &backdate, &revoked, &expires, &r.Actor, &r.Reason); err != nil {
			return nil, err
		}
		r.Number, r.Backdate = uint64(number), time.Duration(backdate)*time.Second
		r.Before, r.Revoked, r.Expires = fromUnix(before), fromUnix(revoked), fromUnix(expires)
		all = append(all, &r)
	}
	return all, rows.Err()
}

// Revoke keeps a revocation, and returns it with its number. A subject that is
// revoked already is revoked until the later of the two times.
func (t *Tx) Revoke(r revocation.Revocation) (*revocation.Revocation, error) {
	r.Number = t.change.Revision
	if err := r.Validate(); err != nil {
		return nil, err
	}
	err := t.exec(`INSERT INTO registry_revocations (kind, subject, number, issued_before, backdate, revoked_at, expires_at, actor, reason) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (kind, subject) DO UPDATE SET number = excluded.number, backdate = excluded.backdate, revoked_at = excluded.revoked_at, actor = excluded.actor, reason = excluded.reason,
		issued_before = CASE WHEN excluded.issued_before > registry_revocations.issued_before THEN excluded.issued_before ELSE registry_revocations.issued_before END,
		expires_at = CASE WHEN excluded.expires_at > registry_revocations.expires_at THEN excluded.expires_at ELSE registry_revocations.expires_at END`,
		string(r.Kind), r.Subject, int64(r.Number), unix(r.Before), int64(r.Backdate/time.Second), unix(r.Revoked), unix(r.Expires), r.Actor, r.Reason)
	if err != nil {
		return nil, fmt.Errorf("revoke %s: %w", &r, err)
	}
	t.revoked = append(t.revoked, &r)
	return &r, nil
}

// PruneRevocations forgets what expired before the given time, and says how
// many.
func (t *Tx) PruneRevocations(before time.Time) (int64, error) {
	res, err := t.tx.ExecContext(t.ctx, `DELETE FROM registry_revocations WHERE expires_at < ?`, before.Unix())
	if err != nil {
		return 0, fmt.Errorf("prune revocations: %w", err)
	}
	return res.RowsAffected()
}
