package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
	"github.com/writ-dev/writ/internal/sqldb"
)

// openDB opens the database: PostgreSQL where one is configured, otherwise a
// SQLite file in the data directory, which is made here, so that SQLite's files
// beside it get the mode that nobody else can read.
func (w *writd) openDB(ctx context.Context) error {
	if w.cfg.Database != nil {
		dsn, err := w.cfg.Database.DSN()
		if err != nil {
			return err
		}
		w.db, err = sqldb.OpenPostgres(ctx, dsn)
		return err
	}
	file, err := os.OpenFile(w.path("writ.db"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("database: %w", err)
	}
	if err := file.Close(); err != nil {
		return fmt.Errorf("database: %w", err)
	}
	w.db, err = sqldb.OpenSQLite(ctx, w.path("writ.db"))
	return err
}

// explain adds to an error which database it is of, and what to do.
func (w *writd) explain(err error) error {
	t := sqldb.TroubleOf(err)
	if t == nil {
		return err
	}
	name := w.path("writ.db")
	if w.db != nil {
		name = sqldb.Name(w.db)
	}
	return fmt.Errorf("the database %s %s: %s: %w", name, t.Is, t.Do, err)
}

// holdDecision keeps a second control plane from running the decision role on a
// shared database. What is in force is kept in memory, and one that does not
// hear of the other's activations would go on serving what was replaced.
func (w *writd) holdDecision(ctx context.Context) error {
	if !sqldb.Shared(w.db) {
		return nil
	}
	return w.hold(ctx, "decision", "runs the decision role on database "+sqldb.Name(w.db)+", and only one may: leave decision out of this one's roles")
}

// replica is the name of this control plane among those that share a database,
// empty where there is one.
func (w *writd) replica() string {
	if !sqldb.Shared(w.db) {
		return ""
	}
	return w.cfg.Replica
}

// join makes this control plane one of the replicas of a shared database.
func (w *writd) join(ctx context.Context, store *sqlstore.Store) (err error) {
	name := w.replica()
	if name == "" {
		return nil
	}
	if err := w.hold(ctx, "replica "+name, "is replica "+name+" on database "+sqldb.Name(w.db)+": give each a name of its own (replica)"); err != nil {
		return err
	}
	w.member, err = store.Join(ctx, name, w.log)
	return err
}

// introduce waits until this control plane can sign: where there are other
// replicas, until they publish its authorities.
func (w *writd) introduce(ctx context.Context, store *sqlstore.Store, authorities *ca.CA) error {
	if w.member == nil || authorities.Ready() {
		return nil
	}
	w.log.Info("waiting for the other replicas to publish the authorities of this one", "replica", w.replica())
	ctx, cancel := context.WithCancel(ctx)
	var following sync.WaitGroup
	defer following.Wait()
	defer cancel()
	following.Go(func() { _ = store.Follow(ctx, w.log) }) // it ends with ctx, and logs what it meets
	following.Go(func() { _ = w.member.Run(ctx) })        // WaitReady finds a removal itself
	return authorities.WaitReady(ctx)
}

func (w *writd) hold(ctx context.Context, name, why string) error {
	held, err := sqldb.Hold(ctx, w.db, name)
	if err != nil {
		return whyHeld(why, err)
	}
	w.held[why] = held
	return nil
}

// keepRoles ends this control plane when another took its place.
func (w *writd) keepRoles(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for why, held := range w.held {
		group.Go(func() error { return whyHeld(why, held.Keep(ctx)) })
	}
	return group.Wait()
}

func whyHeld(why string, err error) error {
	if errors.Is(err, sqldb.ErrHeld) {
		return errors.New("another writd " + why)
	}
	return err
}

// here adds to an act which replica did it.
func (w *writd) here(act identity.Act) identity.Act {
	if w.member != nil {
		act.Details = append(slices.Clone(act.Details), [2]string{"replica", w.replica()})
	}
	return act
}
