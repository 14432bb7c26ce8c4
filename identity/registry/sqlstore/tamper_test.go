package sqlstore_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/keys"
	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
	"github.com/writ-dev/writ/internal/pgtest"
)

// ledger is where the acts of stores go.
type ledger struct {
	mu   sync.Mutex
	acts []identity.Act
	fail bool
}

func (l *ledger) record(_ context.Context, acts []identity.Act) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fail {
		return errors.New("the ledger is full")
	}
	l.acts = append(l.acts, acts...)
	return nil
}

// alarms are those since the last call, as "verb object id cause".
func (l *ledger) alarms() (texts []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, act := range l.acts {
		if act.Kind != identity.ActAlarm {
			continue
		}
		text := act.Verb + " " + act.Object
		if act.Object == "entry" {
			text += " " + act.ObjectID + " " + act.Details[0][1]
		}
		texts = append(texts, text)
	}
	l.acts = nil
	slices.Sort(texts)
	return texts
}

// process is a store as one program has it: with a data directory of its own.
type process struct {
	*sqlstore.Store
	t      testing.TB
	db     *sql.DB
	config sqlstore.Config
	ledger *ledger
}

func startProcess(t testing.TB, db *sql.DB) *process {
	t.Helper()
	p := &process{t: t, db: db, ledger: &ledger{}}
	p.config = sqlstore.Config{
		Clock: func() time.Time { return now }, KeyFile: keyFile, SeenFile: filepath.Join(t.TempDir(), "registry.seen"), Record: p.ledger.record,
	}
	if err := p.start(); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *process) start() error {
	s, err := sqlstore.Open(p.t.Context(), p.db, p.config)
	if err != nil {
		return err
	}
	p.Store = s
	p.t.Cleanup(func() { s.Close() })
	return nil
}

func (p *process) restart() {
	p.t.Helper()
	if err := p.Close(); err != nil {
		p.t.Fatal(err)
	}
	if err := p.start(); err != nil {
		p.t.Fatal(err)
	}
}

func (p *process) check() {
	p.t.Helper()
	if err := p.Check(p.t.Context()); err != nil {
		p.t.Fatal(err)
	}
}

// create makes entries that differ in their IDs and names.
func (p *process) create(ids ...string) {
	p.t.Helper()
	update(p.t, p.Store, func(tx *sqlstore.Tx) error {
		for _, id := range ids {
			if _, err := tx.CreateEntry(plain(id, "/svc/"+id)); err != nil {
				return err
			}
		}
		return nil
	})
}

func (p *process) served() (ids []string) {
	for _, e := range p.Index().Entries() {
		ids = append(ids, e.ID)
	}
	return ids
}

func (p *process) want(served, alarms []string) {
	p.t.Helper()
	if diff := cmp.Diff(served, p.served()); diff != "" {
		p.t.Errorf("served: %s", diff)
	}
	if diff := cmp.Diff(alarms, p.ledger.alarms()); diff != "" {
		p.t.Errorf("alarms: %s", diff)
	}
}

// statements runs them as somebody who has the database would.
func statements(t testing.TB, db *sql.DB, list ...string) {
	t.Helper()
	for _, s := range list {
		if _, err := db.Exec(s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}

const (
	copyRow = `INSERT INTO registry_entries SELECT 'forged', replace(spiffe_id, 'd', 'x'), parent_id, selectors, %s, x509_svid_ttl, jwt_svid_ttl, federates_with, dns_names, 1, downstream, store_svid, hint, expires_at, revision, created_at, mark FROM registry_entries WHERE id = 'd'`
	aMark   = `(SELECT mark FROM saved WHERE id = 'a')`
	putBack = `INSERT INTO registry_entries SELECT * FROM saved WHERE id = '%s'`
)

// tamperings are what somebody does who has the database and not the key. There
// are the entries a to e; b was changed and c deleted after the table saved was
// made, which has them as they were.
var tamperings = []struct {
	name, sql, id, cause string
	served               []string
	exact                bool // found row by row without a memory of what was seen
}{
	{"insert", fmt.Sprintf(copyRow, aMark), "forged", sqlstore.Unmarked, []string{"a", "b", "d", "e"}, true},
	{"change", `UPDATE registry_entries SET admin = 1 WHERE id = 'd'`, "d", sqlstore.Unmarked, []string{"a", "b", "e"}, false},
	{"change who it is for", `UPDATE registry_entries SET selectors = '[["unix","uid:0"]]' WHERE id = 'd'`, "d", sqlstore.Unmarked, []string{"a", "b", "e"}, false},
	{"change only the mark", `UPDATE registry_entries SET mark = similarity WHERE id = 'd'`, "d", sqlstore.Unmarked, []string{"a", "b", "e"}, false},
	{"change what it is found by", `UPDATE registry_entries SET similarity = mark WHERE id = 'd'`, "d", sqlstore.Unmarked, []string{"a", "b", "e"}, false},
	{"exchange the marks", `UPDATE registry_entries SET mark = (SELECT mark FROM saved WHERE id = 'a') WHERE id = 'd'`, "d", sqlstore.Unmarked, []string{"a", "b", "e"}, false},
	{"resurrect", fmt.Sprintf(putBack, "c"), "c", sqlstore.Stale, []string{"a", "b", "d", "e"}, false},
	{"put back", `DELETE FROM registry_entries WHERE id = 'b';` + fmt.Sprintf(putBack, "b"), "b", sqlstore.Stale, []string{"a", "d", "e"}, false},
	{"delete", `DELETE FROM registry_entries WHERE id = 'd'`, "d", sqlstore.Missing, []string{"a", "b", "e"}, false},
	{"nonsense", `UPDATE registry_entries SET selectors = '{', spiffe_id = 'x' WHERE id = 'd'`, "d", sqlstore.Unreadable, []string{"a", "b", "e"}, false},
}

func prepare(t *testing.T, db *sql.DB) *process {
	t.Helper()
	p := startProcess(t, db)
	p.create("a", "b", "c", "d", "e")
	statements(t, db, `CREATE TABLE saved AS SELECT * FROM registry_entries`)
	update(t, p.Store, func(tx *sqlstore.Tx) error {
		b := plain("b", "/svc/b")
		b.Hint = "changed"
		if _, err := tx.UpdateEntry(b); err != nil {
			return err
		}
		_, err := tx.DeleteEntry("c")
		return err
	})
	p.check()
	p.restart()
	p.want([]string{"a", "b", "d", "e"}, nil)
	return p
}

// What somebody writes who has the database is not served and is an alarm, once,
// whether it is done while the process runs or while it does not; the others are
// served on.
func TestTampering(t *testing.T) {
	for _, tamper := range tamperings {
		t.Run(strings.ReplaceAll(tamper.name, " ", "-"), func(t *testing.T) {
			onEach(t, func(t *testing.T, again func() *sql.DB) {
				alarm := []string{"withheld entry " + tamper.id + " " + tamper.cause}
				p := prepare(t, again())
				watch := p.Index().Watch(path("/node/a"))
				defer watch.Close()
				statements(t, p.db, strings.Split(tamper.sql, ";")...)
				p.check()
				p.want(tamper.served, alarm)
				if !slices.Contains(tamper.served, tamper.id) && tamper.id != "forged" && tamper.cause != sqlstore.Stale || tamper.id == "b" {
					<-watch.C() // agents are told
				}
				list, more := p.Withheld()
				if len(list) != 1 || more != 0 || list[0].ID != tamper.id || list[0].Reason != tamper.cause || p.Alarms() != 1 {
					t.Fatalf("withheld %+v and %d, %d alarms", list, more, p.Alarms())
				}
				// Once, whatever else happens.
				p.create("f")
				p.check()
				p.want(append(slices.Clone(tamper.served), "f"), nil)
				// A process that begins finds the same.
				p.restart()
				p.want(append(slices.Clone(tamper.served), "f"), alarm)
				p.check()
				p.want(append(slices.Clone(tamper.served), "f"), nil)

				// One that has seen nothing knows no more than the seal.
				p.config.SeenFile = ""
				err := p.start()
				var foreign *sqlstore.ForeignError
				switch {
				case tamper.exact && err == nil:
					p.want(append(slices.Clone(tamper.served), "f"), alarm)
				case !tamper.exact && errors.As(err, &foreign):
					if diff := cmp.Diff([]string{"refused registry"}, p.ledger.alarms()); diff != "" {
						t.Error(diff)
					}
				default:
					t.Errorf("without a memory: %v", err)
				}
			})
		})
	}
}

// What a transaction meets is found at once, and is nothing to it.
func TestTransactionMeetsTampering(t *testing.T) { onEach(t, testTransactionMeetsTampering) }

func testTransactionMeetsTampering(t *testing.T, again func() *sql.DB) {
	p := prepare(t, again())
	statements(t, p.db, `UPDATE registry_entries SET admin = 1 WHERE id = 'd'`, `DELETE FROM registry_entries WHERE id = 'e'`, fmt.Sprintf(putBack, "c"))
	err := p.Update(t.Context(), func(tx *sqlstore.Tx) error {
		for _, id := range []string{"c", "d", "e"} {
			if e, err := tx.Entry(id); !errors.Is(err, registry.ErrNotFound) {
				t.Errorf("%s is %v, %v", id, e, err)
			}
		}
		return errors.New("whatever")
	})
	if err == nil {
		t.Fatal("it was to fail")
	}
	p.want([]string{"a", "b"}, []string{"withheld entry c stale", "withheld entry d unmarked", "withheld entry e missing"})
	// A row in the way of a new entry is removed; the ID of an entry that is to be
	// there is not free.
	var created []sqlstore.Created
	update(t, p.Store, func(tx *sqlstore.Tx) error {
		created, err = tx.CreateEntries([]registry.Entry{plain("new", "/svc/c"), plain("d", "/svc/other"), plain("e", "/svc/e")})
		return err
	})
	if created[0].Entry == nil || created[1].Exists == nil || created[2].Exists == nil {
		t.Errorf("created %+v", created)
	}
	p.check()
	p.want([]string{"a", "b", "new"}, nil)
	p.restart()
	p.want([]string{"a", "b", "new"}, []string{"withheld entry d unmarked", "withheld entry e missing"})
}

// A person accepts the row that was looked at, or has it deleted; one that is
// again what it was is served again by itself.
func TestAccept(t *testing.T) { onEach(t, testAccept) }

func testAccept(t *testing.T, again func() *sql.DB) {
	p := prepare(t, again())
	statements(t, p.db, `UPDATE registry_entries SET hint = 'by hand' WHERE id = 'd'`, `DELETE FROM registry_entries WHERE id = 'e'`,
		fmt.Sprintf(putBack, "c"), `UPDATE registry_entries SET hint = 'x' WHERE id = 'a'`)
	p.check()
	p.want([]string{"b"}, []string{"withheld entry a unmarked", "withheld entry c stale", "withheld entry d unmarked", "withheld entry e missing"})
	list, _ := p.Withheld()
	seen := list[2]
	statements(t, p.db, `UPDATE registry_entries SET hint = '' WHERE id = 'a'`, `UPDATE registry_entries SET hint = 'again' WHERE id = 'd'`)
	if err := p.Update(t.Context(), func(tx *sqlstore.Tx) error { _, err := tx.AcceptEntry("d", seen.Digest); return err }); !errors.Is(err, sqlstore.ErrChanged) {
		t.Errorf("accepted what nobody looked at: %v", err)
	}
	p.check()
	p.want([]string{"a", "b"}, []string{"withheld entry d unmarked"})
	list, _ = p.Withheld()
	update(t, p.Store, func(tx *sqlstore.Tx) error {
		e, err := tx.AcceptEntry("d", list[1].Digest)
		if err != nil {
			return err
		}
		if e.Hint != "again" || e.RevisionNumber != 3 {
			t.Errorf("accepted %+v", e)
		}
		for _, id := range []string{"c", "e"} {
			if _, err := tx.DropWithheld(id); err != nil {
				return err
			}
		}
		return nil
	})
	p.check()
	p.want([]string{"a", "b", "d"}, nil)
	if list, more := p.Withheld(); len(list) != 0 || more != 0 {
		t.Errorf("withheld %v and %d", list, more)
	}
	p.restart()
	p.want([]string{"a", "b", "d"}, nil)
	p.config.SeenFile = ""
	p.restart()
	p.want([]string{"a", "b", "d"}, nil)
}

// Who fills the table does not fill the record.
func TestManyForeignRows(t *testing.T) { onEach(t, testManyForeignRows) }

func testManyForeignRows(t *testing.T, again func() *sql.DB) {
	p := prepare(t, again())
	one := strings.Replace(fmt.Sprintf(copyRow, `CAST(? AS BLOB)`), `'forged'`, `'forged' || CAST(? AS TEXT)`, 1)
	tx, err := p.db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	for n := range 1100 {
		if _, err := tx.Exec(one, fmt.Sprint(n), []byte(fmt.Sprint(n))); err != nil {
			t.Fatal(err)
		}
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		p.check()
		if list, more := p.Withheld(); len(list) != 1000 || more != 100 {
			t.Errorf("withheld %d and %d", len(list), more)
		}
	}
	if alarms := p.ledger.alarms(); len(alarms) != 1001 || alarms[1000] != "withheld registry" {
		t.Errorf("%d alarms, the last %q", len(alarms), alarms[len(alarms)-1])
	}
	statements(t, p.db, `DELETE FROM registry_entries WHERE id LIKE 'forged%'`)
	p.check()
	if list, more := p.Withheld(); len(list) != 0 || more != 0 {
		t.Errorf("still withheld %d and %d", len(list), more)
	}
	p.want([]string{"a", "b", "d", "e"}, nil)
}

// A database that is put back to what it was is found by who has seen more; what
// did not change since is served.
func TestPutBack(t *testing.T) { onEach(t, testPutBack) }

func testPutBack(t *testing.T, again func() *sql.DB) {
	p := startProcess(t, again())
	p.create("a", "b", "c")
	statements(t, p.db, `CREATE TABLE saved AS SELECT * FROM registry_entries`, `CREATE TABLE saved_revision AS SELECT * FROM registry_revision`)
	update(t, p.Store, func(tx *sqlstore.Tx) error {
		if _, err := tx.DeleteEntry("a"); err != nil {
			return err
		}
		b := plain("b", "/svc/b")
		b.Hint = "changed"
		_, err := tx.UpdateEntry(b)
		return err
	})
	p.create("d")
	rollback := []string{`DELETE FROM registry_entries`, `INSERT INTO registry_entries SELECT * FROM saved`,
		`DELETE FROM registry_revision`, `INSERT INTO registry_revision SELECT * FROM saved_revision`}
	want := []string{"rolled back registry", "withheld entry a stale", "withheld entry b stale", "withheld entry d missing"}
	statements(t, p.db, rollback...)
	p.check()
	p.want([]string{"c"}, want)
	p.restart()
	p.want([]string{"c"}, want)
	// What comes now has a revision that was never there.
	p.create("e")
	if e := p.Index().Entry("e"); e.RevisionNumber != 4 {
		t.Errorf("revision %d", e.RevisionNumber)
	}
	p.check()
	p.want([]string{"c", "e"}, nil)
	p.restart()
	p.want([]string{"c", "e"}, want[1:])
	// The revision alone, or the seal, is no way either.
	for _, s := range []string{`UPDATE registry_revision SET seal = (SELECT mark FROM saved WHERE id = 'a')`, `UPDATE registry_revision SET revision = 3`} {
		statements(t, p.db, s)
		p.check()
		verb := "tampered registry"
		if strings.Contains(s, "revision = 3") {
			verb = "rolled back registry"
		}
		p.want([]string{"c", "e"}, []string{verb})
	}
	p.create("f")
	p.check()
	p.want([]string{"c", "e", "f"}, nil)
}

// A memory that ends early, as after a power failure, does no harm.
func TestMemoryBehind(t *testing.T) { onEach(t, testMemoryBehind) }

func testMemoryBehind(t *testing.T, again func() *sql.DB) {
	p := prepare(t, again())
	early, err := os.ReadFile(p.config.SeenFile)
	if err != nil {
		t.Fatal(err)
	}
	p.create("f", "g")
	update(t, p.Store, func(tx *sqlstore.Tx) error { _, err := tx.DeleteEntry("a"); return err })
	for _, torn := range [][]byte{early, early[:len(early)-3], early[:10], nil} {
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p.config.SeenFile, torn, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := p.start(); err != nil {
			t.Fatal(err)
		}
		p.want([]string{"b", "d", "e", "f", "g"}, nil)
	}
}

// A database from before is taken as it is, once; one that lost its seal is not.
func TestAdoption(t *testing.T) { onEach(t, testAdoption) }

func testAdoption(t *testing.T, again func() *sql.DB) {
	p := prepare(t, again())
	dir := t.TempDir()
	unseal := func() {
		statements(t, p.db, `UPDATE registry_entries SET mark = ''`, `UPDATE registry_revision SET key_id = '', seal = ''`)
	}
	unseal()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	var foreign *sqlstore.ForeignError
	if err := p.start(); !errors.As(err, &foreign) || foreign.Entries != 4 {
		t.Fatalf("with its key: %v", err)
	}
	if diff := cmp.Diff([]string{"refused registry"}, p.ledger.alarms()); diff != "" {
		t.Error(diff)
	}
	// A control plane that never had a key.
	p.config.KeyFile, p.config.SeenFile = filepath.Join(dir, "new.key"), filepath.Join(dir, "seen")
	p.ledger.fail = true
	if err := p.start(); err == nil {
		t.Fatal("adopted, and nothing is on record")
	}
	p.ledger.fail = false
	if err := p.start(); err != nil {
		t.Fatal(err)
	}
	p.want([]string{"a", "b", "d", "e"}, []string{"adopted registry"})
	p.create("f")
	p.restart()
	p.check()
	p.want([]string{"a", "b", "d", "e", "f"}, nil)
	if leftover, _ := filepath.Glob(filepath.Join(dir, "*.pending")); len(leftover) != 0 {
		t.Errorf("left: %v", leftover)
	}
	// Never again by itself, but for who looked.
	unseal()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := p.start(); !errors.As(err, &foreign) {
		t.Fatalf("unsealed: %v", err)
	}
	p.config.Adopt = strings.Repeat("0", 64)
	if err := p.start(); !errors.As(err, &foreign) {
		t.Fatalf("another digest: %v", err)
	}
	p.ledger.alarms()
	p.config.Adopt = foreign.Digest
	if err := p.start(); err != nil {
		t.Fatal(err)
	}
	p.want([]string{"a", "b", "d", "e", "f"}, []string{"adopted registry"})
	p.create("g")
	p.restart() // what was to be adopted then is nothing now
	p.want([]string{"a", "b", "d", "e", "f", "g"}, nil)
	// The same where the seal is there and fits nothing that is.
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	statements(t, p.db, `UPDATE registry_entries SET hint = 'x' WHERE id = 'a'`)
	p.config.SeenFile = ""
	if err := p.start(); !errors.As(err, &foreign) {
		t.Fatalf("changed: %v", err)
	}
	p.ledger.alarms()
	p.config.Adopt = foreign.Digest
	if err := p.start(); err != nil {
		t.Fatal(err)
	}
	p.want([]string{"a", "b", "d", "e", "f", "g"}, []string{"adopted registry", "refused registry"})
}

// A crash may be on either side of the commit that sealed: the key is kept, or
// never was one.
func TestAdoptionCrash(t *testing.T) {
	db := openDB(t, filepath.Join(t.TempDir(), "writ.db"))
	p := startProcess(t, db)
	p.config.KeyFile = filepath.Join(t.TempDir(), "registry.key")
	statements(t, db, `UPDATE registry_revision SET key_id = '', seal = ''`)
	if err := keys.SaveSecret(p.config.KeyFile+".pending", keys.NewSecret()); err != nil {
		t.Fatal(err)
	}
	p.restart()
	if err := os.Rename(p.config.KeyFile, p.config.KeyFile+".pending"); err != nil {
		t.Fatal(err)
	}
	p.create("a")
	p.restart()
	p.want([]string{"a"}, nil)
}

// What cannot be put on record now is, when it can; it is not served meanwhile.
func TestAlarmWaitsForTheRecord(t *testing.T) {
	p := prepare(t, openDB(t, filepath.Join(t.TempDir(), "writ.db")))
	p.ledger.fail = true
	statements(t, p.db, `DELETE FROM registry_entries WHERE id = 'd'`)
	p.check()
	p.want([]string{"a", "b", "e"}, nil)
	p.ledger.fail = false
	p.check()
	p.want([]string{"a", "b", "e"}, []string{"withheld entry d missing"})
}

// Each replica verifies what others wrote: forged rows with forged changes are
// found at once, an accepted row is served everywhere.
func TestTamperingAcrossReplicas(t *testing.T) {
	dsn := pgtest.DSN(t)
	a := prepare(t, openPostgres(t, dsn))
	b := startProcess(t, openPostgres(t, dsn))
	b.want([]string{"a", "b", "d", "e"}, nil)
	both := func(served, alarms []string) {
		t.Helper()
		for _, p := range []*process{a, b} {
			if err := p.Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
			p.want(served, alarms)
		}
	}
	a.create("f")
	both([]string{"a", "b", "d", "e", "f"}, nil)

	_, changed, err := b.Freshness()
	if err != nil {
		t.Error(err)
	}
	// A row with its change in the log, and without its seal.
	statements(t, a.db, fmt.Sprintf(copyRow, aMark), `UPDATE registry_revision SET revision = revision + 1`,
		`INSERT INTO registry_changes SELECT revision, '{"entries": ["forged"], "digests": ["AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="]}' FROM registry_revision`, `NOTIFY writ_registry`)
	both([]string{"a", "b", "d", "e", "f"}, []string{"refused registry"})
	<-changed
	_, changed, err = b.Freshness()
	if err == nil {
		t.Error("fresh")
	}
	for _, p := range []*process{a, b} {
		var foreign *sqlstore.ForeignError
		if err := p.Fresh(); !errors.As(err, &foreign) {
			t.Errorf("fresh: %v", err)
		}
		if err := p.Update(t.Context(), func(*sqlstore.Tx) error { return nil }); !errors.As(err, &foreign) {
			t.Errorf("update: %v", err)
		}
	}
	statements(t, a.db, `UPDATE registry_revision SET revision = revision - 1`, `DELETE FROM registry_changes WHERE revision = (SELECT revision + 1 FROM registry_revision)`)
	both([]string{"a", "b", "d", "e", "f"}, []string{"withheld entry forged unmarked"})
	<-changed
	if err := errors.Join(a.Fresh(), b.Fresh()); err != nil {
		t.Error(err)
	}

	// What one accepts the other serves.
	list, _ := a.Withheld()
	update(t, a.Store, func(tx *sqlstore.Tx) error { _, err := tx.AcceptEntry("forged", list[0].Digest); return err })
	both([]string{"a", "b", "d", "e", "f", "forged"}, nil)
	for _, p := range []*process{a, b} {
		p.check()
		p.restart()
	}
	both([]string{"a", "b", "d", "e", "f", "forged"}, nil)

	// One that was away knows by the log what is to be there, whatever the rows are.
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	a.create("g", "h")
	update(t, a.Store, func(tx *sqlstore.Tx) error { _, err := tx.DeleteEntry("a"); return err })
	statements(t, a.db, `UPDATE registry_entries SET hint = 'x' WHERE id = 'g'`, fmt.Sprintf(putBack, "a"))
	if err := b.start(); err != nil {
		t.Fatal(err)
	}
	b.want([]string{"b", "d", "e", "f", "forged", "h"}, []string{"withheld entry a stale", "withheld entry g unmarked"})

	// One without the key is none.
	c := *b
	c.config.KeyFile, c.config.SeenFile = filepath.Join(t.TempDir(), "registry.key"), ""
	var foreign *sqlstore.ForeignError
	if err := c.start(); !errors.As(err, &foreign) || !strings.Contains(foreign.Why, "which this control plane does not have") {
		t.Errorf("without the key: %v", err)
	}
	if _, err := os.Stat(c.config.KeyFile); err == nil {
		t.Error("it made a key")
	}
}

// Several replicas that begin at once on a new database agree on one key.
func TestReplicasSealOnce(t *testing.T) {
	dsn := pgtest.DSN(t)
	var starting sync.WaitGroup
	l := &ledger{}
	for range 3 {
		db := openPostgres(t, dsn)
		starting.Go(func() {
			s, err := sqlstore.Open(t.Context(), db, sqlstore.Config{KeyFile: keyFile, Record: l.record, Log: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Error(err)
				return
			}
			s.Close()
		})
	}
	starting.Wait()
	if len(l.acts) != 1 || l.acts[0].Verb != "sealed" {
		t.Errorf("acts %+v", l.acts)
	}
}
