package sqlstore_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/keys"
	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
	"github.com/writ-dev/writ/internal/pgtest"
	"github.com/writ-dev/writ/internal/sqldb"
)

var now = time.Date(2030, 1, 1, 0, 0, 0, 500, time.UTC)

// keyFile holds the key of all databases of these tests.
var keyFile string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "sqlstore")
	if err != nil {
		panic(err)
	}
	keyFile = filepath.Join(dir, "registry.key")
	if err := keys.SaveSecret(keyFile, keys.NewSecret()); err != nil {
		panic(err)
	}
	code := pgtest.Main(m)
	os.RemoveAll(dir)
	os.Exit(code)
}

// onEach runs a test on each kind of database. again opens the database of the
// test once more.
func onEach(t *testing.T, test func(t *testing.T, again func() *sql.DB)) {
	t.Run("sqlite", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "writ.db")
		test(t, func() *sql.DB { return openDB(t, file) })
	})
	t.Run("postgres", func(t *testing.T) {
		dsn := pgtest.DSN(t)
		test(t, func() *sql.DB { return openPostgres(t, dsn) })
	})
}

func openPostgres(t testing.TB, dsn string) *sql.DB {
	t.Helper()
	db, err := sqldb.OpenPostgres(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func openDB(t testing.TB, file string) *sql.DB {
	t.Helper()
	db, err := sqldb.OpenSQLite(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func open(t testing.TB, db *sql.DB) *sqlstore.Store {
	t.Helper()
	s, err := sqlstore.Open(t.Context(), db, config(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// config is of a store that expects no alarm.
func config(t testing.TB) sqlstore.Config {
	return sqlstore.Config{Clock: func() time.Time { return now }, KeyFile: keyFile, Record: func(_ context.Context, acts []identity.Act) error {
		for _, act := range acts {
			if act.Kind == identity.ActAlarm {
				t.Errorf("alarm: %+v", act)
			}
		}
		return nil
	}}
}

func path(p string) spiffeid.ID {
	return spiffeid.RequireFromPath(spiffeid.RequireTrustDomainFromString("example.org"), p)
}

func full() registry.Entry {
	return registry.Entry{
		SPIFFEID: path("/svc/web"), ParentID: path("/node/a"),
		Selectors:   []registry.Selector{{Type: "unix", Value: "uid:1"}, {Type: "unix", Value: "gid:1"}, {Type: "unix", Value: "uid:1"}},
		X509SVIDTTL: time.Minute, JWTSVIDTTL: 30 * time.Second, FederatesWith: []string{"other.org"}, DNSNames: []string{"web"},
		Admin: true, Downstream: true, StoreSVID: true, Hint: "inner \"quoted\" ü", ExpiresAt: now.Add(time.Hour).Truncate(time.Second),
	}
}

func update(t testing.TB, s *sqlstore.Store, fn func(*sqlstore.Tx) error) {
	t.Helper()
	if err := s.Update(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

var ignoreZone = cmp.Options{cmp.Comparer(func(a, b time.Time) bool { return a.Equal(b) }), cmp.Comparer(func(a, b spiffeid.ID) bool { return a == b })}

func TestEntriesSurviveRestart(t *testing.T) { onEach(t, testEntriesSurviveRestart) }

func testEntriesSurviveRestart(t *testing.T, again func() *sql.DB) {
	s := open(t, again())
	var made *registry.Entry
	update(t, s, func(tx *sqlstore.Tx) (err error) {
		made, err = tx.CreateEntry(full())
		return err
	})
	want := full()
	want.Normalize()
	if diff := cmp.Diff(&want, made, ignoreZone, cmpopts.IgnoreFields(registry.Entry{}, "ID", "RevisionNumber", "CreatedAt")); diff != "" {
		t.Error(diff)
	}
	if made.ID == "" || made.RevisionNumber != 1 || !made.CreatedAt.Equal(now.Truncate(time.Second)) {
		t.Errorf("made as %+v", made)
	}
	update(t, s, func(tx *sqlstore.Tx) error {
		return tx.PutAgent(registry.Agent{ID: path("/spire/agent/x/1"), AttestationType: "x", Selectors: []registry.Selector{{Type: "b", Value: "1"}, {Type: "a", Value: "1"}}, Serial: "12", ExpiresAt: now.Truncate(time.Second), NewSerial: "13", NewExpiresAt: now.Add(time.Hour).Truncate(time.Second), Banned: true, CanReattest: true})
	})
	reopened := open(t, again())
	if diff := cmp.Diff(s.Index().Entries(), reopened.Index().Entries(), ignoreZone); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(s.Index().Agents(), reopened.Index().Agents(), ignoreZone); diff != "" {
		t.Error(diff)
	}
	if a, _ := s.Index().Revision(); a != 2 {
		t.Errorf("revision %d, want 2", a)
	}
	if a, _ := reopened.Index().Revision(); a != 2 {
		t.Errorf("revision %d after restart, want 2", a)
	}
}

func TestUniqueness(t *testing.T) { onEach(t, testUniqueness) }

func testUniqueness(t *testing.T, again func() *sql.DB) {
	s := open(t, again())
	var first, second *registry.Entry
	update(t, s, func(tx *sqlstore.Tx) (err error) {
		if first, err = tx.CreateEntry(full()); err != nil {
			return err
		}
		// Within the same transaction, and with everything else different.
		probe := registry.Entry{SPIFFEID: full().SPIFFEID, ParentID: full().ParentID, Selectors: first.Selectors, Hint: "other"}
		var exists *registry.ExistsError
		if _, err := tx.CreateEntry(probe); !errors.As(err, &exists) || exists.Entry.ID != first.ID {
			t.Errorf("similar entry: %v", err)
		}
		probe.SPIFFEID, probe.ID = path("/svc/b"), first.ID
		if _, err := tx.CreateEntry(probe); !errors.As(err, &exists) || exists.Entry.ID != first.ID {
			t.Errorf("same ID: %v", err)
		}
		probe.ID = ""
		second, err = tx.CreateEntry(probe)
		return err
	})
	update(t, s, func(tx *sqlstore.Tx) error {
		clash := *second
		clash.SPIFFEID = first.SPIFFEID
		var exists *registry.ExistsError
		if _, err := tx.UpdateEntry(clash); !errors.As(err, &exists) {
			t.Errorf("update into a similar entry: %v", err)
		}
		return nil
	})
	if a, _ := s.Index().Revision(); a != 1 {
		t.Errorf("a transaction that did nothing made revision %d", a)
	}
}

func TestRevisions(t *testing.T) { onEach(t, testRevisions) }

func testRevisions(t *testing.T, again func() *sql.DB) {
	s := open(t, again())
	var e *registry.Entry
	do := func(fn func(*sqlstore.Tx) error) { t.Helper(); update(t, s, fn) }
	do(func(tx *sqlstore.Tx) (err error) {
		asked := full()
		asked.ID = "fixed"
		e, err = tx.CreateEntry(asked)
		return err
	})
	do(func(tx *sqlstore.Tx) error {
		same, err := tx.UpdateEntry(*e)
		if err == nil && same.RevisionNumber != e.RevisionNumber {
			t.Error("an update that changes nothing bumped the revision")
		}
		return err
	})
	do(func(tx *sqlstore.Tx) error {
		changed := *e
		changed.Hint = "new"
		u, err := tx.UpdateEntry(changed)
		if err == nil && (u.RevisionNumber <= e.RevisionNumber || !u.CreatedAt.Equal(e.CreatedAt)) {
			t.Errorf("updated as %+v", u)
		}
		e = u
		return err
	})
	do(func(tx *sqlstore.Tx) error { _, err := tx.DeleteEntry("fixed"); return err })
	do(func(tx *sqlstore.Tx) error {
		again, err := tx.CreateEntry(*e)
		if err == nil && again.RevisionNumber <= e.RevisionNumber {
			t.Error("an entry made again in the same second looks like the old one")
		}
		return err
	})
	for name, err := range map[string]error{
		"update": s.Update(t.Context(), func(tx *sqlstore.Tx) error { _, err := tx.UpdateEntry(registry.Entry{ID: "no"}); return err }),
		"delete": s.Update(t.Context(), func(tx *sqlstore.Tx) error { _, err := tx.DeleteEntry("no"); return err }),
		"agent":  s.Update(t.Context(), func(tx *sqlstore.Tx) error { _, err := tx.DeleteAgent(path("/spire/agent/no")); return err }),
	} {
		if !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRollback(t *testing.T) { onEach(t, testRollback) }

func testRollback(t *testing.T, again func() *sql.DB) {
	s := open(t, again())
	boom := errors.New("boom")
	err := s.Update(t.Context(), func(tx *sqlstore.Tx) error {
		if _, err := tx.CreateEntry(full()); err != nil {
			return err
		}
		return boom
	})
	if !errors.Is(err, boom) {
		t.Fatal(err)
	}
	if n := len(s.Index().Entries()); n != 0 {
		t.Errorf("%d entries in the index", n)
	}
	update(t, s, func(tx *sqlstore.Tx) error { _, err := tx.CreateEntry(full()); return err })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Update(ctx, func(*sqlstore.Tx) error { t.Error("ran"); return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("ended context: %v", err)
	}
	// A caller that goes away halfway does not leave half.
	ctx, cancel = context.WithCancel(t.Context())
	err = s.Update(ctx, func(tx *sqlstore.Tx) error {
		cancel()
		e := full()
		e.SPIFFEID = path("/svc/other")
		_, err := tx.CreateEntry(e)
		return err
	})
	if err != nil || len(s.Index().Entries()) != 2 {
		t.Errorf("caller gone: %v, %d entries", err, len(s.Index().Entries()))
	}
}

func TestTokens(t *testing.T) { onEach(t, testTokens) }

func testTokens(t *testing.T, again func() *sql.DB) {
	db := again()
	s := open(t, db)
	hash := registry.HashToken("secret")
	late := registry.HashToken("late")
	update(t, s, func(tx *sqlstore.Tx) error {
		if err := tx.CreateJoinToken(registry.JoinToken{Hash: hash, ExpiresAt: now.Add(time.Minute), Alias: path("/node/a")}); err != nil {
			return err
		}
		return tx.CreateJoinToken(registry.JoinToken{Hash: late, ExpiresAt: now})
	})
	var used, refused atomic.Int32
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			err := s.Update(t.Context(), func(tx *sqlstore.Tx) error {
				token, err := tx.UseJoinToken(hash)
				if err == nil && token.Alias != path("/node/a") {
					t.Errorf("alias %v", token.Alias)
				}
				return err
			})
			switch {
			case err == nil:
				used.Add(1)
			case errors.Is(err, registry.ErrTokenUsed):
				refused.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if used.Load() != 1 || refused.Load() != 9 {
		t.Errorf("used %d times, refused %d", used.Load(), refused.Load())
	}
	use := func(h [32]byte) error {
		return s.Update(t.Context(), func(tx *sqlstore.Tx) error { _, err := tx.UseJoinToken(h); return err })
	}
	if err := use(late); !errors.Is(err, registry.ErrTokenExpired) {
		t.Errorf("late: %v", err)
	}
	if err := use(registry.HashToken("?")); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("unknown: %v", err)
	}
	update(t, s, func(tx *sqlstore.Tx) error {
		if n, err := tx.PruneJoinTokens(now.Add(time.Second)); n != 1 || err != nil {
			t.Errorf("pruned %d, %v", n, err)
		}
		return nil
	})
	// Used tokens are known over a restart.
	s = open(t, db)
	if err := use(hash); !errors.Is(err, registry.ErrTokenUsed) {
		t.Errorf("after restart: %v", err)
	}
}

func TestDeleteAgentTakesItsAliasOnly(t *testing.T) { onEach(t, testDeleteAgentTakesItsAliasOnly) }

func testDeleteAgentTakesItsAliasOnly(t *testing.T, again func() *sql.DB) {
	s := open(t, again())
	agent := path("/spire/agent/join_token/t")
	update(t, s, func(tx *sqlstore.Tx) error {
		for _, e := range []registry.Entry{
			{ID: "alias", SPIFFEID: path("/node/a"), ParentID: agent, Selectors: []registry.Selector{registry.AliasSelector(agent)}},
			{ID: "workload", SPIFFEID: path("/svc/a"), ParentID: agent, Selectors: []registry.Selector{{Type: "unix", Value: "uid:1"}}},
			{ID: "on-alias", SPIFFEID: path("/svc/b"), ParentID: path("/node/a"), Selectors: []registry.Selector{{Type: "unix", Value: "uid:1"}}},
		} {
			if _, err := tx.CreateEntry(e); err != nil {
				return err
			}
		}
		return tx.PutAgent(registry.Agent{ID: agent})
	})
	update(t, s, func(tx *sqlstore.Tx) error {
		aliases, err := tx.DeleteAgent(agent)
		if len(aliases) != 1 || aliases[0].ID != "alias" {
			t.Errorf("aliases %v", aliases)
		}
		return err
	})
	var left []string
	for _, e := range s.Index().Entries() {
		left = append(left, e.ID)
	}
	if diff := cmp.Diff([]string{"on-alias", "workload"}, left); diff != "" {
		t.Error(diff)
	}
}

func TestJournal(t *testing.T) { onEach(t, testJournal) }

func testJournal(t *testing.T, again func() *sql.DB) {
	s := open(t, again())
	ctx := t.Context()
	if doc, err := s.LoadJournal(ctx); doc != nil || err != nil {
		t.Fatalf("%q, %v", doc, err)
	}
	for _, want := range []string{"one", "two"} {
		if err := s.SaveJournal(ctx, []byte(want)); err != nil {
			t.Fatal(err)
		}
		if doc, err := s.LoadJournal(ctx); string(doc) != want || err != nil {
			t.Fatalf("%q, %v", doc, err)
		}
	}
}

// The database closing under a transaction is a failure, and never a change.
func TestDatabaseFailure(t *testing.T) { onEach(t, testDatabaseFailure) }

func testDatabaseFailure(t *testing.T, again func() *sql.DB) {
	db := again()
	s := open(t, db)
	db.Close()
	if err := s.Update(t.Context(), func(tx *sqlstore.Tx) error { _, err := tx.CreateEntry(full()); return err }); err == nil {
		t.Error("wrote to a closed database")
	}
	if n := len(s.Index().Entries()); n != 0 {
		t.Errorf("%d entries in the index", n)
	}
}

func BenchmarkCreateEntry500(b *testing.B) {
	s := open(b, openDB(b, filepath.Join(b.TempDir(), "writ.db")))
	n := 0
	for b.Loop() {
		batch := make([]registry.Entry, 500)
		for i := range batch {
			n++
			batch[i] = full()
			batch[i].SPIFFEID = path(fmt.Sprintf("/svc/%d", n))
		}
		update(b, s, func(tx *sqlstore.Tx) error {
			_, err := tx.CreateEntries(batch)
			return err
		})
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "entries/s")
}
