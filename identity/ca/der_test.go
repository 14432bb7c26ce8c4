package ca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/writ-dev/writ/identity"
	"github.com/writ-dev/writ/identity/keys"
)

type memoryJournal struct{ doc []byte }

func (j *memoryJournal) LoadJournal(context.Context) ([]byte, error) { return j.doc, nil }
func (j *memoryJournal) SaveJournal(_ context.Context, doc []byte) error {
	j.doc = doc
	return nil
}

func openCA(t testing.TB) *CA {
	t.Helper()
	c, err := Open(t.Context(), Config{
		TrustDomain: spiffeid.RequireTrustDomainFromString("example.org"), Keys: &keys.Memory{}, Journal: &memoryJournal{},
		Emit: func(context.Context, identity.Act) error { return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	if c.x509.active.leaf == nil {
		t.Fatal("an authority in memory does not encode its SVIDs")
	}
	return c
}

var leafKeys = sync.OnceValue(func() []crypto.PublicKey {
	var all []crypto.PublicKey
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P256(), elliptic.P256(), elliptic.P384()} {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			panic(err)
		}
		all = append(all, key.Public())
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return append(all, key.Public())
})

// randomLeaf makes a template of the form that PrepareX509 makes, with more of
// everything than that lets through.
func randomLeaf(r *mathrand.Rand) *x509.Certificate {
	word := func(alphabet string, most int) string {
		letters := []rune(alphabet)
		var b strings.Builder
		for range 1 + r.IntN(most) {
			b.WriteRune(letters[r.IntN(len(letters))])
		}
		return b.String()
	}
	const plain = "abcdefghijklmnopqrstuvwxyzABCXYZ0123456789._-"
	// What makes the library choose between PrintableString and UTF8String.
	const names = "abc XYZ019'()+,-./:=?*&@_äß€𝄞"
	texts := func() (list []string) {
		for range r.IntN(3) {
			list = append(list, word(names, 70))
		}
		return list
	}
	serial := make([]byte, 1+r.IntN(20))
	for i := range serial {
		serial[i] = byte(r.Uint32())
	}
	serial[0] = serial[0]&0x7f | 1
	t := &x509.Certificate{
		SerialNumber:          new(big.Int).SetBytes(serial),
		NotBefore:             time.Unix(r.Int64N(4_500_000_000)-600_000_000, r.Int64N(2)*500).In(time.FixedZone("", r.IntN(7200))),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	t.NotAfter = t.NotBefore.Add(time.Duration(r.Int64N(int64(48 * time.Hour))))
	path := ""
	for range 1 + r.IntN(6) {
		path += "/" + word(plain, 12)
	}
	if r.IntN(20) == 0 {
		path += "/" + word(plain, 1900)
	}
	t.URIs = []*url.URL{{Scheme: "spiffe", Host: word("abcdefghijklmnopqrstuvwxyz0123456789.-_", 40), Path: path}}
	for range r.IntN(4) * r.IntN(8) {
		t.DNSNames = append(t.DNSNames, word(plain, 63))
	}
	if r.IntN(3) == 0 {
		t.Subject = pkix.Name{Country: texts(), Organization: texts(), OrganizationalUnit: texts(), Locality: texts(), CommonName: word(names, 64)}
		if r.IntN(2) == 0 {
			t.Subject.SerialNumber = word(plain, 40)
		}
	}
	return t
}

// firstElement is the first element of a sequence: of a certificate, what was
// signed.
func firstElement(t testing.TB, der []byte) []byte {
	t.Helper()
	var inner, first cryptobyte.String
	outer := cryptobyte.String(der)
	if !outer.ReadASN1(&inner, cbasn1.SEQUENCE) || !inner.ReadASN1Element(&first, cbasn1.SEQUENCE) {
		t.Fatalf("not a certificate: %x", der)
	}
	return first
}

// compare holds our encoding against the library's. What the library refuses we
// must refuse too; what we refuse the library makes.
func compare(t testing.TB, c *CA, template *x509.Certificate, key crypto.PublicKey) {
	t.Helper()
	by := c.x509.active
	theirs, libraryErr := x509.CreateCertificate(rand.Reader, template, by.cert, key, by.signer)
	ours, err := by.leaf.tbs(template, key)
	switch {
	case err != nil:
	case libraryErr != nil:
		t.Fatalf("the library refuses (%v) what we encode: %+v", libraryErr, template)
	case !bytes.Equal(ours, firstElement(t, theirs)):
		t.Fatalf("template %+v\nours   %x\ntheirs %x", template, ours, firstElement(t, theirs))
	}
}

func TestOwnEncodingIsTheLibrarys(t *testing.T) {
	count := 5000
	if testing.Short() {
		count = 500
	}
	c := openCA(t)
	seed := mathrand.Uint64()
	t.Logf("seed %d", seed)
	r := mathrand.New(mathrand.NewPCG(seed, 1))
	encoded := 0
	for range count {
		template, key := randomLeaf(r), leafKeys()[r.IntN(len(leafKeys()))]
		if _, err := c.x509.active.leaf.tbs(template, key); err == nil {
			encoded++
		}
		compare(t, c, template, key)
	}
	if encoded < count*9/10 {
		t.Errorf("only %d of %d were encoded: the test tests the library", encoded, count)
	}
}

// Both calendars, and a serial number whose first bit would make it negative.
func TestOwnEncodingAtEdges(t *testing.T) {
	c := openCA(t)
	for _, at := range []string{"1950-01-01T00:00:00Z", "1999-12-31T23:59:59Z", "2049-12-31T23:59:59Z", "2050-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "1949-12-31T23:59:59Z"} {
		when, err := time.Parse(time.RFC3339, at)
		if err != nil {
			t.Fatal(err)
		}
		for _, serial := range []*big.Int{big.NewInt(1), big.NewInt(0x7f), big.NewInt(0x80), big.NewInt(0xff00), new(big.Int).Lsh(big.NewInt(1), 159)} {
			template := randomLeaf(mathrand.New(mathrand.NewPCG(1, 2)))
			template.NotBefore, template.NotAfter, template.SerialNumber = when, when, serial
			compare(t, c, template, leafKeys()[0])
		}
	}
}

// Whatever is not exactly an X509-SVID is left to the library.
func TestOwnEncodingIsForLeavesOnly(t *testing.T) {
	c := openCA(t)
	leaf := c.x509.active.leaf
	for name, change := range map[string]func(*x509.Certificate){
		"authority":        func(t *x509.Certificate) { t.IsCA = true },
		"path length":      func(t *x509.Certificate) { t.MaxPathLenZero = true },
		"key usage":        func(t *x509.Certificate) { t.KeyUsage |= x509.KeyUsageKeyEncipherment },
		"extended usage":   func(t *x509.Certificate) { t.ExtKeyUsage = t.ExtKeyUsage[:1] },
		"order of usages":  func(t *x509.Certificate) { t.ExtKeyUsage[0], t.ExtKeyUsage[1] = t.ExtKeyUsage[1], t.ExtKeyUsage[0] },
		"no constraints":   func(t *x509.Certificate) { t.BasicConstraintsValid = false },
		"two URIs":         func(t *x509.Certificate) { t.URIs = append(t.URIs, t.URIs[0]) },
		"no URI":           func(t *x509.Certificate) { t.URIs = nil },
		"email":            func(t *x509.Certificate) { t.EmailAddresses = []string{"a@b"} },
		"address":          func(t *x509.Certificate) { t.IPAddresses = []net.IP{net.IPv6loopback} },
		"raw subject":      func(t *x509.Certificate) { t.RawSubject = []byte{0x30, 0} },
		"subject key":      func(t *x509.Certificate) { t.SubjectKeyId = []byte{1} },
		"authority key":    func(t *x509.Certificate) { t.AuthorityKeyId = []byte{1} },
		"extension":        func(t *x509.Certificate) { t.ExtraExtensions = []pkix.Extension{{Id: oidAuthorityKeyID}} },
		"algorithm":        func(t *x509.Certificate) { t.SignatureAlgorithm = x509.ECDSAWithSHA384 },
		"CRL":              func(t *x509.Certificate) { t.CRLDistributionPoints = []string{"http://x"} },
		"OCSP":             func(t *x509.Certificate) { t.OCSPServer = []string{"http://x"} },
		"serial":           func(t *x509.Certificate) { t.SerialNumber = big.NewInt(-1) },
		"letters":          func(t *x509.Certificate) { t.DNSNames = []string{"ä"} },
		"issuer's subject": func(t *x509.Certificate) { t.Subject = c.x509.active.cert.Subject },
	} {
		template := randomLeaf(mathrand.New(mathrand.NewPCG(1, 2)))
		if _, err := leaf.tbs(template, leafKeys()[0]); err != nil {
			t.Fatalf("%s: unchanged: %v", name, err)
		}
		change(template)
		if _, err := leaf.tbs(template, leafKeys()[0]); err == nil {
			t.Errorf("%s: encoded by us", name)
		}
	}
}

func FuzzOwnEncoding(f *testing.F) {
	f.Add(uint64(1), uint64(2), "web", "")
	f.Add(uint64(3), uint64(4), "web.example.org", "Käse & Co")
	c := openCA(f)
	f.Fuzz(func(t *testing.T, a, b uint64, dns, organization string) {
		template := randomLeaf(mathrand.New(mathrand.NewPCG(a, b)))
		template.DNSNames = append(template.DNSNames, dns)
		if organization != "" {
			template.Subject.Organization = []string{organization}
		}
		compare(t, c, template, leafKeys()[a%uint64(len(leafKeys()))])
	})
}

func prepare(t testing.TB, c *CA, n int) *X509Ticket {
	t.Helper()
	id := spiffeid.RequireFromSegments(c.TrustDomain(), "svc", fmt.Sprint(n))
	ticket, err := c.PrepareX509(X509Request{ID: id, PublicKey: leafKeys()[n%len(leafKeys())], DNSNames: []string{"web"}})
	if err != nil {
		t.Fatal(err)
	}
	return ticket
}

// issued makes one SVID and verifies it as a peer does.
func issued(t testing.TB, c *CA, n int) {
	t.Helper()
	ticket := prepare(t, c, n)
	chain, err := c.IssueX509(ticket)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(chain[0])
	if err != nil {
		t.Fatal(err)
	}
	bundle, _ := c.Bundle()
	if _, err := cert.Verify(x509.VerifyOptions{Roots: bundle.Pool(), CurrentTime: ticket.template.NotBefore, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err != nil {
		t.Fatalf("SVID %d: %v", n, err)
	}
}

func TestOwnEncodingVerifies(t *testing.T) {
	c := openCA(t)
	for n := range checkEvery + 3 {
		issued(t, c, n)
	}
	if c.distrusted.Load() || c.signed.Load() != checkEvery+3 {
		t.Errorf("distrusted %v after %d", c.distrusted.Load(), c.signed.Load())
	}
}

// An encoding or a signature that is wrong is found at the first SVID after a
// start, is not given out, and ends our own encoding.
func TestLibraryKeepsWatch(t *testing.T) {
	for name, damage := range map[string]func(*leafSigner){
		"a byte":        func(l *leafSigner) { l.authority = bytes.Clone(l.authority); l.authority[3] ^= 1 },
		"another field": func(l *leafSigner) { l.issuer = []byte{0x30, 0x00} },
		"the key": func(l *leafSigner) {
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			l.key = key
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := openCA(t)
			damage(c.x509.active.leaf)
			var alarms []identity.Act
			c.cfg.Emit = func(_ context.Context, act identity.Act) error {
				alarms = append(alarms, act)
				return errors.New("and if it cannot be put on record, SVIDs are issued all the same")
			}
			for n := range 5 {
				issued(t, c, n)
			}
			if len(alarms) != 1 || alarms[0].Kind != identity.ActAlarm || alarms[0].Verb != "diverged" || alarms[0].Actor != "spiffe://example.org/spire/server" {
				t.Errorf("on record: %+v", alarms)
			}
			if !c.distrusted.Load() || c.signed.Load() != 1 {
				t.Errorf("distrusted %v after %d", c.distrusted.Load(), c.signed.Load())
			}
		})
	}
}

// A signer that is not a key of this process is the library's to check.
func TestForeignSignerIsTheLibrarys(t *testing.T) {
	by := openCA(t).x509.active
	type elsewhere struct{ crypto.Signer }
	if newLeafSigner(by.cert, elsewhere{by.signer}) != nil {
		t.Error("a signer that is elsewhere")
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if newLeafSigner(by.cert, p384) != nil {
		t.Error("a key on P-384")
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if newLeafSigner(by.cert, other) != nil {
		t.Error("a key that is not the certificate's")
	}
}

func BenchmarkIssueX509(b *testing.B) {
	for _, library := range []bool{false, true} {
		b.Run(fmt.Sprintf("library=%v", library), func(b *testing.B) {
			c := openCA(b)
			c.distrusted.Store(library)
			for b.Loop() {
				id := spiffeid.RequireFromSegments(c.TrustDomain(), "svc", "web")
				ticket, err := c.PrepareX509(X509Request{ID: id, PublicKey: leafKeys()[0]})
				if err != nil {
					b.Fatal(err)
				}
				if _, err := c.IssueX509(ticket); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
