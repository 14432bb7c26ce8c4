package sqlstore

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity/registry"
	"github.com/writ-dev/writ/identity/revocation"
)

// Tx is a transaction. It sees its own changes; the index does not, until they
// are committed. It ends with the function that got it.
type Tx struct {
	ctx     context.Context
	s       *Store
	tx      *sql.Tx
	now     time.Time
	change  registry.Change
	revoked []*revocation.Revocation
	// replicasChanged: what the replicas publish, or know of each other.
	replicasChanged bool
	// written are the entries that it wrote, by ID; total is the sum of all that
	// are to be there with it.
	written map[string]written
	total   sum
	// templates are those that are to be there with it, by ID; nil as long as that
	// is what the index has.
	templates map[string]*registry.Template
	// facts are those that it noted, by ID; nil are those that it ended. introduces:
	// from it on there are facts.
	facts      map[string]*fact
	introduces bool
	// suspects are rows that it met and that are not what the issuer left; gone
	// are entries that it did not meet where they are to be.
	suspects []row
	gone     []string
	// cleared are IDs of rows that it removed because they were in the way.
	cleared   []string
	committed bool
	// wrote: it has asked the database to write something.
	wrote bool
}

const tokenColumns = `hash, expires_at, alias, local`

// changed says whether there is something to commit under a revision.
func (t *Tx) changed() bool {
	return !t.change.Empty() || len(t.written) > 0 || len(t.revoked) > 0 || len(t.facts) > 0 || t.introduces || t.replicasChanged
}

func (t *Tx) queryRow(query string, args ...any) *sql.Row {
	return t.tx.QueryRowContext(t.ctx, query, args...)
}

func (t *Tx) exec(query string, args ...any) error {
	t.wrote = true
	_, err := t.tx.ExecContext(t.ctx, query, args...)
	return err
}

// Entry returns an entry, or registry.ErrNotFound.
func (t *Tx) Entry(id string) (*registry.Entry, error) {
	e, err := t.entryWhere(`id = ?`, id)
	if _, own := t.written[id]; errors.Is(err, registry.ErrNotFound) && !own && t.s.index.Entry(id) != nil {
		t.gone = append(t.gone, id)
	}
	return e, err
}

func (t *Tx) entryWhere(where string, arg any) (*registry.Entry, error) {
	found, err := t.entriesWhere(where, arg)
	switch {
	case err != nil:
		return nil, err
	case len(found) == 0:
		return nil, registry.ErrNotFound
	}
	return found[0], nil
}

// clash returns the entry, other than the one called self, that is similar to e.
func (t *Tx) clash(e *registry.Entry, self string) error {
	similarity := e.Similarity()
	other, err := t.entryWhere(`similarity = ?`, similarity[:])
	switch {
	case errors.Is(err, registry.ErrNotFound):
		return nil
	case err != nil:
		return err
	case other.ID == self:
		return nil
	}
	return &registry.ExistsError{Entry: other}
}

// UpdateEntry replaces the entry with e's ID, keeps when it was made, and
// returns it as it is now. An update that changes nothing keeps the revision
// too. If another entry is similar to e, the error is a *registry.ExistsError.
func (t *Tx) UpdateEntry(e registry.Entry) (*registry.Entry, error) {
	old, err := t.Entry(e.ID)
	if err != nil {
		return nil, fmt.Errorf("update entry %s: %w", e.ID, err)
	}
	e.Normalize()
	e.CreatedAt, e.RevisionNumber = old.CreatedAt, old.RevisionNumber
	if equalEntries(old, &e) {
		return old, nil
	}
	met := len(t.suspects)
	if err := t.clash(&e, e.ID); err != nil {
		return nil, err
	}
	if err := t.clear(t.suspects[met:]); err != nil {
		return nil, err
	}
	e.RevisionNumber = int64(t.change.Revision)
	if err := t.writeEntry(&e); err != nil {
		return nil, fmt.Errorf("update entry %s: %w", e.ID, err)
	}
	t.change.Entries = append(t.change.Entries, registry.EntryChange{Old: old, New: &e})
	return &e, nil
}

// DeleteEntry removes an entry and returns what it was.
func (t *Tx) DeleteEntry(id string) (*registry.Entry, error) {
	old, err := t.Entry(id)
	if err != nil {
		return nil, fmt.Errorf("delete entry %s: %w", id, err)
	}
	if err := t.exec(`DELETE FROM registry_entries WHERE id = ?`, id); err != nil {
		return nil, fmt.Errorf("delete entry %s: %w", id, err)
	}
	t.keep(id, nil, nil)
	t.change.Entries = append(t.change.Entries, registry.EntryChange{Old: old})
	return old, nil
}

// Agent returns an agent, or registry.ErrNotFound.
func (t *Tx) Agent(id spiffeid.ID) (*registry.Agent, error) {
	a, err := t.scanAgent(t.queryRow(`SELECT `+agentColumns+`, mark FROM registry_agents WHERE id = ?`, id.String()))
	if errors.Is(err, sql.ErrNoRows) {
		a, err = t.agentNow(id.String(), nil)
	}
	if errors.Is(err, errForeign) {
		return nil, registry.ErrNotFound
	}
	return a, err
}

// PutAgent adds or replaces an agent. A ban is not lifted by it.
func (t *Tx) PutAgent(a registry.Agent) error {
	old, err := t.Agent(a.ID)
	if err != nil && !errors.Is(err, registry.ErrNotFound) {
		return err
	}
	switch id := a.ID.String(); {
	case a.Banned:
		err = t.setFact(factBanned, id, "", time.Time{})
	case t.holds(factBanned, id):
		err = errBanned
	default:
		err = t.dropFact(factEvicted, id)
	}
	if err == nil {
		err = t.writeAgent(&a)
	}
	if err != nil {
		return fmt.Errorf("write agent %s: %w", a.ID, err)
	}
	t.change.Agents = append(t.change.Agents, registry.AgentChange{Old: old, New: &a})
	return nil
}

// DeleteAgent removes an agent together with the entry that its join token's
// alias became, and returns those entries.
func (t *Tx) DeleteAgent(id spiffeid.ID) (aliases []*registry.Entry, err error) {
	old, err := t.Agent(id)
	if err != nil {
		return nil, fmt.Errorf("delete agent %s: %w", id, err)
	}
	if err := t.exec(`DELETE FROM registry_agents WHERE id = ?`, id.String()); err != nil {
		return nil, fmt.Errorf("delete agent %s: %w", id, err)
	}
	if err := t.dropFact(factBanned, id.String()); err != nil {
		return nil, err
	}
	// Its rows of before are of use to nobody when its SVIDs have expired.
	if end := old.LastExpiry(); old.Banned || t.now.Before(end) {
		until := end.Add(factMargin)
		if old.Banned {
			until = time.Time{} // what it had is not known any more
		}
		if err := t.setFact(factEvicted, id.String(), "", until); err != nil {
			return nil, err
		}
	}
	t.change.Agents = append(t.change.Agents, registry.AgentChange{Old: old})
	below, err := t.entriesWhere(`parent_id = ?`, id.String())
	if err != nil {
		return nil, fmt.Errorf("delete agent %s: %w", id, err)
	}
	for _, e := range below {
		if !e.IsAlias() {
			continue
		}
		if _, err := t.DeleteEntry(e.ID); err != nil {
			return nil, err
		}
		aliases = append(aliases, e)
	}
	return aliases, nil
}

// CreateJoinToken keeps a token. A hash that is known already is an error.
func (t *Tx) CreateJoinToken(token registry.JoinToken) error {
	alias := ""
	if !token.Alias.IsZero() {
		alias = token.Alias.String()
	}
	values := []any{token.Hash[:], unix(token.ExpiresAt), alias, token.Local}
	err := t.exec(`INSERT INTO registry_join_tokens (`+tokenColumns+`, used_at, mark) VALUES (?, ?, ?, ?, 0, ?)`, append(values, t.s.rowMark(kindToken, values...))...)
	if err != nil {
		return fmt.Errorf("create join token: %w", err)
	}
	return nil
}

// HasJoinToken says whether a token of that hash was ever made, used or not.
func (t *Tx) HasJoinToken(hash [sha256.Size]byte) (bool, error) {
	var n int
	err := t.queryRow(`SELECT count(*) FROM registry_join_tokens WHERE hash = ?`, hash[:]).Scan(&n)
	return n > 0, err
}

// UseJoinToken uses the token up. The error is registry.ErrNotFound,
// registry.ErrTokenUsed or registry.ErrTokenExpired when it cannot be. One that the
// issuer did not make is not found.
func (t *Tx) UseJoinToken(hash [sha256.Size]byte) (registry.JoinToken, error) {
	token := registry.JoinToken{Hash: hash}
	var alias string
	var expires, used int64
	var mark []byte
	err := t.queryRow(`SELECT expires_at, alias, local, used_at, mark FROM registry_join_tokens WHERE hash = ?`, hash[:]).Scan(&expires, &alias, &token.Local, &used, &mark)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return token, registry.ErrNotFound
	case err != nil:
		return token, fmt.Errorf("use join token: %w", err)
	}
	// The beginning of the hash names the token and gives nothing away.
	if t.checkRow(kindToken, hex.EncodeToString(hash[:8]), mark, hash[:], expires, alias, token.Local) != nil {
		return token, registry.ErrNotFound
	}
	token.ExpiresAt = fromUnix(expires)
	if alias != "" {
		if token.Alias, err = spiffeid.FromString(alias); err != nil {
			return token, fmt.Errorf("use join token: alias: %w", err)
		}
	}
	about := hex.EncodeToString(hash[:])
	switch known := t.holds(factUsed, about); {
	case known && used == 0:
		t.undone(factUsed, about[:16], "token", "its row in the database says that it was not used, and it was")
		return token, registry.ErrTokenUsed
	case known || used != 0:
		return token, registry.ErrTokenUsed
	case !t.now.Before(token.ExpiresAt):
		return token, registry.ErrTokenExpired
	}
	if err := t.exec(`UPDATE registry_join_tokens SET used_at = ? WHERE hash = ?`, max(1, t.now.Unix()), hash[:]); err != nil {
		return token, fmt.Errorf("use join token: %w", err)
	}
	return token, t.setFact(factUsed, about, "", token.ExpiresAt.Add(factMargin))
}

// PruneJoinTokens forgets tokens that expired before the given time, used or
// not, and says how many.
func (t *Tx) PruneJoinTokens(before time.Time) (int64, error) {
	r, err := t.tx.ExecContext(t.ctx, `DELETE FROM registry_join_tokens WHERE expires_at < ?`, before.Unix())
	if err != nil {
		return 0, fmt.Errorf("prune join tokens: %w", err)
	}
	return r.RowsAffected()
}
