package ca_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/writ-dev/writ/identity/ca"
)

// Profile of the X509-SVID specification.
func TestX509Profile(t *testing.T) {
	f := newFixture(t)
	c := f.open()
	bundle, _ := c.Bundle()
	sanOID, kuOID := asn1.ObjectIdentifier{2, 5, 29, 17}, asn1.ObjectIdentifier{2, 5, 29, 15}
	critical := func(cert *x509.Certificate, oid asn1.ObjectIdentifier) bool {
		for _, e := range cert.Extensions {
			if e.Id.Equal(oid) {
				return e.Critical
			}
		}
		t.Errorf("no extension %v", oid)
		return false
	}
	authority := bundle.X509Authorities[0]
	if len(authority.URIs) != 1 || authority.URIs[0].String() != "spiffe://example.org" || !authority.IsCA ||
		authority.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign || !critical(authority, kuOID) || authority.PublicKey.(*ecdsa.PublicKey).Curve != elliptic.P256() {
		t.Error("authority is out of profile")
	}
	for name, r := range map[string]ca.X509Request{
		"plain":   {},
		"dns":     {DNSNames: []string{"web.example.org", "*.web.example.org"}},
		"subject": {Subject: pkix.Name{CommonName: "web"}},
	} {
		t.Run(name, func(t *testing.T) {
			cert := issue(t, c, r)
			if id, _, err := x509svid.Verify([]*x509.Certificate{cert}, bundle, x509svid.WithTime(f.now)); err != nil || id != web {
				t.Fatalf("go-spiffe: %v, %v", id, err)
			}
			if len(cert.URIs) != 1 || cert.IsCA || !cert.BasicConstraintsValid || cert.KeyUsage != x509.KeyUsageDigitalSignature || !critical(cert, kuOID) {
				t.Error("leaf is out of profile")
			}
			if diff := cmp.Diff([]x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, cert.ExtKeyUsage); diff != "" {
				t.Error(diff)
			}
			if empty := len(cert.Subject.ToRDNSequence()) == 0; critical(cert, sanOID) != empty {
				t.Errorf("subject empty: %v, SAN critical: %v", empty, !empty)
			}
			if !cert.NotBefore.Equal(f.now.Add(-10*time.Second)) || !cert.NotAfter.Equal(f.now.Add(time.Hour)) {
				t.Errorf("valid %v to %v", cert.NotBefore, cert.NotAfter)
			}
			if diff := cmp.Diff(r.DNSNames, cert.DNSNames); diff != "" {
				t.Error(diff)
			}
			if cert.SerialNumber.Sign() <= 0 || cert.SerialNumber.BitLen() > 159 {
				t.Error("serial number")
			}
		})
	}
	if cert := issue(t, c, ca.X509Request{DNSNames: []string{"web.example.org"}}); cert.Subject.CommonName != "web.example.org" {
		t.Errorf("common name %q", cert.Subject.CommonName)
	}
	// Never outlives its authority.
	f.now = f.now.Add(11 * time.Hour)
	if cert := issue(t, c, ca.X509Request{Life: 48 * time.Hour}); !cert.NotAfter.Equal(authority.NotAfter) {
		t.Errorf("ends %v, the authority %v", cert.NotAfter, authority.NotAfter)
	}
	f.now = authority.NotAfter
	if _, err := c.PrepareX509(ca.X509Request{ID: web, PublicKey: newKey(t).Public()}); !errors.Is(err, ca.ErrNotReady) {
		t.Errorf("signed by an expired authority: %v", err)
	}
	if c.Ready() {
		t.Error("ready with an expired authority")
	}
}

func TestPrepareRefuses(t *testing.T) {
	f := newFixture(t)
	c := f.open()
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Skip("this build makes no small RSA keys:", err)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good := newKey(t).Public()
	for name, r := range map[string]ca.X509Request{
		"no ID":          {PublicKey: good},
		"foreign ID":     {ID: spiffeid.RequireFromString("spiffe://elsewhere/web"), PublicKey: good},
		"trust domain":   {ID: td.ID(), PublicKey: good},
		"no key":         {ID: web},
		"small RSA":      {ID: web, PublicKey: small.Public()},
		"P-224":          {ID: web, PublicKey: p224.Public()},
		"short life":     {ID: web, PublicKey: good, Life: 9 * time.Second},
		"negative life":  {ID: web, PublicKey: good, Life: -time.Hour},
		"empty DNS name": {ID: web, PublicKey: good, DNSNames: []string{""}},
		"bad DNS name":   {ID: web, PublicKey: good, DNSNames: []string{"a..b"}},
		"wildcard alone": {ID: web, PublicKey: good, DNSNames: []string{"*"}},
		"inner wildcard": {ID: web, PublicKey: good, DNSNames: []string{"a.*.b"}},
		"space":          {ID: web, PublicKey: good, DNSNames: []string{"a b"}},
	} {
		if _, err := c.PrepareX509(r); err == nil {
			t.Errorf("%s: prepared", name)
		}
	}
	for name, r := range map[string]ca.JWTRequest{
		"no ID":        {Audience: []string{"a"}},
		"no audience":  {ID: web},
		"empty member": {ID: web, Audience: []string{"a", ""}},
		"short life":   {ID: web, Audience: []string{"a"}, Life: time.Second},
	} {
		if _, err := c.PrepareJWT(r); err == nil {
			t.Errorf("JWT, %s: prepared", name)
		}
	}
}

func TestTicketIsSingleUse(t *testing.T) {
	f := newFixture(t)
	c := f.open()
	other := newFixture(t).open()
	ticket, err := c.PrepareX509(ca.X509Request{ID: web, PublicKey: newKey(t).Public()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.IssueX509(ticket); err == nil {
		t.Error("another CA took the ticket")
	}
	var issued atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := c.IssueX509(ticket); err == nil {
				issued.Add(1)
			} else if !errors.Is(err, ca.ErrTicketUsed) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if issued.Load() != 1 {
		t.Errorf("one ticket, %d certificates", issued.Load())
	}
	for _, bad := range []*ca.X509Ticket{nil, {}} {
		if _, err := c.IssueX509(bad); err == nil {
			t.Error("issued without a prepared ticket")
		}
	}
	jwt, err := c.PrepareJWT(ca.JWTRequest{ID: web, Audience: []string{"a"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.IssueJWT(jwt); err != nil {
		t.Fatal(err)
	}
	if _, err := c.IssueJWT(jwt); !errors.Is(err, ca.ErrTicketUsed) {
		t.Errorf("second JWT: %v", err)
	}
	for _, bad := range []*ca.JWTTicket{nil, {}} {
		if _, err := c.IssueJWT(bad); err == nil {
			t.Error("issued without a prepared ticket")
		}
	}
}

func TestJWT(t *testing.T) {
	f := newFixture(t)
	f.now = time.Now() // go-spiffe checks tokens by the real clock
	c := f.open()
	bundle, _ := c.Bundle()
	verifier := jwtbundle.New(td)
	for _, a := range bundle.JWTAuthorities {
		key, err := x509.ParsePKIXPublicKey(a.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		if err := verifier.AddJWTAuthority(a.KeyID, key); err != nil {
			t.Fatal(err)
		}
	}
	ticket, err := c.PrepareJWT(ca.JWTRequest{ID: web, Audience: []string{"db", "cache"}})
	if err != nil {
		t.Fatal(err)
	}
	token, err := c.IssueJWT(ticket)
	if err != nil {
		t.Fatal(err)
	}
	svid, err := jwtsvid.ParseAndValidate(token, verifier, []string{"cache"})
	if err != nil {
		t.Fatal(err)
	}
	if svid.ID != web || !svid.Expiry.Equal(ticket.ExpiresAt()) || ticket.ExpiresAt().Sub(ticket.IssuedAt()) != 5*time.Minute {
		t.Errorf("%v until %v", svid.ID, svid.Expiry)
	}
	jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	h := jws.Signatures[0].Header
	if h.Algorithm != "ES256" || h.KeyID != ticket.KeyID() || h.KeyID == "" || h.ExtraHeaders[jose.HeaderType] != "JWT" {
		t.Errorf("header %+v", h)
	}
}

func FuzzCheckDNSName(f *testing.F) {
	for _, s := range []string{"a", "*.a.b", "a-.b", "", ".", "a.", "xn--a.b", strings.Repeat("a", 64)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if ca.CheckDNSName(name) != nil {
			return
		}
		// What is accepted must survive a certificate.
		template := &x509.CertificateRequest{DNSNames: []string{name}}
		der, err := x509.CreateCertificateRequest(rand.Reader, template, newKey(t))
		if err != nil {
			t.Fatal(err)
		}
		csr, err := x509.ParseCertificateRequest(der)
		if err != nil || len(csr.DNSNames) != 1 || csr.DNSNames[0] != name {
			t.Fatalf("%q came back as %v, %v", name, csr, err)
		}
	})
}
