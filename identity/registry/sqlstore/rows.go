package sqlstore

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity/registry"
)

const (
	entryColumns = `id, spiffe_id, parent_id, selectors, x509_svid_ttl, jwt_svid_ttl, federates_with, dns_names, admin, downstream, store_svid, hint, expires_at, revision, created_at`
	agentColumns = `id, attestation_type, selectors, can_reattest, banned, serial, expires_at, new_serial, new_expires_at`
)

type scanner interface{ Scan(dest ...any) error }

func (s *Store) load(ctx context.Context) (revision uint64, entries []*registry.Entry, agents []*registry.Agent, err error) {
	fail := func(err error) (uint64, []*registry.Entry, []*registry.Agent, error) {
		return 0, nil, nil, fmt.Errorf("load registry: %w", err)
	}
	sqlTx, err := s.view(ctx)
	if err != nil {
		return fail(err)
	}
	defer sqlTx.Rollback()
	t := &Tx{ctx: ctx, tx: sqlTx}
	if revision, _, err = s.revision(t, ""); err != nil {
		return fail(err)
	}
	if entries, agents, err = t.everything(); err != nil {
		return fail(err)
	}
	return revision, entries, agents, nil
}

// everything is the whole content.
func (t *Tx) everything() (entries []*registry.Entry, agents []*registry.Agent, err error) {
	if entries, err = t.entriesWhere(`TRUE`); err != nil {
		return nil, nil, err
	}
	agents, err = t.agentsWhere(`TRUE`)
	return entries, agents, err
}

func (t *Tx) agentsWhere(where string, args ...any) ([]*registry.Agent, error) {
	rows, err := t.tx.QueryContext(t.ctx, `SELECT `+agentColumns+` FROM registry_agents WHERE `+where, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var agents []*registry.Agent
	for rows.Next() {
		a, err := scanAgent(rows)
		if err != nil {
			return nil, err
		}
		agents = append(agents, a)
	}
	return agents, rows.Err()
}

func (t *Tx) entriesWhere(where string, args ...any) ([]*registry.Entry, error) {
	rows, err := t.tx.QueryContext(t.ctx, `SELECT `+entryColumns+` FROM registry_entries WHERE `+where, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var entries []*registry.Entry
	for rows.Next() {
		e, err := scanEntry(rows)
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	return entries, rows.Err()
}

func (t *Tx) writeEntry(e *registry.Entry) error {
	values, err := entryValues(nil, e)
	if err != nil {
		return err
	}
	return t.exec(insertEntries(1)+`
		ON CONFLICT (id) DO UPDATE SET similarity = excluded.similarity, spiffe_id = excluded.spiffe_id, parent_id = excluded.parent_id,
		selectors = excluded.selectors, x509_svid_ttl = excluded.x509_svid_ttl, jwt_svid_ttl = excluded.jwt_svid_ttl,
		federates_with = excluded.federates_with, dns_names = excluded.dns_names, admin = excluded.admin, downstream = excluded.downstream,
		store_svid = excluded.store_svid, hint = excluded.hint, expires_at = excluded.expires_at, revision = excluded.revision`, values...)
}

// insertEntries is the statement that adds a number of rows.
func insertEntries(rows int) string {
	return `INSERT INTO registry_entries (similarity, ` + entryColumns + `) VALUES ` + repeat(`(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`, rows)
}

// repeat is a list of the same, with commas.
func repeat(what string, times int) string { return strings.Repeat(what+", ", times-1) + what }

// entryValues appends the values of a row in the order of insertEntries.
func entryValues(values []any, e *registry.Entry) ([]any, error) {
	similarity := e.Similarity()
	selectors, err := encodeSelectors(e.Selectors)
	if err != nil {
		return nil, err
	}
	federates, err := encodeStrings(e.FederatesWith)
	if err != nil {
		return nil, err
	}
	dns, err := encodeStrings(e.DNSNames)
	if err != nil {
		return nil, err
	}
	return append(values, similarity[:], e.ID, e.SPIFFEID.String(), e.ParentID.String(), selectors,
		int64(e.X509SVIDTTL/time.Second), int64(e.JWTSVIDTTL/time.Second), federates, dns,
		e.Admin, e.Downstream, e.StoreSVID, e.Hint, unix(e.ExpiresAt), e.RevisionNumber, unix(e.CreatedAt)), nil
}

func scanEntry(row scanner) (*registry.Entry, error) {
	var e registry.Entry
	var id, parent, selectors, federates, dns string
	var x509TTL, jwtTTL, expires, created int64
	err := row.Scan(&e.ID, &id, &parent, &selectors, &x509TTL, &jwtTTL, &federates, &dns, &e.Admin, &e.Downstream, &e.StoreSVID, &e.Hint, &expires, &e.RevisionNumber, &created)
	if err != nil {
		return nil, err
	}
	if e.SPIFFEID, err = spiffeid.FromString(id); err != nil {
		return nil, fmt.Errorf("entry %s: spiffe_id: %w", e.ID, err)
	}
	if e.ParentID, err = spiffeid.FromString(parent); err != nil {
		return nil, fmt.Errorf("entry %s: parent_id: %w", e.ID, err)
	}
	if e.Selectors, err = decodeSelectors(selectors); err != nil {
		return nil, fmt.Errorf("entry %s: selectors: %w", e.ID, err)
	}
	if e.FederatesWith, err = decodeStrings(federates); err != nil {
		return nil, fmt.Errorf("entry %s: federates_with: %w", e.ID, err)
	}
	if e.DNSNames, err = decodeStrings(dns); err != nil {
		return nil, fmt.Errorf("entry %s: dns_names: %w", e.ID, err)
	}
	e.X509SVIDTTL, e.JWTSVIDTTL = time.Duration(x509TTL)*time.Second, time.Duration(jwtTTL)*time.Second
	e.ExpiresAt, e.CreatedAt = fromUnix(expires), fromUnix(created)
	return &e, nil
}

func (t *Tx) writeAgent(a *registry.Agent) error {
	slices.SortFunc(a.Selectors, registry.CompareSelectors)
	selectors, err := encodeSelectors(a.Selectors)
	if err != nil {
		return err
	}
	return t.exec(`INSERT INTO registry_agents (`+agentColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET attestation_type = excluded.attestation_type, selectors = excluded.selectors,
		can_reattest = excluded.can_reattest, banned = excluded.banned, serial = excluded.serial, expires_at = excluded.expires_at,
		new_serial = excluded.new_serial, new_expires_at = excluded.new_expires_at`,
		a.ID.String(), a.AttestationType, selectors, a.CanReattest, a.Banned, a.Serial, unix(a.ExpiresAt), a.NewSerial, unix(a.NewExpiresAt))
}

func scanAgent(row scanner) (*registry.Agent, error) {
	var a registry.Agent
	var id, selectors string
	var expires, newExpires int64
	err := row.Scan(&id, &a.AttestationType, &selectors, &a.CanReattest, &a.Banned, &a.Serial, &expires, &a.NewSerial, &newExpires)
	if err != nil {
		return nil, err
	}
	if a.ID, err = spiffeid.FromString(id); err != nil {
		return nil, fmt.Errorf("agent %s: %w", id, err)
	}
	if a.Selectors, err = decodeSelectors(selectors); err != nil {
		return nil, fmt.Errorf("agent %s: selectors: %w", id, err)
	}
	a.ExpiresAt, a.NewExpiresAt = fromUnix(expires), fromUnix(newExpires)
	return &a, nil
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
