package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// ErrHeld says that another process has the lock.
var ErrHeld = errors.New("held by another process")

// Held is a lock that this process has on a shared database for as long as its
// connection lives.
type Held struct {
	p    *postgres
	name string
	conn *pgx.Conn
}

// Hold takes the lock called name on db, which is PostgreSQL. The error is
// ErrHeld when another process has it.
func Hold(ctx context.Context, db *sql.DB, name string) (*Held, error) {
	p, ok := db.Driver().(*postgres)
	if !ok {
		return nil, errors.New("hold: only PostgreSQL has locks by name")
	}
	h := &Held{p: p, name: name}
	if err := h.take(ctx); err != nil {
		return nil, err
	}
	return h, nil
}

func (h *Held) take(ctx context.Context) error {
	conn, err := pgx.ConnectConfig(ctx, h.p.config.Copy())
	if err != nil {
		return fmt.Errorf("lock %s: %w", h.name, err)
	}
	var got bool
	err = conn.QueryRow(ctx, `SELECT pg_try_advisory_lock($1)`, lockKey(h.name)).Scan(&got)
	if err == nil && !got {
		err = ErrHeld
	}
	if err != nil {
		conn.Close(context.WithoutCancel(ctx))
		return fmt.Errorf("lock %s: %w", h.name, err)
	}
	h.conn = conn
	return nil
}

// Keep takes the lock again whenever its connection is lost, until ctx ends,
// and then releases it. It returns ErrHeld when another process was faster.
func (h *Held) Keep(ctx context.Context) error {
	defer h.release(ctx)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		pinging, cancel := context.WithTimeout(ctx, 5*time.Second)
		if h.conn.Ping(pinging) != nil && ctx.Err() == nil {
			h.conn.Close(pinging)
			if err := h.take(pinging); errors.Is(err, ErrHeld) {
				cancel()
				return err
			}
		}
		cancel()
	}
}

// release gives the lock back. A connection that is closed does not: its server holds
// on to the lock until it has noticed, which may be after this has returned.
func (h *Held) release(ctx context.Context) {
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_, _ = h.conn.Exec(closing, `SELECT pg_advisory_unlock($1)`, lockKey(h.name)) // a lost one has no lock
	h.conn.Close(closing)
}
