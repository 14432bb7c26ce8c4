package sqlstore

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/writ-dev/writ/internal/sqldb"
)

const (
	// heartbeat is how often a replica asks for the revision when it hears of
	// none.
	heartbeat = 2 * time.Second
	// MaxStale is how long a replica may be cut off from a shared database and
	// still be asked. Longer, and it might serve what others took away.
	MaxStale = 10 * time.Second
)

// StaleError says that this process does not know what others did to the
// registry meanwhile. Ask another replica, or later.
type StaleError struct{ Age time.Duration }

func (e *StaleError) Error() string {
	return fmt.Sprintf("the database has not answered for %s, so what other replicas changed is not known here", e.Age.Round(time.Second))
}

// Shared reports whether other processes may change the registry: it is in
// PostgreSQL.
func (s *Store) Shared() bool { return s.shared }

// Fresh is nil when the index holds what the database holds, but for what was
// committed elsewhere in the last milliseconds, or MaxStale where notifications
// do not arrive. Otherwise it is a *StaleError, or a *ForeignError where the
// database is not what replicas left.
func (s *Store) Fresh() error {
	if doubt := s.doubt.Load(); doubt != nil {
		return doubt
	}
	if !s.shared {
		return nil
	}
	if age := time.Since(*s.confirmed.Load()); age > MaxStale {
		return &StaleError{Age: age}
	}
	return nil
}

// Lag is how far a store is behind its database.
type Lag struct {
	// Changes are in the database and not known here yet.
	Changes uint64
	// Age is how long ago what is known here was last known to be all.
	Age time.Duration
}

// Lag asks the database. Where that fails only Age stands.
func (s *Store) Lag(ctx context.Context) (Lag, error) {
	if !s.shared {
		return Lag{}, nil
	}
	var revision uint64
	err := s.db.QueryRowContext(ctx, `SELECT revision FROM registry_revision`).Scan(&revision)
	// Last, so that what was made known meanwhile is no lag.
	have, _ := s.index.Revision()
	lag := Lag{Age: max(0, time.Since(*s.confirmed.Load()))}
	if err != nil {
		return lag, fmt.Errorf("follow the registry: %w", err)
	}
	if revision > have {
		lag.Changes = revision - have
	}
	return lag, nil
}

// Freshness is Fresh, with how long that stands if nothing happens (zero is for
// ever) and a channel that is closed when something does: the database has
// answered, of a store that is not fresh; otherwise, it is not what was left.
func (s *Store) Freshness() (until time.Time, changed <-chan struct{}, err error) {
	s.confirmMu.Lock()
	defer s.confirmMu.Unlock()
	signal := &s.doubting
	if err = s.Fresh(); err != nil {
		signal = &s.confirming
	} else if s.shared {
		until = s.confirmed.Load().Add(MaxStale)
	}
	if *signal == nil {
		*signal = make(chan struct{})
	}
	return until, *signal, err
}

// setDoubt says why nothing can be said about the database, nil if it can.
func (s *Store) setDoubt(doubt *ForeignError) {
	s.confirmMu.Lock()
	defer s.confirmMu.Unlock()
	if s.doubt.Swap(doubt) == doubt {
		return
	}
	for _, signal := range []*chan struct{}{&s.doubting, &s.confirming} {
		if *signal != nil {
			close(*signal)
			*signal = nil
		}
	}
}

// confirm notes that the index was the database's content at that time.
func (s *Store) confirm(at time.Time) {
	s.confirmed.Store(&at)
	s.confirmMu.Lock()
	defer s.confirmMu.Unlock()
	if s.confirming != nil {
		close(s.confirming)
		s.confirming = nil
	}
}

// Follow applies what other processes commit, as they commit it, until ctx
// ends. Where the database has one process nobody else commits. Meanwhile, a
// database that could not be written is tried again.
func (s *Store) Follow(ctx context.Context, log *slog.Logger) error {
	var trying sync.WaitGroup
	defer trying.Wait()
	trying.Go(func() { s.tryAgain(ctx) })
	if !s.shared {
		<-ctx.Done()
		return nil
	}
	return sqldb.Listen(ctx, s.db, channel, heartbeat, log, s.Refresh)
}

// Refresh applies what others have committed. It asks the database for its
// revision, and for what changed since ours; so a caller that finds nothing in
// the index, where another process may just have put it, can look again after
// it.
func (s *Store) Refresh(ctx context.Context) error {
	if !s.shared {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refresh(ctx)
}

func (s *Store) refresh(ctx context.Context) error {
	asked := time.Now()
	sqlTx, err := s.view(ctx)
	if err != nil {
		return fmt.Errorf("follow the registry: %w", err)
	}
	defer sqlTx.Rollback()
	t := &Tx{ctx: ctx, s: s, tx: sqlTx}
	st, err := t.state("")
	if err == nil {
		err = s.catchUp(t, st)
	}
	if err != nil {
		return fmt.Errorf("follow the registry: %w", err)
	}
	s.broken = nil
	s.confirm(asked)
	return nil
}

// view begins a transaction that sees one state throughout.
func (s *Store) view(ctx context.Context) (*sql.Tx, error) {
	if !s.shared {
		return s.db.BeginTx(ctx, nil)
	}
	return s.db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
}

// catchUp brings the index to the state of the database, which is what t sees and
// what nobody changes meanwhile.
func (s *Store) catchUp(t *Tx, st state) error {
	if s.judged.same(st) {
		return nil
	}
	have, _ := s.index.Revision()
	if have < st.floor || have >= st.revision {
		// The log does not reach back, or the database was put back.
		return s.reload(t, st, s.known())
	}
	touched, err := t.changedSince(have)
	if err != nil {
		return err
	}
	total, fits := s.totalAfter(touched.digests)
	if !fits || !s.key.seals(st, total) {
		return s.reload(t, st, s.known())
	}
	// What holds now, for the rows that are read here.
	t.facts = touched.facts()
	change, held, err := t.changes(s.index, touched)
	if err != nil {
		return err
	}
	if st.templates != s.named.revision || st.templatesSeal != s.named.seal {
		if err := s.followTemplates(t, st, &change); err != nil {
			return err
		}
	}
	if touched.Revocations {
		// First, so that who is woken by the change knows of it.
		if err := s.mergeRevocations(t, have); err != nil {
			return err
		}
	}
	change.Revision = st.revision
	s.judged, s.total = st, total
	s.takeFacts(t.facts)
	t.facts = nil
	s.setDoubt(nil)
	s.index.Apply(change)
	s.hold(t.ctx, held, nil, false)
	s.remember(st.revision, touched.digests)
	if touched.Replicas {
		s.tellReplicas()
	}
	return nil
}

// totalAfter is the sum of what is to be there after the log of changes.
func (s *Store) totalAfter(log map[string]*digest) (total sum, known bool) {
	total = s.total
	for id, d := range log {
		if before, known := s.expected(id); known {
			s.key.toggle(&total, before)
		}
		if d != nil {
			s.key.toggle(&total, *d)
		}
	}
	return total, log != nil
}
