package sqlstore

import "time"

// ConfirmAt has the store last heard of its database at that time.
func (s *Store) ConfirmAt(t time.Time) { s.confirm(t) }
