package agent_test

import (
	"testing"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// newest picks the identity whose name is last in the alphabet.
func newest(svids []*x509svid.SVID) *x509svid.SVID {
	last := svids[0]
	for _, s := range svids {
		if s.ID.Path() > last.ID.Path() {
			last = s
		}
	}
	return last
}

func pathOf(t testing.TB, source *workloadapi.X509Source) string {
	t.Helper()
	svid, err := source.GetX509SVID()
	must(t, err)
	return svid.ID.Path()
}
