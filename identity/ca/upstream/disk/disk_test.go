package disk

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/keys"
)

var td = spiffeid.RequireTrustDomainFromString("example.org")

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// pki makes CAs in files of one directory.
type pki struct {
	t   *testing.T
	dir string
}

type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func (p pki) make(name string, by *authority, change func(*x509.Certificate)) *authority {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	if change != nil {
		change(template)
	}
	a := &authority{key: key}
	parent, signer := template, crypto.Signer(key)
	if by != nil {
		parent, signer = by.cert, by.key
	}
	a.cert = must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer))))
	return a
}

func (p pki) path(name string) string { return filepath.Join(p.dir, name) }

// write replaces a file as a careful program does.
func (p pki) write(name string, mode os.FileMode, blocks ...*pem.Block) string {
	p.t.Helper()
	var data []byte
	for _, b := range blocks {
		data = append(data, pem.EncodeToMemory(b)...)
	}
	tmp := p.path(name + ".new")
	if err := os.WriteFile(tmp, data, mode); err != nil {
		p.t.Fatal(err)
	}
	if err := os.Rename(tmp, p.path(name)); err != nil {
		p.t.Fatal(err)
	}
	return p.path(name)
}

func (p pki) certs(name string, list ...*authority) string {
	p.t.Helper()
	var blocks []*pem.Block
	for _, a := range list {
		blocks = append(blocks, &pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
	}
	return p.write(name, 0o644, blocks...)
}

func (p pki) key(name string, a *authority) string {
	p.t.Helper()
	return p.write(name, 0o600, &pem.Block{Type: "PRIVATE KEY", Bytes: must(x509.MarshalPKCS8PrivateKey(a.key))})
}

type journal struct{}

func (journal) LoadJournal(context.Context) ([]byte, error) { return nil, nil }
func (journal) SaveJournal(context.Context, []byte) error   { return nil }
func emit(context.Context, identity.Act) error              { return nil }
func open(t *testing.T, u *Upstream) (c *ca.CA, leaf []*x509.Certificate) {
	t.Helper()
	c, err := ca.Open(t.Context(), ca.Config{TrustDomain: td, Keys: &keys.Memory{}, Journal: journal{}, Emit: emit, Upstream: u})
	if err != nil {
		t.Fatal(err)
	}
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	ticket := must(c.PrepareX509(ca.X509Request{ID: spiffeid.RequireFromPath(td, "/web"), PublicKey: key.Public()}))
	for _, der := range must(c.IssueX509(ticket)) {
		leaf = append(leaf, must(x509.ParseCertificate(der)))
	}
	return c, leaf
}

func TestSigns(t *testing.T) {
	p := pki{t, t.TempDir()}
	root := p.make("root", nil, nil)
	between := p.make("between", root, func(c *x509.Certificate) { c.MaxPathLen = 1 })
	for name, tt := range map[string]struct {
		cfg   Config
		chain int
	}{
		"a root":            {Config{Cert: p.certs("root.pem", root), Key: p.key("root.key", root)}, 2},
		"a root, by bundle": {Config{Cert: p.path("root.pem"), Key: p.path("root.key"), Bundle: p.path("root.pem")}, 2},
		"an intermediate":   {Config{Cert: p.certs("between.pem", between), Key: p.key("between.key", between), Bundle: p.path("root.pem")}, 3},
	} {
		tt.cfg.TrustDomain = td
		u, err := New(tt.cfg)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		c, leaf := open(t, u)
		b, _ := c.Bundle()
		if _, _, err := x509svid.Verify(leaf, b); err != nil || len(leaf) != tt.chain {
			t.Errorf("%s: a chain of %d: %v", name, len(leaf), err)
		}
		if len(b.X509Authorities) != 1 || !b.X509Authorities[0].Equal(root.cert) {
			t.Errorf("%s: the bundle is not the root", name)
		}
	}
}

func TestRefuses(t *testing.T) {
	p := pki{t, t.TempDir()}
	root, other := p.make("root", nil, nil), p.make("other", nil, nil)
	between := p.make("between", root, nil)
	rootPEM, rootKey := p.certs("root.pem", root), p.key("root.key", root)
	open := p.write("open.key", 0o640, &pem.Block{Type: "PRIVATE KEY", Bytes: must(x509.MarshalPKCS8PrivateKey(root.key))})
	for name, tt := range map[string]struct {
		cfg  Config
		want string
	}{
		"no file":         {Config{Cert: p.path("none"), Key: rootKey}, "no such file"},
		"not PEM":         {Config{Cert: p.write("empty", 0o600), Key: rootKey}, "no certificate"},
		"another's key":   {Config{Cert: rootPEM, Key: p.key("other.key", other)}, "is not that of the certificate"},
		"open key":        {Config{Cert: rootPEM, Key: open}, "lets others in"},
		"no key":          {Config{Cert: rootPEM, Key: rootPEM}, "lets others in"},
		"encrypted":       {Config{Cert: rootPEM, Key: p.write("enc.key", 0o600, &pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("x")})}, "decrypt it"},
		"not a CA":        {leaf(p), "not the certificate of a CA"},
		"path length 0":   {pathLength(p), "path length is 0"},
		"no bundle":       {Config{Cert: p.certs("between.pem", between), Key: p.key("between.key", between)}, "name a file with the roots"},
		"other's bundle":  {Config{Cert: p.path("between.pem"), Key: p.path("between.key"), Bundle: p.certs("other.pem", other)}, "does not lead to a root"},
		"expired":         {expired(p), "expired"},
		"malformed key":   {Config{Cert: rootPEM, Key: p.write("bad.key", 0o600, &pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")})}, "malformed"},
		"no key in there": {Config{Cert: rootPEM, Key: p.write("no.key", 0o600)}, "no private key"},
	} {
		tt.cfg.TrustDomain = td
		if _, err := New(tt.cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func leaf(p pki) Config {
	a := p.make("leaf", nil, func(c *x509.Certificate) { c.IsCA, c.KeyUsage = false, x509.KeyUsageDigitalSignature })
	return Config{Cert: p.certs("leaf.pem", a), Key: p.key("leaf.key", a)}
}

func pathLength(p pki) Config {
	a := p.make("short", nil, func(c *x509.Certificate) { c.MaxPathLenZero = true })
	return Config{Cert: p.certs("short.pem", a), Key: p.key("short.key", a)}
}

func expired(p pki) Config {
	a := p.make("old", nil, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	return Config{Cert: p.certs("old.pem", a), Key: p.key("old.key", a)}
}

// New roots arrive when the file is replaced; one that does not fit changes
// nothing.
func TestFollow(t *testing.T) {
	p := pki{t, t.TempDir()}
	root, next := p.make("root", nil, nil), p.make("next", nil, nil)
	u, err := New(Config{TrustDomain: td, Cert: p.certs("ca.pem", root), Key: p.key("ca.key", root), Bundle: p.certs("roots.pem", root)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	got, done := make(chan ca.UpstreamBundle), make(chan error, 1)
	go func() { done <- u.Follow(ctx, func(b ca.UpstreamBundle) { got <- b }) }()
	if b := <-got; len(b.X509) != 1 {
		t.Errorf("%d roots", len(b.X509))
	}
	p.certs("roots.pem", next) // the CA does not lead there
	p.certs("roots.pem", root, next)
	if b := <-got; len(b.X509) != 2 || !b.X509[1].Cert.Equal(next.cert) {
		t.Errorf("%d roots", len(b.X509))
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Whatever parses must come back the same from its own encoding.
func FuzzParseKey(f *testing.F) {
	ec := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	f.Add(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: must(x509.MarshalPKCS8PrivateKey(ec))}))
	f.Add(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: must(x509.MarshalECPrivateKey(ec))}))
	f.Add(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(must(rsa.GenerateKey(rand.Reader, 2048)))}))
	f.Fuzz(func(t *testing.T, data []byte) {
		key, err := parseKey(data)
		if err != nil {
			return
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseKey(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzParseCerts(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		certs, err := parseCerts(data)
		if err == nil && len(certs) == 0 {
			t.Fatal("neither certificates nor an error")
		}
	})
}
