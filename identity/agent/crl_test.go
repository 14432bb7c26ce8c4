package agent

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"testing"
	"time"

	"github.com/writ-dev/writ/identity/watchv1"
)

// crlOf is a list as an issuer signs it.
func crlOf(t *testing.T, f *fake, ends time.Time) []byte {
	t.Helper()
	return need(x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: ends}, f.ca, f.key))
}

// Only a list that an authority of the bundle signed is given to anybody, while it is
// good; garbage changes nothing.
func TestHostileCRLs(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.cfg.SDS.CRL = true
		b.mustRun()
		if n := b.agent.Status().WithoutCRL; n != 1 {
			t.Errorf("%d authorities have no CRL, want the one", n)
		}
		count := func() int {
			g, _ := b.lookup("unix:uid:1")
			return len(g.CRLs)
		}
		good, alien := crlOf(t, b.f, time.Now().Add(time.Hour)), crlOf(t, newFake(), time.Now().Add(time.Hour))
		if b.agent.takeCRLs(&watchv1.CRLs{Lists: [][]byte{alien}}); count() != 0 {
			t.Error("a list of another authority is given out")
		}
		if b.agent.takeCRLs(&watchv1.CRLs{Lists: [][]byte{alien, good}}); count() != 1 {
			t.Errorf("%d lists, want the one that the bundle vouches for", count())
		}
		// Of one whose key is gone the last stands.
		for _, news := range []*watchv1.CRLs{nil, {}, {Lists: [][]byte{alien}}, {Lists: [][]byte{good, []byte("garbage")}}} {
			if b.agent.takeCRLs(news); count() != 1 {
				t.Errorf("%d lists after %v", count(), news)
			}
		}
		if n := b.agent.Status().WithoutCRL; n != 0 {
			t.Errorf("%d authorities have no CRL", n)
		}
		time.Sleep(time.Hour)
		if count() != 0 {
			t.Error("a list that has ended is given out: everybody would be refused")
		}
	})
}

// A list of an authority that an upstream signed counts by the certificates that come
// with it, if they lead to the bundle; each list is replaced by the next of the same
// authority, and the others stand.
func TestCRLsOfIntermediates(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.cfg.SDS.CRL = true
		b.mustRun()
		authority := func(name string, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
			key := need(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
			template := &x509.Certificate{
				SerialNumber: big.NewInt(77), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(3 * time.Hour),
				IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
			}
			if parent == nil {
				parent, signer = template, key
			}
			return need(x509.ParseCertificate(need(x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)))), key
		}
		list := func(cert *x509.Certificate, key *ecdsa.PrivateKey, number int64, life time.Duration) []byte {
			return need(x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(number), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(life)}, cert, key))
		}
		given := func() [][]byte {
			g, _ := b.lookup("unix:uid:1")
			return g.CRLs
		}
		one, oneKey := authority("one", b.f.ca, b.f.key)
		two, twoKey := authority("two", b.f.ca, b.f.key)
		alien, alienKey := authority("alien", nil, nil)
		b.agent.takeCRLs(&watchv1.CRLs{Lists: [][]byte{list(one, oneKey, 1, 2*time.Hour)}})
		b.agent.takeCRLs(&watchv1.CRLs{Lists: [][]byte{list(alien, alienKey, 1, 2*time.Hour)}, Intermediates: [][]byte{alien.Raw}})
		if n := len(given()); n != 0 || b.agent.Status().WithoutCRL != 1 {
			t.Fatalf("%d lists that lead nowhere are given out, %d authorities have none", n, b.agent.Status().WithoutCRL)
		}
		latest := list(two, twoKey, 2, 2*time.Hour)
		b.agent.takeCRLs(&watchv1.CRLs{Lists: [][]byte{list(two, twoKey, 1, time.Hour)}, Intermediates: [][]byte{one.Raw, two.Raw}})
		b.agent.takeCRLs(&watchv1.CRLs{Lists: [][]byte{latest}, Intermediates: [][]byte{one.Raw, two.Raw}})
		if got := given(); len(got) != 2 || !bytes.Equal(got[1], latest) || b.agent.Status().WithoutCRL != 0 {
			t.Fatalf("%d lists, want the one that waited for its signer and the latest of the other; %d authorities have none", len(got), b.agent.Status().WithoutCRL)
		}
		b.agent.takeCRLs(&watchv1.CRLs{Lists: [][]byte{list(one, oneKey, 9, time.Minute)}})
		time.Sleep(time.Hour)
		if got := given(); len(got) != 1 || !bytes.Equal(got[0], latest) {
			t.Errorf("%d lists after one has ended", len(got))
		}
		time.Sleep(time.Hour)
		if b.agent.takeCRLs(nil); len(given()) != 0 || b.agent.Status().WithoutCRL != 1 {
			t.Errorf("%d lists after all have ended, %d authorities have none", len(given()), b.agent.Status().WithoutCRL)
		}
	})
}
