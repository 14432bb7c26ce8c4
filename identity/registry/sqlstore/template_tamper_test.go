package sqlstore_test

import (
	"database/sql"
	"errors"
	"slices"
	"testing"

	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
)

const foreignTemplate = `INSERT INTO registry_templates (id, spiffe_id, parent_id, selectors, x509_svid_ttl, jwt_svid_ttl, federates_with, dns_names, hint, revision, created_at)
	VALUES ('mine', 'spiffe://example.org/svc/{unix:user}', 'spiffe://example.org/node/a', '[]', 0, 0, '[]', '[]', '', 1, 1)`

// What somebody else does to templates in the database gives nobody a name: not a
// row that was added, changed or put back, and not one that is gone.
func TestTemplatesAreSealed(t *testing.T) { onEach(t, testTemplatesAreSealed) }

func testTemplatesAreSealed(t *testing.T, again func() *sql.DB) {
	db := again()
	p := startProcess(t, db)
	var made *registry.Template
	make := func() {
		t.Helper()
		update(t, p.Store, func(tx *sqlstore.Tx) (err error) {
			r := fullTemplate(t)
			r.ID = "ours"
			made, err = tx.CreateTemplate(r)
			return err
		})
	}
	do := func(statements ...string) {
		t.Helper()
		for _, text := range statements {
			if _, err := db.ExecContext(t.Context(), text); err != nil {
				t.Fatal(err)
			}
		}
	}
	served := func() (ids []string) {
		for _, r := range p.Index().Templates() {
			ids = append(ids, r.ID)
		}
		return ids
	}
	// With a database that never had any.
	do(foreignTemplate)
	p.restart()
	if got := served(); len(got) != 0 || !slices.Equal(p.ledger.alarms(), []string{"withheld templates"}) {
		t.Fatalf("a foreign template is served: %v", got)
	}
	// Another change seals nothing of it.
	p.create("e1")
	p.ledger.alarms()
	p.restart()
	if got := served(); len(got) != 0 || !slices.Equal(p.ledger.alarms(), []string{"withheld templates"}) {
		t.Fatalf("a foreign template is served after another change: %v", got)
	}
	// What is made then is all there is.
	make()
	p.ledger.alarms()
	p.restart()
	if got := served(); !slices.Equal(got, []string{"ours"}) || len(p.ledger.alarms()) != 0 {
		t.Fatalf("served %v", got)
	}
	for name, statements := range map[string][]string{
		"added":      {foreignTemplate},
		"changed":    {`UPDATE registry_templates SET parent_id = 'spiffe://example.org/node/b' WHERE id = 'ours'`},
		"deleted":    {`DELETE FROM registry_templates`},
		"unreadable": {`UPDATE registry_templates SET spiffe_id = 'spiffe://example.org/{x:y}' WHERE id = 'ours'`},
		"forgotten":  {`DELETE FROM registry_templates`, `UPDATE registry_revision SET templates_revision = 0, templates_seal = ''`, foreignTemplate},
	} {
		do(statements...)
		p.restart()
		if got := served(); len(got) != 0 || !slices.Contains(p.ledger.alarms(), "withheld templates") {
			t.Errorf("%s: served %v", name, got)
		}
		if len(p.Index().Entries()) != 1 {
			t.Errorf("%s: entries are not served either", name)
		}
		// While this process runs, rows are not asked: what is made is written over them.
		make()
		p.restart()
		if got := served(); !slices.Equal(got, []string{"ours"}) || p.Index().Template("ours").ParentID != made.ParentID {
			t.Errorf("%s: made again, served %v", name, got)
		}
		p.ledger.alarms()
	}
	// Rows and seal of before, put back together.
	do(`CREATE TABLE kept AS SELECT * FROM registry_templates`)
	var seal []byte
	var revision int64
	if err := db.QueryRowContext(t.Context(), `SELECT templates_revision, templates_seal FROM registry_revision`).Scan(&revision, &seal); err != nil {
		t.Fatal(err)
	}
	update(t, p.Store, func(tx *sqlstore.Tx) error { _, err := tx.DeleteTemplate("ours"); return err })
	p.restart()
	if got := served(); len(got) != 0 || len(p.ledger.alarms()) != 0 {
		t.Errorf("after deletion: served %v", got)
	}
	do(`INSERT INTO registry_templates SELECT * FROM kept`)
	if _, err := db.ExecContext(t.Context(), `UPDATE registry_revision SET templates_revision = ?, templates_seal = ?`, revision, seal); err != nil {
		t.Fatal(err)
	}
	p.restart()
	if got := served(); len(got) != 0 || !slices.Contains(p.ledger.alarms(), "withheld templates") {
		t.Errorf("put back: served %v", got)
	}
}

// A transaction that fails leaves the templates as they were.
func TestTemplatesAfterRollback(t *testing.T) {
	p := startProcess(t, openDB(t, t.TempDir()+"/writ.db"))
	failed := errors.New("no")
	err := p.Update(t.Context(), func(tx *sqlstore.Tx) error {
		if _, err := tx.CreateTemplate(fullTemplate(t)); err != nil {
			return err
		}
		return failed
	})
	if !errors.Is(err, failed) || len(p.Index().Templates()) != 0 {
		t.Errorf("%v, %v", err, p.Index().Templates())
	}
	update(t, p.Store, func(tx *sqlstore.Tx) error {
		_, err := tx.CreateTemplate(fullTemplate(t))
		return err
	})
	p.restart()
	if len(p.Index().Templates()) != 1 || len(p.ledger.alarms()) != 0 {
		t.Errorf("%v", p.Index().Templates())
	}
}
