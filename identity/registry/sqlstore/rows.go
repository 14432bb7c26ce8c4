package sqlstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity/registry"
)

const (
	// What is before the mark is an entry; similarity follows from it.
	entryColumns = `id, spiffe_id, parent_id, selectors, x509_svid_ttl, jwt_svid_ttl, federates_with, dns_names, admin, downstream, store_svid, hint, expires_at, revision, created_at, similarity, mark`
	agentColumns = `id, attestation_type, selectors, can_reattest, banned, serial, expires_at, new_serial, new_expires_at`
)

type scanner interface{ Scan(dest ...any) error }

// row is one of registry_entries, whoever wrote it.
type row struct {
	id string
	// entry is nil where the row is no entry.
	entry  *registry.Entry
	digest digest
	// marked: the issuer wrote it, now or once.
	marked bool
}

func (t *Tx) agentsWhere(where string, args ...any) ([]*registry.Agent, error) {
	rows, err := t.tx.QueryContext(t.ctx, `SELECT `+agentColumns+`, mark FROM registry_agents WHERE `+where, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var agents []*registry.Agent
	for rows.Next() {
		a, err := t.scanAgent(rows)
		if errors.Is(err, errForeign) {
			continue
		}
		if err != nil {
			return nil, err
		}
		agents = append(agents, a)
	}
	return agents, rows.Err()
}

// allAgents are those that there are, and those that are banned and have no row.
func (t *Tx) allAgents() ([]*registry.Agent, error) {
	agents, err := t.agentsWhere(`TRUE`)
	if err != nil {
		return nil, err
	}
	there := make(map[string]bool, len(agents))
	for _, a := range agents {
		if a.Banned {
			there[a.ID.String()] = true
		}
	}
	for id := range t.s.facts {
		if name, ok := strings.CutPrefix(id, factBanned+" "); ok && !there[name] {
			a, err := t.agentNow(name, nil)
			if err != nil {
				return nil, err
			}
			agents = append(agents, a)
		}
	}
	return agents, nil
}

// rowsWhere reads rows of registry_entries. One that makes no sense is a row too.
func (t *Tx) rowsWhere(where string, args ...any) ([]row, error) {
	found, err := t.tx.QueryContext(t.ctx, `SELECT `+entryColumns+` FROM registry_entries WHERE `+where, args...)
	if err != nil {
		return nil, err
	}
	defer found.Close()
	var rows []row
	for found.Next() {
		rows = append(rows, t.s.scanRow(found))
	}
	return rows, found.Err()
}

// entriesWhere returns the entries among the rows that a query finds. A row that is
// none is a suspect, and looked after when the transaction ends.
func (t *Tx) entriesWhere(where string, args ...any) ([]*registry.Entry, error) {
	rows, err := t.rowsWhere(where, args...)
	if err != nil {
		return nil, err
	}
	var entries []*registry.Entry
	for _, r := range rows {
		if e := t.genuine(r); e != nil {
			entries = append(entries, e)
		} else {
			t.suspects = append(t.suspects, r)
		}
	}
	return entries, nil
}

// genuine is the entry that a row is, nil if it is not what the issuer left: the
// index has all that was committed, and the transaction what it wrote itself.
func (t *Tx) genuine(r row) *registry.Entry {
	if !r.marked {
		return nil
	}
	if w, ok := t.written[r.id]; ok {
		if w.entry == nil || *w.digest != r.digest {
			return nil
		}
		return w.entry
	}
	e := t.s.index.Entry(r.id)
	if e == nil || e.Digest() != r.digest {
		return nil
	}
	return e
}

// written is what a transaction made of an entry; both are nil if it deleted it.
type written struct {
	entry  *registry.Entry
	digest *digest
}

// keep notes that an entry was written, or deleted if e and d are nil, so that what
// is sealed is right.
func (t *Tx) keep(id string, e *registry.Entry, d *digest) {
	if before, known := t.expected(id); known {
		t.s.key.toggle(&t.total, before)
	}
	if d != nil {
		t.s.key.toggle(&t.total, *d)
	}
	t.written[id] = written{e, d}
}

// expected is the digest of the entry that is to be there by that ID, in the
// transaction.
func (t *Tx) expected(id string) (d digest, known bool) {
	if about, ok := strings.CutPrefix(id, factKey); ok {
		if f, own := t.facts[about]; own {
			if f == nil {
				return d, false
			}
			return f.digest, true
		}
		return t.s.expected(id)
	}
	w, own := t.written[id]
	switch {
	case !own:
		return t.s.expected(id)
	case w.digest == nil:
		return d, false
	}
	return *w.digest, true
}

// digests are those of what the transaction wrote, nil for what it deleted.
func (t *Tx) digests() map[string]*digest {
	all := make(map[string]*digest, len(t.written))
	for id, w := range t.written {
		all[id] = w.digest
	}
	for id, f := range t.facts {
		if all[factKey+id] = nil; f != nil {
			all[factKey+id] = &f.digest
		}
	}
	return all
}

func (t *Tx) writeEntry(e *registry.Entry) error {
	values, d, err := t.s.entryValues(nil, e)
	if err != nil {
		return err
	}
	err = t.exec(insertEntries(1)+`
		ON CONFLICT (id) DO UPDATE SET similarity = excluded.similarity, spiffe_id = excluded.spiffe_id, parent_id = excluded.parent_id,
		selectors = excluded.selectors, x509_svid_ttl = excluded.x509_svid_ttl, jwt_svid_ttl = excluded.jwt_svid_ttl,
		federates_with = excluded.federates_with, dns_names = excluded.dns_names, admin = excluded.admin, downstream = excluded.downstream,
		store_svid = excluded.store_svid, hint = excluded.hint, expires_at = excluded.expires_at, revision = excluded.revision,
		created_at = excluded.created_at, mark = excluded.mark`, values...)
	if err == nil {
		t.keep(e.ID, e, &d)
	}
	return err
}

// insertEntries is the statement that adds a number of rows.
func insertEntries(rows int) string {
	return `INSERT INTO registry_entries (` + entryColumns + `) VALUES ` + repeat(`(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`, rows)
}

// repeat is a list of the same, with commas.
func repeat(what string, times int) string { return strings.Repeat(what+", ", times-1) + what }

// entryValues appends the values of a row in the order of insertEntries, and
// returns the digest of the entry.
func (s *Store) entryValues(values []any, e *registry.Entry) (_ []any, d digest, err error) {
	similarity := e.Similarity()
	selectors, err := encodeSelectors(e.Selectors)
	if err != nil {
		return nil, d, err
	}
	federates, err := encodeStrings(e.FederatesWith)
	if err != nil {
		return nil, d, err
	}
	dns, err := encodeStrings(e.DNSNames)
	if err != nil {
		return nil, d, err
	}
	d = e.Digest()
	mark := s.key.mark(d)
	return append(values, e.ID, e.SPIFFEID.String(), e.ParentID.String(), selectors,
		int64(e.X509SVIDTTL/time.Second), int64(e.JWTSVIDTTL/time.Second), federates, dns,
		e.Admin, e.Downstream, e.StoreSVID, e.Hint, unix(e.ExpiresAt), e.RevisionNumber, unix(e.CreatedAt), similarity[:], mark[:]), d, nil
}

// scanRow reads a row of entryColumns.
func (s *Store) scanRow(found scanner) row {
	var e registry.Entry
	var id, parent, selectors, federates, dns string
	var x509TTL, jwtTTL, expires, created int64
	var similarity, mark []byte
	err := found.Scan(&e.ID, &id, &parent, &selectors, &x509TTL, &jwtTTL, &federates, &dns, &e.Admin, &e.Downstream, &e.StoreSVID, &e.Hint, &expires, &e.RevisionNumber, &created, &similarity, &mark)
	r := row{id: e.ID} // the first column is read even where another makes no sense
	if err != nil {
		return r
	}
	if e.SPIFFEID, err = spiffeid.FromString(id); err != nil {
		return r
	}
	if e.ParentID, err = spiffeid.FromString(parent); err != nil {
		return r
	}
	if e.Selectors, err = decodeSelectors(selectors); err != nil {
		return r
	}
	if e.FederatesWith, err = decodeStrings(federates); err != nil {
		return r
	}
	if e.DNSNames, err = decodeStrings(dns); err != nil {
		return r
	}
	e.X509SVIDTTL, e.JWTSVIDTTL = time.Duration(x509TTL)*time.Second, time.Duration(jwtTTL)*time.Second
	e.ExpiresAt, e.CreatedAt = fromUnix(expires), fromUnix(created)
	e.Normalize()
	r.entry, r.digest = &e, e.Digest()
	alike := e.Similarity()
	r.marked = string(similarity) == string(alike[:]) && s.key.marked(r.digest, mark)
	return r
}

func (t *Tx) writeAgent(a *registry.Agent) error {
	slices.SortFunc(a.Selectors, registry.CompareSelectors)
	selectors, err := encodeSelectors(a.Selectors)
	if err != nil {
		return err
	}
	values := []any{a.ID.String(), a.AttestationType, selectors, a.CanReattest, a.Banned, a.Serial, unix(a.ExpiresAt), a.NewSerial, unix(a.NewExpiresAt)}
	return t.exec(`INSERT INTO registry_agents (`+agentColumns+`, mark) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET attestation_type = excluded.attestation_type, selectors = excluded.selectors,
		can_reattest = excluded.can_reattest, banned = excluded.banned, serial = excluded.serial, expires_at = excluded.expires_at,
		new_serial = excluded.new_serial, new_expires_at = excluded.new_expires_at, mark = excluded.mark`,
		append(values, t.s.rowMark(kindAgent, values...))...)
}

func (t *Tx) scanAgent(row scanner) (*registry.Agent, error) {
	var a registry.Agent
	var id, selectors string
	var expires, newExpires int64
	var mark []byte
	err := row.Scan(&id, &a.AttestationType, &selectors, &a.CanReattest, &a.Banned, &a.Serial, &expires, &a.NewSerial, &newExpires, &mark)
	if err != nil {
		return nil, err
	}
	if err := t.checkRow(kindAgent, id, mark, id, a.AttestationType, selectors, a.CanReattest, a.Banned, a.Serial, expires, a.NewSerial, newExpires); err != nil {
		return t.agentNow(id, nil)
	}
	if a.ID, err = spiffeid.FromString(id); err != nil {
		return nil, fmt.Errorf("agent %s: %w", id, err)
	}
	if a.Selectors, err = decodeSelectors(selectors); err != nil {
		return nil, fmt.Errorf("agent %s: selectors: %w", id, err)
	}
	a.ExpiresAt, a.NewExpiresAt = fromUnix(expires), fromUnix(newExpires)
	return t.agentNow(id, &a)
}

func equalEntries(a, b *registry.Entry) bool {
	return a.ID == b.ID && a.SPIFFEID == b.SPIFFEID && a.ParentID == b.ParentID && slices.Equal(a.Selectors, b.Selectors) &&
		a.X509SVIDTTL == b.X509SVIDTTL && a.JWTSVIDTTL == b.JWTSVIDTTL &&
		slices.Equal(a.FederatesWith, b.FederatesWith) && slices.Equal(a.DNSNames, b.DNSNames) &&
		a.Admin == b.Admin && a.Downstream == b.Downstream && a.StoreSVID == b.StoreSVID &&
		a.Hint == b.Hint && a.ExpiresAt.Equal(b.ExpiresAt)
}

func encodeSelectors(selectors []registry.Selector) (string, error) {
	pairs := make([][2]string, len(selectors))
	for i, s := range selectors {
		pairs[i] = [2]string{s.Type, s.Value}
	}
	doc, err := json.Marshal(pairs)
	return string(doc), err
}

func decodeSelectors(doc string) ([]registry.Selector, error) {
	var pairs [][2]string
	if err := json.Unmarshal([]byte(doc), &pairs); err != nil {
		return nil, err
	}
	var selectors []registry.Selector
	for _, p := range pairs {
		selectors = append(selectors, registry.Selector{Type: p[0], Value: p[1]})
	}
	return selectors, nil
}

func encodeStrings(list []string) (string, error) {
	if list == nil {
		return "[]", nil
	}
	doc, err := json.Marshal(list)
	return string(doc), err
}

func decodeStrings(doc string) (list []string, err error) {
	if doc == "[]" {
		return nil, nil
	}
	err = json.Unmarshal([]byte(doc), &list)
	return list, err
}

func unix(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

func fromUnix(sec int64) time.Time {
	if sec == 0 {
		return time.Time{}
	}
	return time.Unix(sec, 0).UTC()
}
