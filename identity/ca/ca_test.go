package ca_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/keys"
)

var (
	td  = spiffeid.RequireTrustDomainFromString("example.org")
	web = spiffeid.RequireFromString("spiffe://example.org/svc/web")
)

// memory is a journal that can fail.
type memory struct {
	doc  []byte
	fail error
}

func (m *memory) LoadJournal(context.Context) ([]byte, error) { return m.doc, nil }
func (m *memory) SaveJournal(_ context.Context, doc []byte) error {
	if m.fail == nil {
		m.doc = doc
	}
	return m.fail
}

// fixture is a CA whose clock the test sets.
type fixture struct {
	t       *testing.T
	now     time.Time
	keys    keys.Store
	journal *memory
	life    time.Duration
	acts    []string
	emitErr error
}

func newFixture(t *testing.T) *fixture {
	return &fixture{t: t, now: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC), keys: &keys.Memory{}, journal: &memory{}, life: 24 * time.Hour}
}

func (f *fixture) config() ca.Config {
	return ca.Config{
		TrustDomain: td, Keys: f.keys, Journal: f.journal, Life: f.life,
		Clock: func() time.Time { return f.now },
		Emit: func(_ context.Context, act identity.Act) error {
			if f.emitErr == nil {
				suffix := ""
				if act.Failed {
					suffix = " failed"
				}
				f.acts = append(f.acts, act.Object+" "+act.Verb+suffix)
			}
			return f.emitErr
		},
	}
}

func (f *fixture) open() *ca.CA {
	f.t.Helper()
	c, err := ca.Open(f.t.Context(), f.config())
	if err != nil {
		f.t.Fatal(err)
	}
	return c
}

func (f *fixture) rotate(c *ca.CA) {
	f.t.Helper()
	if err := c.Rotate(f.t.Context()); err != nil {
		f.t.Fatal(err)
	}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func issue(t *testing.T, c *ca.CA, r ca.X509Request) *x509.Certificate {
	t.Helper()
	if r.PublicKey == nil {
		r.PublicKey = newKey(t).Public()
	}
	if r.ID.IsZero() {
		r.ID = web
	}
	ticket, err := c.PrepareX509(r)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := c.IssueX509(ticket)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(chain[0])
	if err != nil {
		t.Fatal(err)
	}
	if cert.SerialNumber.String() != ticket.Serial() || !cert.NotAfter.Equal(ticket.ExpiresAt()) {
		t.Error("the ticket said something else than the certificate")
	}
	return cert
}

// The schedule: prepared at half life, activated with a sixth left, dropped at
// the end; published before use; the sequence grows with every change only.
func TestRotation(t *testing.T) {
	f := newFixture(t)
	c := f.open()
	first, changed := c.Bundle()
	if len(first.X509Authorities) != 1 || len(first.JWTAuthorities) != 1 || first.Sequence != 1 {
		t.Fatalf("first bundle: %d, %d, sequence %d", len(first.X509Authorities), len(first.JWTAuthorities), first.Sequence)
	}
	signer := func() string { return string(issue(t, c, ca.X509Request{Life: time.Minute}).AuthorityKeyId) }
	a := signer()
	start := f.now

	f.now = start.Add(12*time.Hour - time.Second)
	f.rotate(c)
	if b, _ := c.Bundle(); b != first {
		t.Error("changed before half life")
	}
	f.now = start.Add(12 * time.Hour)
	f.rotate(c)
	select {
	case <-changed:
	default:
		t.Error("subscribers were not told")
	}
	second, changed := c.Bundle()
	if len(second.X509Authorities) != 2 || len(second.JWTAuthorities) != 2 || second.Sequence != 2 {
		t.Errorf("second bundle: %d, %d, sequence %d", len(second.X509Authorities), len(second.JWTAuthorities), second.Sequence)
	}
	if signer() != a {
		t.Error("the next authority signs before its time")
	}
	f.now = start.Add(20*time.Hour - time.Second)
	f.rotate(c)
	if signer() != a {
		t.Error("the next authority signs before its time")
	}
	f.now = start.Add(20 * time.Hour)
	f.rotate(c)
	b := signer()
	if b == a || b != string(second.X509Authorities[1].SubjectKeyId) {
		t.Error("the next authority was not activated")
	}
	if now, _ := c.Bundle(); now != second {
		t.Error("activation is no change of the bundle")
	}
	select {
	case <-changed:
		t.Error("subscribers were told of nothing")
	default:
	}
	f.now = start.Add(24 * time.Hour)
	f.rotate(c)
	third, _ := c.Bundle()
	if len(third.X509Authorities) != 2 || third.Sequence != 3 || string(third.X509Authorities[0].SubjectKeyId) != b {
		t.Errorf("third bundle: %d, sequence %d; want the second authority and the third", len(third.X509Authorities), third.Sequence)
	}
	if _, err := f.keys.Load(first.JWTAuthorities[0].KeyID); !errors.Is(err, keys.ErrNotFound) {
		t.Errorf("key of an expired authority: %v", err)
	}
	want := []string{
		"x509-authority prepared", "x509-authority activated", "jwt-authority prepared", "jwt-authority activated",
		"x509-authority prepared", "jwt-authority prepared",
		"x509-authority activated", "jwt-authority activated",
		"x509-authority prepared", "x509-authority expired", "jwt-authority prepared", "jwt-authority expired",
	}
	if diff := cmp.Diff(want, f.acts); diff != "" {
		t.Error(diff)
	}
}

func TestRestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	f := newFixture(t)
	disk := func() keys.Store {
		s, err := keys.OpenDisk(dir)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	f.keys = disk()
	c := f.open()
	f.now = f.now.Add(13 * time.Hour)
	f.rotate(c)
	before, _ := c.Bundle()
	signed := issue(t, c, ca.X509Request{})

	f.keys = disk()
	c = f.open()
	after, _ := c.Bundle()
	if after.Sequence != before.Sequence || string(after.PEM()) != string(before.PEM()) {
		t.Error("the bundle changed over a restart")
	}
	if diff := cmp.Diff(before.JWTAuthorities, after.JWTAuthorities); diff != "" {
		t.Error(diff)
	}
	if issue(t, c, ca.X509Request{}).Issuer.SerialNumber != signed.Issuer.SerialNumber {
		t.Error("another authority is active after the restart")
	}

	// Three days later everything has expired; the sequence still grows.
	f.keys = disk()
	f.now = f.now.Add(72 * time.Hour)
	c = f.open()
	late, _ := c.Bundle()
	if late.Sequence <= after.Sequence || len(late.X509Authorities) != 1 {
		t.Errorf("after a long stop: sequence %d, %d authorities", late.Sequence, len(late.X509Authorities))
	}
	issue(t, c, ca.X509Request{})

	// In the last sixth of the prepared one's life there is no time to use it.
	f.now = f.now.Add(12 * time.Hour)
	f.rotate(c)
	f.now = f.now.Add(22 * time.Hour)
	c = f.open()
	if cert := issue(t, c, ca.X509Request{}); !cert.NotAfter.Equal(f.now.Add(time.Hour)) {
		t.Errorf("SVID ends %v, want a whole hour", cert.NotAfter.Sub(f.now))
	}
}

func TestRestartWithoutKeys(t *testing.T) {
	f := newFixture(t)
	c := f.open()
	before, _ := c.Bundle()
	f.keys = &keys.Memory{}
	c = f.open()
	after, _ := c.Bundle()
	if len(after.X509Authorities) != 2 || after.Sequence <= before.Sequence {
		t.Errorf("%d authorities, sequence %d: want the old one, still verifying, and a new one", len(after.X509Authorities), after.Sequence)
	}
	issue(t, c, ca.X509Request{})

	// A key that is another one under the same name must not sign.
	f.keys = &keys.Memory{}
	for _, a := range after.JWTAuthorities {
		if _, err := f.keys.Create(a.KeyID, keys.P256); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := ca.Open(t.Context(), f.config()); err == nil || !strings.Contains(err.Error(), "another one") {
		t.Errorf("opened with swapped keys: %v", err)
	}
	for _, doc := range []string{"{", `{"version":2}`, `{"version":1,"x509":[{"id":"a","slot":"active"}]}`} {
		f.journal.doc = []byte(doc)
		if _, err := ca.Open(t.Context(), f.config()); err == nil {
			t.Errorf("opened with journal %s", doc)
		}
	}
}

func TestRotationFailsWhole(t *testing.T) {
	f := newFixture(t)
	c := f.open()
	before, _ := c.Bundle()
	f.now = f.now.Add(13 * time.Hour)
	f.emitErr = errors.New("spool full")
	if err := c.Rotate(t.Context()); err == nil {
		t.Error("rotated off the record")
	}
	f.emitErr, f.journal.fail = nil, errors.New("disk full")
	if err := c.Rotate(t.Context()); err == nil {
		t.Error("rotated without a journal")
	}
	if last := f.acts[len(f.acts)-1]; !strings.HasSuffix(last, "failed") {
		t.Errorf("the record ends with %q", last)
	}
	if b, _ := c.Bundle(); b != before {
		t.Error("the bundle changed")
	}
	f.journal.fail = nil
	f.rotate(c)
	if b, _ := c.Bundle(); len(b.X509Authorities) != 2 {
		t.Error("rotation did not recover")
	}
}

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
			if cert.SerialNumber.Sign() <= 0 || cert.SerialNumber.BitLen() > 127 {
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
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
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
		"P-521":          {ID: web, PublicKey: p521.Public()},
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
	jws, err := jose.ParseSigned(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	h := jws.Signatures[0].Header
	if h.Algorithm != "ES256" || h.KeyID != ticket.KeyID() || h.KeyID == "" || h.ExtraHeaders[jose.HeaderType] != "JWT" {
		t.Errorf("header %+v", h)
	}
}

func TestConfig(t *testing.T) {
	for name, change := range map[string]func(*ca.Config){
		"no trust domain": func(c *ca.Config) { c.TrustDomain = spiffeid.TrustDomain{} },
		"no keys":         func(c *ca.Config) { c.Keys = nil },
		"no journal":      func(c *ca.Config) { c.Journal = nil },
		"no emit":         func(c *ca.Config) { c.Emit = nil },
		"short life":      func(c *ca.Config) { c.Life = 29 * time.Second },
		"long life":       func(c *ca.Config) { c.Life = 100 * 366 * 24 * time.Hour },
		"short SVIDs":     func(c *ca.Config) { c.X509SVIDLife = 9 * time.Second },
		"short JWTs":      func(c *ca.Config) { c.JWTSVIDLife = time.Second },
	} {
		config := newFixture(t).config()
		change(&config)
		if _, err := ca.Open(t.Context(), config); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
}

// Run rotates by itself, through several generations.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.life = 30 * time.Second
		config := f.config()
		config.Clock = nil // the bubble's time
		config.Emit = func(context.Context, identity.Act) error { return nil }
		ctx, stop := context.WithCancel(t.Context())
		c, err := ca.Open(ctx, config)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error)
		go func() { done <- c.Run(ctx) }()
		signers := map[string]bool{}
		start := time.Now()
		for time.Since(start) < 3*time.Minute {
			_, changed := c.Bundle()
			<-changed
			synctest.Wait()
			if !c.Ready() {
				t.Fatal("not ready")
			}
			signers[issue(t, c, ca.X509Request{Life: 10 * time.Second}).Issuer.SerialNumber] = true
		}
		if len(signers) < 5 {
			t.Errorf("%d authorities signed in three minutes, want at least 5", len(signers))
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
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
