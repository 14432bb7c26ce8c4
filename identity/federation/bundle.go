// Package federation exchanges trust bundles with other trust domains, as the
// SPIFFE Federation standard has it: it reads and writes the bundle document,
// serves our own, and fetches those of others again and again.
package federation

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity/registry"
)

const (
	// MaxDocument is the largest bundle document that is read, bytes.
	MaxDocument = 1 << 20
	// maxHint is the longest refresh hint that is believed.
	maxHint = 366 * 24 * time.Hour

	useX509 = "x509-svid"
	useJWT  = "jwt-svid"
)

// document is a bundle in the form of SPIFFE Trust Domain and Bundle, section 4.
type document struct {
	// Keys has to be there. Without keys it revokes everything.
	Keys        *[]json.RawMessage `json:"keys"`
	Sequence    *uint64            `json:"spiffe_sequence,omitempty"`
	RefreshHint *int64             `json:"spiffe_refresh_hint,omitempty"`
}

// head is what tells whether a key is one for us.
type head struct {
	Type  string          `json:"kty"`
	Use   string          `json:"use"`
	Curve string          `json:"crv"`
	X5c   json.RawMessage `json:"x5c"`
}

// Parse reads a bundle document as the bundle of td, whole or not at all: the
// document itself does not say whose it is. Keys of an unknown use, type or
// curve, and X.509 entries without a certificate, are skipped, as the standard
// asks.
func Parse(td spiffeid.TrustDomain, data []byte) (*registry.FederatedBundle, error) {
	var doc document
	if err := json.Unmarshal(data, &doc); err != nil {
		return nil, fmt.Errorf("not a bundle document: %w", err)
	}
	if doc.Keys == nil {
		return nil, errors.New("not a bundle document: keys is missing (an empty list would revoke everything)")
	}
	b := &registry.FederatedBundle{TrustDomain: td}
	if doc.Sequence != nil {
		if *doc.Sequence > math.MaxInt64 {
			return nil, errors.New("spiffe_sequence: too large to be kept")
		}
		b.Sequence = *doc.Sequence
	}
	if doc.RefreshHint != nil {
		if *doc.RefreshHint < 0 || *doc.RefreshHint > int64(maxHint/time.Second) {
			return nil, fmt.Errorf("spiffe_refresh_hint: want 0 to %d seconds, got %d", int64(maxHint/time.Second), *doc.RefreshHint)
		}
		b.RefreshHint = time.Duration(*doc.RefreshHint) * time.Second
	}
	for n, raw := range *doc.Keys {
		if err := addKey(b, raw); err != nil {
			return nil, fmt.Errorf("keys[%d]: %w", n, err)
		}
	}
	return b, nil
}

func addKey(b *registry.FederatedBundle, raw json.RawMessage) error {
	var h head
	if err := json.Unmarshal(raw, &h); err != nil {
		return err
	}
	hasCert := len(h.X5c) > 0 && string(h.X5c) != "null"
	switch {
	case !known(h), h.Use != useX509 && h.Use != useJWT, h.Use == useX509 && !hasCert:
		return nil
	}
	var key jose.JSONWebKey
	if err := json.Unmarshal(raw, &key); err != nil {
		return err
	}
	if !key.Valid() || !key.IsPublic() {
		return errors.New("not a public key")
	}
	if h.Use == useX509 {
		if len(key.Certificates) != 1 {
			return fmt.Errorf("x5c has %d certificates, and one is wanted", len(key.Certificates))
		}
		for _, cert := range b.X509Authorities {
			if cert.Equal(key.Certificates[0]) {
				return nil
			}
		}
		b.X509Authorities = append(b.X509Authorities, key.Certificates[0])
		return nil
	}
	if key.KeyID == "" {
		return errors.New("a jwt-svid key without kid")
	}
	der, err := x509.MarshalPKIXPublicKey(key.Key)
	if err != nil {
		return err
	}
	for _, a := range b.JWTAuthorities {
		if a.KeyID == key.KeyID {
			if bytes.Equal(a.PublicKey, der) {
				return nil
			}
			return fmt.Errorf("kid %q is there twice, with different keys", key.KeyID)
		}
	}
	b.JWTAuthorities = append(b.JWTAuthorities, registry.JWTAuthority{KeyID: key.KeyID, PublicKey: der})
	return nil
}

func known(h head) bool {
	switch h.Type {
	case "RSA":
		return true
	case "EC":
		return h.Curve == "P-256" || h.Curve == "P-384" || h.Curve == "P-521"
	case "OKP":
		return h.Curve == "Ed25519"
	}
	return false
}

// Marshal writes a bundle document. X.509 entries have one certificate and no
// kid, JWT entries a kid and no certificate.
func Marshal(b *registry.FederatedBundle) ([]byte, error) {
	keys := []json.RawMessage{}
	add := func(key jose.JSONWebKey) error {
		raw, err := key.MarshalJSON()
		keys = append(keys, raw)
		return err
	}
	for _, cert := range b.X509Authorities {
		if err := add(jose.JSONWebKey{Key: cert.PublicKey, Certificates: []*x509.Certificate{cert}, Use: useX509}); err != nil {
			return nil, fmt.Errorf("bundle of %s: X.509 authority: %w", b.TrustDomain.Name(), err)
		}
	}
	for _, a := range b.JWTAuthorities {
		key, err := x509.ParsePKIXPublicKey(a.PublicKey)
		if err == nil {
			err = add(jose.JSONWebKey{Key: key, KeyID: a.KeyID, Use: useJWT})
		}
		if err != nil {
			return nil, fmt.Errorf("bundle of %s: JWT authority %q: %w", b.TrustDomain.Name(), a.KeyID, err)
		}
	}
	doc := document{Keys: &keys}
	if b.Sequence != 0 {
		doc.Sequence = &b.Sequence
	}
	if hint := int64(b.RefreshHint / time.Second); hint > 0 {
		doc.RefreshHint = &hint
	}
	return json.MarshalIndent(doc, "", "  ")
}
