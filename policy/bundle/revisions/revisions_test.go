package revisions_test

import (
	"database/sql"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/internal/pgtest"
	"github.com/writ-dev/writ/internal/sqldb"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/bundle/revisions"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// onEach runs a test on an empty database of each kind.
func onEach(t *testing.T, test func(t *testing.T, db *sql.DB)) {
	t.Run("sqlite", func(t *testing.T) { test(t, openSQLite(t)) })
	t.Run("postgres", func(t *testing.T) { test(t, pgtest.Open(t)) })
}

func openSQLite(t *testing.T) *sql.DB {
	t.Helper()
	db, err := sqldb.OpenSQLite(t.Context(), filepath.Join(t.TempDir(), "writ.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func nothing(*sql.Tx, revisions.Info) error { return nil }

// TestParts: each revision keeps what every publisher gave to it, signatures
// byte for byte.
func TestParts(t *testing.T) { onEach(t, testParts) }

func testParts(t *testing.T, db *sql.DB) {
	store, err := revisions.Open(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	a := bundle.Part{Publisher: "a", KeyID: "k", Content: bundle.Content{{Path: "a.rego", Content: []byte("1")}}, Signatures: []byte(" {x}\n")}
	b := bundle.Part{Publisher: "b", Content: bundle.Content{{Path: "b.rego", Content: []byte("2")}}}
	both := bundle.Content{a.Content[0], b.Content[0]}
	for _, add := range []struct {
		content bundle.Content
		parts   []bundle.Part
	}{{a.Content, []bundle.Part{a}}, {both, []bundle.Part{a, b}}, {both, []bundle.Part{a, b}}, {b.Content, []bundle.Part{b}}} {
		if _, err := store.Add(t.Context(), add.content, add.parts, revisions.Info{Activated: time.Unix(1, 0)}, nothing); err != nil {
			t.Fatal(err)
		}
	}
	for number, want := range map[uint64][]bundle.Part{1: {a}, 2: {a, b}, 3: {a, b}, 4: {b}, 0: {b}} {
		got, err := store.Parts(t.Context(), number)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("revision %d (-want +got):\n%s", number, diff)
		}
	}
	if _, err := store.Parts(t.Context(), 9); err != revisions.ErrNone {
		t.Errorf("revision 9: %v", err)
	}
}

// TestMigrate: what was there before there were publishers is one part of
// "default", in force as it was.
func TestMigrate(t *testing.T) { onEach(t, testMigrate) }

func testMigrate(t *testing.T, db *sql.DB) {
	first := filepath.Join(t.TempDir(), "migrations")
	if err := os.MkdirAll(first, 0o700); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("migrations/001_revisions.sql")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(first, "001_revisions.sql"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	old, err := fs.Sub(os.DirFS(first), ".")
	if err != nil {
		t.Fatal(err)
	}
	if err := sqldb.Migrate(t.Context(), db, "policy", old, "."); err != nil {
		t.Fatal(err)
	}
	content := bundle.Content{{Path: "a.rego", Content: []byte("package shop\n")}}
	archive, err := content.Archive(nil)
	if err != nil {
		t.Fatal(err)
	}
	digest := content.Digest()
	if _, err := db.Exec(`INSERT INTO policy_contents (digest, bundle) VALUES (?, ?)`, digest[:], archive); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(`INSERT INTO policy_revisions VALUES (3, 1, ?, 5, 'unix:uid:1', 'k', 'm', 0, 1, 0, 0)`, digest[:]); err != nil {
		t.Fatal(err)
	}
	store, err := revisions.Open(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	info, err := store.Info(t.Context(), 0)
	if err != nil || !info.Active || info.Revision.Number != 3 || info.Publisher != "default" || info.Stage != revisions.All {
		t.Errorf("in force: %+v, %v", info, err)
	}
	parts, err := store.Parts(t.Context(), 3)
	if diff := cmp.Diff([]bundle.Part{{Publisher: "default", KeyID: "k", Content: content}}, parts); diff != "" || err != nil {
		t.Errorf("parts: %v (-want +got):\n%s", err, diff)
	}
}

// TestDivergences are kept for each compiler, and found in revisions of before
// there was a place for them.
func TestDivergences(t *testing.T) {
	onEach(t, func(t *testing.T, db *sql.DB) {
		old := fstest.MapFS{}
		for _, name := range []string{"001_revisions.sql", "002_publishing.sql"} {
			data, err := os.ReadFile(filepath.Join("migrations", name))
			if err != nil {
				t.Fatal(err)
			}
			old[name] = &fstest.MapFile{Data: data}
		}
		if err := sqldb.Migrate(t.Context(), db, "policy", old, "."); err != nil {
			t.Fatal(err)
		}
		digests := [][32]byte{{1}, {2}}
		for i, reason := range []string{"diverged: a", "", "diverged: b", "not compiled: x"} {
			digest := digests[i%2][:]
			if _, err := db.ExecContext(t.Context(), `INSERT INTO policy_contents (digest, bundle) VALUES (?, ?) ON CONFLICT (digest) DO NOTHING`, digest, []byte{}); err != nil {
				t.Fatal(err)
			}
			if _, err := db.ExecContext(t.Context(), `INSERT INTO policy_revisions (number, epoch, digest, activated, author, key_id, message,
				rollback_of, passed, failed, skipped, engine_reason) VALUES (?, 1, ?, 0, '', '', '', 0, 0, 0, 0, ?)`, i+1, digest, reason); err != nil {
				t.Fatal(err)
			}
		}
		s, err := revisions.Open(t.Context(), db)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // The second changes nothing.
			if err := s.NoteDivergence(t.Context(), nil, digests[1], "2", "c"); err != nil {
				t.Fatal(err)
			}
			for _, tt := range []struct {
				digest         [32]byte
				compiler, want string
			}{{digests[0], "1", "a"}, {digests[0], "2", ""}, {digests[1], "1", ""}, {digests[1], "2", "c"}} {
				if got, err := s.Divergence(t.Context(), tt.digest, tt.compiler); got != tt.want || err != nil {
					t.Errorf("%x by compiler %s: %q, %v; want %q", tt.digest[0], tt.compiler, got, err, tt.want)
				}
			}
			if err := s.NoteDivergence(t.Context(), nil, digests[0], "1", "d"); err != nil {
				t.Fatal(err)
			}
		}
	})
}
