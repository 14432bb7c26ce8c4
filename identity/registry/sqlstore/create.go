package sqlstore

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/writ-dev/writ/identity/registry"
)

// rowsAtOnce bounds the rows of one statement. A row has 16 parameters, and
// SQLite takes 32,766 in a statement, PostgreSQL 65,535.
const rowsAtOnce = 250

// CreateEntry adds an entry and returns it as it is now: with an ID, if it had
// none, a revision and the time of its making. If its ID is taken, or an entry
// is similar, the error is a *registry.ExistsError.
func (t *Tx) CreateEntry(e registry.Entry) (*registry.Entry, error) {
	created, err := t.CreateEntries([]registry.Entry{e})
	switch {
	case err != nil:
		return nil, err
	case created[0].Exists != nil:
		return nil, &registry.ExistsError{Entry: created[0].Exists}
	}
	return created[0].Entry, nil
}

// Created is what became of an entry that was to be made: Entry, or what Exists
// already with its ID or similar to it.
type Created struct{ Entry, Exists *registry.Entry }

// CreateEntries is CreateEntry for many. One that exists keeps no other from
// being made; an error does, and the transaction must end with it.
func (t *Tx) CreateEntries(list []registry.Entry) ([]Created, error) {
	created := make([]Created, len(list))
	list = slices.Clone(list) // entries are pointed into, and IDs set
	for first := 0; first < len(list); first += rowsAtOnce {
		end := min(first+rowsAtOnce, len(list))
		if err := t.createEntries(list[first:end], created[first:end]); err != nil {
			return nil, fmt.Errorf("create entries: %w", err)
		}
	}
	return created, nil
}

func (t *Tx) createEntries(list []registry.Entry, created []Created) error {
	similarities := make([][sha256.Size]byte, len(list))
	for i := range list {
		list[i].Normalize()
		similarities[i] = list[i].Similarity()
	}
	met := len(t.suspects)
	byID, bySimilarity, err := t.taken(list, similarities)
	if err != nil {
		return err
	}
	// A row of the ID of an entry that is to be there is for a person to look at.
	asked := func(r row) bool {
		return t.lost(r.id) != nil && slices.ContainsFunc(list, func(e registry.Entry) bool { return e.ID == r.id })
	}
	if err := t.clear(slices.DeleteFunc(slices.Clone(t.suspects[met:]), asked)); err != nil {
		return err
	}
	now := t.now.UTC().Truncate(time.Second)
	var values []any
	rows := 0
	var digests []digest
	for i := range list {
		e := &list[i]
		if other := byID[e.ID]; other != nil {
			created[i].Exists = other
			continue
		}
		if other := bySimilarity[similarities[i]]; other != nil {
			created[i].Exists = other
			continue
		}
		if other := t.lost(e.ID); other != nil {
			created[i].Exists = other
			continue
		}
		if e.ID == "" {
			id, err := uuid.NewRandom()
			if err != nil {
				return err
			}
			e.ID = id.String()
		}
		e.CreatedAt, e.RevisionNumber = now, int64(t.change.Revision)
		var d digest
		if values, d, err = t.s.entryValues(values, e); err != nil {
			return fmt.Errorf("entry %s: %w", e.ID, err)
		}
		digests = append(digests, d)
		rows++
		created[i].Entry = e
		byID[e.ID], bySimilarity[similarities[i]] = e, e
	}
	if rows == 0 {
		return nil
	}
	if err := t.exec(insertEntries(rows), values...); err != nil {
		return err
	}
	for _, c := range created {
		if c.Entry != nil {
			t.keep(c.Entry.ID, c.Entry, &digests[0])
			digests = digests[1:]
			t.change.Entries = append(t.change.Entries, registry.EntryChange{New: c.Entry})
		}
	}
	return nil
}

// lost is an entry that is to be there by that ID though its row is not, as far
// as it is known; nil if there is none.
func (t *Tx) lost(id string) *registry.Entry {
	if _, own := t.written[id]; id == "" || own {
		return nil
	}
	if e := t.s.index.Entry(id); e != nil {
		return e
	}
	if w := (*t.s.withheld.Load())[id]; w != nil && w.Known {
		return &registry.Entry{ID: id}
	}
	return nil
}

// clear removes rows that are in the way and that nobody who may make entries
// wrote. What is to be there by their IDs stays so.
func (t *Tx) clear(rows []row) error {
	for _, r := range rows {
		if err := t.exec(`DELETE FROM registry_entries WHERE id = ?`, r.id); err != nil {
			return fmt.Errorf("remove row %q, which is no entry: %w", r.id, err)
		}
		t.cleared = append(t.cleared, r.id)
	}
	return nil
}

// taken returns the entries of the database that have the IDs or similarities of
// list.
func (t *Tx) taken(list []registry.Entry, similarities [][sha256.Size]byte) (byID map[string]*registry.Entry, bySimilarity map[[sha256.Size]byte]*registry.Entry, err error) {
	byID, bySimilarity = map[string]*registry.Entry{}, map[[sha256.Size]byte]*registry.Entry{}
	var ids, hashes []any
	for i := range list {
		if list[i].ID != "" {
			ids = append(ids, list[i].ID)
		}
		hashes = append(hashes, similarities[i][:])
	}
	if len(ids) > 0 {
		same, err := t.entriesWhere(`id IN (`+repeat(`?`, len(ids))+`)`, ids...)
		if err != nil {
			return nil, nil, err
		}
		for _, e := range same {
			byID[e.ID] = e
		}
	}
	similar, err := t.entriesWhere(`similarity IN (`+repeat(`?`, len(hashes))+`)`, hashes...)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range similar {
		bySimilarity[e.Similarity()] = e
	}
	return byID, bySimilarity, nil
}
