package main

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"slices"
	"strings"
	"time"

	workloadpb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
)

var (
	oidSAN      = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidKeyUsage = asn1.ObjectIdentifier{2, 5, 29, 15}
)

// checkX509Message judges one message of FetchX509SVID.
func (r *Report) checkX509Message(m *workloadpb.X509SVIDResponse) {
	r.Say("x509-svids", len(m.GetSvids()) > 0, "none")
	hints := map[string]bool{}
	for _, s := range m.GetSvids() {
		r.Say("x509-mandatory", s.GetSpiffeId() != "" && len(s.GetX509Svid()) > 0 && len(s.GetX509SvidKey()) > 0 && len(s.GetBundle()) > 0, "%s: a field is empty", s.GetSpiffeId())
		r.Say("x509-hints", s.GetHint() == "" || !hints[s.GetHint()], "%q twice", s.GetHint())
		hints[s.GetHint()] = true
		r.checkSVID(s)
	}
	for td := range m.GetFederatedBundles() {
		r.Say("x509-bundles-keys", isTrustDomainID(td), "%q", td)
	}
}

func (r *Report) checkSVID(s *workloadpb.X509SVID) {
	id := s.GetSpiffeId()
	td, path := r.checkID(id)
	r.Say("svid-path", path != "", "%s", id)
	chain, err := x509.ParseCertificates(s.GetX509Svid())
	if err != nil || len(chain) == 0 {
		r.Say("svid-chain", false, "%s: %v", id, err)
		return
	}
	leaf := chain[0]
	r.Say("svid-uri", slices.Equal(uriSANs(leaf), []string{id}), "%s: %q", id, uriSANs(leaf))
	san, critical := extension(leaf, oidSAN)
	r.Say("svid-san-critical", san && (critical || len(leaf.Subject.Names) > 0), "%s: present %t, critical %t, subject %q", id, san, critical, leaf.Subject)
	r.Say("svid-leaf", !leaf.IsCA, "%s is a CA", id)
	r.checkKeyUsageExtension(leaf)
	r.Say("svid-key-usage", leaf.KeyUsage&x509.KeyUsageDigitalSignature != 0 && leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) == 0, "%s: %b", id, leaf.KeyUsage)
	if len(leaf.ExtKeyUsage)+len(leaf.UnknownExtKeyUsage) > 0 {
		r.Say("svid-eku", slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth) && slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth), "%s: %v", id, leaf.ExtKeyUsage)
	}
	r.Say("svid-eku-present", len(leaf.ExtKeyUsage) > 0, "%s has none", id)
	now := time.Now()
	r.Say("svid-time", !now.Before(leaf.NotBefore) && now.Before(leaf.NotAfter), "%s: from %s to %s", id, leaf.NotBefore, leaf.NotAfter)
	r.checkKey(id, leaf, s.GetX509SvidKey())
	roots := r.checkAuthorities(td, s.GetBundle())
	r.checkChain(id, chain, roots)
}

func (r *Report) checkKey(id string, leaf *x509.Certificate, der []byte) {
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		r.Say("svid-key", false, "%s: %v", id, err)
		return
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		r.Say("svid-key", false, "%s: %T", id, key)
		return
	}
	public, ok := signer.Public().(interface{ Equal(crypto.PublicKey) bool })
	r.Say("svid-key", ok && public.Equal(leaf.PublicKey), "%s: the key is another's", id)
}

// checkChain verifies; extended key usage is what the leaf is checked for
// above.
func (r *Report) checkChain(id string, chain []*x509.Certificate, roots *x509.CertPool) {
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
		r.Say("ca-basic", c.BasicConstraintsValid && c.IsCA, "intermediate %q is no CA", c.Subject)
		r.checkKeyUsageExtension(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	r.Say("svid-chain", err == nil, "%s: %v", id, err)
}

// checkAuthorities judges the bundle of a trust domain.
func (r *Report) checkAuthorities(td string, der []byte) *x509.CertPool {
	pool := x509.NewCertPool()
	certs, err := x509.ParseCertificates(der)
	if err != nil {
		r.Say("ca-basic", false, "the bundle of %s: %v", td, err)
		return pool
	}
	for _, c := range certs {
		pool.AddCert(c)
		r.Say("ca-basic", c.BasicConstraintsValid && c.IsCA, "%q is no CA", c.Subject)
		r.checkKeyUsageExtension(c)
		r.Say("ca-key-usage", c.KeyUsage&x509.KeyUsageCertSign != 0, "%q: %b", c.Subject, c.KeyUsage)
		r.Say("ca-self-signed", bytes.Equal(c.RawIssuer, c.RawSubject) && c.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) == nil, "%q", c.Subject)
		uris := uriSANs(c)
		r.Say("ca-id", len(uris) == 1, "%q: %q", c.Subject, uris)
		if len(uris) > 0 {
			r.Say("ca-path", len(uris) == 1 && strings.TrimSuffix(uris[0], "/") == "spiffe://"+td, "%q", uris)
		}
	}
	return pool
}

func (r *Report) checkKeyUsageExtension(c *x509.Certificate) {
	present, critical := extension(c, oidKeyUsage)
	r.Say("svid-key-usage-critical", present && critical, "%q %q: present %t, critical %t", c.Subject, uriSANs(c), present, critical)
}

func extension(c *x509.Certificate, id asn1.ObjectIdentifier) (present, critical bool) {
	for _, e := range c.Extensions {
		if e.Id.Equal(id) {
			return true, e.Critical
		}
	}
	return false, false
}
