package ca_test

import (
	"crypto/x509"
	"math/big"
	"testing"
	"time"

	"github.com/writ-dev/writ/identity/ca"
)

// Each authority that may have signed what is valid has a list that is verified by
// it, says what is revoked, and lasts as long as the authority.
func TestCRLs(t *testing.T) {
	f := newFixture(t)
	c := f.open()
	f.now = f.now.Add(13 * time.Hour)
	f.rotate(c)
	replace(t, c, ca.X509) // one is old, one active
	at := f.now.Add(-time.Minute).Truncate(time.Second)
	ders, err := c.CRLs(big.NewInt(7), []x509.RevocationListEntry{{SerialNumber: big.NewInt(5), RevocationTime: at}})
	if err != nil {
		t.Fatal(err)
	}
	authorities := map[string]*x509.Certificate{}
	b, _ := c.Bundle()
	for _, a := range b.X509Authorities {
		authorities[string(a.RawSubject)] = a
	}
	if len(ders) < 2 || len(ders) != len(authorities) {
		t.Fatalf("%d lists of %d authorities", len(ders), len(authorities))
	}
	for _, der := range ders {
		list, err := x509.ParseRevocationList(der)
		if err != nil {
			t.Fatal(err)
		}
		a := authorities[string(list.RawIssuer)]
		if a == nil || list.CheckSignatureFrom(a) != nil {
			t.Fatalf("a list of %s, which verifies by no authority", list.Issuer)
		}
		delete(authorities, string(list.RawIssuer))
		if !list.NextUpdate.Equal(a.NotAfter) || list.ThisUpdate.Before(a.NotBefore) || list.ThisUpdate.After(f.now) || list.Number.Int64() != 7 {
			t.Errorf("list %v from %v to %v, authority from %v to %v", list.Number, list.ThisUpdate, list.NextUpdate, a.NotBefore, a.NotAfter)
		}
		if got := list.RevokedCertificateEntries; len(got) != 1 || got[0].SerialNumber.Int64() != 5 || !got[0].RevocationTime.Equal(at) {
			t.Errorf("revoked %v", got)
		}
	}
	// One that has ended has no key, and needs no list.
	f.now = f.now.Add(12 * time.Hour)
	f.rotate(c)
	ders, err = c.CRLs(big.NewInt(8), nil)
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := c.Bundle(); len(ders) >= len(b.X509Authorities) || len(ders) == 0 {
		t.Errorf("%d lists of %d authorities, some of which have ended", len(ders), len(b.X509Authorities))
	}
}
