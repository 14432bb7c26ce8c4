package sqlstore

import (
	"crypto/x509"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity/registry"
)

const (
	bundleColumns       = `trust_domain, x509_authorities, jwt_authorities, refresh_hint, sequence`
	relationshipColumns = `trust_domain, endpoint_url, profile, endpoint_spiffe_id`
)

// federation is all that is known of other trust domains.
func (t *Tx) federation() (bundles []*registry.FederatedBundle, relationships []*registry.Relationship, err error) {
	if bundles, err = queryAll(t, `SELECT `+bundleColumns+`, mark FROM registry_bundles`, t.scanBundle); err != nil {
		return nil, nil, fmt.Errorf("load federated bundles: %w", err)
	}
	if relationships, err = queryAll(t, `SELECT `+relationshipColumns+`, mark FROM registry_federation`, t.scanRelationship); err != nil {
		return nil, nil, fmt.Errorf("load federation relationships: %w", err)
	}
	return bundles, relationships, nil
}

func queryAll[T any](t *Tx, query string, scan func(scanner) (*T, error)) ([]*T, error) {
	rows, err := t.tx.QueryContext(t.ctx, query)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []*T
	for rows.Next() {
		one, err := scan(rows)
		if errors.Is(err, errForeign) {
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, rows.Err()
}

// FederatedBundle returns the bundle of another trust domain, or
// registry.ErrNotFound.
func (t *Tx) FederatedBundle(td spiffeid.TrustDomain) (*registry.FederatedBundle, error) {
	b, err := t.scanBundle(t.queryRow(`SELECT `+bundleColumns+`, mark FROM registry_bundles WHERE trust_domain = ?`, td.Name()))
	if errors.Is(err, sql.ErrNoRows) || errors.Is(err, errForeign) {
		return nil, registry.ErrNotFound
	}
	return b, err
}

// PutFederatedBundle adds or replaces the bundle of another trust domain. One
// that is the same changes nothing.
func (t *Tx) PutFederatedBundle(b registry.FederatedBundle) error {
	old, err := t.FederatedBundle(b.TrustDomain)
	if err != nil && !errors.Is(err, registry.ErrNotFound) {
		return err
	}
	if old != nil && old.Equal(&b) {
		return nil
	}
	if b.Sequence > math.MaxInt64 {
		return fmt.Errorf("write bundle of %s: sequence number %d is too large to be kept", b.TrustDomain, b.Sequence)
	}
	certs := []byte{}
	for _, cert := range b.X509Authorities {
		certs = append(certs, cert.Raw...)
	}
	keys, err := encodeJWTAuthorities(b.JWTAuthorities)
	if err != nil {
		return err
	}
	values := []any{b.TrustDomain.Name(), certs, keys, int64(b.RefreshHint / time.Second), int64(b.Sequence)}
	mark := t.s.rowMark(kindBundle, values...)
	err = t.exec(`INSERT INTO registry_bundles (`+bundleColumns+`, revision, mark) VALUES (?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (trust_domain) DO UPDATE SET x509_authorities = excluded.x509_authorities, jwt_authorities = excluded.jwt_authorities,
		refresh_hint = excluded.refresh_hint, sequence = excluded.sequence, revision = excluded.revision, mark = excluded.mark`,
		append(values, int64(t.change.Revision), mark)...)
	if err == nil {
		err = t.setLatest(factBundle, b.TrustDomain.Name(), mark)
	}
	if err != nil {
		return fmt.Errorf("write bundle of %s: %w", b.TrustDomain, err)
	}
	t.change.Bundles = append(t.change.Bundles, registry.BundleChange{Old: old, New: &b})
	return nil
}

// DeleteFederatedBundle removes the bundle of another trust domain. Entries
// that federate with it are the caller's to look after.
func (t *Tx) DeleteFederatedBundle(td spiffeid.TrustDomain) error {
	old, err := t.FederatedBundle(td)
	if err != nil {
		return fmt.Errorf("delete bundle of %s: %w", td, err)
	}
	if err := t.exec(`DELETE FROM registry_bundles WHERE trust_domain = ?`, td.Name()); err != nil {
		return fmt.Errorf("delete bundle of %s: %w", td, err)
	}
	t.change.Bundles = append(t.change.Bundles, registry.BundleChange{Old: old})
	return t.dropFact(factBundle, td.Name())
}

// EntriesFederatingWith returns the entries that federate with a trust domain.
func (t *Tx) EntriesFederatingWith(td spiffeid.TrustDomain) ([]*registry.Entry, error) {
	// In a LIKE, _ matches any character, so more may be found.
	entries, err := t.entriesWhere(`federates_with LIKE ?`, `%"`+td.Name()+`"%`)
	if err != nil {
		return nil, fmt.Errorf("entries that federate with %s: %w", td, err)
	}
	return slices.DeleteFunc(entries, func(e *registry.Entry) bool { return !slices.Contains(e.FederatesWith, td.Name()) }), nil
}

// Relationship returns the relationship with another trust domain, or
// registry.ErrNotFound.
func (t *Tx) Relationship(td spiffeid.TrustDomain) (*registry.Relationship, error) {
	r, err := t.scanRelationship(t.queryRow(`SELECT `+relationshipColumns+`, mark FROM registry_federation WHERE trust_domain = ?`, td.Name()))
	if errors.Is(err, sql.ErrNoRows) || errors.Is(err, errForeign) {
		return nil, registry.ErrNotFound
	}
	return r, err
}

// PutRelationship adds or replaces the relationship with another trust domain.
func (t *Tx) PutRelationship(r registry.Relationship) error {
	old, err := t.Relationship(r.TrustDomain)
	if err != nil && !errors.Is(err, registry.ErrNotFound) {
		return err
	}
	id := ""
	if !r.EndpointID.IsZero() {
		id = r.EndpointID.String()
	}
	values := []any{r.TrustDomain.Name(), r.EndpointURL, r.Profile, id}
	mark := t.s.rowMark(kindRelationship, values...)
	err = t.exec(`INSERT INTO registry_federation (`+relationshipColumns+`, revision, mark) VALUES (?, ?, ?, ?, ?, ?)
		ON CONFLICT (trust_domain) DO UPDATE SET endpoint_url = excluded.endpoint_url, profile = excluded.profile,
		endpoint_spiffe_id = excluded.endpoint_spiffe_id, revision = excluded.revision, mark = excluded.mark`,
		append(values, int64(t.change.Revision), mark)...)
	if err == nil {
		err = t.setLatest(factRelationship, r.TrustDomain.Name(), mark)
	}
	if err != nil {
		return fmt.Errorf("write relationship with %s: %w", r.TrustDomain, err)
	}
	t.change.Relationships = append(t.change.Relationships, registry.RelationshipChange{Old: old, New: &r})
	return nil
}

// DeleteRelationship ends the relationship with another trust domain; its bundle
// stays.
func (t *Tx) DeleteRelationship(td spiffeid.TrustDomain) error {
	old, err := t.Relationship(td)
	if err != nil {
		return fmt.Errorf("delete relationship with %s: %w", td, err)
	}
	if err := t.exec(`DELETE FROM registry_federation WHERE trust_domain = ?`, td.Name()); err != nil {
		return fmt.Errorf("delete relationship with %s: %w", td, err)
	}
	t.change.Relationships = append(t.change.Relationships, registry.RelationshipChange{Old: old})
	return t.dropFact(factRelationship, td.Name())
}

func (t *Tx) scanBundle(row scanner) (*registry.FederatedBundle, error) {
	var b registry.FederatedBundle
	var name, keys string
	var certs []byte
	var hint, sequence int64
	var mark []byte
	err := row.Scan(&name, &certs, &keys, &hint, &sequence, &mark)
	if err != nil {
		return nil, err
	}
	if err := t.checkRow(kindBundle, name, mark, name, certs, keys, hint, sequence); err != nil {
		return nil, err
	}
	if err := t.stale(factBundle, name, kindBundle, mark); err != nil {
		return nil, err
	}
	if b.TrustDomain, err = spiffeid.TrustDomainFromString(name); err != nil {
		return nil, err
	}
	if b.X509Authorities, err = x509.ParseCertificates(certs); err != nil {
		return nil, fmt.Errorf("bundle of %s: X.509 authorities: %w", name, err)
	}
	if b.JWTAuthorities, err = decodeJWTAuthorities(keys); err != nil {
		return nil, fmt.Errorf("bundle of %s: JWT authorities: %w", name, err)
	}
	b.RefreshHint, b.Sequence = time.Duration(hint)*time.Second, uint64(sequence)
	return &b, nil
}

func (t *Tx) scanRelationship(row scanner) (*registry.Relationship, error) {
	var r registry.Relationship
	var name, id string
	var mark []byte
	err := row.Scan(&name, &r.EndpointURL, &r.Profile, &id, &mark)
	if err != nil {
		return nil, err
	}
	if err := t.checkRow(kindRelationship, name, mark, name, r.EndpointURL, r.Profile, id); err != nil {
		return nil, err
	}
	if err := t.stale(factRelationship, name, kindRelationship, mark); err != nil {
		return nil, err
	}
	if r.TrustDomain, err = spiffeid.TrustDomainFromString(name); err != nil {
		return nil, err
	}
	if id != "" {
		if r.EndpointID, err = spiffeid.FromString(id); err != nil {
			return nil, fmt.Errorf("relationship with %s: endpoint_spiffe_id: %w", name, err)
		}
	}
	return &r, nil
}

type jwtAuthority struct {
	KeyID     string `json:"key_id"`
	PublicKey []byte `json:"public_key"`
	ExpiresAt int64  `json:"expires_at"`
}

func encodeJWTAuthorities(list []registry.JWTAuthority) (string, error) {
	rows := make([]jwtAuthority, len(list))
	for i, a := range list {
		rows[i] = jwtAuthority{a.KeyID, a.PublicKey, unix(a.ExpiresAt)}
	}
	doc, err := json.Marshal(rows)
	return string(doc), err
}

func decodeJWTAuthorities(doc string) (list []registry.JWTAuthority, err error) {
	var rows []jwtAuthority
	if err := json.Unmarshal([]byte(doc), &rows); err != nil {
		return nil, err
	}
	for _, r := range rows {
		list = append(list, registry.JWTAuthority{KeyID: r.KeyID, PublicKey: r.PublicKey, ExpiresAt: fromUnix(r.ExpiresAt)})
	}
	return list, nil
}
