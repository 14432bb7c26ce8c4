package sqldb

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/writ-dev/writ/internal/sqldb/dialect"
)

// CheckDSN finds a DSN that names no database. It connects to nothing.
func CheckDSN(dsn string) error {
	_, err := parseDSN(dsn)
	return err
}

func parseDSN(dsn string) (*pgx.ConnConfig, error) {
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		// It quotes what it could not read, and that may be a password.
		return nil, errors.New("the DSN is neither a URL (postgres://…) nor key=value pairs")
	}
	return config, nil
}

// OpenPostgres opens the PostgreSQL database that dsn names, a URL or
// key=value pairs. Statements are those of SQLite, turned by dialect.ToPostgres.
//
// What dsn does not say is set so that nothing waits for ever: five seconds to
// connect and for a lock, thirty for a statement, ten for a transaction whose
// client has gone silent, since it may hold what all others wait for.
func OpenPostgres(ctx context.Context, dsn string) (*sql.DB, error) {
	config, err := parseDSN(dsn)
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = 5 * time.Second
	}
	for name, value := range map[string]string{
		"application_name": "writd", "lock_timeout": "5s", "statement_timeout": "30s", "idle_in_transaction_session_timeout": "10s",
	} {
		if _, said := config.RuntimeParams[name]; !said {
			config.RuntimeParams[name] = value
		}
	}
	db := sql.OpenDB(&postgres{Connector: stdlib.GetConnector(*config), config: config})
	db.SetMaxOpenConns(8)
	db.SetConnMaxIdleTime(5 * time.Minute)
	if err := durable(ctx, db); err != nil {
		db.Close()
		return nil, fmt.Errorf("open database %s: %w", Name(db), redact(err, dsn))
	}
	return db, nil
}

// durable refuses a server that may forget what it committed: a join token
// would come back to life, and a ban end.
func durable(ctx context.Context, db *sql.DB) error {
	for _, setting := range []string{"synchronous_commit", "fsync"} {
		var value string
		if err := db.QueryRowContext(ctx, `SELECT current_setting(?)`, setting).Scan(&value); err != nil {
			return err
		}
		if value == "off" {
			return fmt.Errorf("the server has %s=off, so it may lose what it committed: set it on", setting)
		}
	}
	return nil
}

// redact keeps the password of dsn out of an error.
func redact(err error, dsn string) error {
	config, parseErr := pgx.ParseConfig(dsn)
	if parseErr != nil || config.Password == "" {
		return err
	}
	if text := err.Error(); strings.Contains(text, config.Password) {
		return fmt.Errorf("%s", strings.ReplaceAll(text, config.Password, "…"))
	}
	return err
}

// Shared reports whether db may have other clients: it is PostgreSQL.
func Shared(db *sql.DB) bool {
	_, ok := db.Driver().(*postgres)
	return ok
}

// Name says which database db is, without secrets.
func Name(db *sql.DB) string {
	if p, ok := db.Driver().(*postgres); ok {
		return fmt.Sprintf("%s on %s:%d", p.config.Database, p.config.Host, p.config.Port)
	}
	if s, ok := db.Driver().(*sqliteFile); ok {
		return s.file
	}
	return "SQLite"
}

// postgres is the driver "pgx" for statements that are SQLite's.
type postgres struct {
	driver.Connector
	config *pgx.ConnConfig
}

// Connect implements driver.Connector.
func (p *postgres) Connect(ctx context.Context) (driver.Conn, error) {
	c, err := p.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return &translated{Conn: c.(*stdlib.Conn)}, nil
}

// Driver implements driver.Connector.
func (p *postgres) Driver() driver.Driver { return p }

// Open implements driver.Driver. Nobody calls it: a sql.DB is made of the
// connector.
func (p *postgres) Open(string) (driver.Conn, error) { return p.Connect(context.Background()) }

// translated is a connection.
type translated struct{ *stdlib.Conn }

// PrepareContext implements driver.ConnPrepareContext.
func (c *translated) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	return c.Conn.PrepareContext(ctx, dialect.ToPostgres(query))
}

// ExecContext implements driver.ExecerContext.
func (c *translated) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	return c.Conn.ExecContext(ctx, dialect.ToPostgres(query), args)
}

// QueryContext implements driver.QueryerContext.
func (c *translated) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	return c.Conn.QueryContext(ctx, dialect.ToPostgres(query), args)
}

// CheckNamedValue implements driver.NamedValueChecker: truth is kept as 0 and
// 1, as SQLite has it.
func (c *translated) CheckNamedValue(v *driver.NamedValue) (err error) {
	if v.Value, err = driver.DefaultParameterConverter.ConvertValue(v.Value); err != nil {
		return err
	}
	if b, ok := v.Value.(bool); ok {
		v.Value = int64(0)
		if b {
			v.Value = int64(1)
		}
	}
	return nil
}
