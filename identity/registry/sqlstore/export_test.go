package sqlstore

import (
	"context"
	"time"
)

// ConfirmAt has the store last heard of its database at that time.
func (s *Store) ConfirmAt(t time.Time) { s.confirm(t) }

// LeaveWithoutFacts makes the database one of a build that kept no facts.
func (s *Store) LeaveWithoutFacts(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	total := s.total
	for _, f := range s.facts {
		s.key.toggle(&total, f.digest)
	}
	st := s.judged
	if _, err := s.db.ExecContext(ctx, `UPDATE registry_revision SET facts = 0, seal = ?`, []byte(s.key.seal(st.revision, total, st.templates, 0))); err != nil {
		return err
	}
	_, err := s.db.ExecContext(ctx, `DELETE FROM registry_facts`)
	return err
}
