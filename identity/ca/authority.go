package ca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"math/big"
	"net/url"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/cryptosigner"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity/revocation"
)

// authority is one key that signs, or will, or did. It does not change.
type authority struct {
	id        string // the key's name in the store; the kid of a JWT authority
	notBefore time.Time
	notAfter  time.Time
	life      time.Duration
	signer    crypto.Signer
	pkix      []byte
	cert      *x509.Certificate // X.509 only
	leaf      *leafSigner       // nil: the library makes its SVIDs
	jws       jose.Signer       // JWT only
	es256     *es256            // nil: go-jose signs its tokens
	// chain is, of an X.509 authority that an upstream signed, what its SVIDs
	// carry: cert and what is between it and the root.
	chain []*x509.Certificate
	// tainted: nothing that it signed should be relied on much longer.
	tainted bool
	// ended: its time was seen to be over, and its key is gone. It signs no more,
	// wherever the clock goes from there.
	ended bool
}

// publicID is the ID under which others know the authority: the kid of a JWT
// authority, the subject key identifier of an X.509 one, as SPIRE has it.
func (a *authority) publicID() string {
	if a.cert != nil {
		return KeyID(a.cert.SubjectKeyId)
	}
	return a.id
}

// KeyID is a subject key identifier as text: lower-case hexadecimal.
func KeyID(id []byte) string { return hex.EncodeToString(id) }

// slots are the authorities of one kind: the one that signs, the one that will,
// and those that signed what may still be in use.
type slots struct {
	active, next *authority
	old          []*authority
}

func (s *slots) all() []*authority {
	var all []*authority
	if s.active != nil {
		all = append(all, s.active)
	}
	if s.next != nil {
		all = append(all, s.next)
	}
	return append(all, s.old...)
}

func (a *authority) expired(now time.Time) bool { return !now.Before(a.notAfter) }

// An authority stays in the bundle for a while after its time: a clock that was
// ahead must not take from others what they still verify by theirs.
const (
	retention = 24 * time.Hour
	// jwtRetention is less: a key, unlike a certificate, says nothing of its end to
	// those who verify by it.
	jwtRetention = 3 * time.Hour
	// maxEnded bounds how many of a kind there are then.
	maxEnded = 6
)

func (k Kind) retention() time.Duration {
	if k == JWT {
		return jwtRetention
	}
	return retention
}

// foreignRetention is that of authorities of others, whose number is not ours to
// choose.
func (c *CA) foreignRetention() time.Duration { return min(jwtRetention, 3*c.cfg.Life) }

func (c *CA) newAuthority(ctx context.Context, kind Kind, now time.Time) (a *authority, roots []Root, err error) {
	now = now.UTC().Truncate(time.Second) // certificates know no fractions
	var random [8]byte
	_, _ = rand.Read(random[:]) // it never fails
	a = &authority{
		id:        kind.keyPrefix() + "-" + now.Format("20060102T150405Z") + "-" + hex.EncodeToString(random[:]),
		notBefore: now.Add(-Backdate),
		notAfter:  now.Add(c.cfg.Life),
		life:      c.cfg.Life,
	}
	alg := c.cfg.KeyType
	if kind == JWT {
		alg = c.cfg.JWTKeyType
	}
	if a.signer, err = c.cfg.Keys.Create(a.id, alg); err != nil {
		return nil, nil, err
	}
	switch {
	case kind == JWT:
		if err = a.complete(); err == nil {
			err = c.publishUpstream(ctx, a)
		}
	case c.cfg.Upstream != nil:
		roots, err = c.mintUpstream(ctx, a)
	default:
		a.cert, err = c.selfSign(a)
	}
	if err == nil {
		err = a.complete()
	}
	if err != nil {
		c.discard([]*authority{a})
		return nil, nil, err
	}
	return a, roots, nil
}

// complete derives what follows from the key.
func (a *authority) complete() (err error) {
	if a.pkix, err = x509.MarshalPKIXPublicKey(a.signer.Public()); err != nil {
		return err
	}
	if a.cert != nil {
		a.leaf = newLeafSigner(a.cert, a.signer)
		return nil
	}
	if a.es256, err = newES256(a.signer, a.id); err != nil {
		return err
	}
	alg, err := jwsAlgorithm(a.signer.Public())
	if err != nil {
		return err
	}
	key := jose.JSONWebKey{Key: cryptosigner.Opaque(a.signer), KeyID: a.id}
	a.jws, err = jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, (&jose.SignerOptions{}).WithType("JWT"))
	return err
}

// jwsAlgorithm is the algorithm that goes with a key (RFC 7518 section 3.1;
// JWT-SVID specification section 2.1 has the list).
func jwsAlgorithm(key crypto.PublicKey) (jose.SignatureAlgorithm, error) {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return jose.ES256, nil
		case elliptic.P384():
			return jose.ES384, nil
		}
	case *rsa.PublicKey:
		return jose.RS256, nil
	}
	return "", fmt.Errorf("JWT-SVIDs cannot be signed with a %T", key)
}

// selfSign makes the certificate of an X.509 authority, by the X509-SVID
// specification, section 3.2 (CA: URI without path, keyCertSign). Its path has
// no bound, so that issuers downstream can have theirs.
func (c *CA) selfSign(a *authority) (*x509.Certificate, error) {
	template, err := c.template(a.signer.Public())
	if err != nil {
		return nil, err
	}
	template.NotBefore, template.NotAfter = a.notBefore, a.notAfter
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.signer.Public(), a.signer)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// template is what all certificates of authorities have in common.
func (c *CA) template(key crypto.PublicKey) (*x509.Certificate, error) {
	id, err := subjectKeyID(key)
	if err != nil {
		return nil, err
	}
	serial := newSerial(spiffeid.ID{})
	return &x509.Certificate{
		SerialNumber: serial,
		// A subject of its own for each authority: verifiers that find issuers
		// by name alone must not confuse two.
		Subject:               pkix.Name{Organization: []string{c.cfg.TrustDomain.Name()}, SerialNumber: serial.String()},
		URIs:                  []*url.URL{c.cfg.TrustDomain.ID().URL()},
		SubjectKeyId:          id,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}, nil
}

// subjectKeyID is the leftmost 160 bits of the SHA-256 of the key's bits (RFC
// 7093 section 2, method 1).
func subjectKeyID(key crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, err
	}
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(der, &info); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(info.Key.Bytes)
	return sum[:20], nil
}

// newSerial draws 127 bits: RFC 5280 section 4.1.2.2 wants them positive.
func newSerial(through spiffeid.ID) *big.Int {
	var b [20]byte
	_, _ = rand.Read(b[:]) // it never fails
	return revocation.MakeSerial(through, b)
}
