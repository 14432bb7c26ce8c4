package sqldb

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"os"
	"sync"
)

// sqliteFile is the driver "sqlite" for a file that is to stay the one that was opened. On
// Linux a file that was removed or moved can be written to as before, and what is
// written is gone with the process; so it is looked at before each commit, which costs
// three stat calls.
type sqliteFile struct {
	base      driver.Driver
	file, dsn string

	mu    sync.Mutex
	conns int
	// was are the database and the two files that SQLite has beside it while it is
	// open, as they were found first.
	was map[string]os.FileInfo
}

// Connect implements driver.Connector.
func (s *sqliteFile) Connect(context.Context) (driver.Conn, error) {
	if err := s.there(); err != nil {
		return nil, err // SQLite would make the file anew, or take what is in its place
	}
	c, err := s.base.Open(s.dsn)
	if err != nil {
		return nil, err
	}
	conn, ok := c.(sqliteConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("the driver of SQLite has a connection that is a %T", c), c.Close())
	}
	s.mu.Lock()
	s.conns++
	s.mu.Unlock()
	return &watchedConn{sqliteConn: conn, s: s}, nil
}

// Driver implements driver.Connector.
func (s *sqliteFile) Driver() driver.Driver { return s }

// Open implements driver.Driver. Nobody calls it: a sql.DB is made of the connector.
func (s *sqliteFile) Open(string) (driver.Conn, error) { return s.Connect(context.Background()) }

// there is a *Trouble where the files are not those that are open.
func (s *sqliteFile) there() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range []string{s.file, s.file + "-wal", s.file + "-shm"} {
		was := s.was[name]
		is, err := os.Stat(name)
		switch {
		case err == nil && was == nil:
			s.was[name] = is
		case err != nil && was == nil && errors.Is(err, os.ErrNotExist):
			// SQLite makes them when it needs them.
		case err != nil:
			return gone(err)
		case !os.SameFile(was, is):
			return gone(fmt.Errorf("%s is another file than the one that was opened", name))
		}
	}
	return nil
}

// closed notes that a connection ended. With the last one SQLite removes the files
// beside the database.
func (s *sqliteFile) closed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns--; s.conns == 0 {
		delete(s.was, s.file+"-wal")
		delete(s.was, s.file+"-shm")
	}
}

type sqliteConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.QueryerContext
	driver.Pinger
	driver.SessionResetter
	driver.Validator
}

// watchedConn refuses to write where the file is not there. It has one user at a time.
type watchedConn struct {
	sqliteConn
	s    *sqliteFile
	inTx bool
}

// BeginTx implements driver.ConnBeginTx.
func (c *watchedConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	if err := c.s.there(); err != nil {
		return nil, err
	}
	tx, err := c.sqliteConn.BeginTx(ctx, opts)
	if err != nil {
		return nil, err
	}
	c.inTx = true
	return &watchedTx{Tx: tx, c: c}, nil
}

// ExecContext implements driver.ExecerContext. Outside of a transaction it is one.
func (c *watchedConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if !c.inTx {
		if err := c.s.there(); err != nil {
			return nil, err
		}
	}
	return c.sqliteConn.ExecContext(ctx, query, args)
}

// Close implements driver.Conn.
func (c *watchedConn) Close() error {
	defer c.s.closed()
	return c.sqliteConn.Close()
}

type watchedTx struct {
	driver.Tx
	c *watchedConn
}

// Commit implements driver.Tx.
func (t *watchedTx) Commit() error {
	t.c.inTx = false
	if err := t.c.s.there(); err != nil {
		return errors.Join(err, t.Tx.Rollback())
	}
	return t.Tx.Commit()
}

// Rollback implements driver.Tx.
func (t *watchedTx) Rollback() error {
	t.c.inTx = false
	return t.Tx.Rollback()
}
