package sqlstore_test

import (
	"database/sql"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/identity/registry/sqlstore"
)

func plain(id, spiffe string) registry.Entry {
	return registry.Entry{ID: id, SPIFFEID: path(spiffe), ParentID: path("/node/a"), Selectors: []registry.Selector{{Type: "unix", Value: "uid:1"}}}
}

// Of a batch, what exists is refused alone: in the database, in the same
// transaction, or earlier in the batch, by ID or by similarity.
func TestCreateEntriesRefusesWhatExists(t *testing.T) { onEach(t, testCreateEntriesRefusesWhatExists) }

func testCreateEntriesRefusesWhatExists(t *testing.T, again func() *sql.DB) {
	s := open(t, again())
	update(t, s, func(tx *sqlstore.Tx) error {
		_, err := tx.CreateEntry(plain("old", "/svc/old"))
		return err
	})
	var got []string
	update(t, s, func(tx *sqlstore.Tx) error {
		if _, err := tx.CreateEntry(plain("own", "/svc/own")); err != nil {
			return err
		}
		created, err := tx.CreateEntries([]registry.Entry{
			plain("a", "/svc/a"),
			plain("old", "/svc/b"), // the ID is in the database
			plain("", "/svc/old"),  // similar to what is in the database
			plain("own", "/svc/c"), // the ID is in this transaction
			plain("", "/svc/own"),  // similar to what is in this transaction
			plain("a", "/svc/d"),   // the ID is in this batch
			plain("", "/svc/a"),    // similar to what is in this batch
			plain("e", "/svc/e"),
			plain("f", "/svc/b"), // what was refused takes nothing
		})
		for _, c := range created {
			if c.Exists != nil {
				got = append(got, "exists "+c.Exists.ID)
			} else {
				got = append(got, "made "+c.Entry.ID)
			}
		}
		return err
	})
	want := []string{"made a", "exists old", "exists old", "exists own", "exists own", "exists a", "exists a", "made e", "made f"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	var ids []string
	for _, e := range s.Index().Entries() {
		ids = append(ids, e.ID)
	}
	if diff := cmp.Diff([]string{"a", "e", "f", "old", "own"}, ids); diff != "" {
		t.Error(diff)
	}
}

// A batch longer than a statement takes is made whole, in order, and sees its
// own earlier rows.
func TestCreateEntriesLongerThanAStatement(t *testing.T) {
	onEach(t, testCreateEntriesLongerThanAStatement)
}

func testCreateEntriesLongerThanAStatement(t *testing.T, again func() *sql.DB) {
	s := open(t, again())
	var batch []registry.Entry
	for n := range 1000 {
		batch = append(batch, plain("", fmt.Sprintf("/svc/%d", n)))
	}
	batch = append(batch, plain("", "/svc/0"))
	update(t, s, func(tx *sqlstore.Tx) error {
		created, err := tx.CreateEntries(batch)
		if err != nil {
			return err
		}
		for n, c := range created[:1000] {
			if c.Entry == nil || c.Entry.SPIFFEID != batch[n].SPIFFEID {
				t.Fatalf("item %d became %+v", n, c)
			}
		}
		if c := created[1000]; c.Exists == nil || c.Exists.ID != created[0].Entry.ID {
			t.Errorf("the last became %+v", c)
		}
		return nil
	})
	if batch[0].ID != "" {
		t.Error("the caller's list was changed")
	}
	reopened := open(t, again())
	if diff := cmp.Diff(s.Index().Entries(), reopened.Index().Entries(), ignoreZone); diff != "" || len(reopened.Index().Entries()) != 1000 {
		t.Errorf("%d entries after a restart: %s", len(reopened.Index().Entries()), diff)
	}
}
