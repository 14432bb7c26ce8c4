package sqlstore

import (
	"errors"
	"fmt"
	"slices"

	"github.com/writ-dev/writ/identity/registry"
)

// ErrChanged: the row of a withheld entry is not what it was when somebody looked
// at it. Look again.
var ErrChanged = errors.New("the row has changed since it was looked at")

// WithheldRow is the row of a withheld entry as it is now: Reason is empty if it is
// not withheld. The error is registry.ErrNotFound where there is neither a row nor
// an entry that is to be there.
func (t *Tx) WithheldRow(id string) (*Withheld, error) {
	rows, err := t.rowsWhere(`id = ?`, id)
	if err != nil {
		return nil, err
	}
	want, known := t.expected(id)
	now := t.s.clock()
	switch {
	case len(rows) == 0 && !known:
		return nil, registry.ErrNotFound
	case len(rows) == 0:
		return missing(id, want, now), nil
	}
	w := rows[0].withheld(known, want, now)
	if t.genuine(rows[0]) != nil {
		w.Reason = ""
	}
	return w, nil
}

// AcceptEntry makes the row of a withheld entry, which has that digest, one of
// ours, and returns the entry. If another entry is similar, the error is a
// *registry.ExistsError.
func (t *Tx) AcceptEntry(id string, want [32]byte) (*registry.Entry, error) {
	w, err := t.WithheldRow(id)
	switch {
	case err != nil:
		return nil, fmt.Errorf("accept entry %s: %w", id, err)
	case w.Entry == nil || w.Reason == "" || w.Digest != want:
		return nil, fmt.Errorf("accept entry %s: %w", id, ErrChanged)
	}
	e := *w.Entry
	met := len(t.suspects)
	if err := t.clash(&e, id); err != nil {
		return nil, err
	}
	others := slices.DeleteFunc(slices.Clone(t.suspects[met:]), func(r row) bool { return r.id == id })
	t.suspects = append(t.suspects[:met], others...)
	if err := t.clear(others); err != nil {
		return nil, err
	}
	e.RevisionNumber = int64(t.change.Revision)
	if err := t.writeEntry(&e); err != nil {
		return nil, fmt.Errorf("accept entry %s: %w", id, err)
	}
	t.change.Entries = append(t.change.Entries, registry.EntryChange{Old: t.s.index.Entry(id), New: &e})
	return &e, nil
}

// DropWithheld removes the row of a withheld entry, if there is one, and what was to
// be there by its ID.
func (t *Tx) DropWithheld(id string) (*Withheld, error) {
	w, err := t.WithheldRow(id)
	switch {
	case err != nil:
		return nil, fmt.Errorf("delete entry %s: %w", id, err)
	case w.Reason == "":
		return nil, fmt.Errorf("delete entry %s: %w", id, ErrChanged)
	}
	if err := t.exec(`DELETE FROM registry_entries WHERE id = ?`, id); err != nil {
		return nil, fmt.Errorf("delete entry %s: %w", id, err)
	}
	t.keep(id, nil, nil)
	if old := t.s.index.Entry(id); old != nil {
		t.change.Entries = append(t.change.Entries, registry.EntryChange{Old: old})
	}
	return w, nil
}
