package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
)

// Listen calls look whenever somebody notifies channel of db, which is
// PostgreSQL, and until ctx ends: once when it has begun to listen, also after
// each loss of the connection, so that look finds what was missed; then at each
// notification; and at least every so often, in case a notification was lost on
// its way.
func Listen(ctx context.Context, db *sql.DB, channel string, every time.Duration, log *slog.Logger, look func(context.Context) error) error {
	p, ok := db.Driver().(*postgres)
	if !ok {
		return errors.New("listen: only PostgreSQL notifies")
	}
	const first, most = 100 * time.Millisecond, 5 * time.Second
	wait := first
	for {
		began := time.Now()
		err := p.listen(ctx, channel, every, look)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(began) > most {
			wait = first
		}
		log.WarnContext(ctx, "not listening to the database, trying again", "database", Name(db), "error", err)
		timer := time.NewTimer(wait/2 + rand.N(wait))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		wait = min(2*wait, most)
	}
}

// listen returns when the connection is lost, or look fails.
func (p *postgres) listen(ctx context.Context, channel string, every time.Duration, look func(context.Context) error) error {
	conn, err := pgx.ConnectConfig(ctx, p.config.Copy())
	if err != nil {
		return err
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		conn.Close(closing)
	}()
	if _, err := conn.Exec(ctx, "LISTEN "+pgx.Identifier{channel}.Sanitize()); err != nil {
		return err
	}
	for {
		if err := look(ctx); err != nil {
			return err
		}
		waiting, cancel := context.WithTimeout(ctx, every)
		_, err := conn.WaitForNotification(waiting)
		quiet := waiting.Err() != nil && ctx.Err() == nil
		cancel()
		switch {
		case err == nil:
		case !quiet:
			return err
		default:
			// Nothing came; is the connection there at all?
			pinging, cancel := context.WithTimeout(ctx, 5*time.Second)
			err := conn.Ping(pinging)
			cancel()
			if err != nil {
				return fmt.Errorf("connection is dead: %w", err)
			}
		}
	}
}

// Notify wakes those who Listen to channel when tx is committed.
func Notify(ctx context.Context, tx *sql.Tx, channel string) error {
	_, err := tx.ExecContext(ctx, `SELECT pg_notify(?, '')`, channel)
	return err
}
