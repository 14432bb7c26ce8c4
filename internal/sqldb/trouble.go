package sqldb

import (
	"database/sql"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// Trouble is why a database does not do what it is asked, whatever that is. Is and Do
// leak nothing: they may go to anybody. Err does not.
type Trouble struct {
	Is  string // what is the matter, after "the database"
	Do  string // what whoever runs it can do
	Err error
	// Lost says that what was written may be gone: it was removed, or is damaged.
	Lost bool
}

// Error is what is logged, and what an administrator sees.
func (t *Trouble) Error() string { return fmt.Sprintf("database %s (%v): %s", t.Is, t.Err, t.Do) }

// Unwrap returns the database's error.
func (t *Trouble) Unwrap() error { return t.Err }

const (
	damaged = "is damaged"
	restore = "restore a backup (docs/howto/backup-restore.md)"
)

func gone(err error) *Trouble {
	return &Trouble{
		Is:  "was removed or replaced while it was open, so what is written to it would be lost",
		Do:  "put the same files back, or restart, with a backup restored if they are gone (docs/howto/backup-restore.md)",
		Err: err, Lost: true,
	}
}

// TroubleOf is the trouble that err tells of, nil where it tells of none: what was
// asked is then at fault, or nobody knows.
func TroubleOf(err error) *Trouble {
	var t *Trouble
	var lite *sqlite.Error
	var pg *pgconn.PgError
	var connect *pgconn.ConnectError
	is, do := "", ""
	switch {
	case errors.As(err, &t):
		return t
	case errors.As(err, &lite):
		is, do = liteTrouble(lite.Code())
	case errors.As(err, &pg):
		is, do = pgTrouble(pg.Code)
	case errors.As(err, &connect):
		is, do = "does not answer", "see whether its server runs and can be reached"
	}
	if is == "" {
		return nil
	}
	return &Trouble{Is: is, Do: do, Err: err, Lost: is == damaged}
}

// liteTrouble goes by the primary result code, https://www.sqlite.org/rescode.html.
func liteTrouble(code int) (is, do string) {
	switch code & 0xff {
	case sqlite3.SQLITE_FULL:
		return "is full", "make room on its disk"
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return "is locked by another process", "end the process that has it open"
	case sqlite3.SQLITE_READONLY:
		return "is read only", "give this control plane the right to write its file and directory, on a disk that is mounted for writing"
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return damaged, restore
	case sqlite3.SQLITE_IOERR:
		return "cannot be read or written", "look at its disk, full or broken, and at the log of the kernel"
	case sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM:
		return "cannot be opened", "see whether its file and directory are there, and readable and writable for this control plane"
	}
	return "", ""
}

// pgTrouble goes by SQLSTATE, https://www.postgresql.org/docs/current/errcodes-appendix.html.
func pgTrouble(code string) (is, do string) {
	switch {
	case code == "53100":
		return "is full", "make room on the disk of its server"
	case strings.HasPrefix(code, "53"):
		return "has no resources left", "see the log of its server"
	case code == "55P03", code == "57014":
		return "is locked by another process", "see who waits for whom in pg_stat_activity"
	case code == "25006":
		return "is read only", "see whether its server is a standby, or default_transaction_read_only is on"
	case strings.HasPrefix(code, "XX00"):
		return damaged, "see the log of its server, and restore a backup (docs/howto/postgresql.md)"
	case strings.HasPrefix(code, "57P"):
		return "does not answer", "see whether its server runs"
	case code == "42501":
		return "does not let this control plane write", "give its role the rights (docs/howto/postgresql.md)"
	}
	return "", ""
}

// roomBytes is how much room is worth going on with after a disk was full.
const roomBytes = 64 << 10

// Room is an error where there is no room for some transactions on the disk of db. Of
// a server it knows nothing.
func Room(db *sql.DB) error {
	s, ok := db.Driver().(*sqliteFile)
	if !ok {
		return nil
	}
	name := s.file + "-room"
	err := os.WriteFile(name, make([]byte, roomBytes), 0o600)
	return errors.Join(err, os.Remove(name))
}
