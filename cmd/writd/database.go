package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sync/errgroup"

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

// hold keeps a second control plane from running the same role on a shared
// database. What is in force is kept in memory, and one that does not hear of
// the other's activations would go on serving what was replaced.
func (w *writd) hold(ctx context.Context, role string) error {
	if !sqldb.Shared(w.db) {
		return nil
	}
	held, err := sqldb.Hold(ctx, w.db, role)
	if err != nil {
		return w.whyHeld(role, err)
	}
	w.held[role] = held
	return nil
}

// keepRoles ends this control plane when another took a role over.
func (w *writd) keepRoles(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for role, held := range w.held {
		group.Go(func() error { return w.whyHeld(role, held.Keep(ctx)) })
	}
	return group.Wait()
}

func (w *writd) whyHeld(role string, err error) error {
	if errors.Is(err, sqldb.ErrHeld) {
		return fmt.Errorf("another writd runs the %s role on database %s, and only one may: leave %s out of this one's roles", role, sqldb.Name(w.db), role)
	}
	return err
}
