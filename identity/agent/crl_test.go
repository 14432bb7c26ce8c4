package agent

import (
	"crypto/rand"
	"crypto/x509"
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
