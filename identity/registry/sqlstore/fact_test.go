package sqlstore_test

import (
	"database/sql"
	"errors"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
	"github.com/writ-dev/writ/internal/pgtest"
)

// keepRows copies tables as they are, and returns what puts the old rows back.
func keepRows(t *testing.T, db *sql.DB, tables ...string) (putBack func()) {
	t.Helper()
	for _, table := range tables {
		statements(t, db, `CREATE TABLE kept_`+table+` AS SELECT * FROM `+table)
	}
	return func() {
		t.Helper()
		for _, table := range tables {
			statements(t, db, `DELETE FROM `+table, `INSERT INTO `+table+` SELECT * FROM kept_`+table)
		}
	}
}

func putAgent(t *testing.T, p *process, n int, serial string, banned bool) {
	t.Helper()
	update(t, p.Store, func(tx *sqlstore.Tx) error {
		return tx.PutAgent(registry.Agent{ID: agentID(n), AttestationType: "x", CanReattest: true, Banned: banned, Serial: serial, ExpiresAt: now.Add(time.Hour)})
	})
}

// stands is what the store makes of an agent: by the index, and in a transaction.
func stands(t *testing.T, p *process, n int) (indexed, read string) {
	t.Helper()
	say := func(a *registry.Agent) string {
		switch {
		case a == nil:
			return "unknown"
		case a.Banned:
			return "banned"
		}
		return "good"
	}
	update(t, p.Store, func(tx *sqlstore.Tx) error {
		a, err := tx.Agent(agentID(n))
		if err != nil && !errors.Is(err, registry.ErrNotFound) {
			return err
		}
		read = say(a)
		return nil
	})
	return say(p.Index().Agent(agentID(n))), read
}

// Whoever can write the database ends no ban and brings back no agent that was
// evicted: not by an old row, nor by taking away the row, nor by a row of his own; not
// while the issuer runs, nor before it starts.
func TestOldAgents(t *testing.T) { onEach(t, testOldAgents) }

func testOldAgents(t *testing.T, again func() *sql.DB) {
	p := startProcess(t, again())
	for n := range 4 {
		putAgent(t, p, n, "1", false)
	}
	putBack := keepRows(t, p.db, "registry_agents")
	putAgent(t, p, 0, "", true)
	evict := func(n int) {
		t.Helper()
		update(t, p.Store, func(tx *sqlstore.Tx) error { _, err := tx.DeleteAgent(agentID(n)); return err })
	}
	evict(1)
	putAgent(t, p, 2, "", true)
	evict(2) // which lifts the ban
	putAgent(t, p, 2, "2", false)
	p.ledger.alarms()
	for name, tamper := range map[string]func(){
		"old rows": putBack,
		"no rows":  func() { statements(t, p.db, `DELETE FROM registry_agents WHERE id LIKE '%/0' OR id LIKE '%/1'`) },
		"his own":  func() { statements(t, p.db, `UPDATE registry_agents SET banned = 0, serial = '9'`) },
	} {
		tamper()
		_, banned := stands(t, p, 0)
		_, evicted := stands(t, p, 1)
		if banned != "banned" || evicted != "unknown" {
			t.Errorf("%s, running: the banned agent is %s, the evicted one %s", name, banned, evicted)
		}
		if err := p.Update(t.Context(), func(tx *sqlstore.Tx) error {
			return tx.PutAgent(registry.Agent{ID: agentID(0), AttestationType: "x", Serial: "5", ExpiresAt: now.Add(time.Hour)})
		}); err == nil {
			t.Errorf("%s: a banned agent was written as a good one", name)
		}
		p.restart()
		banned, _ = stands(t, p, 0)
		evicted, _ = stands(t, p, 1)
		if banned != "banned" || evicted != "unknown" {
			t.Errorf("%s, after a restart: the banned agent is %s, the evicted one %s", name, banned, evicted)
		}
	}
	if n := len(p.ledger.alarms()); n < 3 {
		t.Errorf("%d alarms", n)
	}
	// What an administrator does counts.
	putBack()
	evict(0)
	if indexed, read := stands(t, p, 0); indexed != "unknown" || read != "unknown" {
		t.Errorf("evicted: %s, %s", indexed, read)
	}
	putAgent(t, p, 0, "7", false)
	p.restart()
	if indexed, _ := stands(t, p, 0); indexed != "good" {
		t.Errorf("attested again: %s", indexed)
	}
}

// A join token that was used stays so, whatever its row says, and for as long as it
// could be used.
func TestOldToken(t *testing.T) { onEach(t, testOldToken) }

func testOldToken(t *testing.T, again func() *sql.DB) {
	p := startProcess(t, again())
	clock := now
	p.config.Clock = func() time.Time { return clock }
	p.restart()
	hash := registry.HashToken("once")
	update(t, p.Store, func(tx *sqlstore.Tx) error {
		return tx.CreateJoinToken(registry.JoinToken{Hash: hash, ExpiresAt: now.Add(time.Hour)})
	})
	putBack := keepRows(t, p.db, "registry_join_tokens")
	use := func() error {
		return p.Update(t.Context(), func(tx *sqlstore.Tx) error { _, err := tx.UseJoinToken(hash); return err })
	}
	if err := use(); err != nil {
		t.Fatal(err)
	}
	p.ledger.alarms()
	putBack()
	if err := use(); !errors.Is(err, registry.ErrTokenUsed) {
		t.Errorf("used twice: %v", err)
	}
	p.restart()
	if err := use(); !errors.Is(err, registry.ErrTokenUsed) {
		t.Errorf("used twice, after a restart: %v", err)
	}
	if diff := cmp.Diff([]string{"refused token", "refused token"}, p.ledger.alarms()); diff != "" { // once for each start
		t.Error(diff)
	}
	prune := func() (left int) {
		t.Helper()
		update(t, p.Store, func(tx *sqlstore.Tx) error { return tx.PruneFacts(clock) })
		if err := p.db.QueryRow(`SELECT count(*) FROM registry_facts WHERE id LIKE 'used %'`).Scan(&left); err != nil {
			t.Fatal(err)
		}
		return left
	}
	clock = now.Add(2 * time.Hour)
	if err := use(); !errors.Is(err, registry.ErrTokenUsed) || prune() != 1 {
		t.Errorf("expired: %v", err)
	}
	clock = now.Add(72 * time.Hour)
	if n := prune(); n != 0 {
		t.Errorf("%d tokens of long ago are remembered", n)
	}
	if err := use(); !errors.Is(err, registry.ErrTokenExpired) {
		t.Errorf("long after: %v", err)
	}
}

// Old authorities and old bundles of other domains are none.
func TestOldAuthorities(t *testing.T) {
	p := startProcess(t, openDB(t, t.TempDir()+"/writ.db"))
	partner := spiffeid.RequireTrustDomainFromString("partner.org")
	put := func(sequence uint64) {
		t.Helper()
		update(t, p.Store, func(tx *sqlstore.Tx) error {
			return tx.PutFederatedBundle(registry.FederatedBundle{TrustDomain: partner, Sequence: sequence, RefreshHint: time.Minute})
		})
	}
	save := func(doc string) {
		t.Helper()
		if err := p.SaveJournal(t.Context(), []byte(doc)); err != nil {
			t.Fatal(err)
		}
	}
	save("with what leaked")
	put(1)
	putBack := keepRows(t, p.db, "registry_authorities", "registry_bundles")
	save("without it")
	put(2)
	p.restart()
	if doc, err := p.LoadJournal(t.Context()); string(doc) != "without it" || err != nil || p.Index().FederatedBundle(partner).Sequence != 2 {
		t.Fatalf("%q, %v", doc, err)
	}
	p.ledger.alarms()
	putBack()
	p.restart()
	if doc, err := p.LoadJournal(t.Context()); doc != nil || !errors.Is(err, sqlstore.ErrForged) {
		t.Errorf("old authorities: %q, %v", doc, err)
	}
	if b := p.Index().FederatedBundle(partner); b != nil {
		t.Errorf("an old bundle: %+v", b)
	}
	statements(t, p.db, `DELETE FROM registry_authorities`)
	if doc, err := p.LoadJournal(t.Context()); doc != nil || !errors.Is(err, sqlstore.ErrForged) {
		t.Errorf("no authorities: %q, %v", doc, err)
	}
	if diff := cmp.Diff([]string{"refused authorities", "refused authorities", "refused bundle"}, p.ledger.alarms()); diff != "" {
		t.Error(diff)
	}
}

// Nor at replicas: the journal and the CRLs of a peer are its latest, and who was
// removed is.
func TestOldReplicas(t *testing.T) {
	dsn := pgtest.DSN(t)
	ctx := t.Context()
	a, b := startProcess(t, openPostgres(t, dsn)), startProcess(t, openPostgres(t, dsn))
	join := func(p *process, name string) *sqlstore.Member {
		t.Helper()
		m, err := p.Join(ctx, name, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	one, two := join(a, "one"), join(b, "two")
	peer := func() ca.Peer {
		t.Helper()
		state, err := one.Peers(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range state.Peers {
			if p.Name == "two" {
				return p
			}
		}
		return ca.Peer{}
	}
	save := func(doc string) {
		t.Helper()
		if err := errors.Join(two.SaveJournal(ctx, []byte(doc)), two.SaveCRLs(ctx, []byte("lists "+doc))); err != nil {
			t.Fatal(err)
		}
	}
	save("old")
	if p := peer(); string(p.Journal) != "old" || string(p.CRLs) != "lists old" {
		t.Fatalf("%+v", p)
	}
	putBack := keepRows(t, a.db, "registry_replicas", "registry_crls")
	save("new")
	if p := peer(); string(p.Journal) != "new" || string(p.CRLs) != "lists new" {
		t.Fatalf("%+v", p)
	}
	putBack()
	if p := peer(); p.Journal != nil || p.CRLs != nil {
		t.Errorf("old rows of a peer: %q, %q", p.Journal, p.CRLs)
	}
	if doc, err := two.LoadJournal(ctx); doc != nil || !errors.Is(err, sqlstore.ErrForged) {
		t.Errorf("its own: %q, %v", doc, err)
	}
	save("new again")
	if p := peer(); string(p.Journal) != "new again" || p.Removed {
		t.Errorf("%+v", p)
	}
	update(t, a.Store, func(tx *sqlstore.Tx) error { return tx.RemoveReplica("two") })
	for name, tamper := range map[string]string{
		"not removed": `UPDATE registry_replicas SET state = '' WHERE name = 'two'`,
		"gone":        `DELETE FROM registry_replicas WHERE name = 'two'`,
	} {
		statements(t, a.db, tamper)
		if p := peer(); !p.Removed || !p.Tainted {
			t.Errorf("%s: %+v", name, p)
		}
		if err := two.SaveJournal(ctx, []byte("x")); !errors.Is(err, sqlstore.ErrRemoved) {
			t.Errorf("%s: it saved authorities: %v", name, err)
		}
		if _, err := b.Join(ctx, "two", slog.New(slog.DiscardHandler)); !errors.Is(err, sqlstore.ErrRemoved) {
			t.Errorf("%s: it joined: %v", name, err)
		}
	}
	if alarms := a.ledger.alarms(); len(alarms) < 3 {
		t.Errorf("alarms: %q", alarms)
	}
}

// The rows of facts themselves: what the issuer knew holds, and they are put right;
// without its memory, a database whose facts do not fit is refused.
func TestFactRows(t *testing.T) { onEach(t, testFactRows) }

func testFactRows(t *testing.T, again func() *sql.DB) {
	p := startProcess(t, again())
	putAgent(t, p, 0, "1", false)
	putBack := keepRows(t, p.db, "registry_agents", "registry_facts")
	putAgent(t, p, 0, "", true)
	p.ledger.alarms()
	putBack() // no ban, by the rows of both
	p.check()
	if diff := cmp.Diff([]string{"tampered fact"}, p.ledger.alarms()); diff != "" {
		t.Error(diff)
	}
	p.restart()
	if indexed, read := stands(t, p, 0); indexed != "banned" || read != "banned" {
		t.Errorf("%s, %s", indexed, read)
	}
	if diff := cmp.Diff([]string{"refused agent", "tampered fact"}, p.ledger.alarms()); diff != "" {
		t.Error(diff)
	}
	p.restart()
	p.check()
	if diff := cmp.Diff([]string{"refused agent"}, p.ledger.alarms()); diff != "" {
		t.Errorf("the rows were not put right: %s", diff)
	}
	// Another process sees what the seal says, and no less.
	other := startProcess(t, again())
	if indexed, _ := stands(t, other, 0); indexed != "banned" {
		t.Errorf("at another: %s", indexed)
	}
	statements(t, p.db, `DELETE FROM registry_facts`)
	if err := os.Remove(p.config.SeenFile); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	var foreign *sqlstore.ForeignError
	if err := p.start(); !errors.As(err, &foreign) {
		t.Fatalf("opened: %v", err)
	}
}

// Replicas follow each other's facts.
func TestFollowFacts(t *testing.T) {
	dsn := pgtest.DSN(t)
	a, b := startProcess(t, openPostgres(t, dsn)), startProcess(t, openPostgres(t, dsn))
	putAgent(t, a, 0, "1", false)
	putBack := keepRows(t, a.db, "registry_agents")
	putAgent(t, a, 0, "", true)
	putBack()
	if err := b.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if indexed, read := stands(t, b, 0); indexed != "banned" || read != "banned" {
		t.Errorf("%s, %s", indexed, read)
	}
	if err := b.Doubt(); err != nil {
		t.Error(err)
	}
	update(t, b.Store, func(tx *sqlstore.Tx) error { _, err := tx.DeleteAgent(agentID(0)); return err })
	if indexed, read := stands(t, a, 0); indexed != "unknown" || read != "unknown" {
		t.Errorf("after it was evicted elsewhere: %s, %s", indexed, read)
	}
}

// A database of before is taken as it is, once.
func TestFactsBegin(t *testing.T) { onEach(t, testFactsBegin) }

func testFactsBegin(t *testing.T, again func() *sql.DB) {
	p := startProcess(t, again())
	hash := registry.HashToken("once")
	putAgent(t, p, 0, "", true)
	p.create("one")
	update(t, p.Store, func(tx *sqlstore.Tx) error {
		if err := tx.CreateJoinToken(registry.JoinToken{Hash: hash, ExpiresAt: now.Add(time.Hour)}); err != nil {
			return err
		}
		_, err := tx.UseJoinToken(hash)
		return err
	})
	if err := p.LeaveWithoutFacts(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.config.SeenFile = t.TempDir() + "/seen" // of before, too
	p.restart()
	putBack := func() {
		statements(t, p.db, `DELETE FROM registry_agents`, `UPDATE registry_join_tokens SET used_at = 0`)
	}
	putBack()
	if _, read := stands(t, p, 0); read != "banned" {
		t.Errorf("the banned agent is %s", read)
	}
	if err := p.Update(t.Context(), func(tx *sqlstore.Tx) error { _, err := tx.UseJoinToken(hash); return err }); !errors.Is(err, registry.ErrTokenUsed) {
		t.Errorf("used twice: %v", err)
	}
	p.restart()
	if indexed, _ := stands(t, p, 0); indexed != "banned" || p.Index().Entry("one") == nil {
		t.Errorf("after a restart: %s", indexed)
	}
}
