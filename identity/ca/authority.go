package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"math/big"
	"net/url"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/cryptosigner"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/identity/keys"
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
	jws       jose.Signer       // JWT only
}

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

// prepareAt is when its successor is made.
func (a *authority) prepareAt() time.Time { return a.notAfter.Add(-a.life / 2) }

// takesOverAt is when it replaces active: with a sixth of active's life left,
// but not before everybody has had time to learn of it. That is a twelfth of its
// life, or half of what active has left, whichever is less.
func (a *authority) takesOverAt(active *authority) time.Time {
	published := a.notBefore.Add(Backdate)
	known := published.Add(min(a.life/12, active.notAfter.Sub(published)/2))
	if due := active.notAfter.Add(-active.life / 6); due.After(known) {
		return due
	}
	return known
}

func (c *CA) newAuthority(kind string, now time.Time) (*authority, error) {
	now = now.UTC().Truncate(time.Second) // certificates know no fractions
	var random [8]byte
	_, _ = rand.Read(random[:]) // it never fails
	a := &authority{
		id:        kind + "-" + now.Format("20060102T150405Z") + "-" + hex.EncodeToString(random[:]),
		notBefore: now.Add(-Backdate),
		notAfter:  now.Add(c.cfg.Life),
		life:      c.cfg.Life,
	}
	var err error
	if a.signer, err = c.cfg.Keys.Create(a.id, keys.P256); err != nil {
		return nil, err
	}
	if kind == kindX509 {
		if a.cert, err = c.selfSign(a); err != nil {
			return nil, err
		}
	}
	return a, a.complete()
}

// complete derives what follows from the key.
func (a *authority) complete() (err error) {
	if a.pkix, err = x509.MarshalPKIXPublicKey(a.signer.Public()); err != nil {
		return err
	}
	if a.cert != nil {
		return nil
	}
	// go-jose calls the signer for ES256 only when the key is on P-256.
	key := jose.JSONWebKey{Key: cryptosigner.Opaque(a.signer), KeyID: a.id}
	a.jws, err = jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, (&jose.SignerOptions{}).WithType("JWT"))
	return err
}

// selfSign makes the certificate of an X.509 authority, by the X509-SVID
// specification, section 3.2 (CA: URI without path, keyCertSign).
func (c *CA) selfSign(a *authority) (*x509.Certificate, error) {
	serial := newSerial(spiffeid.ID{})
	pub, ok := a.signer.Public().(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("authority key is %T, want ECDSA", a.signer.Public())
	}
	point, err := pub.Bytes()
	if err != nil {
		return nil, err
	}
	keyID := sha256.Sum256(point)
	template := &x509.Certificate{
		SerialNumber: serial,
		// A subject of its own for each authority: verifiers that find issuers
		// by name alone must not confuse two.
		Subject:               pkix.Name{Organization: []string{c.cfg.TrustDomain.Name()}, SerialNumber: serial.String()},
		NotBefore:             a.notBefore,
		NotAfter:              a.notAfter,
		URIs:                  []*url.URL{c.cfg.TrustDomain.ID().URL()},
		SubjectKeyId:          keyID[:20],
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, pub, a.signer)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// newSerial draws 127 bits: RFC 5280 section 4.1.2.2 wants them positive.
func newSerial(through spiffeid.ID) *big.Int {
	var b [20]byte
	_, _ = rand.Read(b[:]) // it never fails
	return revocation.MakeSerial(through, b)
}
