package sqlstore_test

import (
	"database/sql"
	"errors"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
	"github.com/writ-dev/writ/internal/pgtest"
)

// Authorities that somebody wrote into the database are not taken for ours, and
// are an alarm, once.
func TestForgedAuthorities(t *testing.T) {
	p := startProcess(t, openDB(t, filepath.Join(t.TempDir(), "writ.db")))
	ctx := t.Context()
	if err := p.SaveJournal(ctx, []byte("ours")); err != nil {
		t.Fatal(err)
	}
	p.restart()
	if doc, err := p.LoadJournal(ctx); string(doc) != "ours" || err != nil {
		t.Fatalf("%q, %v", doc, err)
	}
	statements(t, p.db, `UPDATE registry_authorities SET journal = 'mine'`)
	for range 2 {
		if doc, err := p.LoadJournal(ctx); doc != nil || !errors.Is(err, sqlstore.ErrForged) {
			t.Errorf("%q, %v", doc, err)
		}
	}
	if diff := cmp.Diff([]string{"refused authorities"}, p.ledger.alarms()); diff != "" {
		t.Error(diff)
	}
	statements(t, p.db, `UPDATE registry_authorities SET journal = 'ours'`)
	if doc, err := p.LoadJournal(ctx); string(doc) != "ours" || err != nil {
		t.Errorf("put right: %q, %v", doc, err)
	}
}

// Nor is a replica that nobody let in, and none has the authorities of another.
func TestForgedReplica(t *testing.T) {
	dsn := pgtest.DSN(t)
	ctx := t.Context()
	journals := func(m *sqlstore.Member) map[string]string {
		t.Helper()
		state, err := m.Peers(ctx)
		if err != nil {
			t.Fatal(err)
		}
		all := map[string]string{}
		for _, peer := range state.Peers {
			all[peer.Name] = string(peer.Journal)
		}
		return all
	}
	a, b := startProcess(t, openPostgres(t, dsn)), startProcess(t, openPostgres(t, dsn))
	var members []*sqlstore.Member
	for name, p := range map[string]*process{"a": a, "b": b} {
		m, err := p.Join(ctx, name, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if err := m.SaveJournal(ctx, []byte("of "+name)); err != nil {
			t.Fatal(err)
		}
		if name == "a" {
			members = append(members, m)
		}
	}
	if diff := cmp.Diff(map[string]string{"b": "of b"}, journals(members[0])); diff != "" {
		t.Error(diff)
	}
	statements(t, a.db, `INSERT INTO registry_replicas SELECT 'evil', journal, sequence, state, joined, alive, seen, mark FROM registry_replicas WHERE name = 'b'`)
	for range 2 {
		if diff := cmp.Diff(map[string]string{"b": "of b", "evil": ""}, journals(members[0])); diff != "" {
			t.Error(diff)
		}
	}
	if diff := cmp.Diff([]string{"refused authorities"}, a.ledger.alarms()); diff != "" {
		t.Error(diff)
	}
	statements(t, a.db, `UPDATE registry_replicas SET journal = 'x' WHERE name = 'a'`)
	if doc, err := members[0].LoadJournal(ctx); doc != nil || !errors.Is(err, sqlstore.ErrForged) {
		t.Errorf("own: %q, %v", doc, err)
	}
}

// An agent or what is federated counts for nothing if somebody else wrote it: a ban
// does not end, selectors do not grow, a bundle gets no authority.
func TestForgedRows(t *testing.T) { onEach(t, testForgedRows) }

func testForgedRows(t *testing.T, again func() *sql.DB) {
	p := startProcess(t, again())
	domain := func(name string) spiffeid.TrustDomain { return spiffeid.RequireTrustDomainFromString(name) }
	update(t, p.Store, func(tx *sqlstore.Tx) error {
		for n := range 3 {
			if err := tx.PutAgent(registry.Agent{ID: agentID(n), AttestationType: "x", Banned: n == 0, Serial: "1", Selectors: []registry.Selector{{Type: "x", Value: "1"}}, ExpiresAt: now.Add(time.Hour)}); err != nil {
				return err
			}
		}
		for _, name := range []string{"one.org", "two.org"} {
			if err := tx.PutFederatedBundle(registry.FederatedBundle{TrustDomain: domain(name), Sequence: 1, RefreshHint: time.Minute}); err != nil {
				return err
			}
			if err := tx.PutRelationship(registry.Relationship{TrustDomain: domain(name), EndpointURL: "https://" + name, Profile: "https_web"}); err != nil {
				return err
			}
		}
		return nil
	})
	content := func() (names []string) {
		for _, a := range p.Index().Agents() {
			names = append(names, a.ID.Path())
		}
		return append(names, domains(p.Index())...)
	}
	whole := []string{"/spire/agent/x/0", "/spire/agent/x/1", "/spire/agent/x/2", "one.org", "relationship with one.org", "relationship with two.org", "two.org"}
	p.restart()
	if diff := cmp.Diff(whole, content()); diff != "" {
		t.Fatal(diff)
	}
	statements(t, p.db, `UPDATE registry_agents SET banned = 0 WHERE id LIKE '%/0'`, `UPDATE registry_agents SET selectors = '[["x","1"],["x","2"]]' WHERE id LIKE '%/1'`,
		`UPDATE registry_bundles SET sequence = 2 WHERE trust_domain = 'one.org'`, `UPDATE registry_federation SET endpoint_url = 'https://mine' WHERE trust_domain = 'two.org'`)
	err := p.Update(t.Context(), func(tx *sqlstore.Tx) error {
		banned, err := tx.Agent(agentID(0))
		if err != nil || !banned.Banned {
			t.Errorf("the ban has ended: %+v, %v", banned, err)
		}
		_, err = tx.Agent(agentID(1))
		_, err2 := tx.FederatedBundle(domain("one.org"))
		_, err3 := tx.Relationship(domain("two.org"))
		if !errors.Is(err, registry.ErrNotFound) || !errors.Is(err2, registry.ErrNotFound) || !errors.Is(err3, registry.ErrNotFound) {
			t.Errorf("found: %v, %v, %v", err, err2, err3)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"refused agent", "refused agent", "refused bundle", "refused federation relationship"}, p.ledger.alarms()); diff != "" {
		t.Error(diff)
	}
	for range 2 {
		p.restart()
		if diff := cmp.Diff([]string{"/spire/agent/x/0", "/spire/agent/x/2", "relationship with one.org", "two.org"}, content()); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff([]string{"refused agent", "refused agent", "refused bundle", "refused federation relationship"}, p.ledger.alarms()); diff != "" {
			t.Error(diff)
		}
	}
	// Written by the issuer again, they count again; what is banned, when it was evicted.
	update(t, p.Store, func(tx *sqlstore.Tx) error {
		if _, err := tx.DeleteAgent(agentID(0)); err != nil {
			return err
		}
		return tx.PutAgent(registry.Agent{ID: agentID(0), AttestationType: "x", Serial: "2", ExpiresAt: now.Add(time.Hour)})
	})
	if a := p.Index().Agent(agentID(0)); a == nil || a.Serial != "2" {
		t.Errorf("attested again: %+v", a)
	}
	// Of a database that is adopted, all of them count.
	p.config.KeyFile, p.config.SeenFile = filepath.Join(t.TempDir(), "new.key"), ""
	statements(t, p.db, `UPDATE registry_revision SET key_id = '', seal = ''`)
	p.restart()
	if diff := cmp.Diff(whole, content()); diff != "" {
		t.Error(diff)
	}
	p.restart()
	if diff := cmp.Diff([]string(nil), p.ledger.alarms()); diff != "" {
		t.Error(diff)
	}
}

// A join token that no issuer made is none, nor one whose alias was changed.
func TestForgedToken(t *testing.T) { onEach(t, testForgedToken) }

func testForgedToken(t *testing.T, again func() *sql.DB) {
	p := startProcess(t, again())
	made, changed, forged, local := registry.HashToken("made"), registry.HashToken("changed"), registry.HashToken("forged"), registry.HashToken("local")
	update(t, p.Store, func(tx *sqlstore.Tx) error {
		for _, hash := range [][32]byte{made, changed, local} {
			if err := tx.CreateJoinToken(registry.JoinToken{Hash: hash, ExpiresAt: now.Add(time.Minute), Alias: path("/node/a")}); err != nil {
				return err
			}
		}
		return nil
	})
	for _, s := range []struct {
		statement string
		args      []any
	}{
		{`UPDATE registry_join_tokens SET alias = 'spiffe://example.org/node/b' WHERE hash = ?`, []any{changed[:]}},
		{`UPDATE registry_join_tokens SET local = 1 WHERE hash = ?`, []any{local[:]}},
		{`INSERT INTO registry_join_tokens (hash, expires_at, alias, used_at, local, mark) SELECT CAST(? AS BLOB), expires_at, alias, used_at, local, mark FROM registry_join_tokens WHERE hash = ?`, []any{forged[:], made[:]}},
	} {
		if _, err := p.db.Exec(s.statement, s.args...); err != nil {
			t.Fatal(err)
		}
	}
	use := func(hash [32]byte) error {
		return p.Update(t.Context(), func(tx *sqlstore.Tx) error {
			token, err := tx.UseJoinToken(hash)
			if err == nil && token.Alias != path("/node/a") {
				t.Errorf("token %+v", token)
			}
			return err
		})
	}
	for _, hash := range [][32]byte{changed, forged, local} {
		if err := use(hash); !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("used: %v", err)
		}
	}
	if err := use(made); err != nil {
		t.Errorf("ours: %v", err)
	}
	if diff := cmp.Diff([]string{"refused token", "refused token", "refused token"}, p.ledger.alarms()); diff != "" {
		t.Error(diff)
	}
	// With a database that is adopted, they are too.
	p.config.KeyFile, p.config.SeenFile = filepath.Join(t.TempDir(), "new.key"), ""
	statements(t, p.db, `UPDATE registry_revision SET key_id = '', seal = ''`)
	p.restart()
	if err := use(forged); err != nil {
		t.Errorf("adopted: %v", err)
	}
}
