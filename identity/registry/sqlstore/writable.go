package sqlstore

import (
	"context"
	"sync"
	"time"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/internal/sqldb"
)

// Trouble is why the database does not do what it is asked.
type Trouble = sqldb.Trouble

// TroubleOf is the trouble that err tells of, nil where it tells of none.
func TroubleOf(err error) *Trouble { return sqldb.TroubleOf(err) }

// writing is whether the database could be written when that was last tried.
type writing struct {
	mu      sync.Mutex
	trouble *Trouble
	turned  chan struct{} // closed and replaced when trouble comes or goes
}

// Writable is why the database could not be written when that was last tried, nil
// where it could; turned is closed when that may have become another.
func (s *Store) Writable() (turned <-chan struct{}, trouble *Trouble) {
	s.writing.mu.Lock()
	defer s.writing.mu.Unlock()
	return s.writing.turned, s.writing.trouble
}

// wrote notes what became of a write; done is that something was written. A
// transaction that wrote nothing tells nothing. Hold mu.
func (s *Store) wrote(ctx context.Context, done bool, err error) {
	trouble := TroubleOf(err)
	if trouble == nil && !done {
		return
	}
	w := &s.writing
	w.mu.Lock()
	was := w.trouble
	w.trouble = trouble
	turned := (was == nil) != (trouble == nil) || was != nil && was.Is != trouble.Is
	if turned {
		close(w.turned)
		w.turned = make(chan struct{})
	}
	w.mu.Unlock()
	switch {
	case !turned:
	case trouble == nil:
		s.cfg.Log.WarnContext(ctx, "the registry's database can be written again", "database", sqldb.Name(s.db))
	default:
		s.cfg.Log.ErrorContext(ctx, "the registry's database cannot be written", "database", sqldb.Name(s.db), "error", trouble)
		if trouble.Lost {
			s.say(identity.Act{Kind: identity.ActAlarm, Verb: "lost", Object: "database", ObjectID: sqldb.Name(s.db), Reason: trouble.Error()})
			s.tell(ctx)
		}
	}
}

// tryAgain writes to a database that could not be written, until it can: who sees that
// this control plane is not healthy may send it nothing that would find out.
func (s *Store) tryAgain(ctx context.Context) {
	for {
		turned, trouble := s.Writable()
		var due <-chan time.Time
		if trouble != nil {
			due = time.After(s.cfg.RetryInterval)
		}
		select {
		case <-ctx.Done():
			return
		case <-turned:
			continue
		case <-due:
		}
		if err := sqldb.Room(s.db); err != nil {
			continue
		}
		// What becomes of it, Update notes.
		_ = s.Update(ctx, func(tx *Tx) error { return tx.exec(`UPDATE registry_revision SET revision = revision`) })
	}
}
