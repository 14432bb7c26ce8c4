package ca

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Bundle is what verifies the SVIDs of a trust domain: all authorities that
// have not expired, the prepared ones too. It does not change.
type Bundle struct {
	TrustDomain     spiffeid.TrustDomain
	X509Authorities []*x509.Certificate
	JWTAuthorities  []JWTAuthority
	// Tainted are those of X509Authorities that are on their way out: what they
	// signed is valid still, and to be replaced now.
	Tainted []*x509.Certificate
	// Sequence grows with every change.
	Sequence uint64
	// RefreshHint is how often those who are not told of changes should look.
	RefreshHint time.Duration

	x509  *x509bundle.Bundle
	pool  *x509.CertPool
	sound *x509.CertPool // without the tainted ones
}

// JWTAuthority is a public key that verifies JWT-SVIDs.
type JWTAuthority struct {
	KeyID     string // never empty
	PublicKey []byte // PKIX, DER
	// ExpiresAt is zero where somebody else's authority says nothing.
	ExpiresAt time.Time
	Tainted   bool
}

// IsTainted tells whether an authority of the bundle is tainted.
func (b *Bundle) IsTainted(authority *x509.Certificate) bool {
	return slices.ContainsFunc(b.Tainted, authority.Equal)
}

// Sound tells whether an X509-SVID, with its intermediates, leads to an authority
// that is in the bundle and not tainted. Time does not matter.
func (b *Bundle) Sound(chain []*x509.Certificate) bool {
	return len(chain) > 0 && leadsTo(chain, b.sound)
}

// leadsTo verifies a chain at a time at which its first certificate was valid.
func leadsTo(chain []*x509.Certificate, roots *x509.CertPool) bool {
	between := x509.NewCertPool()
	for _, cert := range chain[1:] {
		between.AddCert(cert)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: chain[0].NotAfter.Add(-time.Second),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	return err == nil
}

// PEM is the X.509 authorities as PEM certificates, for bootstrap.
func (b *Bundle) PEM() []byte {
	var out bytes.Buffer
	for _, cert := range b.X509Authorities {
		_ = pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}) // a Buffer takes everything
	}
	return out.Bytes()
}

// GetX509BundleForTrustDomain implements x509bundle.Source.
func (b *Bundle) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	if td != b.TrustDomain {
		return nil, fmt.Errorf("no X.509 bundle for trust domain %q", td.Name())
	}
	return b.x509, nil
}

// Pool is the X.509 authorities as a certificate pool. Do not change it.
func (b *Bundle) Pool() *x509.CertPool { return b.pool }

// X509 is the X.509 part of the bundle. Do not change it.
func (b *Bundle) X509() *x509bundle.Bundle { return b.x509 }

// newBundle makes the bundle of all authorities, our own ones first. Of two JWT
// authorities with one key ID the first is in it.
func (c *CA) newBundle(x, j *slots, others foreign, seq uint64) *Bundle {
	b := &Bundle{
		TrustDomain: c.cfg.TrustDomain,
		Sequence:    seq,
		RefreshHint: max(time.Second, min(5*time.Minute, c.cfg.Life/10)).Truncate(time.Second),
		x509:        x509bundle.New(c.cfg.TrustDomain),
		pool:        x509.NewCertPool(),
		sound:       x509.NewCertPool(),
	}
	for _, a := range x.all() {
		if len(a.chain) == 0 { // the others have their roots among the upstream's
			b.addX509(a.cert, a.tainted)
		}
	}
	for _, a := range j.all() {
		b.addJWT(JWTAuthority{KeyID: a.id, PublicKey: a.pkix, ExpiresAt: a.notAfter, Tainted: a.tainted})
	}
	own, said := len(b.JWTAuthorities), c.verdictsNow()
	for _, set := range others {
		for _, root := range set.X509 {
			if tainted, revoked := said.of(X509, KeyID(root.Cert.SubjectKeyId)); !root.revoked && !revoked {
				b.addX509(root.Cert, root.Tainted || tainted)
			}
		}
		for _, a := range set.JWT {
			tainted, revoked := said.of(JWT, a.KeyID)
			if a.Tainted = a.Tainted || tainted; revoked {
				continue
			}
			// An upstream may publish the key of a replica and not know that it is tainted
			// there.
			if n := slices.IndexFunc(b.JWTAuthorities, func(o JWTAuthority) bool { return o.KeyID == a.KeyID }); n >= own {
				b.JWTAuthorities[n].Tainted = b.JWTAuthorities[n].Tainted || a.Tainted
			} else if n < 0 {
				b.addJWT(a)
			}
		}
	}
	return b
}

func (b *Bundle) addX509(cert *x509.Certificate, tainted bool) {
	if slices.ContainsFunc(b.X509Authorities, cert.Equal) {
		return
	}
	b.X509Authorities = append(b.X509Authorities, cert)
	b.x509.AddX509Authority(cert)
	b.pool.AddCert(cert)
	if tainted {
		b.Tainted = append(b.Tainted, cert)
	} else {
		b.sound.AddCert(cert)
	}
}

func (b *Bundle) addJWT(a JWTAuthority) {
	if !slices.ContainsFunc(b.JWTAuthorities, func(other JWTAuthority) bool { return other.KeyID == a.KeyID }) {
		b.JWTAuthorities = append(b.JWTAuthorities, a)
	}
}
