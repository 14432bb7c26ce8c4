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
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/identity/revocation"
	"github.com/writ-dev/writ/internal/sqldb"
)

//go:embed migrations/*.sql
var migrations embed.FS

// patience is how long a transaction may take, with what its caller records in
// it. A database that does not answer at all must not hold everything up.
const patience = 30 * time.Second

// Config of a Store. KeyFile and Record are required.
type Config struct {
	// Clock is time.Now if nil.
	Clock func() time.Time
	// KeyFile holds the key that authenticates what is in the database. It is
	// made where there is none and the database was never sealed.
	KeyFile string
	// SeenFile keeps what this process has seen of the registry, so that what
	// happens to the database while it does not run is found, row by row. Empty:
	// only the seal is relied on.
	SeenFile string
	// Adopt is the digest of the entries of a database that is to be taken as it
	// is, as a *ForeignError names it.
	Adopt string
	// RetryInterval is how long after a write that failed, for want of room say, the
	// Store tries by itself to write again; 5 s when 0.
	RetryInterval time.Duration
	// Record puts alarms, and that a database was sealed, on record.
	Record identity.EmitAll
	Log    *slog.Logger
}

// Store is a registry in a SQL database. What is there is served only if it is
// what a Store with the same key left; see docs/design/store.md.
type Store struct {
	db      *sql.DB
	shared  bool // there may be other processes
	cfg     Config
	clock   func() time.Time
	index   *registry.Index
	revoked revocation.Set
	// confirmed is when the index last was what the database holds.
	confirmed atomic.Pointer[time.Time]
	// confirming is closed when it is set, doubting when doubt is, where somebody
	// waits for that.
	confirmMu            sync.Mutex
	confirming, doubting chan struct{}
	// replicaSignal is closed when the replicas change.
	replicaMu     sync.Mutex
	replicaSignal chan struct{}
	writing       writing
	// mu makes transactions and their application to the index one step, so
	// that the index sees changes in the order of their revisions. It guards what
	// follows.
	mu sync.Mutex
	// broken is set when the outcome of a commit is not known and the content
	// could not be read again.
	broken error
	key    *sealer
	// total is the sum of the entries that are to be there, those of the index and
	// those that are withheld, and of facts.
	total sum
	facts map[string]fact
	// wrongFacts is how many rows of facts were not as they are to be.
	wrongFacts int
	// judged is the state of the database that total and index were made of.
	judged state
	// named is what is known of the templates in the database; unnamed tells everybody
	// that they are withheld.
	named   sealedTemplates
	unnamed atomic.Bool
	memory  *memory
	unsaid  []identity.Act // alarms that are not on record yet
	swept   string         // ID of the entry that was looked at last
	// withheld is replaced, never changed; it is written under mu.
	withheld atomic.Pointer[map[string]*Withheld]
	// more is how many rows are none and are not in withheld, of which there
	// would be too many.
	more atomic.Int64
	// forged are what was refused for want of a mark, so that it is said once;
	// refused counts the rows among it.
	forged  sync.Map
	refused atomic.Uint64
	// alarms counts what was found of all time.
	alarms atomic.Uint64
	// doubt is why nothing can be said about the database; nil if it can.
	doubt atomic.Pointer[ForeignError]
}

// Open brings the schema up to date and loads the registry. The database stays
// the caller's to close, and so is the Store. A *ForeignError says that the
// database is not one that a store with this key left.
func Open(ctx context.Context, db *sql.DB, cfg Config) (*Store, error) {
	if cfg.KeyFile == "" || cfg.Record == nil {
		return nil, errors.New("open registry: key file and record are required")
	}
	if cfg.RetryInterval == 0 {
		cfg.RetryInterval = 5 * time.Second
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if err := sqldb.Migrate(ctx, db, "registry", migrations, "migrations"); err != nil {
		return nil, err
	}
	s := &Store{db: db, shared: sqldb.Shared(db), cfg: cfg, clock: cfg.Clock, replicaSignal: make(chan struct{}), writing: writing{turned: make(chan struct{})}}
	s.withheld.Store(&map[string]*Withheld{})
	s.index = registry.NewIndex(0, nil, nil)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(err, s.memory.close())
	}
	return s, nil
}

func (s *Store) open(ctx context.Context) error {
	was, err := s.openKey(ctx)
	if err != nil {
		return err
	}
	asked := time.Now()
	if err := s.load(ctx, was); err != nil {
		return err
	}
	doubt := s.doubt.Load()
	if doubt != nil && s.cfg.Adopt != "" {
		if err := s.adopt(ctx); err != nil {
			return err
		}
		if err := s.load(ctx, seen{}); err != nil {
			return err
		}
		doubt = s.doubt.Load()
	}
	if doubt != nil {
		return doubt
	}
	s.confirm(asked)
	if s.judged.facts == 0 || s.wrongFacts > 0 {
		return s.settleFacts(ctx)
	}
	return nil
}

// settleFacts begins to keep facts of a database of before, or mends their rows.
func (s *Store) settleFacts(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), adoptionPatience)
	defer cancel()
	tx := s.newTx(ctx)
	err := s.update(tx, func(tx *Tx) error {
		if s.judged.facts != 0 {
			return tx.mendFacts()
		}
		tx.introduces = true
		if err := tx.gatherFacts(); err != nil {
			return err
		}
		return s.cfg.Record(ctx, []identity.Act{factsAct(s.key.id, len(tx.facts))})
	})
	if err != nil {
		return fmt.Errorf("note what is latest in the registry: %w", err)
	}
	return nil
}

// Close ends what the store keeps beside its database.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.memory.close()
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
		s.wrote(ctx, false, err)
		return err
	}
	tx := s.newTx(ctx)
	err := s.update(tx, fn)
	s.wrote(ctx, tx.committed && (tx.wrote || tx.changed()), err)
	// Whatever became of it: it met what nobody should have written.
	s.suspect(ctx, tx)
	return err
}

func (s *Store) newTx(ctx context.Context) *Tx {
	return &Tx{ctx: ctx, s: s, now: s.clock(), total: s.total, written: map[string]written{}}
}

func (s *Store) update(tx *Tx, fn func(*Tx) error) error {
	begun := time.Now()
	sqlTx, err := s.db.BeginTx(tx.ctx, nil)
	if err != nil {
		return fmt.Errorf("begin registry transaction: %w", err)
	}
	defer sqlTx.Rollback()
	tx.tx = sqlTx
	if err := s.takeTurn(tx); err != nil {
		return fmt.Errorf("begin registry transaction: %w", err)
	}
	if err := fn(tx); err != nil {
		return err
	}
	next, named := s.judged, s.named
	if tx.changed() {
		if named, err = tx.sealTemplates(); err != nil {
			return err
		}
		facts := s.judged.facts
		if tx.introduces {
			facts = tx.change.Revision
		}
		next = state{
			revision: tx.change.Revision, keyID: s.key.id, seal: s.key.seal(tx.change.Revision, tx.total, named.revision, facts),
			templates: named.revision, templatesSeal: named.seal, facts: facts,
		}
		if err := tx.exec(`UPDATE registry_revision SET revision = ?, key_id = ?, seal = ?, templates_revision = ?, templates_seal = ?, facts = ?`,
			int64(next.revision), next.keyID, []byte(next.seal), int64(named.revision), []byte(named.seal), int64(facts)); err != nil {
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
		return errors.Join(failed, s.mend(tx.ctx))
	}
	tx.committed = true
	if tx.changed() {
		s.judged, s.total = next, tx.total
		s.setNamed(named)
		s.takeFacts(tx.facts)
		s.index.Apply(tx.change)
		s.remember(next.revision, tx.digests())
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
	st, err := tx.state(suffix)
	if err != nil {
		return err
	}
	if s.shared {
		if err := s.catchUp(tx, st); err != nil {
			return err
		}
	} else {
		s.checkState(tx.ctx, st)
	}
	tx.total = s.total
	if doubt := s.doubt.Load(); doubt != nil {
		return doubt
	}
	// The index is now at the database's revision. Where it is not, somebody else
	// wrote that, and it does not count.
	have, _ := s.index.Revision()
	tx.change.Revision = have + 1
	return nil
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
	if err := s.load(ctx, s.known()); err != nil {
		return err
	}
	s.broken = nil
	return nil
}

// LoadJournal returns the document that SaveJournal kept, nil if there is none.
func (s *Store) LoadJournal(ctx context.Context) (doc []byte, err error) {
	err = s.look(ctx, func(t *Tx) error {
		var mark []byte
		err := t.queryRow(`SELECT journal, mark FROM registry_authorities`).Scan(&doc, &mark)
		switch {
		case errors.Is(err, sql.ErrNoRows) && t.holds(factJournal, ""):
			t.undone(factJournal, "", "authorities", "their row in the database is gone")
			return ErrForged
		case errors.Is(err, sql.ErrNoRows):
			return nil
		case err != nil:
			return err
		}
		if err := s.checkJournal(ctx, "", doc, mark); err != nil {
			return err
		}
		if t.stale(factJournal, "", "authorities", mark) != nil {
			return ErrForged
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("load authorities: %w", err)
	}
	return doc, nil
}

// look runs fn on the state of the database that the store knows; it must not write.
func (s *Store) look(ctx context.Context, fn func(*Tx) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	sqlTx, err := s.view(ctx)
	if err != nil {
		return err
	}
	defer sqlTx.Rollback()
	t := &Tx{ctx: ctx, s: s, tx: sqlTx, now: s.clock()}
	if s.shared {
		st, err := t.state("")
		if err != nil {
			return err
		}
		if err := s.catchUp(t, st); err != nil {
			return err
		}
		t.facts = nil // they are the store's now
	}
	if doubt := s.doubt.Load(); doubt != nil {
		return doubt
	}
	err = fn(t)
	s.tell(ctx)
	return err
}

// takeFacts makes facts those of the store; nil is of one that holds no more.
func (s *Store) takeFacts(facts map[string]*fact) {
	for id, f := range facts {
		if f == nil {
			delete(s.facts, id)
		} else {
			s.facts[id] = *f
		}
	}
}

// SaveJournal replaces the document that describes the authorities.
func (s *Store) SaveJournal(ctx context.Context, doc []byte) error {
	mark := s.journalMark("", doc)
	err := s.Update(ctx, func(tx *Tx) error {
		if err := tx.exec(`INSERT INTO registry_authorities (only, journal, mark) VALUES (1, ?, ?) ON CONFLICT (only) DO UPDATE SET journal = excluded.journal, mark = excluded.mark`, doc, mark); err != nil {
			return err
		}
		return tx.setLatest(factJournal, "", mark)
	})
	if err != nil {
		return fmt.Errorf("save authorities: %w", err)
	}
	return nil
}
