package dialect_test

import (
	"strings"
	"testing"

	"github.com/writ-dev/writ/internal/sqldb/dialect"
)

func TestToPostgres(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{`SELECT a FROM t WHERE b = ? AND c = ?`, `SELECT a FROM t WHERE b = $1 AND c = $2`},
		{`INSERT INTO t VALUES ('?', "?", ?)`, `INSERT INTO t VALUES ('?', "?", $1)`},
		{`SELECT 'it''s ?', ?`, `SELECT 'it''s ?', $1`},
		{"a BLOB, -- BLOB ?\nb INTEGER /* INTEGER ? */, c integer", "a BYTEA, -- BLOB ?\nb BIGINT /* INTEGER ? */, c BIGINT"},
		{`BLOBS, my_INTEGER, INTEGER2`, `BLOBS, my_INTEGER, INTEGER2`},
		{"PRIMARY KEY (a, b)\n) WITHOUT ROWID;", "PRIMARY KEY (a, b)\n) ;"},
		{`WITHOUT ROWIDS`, `WITHOUT ROWIDS`},
		{`only INTEGER CHECK (only = 1)`, `"only" BIGINT CHECK ("only" = 1)`},
		{`'open`, `'open`},
		{`/* open ?`, `/* open ?`},
		{``, ``},
	} {
		if got := dialect.ToPostgres(tt.in); got != tt.want {
			t.Errorf("%q\n got %q\nwant %q", tt.in, got, tt.want)
		}
	}
}

// What is translated has nothing left to translate, so doing it twice is doing
// it once; and what is in quotes does not change.
func FuzzToPostgres(f *testing.F) {
	for _, s := range []string{`SELECT ?`, `'?' ?`, "-- ?\n?", `/*?*/ BLOB`, `) WITHOUT ROWID`, `"only" only`, `'a''?'`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		once := dialect.ToPostgres(s)
		if twice := dialect.ToPostgres(once); twice != once && !strings.Contains(strings.ToUpper(s), "WITHOUT") {
			t.Errorf("%q → %q → %q", s, once, twice)
		}
		literal := "'" + strings.ReplaceAll(s, "'", "''") + "'"
		if got := dialect.ToPostgres(literal + " ?"); got != literal+" $1" {
			t.Errorf("literal %q → %q", literal, got)
		}
	})
}
