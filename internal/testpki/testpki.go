// Package testpki is a certificate authority for tests: it makes X509-SVIDs
// with any defect that a verifier must notice, and a source whose SVID a test
// can change.
package testpki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// CA signs for one trust domain.
type CA struct {
	td   spiffeid.TrustDomain
	cert *x509.Certificate
	key  crypto.Signer

	mu     sync.Mutex
	serial int64
}

// New makes a CA for the trust domain, valid for a day.
func New(t testing.TB, trustDomain string) *CA {
	t.Helper()
	ca := &CA{td: spiffeid.RequireTrustDomainFromString(trustDomain), key: newKey(t), serial: 1}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{Organization: []string{trustDomain}},
		URIs:                  []*url.URL{ca.td.ID().URL()},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, ca.key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	if ca.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return ca
}

// TrustDomain is the trust domain that the CA signs for.
func (ca *CA) TrustDomain() spiffeid.TrustDomain { return ca.td }

// Bundle is the trust bundle with this CA in it.
func (ca *CA) Bundle() *x509bundle.Bundle {
	return x509bundle.FromX509Authorities(ca.td, []*x509.Certificate{ca.cert})
}

// SVID signs an X509-SVID for path (as in /svc/web), valid from ten seconds
// ago for ttl from now; a negative ttl gives an expired one. The changes are
// made to the template before it is signed.
func (ca *CA) SVID(t testing.TB, path string, ttl time.Duration, changes ...func(*x509.Certificate)) *x509svid.SVID {
	t.Helper()
	id := spiffeid.RequireFromPath(ca.td, path)
	ca.mu.Lock()
	ca.serial++
	serial := ca.serial
	ca.mu.Unlock()
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(serial),
		Subject:               pkix.Name{Organization: []string{"test"}},
		URIs:                  []*url.URL{id.URL()},
		NotBefore:             time.Now().Add(min(0, ttl) - 10*time.Second),
		NotAfter:              time.Now().Add(ttl),
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, change := range changes {
		change(template)
	}
	key := newKey(t)
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &x509svid.SVID{ID: id, Certificates: []*x509.Certificate{leaf}, PrivateKey: key}
}

func newKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// Source gives an SVID and bundles, and can be told to change. It is an
// identity.Source.
type Source struct {
	mu      sync.Mutex
	svid    *x509svid.SVID
	bundles *x509bundle.Set
	updated chan struct{}
}

// NewSource gives svid and the bundles.
func NewSource(svid *x509svid.SVID, bundles ...*x509bundle.Bundle) *Source {
	return &Source{svid: svid, bundles: x509bundle.NewSet(bundles...), updated: make(chan struct{}, 1)}
}

// Rotate replaces the SVID and tells the reader of Updated.
func (s *Source) Rotate(svid *x509svid.SVID) {
	s.mu.Lock()
	s.svid = svid
	s.mu.Unlock()
	select {
	case s.updated <- struct{}{}:
	default:
	}
}

// SetBundles replaces the bundles and tells the reader of Updated.
func (s *Source) SetBundles(bundles ...*x509bundle.Bundle) {
	s.mu.Lock()
	s.bundles = x509bundle.NewSet(bundles...)
	s.mu.Unlock()
	select {
	case s.updated <- struct{}{}:
	default:
	}
}

// GetX509SVID implements x509svid.Source.
func (s *Source) GetX509SVID() (*x509svid.SVID, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.svid == nil {
		return nil, fmt.Errorf("no SVID")
	}
	return s.svid, nil
}

// GetX509BundleForTrustDomain implements x509bundle.Source.
func (s *Source) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	s.mu.Lock()
	bundles := s.bundles
	s.mu.Unlock()
	return bundles.GetX509BundleForTrustDomain(td)
}

// Updated implements identity.Source.
func (s *Source) Updated() <-chan struct{} { return s.updated }

// Close implements identity.Source.
func (s *Source) Close() error { return nil }
