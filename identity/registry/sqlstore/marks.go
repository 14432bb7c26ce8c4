package sqlstore

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/writ-dev/writ/identity"
)

// What leads to a name without being an entry has a mark too: authorities, agents,
// join tokens, what is federated. The mark says that an issuer with the key wrote the
// row, not that it is the latest.

// ErrForged says that a journal of authorities was not written by an issuer with
// the key of this one.
var ErrForged = errors.New("the authorities in the database were not written by this control plane: restore the database, and find out who wrote to it")

// markOf is what stands in a row of that kind with those contents. It is safe for
// concurrent use.
func (s *sealer) markOf(kind string, contents ...[]byte) []byte {
	h := hmac.New(sha256.New, s.rows)
	for _, part := range append([][]byte{[]byte(kind)}, contents...) {
		var length [8]byte
		binary.BigEndian.PutUint64(length[:], uint64(len(part)))
		h.Write(length[:])
		h.Write(part)
	}
	return h.Sum(nil)
}

// journalMark is that of a journal of authorities; owner is the replica, empty
// where there is one control plane.
func (s *Store) journalMark(owner string, doc []byte) []byte {
	return s.key.markOf("journal", []byte(owner), doc)
}

// checkJournal refuses a journal without its mark, and raises an alarm, once for
// each.
func (s *Store) checkJournal(ctx context.Context, owner string, doc, mark []byte) error {
	if len(doc) == 0 || hmac.Equal(s.journalMark(owner, doc), mark) {
		return nil
	}
	found := sha256.Sum256(append([]byte(owner+"\x00"), doc...))
	if _, known := s.forged.LoadOrStore(found, true); known {
		return ErrForged
	}
	s.alarms.Add(1)
	act := identity.Act{
		Kind: identity.ActAlarm, Verb: "refused", Object: "authorities", ObjectID: printable(owner), Reason: ErrForged.Error(),
		Details: [][2]string{{"digest", hex.EncodeToString(found[:])}},
	}
	if err := s.cfg.Record(context.WithoutCancel(ctx), []identity.Act{act}); err != nil {
		s.forged.Delete(found) // said again
		s.cfg.Log.ErrorContext(ctx, "cannot record that authorities were forged", "owner", owner, "error", err)
	}
	return ErrForged
}

// Kinds of rows that have a mark on their columns, as acts on record have them.
const (
	kindAgent        = "agent"
	kindBundle       = "bundle"
	kindCRLs         = "CRLs"
	kindRelationship = "federation relationship"
	kindToken        = "token"
)

// errForeign: a row does not have its mark. It counts for nothing.
var errForeign = errors.New("not written by the issuer")

// rowMark is the mark on the columns of a row, whatever the database has for
// texts, bytes, numbers and truth.
func (s *Store) rowMark(kind string, columns ...any) []byte {
	parts := make([][]byte, len(columns))
	for n, c := range columns {
		switch c := c.(type) {
		case []byte:
			parts[n] = c
		case string:
			parts[n] = []byte(c)
		case bool:
			parts[n] = []byte{'0'}
			if c {
				parts[n][0] = '1'
			}
		case int64:
			parts[n] = strconv.AppendInt(nil, c, 10)
		default:
			panic(fmt.Sprintf("a column that is a %T", c))
		}
	}
	return s.key.markOf(kind, parts...)
}

// checkRow is errForeign where a row does not have its mark, which is an alarm,
// once for what it says.
func (t *Tx) checkRow(kind, id string, mark []byte, columns ...any) error {
	want := t.s.rowMark(kind, columns...)
	if hmac.Equal(want, mark) {
		return nil
	}
	if t.s.refused.Load() > maxForeign {
		return errForeign // enough was said
	}
	if _, known := t.s.forged.LoadOrStore([sha256.Size]byte(want), true); known {
		return errForeign
	}
	t.s.alarms.Add(1)
	switch n := t.s.refused.Add(1); {
	case n <= maxForeign:
		t.s.say(identity.Act{Kind: identity.ActAlarm, Verb: "refused", Object: kind, ObjectID: printable(id), Reason: "its row in the database was not written by the issuer"})
	default:
		t.s.say(identity.Act{Kind: identity.ActAlarm, Verb: "refused", Object: "registry", ObjectID: t.s.key.id, Reason: "more rows of agents, tokens or federation were not written by the issuer, and are not named"})
	}
	return errForeign
}

// markAll marks what is there, of a database that is adopted.
func (t *Tx) markAll() error {
	var journal []byte
	rows, err := queryAll(t, `SELECT journal FROM registry_authorities`, func(row scanner) (*[]byte, error) { return &journal, row.Scan(&journal) })
	if err != nil {
		return fmt.Errorf("mark authorities: %w", err)
	}
	if len(rows) > 0 {
		if err := t.exec(`UPDATE registry_authorities SET mark = ?`, t.s.journalMark("", journal)); err != nil {
			return fmt.Errorf("mark authorities: %w", err)
		}
	}
	type owned struct {
		name    string
		journal []byte
	}
	replicas, err := queryAll(t, `SELECT name, journal FROM registry_replicas`, func(row scanner) (*owned, error) {
		var r owned
		return &r, row.Scan(&r.name, &r.journal)
	})
	if err != nil {
		return fmt.Errorf("mark replicas: %w", err)
	}
	for _, r := range replicas {
		if err := t.exec(`UPDATE registry_replicas SET mark = ? WHERE name = ?`, t.s.journalMark(r.name, r.journal), r.name); err != nil {
			return fmt.Errorf("mark replicas: %w", err)
		}
	}
	for _, table := range []struct {
		kind, name, key, columns string
	}{
		{kindAgent, "registry_agents", "id", agentColumns}, {kindBundle, "registry_bundles", "trust_domain", bundleColumns},
		{kindRelationship, "registry_federation", "trust_domain", relationshipColumns}, {kindToken, "registry_join_tokens", "hash", tokenColumns},
	} {
		if err := t.markRows(table.kind, table.name, table.key, table.columns); err != nil {
			return fmt.Errorf("mark %s: %w", table.name, err)
		}
	}
	return nil
}

// markRows marks the rows of a table, whose key is the first of the columns.
func (t *Tx) markRows(kind, table, key, columns string) error {
	width := strings.Count(columns, ",") + 1
	rows, err := queryAll(t, `SELECT `+columns+` FROM `+table, func(row scanner) (*[][]byte, error) {
		values, dest := make([][]byte, width), make([]any, width)
		for n := range values {
			dest[n] = &values[n]
		}
		return &values, row.Scan(dest...)
	})
	if err != nil {
		return err
	}
	for _, values := range rows {
		parts := make([]any, width)
		for n, v := range *values {
			parts[n] = v
		}
		var id any = (*values)[0]
		if kind != kindToken {
			id = string((*values)[0])
		}
		if err := t.exec(`UPDATE `+table+` SET mark = ? WHERE `+key+` = ?`, t.s.rowMark(kind, parts...), id); err != nil {
			return err
		}
	}
	return nil
}
